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
# **You need:** 00, and the notebook of a paper where you want to know more. **Time:** as long as you like. The page
# opens in seconds, because its numbers are stored. **Papers:** all of them, one section each.
#
# **How to use it.** Run all cells, then play. Each picture comes twice: first some positions of its sliders as a
# fixed picture, then the sliders themselves. Drag a slider, or click it and use the arrow keys, or type a number
# into the box and press Enter. The sentence below the picture says what you see. It ends in "computed live" if the
# numbers are computed when you move the slider, and in "snapped" if the nearest stored run is shown.

# %%
import lowrank_teach as lt
from lowrank_teach import course

play = course.chapters.playground
task, backbone, profile = course.begin()

# %% [markdown]
# Some pictures need a trained network. The numbers of these networks are stored in the repository, and the line
# below says how they were made.

# %%
pictures = play.explorers()
print(play.about_stored())

# %% [markdown]
# ## 1 · Low rank
#
# **A ring from few directions** (notebook 00). **Try:** raise the number of directions one by one, and stop where
# you no longer see a change. Then read in the sentence which share of the energy that is. The energy is the sum of
# the squared singular values.

# %%
ring = pictures["RankOfAPicture"]()
course.show(course.strip(ring, [{"i": 1}, {"i": 4}]),
            "Above one direction, below four. " + ring.words(i=4))

# %%
course.explore(ring)

# %% [markdown]
# **Full fine-tuning, cut down** (notebook 01). Here every matrix was trained whole, and its change ΔW was cut to a
# lower rank afterwards. **Try:** find the rank from which the corner of ΔW hardly changes, and the rank from which
# the score hardly changes. Which of the two is lower?

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
# **A chain on a small problem** (notebook 03). Part of a matrix is seen, the rest is hidden, and a chain of low-rank
# updates fills it in. **Try:** keep the whole rank the same, as in one link of rank 4, two of rank 2, and four of
# rank 1, and compare the errors on the seen and on the hidden entries.

# %%
chain = pictures["ColaChain"]()
course.show(course.strip(chain, [{"links": 1, "r": 4}, {"links": 4, "r": 1}]),
            "The same whole rank, above in one link, below in four. " + chain.words(links=4, r=1))

# %%
course.explore(chain)

# %% [markdown]
# **Where the knots are** (notebook 03). A knot is the step at which one link ends and the next one begins. **Try:**
# move all knots to the beginning, then all to the end. Is there a place that is much better than knots that are
# evenly apart?

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
# **One gate** (notebook 04). **Try:** lower the temperature τ and see the middle empty: the gate is then nearly the
# toss of a coin. Then bring γ near 0 and ζ near 1, and watch the exact zeros and ones go away.

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
# **Trainings under several budgets** (notebook 04). In these runs the gates trained up to 90 % of the steps and
# stayed on to the end. In the library of today they are folded into $B$ when their window closes. **Try:** go from
# the loosest target to the tightest. Does the density arrive in time, and how far does λ have to rise for it?

# %%
tight = pictures["SaloraRuns"]()
course.show(course.strip(tight, [{"b": 0.75}, {"b": 0.125}]),
            "The loosest and the tightest of the stored targets, blue among the others. " + tight.words(b=0.125))

# %%
course.explore(tight)

# %% [markdown]
# ## 5 · Delta-LoRA
#
# **λ and K on a small problem** (notebook 05). **Try:** set λ to 0 and find LoRA again, then raise it and compare
# with LoRA at a larger α. Then delay the start with K, and read the rank of the whole change.

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
# contradicts itself. Here a chain gets gates: each of its two links has gates of its own, its own budget and its own
# λ. **Try:** another pair, or `lt.DeltaLoRA()` as a third member.

# %%
both = lt.compose(lt.COLA(chain=2), lt.SaLoRA(b=0.5))
print(f"{both.name}: rank {both.r} on sites {both.sites!r}, {both.links} links")
try:
    lt.compose(lt.SaLoRA(), lt.AutoLoRA())
except ValueError as refused:
    print(f"refused: {refused}")

# %% [markdown]
# Does it pay? Four configurations were trained with the same seeds, on all six matrices of a layer. Three of them
# train 16 directions a matrix: in one link or in two, with gates or without. The fourth is a chain that trains only
# as many directions as the gates keep. $A$ starts alike in all of them. A link has half of the steps, so its gates
# have twice the rate. The gates stayed on to the end of their link.

# %%
print(play.finding_of_links())

# %% [markdown]
# The differences are paired by seed: how much the composition scores above another configuration.

# %%
course.show(play.composition_figure(), play.finding_of_composition())

# %% [markdown]
# ## 8 · Every stored run
#
# The collections are the stored studies and the runs that you have trained on this machine. **Try:** choose a
# configuration and change only the seed. Is the difference between two configurations larger than that?

# %%
shelf = pictures["RunBrowser"]()
course.show(course.strip(shelf, [{"arm": 0}, {"arm": 1}]),
            "Two configurations of one collection, the chosen run in blue. " + shelf.words(**shelf.start()))

# %%
course.explore(shelf)

# %% [markdown]
# **The best of many runs** (notebook 07). Two methods are equal, and one of them may take the best of a grid of
# learning rates. **Try:** raise the number of rates and watch the gap that chance alone makes. Then add seeds. Which
# of the three ways to report a score still tells the truth?

# %%
many = pictures["BestOfGrid"]()
course.show(course.strip(many, [{**many.start(), "rates": 1}, {**many.start(), "rates": 20}]),
            "Above one rate, below twenty. " + many.words(**{**many.start(), "rates": 20}))

# %%
course.explore(many)

# %% [markdown]
# **How many test inputs** (notebook 08). Stored runs wrote texts for E2E, and here they are scored on fewer of the
# inputs. **Try:** go from all inputs to ten, and see which order of the configurations you would have reported.

# %%
inputs = pictures["HowManyInputs"]()
course.show(course.strip(inputs, [{"n": 10}, {"n": inputs.count_of_inputs}]),
            "Above ten test inputs, below all of them. " + inputs.words(n=inputs.count_of_inputs))

# %%
course.explore(inputs)

# %% [markdown]
# ## 9 · Train one now
#
# Choose a method, a seed and a number of steps. The training runs in a process of its own, so the sliders above can
# still be moved. **Try:** stop it half-way and press again: it goes on from there, and ends with the same bits as a
# training that was never stopped. Then train another seed; the curve of the first one stays behind it in grey.
#
# Nothing starts by itself. A finished run is kept, and the cell of section 8, run again, shows it.

# %%
play.train_now(task, backbone, profile)

# %% [markdown]
# ## What to take along
#
# - A slider that is *computed live* has its numbers computed at every move; one that *snaps* shows a stored run.
# - Low rank: the first few directions carry most of a trained change, but not equally in every matrix.
# - Gates and thresholds remove directions. The methods differ in what decides, and by which rule.
# - A small problem shows the mechanism, and not the size of the effect on a task.
# - The seed alone moves a score: look at section 8 before you believe a difference.
#
# **Next question:** which of the papers' claims hold here? `11_claims_ledger`.
