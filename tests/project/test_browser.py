"""A real browser: JupyterLab in headless Chromium, 1000 pixels wide, worked from the keyboard alone.

00 is run to its slider. 10 is run whole: every slider is moved, its own picture and sentence must follow within
300 ms (the median of its moves, read in the page itself), nothing may stick out or hide an error, and a training
is started, stopped and gone on with. The slider that 09 makes of a run of its own is moved on a page without it.

Skipped where there is no Chromium (on Debian: `apt-get install chromium`) or no JupyterLab.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
import run_notebooks
from benchmarks import sliders

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome")
                if (found := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
SETTLED = 6   # from the key to the new picture and sentence, median, in times that a small figure takes here and now
MOVES = 4         # of each slider, after one to warm up
STDERR = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']"
# 09's slider, on numbers of the size of its own
ENTITIES = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from benchmarks.sliders import entity_threshold
from lowrank_teach.course.explorer import explore
explore(entity_threshold())
"""
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab server on copies of the notebooks, with a store of its own."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", folder)
    fresh = run_notebooks.from_text(ROOT / "notebooks" / "text" / "10_playground.py")   # no outputs: what shows, ran
    nbformat.write(fresh, folder / "10_playground.ipynb")
    entities = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ENTITIES)],
                                        metadata={"kernelspec": run_notebooks.KERNEL})
    nbformat.write(entities, folder / "entities.ipynb")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))   # else cells out of sight are not in the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True"]
    environment = {**os.environ, "LOWRANK_PROFILE": "tiny", "OMP_NUM_THREADS": "1",
                   "LOWRANK_TEACH_RUNS": str(folder / "runs"), "JUPYTER_CONFIG_DIR": str(folder / "config"),
                   "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces"),
                   "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            yield _wait_for(f"http://127.0.0.1:{port}", server, folder / "log")
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).read()
            return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def open_notebook(lab):
    """name -> its page, opened and with a kernel that waits."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=FLAGS)

        def opened(name: str):
            page = browser.new_page(viewport={"width": 1000, "height": 1400})
            page.set_default_timeout(60_000)
            page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
            page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
            page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
            return page

        yield opened
        browser.close()


def run_cells(page, *starts: str) -> None:
    """Run the code cells that begin so, in this order; the trainings between them are not for this test."""
    for start in starts:
        found = page.evaluate("""async start => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            const i = notebook.widgets.findIndex(
                cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().startsWith(start));
            if (i < 0) return false;
            notebook.deselectAll();
            notebook.activeCellIndex = i;
            await window.jupyterapp.commands.execute('notebook:run-cell');
            return true;
        }""", start)
        assert found, f"no code cell begins with {start!r}"


def test_the_slider_moves_its_picture(open_notebook, capsys):
    page = open_notebook("00_start_here")
    run_cells(page, "import ", "ring = ", "course.explore(ring)")
    handle = page.locator(".noUi-handle").first
    handle.wait_for(timeout=180_000)
    picture = page.locator("img.jupyter-widgets.widget-image, .widget-image img, img.widget-image").first
    picture.wait_for(timeout=60_000)
    before, said = picture.get_attribute("src"), page.locator(".widget-html-content").last.inner_text()
    handle.focus()
    start = time.perf_counter()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('img.widget-image').src !== old", arg=before,
                           timeout=30_000)
    took = time.perf_counter() - start
    page.wait_for_function("old => document.querySelector('.widget-html-content').innerText !== old", arg=said,
                           timeout=30_000)
    with capsys.disabled():
        print(f"\na key on the slider changes the picture in {1000 * took:.0f} ms", end="")
    assert page.locator("input[type=number]").first.input_value() == "3"
    assert "Rank 3" in page.locator(".widget-html-content").first.inner_text()
    assert_nothing_went_wrong(page)
    assert took < 5


def assert_nothing_went_wrong(page) -> None:
    """No error in an output, none in a widget's sentence, none of a widget that could not be shown."""
    said = [text for text in page.locator(STDERR).all_inner_texts() if text.strip()]
    assert said == []
    for words in ("Error displaying widget", *run_notebooks.HIDDEN):
        assert page.get_by_text(words).count() == 0, words


# ---- the playground -----------------------------------------------------------------------------------------

# a key on slider i: milliseconds until its own picture and its own sentence have both changed
MOVE = """([i, key]) => new Promise((done, fail) => {
    const handle = document.querySelectorAll('.noUi-handle')[i];
    const box = handle.closest('.widget-vbox');
    const image = box.querySelector('img.widget-image');
    const sentence = box.querySelector(':scope > .widget-html .widget-html-content');
    const before = [image.src, sentence.innerText];
    let start = null;
    const late = setTimeout(() => fail(new Error(`slider ${i}, ${key}: no new ${image.src === before[0] ?
        'picture' : 'sentence'} in 15 s; ${sentence.innerText}`)), 15000);
    const look = () => {
        if (image.src === before[0] || sentence.innerText === before[1]) return;
        clearTimeout(late); watch.disconnect();
        done(performance.now() - start);
    };
    const watch = new MutationObserver(look);
    watch.observe(box, {subtree: true, attributes: true, childList: true, characterData: true});
    handle.focus();
    handle.addEventListener('keydown', () => { start = performance.now(); }, {once: true, capture: true});
})"""

# what reaches further right than the output it stands in, or has to be scrolled to be seen
STICKS_OUT = """() => [...document.querySelectorAll('.jp-OutputArea-output .widget-vbox')].flatMap(box => {
    const edge = box.closest('.jp-OutputArea-output').getBoundingClientRect().right;
    const inside = [box, ...box.querySelectorAll('*')];
    return inside.filter(el => el.getBoundingClientRect().right > edge + 1
        || (el.matches('.widget-hbox, .widget-vbox') && el.scrollWidth > el.clientWidth + 1))
        .map(el => el.className + ': ' + el.textContent.slice(0, 40));
})"""


def run_all(page, seconds: float = 150) -> None:
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    prompts = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(" \
              "prompt => /\\d/.test(prompt.innerText))"
    page.wait_for_function(prompts, timeout=1000 * seconds)
    page.wait_for_selector("img.widget-image")


def slider_of(page, i: int):
    return page.locator(".noUi-handle").nth(i)


def label_of(page, i: int) -> str:
    return page.evaluate("i => document.querySelectorAll('.noUi-handle')[i].closest('.widget-slider').innerText",
                         i).strip()


def move(page, i: int, key: str) -> float:
    """Press a key on a slider; seconds until its picture and its sentence are new."""
    page.evaluate(f"args => {{ window.moved = ({MOVE})(args); window.moved.catch(() => {{}}); }}", [i, key])
    page.keyboard.press(key)
    return page.evaluate("() => window.moved") / 1000


def keys_for(page, i: int) -> list[str]:
    """There and back, one step at a time; from end to end where a step may snap to what is shown already."""
    there_and_back = "End", "Home"
    kind = page.evaluate("i => document.querySelectorAll('.noUi-handle')[i].closest('.widget-vbox').innerText", i)
    if "snapped" not in kind:
        at, most = (float(slider_of(page, i).get_attribute(f"aria-value{name}")) for name in ("now", "max"))
        there_and_back = ("ArrowLeft", "ArrowRight") if at >= most else ("ArrowRight", "ArrowLeft")
    return [*there_and_back] * (MOVES // 2)


@pytest.mark.parametrize("width", [1000, 1400])
def test_the_sliders_of_entities(open_notebook, capsys, width):
    page = open_notebook("entities")
    page.set_viewport_size({"width": width, "height": 1400})
    run_all(page)
    assert_nothing_went_wrong(page)
    assert page.evaluate(STICKS_OUT) == []
    with capsys.disabled():
        every_slider_moves(page, 2)


def test_the_playground(open_notebook, capsys):
    page = open_notebook("10_playground")
    run_all(page)
    assert_nothing_went_wrong(page)
    assert page.evaluate(STICKS_OUT) == []
    boxes_follow(page)
    with capsys.disabled():
        every_slider_moves(page, 10)
        training_starts_and_stops(page)
    assert_nothing_went_wrong(page)
    assert page.evaluate(STICKS_OUT) == []


def every_slider_moves(page, at_least: int) -> None:
    count = page.locator(".noUi-handle").count()
    assert count >= at_least
    medians = {}
    for i in range(count):
        keys = keys_for(page, i)
        move(page, i, keys[0])
        move(page, i, keys[1])
        took = [move(page, i, key) for key in keys]
        medians[i] = 1000 * statistics.median(took) / sliders.plain_figure()["clock"]
        print(f"\nslider {i:2} {label_of(page, i):32} {' '.join(f'{1000 * t:4.0f}' for t in took)} ms", end="")
    slow = {label_of(page, i): f"{took:.1f} figures" for i, took in medians.items() if took > SETTLED}
    assert slow == {}


def boxes_follow(page) -> None:
    """From a slider Tab leads to its box; a number and Enter move slider, picture and sentence."""
    slider_of(page, 0).focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.type") == "number"
    picture = page.locator("img.widget-image").first
    assert not picture.get_attribute("title").startswith("Rank 7 ")
    page.keyboard.press("Control+A")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.noUi-handle').getAttribute('aria-valuenow') == 7")
    page.wait_for_function("() => document.querySelector('img.widget-image').title.startsWith('Rank 7 ')")
    page.wait_for_function("() => document.querySelector('img.widget-image').closest('.widget-vbox').innerText"
                           ".includes('Rank 7 ')")


def training_starts_and_stops(page) -> None:
    """A slider moves while it trains; after a stop the same button goes on, from the same step."""
    steps = page.locator("input[type=number]").last
    steps.fill("100")   # seconds of them: it must not be over before the stop
    steps.press("Enter")
    start, stop = (page.get_by_role("button", name=name, exact=True) for name in ("Train this now", "Stop"))
    start.focus()
    page.keyboard.press("Enter")
    sentence = page.locator(".widget-html-content", has_text="loss").last
    page.wait_for_function("() => /^Step \\d+ of/m.test(document.body.innerText)", timeout=60_000)
    meanwhile = move(page, 0, "ArrowRight")
    assert page.locator("img.widget-image").last.is_visible()
    stop.focus()
    page.keyboard.press("Enter")
    page.get_by_text("Stopped after").wait_for()
    at = int(page.get_by_text("Stopped after").inner_text().split()[2])
    assert at < 100
    go_on = page.get_by_role("button", name="Go on", exact=True)
    go_on.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => /^Step \\d+ of/m.test(document.body.innerText)", timeout=60_000)
    assert int(sentence.inner_text().split()[1]) > at
    page.get_by_text("finished,").wait_for(timeout=300_000)
    print(f"\na slider while a training runs: {1000 * meanwhile:.0f} ms; stopped after step {at}, gone on, finished",
          end="")
