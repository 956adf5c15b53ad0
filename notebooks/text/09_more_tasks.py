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
# **Papers:** [AutoLoRA](https://arxiv.org/abs/2403.09113) tags entities in biomedical abstracts (its BioNLP task).
# [SaLoRA](https://doi.org/10.3390/math11204317) tunes a causal model on instructions and asks it to turn review
# sentences around (Yelp).
# **You need:** [02](02_lora.ipynb) and [04](04_salora.ipynb); [08](08_generation.ipynb) helps.
# **Time:** about 100 minutes to read and solve; the computing takes minutes on a laptop.
# **Tasks:** JNLPBA, entities in abstracts, and Yelp sentences. Where their files are not at hand, tweets (WNUT) and
# film reviews stand in.
#
# At the end you will have trained a tagger, read entities from its tags, and computed their F1. You will also know
# which simple cheats please which score.

# %%
import lowrank_teach as lt
import torch
from lowrank_teach import course

ch = course.chapters.tagging
task, style_task, backbone, profile = ch.begin()

# %% [markdown]
# ## 1 · Why: scores that a lazy answer wins
#
# So far a network gave one answer for a sentence. Two of the papers also let it give one for each *word*, and let it
# *write*. Do low-rank branches carry over, and can we tell? A tagger that never finds anything already looks good:

# %%
data = ch.sentences(task, profile)
print(data.source)
only_O = ch.say_o(data)

# %% [markdown]
# ## 2 · The idea in two pictures
#
# **Tagging.** Every word carries a *BIO tag*. B-*type* begins an entity, I-*type* goes on with it, and O is outside.
# The network reads *pieces* of words, so each tag must find its place: the first piece of a word has the word's tag,
# and every other piece has the label −100, which the loss leaves out.

# %%
bench = ch.Workbench(data, profile)
cut = bench.cut
course.show(
    ch.pieces_and_labels(cut.words, cut.pieces, cut.word_of, cut.labels),
    ch.finding_of_pieces(cut.words, cut.pieces, cut.labels),
)

# %% [markdown]
# **Style transfer** needs no new head. A causal model is tuned on instructions of all kinds (Alpaca), and is then
# asked to turn a sentence from negative to positive or the other way. It never sees a pair of sentences. Three
# judges look at what it writes.

# %%
asked = ch.stored_rewrites()
course.show(ch.idea(), ch.finding_of_judges(asked))

# %% [markdown]
# ## 3 · The maths
#
# The branch is the layer of [02](02_lora.ipynb), unchanged: $h = Wx + s\,BAx$. On top of it stands a linear head
# with one score for each of $C$ tags. Let $\mathcal W$ be the set of pieces that carry a label $y_i$. The loss is
#
# $$L = -\frac{1}{|\mathcal W|} \sum_{i \in \mathcal W} \log p(y_i \mid \text{sentence}).$$
#
# **Entities.** An entity is right if its type and both of its ends are. Let $R$ be the number of right entities, $P$
# of predicted and $G$ of annotated ones. Then
#
# $$\text{precision} = \frac{R}{P}, \qquad \text{recall} = \frac{R}{G}, \qquad F_1 = \frac{2R}{P + G}.$$
#
# **With numbers.** Six words are annotated B-x I-x O O B-y O, and the tagger says B-x O O O B-y O. It predicts $P =
# 2$ entities of $G = 2$, but the first one ends too early, so $R = 1$ and $F_1 = 2 \cdot 1 / (2 + 2) = 0.5$. The
# token accuracy is $5/6 = 0.83$.
#
# **Perplexity.** A language model gives each of the $T$ tokens $w_t$ of a text a probability. The perplexity is
# $\exp(-\frac1T \sum_t \log p(w_t \mid w_1, \dots, w_{t-1}))$. It is low where the model would have written nearly
# the same itself.
#
# ### Exercise 3a · F1 of entities (4 minutes)
#
# `gold` and `found` are lists of (start, end, type). Return $F_1$.


# %%
@course.exercise
def entity_f1(gold, found): ...


entity_f1.check()

# %%
gold = [(0, 2, "x"), (4, 5, "y")]
found = [(0, 1, "x"), (4, 5, "y")]
print(f"F1 of the example: {entity_f1(gold, found):g}; with the right border: {entity_f1(gold, gold):g}")

# %% [markdown]
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
ch.predict_lazy(only_O)
ch.predict_half()
ch.predict_copy()

# %% [markdown]
# ## 5 · A tagger by hand
#
# ### Exercise 5a · Where the labels go (6 minutes)
#
# For every piece `word_of` has the number of its word, or `None` for `[CLS]` and `[SEP]`. `tags` has a number for
# every word. Return one label for each piece. The function below has two mistakes.


# %%
@course.exercise
def align_labels(word_of, tags):
    return [0 if word is None else tags[word] for word in word_of]  # two things are wrong


align_labels.check()

# %% [markdown]
# Now the loop, on a small pretrained network in float64. For each batch `bench.words` has the word of every piece
# and the tag of every word. Your labels go into the loss.

# %%
method, RATE = lt.LoRA(**ch.SIX), bench.settings.lr  # rank 8 on all six matrices of every layer


def labels_of(sentences, width):
    """Labels (B, T), with −100 where a shorter sentence is padded."""
    rows = [align_labels(word_of, tags) for word_of, tags in sentences]
    return torch.tensor([[*row, *[-100] * (width - len(row))] for row in rows])


def train():
    """LoRA by AdamW with a linearly falling rate: the network and the loss of each step."""
    model, losses = lt.adapt(bench.network(), method, seed=0).model.train(), []
    trains = [p for p in model.parameters() if p.requires_grad]  # A, B and the head
    optimizer = torch.optim.AdamW(trains, lr=RATE, weight_decay=0.01)
    torch.manual_seed(0)  # the network has dropout
    for step, (batch, sentences) in enumerate(zip(bench.batches, bench.words, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / len(bench.batches))
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # (B, T, C)
        labels = labels_of(sentences, logits.shape[1])
        picked = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        loss = -picked[labels != -100].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


network, losses = train()
print("loss of each step:", *(f"{loss:.3f}" for loss in losses))

# %%
trainer = lt.Trainer(lt.adapt(bench.network(), method, seed=0), bench.rows, bench.collate, bench.settings, seed=0)
ch.say_equal("losses by hand and by the library's trainer", losses, ch.losses_of(trainer.run()))

# %% [markdown]
# ### Exercise 5b · From tags to entities (8 minutes)
#
# Return the entities of one sentence as (start, end, type), where `end` is the word after the last one. B- always
# begins an entity. I- goes on with one of its own type, and begins one where there is none. The function below is
# right for many sentences, but not for neighbours and not at the end.


# %%
@course.exercise
def read_entities(tags):
    found, start = [], None
    for i, tag in enumerate(tags):
        if tag == "O" and start is not None:
            found.append((start, i, tags[start][2:]))
            start = None
        elif tag != "O" and start is None:
            start = i
    return found


read_entities.check()

# %%
print(" ".join(f"{word}/{tag}" for word, tag in zip(cut.words, cut.tags, strict=True)))
print(read_entities(cut.tags))

# %% [markdown]
# ## 6 · What must be true
#
# **One label for each word. What stands at −100 does not matter. Padding does not matter.** A sentence alone gets
# the same logits as beside longer ones.

# %%
first = bench.words[0]
words = sum(len(tags) for _, tags in first)
labelled = sum(label != -100 for one in first for label in align_labels(*one))
print(f"{words} words, {labelled} labels")
batch = bench.batches[0]
length = len(first[0][0])
with torch.no_grad():
    together = network.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :length]
    alone = network(batch["input_ids"][:1, :length]).logits[0]
ch.say_equal("logits of a sentence, alone and in a batch", alone, together, 1e-9)

# %% [markdown]
# ## 7 · Train on a real task
#
# Now the profile's training, on all six matrices of every layer. The new head starts from nothing and learns at a
# larger rate. Grey is a stored run of another seed.

# %%
sizes = ch.SIZES[profile]
course.keep_reference("09_more_tasks", lambda: ch.tag(method, task, backbone, profile, 0, **sizes).run)
reference, made = course.load_reference("09_more_tasks")
live = course.LiveCurve("lora", reference)
tagged = ch.tag(method, task, backbone, profile, seed=1, callbacks=[live], **sizes)
live.finish(tagged.run, ch.finding_of_run(tagged.run))
print(made)

# %% [markdown]
# The loss falls fast at first, because O is learned first. Here are both scores beside those of the lazy tagger:

# %%
ch.tag_scores(tagged)

# %% [markdown]
# The same F1 from your two functions. Each sentence gets numbers of its own, so that entities of different sentences
# are never equal:

# %%
def spans_of(sentences):
    return [(1000 * n + start, 1000 * n + end, kind)
            for n, tags in enumerate(sentences) for start, end, kind in read_entities(tags)]


mine = entity_f1(spans_of(tagged.gold), spans_of(tagged.predicted))
ch.say_equal("entity F1, yours and the library's", [mine], [tagged.run.metrics["test"]["entity_f1"]], 1e-6)

# %% [markdown]
# ## 8 · Look at what was learned
#
# Here are the first test sentences that have an entity, and not the best ones. A dashed red frame is an error, and
# its name stands in the brackets.

# %%
ch.first_sentences(tagged)

# %%
shares = ch.outcome_shares(tagged)
course.show(ch.outcome_bars(shares), ch.finding_of_outcomes(shares))

# %%
counts = ch.confused(tagged)
course.show(ch.confusion_table(counts, tagged.kinds), ch.finding_of_confusion(counts, tagged.kinds))

# %% [markdown]
# ### The judge of styles
#
# For style transfer the judge is trained here, too: a classifier of the two styles. How often it is wrong on
# sentences of *known* style limits what any transfer accuracy can mean.

# %%
styles = ch.TRANSFERS[style_task]
judge = ch.train_classifier(styles.classifier, backbone, profile, **ch.JUDGED[profile])
print(f"{styles.name}: the classifier is right on {judge.accuracy:.3f} of {judge.rows} held-out sentences")
ch.misjudged(judge, styles)

# %% [markdown]
# Some labels are wrong, and some sentences say both. All of this goes into every transfer accuracy.
#
# ### The writer
#
# SmolLM2-135M as it is, asked about the first test sentences. It is about a fiftieth of the model in the paper.

# %%
each, most = ch.WRITTEN[profile]
writer, tokenizer = lt.load_backbone("smollm2-135m")
written = ch.transfer(writer, tokenizer, style_task, n=each, max_new_tokens=most)
after, before = (judge.predict(written[column].tolist()) for column in ("written", "source"))
ch.written_page(written, after, styles)

# %% [markdown]
# ### Exercise 8a · What a transfer accuracy is worth (5 minutes)
#
# A classifier gave a code to every written text (`after`) and to every source (`before`); `wanted` is the code asked
# for. Return two shares: the written texts that have the wanted style, and the *sources* that have it already. An
# empty text is never a success.


# %%
@course.exercise
def transfer_gain(texts, after, before, wanted): ...


transfer_gain.check()

# %%
scores = ch.written_scores(written, judge, ch.CausalLM(writer, tokenizer, "smollm2"))
model = scores["SmolLM2 as it is"]
gain = transfer_gain(written["written"].tolist(), after, before, written["wanted"].tolist())
ch.say_equal("both shares, yours and the library's", gain, [model["accuracy"], model["source_accuracy"]], 1e-6)
print(ch.finding_of_written(scores))
ch.written_table(scores)

# %% [markdown]
# The rows above the model's are the baselines. A copy wins BLEU to the source by definition. In the last column low
# is meant to be good. It is the formula of section 3, here by hand for one sentence and its rewrite:

# %%
def perplexity(text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    row = torch.tensor([[tokenizer.bos_token_id, *tokens]])
    with torch.no_grad():
        log_p = writer.eval()(row).logits[0, :-1].log_softmax(-1)
    return float(torch.exp(-log_p.gather(-1, row[0, 1:, None]).mean()))


judge_of_fluency = ch.CausalLM(writer, tokenizer, "smollm2")
for name in ("source", "written"):
    text = written[name][0]
    print(f"{name}: {perplexity(text):.0f} by hand, {judge_of_fluency.perplexity([text]):.0f} by the library: {text}")

# %% [markdown]
# ## 9 · Ablate: which method, over seeds
#
# ### Tagging
#
# These stored runs have the same data, order of examples and head at the start, and all branches sit on the same six
# matrices. In them SaLoRA kept its gates to the end, where [04](04_salora.ipynb) folds them into $B$. SaLoRA started
# $A$ with rows of unit length, and COLA with a Gaussian. **One learning rate, at which LoRA learns, was used for all
# branches.** So the differences speak of the methods *at this rate*.

# %%
stored = ch.stored_tags()
two = stored.values("entity_f1"), stored.values("token_accuracy")
course.show(ch.two_scores(*two, stored.saying_o()), ch.finding_of_two_scores(stored))

# %%
ch.differences(stored)

# %% [markdown]
# The interval in the table is over seeds. The next figure has the other doubt: how far would another *sample of test
# sentences* move the scores? Seeds are pooled there.

# %%
by_type, sizes_of = {arm: stored.by_kind(arm) for arm in stored.arms}, stored.sizes()
fig = ch.f1_by_kind(by_type, stored.kinds, sizes_of)
course.show(fig, ch.finding_of_kinds(by_type, stored.kinds, sizes_of))

# %% [markdown]
# ### Style transfer
#
# SmolLM2-135M as it is, in the prompt of the tuning set and in its own chat form, and after 60 steps on Alpaca with
# LoRA and with SaLoRA. Two baselines need no model: the source copied, and the human rewrite.

# %%
ch.style_table(asked)

# %%
points = {way: asked.points(way) for way in asked.directions}
fig = ch.trade_off(points, "BLEU to the source: how much of it stayed", "Transfer accuracy")
course.show(fig, ch.finding_of_trade_off(asked))

# %% [markdown]
# At the lower right nothing was done. At the upper left stands another text in the right style.
#
# **Does a copy at least look fluent?** A person wrote it. Two language models judge: one counted on reviews
# (3-gram), and SmolLM2 itself.

# %%
course.show(ch.perplexities(asked), ch.finding_of_perplexities(asked))

# %% [markdown]
# So a table of perplexities rewards texts in the judge's own manner. The rows for the copy and the human rewrite
# tell how much.
#
# ### Read some
#
# The first sentences of each direction, not chosen. Some texts only talk *about* the sentence. A remark that the
# sentence is negative sounds negative, and the classifier counts it as a success.

# %%
print(ch.about_the_sentence(asked))
ch.style_samples(asked)

# %% [markdown]
# ## 10 · Play
#
# How sure must a tagger be of an entity? Its confidence is the probability of its least certain word.
#
# ### Exercise 10a · Debug: only what is sure (4 minutes)
#
# Each predicted entity has a `confidence` and is `right` or not; `annotated` is how many there are to find. Return
# precision and recall of those that are *at least* as sure as the threshold. This version made a threshold look
# harmless.


# %%
@course.exercise
def precision_recall(confidence, right, annotated, threshold):
    kept = confidence >= threshold
    return [right[kept].mean(), right[kept].sum() / right.sum()]  # find the mistake


precision_recall.check()

# %% [markdown]
# The slider is computed from the probabilities of your own run. Blue is kept and right, orange with a frame is kept
# and wrong, a dashed frame was dropped. What the annotators marked is underlined.

# %%
EntityThreshold, some = ch.EntityThreshold, ch.with_entity(tagged)[:12]
picture = EntityThreshold(tagged.probabilities, tagged.words, tagged.gold, tagged.labels, some)
line = picture.curve
states = [{"threshold": t, "sentence": 1} for t in (0.0, 0.6)]
yours = precision_recall(line.confidence, line.right, line.annotated, 0.5)
ch.say_equal("precision and recall at 0.5, yours and the figure's", yours, line.at(0.5)[:2], 1e-6)
course.show(course.strip(picture, states), ch.finding_of_threshold(picture, states),
            "Two rows: precision, recall and F1 over the threshold, and a sentence with its entities marked. "
            + picture.words(**states[1]))

# %%
course.explore(picture)

# %% [markdown]
# Find a threshold at which half of the kept entities are right. How many of the annotated ones does it still find?
#
# ## 11 · Exercises
#
# **11a · Recall.** Why does a piece in the middle of a word have no label? How can a tagger gain token accuracy and
# lose entity F1? Which judge does copying please, and which one does "great !"?
#
# **11b · Predict, then run.** Three seeds of LoRA vote word by word; without a majority the first seed decides. Does
# the vote's F1 beat the best seed's?

# %%
runs, votes = [stored.tags("lora", seed) for seed in stored.seeds], []
for sentence in zip(*runs, strict=True):  # of each seed the tags of one sentence
    votes.append([max(tags, key=tags.count) for tags in zip(*sentence, strict=True)])
truth = spans_of(stored.gold)
for name, tags in zip([*(f"seed {seed}" for seed in stored.seeds), "vote"], [*runs, votes], strict=True):
    print(f"{name}: entity F1 {entity_f1(truth, spans_of(tags)):.3f}")

# %% [markdown]
# This is one vote of one set of seeds. What would you need to say that voting helps?
#
# **11c · Modify.** Train the tagger of section 7 with `sites="qv"`, and with `head_lr=None`. Is the F1 lower by more
# than another seed moves it?
#
# **11d · Debug.** A colleague reports a transfer accuracy of 0.95 for a model that answers "i love it !" to
# everything. Which column of the table would have told?
#
# **11e · Open.** Design a comparison of two taggers with ten trainings that respects the chance of sentences and of
# seeds. How would you choose the learning rates?
#
# ## 12 · What the papers claim, and what was measured
#
# The two papers make claims about these tasks, with models of other sizes. The runs above do not speak about them:

# %%
ch.claims_of_both()

# %% [markdown]
# This is what the stored runs show, for a small network, short trainings at one rate, and this sample of sentences:

# %%
ch.seen_here(stored, asked)

# %% [markdown]
# Not measured here: the papers' own scores, models of their size, and GYAFC (a licensed data set).
#
# ## 13 · Common confusions
#
# - **"O and −100 are the same."** O is a label to be learned, "outside". −100 is no label at all.
# - **"Half an entity is half right."** It counts as two errors: one is missed, and another is invented.
# - **"A text by a person has a low perplexity."** In the stored table the copied review has the *worst* one by
#   SmolLM2. Perplexity measures how near a text is to what the judge would write.
# - **"A transfer accuracy is an accuracy."** A classifier with errors of its own computed it, and "great !" can win
#   it.
# - **"The bars show how sure the order of the methods is."** Bars over sentences leave out the seeds, and intervals
#   over seeds leave out the sentences.
#
# ## 14 · To take along
#
# - A tagger is a classifier at the first piece of every word; −100 leaves the rest out of the loss.
# - Token accuracy flatters, since most words are O. Whole entities count: type and both ends.
# - Style transfer needs several judges, and beside each score the copied source and the human rewrite.
# - A judge that is a language model prefers its own manner. In the stored runs a copy wins BLEU, and by SmolLM2 it
#   has the worst perplexity of the table.
# - A small model that is asked politely mostly repeats, continues or explains. No score alone would have told.
#
# **Further reading.** [JNLPBA](https://aclanthology.org/W04-1213) and the scoring of entities in
# [CoNLL-2003](https://aclanthology.org/W03-0419); the [Yelp rewrites](https://arxiv.org/abs/1804.06437) by Li et
# al.; [what a transfer score measures](https://arxiv.org/abs/1904.02295) by Mir et al.;
# [Alpaca](https://github.com/tatsu-lab/stanford_alpaca). The scoring code is
# [entities.py](../lowrank_teach/tasks/entities.py) and
# [style_transfer.py](../lowrank_teach/tasks/style_transfer.py).
#
# **Next question:** what do the sliders do? [10 · Playground](10_playground.ipynb)
