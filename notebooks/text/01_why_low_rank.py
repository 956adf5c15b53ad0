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
# # 01 · Why low rank?
#
# **Question:** how much of a real weight change is low rank?
#
# **You need:** 00, and what a matrix product is. The singular value decomposition is introduced here. **Time:**
# minutes on a laptop. **Read beside it:** Aghajanyan et al. 2020, *Intrinsic Dimensionality Explains the
# Effectiveness of Language Model Fine-Tuning* (arXiv 2012.13255), and section 7 of Hu et al. 2021, *LoRA* (arXiv
# 2106.09685).

# %%
import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach.analysis import measures, plots, style
from lowrank_teach.course import contents, explorer, glossary
from lowrank_teach.course.chapters import lora
from lowrank_teach.course.chapters import ranks as ranks_chapter
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.reproduction import rank_cuts
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK = "rt"  # or "cola", "rte", "mrpc", "stsb" where LOWRANK_TEACH_DATA or the hub is there
print(contents.machine_line(), f"\nprofile: {PROFILE}; backbone: {BACKBONE}; task: {TASK}")

# %% [markdown]
# ## 1 · Question
#
# Notebook 00 made a bet: what a network has to *change* to learn a task is a matrix of few directions. LoRA takes
# the bet in advance, and never lets the change have more. So look at a change that nobody restricted. Train every
# matrix whole, subtract, and ask how few directions would have done.

# %%
model, tokenizer = lt.load_backbone(BACKBONE, num_labels=2, seed=0)
before = rank_cuts.weights(model)  # site -> a copy of W
count = sum(W.numel() for W in before.values())
print(f"{len(before)} matrices, {count:,} numbers: every one of them is free to change")

# %% [markdown]
# ## 2 · The idea in one picture
#
# A *direction* is a column times a row: every cell of it is one number of the column times one number of the row.
# It is the simplest picture a matrix can hold. **Any matrix is a sum of directions.** The *singular value
# decomposition* (SVD) finds the sum whose first terms are as large as possible. Here is the ring of notebook 00:

# %%
ring = lora.RankOfAPicture()
style.show(
    ranks_chapter.sum_of_directions(ring.u, ring.s, ring.vh),
    "Above, the first three directions, each a column times a row. Below, their sum as it "
    "grows: the ring closes.",
    "Six small pictures. Above three single directions with falling weights: a blot, a "
    "pattern with a cross, a finer one. Below their sums of rank 1, 2 and 3, ever more like a ring.",
)

# %% [markdown]
# Three words, for all notebooks to come:
#
# - the *singular value* $\sigma_j$ is the weight of direction $j$; they are sorted, the largest first;
# - the *rank* is the number of directions with a weight above zero;
# - the *energy* of a matrix is the sum of its squared numbers. It equals $\sum_j \sigma_j^2$, so each direction has
#   a share of it.
#
# In a network a matrix acts: it turns $x$ into $\Delta W x$. Direction $j$ **reads** one number from $x$ (the row
# $v_j^\top$ times $x$), weighs it by $\sigma_j$, and **writes** it along the column $u_j$. That is LoRA's shape:
# rows of $A$ read, columns of $B$ write.
#
# ## 3 · Maths ↔ code
#
# $$\Delta W = W_\text{after} - W_\text{before} = \sum_{j=1}^{n} \sigma_j\, u_j v_j^\top,
# \qquad n = \min(d, k)$$
#
# Stopping the sum at $i$ gives the nearest matrix of rank $i$ there is (Eckart and Young 1936).

# %%
names = ["W before", "W after", "ΔW (whole)", "U", "σ", "Vᵀ", "Σ σ u vᵀ"]
rows = glossary.table(names, papers=()).drop(columns="in peft")
contents.readable(rows, "glossary")

# %% [markdown]
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
d, k = before["0.q"].shape
predict(
    f"W_q is {d} × {k}. How many numbers does one direction take, and how many directions "
    "until you have written as many numbers as W_q holds?",
    f"d + k = {d + k}, with σ multiplied into the column; {d * k // (d + k)} of its {min(d, k)} "
    "directions: beyond that the sum is longer than the matrix",
)

# %%
noise = measures.random_twin(before["0.q"])
noise_rank = measures.energy_rank(measures.directions(noise).s)
predict(
    f"Fill a {d} × {k} matrix with random numbers. How many directions hold 90 % of its energy?",
    f"{noise_rank} of {min(d, k)}: a matrix without structure needs most of its directions",
)

# %%
predict(
    "Will a real ΔW, from training every number of W, need more or fewer than that?",
    "section 8 measures it, for every matrix. Write your guess down: as many, half, a tenth?",
)

# %% [markdown]
# ## 5 · Implement
#
# Four exercises. Change the body, run the cell; the check answers with a hint and a picture of *your* result. If
# you leave a stub, the notebook goes on with the library's version.
#
# **5a · Cut a matrix to rank i** (5 minutes)
# - `torch.linalg.svd(delta, full_matrices=False)` gives `U` (d, n), `s` (n,) and `Vh` (n, k), sorted;
# - keep the first `i` directions and multiply them back to (d, k);
# - mind that `s` holds the weights: `U * s` multiplies column $j$ by $\sigma_j$.


# %%
@exercise
def truncate(delta, i):
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U * s) @ Vh  # all directions: nothing is cut yet


truncate.check()

# %% [markdown]
# **5b · The energy that is kept** (3 minutes)
# - `s` (n,) are the singular values of a matrix; which share of its energy do the first `i` hold?
# - return one number between 0 and 1.


# %%
@exercise
def energy_share(s, i): ...


energy_share.check()

# %% [markdown]
# **5c · Debug: the rank for a share** (4 minutes)
# - wanted is the smallest rank that holds `share` of the energy;
# - this version looks right, and is nearly so. Try it by hand on `s = [2, 1]` and `share = 0.5`.


# %%
@exercise
def rank_for_share(s, share):
    held = (s**2).cumsum(0) / (s**2).sum()
    return int((held < share).sum())  # find the bug


rank_for_share.check()

# %% [markdown]
# **5d · What a pair costs** (2 minutes)
# - a matrix of rank $i$ can be kept as a pair, $(d \times i)$ and $(i \times k)$;
# - return the pair's numbers as a share of the $d \cdot k$ of the whole matrix.


# %%
@exercise
def share_of_dense(d, k, i): ...


share_of_dense.check()

# %% [markdown]
# The library's own source, for the first:

# %%
solution(truncate)

# %% [markdown]
# ## 6 · Sanity: three things that must be true
#
# **The energy is the sum of the squared singular values**, and **a cut leaves out exactly the energy of what it
# drops.** Try both on a pretrained matrix.

# %%
W = before["0.q"]
parts = measures.directions(W)
left_out = float((W.double() - truncate(W, 8).double()).square().sum())
total, beyond = float(W.square().sum()), float(parts.s[8:].square().sum())
print(f"energy {total:.4f}, sum of σ² {float(parts.s.square().sum()):.4f}")
print(f"rank 8 leaves out {left_out:.4f}, the σ² beyond the eighth {beyond:.4f}")
assert np.isclose(left_out, beyond, rtol=1e-3)
assert np.isclose(energy_share(parts.s, 8), 1 - left_out / total, rtol=1e-3)

# %% [markdown]
# **Directions stand at right angles**, so none repeats another.

# %%
overlap = parts.U.T @ parts.U  # (n, n), one where a column meets itself
gap = float((overlap - torch.eye(len(parts.s), dtype=overlap.dtype)).abs().max())
print(f"columns of U: products of two different ones are below {gap:.0e}")
assert gap < 1e-8

# %% [markdown]
# **Two loads of the backbone agree**, so the W before training is known without keeping it: all that differs from
# one seed to another is the new head.

# %%
again = rank_cuts.weights(lt.load_backbone(BACKBONE, num_labels=2, seed=1)[0])
same = [site for site, W in again.items() if torch.equal(W, before[site])]
print(f"{len(same)} of {len(before)} matrices are equal to the bit")
assert len(same) == len(before)

# %% [markdown]
# ## 7 · Train on a real task
#
# The films of notebook 00, and no branch: all matrices train, with their biases and norms, and a new head. The
# word embeddings stay out: they are more than half of so small a network, and no method of this course touches
# them. The learning rate is about a tenth of what LoRA gets here, since every number of $W$ moves now. Weight decay
# is off: it would change $W$ without the task asking.

# %%
LENGTHS = {
    "tiny": {"steps": 60, "n_train": 960, "lr": rank_cuts.LR},
    "laptop": {"steps": 100, "n_train": 1600, "lr": rank_cuts.LR},
    "gpu": {"lr": 5e-5},
}
setting = {**LENGTHS[PROFILE], "weight_decay": 0.0}
method = lt.FullFineTuning(trains="no_embeddings")
keep_reference(
    "01_why_low_rank", lambda: lt.fit(method, TASK, BACKBONE, PROFILE, 0, **setting)
)  # `make notebooks`
reference, made = load_reference("01_why_low_rank")
print(made)

# %%
live = LiveCurve("full", reference)
full = rank_cuts.fine_tune(TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], **setting)
live.finish(
    full,
    "Your loss. Grey, where it is stored: a reference run of another seed, in the laptop profile. "
    "Look for a fall, not for each bend.",
)

# %% [markdown]
# Interrupting is safe: run the cell again, and it goes on from the step where it was. A finished network is kept
# beside its record, so a second pass loads it.
#
# The change itself is one subtraction. The score below is that of the network as trained.

# %%
delta = full.after["0.q"] - full.before["0.q"]  # (d, k): what training changed
assert torch.equal(delta, full.changes["0.q"])
whole = full.score()  # of the network with all of every ΔW, on the test rows
metric, reached = next(iter(whole.items()))
print(f"{len(full.changes)} changes; the trained network: test {metric} {reached:.3f}")
assert not any("embed" in name for name in full.trained), "word embeddings were to stay out"
assert whole["loss"] < full.score(slice(0))["loss"], "the matrices learned something"

# %% [markdown]
# ## 8 · Look at what was learned
#
# **Size.** How large is a change beside its matrix? Look at the scale: all of them are small.

# %%
size = {
    site: float(change.norm() / full.before[site].norm())
    for site, change in full.changes.items()
}
style.show(
    plots.rank_heatmap(
        {site: 100 * share for site, share in size.items()},
        max_rank=100 * max(size.values()),
        label="‖ΔW‖ in % of ‖W‖",
    ),
    "Size of every ΔW in percent of its W. Look for the matrices that moved most.",
    "Table of sizes in percent by matrix (q, k, v, o, up, down) and layer, dark where small.",
)
assert max(size.values()) < 0.5, "W is turned a little, not replaced"

# %% [markdown]
# **Spectrum.** Three real changes and a *random twin*: a matrix of random numbers with the shape and the size of
# the first of them. If training changed a matrix any old how, real and random would look alike.

# %%
last = max(int(site.split(".")[0]) for site in full.changes)
shown = {site: full.directions[site].s for site in ("0.q", f"{last}.q", f"{last}.down")}
shown["random twin of 0.q"] = measures.directions(measures.random_twin(full.changes["0.q"])).s
style.show(
    plots.spectra(
        {name: s.numpy() for name, s in shown.items()},
        energy={name: measures.energy(s).numpy() for name, s in shown.items()},
    ),
    "Left: singular values. Right: energy of the first i. Real ones begin higher and fall "
    "faster than the random twin, and have a long tail.",
    "Two panels over the index on a log axis. Singular values of three real changes start high and "
    "fall, the random twin's stay level; beside it their shares of energy, the random one rising last.",
)

# %% [markdown]
# **How many directions?** For every matrix, the smallest rank that holds 90 % of the energy of its ΔW, beside its
# random twin's. Compare early layers with late ones.

# %%
ranks = {
    "real ΔW": {
        site: rank_for_share(found.s, 0.9) for site, found in full.directions.items()
    },
    "random twin": {
        site: rank_for_share(measures.directions(measures.random_twin(change)).s, 0.9)
        for site, change in full.changes.items()
    },
}
most = max(ranks["random twin"].values())
style.show(
    plots.rank_heatmaps(ranks, max_rank=most, label="Rank for 90 % of the energy"),
    "Rank that holds 90 % of the energy. Look for the layers that need least.",
    "Two tables by matrix and layer on one scale: real changes need fewer directions everywhere, "
    "and fewest in the last layer; random twins need about half of all or more.",
)
assert all(ranks["real ΔW"][site] < ranks["random twin"][site] for site in full.changes)

# %%
by_layer = {
    layer: np.mean(
        [rank for site, rank in ranks["real ΔW"].items() if site.startswith(layer)]
    )
    for layer in ("0.", f"{last}.")
}
first_layer, last_layer = by_layer.values()
print(f"mean rank in the first layer {first_layer:.0f}, in the last {last_layer:.0f}")
assert last_layer < first_layer, "late changes have the clearest directions"

# %% [markdown]
# So a real change has structure. But is it *low* rank? And is $W$ itself?

# %%
of_W = [rank_for_share(measures.directions(W).s, 0.9) for W in full.before.values()]
held = {site: energy_share(found.s, 8) for site, found in full.directions.items()}
print(f"90 % of W itself: rank {min(of_W)} to {max(of_W)}")
of_change = list(ranks["real ΔW"].values())
print(f"90 % of ΔW: rank {min(of_change)} to {max(of_change)}")
print(f"8 directions hold {min(held.values()):.0%} to {max(held.values()):.0%} of ΔW,")
print(f"in {share_of_dense(d, k, 8):.1%} of the numbers of a {d} × {k} matrix")
assert np.median(of_change) > 8, "by energy, rank 8 is not enough for most"

# %% [markdown]
# By energy the answer is *not very*: for most matrices, eight directions are not enough. $W$ itself is no low-rank
# matrix either, and LoRA never says so. But energy counts every number alike, whether the task needs it or not. So
# ask the task.
#
# **Cut, and score.** Cut *every* ΔW to its first $i$ directions, put the rest back to the pretrained values, and
# score the network on the test rows. At $i = 0$ only biases, norms and head are as trained.

# %%
CUTS = [*rank_cuts.CUTS, min(min(W.shape) for W in full.before.values())]
scores = {i: full.score(slice(i)) for i in CUTS}
for i, s in scores.items():
    print(f"rank {i:<4} test {metric} {s[metric]:.3f}   loss {s['loss']:.3f}", flush=True)

# %%
n_test = full.count("test")
half = dict.fromkeys(CUTS, 0.0)
if metric == "accuracy":  # what this many rows leave open: half of a 95 % interval
    for i, s in scores.items():
        half[i] = 1.96 * (s[metric] * (1 - s[metric]) / n_test) ** 0.5
label = {i: "all" if i == CUTS[-1] else str(i) for i in CUTS}
style.show(
    ranks_chapter.scores_by_rank(
        {"every ΔW cut to rank i": {label[i]: scores[i][metric] for i in CUTS}},
        ylabel=f"Test {metric}",
        half={label[i]: half[i] for i in CUTS},
    ),
    f"Where does the curve reach the level of the uncut network? Bars: what {n_test} test rows leave open.",
    "Score of the cut network against the rank kept: low at zero, then level with the uncut "
    "network from a handful of directions on, with error bars.",
)

# %% [markdown]
# The bars belong to one score taken alone. All points here are one network on the same rows, so they move
# together, and the loss is a finer measure than the accuracy: it moves with every row, not only with those that
# flip. How much of what the matrices won is back at rank 8?

# %%
won = scores[0]["loss"] - scores[CUTS[-1]]["loss"]
back = (scores[0]["loss"] - scores[8]["loss"]) / won
print(f"the matrices lowered the test loss by {won:.3f}; rank 8 gives back {back:.0%}")
assert back > 0.5, "eight directions do most of the work"

# %% [markdown]
# ## 9 · Ablate: which directions, over seeds
#
# One network is an example. The stored cuts repeat this with several seeds, and ask two more questions: what do
# all directions *but* the first $i$ reach, and what do $i$ directions drawn *at random* reach? To train them again,
# run `rank_cuts.train_cuts()`.

# %%
stored = rank_cuts.load_cuts()
print(rank_cuts.line(stored))
losses = stored.values("loss")
some = pd.DataFrame({arm: losses[arm] for arm in ("first 0", "first 8", "rest 8", "all")})
contents.readable(some.T, "losses")

# %%
ways = {
    "the first i": {str(i): losses[f"first {i}"] for i in rank_cuts.CUTS}
    | {"all": losses["all"]},
    "all but the first i": {str(i): losses[f"rest {i}"] for i in rank_cuts.CUTS[1:]},
    "i drawn at random": {str(i): losses[f"random {i}"] for i in rank_cuts.CUTS[1:]},
}
style.show(
    ranks_chapter.scores_by_rank(
        ways, ylabel="Test loss (lower is better)", xlabel="Number of directions i"
    ),
    "One dot a seed; the band is one standard deviation. The first few do nearly all of it, "
    "and what is left without them does nearly nothing.",
    "Test loss against i, three lines. The first i: falls within a few directions to the level of "
    "all. All but the first i: rises to the level of none. Random ones: high, but for a seed or "
    "two with a lucky draw, which widen the band.",
)

# %% [markdown]
# Directions drawn at random do little, unless the draw is lucky. Which seeds drew the very first direction?

# %%
drew_first = [n for n in range(len(losses["all"])) if 0 in rank_cuts.at_random(8, min(d, k), n)]
lucky = [losses["random 8"][n] for n in drew_first]
others = [loss for n, loss in enumerate(losses["random 8"]) if n not in drew_first]
print(f"seeds that drew direction 1 among 8: {drew_first}")
print(
    f"their losses {np.round(lucky, 3).tolist()}, those of the others {np.round(others, 3).tolist()}"
)
assert max(lucky, default=0) < min(others), "the first direction makes the difference"

# %% [markdown]
# Now hold energy against use. The directions *after* the eighth carry much of the energy of ΔW. What do they carry
# of the task?

# %%
seeds = range(len(losses["all"]))
of_8 = [np.mean(list(stored.by_site("all", "energy_of_8", n).values())) for n in seeds]
gain = np.array(losses["first 0"]) - np.array(losses["all"])
use = (np.array(losses["first 0"]) - np.array(losses["rest 8"])) / gain
kept = (np.array(losses["first 0"]) - np.array(losses["first 8"])) / gain
print(f"directions after the eighth hold {1 - np.mean(of_8):.0%} of the energy,")
print(f"and give {np.mean(use):.0%} of the gain; the first eight give {np.mean(kept):.0%}")
assert (gain > 0).all(), "the matrices learned something with every seed"
assert (kept > 0.5).all(), "eight directions do most of the work, with every seed"
assert (use < 0.5).all(), "the others do not, though they hold much of the energy"

# %% [markdown]
# So the bet holds here in the sense that matters: not *ΔW is low rank*, but *the part that the task uses is*. Where
# does the rest come from? Perhaps from the optimizer: Adam moves every number by about the same amount, wanted or
# not. That is an explanation, not a measurement; an exercise below puts it to the test.
#
# ## 10 · Play
#
# Cut a real ΔW yourself. The spectrum and the corner of ΔW are computed as you move. The score *snaps* to the
# nearest cut of section 8. First a static strip, then the sliders.

# %%
cutter = ranks_chapter.CutNetwork(
    {
        site: tuple(part.numpy() for part in found)
        for site, found in full.directions.items()
    },
    {i: found[metric] for i, found in scores.items()},
    half,
    f"test {metric}",
)
style.show(
    explorer.strip(cutter, [{"matrix": 0, "i": i} for i in (1, 8, 64)]),
    "The first matrix cut to 1, 8 and 64 directions: the picture still changes when the score "
    "has long settled.",
    "Three rows: a falling spectrum with the kept part blue, a corner of ΔW that fills with detail, "
    "and the scores with a ring at the cut. " + cutter.words(matrix=0, i=8),
)

# %%
explorer.explore(cutter)

# %% [markdown]
# Matrices are numbered in the order of the forward pass, six a layer ($W_q$, $W_k$, $W_v$, $W_o$, up, down). Find
# the one whose first direction holds most.
#
# ## 11 · Exercises
#
# **Recall.** What does a direction read, and what does it write? Why is the energy a sum over directions? Why
# does a rank-8 cut of ΔW not give the network that LoRA with $r = 8$ would have found?
#
# **Modify.** Keep one direction only, but not the first: the cell below does so. Then leave the first one out,
# with `full.score(slice(1, None))`. Which costs more?

# %%
for j in range(3):
    loss = full.score([j])["loss"]
    print(f"direction {j + 1} of every ΔW alone: loss {loss:.3f}", flush=True)

# %% [markdown]
# **Modify.** Train with `trains="all"`, so that the word embeddings move too. At rank 0, how much of the gain is
# now left? What does that say about cutting the matrices alone?
#
# **Open.** Is the long tail Adam's doing? Its steps are about equally large for every number. Plan a training
# with plain gradient descent at equal loss, and say before you run it what the heatmap would look like if the
# explanation holds, and if it does not.
#
# **Open.** The first eight directions were found *after* training. LoRA must find its own from the start. What
# could go wrong that a cut afterwards does not see?
#
# ## 12 · Claims against measurements
#
# What is said about low rank, and what was measured above; the verdict is computed.

# %%
small = max(size.values())
below = np.mean([rank <= 8 for rank in of_change])
fewer = all(ranks["real ΔW"][site] < rank for site, rank in ranks["random twin"].items())
few, rest = np.mean(kept), np.mean(use)
claims = [
    ("ΔW is small beside W", small < 0.5, f"at most {small:.0%} of its size"),
    ("ΔW has fewer directions than a random matrix", fewer, "every matrix; 90 % of energy"),
    ("ΔW is low rank by energy", below > 0.5, f"8 hold 90 % in {below:.0%} of matrices"),
    ("the task needs few directions", few > 0.9, f"8 give {few:.0%} of the gain (seeds)"),
    ("the others are needed, too", rest > 0.5, f"they give {rest:.0%} of it (seeds)"),
]
print(f"{sum(holds for _, holds, _ in claims)} of {len(claims)} statements hold here")

# %%
columns = ["statement", "verdict", "measured"]
verdicts = [(what, "holds" if holds else "not seen", how) for what, holds, how in claims]
contents.readable(pd.DataFrame(verdicts, columns=columns).set_index("statement"), "claims")

# %% [markdown]
# **Not measured here:** larger networks, longer trainings and other tasks. Aghajanyan et al. measure something
# else that points the same way: they train a network inside a small random subspace of *all* its numbers, and
# find that few dimensions suffice. Hu et al. look at what LoRA's own factors use. Here nothing was restricted
# while training, and the cut came afterwards.
#
# ## 13 · What to take along
#
# - A matrix is a sum of directions: each reads one number and writes one column, and has a weight σ.
# - Cutting the sum at $i$ gives the nearest matrix of rank $i$; a pair of thin matrices holds it.
# - By energy a real ΔW is not very low rank, though lower than chance in every matrix.
# - By use it is, in this network and task: eight directions do most of the work, and the others nearly none.
# - Energy and use are different questions. Ask which one a figure about rank answers.
#
# **Next question:** if few directions do, why not train only those from the start? `02_lora`.
