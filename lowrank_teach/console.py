"""Show progress on a terminal: a table that fills as runs finish, and a bar for each run that trains."""

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

# ASCII in place of characters that a terminal may lack; Greek letters are named, and accents are dropped
SPELLED = {"−": "-", "–": "-", "—": "-", "⁻": "-", "₋": "-", "₊": "+", "×": "x", "…": "...", "·": "*", "∗": "*",
           "±": "+-", "√": "sqrt ", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "←": "<-", "↔": "<->",
           "↑": "^", "↓": "v", "∝": "~", "½": "1/2",
           "†": "+", "‡": "++", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "‖": "||", "⟨": "<", "⟩": ">",
           "∂": "d", "∇": "grad ", "∫": "int ", "£": "GBP ", "§": "section ", "✓": "ok", "✗": "x", "━": "-", "•": "*"}


def spelled(text: str, encoding: str) -> str:
    """Replace the characters that an encoding lacks: "λ × 2" -> "lambda x 2" on a terminal that is not UTF-8."""
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
    """Let standard output and error spell the characters that they cannot encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lowrank_teach.spelled")


class Screen(Console):
    """A rich console that prints text as it is, without markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Spell the text before rich measures its width."""
        return super().render_str(spelled(text, self.encoding), **options)


console = Screen()


def bars(*more: ProgressColumn, transient: bool = False) -> Progress:
    """Return a progress display with a spinner, the share that is done, and the time that remains.

    transient: remove the display when it is stopped.
    """
    return Progress(SpinnerColumn("line"), column("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TimeRemainingColumn(), *more, console=console, transient=transient)


def column(template: str) -> TextColumn:
    """Return a text column of a progress display, without markup."""
    return TextColumn(template, markup=False)


class InterruptedTraining(Exception):
    """Ctrl-C ended a command; the message says where it stopped and what is kept."""


@contextmanager
def loading(really: bool = True) -> Iterator[None]:
    """Show a spinner on a terminal while torch and the package are imported."""
    with console.status("loading torch and the package") if really and console.is_terminal else nullcontext():
        yield


@contextmanager
def counted_runs(runs: int, really: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar of this many runs on a terminal; yield a function to call after each run."""
    bar = bars(transient=True)
    row = bar.add_task("runs", total=runs)
    with bar if really and console.is_terminal else nullcontext():
        yield lambda: bar.advance(row)


class LiveTable:
    """A callback that shows a table of the finished runs, and under it a bar for the run that trains.

    frame_of: a function that makes a data frame of runs by label, such as `experiments.compare.table`.
    notes: lines to print once, when the first training begins.
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
        """Update the table on a terminal, or print it once at the end into a file or a pipe."""
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
        """Add a run that has finished or was found in the store."""
        self.runs[label] = run
        if self.lines:
            print(f"{label}: {len(self.runs)} of {len(self.labels)} done", file=sys.stderr, flush=True)
        frame = self.frame_of(self.runs)
        times = {name: text for name, text in (("search s", "–"), ("total s", "found")) if name in frame}
        frame = frame.astype(dict.fromkeys(times, object))
        for name, text in times.items():   # the seconds of a stored run are those of an earlier training
            frame[name] = [text if run.found else value
                           for run, value in zip(self.runs.values(), frame[name], strict=True)]
        self.table = rich_table(frame, self.title, self.waiting())
        self._clear()

    def _clear(self) -> None:
        if self.row is not None:
            self.bar.remove_task(self.row)
        self.row, self.step = None, 0

    def on_begin(self, label: str) -> None:
        self._wait("reading examples and weights")

    def on_end(self) -> None:
        self._clear()

    def _current(self) -> str:
        return next(iter(self.waiting()), "")

    def _wait(self, activity: str) -> None:
        """Show a bar without an end, for an activity of unknown length."""
        self._clear()
        self.row = self.bar.add_task(self._current(), total=None, loss=activity)

    def on_step(self, clock: Any, values: dict[str, float]) -> None:
        if clock.step <= self.step or not self.step:  # another stage of the same method begins
            self._clear()
        if self.row is None:
            self.row = self.bar.add_task(self._current(), total=clock.total, completed=clock.step - 1, loss="")
        self.step = clock.step
        self.bar.update(self.row, completed=clock.step, loss=f"loss {values['loss']:.3f}")
        if clock.step == clock.total:
            self._wait("evaluating")
            self.step = clock.step
        while self.notes:
            note = self.notes.pop(0)
            if self.lines:
                print(note, file=sys.stderr, flush=True)
            else:
                console.print(note, style="dim")

    def on_eval(self, clock: Any, metrics: dict[str, float]) -> None: ...


SHOWN = 16   # runs in progress; on a cluster there may be many more


class SweepBars:
    """Show a bar for all runs of a sweep and one for each that trains; without a terminal, print a line a run."""

    def __init__(self, really: bool) -> None:
        self.bars = bars(column("{task.fields[words]}"))
        self.drawn = really and console.is_terminal
        self.lines = really and not self.drawn
        self.all = self.bars.add_task("runs", total=None, words="")
        self.rows: dict[str, Any] = {}
        self.total = self.finished = self.failures = 0

    def shown(self) -> Any:
        """Show the bars inside this context."""
        return self.bars if self.drawn else nullcontext()

    def begin(self, found: int, total: int) -> None:
        """Set how many runs there are, and how many of them are stored."""
        self.finished, self.total = found, total
        self.bars.update(self.all, completed=found, total=total)
        self._say(f"{total} runs, {found} of them stored")

    def note(self, line: str) -> None:
        """Print a line about the sweep itself."""
        if self.drawn:
            console.print(line)
        self._say(line)

    def step(self, label: str, message: Any) -> None:
        """Update the bar of a run that begins or has taken some steps."""
        if message.key not in self.rows and len(self.rows) < SHOWN:
            self.rows[message.key] = self.bars.add_task(label, total=None, words="reading examples and weights")
        if message.key in self.rows and message.step:
            self.bars.update(self.rows[message.key], completed=message.step, total=message.total,
                             words=f"loss {message.loss:.3f}")

    def done(self, label: str, run: Any) -> None:
        """Count a run that has finished."""
        name, value = run.score()
        self._end(label, run.key, f"{name} {value:.3f}")

    def failed(self, label: str, message: Any) -> None:
        """Count a run that has failed."""
        self.failures += 1
        self._end(label, message.key, f"failed: {message.words}")

    def _end(self, label: str, key: str, words: str) -> None:
        self.finished += 1
        if (row := self.rows.pop(key, None)) is not None:
            self.bars.remove_task(row)
        self.bars.update(self.all, completed=self.finished, words=f"{self.failures} failed" if self.failures else "")
        self._say(f"{label}: {words} ({self.finished} of {self.total})")

    def _say(self, words: str) -> None:
        if self.lines:
            print(words, file=sys.stderr, flush=True)


def rich_table(frame: Any, title: str, waiting: list[str] | None = None) -> Table:
    """Return a table of a data frame of runs, with a dim row for each label in `waiting`."""
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
    """Return the space between columns, and their widths: headings are wrapped before the row labels are."""
    for gap, lines in ((2, 1), (2, 2), (2, 3), (1, 2), (1, 3)):
        widths = [max([_heading(heading, lines), *column]) for heading, column in zip(headings, cells, strict=True)]
        room = console.width - sum(widths[1:]) - gap * (len(widths) - 1)
        if widths[0] <= room:
            return gap, widths
    return gap, [max(room, len(headings[0])), *widths[1:]]


def _heading(heading: str, lines: int) -> int:
    """Return the smallest width at which a heading takes at most this many lines."""
    return next(width for width in range(1, len(heading) + 1)
                if width >= max(map(len, heading.split())) and len(textwrap.wrap(heading, width)) <= lines)


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if column in ("trainable", "sum of ranks"):
        return f"{int(value):,}"
    return f"{value:.0f}" if column == "ms a step" else f"{value:.1f}" if column.endswith(" s") else f"{value:.3f}"
