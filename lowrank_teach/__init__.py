"""Low-rank adaptation, taught: LoRA, COLA, SaLoRA, Delta-LoRA and AutoLoRA."""
