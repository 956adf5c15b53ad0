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
# **Papers:** the E2E and WebNLG tables of [LoRA](https://arxiv.org/abs/2106.09685),
# [Delta-LoRA](https://arxiv.org/abs/2309.02411) and [AutoLoRA](https://arxiv.org/abs/2403.09113).
# **You need:** [02](02_lora.ipynb); [05](05_delta_lora.ipynb) and [06](06_autolora.ipynb) for what Delta-LoRA and
# AutoLoRA do.
# **Time:** about 95 minutes to read and solve; the computing takes minutes on a laptop.
# **Task:** E2E, descriptions of restaurants. Where its files are not at hand, headlines for news articles.
#
# At the end you will have trained a model that writes, written its texts token by token, and computed BLEU by hand.
# You will also know how many kinds of chance a table of such scores leaves out.

# %%
import lowrank_teach as lt
import torch
from lowrank_teach import course

ch = course.chapters.generation
task, backbone, profile = ch.begin()

# %% [markdown]
# ## 1 · Why: there is more than one right text
#
# So far every task ended in a class, and an answer was right or wrong. Delta-LoRA and AutoLoRA also claim gains
# where a model *writes*: a description of a restaurant from its fields (E2E), or a sentence about some facts
# (WebNLG). Here is one input, with a few of the texts that people wrote for it. What does a score mean when all of
# them are right?

# %%
e2e, webnlg = ch.stored("e2e", "webnlg")
ch.references_of(e2e)

# %% [markdown]
# The lines above name the stored runs that the comparisons below come from. What you train yourself uses the task
# named in the first cell.
#
# ## 2 · The idea in one picture
#
# The data are written as one line of fields, and a double bar `||` ends them. A *causal* model, which predicts each
# token from those before it, goes on from there. Only its branches $A$ and $B$ train.

# %%
course.show(ch.data_to_text(), ch.finding_of_references(e2e))

# %% [markdown]
# ## 3 · The maths
#
# **Training.** Let $x$ be the tokens of the prompt and $y_1, \dots, y_T$ those of the text, where $y_T$ is the token
# that ends it. The model gives each next token a probability $p$. The loss is the mean surprise over the text alone:
#
# $$L = -\frac{1}{T} \sum_{t=1}^{T} \log p(y_t \mid x, y_1, \dots, y_{t-1}).$$
#
# The prompt is given, so nothing has to be learned about it. In code its labels are −100, which the loss leaves out.
#
# **Writing.** *Greedy* search takes the likeliest token again and again, until the end token comes:
#
# $$y_t = \arg\max_y\; p(y \mid x, y_1, \dots, y_{t-1}).$$
#
# **Scoring.** Five scores stand in the papers' tables; two more are used here. Each counts something else:
#
# | score | what it counts | what it does not see |
# |---|---|---|
# | BLEU | groups of 1 to 4 words shared with a reference; a text that is too short is punished | which words matter |
# | NIST | the same groups, where a rare group counts more than a frequent one | the same; its scale is its own |
# | METEOR | single words that match as they are, by stem or by synonym, and how far their order is broken | facts |
# | ROUGE-L | the longest sequence of words that both texts have in this order, gaps allowed | what is in the gaps |
# | CIDEr | shared groups, weighted by how rarely they occur in the references of *other* inputs | one input alone |
# | TER | edits that turn the text into a reference, as a share of the reference's words; low is good | meaning |
# | slot errors | fields of the data that the text leaves out, and values that it makes up | style and grammar |
#
# **BLEU with numbers.** Let $p_n$ be the share of the text's groups of $n$ words that also stand in a reference. Let
# $c$ be the length of the text and $\rho$ that of the nearest reference:
#
# $$\text{BLEU} = \min\left(1, e^{1 - \rho / c}\right) \cdot (p_1\, p_2\, p_3\, p_4)^{1/4}.$$
#
# Take the references "the mill is a cheap pub by the river ." and "the mill is an inexpensive pub on the riverside
# ." and the text "the mill is a cheap pub on the riverside .". All its 10 words and all its 9 pairs are in one of
# the references. Of 8 groups of three, "cheap pub on" is in none; of 7 groups of four, "a cheap pub on" and "cheap
# pub on the" are in none. The text has the references' length, so the first factor is 1, and
#
# $$\text{BLEU} = \left(1 \cdot 1 \cdot \tfrac{7}{8} \cdot \tfrac{5}{7}\right)^{1/4} = 0.889.$$
#
# ### Exercise 3a · What BLEU counts (6 minutes)
#
# Return two numbers: how many groups of `n` words of `text` stand in `references`, and how many it has. A group
# counts as often as it is written, but at most as often as it stands in the *one* reference that has it most often.
# Otherwise "the the the" would be a fine text. The function below forgets this limit.


# %%
@course.exercise
def matched_groups(text, references, n):
    def groups(line):
        words = line.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {group for one in references for group in groups(one)}
    return [sum(group in known for group in groups(text)), len(groups(text))]  # it counts too much


matched_groups.check()

# %%
text = "the mill is a cheap pub on the riverside ."
wanted = ["the mill is a cheap pub by the river .", "the mill is an inexpensive pub on the riverside ."]
shares = [matched / written for matched, written in (matched_groups(text, wanted, n) for n in (1, 2, 3, 4))]
by_hand = float(torch.tensor(shares).prod() ** 0.25)  # the lengths are equal: the first factor is 1
print("shares of groups:", *(f"{share:.3f}" for share in shares), f"BLEU {by_hand:.3f}")
ch.say_equal("BLEU by hand and by sacrebleu", [by_hand], [ch.bleu(text, wanted)], 1e-6)

# %% [markdown]
# ## 4 · Predict
#
# Say the answer aloud, then open it.

# %%
bench = ch.Workbench(task, backbone)
vocabulary = len(bench.tokenizer)
ch.predict_loss(vocabulary)
ch.predict_greedy()
ch.predict_bleu()

# %% [markdown]
# ## 5 · Training and writing, by hand
#
# The workbench holds a few rows of the task and a published network of 135 million parameters. First the row that it
# learns from.
#
# ### Exercise 5a · The row a causal model learns from (4 minutes)
#
# `prompt` and `target` are lists of token numbers, and `end` is one number. Return two rows of equal length: the
# tokens, and their labels. Do not shift the labels; the loss below does that. Two things are missing here.


# %%
@course.exercise
def causal_row(prompt, target, end):
    tokens = [*prompt, *target]
    return torch.tensor([tokens, tokens])  # nearly: two things are missing


causal_row.check()

# %%
tokens, labels = (list(map(int, row)) for row in causal_row(bench.prompt, bench.target, bench.end))
ch.say_equal("tokens of a training row, ours and the library's", tokens, bench.rows[0]["input_ids"], 0)
ch.say_equal("labels, ours and the library's", labels, bench.rows[0]["labels"], 0)
bench.page(tokens, labels)

# %% [markdown]
# Now the training. The loss is the formula of section 3, and place $t$ is judged by what the model said at place
# $t - 1$. LoRA of rank 4 stands on every $W_q$ and $W_v$.

# %%
method, RATE = lt.LoRA(r=4, lora_alpha=8.0), bench.settings.lr


def loss_of(logits, labels):
    """The mean of −log p over all places that have a label."""
    log_p = logits[:, :-1].log_softmax(-1)
    target = labels[:, 1:]
    picked = log_p.gather(-1, target.clamp_min(0)[..., None])[..., 0]
    return -picked[target != -100].mean()


def train(batches):
    """LoRA by AdamW with a linearly falling rate: the adapted network, and the loss of each step."""
    adapters = lt.adapt(bench.network(), method, seed=0)
    model, losses = adapters.model.train(), []
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=RATE, weight_decay=0.01)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / len(batches))
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = loss_of(logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


network, losses = train(bench.batches)
print("loss of each step:", *(f"{loss:.3f}" for loss in losses), f"(chance: ln {vocabulary:,} = "
      f"{torch.tensor(vocabulary).log():.2f})")

# %% [markdown]
# The library's trainer gets the same start and the same batches. Its losses must be the same, up to the rounding of
# single precision.

# %%
trainer = lt.Trainer(lt.adapt(bench.network(), method, seed=0), bench.rows, bench.collate, bench.settings, seed=0)
ch.say_equal("losses by hand and by the library's trainer", losses, ch.losses_of(trainer.run()), 1e-4)

# %% [markdown]
# ### Exercise 5b · The decoding step (5 minutes)
#
# A batch of texts is written at the same time. Shorter prompts are padded on the *left*, because the model goes on
# from the last place. `logits` is $(N, T, V)$: texts, places, tokens; `done` tells which texts have ended. Return
# the next token of each text. A text that has ended receives `end` again. The function below has two mistakes.


# %%
@course.exercise
def next_tokens(logits, done, end):
    return logits[:, 0].argmax(-1)  # two things are wrong


next_tokens.check()

# %%
def write(model, prompts, most):
    """Greedy texts for a batch of prompts, `most` tokens at most."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[bench.end] * (longest - len(p)) + p for p in prompts])  # padded on the left
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    done, cache, written = torch.zeros(len(prompts), dtype=torch.bool), None, []
    for _ in range(most):
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = model(ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        new, cache = next_tokens(out.logits, done, bench.end), out.past_key_values
        done = done | (new == bench.end)
        written.append(new)
        ids, mask = new[:, None], torch.cat([mask, torch.ones_like(new)[:, None]], 1)
    rows = torch.stack(written, 1).tolist()
    return [bench.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


with torch.no_grad():
    ours = write(network.eval(), bench.prompts, 12)
print(*ours, sep="\n")

# %% [markdown]
# The cache holds the keys and values of all earlier places, so each step computes one new place only. The library
# writes with `transformers`, and must write the same:

# %%
theirs = ch.generate(network, bench.asked, bench.tokenizer, max_new_tokens=12)
ch.say_same("texts by hand and by the library", ours, theirs)

# %% [markdown]
# ## 6 · What must be true
#
# **A text does not depend on its neighbours.** Written alone, without any padding, it must be the same:

# %%
alone = [ch.generate(network, [row], bench.tokenizer, max_new_tokens=12)[0] for row in bench.asked]
ch.say_same("texts alone and in a batch", alone, theirs)

# %% [markdown]
# **What the model says at unlabelled places does not matter.** Put nonsense there, and the loss stays:

# %%
with torch.no_grad():
    batch = bench.batches[0]
    logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
counted = torch.roll(batch["labels"] != -100, -1, dims=1)[..., None]  # judged at the place before
nonsense = torch.where(counted, logits, torch.randn_like(logits))
ch.say_equal("losses, with nonsense and without", [loss_of(nonsense, batch["labels"])],
             [loss_of(logits, batch["labels"])], 0.0)

# %% [markdown]
# **The rule for slot errors must not accuse people.** It looks for the written forms of each value, and for values
# of the task's list that do not belong there. People leave a field out now and then, or say it in words that no
# pattern knows. A model whose share of missing fields is near the first number is as complete as people are:

# %%
print(ch.people_by_the_rule(e2e, webnlg))

# %% [markdown]
# ## 7 · Train on a real task
#
# First, what does the network write *without* any training? This is the baseline of everything below. It was tuned
# to chat and has never seen this format. Then LoRA trains for the profile's number of steps.

# %%
before = ch.generate(bench.model, bench.asked, bench.tokenizer, max_new_tokens=ch.LONGEST[profile])
ch.texts_in_rows({f"input {i}": text for i, text in enumerate(before, 1)}, "written before any training")

# %%
sizes = ch.SIZES[profile]
course.keep_reference(f"08_generation_live_{task}", lambda: lt.fit(method, task, backbone, profile, 0, **sizes))
reference, made = course.load_reference(f"08_generation_live_{task}")
live = course.LiveCurve("lora", reference)
run = lt.fit(method, task, backbone, profile, seed=1, callbacks=[live], progress=False, **sizes)
live.finish(run, ch.finding_of_run(run, vocabulary))
print(made)

# %% [markdown]
# The run keeps the factors of each $\Delta W$. `deploy` adds the products to a fresh copy of the pretrained
# matrices, and the same inputs are written again, beside what a person wrote.

# %%
trained = bench.network()
ch.deploy(trained, run.factors)
after = ch.generate(trained, bench.asked, bench.tokenizer, max_new_tokens=ch.LONGEST[profile])
ch.before_and_after(bench.asked, before, after)

# %% [markdown]
# ## 8 · Look at what stored runs wrote
#
# From here on the texts come from the stored runs: LoRA; Delta-LoRA with λ = 2, the paper's value; AutoLoRA with a
# short search; and LoRA at three times α, the control that [05](05_delta_lora.ipynb) asks for. The papers train
# about a hundred times as long, and a larger model. What can be seen here is how the methods *start*.

# %%
course.show(ch.curves(e2e, vocabulary), ch.finding_of_curves(e2e))

# %% [markdown]
# ### Which learning rate, and chosen how?
#
# Each method tried five rates and took the one whose texts for *validation* inputs had the best BLEU. The control
# took Delta-LoRA's. **Every rate was tried with one seed only**, so the choice itself is partly chance:

# %%
print(ch.finding_of_rates(e2e))
ch.rate_table(e2e)

# %% [markdown]
# Read no order of the methods from this table. It says which rate was taken, and little more. Loss and BLEU need not
# agree: the loss asks for the next word of a *person's* text, and BLEU reads what the model wrote after its own
# words.
#
# ### What does a score see?
#
# Here is a made-up example: one text that nearly copies a reference, one that says everything in other words, one
# that turns *cheap* into *expensive*. The baseline in the table below is the line of data itself, copied.

# %%
ch.toy_texts()

# %%
print(ch.finding_of_toy())
ch.toy_table()

# %% [markdown]
# ### Exercise 8a · A field left out (5 minutes)
#
# For each of `values` return 1 if `text` does not say it, and 0 if it does. Capitals do not matter, and a value must
# stand there as a whole word. The function below has two mistakes.


# %%
@course.exercise
def missing_values(text, values):
    return torch.tensor([float(value not in text) for value in values])  # find two bugs


missing_values.check()

# %%
print(ch.rule_by_rule(e2e, missing_values))

# %% [markdown]
# ### The scores
#
# Now the stored texts of E2E, over five seeds, each method at the rate that one seed chose. BLEU, METEOR and ROUGE-L
# lie between 0 and 1, and only for TER low is good. The first row is the network without training.

# %%
ch.board(e2e)

# %% [markdown]
# Which differences are more than chance? There are two kinds of it. Other *test inputs* could have been asked, and
# another *seed* could have trained the model. Begin with the inputs.
#
# ### Exercise 8b · A score over inputs drawn anew (5 minutes)
#
# Of each text you have its `edits` and the `lengths` of its references, both of shape $(N,)$. Each row of `draws`
# $(R, N)$ names $N$ texts, some of them twice. Return the TER of each draw: add up first, then divide. This is the
# *bootstrap* over test inputs.


# %%
@course.exercise
def resampled_scores(edits, lengths, draws): ...


resampled_scores.check()

# %%
course.solution(resampled_scores)

# %%
found = ch.intervals(e2e)
edits, lengths = e2e.rows("LoRA", "ter").T
drawn = torch.as_tensor(resampled_scores(edits, lengths, ch.draws_of(len(edits))))
ends = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype))
ch.say_equal("ends of LoRA's TER, yours and the figure's", ends, found["TER (low is good)"]["LoRA"][1:], 1e-6)
course.show(ch.score_intervals(found, title="E2E, seed 0: 95 % over test inputs"), ch.finding_of_intervals(found))

# %% [markdown]
# Every method was asked for the same inputs, so differences are *paired*: the inputs' own difficulty drops out. Left
# stand the differences over other inputs, right those over other seeds. A claim about methods needs both.

# %%
course.show(ch.two_doubts(e2e), ch.finding_of_doubts(e2e))

# %% [markdown]
# Look at Delta-LoRA. From seed 0 alone one would conclude that it is worse, because its interval over inputs lies
# wholly below zero. But only the inputs were drawn anew, and not the training.
#
# And how much is decided by the choice of the rate? LoRA was also trained at the rate that the loss prefers:

# %%
print(ch.rate_by_loss(e2e))

# %% [markdown]
# So when a table says "each at its best rate", ask: best by what, on which examples, and with how many seeds?
#
# ### Texts beside their references
#
# **Bold** is a value of the data that the text says. ~~Struck out~~ is a value of the task's list that is not in
# these data. What is missing stands in brackets.

# %%
ch.page_of(e2e, 0) + ch.page_of(e2e, 3) + ch.page_of(webnlg, 1)

# %% [markdown]
# Read some more, such as `ch.page_of(e2e, 5)`, up to 11. Which field is left out most often? Do you find an error
# that the rule does not see?

# %%
slots = ch.slot_shares(e2e)
course.show(ch.slot_error_bars(slots), ch.finding_of_slots(slots))

# %% [markdown]
# ### Seen and unseen
#
# Some of WebNLG's test inputs are from categories that no training example has. A method that only learned the
# phrases of its categories would lose there.

# %%
course.show(ch.score_intervals(ch.by_part(webnlg), shared=True, title="WebNLG, seed 0"), ch.finding_of_parts(webnlg))

# %% [markdown]
# ## 9 · Ablate: how the text is searched for
#
# *Beam search* keeps several beginnings alive and takes the best whole text at the end. A tree of two words shows
# why that can differ from greedy search.

# %%
paths = {name: beam.words for name, beam in ch.searched().items()}
course.show(ch.word_tree(ch.toy_problems.TREE, paths), ch.finding_of_tree())

# %% [markdown]
# Here is the same for a stored model, and then for the one that you trained:

# %%
ch.beam_table(e2e)

# %%
beamed = ch.generate(trained, bench.asked[:2], bench.tokenizer, max_new_tokens=ch.LONGEST[profile], num_beams=4)
ch.beam_texts(e2e, {1: after[:2], 4: beamed})

# %% [markdown]
# So a table of scores has a hidden column: how the texts were searched for. LoRA's own E2E numbers were made with 10
# beams. A comparison is fair if all of its rows used the same search.
#
# ## 10 · Play
#
# How many test inputs does a comparison need? The slider takes the first $n$ of the stored inputs and draws them
# anew at each move. The trainings are those of seed 0.

# %%
knob = ch.HowManyInputs(e2e, ch.trained_arms(e2e))
states = [{"n": n} for n in (10, 30, knob.count_of_inputs)]
said = " ".join(knob.words(**state) for state in states)
course.show(course.strip(knob, states), said, f"BLEU, and differences to LoRA, three rows. {said}")

# %%
course.explore(knob)

# %% [markdown]
# Bars shrink with the root of $n$: half the width needs four times as many inputs. From which $n$ on does
# Delta-LoRA's difference stay away from zero? Would more inputs have shown that another seed turns it round?
#
# ## 11 · Exercises
#
# **11a · Recall.** Why is the label of the prompt −100? Why does padding stand on the left when a text is written?
# Why is a corpus BLEU no mean over texts? What does a bootstrap over inputs leave out?
#
# **11b · Modify.** Score the stored samples against one reference instead of all. Say first which way BLEU goes:

# %%
print(ch.one_reference(e2e))

# %% [markdown]
# **11c · Debug.** Someone trains without the end token, and the loss is fine. What will the texts look like? Take
# `bench.end` out of the rows in `train` and see.
#
# **11d · Open.** Write a text for one of the samples that has no slot error and a BLEU near zero, and one with a
# BLEU above 0.5 and two errors.
#
# **11e · Open.** Train with the prompt's labels left in. Does the loss of the *text* end higher?
#
# ## 12 · What the papers claim, and what was measured
#
# The papers' own tables come from GPT-2 medium and cannot be tested here. Claims on E2E are tested for the small
# model and the short training of section 8; the verdict is computed from its five seeds, at rates that one seed
# chose.

# %%
ch.claims_about_texts()

# %% [markdown]
# The same comparisons score by score, with intervals over test inputs. They speak of two *trained models* (seed 0),
# and not of two methods. WebNLG has no other seed.

# %%
ch.measured(e2e, webnlg)

# %% [markdown]
# ## 13 · Common confusions
#
# - **"The labels must be shifted by one."** Tokens and labels stand one above the other. The loss compares place $t$
#   with what was said at $t - 1$.
# - **"The interval says whether the method is better."** It says what other test inputs could give for two trained
#   models. Another seed of the training is not in it.
# - **"A corpus score is the mean of the texts' scores."** BLEU and TER add up over all texts and divide once.
# - **"A lower loss means better texts."** The loss never reads what the model writes.
# - **"No slot error means a correct text."** The rule knows patterns. A rating of "2 stars" is in no list.
#
# ## 14 · To take along
#
# - A causal model learns to write by predicting the next token; the prompt has no label, and the end token has one.
# - A text is scored against several references. Each score counts something else, and BLEU may prefer a wrong fact to
#   a right paraphrase. Count slot errors beside it, and hold the rule against people first.
# - A score belongs to its search, to its test inputs, and to the seed of its training. Show the intervals of both.
# - Over five seeds of a short training on E2E, at rates that one seed chose, neither Delta-LoRA nor AutoLoRA can be
#   told from LoRA. That says nothing about GPT-2 and long trainings.
#
# **Further reading.** [E2E](https://arxiv.org/abs/1706.09254) and its [findings](https://arxiv.org/abs/1901.07931),
# with slot errors; [WebNLG](https://aclanthology.org/W17-3518); [BLEU](https://aclanthology.org/P02-1040), and [a
# call for clarity](https://arxiv.org/abs/1804.08771) in reporting it; [prefix
# tuning](https://arxiv.org/abs/2101.00190), which set the setup that LoRA's tables follow.
#
# **Next question:** and to tagging and style transfer? [09 · More tasks](09_more_tasks.ipynb)
