"""Slot errors: what a text leaves out of its data, and what it makes up.

A simple rule, so that it can be said in two sentences and be wrong in known ways. A value is said if one of its
written forms stands in the text (E2E: the patterns below, a level in words or in figures; WebNLG: the name up to a
comma, a date by its year). A value of the task's own list that stands in the text but not in the data is made up.
What the rule says of the human references shows how far it can be trusted: a person may leave a field out, too, or
say it in words that no pattern knows. After the slot error rate of the E2E challenge (Dušek, Novikova and Rieser
2020, Computer Speech & Language 59). Taught in 08.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Values = Mapping[str, Sequence[str]]   # field -> every value it takes in a task
Span = tuple[int, int]

NAMES = ("name", "near")
_RATED = r"(?:rat\w+|review\w*|score\w*)"
_IS = r"(?: is| are| of| as| it| a| an| very| quite| customer)*"
_NOT = r"(?:not|no|non|never|n't|nt|isn't|aren't|without|unsuitable|inappropriate|avoid)"
_YOUNG = r"(?:famil\w+|child\w*|kids?\b\w*)"


def _rated(*words: str) -> str:
    word = rf"(?:{'|'.join(words)})"
    return rf"{word}(?:ly)?[ -](?:customer )?{_RATED}|{_RATED}{_IS} {word}\b"


def _stars(digit: str, word: str) -> str:
    return rf"\b(?:{digit}|{word})[ -]?(?:out[ -]of|of|/)[ -]?(?:5|five)\b|\b(?:{digit}|{word})[ -]stars?\b"


# field -> value -> pattern of how people write it; a value that is not here is looked for as it is
FORMS: dict[str, dict[str, str]] = {
    "priceRange": {
        "cheap": r"\bcheap\w*|\binexpensive|\blow(?:er)?[ -](?:priced?|cost)\w*|\baffordabl\w+|"
                 r"price\w*(?: range)? is low",
        "moderate": r"\bmoderate\w*|\bmid(?:dle)?[ -]?(?:range|priced?)|\breasonabl\w+|\baverage[ -]pric\w+",
        "high": r"\bexpensive|\bhigh(?:ly|er)?[ -](?:end[ -])?(?:pric|cost)\w*|\bpric(?:e|es|ing|ed|y)"
                rf"(?: range)?{_IS}(?: in the| on the)? high|\bpricey|\bcostly",
        "less than £20": r"(?:less th[ae]n|under|below|cheaper than|lower than|up to) ?£? ?20\b",
        "£20-25": r"£? ?\b20 ?(?:-|–|to|and) ?£? ?25\b",
        "more than £30": r"(?:more th[ae]n|over|above|higher than|at least|from) ?£? ?30\b|"
                         r"£ ?30 ?(?:\+|or more|and up)"},
    "customer rating": {
        "low": _rated("low", "lower", "poor", "bad", "badly"), "high": _rated("high", "highly", "well", "excellent"),
        "average": _rated("average", "decent", "mediocre"),
        "1 out of 5": _stars("1", "one"), "3 out of 5": _stars("3", "three"), "5 out of 5": _stars("5", "five")},
    "area": {"riverside": r"\briver ?side|\b(?:by|near|on|along|beside) the river\b|\bwaterfront",
             "city centre": r"\b(?:city|town) cent(?:re|er)|\bcent(?:re|er) of (?:the )?(?:city|town)|\bdowntown"},
    "familyFriendly": {
        "no": rf"\b{_NOT}\W+(?:\w+\W+){{0,4}}{_YOUNG}|{_YOUNG}[ -](?:\w+ ){{0,3}}{_NOT}\b|\badults?\b",
        "yes": rf"\b{_YOUNG}(?:[ -]friendly)?"},
}
TWINS = (("cheap", "less than £20"), ("moderate", "£20-25"), ("high", "more than £30"), ("low", "1 out of 5"),
         ("average", "3 out of 5"), ("high", "5 out of 5"))   # one level in words and in figures: either may be said
HARMLESS = {("eatType", "restaurant")}   # said of nearly every place, whether the data say so or not


@dataclass(frozen=True)
class Mark:
    """text[start:end] says this field; `right` if the data say so, too."""

    start: int
    end: int
    field: str
    right: bool


@dataclass(frozen=True)
class Check:
    """One text against its data: what was found in it, which fields it lacks, how many fields there are."""

    marks: tuple[Mark, ...]
    missing: tuple[str, ...]
    slots: int

    @property
    def made_up(self) -> int:
        return sum(not mark.right for mark in self.marks)

    @property
    def errors(self) -> int:
        return len(self.missing) + self.made_up


def fields(source: str) -> list[tuple[str, str]]:
    """(field, value) of "name : Blue Spice | area : riverside"; of a triple its subject and its object.

    Raises:
        ValueError: the text has no such form.
    """
    found: dict[tuple[str, str], None] = {}
    for part in source.split(" | "):
        pieces = part.split(" : ")
        if len(pieces) < 2:
            raise ValueError(f"{part!r} is no 'field : value' and no 'subject : predicate : object'")
        if len(pieces) == 2:
            found[pieces[0].strip(), pieces[1].strip()] = None
        else:
            found["subject", pieces[0].strip()] = None
            found[pieces[1].strip(), " : ".join(pieces[2:]).strip()] = None
    seen: dict[str, tuple[str, str]] = {}   # an entity of several triples counts once
    for field, value in found:
        seen.setdefault(value if is_triples(source) else field, (field, value))
    return list(seen.values())


def is_triples(source: str) -> bool:
    return source.split(" | ")[0].count(" : ") > 1


def value_lists(sources: Iterable[str]) -> dict[str, list[str]]:
    """Every value of every field in some data, sorted: what a text may make up."""
    found: dict[str, set[str]] = {}
    for source in dict.fromkeys(sources):
        for field, value in fields(source):
            found.setdefault("value" if is_triples(source) else field, set()).add(value)
    return {field: sorted(values) for field, values in sorted(found.items())}


def check(text: str, source: str, values: Values) -> Check:
    """Which fields of the data a text says, lacks, and makes up, by the rule above.

    values: as `value_lists` gives them for the task's training rows.
    """
    return _check_triples(text, source, values) if is_triples(source) else _check_fields(text, source, values)


def _check_fields(text: str, source: str, values: Values) -> Check:
    plain, mine = _plain(text), dict(fields(source))
    marks: list[Mark] = []
    for name in sorted({v for field in NAMES for v in values.get(field, ())}, key=len, reverse=True):
        owner = next((field for field in NAMES if mine.get(field) == name), None)
        for start, end in _spans(re.escape(_plain(name)), plain):
            marks.append(Mark(start, end, owner or "name", owner is not None))
            plain = plain[:start] + "\0" * (end - start) + plain[end:]   # "Raja Indian Cuisine" says nothing of food
    for field in [field for field in values if field not in NAMES]:
        right = _said(field, mine[field], plain) if field in mine else []
        marks += [Mark(*span, field, True) for span in right[:1]]
        for value in values[field]:
            if value not in _twins(field, mine.get(field, "")) and (field, value) not in HARMLESS:
                wrong = [span for span in _said(field, value, plain)[:1] if not _overlap(span, right)]
                marks += [Mark(*span, field, False) for span in wrong]
                right = [*right, *wrong]
    said = {mark.field for mark in marks if mark.right}
    return Check(_in_order(marks), tuple(field for field in mine if field not in said), len(mine))


def _check_triples(text: str, source: str, values: Values) -> Check:
    plain, mine = _plain(text), fields(source)
    marks: list[Mark] = []
    missing: list[str] = []
    for field, value in sorted(mine, key=lambda pair: -len(pair[1])):
        spans = _spans(_entity(value), plain)
        marks += [Mark(*span, field, True) for span in spans if not _overlap(span, _taken(marks))]
        if not spans:
            missing.append(value.replace("_", " "))
    everything = " ".join(_plain(value) for _, value in mine)
    for start, end in [*_spans(_any_of(tuple(values["value"])), plain), *_spans(r"\b\d[\d,.]*\d|\b\d\b", plain)]:
        known = plain[start:end].strip(".,").replace(",", "") in everything
        if not known and not _overlap((start, end), _taken(marks)):
            marks.append(Mark(start, end, "value", False))
    return Check(_in_order(marks), tuple(missing), len(mine))


def _plain(text: str) -> str:
    """Lower case and without accents, character by character, so that places in the text stay."""
    simple = "".join(unicodedata.normalize("NFKD", c)[:1] or c for c in text.replace("_", " "))
    lower = simple.lower()
    return lower if len(lower) == len(text) else simple   # a few letters change their length


def _said(field: str, value: str, plain: str) -> list[Span]:
    """Where a field's value is written; "yes" of familyFriendly is what is said and not denied."""
    forms = FORMS.get(field, {})
    either = [forms.get(one) or rf"\b{re.escape(_plain(one))}\b" for one in _twins(field, value)]
    found = _spans("|".join(either), plain)
    denied = (field, value) == ("familyFriendly", "yes") and _spans(forms["no"], plain)
    return [] if denied else found


def _twins(field: str, value: str) -> list[str]:
    """The value and what says the same; "high" has a twin in each of two fields."""
    known = FORMS.get(field, {})
    return [value, *(other for pair in TWINS if value in pair for other in pair if other != value and other in known)]


def _entity(value: str) -> str:
    """Pattern of a subject or an object: its words up to a comma or a bracket, whatever stands between them.

    A date is looked for by its year, a number in any notation.
    """
    bare = re.sub(r"\s*\(.*?\)", "", value.strip('"').replace("_", " ")).strip() or value
    if date := re.fullmatch(r"(\d{4})-\d\d-\d\d", bare):
        return rf"\b{date[1]}\b"
    if re.fullmatch(r"-?[\d,]*\d(\.\d+)?", bare):
        whole, _, rest = bare.replace(",", "").partition(".")
        digits = ",?".join(whole)
        return rf"(?<!\d){digits}(?:\.{rest})?(?!\d)" if rest.strip("0") == "" else rf"(?<!\d){digits}\.{rest}"
    words = re.findall(r"\w+", _plain(bare.partition(", ")[0]))
    return r"\b" + r"\W*".join(map(re.escape, words)) if words else re.escape(_plain(bare))


@lru_cache(maxsize=4)
def _any_of(values: tuple[str, ...]) -> str:
    """One pattern of all names, the longest first; words in small letters and numbers are no names."""
    names = {re.sub(r"\s*\(.*?\)", "", value.strip('"').replace("_", " ")).strip() for value in values}
    named = [re.escape(_plain(name)) for name in names if len(name) > 3 and name[0].isupper()]
    return rf"\b(?:{'|'.join(sorted(named, key=len, reverse=True))})\b"


def _spans(pattern: str, plain: str) -> list[Span]:
    return [match.span() for match in re.finditer(pattern, plain) if match.end() > match.start()]


def _taken(marks: Sequence[Mark]) -> list[Span]:
    return [(mark.start, mark.end) for mark in marks]


def _overlap(span: Span, others: Sequence[Span]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _in_order(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    return tuple(sorted(marks, key=lambda mark: (mark.start, mark.end)))
