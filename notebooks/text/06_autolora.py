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
# **Paper:** Zhang et al. 2024, [*AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta
# Learning*](https://arxiv.org/abs/2403.09113), NAACL.
# **You need:** [02](02_lora.ipynb), that is the layer, its rank $r$ and its scale $s = \alpha_\mathrm{LoRA} / r$.
# **Time:** about two hours to read and solve; the computing takes minutes on a laptop.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another task with
# classes, such as `cola`, `mrpc`, `qnli`, `rte`, `mnli` or the packaged film reviews `rt`.
#
# At the end you will have trained a search with two levels in a loop of your own, and you will know how to tell
# ranks that were learned from ranks that chance would give, too.

# %%
import lowrank_teach as lt
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.autolora
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: too many ranks to try
#
# LoRA gives every matrix the same rank $r$. Some may need more, others less. How many ways are there to choose a
# rank from 1 to 8 for each matrix?

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=2, seed=0)
matrices = len(lt.select(model, "qv"))
print(f"{matrices} matrices: 8^{matrices} = {8**matrices:,} ways")

# %% [markdown]
# Nobody trains them all. Three lines of work learn such a choice instead. [MAML](https://arxiv.org/abs/1703.03400)
# (2017) differentiates through a training step: it looks for a start from which one step is enough.
# [DARTS](https://arxiv.org/abs/1806.09055) (2018) gives every candidate part of a network a softmax weight, learned
# on held-out examples, and looks ahead by one *virtual step* of the network. AutoLoRA applies this scheme to the
# directions of LoRA. The third line stays on the training examples: [AdaLoRA](https://arxiv.org/abs/2303.10512)
# (2023) masks directions of small importance, and [SaLoRA](04_salora.ipynb) learns gates under a budget.
#
# ## 2 · The idea in one picture
#
# Write $BA$ as a sum of $k$ terms of rank one, and give each term a weight: $\sum_j \alpha_j\, b_j a_j$, where
# $b_j$ is a column of $B$ and $a_j$ a row of $A$. The *selection weights* $\alpha$ are the softmax of free numbers
# $\beta$, so they are positive and sum to one.

# %%
course.show(
    ch.two_levels(),
    "The search goes round in the middle: A, B and the head learn on one half of the examples, β on the other. "
    "Afterwards the directions with a large weight are counted, and plain LoRA starts afresh.",
)

# %% [markdown]
# There are two levels because the best $\beta$ depends on where the weights will go, and the weights go where
# $\beta$ lets them. A toy with one inner number $w$ and one outer number $\beta$ has two outputs, $w\alpha$ and
# $w(1-\alpha)$, of which the two halves want different values. Three ways of moving $\beta$ start from the same
# point:
#
# - **First order:** which way should $\beta$ go if $w$ stays as it is?
# - **Unrolled:** which way should it go after a virtual step $\hat w = w - \eta\, \partial L_\mathrm{train} /
#   \partial w$? This counts that $\hat w$ depends on $\beta$, with weight $\eta$.
# - **Weight 1:** the same without the factor $\eta$, as the authors' code has it.

# %%
toy = ch.Bilevel()
kinds = ("first_order", "unrolled", "betty")
paths = {kind: toy.path(kind, w=0.2, beta=-2.0, eta=0.3) for kind in kinds}
course.show(ch.toy_paths(toy, paths), ch.finding_of_paths(toy, paths))

# %% [markdown]
# At five points of the grey line, the arrows show which way each *hypergradient* (the gradient of $\beta$) pushes:

# %%
points = [-2.0, -1.0, 0.0, 0.75, 1.5]
on_line = toy.inner_solution(torch.tensor(points).numpy())
pushes = {
    kind: [toy.hypergradient(kind, w, beta, eta=0.3) for w, beta in zip(on_line, points, strict=True)]
    for kind in kinds
}
course.show(ch.toy_pushes(toy, points, pushes), ch.finding_of_pushes(points, pushes))

# %% [markdown]
# In this toy $\eta = 0.3$. In the paper $\eta = 10^{-4}$. Section 8 measures how much the virtual step matters then.
#
# ## 3 · The maths
#
# The layer is LoRA's, with a weight on each of its $k$ directions. $W_0$ is the pretrained matrix, $x$ its input:
#
# $$h = W_0 x + s \sum_{j=1}^{k} \alpha_j\, b_j\, (a_j x), \qquad \alpha = \mathrm{softmax}(\beta), \qquad
#   s = \alpha_\mathrm{LoRA} / k.$$
#
# From here on $W$ stands for all weights that train: every $A$, every $B$ and the head. $L_\mathrm{tr}$ is the loss
# on a batch of the training half, $L_\mathrm{ho}$ that on a batch of the held-out half. One step of the search is
#
# $$\hat W = W - \eta \nabla_W L_\mathrm{tr}(W, \beta), \qquad
#   \beta \leftarrow \beta - \eta_\beta \frac{d}{d\beta} L_\mathrm{ho}(\hat W, \beta), \qquad
#   W \leftarrow W - \eta \nabla_W L_\mathrm{tr}(W, \beta).$$
#
# The virtual weights $\hat W$ are only tried: the third formula starts again from $W$. At the end (§4.4 of the
# paper) matrix $l$ gets
#
# $$\mathrm{rank}_l = \#\{\, j : \alpha_{lj} \ge 1/k \,\}.$$

# %%
symbols = ["A", "B", "β (AutoLoRA)", "α_l (AutoLoRA)", "k (AutoLoRA)", "1/k", "rank_l", "Ŵ (AutoLoRA)",
           "η (AutoLoRA)", "η_β (AutoLoRA)", "∇_β (AutoLoRA)"]
course.symbols(*symbols, papers=["AutoLoRA"])

# %% [markdown]
# **The hypergradient by the chain rule, step by step.** $L_\mathrm{ho}(\hat W, \beta)$ depends on $\beta$ twice:
# directly, since $\beta$ weighs the directions, and through $\hat W$. So the derivative has two parts:
#
# $$\frac{d L_\mathrm{ho}}{d \beta} = \underbrace{\nabla_\beta L_\mathrm{ho}(\hat W, \beta)}_\text{direct}
#   + \underbrace{\Big(\frac{d \hat W}{d \beta}\Big)^{\!\top} v}_\text{implicit}, \qquad
#   v = \nabla_{\hat W} L_\mathrm{ho}(\hat W, \beta).$$
#
# How does $\hat W$ change with $\beta$? In $\hat W = W - \eta \nabla_W L_\mathrm{tr}(W, \beta)$ the first term does
# not depend on $\beta$, and the second one gives the matrix of mixed second derivatives:
#
# $$\frac{d \hat W}{d \beta} = -\eta\, \nabla_\beta \nabla_W L_\mathrm{tr}(W, \beta)
#   \quad\Longrightarrow\quad
#   \text{implicit} = -\eta\, \nabla^2_{\beta W} L_\mathrm{tr}\; v.$$
#
# This matrix has a row for each $\beta$ and a column for each weight. Its product with $v$ is a derivative along $v$:
# how does $\nabla_\beta L_\mathrm{tr}$ change if $W$ moves a little along $v$? So
#
# $$\frac{d L_\mathrm{ho}}{d \beta} \;\approx\; \text{direct} - \eta\,
#   \frac{\nabla_\beta L_\mathrm{tr}(W + \varepsilon v, \beta)
#   - \nabla_\beta L_\mathrm{tr}(W - \varepsilon v, \beta)}{2 \varepsilon}, \qquad
#   \varepsilon = 0.01 / \lVert v \rVert.$$
#
# This *finite difference* needs two more gradients and no second derivative. *Unrolled* means the exact product,
# which differentiates through the virtual step. *First order* leaves the implicit part out; the paper calls this
# ablation $\eta = 0$.
#
# **With numbers.** Let $L_\mathrm{tr} = \tfrac12 (w\beta - 1)^2$ and $L_\mathrm{ho} = \tfrac12 (w\beta - 2)^2$, at
# $w = 1$, $\beta = 2$, $\eta = 0.1$. Line by line:

# %%
w, beta, eta = 1.0, 2.0, 0.1
w_hat = w - eta * (w * beta - 1) * beta  # 1 − 0.1 · 2
direct = (w_hat * beta - 2) * w_hat  # (1.6 − 2) · 0.8
v = (w_hat * beta - 2) * beta  # (1.6 − 2) · 2
mixed = 2 * w * beta - 1  # the β-derivative of (w β − 1) β
implicit = -eta * mixed * v  # −0.1 · 3 · (−0.8)
print(f"ŵ = {w_hat:.1f}; direct {direct:.2f} + implicit {implicit:.2f} = {direct + implicit:.2f}")

w, beta = (torch.tensor(value, requires_grad=True) for value in (w, beta))
(slope,) = torch.autograd.grad((w * beta - 1) ** 2 / 2, w, create_graph=True)
w_hat = w - eta * slope  # it remembers that it was made from β
whole = torch.autograd.grad((w_hat * beta - 2) ** 2 / 2, beta)[0]
print(f"by autograd: {whole.item():.2f}")

# %% [markdown]
# Here the implicit part takes away three quarters of the direct one.
#
# **A choice of ours, to be known.** The weights are trained by AdamW, but the virtual step of the library is plain
# gradient descent, at the rate that AdamW has at that step of its schedule. The paper's formula above has such a
# plain step, too. Section 9 tries a virtual step that AdamW has rescaled.
#
# ## 4 · Predict
#
# Answer before you open. Write the last number down.

# %%
k = 8
ch.predict_start(k)
ch.predict_first_gradient(k)
ch.predict_chance(k)

# %% [markdown]
# ## 5 · The whole method in plain PyTorch
#
# The workbench gives a small pretrained network in float64, without dropout, and pairs of batches: one from the
# training half, one from the held-out half. From here on nothing in the loop is ours. First the layer:

# %%
bench = ch.Workbench(task, profile)


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


print(len(bench.pairs), "pairs of batches;", bench.classes, "classes")

# %%
def with_selection(model):
    """Freeze everything, put the layer on W_q and W_v, free the head."""
    model.requires_grad_(False)
    torch.manual_seed(1)
    layers = []
    for block in model.bert.encoder.layer:
        for name in ("query", "value"):
            layers.append(SelectedLoRA(getattr(block.attention.self, name), k, 16.0))
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


print(moved({"w": torch.tensor([1.0, 2.0])}, -0.1, [torch.tensor([1.0, 1.0])])["w"].tolist())

# %% [markdown]
# Now the hypergradient, line by line as in section 3. `P` holds a factor for each weight; without `factors` all are
# 1, which is plain gradient descent.

# %%
def hypergradient(model, W, betas, train, held_out, eta, factors=None):
    _, g = at(model, W, train, list(W.values()))
    P = factors(g) if factors else [1.0] * len(W)
    W_hat = moved(W, -eta, [p * d for p, d in zip(P, g, strict=True)])  # the virtual step: only tried
    _, both = at(model, W_hat, held_out, [*W_hat.values(), *betas])
    v = [p * d for p, d in zip(P, both[: len(W)], strict=True)]
    direct = both[len(W) :]
    eps = 0.01 / torch.stack([d.norm() for d in v]).norm()
    plus, minus = (at(model, moved(W, e, v), train, betas)[1] for e in (eps, -eps))
    return [d - eta * (p - m) / (2 * eps) for d, p, m in zip(direct, plus, minus, strict=True)]


print("gradients for one step:", 1 + 1 + 2, "for β, and one for W")

# %% [markdown]
# And the search. β moves first, then $W$ at the new β, each by its own AdamW.

# %%
def search_by_hand(rate=5e-3, eta_beta=0.05, factors=None):
    """The loss and every β after each step, and A of every layer at the start."""
    model, layers = with_selection(bench.network())
    starts, betas = [layer.lora_A.detach().clone() for layer in layers], [layer.beta for layer in layers]
    W = {n: p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("beta")}
    inner = torch.optim.AdamW(W.values(), lr=rate, weight_decay=0.01)
    outer = torch.optim.AdamW(betas, lr=eta_beta, weight_decay=0.0)
    losses, path = [], []
    for step, (train, held_out) in enumerate(bench.pairs):
        eta = inner.param_groups[0]["lr"] = rate * (1 - step / len(bench.pairs))
        found = hypergradient(model, W, betas, train, held_out, eta, factors and factors(inner, W))
        for beta, d in zip(betas, found, strict=True):
            beta.grad = d
        outer.step()
        loss, g = at(model, W, train, list(W.values()))
        for w, d in zip(W.values(), g, strict=True):
            w.grad = d
        inner.step()
        losses.append(loss)
        path.append(torch.stack([beta.detach().clone() for beta in betas]))
    return losses, path, starts


losses, path, starts = search_by_hand()
course.show(ch.by_hand(losses, path, bench.classes), ch.finding_by_hand(losses, path, bench.classes))

# %% [markdown]
# ### The same by the library
#
# The library gets the same network, batches and start of $A$. The tolerance is $10^{-7}$ here: the finite difference
# divides the rounding of float64 by $2\varepsilon$, and AdamW divides it by the size of the gradient.

# %%
their_losses, their_path, their_ranks = bench.library(starts)
ch.say_equal("losses of all steps", losses, their_losses, 1e-7)
ch.say_equal("β of all matrices after all steps", path, their_path, 1e-7)
ours = [int((beta.softmax(0) >= 1 / k).sum()) for beta in path[-1]]
print("ranks by hand:", ours, "and by the library:", list(their_ranks.values()))

# %% [markdown]
# ### Exercise 5a · The weights in the layer (4 minutes)
#
# `beta` is $(M, k)$: a row for each matrix, a column for each direction. Return what each rank-one term is
# multiplied with. The function below has two mistakes.


# %%
@course.exercise
def selection_factors(beta, lora_alpha):
    return torch.softmax(beta, 0)  # two things are wrong


selection_factors.check()

# %% [markdown]
# ### Exercise 5b · Ranks (4 minutes)
#
# Return $M$ counts: how many softmax weights of a row are at least $1/k$. A row of equal β must count $k$. Allow a
# tolerance of $10^{-6}$, so that rounding cannot turn "all equal" into "none".


# %%
@course.exercise
def ranks_from_beta(beta): ...


ranks_from_beta.check()

# %%
course.solution(ranks_from_beta)

# %% [markdown]
# ### Exercise 5c · Without second derivatives (8 minutes)
#
# The finite difference of section 3 for the toy of section 2, with $\varepsilon = \text{radius} / |v|$.
# `toy.gradients(part, w, beta)` returns $\partial L/\partial w$ and $\partial L/\partial \beta$, where `part` is
# `"train"` or `"held_out"`. The last line is nearly right.


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
# ### Exercise 5d · Debug: the exact hypergradient (6 minutes)
#
# `toy.loss(part, w, beta)` is a loss of the toy. This function runs, and gives the direct part alone. Which argument
# is missing?


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
# ### Exercise 5e · One step of the search (8 minutes)
#
# Return the new pair $(w, \beta)$ as a tensor, after one step of plain gradient descent at each level. Your
# `unrolled` gives the hypergradient.


# %%
@course.exercise
def search_step(toy, w, beta, eta, eta_beta): ...


search_step.check()

# %% [markdown]
# 150 of your steps must end where the blue path of section 2 ended:

# %%
w, beta = 0.2, -2.0
for _ in range(150):
    w, beta = (float(value) for value in search_step(toy, w, beta, 0.3, 0.5))
ch.say_equal("β and w, your steps and the path", [beta, w], [path_of[-1] for path_of in paths["unrolled"]], 1e-5)

# %% [markdown]
# ### Exercise 5f · The hand-over (3 minutes)
#
# The LoRA that follows the search has `ranks` instead of $k$ everywhere. Return two rows of scales, one entry a
# matrix. First with $s$ held at `lora_alpha / k` (the library's default: the rank changes, the step size does not).
# Then with α fixed, so that $s$ is `lora_alpha / rank` (the authors' code).


# %%
@course.exercise
def retrained_scales(ranks, lora_alpha, k): ...


retrained_scales.check()

# %% [markdown]
# ## 6 · What must be true
#
# **Nothing has changed at the start**, since $B = 0$. **Every rank is $k$**, since all weights equal $1/k$.
# **A direction starts at $1/k$ of LoRA's scale**, because the softmax shares out a sum of one. So the same step of
# $A$ and $B$ moves the output less than in LoRA.

# %%
search = ch.searched(task, backbone, profile)
rule = search.adapters.rule
ch.say_equal("outputs, with and without the branches", *ch.first_output(search), 0.0)
print("ranks before any search:", set(rule.ranks().values()))
factor = selection_factors(torch.zeros(1, k), 16.0)[0, 0]
print(f"LoRA multiplies each term by {16.0 / k:g}, the search by {factor:g}")

# %% [markdown]
# **The softmax keeps at least one direction**, whatever β is, since the largest weight is never below the mean. The
# sigmoid of the paper's ablation keeps no such promise.

# %%
harsh = torch.tensor([[-9.0] * k, [-9.0] * (k - 1) + [9.0]])
print("softmax:", ranks_from_beta(harsh).int().tolist(), " sigmoid:", ch.sigmoid_ranks(harsh))

# %% [markdown]
# **Two levels on two halves.** No example is in both, and only β is learned on the held-out half.

# %%
halves = {half: {id(row) for row in rows} for half, rows in search.streams.items()}
print("examples:", {half: len(rows) for half, rows in halves.items()},
      "in both:", len(halves["train"] & halves["held_out"]))
inner, outer = search.adapters.listed_names()
print(f"{len(inner)} tensors in W, {len(outer)} in β")

# %% [markdown]
# ## 7 · Train on a real task
#
# Ranks of directions that have learned nothing mean nothing. The paper searches "until convergence" and names no
# length; here the search is as long as the training after it. The paper's $\eta_\beta$ is $10^{-3}$; for so few
# steps the profile sets $10^{-2}$. `fit` runs the search, hands the ranks over, and trains LoRA at them from the
# start on all examples. Grey is the stored run of another seed.

# %%
method = lt.AutoLoRA(search_steps=1.0)
course.keep_reference("06_autolora", lambda: lt.fit(method, task, backbone, profile, 0))
reference, made = course.load_reference("06_autolora")
live = course.LiveCurve("autolora", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False)
live.finish(run, f"The loss begins anew after {run.seconds['steps.search']:.0f} steps of search.")
print(made)

# %% [markdown]
# The right comparison is LoRA of rank 4, which has about as many parameters and needs no search. Did the search
# learn anything?

# %%
lora = lt.fit(lt.LoRA(r=4, lora_alpha=8.0), task, backbone, profile, seed=1)
course.show(ch.training(run, lora, bench.classes), ch.finding_of_training(run, lora, bench.classes))

# %%
ch.scores({"AutoLoRA": run, "LoRA, r = 4": lora})

# %% [markdown]
# ## 8 · Look at the search
#
# **α over time.** A rank changes where a line crosses the dotted threshold.

# %%
alphas = {}  # site -> (steps, k)
for site in run.ranks:
    columns = [torch.tensor(run.series(f"alpha.{j}", site)[1]) for j in range(k)]
    alphas[site] = torch.stack(columns, dim=1).numpy()
course.show(ch.alpha_panels(alphas), ch.finding_alpha(alphas))

# %%
course.show(ch.rank_curves(alphas), ch.finding_rank_time(alphas))

# %% [markdown]
# No search can know after a few steps that half of the directions are useless. AdamW divides each gradient by its own
# size, so an entry of β moves by about $\eta_\beta$, up or down, however small its gradient is. Some rise above the
# mean, others fall below it, and about half remain.
#
# **Ranks by layer, beside the authors' own**, which are printed in their repository. This is *not like for like*:
# their network has 12 layers, ours fewer, and the tasks differ.

# %%
theirs = ch.authors()
course.show(ch.ranks_beside(run.ranks, theirs, task, k), ch.finding_beside(run.ranks, theirs))

# %% [markdown]
# ### Two counting rules
#
# The paper counts softmax weights that are at least $1/k$. The authors' search script for GLUE divides the raw
# values, which start at 1, by their sum instead. What is at least $1/k$ then lies at or above the mean. The published
# lists hold ranks and not β, so they cannot be counted again. Our β can, and so can random ones of several sizes σ.

# %%
def raw_ranks(beta):
    """The search script's rule: raw / sum ≥ 1/k, for raw values 1 + β whose sum is positive."""
    return (beta >= beta.mean(dim=1, keepdim=True) - 1e-6).sum(dim=1)


drawn = torch.Generator().manual_seed(0)
final = torch.stack([torch.tensor(alpha[-1]) for alpha in alphas.values()]).log()  # β, up to a constant a matrix
random = {sigma: sigma * torch.randn(3000, k, generator=drawn) for sigma in (0.03, 0.3, 1.0)}
counts = {"our search": (ranks_from_beta(final), raw_ranks(final)), "the authors' lists": (theirs, None)}
counts |= {f"random β, σ = {sigma:g}": (ranks_from_beta(b), raw_ranks(b)) for sigma, b in random.items()}
ch.count_table(counts)

# %% [markdown]
# The raw rule never counts fewer, because the mean of β is never above the logarithm of the mean of $e^\beta$. The
# authors' lists stand in the first column as they are; we do not know which script wrote them.
#
# ### Four hypergradients, measured
#
# How much do the four kinds differ in a real network, and what do they cost? The network of section 6 is searched by
# the cheap first order, and then all kinds get the same examples, without dropout. (With dropout, the two passes of a
# finite difference must share their masks. The library sees to that.)

# %%
search.run()
probe = ch.Probe(search, rows=8, pairs=3)  # three pairs of batches
cosines = {}
for kind in ("first_order", "finite_difference", "unrolled", "betty"):
    pairs = [(probe.gradient(kind, 1e-3, i), probe.gradient("unrolled", 1e-3, i)) for i in range(3)]
    of_pairs = [torch.cosine_similarity(one, exact, dim=0) for one, exact in pairs]
    cosines[kind] = torch.stack(of_pairs).mean().item()
cost = probe.costs(eta=1e-3)
course.show(ch.cost_and_cosine(cost, cosines), ch.finding_cost(cost, cosines))

# %% [markdown]
# Where the first-order gradient is close to the exact one, the implicit part must be small. How small is it, for
# several η?

# %%
shares = {eta: probe.implicit_share(eta) for eta in (1e-4, 1e-3, 1e-2)}
at_one = probe.implicit_share(1e-3, kind="betty")
marks = {"the paper's η": 1e-4, "this profile's η": search.config.lr, "1: the authors' code": 1.0}
fig = ch.implicit_share([*shares, 1.0], [*shares.values(), at_one], marks)
course.show(fig, ch.finding_share(shares, at_one))

# %% [markdown]
# Two consequences. Where the implicit part is so small, the paper's ablation $\eta = 0$ follows almost the same
# gradient as the method as written. And the code's weight 1 is another method, not a better approximation of the
# paper's formula. On the toy it ended nearest to the star. Whether it does better on a network was not measured
# here.
#
# ## 9 · Ablate
#
# ### Another virtual step
#
# AdamW divides the gradient of each weight by the root of its second moment, $\sqrt{\hat v} + \epsilon$. Hold these
# factors fixed as $P$. Then $\hat W = W - \eta P \nabla_W L_\mathrm{tr}$, and the chain rule puts $P$ in front of
# $v$, too. Your loop has room for this. As in AdamW's own step, $\hat v$ counts the present gradient.

# %%
def adam_factors(inner, W):
    """g -> 1 / (√v̂ + ε) for each weight: what AdamW would multiply this gradient with."""
    def factors(g):
        P = []
        for w, d in zip(W.values(), g, strict=True):
            seen = inner.state.get(w, {})
            t = float(seen.get("step", 0)) + 1
            v = 0.999 * seen.get("exp_avg_sq", 0.0) + 0.001 * d**2
            P.append(1 / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        return P
    return factors


other_losses, other_path, _ = search_by_hand(factors=adam_factors)
print(ch.compare_searches(path, other_path))
print(f"loss of the last step: {losses[-1]:.3f} (plain) and {other_losses[-1]:.3f} (rescaled)")

# %% [markdown]
# Neither of the two is "the" AutoLoRA. The paper writes the plain step, while its weights train under AdamW.
#
# ### The parts of the search, and its ranks dealt at random
#
# The paper's three ablations, plain LoRA, and a control that the paper lacks: the ranks found, *dealt at random* to
# other matrices. If it matters which matrix got which rank, this must cost something. The runs are stored
# (`lowrank-teach study autolora_parts` trains them again), and seeds pair the arms. Their searches are much shorter
# than that of section 7, so they say little about a search that has learned.

# %%
study = ch.stored_arms()
course.show(ch.arms_figure(study), ch.finding_arms(study))

# %%
ch.arms_table(study)

# %% [markdown]
# ### Do the same ranks come back?
#
# If a matrix *needed* a rank, another seed should find it again.

# %%
by_seed = ch.ranks_by_seed(study)
course.show(ch.seeds_figure(by_seed, k), ch.finding_seeds(by_seed, ch.ranks_by_seed(study, "η = 0")))

# %% [markdown]
# These searches are short. Does a search that had time to learn agree with itself? Here are two more seeds of the
# search of section 7, by the cheap first order:

# %%
again = lt.AutoLoRA(search_steps=1.0, hypergradient="first_order")
long = {"seed 1": run.ranks}
for seed in (2, 3):
    long[f"seed {seed}"] = lt.fit(again, task, backbone, profile, seed, progress=False).ranks
course.show(ch.seeds_figure(long, k), ch.finding_seeds(long))

# %% [markdown]
# For the authors' lists, section 8 has made the same test across tasks. Tasks may truly need different ranks, so a
# low agreement says less there.
#
# ### Ranks of β that nobody trained
#
# Take the random β of section 8, count them by the same rule, and draw them over the authors' ranks:

# %%
by_chance = {"the authors' lists, 8 tasks": theirs.to_numpy()}
by_chance |= {f"random β, σ = {sigma:g}": ranks_from_beta(b) for sigma, b in random.items()}
course.show(ch.histogram_of(by_chance, k), ch.finding_chance(by_chance))

# %% [markdown]
# Random β have such a histogram, too. This does not show that the search finds nothing, only that such ranks *by
# themselves* are no evidence. What counts is whether they come back with another seed, and whether they do better
# than the same ranks dealt at random.
#
# ### What does it cost?
#
# The paper's Table 5 sets AdaLoRA to 1 and counts LoRA as a grid of 16 ranks. Here one training of LoRA is 1, AdaLoRA
# is that of `peft`, and the number after "search" is its length as a share of the training.

# %%
totals = ch.procedure_costs(probe, task, backbone, share=0.25, eta_beta=0.01)
course.show(ch.cost_bars(totals), ch.finding_of_totals(totals))

# %% [markdown]
# The paper finds AutoLoRA slightly above AdaLoRA and far below the grid. The first depends on the length of the
# search, which the paper does not say. And a grid of 16 is a generous opponent: LoRA at one rank costs 1.
#
# ## 10 · Play
#
# The rule says $1/k$. What if it said something else?

# %%
cut = ch.RankThreshold({site: alpha[-1] for site, alpha in alphas.items()})
states = [{"threshold": 1 / k}, {"threshold": float(cut.sorted[matrices // 2])}]
course.show(
    course.strip(cut, states),
    " ".join(cut.words(**state) for state in states),
    "Two rows, at 1/k and far above it: a table of ranks, and all selection weights in order with the threshold.",
)

# %%
course.explore(cut)

# %% [markdown]
# At which threshold is the first matrix left without any update? How far is it from $1/k$? If a small move changes
# most ranks, the weights do not say much.
#
# ## 11 · Exercises
#
# **11a · Recall.** Why is β not learned on the examples that $A$ and $B$ learn on? Why is the largest softmax weight
# never below $1/k$? What is lost if the virtual step is detached from the graph?
#
# **11b · Predict, then run.** With `split=0.3` β sees fewer examples. Will the ranks change more than between seeds?
#
# **11c · Modify.** Train `lt.AutoLoRA(fixed_alpha=True)`. It finds the same ranks, but $s$ differs between
# matrices, as in the second row of your `retrained_scales`. Is a difference in score due to ranks or to step sizes?

# %%
held, fixed = torch.as_tensor(retrained_scales(list(run.ranks.values()), 16.0, k)).tolist()
print("s held: ", [f"{s:g}" for s in held])
print("α fixed:", [f"{s:.3g}" for s in fixed])

# %% [markdown]
# **11d · Debug.** A colleague reports: "AutoLoRA chose the full rank 8 everywhere." Which two numbers would you print
# first?
#
# **11e · Modify.** In your loop, let β learn on the *training* batch. What happens to the loss, to the ranks, and to
# the loss on the held-out batches?
#
# **11f · Open.** Design a control that could tell a search that works from noise around $1/k$, on a budget of ten
# trainings. Say beforehand what each outcome would mean.
#
# ## 12 · What the paper claims, and what was measured
#
# The paper trains RoBERTa-base on GLUE and BioNLP, RoBERTa-large on three tasks and GPT2-medium on E2E and WebNLG,
# with $k = 8$. Verdicts are computed from stored runs of this course's smaller networks, and from checks made on the
# spot. A row without runs says so.

# %%
course.claims("AutoLoRA")

# %% [markdown]
# The paper's scores are not reproduced here. [11](11_claims_ledger.ipynb) has every claim of the course.
#
# ## 13 · Common confusions
#
# - **"The search found rank 4, so half of the directions are useless."** Random β give about the same ranks.
# - **"Rank 8 everywhere is a result."** It is what the rule gives before the search has moved anything.
# - **"The virtual step trains the weights."** It is only tried. The real step starts again from $W$.
# - **"Unrolled is exact, so it must be better."** It is exact for one virtual step of size η, where little depends
#   on it.
# - **"Held-out examples are test examples."** They are half of the *training* examples. The test set is another one.
# - **"α is α."** The paper's α are selection weights. LoRA's α is `lora_alpha` here; see the [glossary](GLOSSARY.md).
#
# ## 14 · To take along
#
# - Selection weights turn a discrete choice into one that gradient descent can make, on examples of its own.
# - β is judged after a virtual step of the weights. The implicit part of its gradient has weight η and is small at
#   the η in use. The authors' weight 1 is another method.
# - The rule $\alpha \ge 1/k$ keeps all directions at the start, at least one always, and about half by chance.
# - Before you credit a search, compare it with its own ranks dealt at random, and with another seed.
#
# **Further reading.** [DARTS](https://arxiv.org/abs/1806.09055) has the virtual step and the finite difference.
# [AdaLoRA](https://arxiv.org/abs/2303.10512) allocates ranks without held-out examples, and `peft` has it. The
# authors' code is [ruz048/AutoLoRA](https://github.com/ruz048/AutoLoRA), the library's is
# [autolora.py](../lowrank_teach/methods/autolora.py).
#
# **Next question:** there are now five ways to adapt a network. Which one, on what budget?
# [07 · Side by side](07_side_by_side.ipynb)
