"""What a command shows on a terminal: a table that fills as runs come in, and a bar for the one that trains."""

from __future__ import annotations

import codecs
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# signs that a terminal may not have; Greek letters go by their names, letters with accents lose them
SPELLED = {"−": "-", "–": "-", "—": "-", "⁻": "-", "₋": "-", "₊": "+", "×": "x", "…": "...", "·": "*", "∗": "*",
           "±": "+-", "√": "sqrt ", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "←": "<-", "↔": "<->", "½": "1/2",
           "†": "+", "‡": "++", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "‖": "||", "⟨": "<", "⟩": ">",
           "∂": "d", "∇": "grad ", "∫": "int ", "£": "GBP ", "§": "section ", "✓": "ok", "✗": "x", "━": "-", "•": "*"}


def spelled(text: str, encoding: str) -> str:
    """The text in letters that the encoding has: "λ × 2" -> "lambda x 2" for one of a terminal that is not UTF-8."""
    return text.encode(encoding, "lowrank_teach.spelled").decode(encoding)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letter, error.object[error.start:error.end])), error.end


def _letter(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter)
    if letter in SPELLED or plain.isascii() or unicodedata.combining(letter):
        return SPELLED.get(letter, plain if plain.isascii() else "")
    if len(plain) > 1:
        return "".join(map(_letter, plain))
    alphabet, _, name = unicodedata.name(letter, "").partition(" LETTER ")
    name = name.replace("LAMDA", "LAMBDA").removeprefix("FINAL ")
    return (name.lower() if "SMALL" in alphabet else name.title()) if alphabet.startswith("GREEK") else "?"


codecs.register_error("lowrank_teach.spelled", _spell)


def spell_output() -> None:
    """From here on nothing that is printed fails for a letter that the terminal, or the file in its place, lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lowrank_teach.spelled")


class Screen(Console):
    """What commands print on. A text is shown as it is: nothing that somebody typed can be markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Spelled before the columns are measured."""
        return super().render_str(spelled(text, self.encoding), **options)


console = Screen()


def bars(*more: ProgressColumn, transient: bool = False) -> Progress:
    """Bars that say how far something is, and how long it still takes; something moves, whatever is known of that.

    transient: gone when they are stopped.
    """
    return Progress(SpinnerColumn("line"), column("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TimeRemainingColumn(), *more, console=console, transient=transient)


def column(template: str) -> TextColumn:
    """A column of a bar."""
    return TextColumn(template, markup=False)


class InterruptedTraining(Exception):
    """Ctrl-C during a command; the message says where it stopped and what is kept."""


@contextmanager
def loading(really: bool = True) -> Iterator[None]:
    """Something that moves on a terminal while torch is loaded and the words of a command are looked up."""
    with console.status("loads torch and the package") if really and console.is_terminal else nullcontext():
        yield


@contextmanager
def counted(runs: int, really: bool = True) -> Iterator[Callable[[], None]]:
    """A bar of so many runs on a terminal; gives what is to be called as each is done."""
    bar = bars(transient=True)
    row = bar.add_task("runs", total=runs)
    with bar if really and console.is_terminal else nullcontext():
        yield lambda: bar.advance(row)


class Board:
    """The table of a command's runs as they come in, and under it a bar for the one that trains.

    frame_of: makes the table of runs by label, as `experiments.compare.table` does.
    notes: said once, as the first training begins.
    """

    def __init__(self, title: str, labels: list[str], frame_of: Callable[[dict[str, Any]], Any],
                 notes: Sequence[str] = ()) -> None:
        self.frame_of, self.notes = frame_of, list(notes)
        self.title, self.labels, self.runs = title, labels, dict[str, Any]()
        self.bar = bars(column("{task.fields[loss]}"))
        self.step, self.lines = 0, False
        self.row: Any = None
        self.table: Table | None = None

    @contextmanager
    def shown(self, really: bool) -> Iterator[None]:
        """On a terminal it is drawn over and over; in a file or a pipe it stands once, at the end."""
        self.lines = really and not console.is_terminal
        self.notes = self.notes if really else []
        with Live(self, console=console, refresh_per_second=4) if really and not self.lines else nullcontext():
            try:
                yield
            except KeyboardInterrupt as stop:
                done = f"; {len(self.runs)} of {len(self.labels)} runs are done and kept" if self.labels[1:] else ""
                raise KeyboardInterrupt(f"{str(stop) or 'stopped; run the same line again to go on'}{done}") from None
        if self.lines:
            console.print(self)

    def __rich__(self) -> Any:
        parts: list[Any] = [self.table or self.title, *([self.bar] if self.row is not None else [])]
        return Group(*parts)

    def waiting(self) -> list[str]:
        return [label for label in self.labels if label not in self.runs]

    def add(self, label: str, run: Any) -> None:
        """A run is done, or was found."""
        self.runs[label] = run
        if self.lines:
            print(f"{label}: {len(self.runs)} of {len(self.labels)} done", file=sys.stderr, flush=True)
        frame = self.frame_of(self.runs)
        times = {name: words for name, words in (("search s", "–"), ("total s", "found")) if name in frame}
        frame = frame.astype(dict.fromkeys(times, object))
        for name, words in times.items():   # what it once took, on whatever machine, says nothing of now
            frame[name] = [words if run.found else value
                           for run, value in zip(self.runs.values(), frame[name], strict=True)]
        self.table = rich_table(frame, self.title, self.waiting())
        self._clear()

    def _clear(self) -> None:
        if self.row is not None:
            self.bar.remove_task(self.row)
        self.row, self.step = None, 0

    def on_begin(self, label: str) -> None:
        """Rows and weights are read."""
        self._wait("reads rows and weights")

    def on_end(self) -> None:
        self._clear()

    def _now(self) -> str:
        return next(iter(self.waiting()), "")

    def _wait(self, what: str) -> None:
        """Nobody knows how long this takes: the bar moves to and fro."""
        self._clear()
        self.row = self.bar.add_task(self._now(), total=None, loss=what)

    def on_step(self, clock: Any, values: dict[str, float]) -> None:
        if clock.step <= self.step or not self.step:  # the next stage of the same method, or the first one
            self._clear()
        if self.row is None:
            self.row = self.bar.add_task(self._now(), total=clock.total, completed=clock.step - 1, loss="")
        self.step = clock.step
        self.bar.update(self.row, completed=clock.step, loss=f"loss {values['loss']:.3f}")
        if clock.step == clock.total:
            self._wait("evaluates")
            self.step = clock.step
        while self.notes:
            note = self.notes.pop(0)
            if self.lines:
                print(note, file=sys.stderr, flush=True)
            else:
                console.print(note, style="dim")

    def on_eval(self, clock: Any, metrics: dict[str, float]) -> None: ...


def rich_table(frame: Any, title: str, waiting: list[str] | None = None) -> Table:
    cells = [[str(label), *(_cell(column, row[column]) for column in frame.columns)]
             for label, row in frame.iterrows()]
    later = [[label, *("…" for _ in frame.columns)] for label in waiting or []]
    columns = list(zip(["method", *frame.columns], *cells, *later, strict=True))
    gap, widths = _laid_out([[len(cell) for cell in column[1:]] for column in columns], [c[0] for c in columns])
    shown = Table(title=title, title_justify="left", box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
        shown.add_column(column[0], justify="right" if i else "left", width=width, overflow="fold")
    for row in cells:
        shown.add_row(*row)
    for row in later:
        shown.add_row(*row, style="dim")
    return shown


def _laid_out(cells: list[list[int]], headings: list[str]) -> tuple[int, list[int]]:
    """The space between columns, and their widths: where room is short a heading takes more lines, but no cell does.

    Where even that is too wide, the names of the rows are folded.
    """
    for gap, lines in ((2, 1), (2, 2), (2, 3), (1, 2), (1, 3)):
        widths = [max([_heading(heading, lines), *column]) for heading, column in zip(headings, cells, strict=True)]
        room = console.width - sum(widths[1:]) - gap * (len(widths) - 1)
        if widths[0] <= room:
            return gap, widths
    return gap, [max(room, len(headings[0])), *widths[1:]]


def _heading(heading: str, lines: int) -> int:
    """The least width at which the words of a heading take so many lines."""
    return next(width for width in range(1, len(heading) + 1)
                if width >= max(map(len, heading.split())) and len(textwrap.wrap(heading, width)) <= lines)


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if column in ("trainable", "sum of ranks"):
        return f"{int(value):,}"
    return f"{value:.0f}" if column == "ms a step" else f"{value:.1f}" if column.endswith(" s") else f"{value:.3f}"
