# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · The claims ledger
#
# **Question:** which claims of the five papers hold here?
#
# **You need:** any one of 02 to 06, and what a standard deviation is. **Time:** a minute on a laptop: nothing is
# trained, stored runs are read. **Papers:** all five; each row names its table or figure.

# %%
import numpy as np
import pandas as pd
from lowrank_teach.analysis import statistics, style
from lowrank_teach.course import contents
from lowrank_teach.course.chapters import ledger as ledger_chapter
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.reproduction import arms, studies, texts, verdicts
from lowrank_teach.reproduction import ledger as claims_ledger

ledger = claims_ledger.ledger()
print(f"{len(ledger)} claims of {len(claims_ledger.CLAIMS)} papers")
print(contents.machine_line())

# %% [markdown]
# ## 1 · Question
#
# A paper says "ours is better". Better than what, on which data, by how much, over how many seeds? The ledger
# writes each statement down as a row, puts the paper's number beside ours, and lets a rule say what our runs
# show. Nobody types a verdict. How many rows can our runs decide so far?

# %%
from_runs = [row for row in ledger if row.interval is not None]
waiting = [row for row in ledger if row.verdict == verdicts.NO_RUNS]
print(f"{len(from_runs)} claims have an interval, {len(waiting)} wait for runs")
assert {row.verdict for row in from_runs} <= {*verdicts.DECIDED, verdicts.OPEN}

# %% [markdown]
# The runs come from stored studies: several methods, each trained on the same examples with the same seeds. The
# *tuned* studies keep a protocol: each method at its own learning rate, chosen on validation examples with other
# seeds, over the paper's own schedule. The others are short trainings at one rate for all. A comparison with fewer
# than five seeds shows its numbers and gets no verdict. This is what is there:

# %%
stored = {}
kinds = [(arms.STUDIES, studies.load), (arms.TASK_STUDIES, studies.load_across)]
for defined, load in kinds:
    for name, study in defined.items():
        try:
            records = load(name).records
        except FileNotFoundError:
            records = []
        tasks, seeds = (len({record.get(of) for record in records}) for of in ("task", "seed"))
        stored[name] = {"question": study.question, "arms": len(study.arms), "tasks": tasks, "seeds": seeds}
e2e = texts.load_texts("e2e")  # and of what models wrote, notebook 08
stored["e2e"] = {"question": "Which method writes the better texts?", "arms": len(e2e.arms) - 1,
                 "tasks": 1, "seeds": len(e2e.seeds("LoRA"))}
contents.readable(pd.DataFrame(stored).T.astype(dict.fromkeys(["arms", "tasks", "seeds"], int)), "studies")

# %% [markdown]
# One line trains a study again, seed by seed: `studies.train("chain")` (for texts, `python -m
# lowrank_teach.reproduction.texts e2e`). Every verdict below then follows by itself. In a terminal,
# `lowrank-teach study chain` writes into `out/studies`, where `lowrank-teach claims --folder out/studies`
# reads.
#
# ## 2 · The idea in one picture
#
# Two methods, five seeds. The scores here are **made up**, so that you can see each step. Read from left to
# right: pair the scores by seed, keep the differences, ask which means would have been possible. There are two usual
# ways to ask: draw the differences again and again with replacement (the *bootstrap*), or take Student's
# distribution.

# %%
better = np.array([72.9, 71.2, 73.4, 71.9, 72.4])
plain = np.array([71.8, 71.4, 72.0, 70.9, 71.9])
differences = better - plain
draws = np.random.default_rng(0).integers(5, size=(4000, 5))
narrow = statistics.paired_bootstrap(differences, stretch=False)
estimate = statistics.paired_mean(differences[:, None])
wide = estimate.interval()
style.show(
    ledger_chapter.verdict_in_steps(
        better, plain, differences[draws].mean(1), narrow, wide, ("method", "LoRA")
    ),
    "A verdict in three steps, on made-up scores. Look at the right panel: does the blue bar "
    "hold zero? Then five seeds decide nothing.",
    "Left: five lines joining the two scores of each seed. Middle: their five differences and "
    "the mean. Right: a histogram of resampled means with a short and a longer bar under it.",
)
print(f"bootstrap: {narrow[0]:.2f} to {narrow[1]:.2f}; Student: {wide[0]:.2f} to {wide[1]:.2f}")

# %% [markdown]
# Four of five seeds agree, and the bootstrap says "better". Student's interval is wider: section 6 shows why the
# narrow one cannot be trusted with five seeds. The ledger takes Student's.
#
# ## 3 · Maths ↔ code
#
# | in words | maths | in this code |
# |---|---|---|
# | scores of two methods on seed $i$ | $a_i, b_i$ | `chain.values("accuracy")`, of `chain = studies.load("chain")` |
# | paired difference | $d_i = a_i - b_i$ | `chain.differences("2", "1")` |
# | its mean over $n$ seeds | $\bar d$ | `row.difference` |
# | a resample: $n$ of the $d_i$, drawn with replacement | $d^*$ | `differences[draws]` |
# | 95 % interval of the mean | $\bar d \pm t\, s/\sqrt n$ | `statistics.paired_mean(…).interval()` |
# | is it equal within the margin $m$? | is the 90 % interval inside $\pm m$ | `….p_unequal(m) < 0.05` |
# | verdict | where the interval lies | `verdicts.verdict(estimate, side, margin)` |
# | does it stand among all tests? | $p_{(i)} \le 0.05\, i/N$ | `row.survives` |
#
# $s$ is the standard deviation of the $d_i$, $t$ the 97.5 % point of Student's distribution with $n - 1$ degrees of
# freedom, $p_{(i)}$ the $i$-th smallest of the $N$ p-values (Benjamini and Hochberg 1995). Pairing matters, because
# a seed fixes the order of the examples and the new head: a seed that is bad for one method is often bad for the
# other, and the difference takes that out.
#
# Seeds are not all that could have been different: so could the **test examples**. Where each run keeps which
# examples it got right, the differences are a table, seeds × examples, and `paired_mean` takes both into the
# interval: $\mathrm{var} = (MS_\text{seeds} + MS_\text{examples} - MS_\text{rest}) / (S E)$, with the mean
# squares of the two-way table of $S$ seeds and $E$ examples.
#
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
small = [0.1, 0.2, 0.9, 1.6, 0.05]
low, high = statistics.t_interval(small)
predict(
    f"All five differences are above zero: {small}. Does the interval exclude zero?",
    f"No: it runs from {low:.2f} to {high:.2f}. The largest two pull the mean up, and as "
    "easily could have been absent. Being positive five times is not enough; it must be "
    "positive by about the same.",
)
assert low < 0 < high

# %%
chance = 2 * 0.5**5
predict(
    "Two methods are equal. How often do all five differences have the same sign?",
    f"In {100 * chance:.1f} % of studies: each way with probability one half to the fifth.",
)
assert chance > 0.05

# %%
predict(
    f"{len(ledger)} claims at 95 %. If no method did anything, how many intervals would miss "
    "zero all the same?",
    f"One in twenty of the {len(from_runs)} rows with an interval, about "
    f"{0.05 * len(from_runs):.1f}. So the ledger says of each verdict whether it stands among "
    "all that were tested.",
)

# %% [markdown]
# ## 5 · Implement
#
# Three exercises. Change the body, run the cell; the check answers with a hint and a picture of *your* result.
#
# **5a · Differences by seed** (4 minutes)
# - `first` and `second` map a seed to a score, in any order;
# - return first − second on each seed that both have, seeds rising.


# %%
@exercise
def paired_differences(first, second):
    return np.array(list(first.values())) - np.array(list(second.values()))  # find the bug


paired_differences.check()

# %% [markdown]
# **5b · The interval** (6 minutes)
# - `differences` has $n$ numbers; `draws` is (R, n): each row names which of them a resample takes;
# - one mean a row; return the 2.5 % and the 97.5 % point of these means (`np.quantile`).


# %%
@exercise
def bootstrap_interval(differences, draws): ...


bootstrap_interval.check()

# %% [markdown]
# **5c · The rule** (4 minutes)
# - each interval is (low, high), each side ">" (the claim is above zero) or "<";
# - return a list: 1 where the claim is supported, −1 where it is contradicted, 0 where neither is shown.


# %%
@exercise
def judge_intervals(intervals, sides):
    return [1 if (low + high > 0) == (side == ">") else -1
            for (low, high), side in zip(intervals, sides, strict=True)]


judge_intervals.check()

# %% [markdown]
# The library's own rule, which answers 5c (`solution("bootstrap_interval")` answers 5b):

# %%
solution("judge_intervals")

# %% [markdown]
# ## 6 · Sanity: does "95 %" mean 95 %?
#
# Simulate what we cannot do with trainings: draw five differences from a known distribution a few hundred times,
# and count how often the interval holds the true mean. A 95 % interval should miss one time in twenty.

# %%
rng = np.random.default_rng(1)
samples = {
    "normal": (rng.normal(size=(600, 5)), 0.0),
    "skewed (exponential)": (rng.exponential(size=(600, 5)), 1.0),
}


def bootstrap(d):
    return statistics.paired_bootstrap(d, resamples=600, stretch=False)


def coverage(sets, mean, interval):
    return np.mean([low <= mean <= high for low, high in map(interval, sets)])


held = pd.DataFrame(
    {
        name: {
            "bootstrap": coverage(sets, mean, bootstrap),
            "Student": coverage(sets, mean, statistics.t_interval),
        }
        for name, (sets, mean) in samples.items()
    }
)
contents.readable(held, "coverage", **dict.fromkeys(held, "{:.3f}"))

# %% [markdown]
# The bootstrap misses far too often: five values can hardly be resampled into something wider than themselves.
# Student's interval comes near 95 % for normal differences, and stays somewhat short for skewed ones. So we use
# Student's, and remember that skew makes it a little too sure.

# %%
assert (held.loc["Student"] > held.loc["bootstrap"] + 0.04).all()
assert 0.91 < held.loc["Student", "normal"] < 0.98
equal = [statistics.t_interval(d) for d in samples["normal"][0][-80:]]
missed = sum(not low <= 0 <= high for low, high in equal)
style.show(
    ledger_chapter.repeated_intervals(equal, 0.0, "interval of the mean difference (true mean: zero)"),
    f"Eighty simulated studies of two equal methods, five seeds each. {missed} of them would "
    "have given a verdict, by chance alone.",
    "Eighty horizontal lines, one an interval, around a dotted line at zero; the few that miss "
    "zero are thick and orange.",
)

# %% [markdown]
# What an interval that holds zero means: a true difference of either sign, or none, fits the runs. It does *not*
# mean that the methods are equal: such a row is **open**. "Equal within the margin" needs a test of its own, which
# excludes a difference of a point or more.
#
# Now the examples. Two methods that are equal on average over all sentences of the world are scored on 400 of them,
# which happen to suit one a little better, and the same ones at every seed. What does each interval make of it?

# %%
S, E = 5, 400


def table():
    """Differences (S, E) of two equal methods: a part of each seed, of each example, and of both."""
    seed, example = rng.normal(0, 0.004, (S, 1)), rng.normal(0, 0.35, (1, E))
    return seed + example + rng.normal(0, 0.25, (S, E))


both = {"over seeds": 0, "over seeds and examples": 0}
for _ in range(400):
    d = table()
    intervals = statistics.t_interval(d.mean(1)), statistics.paired_mean(d).interval()
    for name, (low, high) in zip(both, intervals, strict=True):
        both[name] += low <= 0 <= high
print({name: f"{count / 400:.3f}" for name, count in both.items()})
assert both["over seeds"] < 0.85 * 400 < 0.92 * 400 < both["over seeds and examples"]

# %% [markdown]
# Over seeds alone the interval is far too short: all five seeds were scored on the same sentences, and agree about
# them. With the examples in it, it covers what it says.
#
# ## 7 · The ledger, row by row
#
# Choose a paper, a verdict, a task, or the rows that rest on tuned runs. In each picture a grey dot is the difference
# at one seed, the thick line is the 95 % interval, and the pale band is the margin within which two methods count as
# equal. Rows in points share one scale, from −5 to 5.

# %%
ledger_chapter.filterable(ledger)

# %% [markdown]
# *Paper* stands before a number that could be traced to a text, a table or a repository; numbers remembered or read
# off a figure are not quoted. *Holds exactly* is for statements about the method itself: they are computed on the
# spot, and need no seeds. Under a verdict stands whether it survives among all that were tested; under *open*, which
# true difference the runs would have shown in four of five cases. *Rates* has the learning rate of each side, and the
# range that came within a point of the best. Rows named *control* are ours: the comparison that a claim needs before
# its cause is believed.
#
# Mind the setting in the last column: a small sentence encoder, or for texts a small causal model, and a short
# training; not the model of the paper. A verdict here is about the *direction* of a claim in that setting. The rows
# from 100 steps started $A$ as a Gaussian for COLA, and left SaLoRA's gates on to the end of the training.
#
# The same in code, one paper at a time:

# %%
contents.readable(claims_ledger.table("LoRA"), "lora")

# %% [markdown]
# A task and a verdict are filters, too: `claims_ledger.table("COLA", task="sst2", verdict="open")`. Any other cut is
# one line of pandas. Which statements failed, here or exactly? The setting stands beside each.

# %%
book = claims_ledger.table()
against = book[book["verdict"].isin([verdicts.CONTRADICTED, "fails exactly"])]
contents.readable(
    against[["where", "statement", "task", "difference [95 %]", "among all", "setting, or reason"]],
    "against",
)

# %% [markdown]
# ## 8 · Look
#
# All claims about *scores*, in points of accuracy, that have the most seeds so far. Look first at how many bars
# hold the line at zero, then at how long the bars are. (Dots without a bar: too few seeds yet.)

# %%
scores = [row for row in ledger if row.unit == "points" and len(row.differences) > 1]
most = max((len(row.differences) for row in scores), default=0)
shown = [row for row in scores if len(row.differences) == most]


def forest(rows, xlabel, scale=lambda row: 1.0):
    return ledger_chapter.forest(
        [f"{row.key}: {row.statement}{row.task and f' ({row.task})'}" for row in rows],
        [np.divide(row.differences, scale(row)) for row in rows],
        [row.interval and tuple(np.divide(row.interval, scale(row))) for row in rows],
        [row.verdict for row in rows],
        [row.side for row in rows],
        xlabel,
    )


style.show(
    forest(shown, "difference of accuracy, points"),
    "Claims about scores. The arrow is the side that is claimed (both ways: equality); small "
    "dots are seeds; the bar is the 95 % interval. Grey rows are open.",
    "A forest plot: one row a claim, dots of its seeds' differences, a bar for the interval, "
    "and a vertical line at zero.",
)

# %% [markdown]
# Claims about other quantities (means over tasks, densities, ranks, angles, spreads) have other units. To see them
# together, each is divided by the larger end of its interval.

# %%
others = [row for row in from_runs if row.unit != "points" and row.side in ("<", ">")]
if others:
    picture = forest(
        others, "difference, in units of the far end", lambda row: max(map(abs, row.interval))
    )
    style.show(
        picture,
        "Claims about other quantities. Compare with the picture above: are these bars longer or "
        "shorter, beside their distance from zero?",
        "A forest plot of the remaining claims with an interval, scaled to one, around zero.",
    )
for name, group in (("scores", scores), ("other quantities", others)):
    judged = [row for row in group if row.interval is not None]
    decided = sum(row.verdict != verdicts.OPEN for row in judged)
    print(f"{name}: {len(judged)} claims have an interval, {decided} of them are decided")

# %%
counts = claims_ledger.counts(ledger)
style.show(
    ledger_chapter.verdict_counts(counts.to_dict("index")),
    "How many claims got which verdict. Grey is open; pale waits for runs; black needs what is "
    "not here.",
    "Stacked bars, one a paper, with the number of claims of each verdict: "
    + "; ".join(f"{paper} {int(row.sum())} claims" for paper, row in counts.iterrows())
    + ".",
)
contents.readable(counts, "counts")

# %% [markdown]
# ## 9 · What would change a verdict?
#
# More seeds make the interval shorter: its width falls with $\sqrt n$. The *power* is the chance that a true
# difference is seen. It depends on the difference in units of the scatter of the paired differences.

# %%
scatter = [np.std(row.differences, ddof=1) for row in shown]
sd = float(np.median(scatter)) if scatter else 1.0
source = f"median over {len(scatter)} claims" if scatter else "assumed: no runs yet"
print(f"scatter of a paired difference: {sd:.2f} points ({source})")
many = range(3, 41)
curves = {
    f"difference {effect:g}": [statistics.power(effect, sd, n) for n in many]
    for effect in (0.5, 1, 2, 4)
}
style.show(
    ledger_chapter.power_curves(many, curves, statistics.SEEDS),
    "Chance of a verdict for true differences of half a point to four points. Dotted: four "
    "times in five.",
    "Four rising curves of the chance of a verdict against the number of seeds; larger "
    "differences rise sooner. A vertical line marks five seeds.",
)
assert curves["difference 4"][2] > curves["difference 0.5"][2]

# %% [markdown]
# Turned round: how many seeds would each size of difference need, to be seen four times in five?

# %%
need = {
    f"{effect:g} points": statistics.seeds_needed(effect, sd) or "more than 1000"
    for effect in (0.25, 0.5, 1.0, 2.0, 4.0)
}
print(need)
found = [n for n in need.values() if isinstance(n, int)]
assert found == sorted(found, reverse=True)
assert need["0.25 points"] == "more than 1000" or need["0.25 points"] > 2 * statistics.SEEDS

# %% [markdown]
# A quarter of a point needs many times five seeds. Two cheaper ways: a finer measure (the loss moves with every
# row, the accuracy only with those that flip), and more test rows.
#
# ## 10 · Play
#
# Change `level` or `n` and look at how a verdict on the same differences moves. The differences are those of
# section 2.

# %%
for level in (0.5, 0.8, 0.9, 0.95, 0.99):
    interval = estimate.interval(level)
    said = verdicts.judge(interval, ">")
    print(f"{100 * level:.0f} %: [{interval[0]:5.2f}, {interval[1]:5.2f}]  {said}")

# %% [markdown]
# A lower level gives a verdict sooner, and is wrong more often. The level is chosen before one looks.

# %%
for n in (2, 3, 5, 10, 20):
    repeated = np.resize(differences, n)  # as if further seeds said the same again
    more = statistics.paired_mean(repeated[:, None])
    interval, said = more.interval(), verdicts.verdict(more, ">")
    print(f"{n:2} seeds: [{interval[0]:5.2f}, {interval[1]:5.2f}]  {said}")

# %% [markdown]
# ## 11 · Exercises
#
# **Recall.** Why are differences paired? Why is an open row no evidence for equality? Which rows need no seeds, and
# why?
#
# **Modify.** Replace the accuracy by the test loss in one claim:
# `studies.load("chain").differences("2", "1", "loss")`. Is its interval shorter, in units of its scatter? Mind
# the side: a lower loss is better.
#
# **Debug.** Someone trains ten seeds, looks after each, and stops as soon as the interval excludes zero. What is
# wrong with the 95 %? Simulate it with `rng.normal`.
#
# **Open.** Choose one row that is "not testable here" and design the smallest experiment that would test its
# direction on a model you have. Say before you run it what each verdict would mean.
#
# ## 12 · What is not testable here, and why
#
# Sorted by what is missing. No small model stands in for these rows: a claim about one data set and one model is
# not tested by another.

# %%
beyond = book[book["verdict"] == verdicts.UNTESTABLE].sort_values("setting, or reason")
contents.readable(
    beyond[["setting, or reason", "where", "statement", "paper's number"]], "beyond"
)

# %%
missing = book[book["verdict"] == verdicts.NO_RUNS].sort_values("setting, or reason")
print(f"{len(missing)} claims wait for runs{'; they could be tested:' if len(missing) else ''}")
contents.readable(missing[["setting, or reason", "where", "statement"]], "missing") if len(missing) else None

# %% [markdown]
# ## 13 · Six bullets
#
# - A verdict is a rule applied to paired differences over at least five seeds; nobody types it.
# - With five seeds, a percentile bootstrap is too sure of itself, and an interval over seeds alone forgets that the
#   test examples were drawn, too.
# - An interval that holds zero decides nothing. Equality is shown by a test of its own, within a margin.
# - Among many tests some succeed by chance: the ledger says which verdicts stand among all.
# - A claim about a score and one about a mechanism are two claims: section 8 counts how many of each could be
#   decided.
# - A claim is checked in a setting. Ours is small: a direction may hold there and not in the paper's, and the
#   other way round.
#
# **Next question:** yours. Pick a row, change what would change its verdict, and train that study.
