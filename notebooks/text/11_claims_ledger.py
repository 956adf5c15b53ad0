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
# **You need:** one of [02](02_lora.ipynb) to [06](06_autolora.ipynb), and what a standard deviation is.
# **Time:** about 60 minutes to read and solve. Nothing is trained: stored runs are read.
# **Papers:** all five; each row of the ledger names its table or figure.
#
# At the end you can read a row of the ledger, say what its verdict rests on, and say what would change it.

# %%
import numpy as np
import pandas as pd
from lowrank_teach import course
from lowrank_teach.analysis import statistics
from lowrank_teach.reproduction import ledger, studies, verdicts

ch = course.chapters.ledger
rows = ledger.ledger()
print(f"{len(rows)} claims of {len(ledger.CLAIMS)} papers")

# %% [markdown]
# ## 1 · Why a ledger?
#
# A paper says "ours is better". Better than what, on which data, by how much, and over how many seeds? The ledger
# writes each statement down as a row. It puts the paper's number beside ours, and a rule says what our runs show.
# Nobody types a verdict.

# %%
judged = [row for row in rows if row.interval is not None]
waiting = [row for row in rows if row.verdict == verdicts.NO_RUNS]
decided = [row for row in judged if row.verdict in verdicts.DECIDED]
print(f"{len(judged)} claims have an interval, and {len(decided)} of these are decided; {len(waiting)} wait for runs")

# %% [markdown]
# The runs come from stored studies: several configurations, each trained on the same examples with the same seeds.
# The *tuned* studies keep the whole protocol of [07](07_side_by_side.ipynb): each configuration has a learning rate
# of its own, chosen on validation examples with other seeds, and trains over the paper's schedule. The others are
# short trainings at one rate for all. A comparison of fewer than five seeds shows its numbers and gets no verdict.

# %%
course.readable(ch.stored_studies(), "studies")

# %% [markdown]
# `lowrank-teach study chain` in a terminal trains a study again, seed by seed, and writes it into `out/studies`.
# `lowrank-teach claims --folder out/studies` then gives the verdicts that follow from it.
#
# ## 2 · The idea in one picture
#
# Two methods, five seeds. These scores are **made up**, so that you can see each step. Read from left to right: pair
# the scores by seed, keep the differences, and ask which means would have been possible. There are two usual ways to
# ask. The *bootstrap* draws the differences again and again with replacement. The other takes Student's distribution.

# %%
better = np.array([72.9, 71.2, 73.4, 71.9, 72.4])
plain = np.array([71.8, 71.4, 72.0, 70.9, 71.9])
differences = better - plain
draws = np.random.default_rng(0).integers(5, size=(4000, 5))
narrow = statistics.paired_bootstrap(differences, stretch=False)
estimate = statistics.paired_mean(differences[:, None])
wide = estimate.interval()
figure = ch.verdict_in_steps(better, plain, differences[draws].mean(1), narrow, wide, ("method", "LoRA"))
course.show(
    figure,
    f"The mean difference is {differences.mean():.2f} points. The bootstrap's interval goes from {narrow[0]:.2f} to "
    f"{narrow[1]:.2f}, Student's from {wide[0]:.2f} to {wide[1]:.2f}: only the second one holds zero.",
    "Left: five lines that join the two scores of each seed. Middle: their five differences and the mean. Right: a "
    "histogram of resampled means with a short and a longer bar under it.",
)

# %% [markdown]
# Four of five seeds agree, and the bootstrap says "better". Section 6 shows why it cannot be trusted with five seeds.
# The ledger takes Student's interval.
#
# ## 3 · The maths
#
# Let $a_i$ and $b_i$ be the scores of two methods at seed $i$, of $n$ seeds. The paired difference is
# $d_i = a_i - b_i$, and its mean $\bar d$ has the 95 % interval
#
# $$\bar d \pm t\,\frac{s}{\sqrt n}.$$
#
# Here $s$ is the standard deviation of the $d_i$, and $t$ is the 97.5 % point of Student's distribution with $n - 1$
# degrees of freedom: 2.78 for five seeds, where a normal distribution would give 1.96.
#
# **With numbers.** The differences of section 2 are 1.1, −0.2, 1.4, 1.0 and 0.5. Their mean is 0.76, $s = 0.63$, and
# so the interval is $0.76 \pm 2.78 \cdot 0.63 / \sqrt 5 = 0.76 \pm 0.78$.
#
# *Why pairs?* A seed fixes the order of the examples and the start of the head. A seed that is bad for one method is
# often bad for the other, and the difference takes that out.
#
# *Examples, too.* The seeds are not all that could have been different: so could the test examples. Where each run
# keeps which examples it got right, the differences are a table of $S$ seeds and $E$ examples. `paired_mean` takes
# both into the interval: the variance of the mean is $(MS_\text{seeds} + MS_\text{examples} - MS_\text{rest}) / (S
# E)$, with the mean squares of the two-way table.
#
# *Equality.* Two methods are **equal within the margin** $m$ if the 90 % interval lies inside $\pm m$. This is a test
# of its own (two one-sided tests, TOST). An interval that merely holds zero shows no equality: that row is **open**.
#
# *Many tests.* With $N$ tests, the $i$-th smallest p-value must be at most $0.05\, i / N$ (Benjamini and Hochberg
# 1995). The ledger says of each verdict whether it survives this.
#
# ## 4 · Predict
#
# Answer before you open.

# %%
ch.predict_all_above()
ch.predict_same_sign()
ch.predict_by_chance(rows)

# %% [markdown]
# ## 5 · Build it
#
# ### Exercise 5a · Differences by seed (4 minutes)
#
# `first` and `second` map a seed to a score, in any order. Return first − second on each seed that both have, with
# the seeds rising. The function below has a mistake.


# %%
@course.exercise
def paired_differences(first, second):
    return np.array(list(first.values())) - np.array(list(second.values()))  # find the bug


paired_differences.check()

# %% [markdown]
# Use it on stored runs: chains of COLA with two links and with one.

# %%
chain = studies.load("chain")
two, one = (dict(enumerate(100 * np.array(chain.values("accuracy")[links]))) for links in ("2", "1"))
found = paired_differences(two, one)
print("two links − one, in points:", np.round(found, 2))

# %% [markdown]
# ### Exercise 5b · The interval (6 minutes)
#
# `differences` has $n$ numbers; `draws` is (R, n), and each row names which of them a resample takes. Take one mean
# for each row, and return the 2.5 % and the 97.5 % point of these means (`np.quantile`).


# %%
@course.exercise
def bootstrap_interval(differences, draws): ...


bootstrap_interval.check()

# %% [markdown]
# ### Exercise 5c · The rule (4 minutes)
#
# Each interval is (low, high), and each side is ">" (the paper claims a difference above zero) or "<". Return a list:
# 1 where the claim is supported, −1 where it is contradicted, 0 where neither is shown.


# %%
@course.exercise
def judge_intervals(intervals, sides):
    return [1 if (low + high > 0) == (side == ">") else -1
            for (low, high), side in zip(intervals, sides, strict=True)]


judge_intervals.check()

# %%
course.solution(judge_intervals)

# %% [markdown]
# ## 6 · Does "95 %" mean 95 %?
#
# This can be simulated. Draw five differences from a known distribution, many times, and count how often the interval
# holds the true mean. A 95 % interval should miss one time in twenty.

# %%
rng = np.random.default_rng(1)
samples = {"normal": (rng.normal(size=(600, 5)), 0.0), "skewed": (rng.exponential(size=(600, 5)), 1.0)}
ways = {"bootstrap": lambda d: statistics.paired_bootstrap(d, resamples=600, stretch=False),
        "Student": statistics.t_interval}


def coverage(sets, mean, interval):
    return np.mean([low <= mean <= high for low, high in map(interval, sets)])


held = pd.DataFrame({name: {way: coverage(sets, mean, interval) for way, interval in ways.items()}
                     for name, (sets, mean) in samples.items()})
course.readable(held, "coverage", **dict.fromkeys(held, "{:.3f}"))
print(ch.finding_of_coverage(held))

# %% [markdown]
# The bootstrap misses far too often: five values can hardly be resampled into something wider than themselves.
# Student's interval comes near 95 % for normal differences and stays somewhat short for skewed ones.

# %%
equal = [statistics.t_interval(d) for d in samples["normal"][0][-80:]]
course.show(
    ch.repeated_intervals(equal, 0.0, "interval of the mean difference (true mean: zero)"),
    ch.finding_of_repeats(equal),
    "Eighty horizontal lines, each one an interval, around a dotted line at zero; the few that miss zero are thick "
    "and orange.",
)

# %% [markdown]
# Now the examples. Two methods that are equal over all sentences of the world are scored on 400 of them. These 400
# happen to suit one method a little better, at every seed alike. What does each interval make of that?

# %%
S, E = 5, 400


def differences_by_example():
    """(S, E), of two equal methods: a part of each seed, of each example, and of both."""
    seed, example = rng.normal(0, 0.004, (S, 1)), rng.normal(0, 0.35, (1, E))
    return seed + example + rng.normal(0, 0.25, (S, E))


both = {"over seeds": 0, "over seeds and examples": 0}
for _ in range(400):
    d = differences_by_example()
    for name, (low, high) in zip(both, (statistics.t_interval(d.mean(1)), statistics.paired_mean(d).interval()),
                                 strict=True):
        both[name] += (low <= 0 <= high) / 400
print({name: f"{share:.3f}" for name, share in both.items()})

# %% [markdown]
# Over seeds alone the interval is far too short: all five seeds were scored on the same sentences and agree about
# them. With the examples in it, the interval covers what it says.
#
# ## 7 · The ledger, row by row
#
# Choose a paper, a verdict, a task, or the rows that rest on tuned runs. In each picture a grey dot is the difference
# at one seed, the thick line is the 95 % interval, and the pale band is the margin within which two methods count as
# equal. Rows in points share one scale, from −5 to 5.

# %%
ch.filterable(rows)

# %% [markdown]
# - *Paper* stands before a number that was traced to a text, a table or a repository.
# - *Holds exactly* is for statements about the method itself. They are computed on the spot and need no seeds.
# - Under a verdict stands whether it survives among all tests. Under *open* stands which true difference the runs
#   would have shown in four of five cases.
# - Rows named *control* are ours: the comparison that a claim needs before its cause is believed.
#
# **Mind the setting** in the last column: a small sentence encoder, or for texts a small causal model, and not the
# model of the paper. A verdict is about the *direction* of a claim in that setting. The rows from 100 steps started
# $A$ as a Gaussian for COLA, and left SaLoRA's gates on to the end of the training.
#
# The same in code; paper, task and verdict are filters:

# %%
course.readable(ledger.table("LoRA"), "lora")

# %% [markdown]
# Which statements failed, here or exactly? The setting stands beside each.

# %%
book = ledger.table()
against = book[book["verdict"].isin([verdicts.CONTRADICTED, "fails exactly"])]
course.readable(against[["where", "statement", "task", "difference [95 %]", "among all", "setting, or reason"]],
                "against")

# %% [markdown]
# ## 8 · Look
#
# First the claims about *scores*, in points of accuracy, with the most seeds.

# %%
scores = [row for row in judged if row.unit == "points"]
most = max(len(row.differences) for row in scores)
shown = [row for row in scores if len(row.differences) == most]
course.show(ch.forest_of(shown, "difference of accuracy, points"), ch.finding_of_forest(shown))

# %% [markdown]
# Claims about other quantities (densities, ranks, angles, spreads) have other units. To see them in one picture, each
# is divided by the larger end of its interval.

# %%
others = [row for row in judged if row.unit != "points" and row.side in ("<", ">")]
course.show(ch.forest_of(others, "difference, divided by the larger end of its interval", scaled=True),
            ch.finding_of_forest(others))

# %%
counts = ledger.counts(rows)
course.show(ch.counts_figure(counts), ch.finding_of_counts(counts))

# %% [markdown]
# ## 9 · What would change a verdict?
#
# More seeds make the interval shorter: its width falls with $\sqrt n$. The *power* of a study is the chance that it
# sees a true difference. It depends on the difference in units of the scatter of the paired differences.

# %%
sd = float(np.median([np.std(row.differences, ddof=1) for row in shown]))
effects = (0.5, 1, 2, 4)
print(f"scatter of a paired difference: {sd:.2f} points (median over {len(shown)} claims)")
course.show(ch.power_figure(sd, effects), ch.finding_of_power(sd, effects))

# %% [markdown]
# There are two cheaper ways than seeds: a finer measure (the loss moves with every example, the accuracy only with
# those whose answer changes), and more test examples.
#
# ## 10 · Play
#
# Change the levels, or the numbers of seeds, and see the verdict on the differences of section 2 move.

# %%
for level in (0.5, 0.8, 0.9, 0.95, 0.99):
    low, high = estimate.interval(level)
    print(f"{100 * level:.0f} %: [{low:5.2f}, {high:5.2f}]  {verdicts.judge((low, high), '>')}")

# %% [markdown]
# A lower level gives a verdict sooner, and is wrong more often. So the level is chosen before one looks.

# %%
for n in (2, 3, 5, 10, 20):
    more = statistics.paired_mean(np.resize(differences, n)[:, None])  # as if further seeds said the same again
    low, high = more.interval()
    print(f"{n:2} seeds: [{low:5.2f}, {high:5.2f}]  {verdicts.verdict(more, '>')}")

# %% [markdown]
# ## 11 · Exercises
#
# **11a · Recall.** Why are differences paired? Why is an open row no evidence for equality? Which rows need no seeds,
# and why?
#
# **11b · Modify.** Replace the accuracy by the test loss in one claim: `chain.differences("2", "1", "loss")`. Is its
# interval shorter, in units of its scatter? Mind the side: a lower loss is better.
#
# **11c · Debug.** Someone trains ten seeds, looks after each one, and stops as soon as the interval excludes zero.
# What is wrong with the 95 %? Simulate it with `rng.normal`.
#
# **11d · Open.** Choose a row that is "not testable here", and design the smallest experiment that would test its
# direction on a model you have. Say before you run it what each verdict would mean.
#
# ## 12 · What cannot be tested here, and what waits
#
# No small model stands in for these rows: a claim about one data set and one model is not tested by another.

# %%
beyond = book[book["verdict"] == verdicts.UNTESTABLE].sort_values("setting, or reason")
course.readable(beyond[["setting, or reason", "where", "statement", "paper's number"]], "beyond")

# %% [markdown]
# These could be tested, and wait for their runs:

# %%
missing = book[book["verdict"] == verdicts.NO_RUNS].sort_values("setting, or reason")
course.readable(missing[["setting, or reason", "where", "statement"]], "missing")

# %% [markdown]
# ## 13 · Common confusions
#
# - **"The interval holds zero, so the methods are equal."** It says that the runs cannot tell. Equality needs its own
#   test and a margin.
# - **"It won at four of five seeds."** Two equal methods do that in three of eight studies, if either may win.
# - **"p = 0.03, so it holds."** Among a hundred tests of nothing, about five look like this.
#
# ## What to take along
#
# - A verdict is a rule applied to paired differences over at least five seeds.
# - With five seeds a bootstrap is too sure of itself, and an interval over seeds alone forgets that the test examples
#   were drawn, too.
# - A claim about a score and a claim about a mechanism are two claims. Section 8 counts how many of each are decided.
# - A claim is checked in a setting. Ours is small, and a direction may be another one in the paper's.
#
# **Further reading:** [Show your work](https://arxiv.org/abs/1909.03004) (Dodge et al. 2019) on reporting what tuning
# cost; [Deep RL at the edge of the statistical precipice](https://arxiv.org/abs/2108.13264) (Agarwal et al. 2021) on
# few seeds; our page [How we compare](site/pages/how_we_compare.md).
#
# **Next question:** yours. Pick a row, change what would change its verdict, and train that study.
