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
# # 02 · LoRA
#
# **Question:** what is the layer that every method of this course changes?
#
# **Paper:** Hu et al. 2021, [*LoRA: Low-Rank Adaptation of Large Language
# Models*](https://arxiv.org/abs/2106.09685).
# **You need:** [00](00_start_here.ipynb) and [01](01_why_low_rank.ipynb), matrix products, the chain rule, and a
# PyTorch training loop that you have seen before.
# **Time:** about 90 minutes to read and solve. The computing takes minutes on a laptop, and every run is kept.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another of the
# paper's tasks, such as `mnli`, `cola`, `rte` or `stsb`.
#
# At the end you will have written the layer, put it into a pretrained network, trained it in a loop of your own
# and shown that the library and Hugging Face's [`peft`](https://github.com/huggingface/peft) compute the same
# numbers.

# %%
import math
import warnings

import lowrank_teach as lt
import torch
from lowrank_teach import course
from peft import LoraConfig, get_peft_model
from torch import nn

warnings.filterwarnings("ignore", category=FutureWarning)  # peft calls transformers by old names
ch = course.chapters.lora
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: one copy of the network for every task
#
# Full fine-tuning trains every number of a pretrained network. Each task then needs a file as large as the
# network itself, and Adam keeps two further numbers for every number that trains.

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=2, seed=0)
total = sum(p.numel() for p in model.parameters())
q = lt.select(model, "q")[0]
print(f"{total:,} numbers, {4 * total / 1e6:.0f} MB in float32 for every task")
print(f"and {16 * total / 1e6:.0f} MB while it trains: weights, gradients, two moments of Adam")

# %% [markdown]
# Three lines of work came before
# LoRA. *Adapters* ([Houlsby et al. 2019](https://arxiv.org/abs/1902.00751)) insert small trained layers, which
# every input then has to pass through. *Prefix tuning* ([Li and Liang
# 2021](https://arxiv.org/abs/2101.00190)) trains vectors that stand in front of the input and take up its
# positions. [Aghajanyan et al. 2020](https://arxiv.org/abs/2012.13255) showed that fine-tuning reaches 90 % of its
# performance on a task even if it may move in a few hundred random directions only.
#
# LoRA takes up the last observation. It assumes that the *change* of each weight matrix can have low rank, and
# trains nothing but that change. Its abstract reports 10,000 times fewer trained numbers for GPT-3, a third of
# the GPU memory, quality on a par with full fine-tuning or better, and no slower inference.
#
# ## 2 · The idea in one picture
#
# Leave the pretrained matrix $W$ as it is. Beside it, learn a change that is a product of two thin matrices.

# %%
fig = ch.idea(gate=False)
fig.set_label("x goes through frozen W and, beside it, through thin A, thin B and the scale α / r; both are added.")
course.show(fig, ch.idea_finding(q.d, q.k, r=8))

# %% [markdown]
# $A$ reads the input and reduces it to $r$ numbers. $B$ writes them out again. $A$ starts random and $B$ starts
# at zero, so before training the network is exactly the pretrained one.
#
# ## 3 · The maths, step by step
#
# The symbols, with their names in this library's code, in `peft` and in the paper:

# %%
course.symbols("x", "W", "A", "B", "r", "α", "s", "ΔW", "h", "W + ΔW")

# %% [markdown]
# **The layer** is equation 3 of the paper, with the scale of its section 4.1:
#
# $$h = W x + s\, B A\, x, \qquad s = \alpha / r .$$
#
# Compute it from right to left: $z = A x$ has $r$ numbers, and $B z$ has $d$. The product $BA$ is never formed
# in training.
#
# **The gradients.** Let $g = \partial L / \partial h$ be the gradient that arrives at the output, $d$ numbers.
# One entry of the output is $h_i = (Wx)_i + s \sum_j B_{ij} z_j$. So $\partial h_i / \partial B_{ij} = s\, z_j$,
# and the chain rule gives the gradient of $B$. For $A$ there is one step more: $\partial L / \partial z_j =
# s \sum_i g_i B_{ij}$, that is $s\,(B^\top g)_j$, and $z_j = \sum_l A_{jl} x_l$. Together:
#
# $$\frac{\partial L}{\partial B} = s\, g\, z^\top = s\, g\, (A x)^\top, \qquad
# \frac{\partial L}{\partial A} = s\, (B^\top g)\, x^\top .$$
#
# For several tokens, the gradients of the tokens add up. With $B = 0$ the gradient of $A$ is zero: in the first
# step only $B$ moves.
#
# **A tiny example** with $d = 2$, $k = 3$, $r = 1$ and $\alpha = 2$, so $s = 2$. Let $x = (1, 2, 0)$,
# $A = (1, 1, 0)$, $B = (1, -1)^\top$ and $g = (1, \tfrac12)$. Then $z = 1 + 2 = 3$, and the branch adds
# $2 \cdot 3 \cdot (1, -1) = (6, -6)$. The gradient of $B$ is $2 \cdot 3 \cdot (1, \tfrac12) = (6, 3)$. For $A$:
# $B^\top g = \tfrac12$, so its gradient is $2 \cdot \tfrac12 \cdot (1, 2, 0) = (1, 2, 0)$. Autograd agrees:

# %%
x, g = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.5])
A = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
B = torch.tensor([[1.0], [-1.0]], requires_grad=True)
branch = 2.0 * B @ (A @ x)
branch.backward(g)
print("the branch adds", branch.tolist())
print("gradient of B", B.grad.flatten().tolist(), "  gradient of A", A.grad.flatten().tolist())

# %% [markdown]
# ## 4 · Predict
#
# Say your answer aloud, then open the line.

# %%
ch.predict_shapes(q.d, q.k, r=8)
ch.predict_first_gradient(q.d, q.k, r=8)
ch.predict_decay()
ch.predict_rank_rule()

# %% [markdown]
# ## 5 · The whole method in plain PyTorch
#
# ### Exercise 5a · Write the layer (10 minutes)
#
# `linear` is an `nn.Linear`, whose `weight` is $W$. Get four things right:
#
# - $A$ starts evenly spread between $-1/\sqrt k$ and $1/\sqrt k$ (`torch.rand` runs from 0 to 1);
# - $B$ starts at zero: is that so already?
# - the scale $s$;
# - the branch in `forward`. Rows of `x` are tokens, so $Ax$ is written `x @ self.lora_A.T`.


# %%
@course.exercise
class LoRALinear(nn.Module):
    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        d, k = linear.weight.shape
        self.lora_A = nn.Parameter(torch.zeros(r, k))
        self.lora_B = nn.Parameter(torch.zeros(d, r))
        self.s = 1.0

    def forward(self, x):
        return self.linear(x)


LoRALinear.check()

# %%
course.solution(LoRALinear)

# %% [markdown]
# ### The method: put it into the network and train
#
# The workbench gives two things: a small pretrained network of Hugging Face's `transformers`, in float64 so that
# rounding hides nothing, and the batches of a short training. From there on nothing below is ours.
#
# The last two parts of the network, `pooler` and `classifier`, are new and untrained for this task, so they
# train, too. They are called the *head*. The learning rate falls linearly to zero.

# %%
bench = ch.Workbench(task, profile)
print(f"{type(bench.network()).__name__}, {len(bench.batches)} batches of")
print({name: tuple(tensor.shape) for name, tensor in bench.batches[0].items()})

# %%
RATE, R, ALPHA = 5e-3, 8, 16.0


def with_lora(model):
    """Freeze everything, put the layer on W_q and W_v of every block, free the head."""
    model.requires_grad_(False)
    layers = []
    for block in model.bert.encoder.layer:
        attention = block.attention.self
        attention.query = LoRALinear(attention.query, R, ALPHA)
        attention.value = LoRALinear(attention.value, R, ALPHA)
        layers += [attention.query, attention.value]
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return model.double(), layers


def train(model, batches):
    """AdamW on everything that is not frozen; the loss of every step."""
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=RATE, weight_decay=0.01)
    torch.manual_seed(0)  # the network has dropout: the same noise for every loop
    model.train()
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / len(batches))
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(1)
adapted, layers = with_lora(bench.network())
starts = [layer.lora_A.detach().clone() for layer in layers]
losses = train(adapted, bench.batches)
print(f"{len(layers)} layers; loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")

# %%
chance, _ = ch.guessing(task, bench.settings.to_dict())
course.show(ch.by_hand(losses, chance), ch.finding_by_hand(losses, chance))

# %% [markdown]
# ### The same by the library
#
# `lt.adapt` freezes the network and puts the branches in. The library gets the same network, batches and start
# of $A$, and its own trainer runs. Every loss and every trained matrix must be equal up to the rounding of
# float64.

# %%
adapters = lt.adapt(bench.network(), lt.LoRA(r=R, lora_alpha=ALPHA, sites="qv"), seed=0)
for branch, start in zip(adapters.values(), starts, strict=True):
    branch.lora_A.data.copy_(start)
outcome = lt.Trainer(adapters, bench.rows, bench.collate, bench.settings, seed=0).run()
ch.say_equal("losses", losses, ch.losses_of(outcome))
ch.say_equal("A", [m.lora_A for m in layers], [b.lora_A for b in adapters.values()])
ch.say_equal("B", [m.lora_B for m in layers], [b.lora_B for b in adapters.values()])

# %% [markdown]
# ### The same by `peft`
#
# [`peft`](https://github.com/huggingface/peft) is what most people use. It names the matrices by their modules and
# trains the head through `modules_to_save`. Your own function `train` trains it.

# %%
config = LoraConfig(
    r=R, lora_alpha=ALPHA, target_modules=["query", "value"], modules_to_save=["pooler", "classifier"]
)
theirs = get_peft_model(bench.network(), config).double()
found = [m for m in theirs.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
for module, start in zip(found, starts, strict=True):
    module.lora_A["default"].weight.data.copy_(start)
peft_losses = train(theirs, bench.batches)
ch.say_equal("losses", losses, peft_losses)
ch.say_equal("B", [m.lora_B for m in layers], [m.lora_B["default"].weight for m in found])

# %% [markdown]
# In what follows the library stands in for the loop, because it also evaluates and stores every run.
#
# ## 6 · What must be true
#
# **Nothing changes at the start.** Because $B = 0$, the outputs are not nearly but exactly those of the
# pretrained network.

# %%
fresh, _ = with_lora(bench.network())
batch = bench.batches[0]
with torch.no_grad():
    before = bench.network().eval()(**batch).logits
    after = fresh.eval()(**batch).logits
print("largest change of an output:", float((after - before).abs().max()))

# %% [markdown]
# **Only these train:** every $A$, every $B$, and the head.

# %%
named = {name: p.numel() for name, p in fresh.named_parameters() if p.requires_grad}
factors = sum(n for name, n in named.items() if "lora" in name)
whole = sum(p.numel() for p in fresh.parameters())
head = sum(named.values()) - factors
print(f"A and B: {factors:,} numbers; the head: {head:,}; frozen: {whole - head - factors:,}")

# %% [markdown]
# ### Exercise 6a · The gradients by hand (8 minutes)
#
# Write the two gradients of section 3 for $T$ tokens at once. `x` is (T, k), and `G` is (T, d), with a row
# $\partial L / \partial h$ a token. Sums over tokens become matrix products.


# %%
@course.exercise
def lora_gradients(x, G, lora_A, lora_B, alpha):
    s = alpha / len(lora_A)
    grad_A = s * torch.zeros_like(lora_A)  # change both
    grad_B = s * torch.zeros_like(lora_B)
    return grad_A, grad_B


lora_gradients.check()

# %% [markdown]
# Now on the real network: take one trained layer, catch what it reads and the gradient that arrives at its
# output, and compare your formula with what autograd left in `.grad`.

# %%
layer = layers[-1]
x, G = ch.through_layer(adapted, layer, batch)
grad_A, grad_B = lora_gradients(x, G, layer.lora_A.detach(), layer.lora_B.detach(), ALPHA)
ch.say_equal("gradient of A", [grad_A], [layer.lora_A.grad], 1e-12)
ch.say_equal("gradient of B", [grad_B], [layer.lora_B.grad], 1e-12)
print(f"their sizes: {grad_A.norm():.4f} and {grad_B.norm():.4f}")

# %% [markdown]
# ### Exercise 6b · What a merge does (4 minutes)
#
# After training, $W x + s B A x = (W + s B A)\, x$: one matrix does the work of both paths. Written into the
# network, it leaves a model of the original architecture and speed. That is why LoRA costs nothing at inference
# (section 4.1 of the paper). The function below has a bug. Return the merged matrix, and leave `W` itself as it is.


# %%
@course.exercise
def lora_merge(W, lora_A, lora_B, lora_alpha):
    return W + lora_B @ lora_A  # find the bug


lora_merge.check()

# %%
merged = bench.network()
merged.load_state_dict(adapted.state_dict(), strict=False)  # the trained head
attentions = [block.attention.self for block in merged.bert.encoder.layer]
sites = [site for attention in attentions for site in (attention.query, attention.value)]
with torch.no_grad():
    for site, layer in zip(sites, layers, strict=True):
        site.weight.copy_(lora_merge(layer.linear.weight, layer.lora_A, layer.lora_B, ALPHA))
    moved = adapted.eval()(**batch).logits
    ch.say_equal("outputs, merged and not", merged.eval()(**batch).logits, moved)
print(f"training had moved an output by up to {float((moved - before).abs().max()):.2f}")

# %% [markdown]
# A merge has its price. Another task can no longer share the same $W$ in memory, and in float16 or bfloat16 the
# sum is rounded. To take an update out again, keep the bytes of $W$: subtracting $s B A$ leaves
# rounding behind. The library keeps them (`adapters.restore()`).

# %%
W = adapters.owner("0.q").W.float()
delta = adapters["0.q"].delta().float()
there_and_back = (W + delta) - delta
print(
    f"after adding and subtracting in float32, {float((there_and_back != W).double().mean()):.0%} of the numbers "
    "of W differ"
)

# %% [markdown]
# ## 7 · Train on a real task
#
# Now the profile's full training on its larger network, with the values of the authors' RoBERTa scripts, $r = 8$
# and $\alpha = 16$ on $W_q$ and $W_v$. The curve grows while the run trains. Grey is a stored run of another seed,
# made as the last line says.

# %%
method = lt.LoRA(r=8, lora_alpha=16.0, sites="qv")
course.keep_reference("02_lora", lambda: lt.fit(method, task, backbone, profile, 0))
reference, made = course.load_reference("02_lora")
live = course.LiveCurve("lora", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False)
live.finish(run, ch.finding_of_training({"LoRA": run}))
print(made)

# %% [markdown]
# A loss says little alone. The right comparisons are full fine-tuning, a network of which only the head trains,
# and a guesser who knows how often each label occurs. Full fine-tuning needs a smaller learning rate than LoRA;
# the one here was not tuned.

# %%
runs = {
    "LoRA": run,
    "full fine-tuning": lt.fit(lt.FullFineTuning(), task, backbone, profile, seed=1, lr=2e-4),
    "head only": lt.fit(lt.HeadOnly(), task, backbone, profile, seed=1),
}
course.show(ch.training_figure(runs), ch.finding_of_training(runs))

# %%
ch.scores(runs)

# %% [markdown]
# This is one seed at one learning rate for each. Whether LoRA is as good as full fine-tuning is not decided
# here: section 12 has the ledger's rows on it, and [07](07_side_by_side.ipynb) compares all methods over tasks
# and seeds.
#
# ## 8 · Look at what was learned
#
# Every $\Delta W = s B A$ has at most $r = 8$ directions. Does it use them all? The *singular values*
# $\sigma_1 \ge \sigma_2 \ge \dots$ are the weights of its directions, and $\|\Delta W\|^2 = \sum_i \sigma_i^2$
# is called its energy (see [01](01_why_low_rank.ipynb)).

# %%
last = max(int(site.split(".")[0]) for site in run.factors)
shown = ["0.q", "0.v", f"{last}.q", f"{last}.v"]
course.show(ch.spectra_figure(run, shown), ch.finding_of_spectra(run, shown))

# %% [markdown]
# The **effective rank** ([Roy and Vetterli 2007](https://ieeexplore.ieee.org/document/7098875)) puts a spectrum
# into one number. With the shares $p_i = \sigma_i / \sum_j \sigma_j$ it is
#
# $$\operatorname{erank}(\Delta W) = \exp\Bigl(-\sum_i p_i \ln p_i\Bigr).$$
#
# Eight equal singular values give 8, a single one gives 1. Here it is for one matrix:

# %%
left, right = run.factors[f"{last}.v"]
sigma = torch.linalg.svdvals((left @ right).double())[:8]
p = sigma / sigma.sum()
print("σ =", [round(float(v), 3) for v in sigma])
print(f"norm {sigma.norm():.3f}, effective rank {math.exp(-float((p * p.log()).sum())):.2f}")

# %% [markdown]
# The norm says how much a matrix changed, the effective rank in how many directions. How large is the change beside
# $W$ itself? Read $W$ and $W + \Delta W$ as long vectors and take the angle between them. For all matrices:

# %%
course.show(ch.sizes_figure(run), ch.finding_of_sizes(run))

# %% [markdown]
# LoRA gives every matrix the same rank, whatever the tables show. SaLoRA ([04](04_salora.ipynb)) and AutoLoRA
# ([06](06_autolora.ipynb)) choose a rank for each.
#
# ## 9 · Ablate
#
# ### Which α for which rank?
#
# A branch of rank $r$ is a sum of $r$ products of a column and a row. So when the rank changes, the branch
# changes its size, unless the scale $s = \alpha / r$ makes up for it. There are three rules:
#
# - **α fixed.** The paper sets α once, to the first rank that it tries, and keeps it while the rank varies
#   (section 4.1). The scale $s$ falls like $1/r$. The aim is that the learning rate need not be tuned anew.
# - **$s$ fixed.** Many programs keep $\alpha = 2r$. Each direction then has the same weight at every rank, and a
#   larger rank takes larger steps. Ranks look more different than the directions alone would make them.
# - **α ∝ √r,** so $s$ falls like $1/\sqrt r$: rsLoRA ([Kalajdzievski
#   2023](https://arxiv.org/abs/2312.03732)) argues that $1/r$ slows learning at high ranks. In `peft` it is
#   `use_rslora=True`.
#
# ### Exercise 9a (4 minutes)
#
# A run with rank `r` and `lora_alpha` worked. Return the α of rank `new_r` under each of the three rules.


# %%
@course.exercise
def alpha_by_rule(lora_alpha, r, new_r):
    fixed_alpha = lora_alpha
    fixed_s = lora_alpha  # change this one
    rank_stabilised = lora_alpha  # and this one
    return [fixed_alpha, fixed_s, rank_stabilised]


alpha_by_rule.check()

# %% [markdown]
# **First by calculation.** Take the gradient $\Gamma = \partial L / \partial W$ of one pretrained matrix. In the
# first step only $B$ moves, along its gradient $s\, \Gamma A^\top$. To first order the loss falls by
# $-\langle \Gamma, s B A \rangle$, which we call the gain.
#
# - *Gradient descent* with rate η sets $B = -\eta s\, \Gamma A^\top$. The gain is
#   $\eta s^2 \|\Gamma A^\top\|^2$, a sum over the $r$ rows of $A$. It grows like $s^2 r$, so
#   $s \propto 1/\sqrt r$ keeps it.
# - *Adam's* first step is the sign of the gradient, whatever its size:
#   $B = -\eta \operatorname{sign}(\Gamma A^\top)$. The gain is $\eta s \sum |\Gamma A^\top|$. It grows like
#   $s\, r$, so $s \propto 1/r$ keeps it.

# %%
Gamma = ch.weight_gradient(bench)  # (d, k), of W_v in the last layer
rows = (2 * torch.rand(64, Gamma.shape[1], generator=torch.Generator().manual_seed(0)) - 1).double()
gain = {}
for r in (1, 2, 4, 8, 16, 32, 64):
    A = rows[:r] / Gamma.shape[1] ** 0.5
    for rule, alpha in zip(ch.RULES, alpha_by_rule(16.0, 4, r), strict=True):
        grad_B = alpha / r * Gamma @ A.T
        for optimizer, B in {"Adam": -grad_B.sign(), "gradient descent": -grad_B}.items():
            gain[optimizer, rule, r] = -float((Gamma * (alpha / r * B @ A)).sum())
course.show(ch.first_step_figure(gain), ch.finding_of_first_step(gain))

# %% [markdown]
# So there is no rule that is right for every optimizer. And this is the first step only: later $A$ moves as well,
# and the learning rate falls.
#
# **Then by training.** All three rules agree at $r = 4$ and $\alpha = 16$, and part ways at $r = 1$ and
# $r = 16$. These are short trainings of the smaller network (MiniLM-L3) with AdamW at one learning rate.


# %%
def validation_loss(r, alpha, seed, **start):
    method = lt.LoRA(r=r, lora_alpha=alpha, **start)
    run = lt.fit(method, task, "minilm-l3", profile, seed, **ch.SHORT[profile])
    return run.metrics["validation"]["loss"]


by_rule = {}
for r in (1, 4, 16):
    for rule, alpha in zip(ch.RULES, alpha_by_rule(16.0, 4, r), strict=True):
        by_rule[rule, r] = [validation_loss(r, alpha, seed) for seed in ch.SEEDS[profile]]
course.show(ch.rules_figure(by_rule), ch.finding_of_rules(by_rule))

# %% [markdown]
# Three seeds of a short training are weak evidence, and the calculation is the stronger argument: with $s$ fixed, a
# larger rank also means larger steps. So a comparison has to name its rule. These stored runs have $s = 2$ fixed:

# %%
print(ch.stored_ranks())

# %% [markdown]
#
# ### How does A start?
#
# The paper says "Gaussian" and gives no scale. `loralib` and `peft` draw $A$ evenly between $\pm 1/\sqrt k$, which
# for $k = 384$ is a standard deviation of 0.03. A Gaussian of standard deviation $1/\sqrt k$ has 0.05, and one of
# $1/r$ has 0.25 at $r = 4$.

# %%
starts_of_A = {"kaiming": "even, ±1/√k", "unit_rows": "Gaussian, 1/√k", "gaussian": "Gaussian, 1/r"}
by_start = {
    words: [validation_loss(4, 16.0, seed, init=init) for seed in ch.SEEDS[profile]]
    for init, words in starts_of_A.items()
}
course.show(ch.starts_figure(by_start), ch.finding_of_starts(by_start))

# %% [markdown]
# ### What does a step cost?
#
# In full fine-tuning each matrix takes part in three products of equal size: forward, the gradient of its input,
# and the gradient of $W$ itself. LoRA spares the third and adds thin products, so about two thirds of the
# operations remain. Gradients and Adam's moments are needed for $A$, $B$ and the head only.

# %%
shares, counted = ch.costs(method, backbone)
print(counted)
course.show(ch.costs_figure(shares), ch.finding_of_costs(shares))

# %% [markdown]
# ## 10 · Play
#
# **Cut a trained ΔW.** Its directions are sorted by size; keep the first $i$. Matrices are numbered in the order
# of the forward pass. Try to find one whose first direction holds more than half of the energy.

# %%
factors = {site: (left.numpy(), right.numpy()) for site, (left, right) in run.factors.items()}
cut = ch.Truncation(factors)
course.show(course.strip(cut, [{"matrix": 0, "i": i} for i in (1, 4, 8)]), cut.words(matrix=0, i=4))

# %%
course.explore(cut)

# %% [markdown]
# **Rank and α.** Nine stored runs stand behind this slider, the same as in [10](10_playground.ipynb). It shows
# the run nearest to your choice and says which one that is.

# %%
knobs, about = ch.stored_grid()
print(about)
corners = [{"rank": 1, "alpha": 64}, {"rank": 4, "alpha": 16}, {"rank": 16, "alpha": 64}]
course.show(course.strip(knobs, corners), ch.finding_of_grid(knobs))

# %%
course.explore(knobs)

# %% [markdown]
# ## 11 · Exercises
#
# **11a · Count (2 minutes).** How many numbers train in a branch of rank $r$ on a $d \times k$ matrix?


# %%
@course.exercise
def count_parameters(d, k, r): ...


count_parameters.check()

# %% [markdown]
# With it, the paper's table can be checked. RoBERTa-base has 12 layers with matrices of $768 \times 768$. On
# $W_q$ and $W_v$ with $r = 8$:

# %%
print(f"{2 * 12 * count_parameters(768, 768, 8):,} numbers; the paper's Table 2 says 0.3 M")

# %% [markdown]
# **11b · Modify (10 minutes).** Put your layer on all six matrices of a block with $r = 2$ and train it with
# `train`. (They are `query`, `key`, `value`, `attention.output.dense`, `intermediate.dense` and `output.dense`.)
# Is the loss lower with about as many trained numbers? The library says how many those are:

# %%
everywhere = lt.adapt(bench.network(), lt.LoRA(r=2, lora_alpha=4.0, sites="all"), seed=0)
print("all six, r = 2:", everywhere.plan().summary())
print("W_q and W_v, r = 8:", adapters.plan().summary())

# %% [markdown]
# **11c · Debug.** A colleague builds the optimizer *before* `with_lora` is called. No error appears and the loss
# falls, yet every $B$ is still zero after the training. What does the optimizer train? Add a line to
# `train` that would have caught it.
#
# **11d · Open.** In section 9 the learning rate was the same for every α. Design three runs that separate the
# effect of α from that of the learning rate, and write down what each outcome would mean before you run them.
#
# ## 12 · What the paper claims, and what was measured
#
# The paper's setting: RoBERTa, DeBERTa, GPT-2 and GPT-3; on GLUE with RoBERTa-base $r = 8$ on $W_q$ and
# $W_v$, AdamW, 25 to 80 epochs, learning rates of 4e-4 and 5e-4 (the authors' scripts). RTE, MRPC and STS-B
# start from a network that was adapted to MNLI before. Its Table 2 reports a mean of 87.2 for LoRA with 0.3 M
# trained numbers and of 86.4 for full fine-tuning of 125 M.

# %%
course.claims("LoRA")

# %% [markdown]
# The first two rows in words. They rest on the stored studies, and not on the single runs of section 7:

# %%
print(ch.reading_of_claims())

# %% [markdown]
# The paper's scores need its networks and are not reproduced here. [11](11_claims_ledger.ipynb) has every claim of
# the course.
#
# ## 13 · Common confusions
#
# - **"A LoRA network is faster to train."** It saves memory first. The backward pass still goes through every
#   frozen $W$ (section 9).
# - **"α is a learning rate."** With Adam it acts much like one on the branch, but it also scales the finished
#   branch in the forward pass, and it does not touch the head.
# - **"Twice the rank, twice as good."** The rank is an upper bound on the directions. Section 8 shows how many
#   are in use.
# - **"$A$ is $A$ everywhere."** Delta-LoRA's paper swaps the two letters, and AutoLoRA calls them $V$ and $U$;
#   see the [glossary](GLOSSARY.md).
#
# ## 14 · To take along
#
# - The layer is $h = Wx + \frac{\alpha}{r} BAx$; $W$ is frozen, $B$ starts at zero, and you have trained it in
#   thirty lines.
# - It holds $r(d + k)$ numbers instead of $d \cdot k$, and merges into $W$ without a trace.
# - Whoever compares ranks has to say how α follows $r$.
# - LoRA saves memory for gradients and moments far more than time.
#
# **Further reading.** [AdaLoRA](https://arxiv.org/abs/2303.10512) gives each matrix its own rank,
# [QLoRA](https://arxiv.org/abs/2305.14314) keeps $W$ in four bits, [DoRA](https://arxiv.org/abs/2402.09353)
# trains size and direction of $W$ apart, [LoRA+](https://arxiv.org/abs/2402.12354) gives $B$ a larger learning
# rate than $A$, and [rsLoRA](https://arxiv.org/abs/2312.03732) scales by $\alpha / \sqrt r$. The authors' code is
# [loralib](https://github.com/microsoft/LoRA).
#
# **Next question:** if one update of rank $r$ is not enough, can a chain of them do it?
# [03 · COLA](03_cola.ipynb)
