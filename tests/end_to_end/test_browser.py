"""TensorBoard's tabs in Debian's Chromium.

SCREENSHOTS=FOLDER keeps screenshots there. RESULTS=FOLDER shows another results folder, and RUNS=REGEX selects its runs.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest
from known_results import planted_folder
from PIL import Image
from tensorboard_server import Board

from relu_study.report.tensorboard.event_files import write_events
from relu_study.report.tensorboard.plugins import HEADLINE
from relu_study.storage import configurations, declaration

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
# Every element, those within the shadow roots of TensorBoard's components too.
WITHIN = """
const found = [];
const visit = node => { if (node.shadowRoot) visit(node.shadowRoot);
                        for (const child of node.children || []) { found.push(child); visit(child); } };
visit(document.body);
const seen = element => { const box = element.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="apt-get install --no-install-recommends chromium chromium-driver"),
]


class Browser:
    """Headless Chromium, driven by W3C WebDriver over HTTP. A context manager."""

    def __init__(self, home: Path, width: int = 1400, height: int = 1150) -> None:
        self.driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        port = next(found[1] for line in self.driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        flags = [*FLAGS.split(), f"--user-data-dir={home}", f"--window-size={width},{height}"]
        options = {"goog:chromeOptions": {"binary": CHROMIUM, "args": flags}}
        self.session = f"http://127.0.0.1:{port}/session"
        try:
            self.session += f"/{self.ask('POST', '', {'capabilities': {'alwaysMatch': options}})['sessionId']}"
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.ask("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self.driver.kill()
        self.driver.wait()
        assert self.driver.stdout is not None
        self.driver.stdout.close()

    def ask(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        asked = Request(self.session + route, content, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(asked, timeout=60) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def open(self, address: str) -> None:
        self.ask("POST", "/url", {"url": "about:blank"})  # a new fragment loads no page
        self.ask("POST", "/url", {"url": address})

    def run(self, script: str) -> Any:
        """Return a script's result. In the script, `found` is every element and `seen` whether an element has a size."""
        return self.ask("POST", "/execute/sync", {"script": WITHIN + script, "args": []})

    def wait(self, script: str, seconds: float = 60) -> None:
        ends = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < ends, f"never came true: {script}"
            time.sleep(0.2)

    def text(self) -> str:
        """Return all readable text of the page."""
        own = "e => [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.data).join(' ')"
        return " ".join(self.run(f"return found.filter(seen).map({own}).join(' ')").split())

    def picture(self) -> bytes:
        return base64.b64decode(self.ask("GET", "/screenshot"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """TensorBoard on a copy: the page names no folder of this machine."""
    place, logs = tmp_path_factory.mktemp("browser"), Path("results") / "article" / "tensorboard"
    folder = Path(os.environ.get("RESULTS") or planted_folder(place / "planted"))
    if "RESULTS" not in os.environ:
        write_events(declaration.read_declared(folder), configurations.collect(folder, histograms=True), folder)
    shutil.copytree(folder / "tensorboard", place / logs)
    names = {path.name for path in (place / logs).iterdir()}
    with Board(logs, place) as found:
        found.wait(lambda: set(found.get("runs")) == names and all(tags for tags in found.get("plugin/histograms/tags").values()))
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def chosen() -> str:
    """The regular expression of the selected runs."""
    return os.environ.get("RUNS") or "^(baseline|leaky_relu|stuck|tanh)@wave$"


def kept(browser: Browser, name: str, folder: Path) -> np.ndarray:
    """Save a screenshot of the page and return it as height x width x 3 numbers."""
    folder = Path(os.environ.get("SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    image.quantize(256).save(folder / f"{name}.png", optimize=True)
    return np.asarray(image).astype(int)


def tinted(picture: np.ndarray) -> float:
    """Return the share of the page below its header that is neither grey nor white."""
    page = picture[130:]
    return float((np.ptp(page, axis=2) > 12).mean())


PATHS = "found.filter(e => e.localName == 'path' && seen(e) && (e.getAttribute('d') || '').length > 40)"


def test_custom_scalars_show_bands(board: Board, browser: Browser, chosen: str, tmp_path: Path) -> None:
    browser.open(f"{board.address}#custom_scalars&regexInput={quote(chosen)}")
    cards = "found.filter(e => e.localName == 'tf-custom-scalar-margin-chart-card')"
    bands = f"{PATHS}.filter(e => e.getAttribute('class') == 'area')"
    browser.wait(f"return {cards}.length == 6 && {bands}.length >= 16")
    time.sleep(2)  # axes are drawn after the bands and move them
    picture = kept(browser, "custom_scalars", tmp_path)
    titles = browser.run(f"return {cards}.map(e => e.title)")
    assert titles == list(HEADLINE), "the most important first"
    sizes = browser.run(f"return {bands}.map(e => e.getBBox()).map(box => box.width * box.height)")
    assert sum(size > 1000 for size in sizes) >= 4, "bands of some height"
    assert tinted(picture) > 0.02
    assert "certified_dead_fraction" in (text := browser.text()) and "tags do not match" not in text


def test_histograms_show_every_kind(board: Board, browser: Browser, chosen: str, tmp_path: Path) -> None:
    browser.open(f"{board.address}#histograms&regexInput={quote(chosen)}")
    browser.wait(f"return found.some(e => e.localName == 'vz-histogram-timeseries' && seen(e)) && {PATHS}.length > 20")
    time.sleep(2)
    picture, text = kept(browser, "histograms", tmp_path), browser.text()
    assert all(f" {kind} " in text for kind in ("pre", "post", "gradient")) and "gradient/site_1" in text
    assert tinted(picture) > 0.01


def test_hparams_show_a_row_for_every_configuration(board: Board, browser: Browser, tmp_path: Path) -> None:
    browser.open(f"{board.address}#hparams")
    name = sorted(board.get("runs"))[0]
    cells = "found.filter(e => e.localName == 'vaadin-grid-cell-content').map(e => e.textContent.trim())"
    browser.wait(f"return {cells}.some(text => text == {json.dumps(name)})")
    time.sleep(1)
    kept(browser, "hparams", tmp_path)
    shown, text = browser.run(f"return {cells}"), browser.text()
    factors = {info["name"] for info in board.post("plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]}
    assert factors and all(factor in text for factor in factors)
    assert len(set(shown) & set(board.get("runs"))) >= 10, "as many rows as fit"


def test_time_series_show_scalars_and_histograms(board: Board, browser: Browser, chosen: str, tmp_path: Path) -> None:
    tags = quote("^(val_loss|dead_fraction)/all/mean|^post/site_1")
    browser.open(f"{board.address}?tagFilter={tags}&runFilter={quote(chosen)}#timeseries")
    browser.wait(
        "const lines = found.filter(e => e.localName == 'scalar-card-component' && seen(e));"
        "return lines.length > 0 && found.some(e => e.localName == 'histogram-card-component' && seen(e))"
    )
    time.sleep(3)
    picture, text = kept(browser, "time_series", tmp_path), browser.text()
    assert re.search("dead_fraction/all ?/mean", text) and re.search("post ?/site_1", text)
    assert tinted(picture) > 0.01
