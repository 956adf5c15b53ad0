"""The papers' own numbers that the ledger quotes: only those that were found in a text, a table or a repository.

Numbers remembered, or read off a figure, are not here. A test holds each against the list they were taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_COLA, _SALORA = "Xia, Qin and Hazan 2024, arXiv 2401.04151", "Hu et al. 2023, Mathematics 11(20), 4317"
_DELTA, _AUTO = "Zi et al. 2023, arXiv 2309.02411", "Zhang et al. 2024, NAACL, arXiv 2403.09113"
_LORA = "Hu et al. 2021, arXiv 2106.09685, tables in microsoft/LoRA@c4593f0"
_SECOND = "a secondary page on arXiv 2309.02411"


@dataclass(frozen=True)
class Reported:
    """text: as a table cell.  values: the numbers in it, as reported.  source: where they stand."""

    text: str
    values: Sequence[str]
    source: str


REPORTED: dict[str, Reported] = {
    "COLA: gains": Reported("+3.66 on WSC, +1.38 on BoolQ, +1.66 on RTE (OPT-1.3B)", ("3.66", "1.38", "1.66"),
                            f"{_COLA}, text on table 1"),
    "COLA: WSC": Reported("+3.66 points, 6.47 % of LoRA's score", ("3.66", "6.47"), f"{_COLA}, text on table 1"),
    "COLA: RTE, Llama2": Reported("82.09 → 85.70", ("82.09", "85.70"), f"{_COLA}, text on table 2"),
    "COLA: SST-2, Llama2": Reported("0 points", ("0 (means stated equal)",), f"{_COLA}, text on table 2"),
    "SaLoRA: counts": Reported("1.33 M, 3.54 M; 576, 1152", ("1.33", "3.54", "576", "1152"),
                               f"{_SALORA}, text on tables 1 and 4"),
    "SaLoRA: kept": Reported("0.5 × 1.33 M", ("0.5 x 1.33M",), f"{_SALORA}, text on table 1"),
    "SaLoRA: style": Reported("StyIns 92.40, human 64.60", ("92.40", "64.60"), f"{_SALORA}, text on table 2"),
    "SaLoRA: λ = 0": Reported("0.37 (CoLA), 0.42 (STS-B), 0.43 (MRPC) at b = 0.5", ("0.37", "0.42", "0.43", "0.5"),
                              f"{_SALORA}, text on table 3"),
    "SaLoRA: time": Reported("+11 % at batch 32", ("11",), f"{_SALORA}, text on table 4"),
    "SaLoRA: density": Reported("down to 0.125 (RoBERTa-large)", ("0.125",), f"{_SALORA}, text on figure 5"),
    "SaLoRA: start": Reported("0.92", ("0.92",), f"{_SALORA}, text on figure 6"),
    "SaLoRA: end": Reported("about 0.50", ("about 0.50",), f"{_SALORA}, text on figure 6"),
    "SaLoRA: orthogonality": Reported("about 0.001", ("about 0.001",), f"{_SALORA}, text on figure 6"),
    "Delta-LoRA: E2E": Reported("+1.24 BLEU, +0.13 NIST, +0.86 METEOR, +1.13 ROUGE-L, +0.08 CIDEr over LoRA",
                                ("+1.24", "+0.13", "+0.86", "+1.13", "+0.08"), f"{_DELTA}, text on table 1"),
    "Delta-LoRA: WebNLG": Reported("+0.79, +1.08, +0.91 BLEU (seen, unseen, all), +0.01 METEOR, TER better by 0.02",
                                   ("+0.79", "+1.08", "+0.91", "+0.01", "0.02"), f"{_DELTA}, text on table 2"),
    "Delta-LoRA: GLUE": Reported("MRPC 90.19, SST-2 95.1", ("90.19", "95.1"), _SECOND),
    "Delta-LoRA: λ": Reported("λ = 2", ("2",), _SECOND),
    "Delta-LoRA: K": Reported("K ≥ 500", (">=500",), _SECOND),
    "AutoLoRA: GLUE": Reported("average 85.5 (RoBERTa-base)", ("85.5",), f"{_AUTO}, text on table 1"),
    "AutoLoRA: best": Reported("6 of 8", ("6",), f"{_AUTO}, text on table 1"),
    "AutoLoRA: cost": Reported("AdaLoRA normalised to 1", ("1",), f"{_AUTO}, text on table 5"),
    "AutoLoRA: lists": Reported("means 3.000 (MNLI) to 4.125 (MRPC) on GLUE", ("3.000", "4.125"),
                                "ruz048/AutoLoRA@2b2db5c, rank lists"),
    "LoRA: average": Reported("87.2 against 86.4 (RoBERTa-base)", ("87.2", "86.4"), f"{_LORA}, table 2"),
    "LoRA: size": Reported("0.3 M", ("LoRA (0.3M)",), f"{_LORA}, table 2"),
    "LoRA: E2E": Reported("BLEU 70.4 against 68.2", ("70.4", "68.2"), f"{_LORA}, table 3"),
}


def says(name: str) -> str:
    """A reported number as the ledger prints it.

    Raises:
        KeyError: there is no such number.
    """
    return REPORTED[name].text
