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
# **Question:** what is the layer that everything else changes?
#
# **You need:** 00 and 01. **Time:** minutes on a laptop; every run is kept, so a second pass is quick.
# **Paper:** Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685.

# %%
import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach.analysis import measures, plots, style
from lowrank_teach.analysis.statistics import smooth
from lowrank_teach.course import contents, explorer, glossary
from lowrank_teach.course.chapters import lora
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.reproduction import ledger
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK = "rt"  # or "cola", "rte", "mrpc", "stsb" where LOWRANK_TEACH_DATA or the hub is there
print(contents.machine_line())
print(f"profile: {PROFILE}; backbone: {BACKBONE}; task: {TASK}")

# %% [markdown]
# ## 1 · Question
#
# Fine-tuning gives every task its own copy of the whole network. How many numbers is that, and could a task be a
# small *addition* to a shared, frozen network instead? Notebook 01 found that few directions of a whole change do
# the work. It found them after training everything. Here nothing else is trained.

# %%
model, tokenizer = lt.load_backbone(BACKBONE, num_labels=2, seed=0)
total = sum(p.numel() for p in model.parameters())
print(f"{total:,} numbers, {4 * total / 1e6:.0f} MB in float32: one copy for every task")

# %% [markdown]
# ## 2 · The idea in one picture
#
# Leave the matrix $W$ as it is, and learn a *low-rank* change beside it: a product of two thin matrices. (The
# gate $g$ of notebook 00 is one in LoRA, and is left out here.)

# %%
style.show(
    lora.idea(gate=False),
    "Only blue trains. In the network used here, the blue strips are thinner still "
    "than they are drawn.",
    "x goes through the frozen matrix W and, beside it, through thin A, thin B and "
    "the scale alpha over r; "
    "the two results are added to h.",
)

# %% [markdown]
# $A$ starts random and $B$ at zero. The scale $\alpha / r$ sets how large the branch is; dividing by $r$ is meant
# to let you change the rank without finding a new learning rate. Section 9 measures whether it does.
#
# ## 3 · Maths ↔ code
#
# Read a row as: this letter, in words, is this expression here, has this shape ($*$ is any number of tokens), and
# is called this in the `peft` library.

# %%
rows = glossary.table(["x", "W", "A", "B", "r", "α", "s", "ΔW", "h", "W + ΔW"])
contents.readable(rows, "glossary")

# %% [markdown]
# The equation of the paper (its number 3), and the two lines of the library that compute it:
#
# $$h = W x + \frac{\alpha}{r}\, B A\, x$$
#
# `z = F.linear(x, self.lora_A)` reads $x$ into $r$ numbers; `_add_product(h, z, self.lora_B, self.scaling, …)`
# writes them out. The product $BA$ is never formed.
#
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
q = lt.select(model, "q")[0]
branch = lt.LowRank(k=q.k, d=q.d, r=8, scaling=2.0)
predict(
    f"W_q is {q.d} × {q.k} and r = 8. What are the shapes of lora_A and lora_B?",
    f"lora_A {tuple(branch.lora_A.shape)} and lora_B {tuple(branch.lora_B.shape)}",
)

# %%
tall = lt.LowRank(k=q.k, d=q.d, r=2 * branch.r)
predict(
    "Doubling r: what happens to the branch's parameters? And to those of W?",
    f"they double, from {measures.parameter_counts(branch)['total']:,} to "
    f"{measures.parameter_counts(tall)['total']:,}; W keeps its {q.d * q.k:,}",
)

# %%
branch(torch.ones(1, q.k)).sum().backward()
size_A, size_B = (
    float(factor.grad.abs().max()) for factor in (branch.lora_A, branch.lora_B)
)
predict(
    "Before training B = 0. Which of A and B gets a gradient in the very first step?",
    f"B alone: its largest gradient is {size_B:.2f} here, that of A is {size_A:g}. "
    "The output sees A only through B, so A moves from the second step on",
)
assert size_A == 0 < size_B

# %%
pulled = lt.LowRank(k=q.k, d=q.d, r=8)
torch.nn.init.normal_(pulled.lora_B)
before = float(pulled.delta().norm())
optimizer = torch.optim.AdamW(pulled.parameters(), lr=0.1, weight_decay=0.1)
for factor in (pulled.lora_A, pulled.lora_B):
    factor.grad = torch.zeros_like(factor)  # the task says nothing: only the decay acts
optimizer.step()
left = float(pulled.delta().norm()) / before
predict(
    "Weight decay shrinks A and B a little at every step. Towards which network does that pull?",
    f"towards the pretrained one, not towards zero: one step leaves {left:.4f} of ΔW here, which is "
    "(1 − rate × decay) squared, as A and B both shrink. In full fine-tuning decay shrinks W itself",
)
assert np.isclose(left, (1 - 0.1 * 0.1) ** 2, rtol=1e-4)

# %% [markdown]
# ## 5 · Implement
#
# Five exercises. Change the body, run the cell; the check answers with a hint and a picture of *your* result. If
# you leave a stub, the notebook goes on with the library's version.
#
# **5a · How A and B start** (4 minutes)
# - one of the two is zero, so that $\Delta W = 0$; the other must not be (the third prediction says why);
# - `u` (r, k) is even between 0 and 1; $A$ is to be even between $-1/\sqrt k$ and $1/\sqrt k$;
# - return $A$ and $B^\top$ side by side, (r, k + d), so that one picture shows both.


# %%
@exercise
def lora_start(d, k, r, seed):
    u = torch.rand(r, k, generator=torch.Generator().manual_seed(seed))
    A = u  # change both
    B = torch.ones(d, r)
    return torch.cat([A, B.T], dim=1)


lora_start.check()

# %% [markdown]
# **5b · The forward pass** (5 minutes)
# - `x` is (T, k), `W` (d, k), `lora_A` (r, k), `lora_B` (d, r); return `h` (T, d);
# - rows are tokens, so $Wx$ is written `x @ W.T`;
# - mind the scale: `lora_alpha` is α, not $s$.


# %%
@exercise
def lora_forward(x, W, lora_A, lora_B, lora_alpha):
    h = x @ W.T
    return h  # the branch is missing


lora_forward.check()

# %% [markdown]
# **5c · The merge** (3 minutes)
# - return one matrix (d, k) that does the same as $W$ and branch together;
# - leave `W` itself as it is: it has to be given back.


# %%
@exercise
def lora_merge(W, lora_A, lora_B, lora_alpha):
    return W + lora_B @ lora_A  # nearly: find the bug


lora_merge.check()

# %% [markdown]
# **5d · Count the parameters** (2 minutes)
# - how many numbers train in a branch of rank $r$ on a $d \times k$ matrix?


# %%
@exercise
def count_parameters(d, k, r): ...


count_parameters.check()

# %% [markdown]
# **5e · Debug: another rank, the same scale** (3 minutes)
# - a run with `r` and `lora_alpha` worked; the next is to have rank `new_r`, and a branch scaled *as before*;
# - return the α for it. This version stood in a sweep over ranks, and made the ranks look more different than
#   they are.


# %%
@exercise
def keep_scale(lora_alpha, r, new_r):
    return lora_alpha  # find the bug


keep_scale.check()

# %% [markdown]
# The library's own source answers all five. Run `solution(lora_forward)` to see the forward pass; here is the
# merge:

# %%
solution(lora_merge)

# %% [markdown]
# ## 6 · Sanity: four things that must be true
#
# Put LoRA on $W_q$ and $W_v$ of every layer, and look at what was matched.

# %%
method = lt.LoRA(r=8, lora_alpha=16.0, sites="qv")
batch = tokenizer(
    ["A gem of a film.", "Two hours I want back."], padding=True, return_tensors="pt"
)
with torch.no_grad():
    plain = model(**batch).logits
adapters = lt.adapt(model, method, seed=0)
adapters.plan()

# %% [markdown]
# **Unchanged at the start**, because $B = 0$: not nearly, exactly.

# %%
with torch.no_grad():
    adapted = model(**batch).logits
print("largest change of an output:", float((adapted - plain).abs().max()))
assert torch.equal(adapted, plain), "B = 0 must change nothing"

# %% [markdown]
# **Only these names train:** every $A$, every $B$, and the new head.

# %%
trains = [name for name, p in model.named_parameters() if p.requires_grad]
print(*trains[:4], "…", *trains[-2:], sep="\n")
branches = [name for name in trains if name.endswith(("lora_A", "lora_B"))]
assert len(branches) == 2 * len(adapters), "an A and a B at every site"
assert set(trains) - set(branches) == set(adapters.head_names), "besides them only the head"
assert all(
    count_parameters(b.lora_B.shape[0], b.lora_A.shape[1], b.r)
    == b.lora_A.numel() + b.lora_B.numel()
    for b in adapters.values()
)

# %% [markdown]
# **Merging changes nothing** that can be seen from outside. Give every $B$ some values first, as training would;
# then write $\Delta W$ into $W$.

# %%
pretrained = {name: adapters.owner(name).W.clone() for name in adapters}
with torch.no_grad():
    for b in adapters.values():
        b.lora_B.normal_(std=0.5)
    beside = model(**batch).logits
    adapters.merge()
    merged = model(**batch).logits
gap = float((merged - beside).abs().max())
moved = float((beside - plain).abs().max())
print(f"the branches moved an output by up to {moved:.3f}, merging by {gap:.0e}")
assert gap < 1e-4 < moved, "a merged layer is the same function"

# %% [markdown]
# **W gets its own bytes back.** Subtracting what was added would leave rounding behind, so the library keeps the
# bytes.

# %%
changed = sum(not torch.equal(adapters.owner(name).W, W) for name, W in pretrained.items())
adapters.restore()
assert all(torch.equal(adapters.owner(name).W, W) for name, W in pretrained.items())
print(f"{changed} matrices differed while merged, none differs after restore()")

# %% [markdown]
# ## 7 · Train on a real task
#
# The films of notebook 00. Grey in the picture is a stored reference run; yours has another seed, so it should
# look *alike*, not equal.

# %%
keep_reference(
    "02_lora", lambda: lt.fit(method, TASK, BACKBONE, PROFILE, 0)
)  # `make notebooks`
reference, made = load_reference("02_lora")
print(made)
live = LiveCurve("lora", reference)
run = lt.fit(method, TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], progress=False)
live.finish(
    run,
    "Your loss over the reference run. Look for the level both settle at, more than for each bend.",
)

# %%
name, value = run.score("test")
counts = run.parameters
print(
    f"test {name} {value:.3f}; {counts['trainable']:,} of {counts['total']:,} numbers trained"
)
steps, loss = run.series("loss")
assert np.isfinite(loss).all(), "a loss that is not finite would have been refused"
assert run.parameters["trainable"] < 0.02 * run.parameters["total"]

# %% [markdown]
# Interrupting is safe: stop the cell, run it again, and it goes on from the step where it was. A finished run is
# found again instead of trained.
#
# ## 8 · Look at what was learned
#
# The record keeps the factors of every $\Delta W$. Look at how quickly the *singular values* (the weights of the
# directions) fall: are all eight directions in use?

# %%
last = max(int(site.split(".")[0]) for site in run.factors)
shown = ["0.q", "0.v", f"{last}.q", f"{last}.v"]
sigma = {site: measures.singular_values(*run.factors[site]) for site in shown}
style.show(
    plots.spectra(
        {site: s.numpy() for site, s in sigma.items()},
        energy={site: measures.energy(s).numpy() for site, s in sigma.items()},
    ),
    "Left: singular values of ΔW by index. Right: the share of ‖ΔW‖² that the first i"
    " hold; 1 is all of it.",
    "Falling singular values of four matrices, first and last layer, q and v, on a "
    "log axis; beside it the "
    "share of energy rising towards one.",
)

# %% [markdown]
# The *effective rank* says in one number how many directions are in use: 8 if all weigh the same, 1 if one does
# all.

# %%
effective = run.by_site("effective_rank")
style.show(
    plots.rank_heatmap(effective, max_rank=method.r, label="Effective rank of ΔW"),
    f"Effective rank of every ΔW, out of r = {method.r}. Look for rows or columns that stand out.",
    "Table of effective ranks by matrix (q, v) and layer, coloured from 0 to 8.",
)
assert all(1 <= rank <= method.r + 1e-6 for rank in effective.values())

# %% [markdown]
# The *norm* says how large a change is. Where did the task need the most change?

# %%
norms = run.by_site("norm")
style.show(
    plots.rank_heatmap(norms, max_rank=max(norms.values()), label="‖ΔW‖ (Frobenius)"),
    "Size of every ΔW (root of the sum of its squares). Compare W_q with W_v, and "
    "early layers with late ones.",
    "Table of norms of the weight change by matrix (q, v) and layer.",
)
largest = max(norms, key=norms.get)
print(f"largest change: {largest}, {norms[largest]:.2f}")

# %% [markdown]
# Beside $W$, that is little: the angle between $W$ and $W + \Delta W$ is small everywhere.

# %%
cosines = run.by_site("cosine")
style.show(
    plots.cosine_by_layer({"lora": cosines}, one_minus=True),
    "1 − cosine of W before and after, on a log axis: 0.01 would be an angle of 8 degrees.",
    "One minus the cosine between each matrix before and after training, by layer; a "
    "panel for W_q and one for W_v.",
)
assert all(0.9 < c < 1 for c in cosines.values()), "small turns only"

# %% [markdown]
# ## 9 · Ablate: rank × α
#
# Nine short trainings, three ranks by three α. The middle rank is trained with three seeds, so that we see how
# much of a difference is chance. Short trainings show how fast the loss falls, not where it would end.

# %%
RANKS, ALPHAS, SEEDS = (1, 4, 16), (4.0, 16.0, 64.0), (0, 1, 2)
LENGTHS = {
    "tiny": {"steps": 6, "n_validation": 64, "n_test": 64},
    "laptop": {"steps": 60},
    "gpu": {"steps": 500},
}


def short_run(r, alpha, seed=0):
    return lt.fit(
        lt.LoRA(r=r, lora_alpha=alpha),
        TASK,
        BACKBONE,
        PROFILE,
        seed,
        **LENGTHS[PROFILE],
    )


grid = {}
for r in RANKS:
    for alpha in ALPHAS:
        grid[r, alpha] = short_run(r, alpha)
        print(
            f"r = {r:<2}  α = {alpha:<2g}  s = {alpha / r:<4g}  validation loss "
            f"{grid[r, alpha].metrics['validation']['loss']:.3f}",
            flush=True,
        )

# %% [markdown]
# The validation loss is a finer measure than the accuracy: it moves with every row, not only with those that
# flip.

# %%
loss_at = {key: one.metrics["validation"]["loss"] for key, one in grid.items()}
style.show(
    lora.score_grid(
        np.array([[loss_at[r, alpha] for alpha in ALPHAS] for r in RANKS]),
        RANKS,
        ALPHAS,
        label="Validation loss (lower is better)",
    ),
    "Read along a row (α at one rank), then down a column (rank at one α). Which "
    "changes more?",
    "Three by three table of validation losses: ranks 1, 4, 16 down, alpha 4, 16, 64 "
    "across.",
)

# %%
middle = RANKS[1]
seeds = {
    alpha: [short_run(middle, alpha, seed).metrics["validation"]["loss"] for seed in SEEDS]
    for alpha in ALPHAS
}
style.show(
    plots.chain_length({f"rank {middle}": seeds}, ylabel="Validation loss", xlabel="α"),
    "One dot a seed; the band is one standard deviation. Differences within it "
    "may be chance.",
    "Validation loss against alpha at rank 4, the mean of three seeds as a line, with"
    " a band and a dot for each.",
)

# %% [markdown]
# What the grid says, in numbers: how far the loss moves along each knob, and how far by the seed alone.

# %%
by_alpha = np.mean([np.ptp([loss_at[r, alpha] for alpha in ALPHAS]) for r in RANKS])
by_rank = np.mean([np.ptp([loss_at[r, alpha] for r in RANKS]) for alpha in ALPHAS])
by_seed = np.mean([np.std(values, ddof=1) for values in seeds.values()])
print(f"range over α at one rank: {by_alpha:.3f}\nrange over r at one α:    {by_rank:.3f}")
print(f"spread of the seeds:      {by_seed:.3f}")
assert np.isfinite(list(loss_at.values())).all()

# %% [markdown]
# At a fixed α, a larger rank also means a smaller scale $s$, so the columns mix two effects. The diagonal of the
# grid holds $s$ fixed and changes the rank alone:

# %%
diagonal = {r: loss_at[r, alpha] for r, alpha in zip(RANKS, ALPHAS, strict=True)}
assert all(
    keep_scale(ALPHAS[0], RANKS[0], r) == a for r, a in zip(RANKS, ALPHAS, strict=True)
)
by_rank_alone = max(diagonal.values()) - min(diagonal.values())
print(
    f"s = {ALPHAS[0] / RANKS[0]:g}:",
    {f"r = {r}": round(value, 3) for r, value in diagonal.items()},
)
print(
    f"range {by_rank_alone:.3f}, that is {by_rank_alone / by_seed:.1f} times the spread of the seeds"
)

# %% [markdown]
# ### What a step costs
#
# Three measures against full fine-tuning: operations, counted from the shapes; seconds, measured here in turns;
# and the memory for gradients and the optimizer's state, counted from the tensors themselves.

# %%
shapes = {site.name: (site.d, site.k) for site in lt.select(adapters.remove(), "all")}
tokens, length = 16 * 32, 32
ranks = {site: method.r for site in shapes if site.endswith((".q", ".v"))}
counted = {
    "LoRA": measures.model_flops(shapes, ranks, tokens, length),
    "full": measures.model_flops(shapes, {}, tokens, length, train_weight=True),
}
print({name: f"{flops.total / 1e9:.1f} GFLOP a step" for name, flops in counted.items()})

# %%
pair = {}
for label, chosen in (("LoRA", method), ("full", lt.FullFineTuning())):
    fresh, _ = lt.load_backbone(BACKBONE, num_labels=2, seed=0)
    pair[label] = lt.adapt(fresh, chosen, seed=0).model.train()
words = torch.randint(1000, 20000, (16, 32), generator=torch.Generator().manual_seed(0))
cost = measures.step_costs(
    pair, {"input_ids": words, "labels": torch.zeros(16, dtype=torch.long)}
)
print(
    {
        label: f"{1000 * c.median:.0f} ms, {c.state_bytes / 1e6:.1f} MB"
        for label, c in cost.items()
    }
)

# %%
ratios = {
    "operations": counted["LoRA"].total / counted["full"].total,
    "seconds (median of turns)": cost["LoRA"].median / cost["full"].median,
    "gradients and optimizer state": cost["LoRA"].state_bytes / cost["full"].state_bytes,
}
style.show(
    lora.ratio_bars(
        ratios, xlabel="LoRA's share of full fine-tuning's cost (dashed: equal)"
    ),
    "Look for where LoRA saves most. Its operations cannot fall far below two thirds.",
    "Bars: "
    + ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items())
    + " of full fine-tuning's.",
)
assert 0.6 < ratios["operations"] < 0.8
assert ratios["gradients and optimizer state"] < 0.05 < ratios["seconds (median of turns)"]

# %% [markdown]
# Why two thirds: a full step multiplies by $W$ going forward, by $W$ going back, and once more for the gradient
# of $W$ itself. LoRA spares only the last.
#
# ## 10 · Play
#
# **Cut a trained ΔW.** Its eight directions are sorted by size; keep the first $i$. First a static strip, then
# the slider.

# %%
cut = lora.Truncation(
    {site: (left.numpy(), right.numpy()) for site, (left, right) in run.factors.items()}
)
style.show(
    explorer.strip(cut, [{"matrix": 0, "i": i} for i in (1, 4, 8)]),
    "The first matrix, cut to 1, 4 and 8 directions. Look for when the picture stops "
    "changing.",
    "Three rows: the singular values with the kept ones blue, and a corner of ΔW "
    "rebuilt from 1, 4 and 8 directions. " + cut.words(matrix=0, i=4),
)

# %%
explorer.explore(cut)

# %% [markdown]
# Matrices are numbered in the order of the forward pass: layer 0 $W_q$, layer 0 $W_v$, layer 1 $W_q$ … Find one
# whose first direction holds more than half of the energy, if there is one.
#
# **Rank × α.** Only nine runs are stored, so this slider *snaps*: it shows the nearest of them and says which.

# %%
curves = {key: smooth(one.series("loss")) for key, one in grid.items()}
knobs = lora.RankAlpha(curves, loss_at, "validation loss")
style.show(
    explorer.strip(
        knobs,
        [{"rank": 1, "alpha": 64}, {"rank": 4, "alpha": 16}, {"rank": 16, "alpha": 4}],
    ),
    "Three corners of the grid: the chosen run is framed, its loss curve blue among "
    "all nine.",
    "Three rows, each the table of losses with a frame and the loss curve of that run. "
    + knobs.words(rank=4, alpha=16),
)

# %%
explorer.explore(knobs)

# %% [markdown]
# ## 11 · Exercises
#
# **Recall.** Why may $A$ not start at zero, too? Which two facts make the merge exact? What does α do that the
# learning rate does not?
#
# **Modify.** Put LoRA on all six matrices (`sites="all"`) at `r=2`: the branches then hold about as many numbers
# as before. Is the loss lower? Try `init="gaussian"` and look at the first ten steps.
#
# **Debug.** Someone trains $A$ and $B$, merges, saves the network, loads it as "pretrained" and trains a second
# task on top. The first task still works. Is that a bug? What is no longer true of `restore()`?
#
# **Open.** The grid confounds α with the learning rate. Design the three runs that would separate them, and say
# before you run them what each outcome would mean.

# %%
everywhere = lt.adapt(
    lt.load_backbone(BACKBONE, num_labels=2, seed=0)[0],
    lt.LoRA(r=2, lora_alpha=4.0, sites="all"),
)
print("sites='all', r = 2:", everywhere.plan().summary())

# %% [markdown]
# ## 12 · Claims against measurements
#
# First what was measured above, with the verdict computed: *holds* here, or *not seen* here. The last two rest on
# one seed a cell.

# %%
exact = torch.equal(adapted, plain)
share = run.parameters["trainable"] / total
memory = ratios["gradients and optimizer state"]
at_one_s = f"range {by_rank_alone:.3f} at one s; seeds ± {by_seed:.3f}"
at_one_alpha = f"range {by_rank_alone:.3f} at one s; {by_rank:.3f} at one α"
seen_here = [
    ("B = 0: the start is the pretrained network", exact, "outputs exactly equal"),
    (
        "merged: the same function, no extra layer",
        gap < 1e-4,
        f"outputs differ by {gap:.0e}",
    ),
    ("a small share of the parameters trains", share < 0.02, f"{share:.2%}"),
    ("less memory for the optimizer", memory < 1, f"{memory:.3f} of full fine-tuning's"),
    ("short runs: at one s, any rank will do", by_rank_alone < 2 * by_seed, at_one_s),
    (
        "short runs: one s suits more ranks than one α",
        by_rank_alone < by_rank,
        at_one_alpha,
    ),
]
print(f"{sum(holds for _, holds, _ in seen_here)} of {len(seen_here)} statements hold here")

# %%
names = ["statement", "verdict", "measured"]
verdicts = [(s, "holds" if holds else "not seen", how) for s, holds, how in seen_here]
contents.readable(pd.DataFrame(verdicts, columns=names).set_index("statement"), "seen")

# %% [markdown]
# Then the rows of the course's ledger: the paper's claims held against stored studies and exact checks. *No runs
# yet* says that too few seeds are stored for a verdict.

# %%
contents.readable(ledger.table("LoRA"), "claims")

# %% [markdown]
# **Not measured here:** the paper's scores (GLUE, GPT-3), networks of its size, and whether LoRA is as good as
# full fine-tuning. Notebook 07 compares methods over seeds; 11 collects every claim.
#
# ## 13 · What to take along
#
# - The layer is $h = Wx + \frac{\alpha}{r} BAx$; $W$ is frozen, $B$ starts at zero.
# - It holds $r(d + k)$ numbers instead of $d \cdot k$, and merges away without a trace.
# - When ranks are compared, say what was held fixed, α or $s = α/r$: section 9 measures both.
# - It saves optimizer memory far more than time: the backward pass still goes through $W$.
# - Its rank is the same everywhere, though the heatmaps above show that matrices use it differently.
#
# **Next question:** if one update of rank $r$ is not enough, can a chain of them be? `03_cola`.
