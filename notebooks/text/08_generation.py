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
# # 08 · Generation
#
# **Question:** do the gains carry over to text?
#
# **You need:** 02; 05 and 06 for what Delta-LoRA and AutoLoRA do. **Time:** some minutes of computing on a laptop,
# an hour to read and to try; on the reference GPU it is the reading that counts. **Papers:** the E2E and WebNLG
# tables of LoRA (arXiv 2106.09685), Delta-LoRA (arXiv 2309.02411) and AutoLoRA (arXiv 2403.09113).

# %%
import json

import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach.analysis import plots, statistics, style, toy_problems
from lowrank_teach.course import contents, explorer
from lowrank_teach.course.chapters import generation as generation_chapter
from lowrank_teach.course.chapters import ledger as ledger_chapter
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.reproduction import ledger as claims_ledger
from lowrank_teach.reproduction import results, texts, verdicts
from lowrank_teach.tasks import metrics, slot_errors
from lowrank_teach.tasks.generation import generate
from lowrank_teach.tasks.load import task_here
from lowrank_teach.tasks.tokenize import Collate, encode
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "smollm2-135m"
TASK, why = task_here("e2e", packaged="bbc-headline")
print(contents.machine_line())
print(f"profile: {PROFILE}; backbone: {BACKBONE}; trained live on: {TASK} ({why})")

# %% [markdown]
# ## 1 · Question
#
# So far every task ended in a class. Delta-LoRA and AutoLoRA also claim gains where a model *writes*: a description
# of a restaurant (E2E), or of some facts (WebNLG). There is more than one right text. How many? And what does a score
# mean then?
#
# What is compared here comes from stored runs, since the data ride in no package. What you train yourself is on the
# task named above: E2E where its files are, else headlines for news.

# %%
e2e, webnlg = texts.load_texts("e2e"), texts.load_texts("webnlg")
source, references, _ = e2e.sample(0)
counts = [len(sample["references"]) for sample in e2e.samples]
print(f"data: {source}\n")
print(*references[:3], sep="\n")
print(f"\nright texts in the test set, for {len(counts)} inputs: {counts}")
print(f"({e2e.about['licence']})")

# %% [markdown]
# ## 2 · The idea in one picture
#
# The data are written as a line of fields, and a bar pair `||` says: now the text. A *causal* model, which only ever
# predicts the next token, goes on from there. Only its branches train.

# %%
style.show(
    generation_chapter.data_to_text(),
    "Left to right: what the model reads, what trains, what it writes, and what that is "
    "held against.",
    "Four boxes with arrows: fields of a restaurant, a causal model with frozen W and trained "
    "A and B, a written text, and several references.",
)

# %% [markdown]
# ## 3 · Maths ↔ code
#
# With $x$ the tokens of the prompt and $y_1 \dots y_T$ those of the text and its end, the loss is
#
# $$L = -\frac{1}{T} \sum_{t=1}^{T} \log p(y_t \mid x, y_1, \dots, y_{t-1}).$$
#
# | in words | code |
# |---|---|
# | prompt and text as one row; the prompt's labels are −100 | `encode(frame, task, tokenizer, causal=True)` |
# | −100 is left out of the mean, as is padding | `Collate(tokenizer, task, causal=True)` |
# | the mean of $-\log p$ over what is left | `model(**batch).loss` |
# | the text, token by token; one beam is greedy | `generate(model, rows, tokenizer, num_beams=1)` |
# | the score against all references of an input | `metrics.bleu(texts, references)` |
#
# Why mask the prompt? The model is given it. To learn to predict it would spend gradient on what nobody asks for.

# %%
data = lt.load_task(TASK, n_train=16, n_validation=4, n_test=40)
model, tokenizer = lt.load_backbone(BACKBONE)
rows = encode(data.train, data.task, tokenizer, max_length=96, causal=True)
pieces = [tokenizer.decode([token]) for token in rows[0]["input_ids"]]
generation_chapter.tokens(pieces, [label != -100 for label in rows[0]["labels"]])

# %% [markdown]
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
vocabulary = len(tokenizer)
predict(
    f"A model that knows nothing finds {vocabulary:,} tokens equally likely. What is its loss?",
    f"ln {vocabulary:,} = {np.log(vocabulary):.2f}; the pretrained model starts far below it",
)
greedy, wide = toy_problems.best(1), toy_problems.best(2)
predict(
    "The likeliest next word is taken each time. Is the result the likeliest text?",
    f"not always: section 9 has a tree where the greedy text has probability "
    f"{greedy.probability:.2f} and another one {wide.probability:.2f}",
)
assert greedy.probability < wide.probability
predict(
    "A text says the right things in words that no reference uses. What is its BLEU?",
    "near zero: BLEU counts shared groups of words and knows no meaning; see section 8",
)

# %% [markdown]
# ## 5 · Implement
#
# Four exercises. A stub that you leave alone does not stop the notebook.
#
# **5a · The row a causal model learns from** (4 minutes)
# - `prompt` and `target` are lists of token ids, `end` is one id;
# - return two rows of one length, (2, T): the tokens, and their labels;
# - no shift: the model compares each label with what it said one place before.


# %%
@exercise
def causal_row(prompt, target, end):
    tokens = [*prompt, *target]
    return np.array([tokens, tokens])  # nearly: two things are missing


causal_row.check()

# %% [markdown]
# **5b · What BLEU counts** (6 minutes)
# - how many words of `text` are found in `references`? Split both at blanks;
# - a word counts as often as it is written, but at most as often as it stands in the *one* reference that has it
#   most often: else "the the the" would be a fine text;
# - return two numbers: words found, words written.


# %%
@exercise
def matched_words(text, references):
    words = text.split()
    found = [word for word in words if any(word in one.split() for one in references)]
    return [len(found), len(words)]  # nearly: find out when it counts too much


matched_words.check()

# %% [markdown]
# **5c · A field left out** (5 minutes)
# - for each of `values`: 1 if `text` does not say it, 0 if it does;
# - capitals do not matter; a value has to stand there as a whole word.


# %%
@exercise
def missing_values(text, values):
    return np.array([float(value not in text) for value in values])  # find two bugs


missing_values.check()

# %% [markdown]
# **5d · A score over inputs drawn anew** (5 minutes)
# - TER is the edits that turn a text into a reference, as a share of the reference's words. Of each text: `edits` and
#   `lengths`, both (N,);
# - each row of `draws` (R, N) names N texts, some of them twice. Return the R scores;
# - a corpus score adds up first, then divides.
#
# This is the *bootstrap* over test inputs: how far would the score move if other inputs had been asked for?


# %%
@exercise
def resampled_scores(edits, lengths, draws): ...


resampled_scores.check()

# %%
solution(resampled_scores)

# %% [markdown]
# ## 6 · Sanity: three things that must be true
#
# **The loss is that of the text alone.** By hand: take log-probabilities where there are labels, one place before.

# %%
batch = Collate(tokenizer, data.task, causal=True)(rows[:4])
with torch.no_grad():
    out = model(**batch)
labels = batch["labels"][:, 1:]
log_p = out.logits[:, :-1].log_softmax(-1)
picked = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
by_hand = float(-picked[labels != -100].mean())
print(f"by hand {by_hand:.4f}, the model's own {float(out.loss):.4f}")
print(f"a model that knows nothing: {np.log(vocabulary):.2f}")
assert abs(by_hand - float(out.loss)) < 1e-3
assert by_hand < np.log(vocabulary)

# %% [markdown]
# **A text does not depend on its neighbours.** In a batch, shorter prompts are padded on the *left*, since the model
# goes on from the last place.

# %%
first_three = data.test.drop_duplicates(data.task.text[0]).head(3)  # an input has many rows
asked = encode(first_three, data.task, tokenizer, max_length=96, causal=True)
together = generate(model, asked, tokenizer, max_new_tokens=12)
alone = [generate(model, [row], tokenizer, max_new_tokens=12)[0] for row in asked]
same = sum(a == b for a, b in zip(alone, together, strict=True))
print(f"{same} of {len(asked)} texts are the same alone and in a batch")
assert same >= len(asked) - 1, "rounding may turn a tie; padding must not turn texts"

# %% [markdown]
# **The rule for errors is not fooled by a reference.** A *slot error* is a field that the text leaves out, or a
# value that it makes up. The rule looks for the written forms of each value (`slot_errors.FORMS`), and for
# values of the task's list that do not belong there. People leave fields out, too:

# %%
human = e2e.about["human"]
print(f"E2E references: {human['missing']:.1%} of the fields missing, "
      f"{human['made_up']:.1%} made up, by this rule")
print(f"WebNLG: {webnlg.about['human']['missing']:.1%} and "
      f"{webnlg.about['human']['made_up']:.1%}")
assert max(human["made_up"], webnlg.about["human"]["made_up"]) < 0.05

# %% [markdown]
# So a share of missing fields near the first number means: as complete as people are.
#
# ## 7 · Train on a real task
#
# First what the pretrained model writes, without any training. It was tuned to chat, and never saw this format.

# %%
SIZES = {
    "tiny": {"steps": 8, "batch_size": 4, "max_length": 96, "n_train": 64,
             "n_validation": 8, "n_test": 8, "n_written": 4},
    "laptop": {"steps": 40, "batch_size": 8, "max_length": 96, "n_train": 1000,
               "n_validation": 32, "n_test": 32, "n_written": 12},
    "gpu": {"n_written": 64},
}
LONGEST = 16 if PROFILE == "tiny" else 40
before = generate(model, asked, tokenizer, max_new_tokens=LONGEST)
generation_chapter.texts_in_rows(
    {f"input {i}": text for i, text in enumerate(before, 1)}, "written before any training"
)

# %%
method = lt.LoRA(r=4, lora_alpha=8.0)
keep_reference(
    f"08_generation_live_{TASK}",
    lambda: lt.fit(method, TASK, BACKBONE, PROFILE, 0, **SIZES[PROFILE]),
)  # `make notebooks`
reference, made = load_reference(f"08_generation_live_{TASK}")
print(made)
live = LiveCurve("lora", reference)
run = lt.fit(method, TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], progress=False,
             **SIZES[PROFILE])
live.finish(run, "Your loss. Small batches of texts differ, so it jumps: read its level, not each bend.")

# %% [markdown]
# The record keeps the factors of each $\Delta W$. `deploy` adds them to the pretrained matrices; then the same inputs
# are written again.

# %%
texts.deploy(model, run.factors)
after = generate(model, asked, tokenizer, max_new_tokens=LONGEST)
with torch.no_grad():
    trained = float(model(**batch).loss)
print(f"loss of four training rows: {by_hand:.2f} before, {trained:.2f} after the training")
assert trained < by_hand
assert after != before
shown = {}
for i in range(len(asked)):
    shown |= {f"{i + 1} · a person": asked[i]["reference"], f"{i + 1} · before": before[i],
              f"{i + 1} · after": after[i]}
generation_chapter.texts_in_rows(shown, "a person: what was written for this input in the data")

# %% [markdown]
# ## 8 · Look at what stored runs wrote
#
# From here on: E2E and WebNLG, from runs made before, all on the same rows. LoRA; Delta-LoRA with the λ = 2 of its
# paper; AutoLoRA with a short search; and the control that notebook 05 asked for, LoRA at three times α. The last
# lines of the output say which of them are stored.
#
# The papers train some hundred times as long, and a larger model. What can be seen here is how the methods *start*.
# For E2E each takes the learning rate whose texts for *validation* inputs had the best BLEU; the control takes
# Delta-LoRA's, so that the two differ in one thing. Would the validation loss have chosen the same rates?

# %%
print(e2e.line(), webnlg.line(), sep="\n\n")
trained_arms = [arm for arm in e2e.arms if arm != "not trained"]
print(f"\nE2E: {', '.join(e2e.arms)}; seeds: {len(e2e.seeds(trained_arms[0]))}")
print(f"WebNLG: {', '.join(webnlg.arms)}; seeds: {len(webnlg.seeds(webnlg.arms[-1]))}")
names = {"LoRA": "lora", "Delta-LoRA": "delta_lora", "AutoLoRA": "autolora"}
curves = {names.get(arm, arm): e2e.record(arm)["series"]["loss"] for arm in trained_arms}
style.show(
    plots.learning_curves(curves, ylabel="Training loss (mean of 5 steps)"),
    "E2E: which curve falls first? Mind what a larger step of any kind would do.",
    "Training loss against step for the stored E2E runs, a line a method; all fall steeply, "
    "then slowly.",
)

# %%
grid = pd.DataFrame(e2e.about["grid"]).rename(columns={"score": "BLEU"})
tried = {what: grid.pivot(index="arm", columns="lr", values=what) for what in ("BLEU", "loss")}
by_rate = pd.DataFrame({f"{arm}, {what}": table.loc[arm]
                        for arm in dict.fromkeys(grid["arm"]) for what, table in tried.items()}).T
taken = {arm: e2e.record(arm)["lr"] for arm in trained_arms}
print("taken:", ", ".join(f"{arm} {rate:g}" for arm, rate in taken.items()))
print("by loss it would be:", tried["loss"].idxmin(axis=1).to_dict())
assert all(tried["BLEU"].loc[arm].idxmax() == taken[arm] for arm in tried["BLEU"].index)
by_rate.columns = [f"{rate:g}" for rate in by_rate]
contents.readable(by_rate.rename_axis("validation, by rate"), "rates",
                **dict.fromkeys(by_rate, "{:.3f}"))

# %% [markdown]
# The loss asks for the next word of what a person wrote. BLEU reads what the model wrote, when it went on from its
# own words; an early end of the text costs it much. The two need not agree on the best rate.
#
# ### What a score sees
#
# A made-up example before the real ones. Two references, and three texts: nearly a copy, a right text in other words,
# and nearly a copy that turns *cheap* into *expensive*.

# %%
fields = "name : The Mill | eatType : pub | priceRange : cheap | area : riverside"
wanted = ["The Mill is a cheap pub by the river .",
          "The Mill is an inexpensive pub on the riverside ."]
candidates = {
    "near copy": "The Mill is a cheap pub on the riverside .",
    "other words": "Short of money ? Take an affordable pint near the river in a pub , The Mill .",
    "wrong price": "The Mill is an expensive pub on the riverside .",
}
known = {"name": ["The Mill"], "eatType": ["pub"], "priceRange": ["cheap", "high"],
         "area": ["riverside", "city centre"]}
print(*(f"{name}: {text}" for name, text in candidates.items()), sep="\n")

# %%
scorers = {"BLEU": metrics.bleu, "NIST": metrics.nist, "METEOR": metrics.meteor,
           "ROUGE-L": metrics.rouge("rougeL"), "TER (low is good)": metrics.ter}
table = pd.DataFrame({
    what: {name: scorer([text], [wanted]) for name, text in candidates.items()}
    for what, scorer in scorers.items()
})
table["slot errors"] = [slot_errors.check(text, fields, known).errors
                        for text in candidates.values()]
assert table["BLEU"]["wrong price"] > table["BLEU"]["other words"]
assert table["slot errors"]["wrong price"] > table["slot errors"]["other words"] == 0
print("BLEU prefers the text that is wrong; the slot rule the one that is right")
contents.readable(table, "scores", **dict.fromkeys(scorers, "{:.2f}"))

# %% [markdown]
# | score | what it sees | what it does not |
# |---|---|---|
# | BLEU | shared groups of 1 to 4 words, and brevity | which words matter; other words for the same |
# | NIST | the same, rare groups counting more | as BLEU; its scale grows with the number of texts |
# | METEOR | words matched as they are, by stem, by synonym | facts: a right word in a wrong place |
# | ROUGE-L | the longest common subsequence | word order inside what is left out |
# | CIDEr | groups weighted by how rare they are over all inputs | one input alone: rarity needs many |
# | TER | edits to the nearest reference | a moved sentence costs as much as a wrong one |
# | slot errors | values left out and made up | style, grammar, and words that no pattern knows |
#
# ### Scores
#
# Then the stored texts, each score a mean over seeds. All but NIST and CIDEr lie between 0 and 1; TER is the only one
# where low is good.

# %%
names_of = list(e2e.record("LoRA")["scores"])
board = pd.DataFrame({
    name: {arm: np.mean(values) for arm, values in e2e.scores(name).items()} for name in names_of
})
print("left out here:", e2e.about["left_out"] or "nothing")
contents.readable(board.rename_axis("E2E"), "board", **dict.fromkeys(names_of, "{:.3f}"))

# %% [markdown]
# Which differences are more than the choice of test inputs? The bars say what other inputs could have given: 95 % of
# the scores when inputs are drawn anew. They do *not* say what another seed of the training could have given.
#
# The same inputs were asked of every arm, so differences are *paired*: they are known better than two bars side by
# side suggest. That is the second figure.

# %%
shown_scores = {"bleu": "BLEU", "rougeL": "ROUGE-L", "ter": "TER (low is good)"}
intervals = {label: {arm: e2e.interval(arm, name) for arm in trained_arms}
             for name, label in shown_scores.items()}
style.show(
    generation_chapter.score_intervals(intervals),
    "E2E. Where bars overlap widely, read no order into the points; see the next figure.",
    f"Three panels, a row for each of {', '.join(trained_arms)}: a score as a point with a bar.",
)
first = trained_arms[0]
rates = e2e.rows(first, "ter")
again = np.quantile(resampled_scores(rates[:, 0], rates[:, 1], texts.draws_of(len(rates))),
                    [0.025, 0.975])
assert np.allclose(again, intervals["TER (low is good)"][first][1:])

# %%
others = [arm for arm in trained_arms if arm != "LoRA"]
paired = {label: {f"{arm} − LoRA": e2e.interval(arm, name, other="LoRA") for arm in others}
          for name, label in shown_scores.items()}
style.show(
    generation_chapter.score_intervals(paired, zero=True),
    "E2E: difference to LoRA on the same inputs. A bar that holds zero decides nothing.",
    f"Three panels, a row for each of {', '.join(others)}, bars around a dashed zero line.",
)
for label, found in paired.items():
    print(f"{label:<18}", *(f"{arm}: {score:+.3f} [{low:+.3f}, {high:+.3f}]"
                            for arm, (score, low, high) in found.items()), sep="\n  ")
assert all(low <= score <= high
           for found in paired.values() for score, low, high in found.values())

# %% [markdown]
# ### Other seeds
#
# All of that was one training each, that of seed 0. Below: the same difference of BLEU for every stored seed, and the
# interval over seeds that notebook 11 judges by. It says what another *training* could have given on these inputs; it
# does not say what other inputs could have given. A claim needs both to hold.

# %%
by_seed = {arm: 100 * np.subtract(*e2e.paired(arm, "LoRA", "bleu")) for arm in others}
over_seeds = {arm: statistics.paired_bootstrap(gaps) for arm, gaps in by_seed.items()}
style.show(
    ledger_chapter.forest([f"{arm} − LoRA" for arm in others], list(by_seed.values()),
                    list(over_seeds.values()),
                    [verdicts.judge(ends, ">") for ends in over_seeds.values()],
                    [">"] * len(others), "difference of BLEU, points"),
    "E2E: small dots are seeds, the bar is the 95 % interval over them. Where is the dot of seed 0?",
    "A row for each of " + ", ".join(others) + ": dots and a bar around a line at zero.",
)

# %%
for arm, (low, high) in over_seeds.items():
    _, *ends = paired["BLEU"][f"{arm} − LoRA"]
    print(f"{arm} − LoRA: {by_seed[arm].mean():+.1f} over seeds [{low:+.1f}, {high:+.1f}]; seed 0 "
          f"{by_seed[arm][0]:+.1f}, over inputs [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]")

# %% [markdown]
# Look at Delta-LoRA. Seed 0 alone would have convicted it: over inputs, its interval lies wholly below zero. Two of
# the five seeds lie above. The inputs were drawn anew, the training was not. For AutoLoRA it is the other way round:
# its trainings agree with LoRA's, and the inputs leave more open.
#
# And the choice of the rate? LoRA was also trained at the one that the loss prefers, with the same seeds.

# %%
path = results.references_folder() / "08_generation_e2e_by_loss.json"
by_loss = json.loads(path.read_text(encoding="utf-8"))["records"]
chosen = 100 * np.array(e2e.scores("bleu")["LoRA"])
other = 100 * np.array([record["scores"]["bleu"] for record in by_loss])
print(f"BLEU of LoRA, means over seeds: {chosen.mean():.1f} at {taken['LoRA']:g}, chosen by BLEU; "
      f"{other.mean():.1f} at {by_loss[0]['lr']:g}, by loss")

# %%
low, high = statistics.paired_bootstrap(other - chosen)
gap = max(abs(gaps.mean()) for gaps in by_seed.values())
assert abs((other - chosen).mean()) > gap
print(f"difference by seed {np.round(other - chosen, 1)}, interval [{low:.1f}, {high:.1f}]; "
      f"between methods at most {gap:.1f}")

# %% [markdown]
# In the mean, what chose the rate moved LoRA further than any method did; and that, too, five seeds do not settle. So
# when a table says "each at its best rate", ask: best by what, on which rows, chosen with how many seeds?
#
# ### Samples, side by side
#
# The data, two of the references, and what each method wrote. **Bold**: a value of the data, said. ~~Struck out~~: a
# value that is in the task's list but not in these data. In brackets: what is missing.

# %%
def page(stored, i):
    return generation_chapter.side_by_side(*stored.sample(i), stored.about["licence"])


page(e2e, 0) + page(e2e, 3) + page(webnlg, 1)

# %% [markdown]
# Read some more (`page(e2e, 5)`, up to 11). Which field is left out most often? Did you find an error that the rule
# does not see? A rating of "2 stars" is one: that value is in no list.
#
# ### Errors, counted

# %%
shares = {}
for arm in e2e.arms:
    missing, made_up, fields_there = e2e.slot_errors(arm).sum(0)
    shares[arm] = (missing / fields_there, made_up / fields_there)
shares["people"] = (human["missing"], human["made_up"])
style.show(
    generation_chapter.slot_error_bars(shares),
    "E2E. Look at the two kinds apart: a method may leave out less, and make up more.",
    "Bars, missing and made up: "
    + "; ".join(f"{arm} {a:.0%} and {b:.0%}" for arm, (a, b) in shares.items()) + ".",
)
assert shares["not trained"][0] > max(shares[arm][0] for arm in trained_arms)

# %% [markdown]
# ### Seen and unseen
#
# Nearly half of WebNLG's test inputs are from categories that no training row has. A method that only learned the
# phrases of its categories loses there.

# %%
web_arms = [arm for arm in webnlg.arms if arm != "not trained"]
parts = {f"BLEU, {part}": {arm: webnlg.interval(arm, "bleu", part=part) for arm in web_arms}
         for part in ("seen", "unseen")}
parts["BLEU, all"] = {arm: webnlg.interval(arm, "bleu") for arm in web_arms}
style.show(
    generation_chapter.score_intervals(parts, shared=True),
    "WebNLG. Compare the panels first, then the rows within one.",
    f"Three panels, BLEU on seen, unseen and all inputs; rows: {', '.join(web_arms)}.",
)
print({part: webnlg.parts.count(part) for part in sorted(set(webnlg.parts))}, "inputs")
assert set(webnlg.parts) == {"seen", "unseen"}

# %% [markdown]
# ## 9 · Ablate: how the text is searched for
#
# *Greedy* takes the likeliest token each time. *Beam search* keeps several beginnings alive, and takes the best whole
# text in the end. A toy shows why they differ. Below it, the same for a stored model (the first arm, on fewer of the
# inputs), and for the one that you trained.

# %%
searched = {f"width {width}": toy_problems.best(width) for width in (1, 2)}
style.show(
    generation_chapter.word_tree(toy_problems.TREE, {name: beam.words for name, beam in searched.items()}),
    "Numbers are probabilities of the next word. Multiply along each path.",
    "A tree of two words: The (0.55) and A (0.45), then pub, place, inn, bar; width 1 goes "
    "over The, width 2 over A.",
)
print({name: f"{' '.join(one.words)}: {one.probability:.3f}" for name, one in searched.items()})

# %%
widths = {one["num_beams"]: one for one in e2e.beams["widths"]}
ablation = pd.DataFrame({
    width: {"BLEU": one["scores"]["bleu"], "ROUGE-L": one["scores"]["rougeL"],
            "words": one["words"],
            "missing": np.sum(one["slots"], axis=0)[0] / np.sum(one["slots"], axis=0)[2]}
    for width, one in widths.items()
}).T
print(f"{e2e.beams['arm']}, {len(widths[1]['slots'])} inputs")
contents.readable(ablation.rename_axis("beams"), "beams", BLEU="{:.3f}", words="{:.1f}",
                missing="{:.1%}", **{"ROUGE-L": "{:.3f}"})

# %%
widest = max(widths)
differ = [i for i, text in enumerate(widths[1]["texts"])
          if text != widths[widest]["texts"][i]]
pick = differ[0] if differ else 0
theirs = {f"stored, beams: {w}": one["texts"][pick] for w, one in widths.items()}
beamed = generate(model, asked[:2], tokenizer, max_new_tokens=LONGEST, num_beams=4)
yours = {f"yours, input {i + 1}, beams: {w}": found[i] for i in range(2)
         for w, found in ((1, after), (4, beamed))}
generation_chapter.texts_in_rows(
    {"data": e2e.sample(pick)[0], **theirs, **yours},
    f"stored: greedy and {widest} beams differ for {len(differ)} of {len(widths[1]['texts'])} "
    f"inputs. Data: {e2e.about['licence']}",
)

# %% [markdown]
# So a table of scores has a hidden column: how the texts were searched for. LoRA's own E2E numbers are with 10 beams.
# A comparison is fair if all of its rows used the same search.
#
# ## 10 · Play
#
# How many test inputs does a comparison need? The slider takes the first $n$ of the stored inputs, and draws them
# anew at each move; the trainings are those of seed 0.

# %%
knob = generation_chapter.HowManyInputs(e2e, trained_arms)
style.show(
    explorer.strip(knob, [{"n": n} for n in (10, 30, knob.count_of_inputs)]),
    f"From the top: 10, 30 and all {knob.count_of_inputs} inputs. Watch the bars shrink.",
    "Three rows of two panels: BLEU with bars for each arm, and differences to LoRA around "
    "zero; bars shrink from row to row. " + knob.words(n=knob.count_of_inputs),
)

# %%
assert np.allclose(knob.arrays(n=knob.count_of_inputs)["differences"],
                   [paired["BLEU"][f"{arm} − LoRA"] for arm in others]), "the figure of section 8"

# %%
explorer.explore(knob)

# %% [markdown]
# Bars shrink with the root of $n$: four times as many inputs for half the width. From which $n$ on does Delta-LoRA's
# difference stay away from zero? Then look at section 8 again: which of its seeds would more inputs have brought to
# light? And watch the points: for which $n$ is AutoLoRA ahead of LoRA?
#
# ## 11 · Exercises
#
# **Recall.** Why is the prompt's label −100, and why does padding stand on the left when a text is written? Why is a
# corpus BLEU no mean over texts? What does a bootstrap over inputs leave out?
#
# **Modify.** Score the stored samples with one reference instead of all. The cell does it; say first which way BLEU
# goes.

# %%
written = [e2e.sample(i)[2]["LoRA"][0] for i in range(len(e2e.samples))]
all_refs = [e2e.sample(i)[1] for i in range(len(e2e.samples))]
many, one_each = (metrics.bleu(written, refs)
                  for refs in (all_refs, [refs[:1] for refs in all_refs]))
print(f"BLEU of {len(written)} texts: {many:.3f} against all references, "
      f"{one_each:.3f} against the first")
assert many > one_each

# %% [markdown]
# **Open.** (1) Write a text for one of the samples that has no slot error and a BLEU near zero, and one with BLEU
# above 0.5 and two errors. (2) Make the rule see ratings that are in no list. How many more errors of each method
# does it find, and of people? (3) Train with the prompt's labels left in. Does the loss of the *text* end higher?
#
# ## 12 · Claims against measurements
#
# What the papers say about texts. Rows that name GPT-2 medium's tables cannot be tested here. Those on E2E can, for
# the model and the short training of section 8: the verdict is computed from its five seeds.

# %%
ledger = claims_ledger.table(["LoRA", "Delta-LoRA", "AutoLoRA"])
about_texts = ledger[ledger["statement"].str.contains("E2E|WebNLG")]
columns = ["where", "statement", "paper's number", "difference [95 %]", "verdict"]
contents.readable(about_texts[columns], "claims")

# %% [markdown]
# And the same comparisons score by score, with the interval over test inputs. Each stands for one training, that of
# seed 0: WebNLG has no other, and notebook 11 wants five before it says a word.

# %%
measured = []
for stored, arms, scores in ((e2e, others, ("bleu", "meteor", "rougeL", "cider", "ter")),
                             (webnlg, web_arms[1:], ("bleu", "meteor", "ter"))):
    for arm in arms:
        for name in (name for name in scores if name not in stored.about["left_out"]):
            score, low, high = stored.interval(arm, name, other="LoRA")
            measured.append({"task": stored.about["task"], "comparison": f"{arm} − LoRA",
                             "score": name, "difference": score, "low": low, "high": high,
                             "zero inside": "yes" if low <= 0 <= high else "no"})
contents.readable(pd.DataFrame(measured).set_index("task"), "ours", difference="{:+.3f}",
                low="{:+.3f}", high="{:+.3f}")

# %% [markdown]
# "No" in the last column and "open" above do not contradict each other: the first is about two trained
# models, the second about two methods. Where Delta-LoRA and the control go the same way, up or down, it is the larger
# step that speaks, as in notebook 05. Did the arm with the lowest loss write the texts with the best scores?
#
# ## 13 · What to take along
#
# - A causal model learns a text as it learns everything: the next token; the prompt has no label.
# - A text has many right versions, so it is scored against all references at once. Each score sees something else,
#   and BLEU may prefer a wrong fact to a right paraphrase.
# - Count slot errors beside scores: what is missing, what is made up. Hold the rule against people first.
# - A score belongs to its search (greedy, beams) and to its test inputs; draw the inputs anew to see how much is
#   open, and remember that the seed of the training is not in that interval.
# - In five seeds of a short training on E2E, neither Delta-LoRA nor AutoLoRA is told apart from LoRA. That says
#   nothing about GPT-2 and long trainings. The control that Delta-LoRA needs, LoRA at $(1 + λ) α$, belongs beside it
#   on text as well.
#
# **Next question:** and for tags, and for style? `09_more_tasks`.
