"""The stored comparison of style transfer: a causal model asked to rewrite sentences, before and after Alpaca.

SaLoRA's setting (Hu et al. 2023, section 4.4 and Table 2) made small: SmolLM2-135M, some dozens of steps on cleaned
instructions with LoRA or SaLoRA, then Yelp sentences in both directions, asked without an example. Beside the models
stand two controls that no model is needed for: the source copied, and the human rewrite.

    python -m lowrank_teach.more_tasks style     # trains, writes and scores again
    rewrites.load()                              # what is stored, in figures/data
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .comparison import Comparison, made_on, read, write
from .config import fit_to_profile, train_config
from .course import references_folder
from .methods import LoRA, Method, SaLoRA
from .runs import machine

FILE, BACKBONE, PROFILE = "09_more_tasks_style.json", "smollm2-135m", "laptop"
LONGEST = 96   # tokens of an instruction with its answer: longer ones are left out, since cutting takes the question
TUNING: dict[str, Any] = {"steps": 60, "batch_size": 4, "max_length": 256, "lr": 1e-3, "n_train": 2000,
                          "n_validation": 8, "n_test": 8}
TUNED: dict[str, Method] = {"after LoRA": LoRA(r=8, sites="all"), "after SaLoRA": SaLoRA(r=8, eta_c=0.15)}
JUDGE: dict[str, Any] = {"backbone": "minilm-l6", "profile": "laptop", "steps": 400, "n_train": 6400, "n_test": 1000}
COPY, HUMAN, PLAIN, CHAT = "source copied", "human rewrite", "as it is", "as it is, chat form"
SENTENCES, NEW_TOKENS, SAMPLES = 40, 24, 6   # a direction; written at most; kept as text, the first and not the best


class Rewrites(Comparison):
    """What is stored: one record an arm, seed and direction: scores, hits (1: the wanted style), samples."""

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(record["direction"] for record in self.records))

    def values(self, name: str, direction: str) -> dict[str, list[float]]:
        """Arm -> one score of each seed, in one direction; arms without the score are left out."""
        found: dict[str, list[float]] = {}
        for r in sorted(self.records, key=lambda r: r["seed"]):
            if r["direction"] == direction and name in r["scores"]:
                found.setdefault(r["arm"], []).append(r["scores"][name])
        return {arm: found[arm] for arm in self.arms if arm in found}

    def mean(self, name: str, direction: str, arm: str) -> float:
        """One score of an arm, averaged over its seeds."""
        return float(np.mean(self.values(name, direction)[arm]))

    def points(self, direction: str, x: str = "self_bleu", y: str = "accuracy"
               ) -> dict[str, list[tuple[float, float]]]:
        """Arm -> (x, y) of each seed, for two scores."""
        across, up = self.values(x, direction), self.values(y, direction)
        return {arm: list(zip(across[arm], up[arm], strict=True)) for arm in across}

    def table(self, direction: str) -> pd.DataFrame:
        """One row an arm: seeds, and the mean of every score over them."""
        names = list(dict.fromkeys(name for r in self.records for name in r["scores"]))
        by_arm = {name: {arm: float(np.mean(v)) for arm, v in self.values(name, direction).items()} for name in names}
        frame = pd.DataFrame(by_arm, index=self.arms)
        frame = in_words(frame)
        frame.insert(0, "seeds", [len(v) for v in self.values("accuracy", direction).values()])
        return frame.rename_axis("arm")

    def samples(self, direction: str, seed: int = 0) -> pd.DataFrame:
        """The first sentences of the test rows: source, human rewrite, and what every arm wrote."""
        of = {r["arm"]: r for r in self.records if r["direction"] == direction and r["seed"] == seed}
        return pd.DataFrame({arm: of[arm]["samples"] for arm in self.arms})

    def accuracy_interval(self, arm: str, direction: str, level: float = 0.95) -> tuple[float, float]:
        """The middle `level` of the accuracy over resampled sentences, seeds averaged."""
        hits = np.mean([r["hits"] for r in self.records if r["arm"] == arm and r["direction"] == direction], axis=0)
        draws = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
        low, high = np.quantile(hits[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a = self.about
        return (f"stored rewrites: {a['backbone']}, {a['training']['steps']} steps of {a['training']['batch_size']} "
                f"instructions, {a['sentences']} sentences a direction; {made_on(a['machine'])}")


def in_words(scores: pd.DataFrame) -> pd.DataFrame:
    """A table of `score_transfer`'s numbers with names to read, which a narrow page can break: "self_bleu" becomes
    "self bleu", "perplexity.3-gram" "perplexity 3-gram"."""
    return scores.rename(columns=lambda name: name.replace("_", " ").replace(".", " ", 1))


def train(seeds: Iterable[int] = range(2), folder: Path | str | None = None, *, tuned: Mapping[str, Method] = TUNED,
          backbone: str = BACKBONE, sentences: int = SENTENCES, data: str = "yelp-transfer",
          judge: Mapping[str, Any] = JUDGE, on_arm: Callable[[str, int], None] | None = None,
          **training: Any) -> Rewrites:
    """Tune, rewrite and score; the file is written anew after each model.

    seeds: of the tuned arms; the others do not depend on any.
    """
    from .models import load_backbone
    from .style_transfer import TRANSFERS, load_transfer, train_classifier, transfer

    path, training = Path(folder or references_folder()) / FILE, {**TUNING, **training}
    frame, styles = load_transfer(data, n=sentences), TRANSFERS[data].classifier
    classifier = train_classifier(styles, **judge)
    model, tokenizer = load_backbone(backbone)
    judges = _language_models(styles, model, tokenizer, backbone)
    about = {"name": path.stem, "data": data, "backbone": backbone, "sentences": sentences, "new_tokens": NEW_TOKENS,
             "training": asdict(train_config(PROFILE, **training)), "longest": LONGEST,
             "tuned": {arm: fit_to_profile(method, PROFILE).to_dict() for arm, method in tuned.items()},
             "classifier": {**classifier.described, "accuracy": classifier.accuracy, "rows": classifier.rows},
             "machine": machine()}
    records: list[dict[str, Any]] = []

    def keep(arm: str, seed: int, written: pd.DataFrame, **more: Any) -> None:
        records.extend(_scored(arm, seed, written, classifier, judges, more))
        write(path, about, records)
        if on_arm is not None:
            on_arm(arm, seed)

    keep(COPY, 0, frame.assign(written=frame["source"]))
    if all(frame["references"].map(len)):
        keep(HUMAN, 0, frame.assign(written=[many[0] for many in frame["references"]]))
    for arm, prompt in ((PLAIN, "alpaca"), (CHAT, "chat")):
        keep(arm, 0, transfer(model, tokenizer, frame, prompt=prompt, max_new_tokens=NEW_TOKENS))
    for seed in seeds:
        for arm, method in tuned.items():
            found = _tuned(method, backbone, seed, training)
            written = transfer(found.model, found.tokenizer, frame, max_new_tokens=NEW_TOKENS)
            loss = [round(value, 4) for value in found.run.series("loss")[1]]
            keep(arm, seed, written, loss=loss, ranks=found.run.ranks,
                 parameters=found.run.parameters, seconds=found.run.seconds, notes=found.run.notes)
    return Rewrites(about, records)


def _tuned(method: Method, backbone: str, seed: int, training: Mapping[str, Any]) -> Any:
    from .tagger import trained

    return trained(method, "alpaca", backbone, PROFILE, seed, score=False, longest=LONGEST, **training)


def _language_models(styles: str, model: Any, tokenizer: Any, name: str) -> list[Any]:
    """Two judges of fluency: word groups counted in the style's own reviews, and the causal model before tuning."""
    from .style_transfer import CausalLM, NGram
    from .tasks import load_task

    reviews = load_task(styles).train
    return [NGram.from_texts(reviews["text"][:20_000]), CausalLM(model, tokenizer, name)]


def _scored(arm: str, seed: int, frame: pd.DataFrame, classifier: Any, judges: list[Any],
            more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record a direction."""
    from .style_transfer import score_transfer

    records = []
    for direction, part in frame.groupby("direction", sort=False):
        codes = classifier.predict(part["written"].tolist())
        hits = [int(bool(text) and code == want)
                for text, code, want in zip(part["written"], codes, part["wanted"], strict=True)]
        scores = {name: round(value, 5) for name, value in score_transfer(part, classifier, judges).items()}
        records.append({"arm": arm, "seed": seed, "direction": direction, "scores": scores, "hits": hits,
                        "samples": part["written"].head(SAMPLES).tolist(), **more})
    return records


def load(folder: Path | str | None = None) -> Rewrites:
    """What is stored.

    Raises:
        FileNotFoundError: it has not been made here.
    """
    path = Path(folder or references_folder()) / FILE
    return Rewrites(*read(path, f"{FILE} is not there; make it: python -m lowrank_teach.more_tasks style"))
