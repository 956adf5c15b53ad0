"""Notebook 10, the playground: all explorers on stored numbers, and every stored run in one picture.

The numbers come from stored records (figures/data) and, for the pictures of runs, from the run store of this machine,
too. A run's place is collection → arm → seed; nothing is trained. The explorers themselves stand in their chapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...analysis import plots, style
from ...analysis.statistics import smooth
from ...experiments.runs import Run, Store
from ...reproduction import arms as arms_module
from ...reproduction import rank_cuts, studies, texts, verdicts
from ..explorer import SNAPPED, Control, Picture
from ..training_button import train_now as train_now  # what the notebook's last section calls
from . import autolora, cola, delta_lora, generation, ledger, lora, ranks, salora, side_by_side

Curve = tuple[Sequence[float], Sequence[float]]
Arms = Mapping[str, Mapping[int, "Card"]]   # arm -> seed -> run

# what may be shown of the matrices, the first that tells them apart: name -> title over the cells
SHOWN = {"rank": "Rank kept", "turned": "Angle of W before and after, degrees", "effective_rank": "Effective rank",
         "norm": "Size of ΔW (Frobenius)"}

WIDE = 12   # layers beside each other; of more, the cells hold no numbers


@dataclass(frozen=True)
class Card:
    """What is shown of a run.

    about: method, task, backbone in words.  score: its name and value on the test rows.
    loss: means of ten steps.  sites: name of SHOWN -> site -> value.
    """

    about: str
    score: tuple[str, float]
    loss: Curve
    sites: Mapping[str, Mapping[str, float]]

    def matrices(self) -> tuple[str, Mapping[str, float]]:
        """Name and values by site of the first measure in which the matrices differ; a rank that is one for all
        tells nothing as long as there is something else."""
        there = {name: self.sites[name] for name in SHOWN if self.sites.get(name)}
        differ = [name for name, values in there.items() if len(set(values.values())) > 1]
        name = next(iter([*differ, *there]), "rank")
        return name, there.get(name, {})


def named(method: Mapping[str, Any]) -> str:
    """A stored method's display name."""
    name = str(method["method"])
    chain = f"-{method['chain']}" if method.get("chain", 1) > 1 else ""
    return str(style.METHOD_STYLE.get(name + chain, style.METHOD_STYLE.get(name, (name,)))[0])


def _sites(ranks: Mapping[str, float], by_site: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    turned = {site: float(np.degrees(np.arccos(min(1.0, cosine))))
              for site, cosine in by_site.get("cosine", {}).items()}
    return {"rank": ranks, "turned": turned, **{name: by_site.get(name, {}) for name in ("effective_rank", "norm")}}


def from_studies(names: Iterable[str] = tuple(arms_module.STUDIES)) -> dict[str, Arms]:
    """The stored studies, by name; those that have no file yet are left out."""
    found: dict[str, Arms] = {}
    for name in names:
        try:
            results = studies.load(name)
        except FileNotFoundError:
            continue
        where = f"{results.about['task']} with {results.about['backbone']}"
        arms: dict[str, dict[int, Card]] = {}
        for record in results.records:
            card = Card(f"{named(record['method'])} on {where}", next(iter(record["test"].items())),
                        record["series"]["loss"], _sites(record["ranks"], record["sites"]))
            arm = record["arm"] if record["arm"][0].isalpha() else f"{results.about['varies']} {record['arm']}"
            arms.setdefault(arm, {})[record["seed"]] = card
        found[f"study {name}"] = arms
    return found


def from_store(store: Store | None = None) -> Mapping[str, Arms]:
    """The runs of this machine's store, a collection for each task and backbone."""
    found: dict[str, dict[str, dict[int, Card]]] = {}
    for run in store or Store():
        c = run.config
        backbone = str(c["backbone"]).rpartition("/")[2]
        arms = found.setdefault(f"this machine's runs on {c['task']} with {backbone}", {})
        arm = f"{run.label}, r = {c['method'].get('r', '–')}, {c['training']['steps']} steps"
        arms.setdefault(arm, {})[c["seed"]] = _card(run, backbone)
    return found


def _card(run: Run, backbone: str) -> Card:
    known = set(run.history["name"])
    by_site = {name: run.by_site(name) for name in ("cosine", "effective_rank", "norm") if name in known}
    return Card(f"{named(run.config['method'])} on {run.config['task']} with {backbone}", run.score("test"),
                smooth(run.series("loss")), _sites(run.ranks, by_site))


class RunBrowser(Picture):
    """Choose a collection, an arm and a seed: the run's loss among its collection's, and its matrices.

    Args: collection -> arm -> seed -> run; None takes the stored studies and this machine's store. Without any
    run there is nothing to move, and the sentence says how to get one.
    """

    kind = SNAPPED
    height = 3.2

    def __init__(self, collections: Mapping[str, Arms] | None = None) -> None:
        found = {**from_studies(), **from_store()} if collections is None else collections
        self.collections = {name: {arm: dict(sorted(of.items())) for arm, of in arms.items() if of}
                            for name, arms in found.items() if any(arms.values())}
        groups = [list(arms.values()) for arms in self.collections.values()]
        most = {"collection": len(groups), "arm": max(map(len, groups), default=0),
                "seed": max((len(of) for arms in groups for of in arms), default=0)}
        self.controls = tuple(Control(name, f"{name} number", 0, count - 1, 0)
                              for name, count in most.items() if count > 1)
        self.cards = {name: [card for of in arms.values() for card in of.values()]
                      for name, arms in self.collections.items()}
        self.grids = {name: style.site_grid([card.matrices()[1] or {"0.q": 0.0} for card in cards])
                      for name, cards in self.cards.items()}
        self.shown = next(iter(self.collections), "")   # the collection whose axes are drawn
        super().__init__()

    def pick(self, **state: Any) -> tuple[str, str, int, Card]:
        """Names of collection and arm, seed and run at this state; a number above the last takes the last."""
        at: list[Any] = []
        there: Any = self.collections
        for name in ("collection", "arm", "seed"):
            at.append(list(there)[min(int(state.get(name, 0)), len(there) - 1)])
            there = there[at[-1]]
        return at[0], at[1], at[2], there

    def _counts(self, collection: str, arm: str) -> dict[str, int]:
        arms = self.collections[collection]
        return {"arm": len(arms), "seed": len(arms[arm])}

    def frame(self, **state: Any) -> np.ndarray:
        if self.collections and (there := self.pick(**state)[0]) != self.shown:
            self.shown = there
            self.draw(**state)
        return super().frame(**state)

    def build(self) -> list[Artist]:
        left, right = self.axes
        cards = self.cards.get(self.shown, [])
        self.others, = left.plot([], [], color=style.PALE, linewidth=0.8)
        self.line, = left.plot([], [], color=style.BLUE, linewidth=2)
        left.set_xmargin(0.02)
        losses = [np.asarray(card.loss[1], dtype=float) for card in cards] or [np.array([0.0, 1.0])]
        steps = [float(max(card.loss[0])) for card in cards] or [1.0]
        left.set(xlim=(0, 1.03 * max(steps)), ylim=(min(map(np.min, losses)) - 0.03, max(map(np.max, losses)) + 0.03))
        style.dress(left, "Optimizer step", "Training loss (mean of 10 steps)", " ")
        rows, layers = self.grids.get(self.shown, (["q"], ["0"]))
        right.add_patch(Rectangle((-0.5, -0.5), len(layers), len(rows), **plots.MISSING))
        self.image = right.imshow(np.full((len(rows), len(layers)), np.nan), cmap="cividis", vmin=0, vmax=1,
                                  aspect="auto")
        self.numbers = [right.text(j, i, "", ha="center", va="center", fontsize=9)
                        for i in range(len(rows)) for j in range(len(layers)) if len(layers) <= WIDE]
        style.dress(right, "Layer (hatched: nothing on this matrix)", "Matrix", " ")
        right.grid(False)
        style.layer_ticks(right, layers)
        right.set_yticks(range(len(rows)), [style.site_label(m) for m in rows])
        return [self.others, self.line, self.image, *self.numbers, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        if not self.collections:
            return {"others": ([], []), "line": ([], []), "table": np.full((1, 1), np.nan),
                    "titles": ("no run", "no run")}
        collection, arm, seed, card = self.pick(**state)
        beside = [one.loss for of in self.collections[collection].values() for one in of.values()]
        others = tuple(np.concatenate([[*curve[axis], np.nan] for curve in beside]) for axis in (0, 1))
        name, values = card.matrices()
        title = SHOWN[name] if values else "nothing kept by matrix"
        if values and len(self.grids[collection][1]) > WIDE:
            title += f" (yellow: {max(values.values()):.3g})"
        return {"others": others, "line": card.loss, "table": style.site_table(values, *self.grids[collection]),
                "titles": (f"blue: {shorten(arm, 40, placeholder=' …')}, seed {seed}", title)}

    def update(self, arrays: dict[str, Any]) -> None:
        self.others.set_data(*arrays["others"])
        self.line.set_data(*arrays["line"])
        table = arrays["table"]
        top = float(np.nanmax(table)) if np.isfinite(table).any() else 1.0
        self.image.set_data(np.ma.masked_invalid(table / (top or 1.0)))
        for text, value in zip(self.numbers, table.ravel(), strict=False):   # none where the cells are too narrow
            known = bool(np.isfinite(value))
            text.set_text(f"{value:.3g}" if known else "")
            text.set_color(style.text_color(tuple(self.image.to_rgba(value / (top or 1.0)))) if known else "black")
        for ax, title in zip(self.axes, arrays["titles"], strict=True):
            ax.set_title(title, fontsize=10)

    def words(self, **state: Any) -> str:
        if not self.collections:
            return ("No run is stored here yet: train one with lt.fit, with the button below, or a study with "
                    "studies.train('chain'), and make this picture again.")
        collection, arm, seed, card = self.pick(**state)
        arms = self.collections[collection]
        metric, score = card.score
        missing = [f"{name} {int(state[name])}" for name, count in self._counts(collection, arm).items()
                   if state.get(name, 0) >= count]
        instead = f"There is no {' and no '.join(missing)} here, so the last is shown. " if missing else ""
        peers = sorted((one.score[1] for of in arms.values() for one in of.values()), reverse=True)
        return (f"{instead}{collection[0].upper()}{collection[1:]}, {arm}, seed {seed}: {card.about}; test "
                f"{metric} {score:.3f}, place {peers.index(score) + 1} of {len(peers)} in this collection; its loss "
                f"ends at {card.loss[1][-1]:.3f}.")


# ---- all explorers of the course ----------------------------------------------------------------------------


def explorers() -> dict[str, Callable[[], Picture]]:
    """Return name -> how the explorer is made on stored numbers; 10, the site and the benchmark show them so."""
    stored = rank_cuts.load_explorer_data()
    return {
        "RankOfAPicture": lora.RankOfAPicture,
        "CutNetwork": lambda: ranks.CutNetwork(stored.parts, stored.cut_scores, stored.cut_halves, "test accuracy",
                                               block=rank_cuts.BLOCK),
        "Truncation": lambda: lora.Truncation(stored.factors),
        "RankAlpha": lambda: lora.RankAlpha(stored.curves, stored.losses, "validation loss"),
        "ColaChain": cola.ColaChain,
        "MovingKnots": cola.MovingKnots,
        "HardConcreteGate": salora.HardConcreteGate,
        "SaloraBudget": lambda: salora.SaloraBudget(stored.log_theta, stored.sizes, stored.stretch),
        "SaloraRuns": _salora_runs,
        "DeltaTrajectory": delta_lora.DeltaTrajectory,
        "RankThreshold": lambda: autolora.RankThreshold(stored.alphas),
        "BestOfGrid": side_by_side.BestOfGrid,
        "HowManyInputs": _how_many_inputs,
        "RunBrowser": lambda: RunBrowser(from_studies())}


def about_stored() -> str:
    """Say how the numbers were made that some explorers need of a trained network."""
    return rank_cuts.load_explorer_data().line()


def _salora_runs() -> Picture:
    stored = studies.load("salora_b")
    density, lam = ({float(arm): stored.series(arm, name) for arm in stored.arms} for name in ("density", "lambda"))
    return salora.SaloraRuns(density, lam, {float(arm): s for arm, s in stored.values().items()}, "test accuracy")


def _how_many_inputs() -> Picture:
    stored = texts.load_texts("e2e")
    return generation.HowManyInputs(stored, [arm for arm in stored.arms if arm != "not trained"])


# ---- two methods at once: the stored study of compositions --------------------------------------------------

COMPOSED = "COLA + SaLoRA"
OUTCOMES = {"supported": "wins against", "contradicted": "loses against", "open": "cannot be told apart from"}


def finding_of_links() -> str:
    """Say where the study comes from, and which density the gates of each link have reached and kept.

    Raises:
        AssertionError: a link has missed its budget.
    """
    pairs = studies.load("composition")
    steps, density = pairs.series(COMPOSED, "density")
    _, kept = pairs.series(COMPOSED, "kept_density")
    lines = [pairs.line()]
    for link, last in enumerate([len(steps) // 2 - 1, len(steps) - 1], 1):
        lines.append(f"link {link}, seed 0: density {density[last]:.2f}, kept {kept[last]:.0%}")
        assert abs(density[last] - 0.5) < 0.1, "a link of the stored study has missed its budget"
    return "\n".join(lines)


def _comparisons() -> dict[str, verdicts.Evidence]:
    pairs = studies.load("composition")
    return {arm: verdicts.Evidence([100 * d for d in pairs.differences(COMPOSED, arm)])
            for arm in pairs.arms if arm != COMPOSED}


def composition_figure() -> Figure:
    """Draw the differences between the composition and each other configuration, with their intervals."""
    found = _comparisons()
    estimates = {arm: evidence.estimate() for arm, evidence in found.items()}
    fig = ledger.forest(
        [f"{COMPOSED} above {arm}" for arm in found], [evidence.differences for evidence in found.values()],
        [estimate.interval() for estimate in estimates.values()],
        [verdicts.verdict(estimate, ">") for estimate in estimates.values()], [">"] * len(found),
        "difference of test accuracy, points")
    fig.set_label(f"A forest plot of {len(found)} rows: the composition against {', '.join(found)}, each with a dot "
                  "a seed and a bar beside a vertical line at zero.")
    return fig


def finding_of_composition() -> str:
    """Say against which configurations the composition wins or loses."""
    said = []
    for arm, evidence in _comparisons().items():
        estimate = evidence.estimate()
        low, high = estimate.interval()
        word = OUTCOMES[verdicts.verdict(estimate, ">")]
        said.append(f"The composition {word} {arm}: {np.mean(evidence.differences):+.1f} points "
                    f"[{low:+.1f}, {high:+.1f}].")
    return " ".join([*said, "Dots are seeds, bars are intervals of 95 %; right of zero the composition is ahead."])
