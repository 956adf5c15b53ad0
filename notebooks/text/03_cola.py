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
# **Paper:** Xia, Qin and Hazan 2024, [*Chain of LoRA: Efficient Fine-tuning of Language Models via Residual
# Learning*](https://arxiv.org/abs/2401.04151).
# **You need:** [02](02_lora.ipynb), that is the layer and its scale $s = \alpha / r$, and singular values from
# [01](01_why_low_rank.ipynb).
# **Time:** about two hours to read and solve; the computing takes minutes on a laptop, and every run is kept.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another task with
# classes, such as `rte`, `mrpc`, `qnli` or the packaged film reviews `rt`. (There is a data set `cola`, too; it
# only shares the method's name.)
#
# At the end you will have trained a chain in a loop of your own, and you will know which part of the question has
# the answer yes.

# %%
import copy

import lowrank_teach as lt
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.cola
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: rank costs memory
#
# A LoRA of rank $r$ changes a matrix along at most $r$ directions, however long it trains. How many of the
# directions of a matrix is that, and what does it cost to have more?

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=2, seed=0)
q = lt.select(model, "q")[0]
for r in (8, 24):
    numbers = 4 * r * (q.d + q.k)  # each trained number has a value, a gradient and two moments of Adam
    share = r / min(q.d, q.k)
    print(f"rank {r:2}: {share:.1%} of the directions of W_q ({q.d} × {q.k}); {numbers:,} numbers in memory")

# %% [markdown]
# Memory grows with $r$. COLA keeps $r$ small and trains several updates *one after the other*.
#
# It was not the first to do so. [ReLoRA](https://arxiv.org/abs/2307.05695) (Lialin et al. 2023) merges and restarts
# a low-rank branch to *pretrain* networks. COLA brings the idea to fine-tuning, and compares it with an old
# method of optimization, that of Frank and Wolfe. Later, [GaLore](https://arxiv.org/abs/2403.03507) trained $W$
# itself and compressed the gradient instead, and [RAC-LoRA](https://arxiv.org/abs/2410.08305) asked when such chains
# converge. COLA reports gains over LoRA on OPT-1.3B such as 3.66 points on WSC, 1.38 on BoolQ and 1.66 on RTE.
#
# ## 2 · The idea in one picture
#
# There are three verbs. *Tune* a low-rank link, as LoRA does. *Tie a knot*: add the link to $W$. *Extend* the chain
# by a new link that starts as every LoRA starts. Then tune again.

# %%
course.show(ch.chain_idea(), ch.finding_of_idea(q))

# %% [markdown]
# ## 3 · The maths
#
# $W$ is the pretrained matrix, of shape $d \times k$. Link $j$ consists of $A_j$ ($r \times k$) and $B_j$
# ($d \times r$), and $s = \alpha / r$ is the scale of [02](02_lora.ipynb). While link $i$ trains, the layer computes
#
# $$h = \Big(\underbrace{W + \sum_{j < i} s\, B_j A_j}_{W',\ \text{frozen}}\Big)\, x + s\, B_i A_i\, x .$$
#
# **Each link learns a residual.** Let $L$ be the loss. Link $i$ minimises $L(W' + s B_i A_i)$ over $A_i$ and $B_i$
# only, so it learns what the links before it have left over. This is the "residual learning" of the paper's title.
#
# **A knot does not change the function.** The new $B_{i+1}$ is zero. So
# $W' + s B_i A_i + s B_{i+1} A_{i+1} = W' + s B_i A_i$: the same matrix before and after the knot.
#
# **Why is $A$ random, then?** By the chain rule $\partial L / \partial B = s\, g_W A^\top$ and
# $\partial L / \partial A = s\, B^\top g_W$, with $g_W = \partial L / \partial W$. With $B = 0$ the gradient of $A$
# is zero. If $A$ were zero as well, the gradient of $B$ would be zero, too, and the link would never start.
#
# **Ranks add up.** $\operatorname{rank}(X + Y) \le \operatorname{rank}(X) + \operatorname{rank}(Y)$, so $M$ links
# have at most rank $M r$ together. A smaller rank is possible, if two links use the same directions.

# %%
course.symbols("M (COLA)", "link", "knot", "W′", "Σ s B A", papers=("COLA",))

# %% [markdown]
# **With numbers.** Take $d = k = 2$, $r = 1$ and $s = 1$. The first link is $B_1 = (1\;\,0)^\top$,
# $A_1 = (1\;\,2)$, the second $B_2 = (0\;\,1)^\top$, $A_2 = (3\;\,1)$. Each product has rank 1:

# %%
first = torch.tensor([[1.0], [0.0]]) @ torch.tensor([[1.0, 2.0]])
second = torch.tensor([[0.0], [1.0]]) @ torch.tensor([[3.0, 1.0]])
for name, matrix in {"link 1": first, "link 2": second, "their sum": first + second}.items():
    print(f"{name}: {matrix.tolist()}, rank {int(torch.linalg.matrix_rank(matrix))}")

# %% [markdown]
# ### Exercise 3a · How much rank? (2 minutes)
#
# `ranks` has one rank for each link; the matrix is $d \times k$. Return the largest rank that the sum of all links
# can have.


# %%
@course.exercise
def chain_rank(ranks, d, k): ...


chain_rank.check()

# %% [markdown]
# ## 4 · Predict
#
# Say your answer aloud before you open it.

# %%
ch.predict_third_link(q)
ch.predict_knot()
ch.predict_rank()
ch.predict_saving()

# %% [markdown]
# ## 5 · The whole method in thirty lines
#
# The next cell loads a pretrained network of Hugging Face's `transformers` in float64, in which rounding hides
# nothing, and the batches of a short training. After that, nothing in the loop is ours.

# %%
STEPS, KNOTS, R, ALPHA, RATE = 12, (4, 8), 8, 16.0, 5e-3
settings = lt.train_config("tiny", steps=STEPS, batch_size=8, lr=RATE, warmup=0.0, max_grad_norm=0.0)
lesson = ch.lesson(task, "minilm-l3", settings)
print(f"{type(lesson.network()).__name__}, {len(lesson.batches)} batches of")
print({name: tuple(tensor.shape) for name, tensor in lesson.batches[0].items()})

# %% [markdown]
# First the layer, with a start for its link. The paper says that a new $A$ is Gaussian, and gives no scale. Here
# every method of the course starts alike, as LoRA's own code does: numbers spread evenly between $\pm 1/\sqrt k$.

# %%
class Chained(nn.Module):
    def __init__(self, linear, draw):
        super().__init__()
        self.linear, self.s = linear, ALPHA / R
        self.lora_A = nn.Parameter(fresh_A(linear.in_features, draw))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, R).double())

    def forward(self, x):
        return self.linear(x) + self.s * (x @ self.lora_A.T) @ self.lora_B.T


def fresh_A(k, draw):
    return ((torch.rand(R, k, generator=draw) * 2 - 1) / k**0.5).double()


layer = Chained(nn.Linear(384, 100).double(), torch.Generator().manual_seed(0))
print(f"standard deviation of A: {layer.lora_A.std():.4f}; of such numbers: 1 / √(3k) = {(3 * 384) ** -0.5:.4f}")

# %%
def with_links(model, draw):
    """Freeze everything, put the layer on W_q and W_v, free the head."""
    model.requires_grad_(False)
    layers = []
    for block in model.bert.encoder.layer:
        for name in ("query", "value"):
            layers.append(Chained(getattr(block.attention.self, name), draw))
            setattr(block.attention.self, name, layers[-1])
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return layers


print(len(with_links(lesson.network(), torch.Generator())), "layers")

# %% [markdown]
# Now the two verbs that LoRA does not have. You write what stands at the heart of both.
#
# ### Exercise 5a · Tie a knot (3 minutes)
#
# Return the new frozen matrix, $d \times k$, as a new tensor. Remember that the forward pass scales the link.


# %%
@course.exercise
def cola_tie(W, lora_A, lora_B, lora_alpha):
    return W  # the link is lost: add it


cola_tie.check()

# %% [markdown]
# ### Exercise 5b · Extend (3 minutes)
#
# `gaussian` ($r \times k$) is a fresh random draw; `lora_A` and `lora_B` belong to the link just tied. Choose the
# new $A$ and the new $B$, and return them side by side. The function of the network must stay as it was.


# %%
@course.exercise
def cola_extend(lora_A, lora_B, gaussian):
    new_A, new_B = lora_A, lora_B  # nearly: which of the two is to be what?
    return torch.cat([new_A, new_B.T], 1)  # (r, k + d)


cola_extend.check()

# %% [markdown]
# The loop uses your two functions, or the library's as long as yours are not right. Adam's memory of the old link
# is dropped by removing its state: AdamW then starts a new one.

# %%
@torch.no_grad()
def tie(layer):
    """Write the link into W."""
    W = cola_tie(layer.linear.weight, layer.lora_A, layer.lora_B, ALPHA)
    layer.linear.weight.copy_(W)


@torch.no_grad()
def extend(layer, optimizer, draw):
    """Start a new link, which Adam does not know."""
    k = layer.linear.in_features
    new = cola_extend(layer.lora_A, layer.lora_B, fresh_A(k, draw))
    layer.lora_A.copy_(new[:, :k])
    layer.lora_B.copy_(new[:, k:].T)
    for p in (layer.lora_A, layer.lora_B):
        optimizer.state.pop(p, None)


course.solution(cola_tie)
course.solution(cola_extend)

# %% [markdown]
# And the training: it is LoRA's loop with one `if`. The learning rate falls over all steps and does not start anew,
# and the classifier head trains on through the knots.

# %%
def train_chain(knots):
    """COLA by AdamW with a linearly falling rate: the layers, the losses, every change of W at a knot."""
    model, draw = lesson.network(), torch.Generator().manual_seed(0)
    layers = with_links(model, draw)
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=RATE, weight_decay=0.01)
    torch.manual_seed(0)  # the network has dropout: the same noise as in the library
    model.train()
    losses, links = [], []
    for step, batch in enumerate(lesson.batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - (step - 1) / STEPS)
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step in knots:
            links.append([layer.s * (layer.lora_B @ layer.lora_A).detach() for layer in layers])
            for layer in layers:
                tie(layer)
                extend(layer, optimizer, draw)
    links.append([layer.s * (layer.lora_B @ layer.lora_A).detach() for layer in layers])
    return model, losses, links


network, losses, links = train_chain(KNOTS)
print("losses:", " ".join(f"{loss:.3f}" for loss in losses))

# %% [markdown]
# ### The same by the library
#
# `lt.COLA` with the library's trainer gets the same network, the same batches and the same seed. All losses, and all
# changes $W^* - W$ (the sum of the links), must be equal up to the rounding of float64.

# %%
method = lt.COLA(r=R, lora_alpha=ALPHA, sites="qv", chain=3, knots=KNOTS)
adapters = lt.adapt(lesson.network(), method, seed=0)
trainer = lt.Trainer(adapters, lesson.rows, lesson.collate, settings, seed=0)
trainer.outcome = trainer.run()
changes = [sum(parts) for parts in zip(*links, strict=True)]
print(ch.compare_with_library(losses, trainer, changes))

# %% [markdown]
# ## 6 · What must be true
#
# **A knot changes no output, and every $W$.** Take the trained network, tie, extend, and compare the logits. (The
# network is put in evaluation mode, so that dropout does not blur the comparison.)

# %%
probe, tied = lesson.batches[0], copy.deepcopy(network).eval()
layers = [module for module in tied.modules() if isinstance(module, Chained)]
W = [layer.linear.weight.clone() for layer in layers]
forgetful, draw = torch.optim.AdamW(tied.parameters()), torch.Generator().manual_seed(1)
with torch.no_grad():
    before = tied(**probe).logits
    for layer in layers:
        tie(layer)
        extend(layer, forgetful, draw)
    after = tied(**probe).logits
moved = min(float((layer.linear.weight - w).abs().max()) for layer, w in zip(layers, W, strict=True))
print(f"every W moved, by {moved:.4f} at least; the logits moved by {float((after - before).abs().max()):.0e}")

# %% [markdown]
# **No more numbers train than before**, and **the rank of the sum is at most $M r$**:

# %%
trains = sum(branch.lora_A.numel() + branch.lora_B.numel() for branch in adapters.values())
lora = sum(R * (site.d + site.k) for site in adapters.sites.values())
print(f"numbers that train in the third link: {trains:,}; in a LoRA of rank {R}: {lora:,}")
for i in (1, 2, 3):
    total = sum(part[0] for part in links[:i])  # of the first matrix, 0.q
    most = chain_rank((R,) * i, *total.shape)
    print(f"rank after link {i}: {int(torch.linalg.matrix_rank(total))}, at most {most}")

# %% [markdown]
# The library checks the first two at every knot of every training, and stops with a sentence if one of them fails.
#
# ### What does Adam forget at a knot?
#
# Adam keeps, for every number, a running mean of its gradients (`exp_avg`), one of their squares (`exp_avg_sq`), and
# a count of steps, with which it corrects the two for their start at zero.
#
# ### Exercise 6a · Debug (5 minutes)
#
# The function below makes the first move of the new $B$ with the memory of the *old* link. Repair it, so that it is
# the first move of an Adam that has forgotten.


# %%
@course.exercise
def move_after_knot(gradient, exp_avg, exp_avg_sq, step, lr):
    exp_avg = 0.9 * exp_avg + 0.1 * gradient
    exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * gradient**2
    step = step + 1
    mean, square = exp_avg / (1 - 0.9**step), exp_avg_sq / (1 - 0.999**step)
    return -lr * mean / (square.sqrt() + 1e-8)


move_after_knot.check()

# %% [markdown]
# An Adam that has forgotten moves every number by about the learning rate, however small its gradient is:

# %%
gradient = torch.tensor([[1.0, -0.01, 0.0001]])
old = torch.tensor([[0.5, 0.5, 0.5]])
print("the first move after a knot, in learning rates:", move_after_knot(gradient, old, old**2, 60, 1.0).tolist())

# %% [markdown]
# So the loss cannot jump *at* a knot, but it may rise in the steps *behind* one. Section 8 measures that.
#
# ## 7 · Train on a real task
#
# Now the profile's full training, with a chain of three. Grey is a stored run of another seed. The library measures
# the loss of the same held-out examples, the *probe set*, after every second step.

# %%
method = lt.COLA(chain=3, r=8, lora_alpha=16.0)
watched = ch.watching(profile)
course.keep_reference("03_cola", lambda: lt.fit(method, task, backbone, profile, 0, **watched))
reference, made = course.load_reference("03_cola")
live = course.LiveCurve("cola-3", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False, **watched)
live.finish(run, ch.finding_of_training(run))
ch.check_run(run, method)
print(made)

# %% [markdown]
# What is the right comparison? First one LoRA of the same rank for the same steps: it has the same memory. Then one
# LoRA of the chain's *whole* rank, 24: it has three times the trained numbers in memory.

# %%
runs = {
    "COLA, 3 links": run,
    "LoRA, rank 8": lt.fit(lt.LoRA(r=8, lora_alpha=16.0), task, backbone, profile, seed=1, **watched),
    "LoRA, rank 24": lt.fit(lt.LoRA(r=24, lora_alpha=48.0), task, backbone, profile, seed=1, **watched),
}
print(ch.majority(run))
course.readable(ch.run_table(runs), "runs")

# %% [markdown]
# The interval comes from the number of test examples. (The labels of SST-2's test set are not public, so there the
# test examples are the probe set, which nothing was chosen on.) One seed at one learning rate says little about who
# is better; section 9 has runs over seeds.
#
# ## 8 · Look at what was learned
#
# ### The loss of a fixed probe set
#
# The loss of a training batch jumps from step to step, because the examples change. The probe set is always the same,
# so its loss shows what the *network* does.

# %%
pair = {"cola-3": run, "lora": runs["LoRA, rank 8"]}
course.show(ch.probe_figure(pair), ch.finding_of_probe(pair))

# %% [markdown]
# Around each knot, with the loss at the knot taken away. If no value was measured just there, the nearest one is
# taken. LoRA's curve at the same steps is the control: it has no knot there.

# %%
course.show(ch.knot_figure(pair), ch.finding_of_knots(pair))

# %% [markdown]
# ### The spectrum grows, link by link
#
# The record of a run holds the factors of all links side by side, the last link first. Cut them apart, add the
# products up, and take the singular values of each sum.

# %%
left, right = run.factors["0.v"]
pairs = list(zip(left.split(method.r, 1), right.split(method.r, 0), strict=True))
pairs = pairs[1:] + pairs[:1]  # in the order of training
grown = {}
for i in (1, 2, 3):
    total = sum(B @ A for B, A in pairs[:i])
    grown[f"after link {i}"] = torch.linalg.svdvals(total)[: i * method.r].numpy()
course.show(ch.spectra_figure(grown, "0.v"), ch.finding_of_growth(grown))

# %%
norms = ch.link_norms(run)
print("Mean over all matrices, " + ch.finding_of_norms(norms))

# %% [markdown]
# Rank grows with every link. But the links are not equally large: the learning rate falls over the whole training,
# so later links have less room to move.
#
# ### Is the rank used?
#
# Runs over seeds are stored. They are on `rt`, all with $s = 2$, and with an $A$ that starts Gaussian with the
# standard deviation $1/r$, so a larger rank also starts with smaller numbers. Compare the chain of three with one
# link, and with one LoRA of rank 24.

# %%
kept = ch.stored()
print(kept.chain.line())
sigmas = ch.stored_spectra(kept, "0.v")
course.show(ch.spectra_figure(sigmas, "0.v"), ch.finding_of_spectra(sigmas))

# %% [markdown]
# The *effective rank* of [01](01_why_low_rank.ipynb) counts how many directions carry weight.

# %%
used = ch.used_ranks(kept)
course.show(ch.used_figure(used), ch.finding_of_used(used))

# %% [markdown]
# ### Why should a chain converge? Frank and Wolfe
#
# The paper compares its chain with a method of [Frank and Wolfe
# (1956)](https://doi.org/10.1002/nav.3800030109); [Jaggi (2013)](https://proceedings.mlr.press/v28/jaggi13.html) is
# the modern account. To minimise a function $f(W)$ over a bounded convex set: let $G$ be the gradient at $W$, find
# the point $V$ of the set with the smallest $\langle G, V \rangle$ (the sum of the products of entries), and go a
# part $\eta$ of the way, $W \leftarrow W + \eta (V - W)$.
#
# Take as the set all matrices whose singular values add up to at most a radius. Then the best $V$ is always
# $-\text{radius} \cdot u v^\top$, with the first singular pair $u, v$ of $G$. It has **rank one**. So Frank-Wolfe
# is a chain of rank-one updates, and it is known to converge.
#
# ### Exercise 8a · One step (6 minutes)
#
# Return $W + \eta (V - W)$ with $\eta = 2 / (t + 2)$. `G` is the gradient at `W`.


# %%
@course.exercise
def frank_wolfe_step(W, G, radius, t):
    V = -radius * G / G.norm()  # along the gradient: is that the best V?
    return W + 2 / (t + 2) * (V - W)


frank_wolfe_step.check()

# %% [markdown]
# Your step at work on *matrix completion*: find a matrix of which only 60 % of the entries are seen. How far is $W$
# from the minimum? The *duality gap* $g = \langle G, W - V \rangle$ tells it without knowing the minimum: if $f$ is
# convex, $f(W) - \min f \le g$.

# %%
problem = ch.completion_problem()
W, gaps, values = torch.zeros_like(problem.Y), [], []
for t in range(128):
    G = problem.seen * (W - problem.Y)  # gradient of f(W) = ½ Σ over seen entries of (W − Y)²
    after = frank_wolfe_step(W, G, problem.radius, t)
    V = W + (after - W) * (t + 2) / 2  # where the step was heading
    gaps.append(float((G * (W - V)).sum()))
    values.append(float((problem.seen * (W - problem.Y) ** 2).sum() / 2))
    W = after
course.show(ch.descent_figure(gaps, values, problem.toy), ch.finding_of_descent(gaps, values, problem.toy))

# %% [markdown]
# **The bound.** Let $\beta$ say how fast the gradient of $f$ can turn, let $D$ be the diameter of the set, and let
# $f$ fall by at most $M$ in all. Then each step obeys
# $f(W_{t+1}) \le f(W_t) - \eta g_t + \tfrac12 \beta \eta^2 D^2$. Add this up over $T$ steps with a constant $\eta$:
#
# $$\frac1T \sum_t g_t \;\le\; \frac{M}{\eta T} + \frac{\beta \eta D^2}{2} \;=\; \tfrac32\, D \sqrt{\frac{M \beta}{T}}
# \qquad\text{with the paper's } \eta = \frac{\sqrt M}{D \sqrt{\beta T}} .$$
#
# Without the ½ the same argument gives the slightly looser $2 D \sqrt{M \beta / T}$. If $V$ is only nearly the best,
# because the gradient comes from a few entries, the bound grows by the mean of what is lost, $\varepsilon$.

# %%
course.show(ch.bound_figure(problem.toy), ch.finding_of_bound(problem.toy))

# %% [markdown]
# **How to check a bound by its units.** Of the two copies of the paper's statement that we could read, one puts $D$
# outside the root, as the proof does, and one puts it under the root. One of the two must be a slip of copying, and
# units show which. Write $W$ in a unit $c$ times as small: its numbers become $c$ times as large. The problem is the
# same, so $f$, the gap and $M$ keep their values, and a true bound must keep its own.

# %%
for c in (0.01, 1.0, 100.0):
    p = ch.completion_problem(unit=c).toy
    gap = ch.toy.frank_wolfe(p, 64, "constant").gap.mean()
    D, beta, M = p.diameter, p.smoothness, p.fall
    outside, under = 2 * D * (M * beta / 64) ** 0.5, 2 * (M * beta * D / 64) ** 0.5
    print(f"c = {c:g}: mean gap {gap:.0f}; D outside the root {outside:.0f}, D under the root {under:.1f}")

# %% [markdown]
# $D$ grows by the factor $c$ and $\beta$ shrinks by $c^2$. So $D\sqrt\beta$ stays and $\sqrt{D \beta}$ does not:
# the form with $D$ outside is the one to use. A check of units finds such a slip in a minute, in any paper and in any
# copy.
#
# **A question of sign.** In the text $g_t$ is the *maximum* of $\langle \nabla f, V - W \rangle$ over $V$. If
# $\nabla f$ is the gradient, a step *down* needs the minimum, or the maximum for $-\nabla f$, as above. Then the term
# in the inequality of one step is $-\eta g_t$. With a plus sign the inequality would be true, too, since
# $g_t \ge 0$, but it would not bound the gap from above. Which convention is meant has to be fixed before one reads
# on.
#
# **What the analysis does not cover.** It is about a full matrix $V$ from a *convex* set, as the paper says itself.
# Matrices of rank at most $r$ are no convex set: half-way between two links of your own run is a matrix of larger
# rank.

# %%
(B1, A1), (B2, A2) = pairs[:2]
for name, matrix in {"link 1": B1 @ A1, "link 2": B2 @ A2, "half-way": (B1 @ A1 + B2 @ A2) / 2}.items():
    print(f"{name}: rank {int(torch.linalg.matrix_rank(matrix, rtol=1e-5))}")

# %% [markdown]
# Frank-Wolfe also shrinks the old by $1 - \eta$ while it adds the new, and a knot only adds. So the analysis shows
# that *some* chain of low-rank steps converges. It does not show that this one does.
#
# ## 9 · Ablate
#
# The runs over seeds are stored, and can be made again by `lowrank-teach study chain` on the command line.
#
# ### Chain length 1, 2, 3 at equal epochs (the paper's Figure 2)
#
# ### Exercise 9a · Whole epochs (4 minutes)
#
# All lengths get the same number of epochs. Split `epochs` over `links`: return the list of their lengths. A knot
# falls between two epochs, so that every link sees each example equally often. What is left over goes to the first
# links, one epoch each.


# %%
@course.exercise
def cola_epochs(epochs, links): ...


cola_epochs.check()
print({f"5 epochs, {M} links": cola_epochs(5, M) for M in (1, 2, 3)})

# %%
course.show(ch.length_figure(kept), ch.finding_of_lengths(ch.gains(kept)))

# %% [markdown]
# Each seed is compared with itself: the same examples in the same order. An interval holds the true difference to
# LoRA of rank 8 in 95 of 100 such experiments.

# %%
course.readable(ch.gains(kept), "gains")

# %% [markdown]
# ### A smaller second link (the paper's Figure 3)
#
# The first link has rank 8 for three fifths of the training, the second one a smaller rank. (In these stored runs a
# smaller $r$ also starts with a larger $A$, since its standard deviation is $1/r$. So rank and start change
# together.)

# %%
course.show(ch.down_figure(kept), ch.finding_of_down(kept))

# %% [markdown]
# ### What does a smaller link save? (the paper's Table 4)
#
# Count the multiplications and additions for one token. A frozen $d \times k$ matrix is used twice in a step:
# forward, and backward for the gradient of its input. That makes $4dk$. A link needs a third pass for its own
# gradient: $6r(d + k)$.

# %%
def operations(shapes, r):
    frozen = sum(4 * d * k for d, k in shapes.values())
    return frozen + sum(6 * r * (d + k) for name, (d, k) in shapes.items() if name.endswith((".q", ".v")))


here = {site.name: (site.d, site.k) for site in lt.select(model, "all")}
saved = {}
for name, shapes in {backbone: here, "OPT-1.3B": ch.opt_shapes()}.items():
    full = operations(shapes, 8)  # three fifths of the steps have rank 8, two fifths have rank r
    saved[name] = {r: 1 - (0.6 * full + 0.4 * operations(shapes, r)) / full for r in (8, 6, 4, 2)}
course.show(ch.saving_figure(saved), ch.finding_of_saving(saved))

# %% [markdown]
# The paper took its numbers from its trainer's counter. The one in `transformers` multiplies 6 by the tokens and by
# all parameters except the embeddings, frozen ones included. By this count the saving is as small.
#
# ### ReLoRA beside it
#
# [ReLoRA](https://arxiv.org/abs/2307.05695) was made for pretraining and has the same knot. It differs in two points.
# Its learning rate drops to zero at each restart and quickly warms up again. And Adam does not forget everything: the
# moments are *pruned*, so that all but a few of the largest entries become zero.
#
# ### Exercise 9b · Prune the moments (5 minutes)
#
# Keep the `share` of the entries of `moment` that are largest in size, and set the others to zero.


# %%
@course.exercise
def prune_moments(moment, share): ...


prune_moments.check()

# %% [markdown]
# One knot, and then three treatments of Adam's memory with the same batches and the same new $A$. First a link is
# trained for some steps (the library's layer, without dropout). After that the loss of the probe set is measured
# at every step:

# %%
bench = ch.practice(task, "minilm-l3", profile, batches=8)


def walk(adapters, optimizer, steps):
    """Train for some steps; the loss of the probe set before the first and after each."""
    probe = [loss_of_probe(adapters)]
    for i in range(steps):
        optimizer.zero_grad()
        adapters.model(**bench.batches[i % len(bench.batches)]).loss.backward()
        optimizer.step()
        probe.append(loss_of_probe(adapters))
    return probe


@torch.no_grad()
def loss_of_probe(adapters):
    return adapters.model(**bench.probe).loss.item()


first = lt.adapt(copy.deepcopy(bench.network), lt.LoRA(r=8, lora_alpha=16.0), seed=0)
adam = torch.optim.AdamW(first.rule.parameter_groups(), lr=2e-3)
probe = walk(first, adam, bench.steps)
print(f"loss of the probe set: {probe[0]:.3f} before the first link, {probe[-1]:.3f} at the knot")

# %% [markdown]
# Now the knot. Every treatment gets its own copy of the network and of Adam. COLA also sets Adam's count of steps
# back to zero; ReLoRA leaves it.

# %%
memory = {
    "keep all": lambda moment: moment,
    "forget all (COLA)": lambda moment: 0 * moment,
    "keep 1 % (ReLoRA)": lambda moment: prune_moments(moment, 0.01),
}
curves = {}
for way, treat in memory.items():
    adapters, optimizer = copy.deepcopy((first, adam))
    draw = torch.Generator().manual_seed(3)
    for name, branch in adapters.items():
        adapters.owner(name).W.data += (branch.scaling * branch.lora_B @ branch.lora_A).detach()
        k = branch.lora_A.shape[1]
        branch.lora_A.data = (torch.rand(8, k, generator=draw) * 2 - 1) / k**0.5
        branch.lora_B.data.zero_()
        for state in (optimizer.state[branch.lora_A], optimizer.state[branch.lora_B]):
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = treat(state[moment])
            state["step"] *= way != "forget all (COLA)"
    curves[way] = walk(adapters, optimizer, bench.after)
guess = ch.label_entropy(bench.probe)
course.show(ch.forgetting_figure(curves, guess), ch.finding_of_forgetting(curves))

# %% [markdown]
# ReLoRA's curve here has the pruning, but not the new warm-up that belongs to it. After pruning, an entry can keep
# its first moment and lose its second one, or the other way round, so its first moves can be far from the learning
# rate. A warm-up makes these moves small.
#
# ### What the paper leaves open
#
# Each row is a switch of `lt.COLA`, with the default and its reason.

# %%
course.readable(ch.open_points(), "switches")

# %% [markdown]
# The first switch decides how far later links can move. Train it once more with a schedule that starts anew at each
# knot, as ReLoRA's does, and compare the norms of the links:

# %%
again = lt.COLA(chain=3, r=8, lora_alpha=16.0, restart_schedule=True)
restarts = {
    "one schedule": run,
    "schedule restarts": lt.fit(again, task, backbone, profile, seed=1, **watched),
}
print(ch.finding_of_switches(restarts))
course.readable(ch.run_table(restarts), "restarts")

# %% [markdown]
# ## 10 · Play
#
# ### Where should the knots be?
#
# Matrix completion again, now as COLA does it: each link fits what the links before it left. A *sweep* solves for $B$
# and then for $A$. Move one to three knots, and watch the links between them. All chains have the same number of
# sweeps; dotted is the chain with its knots evenly apart.

# %%
moving = ch.MovingKnots()
places = {"first": 2, "second": 4, "third": 6}
states = [{**places, "count": 1}, {**places, "first": 20, "count": 1}, {**places, "count": 3}]
course.show(course.strip(moving, states), ch.finding_of_moving(moving, states))

# %%
course.explore(moving)

# %% [markdown]
# Two things to find. Does an early or a late knot cost more? And can you place three knots so that the error on
# *hidden* entries is below that of even spacing?
#
# **And in the network?** A slider cannot train a network while you move it. So here are runs with the knots at three
# places: early, evenly apart (the run of section 7) and late. All else is equal.

# %%
early, late = (lt.COLA(knots=knots, r=8, lora_alpha=16.0) for knots in ((0.1, 0.2), (0.8, 0.9)))
placed = {
    "early knots": lt.fit(early, task, backbone, profile, seed=1, **watched),
    "evenly apart": run,
    "late knots": lt.fit(late, task, backbone, profile, seed=1, **watched),
}
course.show(ch.placed_figure(placed), ch.finding_of_placed(placed))

# %% [markdown]
# ### How many links, of which rank?

# %%
picture = ch.ColaChain()
states = [{"links": 1, "r": 2}, {"links": 3, "r": 2}]
course.show(course.strip(picture, states), " ".join(picture.words(**state) for state in states))

# %%
course.explore(picture)

# %% [markdown]
# Dotted is *one* update of the chain's whole rank. Is there a setting in which the chain beats it on hidden entries?
#
# ## 11 · Exercises
#
# **11a · Recall.** Why must $B$ be the zero factor, or would $A$ do? Why may nothing train between tie and extend?
# How large is Adam's first move after a knot?
#
# **11b · Modify (10 minutes).** Give `train_chain` a list of ranks, one for each link. Which of `tie`, `extend` and
# `Chained` must change, and what happens to $s = \alpha / r$? Compare with `lt.COLA(ranks=(8, 4, 2))`.
#
# **11c · Debug.** Someone ties after `optimizer.zero_grad()` of the next step, but draws the new $A$ only one step
# later. What does the network compute in between?
#
# **11d · Open.** COLA gives all links the same share of the time. Use the sliders of section 10 to find a better
# split on the toy. What would you have to measure in a real training to choose it there?
#
# ## 12 · What the paper claims, and what was measured
#
# The verdicts are computed from stored runs of this course's smaller networks, with intervals over seeds, and from
# checks made on the spot. A row without runs says so.

# %%
course.claims("COLA")

# %% [markdown]
# ## 13 · Common confusions
#
# - **"The knot resets the training."** It resets Adam's memory of one link. The function, the head and (by default)
#   the learning rate go on.
# - **"Both factors of the new link are random."** Then the outputs jump at the knot. If both are zero, the link
#   never starts.
# - **"Zeroing the moments is enough."** The count of steps must be reset, too. Otherwise Adam takes the zeros for a
#   long history, and its first moves have the wrong size (exercise 6a).
# - **"Rank 24 beats rank 8, so the chain beats LoRA."** The rank says what *can* be reached. What is gained is a
#   question for section 9, where one LoRA of rank 24 is the other fair rival.
# - **"$M$ is the chain length."** In the analysis the paper also calls the possible fall of the loss $M$.
#
# ## 14 · To take along
#
# **Can a chain of small updates do what one cannot?** From the runs of this notebook and the stored ones:

# %%
print(ch.answer(run, kept, "0.v"))

# %% [markdown]
# - A chain is LoRA, repeated: tune, tie, extend. You have trained it in thirty lines.
# - A knot changes $W$, the link and Adam's memory. It does not change the function.
# - Ranks add up; whether that shows in a score must be measured, with seeds and a fair rival.
# - A rank step-down saves little time, because the frozen network does nearly all the work.
# - Check the units of a bound before you use it.
#
# **Further reading.** [ReLoRA](https://arxiv.org/abs/2307.05695) restarts branches in pretraining.
# [RAC-LoRA](https://arxiv.org/abs/2410.08305) proves when chains converge. [GaLore](https://arxiv.org/abs/2403.03507)
# reaches high rank with compressed gradients. The library's code of this method is
# [cola.py](../lowrank_teach/methods/cola.py).
#
# **Next question:** a chain gives every matrix the same rank. Which directions does each one need?
# [04 · SaLoRA](04_salora.ipynb)
