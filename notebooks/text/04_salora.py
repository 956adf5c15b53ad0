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
# **Paper:** Hu et al. 2023, [*Structure-Aware Low-Rank Adaptation for Parameter-Efficient
# Fine-Tuning*](https://doi.org/10.3390/math11204317), Mathematics 11(20), 4317.
# **You need:** [02](02_lora.ipynb), that is the layer $h = Wx + s\,BAx$ and its scale $s = \alpha / r$, and Adam.
# **Time:** about 90 minutes to read and solve; the computing takes minutes on a laptop, and every run is kept.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another of the paper's
# tasks (`cola`, `mrpc`, `qnli`, `rte`, `qqp`, `mnli`) or the packaged film reviews `rt`.
#
# At the end you will have trained the method in a loop of your own, and you will know what its budget counts,
# what its cut keeps, and why these are two numbers.

# %%
import dataclasses
import math

import lowrank_teach as lt
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.salora
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: one rank for all is a guess
#
# LoRA gives every matrix the same rank. Some matrices may need more directions, and others none at all. Nobody
# can try all combinations:

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=ch.classes(task), seed=0)
sites = lt.select(model, "all")
directions = 8 * len(sites)
print(f"{len(sites)} matrices × 8 directions = {directions} yes-or-no choices")
print(f"the number of ways to choose has {len(str(2**directions))} digits")

# %% [markdown]
# Can *one* training find out which directions to keep? [AdaLoRA](https://arxiv.org/abs/2303.10512) (Zhang et
# al. 2023) had answered yes a few months before: it scores each direction by how much the loss depends on it,
# and sets the lowest scores to zero on a schedule. SaLoRA replaces the score by a *gate* that is trained. The
# gate is older. Louizos et al. invented it in 2017 to train sparse networks, in [*Learning Sparse Neural
# Networks through L0 Regularization*](https://arxiv.org/abs/1712.01312).
# [AutoLoRA](https://arxiv.org/abs/2403.09113) ([06](06_autolora.ipynb)) later asked held-out data the same
# question.
#
# ## 2 · The idea in one picture
#
# Put a gate $g_j$, a number in $[0, 1]$, between row $j$ of $A$ and column $j$ of $B$. Train the gates with the
# rest, and set a *budget*: a share $b$ of all adapter parameters may stay open. After a first part of the
# training, delete every direction whose gate is closed. The rest of the training is LoRA's, with a rank of its
# own for each matrix.

# %%
gates = [1.0, 0.7, 0.0, 0.4, 0.0, 0.9]
course.show(
    ch.gated_directions(gates),
    f"{gates.count(0.0)} of {len(gates)} gates are zero: their rows of A and columns of B can be deleted, and the "
    "output h stays the same.",
)

# %% [markdown]
# Unlike LoRA in 02, all six matrices of a layer take part: $W_q, W_k, W_v, W_o$ and the two of the feed-forward
# block, $W_{up}$ and $W_{down}$.
#
# ## 3 · The maths
#
# ### A gate that can be exactly zero
#
# The gate has two jobs that are hard to combine. It must be *exactly* zero at times, or nothing can be deleted.
# And it must have a gradient, or it cannot be trained. A plain 0-or-1 switch has no gradient; a plain sigmoid
# is never 0. The *hard-concrete* gate does both in three moves:
#
# $$x = \frac{\mathrm{logit}\,u + \log\theta}{\tau}, \qquad
# \bar s = \sigma(x)\,(\zeta - \gamma) + \gamma, \qquad
# g = \mathrm{clip}(\bar s, 0, 1).$$
#
# **Noise.** $u$ is uniform in $(0, 1)$, and $\mathrm{logit}\,u = \log\frac{u}{1 - u}$. The trained number
# $\log\theta$ shifts it, and the temperature $\tau$ says how steep the sigmoid $\sigma$ is. **Stretch.** The
# result is stretched to $(\gamma, \zeta) = (-0.1, 1.1)$, a little beyond $[0, 1]$. **Clip.** What lies outside
# becomes exactly 0 or 1. Inside, the gradient of $g$ in $\log\theta$ is the sigmoid's.

# %%
names = ["g", "log θ", "u", "τ (SaLoRA)", "γ, ζ", "P(g > 0)", "ĝ", "C", "b", "λ (SaLoRA)", "η_c", "R", "β (SaLoRA)"]
course.symbols(*names, papers=("SaLoRA",))

# %% [markdown]
# **With numbers.** At $\log\theta = 0$ and $\tau = 1$, $\sigma(\mathrm{logit}\,u) = u$, so $\bar s = 1.2\,u -
# 0.1$. The draw $u = 0.05$ gives $\bar s = -0.04$, so $g = 0$. The draw $u = 0.5$ gives $g = 0.5$, and $u =
# 0.95$ gives $\bar s = 1.04$, so $g = 1$.
#
# #### Exercise 3a · Draw a gate (4 minutes)
#
# `u` and `log_theta` are $(r,)$, the others numbers. Return $g$, $(r,)$. The function below stops one move too
# early.


# %%
@course.exercise
def sample_gate(u, log_theta, tau, gamma, zeta):
    s = torch.sigmoid((torch.logit(u) + log_theta) / tau)  # (r,), between 0 and 1
    return s  # can this ever be exactly 0?


sample_gate.check()

# %%
for log_theta in (0.0, -2.0):
    g = sample_gate(torch.tensor([0.05, 0.5, 0.95]), torch.full((3,), log_theta), 1.0, -0.1, 1.1)
    print(f"log θ = {log_theta:4}: u = 0.05, 0.5, 0.95 gives g =", [round(float(x), 3) for x in g])

# %% [markdown]
# ### Why clipping puts probability on 0 and on 1
#
# A whole *interval* of noise ends up below 0 after the stretch. The clip sends all of it to the single value 0.
# That is why $g = 0$ has positive probability: it is the length of this interval of $u$. Solve for where it
# ends:
#
# $$g = 0 \iff \sigma(x) \le \frac{-\gamma}{\zeta - \gamma} \iff x \le \log\frac{-\gamma}{\zeta}
# \iff \mathrm{logit}\,u \le \tau\log\frac{-\gamma}{\zeta} - \log\theta.$$
#
# The middle step is the logit of the fraction: $\log\frac{p}{1 - p}$ with $1 - p = \frac{\zeta}{\zeta - \gamma}$.
# $u$ is uniform, so the probability of $u \le c$ is $c$ itself. With $1 - \sigma(y) = \sigma(-y)$:
#
# $$P(g > 0) = \sigma\!\left(\log\theta - \tau\log\frac{-\gamma}{\zeta}\right).$$
#
# With the usual constants this is $\sigma(\log\theta + \log 11)$. In the same way, $g = 1$ where $\bar s \ge
# 1$, with $P(g = 1) = \sigma(\log\theta - \tau\log\frac{1 - \gamma}{\zeta - 1}) = \sigma(\log\theta - \log
# 11)$.

# %%
stretch = lt.SaLoRA().stretch
log_thetas = [0.0, -2.0]
course.show(ch.gate_from_noise(log_thetas, stretch), ch.finding_of_noise(log_thetas, stretch))

# %% [markdown]
# #### Exercise 3b · The probability that a gate is open (4 minutes)
#
# Return $P(g > 0)$, $(r,)$, for any constants.


# %%
@course.exercise
def open_probability(log_theta, tau, gamma, zeta):
    return torch.sigmoid(log_theta)  # right for a gate without a stretch


open_probability.check()

# %%
u = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
for log_theta in (0.0, -2.0, -4.0):
    t = torch.full_like(u, log_theta)
    drawn = (sample_gate(u, t, 1.0, -0.1, 1.1) > 0).float().mean()
    print(f"log θ = {log_theta:4}: P(g > 0) = {float(open_probability(t, 1.0, -0.1, 1.1)[0]):.4f}, "
          f"share of 100,000 draws {drawn:.4f}")

# %% [markdown]
# ### The budget
#
# The number of open gates has no gradient, but its expectation has one. A direction of a $d \times k$ matrix
# holds $d + k$ parameters. The expected share of parameters that are open, the *density*, is
#
# $$C = \frac{\sum_i (d_i + k_i) \sum_j P(g_{ij} > 0)}{\sum_i (d_i + k_i)\, r}, \qquad i \text{: matrix}, \;
# j \text{: direction}.$$
#
# The paper prints $C$ as the sum of each matrix's own share. With many matrices that is far above 1 and cannot
# meet $b = 0.5$, so we divide once, by the total.
#
# #### Exercise 3c · The density (4 minutes)
#
# `p` is $(n, r)$ and holds $P(g > 0)$ of $n$ matrices; `d` and `k` are $(n,)$. Return one number.


# %%
@course.exercise
def expected_density(p, d, k):
    return p.mean()  # right if all matrices have one size


expected_density.check()

# %%
d, k = (torch.tensor([float(getattr(site, name)) for site in sites]) for name in ("d", "k"))
p = torch.full((len(sites), 8), 11 / 12)
print(f"C at the start, all log θ = 0: {float(expected_density(p, d, k)):.4f}")
p[d == k] = 0.0
print(f"with all gates of the square matrices shut: {float(expected_density(p, d, k)):.4f}")

# %% [markdown]
# ### The Lagrangian
#
# We want the smallest task loss $L$ *subject to* $C = b$. A constraint can be moved into the loss with a price λ:
#
# $$\min_{A,\, B,\, \log\theta}\;\; \max_{\lambda \ge 0}\;\; L + \beta R + \lambda\,(C - b)^2.$$
#
# Everything else descends, and λ **ascends**. As long as the budget is missed, the price grows, until the gates
# give in. A fixed λ would need tuning, because the gates stop where the price balances the task. The price acts
# on one gate with ($p = P(g > 0)$, and $w$ is the gate's share $(d + k) / \sum_i r\,(d_i + k_i)$)
#
# $$\frac{\partial}{\partial \log\theta}\,\lambda (C - b)^2 = 2\lambda\,(C - b)\; p\,(1 - p)\; w .$$
#
# The textbook Lagrangian has $\lambda (C - b)$. There λ falls again when $C$ is below $b$. Here the bracket is
# squared, so the gradient of λ is $(C - b)^2 \ge 0$: **λ never falls.** What lets up is the pull on the gates,
# which is zero at $C = b$ and turns round below it.
#
# #### Exercise 3d · A step of λ (3 minutes)
#
# Do plain gradient ascent on $\lambda (C - b)^2$ in λ at rate `eta_c`, and then project on $\lambda \ge 0$.
# `lam` and `C` are $(n,)$. The line below has two mistakes.


# %%
@course.exercise
def ascend_lambda(lam, C, b, eta_c):
    return lam - eta_c * (C - b)


ascend_lambda.check()

# %% [markdown]
# A toy shows the price at work. Six directions have a known value; the task's loss is the value that is
# expected to be shut out. Two trainings have a fixed λ, and one uses your step.

# %%
values, b = torch.tensor([0.005, 0.01, 0.02, 0.03, 0.05, 0.08]), 0.5


def toy(lam, learned, steps=400):
    log_theta, lam, path = torch.zeros(6), torch.tensor([lam]), []
    for _ in range(steps):
        log_theta.requires_grad_()
        p = open_probability(log_theta, 1.0, -0.1, 1.1)
        loss = (values * (1 - p)).sum() + lam[0] * (p.mean() - b) ** 2
        log_theta = (log_theta - 10 * torch.autograd.grad(loss, log_theta)[0]).detach()
        p = p.detach()
        lam = ascend_lambda(lam, p.mean()[None], b, 1.0) if learned else lam
        path.append((float(p.mean()), float(lam)))
    return path, p


runs = {"0.1, fixed": toy(0.1, False), "1, fixed": toy(1.0, False), "learned": toy(0.0, True)}
curves = {name: tuple(zip(*path, strict=True)) for name, (path, _) in runs.items()}
p = {name: end for name, (_, end) in runs.items()}
course.show(ch.tiny_budget(curves, p, values, b=b), ch.finding_of_tiny(curves, p, b))

# %% [markdown]
# The toy does not meet the budget to the last digit. At $C = b$ the pull of the budget is zero, while the task still
# pulls the gates open. So $C$ comes to rest a little above $b$, and nearer the larger λ is.
#
# ### Orthogonal directions
#
# A gate can only judge its direction if the direction counts by itself. So the loss pulls the rows of $A$ and the
# columns of $B$ towards orthonormal ones:
#
# $$R = \frac{1}{n} \sum_{i=1}^{n} \|A_i A_i^\top - I\|_F^2 + \|B_i^\top B_i - I\|_F^2 .$$
#
# **The mean over the $n$ matrices is ours.** The paper's Equation 10 *sums*. Their β and ours therefore differ
# by the factor $n$: β = 0.1 with our mean is β = 0.1 / $n$ with their sum. The switch is `orthogonality="sum"`.
# And the paper writes $A^\top A$ in one place: that is $k \times k$ and of rank $r$ at most, so it can never be
# the identity.
#
# ### The window, and what happens when it closes
#
# The gates train in a *window* of steps. The paper says that its method acts in 30 % of the training, and that
# the other 70 % are the same as LoRA. It does not say where the window lies, or what the gates are before it.
# Here they are one before it; this is our choice. At the end of the window:
#
# 1. The noise ends. Each gate takes the value $\hat g$ that it has at $u = 1/2$.
# 2. A direction with $\hat g = 0$ is deleted: its row of $A$ and its column of $B$.
# 3. The other gates are *folded* into $B$: $B \leftarrow B\,\mathrm{diag}(\hat g)$. From here on there is no
#    gate.
#
# The function is the same before and after, because $B\,\mathrm{diag}(\hat g)\,A$ is. Adam must follow: a
# column that was multiplied by $\hat g$ has its old gradient *divided* by $\hat g$. So its mean of gradients is
# divided by $\hat g$, and its mean of squared gradients by $\hat g^2$. The paper's section 3.5 keeps the
# triplets for inference; it does not print the rule for Adam, so folding in this way is ours, too.
#
# ## 4 · Predict
#
# Answer before you open.

# %%
method = lt.SaLoRA(r=8, b=0.5)
ch.predict_ascent(f"λ starts at 0, C at 11/12, b = {method.b} and η_c = {method.eta_c}. How far does λ move in "
                  "its first step, by plain ascent and by Adam?", method)
ch.predict_closed("A rule keeps each direction with E[g] > 0. Is one with log θ = −5 kept?", -5.0)
ch.predict_kept("All gates stand at P(g > 0) = 0.49. C is 0.49. How many directions does the cut keep?", 0.49)
ch.predict_pull("On which gate does the budget pull hardest: P(g > 0) = 0.02, 0.5 or 0.95?", [0.02, 0.5, 0.95])

# %% [markdown]
# ## 5 · The whole method in plain PyTorch
#
# A small pretrained network of Hugging Face's `transformers` in float64, where rounding hides nothing, and the
# batches of a short training. From here on nothing in the loop is ours. The window and the rate of the gates
# are set for so short a training.

# %%
STEPS, END, ETA, SIZE = (10, 5, 0.6, 4) if profile == "tiny" else (24, 12, 0.3, 8)
R, ALPHA, RATE, B_TARGET, BETA = 8, 16.0, 5e-3, 0.5, 0.1


def network():
    return lt.load_backbone("minilm-l3", num_labels=ch.classes(task), seed=0)[0].double()


batches = ch.batches(task, tokenizer, steps=STEPS, size=SIZE)
print(f"{type(network()).__name__}; {len(batches)} batches of", {n: tuple(t.shape) for n, t in batches[0].items()})

# %% [markdown]
# **The layer** is LoRA's with a gate in the middle. **The gate** is that of section 3.

# %%
def hard_concrete(log_theta, u):
    return (torch.sigmoid(torch.logit(u) + log_theta) * 1.2 - 0.1).clamp(0, 1)


class GatedLinear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.gate = linear, 1.0
        self.A = nn.Parameter(torch.empty(R, linear.in_features).double())
        self.B = nn.Parameter(torch.zeros(linear.out_features, R).double())
        self.log_theta = nn.Parameter(torch.zeros(R).double())
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x):
        return self.linear(x) + ALPHA / R * (x @ self.A.T * self.gate) @ self.B.T


print(GatedLinear(nn.Linear(3, 4).double()))

# %%
def with_gates(model):
    """Freeze the network, put the layer on all six matrices of every block, and free the head."""
    model.bert.requires_grad_(False)
    model.bert.pooler.requires_grad_(True)
    torch.manual_seed(1)
    layers = []
    for block in model.bert.encoder.layer:
        at = block.attention
        six = [(at.self, "query"), (at.self, "key"), (at.self, "value")]
        for owner, name in [*six, (at.output, "dense"), (block.intermediate, "dense"), (block.output, "dense")]:
            layers.append(GatedLinear(getattr(owner, name)))
            setattr(owner, name, layers[-1])
    return model, layers


print(len(with_gates(network())[1]), "layers")

# %% [markdown]
# **The two terms** that are added to the task's loss, and **the end of the window**: delete, fold, and let Adam's
# two moments follow.

# %%
def density(layers):
    size = [layer.A.shape[1] + layer.B.shape[0] for layer in layers]
    is_open = [torch.sigmoid(layer.log_theta + math.log(11)).sum() for layer in layers]
    return sum(n * p for n, p in zip(size, is_open, strict=True)) / (R * sum(size))


def orthogonality(layers):
    I = torch.eye(R).double()
    return sum((L.A @ L.A.T - I).square().sum() + (L.B.T @ L.B - I).square().sum() for L in layers) / len(layers)


layers = with_gates(network())[1]
print(f"at the start: C = {density(layers).item():.4f}, R = {orthogonality(layers).item():.2f}")

# %%
@torch.no_grad()
def close_window(layers, optimizer):
    for layer in layers:
        g = hard_concrete(layer.log_theta, torch.tensor(0.5))
        keep = g > 0
        for name, part, factor in (("A", (keep,), 1.0), ("B", (slice(None), keep), g[keep])):
            old = getattr(layer, name)
            new = nn.Parameter(old[part] * factor)
            state = optimizer.state.pop(old)
            mean, square = state["exp_avg"][part] / factor, state["exp_avg_sq"][part] / factor**2
            optimizer.state[new] = {"step": state["step"], "exp_avg": mean, "exp_avg_sq": square}
            group = optimizer.param_groups[0]
            group["params"] = [new if p is old else p for p in group["params"]]
            setattr(layer, name, new)
        layer.gate = 1.0


print("defined:", close_window.__name__)

# %% [markdown]
# **The training.** AdamW descends on the weights at a rate that falls linearly, and on the gates at the
# constant rate $\eta_c$, without momentum. A second Adam ascends on λ. (Both choices of Adam's constants are
# ours; section 9 shows why.)

# %%
def train():
    model, layers = with_gates(network())
    gates = [layer.log_theta for layer in layers]
    rest = [p for name, p in model.named_parameters() if p.requires_grad and "log_theta" not in name]
    gates = {"params": gates, "lr": ETA, "betas": (0.0, 0.999)}
    optimizer = torch.optim.AdamW([{"params": rest}, gates], lr=RATE, weight_decay=0.0)
    lam = torch.zeros(()).double()
    ascent = torch.optim.Adam([lam], lr=ETA, betas=(0.9, 0.9), maximize=True)
    noise = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # the network has dropout: the same noise for every loop
    model.train()
    history = []
    for step, batch in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = RATE * (1 - (step - 1) / STEPS)
        inside = step <= END
        if inside:  # one draw for each matrix and step, shared by the batch
            draws = torch.rand(len(layers), R, generator=noise).double()
            for layer, u in zip(layers, draws, strict=True):
                layer.gate = hard_concrete(layer.log_theta, u)
        loss = total = model(**batch).loss
        if inside:
            total = loss + BETA * orthogonality(layers) + lam * (density(layers) - B_TARGET) ** 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if inside:
            C = density(layers).detach()
            lam.grad = (C - B_TARGET) ** 2
            ascent.step()
            lam.clamp_(min=0)
        if step == END:
            before = ch.state_of(layers, optimizer)  # a copy, for exercise 5a
            close_window(layers, optimizer)
        history.append((loss.item(), C.item(), lam.item()))
    return layers, history, before


print("ready to train:", train.__name__)

# %%
layers, history, before = train()
course.show(ch.by_hand(history, END, B_TARGET, task), ch.finding_by_hand(history, END, B_TARGET, layers, task))

# %% [markdown]
# ### The same by the library
#
# The library gets the same network, batches, noise and start of $A$, and its own trainer runs. After every step
# the loss, $C$ and λ must be equal up to the rounding of float64, and so must what is left of every $B$.

# %%
by_library = lt.SaLoRA(r=R, lora_alpha=ALPHA, b=B_TARGET, beta=BETA, eta_c=ETA, t_start=0, t_end=END)
adapters = lt.adapt(network(), by_library, seed=0)
for branch, layer in zip(adapters.values(), with_gates(network())[1], strict=True):
    branch.lora_A.data.copy_(layer.A.data)
table = ch.library_run(adapters, batches, lr=RATE)
for i, column in enumerate(table):
    ch.say_equal(f"{column} after each step", [row[i] for row in history], table[column])
ch.say_equal("B A of all matrices", [L.B @ L.A for L in layers], [b.lora_B @ b.lora_A for b in adapters.values()])

# %% [markdown]
# So precise a comparison finds small slips, too. Write the $\log 11$ of the density as
# `-torch.tensor(0.1 / 1.1).double().log()`: it is rounded to float32 before it becomes float64. The training looks
# the same, but λ then differs by about $10^{-8}$.
#
# #### Exercise 5a · The end of the window (8 minutes)
#
# `lora_B` is $(d, r)$; `m` and `v` are Adam's means of its gradients and of their squares, $(d, r)$ each;
# `log_theta` is $(r,)$, with the usual τ, γ, ζ. Return the new $B$, `m` and `v`, stacked: $(3, d, r')$. The
# stub cuts in the wrong place, folds nothing, and leaves Adam behind.


# %%
@course.exercise
def prune_and_fold(lora_B, m, v, log_theta):
    keep = log_theta > 0
    return torch.stack([lora_B[:, keep], m[:, keep], v[:, keep]])


prune_and_fold.check()

# %% [markdown]
# Your function is now given every $B$ of the loop above as it was just before its window closed:

# %%
after = [prune_and_fold(*one) for one in before]
for L, (B, *_), new in list(zip(layers, before, after, strict=True))[:6]:
    print(f"{tuple(L.linear.weight.shape)!s:>12}: {B.shape[1]} directions → {new.shape[2]}")
ch.say_equal("directions left", [L.B.shape[1] for L in layers], [new.shape[2] for new in after], 0)

# %%
course.solution(prune_and_fold)

# %% [markdown]
# ## 6 · What must be true
#
# **Unchanged at the start, and at the end of the window.** $B = 0$ and open gates leave the network as it was.
# At the end of the window the library compares the outputs before and after, and would stop the training if
# they differed.

# %%
fresh = lt.adapt(network(), by_library, seed=0)
with torch.no_grad():
    one, other = (net.eval()(**batches[0]).logits for net in (fresh.model, network()))
ch.say_equal("outputs with and without gated branches", [one], [other], 0.0)
print("outputs before and after the window closed are equal:", adapters.rule.pruned.holds)

# %% [markdown]
# **The pull of the budget** is the formula of section 3. Ask autograd, at random gates:

# %%
rule, lam = adapters.rule, 1.5
log_theta = [torch.randn(R, generator=torch.Generator().manual_seed(i)).double() - 2 for i in range(len(layers))]
log_theta = [t.requires_grad_() for t in log_theta]
p = torch.stack([open_probability(t, 1.0, -0.1, 1.1) for t in log_theta])
d, k = (torch.tensor(sizes).double() for sizes in ([L.B.shape[0] for L in layers], [L.A.shape[1] for L in layers]))
C = expected_density(p, d, k)
pulls = torch.autograd.grad(lam * (C - 0.5) ** 2, log_theta)
w = (d + k) / (R * (d + k).sum())
by_formula = 2 * lam * (C - 0.5) * p * (1 - p) * w[:, None]
ch.say_equal("pull on each gate, autograd and formula", pulls, by_formula, 1e-9)

# %% [markdown]
# The factor $p(1 - p)$ is largest at $p = 1/2$. A gate that is wide open or tightly shut feels almost nothing;
# the budget moves the gates that are in doubt.
#
# **"Keep if E[g] > 0" would keep everything.** The paper deletes a direction when its expected gate is zero.
# $E[g]$ averages numbers that are never negative and sometimes positive, so it is above zero for *every* finite
# $\log\theta$. Two other readings do delete something, and they are the same rule: $\hat g > 0$ exactly where
# $P(g > 0) > 1/2$.

# %%
grid = torch.linspace(-9, 4, 131, dtype=torch.float64)
readings = {"P(g > 0)": stretch.open_probability(grid), "E[g]": stretch.mean(grid),
            "ĝ, no noise": stretch.deterministic(grid)}
course.show(ch.gate_readings(grid, readings, edge=ch.EDGE), ch.finding_of_readings(grid, readings, ch.EDGE))

# %%
for tau in (0.3, 1.0, 2.0):
    other = dataclasses.replace(stretch, tau=tau)
    differ = int(((other.deterministic(grid) > 0) != (other.open_probability(grid) > 0.5)).sum())
    print(f"τ = {tau}: both rules keep log θ > {-other.shift:.3f}; of {len(grid)} values they differ at {differ}")

# %% [markdown]
# **B = 0 and R are at odds.** $R$ wants $B^\top B = I$, and the start needs $B = 0$, so every matrix begins with
# $\|0 - I\|_F^2 = r$. What does this add to the loss, by our mean and by the paper's sum?

# %%
height = BETA * R
print(f"mean over the matrices: {height:.1f}; sum over the {len(sites)} matrices here: {height * len(sites):.1f}; "
      f"sum over RoBERTa-base's 72: {height * 72:.1f}")
B = torch.zeros(5, R, requires_grad=True)
(push,) = torch.autograd.grad((B.T @ B - torch.eye(R)).square().sum(), B)
print(f"largest entry of the gradient of B's part at B = 0: {float(push.abs().max()):g}")

# %% [markdown]
# The penalty is high there but flat, so the start is safe: only slopes train. As soon as the task moves $B$,
# $R$ pulls *every* column outwards, also those that the task does not need. Only a gate can close them again.
# The sum pulls harder the more matrices there are, and a short training on many of them then follows $R$ and
# not the task.
#
# ## 7 · Train on a real task
#
# Now the profile's full training on its network. The window is about as long as the paper's, 30 % of the steps.
# This is few steps here, so the gates need a faster rate than the paper's 0.01:

# %%
fitted = ch.fit_to_profile(method, profile)
for label, one in {"the paper's rate": method, "this profile": fitted}.items():
    print(f"{label}: η_c = {one.eta_c:g}; window {one.t_start:.0%} to {one.t_end:.0%}; it needs at least "
          f"{one.shortest_window()} steps, and likely {one.estimated_window()}")

# %% [markdown]
# The first number of steps assumes that all gates move alike, $\eta_c$ a step. They do not: λ must first
# outgrow the noise of the task, which the second number allows for. Grey is a stored run of another seed.

# %%
course.keep_reference("04_salora", lambda: lt.fit(method, task, backbone, profile, seed=0))
reference, made = course.load_reference("04_salora")
live = course.LiveCurve("salora", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False)
live.finish(run, ch.finding_of_run(run))
print(made, *run.notes, sep="\n")

# %% [markdown]
# The right comparison is LoRA on the same six matrices, from the same start and on the same batches. It has to learn
# at its own rate, too. In the study of section 9, where a rate was chosen for each method, LoRA's was half of
# SaLoRA's. We take this ratio: at the rate of SaLoRA, LoRA on six matrices may not learn at all in so short a
# training.

# %%
lora, rate = lt.LoRA(r=8, sites="all"), lt.train_config(profile).lr / 2
plain = lt.fit(lora, task, backbone, profile, seed=1, lr=rate)
course.show(ch.beside_lora({"salora": run, "lora": plain}, chance=ch.chance_loss(task)),
            ch.finding_of_losses({"salora": run, "lora": plain}, ch.chance_loss(task)))

# %%
ch.scores({"SaLoRA": run, "LoRA, all six matrices": plain}, task, profile)

# %% [markdown]
# One seed says little about who is better. Section 9 has runs over seeds, the last of them at a rate
# that was chosen for each method.
#
# ## 8 · Look at how the gates closed
#
# This is the paper's Figure 6. Behind the window the budget and $R$ are no part of the loss any more: $C$ and λ
# stand still, and the two penalties are only measured.

# %%
course.show(ch.how_gates_closed(run), ch.finding_of_closing(run))

# %%
print(ch.after_the_fold(run))

# %% [markdown]
# In the paper both penalties end near $10^{-3}$. In so short a window they do not get that far, and they need
# not fall all the time: the task pulls on $A$ and $B$, too. The fold then multiplies each column of $B$ by its
# gate, so the columns are no longer of length one. That does no harm: for LoRA a column of $B$ may have any
# length.
#
# **The budget counts probabilities, and the cut counts gates.** They need not agree:

# %%
C = run.series("density")[1][-1]
print(f"asked for: {method.b}; expected density C: {C:.3f}; kept: {ch.kept_share(run):.3f}")
closing = ch.closing_gates(run)
everything = [value for gates in closing.values() for value in gates]
course.show(ch.gate_histogram(everything, edge=ch.EDGE), ch.finding_of_gates(everything))

# %% [markdown]
# A gate just left of the edge has $P(g > 0)$ a little under one half. It counts almost one half in $C$, and
# nothing after the cut. So "density" in a paper may mean either number.
#
# **Which matrices kept what?** This is the paper's Figure 7.

# %%
course.show(ch.kept_by_matrix(run), ch.finding_of_kept(run.ranks, method.r))

# %% [markdown]
# One run is one draw of the noise. Here are the means over the seeds of a stored study (its network and task
# stand in its line). The paper finds larger ranks in U (our $W_{up}$), O and V. Are all three larger here?

# %%
parts = ch.stored("salora_parts")
course.show(ch.kept_over_seeds(parts), ch.finding_of_pattern(parts))

# %% [markdown]
# ## 9 · Ablate
#
# ### After the window: fold the gates, or leave them half shut?
#
# The obvious reading of the method leaves each gate at $\hat g$ until the end. Then a direction with $\hat g =
# 0.2$ moves the network a fifth as far with each step of its column of $B$. What does this cost?

# %%
left = lt.SaLoRA(r=8, b=0.5, after_window="leave")
ways = dict(zip(ch.AFTER, ((method, {}), (left, {}), (lora, {"lr": rate})), strict=True))
runs = {name: [lt.fit(one, task, backbone, profile, seed=seed, **more) for seed in ch.seeds(profile)]
        for name, (one, more) in ways.items()}
fig = ch.after_the_window(runs, level=ch.majority(task, profile), chance=ch.chance_loss(task))
course.show(fig, ch.finding_of_after(runs))

# %% [markdown]
# ### Leave out one part
#
# These sweeps need many trainings, so they come from stored studies: 100 steps, $\eta_c = 0.1$, a window from 5
# % to 90 %. **They read the paper in another way than section 7:** they left the gates half shut after the
# window, kept $R$ to the end, and started $A$ with rows of length one. They show what the budget does to the
# gates. Their *scores* are those of the ablation above. `studies.train("salora_parts")` of the library trains a
# study again.
#
# λ = 0 switches the budget off, and β = 0 the orthogonality (the paper's Table 3).

# %%
level = ch.majority("rt", "laptop")
course.show(ch.parts_by_arm(parts, level=level), ch.finding_of_parts(parts))

# %% [markdown]
# The paper's λ = 0 ends *below* one half, at 0.37 to 0.43: there the task's loss alone closed gates. That may
# be due to the length of training, or to an $L_0$ term that the paper's Equation 10 has and its Equation 12
# leaves open.
#
# ### λ by plain gradient ascent or by Adam
#
# The paper does not say. You predicted the first step in section 4; here are whole runs.

# %%
course.show(ch.two_multipliers(parts), ch.finding_of_multipliers(parts))
print(ch.plain_ascent_alone())

# %% [markdown]
# Adam on the *gates* explains why plain ascent comes so near to $b$ with so small a λ. It divides each gradient
# by its size, so even a weak pull moves a gate at full speed while nothing else pulls. With noise in place of a
# task (the last number), the weak pull is outvoted.
#
# ### How few directions will do?
#
# This is the paper's Figure 5. The paper has SaLoRA above LoRA at every density down to 0.125.

# %%
few = ch.stored("salora_b")
whole = parts.values()["LoRA, all six"]
course.show(ch.density_sweep(few, whole, level=level), ch.finding_of_sweep(few, whole))

# %% [markdown]
# The bend on the right follows from the edge at $P(g > 0) = 1/2$. With few gates to keep, most settle *under*
# one half and are cut; with many, most settle *over* it and stay. On the left, ask how much of the score a
# branch earns at all if almost none of it is needed.
#
# ### Does the starting rank matter?
#
# This is the paper's Figure 4. Half of the directions are cut, so SaLoRA at $r$ has about as many parameters as
# LoRA at $r / 2$.

# %%
wide = ch.stored("salora_r")
course.show(ch.rank_sweep(wide, level=level), ch.finding_of_ranks(wide))

# %%
ch.rank_rows(wide)

# %% [markdown]
# ### With a rate chosen for each: does the choice of directions matter?
#
# All sweeps above use one learning rate. A fair comparison chooses a rate for each method on validation examples.
# These stored runs on SST-2 do so. They have 800 steps and a window of 30 %, as section 3 describes it, with
# $\eta_c = 0.03$. They ask three questions. Is SaLoRA ahead of LoRA at the same starting rank? Is it ahead of LoRA
# with about *as many numbers in the end* ($r = 4$)? And is it ahead of a SaLoRA that keeps as many directions,
# *drawn at random*? The last question asks whether the gates know which directions to keep.
#
# The variants of SaLoRA use SaLoRA's rate, and those drawn at random are folded with E[g], since many of their gates
# are shut at ĝ.

# %%
tuned = ch.stored_tuned()
course.show(ch.tuned_differences(tuned), ch.finding_of_tuned(tuned))

# %% [markdown]
# An interval that holds zero does not say that two methods are equal. It says that these seeds cannot tell them
# apart. And an interval that only just excludes zero is weak evidence, because among many comparisons some will do
# so by chance. The column "among all" in section 12 corrects for this.
#
# ### Two settings of Adam that are ours
#
# **No momentum on the gates** (`gate_betas`): momentum keeps pushing after the target is reached. **A short
# memory for λ** (`lambda_betas`): with the usual 0.999, Adam remembers the large gradients of the start, and λ
# stalls when a small $b$ needs more pressure. To see each alone, run the library's rule on gates without a
# network.

# %%
usual = (0.9, 0.999)
half, low = lt.SaLoRA(b=0.5, eta_c=0.05), lt.SaLoRA(b=0.125, eta_c=0.05)
falling = {"ours": ch.gates_alone(half, 0.0)[0],
           "Adam's usual": ch.gates_alone(dataclasses.replace(half, gate_betas=usual), 0.0)[0]}
rising = {"ours": ch.gates_alone(low, 1e-3, steps=250)[1],
          "Adam's usual": ch.gates_alone(dataclasses.replace(low, lambda_betas=usual), 1e-3, steps=250)[1]}
course.show(ch.two_ascents(falling, rising, target=0.5), ch.finding_of_ascents(falling, rising, 0.5))

# %% [markdown]
# ### What a step costs beside LoRA
#
# Inside its window, a step of SaLoRA draws gates, multiplies by them, and adds two terms to the loss. After the
# window it is a step of LoRA with fewer directions. Both methods are timed in turns, at batches of 32 as in the
# paper's Table 4.

# %%
cost = ch.step_costs(backbone)
course.show(ch.cost_ratios(cost, run), ch.finding_of_costs(cost, run))

# %% [markdown]
# ## 10 · Play
#
# **One gate.** First two fixed positions, then the sliders.

# %%
one_gate = ch.HardConcreteGate()
states = [{**one_gate.start(), "log_theta": -2.0}, {**one_gate.start(), "tau": 0.3}]
course.show(course.strip(one_gate, states), " ".join(one_gate.words(**state) for state in states),
            "Two rows of three panels: the masses at 0, between and at 1; the density between; three curves.")

# %%
course.explore(one_gate)

# %% [markdown]
# Find a setting at which a draw is hardly ever between 0 and 1. Then bring γ and ζ close to 0 and 1: what
# happens to the two masses?
#
# **A budget on your run's gates.** These are the gates with which the window of section 7 closed. Move λ and
# $b$: the pull and the cut are computed live. Nothing is trained; it is what one more step of the window would
# feel.

# %%
budget = ch.SaloraBudget(closing, {site.name: (site.d, site.k) for site in sites}, stretch)
states = [{"lam": 3.0, "b": b} for b in (0.25, 0.75)]
course.show(course.strip(budget, states), " ".join(budget.words(**state) for state in states),
            "Two rows of two panels: the pull on every gate, and where to cut so as to keep b.")

# %%
course.explore(budget)

# %% [markdown]
# Which $b$ makes the rule's own edge, $\log\theta = -2.40$, the right cut? It is the share that the rule keeps.
#
# **Stored runs over b.** Four targets were trained, so this slider snaps to the nearest and says which.

# %%
targets = sorted(float(arm) for arm in few.arms)
curves = [{b: few.series(f"{b:g}", name) for b in targets} for name in ("density", "lambda")]
stored = ch.SaloraRuns(*curves, {b: few.values()[f"{b:g}"] for b in targets}, "test accuracy")
course.show(course.strip(stored, [{"b": targets[0]}]), stored.words(b=targets[0]),
            "Density and λ over the steps of four runs, that with the smallest target blue.")

# %%
course.explore(stored)

# %% [markdown]
# ## 11 · Exercises
#
# ### Exercise 11a · The orthogonality penalty (4 minutes)
#
# `lora_A` is $(r, k)$, `lora_B` $(d, r)$. Return $\|AA^\top - I\|_F^2 + \|B^\top B - I\|_F^2$, one number. The
# function below has one mistake.


# %%
@course.exercise
def orthogonality_penalty(lora_A, lora_B):
    r, k = lora_A.shape
    off_A = lora_A.T @ lora_A - torch.eye(k)
    off_B = lora_B.T @ lora_B - torch.eye(r)
    return off_A.square().sum() + off_B.square().sum()


orthogonality_penalty.check()

# %% [markdown]
# How near to orthonormal does each start of $A$ begin? The paper says only that $A$ is Gaussian, without a
# scale. Here all methods start as LoRA does ("kaiming"). `init=` is the switch.

# %%
for init in ("unit_rows", "kaiming", "gaussian"):
    branch = lt.LowRank(sites[0].k, sites[0].d, 8, init=init, generator=torch.Generator().manual_seed(0))
    A = branch.lora_A.detach()
    off = orthogonality_penalty(A, torch.eye(8))  # the part of B is zero
    print(f"{init}: mean length of a row {float(A.norm(dim=1).mean()):.2f}, ‖AAᵀ − I‖² = {float(off):.2f}")

# %% [markdown]
# ### Exercise 11b · Debug (5 minutes)
#
# This code was meant to return the gates of a whole run: row $t$ with `log_theta[t]` and the noise of step $t$,
# `noise(t)`, $(r,)$. It runs without an error, and every training with it goes wrong. A public port of SaLoRA
# reuses its noise in this way.


# %%
@course.exercise
def gates_of_a_run(log_theta, noise):
    u = noise(0)  # (r,)
    g = sample_gate(u, log_theta[0], 1.0, -0.1, 1.1)  # (r,)
    return torch.stack([g for _ in log_theta])  # (T, r)


gates_of_a_run.check()

# %% [markdown]
# **11c · Recall.** Why is the gate stretched beyond $[0, 1]$? Which number does the budget hold at $b$, and
# which one is stored on disk? Why does λ stop growing, although it never falls?
#
# **11d · Predict, then modify.** What will a lower temperature do to the gates that stand just beside the edge?
# Put τ = 0.5 into `hard_concrete` and `density` of section 5, and compare the ranks.
#
# **11e · Modify.** Replace the squared bracket by the textbook price $\lambda (C - b)$, let λ have either sign,
# and train your loop again. Does λ fall now? Does $C$ stay at $b$?
#
# **11f · Open.** `prune="budget"` keeps the likeliest directions until $b$ is reached, and the function jumps
# when the window closes. Is this choice any better than `prune="random"`, which section 9 has compared with the
# usual rule? Say what must be held equal, then compare over three seeds. ([06](06_autolora.ipynb) asks the same of
# AutoLoRA.)
#
# ## 12 · What the paper claims, and what was measured
#
# The paper trains RoBERTa-base and -large on GLUE, and LLaMA-7B on instructions. Verdicts are computed from
# stored runs of this course's smaller networks, each side at a rate chosen for it. A row without runs says so.

# %%
course.claims("SaLoRA")

# %% [markdown]
# Not measured here are the paper's scores, networks of its size, and trainings of its length.
# [11](11_claims_ledger.ipynb) has every claim of the course.
#
# ## 13 · Common confusions
#
# - **"λ falls once the budget is met."** Its gradient is a square. It stops growing; the *pull* is what vanishes.
# - **"C = b means that the share b is kept."** $C$ adds up probabilities; the cut asks each gate whether
#   $P(g > 0) > 1/2$.
# - **"A gate of 0.2 is nearly closed."** After the fold it is no gate any more: 0.2 is the starting length of a
#   column that trains at the full rate.
# - **"E[g] = 0 is the rule."** It never happens. The paper's "expected value" has to mean $\hat g$, the gate
#   without noise.
# - **"Each example has its own gates."** One draw for each matrix and step, shared by the whole batch, and a
#   new one at the next step.
# - **"R makes the directions orthogonal."** It pulls; how far it gets depends on β, the window and the task
#   (section 8).
#
# ## 14 · To take along
#
# - A gate for each direction: $h = Wx + s\,B\,\mathrm{diag}(g)\,Ax$. Clipping a stretched sigmoid puts positive
#   probability on exactly 0 and exactly 1, and $P(g > 0) = \sigma(\log\theta + \log 11)$.
# - The price λ of the budget only rises. It pulls with $2\lambda (C - b)\,p(1 - p)\,w$, hardest on gates in
#   doubt.
# - When the window closes, closed directions are deleted, gates are folded into $B$, and Adam's moments follow.
#   The function does not change, and the rest is LoRA's. You have trained it in forty lines.
# - Report two densities: what is expected, and what is kept.
# - It does not follow that it beats LoRA. In the stored runs of section 9, on small networks and with short training,
#   SaLoRA does not score higher than LoRA in any comparison, and its choice of directions cannot be told from a
#   random one.
#
# **Further reading.** [Louizos et al. 2017](https://arxiv.org/abs/1712.01312) derive the hard-concrete gate;
# [AdaLoRA](https://arxiv.org/abs/2303.10512) prunes by importance, and
# [`peft`](https://github.com/huggingface/peft) has it;
# [SoRA](https://arxiv.org/abs/2311.11696) trains gates with a proximal step in place of noise. The library's
# code is [salora.py](../lowrank_teach/methods/salora.py) and [gates.py](../lowrank_teach/gates.py).
#
# **Next question:** all these methods leave $W$ frozen. Can $W$ itself move for free? [05 ·
# Delta-LoRA](05_delta_lora.ipynb)
