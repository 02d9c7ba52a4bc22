"""The study files of the docs, run by the command as a reader would: from this tree and from an installed wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tiers import QUICK
from user_process import COMMANDS

STUDY, DRAWS = (
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)[0]
    for page in ("writing_a_study.md", "draw_studies.md")
)


def python(code: str, home: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(home), "XDG_CACHE_HOME": str(cwd / "cache"), "XLA_FLAGS": QUICK}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def relu_study(words: list[str], home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(f"import sys; sys.argv[1:] = {words!r}\nfrom relu_study.cli.commands import main; main()", home, cwd)


FEW = 'metrics=("val_loss", "dead_fraction", "certified_dead_fraction"), seeds=8,'  # they compile faster than all metrics


@pytest.fixture(params=["tree", pytest.param("wheel", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest) -> Path:
    return ROOT if request.param == "tree" else request.getfixturevalue("installed")


def test_studies_of_the_docs_run(home: Path, tmp_path: Path) -> None:
    """One process runs both. The wheel measures all metrics, as `test_docs.py` does from this tree."""
    assert len(STUDY.splitlines()) < 35 and STUDY.count("seeds=8,") == 1
    (tmp_path / "my_study.py").write_text(STUDY.replace("seeds=8,", FEW) if home == ROOT else STUDY)
    (tmp_path / "my_draws.py").write_text(DRAWS)
    done = python(COMMANDS, home, tmp_path, "run my_study.py;run my_draws.py")
    assert done.returncode == 0 and "report: results/ring/report.md\n" in done.stdout, done.stderr
    runs = (tmp_path / "results" / "ring" / "runs.csv").read_text()
    assert runs.count(",ok,") == 24 and "shifted_relu" in runs and "tiny" in runs
    assert (tmp_path / "results" / "ring" / "figures" / "main.png").stat().st_size > 10_000
    assert "S1" in (tmp_path / "results" / "ring" / "verdicts.csv").read_text()
    assert "report: results/half_off/report.md\n" in done.stdout
    assert "**H1: confirmed.**" in (tmp_path / "results" / "half_off" / "report.md").read_text()


@pytest.mark.slow
def test_the_studies_are_found_in_a_wheel(installed: Path, tmp_path: Path) -> None:
    listed = relu_study(["list"], installed, tmp_path)
    assert "article" in listed.stdout and "speed" not in listed.stdout, listed.stderr
    assert not (installed / "benchmarks").exists()
    planned = relu_study(["plan", "article"], installed, tmp_path)
    assert planned.returncode == 0 and "624 runs to train" in planned.stdout, planned.stderr
