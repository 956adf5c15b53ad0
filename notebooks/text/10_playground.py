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
# # 10 · Playground
#
# **Question:** what do the sliders do?
#
# **You need:** 00; a paper's notebook where you want to know more. **Time:** as long as you like; the page opens
# in seconds, since its numbers are stored. **Papers:** all of them, one section each.
#
# **How to use it.** Run all cells, then play. Each picture comes twice: first as a static strip, then with its
# sliders. Drag a slider, click it and use the arrow keys, or type a number in the box and press Enter. The
# sentence below the picture says what you see, and whether it is *computed live* or *snapped* to a stored run.

# %%
import lowrank_teach as lt
from lowrank_teach.analysis import style
from lowrank_teach.course import contents, explorer
from lowrank_teach.course.chapters import autolora, cola, delta_lora, generation, ledger, lora, salora, side_by_side
from lowrank_teach.course.chapters import playground as playground_chapter
from lowrank_teach.course.chapters import ranks as ranks_chapter
from lowrank_teach.course.training_button import train_now
from lowrank_teach.reproduction import rank_cuts, studies, texts, verdicts
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK = "rt"  # or "cola", "rte", "mrpc", "stsb" where LOWRANK_TEACH_DATA or the hub is there
print(contents.machine_line())
print(f"profile: {PROFILE}; backbone of the live training: {BACKBONE}; task: {TASK}")

# %% [markdown]
# Some pictures need a trained network. Theirs are stored; `rank_cuts.train_explorer_data()` trains the same again.

# %%
stored = rank_cuts.load_explorer_data()
print(stored.line())

# %% [markdown]
# ## 1 · Low rank
#
# **A ring from few directions** (notebook 00). **Try:** raise the number of directions one by one, and stop where
# you no longer see a change. Then read in the sentence what share of the energy that is.

# %%
ring = lora.RankOfAPicture()
style.show(
    explorer.strip(ring, [{"i": 1}, {"i": 4}]),
    "One direction is a square blot; with four the ring is nearly there.",
    "Two rows: singular values with the kept ones blue, and the ring rebuilt from them. "
    + ring.words(i=4),
)

# %%
explorer.explore(ring)

# %% [markdown]
# **Full fine-tuning, cut down** (notebook 01). Here every matrix trained whole, and the change was cut afterwards.
# **Try:** find the rank from which the corner of ΔW hardly changes, and the rank from which the score hardly
# changes. Which comes first?

# %%
scored = stored.cut_scores, stored.cut_halves, "test accuracy"
whole = ranks_chapter.CutNetwork(stored.parts, *scored, block=rank_cuts.BLOCK)
style.show(
    explorer.strip(whole, [{"matrix": 0, "i": 1}, {"matrix": 0, "i": 32}]),
    "One direction of every ΔW, then 32: left what they hold, right how the network scores.",
    "Two rows of three panels: a falling spectrum, a corner of the change, and scores by "
    "rank with one marked. " + whole.words(matrix=0, i=1),
)

# %%
explorer.explore(whole)

# %% [markdown]
# ## 2 · LoRA
#
# **A trained ΔW, cut down** (notebook 02). **Try:** find a matrix of which half the directions hold nearly all of
# the energy. Is it a $W_q$ or a $W_v$?

# %%
cut = lora.Truncation(stored.factors)
style.show(
    explorer.strip(cut, [{"matrix": 0, "i": 2}, {"matrix": 0, "i": 16}]),
    "A corner of ΔW from two of its directions, and from all sixteen.",
    "Two rows: singular values as bars, and a corner of the weight change. "
    + cut.words(matrix=0, i=2),
)
assert "keeps 100.0%" in cut.words(matrix=0, i=16), "all directions are all of ΔW"

# %%
explorer.explore(cut)

# %% [markdown]
# **Rank × α** (notebook 02). **Try:** move α at one rank, then the rank at one α. Which of the two changes the
# loss curve more?

# %%
knobs = lora.RankAlpha(stored.curves, stored.losses, "validation loss")
style.show(
    explorer.strip(knobs, [{"rank": 1, "alpha": 64}, {"rank": 16, "alpha": 4}]),
    "Two corners of the grid: the chosen run is framed, its curve blue among all nine.",
    "Two rows, each a table of losses with a frame and the loss curve of that run. "
    + knobs.words(rank=16, alpha=4),
)

# %%
explorer.explore(knobs)

# %% [markdown]
# ## 3 · COLA
#
# **A chain on a toy** (notebook 03). **Try:** keep the whole rank the same, as in one link of rank 4, two of rank
# 2, four of rank 1, and compare the errors. Where do the seen entries and the hidden ones part?

# %%
chain = cola.ColaChain()
style.show(
    explorer.strip(chain, [{"links": 1, "r": 4}, {"links": 4, "r": 1}]),
    "The same whole rank, by one link and by four. Solid: the chain; dotted: one update.",
    "Two rows: errors over sweeps with dashed knots, and the singular values of the sum. "
    + chain.words(links=4, r=1),
)
assert chain.arrays(links=2, r=2)["rank"] <= 4, "two links of rank 2 add up to 4 at most"

# %%
explorer.explore(chain)

# %% [markdown]
# ## 4 · SaLoRA
#
# **One gate** (notebook 04). **Try:** lower the temperature τ and see the middle empty: the gate becomes nearly a
# coin. Then bring γ near 0 and ζ near 1, and watch the exact zeros and ones go away.

# %%
gate = salora.HardConcreteGate()
style.show(
    explorer.strip(gate, [gate.start(), {**gate.start(), "tau": 0.3}]),
    "Left the mass at exactly 0 and 1, then the density between, right three summaries.",
    "Two rows of three panels: bars of mass, a density, and curves over log theta. "
    + gate.words(**{**gate.start(), "tau": 0.3}),
)

# %%
explorer.explore(gate)

# %% [markdown]
# **A budget on stored gates** (notebook 04). **Try:** move the target density through the density that the gates
# have, and see the pull change its direction. How does λ change it?

# %%
budget = salora.SaloraBudget(stored.log_theta, stored.sizes, stored.stretch)
style.show(
    explorer.strip(budget, [{"lam": 1.0, "b": 0.25}, {"lam": 1.0, "b": 0.75}]),
    "Left the pull on every gate, right where to cut so that the target is kept.",
    "Two rows: a cloud of pulls over log theta, and a staircase of shares with a mark. "
    + budget.words(lam=1.0, b=0.25),
)
assert (budget.pull(1.0, 0.05) > 0).all(), "far below the density: every gate is pushed down"
assert (budget.pull(1.0, 0.95) < 0).all(), "far above it: every gate is pushed up"

# %%
explorer.explore(budget)

# %% [markdown]
# **Trainings under several budgets** (notebook 04). In these runs the gates trained up to 90 % of the steps and were
# left on to the end; today they are folded into $B$ where their window closes. **Try:** go from the loosest target to
# the tightest. Does the density arrive in time, and what does λ have to do for it?

# %%
by_b = studies.load("salora_b")
print(by_b.line())
tight = salora.SaloraRuns(
    {float(arm): by_b.series(arm, "density") for arm in by_b.arms},
    {float(arm): by_b.series(arm, "lambda") for arm in by_b.arms},
    {float(arm): scores for arm, scores in by_b.values().items()},
    "test accuracy",
)
style.show(
    explorer.strip(tight, [{"b": 0.75}, {"b": 0.125}]),
    "The loosest and the tightest of the stored targets, blue among the others.",
    "Two rows: the density falling towards a dashed target, and the multiplier rising. "
    + tight.words(b=0.125),
)

# %%
explorer.explore(tight)

# %% [markdown]
# ## 5 · Delta-LoRA
#
# **λ and K on a toy** (notebook 05). **Try:** set λ to 0 and find LoRA again, then raise it and compare with
# LoRA at a larger α. Then delay the start with K, and read the rank of the whole change.

# %%
moving = delta_lora.DeltaTrajectory()
style.show(
    explorer.strip(moving, [{"lam": 0.0, "K": 0}, {"lam": 2.0, "K": 30}]),
    "At λ = 0 it is LoRA. With λ = 2, compare the pink line with the black dotted one.",
    "Two rows of three panels: loss, singular values of the whole change, and cosine. "
    + moving.words(lam=2.0, K=30),
)

# %%
explorer.explore(moving)

# %% [markdown]
# ## 6 · AutoLoRA
#
# **A threshold on learned weights** (notebook 06). **Try:** move the threshold a little off $1/k$, to either
# side, and see the ranks change. How far can it go before a matrix has no direction left?

# %%
ranks = autolora.RankThreshold(stored.alphas)
here = ranks.start()["threshold"]
style.show(
    explorer.strip(ranks, [{"threshold": here}, {"threshold": 1.05 * here}]),
    "The paper's threshold 1/k, and one that is five percent higher.",
    "Two rows: ranks by matrix and layer, and all weights sorted with a dashed line. "
    + ranks.words(threshold=here),
)
assert min(ranks.ranks(here).values()) >= 1, "the largest weight is never below the mean"

# %%
explorer.explore(ranks)

# %% [markdown]
# ## 7 · Two methods at once
#
# All methods here are one layer and a rule, so two rules can share a branch. `compose` joins them, for training
# as for any other use; what contradicts itself is refused. Here a chain gets gates: each of its two links has its
# own gates, its own budget and its own λ. **Try:** another pair, or `lt.DeltaLoRA()` as a third member.

# %%
both = lt.compose(lt.COLA(chain=2), lt.SaLoRA(b=0.5))
print(f"{both.name}: rank {both.r} on sites {both.sites!r}, {both.links} links")
try:
    lt.compose(lt.SaLoRA(), lt.AutoLoRA())
except ValueError as refused:
    print(f"refused: {refused}")

# %% [markdown]
# Does it pay? Four arms were trained over the same seeds, on all six matrices. Three of them train 16 directions a
# matrix: in one link or in two, with gates or without. The fourth is a chain that trains only as many as the gates
# keep. A starts alike in all; a link has half of the steps, so its gates get twice the rate. Gates were left on to
# the end of their link. `studies.train("composition")` trains them again.

# %%
pairs = studies.load("composition")
print(pairs.line())
gates = "COLA + SaLoRA"
steps, density = pairs.series(gates, "density")
_, kept = pairs.series(gates, "kept_density")
for link, last in enumerate([len(steps) // 2 - 1, len(steps) - 1], 1):
    print(f"link {link}, seed 0: density {density[last]:.2f}, kept {kept[last]:.0%}")
    assert abs(density[last] - 0.5) < 0.1, "each link meets a budget of its own"
    assert kept[last] < 1, "in each link some gates have closed"

# %% [markdown]
# Differences are paired by seed: how much the composition scores above an arm. **Look** whether a bar holds zero,
# and on which side of zero the others lie.

# %%
arms = [arm for arm in pairs.arms if arm != gates]
gaps = [[100 * d for d in pairs.differences(gates, arm)] for arm in arms]
estimates = [verdicts.Evidence(gap).estimate() for gap in gaps]
spans = [estimate.interval() for estimate in estimates]
said = [verdicts.verdict(estimate, ">") for estimate in estimates]
style.show(
    ledger.forest(
        [f"{gates} above {arm}" for arm in arms],
        gaps,
        spans,
        said,
        [">"] * len(arms),
        "difference of test accuracy, points",
    ),
    "Small dots are seeds, the bar is the 95 % interval. Right of zero the composition is "
    "ahead; contradicted means that it is behind.",
    "A forest plot of three rows: the composition against the chain, the gates, and a small "
    "chain, each with dots and a bar beside a vertical line at zero.",
)

# %%
OUTCOMES = {"supported": "wins", "contradicted": "loses", "open": "cannot be told apart"}
for arm, gap, span, word in zip(arms, gaps, spans, said, strict=True):
    low, high = span
    print(
        f"Against {arm} the composition {OUTCOMES[word]}: {sum(gap) / len(gap):+.1f} points over "
        f"{len(gap)} seeds, 95 % interval {low:+.1f} to {high:+.1f}."
    )

# %% [markdown]
# ## 8 · Every stored run
#
# The collections are the stored studies, and the runs that you have trained on this machine. **Try:** pick an arm
# and change only the seed. Is the difference between two arms larger than that?

# %%
shelf = playground_chapter.RunBrowser()
style.show(
    explorer.strip(shelf, [{"arm": 0}, {"arm": 1}]),
    "Two arms of one collection. Left the loss, blue among the others; right its matrices.",
    "Two rows: loss curves with one in blue, and a table of one number a matrix. "
    + shelf.words(**shelf.start()),
)

# %%
explorer.explore(shelf)

# %% [markdown]
# **The best of many runs** (notebook 07). Two methods that are equal, and one of them takes the best of a grid.
# **Try:** raise the number of learning rates and watch the gap that chance alone makes. Then add seeds. Which of
# the three ways to report a score is left standing?

# %%
many = side_by_side.BestOfGrid()
style.show(
    explorer.strip(many, [{**many.start(), "rates": 1}, {**many.start(), "rates": 20}]),
    "One rate, then twenty. Left how the gap between two equal methods scatters, right its mean.",
    "Two rows: histograms of a gap around zero, and three curves over the number of rates. "
    + many.words(**{**many.start(), "rates": 20}),
)

# %%
explorer.explore(many)

# %% [markdown]
# **How many test inputs** (notebook 08). Texts that stored runs wrote for E2E, scored on fewer of the inputs.
# **Try:** go from all inputs to ten, and see which order of the arms you would have reported.

# %%
written = texts.load_texts("e2e")
inputs = generation.HowManyInputs(written, [arm for arm in written.arms if arm != "not trained"])
most = inputs.count_of_inputs
style.show(
    explorer.strip(inputs, [{"n": 10}, {"n": most}]),
    f"Ten test inputs, then all {most}. A difference whose bar holds zero decides nothing.",
    "Two rows of two panels: BLEU with bars for each arm, and differences to LoRA around "
    "zero; the bars of the second row are shorter. " + inputs.words(n=most),
)

# %%
explorer.explore(inputs)

# %% [markdown]
# ## 9 · Train one now
#
# Choose a method, a seed and a number of steps. The training runs in a process of its own, so that the sliders
# above still move. **Try:** stop it half-way and press again: it goes on from there, to the same bits as without
# a stop. Then train another seed; the first stays behind it in grey.
#
# Nothing starts by itself. A finished run is kept, and `playground_chapter.RunBrowser()` made anew shows it.

# %%
train_now(TASK, BACKBONE, PROFILE)

# %% [markdown]
# ## What to take along
#
# - A slider that is *live* computes its numbers exactly at every move; one that *snaps* shows a stored run.
# - Low rank: the first few directions carry most of a trained change, but not equally in every matrix.
# - Gates and thresholds cut directions off; what differs is who decides, and by which rule.
# - A toy shows the mechanism, not the size of the effect on a task.
# - The seed alone moves a score: look at section 8 before you believe a difference.
#
# **Next question:** which of the papers' claims hold here? `11_claims_ledger`.
