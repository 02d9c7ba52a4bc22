"""Derived files of a results folder: complete, equal bytes each time, from a clone too, and without JAX."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from known_results import PROBE_EXAMPLES, planted_arms, planted_folder, planted_study
from paths import ROOT

from relu_study.errors import UserError
from relu_study.report.report import check, report
from relu_study.report.verdicts import TEXTS
from relu_study.storage.csv_files import read_csv
from relu_study.storage.declaration import parse_declaration
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.schema import COLUMNS

CSVS = ("runs", "experiments", "summary", "units", "survival", "verdicts", "health")


def files(folder: Path, *left_out: str) -> dict[str, bytes]:
    paths = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in left_out]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths)}


def redeclare(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = read_manifest(folder)
    change(manifest["declaration"])
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted_folder(tmp_path_factory.mktemp("report") / "planted")
    assert report(folder) == []
    return folder


@pytest.fixture(scope="module")
def few_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with few runs and no figures, without and with a report."""
    folder = planted_folder(tmp_path_factory.mktemp("few") / "bare", seeds=2)
    redeclare(folder, lambda d: d.update(figures=[], sections=[]))
    report(done := Path(shutil.copytree(folder, folder.parent / "whole")))
    return folder, done


@pytest.fixture
def bare(few_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(few_runs[0], tmp_path / "bare"))


@pytest.fixture
def whole(few_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(few_runs[1], tmp_path / "whole"))


def test_a_folder_has_everything_that_the_study_declares(reported: Path) -> None:
    found = set(files(reported, "raw", "tensorboard"))
    tables = {f"tables/{name}.{kind}" for name in ("initialisers", "shapes", "tuned") for kind in ("csv", "md", "tex")}
    figures = {f"figures/{name}.{kind}" for name in ("initialisers", "survival", "claims") for kind in ("png", "svg")}
    assert found == {
        *(f"{name}.csv" for name in CSVS),
        "SHA256SUMS",
        "manifest.json",
        "report.md",
        "report.html",
        *tables,
        *figures,
    }
    assert len(list((reported / "tensorboard").iterdir())) == 20  # one run a configuration


@pytest.mark.slow
def test_another_process_reports_the_same_bytes_and_never_imports_jax(reported: Path, tmp_path: Path) -> None:
    other = tmp_path / "planted"
    shutil.copytree(reported / "raw", other / "raw")
    shutil.copy(reported / "manifest.json", other)
    code = (
        "import sys; from relu_study.report.report import report; from relu_study import load; print(report(sys.argv[1]));"
        "load(sys.argv[1]).curves; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(other)], capture_output=True, text=True, env=environment, check=True)
    said, modules = done.stdout.splitlines()
    assert said == "[]"
    assert not {"jax", "jaxlib", "flax", "optax"} & set(json.loads(modules.replace("'", '"')))
    assert files(other) == files(reported)


def test_a_second_report_changes_no_byte_and_all_epochs_only_the_summary(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "planted", seeds=2, epochs=(0, 1, 2, 3, 4, 5))
    redeclare(folder, lambda d: d.update(figures=d["figures"][:1], sections=[]))  # the curves
    report(folder)
    first = files(folder)
    report(folder, all_epochs=True)
    whole = files(folder)
    assert {name for name in first if first[name] != whole[name]} == {"summary.csv", "SHA256SUMS"}
    assert sorted(read_csv(folder / "summary.csv")["epoch"].unique()) == [0, 1, 2, 3, 4, 5]
    report(folder)
    assert files(folder) == first
    assert sorted(read_csv(folder / "summary.csv")["epoch"].unique()) == [0, 1, 2, 5]


def test_verdicts_match_the_known_effects(reported: Path) -> None:
    rows = read_csv(reported / "verdicts.csv", TEXTS)
    assert tuple(rows.columns) == COLUMNS["verdicts"]
    overall = rows[rows["contrast"] == "overall"].set_index("claim")["verdict"].to_dict()
    assert {name: overall[name] for name in ("P1", "P2")} == {"P1": "confirmed", "P2": "refuted"}
    loss = rows[(rows["claim"] == "P2") & (rows["target"] == "coin_flip")].iloc[0]
    # he_normal is arm 1: exactly 1/4 above the baseline for each seed; the margin is a tenth of a variance of 1/4
    assert (loss["effect"], loss["margin"], loss["n"]) == (0.25, 0.025, 8)
    assert rows[(rows["claim"] == "P2") & (rows["target"] == "wave")].iloc[0]["n"] == 7  # without the nonfinite pair


def test_missing_runs_do_not_stop_a_report(tmp_path: Path) -> None:
    lost = planted_arms(planted_study(4))["baseline", "wave"]
    folder = planted_folder(tmp_path, seeds=4, left_out=tuple(lost.replace(seed=s).run_id for s in range(4)))
    redeclare(folder, lambda d: d.update(figures=[f for f in d["figures"] if f["kind"] == "forest"], sections=[]))
    report(folder)
    assert (read_csv(folder / "runs.csv")["status"] == "interrupted").sum() == 4
    rows = read_csv(folder / "verdicts.csv", TEXTS)
    assert rows[(rows["claim"] == "P2") & (rows["target"] == "wave")]["verdict"].tolist() == ["not testable"]
    text = (folder / "report.md").read_text()
    assert "75 ok, 1 nonfinite, 4 interrupted" in text and "not testable because arm 'baseline' has no stored runs" in text


def test_folder_without_tiles_is_reported(bare: Path) -> None:
    shutil.rmtree(bare / "raw")
    (bare / "raw").mkdir()
    with pytest.raises(UserError, match="nothing to report"):
        report(bare)


@pytest.mark.slow
def test_folder_without_its_tiles_keeps_its_files(reported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reported, tmp_path / "lost"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    gone = sorted((folder / "raw").iterdir())
    gone[0].unlink()
    with pytest.raises(UserError, match=r"lacks \d runs of runs.csv .*a tile is missing. Restore it"):
        report(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before
    (folder / "runs.csv").unlink()
    assert any(re.search(r"15\d of 160 runs are stored; the others are interrupted", line) for line in report(folder))
    for path in gone[1:]:
        path.unlink()
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert any("has no tile" in line for line in report(folder)), "an empty raw/ is that of a clone"
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before


# ---------------------------------------------------------------------------------------- the page


def test_the_page_follows_the_sections(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    order = [
        "# Planted numbers\n",
        "Every number of this study is known beforehand.",
        "160 runs of 20 configurations with 8 seeds each, on the targets wave, coin_flip: 159 ok, 1 nonfinite.",
        "| P1 | leaky_relu lowers the dead fraction | confirmed |",
        "## Does the start matter?\n\nOne asks where it begins.",
        (reported / "tables" / "initialisers.md").read_text().strip(),
        "](figures/initialisers.png)",
        "](figures/claims.png)",
        "| leaky_relu vs baseline | wave | dead fraction, site_1, epoch 1 |",
        "**P1: confirmed.**",
        "**P2: refuted.**",
        "## Does the shape matter?",
        (reported / "tables" / "shapes.md").read_text().strip(),
        (reported / "tables" / "tuned.md").read_text().strip(),
        "](figures/survival.png)",
        # 24 born dead, 4 died and 3 revived of 80 units, none of them certified: 25 are dead at the end
        "| baseline | wave | site_1 | 80 | 24 | 4 | 3 | 0 | 25 | 0.312 [",
        "| tanh | wave | site_1 | 80 | 0 | 0 | 0 | - | 0 | 0 [0, 0] |",
        "| shallow | coin_flip | site_1 | 80 |",
        "| stuck vs 0 | wave | collapsed |",
        "## How this page was made",
        f"N = {PROBE_EXAMPLES} probe examples",
        "`relu-study run planted`",
        "versions: jax 0.10.2, numpy 2.4.0",
        "device: cpu: cpu",
    ]
    place = 0
    for part in order:
        assert part in text[place:], part
        place = text.index(part, place) + len(part)
    assert "Further results" not in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (reported / link).is_file(), link


def test_every_verdict_is_on_the_page_with_the_numbers_of_the_file(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    rows = read_csv(reported / "verdicts.csv", TEXTS)
    shown = [line.strip("| ").split(" | ") for line in text.splitlines() if " vs " in line]
    wanted = [
        [row.contrast, row.target, f"{row.effect:.3g} [{row.ci_lo:.3g}, {row.ci_hi:.3g}]", f"{row.n:.0f}", row.verdict]
        for row in rows[rows["contrast"] != "overall"].itertuples()
    ]
    assert [[cells[i] for i in (0, 1, 3, 5, 6)] for cells in shown] == wanted
    assert [cells[4] for cells in shown][:1] == ["< -0.05"]
    assert {cells[4] for cells in shown if cells[0].startswith("he_normal")} == {"within ±0.1", "within ±0.025"}
    assert {cells[4] for cells in shown if cells[0].startswith("stuck")} == {"> 0.05"}


def test_a_study_without_sections_gets_one_page_of_everything(whole: Path) -> None:
    text = (whole / "report.md").read_text()
    assert re.findall("^## (.*)", text, re.M) == ["Results", "Health", "How this page was made"]
    assert all((whole / "tables" / f"{name}.md").read_text().strip() in text for name in ("initialisers", "shapes", "tuned"))
    assert all(f"**{claim}: " in text for claim in ("P1", "P2", "P3"))


def test_items_without_a_section_come_last(bare: Path) -> None:
    section = {"title": "One", "text": "First.", "claims": ["P2"], "tables": ["shapes"], "figures": []}
    redeclare(bare, lambda d: d.update(sections=[section]))
    report(bare)
    text = (bare / "report.md").read_text()
    assert re.findall("^## (.*)", text, re.M) == ["One", "Further results", "Health", "How this page was made"]
    first, rest = text.split("## Further results")
    assert "**Shapes**" in first and "**P2: " in first and "**Shapes**" not in rest and "**P2: " not in rest
    assert "**At its best rate**" in rest and "**P3: " in rest


def test_custom_study_without_targets_tables_or_claims(bare: Path) -> None:
    def strip(declaration: dict) -> None:
        entries = [e for e in declaration["configurations"] if e["spec"]["target"] == "wave"]
        declaration.update(configurations=entries, targets=[], tables=[], claims=[])

    redeclare(bare, strip)
    report(bare)
    text = (bare / "report.md").read_text()
    assert "20 runs of 10 configurations with 2 seeds each, on the target wave: 19 ok, 1 nonfinite." in text
    assert not (bare / "tables").exists() and len(read_csv(bare / "verdicts.csv", TEXTS)) == 0


def test_claims_without_declared_targets_use_the_targets_of_their_arms(bare: Path) -> None:
    entries = [e for e in read_manifest(bare)["declaration"]["configurations"] if e["spec"]["target"] == "wave"]
    redeclare(bare, lambda d: d.update(configurations=entries, targets=[]))
    report(bare)
    rows = read_csv(bare / "verdicts.csv", TEXTS)
    rows = rows[rows["contrast"] != "overall"]
    assert len(rows) == 4 and set(rows["target"]) == {"wave"} and "not testable" not in set(rows["verdict"][:2])


# ------------------------------------------------------------------------------- clones, stale files


def test_clone_rebuilds_files_with_complete_inputs(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "planted", seeds=2, epochs=(0, 1, 2, 3, 5))  # 3 is no report epoch
    report(folder)
    clone = shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard"))
    for name in ("tables", "report.md", "figures/claims.png", "figures/survival.svg"):
        shutil.rmtree(clone / name) if (clone / name).is_dir() else (clone / name).unlink()
    said = report(clone)
    assert files(clone) == files(folder, "raw", "tensorboard")
    assert len(said) == 2 and "tensorboard/ stay unchanged" in said[0]
    assert re.search(
        r"figures.initialisers stays unchanged: it needs .*clone.raw \(summary.csv has the report epochs only\)", said[1]
    )


def test_a_clone_with_every_epoch_draws_its_curves_too(reported: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(reported, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard", "figures"))
    assert len(report(clone)) == 1
    assert files(clone) == files(reported, "raw", "tensorboard")


@pytest.mark.parametrize(
    ("gone", "needs"),
    [
        ("summary", ["summary.csv is missing", "tables stays unchanged: it needs runs.csv and summary.csv"]),
        ("verdicts", ["verdicts.csv is missing", "report.md stays unchanged: it needs runs.csv, units.csv and verdicts.csv"]),
        ("runs", ["runs.csv is missing", "tables stays unchanged", "report.md stays unchanged"]),
    ],
)
def test_clone_names_the_missing_file(whole: Path, gone: str, needs: list[str]) -> None:
    before = files(whole, "raw", f"{gone}.csv")
    shutil.rmtree(whole / "raw")
    (whole / f"{gone}.csv").unlink()
    said = report(whole)
    assert all(any(need in line for line in said) for need in needs)
    assert files(whole) == before


def test_folder_without_any_results_is_refused(bare: Path, tmp_path: Path) -> None:
    shutil.rmtree(bare / "raw")
    with pytest.raises(UserError, match="neither raw/ nor CSV files"):
        report(bare)
    assert list(files(bare)) == ["manifest.json"]
    with pytest.raises(UserError, match="is not a results folder"):
        report(tmp_path)


def test_files_of_an_earlier_declaration_are_removed(whole: Path) -> None:
    for name in ("figures/old.png", "figures/old.svg", "figures/notes.txt", "tables/mine.xlsx"):
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_text("mine")
    redeclare(whole, lambda d: d.update(tables=[t for t in d["tables"] if t["name"] != "shapes"]))
    said = report(whole)
    removed = [f"tables/shapes.{kind}" for kind in ("csv", "md", "tex")] + ["figures/old.png", "figures/old.svg"]
    assert said == [f"removed {whole / name}: the study no longer declares it at this preset" for name in removed]
    left = {name for name in files(whole) if name.startswith(("tables", "figures"))}
    assert left == {f"tables/{n}.{k}" for n in ("initialisers", "tuned") for k in ("csv", "md", "tex")} | {
        "figures/notes.txt",
        "tables/mine.xlsx",
    }


# ------------------------------------------------------------------------------- before anything ran


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["sections"][0].update(tables=["initialiser"]), "tables of .*matter.' 'initialiser'. Did you mean init"),
        (lambda d: d["sections"][1].update(claims=["P4"]), "claims of 'Does the shape matter.' 'P4'. Did you mean P"),
        (lambda d: d["sections"][0].update(figures=["claim"]), "Did you mean claims"),
        (lambda d: d["figures"][2].update(claims=["C1"]), "claims of 'claims' 'C1'"),
        (lambda d: d["tables"][0].update(name="../escape"), "'../escape' of tables cannot be a file name"),
        (lambda d: d["tables"][0].update(name="shapes"), "tables: 'shapes' is declared twice"),
        (lambda d: d["tables"][0].update(metrics=["los"]), "unknown metric of table initialisers 'los'"),
    ],
)
def test_declaration_with_unknown_names_is_refused(reported: Path, change: Callable[[dict], object], message: str) -> None:
    declaration = read_manifest(reported)["declaration"]
    check(parse_declaration(declaration))
    change(declaration)
    with pytest.raises(UserError, match=message):
        check(parse_declaration(declaration))


def test_numbers_of_the_files_agree_with_each_other(reported: Path) -> None:
    runs, summary = read_csv(reported / "runs.csv"), read_csv(reported / "summary.csv")
    last = summary[summary["epoch"] == 5].set_index(["config_id", "metric", "site"])["mean"]
    for name in [n for n in runs if "/" in n]:
        mean = runs.groupby("config_id")[name].mean().dropna()
        wanted = last.xs(tuple(name.split("/")), level=("metric", "site"))[mean.index]
        pd.testing.assert_series_equal(mean.astype(float), wanted, check_names=False, rtol=1e-5)
