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
# **Question:** does my machine work, and what is this?
#
# **You need:** Python and this package (`make lab` sets up both). No GPU, no paper read. **Time:** minutes on a
# laptop. Every run is kept: a second pass takes seconds.
#
# **In the end you have** moved a slider, seen the one idea behind all the methods, and trained every method on
# the same text.

# %%
import lowrank_teach as lt
import torch
from IPython.display import display
from lowrank_teach.analysis import style
from lowrank_teach.course import contents, explorer, training_button
from lowrank_teach.course.chapters import lora
from lowrank_teach.reproduction import figures
from lowrank_teach.training import config
from lowrank_teach.training.callbacks import ProgressLine

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"  # tiny: half the layers
print(contents.machine_line())
print(f"profile: {PROFILE}; backbone: {BACKBONE}")

# %% [markdown]
# That line is your machine, and every number below was measured on it. The *profile* says how long things train;
# the *backbone* is the pretrained network (a small sentence encoder) that all methods start from.
#
# ## 1 · Does a slider work?
#
# First the static picture. A matrix of numbers is drawn as a ring. Any matrix is a sum of *directions*: a column
# times a row, each weighted by a number, its *singular value*. Keep only the first few, and count how few numbers
# that takes.

# %%
ring = lora.RankOfAPicture()
style.show(
    explorer.strip(ring, [{"i": 1}, {"i": 2}, {"i": 4}]),
    "Look at how fast the ring appears: one direction is a square blot, four are "
    "nearly all of it.",
    "Three rows. Left, singular values as bars, the kept ones blue; right, the ring "
    "rebuilt from 1, 2 and 4 of "
    "its directions: first a square blot, then a rough ring, then nearly the ring.",
)

# %% [markdown]
# Now the same picture with a slider. Drag it, or click it and use the arrow keys; the box takes a number.

# %%
explorer.explore(ring)

# %% [markdown]
# **If there is only a line of text above, or a blank:** the notebook is being shown, not run. Run it in
# JupyterLab (`make lab`); if it stays blank, run `pip install -U ipywidgets jupyterlab_widgets`, and reload the
# page. Nothing in the course depends on a slider: each has a static picture above it.

# %%
state = {"i": 4}
print(ring.words(**state))
energy = (ring.s[: state["i"]] ** 2).sum() / (ring.s**2).sum()
assert energy > 0.9, "four directions should hold nearly all of the ring"

# %% [markdown]
# A picture of few directions is a *low-rank* matrix. The bet of this whole course: what a network has to
# **change** to learn a task is such a picture too. Notebook 01 puts the bet to the test.
#
# ## 2 · The idea
#
# A pretrained network is mostly large matrices. Call one of them $W$: it turns $k$ numbers $x$ into $d$ numbers
# $h$. Fine-tuning would change all $d \cdot k$ numbers of it. Here $W$ stays frozen, and a narrow path is laid
# beside it:
#
# $$h \;=\; W x \;+\; s \cdot B \,\mathrm{diag}(g)\, A\, x$$

# %%
style.show(
    lora.idea(),
    "Grey is frozen. Blue trains: A reads x into r numbers, B writes them out to d. "
    "Orange: one gate a direction.",
    "x goes two ways: through the large frozen matrix W, and through a thin matrix A,"
    " r gates g, a thin matrix B and "
    "a scale s = alpha over r. The two results are added to h.",
)

# %% [markdown]
# $A$ has $r$ rows and $B$ has $r$ columns, and $r$, the *rank*, is small. The change $\Delta W =
# s\,B\,\mathrm{diag}(g)A$ is a sum of $r$ directions, like the ring. $B$ starts at zero, so at first nothing
# changes.
#
# Every method of the course is this one layer plus a *rule*: how the gate $g$ is made, and what happens around a
# training step.
#
# | method | gate $g$ | what its rule does |
# |---|---|---|
# | LoRA | ones | nothing: $A$ and $B$ train |
# | COLA, a chain of LoRA | ones | at a *knot* adds what was learned to $W$ and starts a fresh $A$, $B$ |
# | SaLoRA | learned, each between 0 and 1 | closes gates until a budget is met, cuts these off, goes on as LoRA |
# | Delta-LoRA | ones | after each step adds the step's change of $s\,BA$ to $W$ as well |
# | AutoLoRA | learned on rows kept aside | keeps the directions with enough weight, then trains LoRA at those ranks |
#
# ## 3 · The map
#
# One notebook a question. 01 and 02 come first. 03 to 06 are one paper each, and may be read in any order; 07
# compares what they introduce. *To come* in the last column means that a notebook is not in this folder.

# %%
contents.readable(contents.course_map(), "map")

# %% [markdown]
# ## 4 · All methods on the same text
#
# The task `rt`: is a film critic's sentence for or against the film? The rows are split by film, so no film is
# seen in training *and* in the test.

# %%
data = lt.load_task("rt", n_train=4)
print(data.source)
contents.readable(data.train[["text", "label"]], "films")

# %% [markdown]
# Label 1 is for the film. Now train each method once, from the same pretrained weights, on the same rows in the
# same order. The first line is the control: only the small classifier on top trains (the *head*), and no matrix
# changes. `cola-2` and `cola-3` are chains of two and three links.


# %%
def tell(label, run):
    took = "found" if run.found else f"{run.seconds['total']:4.0f} s"
    print(f"{label:<11} {took}", flush=True)


line = ProgressLine()
runs = lt.compare(
    "rt", BACKBONE, PROFILE, seed=0, progress=False, callbacks=[line], on_run=tell
)

# %%
contents.readable(
    lt.table(runs),
    "methods",
    accuracy="{:.3f}",
    validation="{:.3f}",
    trainable="{:,}",
    ms_a_step="{:.0f}",
    search_s="{:.0f}",
    total_s="{:.0f}",
)

# %% [markdown]
# How to read it: *accuracy* is the share of right answers on the test rows, *validation* the same on other rows,
# *trainable* counts the numbers that trained in the end, head included. *ranks* are the smallest and largest rank
# left in any matrix. Times are this machine's. SaLoRA puts branches on six matrices a layer, the others on two.
#
# **How far to trust it.** One seed and few test rows: the next cell computes how far chance alone moves such a
# score.

# %%
accuracy = runs["lora"].score("test")[1]
rows = len(lt.load_task("rt", n_test=lt.train_config(PROFILE).n_test).test)
chance = 1.96 * (accuracy * (1 - accuracy) / rows) ** 0.5  # half of a 95 % interval
print(f"{rows} test rows: an accuracy of {accuracy:.3f} is known to ± {chance:.3f} at best")

# %% [markdown]
# Smaller differences between two lines mean nothing yet: that takes more seeds, and intervals. What *must* hold
# in any run, on any machine, is asserted here:

# %%
first = {
    label: run.series("loss")[1][0] for label, run in runs.items() if label != "autolora"
}
assert max(first.values()) - min(first.values()) < 1e-3, (
    "B starts at zero: all begin as the same network"
)
assert all(
    run.parameters["trainable"] < 0.02 * run.parameters["total"] for run in runs.values()
)
assert set(runs["lora"].ranks.values()) == {8}, "LoRA keeps every direction"
assert sum(runs["salora"].ranks.values()) < 8 * len(runs["salora"].ranks), (
    "SaLoRA cut some directions off"
)
assert all(1 <= rank <= 8 for rank in runs["autolora"].ranks.values()), (
    "AutoLoRA chose from 1 to 8"
)
print(
    "all begin at the same loss, train under 2 % of the network, and keep the ranks their rules allow"
)

# %% [markdown]
# **Train one yourself.** Choose a method and another seed, and press the button. How far does the accuracy move
# by the seed alone? The training runs in a process of its own: go on reading meanwhile, or stop it and start it
# again where it was. (Where this page is only shown, there is nothing to press.)

# %%
trainer = training_button.TrainNow("rt", BACKBONE, PROFILE)
display(trainer.box)

# %% [markdown]
# ## 5 · What the runs left behind
#
# A run is a record: configuration, seed, machine, history, and what each matrix has become. Pictures are drawn
# from it.
#
# **Learning.** Look first at the grey dotted line, the head alone: what do the branches add?

# %%
curves = figures.SIGNATURES["loss"]
style.show(
    curves.draw(curves.arrays(runs)),
    curves.caption,
    "Training loss against optimizer step, one line a method, all falling from about "
    "the same height.",
)

# %% [markdown]
# **Ranks.** Two methods choose how many directions each matrix needs. Look for structure: do some matrices or
# layers keep more than others?

# %%
ranks = figures.SIGNATURES["ranks"]
style.show(
    ranks.draw(ranks.arrays(runs)),
    ranks.caption,
    "Two tables of ranks by matrix and layer, from 0 to 8: SaLoRA's over six "
    "matrices, AutoLoRA's over two.",
)

# %% [markdown]
# **SaLoRA's budget.** *Density* is the share of directions expected open; λ is the price of being off budget, and
# rises until the budget is met. Look for the density reaching the dashed line. Where the grey window ends, closed
# directions are removed and the other gates become a part of $B$. From there on the training is LoRA's.

# %%
density = figures.SIGNATURES["density"]
style.show(
    density.draw(density.arrays(runs)),
    density.caption,
    "Four panels over training: the density falls towards its target, the multiplier "
    "rises, two penalties "
    "that keep directions apart, and the cost of being off budget.",
)

# %%
_, path = runs["salora"].series("density")
target = runs["salora"].config["method"]["b"]
print(f"density: {path[0]:.3f} at the start, {path[-1]:.3f} at the end, target {target}")
assert abs(path[-1] - target) < abs(path[0] - target), (
    "the density should have moved towards its budget"
)

# %% [markdown]
# **How far W turned.** Read $W$ before and after as two long arrows: the cosine of the angle between them is 1
# where nothing changed. Look at the axis: it is logarithmic, and all the numbers are small.

# %%
cosine = figures.SIGNATURES["cosine"]
style.show(
    cosine.draw(cosine.arrays(runs)),
    cosine.caption,
    "One minus the cosine by layer, one panel for W_q and one for W_v, one line for "
    "LoRA and one for Delta-LoRA.",
)

# %%
turned = {
    label: max(1 - c for c in runs[label].by_site("cosine").values())
    for label in ("lora", "delta_lora")
}
for label, value in turned.items():
    print(f"{label}: no matrix turned further than 1 − cosine = {value:.1e}")
assert all(0 < value < 0.5 for value in turned.values()), (
    "every method turns W, and only a little"
)

# %% [markdown]
# ## 6 · In your own code
#
# Six lines put a method on any model of `transformers`. What follows is ordinary PyTorch: only the listed
# parameters have `requires_grad`.

# %%
model, tokenizer = lt.load_backbone(
    BACKBONE, num_labels=2
)  # or AutoModelForSequenceClassification…
adapters = lt.adapt(model, lt.LoRA(r=8, lora_alpha=16.0, sites="qv"), seed=0)
batch = tokenizer(
    ["A gem of a film.", "Two hours I want back."], padding=True, return_tensors="pt"
)
loss = model(**batch, labels=torch.tensor([1, 0])).loss
loss.backward()  # then your optimizer's step, and so on
adapters.merge()  # in the end: one plain network again

# %% [markdown]
# What was matched, and how many parameters that is:

# %%
adapters.plan()

# %% [markdown]
# ## What to take along
#
# - A weight change can be kept as a few directions: $W x + s\,B\,\mathrm{diag}(g)A x$. With $B = 0$ nothing changes.
# - A method is this layer plus a rule. Nothing else differs between the lines of the table.
# - All of them train under two percent of the network, as asserted above.
# - One seed is an example, not evidence.
# - Runs are records: every figure here was drawn from stored numbers.
#
# **Next:** `01_why_low_rank`: how much of a real weight change is low rank?
