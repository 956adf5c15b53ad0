"""A real browser: JupyterLab in headless Chromium opens 00, runs it to its slider, and moves the slider by keyboard.

Skipped where there is no Chromium (on Debian: `apt-get install chromium`) or no JupyterLab.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome")
                if (found := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab server on a copy of the notebook."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"]
    environment = {**os.environ, "LOWRANK_PROFILE": "tiny", "OMP_NUM_THREADS": "1",
                   "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
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
def page(lab):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1000, "height": 1400})
        opened.goto(f"{lab}/lab/tree/00_start_here.ipynb?reset")
        opened.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        yield opened
        browser.close()


def run_to_the_slider(page, cells: int = 9) -> None:
    """Run cell by cell; the trainings further down are not for this test."""
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    active = "() => [...document.querySelectorAll('.jp-Notebook .jp-Cell')].findIndex(" \
             "cell => cell.classList.contains('jp-mod-active'))"
    for cell in range(cells):
        for _ in range(20):
            if page.evaluate(active) > cell:
                break
            page.keyboard.press("Shift+Enter")
            page.wait_for_timeout(300)


def test_the_slider_moves_its_picture(page, capsys):
    run_to_the_slider(page)
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
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.get_by_text("Error displaying widget").count() == 0
    assert page.get_by_text("could not be drawn").count() == 0
    assert took < 5
