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
# # 03 · COLA
#
# **Question:** can a chain of small updates do what one cannot?
#
# **You need:** 02. **Time:** minutes on a laptop; every run is kept, so a second pass is quick.
# **Paper:** Xia, Qin and Hazan 2024, *Chain of LoRA: Efficient Fine-tuning of Language Models via Residual
# Learning*, arXiv 2401.04151.

# %%
from types import SimpleNamespace

import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach.analysis import measures, plots, statistics, style
from lowrank_teach.analysis import toy_problems as toy
from lowrank_teach.analysis.statistics import smooth
from lowrank_teach.course import contents, explorer, glossary
from lowrank_teach.course.chapters import cola
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.experiments.fit import Rows
from lowrank_teach.methods import Clock
from lowrank_teach.reproduction import ledger, studies
from lowrank_teach.reproduction.verdicts import between
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK = "rt"  # or "cola", "rte", "mrpc", "stsb" where LOWRANK_TEACH_DATA or the hub is there
print(contents.machine_line())
print(f"profile: {PROFILE}; backbone: {BACKBONE}; task: {TASK}")

# %% [markdown]
# (`"cola"` in that comment is a data set of sentences, CoLA. The method of this notebook only shares its name.)
#
# ## 1 · Question
#
# A LoRA of rank $r$ moves a matrix along $r$ directions, and no training makes it more. How many of the
# directions of a matrix is that?

# %%
data = lt.load_task(TASK, n_train=64, n_validation=64, n_test=64)
model, tokenizer = lt.load_backbone(
    BACKBONE, num_labels=max(1, len(data.task.labels)), kind=data.task.kind, seed=0
)
q = lt.select(model, "q")[0]
print(f"W_q is {q.d} × {q.k}: rank 8 reaches {8 / min(q.d, q.k):.1%} of its directions")

# %% [markdown]
# A larger $r$ reaches more, and takes more memory all through the training. COLA keeps $r$ small and trains
# several updates *one after the other*. Does the sum reach more than one of them, in the same epochs?
#
# ## 2 · The idea in one picture
#
# Three verbs. *Tune* a low-rank link as LoRA does. *Tie a knot*: add the link to $W$ and forget it. *Extend* the
# chain by a new link that starts as a LoRA starts. Then tune again.

# %%
style.show(
    cola.chain_idea(),
    "Blue was learned first and then lives in W'. At any time one link trains, so the "
    "memory is that of one LoRA.",
    "Three panels. Tune: a grey W and beside it thin B1 and A1, which train. Tie a knot: "
    "the product is added "
    "into W, giving W prime. Extend: beside W prime a new pair, B2 zero and A2 random.",
)

# %% [markdown]
# ## 3 · Maths ↔ code
#
# $A$, $B$, $r$, $s = \alpha / r$ are those of 02. A chain adds a few letters. The last six rows belong to section
# 8, where the paper's analysis is put to the test.

# %%
chain_letters = ["M (COLA)", "link", "knot", "W′", "Σ s B A", "B side by side"]
analysis = ["V", "g_t", "η (COLA)", "D (COLA)", "β (COLA)", "M (bound)"]
contents.readable(glossary.table([*chain_letters, *analysis], papers=["COLA"]), "glossary")

# %% [markdown]
# Each new $A$ is random and each new $B$ is zero. The papers of this course say only that $A$ is "Gaussian", and give
# no scale for it. Here all methods share one start, LoRA's of 02: `init="kaiming"`, numbers between $\pm 1/\sqrt k$.
# That holds for the first link and for every new one.
#
# At a knot, and before it, the layer computes
#
# $$h = \Big(W + \sum_{j < i} s B_j A_j\Big)\, x + s\, B_i A_i\, x$$
#
# with only $A_i, B_i$ trained. In `COLARule.tie` a knot is a few lines: `live_factors()` gives $sB$ and $A$, they
# are put beside the links before, and `write_in_base` writes the sum into $W$.
#
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
blank = lt.LowRank(k=q.k, d=q.d, r=8)
one_link = measures.parameter_counts(blank)["total"]
predict(
    "A chain of 3 with r = 8: how many numbers train in the third link, per matrix?",
    f"{one_link:,}, as in a LoRA with r = 8: the links before are part of W and are frozen",
)
predict(
    "By how much does a knot change the outputs of the network?",
    "not at all, but for rounding: the old link is in W, the new B is zero. Section 6 "
    "measures it",
)
predict(
    "Three links of rank 8: what is the largest rank that their sum can have? And the "
    "smallest?",
    "24 at most (ranks add up if no direction is shared), 0 at least: the third may undo "
    "the rest",
)

# %% [markdown]
# ## 5 · Implement
#
# Five short exercises here and one in section 8. Change the body, run the cell. A stub that is left alone stops
# nothing.
#
# **5a · Tie a knot** (3 minutes)
# - return the new frozen matrix (d, k);
# - the forward pass has scaled the link, so the knot must do so, too;
# - leave `W` itself as it is.


# %%
@exercise
def cola_tie(W, lora_A, lora_B, lora_alpha):
    return W  # the link is lost: add it


cola_tie.check()

# %% [markdown]
# **5b · Extend** (3 minutes)
# - `gaussian` (r, k) is a fresh random draw, as the paper has it; `lora_A`, `lora_B` are those of the link just tied;
# - choose the new $A$ and the new $B$, and return them side by side;
# - what you choose must leave the function of the network as it was.


# %%
@exercise
def cola_extend(lora_A, lora_B, gaussian):
    new_A, new_B = lora_A, lora_B  # nearly: which of the two is to be what?
    return torch.cat([new_A, new_B.T], 1)  # (r, k + d)


cola_extend.check()

# %% [markdown]
# **5c · Debug: the moments** (5 minutes)
# - Adam keeps a running mean of gradients, one of their squares, and a count of steps;
# - the function below makes the new link's first move with those of the *old* link. Repair it.


# %%
@exercise
def move_after_knot(gradient, exp_avg, exp_avg_sq, step, lr):
    exp_avg = 0.9 * exp_avg + 0.1 * gradient
    exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * gradient**2
    step = step + 1
    mean, square = exp_avg / (1 - 0.9**step), exp_avg_sq / (1 - 0.999**step)
    return -lr * mean / (square.sqrt() + 1e-8)


move_after_knot.check()

# %% [markdown]
# **5d · Whole epochs** (4 minutes)
# - split `epochs` over `links`: return a list of lengths that adds up to all of them;
# - a knot falls between two epochs, so that every link sees every row equally often;
# - what is left over goes to the first links, one each.


# %%
@exercise
def cola_epochs(epochs, links): ...


cola_epochs.check()
print({f"5 epochs, {M} links": cola_epochs(5, M) for M in (1, 2, 3)})

# %% [markdown]
# **5e · How much rank?** (2 minutes)
# - `ranks` is one rank a link; the matrix is $d \times k$;
# - return the largest rank that the sum of all links can have.
#
# Under its check stand the library's own lines for a knot.


# %%
@exercise
def chain_rank(ranks, d, k): ...


chain_rank.check()
solution(cola_tie)

# %% [markdown]
# ### Tune, tie, extend: three cells
#
# Now by hand, on the pretrained network and real rows. **Tune** the first link: a few steps of AdamW.

# %%
settings = lt.train_config(PROFILE)
rows = Rows(data, tokenizer, settings, False)
batches = [rows.collate(rows.train[i : i + 16]) for i in range(0, 64, 16)]
chain = lt.COLA(r=8, lora_alpha=16.0, chain=2)
adapters = lt.adapt(model, chain, seed=0)
optimizer = torch.optim.AdamW(adapters.rule.parameter_groups(), lr=3e-3)
losses = []


def tune(passes=3):
    for batch in batches * passes:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"{len(losses)} steps so far; loss {np.mean(losses[-4:]):.3f}")


tune()

# %% [markdown]
# **Tie.** `rule.tie()` writes the link into $W$. Your `cola_tie` (or the library's) says what $W$ must be then.

# %%
branch, layer = adapters["0.q"], adapters.owner("0.q")
W, A1, B1 = (t.detach().clone() for t in (layer.W, branch.lora_A, branch.lora_B))
with torch.no_grad():
    logits_before = model(**batches[0]).logits
adapters.rule.start(Clock(0, 2, 2), SimpleNamespace(optimizer=optimizer))
adapters.rule.tie()
moved, off = ((layer.W - to).abs().max() for to in (W, cola_tie(W, A1, B1, 16.0)))
print(f"W moved by up to {moved:.4f}; it differs from W + s·BA by {off:.0e}")
assert off < 1e-5 < moved

# %% [markdown]
# **Extend.** The same call has already put a new link in place. It must be one act: if the old link stayed beside
# $W$ for a moment, it would count twice.

# %%
new_A, new_B = branch.lora_A.detach().clone(), branch.lora_B.detach().clone()
with torch.no_grad():
    logits_after = model(**batches[0]).logits
moments = {n: float(v.abs().max()) for n, v in optimizer.state[branch.lora_B].items()}
expected = (3 * q.k) ** -0.5  # of numbers spread evenly between ±1/√k
print(f"new A: std {new_A.std():.4f} (1/√(3k) = {expected:.4f})")
print(f"new B: largest {new_B.abs().max():g}")
print(f"Adam's state of B: {moments}")
tune()
style.show(
    plots.learning_curves({"cola-2": (range(1, 25), losses)}, knots=[12.5]),
    "Your first chain: 12 steps, a knot, 12 steps. Look at the knot: is there a jump?",
    "Loss over 24 steps with a dashed line at the knot after step 12. It goes on from "
    "where it was.",
)

# %% [markdown]
# ## 6 · Sanity: five things that must be true
#
# **A knot changes no output**, although it changed every adapted $W$. **The optimizer has forgotten**: moments and
# step count were zero right after it. **No more numbers train** than before it.

# %%
gap = float((logits_after - logits_before).abs().max())
trains = sum(b.lora_A.numel() + b.lora_B.numel() for b in adapters.values())
print(f"largest change of an output at the knot: {gap:.0e}")
print(f"{trains:,} numbers train in the branches during each link: r (d + k) a matrix")
assert gap < 1e-4 * float(logits_before.abs().max().clamp_min(1.0))
assert not new_B.any(), "B of the new link is zero"
assert set(moments) == {"step", "exp_avg", "exp_avg_sq"}
assert not any(moments.values())
assert trains == sum(8 * (site.d + site.k) for site in adapters.sites.values())

# %% [markdown]
# **The total is the sum of the links**, and **its rank is at most Σr**.

# %%
links = [2.0 * B1 @ A1, 2.0 * (branch.lora_B @ branch.lora_A).detach()]  # s = 16 / 8
total = branch.delta()
apart = float((total - links[0] - links[1]).abs().max())
rank = measures.numerical_rank(torch.linalg.svdvals(total), 1e-5)
print(f"total − (link 1 + link 2): {apart:.0e}")
print(f"rank of the total {rank}, at most {chain_rank((8, 8), q.d, q.k)}")
assert apart < 1e-5
assert 8 < rank <= 16

# %% [markdown]
# The same checks stand in the training loop itself. A run whose knot changes the function, or keeps the moments,
# stops there and says why.
#
# ## 7 · Train on a real task
#
# A chain of three. Grey is a stored reference run with another seed.

# %%
method = lt.COLA(chain=3, r=8, lora_alpha=16.0)
keep_reference("03_cola", lambda: lt.fit(method, TASK, BACKBONE, PROFILE, 0))
reference, made = load_reference("03_cola")
print(made)
live = LiveCurve("cola-3", reference)
run = lt.fit(method, TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], progress=False)
live.finish(run, "Your loss over the reference run. Can you tell where the knots are?")

# %%
metric, value = run.score("test")
steps, link = run.series("link")
knots = [step for step, i, j in zip(steps[1:], link, link[1:], strict=False) if j > i]
print(f"test {metric} {value:.3f}; knots after steps {knots} of {steps[-1]}")
assert len(knots) == method.chain - 1
assert np.isfinite(run.series("loss")[1]).all()

# %% [markdown]
# ## 8 · Look
#
# ### The loss, with its knots
#
# Knots fall between epochs; a training of fewer epochs than links is split evenly by steps. A knot leaves the
# function as it is, but not the optimizer: Adam's first step on a new $B$ moves *every* entry by about the learning
# rate, however small its gradient. So the loss cannot jump at a knot, and may rise behind it.

# %%
curve, axis = smooth(run.series("loss"), 5), "Training loss (means of a few steps)"
style.show(
    plots.learning_curves({"cola-3": curve}, knots=knots, ylabel=axis),
    "The same run with its knots. Look at the first points behind each: what does a "
    "forgetful optimizer cost?",
    "Training loss of a chain of three with two dashed lines at its knots.",
)
loss = np.array(run.series("loss")[1])
for k in knots:
    print(f"knot {k}: five steps before {loss[k - 5 : k].mean():.3f}, after {loss[k : k + 5].mean():.3f}")
print(f"for comparison, from one step to the next: ± {np.diff(loss).std():.3f}")

# %% [markdown]
# ### The spectrum grows, knot by knot
#
# The record holds the factors of all links side by side (the last link first). Cut them apart, add them up one
# after the other, and take the singular values of each sum.


# %%
def links_of(site):
    left, right = run.factors[site]
    cut = list(zip(left.split(method.r, 1), right.split(method.r, 0), strict=True))
    return cut[1:] + cut[:1]  # in the order in which they were trained


def sigma_of(links):
    side_by_side = torch.cat([left for left, _ in links], 1)
    return measures.singular_values(
        side_by_side, torch.cat([right for _, right in links])
    ).numpy()


def spectra(sigmas):
    energy = {name: np.cumsum(np.square(s)) / np.dot(s, s) for name, s in sigmas.items()}
    return plots.spectra(sigmas, energy=energy)


site = "0.v"
grown = {f"after link {i}": sigma_of(links_of(site)[:i]) for i in (1, 2, 3)}
style.show(
    spectra(grown),
    f"Singular values of all that W holds at {site}. A curve ends at the rank so far.",
    "Three falling curves of 8, 16 and 24 singular values on a log axis, each longer than "
    "the one before; beside them the share of energy held by the first i.",
)

# %%
ranks = {name: int((s > 1e-6 * s[0]).sum()) for name, s in grown.items()}
norms = [float(np.linalg.norm(sigma_of([pair]))) for pair in links_of(site)]
print(ranks)
print("norm of each link:", [round(norm, 2) for norm in norms])
assert list(ranks.values()) == [8, 16, 24], "generic links share no direction"
assert norms[2] < norms[0], "the last link is the smallest"

# %% [markdown]
# So the chain does what one LoRA of rank 8 cannot: its sum has a higher rank. But links are not equal. The learning
# rate falls over the whole training, and the last link moves least. Is rank alone worth anything? A fair rival is
# *one* LoRA with all of the chain's rank, trained for as long. Both are stored over seeds. (All stored studies of
# this notebook were trained with another start than the run above: `init="gaussian"`, a Gaussian $A$ with the
# standard deviation $1/r$, in the chains and in their rivals.)

# %%
chains, wide = studies.load("chain"), studies.load("wide")
print(chains.line())
print(wide.line())


def stored_sigma(record):
    return [v[site] for name, v in record["sites"].items() if name.startswith("sigma.")]


three = {
    "one link of rank 8": stored_sigma(chains.record("1")),
    "chain of 3 × 8": stored_sigma(chains.record("3")),
    "one LoRA of rank 24": stored_sigma(wide.record("24")),
}
style.show(
    spectra(three),
    f"Same steps, seed 0, {site}. Look at the tails: who uses its directions beyond the "
    "eighth, and how much?",
    "Singular values of one link, of a chain of three, and of one LoRA of rank 24; beside "
    "them shares of energy.",
)

# %% [markdown]
# The effective rank says it in a number for each matrix: how many directions are really in use.


# %%
def by_total_rank(value):
    """Two curves over total rank, one value a seed: the chain, and one LoRA."""
    chained = {8 * int(arm): value(chains, arm) for arm in ("1", "2", "3")}
    at_once = {int(arm): value(wide, arm) for arm in wide.arms}
    return {"cola": chained, "lora": {8: chained[8], **at_once}}


def mean_effective_rank(study, arm):
    mine = [r for r in study.records if r["arm"] == arm]
    return [np.mean(list(r["sites"]["effective_rank"].values())) for r in mine]


used = by_total_rank(mean_effective_rank)
style.show(
    plots.chain_length(
        used, ylabel="Effective rank (mean of all matrices)", xlabel="Total rank Σr"
    ),
    "One dot a seed. COLA gets its total rank from links of 8, LoRA has it at once.",
    "Effective rank against total rank 8, 16, 24 for the chain and for one LoRA; both "
    "rise.",
)
for name, by_rank in used.items():
    print(name, {r: round(float(np.mean(values)), 1) for r, values in by_rank.items()})
assert min(used["cola"][24]) > max(used["cola"][8]), (
    "the chain uses more directions than one link"
)

# %% [markdown]
# ### Why should a chain converge? The paper's answer
#
# The paper compares its chain with *Frank-Wolfe*: to minimise $f$ over a bounded set $K$, find the corner $V$
# that lowers the slope $\langle \nabla f(W), V \rangle$ most, and go a part $\eta$ of the way,
# $W \leftarrow W + \eta (V - W)$. If $K$ is a *trace-norm ball* (singular values add up to at most a radius),
# every corner has rank one: a chain of rank-one updates.
#
# **8a · One step** (6 minutes)
# - `G` (d, k) is the gradient at `W`; with its first singular pair $u, v$ the corner is
#   $V = -\text{radius}\; u v^\top$;
# - return $W + \eta (V - W)$ with $\eta = 2 / (t + 2)$.


# %%
@exercise
def frank_wolfe_step(W, G, radius, t):
    V = -radius * G / G.norm()  # along the gradient: is that a corner?
    return W + 2 / (t + 2) * (V - W)


frank_wolfe_step.check()

# %% [markdown]
# Now many steps, on matrix completion: guess a matrix from some of its entries. How far from the minimum are we?
# Without knowing it, the *duality gap*
# $g_t = \langle \nabla f(W_t), W_t - V_t \rangle$ answers: for a convex $f$ it is at least $f(W_t) - \min f$. Two
# step sizes: the usual $2/(t+2)$, and the paper's constant $\eta = \sqrt{M} / (D \sqrt{\beta T})$.

# %%
problem, T = toy.completion(), 512
print(
    f"{problem.target.shape} matrix, {problem.seen.mean():.0%} seen, radius {problem.radius:.0f}"
)
print(f"D = {problem.diameter:.0f}, β = {problem.smoothness:g}, M = {problem.fall:.0f}")
falling, constant = toy.frank_wolfe(problem, T), toy.frank_wolfe(problem, T, "constant")
t = np.arange(1, T + 1)
style.show(
    cola.powers(
        {"gap, 2/(t+2)": (t, falling.gap), "gap, constant η": (t, constant.gap)},
        bounds={
            "loss, 2/(t+2)": (t, falling.loss[1:]),
            "loss, constant η": (t, constant.loss[1:]),
        },
        xlabel="Step t",
        ylabel="Gap and loss",
    ),
    "Straight lines are power laws. The gap stays above the distance to the minimum; here "
    "even above the loss.",
    "Four falling curves on two log axes: duality gap and loss for both step sizes.",
)
assert (falling.gap >= falling.loss[:-1] - falling.loss.min()).all()
assert falling.loss[-1] < constant.loss[-1], "the constant step is the slower one here"

# %% [markdown]
# ### The bound, measured
#
# For a smooth $f$ each step obeys $f(W_{t+1}) \le f(W_t) - \eta g_t + \tfrac12 \beta \eta^2 D^2$. Add up all $T$:
#
# $$\frac1T \sum_t g_t \;\le\; \frac{M}{\eta T} + \frac{\beta \eta D^2}{2}
# \;=\; \tfrac32\, D \sqrt{\frac{M \beta}{T}} \quad\text{with the paper's } \eta$$
#
# The printed proof drops the ½, which gives the looser $2 D \sqrt{M\beta/T}$. Its statement says
# $2\sqrt{M \beta D / T}$, with $D$ under the root. Which of the three holds?

# %%
lengths = [8, 16, 32, 64, 128, 256, 512]
mean_gap = [toy.frank_wolfe(problem, T, "constant").gap.mean() for T in lengths]
forms = {"of the proof": "2 D √(Mβ/T)", "with its ½": "3/2 D √(Mβ/T)"}
forms["as printed"] = "as printed: 2 √(MβD/T)"
bounds = {
    label: (lengths, [toy.gap_bound(problem, T, which) for T in lengths])
    for which, label in forms.items()
}
style.show(
    cola.powers(
        {"measured": (lengths, mean_gap)},
        bounds=bounds,
        xlabel="Steps T",
        ylabel="Mean duality gap",
    ),
    "A bound must lie above the measured points. Two do; the printed one does not.",
    "Mean gap over T on log axes, falling; two dashed bounds above it and one, as "
    "printed, far below it.",
)
assert all(g <= b for g, b in zip(mean_gap, bounds["3/2 D √(Mβ/T)"][1], strict=True))
assert all(
    g > b for g, b in zip(mean_gap, bounds["as printed: 2 √(MβD/T)"][1], strict=True)
)

# %% [markdown]
# One example could mislead, units cannot. Write $W$ in a unit $c$ times as small: the problem, its gap and its
# iterates stay what they are, while $D$ becomes $cD$ and $\beta$ becomes $\beta/c^2$. A true bound must not
# notice. $D\sqrt\beta$ does not; $\sqrt{D\beta}$ does, and can be made as small as you like.

# %%
units = [10.0**i for i in range(-4, 4)]
same = {c: toy.completion(unit=c) for c in units}
measured = [toy.frank_wolfe(p, 32, "constant").gap.mean() for p in same.values()]
by_unit = {
    label: (units, [toy.gap_bound(p, 32, which) for p in same.values()])
    for which, label in forms.items()
}
style.show(
    cola.powers(
        {"measured": (units, measured)},
        bounds=by_unit,
        xlabel="Unit c of W",
        ylabel="Mean duality gap",
    ),
    "Flat is right: a change of unit changes nothing. The printed bound falls with c and "
    "crosses the measured gap.",
    "Measured gap and two bounds as flat lines over the unit, the printed bound as a "
    "falling line.",
)
assert np.ptp(measured) < 1e-6 * max(measured)
printed = np.array(by_unit["as printed: 2 √(MβD/T)"][1])
assert printed[0] > measured[0]
assert printed[-1] < measured[-1]

# %% [markdown]
# **A sign.** The printed proof has $+\eta g_t$ in the inequality of one step. Since $g_t \ge 0$, that is true,
# too, but says nothing: added up, it bounds the mean gap from *below* by a negative number. With the minus it
# bounds it from above.

# %%
rise = np.diff(constant.loss)
curvature = problem.smoothness * constant.eta**2 * problem.diameter**2 / 2
slack = curvature - constant.eta * constant.gap - rise
print(f"f(W') below f(W) − ηg + βη²D²/2 in every step, by {slack.min():.2f} at least")
above, mean = (curvature.mean() - rise.mean()) / constant.eta[0], constant.gap.mean()
print(f"mean gap {mean:.1f}: at most {above:.1f} with −, at least {-above:.1f} with +")
assert (slack >= -1e-9).all()
assert -above < 0 < mean <= above

# %% [markdown]
# **An inexact corner.** In training the gradient comes from a minibatch. Take $V$ from a part of the entries, and
# the bound grows by the mean of what is lost, $\varepsilon$.

# %%
noisy = {
    share: toy.frank_wolfe(problem, 256, "constant", share=share)
    for share in (1.0, 0.5, 0.2)
}
exact_bound = toy.gap_bound(problem, 256, "with its ½")
table = pd.DataFrame(
    {
        "entries used": [f"{share:.0%}" for share in noisy],
        "mean gap": [p.gap.mean() for p in noisy.values()],
        "mean ε": [p.epsilon.mean() for p in noisy.values()],
        "bound + ε": [exact_bound + p.epsilon.mean() for p in noisy.values()],
    }
)
assert (table["mean gap"] <= table["bound + ε"]).all()
assert table["mean ε"].is_monotonic_increasing
contents.readable(table, "noise", mean_gap="{:.0f}", mean_ε="{:.0f}")

# %% [markdown]
# ### What the analysis does not cover
#
# It is about a full matrix $V$ from a *convex* set, as the paper says itself. A link $BA$ is neither. First: the
# matrices of rank at most $r$ are no convex set. Half-way between two links of your own run there is one of twice
# the rank.
#
# Second: a link does not start along the best corner. With $B = 0$ its first gradient step moves $W$ by a
# multiple of $-G A^\top A$: the gradient seen through a *random* $A$. How steep is that, at the same size, next
# to the corner of Frank-Wolfe?

# %%
first, second, _ = links_of(site)
halfway = [(left / 2, right) for left, right in (first, second)]
half_rank = {}
for name, pairs in {"link 1": [first], "link 2": [second], "half-way": halfway}.items():
    s = sigma_of(pairs)
    half_rank[name] = int((s > 1e-6 * s[0]).sum())
print("ranks:", half_rank)
assert half_rank["half-way"] > method.r
G = problem.gradient(np.zeros_like(problem.target))
steepest = np.linalg.svd(G, compute_uv=False)[0]
draw, shares = np.random.default_rng(0), []
for _ in range(200):
    reads = draw.standard_normal((2, G.shape[1]))  # the A of a fresh link of rank 2
    move = G @ reads.T @ reads
    shares.append((G * move).sum() / np.linalg.norm(move) / steepest)
slope = f"{np.mean(shares):.2f} ± {np.std(shares):.2f}"
print(f"slope of a fresh link's first move: {slope} of the corner's")
assert np.mean(shares) < 1

# %% [markdown]
# Third: Frank-Wolfe takes the old away as it adds the new, by the factor $1 - \eta$; a knot only adds. So the
# analysis shows that *some* chain of low-rank steps converges, not that this one does.
#
# ## 9 · Ablate
#
# All numbers of this section are over seeds, from stored studies. To train them again:
# `studies.train("chain")`, or `lowrank-teach study chain` on the command line. They start each $A$ as a Gaussian with
# the standard deviation $1/r$, the chain of 1 (LoRA) included.
#
# ### Chain length at equal epochs (the paper's Fig. 2)
#
# Each seed is compared with itself: the same rows, in the same order, with the same head to start from. Printed are
# intervals that hold the true difference to a chain of 1 in 95 of 100 such experiments (for the loss, its fall).
# With eight of them, a single one that misses zero means little. (`wide`: one LoRA of rank 16 or 24.)

# %%
score = "accuracy"  # of the stored studies, which are on the task `rt`
by_length = {
    "cola": {int(arm): chains.values(score)[arm] for arm in chains.arms},
    "one LoRA of rank 8 M": {int(arm) // 8: wide.values(score)[arm] for arm in wide.arms},
}
style.show(
    plots.chain_length(by_length, ylabel=f"Test {score}", xlabel="Chain length M"),
    "The paper's curve rises from 1 (LoRA) to 3. Look for a trend larger than the band, "
    "and at the rival.",
    "Test accuracy against chain length 1, 2, 3, and of one LoRA of rank 16 and 24: "
    "means, bands, a dot a seed.",
)
value_of = {score: lambda r: r["test"][score], "loss": lambda r: -r["test"]["loss"]}
for arm in [("chain", "2"), ("chain", "3"), ("wide", "16"), ("wide", "24")]:
    for what, number in value_of.items():
        gains = between(arm, ("chain", "1"), number)(None).differences
        low, high = statistics.t_interval(gains)
        says = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        print(*arm, f"{what}: [{low:+.4f}, {high:+.4f}], {len(gains)} seeds: {says}")
equal = {r["parameters"]["trainable"] for r in chains.records}
assert len(equal) == 1, "every length trains the same number of parameters at a time"

# %% [markdown]
# In the paper's setting (OPT-1.3B, five seeds) the gains that its text names are 1.4 to 3.7 points, on other tasks.
# Section 12 holds the claims against these runs.
#
# ### A smaller second link (the paper's Fig. 3)

# %%
down = studies.load("step_down")
print(down.line())
smaller = {"cola-2": {int(arm): down.values(score)[arm] for arm in down.arms}}
style.show(
    plots.chain_length(
        smaller, ylabel=f"Test {score}", xlabel="Rank of the second link (first: 8)"
    ),
    "From right to left the second link shrinks. Does the score pay for it? (With the start of "
    "these runs, spread 1/r, a smaller link also begins with a larger A.)",
    "Test accuracy against the rank of the second link, 2, 4, 6, 8, with a dot a seed.",
)
contents.readable(
    down.frame(score), "down", **{f"test_{score}": "{:.4f}", "validation_loss": "{:.4f}"}
)

# %% [markdown]
# ### What it saves (the paper's Table 4)
#
# The point of a smaller link is cost. Count the operations of one step from the shapes: those of the frozen
# network and those of the adapter apart; then a run that gives three fifths of its steps to rank 8 and two fifths
# to the second rank. Beside our network stand OPT-1.3B's shapes, the paper's model.


# %%
def opt_shapes():
    layer = dict.fromkeys("qkvo", (2048, 2048)) | {"up": (8192, 2048), "down": (2048, 8192)}
    return {f"{i}.{name}": shape for i in range(24) for name, shape in layer.items()}


def step_cost(shapes, r, tokens, length):
    adapted = {site: r for site in shapes if site.endswith((".q", ".v"))}
    return measures.model_flops(shapes, adapted, tokens, length)


small = {site.name: (site.d, site.k) for site in lt.select(adapters.remove(), "all")}
networks = {BACKBONE: (small, 16 * 32, 32), "OPT-1.3B": (opt_shapes(), 8 * 256, 256)}
lines, saved = [], {}
for name, (shapes, tokens, length) in networks.items():
    cost = {r: step_cost(shapes, r, tokens, length) for r in (8, 6, 4, 2)}
    whole = {r: 0.6 * cost[8].total + 0.4 * cost[r].total for r in cost}
    saved[name] = {r: 1 - whole[r] / cost[8].total for r in cost}
    for r in cost:
        lines.append((name, r, cost[r].frozen / 1e9, cost[r].adapter / 1e9, saved[name][r]))
columns = ["network", "second rank", "frozen GFLOP/step", "adapter GFLOP/step", "saved"]
cost_table = pd.DataFrame(lines, columns=columns).set_index("network")
assert all(list(one.values()) == sorted(one.values()) for one in saved.values())
cost_table.style.format(precision=2).format("{:.4%}", subset="saved").set_uuid("cost")

# %%
style.show(
    cola.saving_bars(saved, xlabel="Operations saved, in per cent of a run at rank 8"),
    "Look at the numbers on the axis: even rank 2 saves next to nothing.",
    "Bars of the share of operations saved for second ranks 8, 6, 4, 2 in two networks, "
    "all under one per cent.",
)

# %% [markdown]
# Why so little: the adapter's share of a step is small, and the smaller link spares at most three quarters of it, in
# two fifths of the steps. The paper's numbers come from its trainer's counter. In `transformers` this is
# 6 × tokens × parameters, whatever trains:

# %%
frozen = sum(d * k for d, k in opt_shapes().values())
lora = {r: 24 * 2 * r * (2048 + 2048) for r in (8, 2)}
by_counter = 0.4 * (lora[8] - lora[2]) / (frozen + lora[8])
by_shapes = saved["OPT-1.3B"][2]
print(f"OPT-1.3B, rank 8 on W_q, W_v: {lora[8]:,} numbers beside {frozen:,} frozen ones")
print(f"saved by 8 → 2, by that counter: {by_counter:.3%}; by ours: {by_shapes:.3%}")
assert 0 < by_counter < 0.005
assert 0 < by_shapes < 0.005

# %% [markdown]
# ### What the paper leaves open
#
# Each of these is a switch of `lt.COLA`. The table says what the default is and why.

# %%
switches = {
    "restart_schedule": (False, "does the learning rate start anew at a knot?"),
    "reset_head_moments": (False, "are the head's moments reset?"),
    "keep_scaling": (True, "is s = α/r kept when the rank steps down, or α?"),
    "knots": ((), "how are epochs split?"),
    "init": ("kaiming", "how large is the random A?"),
    "merge_knots": (True, "is W written at a knot?"),
}
reasons = [
    "no: the paper resets optimizer states, and a schedule is none of them",
    "no: the paper's models have no new head; ours trains on through the knot",
    "s: so the rank alone changes; with α kept, s is four times as large at rank 2",
    "whole epochs, first links longer: 3 + 2 is the paper's; 2 + 2 + 1 our reading",
    "as in LoRA: the paper says Gaussian and no scale; one start for all methods",
    "yes, as in the paper; False keeps the links beside W: the same function",
]
defaults = lt.COLA()
assert all(getattr(defaults, name) == value for name, (value, _) in switches.items())
open_points = pd.DataFrame(
    {"question": [asked for _, asked in switches.values()], "default, and why": reasons},
    index=list(switches),
)
contents.readable(open_points, "switches")

# %% [markdown]
# The first one may matter most, for it decides how far the later links can move. It is the first suspect for the
# falling norms of section 8; section 11 asks you to test it.
#
# ## 10 · Play
#
# The toy again, now as COLA does it: each link is fitted to what the links before it left, by turns for $B$ and
# for $A$ (a *sweep* is one turn of both). All chains have the same number of sweeps. Dotted: one update of all
# the chain's rank. First a strip, then the sliders.

# %%
picture = cola.ColaChain(problem)
style.show(
    explorer.strip(picture, [{"links": 1, "r": 2}, {"links": 3, "r": 2}]),
    "One link of rank 2, then three. Look at what each knot makes possible, and at the dots.",
    "Two rows: error over sweeps with knots, and singular values of the sum beside those of "
    "the target. " + picture.words(links=3, r=2),
)

# %%
explorer.explore(picture)

# %% [markdown]
# Two things to find. At which $M$ and $r$ does the chain stop gaining on *hidden* entries? And is there a setting
# where it beats the single update of the same rank there?

# %%
grid = {(M, r): picture.solve(M, r) for M in (2, 3, 4) for r in (1, 2, 3)}
behind = {key: round(float(c.hidden[-1] - w.hidden[-1]), 3) for key, (c, w) in grid.items()}
print("chain − one update, error on hidden entries, by (M, r):", behind)
assert all(c.seen[-1] < picture.solve(1, r)[0].seen[-1] for (_, r), (c, _) in grid.items())

# %% [markdown]
# So on the toy the chain does what one link *of its rank* cannot. One update of the *whole* rank, where there is
# room for it, is a rival that the numbers above show at its best: it may change its first directions while it
# finds the others; a chain may not.
#
# ## 11 · Exercises
#
# **Recall.** Why must $B$, and not $A$, be the zero factor, or why would either do? Why may tying and extending
# not be two steps with training in between? What does Adam's first step after a knot look like in size?
#
# **Modify.** Train `lt.COLA(chain=3, restart_schedule=True)` and look at the norms of its links (section 8). Is
# the last still the smallest? Then try `keep_scaling=False` with `ranks=(8, 2)`.
#
# **Open.** COLA gives all its links the same $r$ and the same share of time. Use the toy to find a better split
# for a fixed number of sweeps. Say what you would have to measure in a real run to choose it there.
#
# ## 12 · Claims against measurements
#
# Computed from the stored studies, with the interval over seeds. *Not testable here* says why.

# %%
contents.readable(ledger.table("COLA"), "claims")

# %% [markdown]
# ## 13 · What to take along
#
# - A chain is LoRA, repeated: tune, tie, extend; memory and parameters at any time are those of one link.
# - A knot changes the form and not the function: $B = 0$, moments zero, $W$ holds the links.
# - Ranks add up: the sum uses far more directions than one link. Whether the score gains from it is another
#   question, and section 9 answers it with a band.
# - Stepping the rank down saves little, because the frozen network is nearly all of the cost.
# - The Frank-Wolfe bound holds with $D$ outside the root, and for another object than $BA$.
#
# **Next question:** a chain gives every matrix the same rank. Which directions does each one need? `04_salora`.
