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
# **Papers:** Aghajanyan et al. 2020, [*Intrinsic Dimensionality Explains the Effectiveness of Language Model
# Fine-Tuning*](https://arxiv.org/abs/2012.13255), and section 7 of Hu et al. 2021,
# [*LoRA*](https://arxiv.org/abs/2106.09685).
# **You need:** [00](00_start_here.ipynb), matrix products, and a PyTorch training loop that you have seen before.
# The singular value decomposition is introduced here.
# **Time:** about 75 minutes to read and solve; the computing takes minutes on a laptop.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another task with
# classes, such as `cola`, `mrpc`, `rte` or the packaged film reviews `rt`.
#
# At the end you will have trained every number of a network, cut the change of every matrix to a few directions,
# and measured what the cut costs. You will also know two reasons why the answer depends on the task and on the
# optimizer.

# %%
import lowrank_teach as lt
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.ranks
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: LoRA makes an assumption
#
# Fine-tuning turns each pretrained matrix $W_0$ into $W = W_0 + \Delta W$. LoRA allows only a $\Delta W$ that is a
# product of two thin matrices, often of rank 8. That is a strong restriction:

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=2, seed=0)
sites = lt.select(model, "all")
W0 = {site.name: model.get_submodule(site.path).weight.detach().clone() for site in sites}
d, k = W0["0.q"].shape
print(f"{len(W0)} matrices hold {sum(W.numel() for W in W0.values()):,} numbers")
print(f"W_q is {d} × {k}: {d * k:,} numbers; a change of rank 8 is made of {8 * (d + k):,}")

# %% [markdown]
# Where does the assumption come from? [Li et al. 2018](https://arxiv.org/abs/1804.08838) trained networks inside a
# random subspace of all their weights, and called the smallest dimension that reaches 90 % of the usual score the
# *intrinsic dimension*. For a small network on MNIST with about 200,000 weights it was 750. [Aghajanyan et al.
# 2020](https://arxiv.org/abs/2012.13255) did the same for the fine-tuning of pretrained language models: RoBERTa
# reached 90 % of its score on MRPC while only 200 numbers trained. [Hu et al.
# 2021](https://arxiv.org/abs/2106.09685) took this as a reason to expect that the change of each single *matrix*
# has a low rank, too. That is a different statement: a subspace of all weights is not a rank. So we measure it. We
# train every matrix without any restriction, look at its $\Delta W$, and cut it afterwards.
#
# ## 2 · The idea in one picture
#
# A matrix turns a vector into another one. If the inputs lie on a circle, the outputs lie on an ellipse. The
# *singular values* $\sigma_1 \ge \sigma_2$ are the lengths of its half axes. The unit vector $v_j$ is the input
# that lands on half axis $j$, and the unit vector $u_j$ says where this axis points.

# %%
M = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
course.show(ch.ellipse(M), ch.finding_of_ellipse(M))

# %% [markdown]
# The same holds for a matrix of any shape, with more axes. Each triple of $\sigma_j$, $u_j$ and $v_j$ is a
# *direction*, and the matrix is the sum of its directions. Here is a matrix of 40 × 40 numbers that is drawn as a
# ring:

# %%
ring = course.chapters.lora.RankOfAPicture()
course.show(ch.sum_of_directions(ring.u, ring.s, ring.vh), ch.finding_of_sum(ring.s))

# %% [markdown]
# ## 3 · The maths
#
# The **singular value decomposition** (SVD) of a $d \times k$ matrix, with $n = \min(d, k)$, is
#
# $$\Delta W = U \,\mathrm{diag}(\sigma)\, V^\top = \sum_{j=1}^{n} \sigma_j\, u_j v_j^\top .$$
#
# The columns $u_j$ of $U$ have length 1 and stand at right angles to each other, and so do the rows $v_j^\top$ of
# $V^\top$. Applied to an input $x$, direction $j$ *reads* the number $v_j^\top x$, multiplies it by $\sigma_j$ and
# *writes* the result along $u_j$. In LoRA the rows of $A$ read and the columns of $B$ write.

# %%
course.symbols("W before", "W after", "ΔW (whole)", "U", "σ", "Vᵀ", "Σ σ u vᵀ")

# %% [markdown]
# - The **rank** is the number of directions with $\sigma_j > 0$.
# - The **energy** is the sum of all squared entries, $\|\Delta W\|^2$. Because the $u_j$ and the $v_j$ stand at
#   right angles, it equals $\sum_j \sigma_j^2$. So each direction has a share of it.
# - **The cut.** If the sum stops at $i$, the result is the matrix of rank $i$ that is nearest to $\Delta W$ (Eckart
#   and Young 1936), and the squared distance is the energy that was left out, $\sum_{j>i} \sigma_j^2$.
#
# Rounding gives every trained matrix full rank. So we need measures that see how *large* the $\sigma_j$ are:
#
# - the **rank for 90 %**: the smallest $i$ whose cut holds 90 % of the energy;
# - the **stable rank** $\sum_j \sigma_j^2 / \sigma_1^2$, the energy in units of the strongest direction;
# - the **effective rank** ([Roy and Vetterli 2007](https://ieeexplore.ieee.org/document/7098875))
#   $\exp\bigl(-\sum_j p_j \ln p_j\bigr)$ with the shares $p_j = \sigma_j / \sum_l \sigma_l$.
#
# Each of the last two is $n$ for $n$ equal singular values, and 1 if there is only one.
#
# **By hand.** Take the matrix of the ellipse, $M = \begin{pmatrix} 2 & 1 \\ 1 & 2 \end{pmatrix}$. It stretches
# $(1, 1)$ by 3 and $(1, -1)$ by 1. So $\sigma = (3, 1)$, and the energy is $9 + 1 = 10$, which is also
# $4 + 1 + 1 + 4$. Its first direction is
#
# $$3 \cdot \tfrac{1}{\sqrt 2}\begin{pmatrix} 1 \\ 1 \end{pmatrix} \tfrac{1}{\sqrt 2} (1\;\,1)
# = \begin{pmatrix} 1.5 & 1.5 \\ 1.5 & 1.5 \end{pmatrix},$$
#
# and it leaves out an energy of $4 \cdot 0.5^2 = 1 = \sigma_2^2$. The stable rank is $10 / 9 \approx 1.11$. With
# $p = (0.75, 0.25)$ the effective rank is $\exp(0.216 + 0.347) \approx 1.75$. Both say "between one and two
# directions". The effective rank gives more weight to a small $\sigma_j$.
#
# ### Exercise 3a · Cut a matrix (5 minutes)
#
# Return `delta` cut to its first `i` directions, $(d, k)$. `U` is $(d, n)$, `s` is $(n,)$, `Vh` is $(n, k)$, and
# `U * s` multiplies column $j$ by $\sigma_j$.


# %%
@course.exercise
def truncate(delta, i):
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U * s) @ Vh  # all directions: nothing is cut yet


truncate.check()

# %% [markdown]
# ### Exercise 3b · The effective rank (4 minutes)
#
# `s` are the singular values, $(n,)$, all above zero. Return the effective rank as a number.


# %%
@course.exercise
def effective_rank(s): ...


effective_rank.check()

# %%
s = torch.linalg.svdvals(M)
print(f"σ = {s.tolist()}, energy {s.square().sum():.2f} = {M.square().sum():.2f}")
print(f"cut to rank 1:\n{truncate(M, 1)}")
print(f"stable rank {s.square().sum() / s[0] ** 2:.2f}, effective rank {effective_rank(s):.2f}")

# %% [markdown]
# ### Exercise 3c · Debug: the rank for a share (4 minutes)
#
# Wanted is the smallest rank whose cut holds `share` of the energy. A colleague's version is nearly right. Try it by
# hand on `s = [2, 1]` and `share = 0.5`.


# %%
@course.exercise
def rank_for_share(s, share):
    held = (s**2).cumsum(0) / (s**2).sum()
    return int((held < share).sum())  # find the bug


rank_for_share.check()

# %% [markdown]
# ## 4 · Predict
#
# Write your answers down before you open them.

# %%
ch.predict_cost(d, k)
ch.predict_noise(d, k)
ch.predict_real()
ch.predict_one()

# %% [markdown]
# ## 5 · Full fine-tuning in thirty lines
#
# The workbench gives a small pretrained network of `transformers` in float64 and the batches of a short training.
# Everything trains except the word embeddings: they are more than half of so small a network, and no method of
# this course touches them. The learning rate is a tenth of what LoRA gets here, because every number moves. Weight
# decay is off, because it moves $W$ without the task asking for it.

# %%
bench = ch.Workbench(task, profile)


def train(make_optimizer):
    """Full fine-tuning with a linearly falling rate: the network, the loss of each step, every ΔW."""
    net = bench.network().train()
    for name, p in net.named_parameters():
        p.requires_grad_("embed" not in name)
    optimizer = make_optimizer([p for p in net.parameters() if p.requires_grad])
    rate = optimizer.param_groups[0]["lr"]
    W = {site.name: net.get_submodule(site.path).weight for site in lt.select(net, "all")}
    before = {name: weight.detach().clone() for name, weight in W.items()}
    torch.manual_seed(0)  # the network has dropout: the same noise for every loop
    losses = []
    for step, batch in enumerate(bench.batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / len(bench.batches))
        optimizer.zero_grad()
        loss = net(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net, losses, {name: W[name].detach() - before[name] for name in W}


by_adam, losses, of_adam = train(lambda ps: torch.optim.AdamW(ps, lr=2e-4, weight_decay=0.0))
course.show(ch.by_hand(losses, bench.chance), ch.finding_by_hand(losses, bench.chance))

# %% [markdown]
# The library's trainer gets the same network and the same batches. All losses and all changes must be equal up to
# the rounding of float64.

# %%
adapters = lt.adapt(bench.network(), lt.FullFineTuning(trains="no_embeddings"), seed=0)
outcome = lt.Trainer(adapters, bench.rows, bench.collate, bench.settings, seed=0).run()
ch.say_equal("losses of all steps", losses, ch.losses_of(outcome))
start = bench.network()
theirs = [
    adapters.model.get_submodule(site.path).weight - start.get_submodule(site.path).weight
    for site in lt.select(start, "all")
]
ch.say_equal("changes of all matrices", of_adam.values(), theirs)

# %% [markdown]
# ## 6 · What must be true
#
# **A cut leaves out exactly the energy of the directions that it drops:**

# %%
change = of_adam["0.q"]
s = torch.linalg.svdvals(change)
left_out = (change - truncate(change, 8)).square().sum()
ch.say_equal("energy, and the sum of σ²", [change.square().sum()], [s.square().sum()])
ch.say_equal("energy left out at rank 8, and the rest of σ²", [left_out], [s[8:].square().sum()])

# %% [markdown]
# **No product of rank 8 is nearer.** Try to find one: move the two factors of the cut a little, at random, a hundred
# times.

# %%
U, s, Vh = torch.linalg.svd(change, full_matrices=False)
left, right = U[:, :8] * s[:8], Vh[:8]
draw = torch.Generator().manual_seed(0)
distances = []
for _ in range(100):
    B = left + 0.01 * left.std() * torch.randn(left.shape, generator=draw, dtype=left.dtype)
    A = right + 0.01 * right.std() * torch.randn(right.shape, generator=draw, dtype=right.dtype)
    distances.append(float((change - B @ A).square().sum() / left_out))
print(f"squared distance, in units of the cut's: the nearest of 100 has {min(distances):.6f}")

# %% [markdown]
# **The pretrained matrices are the same at every load,** so the matrices before training are known. Only the head is
# new.

# %%
again = lt.load_backbone(backbone, num_labels=2, seed=1)[0]
same = [torch.equal(again.get_submodule(site.path).weight, W0[site.name]) for site in sites]
print(f"{sum(same)} of {len(same)} matrices are equal to the last bit")

# %% [markdown]
# ## 7 · Train on a real task
#
# Now the profile's training on its network. The baseline is a network of which only the head trains: what it
# reaches needs no $\Delta W$ at all.

# %%
method = lt.FullFineTuning(trains="no_embeddings")
setting = ch.SETTING[profile]
course.keep_reference("01_why_low_rank", lambda: lt.fit(method, task, backbone, profile, 0, **setting))
reference, made = course.load_reference("01_why_low_rank")
live = course.LiveCurve("full", reference)
run = lt.fit(method, task, backbone, profile, 1, callbacks=[live], keep_model=True, progress=False, **setting)
live.finish(run, ch.finding_of_run(run))
print(made)

# %%
steps = {name: setting[name] for name in ("steps", "n_train") if name in setting}
runs = {
    "full fine-tuning": run,
    "head only": lt.fit(lt.HeadOnly(), task, backbone, profile, seed=1, **steps),
}
course.show(ch.training_figure(runs), ch.finding_of_training(runs))

# %%
ch.scores(runs)

# %% [markdown]
# This is one seed. Section 9 has several.
#
# ## 8 · Look at what was learned
#
# The change is one subtraction. How large is it beside the matrix?

# %%
net = run.trained.model.eval()
W = {site.name: net.get_submodule(site.path).weight for site in sites}
after = {name: weight.detach().clone() for name, weight in W.items()}
delta = {name: after[name] - W0[name] for name in W0}
course.show(*ch.sizes(delta, W0))

# %% [markdown]
# ### The spectrum, beside that of a random twin
#
# A *random twin* is a matrix of random numbers with the shape and the norm of a $\Delta W$. If training changed a
# matrix without any structure, both would have the same spectrum.

# %%
last = max(int(name.split(".")[0]) for name in delta)
course.show(*ch.spectra(delta, ["0.q", f"{last}.q", f"{last}.down"]))

# %% [markdown]
# Now all matrices, with the measures of section 3. The SVD of every change and of every twin is kept for the cuts.


# %%
def twin_of(change):
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
    return noise * change.norm() / noise.norm()


svds = {
    "real ΔW": {name: torch.linalg.svd(c, full_matrices=False) for name, c in delta.items()},
    "random twin": {name: torch.linalg.svd(twin_of(c), full_matrices=False) for name, c in delta.items()},
}

# %%
measured = {}
for what, found in svds.items():
    measured[what] = {
        "90 %": {name: rank_for_share(s, 0.9) for name, (_, s, _) in found.items()},
        "effective": {name: effective_rank(s) for name, (_, s, _) in found.items()},
        "stable": {name: float(s.square().sum() / s[0] ** 2) for name, (_, s, _) in found.items()},
    }
course.show(*ch.three_measures(measured))

# %% [markdown]
# So a real change has structure. Whether one calls it low rank depends on the measure: a few large singular values
# are followed by a long tail of small ones, and each measure weighs the tail differently. The energy counts every
# entry of a matrix alike, whether the task needs it or not. So let us ask the task.
#
# ### Cut, put back, evaluate
#
# Cut every $\Delta W$ to its first $i$ directions, add it to the pretrained matrix, and evaluate the network on the
# test examples. Biases, layer norms and the head stay as they were trained. Then do the same with the random twins.

# %%
test = ch.batches_of(run)
n_test = sum(len(batch["labels"]) for batch in test)


@torch.no_grad()
def evaluate():
    """Accuracy and mean loss on the test examples."""
    hits = loss = 0.0
    for batch in test:
        out = net(**batch)
        hits += int((out.logits.argmax(-1) == batch["labels"]).sum())
        loss += float(out.loss) * len(batch["labels"])
    return hits / n_test, loss / n_test


@torch.no_grad()
def put(weights):
    """Write these matrices into the network."""
    for name, weight in weights.items():
        W[name].copy_(weight)


trained = evaluate()
print(f"{n_test} examples, the network as trained: accuracy {trained[0]:.3f}, loss {trained[1]:.3f}")

# %%
ranks = [0, 1, 2, 4, 8, 16, 32, 64, min(d, k)]
scores = {what: {} for what in svds}
for what, found in svds.items():
    for i in ranks:
        cut = {name: (U[:, :i] * s[:i]) @ Vh[:i] for name, (U, s, Vh) in found.items()}
        put({name: W0[name] + cut[name] for name in cut})
        scores[what][i] = evaluate()
        print(f"{what}, rank {i:>3}: accuracy {scores[what][i][0]:.3f}, loss {scores[what][i][1]:.3f}")
put(after)  # the network is as it was trained again

# %%
course.show(ch.cut_figure(scores, n_test, run), ch.finding_of_cuts(scores, n_test))

# %% [markdown]
# The bars belong to one accuracy taken alone. All points are one network on the same examples, so they move
# together. The loss is the finer measure: it changes with every example, not only with those whose label flips.
#
# ### Exercise 8a · Debug: what was cut? (4 minutes)
#
# A colleague wants the same cut for one matrix. `W0` is the pretrained matrix and `W` the trained one. Find the
# mistake.


# %%
@course.exercise
def cut_weights(W0, W, i):
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :i] * s[:i]) @ Vh[:i]


cut_weights.check()

# %% [markdown]
# Both versions in the network at rank 8: yours, and the colleague's, which cuts $W$ itself.

# %%
put({name: cut_weights(W0[name], after[name], 8) for name in W0})
kept = evaluate()[0]
put({name: truncate(after[name], 8) for name in W0})
ch.say_cost({"ΔW cut to rank 8": kept, "W itself cut to rank 8": evaluate()[0], "as trained": trained[0]})
put(after)

# %% [markdown]
# LoRA never says that $W$ has low rank. It speaks of the change only.
#
# ### Is low rank nearly inevitable here?
#
# We train a head with **two** classes. Look at the gradient where it begins. The logits of one example are $z$, with
# $C$ entries; $p$ is their softmax, $y$ the label and $e_y$ its one-hot vector. The loss $L = -\ln p_y$ has the
# gradient
#
# $$\frac{\partial L}{\partial z} = p - e_y .$$
#
# Its entries add up to zero, so the gradients of *all* examples together span at most $C - 1$ dimensions. With
# $C = 2$ each of them is a multiple of $(1, -1)$. The head's matrix $H$ sends it back to the features $f$ as
# $\partial L / \partial f = H^\top (p - e_y)$: every example pulls its features along one and the same line,
# to one side or to the other. And only the token `[CLS]` is read by the head.
#
# ### Exercise 8b · The gradient at the logits (5 minutes)
#
# `logits` is $(N, C)$ and `labels` is $(N,)$. Return the gradient of the *mean* loss with respect to the logits,
# $(N, C)$.


# %%
@course.exercise
def logit_gradient(logits, labels): ...


logit_gradient.check()

# %%
draw = torch.Generator().manual_seed(0)
for C in (2, 4, 16, 64):
    G = logit_gradient(torch.randn(200, C, generator=draw), torch.randint(C, (200,), generator=draw))
    print(f"{C:>2} classes, 200 examples: the gradients have rank {int(torch.linalg.matrix_rank(G, rtol=1e-5))}")

# %% [markdown]
# How far down does this reach? Below the head a non-linear layer follows, then attention over all tokens, and each
# mixes the examples' gradients more. Measure it: the same pretrained network and the same examples, a new head with
# $C$ classes, and random labels. Only $C$ changes.


# %%
def gradient_ranks(C):
    """Rank for 90 % of the gradient of every matrix, for a new head with C classes and random labels."""
    net = bench.network().eval()
    torch.manual_seed(0)
    net.classifier = nn.Linear(net.config.hidden_size, C).double()
    logits = net(**bench.inputs).logits
    nn.functional.cross_entropy(logits, torch.randint(C, (len(logits),))).backward()
    grads = {site.name: net.get_submodule(site.path).weight.grad for site in lt.select(net, "all")}
    return {name: rank_for_share(torch.linalg.svdvals(G), 0.9) for name, G in grads.items()}


by_classes = {C: gradient_ranks(C) for C in (2, 4, 16, 64)}
course.show(ch.classes_figure(by_classes), ch.finding_of_classes(by_classes, len(bench.inputs["input_ids"])))

# %% [markdown]
# With two classes the loss and the head leave the features of all examples only one line to be pulled along,
# whatever the examples say. So the results of this notebook must not be carried over to every task. A language model
# has as many classes as words, at every token; [08](08_generation.ipynb) trains one.
#
# ## 9 · Ablate
#
# ### Is the long tail the optimizer's doing?
#
# If the gradients have so few directions, where does the tail of $\Delta W$ come from? The first step of Adam divides
# every entry of the gradient by its own size. What is left is its *sign*, and a matrix of signs has no reason to keep
# a low rank. Plain gradient descent (SGD) adds up the gradients as they are. Train the loop of section 5 with both.
# The rate of SGD is the best of three that were tried here, by the training loss; AdamW has the one of section 5.

# %%
by_sgd, _, of_sgd = train(lambda ps: torch.optim.SGD(ps, lr=0.1))
first = bench.network().eval()
first(**bench.batches[0]).loss.backward()
one = {site.name: first.get_submodule(site.path).weight.grad for site in lt.select(first, "all")}
of = {ch.ADAM: of_adam, ch.SGD: of_sgd, ch.ONE: one, ch.SIGN: {name: G.sign() for name, G in one.items()}}
by_optimizer = {
    what: {name: rank_for_share(torch.linalg.svdvals(c), 0.9) for name, c in changes.items()}
    for what, changes in of.items()
}
ends = {ch.ADAM: ch.mean_loss(by_adam, bench), ch.SGD: ch.mean_loss(by_sgd, bench)}
finding = ch.finding_of_optimizers(by_optimizer, ends, len(bench.batches[0]["labels"]))
course.show(ch.optimizers(by_optimizer), finding)

# %% [markdown]
# ### Which directions, over seeds?
#
# The stored study repeats the cut with several seeds (its line says on which task and network), and asks two more
# questions. What do all directions *but* the first $i$ keep? And $i$ directions that are drawn *at random* from the
# same $\Delta W$?

# %%
stored = ch.stored()
course.show(ch.seeds_figure(stored), ch.finding_of_seeds(stored))

# %% [markdown]
# A random draw of eight out of 384 directions can contain the first one. Compare the seeds that drew it with those
# that did not:

# %%
ch.say_lucky(stored)

# %% [markdown]
# ## 10 · Play
#
# Cut the $\Delta W$ of section 8 yourself. The spectrum and the corner of $\Delta W$ are computed as you move; the
# score is that of the nearest rank that was evaluated. Matrices are numbered in the order of the forward pass, six a
# layer: $W_q$, $W_k$, $W_v$, $W_o$, up, down.

# %%
real = scores["real ΔW"]
cutter = ch.CutNetwork(
    {name: tuple(part.numpy() for part in found) for name, found in svds["real ΔW"].items()},
    {i: score[0] for i, score in real.items()},
    ch.halves(real, n_test),
    "test accuracy",
)
states = [{"matrix": 0, "i": i} for i in (1, 8, 64)]
course.show(course.strip(cutter, states), "Rank 1, 8 and 64. " + cutter.words(**states[1]))

# %%
course.explore(cutter)

# %% [markdown]
# From which rank on does the picture of $\Delta W$ stop changing, and from which rank on does the score?
#
# ## 11 · Exercises
#
# **11a · Recall.** What does a direction read, and what does it write? Why is the energy a sum over directions? Why
# is a cut of $\Delta W$ to rank 8 not the network that LoRA with $r = 8$ would have found?
#
# **11b · Modify (5 minutes).** Keep one direction only, but not the first. The cell does so; change it to leave the
# first one *out*. Which costs more?

# %%
for j in range(3):
    parts = svds["real ΔW"].items()
    put({name: W0[name] + s[j] * torch.outer(U[:, j], Vh[j]) for name, (U, s, Vh) in parts})
    accuracy, loss = evaluate()
    print(f"direction {j + 1} of every ΔW alone: accuracy {accuracy:.3f}, loss {loss:.3f}")
put(after)

# %% [markdown]
# **11c · Modify.** Cut the matrices of one layer only. Which layer needs the most directions?
#
# **11d · Open.** The figure of section 9 compares SGD and AdamW at one learning rate each. Choose the rates so that
# both reach the same loss, and say before you run it what you expect.
#
# **11e · Open.** Set `LOWRANK_TASK` to a task with more classes. Which findings of section 8 change?
#
# ## 12 · What is claimed, and what was measured
#
# The verdicts come from the intervals over the seeds of the stored study. The thresholds (80 %, half) are ours: the
# papers name none.

# %%
ch.claims(stored, measured)

# %% [markdown]
# Nothing was measured here for larger networks, longer trainings or tasks with many classes.
# [07](07_side_by_side.ipynb) compares low-rank methods with full fine-tuning over tasks and seeds.
#
# ## 13 · Common confusions
#
# - **"The pretrained $W$ has low rank."** It is the change that is cut. A network whose $W$ is cut is another network
#   (exercise 8a).
# - **"$\Delta W$ has low rank."** By energy most matrices need tens of directions or more. What has few directions is
#   the part that the task uses (section 9).
# - **"Rank 0 is the pretrained network."** Biases, layer norms and the head stay as trained, and this head was
#   trained for features that are gone.
# - **"The cut network is LoRA at rank 8."** The eight directions were chosen after a training in which all others
#   were free. LoRA has to find its own while it trains.
# - **"A gradient of few directions makes a $\Delta W$ of few directions."** Gradients of different steps add up, and
#   Adam does not add gradients but rescaled ones.
#
# ## 14 · To take along
#
# - A matrix is a sum of directions: each reads one number, weighs it by a singular value and writes one column.
# - Cutting the sum at $i$ gives the nearest matrix of rank $i$.
# - Energy and use are different. Before you believe a statement about rank, ask which of the two was measured.
# - With $C$ classes the gradients at the logits span at most $C - 1$ dimensions. A task with two classes is a
#   friendly case for low rank.
# - The rank of $\Delta W$ also depends on the optimizer, so it is no property of the task alone.
#
# **Further reading.** [Li et al. 2018](https://arxiv.org/abs/1804.08838) and [Aghajanyan et al.
# 2020](https://arxiv.org/abs/2012.13255) on the intrinsic dimension; [GaLore](https://arxiv.org/abs/2403.03507),
# which makes use of gradients of low rank; [Biderman et al. 2024](https://arxiv.org/abs/2405.09673), who find changes
# of high rank where much has to be learned. The library's measures are in
# [measures.py](../lowrank_teach/analysis/measures.py).
#
# **Next question:** if few directions do the work, why not train only those from the start?
# [02 · LoRA](02_lora.ipynb)
