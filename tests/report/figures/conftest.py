"""Fixtures of the tests of figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from rendered import numbers, planted

from relu_study.report.figures import study_figures


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the planted figures, drawn by a reader with settings of their own."""
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "lines.linewidth": 9, "axes.facecolor": "red"}):
        paths = study_figures.draw_from(planted()[0], numbers(), tmp_path_factory.mktemp("written"))
        assert matplotlib.rcParams["font.size"] == 20
    return paths
