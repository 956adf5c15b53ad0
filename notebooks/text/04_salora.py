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
# # 04 · SaLoRA
#
# **Question:** which rank directions does each matrix need?
#
# **You need:** 02 (the layer $h = Wx + s\,BAx$). **Time:** minutes on a laptop; every run is kept, so a second
# pass is quick. **Paper:** Hu et al. 2023, *Structure-Aware Low-Rank Adaptation for Parameter-Efficient
# Fine-Tuning*, Mathematics 11(20), 4317.

# %%
import dataclasses

import lowrank_teach as lt
import numpy as np
import torch
from lowrank_teach.analysis import measures, plots, style
from lowrank_teach.analysis.toy_problems import gates_alone
from lowrank_teach.course import contents, explorer, glossary
from lowrank_teach.course.chapters import lora, salora
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.methods import Clock
from lowrank_teach.reproduction import ledger, studies
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK = "rt"  # or "cola", "rte", "mrpc", "stsb" where LOWRANK_TEACH_DATA or the hub is there
print(f"{contents.machine_line()}\nprofile: {PROFILE}; backbone: {BACKBONE}; task: {TASK}")

# %% [markdown]
# ## 1 · Question
#
# LoRA gives every matrix the same rank. Some matrices may need more, others none at all. Trying all combinations
# is out of the question. Can *one* training find out which directions are worth keeping?

# %%
model, tokenizer = lt.load_backbone(BACKBONE, num_labels=2, seed=0)
method = lt.SaLoRA(r=8, b=0.5)
adapters = lt.adapt(model, method, seed=0)
directions = method.r * len(adapters)
print(f"{len(adapters)} matrices × {method.r} directions = {directions} yes-or-no choices")
print(f"that is a number of {len(str(2**directions))} digits of ways to choose")

# %% [markdown]
# ## 2 · The idea in one picture
#
# Put a *gate* between $A$ and $B$, one number in $[0, 1]$ for each direction. Train the gates with the rest, and
# set a *budget*: a share $b$ of all directions may stay open. After a first part of the training, what is closed is
# cut away. The rest of the training is that of a LoRA with the directions that are left.

# %%
style.show(
    salora.gated_directions([1.0, 0.7, 0.0, 0.4, 0.0, 0.9]),
    "One matrix with six directions. Two gates are zero: their row of A and column of B "
    "can be deleted, and nothing changes.",
    "Six parallel lanes from x to h, each a row of A, a gate and a column of B; the third "
    "and fifth lane are faint and crossed out, since their gates are zero.",
)

# %% [markdown]
# Unlike LoRA in 02, all six matrices of a layer take part ($W_q, W_k, W_v, W_o$ and the two of the feed-forward
# block), and $A$ and $B$ are pulled towards orthogonal directions, so that each direction counts by itself.
#
# ## 3 · Maths ↔ code

# %%
letters = ["g", "log θ", "u", "τ (SaLoRA)", "γ, ζ", "P(g > 0)", "ĝ"]
letters += ["C", "b", "λ (SaLoRA)", "η_c", "R", "β (SaLoRA)"]
contents.readable(glossary.table(letters, papers=["SaLoRA"]), "glossary")

# %% [markdown]
# A gate must be able to be *exactly* zero, and must still pass a gradient. The *hard-concrete* variable does
# both: a sigmoid of noise, stretched a little beyond $[0, 1]$ and clipped.
#
# $$\bar s = \sigma\!\left(\tfrac{\mathrm{logit}\,u + \log\theta}{\tau}\right)(\zeta - \gamma) + \gamma, \qquad
# g = \mathrm{clip}(\bar s, 0, 1), \qquad u \sim U(0, 1)$$
#
# The number of open gates has no gradient, but its expectation has one:
#
# $$P(g > 0) = \sigma\!\left(\log\theta - \tau \log\tfrac{-\gamma}{\zeta}\right), \qquad
# C = \frac{\sum_i (d_i + k_i) \sum_j P(g_{ij} > 0)}{\sum_i (d_i + k_i)\, r}$$
#
# In code: `Stretch.sample`, `Stretch.open_probability`, `SaLoRARule.density`. The whole loss is
#
# $$\text{task} + \beta R + \lambda (C - b)^2, \qquad R = \text{mean over matrices of } \|AA^\top - I\|_F^2 +
# \|B^\top B - I\|_F^2$$
#
# Everything descends on it, but λ *ascends*: as long as the budget is missed, λ grows. Gates train only inside a
# *window* of steps. Before it they are one.
#
# **What happens when the window closes.** The paper says that its method acts in 30 % of the training only, and that
# the other 70 % are the same as LoRA. So here the gates end with the window:
#
# 1. The noise ends: each gate takes its value without noise, $\hat g$ (that of $u = 1/2$).
# 2. A direction with $\hat g = 0$ is removed: its row of $A$ and its column of $B$.
# 3. The gates that are left are *folded* into $B$: $B \leftarrow B\,\mathrm{diag}(\hat g)$. From then on there is
#    no gate.
#
# The fold leaves the function as it is, because $B\,\mathrm{diag}(\hat g)\,A$ is the same product before and after
# it. The training loop checks this. Adam's moments of $B$ have to follow: a column that was multiplied by $\hat g$
# has its old gradient divided by $\hat g$. So the running mean of gradients is divided by $\hat g$, and that of
# their squares by $\hat g^2$. After that every matrix trains as a plain LoRA, at a rank of its own.
#
# `after_window="leave"` is the ablation: there the gates keep the value $\hat g$ to the end of the training, and a
# direction with $\hat g = 0.2$ moves the network a fifth as far with each step of its column.
#
# Four readings are ours. The paper prints $C$ as a sum of each matrix's own share; that can exceed 1, so we
# divide once, by the total. It also writes $A^\top A$ in one place; that is $k \times k$ and of rank $r$ at most,
# so it can never be the identity. It adds $R$ up over the matrices, and we take the mean (section 6
# shows why). And it does not say how long $R$ acts. Here it ends with the window
# (`orthogonality_until`): the fold has made the columns of $B$ shorter, and $R$ would pull them back to length one.
#
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
stretch = method.stretch
start = float(stretch.open_probability(torch.zeros(())))
predict(
    "All log θ start at 0. With γ = −0.1 and ζ = 1.1, what is the expected density C?",
    f"σ(log 11) = 11/12 = {start:.4f}: the 0.92 at which the paper's Figure 6 starts",
)
assert abs(start - 11 / 12) < 1e-6

# %%
paper_rate, gap = 0.01, start - method.b
predict(
    "λ starts at 0 and η_c = 0.01. How much does λ grow in its first step, with plain "
    "gradient ascent? And with Adam?",
    f"plain: η_c (C − b)² = {paper_rate * gap**2:.4f}; Adam divides by the gradient's "
    f"size: {paper_rate}",
)

# %%
far = torch.tensor(-5.0, dtype=torch.float64)
predict(
    "When the window closes, keep a direction if its expected gate E[g] is above 0. With "
    "log θ = −5, is it kept?",
    f"yes: E[g] = {float(stretch.mean(far)):.4f} is small, and above 0",
)

# %% [markdown]
# ## 5 · Implement
#
# Change the body, run the cell; the check answers with a hint and a picture of *your* result. If you leave a
# stub, the notebook goes on with the library's version.
#
# **5a · One draw of a gate** (4 minutes)
# - `u` and `log_theta` are (r,), the others are numbers; return `g` (r,), all in [0, 1];
# - `torch.logit(u)` is log(u / (1 − u)).


# %%
@exercise
def sample_gate(u, log_theta, tau, gamma, zeta):
    s = torch.sigmoid((torch.logit(u) + log_theta) / tau)  # (r,), between 0 and 1
    return s  # can this ever be exactly 0?


sample_gate.check()

# %% [markdown]
# **5b · The probability that a gate is not zero** (4 minutes)
# - return $P(g > 0)$ (r,); the formula stands in section 3, or solve $\bar s > 0$ for $\mathrm{logit}\,u$.


# %%
@exercise
def open_probability(log_theta, tau, gamma, zeta):
    return torch.sigmoid(log_theta)


open_probability.check()

# %% [markdown]
# **5c · The expected density** (4 minutes)
# - `p` (n, r) holds $P(g > 0)$ of $n$ matrices; `d` and `k` (n,) are their sizes;
# - a direction of a large matrix costs more: it holds $d + k$ numbers; return one number.


# %%
@exercise
def expected_density(p, d, k):
    return p.mean()  # right if all matrices are of one size


expected_density.check()

# %% [markdown]
# **5d · A step of λ** (3 minutes)
# - plain gradient *ascent* on $\lambda (C - b)^2$ in λ at rate `eta_c`, then project on $\lambda \ge 0$;
# - `lam` and `C` are (n,): the same step for $n$ runs; leave `lam` itself as it is.


# %%
@exercise
def ascend_lambda(lam, C, b, eta_c):
    return lam - eta_c * (C - b) ** 2


ascend_lambda.check()
sides = torch.tensor([0.9, 0.6, 0.5, 0.4, 0.1])
steps_up = ascend_lambda(torch.ones(5), sides, method.b, 0.1) - 1
print({f"C = {c:.1f}": f"{step:+.4f}" for c, step in zip(sides, steps_up, strict=True)})
assert (steps_up >= 0).all()

# %% [markdown]
# The last line is the step of λ at five densities. **λ never falls:** its gradient is a square, positive on *both*
# sides of the target. What lets up is the pull on the gates, $2\lambda(C - b)$ times a slope: at $C = b$ it is
# zero whatever λ is, and below $b$ it turns round.
#
# **5e · Close the window: cut and fold** (5 minutes)
# - `lora_B` is (d, r), `log_theta` (r,); the noise has ended ($u = 1/2$), τ, γ, ζ are the usual ones;
# - return the columns of $B$ whose gate is above 0, each times its gate: (d, r′).


# %%
@exercise
def prune_and_fold(lora_B, log_theta):
    keep = log_theta > 0
    return lora_B[:, keep]


prune_and_fold.check()

# %%
solution(sample_gate)  # the library's own source; any of the five names will do

# %% [markdown]
# ## 6 · Sanity: what must be true
#
# **Unchanged at the start.** Before the window all gates are one, and $B = 0$.

# %%
batch = tokenizer(
    ["A gem of a film.", "Two hours I want back."], padding=True, return_tensors="pt"
)
with torch.no_grad():
    adapted = model.eval()(**batch).logits
gates_at_start = torch.stack([branch.gate() for branch in adapters.values()])
gate_names = [name for name, p in model.named_parameters() if name.endswith("log_theta")]
print(
    f"gates: {len(gate_names)} × {method.r}, all ones: {bool((gates_at_start == 1).all())}"
)
plain_model, _ = lt.load_backbone(BACKBONE, num_labels=2, seed=0)
with torch.no_grad():
    plain = plain_model.eval()(**batch).logits
assert torch.equal(adapted, plain), "open gates and B = 0 change nothing"
assert (gates_at_start == 1).all()
assert len(gate_names) == len(adapters)

# %% [markdown]
# **Your density is the library's**, on the real shapes of this network and at random log θ.

# %%
shapes = {name: (site.d, site.k) for name, site in adapters.sites.items()}
generator = torch.Generator().manual_seed(0)
log_theta = {
    site: (
        2 * torch.randn(8, generator=generator, dtype=torch.float64) - 2
    ).requires_grad_()
    for site in shapes
}
p = {site: stretch.open_probability(values) for site, values in log_theta.items()}
C = measures.density(p, shapes)
d, k = torch.tensor(list(shapes.values()), dtype=torch.float64).T
yours = expected_density(torch.stack(list(p.values())).detach(), d, k)
print(f"C = {C.item():.4f}, yours: {float(yours):.4f}")
assert abs(C.item() - float(yours)) < 1e-5

# %% [markdown]
# **The pull of the budget on a gate** is $2\lambda(C - b)\,p(1 - p)$ times the gate's share of all numbers. We ask
# autograd, and compare.

# %%
lam = 1.5
(lam * (C - method.b) ** 2).backward()
share = (d + k) / (method.r * (d + k).sum())
with torch.no_grad():
    off = 0.0
    for site, w in zip(shapes, share, strict=True):
        by_hand = 2 * lam * (C - method.b) * p[site] * (1 - p[site]) * w
        off = max(off, float((by_hand - log_theta[site].grad).abs().max()))
print(f"largest difference between the formula and autograd: {off:.0e}")
assert off < 1e-15

# %% [markdown]
# The factor $p(1 - p)$ is largest at $p = 1/2$. A gate that is wide open or tightly shut feels almost nothing; the
# budget moves the gates that are in doubt. (Section 10 draws this on the gates of your run.)
#
# **"Keep if E[g] > 0" keeps everything.** The paper drops a direction when its expected gate is zero. $E[g]$ is an
# average of numbers that are never negative and are sometimes positive, so it is above zero for *every* finite
# log θ. Two other rules do drop something, and they are the *same* rule: the deterministic gate is above zero
# exactly where $P(g > 0) > 1/2$, at any temperature. The library prunes by it.

# %%
grid = torch.linspace(-9, 4, 131, dtype=torch.float64)
readings = {
    "P(g > 0)": stretch.open_probability(grid),
    "E[g]": stretch.mean(grid),
    "deterministic gate": stretch.deterministic(grid),
}
style.show(
    salora.gate_readings(grid, readings, edge=-stretch.shift),
    "Look for the one curve that ends. Where it does, P(g > 0) crosses one half.",
    "Three rising curves over log theta on a log axis. P(g > 0) and E[g] fall to the left "
    "as straight lines without ever ending; the deterministic gate drops to nothing at "
    "−2.398.",
)
print(f"at log θ = {grid[0]:g}: E[g] = {readings['E[g]'][0]:.5f}")
assert (readings["E[g]"] > 0).all()
for tau in (0.3, 1.0, 2.0):
    other = dataclasses.replace(stretch, tau=tau)
    fixed, likely = other.deterministic(grid) > 0, other.open_probability(grid) > 0.5
    print(
        f"τ = {tau}: both keep log θ > {-other.shift:.3f}, {int((fixed != likely).sum())} apart"
    )
    assert torch.equal(fixed, likely)

# %% [markdown]
# **B = 0 and the orthogonality term are at odds.** $R$ wants $B^\top B = I$, the start needs $B = 0$, so each matrix
# begins with $r$ in its part for $B$. What this adds to the loss, beside a task loss of about $\log 2 = 0.69$, and
# the direction in which $R$ pushes:

# %%
height = method.beta * adapters.rule.orthogonality()[1].item()
print(f"the mean over the matrices, β · r: {height:.1f}")
print(f"added up over the {len(adapters)} matrices here: {height * len(adapters):.1f}")
print(f"added up over RoBERTa-base's 72 matrices: {height * 72:.1f}")
assert abs(height - method.beta * method.r) < 1e-3
adapters.rule.orthogonality()[1].backward()
push_at_zero = max(float(b.lora_B.grad.abs().max()) for b in adapters.values())
with torch.no_grad():
    for branch in adapters.values():
        branch.lora_B.normal_(std=0.01)
        branch.lora_B.grad = None
adapters.rule.orthogonality()[1].backward()
outward = -sum(float((b.lora_B.detach() * b.lora_B.grad).sum()) for b in adapters.values())
print(f"push at B = 0: {push_at_zero:g}; at a small B, along B: {outward:+.2f} (outwards)")
assert push_at_zero == 0 < outward

# %% [markdown]
# At exactly zero the penalty is high but flat: it pushes nowhere, so the start is safe. Its height does no harm,
# since only slopes train. As soon as the task moves $B$, the penalty pulls *every* column outwards, also those that
# the task has no use for. Only a gate can close them again. The paper's $R$ is a sum (its Equation 10), which
# pulls the harder the more matrices there are: a short training on many of them then follows $R$ and not the task.
# So the library takes the mean, and `orthogonality="sum"` is the switch.
#
# $A$ is random, and its spread can be chosen. With a spread of $1/\sqrt k$ its rows have about unit length, so
# $AA^\top \approx I$ from the start. The paper says only that $A$ is Gaussian and gives no scale. Here all methods
# start $A$ as LoRA does in 02, so that none gains by its start: "kaiming", with rows of length $1/\sqrt 3$. The
# switch is `init=`. Per matrix:

# %%
adapters.remove()
start_R = {}
for init in ("unit_rows", "kaiming", "gaussian"):
    tried = lt.adapt(model, dataclasses.replace(method, init=init), seed=0)
    start_R[init] = float(tried.rule.orthogonality()[0].detach())
    tried.remove()
print({name: f"‖AAᵀ − I‖² = {value:.2f}" for name, value in start_R.items()})
assert start_R["unit_rows"] < 3.4 < start_R["kaiming"] < 3.7 < start_R["gaussian"], "r (1 − 1/3)²"

# %% [markdown]
# "gaussian" has a spread of $1/r$: rows that are more than twice as long as $R$ wants them.
#
# ## 7 · Train on a real task
#
# The films of notebook 00. The window is about as long as the paper's, 30 % of the steps. But that is few steps here,
# so the gates need a faster rate than the paper's $\eta_c = 0.01$. The profile sets both. How long must a window be?
# If all gates moved alike, at $\eta_c$ a step, `shortest_window()` would do. They do not: λ must first outgrow the
# noise of the task.
# `estimated_window()` says what is likely to be enough. A window below the first is refused; one that missed $b$ is
# noted in the run.

# %%
fitted = config.fit_to_profile(method, PROFILE)
for label, one in {"the paper's rate": lt.SaLoRA(), "this profile": fitted}.items():
    print(
        f"{label}: η_c = {one.eta_c:g}, so at least {one.shortest_window()} steps, and "
        f"likely {one.estimated_window()}; window {one.t_start:.0%} to {one.t_end:.0%}"
    )

# %%
# `make notebooks` stores the reference run
keep_reference("04_salora", lambda: lt.fit(method, TASK, BACKBONE, PROFILE, seed=0))
reference, made = load_reference("04_salora")
print(made)
live = LiveCurve("salora", reference)
run = lt.fit(method, TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], progress=False)
live.finish(
    run,
    "Your task loss over the reference run. Gates close in the first part; from there on it is "
    "LoRA. Does the loss show where?",
)
name, value = run.score("test")
kept = sum(run.ranks.values())
print(f"test {name} {value:.3f}; {kept} of {directions} directions kept")
print(*(note for note in run.notes if "gate window" in note), sep="\n")
assert 0 < kept < directions

# %% [markdown]
# ## 8 · Look at how the gates closed
#
# This is the paper's Figure 6. Read the grey window first: the density falls to the target; λ climbs; the two
# orthogonality penalties (means over the matrices) fall; the penalty of the budget rises and goes. Behind the
# window the budget and $R$ are no part of the loss any more: $C$ and λ stand still, and the two penalties are only
# measured.

# %%
steps, density = run.series("density")
lam_, orth_A, orth_B = (run.series(name)[1] for name in ("lambda", "orth_A", "orth_B"))
clock = Clock(0, len(steps), len(steps))
window = clock.resolve(fitted.t_start), clock.resolve(fitted.t_end)
style.show(
    plots.density_and_lambda(steps, density, lam_, orth_A, orth_B, target=method.b, window=window),
    "The gates train inside the grey window. Look at the two orthogonality penalties where it "
    "ends: directions are cut, the gates are folded into B, and R no longer acts.",
    "Four panels over training steps: the density falls from 0.92 to about the target and "
    "stays; lambda climbs until the window ends; the two orthogonality penalties fall inside "
    "the window, on a log axis; the budget's penalty rises and falls again.",
)
assert abs(density[0] - 11 / 12) < 0.05
assert abs(density[-1] - method.b) < 0.06, "met, within what a short window allows"
assert (np.diff(lam_) >= 0).all(), "λ never falls"
inside = window[1] - 2  # the last step before the window closes, counted from 0
for what, i, n in (("a matrix, before", inside, 1), ("a direction, after", inside + 1, kept / len(shapes))):
    print(f"{what} the fold: A {orth_A[i] / n:.3f}, B {orth_B[i] / n:.3f}")
assert orth_A[inside] < orth_A[0]
assert orth_B[inside] < orth_B[0]

# %% [markdown]
# The paper's penalties end near $10^{-3}$. Inside our window that of $B$ ends higher, since $B$ has to come all the
# way from zero in few steps. The fold then multiplies each column of $B$ by its gate, which is mostly small. For a
# column that is nearly zero the penalty is one, so right after the fold that of $B$ is about 1 for each direction
# that is left. That does no harm: for LoRA a column of $B$ may have any length.
#
# **The budget counts probabilities, the pruning counts gates.** They need not agree:

# %%
kept_share = run.series("kept_density")[1][-1]
print(
    f"asked {method.b}; expected C = {density[-1]:.3f}; kept by the rule {kept_share:.3f}"
)
columns = [run.by_site(f"log_theta.{j}") for j in range(method.r)]
closing = {site: [column[site] for column in columns] for site in run.ranks}
everything = np.concatenate(list(closing.values()))
style.show(
    salora.gate_histogram(everything, edge=-stretch.shift),
    "Every gate at the end of the window. Look at where most of them stand: far from the "
    "edge, or just beside it?",
    "Histogram of log theta of all gates when the window closed, with a dashed line at "
    "−2.398; what stands left of it is dropped.",
)
assert (everything > -stretch.shift).sum() == kept, (
    "the histogram and the ranks tell one story"
)

# %% [markdown]
# A gate just left of the edge has $P(g > 0)$ a little under one half. It counts almost half in $C$, and nothing
# after the pruning. So "density" in a paper may mean either number; ask which.
#
# **Which matrices kept what?** This is the paper's Figure 7.

# %%
style.show(
    plots.rank_heatmap(run.ranks, max_rank=method.r, label="Directions kept"),
    f"Directions left of {method.r} in each matrix. Look for bright rows (matrices) "
    f"before bright columns (layers).",
    "Table of ranks by matrix (q, k, v, o, up, down) and layer, coloured from 0 to 8; "
    + ", ".join(f"{site}: {rank}" for site, rank in run.ranks.items()),
)
assert len(set(run.ranks.values())) > 2, "the ranks differ"

# %% [markdown]
# One run is one draw. Here are the stored runs over several seeds, on the small network, with a longer window
# (section 9 says how they were trained): is the pattern the same each time? The paper finds larger ranks in U (the
# first feed-forward matrix), O and V; the last line is that contrast, seed by seed.

# %%
parts = studies.load("salora_parts")
print(parts.line())
ranks = [record["ranks"] for record in parts.records if record["arm"] == "all parts"]
mean_rank = {site: float(np.mean([one[site] for one in ranks])) for site in ranks[0]}
style.show(
    plots.rank_heatmap(mean_rank, max_rank=8, label=f"Kept, mean of {len(ranks)} seeds"),
    "A row that stays bright in the mean is no accident of one seed. Are all three of the "
    "paper's rows bright?",
    "Table of mean ranks over seeds by matrix and layer of the three-layer network.",
)
theirs = {"up", "o", "v"}
contrast = [
    np.mean([n for site, n in one.items() if site.split(".")[1] in theirs])
    - np.mean([n for site, n in one.items() if site.split(".")[1] not in theirs])
    for one in ranks
]
print("mean rank of U, O, V less that of Q, K, D:", [f"{c:+.1f}" for c in contrast])

# %% [markdown]
# ## 9 · Ablate
#
# These sweeps need many trainings, so they come from stored studies: the three-layer network, 100 steps,
# $\eta_c = 0.1$, window 5 % to 90 %. One line trains a study again: `studies.train("salora_parts")`, or
# `lowrank-teach study salora_parts` in a terminal.
#
# **These stored runs read the paper in another way than section 7.** They left the gates on to the end of the
# training (`after_window="leave"`), kept $R$ to the end, too, and started $A$ with rows of unit length. So after
# their window a direction that stayed learned at its gate's share of the rate. The pictures show what the budget
# does to the gates. Their *scores* are those of the ablation, not those of section 3's method.
#
# **Without one of its parts** (the paper's Table 3). λ = 0 switches the budget off, β = 0 the orthogonality.


# %%
def last(found, arm, name):
    return [r["series"][name][1][-1] for r in found.records if r["arm"] == arm]


gated = [arm for arm in parts.arms if arm != "LoRA, all six"]
C_end = {**{arm: last(parts, arm, "density") for arm in gated}, "LoRA, all six": [1.0]}
style.show(
    salora.dots_by_arm(
        {"Final expected density C": C_end, "Test accuracy": parts.values()},
        lines={"Final expected density C": method.b},
    ),
    "Left: which arms meet the budget. Right: what it costs. Compare arms by how far "
    "apart their dots are, not only their means.",
    "Two panels of dots, one row an arm: final density (all parts and beta = 0 at the "
    "target, lambda = 0 far above it) and test accuracy.",
)
for arm in ("λ = 0", "β = 0", "LoRA, all six"):
    apart = 100 * np.array(parts.differences(arm, "all parts"))
    print(f"{arm:<13} less all parts, in points, by seed: {np.round(apart, 1).tolist()}")
assert all(abs(c - 0.5) < 0.04 for arm in ("all parts", "β = 0") for c in C_end[arm])
assert min(C_end["λ = 0"]) > max(C_end["all parts"]) + 0.1

# %% [markdown]
# The paper's λ = 0 ends *below* one half (0.37 to 0.43): there the task loss alone closed gates. In our short runs
# it hardly does; the gates need the budget. That is a difference, not an error: it may be the length of training,
# or an $L_0$ term that the paper's Equation 10 has and its Equation 12 leaves open.
#
# **λ by plain gradient ascent or by Adam.** The paper does not say. Section 4 computed the first step; here are
# whole runs:

# %%
style.show(
    plots.learning_curves(
        {
            "Adam ascent (ours)": parts.series("all parts", "lambda"),
            "plain gradient ascent": parts.series("λ by SGD", "lambda"),
        },
        ylabel="Multiplier λ",
    ),
    "The same rate η_c, seed 0. Look at the heights.",
    "Lambda over training steps: the Adam curve climbs steeply and flattens, the plain "
    "one stays far below it.",
)
adam, plain_up = (np.mean(last(parts, arm, "lambda")) for arm in ("all parts", "λ by SGD"))
print(
    f"λ ends at {adam:.2f} and {plain_up:.2f}; C at {np.mean(C_end['λ by SGD']):.3f} with plain ascent"
)
weak = lt.SaLoRA(b=0.5, eta_c=0.1, ascent="sgd")
quiet, noisy = (gates_alone(weak, noise)[0][-1] for noise in (0.0, 3e-3))
print(f"plain ascent, no network: C = {quiet:.3f}; with noise for a task: {noisy:.3f}")
assert plain_up < 0.3 * adam
assert abs(quiet - weak.b) < 0.01 < noisy - weak.b

# %% [markdown]
# The plain multiplier stays small, and yet the density comes near the target. Adam on the *gates* explains it: it
# divides each gradient by its size, so even a weak pull moves a gate at full speed while nothing else pulls. The
# last line shows this on gates without a network (the toy is explained below). With noise in place of a task, the
# weak pull loses votes, and the density stays above the target. λ is the budget's strength against the task.
#
# **How few directions will do?** (the paper's Figure 5)

# %%
few = studies.load("salora_b")
targets = sorted(float(arm) for arm in few.arms)
score = {b: few.values()[f"{b:g}"] for b in targets}
whole_lora = parts.values()["LoRA, all six"]
print(few.line())
reached = {
    "asked": {b: [b] for b in targets},
    "expected: C": {b: last(few, f"{b:g}", "density") for b in targets},
    "kept by the rule": {b: last(few, f"{b:g}", "kept_density") for b in targets},
}
style.show(
    salora.density_sweep({**score, 1.0: whole_lora}, reached, score="Test accuracy"),
    "Left: SaLoRA at four targets, and LoRA, which keeps all. The paper has SaLoRA above. "
    "Right: C is what was asked; the share that is kept bends.",
    "Left, test accuracy by target density, a dot for each seed: "
    + ", ".join(f"{np.mean(score[b]):.3f} at {b:g}" for b in targets)
    + f", LoRA {np.mean(whole_lora):.3f}. Right, density at the end: asked and expected "
    "almost coincide, the kept share is lower at small b and higher at 0.75.",
)
small, large = targets[0], targets[-1]
kept_at = reached["kept by the rule"]
assert all(abs(c - b) < 0.04 for b in targets for c in reached["expected: C"][b])
assert max(kept_at[small]) < small < large < min(kept_at[large])

# %% [markdown]
# The bend follows from the edge at $P = 1/2$. With few gates to keep, most settle *under* one half and are cut;
# with many, most settle *over* it and stay.
#
# **Does the starting rank matter?** (the paper's Figure 4)

# %%
wide = studies.load("salora_r")
accuracy, grown = wide.values(), sorted({int(arm.split()[1]) for arm in wide.arms})
by_method = {
    label: {r: accuracy[f"{name_} {r}"] for r in grown}
    for label, name_ in (("salora", "SaLoRA"), ("lora", "LoRA"))
}
style.show(
    plots.chain_length(by_method, xlabel="Starting rank r", ylabel="Test accuracy"),
    "The same α / r throughout. Compare the two at one rank, then SaLoRA at r with LoRA "
    "at r / 2: those keep about as many numbers.",
    "Test accuracy against rank 2, 4, 8 and 16 for SaLoRA and LoRA on all six matrices, a "
    "dot for each seed.",
)
for r in grown:
    apart = 100 * np.array(wide.differences(f"SaLoRA {r}", f"LoRA {r}"))
    seen = [rec["ranks"].values() for rec in wide.records if rec["arm"] == f"SaLoRA {r}"]
    kept_mean = np.mean([n for one in seen for n in one])
    print(
        f"r = {r:<2} keeps {kept_mean:.1f}; less LoRA in points, by seed:", apart.round(1)
    )
    assert 0.2 * r < kept_mean < 0.8 * r

# %% [markdown]
# In these runs most of the 100 steps go by while the gates still train, and after that the gates stay on. Read the
# numbers as "100 steps, three layers, gates left on", not as a verdict on the method.
#
# ### Where this library leaves the paper, and why
#
# Two settings of Adam are ours; the paper names none. **No momentum on the gates** (`gate_betas`): momentum keeps
# pushing after the target is reached, and carries the density past $b$. **A short memory for λ** (`lambda_betas`):
# Adam divides by the size of *past* gradients; with the usual 0.999 it remembers the large ones of the start, and λ
# stalls just when a small $b$ needs more pressure.
#
# To see each alone, run the library's own rule on gates with no network: the budget is all that pulls. On the right,
# noise stands for the task.

# %%
usual = (0.9, 0.999)
print("gates:", method.gate_betas, " λ:", method.lambda_betas, " Adam's usual:", usual)
half, low = lt.SaLoRA(b=0.5, eta_c=0.05), lt.SaLoRA(b=0.125, eta_c=0.05)
falling = {
    "ours": gates_alone(half, 0.0)[0],
    "Adam's usual": gates_alone(dataclasses.replace(half, gate_betas=usual), 0.0)[0],
}
rising = {
    "ours": gates_alone(low, 1e-3, steps=250)[1],
    "Adam's usual": gates_alone(
        dataclasses.replace(low, lambda_betas=usual), 1e-3, steps=250
    )[1],
}
style.show(
    salora.two_ascents(falling, rising, target=half.b),
    "Left, gates without momentum and with it, b = 0.5: which curve swings below the "
    "target? Right, λ with short and long memory, b = 0.125: which flattens early?",
    "Left, density over 150 steps: ours falls to one half and stays, with Adam's usual "
    "momentum it swings below and comes back. Right, lambda over 250 steps: ours keeps "
    "climbing, with Adam's usual memory it flattens much lower.",
)
assert falling["Adam's usual"].min() < falling["ours"].min() - 0.02
assert rising["Adam's usual"][-1] < 0.6 * rising["ours"][-1]

# %% [markdown]
# ### What it costs beside LoRA (the paper's Table 4)
#
# Inside its window, a step of SaLoRA draws gates, multiplies by them, and adds the penalty. After the window it is a
# step of LoRA with fewer directions. Time both methods in turns, whole steps inside the window:


# %%
class WholeStep(torch.nn.Module):
    """The task loss and, where a method has one, its penalty."""

    def __init__(self, chosen):
        super().__init__()
        fresh = lt.load_backbone(BACKBONE, num_labels=2, seed=0)[0]
        self.adapters = lt.adapt(fresh, chosen, seed=0)
        self.model, self.rule = fresh.train(), self.adapters.rule
        self.rule.start(Clock(0, 1000, 1000), None)

    def forward(self, **words):
        self.rule.before_step(Clock(1, 1000, 1000))
        out, penalty = self.model(**words), self.rule.penalty()
        out.loss = out.loss if penalty is None else out.loss + penalty
        return out


pair = {"SaLoRA": WholeStep(lt.SaLoRA()), "LoRA": WholeStep(lt.LoRA(sites="all"))}
words = torch.randint(1000, 20000, (32, 32), generator=torch.Generator().manual_seed(0))
cost = measures.step_costs(
    pair, {"input_ids": words, "labels": torch.zeros(32, dtype=torch.long)}
)
print(
    {
        label: f"{1000 * c.median:.0f} ms, {c.state_bytes / 1e6:.2f} MB"
        for label, c in cost.items()
    }
)

# %%
ratios = {
    "seconds a step (median of turns)": cost["SaLoRA"].median / cost["LoRA"].median,
    "gradients and optimizer state": cost["SaLoRA"].state_bytes / cost["LoRA"].state_bytes,
    "numbers to store at the end": run.parameters["adapter"]
    / sum(method.r * sum(shape) for shape in shapes.values()),
}
style.show(
    lora.ratio_bars(
        ratios, xlabel="SaLoRA's share of LoRA's (dashed: equal), both on all six matrices"
    ),
    "Batch of 32, as in the paper, which reports 11 % more time and about equal memory. "
    "What is smaller is the file that is kept.",
    "Bars: "
    + ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items())
    + " of LoRA's.",
)
assert 1 < ratios["gradients and optimizer state"] < 1.01, "eight more numbers a matrix"
assert ratios["numbers to store at the end"] < 0.8
assert 0.8 < ratios["seconds a step (median of turns)"] < 2.5

# %% [markdown]
# ## 10 · Play
#
# **One gate.** First a static strip, then the sliders.

# %%
one_gate = salora.HardConcreteGate()
style.show(
    explorer.strip(
        one_gate,
        [{**one_gate.start(), "log_theta": -2.0}, {**one_gate.start(), "tau": 0.3}],
    ),
    "Top: log θ = −2. Bottom: log θ = 0 at a low temperature. Look at how the probability "
    "moves between the two ends.",
    "Two rows of three panels: mass at 0, between and at 1; the density between; and three "
    "readings of the gate against log theta. " + one_gate.words(**one_gate.start()),
)

# %%
explorer.explore(one_gate)

# %% [markdown]
# Find a setting where a draw is hardly ever between 0 and 1. Then bring γ and ζ close to 0 and 1: what happens to
# the two masses?
#
# **A budget on your run's gates.** The gates are those with which the window of your run closed. Move λ and $b$: pull
# and cut are computed live. Nothing is trained; it is what one *more* step of the window would feel.

# %%
budget = salora.SaloraBudget(closing, shapes, fitted.stretch)
style.show(
    explorer.strip(budget, [{"lam": 3.0, "b": b} for b in (0.25, 0.75)]),
    "Two targets at λ = 3. Left: the pull on every gate (two arcs: small and large "
    "matrices). Right: where to cut so as to keep b exactly.",
    "Two rows: the pull is positive for b = 0.25 and negative for 0.75; the cut moves down "
    "as b grows. " + budget.words(lam=3.0, b=0.25),
)
assert abs(budget.density() - density[-1]) < 1e-4

# %%
explorer.explore(budget)

# %% [markdown]
# Which $b$ makes the rule's own edge, $\log\theta = -2.40$, the right cut? It is the share that the rule keeps.
#
# **Stored runs over b.** Four targets were trained (section 9 says how), so this slider *snaps* to the nearest and
# says which.

# %%
stored = salora.SaloraRuns(
    {b: few.series(f"{b:g}", "density") for b in targets},
    {b: few.series(f"{b:g}", "lambda") for b in targets},
    score,
    "test accuracy",
)
style.show(
    explorer.strip(stored, [{"b": small}]),
    "The smallest target takes longest and needs the largest λ.",
    "Density and lambda over steps of four runs, that with the smallest target blue. "
    + stored.words(b=small),
)
assert max(few.series(f"{large:g}", "lambda")[1]) < max(
    few.series(f"{small:g}", "lambda")[1]
)

# %%
explorer.explore(stored)

# %% [markdown]
# ## 11 · Exercises
#
# **11a · Implement the orthogonality penalty** (4 minutes)
# - `lora_A` is (r, k), `lora_B` (d, r); return $\|AA^\top - I\|_F^2 + \|B^\top B - I\|_F^2$, one number.


# %%
@exercise
def orthogonality_penalty(lora_A, lora_B):
    r, k = lora_A.shape
    off_A = lora_A.T @ lora_A - torch.eye(k)
    off_B = lora_B.T @ lora_B - torch.eye(r)
    return off_A.square().sum() + off_B.square().sum()


orthogonality_penalty.check()

# %% [markdown]
# **11b · Debug** (5 minutes). This code was meant to return the gates of a whole run: row $t$ with `log_theta[t]`
# and the noise of step $t$, `noise(t)` (r,). It runs without an error, and every run with it goes wrong. One
# published port of SaLoRA has this fault.


# %%
@exercise
def gates_of_a_run(log_theta, noise):
    u = noise(0)  # (r,)
    g = sample_gate(u, log_theta[0], 1.0, -0.1, 1.1)  # (r,)
    return torch.stack([g for _ in log_theta])  # (T, r)


gates_of_a_run.check()

# %% [markdown]
# **Recall.** Why is the gate stretched beyond $[0, 1]$? Which number does the budget hold at $b$, and which one do
# you store? Why does λ stop growing although it never falls?
#
# **Predict, then modify.** What will a lower temperature do to the gates that stand just beside the edge? Train
# with `tau=0.5` and draw the histogram of section 8 again. Then train with `after_window="leave"`: what changes in
# the loss behind the window?
#
# **Open.** `prune="budget"` keeps the likeliest directions until $b$ is reached. It folds $E[g]$ into $B$, so the
# function jumps when the window closes. What would you compare it with, and what must be held equal? Then: does
# SaLoRA's choice of directions matter, or would any half do? `prune="random"` keeps as many, drawn at random.
# (Notebook 06 asks this of AutoLoRA, with ranks dealt at random.)

#
# ## 12 · Claims against measurements
#
# The paper's statements beside stored runs at the paper's own schedule, each side at a rate of its own; a row whose
# runs are not made yet says so. The verdict is computed from the differences, not from this text.

# %%
contents.readable(ledger.table("SaLoRA"), "claims")

# %% [markdown]
# **Not measured here:** the paper's scores (GLUE, LLaMA), networks of its size, and trainings of its length.
# Notebook 11 collects every claim.
#
# ## 13 · What to take along
#
# - A gate a direction, $h = Wx + s\,B\,\mathrm{diag}(g)\,Ax$; the hard-concrete draw is exactly 0 or 1 with
#   positive probability, and still passes a gradient.
# - The budget $\lambda(C - b)^2$ pulls with $2\lambda(C - b)\,p(1 - p)$: hardest on gates in doubt. λ never falls.
# - "Keep if $E[g] > 0$" keeps everything. The deterministic gate and $P(g > 0) > 1/2$ drop the same directions.
# - $C = b$ holds in expectation; what the pruning keeps is another number. Say which one you report.
# - When the window closes, closed directions are cut and the gates are folded into $B$: the function is unchanged,
#   and the rest of the training is LoRA's.
#
# **Next question:** all these methods leave $W$ frozen. Can $W$ itself move for free? `05_delta_lora`.
