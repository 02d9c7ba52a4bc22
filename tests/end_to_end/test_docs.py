"""The README and docs/: Python blocks run, options of commands exist, links and named files exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT
from tiers import QUICK, tiered

from relu_study.cli.commands import COMMANDS

PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in sorted(PAGES.items())}
SLOW = (
    "docs/cluster.md",
    "docs/diagnosis.md",
    "docs/draw_studies.md",
    "docs/extending.md",
    "docs/find_dead_units.md",
    "docs/monitor.md",
    "docs/writing_a_study.md",
)  # in the fast tier test_own_study.py runs two of them, tests/watch and tests/monitor have the functions of others
RAY = ("docs/cluster.md",)  # their Python blocks start a Ray cluster on this machine
PRINTING = ("docs/find_dead_units.md",)  # their blocks of text are the output of their Python blocks
TOP = ("relu_study", "benchmarks", "results", "tests", "docs")
PARTS = tuple(path.parent.name for path in ROOT.glob("relu_study/*/__init__.py"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def words(text: str) -> list[list[str]]:
    """Return the words of each line without its numbers, which differ between versions of JAX."""
    return [re.sub(r"[\d.,;%<>-]+", " ", line).split() for line in text.splitlines()]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---------------------------------------------------------------------------------- Python blocks

WITH_PYTHON = [name for name, text in TEXTS.items() if blocks(text, "python")]
FAST = [name for name in WITH_PYTHON if name not in SLOW]
PAGE_BY_PAGE = """
import contextlib, os, runpy, sys, traceback
for place in sys.argv[1:]:
    os.chdir(place)
    with open("out", "w") as out, open("err", "w") as err, contextlib.redirect_stdout(out):
        try:
            runpy.run_path("page.py", run_name="__main__")
        except BaseException:
            traceback.print_exc(file=err)
"""


def run_blocks(pages: list[str], home: Path) -> dict[str, tuple[str, str]]:
    """Run the blocks of each page in its own folder, all in one process. Return the output and the traceback of each page."""
    places = {page: home / Path(page).stem for page in pages}
    for page, place in places.items():
        place.mkdir()
        code = "\n".join(blocks(TEXTS[page], "python"))
        for name in {*re.findall(r'"results/(\w+)"', code)}:
            if (ROOT / "results" / name).is_dir():
                ignored = shutil.ignore_patterns("raw", "tensorboard", "damaged")
                shutil.copytree(ROOT / "results" / name, place / "results" / name, ignore=ignored)
        (place / "page.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache")}
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
    command = [sys.executable, "-c", PAGE_BY_PAGE, *map(str, places.values())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {page: ((place / "out").read_text(), (place / "err").read_text()) for page, place in places.items()}


@pytest.fixture(scope="module")
def fast_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The outputs of the pages of the fast tier, which run in one process."""
    return run_blocks(FAST, tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", tiered(WITH_PYTHON, *FAST))
def test_python_blocks_run_in_order(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page in RAY and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ran = request.getfixturevalue("fast_pages") if page in FAST else run_blocks([page], tmp_path)
    out, error = ran[page]
    assert not error, error
    if page in PRINTING:
        printed = words(out)
        assert not [line for block in blocks(TEXTS[page], "text") for line in words(block) if line not in printed]


def test_pages_with_python_are_listed() -> None:
    names = (
        "cluster",
        "concepts",
        "diagnosis",
        "draw_studies",
        "extending",
        "find_dead_units",
        "monitor",
        "networks",
        "replay",
        "results_folder",
        "statistics",
        "tables_and_figures",
        "tasks",
    )
    assert [*WITH_PYTHON] == ["README.md", *(f"docs/{name}.md" for name in (*names, "writing_a_study"))]


# --------------------------------------------------------------------------------- shell commands


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Each `relu-study COMMAND ...` of a page, in blocks and in running text: the command and its options."""
    found = re.findall(r"relu-study (?:--traceback )?([a-z]+)\b([^`#'\n|]*)", text)
    return [(command, re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) for command, rest in found]


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_shell_commands_exist(command: str, here: Callable[..., tuple[int, str, str]]) -> None:
    used = {
        (page, option)
        for page, text in TEXTS.items()
        for name, options in commands_of(text)
        if name == command
        for option in options
    }
    status, text, _ = here(command, "--help")
    assert status == 0
    known = {"--help", *re.findall(r"--[a-z][a-z-]*", text)}
    assert not {(page, option) for page, option in used if option not in known}


@pytest.mark.parametrize("page", TEXTS)
def test_commands_exist(page: str) -> None:
    assert {command for command, _ in commands_of(TEXTS[page])} <= set(COMMANDS)


def test_options_in_running_text_exist(here: Callable[..., tuple[int, str, str]]) -> None:
    known = {"--traceback", *(option for name in COMMANDS for option in re.findall(r"--[a-z][a-z-]*", here(name, "--help")[1]))}
    used = {
        (page, word)
        for page, text in TEXTS.items()
        for code in inline_code(text)
        for word in re.findall(r"^--[a-z][a-z-]*", code)
    }
    assert used and not {(page, option) for page, option in used if option not in known}


def test_every_command_and_option_of_run_is_documented(here: Callable[..., tuple[int, str, str]]) -> None:
    text = TEXTS["docs/cli.md"]
    assert {command for command, _ in commands_of(text)} == set(COMMANDS)
    options = {option for option in re.findall(r"--[a-z][a-z-]*", here("run", "--help")[1]) if not option.startswith("--no-")}
    assert not {option for option in options - {"--help"} if option not in text}


# ------------------------------------------------------------------------------- links and files


@pytest.mark.parametrize("page", TEXTS)
def test_links_point_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = PAGES[page].parent / path if path else PAGES[page]
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_linked_from_the_readme() -> None:
    assert not {page for page in TEXTS if page != "README.md" and f"({page})" not in TEXTS["README.md"]}


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_exist(page: str) -> None:
    for code in inline_code(TEXTS[page]):
        first = code.partition("/")[0]
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.\w+)", code) or "/" not in code.rstrip("/"):
            continue
        if first in TOP:
            assert (ROOT / code).exists(), code
        elif first in PARTS:
            assert (ROOT / "relu_study" / code).exists(), code


def test_architecture_page_names_files_with_their_names() -> None:
    pairs = re.findall(r"`(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w/]+\.py)`", TEXTS["docs/architecture.md"])
    assert len(pairs) >= 12
    for *names, path in pairs:
        text = (ROOT / "relu_study" / path).read_text(encoding="utf-8")
        assert not [name for name in names if name and not re.search(rf"^(def |class )?{name}\b", text, re.MULTILINE)], path


def test_the_architecture_page_lists_every_module() -> None:
    listed, folder = set(), ""
    for line in TEXTS["docs/architecture.md"].splitlines():
        if found := re.fullmatch(r"### `([\w/]+)/`", line):
            folder = found[1]
        elif folder and (found := re.match(r"\| `(\w+\.py)` \|", line)):
            listed.add(f"{folder}/{found[1]}")
    modules = (path.relative_to(ROOT / "relu_study") for path in ROOT.glob("relu_study/*/**/*.py") if path.name != "__init__.py")
    assert listed == {path.as_posix() for path in modules}


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 120
    assert len(TEXTS["README.md"].split()) <= 1000
