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
# # 07 · Side by side
#
# **Question:** which method, on what budget?
#
# **Papers:** the four of [03](03_cola.ipynb) to [06](06_autolora.ipynb) and LoRA. Beside them Lee et al. 2026,
# [*Learning Rate Matters: Vanilla LoRA May Suffice*](https://arxiv.org/abs/2602.04998), and Valipour et al. 2023,
# [*DyLoRA*](https://arxiv.org/abs/2210.07558).
# **You need:** [02](02_lora.ipynb) and any of 03 to 06; standard deviations and Student's t.
# **Time:** about 90 minutes to read and solve; the computing takes minutes on a laptop. The large study is stored.
# **Task:** SST-2 for your own study; the stored ones add TREC and `rt`. `LOWRANK_TASK` names another.
#
# At the end you will be able to say of any two methods: ahead, behind, equal within a point, or open. You will have
# built the interval and the test that say so.

# %%
import lowrank_teach as lt
import numpy as np
from lowrank_teach import course
from scipy.stats import t

ch = course.chapters.side_by_side
task, _, profile = course.begin()

# %% [markdown]
# ## 1 · Why: each paper's method wins in its own paper
#
# Each of the four papers finds its method ahead of LoRA, on tasks and at rates of its own. Lee et al. tuned the
# learning rate of several LoRA variants on large language models. After that all were within 1 to 2 % of plain LoRA:
# what looks like a better method may be a better rate.
#
# So a comparison needs a **protocol**, fixed before the first run:
#
# 1. Each configuration (method, rank and scale) has **its own grid** of six learning rates or more, a factor of 2
#    apart.
# 2. The grid is **widened until the best rate lies inside** it. Both sides begin with the same rates.
# 3. Rates are chosen on **validation examples** with **tuning seeds**; other seeds and the test examples are
#    reported.
# 4. Differences are **paired**: the same seed and the same test example on both sides.
# 5. Intervals count **both sources of chance**: other seeds, and other examples.
# 6. "Equal" is a finding of its own, within a **margin** of one point. It is not the absence of a difference.
#
# Some studies of this course keep it. They are still growing, so every cell shows what is there today:

# %%
studies = ch.tuned()
ch.missing(studies)

# %% [markdown]
# ## 2 · The idea in one picture
#
# Two configurations, LoRA and fine-tuning of the same matrices (FT‡), were tried at the same rates. Suppose that a
# paper compares them at one rate for both.

# %%
delta = studies["tuned_delta"]
course.show(ch.two_rates(delta), ch.finding_of_two_rates(delta))

# %% [markdown]
# The gaps in the picture come from two seeds and 400 examples. Whether gaps of this size mean anything is the
# second half of the question.
#
# ## 3 · The maths: how sure is a difference?
#
# Take two configurations, $S$ seeds and $E$ test examples. For seed $i$ and example $j$ let $d_{ij}$ be $1$ if only
# the first is right, $-1$ if only the second is, and $0$ otherwise. The result is the mean $\bar d$ of this
# $S \times E$ table, times 100 in *points*. It is uncertain for two reasons: other seeds would give other rows, and
# other examples would give other columns. Model both:
#
# $$d_{ij} = \delta + a_i + b_j + c_{ij}.$$
#
# Here $\delta$ is the true difference, $a_i$ what the seed adds (variance $\sigma_a^2$), $b_j$ what the example adds
# ($\sigma_b^2$) and $c_{ij}$ the rest ($\sigma_c^2$). The variance of the mean is then
#
# $$\operatorname{Var}(\bar d) = \frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{E} + \frac{\sigma_c^2}{S E}.$$
#
# More seeds shrink the first and the last term; they never shrink the second. To estimate the sum, form the mean
# squares of the table. With $\bar d_{i\cdot}$ the mean of a row and $\bar d_{\cdot j}$ that of a column, they are
#
# $$M_a = \frac{E \sum_i (\bar d_{i\cdot} - \bar d)^2}{S - 1}, \quad
# M_b = \frac{S \sum_j (\bar d_{\cdot j} - \bar d)^2}{E - 1}, \quad
# M_c = \frac{\sum_{ij} (d_{ij} - \bar d_{i\cdot} - \bar d_{\cdot j} + \bar d)^2}{(S-1)(E-1)} .$$
#
# Their expectations are $E\sigma_a^2 + \sigma_c^2$, $S\sigma_b^2 + \sigma_c^2$ and $\sigma_c^2$. Add the first two,
# subtract the third, and divide by $S E$: this is the variance above. So
#
# $$\text{error}^2 = (M_a + M_b - M_c) / (S E).$$
#
# **With numbers.** Two seeds, four examples: the rows are $(1, 0, 0, 1)$ and $(0, 0, 0, 1)$. Then
# $\bar d = 0.375$, $M_a = 0.125$, $M_b = 0.458$, $M_c = 0.125$, and the error is $\sqrt{0.458 / 8} = 0.24$. Over the
# seeds alone it would be $0.125$, half of that.

# %%
rows = np.array([[1, 0, 0, 1], [0, 0, 0, 1]])
both, alone = ch.paired_mean(rows), ch.paired_mean(rows.mean(axis=1, keepdims=True))
print(f"mean {both.mean:.3f}, error over seeds and examples {both.error:.3f}, over seeds alone {alone.error:.3f}")

# %% [markdown]
# ### Exercise 3a · A bootstrap over seeds and examples (8 minutes)
#
# The same without a model: draw rows and columns anew, with replacement, and take the mean each time. `table` is
# $(S, E)$. Each row of `seed_draws` $(R, S)$ and of `example_draws` $(R, E)$ holds the numbers that one resample
# takes. Return the $R$ means. The examples must stay paired: one draw of columns for all seeds.


# %%
@course.exercise
def bootstrap_means(table, seed_draws, example_draws): ...


bootstrap_means.check()

# %% [markdown]
# Use it on a stored comparison, the one for which the examples matter most:

# %%
pairs = ch.comparisons()
pair = ch.most_widened(pairs)
S, E = pair.table.shape
draw = np.random.default_rng(0)
means = bootstrap_means(pair.table, draw.integers(0, S, (1000, S)), draw.integers(0, E, (1000, E)))
course.show(ch.three_intervals(pair, means), ch.finding_of_three(pair, means))

# %% [markdown]
# The bootstrap is somewhat too wide: drawing rows and columns independently counts $\sigma_c^2$ three times
# ([Owen 2007](https://doi.org/10.1214/07-AOAS122)). So the ledger takes the formula. Earlier intervals of this course
# were over seeds alone, and for such a pair they were too narrow.
#
# ### Exercise 3b · Equal within a margin (5 minutes)
#
# An interval that holds zero does not show equality: few seeds would "show" it always. TOST, *two one-sided tests*,
# turns the question round. Assume that the true difference is $+m$ or more: how likely is a mean this low? Assume
# $-m$ or less: how likely is a mean this high? If both are unlikely, the methods are equal within $\pm m$. Return the
# larger of the two p-values. The function below answers another question.


# %%
@course.exercise
def p_unequal(mean, error, df, margin):
    return 2 * t.sf(abs(mean) / error, df)  # nearly: find what is wrong


p_unequal.check()

# %%
p = {one.name: p_unequal(one.both.mean, one.both.error, one.both.df, 1.0) for one in pairs}
equal = {name: f"p = {value:.3f}" for name, value in p.items() if value < 0.05}
print(f"equal within a point, {len(equal)} of {len(pairs)}:", equal)

# %% [markdown]
# A p-value below 0.05 means the same as a 90 % interval inside $\pm m$.
#
# ## 4 · Predict
#
# Say your answers aloud, then open.

# %%
ch.predict_one_rate(delta)
ch.predict_coin(pairs)
ch.predict_by_chance(pairs)
ch.predict_clipping(studies)

# %% [markdown]
# ## 5 · The protocol in thirty lines
#
# ### Exercise 5a · Order the rates (6 minutes)
#
# `rates` has $n$ numbers; `scores` and `losses` are $(n, \text{seeds})$ on validation examples. Return the rates, the
# best mean score first. Where scores tie, the lower mean loss decides.


# %%
@course.exercise
def order_rates(rates, scores, losses): ...


order_rates.check()

# %% [markdown]
# Your function decides in the loop below. A first round tries all rates in short runs, and the best three are trained
# in full. If the best one lies at an edge, the grid grows by a factor of 2 and the round is repeated. `score(rate,
# steps)` gives the scores and losses of the tuning seeds; 0 steps stand for a whole run.

# %%
def best_first(score, rates, steps):
    found = [score(rate, steps) for rate in rates]
    scores, losses = (np.array(part) for part in zip(*found, strict=True))
    return [float(rate) for rate in order_rates(np.array(rates), scores, losses)]


def tune(score, rates, rung, widest=6):
    rates = sorted(rates)
    for _ in range(1 + widest):
        kept = best_first(score, rates, rung)[:3]
        best = best_first(score, kept, 0)[0]
        if rates[0] < best < rates[-1]:
            break
        rates = [rates[0] / 2, *rates] if best == rates[0] else [*rates, rates[-1] * 2]
    return best


replayed = []
for name, on, arm in ch.grids(studies):
    found = studies[name]
    ours = tune(ch.replay(found, on, arm), found.about["rates"], rung=150)
    replayed.append((f"{arm} on {on}", ours, found.rate(arm, on)))
ch.say_replayed(replayed)

# %% [markdown]
# The loop was fed with the stored scores, and it chose what the library had chosen.
#
# ## 6 · What must be true
#
# These promises can be checked in the files: the best rates lie inside, no seed both tunes and is reported, and all
# runs of a task saw the same examples. The table says what is **held fixed** within a study, and what differs.

# %%
ch.say_protocol(studies)
ch.held_fixed(studies)

# %% [markdown]
# The start of $A$ and the scale $s = \alpha / r$ are equal wherever they are not the question. In our first study of
# many tasks the starts differed, so part of what looked like a method may have been a start.
#
# ## 7 · Train: a study of your own
#
# First a single run of LoRA, with a stored run of another seed in grey.

# %%
NETWORK = "minilm-l3"
course.keep_reference("07_side_by_side", lambda: lt.fit(lt.LoRA(), task, NETWORK, profile, 0))
reference, made = course.load_reference("07_side_by_side")
live = course.LiveCurve("lora", reference)
run = lt.fit(lt.LoRA(), task, NETWORK, profile, seed=1, callbacks=[live], progress=False)
live.finish(run, f"Seed 1 ends at a test score of {run.score('test')[1]:.3f}. One seed is one anecdote.")
print(made)

# %% [markdown]
# Now the whole protocol, on a small budget: LoRA against Delta-LoRA with λ = 2, which puts a quarter of the steps
# before the first change of $W$. The scores go through your `order_rates` and the loop above.

# %%
plan, size = ch.own_study(profile)
methods = {"LoRA": lt.LoRA(), "Delta-LoRA": lt.DeltaLoRA(lam=2.0, K=0.25)}


def trained(name, rate, steps, seeds):
    settings = {"lr": rate, "steps": steps or plan["steps"], "validation_from_train": True, **size}
    return [lt.fit(methods[name], task, NETWORK, profile, seed, **settings) for seed in seeds]


def validated(name):
    def score(rate, steps):
        runs = [run.metrics["validation"] for run in trained(name, rate, steps, plan["tune"])]
        tried[name][rate, steps] = [next(iter(run.values())) for run in runs], [run["loss"] for run in runs]
        return tried[name][rate, steps]
    return score


tried, chosen = {name: {} for name in methods}, {}
for name in methods:
    chosen[name] = tune(validated(name), plan["rates"], plan["rung"], plan["widest"])
course.show(ch.own_curves(tried, chosen), ch.finding_of_own_curves(tried, chosen, task))

# %% [markdown]
# The chosen rates are fixed from here on. New seeds and the test examples come in:

# %%
reported = {name: trained(name, chosen[name], 0, plan["report"]) for name in methods}
table = ch.hits({name: reported[name] for name in ("Delta-LoRA", "LoRA")})
ch.say_own("Delta-LoRA − LoRA", table)

# %% [markdown]
# Small budgets give wide intervals. The stored studies use the same loop with more steps, rates and examples.
#
# ## 8 · Look
#
# ### The U-curves of every configuration
#
# Validation loss over the learning rate, in the first round. Each line is drawn above its own lowest point, and the
# axis ends at 0.4. The ring is the rate that was chosen by the scores of whole runs, so it need not sit at the
# bottom.

# %%
course.show(ch.u_curves(studies), ch.finding_of_u_curves(studies))

# %% [markdown]
# A wide bottom is a merit of its own, since a method that forgives a poor rate needs fewer trials. The table says how
# wide the range within a point of the best score is. Here scores decide, so noise makes it jump.

# %%
ch.rate_table(studies)

# %% [markdown]
# ### How noisy is the choice of a rate?
#
# Our first study chose each rate with two seeds and 200 validation examples. Section 3 gives the noise of this
# choice: put $S = 2$ and $E = 200$ into the variance, with $\sigma_a, \sigma_b, \sigma_c$ from the stored
# comparisons. (They compare two configurations. Two rates of one configuration may scatter a little less.)

# %%
course.show(ch.coin(pairs), ch.finding_of_coin(studies, pairs))

# %% [markdown]
# Between neighbouring rates such a choice is not far from the toss of a coin. At a flat bottom this costs little. But
# the *score* at the chosen rate is the largest of several noisy numbers, so it must not be reported. New seeds are.
#
# ### What is ahead, what is equal, what is open?
#
# Every comparison of scores in the ledger that keeps the protocol. The colour is the ledger's verdict. "Equal" and
# "open" both hold zero: for equal ones a difference of a point is excluded, for open ones it is not.

# %%
course.show(ch.compared(pairs), ch.finding_of_compared(pairs))

# %% [markdown]
# The number behind an open row is the true difference that such runs would show in four of five cases. If it is
# larger than the gain that a paper claims, the row could not have confirmed the paper.
#
# ### Which tasks can speak at all?
#
# Our first study had eight tasks and 100 steps, and its mean over tasks was its headline. Compare LoRA there with a
# network that gives one and the same answer to all examples.

# %%
first = ch.stored_studies.load_across("side_by_side")
course.show(ch.above_constant(first), ch.finding_of_constant(first))

# %% [markdown]
# Where nothing was learned, methods can differ only by chance, and a mean over tasks adds this noise to the rest. So
# this study gives no verdict any more, and neither does its old picture of scores against cost.
#
# ## 9 · Ablate: budgets and claims
#
# ### Equal data, equal parameters, equal time
#
# "At the same budget" has three meanings, and each favours somebody. **Equal data** means the same steps on the same
# examples: it favours methods whose steps are dear. **Equal parameters** favours methods that choose what to keep,
# since they had more to choose from. **Equal time** favours what is simple. *Numbers kept*, *work a step* (in FLOPs)
# and *time* are those of the first named beside the second.

# %%
ch.budget_table(studies)

# %% [markdown]
# For equal time, read a picture: each configuration after short runs and after whole ones, both at their best rate. A
# vertical line through it is a budget of time. The machine had other work while the studies ran, so times come from a
# measurement that took all methods in turns; rank 4 is taken to cost as much as rank 8.

# %%
course.show(ch.over_time(studies), ch.finding_of_time(studies))

# %% [markdown]
# The grid is a cost, too: one more rate costs as much as one more seed.
#
# ### What the best of a grid would have claimed
#
# Most tables report the best run of a grid. First a toy: runs of *identical* methods that differ by chance alone.
#
# **Exercise 9a · Debug: what is reported (3 minutes).** `validation` and `test` are $(R, n)$: $R$ comparisons with
# $n$ runs each. The run that validates best is chosen. Return its test score, $R$ numbers.


# %%
@course.exercise
def reported_score(validation, test):
    return test.max(axis=1)  # find the bug


reported_score.check()

# %%
validation, test = ch.scores(ch.draw(4000, 9, 1), 0.5)  # nine equal rates; half of the luck is in both splits
print(f"the best on test:           {test.max(axis=1).mean():+.2f} standard deviations above the truth")
print(f"chosen on validation:       {reported_score(validation, test).mean():+.2f}")
print(f"new seeds at the chosen one: {ch.expected(9, 1, 0.5)['by validation, then new seeds']:+.2f}")

# %% [markdown]
# Now our own runs. The runs of a grid keep validation scores only, so we compare on these: the best single run and
# the tuning seeds at the chosen rate, beside the reported seeds at the *same* rate on the *same* examples. The best
# reported seed on test is the third way.

# %%
gains = ch.optimism(studies)
fig = ch.dots_from_zero(gains, "Points above the protocol's mean; a mark a configuration")
course.show(fig, ch.finding_of_optimism(gains, pairs))

# %% [markdown]
# And the claims that one could have made from the same test scores:

# %%
ch.claim_table(studies)

# %% [markdown]
# ### How often did clipping act?
#
# Every training here cuts the gradient back when its norm exceeds 1. How often was that?

# %%
course.show(ch.clipping(studies), ch.finding_of_clipping(studies))

# %% [markdown]
# What may this mean? Clipping multiplies all gradients of a step by one factor below 1. Adam divides by the
# gradient's usual size, so a *constant* factor drops out; a factor that changes from step to step does not. Nearly
# every step is cut here, so large and small gradients count alike. Where a penalty belongs to the loss, as in SaLoRA,
# its gradient takes a share of the norm, and less is left for the task. And two configurations that are the same
# function at every step, Delta-LoRA with $K = 0$ and LoRA at $(1 + \lambda)\alpha$ ([05](05_delta_lora.ipynb)), have
# gradients of different size and are cut differently. So they need not end at the same point.
#
# ### One training, every rank: DyLoRA
#
# If the rank is what the budget is spent on, one training can serve all ranks. DyLoRA draws a rank $b$ before each
# step and trains with the first $b$ directions. Afterwards the branch can be cut without training. The rival is a
# plain LoRA, cut as it stands or after a singular value decomposition (SVD).

# %%
cuts = ch.Cuts(NETWORK, profile)
by_rank = {
    "DyLoRA, first b": {str(b): cuts.loss("DyLoRA", b) for b in (1, 2, 4, 8)},
    "LoRA, first b": {str(b): cuts.loss("LoRA", b) for b in (1, 2, 4, 8)},
    "LoRA, best b (SVD)": {str(b): cuts.loss("LoRA", b, by_svd=True) for b in (1, 2, 4, 8)},
}
course.show(cuts.figure(by_rank), ch.finding_of_cuts(by_rank))

# %% [markdown]
# ## 10 · Play
#
# Two equal methods, and one of them has a grid. The slider computes what chance makes of that; its unit is the
# scatter of a stored run over seeds.

# %%
scatter, shared = ch.luck(delta)
game = ch.BestOfGrid(scatter, "points")
states = [{**game.start(), "rates": 3, "seeds": 2}, {**game.start(), "rates": 20}]
course.show(course.strip(game, states), "Above three rates with two seeds each, below twenty with one. "
            + game.words(**states[1]))

# %%
course.explore(game)

# %% [markdown]
# Set the share to 0, then to 1. When does choosing on validation examples protect you? How many seeds does a rate
# need until ten rates add less than 0.2 points?
#
# ## 11 · Exercises
#
# **11a · Recall.** Why are seeds and examples paired? Which term of the variance do more seeds leave alone? What does
# "open" not mean?
#
# **11b · Modify (10 minutes).** Change `tune` so that the *loss* decides and the score breaks ties. Replay the stored
# grids. How many choices change? Is the loss the less noisy judge?
#
# **11c · Debug.** A colleague draws examples anew *for each seed* in 3a and gets a narrower interval. Which term of
# the variance shrank, and why is that wrong?
#
# **11d · Open.** You may pay for forty trainings. More rates, more seeds, or more tasks? Use the noise of section 8.
#
# **11e · Build.** [Houlsby's adapters](https://arxiv.org/abs/1902.00751) put a small bottleneck behind a sublayer.
# Add `lt.Houlsby()` to `methods` in section 7 and compare it with LoRA. How many numbers each trains beside the head:

# %%
counts = {}
opponents = {"Houlsby": lt.Houlsby(), "Pfeiffer": lt.Pfeiffer(), "LoRA": lt.LoRA(), "head": lt.HeadOnly()}
for name, method in opponents.items():
    model = lt.load_backbone(NETWORK, num_labels=2, seed=0)[0]
    lt.adapt(model, method, seed=0)
    counts[name] = lt.measure.parameter_counts(model)["trainable"]
print({name: f"{count - counts['head']:,}" for name, count in counts.items() if name != "head"})

# %% [markdown]
# **11f · Open.** Many runs share the frozen $W$. `lowrank-teach sweep` can train several of them in one pass over it.
# What must be separate for each, so that every run stays its own?
#
# ## 12 · What the papers claim, and what was measured
#
# The rows of the ledger that keep the protocol, counted by verdict. [11](11_claims_ledger.ipynb) has each of them,
# with the paper's number and the reason where there is no verdict.

# %%
ch.counted()

# %% [markdown]
# The papers train models of a hundred million parameters and more, for epochs of whole data sets. Ours is a network
# of three layers. A verdict here says what happens *here*; "no runs yet" says that the study is not finished.
#
# ## 13 · Common confusions
#
# - **"The interval holds zero, so they are equal."** It may also be wide. Equality needs a margin and its own test.
# - **"Ten seeds, so the interval is safe."** Seeds do not shrink the examples' term. With a few hundred test examples
#   it can be the larger one.
# - **"It was chosen on validation examples, so its score is fair."** The luck that a run carries into both splits
#   stays. New seeds remove it.
# - **"One shared learning rate is fair."** It favours the configuration whose best rate it is.
# - **"A row of the table is clear."** Ask how many rows there are, and correct for them.
# - **"A task near chance shows a large effect."** There, a run that leaves chance by luck moves every mean.
#
# ## 14 · To take along
#
# - Tune each configuration on its own grid, until the best rate is inside. Report other seeds and other examples.
# - The error of a difference has a share of the seeds and a share of the examples.
# - Ahead, behind, equal within a margin, open: four answers, and the last one names what could have been seen.
# - Say which budget is equal: data, parameters or time. Each comparison favours somebody.
# - Look at what acts silently: the start, the scale and the clipping of gradients.
#
# **Further reading.** [Lee et al.](https://arxiv.org/abs/2602.04998) on rates of LoRA variants;
# [Bouthillier et al.](https://arxiv.org/abs/2103.03098) on variance in benchmarks;
# [Dror et al.](https://aclanthology.org/P18-1128/) on tests of significance in language processing. The library's
# code: [statistics.py](../lowrank_teach/analysis/statistics.py),
# [studies.py](../lowrank_teach/reproduction/studies.py).
#
# **Next question:** all of this was classification. Do the gains carry over to text?
# [08 · Generation](08_generation.ipynb)
