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
# # 09 · More tasks
#
# **Question:** and to tagging and style transfer?
#
# **You need:** 02 and 04; 08 helps. **Time:** minutes on a laptop; the long comparisons are stored. **Papers:**
# AutoLoRA tags entities in biomedical abstracts (its BioNLP task); SaLoRA tunes a causal model on instructions
# and asks it to turn review sentences around (Yelp).

# %%
import lowrank_teach as lt
import numpy as np
import pandas as pd
import torch
from lowrank_teach.analysis import style
from lowrank_teach.course import contents, html_page
from lowrank_teach.course.chapters import tagging
from lowrank_teach.course.chapters.tagging import EntityThreshold
from lowrank_teach.course.exercises import exercise, predict, solution
from lowrank_teach.course.explorer import explore, strip
from lowrank_teach.course.live_curve import LiveCurve, keep_reference, load_reference
from lowrank_teach.experiments.fit import Rows, load_for
from lowrank_teach.reproduction import ledger as claims_ledger
from lowrank_teach.reproduction import rewriting
from lowrank_teach.reproduction.tagging import SIX, load_tags, short_example, tag
from lowrank_teach.tasks import entities, readers, style_transfer
from lowrank_teach.tasks.load import task_here
from lowrank_teach.training import config

PROFILE = config.default_profile()  # LOWRANK_PROFILE: tiny (tests), laptop, gpu
BACKBONE = "minilm-l3" if PROFILE == "tiny" else "minilm-l6"
TASK, why = task_here("jnlpba", packaged="wnut16")  # or TASK = "bionlp13pc"
STYLE, style_why = task_here("yelp-transfer", packaged="rt-transfer")
print(contents.machine_line(), f"profile: {PROFILE}; backbone: {BACKBONE}", sep="\n")
print(f"tagging: {TASK} ({why})\nstyle:   {STYLE} ({style_why})")

# %% [markdown]
# ## 1 · Question
#
# So far a network gave one answer a sentence. Two of the papers also let it answer once a *word*, and *write*. Do
# low-rank branches carry over, and can we tell? The second half is the harder one. A tagger that never finds
# anything already looks good by the most obvious score:

# %%
LENGTH = {
    "tiny": {"steps": 120, "batch_size": 8, "n_train": 960, "n_validation": 60},
    "laptop": {"steps": 300, "batch_size": 16, "n_train": 1600, "n_validation": 100},
    "gpu": {"steps": 2000, "batch_size": 32, "n_train": None, "n_validation": 400},
}[PROFILE] | {"n_test": 200, "max_length": 64, "lr": 2e-3, "head_lr": 1e-2}
data = lt.load_task(TASK, n_train=LENGTH["n_train"], n_validation=60, n_test=200)
print(data.source)
every_tag = np.concatenate(data.test[data.task.label].tolist())
only_O = float(np.mean(every_tag == 0))
print(f"say O (“no entity”) at every word: token accuracy {only_O:.3f}, entities found 0")
assert only_O > 0.6, "most words are in no entity"

# %% [markdown]
# ## 2 · The idea in one picture
#
# Every word carries a **BIO tag**: B-*type* begins an entity, I-*type* goes on with it, O is outside. The network
# reads *pieces* of words, so each label must find its place: the first piece of a word has the word's tag, every
# other piece has −100, which the loss leaves out.

# %%
network, tokenizer = load_for(BACKBONE, data, 0)
cut = short_example(data, tokenizer)
style.show(
    tagging.pieces_and_labels(cut.words, cut.pieces, cut.word_of, cut.labels),
    "A training sentence. Look for a word that is cut into pieces: only the first counts.",
    "Three rows of boxes: words, their pieces, and a label or minus 100 under each piece.",
)
assert sum(label != "" for label in cut.labels) == len(cut.words), "one label a word"

# %% [markdown]
# **Style transfer** needs no new head. A causal model is tuned on instructions of all kinds (Alpaca), and then
# asked, without an example, to turn a sentence around. Nobody showed it pairs. Three judges look at what it
# writes, since each of them alone is easily fooled.

# %%
style.show(
    tagging.idea(),
    "One rewrite, three judges. Ask of each: which text would please it without being a "
    "good rewrite?",
    "Boxes from left to right: instruction and sentence, causal model, rewrite; three "
    "arrows to a classifier, to BLEU and to perplexity.",
)

# %% [markdown]
# ## 3 · Maths ↔ code
#
# The branch is the layer of 02, unchanged: $h = Wx + s\,BAx$. What is new are the shapes around it and the
# scores. An entity is right if its type and both of its ends are. With $R$ right, $P$ predicted and $G$
# annotated entities:
#
# $$\text{precision} = R/P, \qquad \text{recall} = R/G, \qquad F_1 = \frac{2R}{P + G}$$

# %%
settings = config.train_config(PROFILE, **LENGTH)
rows = Rows(data, tokenizer, settings, False)
batch = rows.collate(rows.train[:4])
with torch.no_grad():
    logits = network(**batch).logits
counted = batch["labels"] != -100
shapes = [
    ("pieces of B sentences", "input_ids (B, T)", tuple(batch["input_ids"].shape)),
    ("a score a piece and tag", "logits (B, T, C)", tuple(logits.shape)),
    ("label, or −100", "labels (B, T)", tuple(batch["labels"].shape)),
    ("loss: mean over the words", "labels != -100", int(counted.sum())),
    ("R, P, G of a sentence, by type", "entities.counts (N, K, 3)", "summed before F1"),
    ("transfer accuracy", 'score_transfer(…)["accuracy"]', "share judged as wanted"),
    ("content kept", '"bleu", "self_bleu"', "to a human rewrite, to the source"),
    ("fluency", '"perplexity.NAME"', "by another language model; low"),
]
columns = ["what", "code", "here"]
contents.readable(pd.DataFrame(shapes, columns=columns, dtype=str).set_index("what"), "maths")

# %% [markdown]
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
always_O = [["O"] * len(codes) for codes in data.test[data.task.label]]
truth = [[data.task.labels[c] for c in codes] for codes in data.test[data.task.label]]
kinds = entities.kinds_of(data.task.labels)
lazy = float(entities.f1(entities.counts(truth, always_O, kinds).sum((0, 1))))
predict(
    f"The lazy tagger above has token accuracy {only_O:.2f}. What is its entity F1?",
    f"{lazy:g}: R = 0. That is why taggers are compared by entities",
)
assert lazy == 0 < only_O == entities.token_accuracy(truth, always_O)

# %%
whole, two_of_three = ["B-x", "I-x", "I-x"], ["B-x", "I-x", "O"]
near = entities.counts([whole], [two_of_three], ["x"]).sum((0, 1))
predict(
    "An entity has three words; the tagger found the first two. How many errors are that?",
    f"two: it is missed and another is invented. R, P, G = {near.tolist()}, F1 "
    f"{float(entities.f1(near)):g}, at a token accuracy of 2/3",
)
assert near.tolist() == [0, 1, 1]

# %%
predict(
    "A model answers every request with the sentence it was given. Which of the three "
    "judges of style transfer are pleased?",
    "two: BLEU (perfect to the source, and often fair to the human rewrite, which keeps "
    "most words) and perplexity (a human wrote it). Only the classifier objects",
)

# %% [markdown]
# ## 5 · Implement
#
# Four exercises. The check answers with a hint and a picture of *your* result; if you leave a stub, the notebook
# goes on with the library's version.
#
# **5a · Where the labels go** (6 minutes)
# - `word_of` has for every piece the number of its word, or `None` for `[CLS]`, `[SEP]`;
# - `tags` has a number for every word; return one number a piece.


# %%
@exercise
def align_labels(word_of, tags):
    return [0 if word is None else tags[word] for word in word_of]  # two things are wrong


align_labels.check()

# %% [markdown]
# **5b · F1 of entities** (4 minutes)
# - `gold` and `found` are lists of (start, end, type); return one number.


# %%
@exercise
def entity_f1(gold, found): ...


entity_f1.check()

# %% [markdown]
# **5c · Debug: only what is sure** (4 minutes). Each predicted entity has a `confidence` and is `right` or not;
# `annotated` is how many there are to find.
# - return precision and recall of those that are *at least* as sure as the threshold;
# - this version stood in a report, and made the threshold look harmless.


# %%
@exercise
def precision_recall(confidence, right, annotated, threshold):
    kept = confidence >= threshold
    return [right[kept].mean(), right[kept].sum() / right.sum()]  # find the bug


precision_recall.check()

# %% [markdown]
# **5d · What a transfer accuracy is worth** (5 minutes). A classifier gave a code to every written text
# (`after`) and to every source (`before`); `wanted` is the code asked for.
# - return two shares: written texts that have the wanted style, and *sources* that have it already;
# - an empty text is never a success, whatever a classifier says about it.


# %%
@exercise
def transfer_gain(texts, after, before, wanted): ...


transfer_gain.check()

# %%
solution(align_labels)

# %% [markdown]
# ## 6 · Sanity: five things that must be true
#
# **One label a word**, at its first piece. **Labels of −100 do not matter:** put nonsense into the logits there,
# and the loss stays. **Padding does not matter:** a sentence alone has the same logits as in a batch.

# %%
codes = [data.task.labels.index(name) for name in cut.tags]
by_hand = align_labels(cut.word_of, codes)
assert [label for label in by_hand if label != -100] == codes
loss = torch.nn.functional.cross_entropy
nonsense = torch.where(counted[..., None], logits, 100 * torch.randn_like(logits))
before, after = (
    float(loss(of.flatten(0, 1), batch["labels"].flatten())) for of in (logits, nonsense)
)
alone = rows.collate(rows.train[:1])
with torch.no_grad():
    moved = network(**alone).logits - logits[:1, : alone["labels"].shape[1]]
gap = float(moved.abs().max())
print(f"loss {before:.4f}, with nonsense at −100 {after:.4f}; padding moved {gap:.0e}")
assert before == after
assert gap < 1e-4

# %% [markdown]
# **The scorer and the formula agree**, and **text from data stays text**: whatever stands in a tweet, a page
# shows it and does not run it.

# %%
sides = ["B-x", "I-x", "O", "B-y"], ["B-x", "I-x", "O", "B-x"]
spans = [[(e.start, e.end, e.kind) for e in entities.entities(side)] for side in sides]
print("F1 of one right, one of the wrong type:", entity_f1(*spans))
assert entity_f1(*spans) == 0.5
nasty = tagging.highlight(["<script>", "alert(1)", "</script>"], [(0, 1, "<b>", "")], ["<b>"])
print(nasty)
assert "<script>" not in nasty
assert "&lt;script&gt;" in nasty

# %% [markdown]
# ## 7 · Train on a real task
#
# LoRA on all six matrices of every layer, with a fresh head of one score a tag. The head learns at a larger rate,
# since it starts from nothing. Grey is a stored reference with another seed.

# %%
method = lt.LoRA(**SIX)
keep_reference(
    "09_more_tasks", lambda: tag(method, TASK, BACKBONE, PROFILE, 0, **LENGTH).run
)  # `make notebooks`
reference, made = load_reference("09_more_tasks")
print(made)
live = LiveCurve("lora", reference)
tagged = tag(method, TASK, BACKBONE, PROFILE, seed=1, callbacks=[live], **LENGTH)
live.finish(
    tagged.run,
    "The loss a word. It falls fast at first, because O is learned first; entities come "
    "later, and move it little.",
)

# %%
found = tagged.run.metrics["test"]["entity_f1"]
accuracy = entities.token_accuracy(tagged.gold, tagged.predicted)
print(f"token accuracy {accuracy:.3f} (saying O: {only_O:.3f}); entity F1 {found:.3f}")
assert found > 0.03, "it finds entities"
assert accuracy - found > 0.2, "and the two scores tell different stories"

# %% [markdown]
# For style transfer the judge is trained here, too: a classifier of the two styles. Its accuracy on held-out
# sentences bounds what any transfer accuracy can mean.

# %%
styles = readers.TRANSFERS[STYLE]
longer = {"steps": 90, "n_train": 1200} if PROFILE == "tiny" else {}
judge = rewriting.train_classifier(styles.classifier, BACKBONE, PROFILE, **longer)
print(f"{styles.name}: {styles.note}")
print(f"classifier right on {judge.accuracy:.3f} of {judge.rows} held-out sentences")
assert judge.accuracy > 0.55, "better than a coin"

# %% [markdown]
# ## 8 · Look at what was learned
#
# The first test sentences that have an entity, not the best ones. A dashed red frame is an error, and its name
# stands in the brackets. Read the two lines of a sentence against each other: *what kind* of error is most
# common?

# %%
with_entity = [n for n, names in enumerate(tagged.gold) if set(names) != {"O"}]
page, plain = [], []
for n in with_entity[:5]:
    words = tagged.words[n]
    for who, spans_of in zip(
        ("annotated", "predicted"),
        entities.remarks(tagged.gold[n], tagged.predicted[n]),
        strict=True,
    ):
        page.append({who: tagging.highlight(words, spans_of, tagged.kinds)})
        plain.append(f"{who}: {tagging.in_brackets(words, spans_of)}")
html_page.show(html_page.table(page), "\n".join(plain))

# %%
told = entities.outcomes(tagged.gold, tagged.predicted)
total = sum(told.values())
style.show(
    tagging.outcome_bars({"yours": {name: count / total for name, count in told.items()}}),
    "Every entity, counted once. Is the trouble type, border, or seeing one at all?",
    "One bar in six parts: " + ", ".join(f"{name} {n}" for name, n in told.items()) + ".",
)
assert told["right"] == entities.counts(tagged.gold, tagged.predicted, kinds)[..., 0].sum()

# %%
confused = entities.confusion(tagged.gold, tagged.predicted, kinds)
style.show(
    tagging.confusion_table(confused, kinds),
    "Borders may differ here. Look along a row for a type that is taken for another, and "
    "at the last column and the last row.",
    "Table of counts: annotated types down, predicted across, missed and invented last.",
)
assert confused[:-1].sum() == sum(told.values()) - told["invented"]

# %% [markdown]
# **Now the writer.** SmolLM2-135M as it is, asked about the first few test sentences. It was tuned for
# instructions by its makers, but it is small: a fiftieth of the model in the paper. Under its texts stand its scores,
# beside those of doing nothing.

# %%
EACH, NEW = {"tiny": (6, 16), "laptop": (12, 24), "gpu": (100, 40)}[PROFILE]
writer, pieces_of = lt.load_backbone("smollm2-135m")
written = style_transfer.transfer(writer, pieces_of, STYLE, n=EACH, max_new_tokens=NEW)
codes_of = {
    column: judge.predict(written[column].tolist()) for column in ("source", "written")
}
shown = written.assign(
    verdict=[styles.styles[code] for code in codes_of["written"]]
).groupby("direction", sort=False).head(3)
sample = [
    {row.direction: row.source, "written": row.written, "classifier says": row.verdict}
    for row in shown.itertuples()
]
html_page.show(html_page.texts(sample), "\n".join(str(one) for one in sample))

# %%
fluency = style_transfer.CausalLM(writer, pieces_of, "smollm2")
copied = written.assign(written=written["source"])
scores = {
    "source copied": style_transfer.score_transfer(copied, judge, fluency),
    "SmolLM2 as it is": style_transfer.score_transfer(written, judge, fluency),
}
gain = transfer_gain(
    written["written"].tolist(),
    codes_of["written"],
    codes_of["source"],
    written["wanted"].tolist(),
)
plain_scores = scores["SmolLM2 as it is"]
assert np.allclose(gain, [plain_scores["accuracy"], plain_scores["source_accuracy"]])
assert np.isclose(scores["source copied"]["self_bleu"], 1)
assert scores["source copied"]["accuracy"] == scores["source copied"]["source_accuracy"]
table = rewriting.in_words(pd.DataFrame(scores).T).drop(columns="classifier accuracy")
contents.readable(table, "written", **dict.fromkeys(table, "{:.2f}"))

# %% [markdown]
# **What the judge gets wrong.** Sentences whose style is *known*, and that the classifier takes for the other.
# Would you have known? Some labels are wrong, some sentences say both, some need a joke to be understood: all of
# this stands in every transfer accuracy.

# %%
held_out = lt.load_task(styles.classifier, n_test=200).test
said = np.array(judge.predict(held_out["text"].tolist()))
missed = held_out[said != held_out["label"].to_numpy()]
print(f"{len(missed)} of {len(held_out)} known sentences are taken for the other style")
wrong = [
    {"sentence": text, "is": styles.styles[label], "taken for": styles.styles[1 - label]}
    for text, label in zip(missed["text"][:4], missed["label"][:4], strict=True)
]
html_page.show(html_page.texts(wrong), "\n".join(str(one) for one in wrong))

# %% [markdown]
# ## 9 · Ablate: which method, over seeds
#
# **Tagging.** The same data, order of rows and head at the start for every method; all branches sit on the same six
# matrices. These runs are stored; `python -m lowrank_teach.reproduction.tagging` trains them again (it
# needs the data folder). In them SaLoRA left its gates on to the end of the training (04 folds them into $B$ where
# their window closes), and so it did in those of the style transfer below. It started $A$ with rows of unit length,
# COLA with a Gaussian; the others start it as in 02. Look at the left panel first: how much would you have learned
# from it?

# %%
stored = load_tags("jnlpba")
print(stored.line())
f1_of, token_of = stored.values("entity_f1"), stored.values("token_accuracy")
lowest, highest = (pick(map(pick, f1_of.values())) for pick in (min, max))
style.show(
    tagging.two_scores(f1_of, token_of, stored.saying_o()),
    "A dot is a seed, a stroke the mean. Dashed: saying O at every word. The same runs, "
    "twice: which score tells them apart?",
    "Two panels of dots, one row a method: token accuracies close together above the "
    f"dashed line, entity F1 from {lowest:.2f} to {highest:.2f}.",
)
for arm in [arm for arm in stored.arms if arm != "lora"]:
    gaps = stored.differences(arm, "lora")
    by_seed = ", ".join(f"{x:+.3f}" for x in gaps)
    print(f"{arm:<11} − lora: {np.mean(gaps):+.3f}; by seed {by_seed}")

# %% [markdown]
# **By type, with intervals.** The intervals say how far another *sample of test sentences* would move the score
# (a bootstrap over sentences; seeds are pooled). Another seed moves it, too: those are the dots above. Types with
# few entities have wide intervals, and their order should not be read.

# %%
by_type = {arm: stored.by_kind(arm) for arm in stored.arms}
style.show(
    tagging.f1_by_kind(by_type, stored.kinds, stored.sizes()),
    "Find pairs of methods whose bars do not touch. Then compare types with each other: "
    "is the method or the type the larger difference?",
    "For each type of entity, and over all at the right, a mark and an error bar a method.",
)
wide = np.ptp(by_type["lora"][:, 1:], axis=1)
print("LoRA's bars, type by type:", [f"± {width / 2:.2f}" for width in wide])
assert by_type["lora"][-1, 0] > by_type["head"][-1, 0], "branches do more than a new head"

# %%
shares = {style.METHOD_STYLE[arm][0]: stored.outcomes(arm) for arm in stored.arms}
style.show(
    tagging.outcome_bars(shares),
    "Seeds pooled. Do methods make other errors, or more and fewer of the same?",
    "One bar a method in six parts, from right to invented; share right: "
    + ", ".join(f"{name} {part['right']:.2f}" for name, part in shares.items())
    + ".",
)

# %% [markdown]
# **Style transfer.** SmolLM2-135M as it is, in the prompt of the tuning set and in its own chat form, and after
# some dozens of steps on Alpaca with LoRA and with SaLoRA. Two controls need no model: the source, and the
# human rewrite. `python -m lowrank_teach.reproduction.rewriting` makes it all again. In the table, look
# for what copying wins, and at the last two columns: two judges of fluency, one counted on reviews, one being
# SmolLM2 itself.

# %%
asked = rewriting.load()
print(asked.line())
print(f"classifier: {asked.about['classifier']['accuracy']:.3f} right on known sentences")
both = pd.concat({way: asked.table(way) for way in asked.directions}, names=["way"])
print(f"seeds of the tuned arms: {both['seeds'].max()}; empty texts: {both['empty'].max():.0%}")
alike = ["seeds", "empty", "source accuracy", "classifier accuracy"]  # in all rows of a direction
both = both.drop(columns=alike)
own = both.iloc[:, -1].unstack("arm")
assert (own[rewriting.PLAIN] < own[rewriting.HUMAN]).all(), "it likes its own words best"
contents.readable(both, "stored", **dict.fromkeys(both, "{:.2f}"))

# %%
style.show(
    tagging.trade_off(
        {way: asked.points(way) for way in asked.directions},
        "Self-BLEU: how much of the source stayed",
        "Transfer accuracy",
    ),
    "Lower right: nothing was done. Upper left: another text in the right style. A human "
    "stands where both are fair. Does any model stand above the line between those two?",
    "Two panels of points: the copied source at the lower right, the human rewrite highest, "
    "the models lower, to the left and to the right of it.",
)

# %%
for way in asked.directions:
    for arm in asked.arms:
        low, high = asked.accuracy_interval(arm, way)
        mean = asked.mean("accuracy", way, arm)
        print(f"{way}: {arm:<20} {mean:.2f} [{low:.2f}, {high:.2f}]")
    human, copy = (asked.mean("accuracy", way, a) for a in (rewriting.HUMAN, rewriting.COPY))
    assert human > copy + 0.2, "the classifier tells a rewrite from its source"

# %% [markdown]
# **Read some.** The first sentences of each direction, not chosen. Ask of each whether you would call it a
# rewrite. Some only talk *about* the sentence, and a remark that it is negative sounds negative: the classifier
# counts it as a success. No score of the table says so.

# %%
first = [asked.samples(way).head(3) for way in asked.directions]
lines = [dict(row) for frame in first for row in frame.to_dict("records")]
html_page.show(html_page.texts(lines), "\n".join(str(line) for line in lines))
every = pd.concat(asked.samples(way) for way in asked.directions)
remarks = every.apply(lambda texts: texts.str.lower().str.contains("the sentence").sum())
print(f"of {len(every)} texts each, so many are about “the sentence”:", remarks.to_dict())
assert remarks[rewriting.PLAIN] > remarks[rewriting.HUMAN], "a remark is no rewrite"

# %% [markdown]
# ## 10 · Play
#
# **How sure must an entity be?** Its confidence is the probability of its least certain word. Everything below is
# computed from the probabilities of your own run. Blue is kept and right, orange with a frame kept and wrong, a
# dashed frame was dropped; what the annotators marked is underlined, a line an entity.

# %%
picture = EntityThreshold(
    tagged.probabilities, tagged.words, tagged.gold, tagged.labels, with_entity[:12]
)
states = [{"threshold": 0.0, "sentence": 1}, {"threshold": 0.6, "sentence": 1}]
style.show(
    strip(picture, states),
    "With every predicted entity, and with the sure ones. Look for what the second loses.",
    "Two rows: curves of precision, recall and F1 over the threshold with an upright line, "
    "and one sentence with highlighted entities. " + picture.words(**states[1]),
)
line = picture.curve
assert np.allclose(
    line.at(0.5)[:2], precision_recall(line.confidence, line.right, line.annotated, 0.5)
)
assert np.isclose(line.at(0.0)[2], found), "at 0 it is the score above"

# %%
explore(picture)

# %% [markdown]
# Find the threshold with the best F1. Is it 0? Then find one at which two of three kept entities are right, and
# say how many of the annotated ones it still finds. For which use would you choose which?
#
# ## 11 · Exercises
#
# **Recall.** Why does a piece in the middle of a word have no label? Why can a tagger gain token accuracy and
# lose entity F1? Which judge of style transfer does copying fool, and which does "great !" fool?
#
# **Predict, then run.** `load_tags("jnlpba")` holds the tags of every run. Let three seeds of LoRA vote
# word by word: does the entity F1 of the vote beat the best seed's? (A vote may write I- after O.)
#
# **Modify.** Train the tagger of section 7 with `sites="qv"`. Is the F1 lower by more than one seed moves it?
# Then try `head_lr=None`.
#
# **Debug.** A colleague reports transfer accuracy 0.95 for a model that answers "i love it !" to everything. Which
# column of the table would have told?
#
# **Open.** Intervals over sentences and spreads over seeds answer different questions. Design a comparison of two
# taggers that respects both, with ten trainings.
#
# ## 12 · Claims against measurements
#
# The two papers make claims about these tasks, with models of other sizes. The ledger does not pretend that the
# runs above speak about them:

# %%
ledger = claims_ledger.table(["SaLoRA", "AutoLoRA"])
speaks_of_us = {"SaLoRA": "T2", "AutoLoRA": "T3"}
chosen = [speaks_of_us[key.split()[0]] == place for key, place in ledger["where"].items()]
assert sum(chosen) == 4
columns = ["where", "statement", "paper's number", "verdict", "setting, or reason"]
contents.readable(ledger.loc[chosen, columns], "claims")

# %% [markdown]
# What was seen *here*, with the verdict computed. It speaks about a small network, short trainings and this
# sample of sentences.

# %%
contents.readable(rewriting.seen_here(stored, asked), "seen")

# %% [markdown]
# **Not measured here:** the papers' own scores, models of their size, GYAFC (a licensed set; there is a loader
# for a local copy), and a reader's own judgement of the rewrites.
#
# ## 13 · What to take along
#
# - A tagger is a classifier at every first piece of a word; −100 leaves the rest out of the loss.
# - Token accuracy flatters, since most words are O. Whole entities count: type and both ends.
# - An interval over sentences and a spread over seeds are two different doubts. Show both.
# - Style transfer needs several judges and the controls that fool them: the copied source, the human rewrite.
# - A small model that is asked politely mostly repeats, continues or explains. A score alone would not have told.
#
# **Next:** the sliders of the course on one page, `10_playground`; every claim in one table, `11_claims_ledger`.
