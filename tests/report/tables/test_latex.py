"""Every LaTeX table compiled with a stock TeX: Debian's texlive-latex-recommended, which contains booktabs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from known_results import planted_folder

from relu_study.report.markup import RenderedTable, latex_table
from relu_study.report.report import report
from relu_study.report.tables.pivot_table import table
from relu_study.report.tables.study_tables import tables
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import frames

EVERY = "".join(chr(c) for c in range(32, 127))  # every printable character of ASCII in one name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_every_table_compiles_without_warnings(tmp_path: Path) -> None:
    planted_folder(tmp_path / "planted")
    report(tmp_path / "planted")
    manifest = read_declared(tmp_path / "planted")
    found = frames(collect(tmp_path / "planted", manifest), manifest)
    texts = [made["tex"] for made in tables(manifest, found["runs"], found["summary"]).values()]
    asked = {"metric": ["val_loss", "collapsed"], "baseline": "stuck", "where": ["target=wave"], "format": "latex"}
    texts.append(table(tmp_path / "planted", "arm", **asked))
    texts.append(table(tmp_path / "planted", "activation", "target", "dead_fraction", format="latex"))
    shown = RenderedTable(
        EVERY,
        [EVERY, "± †"],
        [[EVERY, "(-1.2 ± 0.1)e+07 ≈◦•"], ["β-VAE, λ → ∞, Δ ≤ 1, naïve", "0.5 [0.22, 0.78] (n=31/32)"]],
        {(0, 1)},
        1,
        EVERY,
    )
    texts.append(latex_table(shown, "tab:every"))
    page = "\n".join([r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", *texts, r"\end{document}"])
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")
    assert "Undefined" not in done.stdout
