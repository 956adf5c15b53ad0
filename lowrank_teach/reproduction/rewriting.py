"""The stored comparison of style transfer: a causal model asked to rewrite sentences, before and after Alpaca.

SaLoRA's setting (Hu et al. 2023, section 4.4 and Table 2) made small: SmolLM2-135M, some dozens of steps on cleaned
instructions with LoRA or SaLoRA, then Yelp sentences in both directions, asked without an example. Beside the models
stand two controls that no model is needed for: the source copied, and the human rewrite.

    python -m lowrank_teach.reproduction.rewriting     # trains, writes and scores again
    rewriting.load()                             # what is stored, in figures/data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..analysis.statistics import draws_of, percentile_interval
from ..errors import require
from ..experiments.fit import fit
from ..experiments.runs import Run, Store
from ..methods import LoRA, Method
from ..models.backbones import load_backbone
from ..tasks.load import load_task, load_transfer, require_task
from ..tasks.readers import TRANSFERS
from ..tasks.style_transfer import CausalLM, NGram, score_transfer, transfer
from ..tasks.table import TASKS
from ..tasks.task import Task
from ..tasks.tokenize import Collate, encode
from ..training.config import fit_to_profile, train_config
from .arms import Arm, Study, salora
from .results import Comparison, made_on, read, references_folder
from .studies import OnRun, Records, Runner
from .tagging import Taggers

FILE, BACKBONE, PROFILE = "09_more_tasks_style.json", "smollm2-135m", "laptop"
LONGEST = 96   # tokens of an instruction with its answer: longer ones are left out, since cutting takes the question
TUNING: dict[str, Any] = {"steps": 60, "batch_size": 4, "max_length": 256, "lr": 1e-3, "n_train": 2000,
                          "n_validation": 8, "n_test": 8}
TUNED: dict[str, Method] = {"after LoRA": LoRA(r=8, sites="all"), "after SaLoRA": salora(eta_c=0.15)}
JUDGE: dict[str, Any] = {"backbone": "minilm-l6", "profile": "laptop", "steps": 400, "n_train": 6400, "n_test": 1000}
COPY, HUMAN, PLAIN, CHAT = "source copied", "human rewrite", "as it is", "as it is, chat form"
SENTENCES, NEW_TOKENS, SAMPLES = 40, 24, 6   # a direction; written at most; kept as text, the first and not the best


class Rewrites(Comparison):
    """What is stored: one record an arm, seed and direction: scores, hits (1: the wanted style), samples."""

    task_key = "direction"

    @property
    def directions(self) -> list[str]:
        return self.tasks

    def values(self, name: str, direction: str) -> dict[str, list[float]]:
        """Return arm -> one score of each seed, in one direction; arms without the score are left out."""
        here = [r for r in self.records if r["direction"] == direction and name in r["scores"]]
        return Rewrites(self.about, here).by_arm(lambda record: record["scores"][name])

    def mean(self, name: str, direction: str, arm: str) -> float:
        """Return one score of an arm, averaged over its seeds."""
        return float(np.mean(self.values(name, direction)[arm]))

    def points(self, direction: str, x: str = "self_bleu", y: str = "accuracy"
               ) -> dict[str, list[tuple[float, float]]]:
        """Return arm -> (x, y) of each seed, for two scores."""
        across, up = self.values(x, direction), self.values(y, direction)
        return {arm: list(zip(across[arm], up[arm], strict=True)) for arm in across}

    def table(self, direction: str) -> pd.DataFrame:
        """Return one row an arm: seeds, and the mean of every score over them."""
        names = list(dict.fromkeys(name for r in self.records for name in r["scores"]))
        by_arm = {name: {arm: float(np.mean(v)) for arm, v in self.values(name, direction).items()} for name in names}
        frame = pd.DataFrame(by_arm, index=self.arms)
        frame = in_words(frame)
        frame.insert(0, "seeds", [len(v) for v in self.values("accuracy", direction).values()])
        return frame.rename_axis("arm")

    def samples(self, direction: str, seed: int = 0) -> pd.DataFrame:
        """Return the first sentences of the test rows: source, human rewrite, and what every arm wrote."""
        of = {r["arm"]: r for r in self.records if r["direction"] == direction and r["seed"] == seed}
        return pd.DataFrame({arm: of[arm]["samples"] for arm in self.arms})

    def accuracy_interval(self, arm: str, direction: str, level: float = 0.95) -> tuple[float, float]:
        """Return the middle `level` of the accuracy over resampled sentences, seeds averaged."""
        hits = np.mean([r["hits"] for r in self.records if r["arm"] == arm and r["direction"] == direction], axis=0)
        return percentile_interval(hits, draws_of(len(hits), 2000), level)

    def line(self) -> str:
        """Return one sentence on where the numbers come from."""
        a = self.about
        return (f"stored rewrites: {a['backbone']}, {a['training']['steps']} steps of {a['training']['batch_size']} "
                f"instructions, {a['sentences']} sentences a direction; {made_on(a['machine'])}")


def in_words(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `score_transfer` with names that a narrow page can break: "self_bleu" becomes
    "self bleu", "perplexity.3-gram" "perplexity 3-gram"."""
    return scores.rename(columns=lambda name: name.replace("_", " ").replace(".", " ", 1))


@dataclass(kw_only=True)
class RewriteRunner(Runner):
    """Tunes a causal model, and keeps what it makes of the sentences, with the scores of that."""

    frame: pd.DataFrame
    classifier: StyleClassifier
    judges: list[Any]
    keep_model: bool = True

    def records_of(self, arm: str, seed: int, run: Run) -> Records:
        assert run.trained is not None
        written = transfer(run.trained.model, run.trained.tokenizer, self.frame, max_new_tokens=NEW_TOKENS)
        more = {"loss": [round(value, 4) for value in run.series("loss")[1]], "ranks": run.ranks,
                "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
        return [{**one, **more} for one in self.scored(written)]

    def untuned(self, arm: str, written: pd.DataFrame) -> None:
        """Keep the records of what no run of the study wrote."""
        self.records += [{"arm": arm, "seed": 0, **one} for one in self.scored(written)]
        self.save()
        self.tell("alpaca", arm, 0, None, self.records[-1]["scores"])

    def shown(self, run: Run, kept: Mapping[str, Any]) -> dict[str, float]:
        return kept["scores"]

    def scored(self, written: pd.DataFrame) -> Records:
        """Return one record a direction."""
        found = []
        for direction, part in written.groupby("direction", sort=False):
            codes = self.classifier.predict(part["written"].tolist())
            hits = [int(bool(text) and code == want)
                    for text, code, want in zip(part["written"], codes, part["wanted"], strict=True)]
            scores = {name: round(v, 5) for name, v in score_transfer(part, self.classifier, self.judges).items()}
            found.append({"direction": direction, "scores": scores, "hits": hits,
                          "samples": part["written"].head(SAMPLES).tolist()})
        return found


def train(seeds: Iterable[int] = range(2), folder: Path | str | None = None, *, tuned: Mapping[str, Method] = TUNED,
          backbone: str = BACKBONE, sentences: int = SENTENCES, data: str = "yelp-transfer",
          judge: Mapping[str, Any] = JUDGE, store: Store | None = None, on_run: OnRun | None = None,
          **training: Any) -> Rewrites:
    """Tune, rewrite and score; the file is written anew after each seed.

    seeds: of the tuned arms; the others do not depend on any.  on_run: told of the scores in the last direction.
    """
    path, settled = Path(folder or references_folder()) / FILE, train_config(PROFILE, **{**TUNING, **training})
    frame, styles = load_transfer(data, n=sentences), TRANSFERS[data].classifier
    classifier = train_classifier(styles, **judge)
    model, tokenizer = load_backbone(backbone)
    about = {"data": data, "sentences": sentences, "new_tokens": NEW_TOKENS, "longest": LONGEST,
             "tuned": {arm: fit_to_profile(method, PROFILE).to_dict() for arm, method in tuned.items()},
             "classifier": {**classifier.described, "accuracy": classifier.accuracy, "rows": classifier.rows}}
    study = Study("Does tuning on instructions teach a model to change a style?", "method",
                  {arm: Arm(method) for arm, method in tuned.items()}, {"alpaca": {}}, backbone, PROFILE,
                  settled.to_dict(), LONGEST)
    runner = RewriteRunner(study, path, about, store, on_run, frame=frame, classifier=classifier,
                           judges=_language_models(styles, model, tokenizer, backbone))
    runner.untuned(COPY, frame.assign(written=frame["source"]))
    if all(frame["references"].map(len)):
        runner.untuned(HUMAN, frame.assign(written=[many[0] for many in frame["references"]]))
    for arm, prompt in ((PLAIN, "alpaca"), (CHAT, "chat")):
        runner.untuned(arm, transfer(model, tokenizer, frame, prompt=prompt, max_new_tokens=NEW_TOKENS))
    runner.run(seeds=seeds)
    return Rewrites(runner.described(), runner.records)


def _language_models(styles: str, model: Any, tokenizer: Any, name: str) -> list[Any]:
    """Return two judges of fluency: word groups of the style's own reviews, and the causal model before tuning."""
    reviews = load_task(styles).train
    return [NGram.from_texts(reviews["text"][:20_000]), CausalLM(model, tokenizer, name)]


def load(folder: Path | str | None = None) -> Rewrites:
    """Return what is stored.

    Raises:
        FileNotFoundError: it has not been made here.
    """
    path = Path(folder or references_folder()) / FILE
    return Rewrites(*read(path,
                          f"{FILE} is not there; make it: python -m lowrank_teach.reproduction.rewriting"))


# ---- the classifier of styles ------------------------------------------------------------------------------
# A classifier of styles, trained here and kept: the judge of style transfer, with its own accuracy beside it.
@dataclass
class StyleClassifier:
    """accuracy: on `rows` held-out sentences (the task's test rows, else its validation rows).

    described: task, backbone, method, training and seed, and where the sentences are from.
    """

    model: Any
    tokenizer: Any
    task: Task
    accuracy: float
    rows: int
    described: dict[str, Any]

    @torch.no_grad()
    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[int]:
        """Return the class code of each text, read as a row of the training is."""
        place, found = next(self.model.parameters()).device, []
        frame = pd.DataFrame({self.task.text[0]: list(texts), self.task.label: 0})
        rows, collate = encode(frame, self.task, self.tokenizer), Collate(self.tokenizer, self.task)
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(place) for k, v in collate(rows[start:start + batch_size]).items() if k != "labels"}
            found += self.model(**batch).logits.argmax(dim=-1).tolist()
        return found


def train_classifier(task: str, backbone: str = "minilm-l6", profile: str | None = None, *,
                     method: Method | None = None, seed: int = 0, cache: bool = True, store: Store | None = None,
                     **training: Any) -> StyleClassifier:
    """Train a classifier of the classes of a task, or take the one that was kept.

    task, backbone, profile, seed, cache, training: as in `fit`.  method: LoRA of rank 8 where None.

    Raises:
        ValueError: something in the configuration is refused, or the task has no classes.
    """
    require_task(task)
    require(TASKS[task].kind == "classification", f"'{task}' is a {TASKS[task].kind} task; a judge of styles needs "
                                                  "one whose rows have a class")
    method = method or LoRA(r=8)
    run = fit(method, task, backbone, profile, seed, cache=cache, progress=False, store=store, keep_model=True,
              **training)
    assert run.trained is not None
    data = run.trained.data
    described = {"task": task, "backbone": str(backbone), "method": method.to_dict(), "seed": seed,
                 "training": run.config["training"], "source": data.source}
    return StyleClassifier(run.trained.model, run.trained.tokenizer, data.task, run.metrics["test"]["accuracy"],
                           len(data.validation if data.test is None else data.test), described)


def seen_here(stored: Taggers, asked: Rewrites) -> pd.DataFrame:
    """Return what the stored runs say, one statement a row, with its computed verdict: "holds" or "not seen"."""
    means = {arm: float(np.mean(values)) for arm, values in stored.values().items()}
    rival = max((arm for arm in means if arm != "autolora"), key=means.__getitem__)
    lead = np.array(stored.differences("autolora", rival))
    ranges = [float(np.ptp([np.mean(v) for v in stored.values(name).values()]))
              for name in ("entity_f1", "token_accuracy")]
    rows = [("methods differ more in entity F1 than in token accuracy", ranges[0] > ranges[1],
             f"range {ranges[0]:.3f} against {ranges[1]:.3f}"),
            ("AutoLoRA tags best, with every seed", bool((lead > 0).all()),
             f"{lead.mean():+.3f} beside {rival}, better in {(lead > 0).sum()} of {len(lead)} seeds")]
    rows += [_copying(asked), *(_tuning(asked, arm, *score) for arm in asked.arms if arm in TUNED
                                for score in (("accuracy", "transfer accuracy rises"),
                                              ("self_bleu", "more of the source stays")))]
    told = [(statement, "holds" if holds else "not seen", how) for statement, holds, how in rows]
    return pd.DataFrame(told, columns=["statement", "verdict", "measured"]).set_index("statement")


def _copying(asked: Rewrites) -> tuple[str, bool, str]:
    models = [arm for arm in asked.arms if arm not in (COPY, HUMAN)]
    pairs = [(asked.mean("bleu", way, COPY), max(asked.mean("bleu", way, arm) for arm in models))
             for way in asked.directions]
    return ("copying is nearer to the human rewrite (BLEU) than any model, in both directions",
            all(copied > best for copied, best in pairs),
            ", ".join(f"{copied:.2f} against {best:.2f}" for copied, best in pairs))


def _tuning(asked: Rewrites, arm: str, name: str, words: str) -> tuple[str, bool, str]:
    change = [asked.mean(name, way, arm) - asked.mean(name, way, PLAIN) for way in asked.directions]
    seeds = len(asked.values(name, asked.directions[0])[arm])
    return (f"{arm} on Alpaca, {words} in both directions", min(change) > 0,
            f"{', '.join(f'{x:+.2f}' for x in change)} ({seeds} seed{'s' * (seeds > 1)})")


def main() -> None:
    """Read the command line: how many seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    train(range(parser.parse_args().seeds), on_run=lambda *done: print(*done, flush=True))


if __name__ == "__main__":
    main()
