"""A user's home folder, library settings, warnings and TensorBoard options."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from minimal_folders import trained
from paths import ROOT
from tiers import QUICK
from user_process import SCRIPTS, command

from relu_study import compare, load, table
from relu_study.report.tensorboard import server

Here = Callable[..., tuple[int, str, str]]


def test_tilde_is_the_users_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    trained(tmp_path / "home/study")
    for words in (("table",), ("compare",), ("report",)):
        assert here(*words, "~/study")[0] == 0
    status, said, _ = here("figure", "~/study", "--kind", "curves", "--metric", "val_loss", "--out", "~/study/mine.png")
    assert status == 0 and (tmp_path / "home/study/mine.png").is_file() and "~" not in said
    assert len(load("~/study").runs) == 6 and "val loss" in table("~/study") and len(compare("~/study")) == 1


HOSTILE = """
import sys
import numpy as np
import pandas as pd
if sys.argv[3:]:
    np.seterr(all="raise")
    np.set_printoptions(precision=1, legacy="1.13")
    for name, value in {"styler.format.escape": "latex", "styler.latex.environment": "longtable", "display.precision": 1,
                        "display.float_format": "{:.1f}".format, "mode.string_storage": "python"}.items():
        pd.set_option(name, value)
from relu_study import figure, table
from relu_study.report.report import report
report(sys.argv[1])
for kind in ("csv", "latex", "markdown"):
    with open(f"{sys.argv[2]}.{kind}", "w") as file:
        file.write(table(sys.argv[1], metric=["val_loss", "dead_fraction"], format=kind))
figure(sys.argv[1], "map", metrics="val_loss", rows="activation", cols="width", out=[f"{sys.argv[2]}.png", f"{sys.argv[2]}.pdf"])
figure(sys.argv[1], "curves", metrics="val_loss", out=f"{sys.argv[2]}.svg")
"""

MATPLOTLIBRC = (
    "text.usetex: True\nfigure.dpi: 300\nsavefig.dpi: 33\nsavefig.bbox: tight\nfont.size: 20\nimage.lut: 8\naxes.grid: True\n"
)


def test_user_settings_change_no_byte(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    for name, hostile in (("plain", ()), ("hostile", ("yes",))):
        trained(tmp_path / name / "study")
        given = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")} if hostile else {}
        words = (str(tmp_path / name / "study"), str(tmp_path / name / "mine"), *hostile)
        done = command(*words, code=HOSTILE, **given)
        assert done.returncode == 0, done.stderr.decode()
    plain, hostile = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("plain", "hostile")
    )
    assert plain.keys() == hostile.keys() and [name for name in plain if plain[name] != hostile[name]] == []


WARNED = """
import sys
import warnings
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
seen = []
if "study" not in __name__:
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: seen.append(str(message))
np.seterr(all="warn")
matplotlib.rcParams.update({"font.family": "No such font", "figure.max_open_warning": 1, "figure.autolayout": True})
pd.set_option("display.precision", 1)
from relu_study import Experiment, Figure, RunSpec, Signature, Study, Table, Task, figure, run, table, task

@task("doubles")
def doubles(spec):
    def sample(key, phase):
        warnings.warn("mine")
        x = jax.random.uniform(key, (60, 2), jnp.float64, -1.0, 1.0) + jnp.asarray([0.0, 0.0], jnp.float64)
        return x, x[:, :1].astype(np.float64)
    return Task(Signature(30, 30, 2, 1), sample)

base = RunSpec(rows=60, width=4, epochs=1, batch_size=30, task="doubles")
arms = {"激活 $x_": base, "bad": base.replace(learning_rate=1e30)}
figures = [Figure("a", "激活", "curves", ("main",), metrics=("val_loss",))]
tables = [Table("t", "T", ("main",), ("val_loss", "dead_fraction"), baseline="bad")]
study = Study("warned", "W", "?", [Experiment("main", arms)], seeds=2, tables=tables, figures=figures, metrics=("val_loss",))
if "study" not in __name__:
    run(study, sys.argv[1])
    table(sys.argv[1], format="latex")
    figure(sys.argv[1], "curves", metrics="val_loss", out=sys.argv[1] + "/x.pdf")
    assert set(seen) == {"mine"}, seen
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["python", pytest.param("command", marks=pytest.mark.slow)])
def test_library_warnings_are_not_shown(tmp_path: Path, how: str) -> None:
    (tmp_path / "own.py").write_text(WARNED.replace('"study" not in __name__', str(how == "python")))
    words = [str(tmp_path / "own.py"), str(tmp_path / "out")]
    if how == "command":
        words = ["-m", "relu_study", "run", words[0], "--out", words[1]]
    given = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    given |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    done = subprocess.run([sys.executable, *words], capture_output=True, env=given, timeout=300)
    assert done.returncode == 0 and b"arning" not in done.stderr, done.stderr.decode()
    assert (tmp_path / "out/figures/a.png").is_file()


def test_missing_glyphs_give_no_warning() -> None:
    from matplotlib.figure import Figure

    from relu_study.report.figures.canvas import render

    def draw() -> Figure:
        picture = Figure()
        picture.text(0.1, 0.1, SCRIPTS)
        return picture

    assert set(render(draw, ("png", "svg", "pdf"))) == {"png", "svg", "pdf"}  # warnings are errors here


class Started:
    """A stand-in for TensorBoard that prints an address and ends."""

    def __init__(self, words: list[str], said: str) -> None:
        self.words, self.stderr = words, io.StringIO(said)

    def wait(self) -> int:
        return 0

    def terminate(self) -> None:
        pass


def test_view_passes_options_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    trained(tmp_path / "out")
    started: list[Started] = []

    def start(words: list[str], **_: object) -> Started:
        started.append(
            Started(words, "TensorFlow installation not found\nTensorBoard 2.21.0 at http://localhost:6006/tb/ (Press CTRL+C)\n")
        )
        return started[-1]

    monkeypatch.setattr(server.subprocess, "Popen", start)
    status, said, noise = here("view", "out", "--path-prefix", "/tb", "--", "--reload_interval", "5")
    assert (status, said, noise) == (0, "http://localhost:6006/tb/\n", "")
    assert started[0].words[-3:] == ["--path_prefix=/tb", "--reload_interval", "5"]
    here("view", "out")
    assert not any("path_prefix" in word for word in started[1].words)


def test_pandas_options_do_not_reach_a_csv(tmp_path: Path) -> None:
    folder = trained(tmp_path / "out")
    with pd.option_context("display.precision", 1, "display.float_format", "{:.1f}".format):
        assert table(folder, format="csv") == table(trained(tmp_path / "other"), format="csv")
