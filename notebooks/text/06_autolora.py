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
# # 06 · AutoLoRA
#
# **Question:** can ranks be learned on held-out data?
#
# | | |
# |---|---|
# | **Paper** | Zhang et al. 2024, [AutoLoRA](https://arxiv.org/abs/2403.09113), NAACL: matrix ranks by meta learning |
# | **You need** | [02](02_lora.ipynb): the layer, its rank $r$ and its scale $s = \alpha_\mathrm{LoRA} / r$ |
# | **Time** | about 90 minutes to read and solve; minutes of computing on a laptop, and every run is kept |
# | **Task** | SST-2, film reviews in two classes; `LOWRANK_TASK` names another (`cola`, `rte`, `mrpc`, `rt`) |

# %%
import statistics
import warnings

import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach import course
from lowrank_teach.analysis import measures, plots, toy_problems
from lowrank_teach.analysis.statistics import by_chance, mean_correlation
from lowrank_teach.course import glossary
from lowrank_teach.course.chapters import lora as lora_chapter
from lowrank_teach.experiments.fit import Rows
from lowrank_teach.gates import Selection
from lowrank_teach.methods.autolora import HYPERGRADIENTS
from lowrank_teach.reproduction import studies
from lowrank_teach.reproduction.claims import autolora_ranks
from lowrank_teach.training import config
from torch import nn

ch = course.chapters.autolora
TASK, BACKBONE, PROFILE = course.begin()

# %% [markdown]
# ## 1 · Why: too many ranks to try
#
# LoRA gives every matrix the same rank $r$. Some may need more, others less. How many ways are there to choose a
# rank from 1 to 8 for each matrix?

# %%
settings = config.train_config(PROFILE)
data = lt.load_task(TASK, n_train=settings.n_train, n_validation=64, n_test=64)
SHAPE = {"num_labels": max(1, len(data.task.labels)), "kind": data.task.kind, "seed": 0}
model, tokenizer = lt.load_backbone(BACKBONE, **SHAPE)
matrices = len(lt.select(model, "qv"))
print(f"{matrices} matrices: 8^{matrices} = {8**matrices:,} ways: too many to train")

# %% [markdown]
# A grid over them is out of the question. Two earlier ideas make such a choice by gradient descent.
# [MAML](https://arxiv.org/abs/1703.03400) (2017) differentiates through a training step, to find a start from
# which one step is enough. [DARTS](https://arxiv.org/abs/1806.09055) (2018) gives every candidate part of a network
# a softmax weight and learns these weights on held-out examples, with one *virtual step* of the network.
# AutoLoRA (2024) applies the DARTS scheme to the directions of LoRA.
# [AdaLoRA](https://arxiv.org/abs/2303.10512) (2023) reallocates ranks by importance scores on the training
# examples; [SaLoRA](04_salora.ipynb) learns gates on them.
#
# AutoLoRA makes the choice continuous: give each direction a weight, and learn the weights by gradient descent,
# on rows that the directions themselves have not learned from.
#
# ## 2 · The idea in one picture
#
# Write $BA$ as a sum of $k$ terms of rank one, $\sum_j \alpha_j\, u_j v_j^\top$. The *selection weights* $\alpha$
# are the softmax of free numbers $\beta$, so that they are positive and sum to one.

# %%
course.show(
    ch.two_levels(),
    "The search goes round in the middle: A, B learn on one half of the rows, β on the "
    "other. Afterwards the directions with a large weight are counted, and plain LoRA "
    "starts afresh.",
    "Two boxes of rows feed two boxes of parameters, which are joined by two arrows in a "
    "circle; an arrow leads from the lower one to a box that counts the ranks.",
)

# %% [markdown]
# Two levels, because they answer to each other: the best $\beta$ depends on where $W$ will go, and $W$ goes where
# $\beta$ lets it. (Here $W$ stands for all weights that train: $A$, $B$ and the head.) With one inner number $w$
# and one outer number $\beta$, that can be drawn. Two outputs are asked for, $w\alpha$ and $w(1-\alpha)$; the
# training rows and the held-out rows want different values of them.

# %%
toy = toy_problems.Bilevel()
ETA = 0.3
beta_axis, w_axis = np.linspace(-3, 3.5, 240), np.linspace(0, 3.3, 200)
paths = {
    kind: toy.path(kind, w=0.2, beta=-2.0, eta=ETA)
    for kind in ("first_order", "unrolled", "betty")
}
course.show(
    ch.two_level_surface(
        beta_axis,
        w_axis,
        toy.surface("held_out", w_axis, beta_axis),
        toy.inner_solution(beta_axis),
        paths,
        toy.best(),
    ),
    "All three paths start lower left and end on the grey line, where w has nothing left "
    "to learn. Look for how far along it each gets towards the star.",
    "Contours of the held-out loss over beta and w, a grey curve of inner solutions, "
    "three paths that end on it one after the other, and a star further down the curve.",
)
ends = {kind: float(beta[-1]) for kind, (beta, _) in paths.items()}
print({kind: f"ends at β = {end:.2f}" for kind, end in ends.items()})
print(f"lowest held-out loss on the line: β = {toy.best()[0]:.2f}")
assert ends["first_order"] < ends["unrolled"] < ends["betty"] < toy.best()[0]

# %% [markdown]
# - **First order** asks: with $w$ as it is, which way should $\beta$ go? It stops where $w$ standing still would
#   be best.
# - **Unrolled** asks it after a *virtual step* $\hat w = w - \eta\, \partial L_\mathrm{train} / \partial w$, and
#   counts that $\hat w$ depends on $\beta$. That second part has weight $\eta$.
# - **Weight 1** is what the authors' code does: the second part, without the $\eta$.
#
# Below are the arrows that moved them: the *hypergradient* of each kind, all computed by the library's own
# function. They start from points of the grey line, now seen from the side.

# %%
points = np.array([-2.0, -1.0, 0.0, 0.75, 1.5])
on_line = toy.inner_solution(points)
pushes = {
    kind: np.array(
        [toy.hypergradient(kind, w, b, ETA) for w, b in zip(on_line, points, strict=True)]
    )
    for kind in paths
}


def along_the_line(beta):
    w = torch.as_tensor(toy.inner_solution(beta))
    return toy.loss("held_out", w, torch.as_tensor(beta)).numpy()


course.show(
    ch.push_arrows(
        beta_axis, along_the_line(beta_axis), points, pushes, along_the_line(points)
    ),
    "Downhill is to the right up to the bottom of the grey curve. Look for the point from "
    "which two arrows point back while one still goes on.",
    "The held-out loss falls with beta to a flat bottom; at five points three arrows, "
    "which agree far from the bottom and disagree in sign at beta 0.75.",
)
turned = {kind: push[3] for kind, push in pushes.items()}
assert turned["betty"] < 0 < turned["unrolled"] < turned["first_order"]

# %% [markdown]
# On this toy the second-order part matters, since $\eta = 0.3$ is large and $w$ reacts strongly. The paper's
# network has $\eta = 10^{-4}$. Section 8 measures how much is left of it there.
#
# ## 3 · Maths ↔ code
#
# The paper writes $U, V$ for $B, A$ and $k$ for the width that is searched.

# %%
names = ["A", "B", *glossary.SYMBOLS]
course.symbols(*names, papers=["AutoLoRA"])

# %% [markdown]
# One step of the search, and what is read off at the end:
#
# $$\hat W = W - \eta \nabla_W L_\mathrm{train}(W, \beta), \qquad
#   \beta \leftarrow \beta - \eta_\beta \nabla_\beta L_\mathrm{held\text{-}out}(\hat W, \beta), \qquad
#   W \leftarrow W - \eta \nabla_W L_\mathrm{train}(W, \beta)$$
#
# $$\mathrm{rank}_l = \#\{\, j : \alpha_{lj} \ge 1/k \,\}$$
#
# **The chain rule, step by step.** The held-out loss depends on β twice: directly, and through $\hat W$.
#
# $$\frac{d L_\mathrm{ho}}{d \beta} = \underbrace{\partial_\beta L_\mathrm{ho}(\hat W, \beta)}_\text{direct}
#   + \Big(\frac{d \hat W}{d \beta}\Big)^{\!\top} v, \qquad v = \nabla_{\hat W} L_\mathrm{ho}(\hat W, \beta)$$
#
# Since $\hat W = W - \eta \nabla_W L_\mathrm{train}$ and $W$ itself does not depend on β,
# $d\hat W/d\beta = -\eta\, \nabla^2_{W\beta} L_\mathrm{train}$, so that
#
# $$\frac{d L_\mathrm{ho}}{d \beta} = \text{direct} - \eta\, \nabla^2_{\beta W} L_\mathrm{train}\, v
#   \;\approx\; \text{direct} - \eta\,
#   \frac{\nabla_\beta L_\mathrm{train}(W + \varepsilon v)
#   - \nabla_\beta L_\mathrm{train}(W - \varepsilon v)}{2 \varepsilon}.$$
#
# The second form is a central finite difference along $v$, with $\varepsilon = 0.01 / \lVert v \rVert$. It needs
# two more gradients and no second derivative.
#
# **With numbers.** Let $L_\mathrm{train} = \tfrac12 (w\beta - 1)^2$, $L_\mathrm{ho} = \tfrac12 (w\beta - 2)^2$,
# $w = 1$, $\beta = 2$, $\eta = 0.1$. Then $\partial_w L_\mathrm{train} = (2 - 1) \cdot 2 = 2$ and $\hat w = 0.8$. At
# $\hat w \beta = 1.6$ the direct part is $(1.6 - 2) \cdot 0.8 = -0.32$, and $v = (1.6 - 2) \cdot 2 = -0.8$. The mixed
# derivative is $\partial_\beta [(w\beta - 1)\beta] = 2 w \beta - 1 = 3$. The sum is
# $-0.32 - 0.1 \cdot 3 \cdot (-0.8) = -0.08$: the implicit part cancels three quarters of the direct one here.
#
# **One simplification of ours.** The weights are trained by AdamW, but the virtual step is plain gradient descent
# at AdamW's current (scheduled) rate. A virtual step by AdamW would be larger, and with it the implicit part. The
# paper (§4.4) gives the plain step.
#
# In the library: `AutoLoRARule.before_step` moves $\beta$, the training loop moves $W$, and `Selection.rank`
# counts.
#
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
method = config.fit_to_profile(lt.AutoLoRA(), PROFILE)
k = method.r
ch.predict_start(k)

# %%
ch.predict_first_gradient(k)

# %%
ch.predict_chance(k)

# %% [markdown]
# ## 5 · The whole method in plain PyTorch
#
# The workbench gives a small pretrained network in float64, without dropout, and pairs of batches: one from the
# training half, one from the held-out half. From here on nothing in the loop is ours. First the layer.

# %%
bench = ch.Workbench(TASK, PROFILE)


class SelectedLoRA(nn.Module):
    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear, self.s = linear, alpha / r
        self.lora_A = nn.Parameter(torch.empty(r, linear.in_features, dtype=torch.float64))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, dtype=torch.float64))
        self.beta = nn.Parameter(torch.zeros(r, dtype=torch.float64))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x):
        weighted = (x @ self.lora_A.T) * self.beta.softmax(0)  # one weight a direction
        return self.linear(x) + self.s * weighted @ self.lora_B.T


print(len(bench.pairs), "pairs of batches;", SelectedLoRA(nn.Linear(3, 4).double(), 2, 4.0))

# %%
def with_selection(model):
    """Freeze everything, put the layer on W_q and W_v, free the head."""
    model.requires_grad_(False)
    torch.manual_seed(1)
    layers = []
    for block in model.bert.encoder.layer:
        for name in ("query", "value"):
            layers.append(SelectedLoRA(getattr(block.attention.self, name), 8, 16.0))
            setattr(block.attention.self, name, layers[-1])
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return model, layers


print(len(with_selection(bench.network())[1]), "layers")

# %% [markdown]
# Two small tools: `at` gives the loss and its gradients with other weights in the network, which itself stays
# unchanged; `moved` adds a multiple of some direction to all weights.

# %%
def at(model, weights, batch, of):
    loss = torch.func.functional_call(model, weights, (), batch).loss
    return loss.item(), torch.autograd.grad(loss, of)


def moved(weights, factor, direction):
    pairs = zip(weights.items(), direction, strict=True)
    return {name: (w + factor * d).detach().requires_grad_() for (name, w), d in pairs}


print(moved({"w": torch.tensor([1.0, 2.0])}, -0.1, [torch.tensor([1.0, 1.0])]))

# %% [markdown]
# Now the search. Every step has four parts: the virtual step, the gradients there, the finite difference, and the
# two real steps.

# %%
def search_by_hand(rate=5e-3, eta_beta=0.05):
    """AutoLoRA's search: the loss and every β after each step, and A of every layer at the start."""
    model, layers = with_selection(bench.network())
    starts, betas = [layer.lora_A.detach().clone() for layer in layers], [layer.beta for layer in layers]
    W = {n: p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("beta")}
    inner = torch.optim.AdamW(W.values(), lr=rate, weight_decay=0.01)
    outer = torch.optim.AdamW(betas, lr=eta_beta, weight_decay=0.0)

    losses, path = [], []
    for step, (train, held_out) in enumerate(bench.pairs):
        eta = inner.param_groups[0]["lr"] = rate * (1 - step / len(bench.pairs))
        _, g = at(model, W, train, list(W.values()))
        W_hat = moved(W, -eta, g)  # the virtual step: only tried
        _, both = at(model, W_hat, held_out, [*W_hat.values(), *betas])
        v, direct = both[: len(W)], both[len(W) :]
        eps = 0.01 / torch.stack([d.norm() for d in v]).norm()
        plus, minus = (at(model, moved(W, e, v), train, betas)[1] for e in (eps, -eps))
        for beta, d, p, m in zip(betas, direct, plus, minus, strict=True):
            beta.grad = d - eta * (p - m) / (2 * eps)
        outer.step()  # β first
        loss, g = at(model, W, train, list(W.values()))
        for w, d in zip(W.values(), g, strict=True):
            w.grad = d
        inner.step()  # then W, at the new β
        losses.append(loss)
        path.append(torch.stack([beta.detach().clone() for beta in betas]))
    return losses, path, starts


losses, path, starts = search_by_hand()
course.show(ch.by_hand(losses, path, bench.classes), ch.finding_loss(losses, bench.classes, "loop by hand"))

# %% [markdown]
# **The same by the library.** It gets the same network, batches and start of $A$. Losses and all β must agree after
# every step. The tolerance is $10^{-7}$: the finite difference divides the rounding of float64 by $2\varepsilon$,
# and AdamW divides by the size of the gradient.

# %%
their_losses, their_path, their_ranks = bench.library(starts)
ch.say_equal("losses of all steps", losses, their_losses)
ch.say_equal("β of all matrices after all steps", torch.stack(path), torch.stack(their_path))
print("ranks:", [int((beta.softmax(0) >= 1 / 8).sum()) for beta in path[-1]], list(their_ranks.values()))

# %% [markdown]
# ### Parts of it as exercises
#
# Six short ones. The check answers with a hint and a picture of *your* result; if you leave a stub, the notebook
# goes on with the library's version.
#
# **5a · Selection weights** (4 minutes)
# - `beta` is (M, k): a row for each matrix, a column for each direction;
# - return what each rank-one term is multiplied with: the scale $s = \alpha_\mathrm{LoRA}/k$ times the softmax.


# %%
@course.exercise
def selection_factors(beta, lora_alpha):
    return torch.softmax(beta, 0)  # two things are wrong


selection_factors.check()

# %% [markdown]
# **5b · Ranks** (4 minutes)
# - return M counts: how many softmax weights of a row are at least $1/k$;
# - one row of the check is all equal: it must count $k$. (The library's own rule, shown below the check, has a
#   tolerance, so that rounding cannot turn "all equal" into "none".)


# %%
@course.exercise
def ranks_from_beta(beta): ...


ranks_from_beta.check()

# %%
course.solution(ranks_from_beta)

# %% [markdown]
# **5c · The virtual step** (2 minutes)
# - one step of plain gradient descent, as a *new* tensor: it is only tried.


# %%
@course.exercise
def take_virtual_step(W, gradient, eta): ...


take_virtual_step.check()

# %% [markdown]
# **5d · Debug: the exact hypergradient on the toy** (6 minutes)
# - `toy.loss(part, w, beta)` is a loss, part being `"train"` or `"held_out"`;
# - this runs, and gives the direct part alone. Which argument is missing?


# %%
@course.exercise
def unrolled(toy, w, beta, eta):
    w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(toy.loss("train", w, beta), w)
    virtual = w - eta * slope
    return torch.autograd.grad(toy.loss("held_out", virtual, beta), beta)[0]


unrolled.check()

# %% [markdown]
# **5e · The same without second derivatives** (8 minutes). With $v = \partial L_\mathrm{held\text{-}out} /
# \partial \hat w$ and $\varepsilon = \text{radius}/|v|$:
#
# $$\text{direct} - \eta\, \frac{g(w + \varepsilon v) - g(w - \varepsilon v)}{2 \varepsilon},
#   \qquad g = \partial L_\mathrm{train} / \partial \beta$$
#
# - `toy.gradients(part, w, beta)` returns $\partial L/\partial w$ and $\partial L/\partial \beta$.


# %%
@course.exercise
def hypergradient_fd(toy, w, beta, eta, radius):
    slope, _ = toy.gradients("train", w, beta)
    v, direct = toy.gradients("held_out", w - eta * slope, beta)
    epsilon = radius / abs(v)
    plus, minus = (toy.gradients("train", w + e * v, beta)[1] for e in (epsilon, -epsilon))
    return direct - (plus - minus) / (2 * epsilon)  # nearly


hypergradient_fd.check()

# %% [markdown]
# **5f · The hand-over** (3 minutes). The LoRA that follows has `ranks` instead of $k$ everywhere. Return two rows
# of scales, one entry a matrix:
# - first with $s$ held at `lora_alpha / k` (the library's default: rank changes, step size does not);
# - then with α fixed, so that $s$ is `lora_alpha / rank` (the authors' code).


# %%
@course.exercise
def retrained_scales(ranks, lora_alpha, k): ...


retrained_scales.check()

# %% [markdown]
# ## 6 · Sanity: six things that must be true
#
# Put the searched branches on $W_q$ and $W_v$ of every layer.

# %%
rows = Rows(data, tokenizer, settings, False)
batch = rows.collate(rows.train[: settings.batch_size])
with torch.no_grad():
    plain = model(**batch).logits
quick = lt.AutoLoRA(retrain=False, hypergradient="first_order")
found = lt.adapt(model, config.fit_to_profile(quick, PROFILE), seed=0)
found.plan()

# %% [markdown]
# **Unchanged at the start**, since $B = 0$. **Every rank is $k$**, since all weights equal $1/k$: the trap.
# **The branch starts at $1/k$ of LoRA's scale**: a softmax shares out a sum of one, so each term gets $s/k$, and
# at LoRA's learning rate a search learns more slowly than LoRA does.

# %%
with torch.no_grad():
    adapted = model(**batch).logits
print("largest change of an output:", float((adapted - plain).abs().max()))
print("ranks before any search:", found.rule.ranks())
factor = selection_factors(torch.zeros(1, k), method.lora_alpha)[0, 0]
print(f"LoRA multiplies each term by {method.lora_alpha / k:g}, the search by {factor:g}")
assert torch.equal(adapted, plain)
assert set(found.rule.ranks().values()) == {k}
assert all(torch.allclose(one.scaling * one.gate(), factor) for one in found.values())

# %% [markdown]
# **At least one direction is kept by the softmax**, whatever β is, since the largest weight is never below the
# mean. The sigmoid of the ablation keeps no such promise.

# %%
harsh = torch.tensor([[-9.0] * k, [-9.0] * (k - 1) + [9.0]])
by_sigmoid = Selection(k, "sigmoid")
by_sigmoid.beta.data = harsh[0]
print("softmax:", [int(rank) for rank in ranks_from_beta(harsh)])
print("sigmoid:", by_sigmoid.rank())
assert ranks_from_beta(harsh).min() >= 1
assert by_sigmoid.rank() == 0

# %% [markdown]
# **Two kinds of parameters**, $W$ (the $A$'s, $B$'s and the head) and β, **on two halves of the rows**: no row is
# in both.

# %%
search = lt.Trainer(found, rows.train, rows.collate, settings, seed=0)
halves = {half: {id(row) for row in part} for half, part in search.streams.items()}
print("rows:", {half: len(part) for half, part in halves.items()})
must, may = found.listed_names()
print(f"{len(must)} tensors in W, {len(may)} in β: {sorted(may)[0]}, …")
assert not halves["train"] & halves["held_out"]
assert sum(map(len, halves.values())) == len(rows.train)
assert all(name.endswith("beta") for name in may)

# %% [markdown]
# ## 7 · Train on a real task
#
# A search must be long enough for $\beta$ to move. AdamW moves each entry by at most about $\eta_\beta$ a step;
# the paper searches "until convergence" at $10^{-3}$. For so few steps as here, profiles raise it and search for
# a share of the training's own steps.
#
# `fit` runs the search, hands the ranks over, and trains LoRA at them from the start on all rows. The curve holds
# both stages; grey is the stored reference with another seed.

# %%
course.keep_reference(
    "06_autolora", lambda: lt.fit(lt.AutoLoRA(), TASK, BACKBONE, PROFILE, 0)
)  # `make notebooks`
reference, made = course.load_reference("06_autolora")
print(made)
live = course.LiveCurve("autolora", reference)
print("set by the profile:", config.SHORT_TRAINING[PROFILE].get("autolora", {}))
run = lt.fit(
    lt.AutoLoRA(), TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], progress=False
)
live.finish(
    run, "First the search, then LoRA from its start: look for where the loss begins anew."
)

# %%
name, value = run.score("test")
searched, trained = run.seconds["steps.search"], run.seconds["steps.training"]
print(f"test {name} {value:.3f}; {searched:.0f} steps of search, {trained:.0f} of training")
print("ranks:", run.ranks)
assert all(1 <= rank <= k for rank in run.ranks.values())
assert len(run.series("loss")[1]) == searched + trained

# %% [markdown]
# ## 8 · Look at the search
#
# **α over time.** Look for lines that cross the dotted threshold: there a rank changes. **When are the ranks
# decided?** The second picture applies the rule after every step of the search; before it, all ranks are $k$.

# %%
weights_at = {
    site: np.stack([run.series(f"alpha.{j}", site)[1] for j in range(k)], axis=1)
    for site in run.ranks
}  # site -> (steps, k)
steps = run.series("alpha.0", "0.q")[0]
last = max(int(site.split(".")[0]) for site in run.ranks)
shown = {site: weights_at[site] for site in ("0.q", "0.v", f"{last}.q", f"{last}.v")}
course.show(
    plots.alpha_over_time(steps, shown, 1 / k),
    "Solid blue is kept at the end, dashed orange is dropped. " + ch.finding_alpha(shown),
    "Eight selection weights against the search step in four panels, first and last "
    "layer, q and v; they start together at one eighth and spread out around it.",
)
sums = np.concatenate([alpha.sum(1) for alpha in weights_at.values()])
widest = np.concatenate(list(weights_at.values()))
print(f"weights from {widest.min():.3f} to {widest.max():.3f}; 1/k is {1 / k:.3f}")
assert np.allclose(sums, 1, atol=1e-4)

# %%
after = {site: (alpha >= 1 / k - 1e-6).sum(1) for site, alpha in weights_at.items()}
counts = np.array(list(after.values()))  # (matrices, steps)
over_time = {
    "mean": [k, *counts.mean(0)],
    "largest": [k, *counts.max(0)],
    "smallest": [k, *counts.min(0)],
}
course.show(
    plots.learning_curves(
        {what: ([0, *steps], values) for what, values in over_time.items()},
        xlabel="Search step",
        ylabel="Rank of a matrix",
    ),
    ch.finding_rank_time(counts, k),
    "Mean, largest and smallest rank against the search step; all start at eight, drop "
    "within a few steps and then wander around four.",
)
assert {site: int(r[-1]) for site, r in after.items()} == run.ranks
assert counts[:, 3].mean() < 0.75 * k, "decided after four steps?"

# %% [markdown]
# No search can know after a few steps that half of the directions are useless. The count falls because AdamW
# divides each gradient by its own size: an entry moves by about $\eta_\beta$, up or down, however small its
# gradient. Some rise above the mean, the others fall below it, and about half remain. What matters is what comes
# after.
#
# **Ranks by layer, beside the authors' own.** Theirs are printed in their repository; the paper's Fig. 3 shows
# such maps. *Not like for like:* their network has 12 layers, ours fewer, and the tasks differ.

# %%
theirs, source = autolora_ranks()
print(source)
some = {task: theirs[task] for task in ("QQP", "MNLI", "CoLA")}
beside = {f"ours: {TASK}": run.ranks, **some}
course.show(
    plots.rank_heatmaps(beside, max_rank=k),
    "Upper left ours (hatched: layers that our network does not have), then three of the "
    "authors' tasks. If ranks told what a layer needs, some columns should look alike.",
    "Four tables of ranks, W_q and W_v by layer: ours with few layers, the authors' with "
    "twelve; most cells lie between two and five.",
)
print("mean ranks:", pd.DataFrame(beside).mean().round(2).to_dict())
assert all(1 <= rank <= k for ranks in theirs.values() for rank in ranks.values())

# %% [markdown]
# **Two counting rules.** The paper counts softmax weights that are at least $1/k$. The authors' search script for
# GLUE divides the raw values by their sum instead. Their published lists hold ranks and not β, so they cannot be
# counted again; our own weights can. The mean of β is never above the log of the mean of $e^\beta$, so the raw rule
# never counts fewer.

# %%
counted = ch.both_counts({site: alpha[-1] for site, alpha in weights_at.items()})
table = pd.DataFrame(counted)
print(f"softmax rule: {table.softmax.sum()} in all; raw rule: {table.raw.sum()}")
print(f"{(table.raw != table.softmax).sum()} of {len(table)} matrices get another rank by the raw rule")
assert (table.raw >= table.softmax).all(), "the raw rule counted fewer"

# %% [markdown]
# ### Four hypergradients, measured
#
# The same question on the real network: how much do the four kinds differ, and what do they cost? We take a
# network in the middle of a search (a cheap first-order one) and give all kinds the same rows. `unrolled` is
# exact: it differentiates through the virtual step. Dropout is off; with it on, the two perturbed passes of a
# finite difference must share their masks, or their difference is noise (the library sees to that).

# %%
outcome = search.run()
probe = ch.Probe(search, rows=8, pairs=3)
size = float(probe.gradient("unrolled", eta=1e-3).norm())
print(f"after {outcome.step} steps: ‖∇_β‖ = {size:.1e} over {matrices * k} entries")

# %%
cosines = probe.cosines(eta=1e-3)
cost = probe.costs(eta=1e-3)
words = [f"{kind} {cost[kind]:.1f} × and {cosines[kind]:+.4f}" for kind in HYPERGRADIENTS]
print("cost and cosine to exact:", *words, sep="\n")
assert min(cosines["first_order"], cosines["finite_difference"]) > 0.9
assert cosines["betty"] < cosines["finite_difference"]
assert cost["first_order"] < min(cost["unrolled"], cost["finite_difference"])

# %%
course.show(
    ch.cost_and_cosine(cost, cosines),
    ch.finding_cost(cost, cosines),
    "Two bar charts, cost and cosine, a bar for each kind. " + "; ".join(words) + ".",
)

# %% [markdown]
# The first-order gradient is almost the exact one, at a fraction of its cost. So the second-order part must be
# tiny. The gradient has two parts, $\nabla_\beta L(\hat W, \beta)$ with $\hat W$ held fixed (*direct*), and what
# comes through $\hat W$ (*implicit*). Their ratio, for several η:

# %%
etas = (1e-4, 1e-3, 1e-2)
ratios = [probe.implicit_share(eta) for eta in etas]
at_one = probe.implicit_share(1e-3, kind="betty")
print({f"η = {eta:g}": f"{ratio:.1e}" for eta, ratio in zip(etas, ratios, strict=True)})
print(f"the authors' code, weight 1: {at_one:.1e}")
assert ratios[0] < 0.1, "small at the paper's η"
assert 5 < ratios[1] / ratios[0] < 15, "proportional to η"
assert at_one > 100 * ratios[1]

# %%
peak = config.PROFILES[PROFILE].lr
marks = {"the paper's η": 1e-4, "this profile's peak η": peak, "1: the authors' code": 1.0}
course.show(
    ch.implicit_share([*etas, 1.0], [*ratios, at_one], marks),
    "The implicit part grows in proportion to its weight: η, or 1 in the authors' code (whose "
    "virtual step has η = 0.001 here). How far below the direct part is it at the η in use?",
    "Ratio of implicit to direct part rising in a straight line on log axes with the "
    "weight; three upright lines mark the weights in use.",
)

# %% [markdown]
# Two consequences.
#
# - The paper's ablation "η = 0" can hardly differ from the method as written: at the paper's η they follow
#   almost the same gradient. Section 9 looks.
# - The code's weight 1 is a different method, not a better approximation of the paper's equation: its direction
#   differs. It would be right if $W$ answered every push one for one. On the toy it ended nearest to the star;
#   whether it does better on a network was not measured here.
#
# ## 9 · Ablate
#
# The paper's three ablations, our control (the ranks that were found, *dealt at random* to other matrices) and
# plain LoRA. These runs are stored; `studies.train("autolora_parts")`, or `lowrank-teach study autolora_parts`,
# trains them again. Seeds pair the arms: same rows, same order, same start. The differences seed by seed, printed
# below the picture, are what is left when all that is taken out. Read the control first: if it matters *which*
# matrix got which rank, dealing them at random must cost something.

# %%
study = studies.load("autolora_parts")
print(study.line())
metric = next(iter(study.records[0]["test"]))
scores = study.values(metric)
course.show(
    ch.arms(scores, xlabel=f"Test {metric} (stored study)", first="AutoLoRA"),
    ch.finding_arms(scores),
    "Six rows of dots: "
    + ", ".join(f"{arm} {np.mean(values):.3f}" for arm, values in scores.items())
    + "; a dashed line at AutoLoRA's mean.",
)
for arm in study.arms[1:]:
    gaps = np.array(study.differences("AutoLoRA", arm, metric))
    outcomes = f"better {sum(gaps > 0)}, worse {sum(gaps < 0)}, of {len(gaps)} seeds"
    print(f"AutoLoRA − {arm:<22} {gaps.mean():+.4f}; {outcomes}")

# %% [markdown]
# **η = 0.** Section 8 said that it can hardly differ. Does it find the same ranks? And **is what is found the same
# every time?** If a matrix *needed* a rank, another seed should find it again. Each seed starts other $A$'s and
# another head, so directions cannot be compared, but ranks can.

# %%
seeds = sorted({record["seed"] for record in study.records})


def ranks_of(arm):
    return pd.DataFrame({f"seed {n}": study.by_site(arm, "rank", n) for n in seeds})


by_seed = ranks_of("AutoLoRA")
off = (by_seed - ranks_of("η = 0")).abs().to_numpy()
print(f"η = 0 finds {(off == 0).sum()} of {off.size} ranks alike, over {len(seeds)} seeds")
assert off.mean() < 0.5, "the two searches follow almost the same gradient"
course.show(
    plots.rank_heatmaps(by_seed.to_dict(), max_rank=k),
    f"{int((by_seed.nunique(axis=1) == 1).sum())} of {len(by_seed)} matrices get the same rank with "
    f"every one of the {len(seeds)} seeds.",
    f"One small table of ranks (W_q and W_v by layer) for each of {len(seeds)} seeds.",
)

# %%
found_again = mean_correlation(by_seed)
low, high = by_chance(by_seed)
print(f"mean correlation between seeds: {found_again:+.2f}")
print(f"the same ranks dealt at random: {low:+.2f} to {high:+.2f} (95 %)")
print("beyond chance" if found_again > high else "not beyond chance, on so few matrices")
assert len(seeds) < 2 or (low < 0 < high and found_again < 0.95), "the same every time?"

# %% [markdown]
# The authors' lists can be held to the same test, across tasks. (Tasks may need different ranks, so a low
# agreement there is weaker evidence than between seeds.)

# %%
GLUE = ("MRPC", "QQP", "QNLI", "MNLI", "CoLA", "SST-2", "RTE", "STS-B")
lists = pd.DataFrame({task: theirs[task] for task in GLUE})
course.show(
    ch.correlations(lists.corr().to_numpy(), GLUE),
    f"The mean correlation between two tasks is {mean_correlation(lists):+.2f}: red pairs want large "
    "ranks at the same matrices, blue pairs at others.",
    "Eight by eight table of correlations between rank lists, both signs, mostly pale.",
)
print(f"mean correlation between tasks: {mean_correlation(lists):+.2f}")
assert abs(mean_correlation(lists)) < 0.3, "no pattern that all tasks share"

# %% [markdown]
# ### The control that the paper lacks: random β
#
# Take β that was *never trained*, only perturbed at random, and apply the same rule. The size σ of the
# perturbation is the one thing to choose.

# %%
SIGMAS = (0.03, 0.3, 1.0)
random_beta = torch.Generator().manual_seed(0)
chance = {}
for sigma in SIGMAS:
    betas_drawn = sigma * torch.randn(3000, k, generator=random_beta)
    chance[sigma] = ranks_from_beta(betas_drawn).numpy().astype(int)
listed = lists.to_numpy().ravel()
compared = {"authors' lists, 8 GLUE tasks": listed} | {
    f"random β, σ = {sigma:g}": drawn for sigma, drawn in chance.items()
}
for label, drawn in compared.items():
    print(f"{label:<30} mean {drawn.mean():.2f}, standard deviation {drawn.std():.2f}")

# %%
shares = {name: np.bincount(r, minlength=k + 1) / len(r) for name, r in compared.items()}
course.show(
    ch.rank_histogram(shares, bars="authors' lists, 8 GLUE tasks"),
    "Bars: ranks that the authors' search found. Lines: ranks from β that nobody trained. "
    "Is there a line that follows the bars?",
    "Histogram of ranks nought to eight, highest at four, with three lines from random "
    "beta; the lines peak at three or four and cover about the same ranks.",
)
above = {sigma: f"{drawn.mean() / k:.0%}" for sigma, drawn in chance.items()}
print("entries at 1/k or above, of random β:", above)
assert 0.45 < chance[0.03].mean() / k < 0.52, "about half of the entries"
assert chance[1.0].mean() < listed.mean() < chance[0.03].mean()

# %% [markdown]
# Untrained β explain the histogram: its mean, its width, and that no rank is 0. That does not show that the
# search finds nothing. It shows that such ranks *by themselves* are no evidence that it does: what counts is
# whether they come back with another seed, and whether they beat the same ranks dealt at random.
#
# ### What it costs
#
# The paper's Table 5 sets AdaLoRA to 1, and counts LoRA as a grid of 16 ranks. AdaLoRA is another way to learn
# ranks: it starts wide and masks directions of small importance at every step. We take `peft`'s.

# %%
fresh = lt.load_backbone(BACKBONE, **SHAPE)[0]
lora = lt.adapt(fresh, lt.LoRA(r=4, lora_alpha=8.0), seed=0)
timed = {
    "LoRA": measures.training_step(lora.model, probe.pairs[0][0]),
    "search, unrolled": probe.search_step("unrolled", 1e-4, method.eta_beta),
    "search, first order": probe.search_step("first_order", 1e-4, method.eta_beta),
}
print("a search step is one step of β, then one of W:", list(timed)[1:])

# %%
try:
    from peft import AdaLoraConfig, get_peft_model
except ImportError:
    print('without peft AdaLoRA is left out: pip install "lowrank-teach[test]"')
else:
    # peft asks transformers for this by its old name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    masks = {"init_r": k, "target_r": 4, "tinit": 0, "tfinal": 0, "total_step": 1000}
    chosen = AdaLoraConfig(target_modules=["query", "value"], **masks)
    ada = get_peft_model(lt.load_backbone(BACKBONE, **SHAPE)[0], chosen)
    for part in found.head_names:
        ada.get_base_model().get_parameter(part).requires_grad_(True)
    allocate = ada.base_model.update_and_allocate
    timed["AdaLoRA"] = measures.training_step(ada, probe.pairs[0][0], after=allocate)
    print("AdaLoRA of peft: width", masks["init_r"], "masked down to", masks["target_r"])

# %%
taken = measures.in_turns(timed, repeats=4)
step_cost = {label: statistics.median(of) for label, of in taken.items()}
print("ms a step:", {label: round(1000 * cost_of) for label, cost_of in step_cost.items()})
one, share = step_cost["LoRA"], method.search_steps
totals = {
    "LoRA, one rank": one,
    f"AutoLoRA, search {share:g}": share * step_cost["search, unrolled"] + one,
    "AutoLoRA, first order, search 1": step_cost["search, first order"] + one,
    "AutoLoRA, search 1": step_cost["search, unrolled"] + one,
    "LoRA, grid of 16 ranks": 16 * one,
} | {label: step_cost[label] for label in step_cost if label == "AdaLoRA"}

# %%
base = "AdaLoRA" if "AdaLoRA" in totals else "LoRA, one rank"
order = sorted(totals, key=lambda label: totals[label])
relative = {label: totals[label] / totals[base] for label in order}
course.show(
    lora_chapter.ratio_bars(relative, xlabel=f"Time of the whole procedure ({base}: 1, dashed)"),
    "The number after 'search' is its length, as a share of the training's steps. Where "
    "between AdaLoRA and the grid does AutoLoRA stand?",
    "Bars: " + ", ".join(f"{label} {ratio:.2f}" for label, ratio in relative.items()) + ".",
)
assert relative["AutoLoRA, search 1"] < relative["LoRA, grid of 16 ranks"]
assert relative["LoRA, one rank"] < relative["AutoLoRA, first order, search 1"]
assert relative["AutoLoRA, search 1"] > 1.5, "a long search is no small addition"

# %% [markdown]
# The paper finds AutoLoRA slightly above AdaLoRA, and far below the grid. The second half holds here at any
# length of the search. The first depends on that length, which the paper does not say: a second-order step takes
# several gradients, so a search as long as the training costs a multiple. And a grid of 16 is a generous
# opponent: LoRA at one rank, chosen beforehand, costs a fraction of all of these.
#
# ## 10 · Play
#
# **Move the threshold.** The rule says $1/k$. What if it said something else? The weights are those at the end of
# the search above.

# %%
final = {site: alpha[-1] for site, alpha in weights_at.items()}
cut = ch.RankThreshold(final)
few = float(cut.sorted[matrices // 2])  # fewer weights above it than matrices
states = [{"threshold": threshold} for threshold in (1 / k, few)]
course.show(
    course.strip(cut, states),
    "At 1/k, and high above it. Look for matrices that drop to 0 when the threshold rises.",
    "Two rows: a table of ranks, and all selection weights in order with a dashed "
    "threshold. "
    + cut.words(**states[0]),
)
assert cut.ranks(1 / k) == run.ranks
assert min(cut.ranks(few).values()) == 0 < min(cut.ranks(1 / k).values())

# %%
course.explore(cut)

# %% [markdown]
# Find the threshold at which the first matrix is left without any update, and the one at which all still have
# rank 8. How far are they from $1/k$? If a small move changes most ranks, the weights do not say much.
#
# ## 11 · Exercises
#
# **Recall.** Why is β not learned on the rows that $A$ and $B$ learn on? Why is the largest softmax weight never
# below $1/k$? What is lost if the virtual step is detached from the graph?
#
# **Predict, then run.** `split=0.3`: the search has more rows for the weights, fewer for β. Will the ranks
# change more than from one seed to the next?
#
# **Modify.** Train `lt.AutoLoRA(fixed_alpha=True)`: the same ranks, but $s = \alpha/r$ differs between matrices.
# Compare both rows of `retrained_scales`: is a better score due to ranks or to step sizes?
#
# **Debug.** A colleague reports "AutoLoRA chose full rank 8 everywhere". Which two lines would you print first?
#
# **Open.** Design a control that could tell a search that works from noise around $1/k$, on a budget of ten
# trainings. Say beforehand what each outcome would mean.

# %%
scales = retrained_scales(list(run.ranks.values()), method.lora_alpha, k)
print("s held: ", [f"{s:g}" for s in np.asarray(scales)[0]])
print("α fixed:", [f"{s:.3g}" for s in np.asarray(scales)[1]])

# %% [markdown]
# ## 12 · What the paper claims and what was measured
#
# Computed from the stored studies; a verdict is printed only where there are runs enough.

# %%
course.claims("AutoLoRA")

# %% [markdown]
# ## 13 · Common confusions
#
# - *"The search found rank 4, so half of the directions are useless."* Random β give about the same ranks.
# - *"Rank 8 everywhere is a result."* It is what the rule gives before the search has moved anything.
# - *"The virtual step trains the weights."* It is only tried: the real step starts again from $W$.
# - *"Held-out examples are test examples."* They are half of the training examples; the test set is another.
#
# ## 14 · What to take along
#
# - Selection weights make a discrete choice (which directions?) one that gradient descent can make, on rows of
#   its own.
# - Two levels: β should be judged after $W$ has reacted. The virtual step is the cheapest form of that, and its
#   second-order part has weight η.
# - At the η in use that part is tiny: "η = 0" follows almost the same gradient, and the authors' weight 1 is
#   another method.
# - The rule α ≥ 1/k keeps at least one direction, keeps all at the start, and about half of them by chance.
# - Before crediting a search, compare with its ranks dealt at random, and with another seed.
#
# **Further reading:** [MAML](https://arxiv.org/abs/1703.03400), [DARTS](https://arxiv.org/abs/1806.09055),
# [AdaLoRA](https://arxiv.org/abs/2303.10512), the authors'
# [code](https://github.com/ruz048/AutoLoRA).
#
# **Next question:** all methods on one budget: which one? `07_side_by_side`.
