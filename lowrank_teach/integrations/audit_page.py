"""The page of an audit: one HTML file with its pictures inside, readable on a phone, in the light and in the dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..analysis import style
from .audit import Audit, MatrixReport

WRITTEN = 16    # up to so many layers a heatmap has its numbers in it
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --ground: #fff; --line: #ddd; --quiet: #666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --ground: #16181b; --line: #3a3d42; --quiet: #a5a8ad; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
       max-width: 62rem; padding: 1rem; }
h1, h2 { line-height: 1.2; } li { margin: 0.35rem 0; } .quiet, figcaption { color: var(--quiet); font-size: 0.9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 0.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""
# column of the table -> (field of a report, how it is written)
COLUMNS = {"matrix": ("path", "{}"), "d × k": ("", ""), "r": ("r", "{}"), "scale": ("scale", "{:.3g}"),
           "‖ΔW‖": ("norm", "{:.3g}"), "‖ΔW‖ / ‖W‖": ("share", "{:.2%}"), "cosine": ("cosine", "{:.4f}"),
           "effective rank": ("effective", "{:.1f}"), "stable rank": ("stable", "{:.1f}"),
           "rank for 90 %": ("rank_90", "{}"), "rank for 97 %": ("rank_97", "{}"), "dead": ("dead", "{}"),
           "intruders": ("intruders", "{}"), "in W's top": ("overlap", "{:.1%}"), "lost in bf16": ("lost", "{:.1%}")}


def pictures(found: Audit) -> dict[str, tuple[Figure, str]]:
    """Return name -> (figure, what is found in it): sizes, ranks, spectra; without matrices that are not finite."""
    sound = [one for one in found.reports if one.finite and one.norm > 0]
    if not sound:
        return {}
    known = [one for one in sound if one.share is not None]
    drawn = {}
    values, label = ({one: one.share for one in known}, "‖ΔW‖ / ‖W‖") if known else (
        {one: one.norm for one in sound}, "‖ΔW‖")
    most, least = max(values, key=lambda one: values[one] or 0.0), min(values, key=lambda one: values[one] or 0.0)
    drawn["sizes"] = _heatmap(values, label, "How much each matrix changed", log=True), (
        f"{most.path} changed most ({label} {values[most]:.3g}), {least.path} least ({values[least]:.3g}).")
    ranks = {one: one.effective for one in sound}
    middle = median(ranks.values())
    drawn["ranks"] = _heatmap(ranks, "effective rank", "How many directions carry the change"), (
        f"Half of the matrices have an effective rank of {middle:.1f} or less; their factors have rank "
        f"{min(one.r for one in sound)} to {max(one.r for one in sound)}.")
    needed = {one: float(one.rank_97) for one in sound}
    drawn["needed"] = _heatmap(needed, "rank", "The rank that keeps 97 % of the energy"), (
        f"{sum(needed.values()):,.0f} of {sum(one.r for one in sound):,} directions would be kept.")
    drawn["spectra"] = _spectra(sound), (
        "Singular values beside the largest of their matrix. A line that falls early has directions to spare.")
    return drawn


def _heatmap(values: Mapping[MatrixReport, float | None], label: str, title: str, *, log: bool = False) -> Figure:
    rows = list(dict.fromkeys(one.matrix for one in values))
    layers = sorted({one.layer for one in values}, key=lambda name: (not name.isdigit(), int(name) if name.isdigit()
                                                                     else 0))
    table = np.full((len(rows), len(layers)), np.nan)
    for one, value in values.items():
        table[rows.index(one.matrix), layers.index(one.layer)] = np.nan if value is None else value
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.34 * len(rows), None, width=style.WIDTH)
    seen = table[np.isfinite(table) & (table > 0)]
    spread = log and len(seen) > 0 and seen.max() > 20 * seen.min()
    look = {"norm": LogNorm(seen.min(), seen.max())} if spread else {"vmin": 0, "vmax": float(np.nanmax(table))}
    written = len(layers) <= WRITTEN
    digits = ".2g" if np.nanmax(table) < 10 else ".0f"
    mesh = style.heatmap(ax, table, rows, layers if len(layers) <= 32 else 4, annot=written, fmt=digits, size=8,
                         cmap="viridis", **look)
    style.dress(ax, "Layer", "", title)
    fig.colorbar(mesh, ax=ax, pad=0.02, label=label + (" (log)" if spread else ""))
    fig.set_label(f"{title}: a table of {len(rows)} matrices by {len(layers)} layers, coloured by {label}.")
    return fig


def _spectra(sound: Sequence[MatrixReport]) -> Figure:
    kinds = list(dict.fromkeys(one.matrix for one in sound))
    fig, axes = style.panels(len(kinds), min(4, len(kinds)), 1.9, None, width=style.WIDTH, sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        for one in sound:
            if one.matrix == kind:
                s = np.array(one.spectrum)
                ax.semilogy(np.arange(1, len(s) + 1), np.maximum(s / s[0], 1e-6), color=style.BLUE, alpha=0.5,
                            linewidth=1)
        style.dress(ax, "Direction", "", kind if len(kind) <= 26 else f"…{kind[-25:]}")
    axes[0].set_ylabel("σ / largest σ (log)")
    fig.set_label(f"{len(kinds)} panels, one a kind of matrix, each with one falling line a layer.")
    return fig


def page(found: Sequence[Audit]) -> str:
    """Return the whole page of one adapter or several."""
    names = ", ".join(one.name for one in found)
    body = "".join(_section(one, len(found) > 1) for one in found)
    comparison = _comparison(found) if len(found) > 1 else ""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>'
            f"Audit of {html.escape(names)}</title><style>{STYLE}</style></head>"
            f"<body><h1>What this adapter learned</h1>{comparison}{body}"
            '<p class="quiet">Made by <code>lowrank-teach audit</code>. Energy is the sum of the squared singular '
            "values of ΔW; the effective rank is exp of the entropy of the singular values divided by their sum; the "
            "stable rank is ‖ΔW‖² over the largest squared singular value.</p></body></html>\n")


def _section(found: Audit, several: bool) -> str:
    config = found.config
    facts = [f"{len(found.reports)} matrices", f"{found.parameters:,} numbers in the factors"]
    facts += [f"base {config['base_model_name_or_path']}"] if config.get("base_model_name_or_path") else []
    facts += [f"compared with the weights of {found.base}"] if found.base else ["without the base's weights"]
    advice = "".join(f"<li>{html.escape(one)}</li>" for one in found.advice)
    remarks = "".join(f'<p class="quiet">{html.escape(one)}</p>' for one in found.remarks)
    figures = "".join(
        f'<figure><img alt="{html.escape(str(figure.get_label()))}" src="data:image/png;base64,'
        f'{base64.b64encode(style.png_bytes(figure)).decode()}"><figcaption>{html.escape(says)}</figcaption></figure>'
        for figure, says in pictures(found).values())
    title = f"<h2>{html.escape(found.name)}</h2>" if several else f"<p><b>{html.escape(found.name)}</b></p>"
    return (f'{title}<p class="quiet">{html.escape("; ".join(facts))}.</p><ul>{advice}</ul>{remarks}{figures}'
            f"<h3>Every matrix</h3>{_table(found.reports)}")


def _table(reports: Sequence[MatrixReport]) -> str:
    shown = [name for name, (key, _) in COLUMNS.items()
             if not key or any(getattr(one, key) is not None for one in reports)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(one, name))}</td>" for name in shown) + "</tr>"
                    for one in reports)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(one: MatrixReport, column: str) -> str:
    key, form = COLUMNS[column]
    if not key:
        return f"{one.d} × {one.k}"
    value = getattr(one, key)
    return "–" if value is None or (not one.finite and key not in ("path", "r", "scale", "dead")) else (
        form.format(value))


def _comparison(found: Sequence[Audit]) -> str:
    columns = ("adapter", "matrices", "numbers", "‖ΔW‖, all", "effective rank, median")
    head = "".join(f"<th>{name}</th>" for name in columns)
    lines = []
    for one in found:
        sound = [report for report in one.reports if report.finite]
        size = float(np.sqrt(sum(report.norm ** 2 for report in sound)))
        ranks = [report.effective for report in sound]
        lines.append(f"<tr><td>{html.escape(one.name)}</td><td>{len(one.reports)}</td><td>{one.parameters:,}</td>"
                     f"<td>{size:.3g}</td><td>{median(ranks) if ranks else float('nan'):.1f}</td></tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def write(found: Sequence[Audit], folder: Path) -> list[Path]:
    """Write audit.html and the pictures of each adapter as PNG files, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "audit.html"]
    paths[0].write_text(page(found), encoding="utf-8")
    for one in found:
        for name, (figure, _) in pictures(one).items():
            paths.append(folder / f"{one.name}-{name}.png")
            paths[-1].write_bytes(style.png_bytes(figure))
    return paths
