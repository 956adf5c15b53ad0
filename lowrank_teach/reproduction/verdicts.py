"""How a claim gets its verdict: the rule, a row of the ledger, and where its numbers come from."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.statistics import LEVEL, SEEDS, PairedMean, paired_mean
from ..experiments.runs import unpacked
from . import results, studies, texts
from .arms import STUDIES, TASK_STUDIES, TEXT_STUDIES
from .results import Record, Value, references_folder

# ---- the rule ----------------------------------------------------------------------------------------------
# How a verdict is reached: from differences paired by seed (and example), through one interval, by a rule without
# judgement. Taught in 11.
SUPPORTED, CONTRADICTED, EQUAL, OPEN = "supported", "contradicted", "equal within the margin", "open"
NO_RUNS, UNSOUND, UNTESTABLE = "no runs yet", "not comparable", "not testable here"
EXACT, BROKEN = "holds exactly", "fails exactly"
VERDICTS = (SUPPORTED, CONTRADICTED, EQUAL, OPEN, EXACT, BROKEN, NO_RUNS, UNSOUND, UNTESTABLE)
DECIDED = (SUPPORTED, CONTRADICTED, EQUAL)
POINT = 1.0     # the margin of scores, in hundredths: what is smaller is taken for no difference
CHANCE = 0.05   # of an error, for a test of equality as for an interval of 95 %


@dataclass(frozen=True)
class Evidence:
    """What the runs say about one claim.

    differences: one a seed; the claim is about the side of zero that their mean lies on.
    interval: (low, high) of what was measured without seeds, such as a time over repeats; else None.
    ours: arm -> its values, one a seed, to be shown.  setting: what was trained on what.
    over: what the differences were repeated over; "repeats" of a measurement are no "seeds".
    examples: the same differences for each test example, (seeds, examples); None where they are not known.
    problem: why these runs must not be compared; "" where nothing speaks against it.
    beside: name of a column of the ledger -> what stands in it, such as the time that one took of the other's.
    """

    differences: Sequence[float]
    ours: Mapping[str, Sequence[float]] = field(default_factory=dict)
    setting: str = ""
    interval: tuple[float, float] | None = None
    over: str = "seeds"
    examples: np.ndarray | None = None
    problem: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, scale: float = 1.0) -> PairedMean:
        """The mean difference over seeds, and over examples where they are known."""
        table = np.asarray(self.differences)[:, None] if self.examples is None else self.examples
        return paired_mean(scale * table)


def verdict(estimate: PairedMean, side: str, margin: float = 0.0) -> str:
    """Return what an estimate says of a claim, as `judge` does; equal is what two one-sided tests (TOST) find."""
    return judge(estimate.interval(), side, margin, bool(margin) and estimate.p_unequal(margin) < CHANCE)


def judge(interval: tuple[float, float], side: str, margin: float = 0.0, equal: bool | None = None) -> str:
    """Apply the rule: supported if the interval lies wholly on the claimed side, contradicted if on the other.

    Between two sides a difference that is equal within the margin contradicts nothing, even where the interval lies
    wholly on the other side. A claim of equality is supported by such a difference, and contradicted by an interval
    wholly outside of the margin.

    Args:
        side: ">" above zero, "<" below it, "≈" within ± margin of it.
        equal: whether it is equal within the margin; None asks whether the interval lies inside.

    Raises:
        ValueError: another side.
    """
    low, high = interval
    inside = (-margin <= low and high <= margin if equal is None else equal) and margin > 0
    if side == "≈":
        return SUPPORTED if inside else CONTRADICTED if low > margin or high < -margin else OPEN
    if side not in (">", "<"):
        raise ValueError(f"side {side!r} must be '>', '<' or '≈'")
    claimed, other = (low > 0, high < 0) if side == ">" else (high < 0, low > 0)
    return SUPPORTED if claimed else EQUAL if inside else CONTRADICTED if other else OPEN


def of_every(differences: Mapping[str, Sequence[float]]) -> tuple[str, tuple[float, float] | None]:
    """Return which of several has the lowest mean, and an interval for the least difference.

    Its low end is the lowest of their low ends: above zero only if each interval is. Its high end is the lowest of
    their high ends, at level 1 − (1 − LEVEL) / n for n of them: below zero only if some one speaks against the claim,
    with a chance of 5 % at most over all. None where some one has fewer than SEEDS differences.

    Args:
        differences: name -> one a seed; one name or more.
    """
    worst = min(differences, key=lambda name: float(np.mean(differences[name])))
    if min(map(len, differences.values())) < SEEDS:
        return worst, None
    strict = 1 - (1 - LEVEL) / len(differences)
    found = [Evidence(d).estimate() for d in differences.values()]
    return worst, (min(one.interval()[0] for one in found), min(one.interval(strict)[1] for one in found))


# ---- a row of the ledger -----------------------------------------------------------------------------------
# The three kinds of claim, and what each becomes: a row of the ledger.
Folder = Path | str | None
Measure = Callable[[Folder], Evidence]


@dataclass(frozen=True)
class Row:
    """One claim with its verdict.

    key: such as "COLA 3".  where: table or figure.  says: the paper's number, "–" where none is verified.
    ours: mean and spread by arm.  differences: one a seed, in `unit`.  interval: 95 %, as `paired_mean`.
    side, margin: what the claim says of the difference.  over: as in `Evidence`.
    why: setting, or the reason for there being no verdict.
    task: the one it is about; "" where it is about none, or several.
    tuned: whether its runs keep the protocol: tuned on both sides, with seeds that are not reported.
    p, p_equal: of the test that there is no difference (for a claim of equality: none beyond `margin`), and of that
        there is one of `margin` or more; None where it was not tested.
    detectable: the smallest true difference that such runs would show in 4 of 5 cases.
    survives: whether the verdict stands among all that were tested (Benjamini and Hochberg 1995, at 5 %).
    beside: as in `Evidence`.
    """

    key: str
    paper: str
    where: str
    statement: str
    says: str
    ours: str
    differences: Sequence[float]
    interval: tuple[float, float] | None
    verdict: str
    why: str
    unit: str = ""
    side: str = ""
    margin: float = 0.0
    over: str = "seeds"
    task: str = ""
    tuned: bool = False
    p: float | None = None
    p_equal: float | None = None
    detectable: float | None = None
    survives: bool | None = None
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float | None:
        """Mean of the differences, or the middle of an interval that was measured without seeds."""
        if len(self.differences):
            return float(np.mean(self.differences))
        return None if self.interval is None else sum(self.interval) / 2

    def interval_words(self) -> str:
        """Such as "−0.30 [−1.20, 0.60] points"; without an interval the mean alone, "–" without runs."""
        if self.difference is None:
            return "–"
        ends = "" if self.interval is None else " [{}, {}]".format(*map(number, self.interval))
        return f"{number(self.difference)}{ends} {self.unit}".strip()


@dataclass(frozen=True)
class Compared:
    """A claim about which side of zero something lies on, over seeds.

    measure: folder of the studies -> Evidence; FileNotFoundError where there are no runs.
    side: ">", "<", or "≈" for within ± margin.  unit: of the differences, scaled by `scale` for reading.
    margin: in this unit; a difference that is smaller is taken for none. Of points it is one, if none is given.
    task: as in `Row`.
    """

    where: str
    statement: str
    measure: Measure
    side: str = ">"
    says: str = "–"
    margin: float = 0.0
    unit: str = "points"
    scale: float = 100.0
    note: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        if self.unit == "points" and not self.margin:
            object.__setattr__(self, "margin", POINT)

    @property
    def tuned(self) -> bool:
        """Whether it reads runs of the protocol."""
        arms = getattr(self.measure, "arms", ())
        return bool(arms) and all(study in TASK_STUDIES and TASK_STUDIES[study].widen for study, _ in arms)

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        empty = Row(key, paper, self.where, self.statement, self.says, "–", (), None, NO_RUNS, "", self.unit,
                    self.side, self.margin, task=self.task, tuned=self.tuned)
        try:
            found = self.measure(folder)
        except FileNotFoundError as missing:
            return replace(empty, why=str(missing))
        why = "; ".join(filter(None, (found.setting, self.note)))
        known = replace(empty, ours=ours(found.ours, self.scale), over=found.over, why=why, beside=found.beside,
                        differences=[self.scale * d for d in found.differences])
        if found.problem:
            return replace(known, verdict=UNSOUND, why=f"{found.problem}; {why}")
        if found.interval is not None:
            interval = (self.scale * found.interval[0], self.scale * found.interval[1])
            return replace(known, interval=interval, verdict=judge(interval, self.side, self.margin))
        if len(found.differences) < SEEDS:
            return replace(known, why=f"{len(found.differences)} of {SEEDS} seeds; {why}")
        estimate = found.estimate(self.scale)
        return replace(known, interval=estimate.interval(), verdict=verdict(estimate, self.side, self.margin),
                       p=estimate.p_value(self.margin if self.side == "≈" else 0.0), detectable=estimate.detectable(),
                       p_equal=estimate.p_unequal(self.margin) if self.margin else None)


@dataclass(frozen=True)
class Exact:
    """A statement about the method itself: computed on the spot, in float64, with no seeds to average over.

    check: the largest violation found; it holds up to `tolerance`.  how: what was computed.
    """

    where: str
    statement: str
    check: Callable[[], float]
    how: str
    says: str = "–"
    tolerance: float = 1e-12

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        gap = self.check()
        said = EXACT if gap <= self.tolerance else BROKEN
        return Row(key, paper, self.where, self.statement, self.says, f"largest violation {gap:.0e}" if gap else
                   "no violation", (), None, said, self.how)


@dataclass(frozen=True)
class Beyond:
    """A statement that nothing here speaks to.

    needs: the model, data or metric that is missing, or the runs of a statement that could be tested and was not yet
    (verdict NO_RUNS).
    """

    where: str
    statement: str
    needs: str
    says: str = "–"
    note: str = ""
    verdict: str = UNTESTABLE

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        why = "; ".join(filter(None, (f"needs {self.needs}", self.note)))
        return Row(key, paper, self.where, self.statement, self.says, "–", (), None, self.verdict, why)


Claim = Compared | Exact | Beyond


def rows(paper: str, claims: Sequence[Claim], folder: Folder = None) -> list[Row]:
    """Every claim of a paper with its verdict, in the paper's order."""
    return [claim.row(f"{paper} {i}", paper, folder) for i, claim in enumerate(claims, 1)]


def number(x: float) -> str:
    """Write a number with two or three digits that count, and a true minus sign."""
    size = abs(x := 0.0 if abs(x) < 1e-9 else x)   # rounding
    how = ",.0f" if size >= 1000 else ".1f" if size >= 10 else ".2f" if size >= 0.1 or not x else ".1g"
    return f"{x:{how}}".replace("-", "−")


def ours(by_arm: Mapping[str, Sequence[float]], scale: float) -> str:
    """ "LoRA: 72.1 ± 0.8; COLA: 71.9 ± 0.5": mean and standard deviation over seeds."""
    def words(values: Sequence[float]) -> str:
        v = scale * np.asarray(values, dtype=float)
        return number(float(v.mean())) + (f" ± {number(float(v.std(ddof=1)))}" if len(v) > 1 else "")

    return "; ".join(f"{arm}: {words(values)}" for arm, values in by_arm.items() if len(values)) or "–"


# ---- evidence from studies on one task ---------------------------------------------------------------------
# Where the numbers of a claim come from: the stored studies, read seed by seed.
Arm = tuple[str, str]   # study, arm

FULL: Arm = ("fine_tuning", "full fine-tuning")
TURNED: Arm = ("fine_tuning", "FT‡, cosine kept")


@dataclass(frozen=True)
class FromRuns:
    """A measure, and the runs that it reads, so that they can be made again.

    arms: of stored studies.  find: as `rows.Measure`.
    """

    arms: tuple[Arm, ...]
    find: Measure

    def __call__(self, folder: Folder) -> Evidence:
        return self.find(folder)


@dataclass(frozen=True)
class FromBench:
    """A measure read from figures/data.  command: what measures it.  find: as `rows.Measure`."""

    command: str
    find: Measure

    def __call__(self, folder: Folder) -> Evidence:
        return self.find(folder)


score: Value = results.headline()   # on the test rows


def between(first: Arm, second: Arm, value: Value = score) -> FromRuns:
    """first − second on each seed that both have.

    Args:
        first, second: (study, arm); two studies may be paired, since all share task, backbone and order of rows.
        value: a run's record -> the number compared.
    """
    def measure(folder: Folder) -> Evidence:
        one, two = (stored(study, folder) for study, _ in (first, second))
        both = results.pair(one.of_each(first[1], value), two.of_each(second[1], value))
        ours = {label(arm): both[side].tolist() for arm, side in ((first, "first"), (second, "second"))}
        return Evidence((both["first"] - both["second"]).tolist(), ours, setting(one))

    return FromRuns((first, second), measure)


def spread(first: Arm, second: Arm, value: Value = score) -> FromRuns:
    """Distance from the arm's median, first − second: is the first less scattered over seeds?

    The scores are paired by seed as everywhere here; absolute deviations from the median are what Brown and Forsythe
    (1974) compare spreads by.
    """
    def measure(folder: Folder) -> Evidence:
        found = between(first, second, value)(folder)
        one, two = ([abs(x - statistics.median(values)) for x in values] for values in found.ours.values())
        return Evidence([x - y for x, y in zip(one, two, strict=True)],
                        dict(zip(found.ours, (one, two), strict=True)), found.setting)

    return FromRuns((first, second), measure)


def each(arm: Arm, value: Value, aim: Value | float = 0.0, name: str = "", task: str = "") -> FromRuns:
    """One number a run, less what the claim compares it with (a number, or one read from the record).

    task: of a study over several.
    """
    def measure(folder: Folder) -> Evidence:
        found = stored(arm[0], folder)
        values = found.of_each(arm[1], value, task)
        if task and values.empty:
            raise FileNotFoundError(lacking(arm[0], arm[1], task))
        aims = found.of_each(arm[1], aim, task) if callable(aim) else aim
        return Evidence((values - aims).tolist(), {name or label(arm): values.tolist()},
                        setting(found, [task] if task else ()))

    return FromRuns((arm,), measure)


def ratio(first: Arm, second: Arm, value: Value, aim: float = 1.0) -> FromRuns:
    """first / second on each seed that both have, less `aim`."""
    def measure(folder: Folder) -> Evidence:
        found = between(first, second, value)(folder)
        quotients = [x / y for x, y in zip(*found.ours.values(), strict=True)]
        return Evidence([q - aim for q in quotients], {f"{label(first)} / {label(second)}": quotients},
                        found.setting)

    return FromRuns((first, second), measure)


def step_time(first: str, second: str, aim: float = 1.0) -> FromBench:
    """Quotient of two step times of figures/data/bench_steps.json, less `aim`; its interval is over repeats.

    Both stand there as quotients to one reference, taken in turns: median and quartiles. A median's 95 % interval is
    ± 1.57 (q3 − q1) / √n (McGill, Tukey and Larsen 1978); the two relative widths add as if independent.
    """
    command = "python tests/benchmarks steps"

    def measure(folder: Folder) -> Evidence:
        bench = _bench("bench_steps", folder, command)
        one, two = (bench["to_reference"][name] for name in (first, second))
        n = bench["settings"]["repeats"]
        widths = [1.57 * (x["q3"] - x["q1"]) / math.sqrt(n) / x["median"] for x in (one, two)]
        middle = one["median"] / two["median"]
        half = middle * math.hypot(*widths)
        return Evidence((), {f"{first} / {second}": [middle]}, _bench_setting(bench),
                        (middle - half - aim, middle + half - aim), over="repeats")

    return FromBench(command, measure)


def peak_memory(first: str, second: str) -> FromBench:
    """By how many percent one candidate's peak of figures/data/bench_memory.json is above another's, one a repeat.

    Each repeat measures each candidate in a process of its own, in turns.
    """
    command = "python tests/benchmarks/peak_memory.py"

    def measure(folder: Folder) -> Evidence:
        bench = _bench("bench_memory", folder, command)
        one, two = (bench["peak_bytes"][name] for name in (first, second))
        ours = {f"{name}, MiB": [x / 2**20 for x in bench["peak_bytes"][name]] for name in (first, second)}
        return Evidence([100 * (x / y - 1) for x, y in zip(one, two, strict=True)], ours,
                        f"{_bench_setting(bench)}, each in a process of its own", over="repeats")

    return FromBench(command, measure)


def _bench(name: str, folder: Folder, command: str) -> Mapping[str, Any]:
    path = (Path(folder).parent if folder else references_folder()) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"not measured yet; measure it: {command}")
    return json.loads(path.read_text(encoding="utf-8"))


def _bench_setting(bench: Mapping[str, Any]) -> str:
    s = bench["settings"]
    return f"{s['backbone']}, {s['rows']} rows of {s['tokens']} tokens, {s['device']}, {s['repeats']} repeats in turn"


def stored(study: str, folder: Folder) -> results.Comparison:
    """What is stored of a study of any kind.

    Raises:
        FileNotFoundError: the study has no file.
    """
    if study in TEXT_STUDIES:
        return texts.load_texts(study, folder_of(folder))
    return (studies.load_across if study in TASK_STUDIES else studies.load)(study, folder)


def folder_of(studies: Folder) -> Path | None:
    """Where the texts lie that belong to a folder of studies: the one above it."""
    return Path(studies).parent if studies else None


def label(arm: Arm) -> str:
    """The arm's name, with what varies where the name is a bare number."""
    bare = arm[1].replace(".", "").isdigit()
    return f"{STUDIES[arm[0]].varies} = {arm[1]}" if bare else arm[1]


def setting(found: results.Comparison, tasks: Sequence[str] = ()) -> str:
    """What was trained on what, in a few words.  tasks: those that count, of a study over several."""
    about = found.about
    inputs = f", {about['inputs']} inputs" if "inputs" in about else ""
    chosen = ", rates chosen on validation rows" if tasks or len(about.get("rates", ())) > 1 else ""
    return (f"{about['backbone']} on {', '.join(tasks) or about['task']}, {about['training']['steps']} steps{inputs}"
            f"{chosen}")


# -- numbers read from one record

def last(name: str) -> Value:
    """The last value of a series of the whole model."""
    return lambda record: float(record["series"][name][1][-1])


def site_mean(name: str) -> Value:
    """The mean over sites of a name's last value."""
    return lambda record: statistics.fmean(record["sites"][name].values())


def mean_rank(letters: tuple[str, ...] = ()) -> Value:
    """Mean rank over the sites whose matrix is one of these letters; over all for none."""
    def value(record: Record) -> float:
        return statistics.fmean(r for site, r in record["ranks"].items()
                                if not letters or site.rpartition(".")[2] in letters)

    return value


def log10(value: Value) -> Value:
    return lambda record: math.log10(max(value(record), 1e-12))


def seconds(record: Record) -> float:
    """Seconds spent in steps: of the search, where there is one, and of the training."""
    return float(record["seconds"]["training"] + record["seconds"].get("search", 0.0))


# ---- evidence from tuned studies ---------------------------------------------------------------------------
# One comparison on one task: paired by seed and test example, each side at the rate chosen for it.
def on_task(study: str, task: str, first: str, second: str, value: Value | None = None) -> FromRuns:
    """first − second on a task of a tuned study.

    value: a run's record -> the number compared; None takes the task's own score, example by example.
    """
    def measure(folder: Folder) -> Evidence:
        found = studies.load_across(study, folder)
        one, two = ({r["seed"]: r for r in found.of(arm) if r["task"] == task} for arm in (first, second))
        seeds = [seed for seed in one if seed in two]
        if not seeds:
            raise FileNotFoundError(lacking(study, "both", task))
        pairs = [(one[seed], two[seed]) for seed in seeds]
        read = value or score
        values = [[read(r) for r in side] for side in zip(*pairs, strict=True)]
        table = None
        if value is None and all(r.get("hits") for pair in pairs for r in pair):
            table = np.array([unpacked(a["hits"]).astype(float) - unpacked(b["hits"]) for a, b in pairs])
        arms = first, second
        return Evidence([a - b for a, b in zip(*values, strict=True)], dict(zip(arms, values, strict=True)),
                        setting(found, [task]), examples=table, problem=_problem(found, task, arms, pairs),
                        beside=_beside(found, task, arms, pairs))

    return FromRuns(((study, first), (study, second)), measure)


def lacking(study: str, arms: str, task: str) -> str:
    return f"study {study!r} has no runs of {arms} on {task} yet; train them: lowrank-teach study {study}"


def over_tasks(study: str, where: str, statement: str, first: str, second: str, side: str = ">", says: str = "–",
               note: str = "") -> tuple[Compared, ...]:
    """A claim on the score, once for each task of a tuned study."""
    return tuple(Compared(where, statement, on_task(study, task, first, second), side, says, note=note, task=task)
                 for task in TASK_STUDIES[study].tasks)


Pairs = Sequence[tuple[Record, Record]]


def _problem(found: results.SideBySide, task: str, arms: tuple[str, str], pairs: Pairs) -> str:
    """Why the runs must not be compared."""
    for part, name in {"data": "examples", "weights": "pretrained weights"}.items():
        if len({r["identity"][part] for pair in pairs for r in pair}) > 1:
            return f"its runs are of different {name}"
    for arm in arms:
        tried = found.tried(arm, task)
        if len(tried) and not min(tried) < found.rate(arm, task) < max(tried):
            return f"the learning rate chosen for {arm} lies at the edge of its grid"
    return ""


def _beside(found: results.SideBySide, task: str, arms: tuple[str, str], pairs: Pairs) -> dict[str, str]:
    """What else these runs say: the loss, time and memory, how narrow the good rates are, what diverged."""
    loss = Evidence([a["test"]["loss"] - b["test"]["loss"] for a, b in pairs])
    words = number(float(np.mean(loss.differences)))
    if len(pairs) >= SEEDS:
        words += " [{}, {}]".format(*map(number, loss.estimate().interval()))
    time = statistics.fmean(seconds(a) for a, _ in pairs) / statistics.fmean(seconds(b) for _, b in pairs)
    # of a GPU; a process that trains many runs in turn has one peak of them all
    peaks = [[r["memory"].get("cuda_peak_bytes") for r in side] for side in zip(*pairs, strict=True)]
    memory = "" if None in peaks[0] + peaks[1] else f"{statistics.fmean(peaks[0]) / statistics.fmean(peaks[1]):.2f}"
    good = {arm: found.robustness(arm, task) for arm in arms}
    rates = "; ".join(f"{arm}: {found.rate(arm, task):g}, {range_}" for arm, range_ in good.items() if range_)
    commits = {r["machine"]["commit"] for pair in pairs for r in pair}
    return {"test loss": words, "time": f"× {time:.2f}", "memory": memory and f"× {memory}", "rates": rates,
            "commits": ", ".join(sorted(map(str, commits)))}


# ---- evidence from texts -----------------------------------------------------------------------------------
# Claims on texts: what stored runs wrote for E2E (`lowrank_teach.reproduction.texts`), paired by seed.
#
# All arms wrote for the same test inputs. The interval is over seeds of the training: what other inputs would change
# is not in it, and is taught in 08.
TEXTS_STUDY = "e2e"   # of `arms.TEXT_STUDIES`
FIVE = ("bleu", "nist", "meteor", "rougeL", "cider")   # of the papers' tables; high is good in all

TextsNumbers = Callable[[texts.Texts], Evidence]


def by_bleu(first: str, second: str) -> FromRuns:
    """first − second by BLEU of all texts, of 1 at most."""
    def numbers(found: texts.Texts) -> Evidence:
        a, b = found.paired(first, second, "bleu")
        return Evidence([x - y for x, y in zip(a, b, strict=True)], {first: a, second: b}, setting(found))

    return _from_texts(first, second, numbers)


def by_every_score(first: str, second: str) -> FromRuns:
    """The least gain over the five scores, in percent of the second's mean, as `of_every`."""
    def numbers(found: texts.Texts) -> Evidence:
        gains = {}
        for name in (name for name in FIVE if name not in found.about["left_out"]):
            a, b = (np.array(scores) for scores in found.paired(first, second, name))
            gains[name] = (100 * (a - b) / b.mean()).tolist()
        worst, interval = of_every(gains)
        return Evidence(gains[worst], {f"lowest, by {worst}": gains[worst]}, f"{setting(found)}; {', '.join(gains)}",
                        interval)

    return _from_texts(first, second, numbers)


def bleu_claim(where: str, statement: str, first: str, second: str, says: str = "–", note: str = "") -> Compared:
    """first > second by BLEU."""
    return Compared(where, statement, by_bleu(first, second), says=says, unit="BLEU", note=note)


def every_score_claim(where: str, statement: str, first: str, second: str, says: str = "–") -> Compared:
    """first > second by every one of the five scores."""
    return Compared(where, statement, by_every_score(first, second), says=says, unit="%, lowest score", scale=1.0)


def _from_texts(first: str, second: str, numbers: TextsNumbers) -> FromRuns:
    return FromRuns(((TEXTS_STUDY, first), (TEXTS_STUDY, second)),
                    lambda folder: numbers(texts.load_texts(TEXTS_STUDY, folder_of(folder))))
