"""Four short texts with known probabilities, written greedily and by beam search: greedy need not find the likeliest.

A model gives p(word | words before). A text's probability is the product; to take the likeliest word each time is to
maximise the factors one by one and not their product. Taught in 08.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# words before -> word -> probability; a text that is no key has ended
Tree = Mapping[tuple[str, ...], Mapping[str, float]]
TREE: Tree = {
    (): {"The": 0.55, "A": 0.45},
    ("The",): {"pub": 0.40, "place": 0.35, "inn": 0.25},
    ("A",): {"pub": 0.90, "bar": 0.10},
}


@dataclass(frozen=True)
class Beam:
    """Words so far and the product of their probabilities."""

    words: tuple[str, ...]
    probability: float


def search(width: int, tree: Tree = TREE) -> list[list[Beam]]:
    """The beams kept after each word, the likeliest first; width 1 is greedy.

    Raises:
        ValueError: width below 1.
    """
    if width < 1:
        raise ValueError(f"width = {width} must be 1 (greedy) or more")
    kept = [[Beam((), 1.0)]]
    while any(beam.words in tree for beam in kept[-1]):
        longer = [Beam((*beam.words, word), beam.probability * p) for beam in kept[-1]
                  for word, p in tree.get(beam.words, {}).items()]
        ended = [beam for beam in kept[-1] if beam.words not in tree]
        kept.append(sorted([*longer, *ended], key=lambda beam: -beam.probability)[:width])
    return kept


def best(width: int, tree: Tree = TREE) -> Beam:
    """What is written at this width."""
    return search(width, tree)[-1][0]
