"""The course as a static site: complete, readable without any network, its links whole; looked at in a browser.

Built once from what is committed. The last test opens every page in headless Chromium at two widths, light and
dark; it is skipped where there is no Chromium.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import run_notebooks
from packaging.requirements import Requirement
from test_browser import BROWSER, FLAGS

from lowrank_teach.course.chapters.playground import explorers
from lowrank_teach.course.contents import NOTEBOOKS as COURSE
from lowrank_teach.reproduction import ledger

for package in ("myst_nb", "furo", "math_core", "ziamath"):
    pytest.importorskip(package, reason='the book is not installed: pip install "lowrank-teach[book]"')
BeautifulSoup = pytest.importorskip("bs4").BeautifulSoup    # comes with the theme

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
HERE = [name for name in COURSE if (FOLDER / f"{name}.ipynb").exists()]
BESIDE = [name for name in ("GLOSSARY", "INSTRUCTOR") if (FOLDER / f"{name}.md").exists()]
PAGES = [path.relative_to(ROOT).with_suffix("").as_posix()
         for path in sorted((FOLDER / "site" / "pages").glob("*.md"))]
REMOTE = re.compile(r"^\s*(?:\w+:)?//|^\s*(?:https?|wss?|ftp):", re.IGNORECASE)
LOADS = {"script": "src", "img": "src", "iframe": "src", "embed": "src", "object": "data", "source": "src",
         "video": "src", "audio": "src", "use": "href", "image": "href", "link": "href"}
MACHINE = re.compile(r"/(?:root|home|Users|tmp|work)/")


def build(out: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "notebooks" / "site" / "build.py"), "--out", str(out),
                           *options], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("book")
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict:
    """Every built page by its place, parsed."""
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for path in sorted(site.rglob("*.html"))}


def stored(name: str) -> list:
    """The outputs of a notebook's code cells, in order."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def test_every_notebook_is_a_page_in_the_order_of_the_course(pages):
    listed = [link["href"] for link in pages["index.html"].select(".sidebar-tree a.reference")]
    in_order = [f"notebooks/{name}.html" for name in [*HERE, *BESIDE]]
    assert listed[:len(in_order)] == in_order
    assert sorted(listed[len(in_order):]) == sorted(f"{name}.html" for name in [*PAGES, "CONTRIBUTING"])
    for name in HERE:
        page = pages[f"notebooks/{name}.html"]
        assert len(page.select("article h1")) == 1
        assert page.select_one("article h1").get_text().startswith(name[:2])
        cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        assert len(page.select(".cell")) == sum(cell.cell_type == "code" for cell in cells)


def test_the_first_page_maps_the_course(pages, site):
    """A card a notebook: its picture, its question, its minutes."""
    cards = pages["index.html"].select("a.card")
    assert [(card["href"], card.b.get_text(), card.span.get_text()) for card in cards] == [
        (f"notebooks/{name}.html", name, question) for name, question in COURSE.items()]
    assert all((site / card.img["src"]).is_file() and "min of computing" in card.small.get_text() for card in cards)


def test_the_whole_readme_is_there_and_leads_to_the_pages(pages):
    """The first page has every section; it links to each page, and each page back to it."""
    made = [plain(heading.get_text().rstrip("¶")) for heading in pages["index.html"].select("h2")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made == [plain(title) for title in re.findall(r"^## (.+)$", readme, re.MULTILINE)]
    linked = {link["href"].partition("#")[0] for link in pages["index.html"].select("article a[href]")}
    assert {f"{name}.html" for name in PAGES} <= linked
    for name in PAGES:
        links = {link["href"].partition("#")[0] for link in pages[f"{name}.html"].select("article a[href]")}
        assert "../../../index.html" in links, name


def test_nothing_is_loaded_from_a_network(site, pages):
    """Scripts, styles, fonts and pictures lie beside the pages; links that a person may follow are another matter."""
    found = [(name, tag[LOADS[tag.name]]) for name, page in pages.items() for tag in page(list(LOADS))
             if REMOTE.match(tag.get(LOADS[tag.name], "")) and tag.get("rel") != ["canonical"]]
    assert found == []
    styles = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    styles |= {name: "".join(style.get_text() for style in page("style")) for name, page in pages.items()}
    addresses = {(name, address) for name, text in styles.items()
                 for address in re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)}
    assert ("book.css", "STIXTwoMath-Regular.ttf") in addresses
    assert [address for _, address in addresses if REMOTE.match(address)] == []
    assert REMOTE.match("//host/x.js")
    assert REMOTE.match("https://host/x.js")
    assert not REMOTE.match("../_static/x.js")


def test_every_link_leads_somewhere(site, pages):
    wrong, checked = [], 0
    anchors = {name: {tag["id"] for tag in page(id=True)} for name, page in pages.items()}
    for name, page in pages.items():
        for tag in page(lambda tag: tag.get("href") or tag.get("src")):
            address = tag.get("href") or tag["src"]
            if re.match(r"[a-z]+:", address):
                continue
            target, anchor = urldefrag(unquote(address).partition("?")[0])
            path = (site / name).parent.joinpath(target).resolve() if target else site / name
            checked += 1
            if not path.is_file() or not path.is_relative_to(site):
                wrong.append(f"{name}: {address}")
            elif anchor and path.suffix == ".html" and anchor not in anchors[path.relative_to(site).as_posix()]:
                wrong.append(f"{name}: no place {address}")
    assert wrong == []
    assert checked > 100


def test_a_notebook_named_in_a_text_is_a_link(pages):
    for name in HERE:
        for code in pages[f"notebooks/{name}.html"].select("article p code, article li code"):
            if code.get_text() in HERE and code.get_text() != name:
                assert code.find_parent("a")["href"] == f"{code.get_text()}.html"


@pytest.mark.parametrize("name", HERE)
def test_figures_keep_alt_text_and_caption(pages, name):
    figures = pages[f"notebooks/{name}.html"].select("article figure")
    outputs = stored(name)
    pictures = [i for i, output in enumerate(outputs) if "image/png" in output.get("data", {})]
    assert [plain(figure.img["alt"]) for figure in figures] == [
        plain(outputs[i].metadata["image/png"]["alt"]) for i in pictures]
    for figure, i in zip(figures, pictures, strict=True):
        words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\$[^$]*\$", "", outputs[i + 1].data["text/markdown"]))
        shown = figure.figcaption.get_text()
        assert words
        assert all(word in shown for word in words)


def test_every_picture_has_an_alt_text(pages):
    assert [(name, image["src"]) for name, page in pages.items() for image in page("img")
            if len(image.get("alt", "").split()) < 4] == []


@pytest.mark.parametrize("name", HERE)
def test_answers_can_be_opened_and_sliders_are_replaced(pages, name):
    page, outputs = pages[f"notebooks/{name}.html"], stored(name)
    hidden = sum("".join(output.get("data", {}).get("text/html", "")).count("<details") for output in outputs)
    assert len(page.select("article details > summary")) == hidden
    sliders = [output for output in outputs
               if output.get("data", {}).get("text/plain") == run_notebooks.IN_PLACE_OF_A_WIDGET]
    alive, lines = page.select(".frames"), page.select(".slider-here")
    assert len(alive) + len(lines) == len(sliders)
    assert all(plain(line.get_text()).startswith(run_notebooks.IN_PLACE_OF_A_WIDGET) for line in lines)
    if name == "10_playground":
        assert len(alive) == len(explorers())      # the other place there is that of the training


def test_a_page_of_sliders_is_light(site):
    """All frames of the page with all explorers together, in bytes."""
    assert sum(path.stat().st_size for path in (site / "_frames").rglob("*.png")) <= 3_000_000


def test_mathematics_is_in_the_page_itself(pages):
    """MathML, made while building: no script typesets it, and nothing of its source is left over in the text."""
    for name in HERE:
        page = pages[f"notebooks/{name}.html"]
        source = "\n".join(cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
                           if cell.cell_type == "markdown")
        blocks = len(re.findall(r"\$\$.+?\$\$", source, re.DOTALL))
        assert len(page.select("article math[display=block]")) == blocks
        assert bool(page.select("article math")) == ("$" in source)
    for name, page in pages.items():
        assert not re.search("mathjax|katex", str(page.head) + "".join(map(str, page("script"))), re.IGNORECASE)
        for code in page(["pre", "code", "script", "style"]):
            code.extract()
        assert not re.findall(r"\\[a-zA-Z]+|\$[^\s$]", page.get_text()), name


def test_what_is_no_mathematics_ends_the_build(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "notebooks" / "site")
    from course_pages import mathml
    from sphinx.errors import ExtensionError

    assert "<mfrac>" in mathml(r"\frac{\alpha}{r}", block=False)
    assert "<msub><mrow><mi>W</mi><mo" in mathml("W'_t", block=False)
    for wrong in (r"\no_such_command", r"\frac{1", r"\left( x"):
        with pytest.raises(ExtensionError, match="mathematics"):
            mathml(wrong, block=True)


def test_the_ledger_is_a_table_with_a_row_and_a_picture_for_each_claim(pages):
    rows = {row.key: row for row in ledger.ledger()}
    shown = pages["notebooks/site/pages/ledger.html"].select(".ledger tbody tr")
    assert [line.td.contents[0] for line in shown] == list(rows)
    for line, row in zip(shown, rows.values(), strict=True):
        pictures = line.select("svg")
        assert [one["aria-label"] for one in pictures] == [row.interval_words()] * (row.interval is not None)
        assert len(line.select("svg circle")) == (len(row.differences) + 1) * len(pictures)


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    text = f"# A page\n\n[good]({HERE[0]}.ipynb), [bad](no_such_page.md)"
    nbformat.write(nbformat.v4.new_notebook(metadata={"kernelspec": run_notebooks.KERNEL}, cells=[
        nbformat.v4.new_markdown_cell(text)]), tmp_path / f"{HERE[0]}.ipynb")
    done = build(tmp_path / "out", "--notebooks", str(tmp_path))
    assert done.returncode != 0
    warnings = done.stderr.splitlines()   # the README's links to the notebooks that are left out lead nowhere, too
    assert any("no_such_page.md" in line for line in warnings)
    assert not any(f"not found: '{HERE[0]}.ipynb'" in line for line in warnings)


def test_no_page_names_the_machine_that_built_it(site):
    for path in site.rglob("*"):
        if path.suffix in (".html", ".js", ".css", ".json", ".txt"):
            text = re.sub(r"data:[^\"')]+", "", path.read_text(encoding="utf-8"))
            assert not MACHINE.search(text), f"{path.name}: {MACHINE.search(text)}"


def test_the_extra_is_part_of_what_the_tests_install():
    """The site is built in every run of the tests, so their extra lists the same packages; all are pinned."""
    toml = pytest.importorskip("tomllib", reason="Python 3.11 or later")
    extras = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["book"]
    assert set(extras["book"]) < set(extras["test"])
    pins = {Requirement(text).name.lower() for line in (ROOT / "constraints.txt").read_text().splitlines()
            if (text := line.partition("#")[0].strip())}
    assert {Requirement(line).name.lower() for line in extras["book"]} | {"sphinx"} <= pins
    assert re.search(r"^book: \$\(READY\)\n\t\$\(BIN\)/python notebooks/site/build.py$",
                     (ROOT / "Makefile").read_text(), re.M)


# what is wider than the window and does not scroll by itself
TOO_WIDE = """() => {
  const scrolls = e => e && e !== document.body &&
      (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll('article *')].filter(
      e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement) && !scrolls(e));
  return [document.documentElement.scrollWidth - innerWidth, wide.slice(0, 3).map(e => e.outerHTML.slice(0, 200))];
}"""
COLOURS = """() => {
  const level = name => { const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
                          return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255; };
  return [level('backgroundColor'), level('color')];
}"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_pages_in_a_browser_without_a_network(site):
    """Every page at two widths, light and dark: nothing missing, nothing fetched, nothing wider than the window."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ["index", "CONTRIBUTING", *PAGES, *(f"notebooks/{name}" for name in [*HERE, *BESIDE])]
    trouble: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        for scheme in ("light", "dark"):
            for width in (1280, 420):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                context.set_offline(True)
                page = context.new_page()
                page.on("request", lambda one: one.url.startswith(("file:", "data:"))
                        or trouble.append(f"asked for {one.url}"))
                page.on("requestfailed", lambda one: trouble.append(f"missing {one.url}"))
                page.on("pageerror", lambda error: trouble.append(f"script: {error}"))
                for name in names:
                    page.goto((site / f"{name}.html").as_uri())
                    ground, ink = page.evaluate(COLOURS)
                    assert (ground < 0.1 and ink > 0.7) if scheme == "dark" else (ground > 0.9 and ink < 0.3)
                    over, wide = page.evaluate(TOO_WIDE)
                    assert over <= 0, f"{name} at {width}: {over} pixels too wide"
                    assert wide == [], f"{name} at {width}"
                    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                context.close()
        uses(browser.new_page(), site, trouble)
        browser.close()
    assert trouble == []


def uses(page, site: Path, trouble: list[str]) -> None:
    """What a reader does on a page: open an answer, search, change to the dark; the font of formulas is there."""
    page.on("requestfailed", lambda one: trouble.append(f"missing {one.url}"))
    page.goto((site / "notebooks" / "02_lora.html").as_uri())
    answer = page.locator("article details p").first
    assert not answer.is_visible()
    page.locator("article details summary").first.click()
    assert answer.is_visible()
    assert page.evaluate("document.fonts.ready.then(() => [...document.fonts].some("
                         "f => f.family.includes('STIX Two Math') && f.status === 'loaded'))")
    page.locator(".theme-toggle-content .theme-toggle").click()
    assert page.evaluate("document.body.dataset.theme") in ("light", "dark")
    page.goto((site / "search.html").as_uri() + "?q=rank")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("02_lora" in link.get_attribute("href") for link in page.locator("#search-results li a").all())
    filters_the_ledger(page, site)
    moves_every_slider(page, site)


def moves_every_slider(page, site: Path) -> None:
    """Each slider of the page that needs no kernel, by its keys: number, picture and sentence follow."""
    page.goto((site / "notebooks/10_playground.html").as_uri())
    times = []
    for frame in page.locator(".frames").all():
        says = {frame.locator(".frames-says").inner_text()}
        for slider in frame.locator("input[type=range]").all():
            slider.focus()
            shown = {slider.locator("xpath=../output").inner_text()}
            for key in ("Home", "End"):
                times.append(page.evaluate(PRESSED, [slider.element_handle(), key]))
                shown.add(slider.locator("xpath=../output").inner_text())
                says.add(frame.locator(".frames-says").inner_text())
                assert frame.locator("img").first.get_attribute("alt") == frame.locator(".frames-says").inner_text()
            assert len(shown) >= 2
        assert len(says) >= 2
    times.sort()
    late = times[int(0.95 * len(times))]
    print(f"a move on the site: {statistics.median(times):.0f} ms (median), {late:.0f} ms (95th percentile)")


# milliseconds from a slider's new value to the picture on the screen
PRESSED = """async ([slider, key]) => {
  const start = performance.now();
  slider.value = key === 'Home' ? slider.min : slider.max;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  const over = slider.closest('.frames').querySelectorAll('img')[1];
  if (!over.hidden) await over.decode();
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def filters_the_ledger(page, site: Path) -> None:
    """Rows that are shown have what was chosen, their number is said, and all come back."""
    page.goto((site / "notebooks/site/pages/ledger.html").as_uri())
    shown = page.locator(".ledger tbody tr:visible")
    everything = shown.count()
    for name, value in (("paper", "SaLoRA"), ("verdict", "holds exactly")):
        page.select_option(f".ledger select[name={name}]", value)
        assert {row.get_attribute(f"data-{name}") for row in shown.all()} == {value}
    assert 0 < shown.count() < everything
    assert page.locator(".ledger output").inner_text().startswith(f"{shown.count()} of {everything} ")
    for name in ("paper", "verdict"):
        page.select_option(f".ledger select[name={name}]", "")
    assert shown.count() == everything
