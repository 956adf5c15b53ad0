"""Style transfer: sentences to be rewritten in the other of two styles, both directions, and the words that ask.

No training rows: Yelp has no pairs of the two styles, so nothing can be trained to map one to the other directly.
The setting is SaLoRA's: a causal model is tuned on instructions (task `alpaca`) and asked in words, unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.errors import sentence
from lowrank_teach.rows import CellError, strings

from . import gyafc, prepare

_ASK = "Rewrite the following {what} so that it is {style}. Keep its topic and its details."


@dataclass(frozen=True)
class Transfer:
    """One set of sentences. `classifier` names the task whose classes are the two styles, in the same order."""

    name: str
    styles: tuple[str, str]
    classifier: str
    ask: str  # the instruction, with {style}
    reader: Callable[[], pd.DataFrame]  # source, references, wanted
    note: str
    rewrites: int  # by humans, in the published test set
    words: tuple[str, str] = ("", "")  # what the styles are called in the instruction, where not by their names

    @property
    def directions(self) -> tuple[str, str]:
        """"negative to positive" and "positive to negative"."""
        return tuple(self.direction(code) for code in (1, 0))  # type: ignore[return-value]

    def direction(self, wanted: int) -> str:
        return f"{self.styles[1 - wanted]} to {self.styles[wanted]}"

    def instruction(self, wanted: int) -> str:
        return self.ask.format(style=self.words[wanted] or self.styles[wanted])


def _yelp() -> pd.DataFrame:
    from . import TASKS, load_task
    from .sources import find

    test = load_task("yelp").test
    if test is None or "reference" not in test:
        raise ValueError("yelp-transfer: the test rows of 'yelp' need a column 'reference', a rewrite of each by a "
                         "human (Li et al. 2018); this copy has none")
    try:
        strings(find(TASKS["yelp"])[0]["test"], "reference")  # in the file's own rows
    except CellError as error:
        raise ValueError(sentence(f"yelp-transfer, {error}")) from None
    return pd.DataFrame({"source": test["text"], "references": [[one] for one in test["reference"]],
                         "wanted": 1 - test["label"]})


def _rt() -> pd.DataFrame:
    from . import load_task

    test = load_task("rt").test
    assert test is not None  # its split is our own
    return pd.DataFrame({"source": test["text"], "references": [[] for _ in range(len(test))],
                         "wanted": 1 - test["label"]})


_REVIEW = _ASK.replace("{what}", "review sentence")
_SENTENCE = _ASK.replace("{what}", "sentence")
_TABLE = [
    Transfer("yelp-transfer", ("negative", "positive"), "yelp", _REVIEW, _yelp,
             "1,000 sentences, one human rewrite of each (Li et al. 2018)", 1000),
    Transfer("gyafc-transfer", gyafc.STYLES, "gyafc", _SENTENCE, lambda: gyafc.to_rewrite("Family_Relationships"),
             "families and relationships, four human rewrites of each (Rao & Tetreault 2018)", 9404),
    Transfer("gyafc-music-transfer", gyafc.STYLES, "gyafc-music", _SENTENCE,
             lambda: gyafc.to_rewrite("Entertainment_Music"),
             "entertainment and music, four human rewrites of each (Rao & Tetreault 2018)", 9992),
    Transfer("rt-transfer", ("rotten", "fresh"), "rt", _REVIEW, _rt,
             "film critics' snippets; packaged; no human rewrites, so no BLEU to one", 0, ("negative", "positive")),
]  # fmt: skip
TRANSFERS: dict[str, Transfer] = {transfer.name: transfer for transfer in _TABLE}


def load_transfer(name: str, direction: str | None = None, n: int | None = None) -> pd.DataFrame:
    """Sentences to rewrite: source, references (a list, at times empty), wanted, direction, instruction.

    name: a key of `TRANSFERS`.  direction: such as "negative to positive"; both where None.
    n: of each direction at most so many, in the order of a hash of their text.
    wanted is the code of the style to write, as the task `TRANSFERS[name].classifier` numbers its classes.

    Raises:
        ValueError: no such name or direction, n below 1.  FileNotFoundError: no source has the rows.
    """
    if name not in TRANSFERS:
        near = get_close_matches(name, TRANSFERS, n=2, cutoff=0.4)
        raise ValueError(f"no style transfer '{name}': {f'did you mean {near[0]}? ' if near else ''}there are "
                         f"{', '.join(TRANSFERS)}")
    one = TRANSFERS[name]
    if direction not in (None, *one.directions):
        raise ValueError(f"{name}: no direction '{direction}'; there are '{one.directions[0]}' and "
                         f"'{one.directions[1]}'")
    if n is not None and n < 1:
        raise ValueError(f"{name}: n = {n}; ask for at least one sentence, or None for all")
    frame = one.reader()
    frame["direction"] = frame["wanted"].map(one.direction)
    frame["instruction"] = frame["wanted"].map(one.instruction)
    order = [corpora.stable_hash(name, text) for text in frame["source"]]
    frame = frame.assign(_order=pd.array(order, dtype="UInt64")).sort_values("_order", kind="stable")
    parts = [frame[frame["direction"] == d].head(n or len(frame)) for d in one.directions if direction in (None, d)]
    return pd.concat(parts, ignore_index=True).drop(columns="_order")


def zero_shot(name: str) -> corpora.Splits:
    """The test set of a model tuned on `alpaca`: one row a human rewrite; those of one sentence share `of`."""
    frame = load_transfer(name)
    frame = frame.assign(text=prompts(frame), of=frame["direction"] + ": " + frame["source"], part=frame["direction"])
    return {"test": frame.explode("references", ignore_index=True).rename(columns={"references": "output"})}


def prompts(frame: pd.DataFrame) -> list[str]:
    """Instruction and sentence of each row in the published Alpaca form, as a model tuned on `alpaca` expects."""
    rows = pd.DataFrame({"instruction": frame["instruction"], "input": frame["source"], "output": "-"})
    return prepare.alpaca(rows)["text"].tolist()
