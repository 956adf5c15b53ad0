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
# # 05 · Delta-LoRA
#
# **Question:** can $W$ itself move for free?
#
# **Paper:** Zi et al. 2023, [*Delta-LoRA: Fine-Tuning High-Rank Parameters with the Delta of Low-Rank
# Matrices*](https://arxiv.org/abs/2309.02411).
# **You need:** [02](02_lora.ipynb), that is the layer, its scale $s = \alpha / r$ and its gradients, and singular
# values from [01](01_why_low_rank.ipynb).
# **Time:** about 90 minutes to read and solve; the computing takes minutes on a laptop.
# **Task:** SST-2, film reviews in two classes. The environment variable `LOWRANK_TASK` names another task with
# classes, such as `cola`, `mrpc`, `qnli`, `rte`, `mnli` or the packaged film reviews `rt`.
#
# At the end you will have trained the method in a loop of your own, and you will know which LoRA it is nearly
# equal to. That decides which comparison is fair.

# %%
import lowrank_teach as lt
import torch
from lowrank_teach import course
from torch import nn

ch = course.chapters.delta_lora
task, backbone, profile = course.begin()

# %% [markdown]
# ## 1 · Why: moving W is expensive
#
# LoRA leaves the pretrained matrix $W$ where it is. Full fine-tuning moves $W$, and AdamW then keeps three
# numbers for every entry while it trains: a gradient and two moments. For the query and value matrices of this
# network:

# %%
model, tokenizer = lt.load_backbone(backbone, num_labels=2, seed=0)
sites = lt.select(model, "qv")
d, k, r = sites[0].d, sites[0].k, 8
whole = sum(3 * site.d * site.k for site in sites)
thin = sum(3 * r * (site.d + site.k) for site in sites)
print(f"to train {len(sites)} matrices: {whole:,} numbers; to train their A and B, r = {r}: {thin:,}")
print(f"{whole / thin:.0f} times fewer")

# %% [markdown]
# Delta-LoRA wants to move $W$ at LoRA's price. It is one of several methods that try to get more than rank $r$ out
# of LoRA's memory. [ReLoRA](https://arxiv.org/abs/2307.05695) before it and
# [COLA](https://arxiv.org/abs/2401.04151) after it merge a finished branch into $W$ and start a new one.
# [GaLore](https://arxiv.org/abs/2403.03507), later still, trains $W$ itself and compresses its gradient. Delta-LoRA
# keeps a single branch and never starts it anew.
#
# The paper reports gains over LoRA on all five metrics of E2E (+1.24 BLEU) and the best score of its
# parameter-efficient rows on all eight tasks of GLUE. Its title promises "high-rank parameters".
#
# ## 2 · The idea in one picture
#
# After every optimizer step, look at how the product $BA$ has changed, and add this change to $W$, multiplied by
# a factor λ. During the first $K$ steps $W$ stays, because $A$ and $B$ have learned little yet.

# %%
course.show(
    ch.delta_idea(),
    "W receives what the step did to BA, times λ s; W itself has no gradient and no optimizer state.",
)

# %% [markdown]
# ## 3 · The maths
#
# The layer is LoRA's. $x$ has $k$ numbers, $h$ has $d$, $A$ is $r \times k$, $B$ is $d \times r$ and starts at
# zero:
#
# $$h = W x + s\, B A\, x, \qquad s = \alpha / r.$$
#
# **Why should $W$ follow $BA$?** $W$ and $s BA$ read the same $x$ and feed the same $h$. So the loss $L$ has one
# and the same gradient for both. With $G = \partial L / \partial h$ for each token it is
#
# $$g_W = \frac{\partial L}{\partial W} = \sum_{\text{tokens}} G\, x^\top = \frac{\partial L}{\partial (s BA)}.$$
#
# The paper therefore takes a step of the product as a stand-in for the step that $W$ would have taken. By the
# chain rule, $A$ and $B$ themselves receive
#
# $$\frac{\partial L}{\partial B} = s\, g_W A^\top, \qquad \frac{\partial L}{\partial A} = s\, B^\top g_W .$$
#
# **The rule.** Let $A_t, B_t, W_t$ be the matrices after step $t$. For all $t \ge K$:
#
# $$W_{t+1} = W_t + \lambda\, s\, (B_{t+1} A_{t+1} - B_t A_t).$$
#
# The branch stays beside $W$, so the network in use is $W^*_t = W_t + s\, B_t A_t$. The paper swaps two letters:
# its $A$ is our $B$.

# %%
symbols = ["λ (Delta-LoRA)", "K (Delta-LoRA)", "A", "B", "W_t", "W₀", "W_t − W₀", "W* − W₀"]
course.symbols(*symbols, papers=("Delta-LoRA",))

# %% [markdown]
# **With numbers.** Take $d = k = 2$, $r = 1$, $\alpha = 2$, so $s = 2$, and $\lambda = 0.5$. A step moves
# $A = (1\;\,2)$ to $A' = (1\;\,3)$ and $B = (1\;\,0)^\top$ to $B' = (1\;\,1)^\top$. Then
#
# $$B'A' - BA = \begin{pmatrix} 1 & 3 \\ 1 & 3 \end{pmatrix} - \begin{pmatrix} 1 & 2 \\ 0 & 0 \end{pmatrix}
# = \begin{pmatrix} 0 & 1 \\ 1 & 3 \end{pmatrix}, \qquad \lambda s = 1 .$$
#
# $W$ receives exactly this matrix. It has rank 2, though each product has rank 1.
#
# ### Exercise 3a · One step (5 minutes)
#
# `lora_A`, `lora_B` are the factors before the step, `new_A`, `new_B` those after it. Return the new $W$ as a new
# tensor. The function below has one mistake.


# %%
@course.exercise
def delta_step(W, lora_A, lora_B, new_A, new_B, lora_alpha, lam):
    s = lora_alpha / len(lora_A)
    return W + lam * s * new_B @ new_A  # nearly: find what is wrong


delta_step.check()

# %%
A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]])
new_A, new_B = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0], [1.0]])
moved = delta_step(torch.zeros(2, 2), A, B, new_A, new_B, 2.0, 0.5)  # α = 2, λ = 0.5
print(moved, "has rank", int(torch.linalg.matrix_rank(moved)))

# %% [markdown]
# **To first order.** A plain gradient step with rate η turns $A$ into $A - \eta g_A$ and $B$ into $B - \eta g_B$
# ($g_A$, $g_B$ are their gradients). Expand the product:
#
# $$(B - \eta g_B)(A - \eta g_A) - BA = -\eta\, (g_B A + B g_A) + \eta^2 g_B g_A .$$
#
# Equation 5 of the paper prints the two leading terms with the opposite sign; its appendix has the signs as they
# are here. Which are right can be computed from any four matrices:

# %%
draw = torch.Generator().manual_seed(0)
B, g_B = (torch.randn(12, 2, generator=draw) for _ in range(2))
A, g_A = (torch.randn(2, 10, generator=draw) for _ in range(2))
change = (B - 1e-3 * g_B) @ (A - 1e-3 * g_A) - B @ A
leading = -1e-3 * (g_B @ A + B @ g_A)
print(f"‖change − ours‖ / ‖change‖:       {(change - leading).norm() / change.norm():.4f}")
print(f"‖change − eq. 5's‖ / ‖change‖:    {(change + leading).norm() / change.norm():.4f}")

# %% [markdown]
# ## 4 · Predict
#
# Answer before you open, and write the two numbers of the last question down. You will need them in section 8.

# %%
ch.predict_memory(d, k, r)
ch.predict_one_step(d, k, r)
ch.predict_many_steps(d, k, r)

# %% [markdown]
# ## 5 · The whole method in thirty lines
#
# The workbench gives a small pretrained network of Hugging Face's `transformers` in float64, where rounding hides
# nothing, and the batches of a short training. From here on nothing in the loop is ours.

# %%
bench = ch.Workbench(task, profile)
print(f"{type(bench.network()).__name__}, {len(bench.batches)} batches of")
print({name: tuple(tensor.shape) for name, tensor in bench.batches[0].items()})

# %% [markdown]
# First the layer of [02](02_lora.ipynb), put in the place of $W_q$ and $W_v$ in every block:

# %%
class LoRALinear(nn.Module):
    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear, self.s = linear, alpha / r
        self.lora_A = nn.Parameter(torch.empty(r, linear.in_features, dtype=torch.float64))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, dtype=torch.float64))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x):
        return self.linear(x) + self.s * (x @ self.lora_A.T) @ self.lora_B.T


print(LoRALinear(nn.Linear(3, 4).double(), r=2, alpha=4.0)(torch.ones(1, 3).double()).shape)

# %%
R, ALPHA, RATE = 8, 16.0, 5e-3


def with_lora(model):
    """Freeze everything, put the layer on W_q and W_v, free the head."""
    model.requires_grad_(False)
    torch.manual_seed(1)
    layers = []
    for block in model.bert.encoder.layer:
        for name in ("query", "value"):
            layers.append(LoRALinear(getattr(block.attention.self, name), R, ALPHA))
            setattr(block.attention.self, name, layers[-1])
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return model, layers


print(len(with_lora(bench.network())[1]), "layers")

# %% [markdown]
# Now the training. Two places differ from LoRA's loop: the products are remembered before the step, and past step
# $K$ each $W$ receives the difference. $W$ is frozen all the time: AdamW does not know it.

# %%
def train(lam, K):
    """Delta-LoRA by AdamW with a linearly falling rate: the layers, the losses, every W after every step."""
    model, layers = with_lora(bench.network())
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=RATE, weight_decay=0.01)
    torch.manual_seed(0)  # the network has dropout: the same noise for every loop
    model.train()
    losses, path = [], []
    for step, batch in enumerate(bench.batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - (step - 1) / len(bench.batches))
        before = [(layer.lora_B @ layer.lora_A).detach() for layer in layers]  # BA
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        if step > K:
            for layer, BA in zip(layers, before, strict=True):
                new_BA = (layer.lora_B @ layer.lora_A).detach()  # B′A′
                layer.linear.weight += lam * layer.s * (new_BA - BA)
        losses.append(loss.item())
        path.append([layer.linear.weight.clone() for layer in layers])
    return layers, losses, path


LAM, K = 2.0, 2
layers, losses, path = train(LAM, K)
print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")

# %%
start = [layer.linear.weight.clone() for layer in with_lora(bench.network())[1]]
names = [site.name for site in lt.select(bench.network(), "qv")]
moved = {
    name: [float((Ws[i] - start[i]).norm()) for Ws in path] for i, name in enumerate(names)
}
course.show(ch.by_hand(losses, moved, K, bench.classes), ch.finding_by_hand(losses, moved, K, bench.classes))

# %% [markdown]
# ### The same by the library
#
# The library gets the same network, batches and start of $A$, and its own trainer runs. A callback keeps a copy
# of every $W$ after every step. All must be equal up to the rounding of float64.

# %%
method = lt.DeltaLoRA(r=R, lora_alpha=ALPHA, lam=LAM, K=K, sites="qv")
adapters = lt.adapt(bench.network(), method, seed=0)
for branch, layer in zip(adapters.values(), with_lora(bench.network())[1], strict=True):
    branch.lora_A.data.copy_(layer.lora_A.data)
watch = ch.Watch(adapters)
trainer = lt.Trainer(adapters, bench.rows, bench.collate, bench.settings, seed=0, callbacks=[watch])
outcome = trainer.run()
ch.say_equal("losses of all steps", losses, ch.losses_of(outcome))
for step, (ours, theirs) in enumerate(zip(path, watch.path, strict=True), 1):
    ch.say_equal(f"every W after step {step}", ours, theirs)

# %% [markdown]
# The library does not form $BA$. It remembers the thin $A$ and $B$ and uses that the difference is a product of
# rank $2r$ itself.
#
# ### Exercise 5a · The thin step (5 minutes)
#
# Write $B'A' - BA = X A' + Y (A' - A)$. The right factor `torch.cat([new_A, new_A - lora_A])` is $2r \times k$.
# Return the left one, $(X\;\,Y)$, of shape $d \times 2r$.


# %%
@course.exercise
def left_factor(lora_A, lora_B, new_A, new_B): ...


left_factor.check()

# %%
A, B = torch.randn(r, k, generator=draw), torch.randn(d, r, generator=draw)
new_A, new_B = A + 1e-3 * torch.randn(r, k, generator=draw), B + 1e-3 * torch.randn(d, r, generator=draw)
exact = new_B.double() @ new_A.double() - B.double() @ A.double()
right = torch.cat([new_A, new_A - A])
thin = left_factor(A, B, new_A, new_B) @ right
for name, found in {"two products, then the difference": new_B @ new_A - B @ A, "one thin product": thin}.items():
    print(f"{name}: error in float32 {float((found - exact).norm() / exact.norm()):.0e} of its size")

# %% [markdown]
# The two forms are equal by algebra. The thin one subtracts small matrices only, needs no $d \times k$ copy, and
# here it also loses fewer digits.
#
# ### Exercise 5b · Debug (7 minutes)
#
# A colleague wrote the loop over given factors: `As` $(T+1, r, k)$ and `Bs` $(T+1, d, r)$ after 0, 1, …, $T$
# steps. The first change of $W$ should come at step $K + 1$. Here it comes too early, *and* $W$ jumps.


# %%
@course.exercise
def delta_run(W, As, Bs, lora_alpha, lam, K):
    s, before = lora_alpha / As.shape[1], 0 * W
    for step in range(1, len(As)):
        if step >= K:
            now = s * Bs[step] @ As[step]
            W = W + lam * (now - before)
            before = now
    return W


delta_run.check()

# %%
course.solution(delta_run)

# %% [markdown]
# ## 6 · What must be true
#
# **Only $A$, $B$ and the head train.** No $W$ has a gradient or a place in the optimizer, and yet all have moved:

# %%
trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
bases = [owner.base.weight for owner in adapters.owners.values()]
print("matrices W in the optimizer:", sum(any(p is W for p in trained) for W in bases))
print("matrices W with a gradient: ", sum(W.grad is not None for W in bases))
changed = [bool((W - W0).any()) for W, W0 in zip(bases, start, strict=True)]
print("matrices W that moved:      ", sum(changed), "of", len(changed))

# %% [markdown]
# **λ = 0 is LoRA, and so is $K = T$,** where $T$ is the number of steps. With $0 < K < T$ the first $K + 1$
# losses are LoRA's, too, because a loss is computed before the step that changes $W$.

# %%
plain = train(0.0, 0)[1]
ch.say_equal("losses, λ = 0 and K = T", plain, train(LAM, len(bench.batches))[1], 0.0)
ch.say_equal(f"the first {K + 1} losses, λ = 0 and λ = {LAM:g}", plain[: K + 1], losses[: K + 1], 0.0)
print(f"the loss after that: {plain[K + 1]:.4f} (λ = 0) and {losses[K + 1]:.4f} (λ = {LAM:g})")

# %% [markdown]
# **Merging keeps the function.** `merge()` writes the branch into $W$, too, and `restore()` gives every $W$ its
# pretrained bytes back and keeps all that was learned beside it.

# %%
net, batch = adapters.model.eval(), bench.batches[0]
with torch.no_grad():
    beside = net(**batch).logits
    adapters.merge()
    ch.say_equal("outputs, merged and not", net(**batch).logits, beside)
    adapters.restore()
    ch.say_equal("outputs, W restored and not", net(**batch).logits, beside)
ch.say_equal("W restored, and pretrained", [o.base.weight for o in adapters.owners.values()], start, 0.0)

# %% [markdown]
# ## 7 · Train on a real task
#
# Now the profile's full training on its network, with λ = 0.5, the paper's value for GLUE. For $K$ the paper
# names no number there: it ties $K$ to the warm-up of each task. LoRA's scripts warm up for 6 % of the steps, so
# we *infer* $K$ = 6 %. Grey is a stored run of another seed.

# %%
method = lt.DeltaLoRA(r=8, lora_alpha=16.0, lam=0.5, K=0.06)
course.keep_reference("05_delta_lora", lambda: lt.fit(method, task, backbone, profile, 0))
reference, made = course.load_reference("05_delta_lora")
live = course.LiveCurve("delta_lora", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False)
live.finish(run, ch.finding_of_run(run, bench.classes))
print(made)

# %% [markdown]
# What is the right comparison? LoRA as it is; LoRA with α × 1.5, for a reason that section 8 finds; and full
# fine-tuning of the same matrices $W_q$ and $W_v$, which the paper writes FT‡. All start from the same network,
# and see the same batches.

# %%
runs = {
    "LoRA": lt.fit(lt.LoRA(), task, backbone, profile, seed=1),
    "LoRA at (1 + λ) α": lt.fit(lt.LoRA(lora_alpha=1.5 * 16.0), task, backbone, profile, seed=1),
    "Delta-LoRA": run,
    "FT‡": lt.fit(lt.FullFineTuning(trains="qv"), task, backbone, profile, seed=1),
}
course.show(ch.training_curves(runs, bench.classes), ch.finding_of_training(runs, bench.classes))

# %%
ch.scores(runs)

# %% [markdown]
# This is one seed at one learning rate for all. It says little about who is better: section 9 has runs over
# seeds, and runs whose rates were chosen for each method.
#
# ## 8 · Look at what was learned
#
# ### How far did W turn?
#
# The paper's Figure 3 shows the cosine of each matrix before and after training, both read as long vectors. A
# cosine of 1 means that the matrix has not turned. In the paper LoRA's cosine is the highest in most blocks,
# Delta-LoRA's the lowest, and FT‡ lies between them. Here are those of the runs above:

# %%
ch.cosine_table(runs)

# %% [markdown]
# All are close to 1, so the picture shows 1 − cosine, on a logarithmic axis. Higher is further from the start.

# %%
course.show(ch.cosines(runs), ch.finding_of_cosines(runs))

# %% [markdown]
# The same over the five seeds of a stored study (another task and a smaller network, as its line says):

# %%
study, strong = ch.stored("delta", "delta_strong")
ch.turn_table(study)

# %% [markdown]
# $W$ does turn further than under LoRA, as the paper says. But plain LoRA with α × 1.5 turns it about as far.
# Why just this factor?
#
# ### The rank of it all
#
# Go back to the float64 training of section 5. At every step past $K$ each $W$ received a matrix of rank $2r$.
# Form the whole change $W^* - W_0$ as a dense matrix and compute its singular values. Take your two numbers of
# section 4 out.

# %%
changes = {
    name: (path[-1][i] - start[i] + layers[i].s * layers[i].lora_B @ layers[i].lora_A).detach()
    for i, name in enumerate(names)
}
spectra = {name: torch.linalg.svdvals(changes[name]).numpy() for name in names[:3]}
steps = len(losses) - K
course.show(ch.rank_cliff(spectra, {"r": R, "2r": 2 * R}), ch.finding_of_cliff(spectra, {"2r": 2 * R}, steps))

# %% [markdown]
# ### Why: the sum telescopes
#
# Two minutes with a pencil: write the changes of steps $K+1$, $K+2$ and $K+3$ under each other and add them up.
# What one step adds, the next one takes away:
#
# $$W_T - W_K = \lambda s \sum_{t=K}^{T-1} (B_{t+1}A_{t+1} - B_t A_t) = \lambda s\, (B_T A_T - B_K A_K).$$
#
# Only the two ends are left, however many steps there were. The ranks of your own training, measured:

# %%
of_first = [Ws[0] for Ws in path]  # the first matrix, after each step
received = [new - old for old, new in zip(of_first[K - 1 : -1], of_first[K:], strict=True)]
ranks = [int(torch.linalg.matrix_rank(change, rtol=1e-9)) for change in received]
whole = int(torch.linalg.matrix_rank(of_first[-1] - of_first[K - 1], rtol=1e-9))
print(f"rank of each of the {len(ranks)} steps: {min(ranks)} to {max(ranks)}; of their sum: {whole}")

# %% [markdown]
# ### Exercise 8a · The whole change (5 minutes)
#
# Return $W^* - W_0$: what $W$ holds *and* the branch beside it. `A_K`, `B_K` are the factors after step $K$.


# %%
@course.exercise
def whole_change(lora_A, lora_B, A_K, B_K, lora_alpha, lam): ...


whole_change.check()

# %% [markdown]
# Your formula against the network that you trained step by step. The library has kept $A_K$ and
# $-\lambda s B_K$, since they are all that it needs to know of the past.

# %%
closed = {}
for name, branch in adapters.items():
    B_K = branch.fixed_left / (-LAM * branch.scaling)
    ends = branch.lora_A.detach(), branch.lora_B.detach(), branch.fixed_right, B_K
    closed[name] = whole_change(*ends, ALPHA, LAM)
ch.say_equal("whole changes, closed form and step by step", closed.values(), changes.values())

# %% [markdown]
# ### Exercise 8b · The rank (3 minutes)
#
# Which rank can $W^* - W_0$ have at most, for a $d \times k$ matrix and rank $r$, when $K = 0$, $K = T/2$ and
# $K = T$? Return the three numbers. At the start $B = 0$.


# %%
@course.exercise
def highest_ranks(d, k, r, T): ...


highest_ranks.check()

# %% [markdown]
# ### Exercise 8c · The LoRA that it equals (2 minutes)
#
# Let $K = 0$. Then $B_K = 0$, and the whole change is a multiple of $BA$. Which `lora_alpha` would a LoRA need to
# make the same change from the same $A$ and $B$?


# %%
@course.exercise
def same_alpha(lora_alpha, lam, r): ...


same_alpha.check()

# %% [markdown]
# ### Are A and B the same, too?
#
# As a function of $A$ and $B$, Delta-LoRA with $K = 0$ **is** LoRA at $(1 + \lambda)\alpha$. Its $A$ and $B$ could
# still be others, because their gradients are $1 + \lambda$ times smaller: they carry $s$ and not
# $(1 + \lambda) s$. But Adam divides a gradient by its own size, so a constant factor drops out (up to Adam's
# small constant ε). If this is right, both must have the same loss at every λ. Train both along a sweep:

# %%
lams = [0.0, 0.5, 1.0, 2.0, 5.0]
delta, twin = [], []
for lam in lams:
    alpha = same_alpha(ALPHA, lam, R)
    delta += [bench.mean_loss(lt.DeltaLoRA(lora_alpha=ALPHA, lam=lam, K=0))]
    twin += [bench.mean_loss(lt.LoRA(lora_alpha=alpha))]
course.show(ch.sweep(lams, delta, twin, bench.classes), ch.finding_of_sweep(lams, delta, twin))

# %% [markdown]
# ### Where the equality ends
#
# **Clipping.** Most trainings cut a step back when the norm of all gradients together is above a limit. The larger
# α has larger gradients, so other steps are cut, by other factors. A factor that differs from step to step does
# not drop out of Adam.

# %%
for clip in (0.0, 0.1):
    one = bench.train(lt.DeltaLoRA(lora_alpha=ALPHA, lam=LAM, K=0), max_grad_norm=clip)
    other = bench.train(lt.LoRA(lora_alpha=same_alpha(ALPHA, LAM, R)), max_grad_norm=clip)
    apart = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    print(f"clipping {f'at {clip:g}' if clip else 'off'}: losses differ by at most {apart:.0e}; "
          f"mean gradient norms {one.norm:.2f} (Delta-LoRA) and {other.norm:.2f} (LoRA)")

# %% [markdown]
# **$K > 0$.** Then a term stays behind for good: $-\lambda s B_K A_K$, the unfinished product of step $K$. It does
# not train any more, and $A$ and $B$ have to work around it. A least-squares problem of 12 × 10 shows what this
# costs when the training runs to its end:

# %%
curves = ch.toy_curves(lam=2.0, K=30)
course.show(ch.trajectories(curves, ylabel="Loss of the toy", title="Least squares, λ = 2", start=30),
            ch.finding_of_toy(lam=2.0, K=30))

# %% [markdown]
# So more rank is not more freedom. With $K > 0$ the change may have rank $2r$, but only one product of rank $r$
# still trains.
#
# ## 9 · Ablate
#
# The scores in this section come from stored runs. Most are from a study of 100 steps; the last comparison has 625
# steps, and a learning rate that was chosen for each method.
#
# ### How large may λ be?
#
# A larger λ is a larger $(1 + \lambda)\alpha$. So beside Delta-LoRA stand LoRA with as large an α, and LoRA with
# a learning rate that is larger by the same factor (the paper's Table 6 has this control).

# %%
(by_lam,) = ch.stored("delta_lam")
course.show(ch.stored_sweep(by_lam, study, strong), ch.finding_of_stored(by_lam, study, strong))

# %% [markdown]
# ### When should W begin to move?
#
# λ = 2, and $W$ starts to move at once, or after 6, 25 or 50 % of the steps.

# %%
(by_K,) = ch.stored("delta_K")
base = study.values("loss", "validation")["LoRA"]
course.show(ch.over_K(by_K, base), ch.finding_of_K(by_K))

# %% [markdown]
# ### Dropout on and off
#
# LoRA is often trained with dropout on the branch: random entries of its input are set to zero. Then $W$ and the
# branch no longer read the same $x$, and the equations of section 3 fail. The paper switches it off for this
# reason. Its Table 5 orders LoRA below Delta-LoRA with dropout, and this below Delta-LoRA without. By how much do
# the equations fail? And which order was found here?

# %%
def identity_gaps(dropout):
    """By how much ∂L/∂B and ∂L/∂A differ from s g_W Aᵀ and s Bᵀ g_W, as a share of their size."""
    adapted = lt.adapt(bench.network().train(), lt.LoRA(lora_dropout=dropout), seed=0)
    branch, W = adapted["1.q"], adapted.owner("1.q").base.weight.requires_grad_(True)
    torch.manual_seed(0)
    nn.init.normal_(branch.lora_B, std=0.02)
    adapted.model(**bench.batches[0]).loss.backward()
    A, B, s = branch.lora_A, branch.lora_B, branch.scaling
    with torch.no_grad():
        of_B, of_A = B.grad - s * W.grad @ A.T, A.grad - s * B.T @ W.grad
    return float(of_B.norm() / B.grad.norm()), float(of_A.norm() / A.grad.norm())


gaps = {p: identity_gaps(p) for p in (0.0, 0.1, 0.3, 0.5)}
course.show(ch.dropout(gaps, study), ch.finding_of_dropout(gaps, study))

# %% [markdown]
# The equations are a fact about gradients. Whether a score gets better without dropout is another question, and
# the figure answers it for this task only.
#
# ### The controls
#
# What is left of Delta-LoRA's lead once LoRA may take as large a step? Each seed pairs two runs on the same
# examples in the same order. Below zero, Delta-LoRA has the lower test loss.

# %%
pairs = ch.control_pairs(study, strong)
fig = ch.paired_differences(pairs, xlabel="Difference in test loss")
course.show(fig, ch.finding_of_controls(pairs, study))

# %%
ch.control_table(pairs)

# %% [markdown]
# A larger step of any kind may help simply because nothing has settled after 100 steps. So train longer, on SST-2,
# and choose the rate of each method on validation examples first:

# %%
tuned = ch.stored_tuned()
course.show(ch.two_studies(study, strong, tuned), ch.finding_of_two(study, strong, tuned))

# %% [markdown]
# ### What does it cost in memory?
#
# There are three ways to move $W$. **Naive:** keep the product $BA$ from before the step. **In place** (the
# library's default): keep $A$ and $B$ from before the step. **Lazy:** never touch $W$. By the closed form, two more
# thin terms in the forward pass compute the same function.
#
# ### Exercise 9a · The lazy layer (8 minutes)
#
# `x` is $(n, k)$; `W` is the pretrained matrix. Return what the Delta-LoRA layer gives for `x`, $(n, d)$, and never
# form a $d \times k$ matrix.


# %%
@course.exercise
def lazy_forward(x, W, lora_A, lora_B, A_K, B_K, lora_alpha, lam): ...


lazy_forward.check()

# %% [markdown]
# Here is your layer beside the first one of section 5, whose $W$ was moved step by step:

# %%
layer, branch = layers[0], adapters[names[0]]
x = torch.randn(4, k, generator=draw).double()
ends = layer.lora_A.detach(), layer.lora_B.detach(), branch.fixed_right, branch.fixed_left / (-LAM * layer.s)
ours = lazy_forward(x, start[0], *ends, ALPHA, LAM) + layer.linear.bias
ch.say_equal("outputs, lazy and in place", ours, layer(x))

# %%
lazy = bench.train(lt.DeltaLoRA(lam=LAM, K=K, form="lazy")).adapters
in_place = bench.train(lt.DeltaLoRA(lam=LAM, K=K)).adapters
shares = ch.memory_shares(in_place, lazy)
ch.say_equal("whole changes, trained lazily and in place", [b.delta() for b in lazy.values()],
             [b.delta() for b in in_place.values()], 1e-8)
course.show(ch.memory_bars(shares), ch.finding_of_memory(shares))

# %% [markdown]
# In memory the move is nearly free. To be able to `restore()`, the in-place form also needs $W_0$, which may lie on
# a disk. The lazy form pays with a little time in each forward pass instead.
#
# ## 10 · Play
#
# The least-squares problem, solved anew at every move of a slider: three runs of 120 steps. Watch the rank in the
# middle, and which two curves meet when $K$ reaches 0, or 120.

# %%
knobs = ch.DeltaTrajectory()
states = [{"lam": 2.0, "K": K} for K in (0, 30, 60)]
course.show(course.strip(knobs, states), ch.finding_of_strip(states, knobs))

# %%
course.explore(knobs)

# %% [markdown]
# Try to find a $K$ with which Delta-LoRA ends lower than LoRA at $(1 + \lambda)\alpha$. Where is the third singular
# value largest?
#
# ## 11 · Exercises
#
# **11a · Recall.** Why must the first change come at step $K + 1$ and not add $B_K A_K$? Why is dropout off? Which
# two facts turn $K = 0$ into LoRA at $(1 + \lambda)\alpha$?
#
# **11b · Modify (10 minutes).** Let λ fall linearly from 2 to 0 in a copy of your loop. The factors in front of the
# products now differ from step to step. Does the sum still telescope? The library's `lam_end` does the same:

# %%
falling = bench.train(lt.DeltaLoRA(lora_alpha=ALPHA, lam=LAM, lam_end=0.0, K=K)).adapters
ch.rank_table(in_place, falling)

# %% [markdown]
# A rank above $2r = 16$ means that the sum no longer telescopes.
#
# **11c · Debug.** Someone calls `optimizer.step()` once for every four batches, but runs the lines after
# `if step > K` for every batch. Is the result wrong? What if `before` is computed only once for every four?
#
# **11d · Open.** With a falling λ the rank is high at last. Is it of use? Say which baseline would be fair, then
# compare over three seeds.
#
# **11e · Open.** Replace AdamW by plain SGD in your loop. What becomes of the equality with LoRA at
# $(1 + \lambda)\alpha$, and which learning rate would restore it?
#
# **11f · Open.** On average over many dropout masks, do the equations of section 3 come back? Average the
# gradients of section 9 over 64 masks before you compare.
#
# ## 12 · What the paper claims, and what was measured
#
# The paper trains GPT-2 medium on E2E and WebNLG (λ = 2, $K$ = 500), BART-large on XSum (λ = 0.5, $K$ = 1000) and
# RoBERTa-base on GLUE (λ = 0.5). Verdicts are computed from stored runs of this course's smaller networks, and from
# checks made on the spot. A row without runs says so.

# %%
course.claims("Delta-LoRA")

# %% [markdown]
# The identities are exact and do not depend on a network. The paper's scores need its networks and are not reproduced
# here. [08](08_generation.ipynb) trains a small model on E2E, and [11](11_claims_ledger.ipynb) has every claim of the
# course.
#
# ## 13 · Common confusions
#
# - **"W receives the product."** It receives the *difference* of two products. Whoever starts from a zero product
#   lets all that was learned by step $K$ jump into $W$ at once (exercise 5b).
# - **"Ranks add up, so after many steps the change has full rank."** That is right for unrelated steps. These
#   steps telescope.
# - **"So it is LoRA, full stop."** Only with $K = 0$, with an optimizer that ignores the scale of a gradient, and
#   without clipping.
# - **"$W_t$ is the network in use."** The branch stays beside it; the network in use has $W^* = W_t + s\, B_t A_t$.
# - **"$A$ is $A$ everywhere."** This paper swaps the two letters; see the [glossary](GLOSSARY.md).
#
# ## 14 · To take along
#
# - After each step past $K$, $W$ follows the change of $BA$, times $\lambda s$.
# - In memory this is nearly free: the factors before the step, and those at step $K$.
# - With a constant λ the steps telescope, so the whole change has rank $2r$ at most. It is not high rank.
# - With $K = 0$, under Adam and without clipping, it is LoRA at $(1 + \lambda)\alpha$. So a fair baseline is a LoRA
#   with this α, and a learning rate chosen for each.
# - Dropout on the branch breaks the equation of gradients that the idea rests on. Its effect on a score must be
#   measured.
#
# **Further reading.** [ReLoRA](https://arxiv.org/abs/2307.05695) reaches high rank by merging and starting again.
# [Flora](https://arxiv.org/abs/2402.03293) reads LoRA as a compressed gradient of $W$, and
# [MoRA](https://arxiv.org/abs/2405.12130) asks when high rank matters. The library's code of this method is
# [delta_lora.py](../lowrank_teach/methods/delta_lora.py).
#
# **Next question:** the rank was given by hand all the time. Can it be learned on held-out data?
# [06 · AutoLoRA](06_autolora.ipynb)
