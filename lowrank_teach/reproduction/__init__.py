"""The papers' claims: presets, studies, verdicts, and the ledger they end in."""
