"""The study that `startup.py` calls the README's first study is the README's."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_first_study_is_that_of_the_readme() -> None:
    study = (ROOT / "benchmarks" / "speed" / "startup_studies" / "first.py").read_text()
    lines = study[study.index("base = ") :].splitlines()
    readme = (ROOT / "README.md").read_text()
    assert len(lines) == 3 and "\n".join(lines) in readme
