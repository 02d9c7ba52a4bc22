"""report.html: report.md as one self-contained file, for any study name."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from known_results import planted_folder

from relu_study.report.html import LARGEST, html
from relu_study.report.report import report
from relu_study.storage.manifest import read_manifest, write_manifest

EMPTY = {"meta", "img", "hr", "br"}


class Reader(HTMLParser):
    """What a browser would see: the elements with their attributes, the text, and whether every element is closed in its turn."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text, self.open = "", [""]
        self.feed(text)
        self.close()
        assert self.open == [""], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> out of turn"

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported folder whose title, prose and captions look like HTML."""
    path = planted_folder(tmp_path_factory.mktemp("page") / "planted", seeds=2)
    manifest = read_manifest(path)
    declaration = manifest["declaration"]
    declaration["title"] = "Is <b>&amp;</b> dead?"
    declaration["text"] = 'Prose with <script>alert("x")</script> and 1 < 2 & 3.'
    declaration["figures"][0]["caption"] = 'Loss of "a" & <i>b</i>, `c` and *d*'
    for entry in declaration["configurations"]:
        entry["arm"] = entry["arm"].replace("lecun_normal", "<b>&")
    for table in declaration["tables"]:
        table["arms"] = []
    write_manifest(path, manifest)
    report(path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text())


def test_page_is_complete_and_titled(folder: Path, page: Reader) -> None:
    text = (folder / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>\n") and page.of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.of("meta")
    assert [m["content"] for m in page.of("meta") if m.get("name") == "viewport"] == ["width=device-width, initial-scale=1"]
    assert re.search("<title>(.*)</title>", text)[1] == "Is &lt;b&gt;&amp;amp;&lt;/b&gt; dead?"
    assert len(page.of("h1")) == 1 and len(page.of("h2")) == 4


def test_page_loads_and_runs_nothing(folder: Path, page: Reader) -> None:
    assert not {"script", "link", "iframe", "object", "b", "i"} & {tag for tag, _ in page.elements}
    assert not re.search(r"@import|url\(", (folder / "report.html").read_text())
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "srcset", "data", "poster"):
            assert attrs.get(name, "data:").startswith("data:")


def test_html_in_text_is_escaped(page: Reader) -> None:
    for text in (
        "Is <b>",
        'Prose with <script>alert("x")</script> and 1 < 2 & 3.',
        "<b>&",
        'Loss of "a" & <i>b</i>, `c` and *d*',
    ):
        assert text in page.text


def test_every_image_is_embedded_with_its_text(folder: Path, page: Reader) -> None:
    pictures = page.of("img")
    declared = {figure["name"]: figure["caption"] for figure in read_manifest(folder)["declaration"]["figures"]}
    assert [picture["alt"] for picture in pictures] == [declared[name] for name in ("initialisers", "claims", "survival")]
    for picture, name in zip(pictures, ("initialisers", "claims", "survival"), strict=True):
        kind, content = picture["src"].split(";base64,")
        assert kind == "data:image/svg+xml"
        assert base64.b64decode(content) == (folder / "figures" / f"{name}.svg").read_bytes()


def test_links_lead_to_files_next_to_the_page(folder: Path, page: Reader) -> None:
    links = [attrs["href"] for attrs in page.of("a")]
    assert "runs.csv" in links and "manifest.json" in links
    assert all((folder / link).is_file() for link in links)


def test_every_table_has_its_numbers_and_can_be_scrolled(folder: Path, page: Reader) -> None:
    assert len(page.of("table")) == len(page.of("div")) == (folder / "report.md").read_text().count("---: |\n") + 1
    for table in (folder / "tables").glob("*.md"):
        for cell in re.findall(r"(?<=\| )[^|]*\d[^|]*(?= \|)", table.read_text().replace("**", "").replace("\\", "")):
            assert cell in page.text
    for row in (line for line in (folder / "report.md").read_text().splitlines() if " vs " in line):
        assert all(cell.replace("\\", "") in page.text for cell in row.strip("| ").split(" | "))


def test_a_large_or_missing_svg_gives_way_to_the_png(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name, size in (("small", LARGEST), ("large", LARGEST + 1)):
        (tmp_path / "figures" / f"{name}.svg").write_bytes(b"s" * size)
        (tmp_path / "figures" / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "figures" / "alone.png").write_bytes(b"alone")
    text = "".join(f"![{name}](figures/{name}.png)\n\n" for name in ("small", "large", "alone"))
    sources = [attrs["src"] for attrs in Reader(html(text, "t", tmp_path)).of("img")]
    assert [s.partition(";")[0] for s in sources] == ["data:image/svg+xml", "data:image/png", "data:image/png"]
    assert base64.b64decode(sources[1].partition(",")[2]) == b"large"


@pytest.mark.parametrize("where", ["https://example.org/a.png", "figures/none.png", "../secret.png", "/etc/hostname"])
def test_image_outside_the_folder_becomes_a_link(where: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    found = Reader(html(f"![a < b]({where})", "t", tmp_path / "in"))
    assert not found.of("img") and found.of("a") == [{"href": where}] and "a < b" in found.text


def test_the_same_bytes_again_and_from_a_clone(folder: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard", "report.*"))
    report(clone)
    assert (clone / "report.html").read_bytes() == (folder / "report.html").read_bytes()
