"""Notebook 08, generation: texts beside their references, figures of scores, a slider and the exercises.

Pages are HTML in which all text of the data is escaped. What a mark means is said twice, by a tag and by a colour,
because repository pages drop the colours. T tokens of an example, N texts, R draws.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...analysis import style
from ...reproduction import texts
from ...tasks import slot_errors
from ...tasks.slot_errors import Check
from ...tasks.task import Task as TextTask
from ...tasks.tokenize import IGNORED, encode
from ..exercises import EXERCISES, Task
from ..explorer import Control, Picture
from ..html_page import PLAIN_TEXT, Page, table
from ..schematic import arrow, box, canvas

# ---- texts to read, as HTML -------------------------------------------------------------------------------

TAGS = {True: ("b", style.BLUE), False: ("del", style.ORANGE)}   # said and right; made up
Interval = tuple[float, float, float]                              # score, low, high


def marked(text: str, check: Check) -> str:
    """HTML of a text: values of its data in bold, made-up ones struck out, what it lacks in brackets behind it."""
    out, at = [], 0
    for mark in check.marks:
        if mark.start < at:
            continue
        tag, color = TAGS[mark.right]
        out += [html.escape(text[at:mark.start]),
                f'<{tag} style="color:{color}">{html.escape(text[mark.start:mark.end])}</{tag}>']
        at = mark.end
    lacks = f" <i>[missing: {html.escape(', '.join(check.missing))}]</i>" if check.missing else ""
    return "".join([*out, html.escape(text[at:]), lacks])


def plainly(text: str, check: Check) -> str:
    """The same without HTML: ✗ behind what is made up."""
    for mark in reversed([mark for mark in check.marks if not mark.right]):
        text = f"{text[:mark.end]}✗{text[mark.end:]}"
    return text + (f" [missing: {', '.join(check.missing)}]" if check.missing else "")


def side_by_side(source: str, references: Sequence[str], written: Mapping[str, tuple[str, Check]],
                 licence: str, shown: int = 2) -> Page:
    """One input: its data, some references, and what each method wrote, with its marks.

    written: arm -> (text, its check).  licence: of data and references, stands under the table.
    """
    few = list(references[:shown])
    rows = {"data": html.escape(source)}
    rows |= {f"reference {i} of {len(references)}": html.escape(one) for i, one in enumerate(few, 1)}
    rows |= {arm: marked(*pair) for arm, pair in written.items()}
    plain = [f"data: {source}", *(f"reference: {one}" for one in few),
             *(f"{arm}: {plainly(*pair)}" for arm, pair in written.items())]
    return _page(rows, plain, f"bold: said and right; struck out: made up. Data and references: {licence}")


def _page(rows: Mapping[str, str], plain: Sequence[str], below: str) -> Page:
    """A table of name -> HTML with a line under it."""
    return Page(f"{table([rows])}<p><small>{html.escape(below)}</small></p>", "\n".join([*plain, below]))


def texts_in_rows(texts: Mapping[str, str], below: str) -> Page:
    """name -> text, a row each."""
    return _page({name: html.escape(text) for name, text in texts.items()},
                 [f"{name}: {text}" for name, text in texts.items()], below)


def tokens(pieces: Sequence[str], learned: Sequence[bool]) -> Page:
    """The tokens of a row: those with a label in bold, the others pale."""
    shown = [f'<b style="color:{style.BLUE}">{html.escape(piece)}</b>' if is_learned else
             f'<span style="color:{style.GREY}">{html.escape(piece)}</span>'
             for piece, is_learned in zip(pieces, learned, strict=True)]
    plain = " ".join(f"[{piece}]" if is_learned else piece for piece, is_learned in zip(pieces, learned, strict=True))
    below = f"{sum(learned)} of {len(learned)} tokens have a label (bold; in brackets as plain text)"
    return Page(f'<p class="{PLAIN_TEXT}">{" · ".join(shown)}</p><p><small>{below}</small></p>', f"{plain}\n{below}")


# ---- pictures ---------------------------------------------------------------------------------------------


def data_to_text() -> Figure:
    """From fields to a prompt, through a frozen model with thin branches, to a text, to scores."""
    fig, ax = canvas(9.0, 2.7)
    for x, width, name, words, color in (
            (0.05, 1.95, "data", "name : Blue Spice |\neatType : pub |\narea : riverside ||", style.PALE),
            (2.65, 1.75, "causal model", "W frozen,\nA and B train", style.BLUE),
            (5.05, 1.65, "text", "Blue Spice is a pub\nby the river.", style.PALE),
            (7.35, 1.6, "references", "several people's\ntexts for the\nsame data", style.GREEN)):
        box(ax, x, 0.85, width, 1.2, color, words, size=9.5)
        ax.text(x + width / 2, 2.25, name, ha="center", va="center", fontsize=10.5, fontweight="bold")
    for start, end in ((2.04, 2.6), (4.44, 5.0), (6.74, 7.3)):
        arrow(ax, (start, 1.45), (end, 1.45), width=1.6, head=16)
    for x, words in ((3.5, "trained on: prompt, text, end;\nthe loss counts the text and the end"),
                     (7.0, "scores: what is shared with\nany of the references")):
        ax.text(x, 0.35, words, ha="center", va="center", fontsize=9.5)
    return fig


def word_tree(tree: Mapping[tuple[str, ...], Mapping[str, float]], paths: Mapping[str, Sequence[str]]) -> Figure:
    """A tree of words with their probabilities; a path a way of searching it.

    Args: words before -> word -> probability; name -> words of its text.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ends = [(*before, word) for before in tree for word in tree[before] if (*before, word) not in tree]
    height = {words: float(-i) for i, words in enumerate(sorted(ends))}
    for before in sorted(tree, key=len, reverse=True):
        height[before] = float(np.mean([height[(*before, word)] for word in tree[before]]))
    for before, following in tree.items():
        for word, p in following.items():
            ys = [height[before], height[(*before, word)]]
            ax.plot([len(before), len(before) + 1], ys, color=style.PALE, linewidth=1 + 6 * p, zorder=1)
            inner = (*before, word) in tree   # beside an inner word lines go on to the right
            place = (-8, 10 if ys[1] > ys[0] else -20) if inner else (8, -4)
            ax.annotate(f"{word}  {p:.2f}", (len(before) + 1, ys[1]), xytext=place, textcoords="offset points",
                        ha="right" if inner else "left", fontsize=10)
    looks = ((style.ORANGE, "--"), (style.BLUE, "-"), (style.GREEN, ":"))
    for (name, words), (color, line) in zip(paths.items(), looks, strict=False):
        ways = [tuple(words[:i]) for i in range(len(words) + 1)]
        ax.plot(range(len(ways)), [height[way] for way in ways], color=color, linestyle=line, linewidth=2.2,
                label=name, zorder=2)
    ax.set(xlim=(-0.1, max(map(len, ends)) + 0.6), ylim=(min(height.values()) - 0.4, 0.8), yticks=[],
           xticks=range(max(map(len, ends)) + 1))
    style.dress(ax, "words written", "")
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    style.legend(fig)
    return fig


def arm_looks(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> colour, marker: a method's own, also of "Delta-LoRA − LoRA"; black for what is no method."""
    known = {label: (color, marker) for label, color, _, marker in style.METHOD_STYLE.values()}
    return {arm: known.get(arm.partition(" −")[0], (style.BLACK, "o")) for arm in arms}


def score_intervals(scores: Mapping[str, Mapping[str, Interval]], *, zero: bool = False, columns: int = 3,
                    shared: bool = False) -> Figure:
    """A panel a score, a row an arm: the score, and what other test inputs could give.

    Args: score -> arm -> (score, low, high); zero: a line where nothing differs; columns: panels side by side;
        shared: one scale for all panels.
    """
    arms = list(next(iter(scores.values())))
    fig, axes = style.panels(len(scores), min(columns, len(scores)), 0.8 + 0.34 * len(arms), None)
    for i, (ax, (name, found)) in enumerate(zip(axes, scores.items(), strict=True)):
        for y, (arm, (color, marker)) in enumerate(arm_looks(arms).items()):
            score, low, high = found[arm]
            ax.plot([low, high], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(score, y, marker, color=color, markersize=9, markeredgecolor="white")   # seen on its own bar
        if zero:
            ax.axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        if shared:
            ends = [end for one in scores.values() for _, *both in one.values() for end in both]
            ax.set_xlim(min(ends) - 0.03, max(ends) + 0.03)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))   # more would touch
        first = i % columns == 0
        ax.set_yticks(range(len(arms)), arms if first else [""] * len(arms))
        ax.set_ylim(len(arms) - 0.5, -0.5)
        style.dress(ax, name, "")
    return fig


def slot_error_bars(shares: Mapping[str, tuple[float, float]]) -> Figure:
    """Bars: fields missing, values made up, as shares of the fields there are.

    Args: arm -> (missing, made up).
    """
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.4 * len(shares), None, width=8.0)
    missing, made_up = np.array(list(shares.values())).T
    ax.barh(list(shares), missing, color=style.BLUE, label="missing", height=0.65)
    ax.barh(list(shares), made_up, left=missing, color=style.ORANGE, hatch="//", edgecolor="white", label="made up",
            height=0.65)
    ax.invert_yaxis()
    style.dress(ax, "Errors, as a share of the fields there are", "")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------

RESAMPLES, LEVEL = 500, 0.95   # as many as `Texts.interval` draws: at the right end the two agree


class HowManyInputs(Picture):
    """Scores of some arms over n test inputs, and their differences to the first arm, with 95 % intervals.

    stored: from `texts.load_texts`.  arms: the first is what the others are compared with.  score: its name.
    """

    height = 2.9

    def __init__(self, stored: texts.Texts, arms: Sequence[str], score: str = "bleu") -> None:
        self.arms, self.score = list(arms), score
        self.rows = {arm: stored.rows(arm, score) for arm in self.arms}
        self.count_of_inputs = len(self.rows[self.arms[0]])
        self.known: dict[int, dict[str, Any]] = {}   # n -> arrays: picture and sentence ask for the same
        self.controls = (Control("n", "test inputs", 10, self.count_of_inputs, min(30, self.count_of_inputs), 5),)
        super().__init__()

    def build(self) -> list[Artist]:
        self.bars, self.dots = [], []
        for ax, arms in zip(self.axes, (self.arms, self.arms[1:]), strict=True):
            for y, (color, marker) in enumerate(arm_looks(arms).values()):
                self.bars += ax.plot([0, 0], [y, y], color=color, linewidth=3, solid_capstyle="butt")
                self.dots += ax.plot([0], [y], marker, color=color, markersize=9, markeredgecolor="white")
            ax.set_ylim(len(arms) - 0.5, -0.5)
        score = self.score.upper()
        self.axes[0].set_yticks(range(len(self.arms)), self.arms)
        self.axes[1].set_yticks(range(len(self.arms) - 1), [f"{arm} − {self.arms[0]}" for arm in self.arms[1:]])
        self.axes[1].axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        n = self.controls[0]
        everywhere = [self.arrays(n=at) for at in {*range(int(n.low), int(n.high), int(n.step)), int(n.high)}]
        for ax, name in zip(self.axes, ("scores", "differences"), strict=True):
            ends = np.concatenate([found[name][:, 1:] for found in everywhere])
            low, high = ends.min(), ends.max()
            ax.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        style.dress(self.axes[0], f"{score} of the first n inputs", "")
        style.dress(self.axes[1], f"difference in {score}", "")
        for ax in self.axes:
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))   # more would touch
        return [*self.bars, *self.dots]

    def arrays(self, **state: Any) -> dict[str, Any]:
        """scores (arms, 3) and differences (arms − 1, 3): over the first n inputs, low end, high end."""
        n = min(int(state["n"]), self.count_of_inputs)
        if n not in self.known:
            self.known[n] = self._drawn(n)
        return self.known[n]

    def _drawn(self, n: int) -> dict[str, Any]:
        draws = texts.draws_of(n, RESAMPLES)
        tail = (1 - LEVEL) / 2
        drawn = {arm: texts.resampled(self.score, rows[:n], draws) for arm, rows in self.rows.items()}
        whole = {arm: texts.combined(self.score, rows[:n]) for arm, rows in self.rows.items()}
        first = self.arms[0]
        return {"n": n, "scores": np.array([[whole[arm], *np.quantile(drawn[arm], [tail, 1 - tail])]
                                            for arm in self.arms]),
                "differences": np.array([[whole[arm] - whole[first],
                                          *np.quantile(drawn[arm] - drawn[first], [tail, 1 - tail])]
                                         for arm in self.arms[1:]])}

    def update(self, arrays: dict[str, Any]) -> None:
        found = np.concatenate([arrays["scores"], arrays["differences"]])
        for (score, low, high), bar, dot in zip(found, self.bars, self.dots, strict=True):
            bar.set_xdata([low, high])
            dot.set_xdata([score])

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        apart = [arm for arm, (_, low, high) in zip(self.arms[1:], found["differences"], strict=True)
                 if low > 0 or high < 0]
        width = float(np.mean(found["scores"][:, 2] - found["scores"][:, 1]))
        said = f"apart from {self.arms[0]}: {', '.join(apart)}" if apart else f"none is apart from {self.arms[0]}"
        return (f"With the first {found['n']} of {self.count_of_inputs} inputs an interval of {self.score.upper()} "
                f"is {width:.3f} wide in the mean; {said}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Ids = Sequence[int]


class NumberTokenizer:
    """A tokenizer of numbers between blanks, so that a row's tokens can be given as they are."""

    def __init__(self, end: int) -> None:
        self.eos_token_id = end

    def __call__(self, text: str, *, max_length: int | None = None, **_: Any) -> dict[str, Any]:
        found = list(re.finditer(r"\d+", text))[:max_length]
        return {"input_ids": [int(one[0]) for one in found], "offset_mapping": [one.span() for one in found]}


_ROWS = TextTask("numbers", "seq2seq", ("prompt",), "target", (), (), 64, "numbers after numbers", "made up")


def causal_row(prompt: Ids, target: Ids, end: int) -> np.ndarray:
    """Tokens and labels (2, T) of one row for a causal model, by the library's `encode`."""
    frame = pd.DataFrame({"prompt": [" ".join(map(str, prompt))], "target": [" ".join(map(str, target))]})
    row = encode(frame, _ROWS, NumberTokenizer(end), causal=True)[0]  # type: ignore[arg-type]
    return np.array([row["input_ids"], row["labels"]])


def _labels(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """The library's row with its labels changed: (tokens, labels) -> labels."""

    def wrong(prompt: Ids, target: Ids, end: int) -> np.ndarray:
        tokens, labels = causal_row(prompt, target, end)
        return np.array([tokens, change(tokens, labels)])

    return wrong


def matched_words(text: str, references: Sequence[str]) -> np.ndarray:
    """Words of a text that BLEU finds in its references, and words written: sacrebleu's counts."""
    counts = texts.text_statistics("bleu", [text], [references])[0]
    return np.array([counts[0], counts[4]])


def _matched(known: Callable[[str, list[Counter[str]]], float]) -> Callable[..., np.ndarray]:
    """Another rule of how often a word may count: (word, counts by reference) -> times."""

    def wrong(text: str, references: Sequence[str]) -> np.ndarray:
        by_reference = [Counter(one.split()) for one in references]
        words = Counter(text.split())
        return np.array([sum(min(n, known(word, by_reference)) for word, n in words.items()), words.total()])

    return wrong


def missing_values(text: str, values: Sequence[str]) -> np.ndarray:
    """Of each value 1 where the text does not say it, else 0: the library's rule."""
    wanted = {f"field {i}": [value] for i, value in enumerate(values)}
    lacks = slot_errors.check(text, " | ".join(f"{field} : {value}" for field, [value] in wanted.items()),
                              wanted).missing
    return np.array([float(field in lacks) for field in wanted])


def resampled_scores(edits: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Edit rate of each draw (R,) of texts: edits (N,), reference lengths (N,), draws (R, N) of text numbers."""
    return texts.resampled("ter", np.stack([edits, lengths], axis=1), draws)


_PLAIN = "Blue Spice, near Public Square, serves french food by the river."
_VALUES = ["Blue Spice", "pub", "French", "riverside", "Public Square"]
_EDITS, _LENGTHS = np.array([1.0, 8.0, 0.0, 6.0]), np.array([4.0, 20.0, 9.0, 7.0])
_DRAWS = np.array([[0, 1, 2, 3], [0, 0, 1, 3], [2, 2, 1, 0]])


EXERCISES.update({
    "causal_row": Task(
        causal_row, lambda: [([5, 6, 7], [8, 9], 2), ([3], [4, 4, 8, 1], 2)],
        "tokens: prompt, target, end; labels: −100 for every token of the prompt, then the target and the end",
        [("the prompt is learned, too: its labels must be −100", _labels(lambda tokens, labels: tokens)),
         ("0 is a token like any other; the number that is left out is −100",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, 0, labels))),
         ("that is shifted: tokens and labels stand one above the other, and the model itself compares each label "
          "with what it said one place before", _labels(lambda tokens, labels: np.append(labels[1:], IGNORED))),
         ("the end is not learned: a model that never saw it does not stop",
          _labels(lambda tokens, labels: np.append(labels[:-1], IGNORED))),
         ("that learns the prompt and leaves the target out",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, tokens, IGNORED)))],
        (encode,), shapes="the row has prompt, target and one token for the end"),
    "matched_words": Task(
        matched_words, lambda: [("the the the the pub pub", ["the river", "the pub the"]),
                                ("a a pub pub by the the sea a", ["a pub by a river", "the sea the a"])],
        "each word of the text counts at most as often as it stands in the one reference that has it most often",
        [("a word counts as often as it is written: repeating one good word would win",
          _matched(lambda word, refs: np.inf if any(word in one for one in refs) else 0)),
         ("the references are added up: the most in any one of them is what counts",
          _matched(lambda word, refs: sum(one[word] for one in refs))),
         ("that looks at the first reference alone", _matched(lambda word, refs: refs[0][word])),
         ("that counts different words: a word may count twice if a reference has it twice",
          _matched(lambda word, refs: float(any(word in one for one in refs)))),
         ("that is upside down: first the matches, then the words written",
          lambda text, references: matched_words(text, references)[::-1])],
        (texts._bleu,)),
    "missing_values": Task(
        missing_values, lambda: [(_PLAIN, _VALUES), ("A cheap Pub in the city centre.", ["pub", "heap", "city"])],
        "1 for each value that does not stand in the text as a whole word, whether in capitals or not",
        [("capitals: \"french\" says French",
          lambda text, values: np.array([float(re.search(rf"\b{v}\b", text) is None) for v in values])),
         ("\"Public\" does not say pub: look for whole words (\\b in a regular expression)",
          lambda text, values: np.array([float(v.lower() not in text.lower()) for v in values])),
         ("that is upside down: 1 is for what is missing", lambda text, values: 1 - missing_values(text, values))],
        (slot_errors.check, slot_errors._check_fields)),
    "resampled_scores": Task(
        resampled_scores, lambda: [(_EDITS, _LENGTHS, _DRAWS)],
        "for each row of draws: the edits of the texts drawn, added up, over their lengths, added up",
        [("a mean of each text's own rate: a corpus score adds up first and divides then",
          lambda edits, lengths, draws: (edits / lengths)[draws].mean(1)),
         ("upside down: edits over length",
          lambda edits, lengths, draws: 1 / resampled_scores(edits, lengths, draws)),
         ("the lengths were not drawn: edits and lengths belong to the same texts",
          lambda edits, lengths, draws: edits[draws].sum(1) / lengths.sum()),
         ("that is one set of texts over and over: use the row numbers in draws",
          lambda edits, lengths, draws: np.full(len(draws), edits.sum() / lengths.sum()))],
        (texts.resampled,)),
})
