"""Dataset cards: valid YAML that names existing files, and no file of the user is replaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from known_results import planted_arms, planted_folder, planted_study
from minimal_folders import drawn
from paths import ROOT

from relu_study.errors import UserError
from relu_study.report.exports.export import export
from relu_study.report.report import report
from relu_study.storage.checksums import CorruptFileError

SEEDS = 2
FILES = ["runs", "summary", "verdicts", "units", "survival", "experiments", "health"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lost = planted_arms(planted_study(SEEDS))["stuck", "wave"]
    folder = planted_folder(tmp_path_factory.mktemp("card") / "planted", SEEDS, left_out=(lost.run_id,))
    report(folder)
    return folder


@pytest.fixture
def planted(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "planted"))


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the YAML and the body of a card."""
    opening, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(head), body


def check(folder: Path, files: list[str]) -> str:
    """Check the head of a card and that its files exist with data. Return its body."""
    head, body = card(folder)
    assert [entry["config_name"] for entry in head["configs"]] == files
    assert [entry["config_name"] for entry in head["configs"] if entry.get("default")] == files[:1]
    sizes = []
    for entry in head["configs"]:
        assert entry["data_files"] == f"{entry['config_name']}.csv"
        sizes.append(len(pd.read_csv(folder / entry["data_files"])))
        assert f"| `{entry['config_name']}` |" in body and f" {sizes[-1]:,} |" in body
    (size,) = head["size_categories"]
    low, high = {"n<1K": (0, 1e3), "1K<n<10K": (1e3, 1e4), "10K<n<100K": (1e4, 1e5)}[size]
    assert low <= max(sizes) < high
    for picture in (line.partition("](")[2][:-1] for line in body.splitlines() if line.startswith("![")):
        assert (folder / picture).is_file()
    return body


def test_the_card_next_to_the_csv_files(planted: Path) -> None:
    before = {path: path.read_bytes() for path in planted.rglob("*") if path.is_file()}
    lines = export(planted, "hf")
    assert lines[-1] == f"Upload it with: hf upload USER/NAME {planted} . --repo-type dataset --exclude 'raw/*' 'tensorboard/*'"
    body = check(planted, FILES)
    assert "40 runs of 20 configurations: 38 ok, 1 nonfinite, 1 interrupted." in body
    assert body.count("![") == len(planted_study(SEEDS).figures)
    assert {path: path.read_bytes() for path in before} == before
    first = (planted / "README.md").read_bytes()
    assert export(planted, "hf", out=planted / ".." / "planted")[-1].endswith(" --exclude 'raw/*' 'tensorboard/*'")
    assert (planted / "README.md").read_bytes() == first


def test_a_folder_with_copies(planted: Path, tmp_path: Path) -> None:
    export(planted, "hf", out=tmp_path / "data" / "set")
    place = tmp_path / "data" / "set"
    check(place, FILES)
    assert {path.name for path in place.iterdir()} == {"README.md", "figures", *(f"{name}.csv" for name in FILES)}
    assert all((place / f"{name}.csv").read_bytes() == (planted / f"{name}.csv").read_bytes() for name in FILES)
    assert not (planted / "README.md").exists()


def test_a_draw_study(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "coins")
    export(folder, "hf")
    assert "| K1 | The coin is fair |" in check(folder, ["cells", "verdicts"])


@pytest.mark.parametrize("name", ["article", "born_dead"])
def test_committed_results(name: str, tmp_path: Path) -> None:
    export(ROOT / "results" / name, "hf", out=tmp_path)
    files = [file for file in FILES if (ROOT / "results" / name / f"{file}.csv").is_file()]
    check(tmp_path, files if name == "article" else ["cells", "verdicts"])


def test_a_readme_of_the_user_stays(planted: Path, tmp_path: Path) -> None:
    (planted / "README.md").write_text("mine\n")
    with pytest.raises(UserError, match=r"README.md is not a card of relu-study\. Move it away, or give another folder"):
        export(planted, "hf")
    assert (planted / "README.md").read_text() == "mine\n"
    export(planted, "hf", out=tmp_path / "other")


def test_a_corrupt_file_gets_no_card(planted: Path) -> None:
    text = (planted / "units.csv").read_text()
    (planted / "units.csv").write_text(text.replace("site_1", "site_9"))
    with pytest.raises(CorruptFileError, match=r"units\.csv"):
        export(planted, "hf")
    (planted / "units.csv").unlink()
    with pytest.raises(UserError, match=r"units.csv is missing\. Rebuild it with 'relu-study report"):
        export(planted, "hf")
    assert not (planted / "README.md").exists()


def test_titles_with_special_characters_stay_valid() -> None:
    from relu_study.report.exports import dataset_card

    title = 'A: "quoted" #1 \\ {x} é\n- no'
    assert yaml.safe_load(f"pretty_name: {dataset_card._text(title)}\n") == {"pretty_name": title}
