"""English synonyms for METEOR: those of WordNet 3.0, as they ride in the wheel of pycocoevalcap with METEOR 1.5.

nltk fetches its own copy of WordNet from a server when it is asked to; this one needs no network after
`pip install 'lowrank-teach[text]'`, and is the same on every machine. Nothing in the archive is run: it is read.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

JAR = "meteor/meteor-1.5.jar"


@dataclass(frozen=True)
class Lemma:
    """A word, under the name that nltk asks for it by."""

    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True)
class Synset:
    """Words that can stand for one another, under the name that nltk asks for them by."""

    words: tuple[str, ...]

    def lemmas(self) -> list[Lemma]:
        return [Lemma(word) for word in self.words]


@dataclass
class Synonyms:
    """of_word: word -> numbers of its sets.  bases: irregular form -> words it is a form of (mice -> mouse)."""

    of_word: dict[str, tuple[str, ...]]
    bases: dict[str, tuple[str, ...]]
    words: dict[str, list[str]] = field(default_factory=dict)  # number of a set -> its words

    def __post_init__(self) -> None:
        for word, numbers in self.of_word.items():
            for number in numbers:
                self.words.setdefault(number, []).append(word)

    def sets(self, word: str) -> list[list[str]]:
        """The sets that a word, or a word it is a form of (houses -> house), belongs to."""
        numbers = dict.fromkeys(number for form in self._forms(word) for number in self.of_word.get(form, ()))
        return [self.words[number] for number in numbers]

    def _forms(self, word: str) -> list[str]:
        return [word, *self.bases.get(word, ()), *(word[: -len(old)] + new for old, new in _endings()
                                                   if word.endswith(old))]  # fmt: skip


class StemsAndSynonyms:
    """nltk's METEOR asks for a stemmer and for synonyms: this is both, for one text and its references.

    What its stemmer left of a word (hous) is what it looks for synonyms of, and finds none: so here each stem's
    words are remembered, and their synonyms are stems too.
    """

    def __init__(self) -> None:
        self.of_stem: dict[str, dict[str, None]] = {}

    def stem(self, word: str) -> str:
        stem = _stem(word)
        self.of_stem.setdefault(stem, {})[word] = None
        return stem

    def synsets(self, stem: str) -> list[Synset]:
        return [Synset(tuple(map(_stem, words))) for word in self.of_stem.get(stem, (stem,))
                for words in synonyms().sets(word)]


@cache
def synonyms() -> Synonyms:
    """Read once a process (a second).

    Raises:
        ImportError: pycocoevalcap is missing.
    """
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise ImportError("METEOR: pycocoevalcap is missing; pip install 'lowrank-teach[text]'")
    with zipfile.ZipFile(Path(places[0]) / JAR) as jar:
        of_word = _pairs(jar.read("synonym/english.synsets"))
        forms = _pairs(jar.read("synonym/english.exceptions"))
    bases: dict[str, tuple[str, ...]] = {}
    for base, irregular in forms.items():
        for form in irregular:
            bases[form] = (*bases.get(form, ()), base)
    return Synonyms(of_word, bases)


def _pairs(file: bytes) -> dict[str, tuple[str, ...]]:
    """Two lines an entry: a word, and what belongs to it."""
    lines = file.decode("utf-8").splitlines()
    return {word: tuple(rest.split()) for word, rest in zip(lines[::2], lines[1::2], strict=True)}


@cache
def _endings() -> list[tuple[str, str]]:
    """WordNet's own rules for regular forms, such as ies -> y."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    return sorted({rule for rules in WordNetCorpusReader.MORPHOLOGICAL_SUBSTITUTIONS.values() for rule in rules})


@cache
def _stem(word: str) -> str:
    return _porter().stem(word)


@cache
def _porter():  # type: ignore[no-untyped-def]
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
