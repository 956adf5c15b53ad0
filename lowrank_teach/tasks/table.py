"""The tasks, one row each: columns, classes, metrics, lengths, and where the rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from . import readers
from .task import Task


def _glue(
    name: str,
    text: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    rows: tuple[int, int],
    description: str,
    max_length: int = 128,
    files: dict[str, str] | None = None,
    copies: tuple[tuple[dict[str, int], str], ...] = (),
) -> Task:
    kind = "classification" if labels else "regression"
    return Task(
        name, kind, text, "label", labels, metrics, max_length, description, "GLUE (Wang et al. 2019)", copies=copies,
        hub=("nyu-mll/glue", name), files=files or {},
        rows=dict(zip(("train", "validation"), rows, strict=True)),
    )  # fmt: skip


def _superglue(
    name: str,
    text: tuple[str, ...],
    labels: tuple[str, ...],
    words: tuple[str, ...],
    rows: tuple[int, int],
    description: str,
    max_length: int = 256,
    metrics: tuple[str, ...] = ("accuracy",),
    group: str = "",
    hub: tuple[str, ...] = (),
    origin: str = "SuperGLUE (Wang et al. 2019)",
    copies: tuple[tuple[dict[str, int], str], ...] = (),
) -> list[Task]:
    """An encoder's task, and the same rows as a prompt whose answer a causal model scores."""
    common = {
        "labels": labels, "metrics": metrics, "max_length": max_length, "origin": origin,
        "deviation": "1,000 / 500 / 1,000 rows by seed, smaller sets whole; published validation rows are the test",
        "prepare": getattr(readers, name), "resplit": readers.paper_subset, "group": group,
        "hub": hub or ("aps/super_glue", name), "exported": not hub, "folder": name, "copies": copies,
        "rows": dict(zip(("train", "validation"), rows, strict=True)),
    }  # fmt: skip
    asked = f"{description} ({'/'.join(words)})"
    prompted = Task(f"{name}-prompt", "choice", ("prompt",), "label", description=asked, words=words,
                    **common)  # type: ignore[arg-type]
    if name in ("rte", "sst2"):  # as encoder tasks they stand among GLUE, with all their rows
        return [prompted]
    return [Task(name, "classification", text, "label", description=description, **common), prompted]  # type: ignore


_NLI = ("entailment", "neutral", "contradiction")
_PAIR, _ACC, _ACC_F1 = ("sentence1", "sentence2"), ("accuracy",), ("accuracy", "f1")
# what is known of the small copies that some of these sets are handed on as: rows by split, and how they differ
_MNLI = (({"train": 9888}, "this train file is a sample that lost every full stop, and has ids of its own"),)
_QQP = (({"train": 9917, "validation": 9928}, "these are two samples of the same release, balanced half and half, "
         "not the GLUE split (37 % duplicates)"),)
_BOOLQ = (({"train": 1886}, "this train file is a fifth of the published one, drawn by others"),)
_YELP = (({"train": 90000}, "this train file is a sample of another split of the same reviews (Shen et al.), as the "
          "published one could not be had; some short sentences repeat"),)
_ALPACA = (({"train": 5000}, "these are the first rows of the release, not a random sample"),)
_XSUM = (({"validation": 200, "test": 500}, "these are parts of the published validation and test rows"),)
_JNLPBA = (({"train": 16619, "validation": 1927}, "this copy cuts the same 18,546 training sentences elsewhere"),)
_TREC_NOTE = "distinct questions of the training part only, own split"
_TABLE = [
    # ---- packaged text
    Task("rt", "classification", ("text",), "label", ("rotten", "fresh"), ("accuracy", "macro_f1"), 64,
         "is a film critic's sentence for or against the film?", "Rotten Tomatoes snippets",
         "own split by film: no film of train is in validation or test", reader=readers.rotten_tomatoes,
         asset="rotten-tomatoes"),
    Task("trec", "classification", ("text",), "label", readers.TREC_COARSE, ("accuracy", "macro_f1"), 32,
         "what kind of answer does a question ask for? (6 classes)", "TREC (Li & Roth 2002)", _TREC_NOTE,
         prepare=readers.hub_trec("coarse_label", readers.TREC_COARSE), reader=lambda: readers.trec(fine=False),
         asset="trec"),
    Task("trec-fine", "classification", ("text",), "label", readers.TREC_FINE, ("accuracy", "macro_f1"), 32,
         "the same, 50 classes with a long tail", "TREC (Li & Roth 2002)", _TREC_NOTE,
         prepare=readers.hub_trec("fine_label", readers.TREC_FINE_OF_HUB), reader=lambda: readers.trec(fine=True),
         asset="trec"),
    Task("bbc-match", "classification", ("headline", "lead"), "label", ("other", "same"), ("accuracy", "f1"), 96,
         "do headline and first paragraph belong to one article?", "BBC news (Greene & Cunningham 2006)",
         "labels are built, not annotated: negatives come from the same split and category",
         reader=readers.bbc_match, asset="bbc"),
    Task("wnut16", "tagging", ("tokens",), "tags", readers.WNUT_TAGS, ("entity_f1",), 96,
         "people, places, products … in tweets (10 entity types)", "WNUT 2016 (Ritter et al.)",
         "distinct tweets of the training part only, own split", reader=readers.wnut16, asset="wnut16"),
    Task("bbc-headline", "seq2seq", ("lead",), "headline", (), ("perplexity", "rouge1", "rouge2", "rougeL"), 128,
         "write the headline for a first paragraph", "BBC news (Greene & Cunningham 2006)",
         "own pairing of an article's first paragraph and headline", (), "{0}\nHeadline:", 24,
         reader=readers.bbc_articles, asset="bbc"),
    # ---- GLUE, from a local folder or the hub (test sets have no public labels)
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc", "accuracy"), (8551, 1043),
          "is the sentence grammatical English?", 64),
    _glue("sst2", ("sentence",), ("negative", "positive"), _ACC, (67349, 872), "sentiment of a film review phrase",
          64),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), _ACC_F1, (3668, 408), "do two sentences say the same?"),
    _glue("stsb", _PAIR, (), ("spearman", "pearson"), (5749, 1500), "how similar are two sentences, 0 to 5?"),
    _glue("qqp", ("question1", "question2"), ("different", "duplicate"), _ACC_F1, (363846, 40430),
          "do two questions ask the same?", copies=_QQP),
    _glue("mnli", ("premise", "hypothesis"), _NLI, _ACC, (392702, 9815),
          "does the first sentence imply the second? (validation: the matched rows)",
          files={"validation": "validation_matched"}, copies=_MNLI),
    Task("mnli-mm", "classification", ("premise", "hypothesis"), "label", _NLI, _ACC, 128,
         "the same, on mismatched rows: kinds of text that are not in train", "GLUE (Wang et al. 2019)",
         trained_on="mnli", hub=("nyu-mll/glue", "mnli"), folder="mnli",
         files={"validation": "validation_mismatched"}, rows={"train": 392702, "validation": 9832}, copies=_MNLI),
    _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), _ACC, (104743, 5463),
          "does the sentence answer the question?"),
    _glue("rte", _PAIR, ("entailment", "not_entailment"), _ACC, (2490, 277),
          "does the first text imply the second?", 192),
    # ---- SuperGLUE, in the 1,000 / 500 / 1,000 rows of the setting that COLA follows
    *_superglue("wsc", ("text", "question"), ("no", "yes"), ("No", "Yes"), (554, 104),
                "does the pronoun mean this name?", 192),
    *_superglue("cb", ("premise", "hypothesis"), ("entailment", "contradiction", "neutral"), ("Yes", "No", "Maybe"),
                (250, 56), "is the writer committed to the second sentence?", metrics=("accuracy", "macro_f1")),
    *_superglue("wic", ("first", "sentence2"), ("no", "yes"), ("No", "Yes"), (5428, 638),
                "does a word mean the same in both sentences?", 128),
    *_superglue("boolq", ("question", "passage"), ("no", "yes"), ("No", "Yes"), (9427, 3270),
                "is the answer yes, by this passage?", 320, copies=_BOOLQ),
    *_superglue("multirc", ("paragraph", "pair"), ("wrong", "right"), ("No", "Yes"), (27243, 4848),
                "is this answer to the question right?", 448, ("f1", "exact_match", "accuracy"), "of"),
    *_superglue("rte", _PAIR, ("entailment", "not_entailment"), ("Yes", "No"), (2490, 277),
                "does the first text imply the second?", 256, hub=("nyu-mll/glue", "rte")),
    *_superglue("sst2", ("sentence",), ("negative", "positive"), ("terrible", "great"), (67349, 872),
                "sentiment of a film review phrase", 96, hub=("nyu-mll/glue", "sst2")),
    # ---- text from data
    Task("e2e", "seq2seq", ("source",), "human_reference", (), ("bleu", "nist", "meteor", "rougeL", "cider"), 128,
         "describe a restaurant from its fields", "E2E NLG Challenge (Novikova et al. 2017)",
         "fields written as the LoRA authors do; references of one input are scored together", (), "{0} ||", 64,
         prepare=readers.e2e, group="meaning_representation", folder="e2e_nlg",
         hub=("tuetschek/e2e_nlg",), exported=True,
         rows={"train": 42061, "validation": 4672, "test": 4693}),
    Task("webnlg", "seq2seq", ("source",), "target", (), ("bleu", "meteor", "ter"), 160,
         "say what a set of triples says", "WebNLG Challenge 2017 (Gardent et al. 2017)",
         "unseen: the category is in no training row", (), "{0} ||", 80, prepare=readers.webnlg, group="entry",
         part="part", folder="webnlg_2017", hub=("webnlg-challenge/web_nlg", "webnlg_challenge_2017"), exported=True,
         hub_splits={"validation": "dev"},
         rows={"train": 18102, "validation": 2268, "test": 4928}),
    Task("xsum", "seq2seq", ("document",), "summary", (), ("rouge1", "rouge2", "rougeL", "rougeLsum"), 512,
         "sum up an article in one sentence", "XSum (Narayan et al. 2018)",
         "", _XSUM, "{0}\nSummary:", 64, resplit=readers.train_from_test("document"),
         hub=("EdinburghNLP/xsum",), exported=True, rows={"train": 204045, "validation": 11332, "test": 11334}),
    Task("alpaca", "seq2seq", ("text",), "output", (), ("perplexity",), 256, "follow an instruction",
         "Alpaca, cleaned (yahma's release)", "no published held-out rows: own split", _ALPACA, "{0}", 128,
         prepare=readers.alpaca, resplit=readers.hold_out("instruction"), folder="alpaca_cleaned",
         hub=("yahma/alpaca-cleaned",), rows={"train": 51760}),
    # ---- tags and style
    Task("jnlpba", "tagging", ("tokens",), "ner_tags", readers.tags("DNA RNA protein cell_line cell_type"),
         ("entity_f1",), 192, "DNA, RNA, proteins, cells in abstracts", "JNLPBA 2004 (from GENIA)", copies=_JNLPBA,
         prepare=readers.jnlpba, hub=("tner/bionlp2004", "bionlp2004"), exported=True,
         rows={"train": 16807, "validation": 1739, "test": 3856}),
    Task("bionlp13pc", "tagging", ("tokens",), "ner_tags",
         readers.tags("Cellular_component Complex Gene_or_gene_product Simple_chemical"), ("entity_f1",), 192,
         "complexes, genes, chemicals in abstracts", "BioNLP 2013 Pathway Curation (Crichton et al. 2017)",
         rows={"train": 2499, "validation": 857, "test": 1695}),
    Task("yelp", "classification", ("text",), "label", ("negative", "positive"), _ACC, 32,
         "sentiment of a review sentence", "Yelp (Shen et al. 2017; Li et al. 2018)",
         copies=_YELP, folder="yelp_style", rows={"train": 443259, "validation": 4000, "test": 1000}),
    *(Task(name, "classification", ("text",), "label", readers.STYLES, _ACC, 48, f"is the sentence formal? ({of})",
           "GYAFC (Rao & Tetreault 2018), a copy of your own", derived=partial(readers.sentences, domain),
           folder=f"{readers.FOLDER}/{domain}",
           rows=dict(zip(("train", "validation", "test"), rows, strict=True)))
      for name, domain, of, rows in (
          ("gyafc", "Family_Relationships", "on families and relationships", (103934, 5035, 2351)),
          ("gyafc-music", "Entertainment_Music", "on entertainment and music", (105190, 5233, 2498)))),
    *(Task(name, "seq2seq", ("text",), "output", (), ("bleu", "perplexity"), 256,
           f"rewrite in the other of two styles, asked in words, untrained: {one.note}", one.note,
           "the instruction's wording is our own", prompt="{0}", max_target=128,
           made_of=one.classifier, trained_on="alpaca",
           group="of", part="part",
           rows={"test": one.rewrites})
      for name, one in readers.TRANSFERS.items() if one.rewrites),
]  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
_PACKAGED = dict(TASKS)   # TASKS may be given others


def put_in_table(tasks: Mapping[str, Task | None]) -> None:
    """Give names these tasks; None is the package's own."""
    TASKS.update({name: task or _PACKAGED[name] for name, task in tasks.items()})


def is_packaged(name: str) -> bool:
    """Whether a name stands for the package's own task, and not for one that a user put there."""
    return name in _PACKAGED and TASKS[name] is _PACKAGED[name]
