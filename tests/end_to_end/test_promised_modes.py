"""Promised modes: double precision, streams without UTF-8, home folders, sizes, and user settings."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from event_reader import read as read_events
from known_results import planted_arms, planted_folder, planted_study
from minimal_folders import EPOCHS, trained
from paths import ROOT

from relu_study import RunSpec, Study, UserError, compare, figure, load, table
from relu_study.cli.encoding import write_plainly
from relu_study.components.metrics.metric import metric
from relu_study.components.registry import metrics
from relu_study.components.tasks.task import LOSSES
from relu_study.engine import train_tile
from relu_study.report.report import report
from relu_study.report.tables.entries import RunLookup
from relu_study.report.tensorboard import server
from relu_study.report.tensorboard.event_files import run_names
from relu_study.storage.configurations import collect
from relu_study.storage.frames import summary_frame
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.tile_files import read_tile, tile_paths, write_tile
from relu_study.storage.tile_identity import number_type
from relu_study.study.draw_study import Draws
from relu_study.study.study import MAX_RUNS, Experiment

Here = Callable[..., tuple[int, str, str]]
SCRIPTS = "激活函数 نشط 🔥 Ωмега ±≈◦•†"


def command(*words: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `python -W default -m relu_study` or other code as a user's process."""
    start = ["-c", code] if code else ["-m", "relu_study"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([sys.executable, "-W", "default", *start, *words], capture_output=True, env=variables, timeout=300)


# ------------------------------------------------------------------------------------------ double precision


def in_doubles(folder: Path) -> Path:
    """The minimal folder as stored under double precision, with one value outside single precision."""
    trained(folder)
    manifest = read_manifest(folder)
    made = {**manifest["provenance"], "precision": "float64"}
    for path in tile_paths(folder):
        tile = read_tile(path)
        tile["provenance"] = np.array(json.dumps({**json.loads(str(tile["provenance"])), "precision": "float64"}))
        doubles = {name: values.astype(np.float64) for name, values in tile.items() if name.startswith("metric:")}
        doubles["metric:val_loss/all"] += 1e-12 / 3
        path.unlink()
        write_tile(folder, tile | doubles)
    write_manifest(folder, {**manifest, "provenance": made})
    report(folder)
    return folder


def test_doubles_are_read_from_tiles_and_from_files_to_the_last_bit(tmp_path: Path) -> None:
    folder = in_doubles(tmp_path / "doubles")
    results = load(folder)
    assert results.curves["value"].dtype == np.float64
    raw = next(iter(collect(folder).values())).values["val_loss/all"]
    assert raw.dtype == np.float64 and (raw != raw.astype(np.float32)).all()
    stored = results.runs.set_index("run_id")["val_loss/all"]
    config = next(iter(collect(folder).values()))
    assert stored.dtype == np.float64 and stored[config.run_ids].tolist() == raw[:, -1].tolist()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert report(folder) == [] and {path: path.read_bytes() for path in before} == before
    assert "val loss" in table(folder) and len(compare(folder)) == 1
    assert figure(folder, "curves", metrics="val_loss", out=tmp_path / "curves.png")[0].stat().st_size > 5_000


@pytest.mark.parametrize("said", ["float32", "float64"])
def test_a_tile_of_another_precision_than_its_provenance_is_refused(tmp_path: Path, said: str) -> None:
    folder = in_doubles(tmp_path / "doubles")
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["provenance"] = np.array(json.dumps({**json.loads(str(tile["provenance"])), "precision": said}))
    if said == "float64":
        tile["metric:val_loss/all"] = tile["metric:val_loss/all"].astype(np.float32)
    write_tile(folder, tile)
    with pytest.raises(UserError, match=r"metric:.* does not fit"):
        read_tile(path)


def test_the_type_of_numbers_is_that_of_the_precision() -> None:
    assert [number_type(made) for made in ({}, {"precision": "float32"}, {"precision": "float64"})] == [
        np.float32,
        np.float32,
        np.float64,
    ]


X64 = """
import sys
import jax
if sys.argv[2] == "update":
    jax.config.update("jax_enable_x64", True)
from relu_study import Draws, DrawStudy, Experiment, RunSpec, Study, run, run_draws, table
base = RunSpec(rows=60, epochs=2, depth=2, width=4, batch_size=28, initializer="he_normal")
{study}
"""
TRAINED = """
arms = {"adam": base, "batch": base.replace(norm="batch_norm"), "layer": base.replace(norm="layer_norm"),
        "crelu": base.replace(activation="crelu"),
        "drop": base.replace(dropout="dropout", dropout_rate=0.25), 
        "momentum": base.replace(optimizer="momentum"),
        "rmsprop": base.replace(optimizer="rmsprop"), "digits": base.replace(task="digits"),
        "lu": base.replace(task="lu_targets")}
arms |= {name: base.replace(initializer=name) for name in ("orthogonal", "rai", "sign_flip",
         "negative_uniform", "pytorch_default")}
study = Study("x64", "Double", "?", [Experiment("main", arms)], seeds=2)
for _ in range(2):
    found = run(study, sys.argv[1])
    assert (found.runs.status == "ok").all() and str(found.runs["val_loss/all"].dtype) == "float64"
print(table(sys.argv[1]))
"""
DRAWN = """
from relu_study.components.registry import statistics
study = DrawStudy("d64", "Double", "?", [Draws(name, name, {"all": {}}, 20) for name in statistics])
for _ in range(2):
    found = run_draws(study, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("study", [TRAINED, DRAWN], ids=["trained", "drawn"])
@pytest.mark.parametrize("how", ["environment", "update"])
def test_double_precision_works_end_to_end(tmp_path: Path, study: str, how: str) -> None:
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    done = command(str(tmp_path / "out"), how, code=X64.replace("{study}", study), **given)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert read_manifest(tmp_path / "out")["provenance"]["precision"] == "float64"
    again = command("report", str(tmp_path / "out"))
    assert again.returncode == 0 and not again.stderr, again.stderr.decode()


STUDY64 = """
import jax
if "update" in __file__:
    jax.config.update("jax_enable_x64", True)
from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=60, epochs=2, depth=1, width=4, batch_size=28, initializer="he_normal")
arms = {"relu": base, "tanh": base.replace(activation="tanh")}
study = Study("double", "Double", "?", [Experiment("main", arms)], seeds=3, metrics=("val_loss",))
"""
DRAWS64 = """
import jax
if "update" in __file__:
    jax.config.update("jax_enable_x64", True)
from relu_study import Draws, DrawStudy
study = DrawStudy("drawn64", "Double", "?", [Draws("dead_unit", "dead_unit", {"all": {}}, 3000)])
"""
COMMANDS = """
import sys
from relu_study.cli.commands import main
for words in sys.argv[1].split(";"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, end
"""


def commands(*lines: str, **environment: str) -> str:
    """Return the output of several commands run in one process."""
    done = command(";".join(lines), code=COMMANDS, **environment)
    assert done.returncode == 0 and b"arning" not in done.stderr, done.stderr.decode()
    return done.stdout.decode()


def doubles_of(folder: Path) -> dict[str, np.ndarray]:
    """Return run_id -> every metric of a stored run."""
    found = {}
    for path in tile_paths(folder):
        tile = read_tile(path)
        names = sorted(name for name in tile if name.startswith("metric:"))
        assert all(tile[name].dtype == np.float64 for name in names)
        found |= {str(run): np.stack([tile[name][row] for name in names]) for row, run in enumerate(tile["run_id"])}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["environment", "update"])
def test_commands_resume_and_retrain_in_double_precision(tmp_path: Path, how: str) -> None:
    study, parts, whole, one = (tmp_path / name for name in (f"{how}.py", "parts", "whole", "one"))
    study.write_text(STUDY64)
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    run = f"run {study} --out"
    commands(f"{run} {parts} --seeds 2", f"{run} {parts}", f"{run} {whole}", **given)
    stored = doubles_of(whole)
    assert len(stored) == 6 and any(
        (values != values.astype(np.float32))[np.isfinite(values)].any() for values in stored.values()
    )
    resumed = doubles_of(parts)
    assert resumed.keys() == stored.keys() and all(np.array_equal(resumed[run], stored[run], equal_nan=True) for run in stored)
    chosen = sorted(stored)[3]
    said = commands(
        f"run {study} --only {chosen} --widths-from {whole} --out {one}", f"report {whole}", f"table {whole}", **given
    )
    (row,) = (line for line in (whole / "runs.csv").read_text().splitlines() if line.startswith(chosen))
    assert row in said.splitlines() and row in (one / "runs.csv").read_text() and "| relu |" in said
    assert np.array_equal(doubles_of(one)[chosen], stored[chosen], equal_nan=True)
    manifest = read_manifest(whole)
    assert manifest["provenance"]["precision"] == "float64"
    summary = summary_frame(collect(whole, manifest), manifest)
    for config_id, name in run_names(manifest).items():
        series = read_events(whole / "tensorboard" / name)
        rows = summary[(summary["config_id"] == config_id) & (summary["metric"] == "val_loss")]
        for tag, column in (("mean", "mean"), ("lo", "ci_lo"), ("hi", "ci_hi")):
            wanted = {int(epoch): float(np.float32(value)) for epoch, value in zip(rows["epoch"], rows[column], strict=True)}
            assert series[f"val_loss/all/{tag}"] == wanted and len(wanted) == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["environment", "update"])
def test_draws_resume_in_double_precision(tmp_path: Path, how: str) -> None:
    study, parts, whole = (tmp_path / name for name in (f"{how}.py", "parts", "whole"))
    study.write_text(DRAWS64)
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    run = f"run {study} --out"
    commands(f"{run} {parts} --max-draws 1000", f"{run} {parts}", f"report {parts}", f"{run} {whole}", **given)
    assert read_manifest(parts)["provenance"]["precision"] == "float64"
    assert (parts / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()


# -------------------------------------------------------------------------------- missing and nonfinite


def test_a_half_finished_sweep_says_what_is_not_run(tmp_path: Path) -> None:
    lost = planted_arms(planted_study())["he_normal", "wave"]
    folder = planted_folder(tmp_path / "planted", left_out=tuple(lost.replace(seed=s).run_id for s in (0, 6)))
    report(folder) if not (folder / "runs.csv").is_file() else None
    made = table(folder, metric=["val_loss", "dead_fraction"], where="target=wave")
    (line,) = (line for line in made.splitlines() if line.startswith("| he_normal"))
    assert line.count(" n=5/8 (1 nonfinite, 2 not run)") == 2, made
    assert "why the others have none" in made
    assert "n=" not in next(line for line in made.splitlines() if line.startswith("| lecun_normal"))


def without_loss(folder: Path, epoch: int, last: int = len(EPOCHS)) -> Path:
    """The minimal folder with one NaN validation loss at some epochs. Its run is finite."""
    trained(folder)
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["metric:val_loss/all"][1, epoch:last] = np.nan
    write_tile(folder, tile)
    report(folder)
    return folder


def test_a_validation_loss_that_is_no_number_is_counted_as_nonfinite(tmp_path: Path) -> None:
    folder = without_loss(tmp_path / "one", 1)
    arm = load(folder).runs.query("`val_loss/all`.isna()")["activation"].item()
    made = table(folder, metric=["val_loss", "dead_fraction"])
    (line,) = (line for line in made.splitlines() if line.startswith(f"| {arm} "))
    assert "(n=2/3) |" in line and line.count("n=") == 1
    summary = load(folder).summary.query("metric == 'val_loss' and activation == @arm").set_index("epoch")["n_finite"]
    assert summary.to_dict() == {0: 3, 1: 2, 2: 2}
    assert "In 1 of the ok runs the validation loss went nonfinite. Dead units" in (folder / "report.md").read_text()
    assert "went nonfinite" not in (trained(tmp_path / "whole") / "report.md").read_text()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_make_their_loss_and_so_their_run_nonfinite(loss: str, bad: float) -> None:
    """So every metric of these outputs is missing: a share of right answers counts them as wrong."""
    outputs = 1 if loss == "bce" else 3
    for example, column in np.ndindex(4, outputs):
        prediction = np.random.default_rng(0).normal(size=(4, outputs)).astype(np.float32)
        prediction[example, column] = bad
        for label in range(2 if loss == "bce" else outputs):
            y = np.full((4, 1), label) if loss == "bce" else np.eye(outputs)[[label] * 4]
            assert not np.isfinite(LOSSES[loss](jnp.asarray(prediction), jnp.asarray(y, jnp.float32)))


def test_a_metric_that_reads_the_validation_loss_is_lost_with_it() -> None:
    loss = np.array([[1, 1, 1], [1, np.nan, 1], [1, 1, np.inf], [np.nan, 1, 1]])
    measured = [
        {
            "finite": np.ones(4, bool),
            "metric:val_loss/all": loss[:, e],
            "metric:_low/all": loss[:, e] < 2,
            "metric:other/all": [1] * 4,
        }
        for e in range(3)
    ]
    measured = [{name: np.array(value, float) if "metric" in name else value for name, value in e.items()} for e in measured]
    runs = [RunSpec(seed=seed) for seed in range(4)]
    try:

        @metric("_low", per="network", unit="0 or 1", requires=("val_loss",))
        def low(snapshot):
            """1 where the validation loss is low; 0 where it is no number."""
            return snapshot.val_loss < 2

        tile = train_tile.fetch(train_tile.QueuedTile(runs, np.arange(3.0), {}, {}, measured, None, 8, []))
    finally:
        metrics._entries.pop("_low")
    kept = [[True] * 3, [True, False, False], [True, True, False], [False] * 3]
    for name in ("val_loss", "_low"):
        assert np.isfinite(tile[f"metric:{name}/all"]).tolist() == kept
    assert np.isfinite(tile["metric:other/all"]).all() and set(tile["status"]) == {"ok"}


def test_a_run_without_a_validation_loss_is_nonfinite_in_a_metric_that_reads_it(tmp_path: Path) -> None:
    runs = load(without_loss(tmp_path / "one", 1)).runs
    lost = runs["val_loss/all"].isna()
    frame = runs.assign(**{"gap/all": np.where(lost, np.nan, 1.0), "few/all": np.where(runs["seed"] == 1, np.nan, 1.0)})
    config_id = runs["config_id"][lost].item()
    assert RunLookup(frame).cell(config_id, "gap", "all").count == "n=2/3"
    other = next(name for name in runs["config_id"] if name != config_id)
    assert RunLookup(frame).cell(other, "few", "all").count == "n=2/3 (1 not measured)"


@pytest.mark.parametrize("epoch", ["last", 1])
def test_a_validation_loss_of_no_run_at_all_names_its_reason(tmp_path: Path, epoch: str | int) -> None:
    folder = trained(tmp_path / "none")
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["metric:val_loss/all"][:, 1:] = np.nan
    write_tile(folder, tile)
    report(folder)
    assert table(folder, epoch=epoch).count("| - (n=0/3) |") == 1


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_any_stream_takes_any_text(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    write_plainly(stream)
    stream.write(SCRIPTS + " naïve \udce7")
    stream.flush()
    said, byte = raw.getvalue()[:-1], raw.getvalue()[-1:]
    assert byte == b"\xe7"  # of a file's name that is no text: as the system gave it
    if encoding == "utf-8":
        assert said.decode() == SCRIPTS + " naïve "
    else:
        assert b"\\u6fc0" in said and "ï" not in said.decode(encoding).replace("naïve", "")
    if encoding == "ascii":
        assert said.endswith(b"+-~o*+ naive ")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp437"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "cp437", "posix"],
)
def test_commands_write_to_streams_that_are_not_utf8(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = trained(tmp_path / "研究")
    done = command(";".join(f"{verb} {folder}" for verb in ("table", "compare", "report")), code=COMMANDS, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert b"| relu |" in done.stdout and b"\xc2\xb1" not in done.stdout
    wrong = command("table", str(tmp_path / "研究室"), **environment)
    assert (
        wrong.returncode == 2 and b"Traceback" not in wrong.stderr and wrong.stderr.startswith(b"relu-study: There is no folder")
    )


SCRIPTED = """
from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=60, width=4, epochs=1, batch_size=30)
arms = {"激活 Ω": base, "naïve ± ≈": base.replace(activation="tanh")}
study = Study("scripts", "激活 “Ω” ≤ ±", "Naïve?", [Experiment("main", arms)], seeds=2, metrics=("val_loss",))
"""
SAID = """
import io
import sys
from relu_study.cli.commands import main
encoding = sys.argv[1]
for words in [["list"], ["plan", "own.py", "--no-memory"], ["run", "own.py", "--out", "~/研究"], ["table", "~/研究"],
              ["compare", "~/研究"], ["report", "~/研究"], ["table", "~/研室"], ["run", "own.py", "--seeds", "½"],
              ["plan", "激活"]]:
    raw = [io.BytesIO(), io.BytesIO()]
    sys.stdout, sys.stderr = (io.TextIOWrapper(one, encoding=encoding) for one in raw)
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush(), sys.stderr.flush()
        status = end.code
    for one in raw:
        text = one.getvalue()
        text.decode(encoding)
        assert b"Traceback" not in text and b"?" not in text.replace(b"did you mean", b"").replace(b"? ", b""), (words, text)
        sys.__stdout__.buffer.write(f"{words} {status}\\n".encode() + text + b"\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1"])
def test_every_command_writes_to_a_stream_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "own.py").write_text(SCRIPTED, encoding="utf-8")
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
    }
    words = [sys.executable, "-c", SAID, encoding]
    done = subprocess.run(words, capture_output=True, env=variables, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout
    assert (tmp_path / "研究/runs.csv").is_file() and not (tmp_path / "~").exists()
    statuses = [int(line.rpartition(b" ")[2]) for line in said.splitlines() if line.startswith(b"['")]
    assert statuses == [0] * 12 + [2] * 6
    assert b"\\u6fc0\\u6d3b" in said and said.count(b"relu-study: ") == 2
    for letter, plain in {"±": "+-", "Ω": "\\u03a9", "≈": "~"}.items():
        try:
            wanted = letter.encode(encoding)
        except UnicodeEncodeError:
            wanted = plain.encode()
        assert wanted in said, letter


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["cp1252", "posix"]
)
def test_the_module_lists_and_refuses_on_streams_that_are_not_utf8(tmp_path: Path, environment: dict[str, str]) -> None:
    listed, unknown = command("list", **environment), command("table", str(tmp_path / "激活"), **environment)
    assert listed.returncode == 0 and b"article" in listed.stdout and not listed.stderr
    assert unknown.returncode == 2 and b"\\u6fc0\\u6d3b" in unknown.stderr and unknown.stderr.count(b"\n") == 1


# -------------------------------------------------------------------------------------- homes and settings


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
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
import jax.numpy as jnp
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


def test_a_users_own_settings_move_no_byte(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("how", ["python", pytest.param("command", marks=pytest.mark.slow)])
def test_warnings_of_libraries_reach_nobody(tmp_path: Path, how: str) -> None:
    (tmp_path / "own.py").write_text(WARNED.replace('"study" not in __name__', str(how == "python")))
    words = [str(tmp_path / "own.py"), str(tmp_path / "out")]
    if how == "command":
        words = ["-m", "relu_study", "run", words[0], "--out", words[1]]
    given = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    given |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *words], capture_output=True, env=given, timeout=300)
    assert done.returncode == 0 and b"arning" not in done.stderr, done.stderr.decode()
    assert (tmp_path / "out/figures/a.png").is_file()


def test_letters_that_the_font_lacks_warn_nobody() -> None:
    from matplotlib.figure import Figure

    from relu_study.report.figures.canvas import render

    def draw() -> Figure:
        picture = Figure()
        picture.text(0.1, 0.1, SCRIPTS)
        return picture

    assert set(render(draw, ("png", "svg", "pdf"))) == {"png", "svg", "pdf"}  # warnings are errors here


# --------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("seeds", [2**32 + 1, 5_000_000_000, 10**30])
def test_more_seeds_than_there_are_are_refused(seeds: int) -> None:
    with pytest.raises(UserError, match="seeds must be at most 2"):
        Study("many", "Many", "?", [Experiment("main", {"relu": RunSpec()})], seeds=seeds)
    with pytest.raises(UserError, match="draws must be at most 2"):
        Draws("many", "dead_unit", {"all": {}}, seeds)


def test_more_runs_than_can_be_listed_are_refused_before_they_are(here: Here) -> None:
    study = Study("many", "Many", "?", [Experiment("main", {"relu": RunSpec(), "tanh": RunSpec(activation="tanh")})])
    with pytest.raises(UserError, match=r"2 configurations make 800,000,000 runs.*at most 1,000,000 seeds"):
        study.with_preset(seeds=400_000_000)
    assert study.with_preset(seeds=MAX_RUNS // 2).seeds == MAX_RUNS // 2
    for verb in ("plan", "run"):
        for seeds in ("5000000000", "400000000"):
            status, _, said = here(verb, "article", "--seeds", seeds)
            assert status == 2 and said.count("\n") == 1 and "seeds" in said


# -------------------------------------------------------------------------------------------- TensorBoard


class Started:
    """A stand-in for TensorBoard that prints an address and ends."""

    def __init__(self, words: list[str], said: str) -> None:
        self.words, self.stderr = words, io.StringIO(said)

    def wait(self) -> int:
        return 0

    def terminate(self) -> None:
        pass


def test_view_passes_its_path_and_tensorboards_own_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
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
