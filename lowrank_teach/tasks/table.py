"""The tasks, one row each: columns, classes, metrics, lengths, and where the rows come from."""

from __future__ import annotations

from lowrank_teach import corpora

from . import prepare
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
    deviation: str = "",
) -> Task:
    kind = "classification" if labels else "regression"
    return Task(
        name, kind, text, "label", labels, metrics, max_length, description, "GLUE (Wang et al. 2019)", deviation,
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
) -> list[Task]:
    """An encoder's task, and the same rows as a prompt whose answer a causal model scores."""
    common = {
        "labels": labels, "metrics": metrics, "max_length": max_length, "origin": origin,
        "deviation": "1,000 / 500 / 1,000 rows by seed, smaller sets whole; published validation rows are the test",
        "prepare": getattr(prepare, name), "resplit": prepare.paper_subset, "group": group,
        "hub": hub or ("aps/super_glue", name), "folder": name,
        "rows": dict(zip(("train", "validation"), rows, strict=True)),
    }  # fmt: skip
    asked = f"{description} ({'/'.join(words)})"
    prompted = Task(f"{name}-prompt", "choice", ("prompt",), "label", description=asked, words=words,
                    **common)  # type: ignore[arg-type]
    if name in ("rte", "sst2"):  # as encoder tasks they stand among GLUE, with all their rows
        return [prompted]
    return [Task(name, "classification", text, "label", description=description, **common), prompted]  # type: ignore


_PAIR, _ACC, _ACC_F1 = ("sentence1", "sentence2"), ("accuracy",), ("accuracy", "f1")
_TREC_NOTE = "distinct questions of the training part only, own split"
_TABLE = [
    # ---- packaged text
    Task("rt", "classification", ("text",), "label", ("rotten", "fresh"), ("accuracy", "macro_f1"), 64,
         "is a film critic's sentence for or against the film?", "Rotten Tomatoes snippets",
         "own split by film: no film of train is in validation or test", reader=corpora.rotten_tomatoes),
    Task("trec", "classification", ("text",), "label", corpora.TREC_COARSE, ("accuracy", "macro_f1"), 32,
         "what kind of answer does a question ask for? (6 classes)", "TREC (Li & Roth 2002)", _TREC_NOTE,
         reader=lambda: corpora.trec(fine=False)),
    Task("trec-fine", "classification", ("text",), "label", corpora.TREC_FINE, ("accuracy", "macro_f1"), 32,
         "the same, 50 classes with a long tail", "TREC (Li & Roth 2002)", _TREC_NOTE,
         reader=lambda: corpora.trec(fine=True)),
    Task("bbc-match", "classification", ("headline", "lead"), "label", ("other", "same"), ("accuracy", "f1"), 96,
         "do headline and first paragraph belong to one article?", "BBC news (Greene & Cunningham 2006)",
         "labels are built, not annotated: negatives come from the same split and category",
         reader=corpora.bbc_match),
    Task("wnut16", "tagging", ("tokens",), "tags", corpora.WNUT_TAGS, ("entity_f1",), 96,
         "people, places, products … in tweets (10 entity types)", "WNUT 2016 (Ritter et al.)",
         "distinct tweets of the training part only, own split", reader=corpora.wnut16),
    Task("bbc-headline", "seq2seq", ("lead",), "headline", (), ("perplexity", "rouge1", "rouge2", "rougeL"), 128,
         "write the headline for a first paragraph", "BBC news (Greene & Cunningham 2006)",
         "own pairing of an article's first paragraph and headline", "{0}\nHeadline:", 24,
         reader=corpora.bbc_articles),
    # ---- GLUE, from a local folder or the hub (test sets have no public labels)
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc", "accuracy"), (8551, 1043),
          "is the sentence grammatical English?", 64),
    _glue("sst2", ("sentence",), ("negative", "positive"), _ACC, (67349, 872), "sentiment of a film review phrase",
          64),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), _ACC_F1, (3668, 408), "do two sentences say the same?"),
    _glue("stsb", _PAIR, (), ("spearman", "pearson"), (5749, 1500), "how similar are two sentences, 0 to 5?"),
    _glue("qqp", ("question1", "question2"), ("different", "duplicate"), _ACC_F1, (363846, 40430),
          "do two questions ask the same?"),
    _glue("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _ACC, (392702, 9815),
          "does the first sentence imply the second?", files={"validation": "validation_matched"},
          deviation="a small copy of train may have lost its full stops; validation is the matched one"),
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
                "is the answer yes, by this passage?", 320),
    *_superglue("multirc", ("paragraph", "pair"), ("wrong", "right"), ("No", "Yes"), (27243, 4848),
                "is this answer to the question right?", 448, ("f1", "exact_match", "accuracy"), "of"),
    *_superglue("rte", _PAIR, ("entailment", "not_entailment"), ("Yes", "No"), (2490, 277),
                "does the first text imply the second?", 256, hub=("nyu-mll/glue", "rte")),
    *_superglue("sst2", ("sentence",), ("negative", "positive"), ("terrible", "great"), (67349, 872),
                "sentiment of a film review phrase", 96, hub=("nyu-mll/glue", "sst2")),
    # ---- text from data
    Task("e2e", "seq2seq", ("source",), "human_reference", (), ("bleu", "nist", "meteor", "rougeL", "cider"), 128,
         "describe a restaurant from its fields", "E2E NLG Challenge (Novikova et al. 2017)",
         "fields written as the LoRA authors do; references of one input are scored together", "{0} ||", 64,
         prepare=prepare.e2e, group="meaning_representation", folder="e2e_nlg",
         rows={"train": 42061, "validation": 4672, "test": 4693}),
    Task("webnlg", "seq2seq", ("source",), "target", (), ("bleu", "meteor", "ter"), 160,
         "say what a set of triples says", "WebNLG Challenge 2017 (Gardent et al. 2017)",
         "unseen: the category is in no training row", "{0} ||", 80, prepare=prepare.webnlg, group="entry",
         part="part", folder="webnlg_2017", rows={"train": 18102, "validation": 2268, "test": 4928}),
    Task("xsum", "seq2seq", ("document",), "summary", (), ("rouge1", "rouge2", "rougeL", "rougeLsum"), 512,
         "sum up an article in one sentence", "XSum (Narayan et al. 2018)",
         "without a train file, validation and test are cut out of what is there", "{0}\nSummary:", 64,
         resplit=prepare.train_from_test("document"),
         hub=("EdinburghNLP/xsum",), rows={"train": 204045, "validation": 11332, "test": 11334}),
    Task("alpaca", "seq2seq", ("text",), "output", (), ("perplexity",), 256, "follow an instruction",
         "Alpaca, cleaned (yahma's release)", "no published held-out rows: own split", "{0}", 128,
         prepare=prepare.alpaca, resplit=prepare.hold_out("instruction"), folder="alpaca_cleaned",
         hub=("yahma/alpaca-cleaned",), rows={"train": 51760}),
    # ---- tags and style
    Task("jnlpba", "tagging", ("tokens",), "ner_tags", prepare.tags("DNA RNA protein cell_line cell_type"),
         ("entity_f1",), 192, "DNA, RNA, proteins, cells in abstracts", "JNLPBA 2004 (from GENIA)",
         rows={"train": 16807, "validation": 1739, "test": 3856}),
    Task("bionlp13pc", "tagging", ("tokens",), "ner_tags",
         prepare.tags("Cellular_component Complex Gene_or_gene_product Simple_chemical"), ("entity_f1",), 192,
         "complexes, genes, chemicals in abstracts", "BioNLP 2013 Pathway Curation (Crichton et al. 2017)",
         rows={"train": 2499, "validation": 857, "test": 1695}),
    Task("yelp", "classification", ("text",), "label", ("negative", "positive"), _ACC, 32,
         "sentiment of a review sentence", "Yelp (Shen et al. 2017; Li et al. 2018)",
         "train is a sample of another split of the same reviews", folder="yelp_style",
         rows={"train": 443259, "validation": 4000, "test": 1000}),
]  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
