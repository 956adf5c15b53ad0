"""Pictures: what was put in is drawn, at its place; readable, reproducible, without torch or a figure of pyplot's."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from lowrank_teach.analysis import plots, style

g = np.random.default_rng(0)
STEPS = np.arange(0, 300, 10)
SITES = [f"{layer}.{matrix}" for layer in range(6) for matrix in ("q", "v")]
ALPHA = np.exp(g.standard_normal((30, 8)))
ALPHA /= ALPHA.sum(1, keepdims=True)


def all_figures() -> dict[str, Figure]:
    ranks = {site: int(g.integers(0, 9)) for site in SITES}
    fall = np.linspace(1, 0.01, 30)
    return {
        "rank_heatmap": plots.rank_heatmap(ranks, max_rank=8, title="t"),
        "rank_heatmaps": plots.rank_heatmaps({"a": ranks, "b": {"1.q": 2}}, max_rank=8, title="t"),
        "density": plots.density_and_lambda(STEPS, fall, 1 - fall, fall, fall, target=0.5, window=(50, 200),
                                            title="t"),
        "cosine": plots.cosine_by_layer({name: dict.fromkeys(SITES, 0.99) for name in ("lora", "salora")},
                                        title="t"),
        "cosine_log": plots.cosine_by_layer({"lora": dict.fromkeys(SITES, 0.99)}, one_minus=True, title="t"),
        "chain": plots.chain_length({"RTE": {1: [1, 2, 3], 2: [2, 3, 4]}}, ylabel="Accuracy (%)", title="t"),
        "spectra": plots.spectra({"lora": [3, 1], "full": [4, 2, 1]},
                                 energy={"lora": [0.9, 1], "full": [0.8, 0.9, 1]}, title="t"),
        "learning": plots.learning_curves({"cola-2": (STEPS, fall)}, knots=[100], title="t"),
        "alpha": plots.alpha_over_time(STEPS, {"0.q": ALPHA, "1.q": ALPHA}, 1 / 8, title="t"),
        "gates": plots.gate_bars({"0.q": [0, 0.5, 1]}, title="t"),
        "pareto": plots.pareto({"lora": (10, 80, 0.5), "full": (1000, 81, 0)}, xlabel="Parameters",
                               ylabel="Accuracy (%)", log_x=True, title="t"),
    }


FIGURES = all_figures()


def png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=style.DPI)
    return buffer.getvalue()


def labels(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()] if fig.legends else []


# ---- every picture ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_named_and_drawn_and_nothing_is_small_cut_off_or_empty(name):
    fig = FIGURES[name]
    assert fig.get_suptitle() == "t"
    assert png(fig).startswith(b"\x89PNG")
    for ax in fig.axes:
        assert ax.get_ylabel()
        assert ax.get_xlabel() or ax.get_label() == "<colorbar>"
    if not name.startswith("rank"):
        assert labels(fig)
    assert style.empty_panels(fig) == []
    width, height = fig.get_size_inches()
    assert width * style.DPI <= 1000
    drawn = fig.get_tightbbox()                                            # inches, all that is visible
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height
    assert min(text.get_fontsize() for text in fig.findobj(Text) if text.get_text()) >= 8


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_long_legend_stays_inside(count):
    names = list(style.METHOD_STYLE)[:count]
    fig = plots.pareto({name: (i + 1, 80 + i, 0.5) for i, name in enumerate(names)}, xlabel="x", ylabel="y")
    png(fig)
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= fig.bbox.width


def test_pyplot_and_a_readers_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    all_figures()
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


# ---- colours and styles -----------------------------------------------------------------------------------


def test_the_palette_is_seaborns():
    from matplotlib.style import library

    assert library["seaborn-v0_8-colorblind"]["axes.prop_cycle"].by_key()["color"] == list(style.COLORS)


def test_names_differ_in_colour_and_style_and_methods_in_marker():
    pairs = [entry[1:3] for entry in style.METHOD_STYLE.values()]
    assert len(set(pairs)) == len(pairs)
    assert len({entry[3] for entry in style.METHOD_STYLE.values()}) == len(pairs)
    found = style.looks([*style.METHOD_STYLE, *(f"task {i}" for i in range(12))]).values()
    assert len({(look["color"], look["linestyle"]) for look in found}) == len(pairs) + 12
    assert style.YELLOW not in {look["color"] for look in found}
    first = list(style.looks(["a", "b", "c", "d"]).values())
    assert len({look["color"] for look in first}) == len({look["linestyle"] for look in first}) == 4


def test_methods_look_the_same_wherever_they_stand():
    assert style.looks(["lora"])["lora"] == style.looks(["x", "full", "lora"])["lora"]


def contrast(a: str, b: np.ndarray) -> float:
    def luminance(rgb):
        rgb = np.asarray(rgb[:3], dtype=float)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(colors.to_rgb(a)), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_annotations_contrast_with_every_colour_of_the_map():
    for rgba in matplotlib.colormaps["cividis"](np.linspace(0, 1, 256)):
        assert contrast(style.text_color(rgba), rgba) >= 4.5


# ---- heatmaps ---------------------------------------------------------------------------------------------


def test_heatmap_places_and_writes_every_rank():
    ranks = {"2.up": 5, "0.q": 0, "0.v": 3, "2.q": 8, "1.v": 1}
    fig = plots.rank_heatmap(ranks, max_rank=8)
    ax = fig.axes[0]
    mesh, = ax.collections
    expected = [[0, np.nan, 8], [3, 1, np.nan], [np.nan, np.nan, 5]]       # q, v, up by layers 0, 1, 2
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), expected)
    assert mesh.get_clim() == (0, 8)
    assert ax.yaxis_inverted()                                             # the first row is on top
    np.testing.assert_allclose(ax.get_xticks(), [0.5, 1.5, 2.5])           # in the middle of a cell
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == [style.site_label(m) for m in ("q", "v", "up")]
    written = {tuple(int(at) for at in text.get_position())[::-1]: text.get_text() for text in ax.texts}
    assert written == {(i, j): f"{v:.0f}" for (i, j), v in np.ndenumerate(expected) if not np.isnan(v)}
    for text in ax.texts:
        rgba = mesh.to_rgba(float(text.get_text()))
        assert contrast(text.get_color(), rgba) >= 4.5


def test_what_is_not_adapted_is_hatched_not_zero():
    fig = plots.rank_heatmap({"0.q": 0, "2.q": 4}, max_rank=8)
    mesh, = fig.axes[0].collections
    np.testing.assert_array_equal(np.ma.getmaskarray(mesh.get_array()), [[False, True, False]])   # layer 1 only
    assert fig.axes[0].patch.get_hatch()                                   # what is seen there
    assert labels(fig) == ["not adapted"]
    assert [t.get_text() for t in fig.axes[0].texts] == ["0", "4"]
    assert not plots.rank_heatmap({"0.q": 0, "1.q": 4}, max_rank=8).legends


def test_heatmaps_share_rows_scale_and_order():
    fig = plots.rank_heatmaps({"q only": {"0.q": 1, "1.q": 2}, "mean": {"0.q": 1.5, "0.v": 4.0}}, max_rank=4)
    first, second = fig.axes[:2]
    assert (first.get_title(), second.get_title()) == ("q only", "mean")
    (one,), (other,) = first.collections, second.collections
    assert one.get_array().shape == other.get_array().shape == (2, 2)
    assert one.get_clim() == other.get_clim() == (0, 4)
    assert [t.get_text() for t in second.texts] == ["1.5", "4.0"]


def test_heatmap_refuses_a_rank_off_the_scale():
    with pytest.raises(ValueError, match="rank 9"):
        plots.rank_heatmap({"0.q": 9}, max_rank=8)


def test_sites_of_two_stacks_and_module_paths():
    rows, layers = style.site_grid([{"enc.1.up": 1, "enc.0.q": 1, "dec.0.q": 1, "pooler": 1, "head.proj": 1}])
    assert rows == ["q", "up", "pooler", "proj"]
    assert layers == ["enc.0", "enc.1", "dec.0", "", "head"]
    table = style.site_table({"enc.1.up": 3, "pooler": 4}, rows, layers)
    assert table[1, 1] == 3
    assert table[2, 3] == 4
    assert np.isnan(table).sum() == table.size - 2


def test_rows_stand_in_the_order_of_the_sites_module():
    sites = pytest.importorskip("lowrank_teach.sites")
    assert style.MATRICES == sites.LETTERS


# ---- curves -----------------------------------------------------------------------------------------------


def test_density_draws_target_window_and_penalty():
    density, lam = np.linspace(0.9, 0.5, 30), np.linspace(0, 2, 30)
    fig = plots.density_and_lambda(STEPS, density, lam, density, 2 * density, target=0.5, window=(20, 280))
    top, multiplier, orth, cost = fig.axes
    np.testing.assert_allclose(top.lines[0].get_ydata(), density)
    np.testing.assert_allclose(top.lines[1].get_ydata(), 0.5)
    np.testing.assert_allclose(multiplier.lines[0].get_ydata(), lam)
    assert (orth.get_yscale(), len(orth.lines)) == ("log", 2)
    np.testing.assert_allclose(orth.lines[1].get_ydata(), 2 * density)
    np.testing.assert_allclose(cost.lines[0].get_ydata(), lam * (density - 0.5) ** 2)
    for ax in fig.axes:
        (shade,) = ax.patches
        assert (shade.get_x(), shade.get_width()) == (20, 260)
    given = plots.density_and_lambda(STEPS, density, lam, density, density, target=0.5, window=(0, 1),
                                     penalty=lam)
    np.testing.assert_allclose(given.axes[3].lines[0].get_ydata(), lam)


def test_cosine_has_a_panel_a_matrix_and_a_gap_where_a_site_is_missing():
    values = {"lora": {"0.q": 0.9, "2.q": 0.8, "0.v": 0.7}, "delta_lora": {"1.q": 0.5}}
    fig = plots.cosine_by_layer(values)
    assert [ax.get_title() for ax in fig.axes] == [style.site_label("q"), style.site_label("v")]
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_ydata(), [0.9, np.nan, 0.8])
    assert labels(fig) == ["LoRA", "Delta-LoRA"]
    assert "zoomed" in fig.axes[0].get_ylabel()


def test_one_minus_cosine_says_what_did_not_move():
    fig = plots.cosine_by_layer({"lora": {"0.q": 0.99, "1.q": 1.0}, "head": {"0.q": 1.0, "1.q": 1.0}},
                                one_minus=True)
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [0.01, np.nan])
    assert fig.axes[0].get_yscale() == "log"
    assert labels(fig) == ["LoRA", "head only (did not move)"]


@pytest.mark.parametrize(("band", "expected"), [("std", (1.0, 3.0)), ("range", (1.0, 3.0))])
def test_chain_length_bands_need_three_seeds(band, expected):
    fig = plots.chain_length({"cola": {1: [1, 2, 3], 2: [1, 2, 3], 3: [5, 6]}}, ylabel="Score", band=band)
    ax = fig.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 2, 5.5])
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 0].max() == 2                                         # two seeds: no band at 3
    assert (corners[:, 1].min(), corners[:, 1].max()) == expected
    dots, = (line for line in ax.lines if line.get_marker() == ".")
    assert list(dots.get_ydata()) == [1, 2, 3, 1, 2, 3, 5, 6]               # every seed is shown
    assert list(ax.get_xticks()) == [1, 2, 3]
    with pytest.raises(ValueError, match="band"):
        plots.chain_length({}, ylabel="", band="sem")


def test_spectra_hide_zeros_and_count_from_one():
    fig = plots.spectra({"lora": [2.0, 1.0, 0.0]}, energy={"lora": [0.8, 1.0, 1.0]})
    left, right = fig.axes
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [2, 1, np.nan])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.8, 1, 1])
    assert (left.get_yscale(), right.get_yscale(), left.get_xscale()) == ("log", "linear", "linear")
    assert len(plots.spectra({"lora": [1.0]}).axes) == 1
    assert plots.spectra({"full": np.ones(384)}).axes[0].get_xscale() == "log"


def test_learning_curves_knots_and_reference():
    y = np.ones(30)
    fig = plots.learning_curves({"lora": (STEPS, y), "cola-3": (STEPS, 2 * y)}, knots=(100, 200),
                                reference={"seed 0": (STEPS, 3 * y), "seed 1": (STEPS, 4 * y)})
    lines = fig.axes[0].lines
    knots = [line for line in lines if line.get_label() == "knot"]
    stored = [line for line in lines if line.get_label() == "stored reference run"]
    own = [line for line in lines if line not in [*knots, *stored]]
    assert [line.get_xdata()[0] for line in knots] == [100, 200]
    assert {line.get_linestyle() for line in knots} == {"--"}
    assert (len(stored), len(own)) == (2, 2)
    assert max(line.get_zorder() for line in stored) < min(line.get_zorder() for line in own)
    assert labels(fig) == ["stored reference run", "knot", "LoRA", "COLA, chain of 3"]


def test_alpha_counts_what_is_kept():
    alpha = np.full((5, 4), 0.25)
    alpha[-1] = [0.4, 0.3, 0.2, 0.1]
    fig = plots.alpha_over_time(range(5), {"3.q": alpha, "3.v": np.full((5, 4), 0.25) - 1e-9}, 0.25)
    assert fig.axes[0].get_title().endswith("rank 2")
    assert fig.axes[1].get_title().endswith("rank 4")                       # round-off at the equal start
    assert [line.get_linestyle() for line in fig.axes[0].lines[:4]] == ["-", "-", "--", "--"]
    np.testing.assert_array_equal(fig.axes[0].lines[2].get_ydata(), alpha[:, 2])
    assert set(labels(fig)) == {"kept", "dropped", "threshold 0.25"}


def test_gate_bars_mark_exact_zeros():
    fig = plots.gate_bars({"3.q": [0.0, 0.5, 1e-9], "4.up": [1.0, 1.0, 1.0]})
    first, second = fig.axes
    assert [bar.get_height() for bar in first.patches] == [0.0, 0.5, 1e-9]
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [1])
    assert first.get_title().endswith("2 of 3 open")
    assert len(second.lines[0].get_xdata()) == 0


def test_pareto_front_and_error_bars():
    points = {"head": (1, 70, 0.5), "lora": (10, 80, 1.0), "worse": (20, 75, 0.1), "full": (100, 81, 0.0)}
    fig = plots.pareto(points, xlabel="Parameters", ylabel="Accuracy (%)", log_x=True)
    front = fig.axes[0].lines[0]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(1, 70), (10, 80), (100, 81)]
    assert len(fig.axes[0].containers) == 4
    assert fig.axes[0].get_xscale() == "log"
    assert set(labels(fig)) == {"not beaten in both", "head only", "LoRA", "worse", "full fine-tuning"}


def test_a_row_of_seeds_shows_each_their_mean_and_their_spread():
    _, (ax,) = style.panels(1, 1, 2.0, None)
    style.seed_strip(ax, {"two": [1.0, 3.0], "three": [1.0, 2.0, 3.0]}, errorbar=style.spread)
    assert [dots.get_offsets().tolist() for dots in ax.collections] == [[[1, 0], [3, 0]], [[1, 1], [2, 1], [3, 1]]]
    means, *bars = ax.lines
    np.testing.assert_allclose(means.get_xydata(), [[2, 0], [2, 1]])
    found = [bar.get_xdata() for bar in bars if np.isfinite(bar.get_xdata()).any()]
    assert [(min(x), max(x)) for x in found] == [(1, 3)]                    # two seeds have none


# ---- into a file, into a notebook -------------------------------------------------------------------------


def test_save_gives_the_same_bytes_again(tmp_path):
    made = []
    for folder in ("a", "b"):
        paths = style.save(plots.gate_bars({"0.q": [0, 0.5, 1]}), tmp_path / folder / "gates", svg=True)
        assert [path.name for path in paths] == ["gates.png", "gates.svg"]
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]
    assert b"<dc:date>" not in made[0][1]
    assert style.save(FIGURES["gates"], tmp_path / "v1.2") == [tmp_path / "v1.2.png"]
    assert style.save(FIGURES["gates"], str(tmp_path / "x.png")) == [tmp_path / "x.png"]
    assert not (tmp_path / "x.svg").exists()


def test_nothing_in_a_caption_is_markup():
    captions = ('<b>&"', "a _b_ of W_q and *c*", "`code` [link](x) <img src=x> \\", "one\n\n# two",
                "P(g > 0) & 1 < 2")
    for caption in captions:
        bundle = style.caption_bundle(caption)
        inline, = [token for token in MarkdownIt().parse(bundle["text/markdown"]) if token.type == "inline"]
        kinds = {token.type for token in inline.children}
        assert kinds <= {"em_open", "em_close", "text", "text_special"}, caption
        shown = "".join(token.content for token in inline.children)
        assert shown == " ".join(caption.split()).replace("*", "∗")
        assert bundle["text/plain"] == caption


def test_show_puts_caption_and_alt_text(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", lambda data, raw, metadata=None: shown.append((data, metadata)))
    style.show(FIGURES["gates"], "Look at the zeros", 'Bars of "g"')
    (image, metadata), (caption, _) = shown
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert "text/html" not in image                                   # repository pages strip images inside HTML
    assert metadata["image/png"] == {"alt": 'Bars of "g"', "width": 990}
    assert image["text/plain"] == 'Bars of "g"'
    assert caption == {"text/markdown": "*Look at the zeros*", "text/plain": "Look at the zeros"}
    with pytest.raises(ValueError, match="alt text"):
        style.show(FIGURES["gates"], "caption", " ")


@pytest.mark.parametrize("values", [[], [float("nan")] * 3])
def test_an_empty_panel_is_refused(values):
    """Lines, bars or a heatmap without a number."""
    fig, (full, empty) = style.panels(2, 2, 2.0, None)
    full.plot([1, 2, 3], [1, 2, 3])
    empty.plot(range(len(values)), values)
    empty.axhline(0.5)
    empty.set_title("a title is not data")
    assert style.empty_panels(fig) == [2]
    with pytest.raises(ValueError, match="nothing is drawn in panel 2"):
        style.show(fig, "a caption", "an alt text")
    fig, (ax,) = style.panels(1, 1, 2.0, None)
    ax.bar([0, 1], [float("nan")] * 2)
    assert style.empty_panels(fig) == [1]
    ax.bar([0], [1.0])
    assert style.empty_panels(fig) == []
    fig, (ax,) = style.panels(1, 1, 2.0, None)
    style.heatmap(ax, np.array([[np.nan]]), vmin=0, vmax=1)
    assert style.empty_panels(fig) == [1]
