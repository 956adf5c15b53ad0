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
# # 10 · Playground
#
# **Question:** what do the sliders do?
#
# **You need:** 00. **Time:** as long as you like. **Papers:** all of them, one section each.
#
# **How to use it.** Run all cells, then play. Each picture comes twice: first fixed, in some positions, then with
# its sliders. Drag a slider, or click it and use the arrow keys, or type a number into the box and press Enter. The
# sentence below the picture says what you see, and whether its numbers were computed now or stored.

# %%
import lowrank_teach as lt
from lowrank_teach import course

play = course.chapters.playground
task, backbone, profile = course.begin()

# %% [markdown]
# Some pictures need a trained network. Their numbers are stored:

# %%
pictures = play.explorers()
print(play.about_stored())

# %% [markdown]
# ## 1 · Low rank
#
# **A ring from few directions** (notebook 00). **Try:** raise the number of directions one by one, and stop where
# you no longer see a change. Which share of the energy, the sum of the squared singular values, is that?

# %%
ring = pictures["RankOfAPicture"]()
course.show(course.strip(ring, [{"i": 1}, {"i": 4}]),
            "Above one direction, below four. " + ring.words(i=4))

# %%
course.explore(ring)

# %% [markdown]
# **Full fine-tuning, cut down** (notebook 01). Every matrix was trained whole, and its change ΔW was then cut to a
# lower rank. **Try:** from which rank on does ΔW hardly change, and from which rank on the score?

# %%
whole = pictures["CutNetwork"]()
course.show(course.strip(whole, [{"matrix": 0, "i": 1}, {"matrix": 0, "i": 32}]),
            "Above one direction of every ΔW, below 32. " + whole.words(matrix=0, i=32))

# %%
course.explore(whole)

# %% [markdown]
# ## 2 · LoRA
#
# **A trained ΔW, cut down** (notebook 02). **Try:** find a matrix in which half of the directions hold nearly all of
# the energy. Is it a $W_q$ or a $W_v$?

# %%
cut = pictures["Truncation"]()
course.show(course.strip(cut, [{"matrix": 0, "i": 2}, {"matrix": 0, "i": 16}]),
            "A corner of ΔW, above from two of its directions, below from all sixteen. " + cut.words(matrix=0, i=2))

# %%
course.explore(cut)

# %% [markdown]
# **Rank and α** (notebook 02). **Try:** move α at one rank, then the rank at one α. Which of the two changes the
# loss curve more?

# %%
knobs = pictures["RankAlpha"]()
course.show(course.strip(knobs, [{"rank": 1, "alpha": 64}, {"rank": 16, "alpha": 4}]),
            "Two corners of the grid: the chosen run is framed. " + knobs.words(rank=16, alpha=4))

# %%
course.explore(knobs)

# %% [markdown]
# ## 3 · COLA
#
# **A chain on a small problem** (notebook 03). Part of a matrix is seen, and a chain of low-rank updates fills in
# the rest. **Try:** keep the whole rank the same, in one link of rank 4 or four of rank 1, and compare the errors.

# %%
chain = pictures["ColaChain"]()
course.show(course.strip(chain, [{"links": 1, "r": 4}, {"links": 4, "r": 1}]),
            "The same whole rank, above in one link, below in four. " + chain.words(links=4, r=1))

# %%
course.explore(chain)

# %% [markdown]
# **Where the knots are** (notebook 03). At a knot, one link ends and the next one begins. **Try:** move all knots to
# the beginning, then all to the end. Is any place much better than knots that are evenly apart?

# %%
knots = pictures["MovingKnots"]()
early = {**knots.start(), "first": 1, "second": 2, "third": 3}
course.show(course.strip(knots, [knots.start(), early]),
            "Above the knots stand evenly apart, below all three come early. " + knots.words(**early))

# %%
course.explore(knots)

# %% [markdown]
# ## 4 · SaLoRA
#
# **One gate** (notebook 04). **Try:** lower the temperature τ: the gate becomes nearly the toss of a coin. Then bring
# γ near 0 and ζ near 1: the exact zeros and ones go away.

# %%
gate = pictures["HardConcreteGate"]()
course.show(course.strip(gate, [gate.start(), {**gate.start(), "tau": 0.3}]),
            "Above the temperature at the start, below 0.3. " + gate.words(**{**gate.start(), "tau": 0.3}))

# %%
course.explore(gate)

# %% [markdown]
# **A budget on stored gates** (notebook 04). **Try:** move the target density b through the density that the gates
# have, and see the pull change its direction. How does λ change it?

# %%
budget = pictures["SaloraBudget"]()
course.show(course.strip(budget, [{"lam": 1.0, "b": 0.25}, {"lam": 1.0, "b": 0.75}]),
            "Above a target below the density, under it one above. " + budget.words(lam=1.0, b=0.25))

# %%
course.explore(budget)

# %% [markdown]
# **Trainings under several budgets** (notebook 04). In these runs the gates stayed on to the end; today the library
# folds them into $B$ after their window. **Try:** go from the loosest target to the tightest. Does the density
# arrive in time, and how far does λ rise?

# %%
tight = pictures["SaloraRuns"]()
course.show(course.strip(tight, [{"b": 0.75}, {"b": 0.125}]),
            "The loosest and the tightest of the stored targets, blue among the others. " + tight.words(b=0.125))

# %%
course.explore(tight)

# %% [markdown]
# ## 5 · Delta-LoRA
#
# **λ and K on a small problem** (notebook 05). **Try:** set λ to 0, which is LoRA, then raise it and compare with
# LoRA at a larger α. Then delay the start with K, and read the rank of the whole change.

# %%
moving = pictures["DeltaTrajectory"]()
course.show(course.strip(moving, [{"lam": 0.0, "K": 0}, {"lam": 2.0, "K": 30}]),
            "Above λ = 0, which is LoRA, below λ = 2. " + moving.words(lam=2.0, K=30))

# %%
course.explore(moving)

# %% [markdown]
# ## 6 · AutoLoRA
#
# **A threshold on learned weights** (notebook 06). **Try:** move the threshold a little off $1/k$, to either side,
# and see the ranks change. How far can it go before a matrix has no direction left?

# %%
ranks = pictures["RankThreshold"]()
course.show(course.strip(ranks, [ranks.start(), {"threshold": 1.05 * ranks.start()["threshold"]}]),
            "Above the paper's threshold 1/k, below one that is 5 % higher. " + ranks.words(**ranks.start()))

# %%
course.explore(ranks)

# %% [markdown]
# ## 7 · Two methods at once
#
# All methods here are one layer and a rule, so two rules can share a layer. `compose` joins them, and refuses what
# contradicts itself. Here each link of a chain gets gates and a λ of its own. **Try:** another pair.

# %%
both = lt.compose(lt.COLA(chain=2), lt.SaLoRA(b=0.5))
print(f"{both.name}: rank {both.r} on sites {both.sites!r}, {both.links} links")
try:
    lt.compose(lt.SaLoRA(), lt.AutoLoRA())
except ValueError as refused:
    print(f"refused: {refused}")

# %% [markdown]
# Does it pay? Four configurations were trained with the same seeds on all six matrices of a layer. Three train 16
# directions a matrix: in one link or in two, with gates or without. The fourth is a chain of only as many directions
# as the gates keep.

# %%
print(play.finding_of_links())

# %% [markdown]
# How much does the composition score above each other configuration, seed by seed?

# %%
course.show(play.composition_figure(), play.finding_of_composition())

# %% [markdown]
# ## 8 · Every stored run
#
# The stored studies, and your own runs. **Try:** choose a configuration and change only the seed. Is the difference
# between two configurations larger than that?

# %%
shelf = pictures["RunBrowser"]()
course.show(course.strip(shelf, [{"arm": 0}, {"arm": 1}]),
            "Two configurations of one collection, the chosen run in blue. " + shelf.words(**shelf.start()))

# %%
course.explore(shelf)

# %% [markdown]
# **The best of many runs** (notebook 07). Two methods are equal, but one takes the best of many learning rates.
# **Try:** raise the number of rates and watch the gap that chance alone makes. Then add seeds.

# %%
many = pictures["BestOfGrid"]()
course.show(course.strip(many, [{**many.start(), "rates": 1}, {**many.start(), "rates": 20}]),
            "Above one rate, below twenty. " + many.words(**{**many.start(), "rates": 20}))

# %%
course.explore(many)

# %% [markdown]
# **How many test inputs** (notebook 08). Texts of stored runs are scored on fewer of the inputs. **Try:** go from all
# inputs to ten. Which order of the configurations would you have reported?

# %%
inputs = pictures["HowManyInputs"]()
course.show(course.strip(inputs, [{"n": 10}, {"n": inputs.count_of_inputs}]),
            "Above ten test inputs, below all of them. " + inputs.words(n=inputs.count_of_inputs))

# %%
course.explore(inputs)

# %% [markdown]
# ## 9 · Train one now
#
# Choose a method, a seed and a number of steps. **Try:** stop half-way and press again: the training goes on from
# there. Then train another seed; the curve of the first one stays behind it in grey.

# %%
play.train_now(task, backbone, profile)

# %% [markdown]
# ## What to take along
#
# - Low rank: the first few directions carry most of a trained change, but not equally in every matrix.
# - Gates and thresholds remove directions. The methods differ in what decides, and by which rule.
# - A small problem shows the mechanism, and not the size of the effect on a task.
# - The seed alone moves a score (section 8).
#
# **Next question:** which of the papers' claims hold here? `11_claims_ledger`.
