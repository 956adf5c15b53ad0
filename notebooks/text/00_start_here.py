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
# # 00 · Start here
#
# **Question:** why would anyone want this, and does my machine work?
#
# **You need:** a first acquaintance with PyTorch, and this package (`make lab`). No GPU, no paper read.
# **Time:** an hour, of which about ten minutes are trainings. **Task:** sentiment of film reviews (SST-2, or the
# packaged `rt` where it cannot be had); `LOWRANK_TASK` names another classification task.

# %%
import time

import lowrank_teach as lt
import numpy as np
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.start
task, backbone, profile = course.begin()

# %% [markdown]
# The first line is your machine. The *profile* says how long the trainings are (`LOWRANK_PROFILE` is `tiny`,
# `laptop` or `gpu`). The *network* is a small pretrained sentence encoder.
#
# The most frequent trouble on the first day is a notebook that runs in another Python than the one in which
# the package was installed. The next cell checks that; a line with ✗ says what to do.

# %%
print("\n".join(ch.environment()))

# %% [markdown]
# ## 1 · Why would anyone want this?
#
# A large language model is pretrained once, and then *fine-tuned*: trained a little more on the examples of
# one task. The plain way trains all its *parameters*, the numbers in its matrices. What does that need in
# memory? With AdamW, the usual optimizer, four things are held for each parameter that trains: the parameter
# itself, its gradient, and two running averages (the *moments*), of 4 bytes each. A frozen parameter needs
# only itself.
#
# Take LLaMA-7B, with 32 layers and a width of 4096. *LoRA* freezes all its matrices and trains a pair of thin
# matrices beside two of them in each layer.

# %%
n = 6_738_415_616                        # parameters of LLaMA-7B
pairs = 32 * 2 * 8 * (4096 + 4096)       # 32 layers, 2 matrices in each, rank 8, rows and columns
full = (4 + 4 + 8) * n                   # bytes: every parameter, its gradient, its two moments
lora = 2 * n + (4 + 4 + 8) * pairs       # the frozen network in 16 bits, and the same four things for the pairs
print(f"full fine-tuning: {full / 2**30:6.1f} GiB for {n:,} parameters that train")
print(f"LoRA:             {lora / 2**30:6.1f} GiB for {pairs:,} parameters that train ({pairs / n:.3%})")

# %% [markdown]
# This sum leaves out the *activations*, which the forward pass keeps for the backward pass. The library's
# planner counts them, too, without loading a weight.

# %%
plans = ch.bills()
course.show(ch.bill(plans), ch.finding_bill(plans))

# %% [markdown]
# The last bar keeps the frozen network in 4 bits a number, as QLoRA does
# ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)). The activations are those of one text of 512
# tokens; longer texts and larger batches need more.
#
# **Who did what.** Small trainable modules inside a frozen network came first: *adapters* ([Houlsby et al.
# 2019](https://arxiv.org/abs/1902.00751)). [Aghajanyan et al. 2020](https://arxiv.org/abs/2012.13255) found
# that fine-tuning needs few free directions. LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) turned
# this into a layer that adds nothing to the network once training is over. The four papers of this course
# change that layer.
#
# ## 2 · The idea in one picture
#
# Call one frozen matrix $W$: it turns $k$ numbers $x$ into $d$ numbers $h$. LoRA adds a path beside it:
#
# $$h \;=\; W x \;+\; s \, B A\, x, \qquad s = \alpha / r$$
#
# $A$ has $r$ rows and reads $x$ into $r$ numbers. $B$ has $r$ columns and writes them out to $d$ numbers. The
# *rank* $r$ is small, for example 8, and $\alpha$ is a fixed number that scales the path. The weight change
# is $\Delta W = s\,BA$. It has $d \cdot k$ entries, like $W$, but it is made of only $r$ *directions*, each
# of which is a column of $B$ times a row of $A$. $B$ starts at zero, so at first nothing changes.
#
# Each of the four papers asks another question about this formula:

# %%
course.show(
    ch.paper_map(),
    "The map of the course. COLA and Delta-LoRA write into W, SaLoRA and AutoLoRA decide how many directions "
    "B and A need. LoRA itself changes nothing but A and B.",
)

# %% [markdown]
# | paper | its question | notebook |
# |---|---|---|
# | LoRA, [Hu et al. 2021][1] | can a thin path beside W learn the task? | [02](02_lora.ipynb) |
# | COLA, [Xia et al. 2024][2] | can a chain of small changes do what one cannot? | [03](03_cola.ipynb) |
# | SaLoRA, Hu et al. 2023, Mathematics 11(20) | which directions does each matrix need? | [04](04_salora.ipynb) |
# | Delta-LoRA, [Zi et al. 2023][3] | can W itself move without being trained? | [05](05_delta_lora.ipynb) |
# | AutoLoRA, [Zhang et al. 2024][4] | can ranks be learned on held-out examples? | [06](06_autolora.ipynb) |
#
# [1]: https://arxiv.org/abs/2106.09685
# [2]: https://arxiv.org/abs/2401.04151
# [3]: https://arxiv.org/abs/2309.02411
# [4]: https://arxiv.org/abs/2403.09113
#
# Before you go on, say the answer aloud, then open it.

# %%
ch.predict_size(d=384, k=384, r=8)

# %% [markdown]
# ## 3 · LoRA in a dozen lines
#
# Here is the layer. It takes the place of a linear layer, keeps it, and adds the path.


# %%
class LoRALinear(nn.Module):
    def __init__(self, linear, r=8, alpha=16):
        super().__init__()
        self.linear, self.s = linear, alpha / r            # W and its bias, frozen
        d, k = linear.weight.shape
        self.A = nn.Parameter((2 * torch.rand(r, k) - 1) / k**0.5)
        self.B = nn.Parameter(torch.zeros(d, r))

    def forward(self, x):
        return self.linear(x) + self.s * (x @ self.A.T) @ self.B.T


layer = LoRALinear(nn.Linear(384, 384))
for name, p in layer.named_parameters():
    print(f"{name:<14} {tuple(p.shape)}")

# %% [markdown]
# Next come the examples. The label is what the network should say about the text.

# %%
config = lt.train_config(profile)
data = lt.load_task(task, n_train=config.n_train, n_test=config.n_test, validation_from_train=True)
print(data.source)
print(f"Label 0 means {data.task.labels[0]}, label 1 means {data.task.labels[1]}.")
course.readable(data.train[[*data.task.text, data.task.label]].head(4).reset_index(drop=True), "examples")

# %% [markdown]
# Now the network. Everything in it is frozen except the *head*, a small new classifier on top. `LoRALinear`
# takes the place of two matrices in each layer, which make the *queries* and the *values* of attention.


# %%
def network(with_lora):
    model, tokenizer = lt.load_backbone(backbone, num_labels=len(data.task.labels))
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        p.requires_grad_(name in model.lowrank_new_parameters)     # the head trains, all else is frozen
    for block in model.bert.encoder.layer if with_lora else ():
        attention = block.attention.self
        attention.query = LoRALinear(attention.query)
        attention.value = LoRALinear(attention.value)
    return model, tokenizer


for with_lora in (False, True):
    trained = sum(p.numel() for p in network(with_lora)[0].parameters() if p.requires_grad)
    print(f"{'with LoRA' if with_lora else 'head only'}: {trained:,} parameters train")

# %% [markdown]
# Texts become numbers in batches: each batch holds 16 texts, cut into tokens and padded to the longest.


# %%
def batch(tokenizer, frame, rows):
    rows = frame.iloc[rows]
    words = tokenizer(*(list(rows[column]) for column in data.task.text), padding=True, truncation=True,
                      max_length=config.max_length, return_tensors="pt")
    return {**words, "labels": torch.tensor(list(rows[data.task.label]))}


mine, tokenizer = network(with_lora=True)
for name, values in batch(tokenizer, data.train, range(16)).items():
    print(f"{name:<15} {tuple(values.shape)}")

# %% [markdown]
# Here is the training loop, as in any PyTorch tutorial. It trains the network with LoRA.


# %%
def train(model, rate):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses, start = [], time.perf_counter()
    model.train()
    for step in range(1, config.steps + 1):
        rows = np.arange(16 * (step - 1), 16 * step) % len(data.train)
        loss = model(**batch(tokenizer, data.train, rows)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % (config.steps // 6) == 0:
            left = (time.perf_counter() - start) / step * (config.steps - step)
            print(f"step {step:>3} of {config.steps}   loss {np.mean(losses[-10:]):.3f}   {left:.0f} s left")
    return losses


mine, tokenizer = network(with_lora=True)     # a fresh one each time this cell runs
losses = {"lora": train(mine, config.lr)}

# %% [markdown]
# The same loop trains the frozen network, where only the head learns. This *baseline* shows what the paths of
# LoRA add. A head of a few hundred parameters gets a larger learning rate, because at LoRA's it hardly learns.

# %%
frozen, _ = network(with_lora=False)
losses["head"] = train(frozen, ch.head_rate(backbone, config.lr))

# %% [markdown]
# Now both are asked about texts that neither has seen.


# %%
def right_answers(model):
    model.eval()
    parts = np.array_split(np.arange(len(data.test)), -(-len(data.test) // 50))
    with torch.no_grad():
        batches = (batch(tokenizer, data.test, rows) for rows in parts)
        return np.concatenate([(model(**b).logits.argmax(1) == b["labels"]).numpy() for b in batches])


right = {"lora": right_answers(mine), "head": right_answers(frozen)}
for name, answers in right.items():
    print(f"{name:<5} {answers.sum()} of {len(answers)} right")

# %%
chance = ch.entropy(data.train[data.task.label])
course.show(ch.learning(losses, chance), ch.finding_by_hand(losses, right, ch.majority(data)))

# %% [markdown]
# *Chance* is the loss of a forecast that knows how frequent each class is and nothing of the text. For class
# shares $p_0, p_1$ it is the entropy $-p_0 \ln p_0 - p_1 \ln p_1$, which is $\ln 2 = 0.69$ for two equally
# frequent classes. A loss near it means that nothing was learned.
#
# **What has been learned?** Each $\Delta W = s\,BA$ is a matrix of 384 × 384 numbers. How many directions has
# it?

# %%
query = mine.bert.encoder.layer[0].attention.self.query
delta = (query.s * query.B @ query.A).detach()
sigma = torch.linalg.svdvals(delta)
print(f"ΔW of W_q, layer 0: {delta.numel():,} entries, rank {torch.linalg.matrix_rank(delta)}")
print("its first ten singular values:", ", ".join(f"{value:.3f}" for value in sigma[:10]))
print(f"its size against W: {delta.norm() / query.linear.weight.norm():.1%}")

# %% [markdown]
# A *singular value* is the weight of one direction; those after the eighth are zero up to rounding. So the
# path can be *merged*: add $\Delta W$ to $W$, throw $A$ and $B$ away, and the network is as fast as before.

# %%
x = torch.randn(5, 384)
with torch.no_grad():
    merged = nn.functional.linear(x, query.linear.weight + delta, query.linear.bias)
    print(f"with the path and merged: the outputs differ by at most {(query(x) - merged).abs().max():.1e}")

# %% [markdown]
# The difference is rounding in 32 bits.
#
# ## 4 · All methods on one task
#
# The library does the same with one line a method: the same pretrained network, the same examples in the same
# order, the same number of steps. A bar shows each training and the time that is left.

# %%
runs = {}
for label, method in ch.LINE.items():
    rate = {"lr": ch.head_rate(backbone, config.lr)} if label == "head" else {}
    runs[label] = lt.fit(method, task, backbone, profile, seed=0, validation_from_train=True, **rate)
    print(ch.progress(runs))

# %% [markdown]
# The first row will be no method: it says the larger class to every text. The *live branch* is the pair $A$,
# $B$ that is there when training ends. The *whole change* is everything by which the matrix then differs from
# the pretrained one. Predict first:

# %%
ch.predict_whole_rank(r=8, links=3)

# %%
course.readable(ch.table(runs, data), "methods")

# %% [markdown]
# Two ranks, such as 2–6, are the smallest and the largest over the matrices. A direction counts if its
# singular value is more than a millionth of the largest. COLA's rank grows with each link. The times are
# those of the first training here, and of whatever else the machine did: compare them only if it was idle.
#
# It is **not** true that nothing else differs between these rows. This is what else differs:

# %%
print(ch.what_differs(runs))
course.readable(ch.differences(runs), "differences")

# %% [markdown]
# `start of A` names how $A$ is drawn, here alike for all; some of the papers say "Gaussian" and give no scale.
# SaLoRA works on six matrices a layer; its gates learn in the *window* from `t_start` to `t_end`. AutoLoRA
# trains twice: a search (`search_steps`) on two halves of the examples, then anew. Delta-LoRA waits `K` steps
# before $W$ moves. So this table is no race. Notebook 07 gives each method its own rate, and equal budgets.
#
# ## 5 · What must be true in any run
#
# Scores vary with the seed, but some statements hold on every machine.

# %%
print("\n".join(ch.checks(runs)))

# %% [markdown]
# ## 6 · Look
#
# First the scores. The interval of each dot is what the number of test examples leaves open: of a hundred such
# intervals, each from other examples, about 95 would hold the score on all texts of this kind.

# %%
course.show(ch.scores(runs, data), ch.finding_scores(runs, data))

# %% [markdown]
# Then the training losses, with chance again. AutoLoRA's curve is its second training, after the search.

# %%
curves = {label: run.series("loss")[1][-int(run.seconds["steps.training"]):] for label, run in runs.items()}
course.show(ch.learning(curves, chance), ch.finding_learning(curves, chance))

# %% [markdown]
# Two methods choose a rank for each matrix. Which matrices keep many directions?

# %%
ranks = {"SaLoRA": runs["salora"].ranks, "AutoLoRA": runs["autolora"].ranks}
figure = lt.plots.rank_heatmaps(ranks, max_rank=8)
figure.set_label("Two tables of ranks from 0 to 8 by matrix and layer: SaLoRA over six matrices, AutoLoRA over two.")
course.show(figure, ch.finding_ranks(runs))

# %% [markdown]
# ## 7 · Play: the first slider
#
# What does "few directions" look like? A matrix of 40 × 40 numbers is drawn as a ring, and rebuilt from its
# first directions.

# %%
ring = course.chapters.lora.RankOfAPicture()
course.show(course.strip(ring, [{"i": 1}, {"i": 2}, {"i": 4}]), "Above one direction, then two, then four. "
            + ring.words(i=1) + " " + ring.words(i=4))

# %% [markdown]
# Drag the slider, or click it and use the arrow keys, or type a number into the box and press Enter. **Try:**
# from how many directions on do you see no change any more?

# %%
course.explore(ring)

# %% [markdown]
# If you see only a line of text, start the notebook with `make lab` and run the cell. If you see nothing, run
# `pip install -U ipywidgets jupyterlab_widgets` and reload the page.
#
# **Train one yourself.** Choose a method and another seed. How far does the accuracy move by the seed alone?
# The training has a process of its own, so you can read on meanwhile.

# %%
ch.train_now(task, backbone, profile, validation_from_train=True)

# %% [markdown]
# ## 8 · In your own code
#
# Three lines put a method on any model of `transformers`; the rest is ordinary PyTorch.

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=len(data.task.labels))
adapters = lt.adapt(model, lt.LoRA(r=8, lora_alpha=16.0, sites="qv"), seed=0)
adapters.plan()

# %% [markdown]
# Is the library's LoRA the one you wrote? Copy your trained $A$, $B$ and head into it, and compare in 64 bits.

# %%
own = dict(mine.named_parameters())
for i, block in enumerate(mine.bert.encoder.layer):
    for letter, linear in (("q", block.attention.self.query), ("v", block.attention.self.value)):
        adapters[f"{i}.{letter}"].lora_A.data.copy_(linear.A)
        adapters[f"{i}.{letter}"].lora_B.data.copy_(linear.B)
for name in model.lowrank_new_parameters:
    model.get_parameter(name).data.copy_(own[name])
texts = batch(tokenizer, data.test, range(8))
with torch.no_grad():
    yours, ours = (net.double().eval()(**texts).logits for net in (mine, model))
assert (yours - ours).abs().max() < 1e-10, "the library's LoRA and yours should give the same logits"
print(f"8 texts: the logits differ by at most {(yours - ours).abs().max():.0e}")
mine, model = mine.float(), model.float()

# %% [markdown]
# The same layer is in `peft`; [02](02_lora.ipynb) shows that the numbers are equal there, too.
#
# ## 9 · Common confusions
#
# - **"LoRA is a smaller network."** The paths come on top. Gradients, moments and the file of a task shrink.
# - **"LoRA trains much faster."** Its passes still go through the whole network.
# - **"Rank 8 means 8 parameters."** It means 8 directions, each with $d + k$ parameters.
#
# ## 10 · Where to go from here

# %%
course.readable(course.contents.course_map(), "map")

# %% [markdown]
# 01 and 02 come first; 03 to 06 take one paper each, in any order. A letter that you do not remember stands in
# the [glossary](GLOSSARY.md).
#
# ## What to take along
#
# - Full fine-tuning pays for gradients and moments of every parameter, LoRA only for those of a thin path.
# - $h = Wx + s\,BAx$, with $B = 0$ at the start. Two papers change $W$, two the number of directions.
# - A score means something beside its baselines, and one seed is an example, not evidence.
#
# **Further reading:** the [LoRA paper](https://arxiv.org/abs/2106.09685), sections 4 and 7.
#
# **Next question:** how much of a real weight change is low rank? [01](01_why_low_rank.ipynb) measures it.
