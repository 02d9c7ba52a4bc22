"""A sweep with bad runs from training to its last file: every other row keeps its bytes, and every writer works.

The sweep runs twice, healthy and spoiled. In the spoiled one, seed 3 of two arms begins with NaN in its weights or its data, and
two arms diverge by their learning rates. The spoiled runs replace padding, so both sweeps have the same tile width. In
`test_bits.py` they replace other runs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import drawn
from small_study import base
from tensorboardX.proto.event_pb2 import Event

from relu_study.components import random_streams
from relu_study.components.activations import activation
from relu_study.components.initializers import he_normal, initializer
from relu_study.components.registry import activations, initializers, statistics, tasks
from relu_study.components.tasks.task import Task, task
from relu_study.components.untrained.statistic import Quantity, statistic
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.report.tensorboard import plugins
from relu_study.report.tensorboard.event_files import EVENT_FILE
from relu_study.runner import run as runner
from relu_study.runner.run import run_draws
from relu_study.storage import manifest
from relu_study.study.claims import Claim
from relu_study.study.draw_study import Draws, DrawStudy, cell_id, grid_cells
from relu_study.study.outputs import CellFigure, CellTable, Figure, Table
from relu_study.study.study import Experiment, Study

BAD = 3  # the seed of spoiled runs
SPOILED = {"weights", "data"}
HOPELESS = {"rate", "infinite rate"}


def is_bad(key: Any, *path: Any) -> Any:
    return jnp.all(jax.random.key_data(key) == jax.random.key_data(random_streams.stream(BAD, *path)))


def spoiled_weights(key, layer, inputs):
    kernel, bias = he_normal.function(key, layer, inputs)
    return jnp.where(is_bad(key, "init", layer.index), jnp.nan, kernel), bias


def spoiled_zero(key, layer, inputs):
    kernel, bias = he_normal.function(key, layer, inputs)
    return jnp.where(is_bad(key, "init", layer.index), 0.0, kernel), bias


def spoiled_data(spec):
    healthy = tasks["negative_box"](spec)

    def sample(key, phase):
        x, y = healthy.sample(key, phase)
        return x.at[7, 0].set(jnp.where(is_bad(key, "data", phase), jnp.nan, x[7, 0])), y

    return Task(healthy.signature, jax.jit(sample, static_argnums=1), healthy.box)


def root(z):
    """A finite activation with a nonfinite slope at 0."""
    return jnp.sqrt(jnp.abs(z))


@pytest.fixture(scope="module", autouse=True)
def _registered(one_device: None) -> Iterator[None]:
    """Register components for these tests only, since other tests iterate over all registered ones."""
    before = [(registry, dict(registry._entries)) for registry in (activations, initializers, statistics, tasks)]
    initializer("spoiled_weights", needs_inputs=False)(spoiled_weights)
    initializer("spoiled_zero", needs_inputs=False)(spoiled_zero)
    task("spoiled_data")(spoiled_data)
    activation("root")(root)
    yield
    for registry, entries in before:
        registry._entries = entries


KINDS = {
    "curves": {"metrics": ("val_loss", "grad_norm")},
    "survival": {},
    "forest": {"claims": ("A", "B", "C")},
    "depth": {"metrics": ("dead_fraction", "grad_norm"), "epoch": (0, "last")},
    "histograms": {"metrics": ("post/site_1", "gradient/*")},
    "map": {"metrics": ("val_loss",), "rows": "learning_rate", "cols": "initializer"},
}


def sweep(bad: bool) -> Study:
    """Return eighteen runs of one program if healthy, twenty if spoiled: two tiles of 16 in both cases."""
    good = {"relu": base, "lecun": base.replace(initializer="lecun_normal")}
    spoiled = {"weights": base.replace(initializer="spoiled_weights"), "data": base.replace(task="spoiled_data")}
    rates = {"rate": base.replace(learning_rate=1e30), "infinite rate": base.replace(learning_rate=1e300)}
    healthy = {"rate": base.replace(learning_rate=2e-3), "infinite rate": base.replace(learning_rate=3e-3)}
    claims = [
        Claim("A", "One start keeps more units.", "dead_fraction", "lecun", "relu", "less", margin=0.05),
        Claim("B", "So does what was spoiled.", "val_loss", "weights", "relu", "equivalent", margin=0.1),
        Claim("C", "So does a rate that blows up.", "val_loss", "rate", "relu", "less", margin=0.1),
    ]
    shown = ("val_loss", "dead_fraction", "collapsed")
    return Study(
        "spoiled", "Spoiled", "Who is harmed?",
        [
            Experiment("good", good),
            Experiment("spoiled", spoiled, seeds=BAD + bad),
            Experiment("rates", rates if bad else healthy),
        ],
        seeds=BAD,
        claims=claims if bad else claims[:2],
        tables=[Table("good", "Good.", ("good",), shown), Table("all", "All.", ("good", "spoiled", "rates"), shown)],
        figures=[Figure(k, k, k, **about) for k, about in KINDS.items()] if bad else [],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the healthy and the spoiled sweep."""
    place = tmp_path_factory.mktemp("results")
    for name, bad in (("healthy", False), ("spoiled", True)):
        runner.run(sweep(bad), place / name, per_seed=bad, all_epochs=bad)
    return place / "healthy", place / "spoiled"


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_arms(study: Study, *experiments: str) -> dict[str, str]:
    """Return config_id -> arm."""
    return {spec.config_id: arm for e, arm, spec in study.configurations() if e in experiments}


def test_both_sweeps_have_the_same_width(folders: tuple[Path, Path]) -> None:
    widths = [manifest.read_manifest(folder)["widths"] for folder in folders]
    assert widths[0] == widths[1] and manifest.read_manifest(folders[1])["counts"] == {"ok": 12, "nonfinite": 8, "interrupted": 0}


@pytest.mark.parametrize("name", ["runs", "summary", "units", "survival", "experiments"])
def test_every_other_row_keeps_its_bytes(name: str, folders: tuple[Path, Path]) -> None:
    good = of_arms(sweep(True), "good", "spoiled") if name == "runs" else of_arms(sweep(True), "good")
    healthy, spoiled = (
        [line for line in (folder / f"{name}.csv").read_text().splitlines() if set(line.split(",")) & good.keys()]
        for folder in folders
    )
    bad = {row["run_id"] for row in rows(folders[1], "runs") if row["status"] == "nonfinite"}
    assert [line for line in spoiled if line.split(",")[0] not in bad] == healthy and len(healthy) >= 2
    first, second = (list(rows(folder, name)[0]) for folder in folders)
    assert first == second


def test_verdicts_and_tables_of_other_arms_keep_their_bytes(folders: tuple[Path, Path]) -> None:
    healthy, spoiled = ([row for row in rows(folder, "verdicts") if row["claim"] != "C"] for folder in folders)
    assert healthy == spoiled and {row["n"] for row in spoiled if row["n"]} == {str(BAD)}, "pairs of finite runs"
    assert {row["verdict"] for row in rows(folders[1], "verdicts") if row["claim"] == "C"} == {"not testable"}
    for suffix in ("csv", "md", "tex"):
        assert (folders[0] / f"tables/good.{suffix}").read_bytes() == (folders[1] / f"tables/good.{suffix}").read_bytes()


def test_nonfinite_run_has_its_first_bad_epoch_and_no_numbers(folders: tuple[Path, Path]) -> None:
    arms = of_arms(sweep(True), "good", "spoiled", "rates")
    first = {"weights": "0", "data": "0", "rate": "1", "infinite rate": "1"}
    for row in rows(folders[1], "runs"):
        arm = arms[row["config_id"]]
        if arm in HOPELESS or (arm in SPOILED and int(row["seed"]) == BAD):
            assert (row["status"], row["first_bad_epoch"]) == ("nonfinite", first[arm])
            assert not any(value for name, value in row.items() if "/" in name)
        else:
            assert (row["status"], row["first_bad_epoch"]) == ("ok", "") and row["train_loss/all"]


def test_aggregates_use_finite_runs_only(folders: tuple[Path, Path]) -> None:
    """Every number of a configuration ignores its bad run, except `n`."""
    spoiled = set(of_arms(sweep(True), "spoiled"))
    healthy, with_bad = ([row for row in rows(folder, "summary") if row["config_id"] in spoiled] for folder in folders)
    assert {(row["n"], row["n_finite"]) for row in with_bad if row["metric"] == "val_loss"} == {("4", "3")}
    assert [row | {"n": "3"} for row in with_bad] == healthy
    hopeless = set(of_arms(sweep(True), "rates"))
    ended = [row for row in rows(folders[1], "summary") if row["config_id"] in hopeless and row["epoch"] != "0"]
    assert ended and {row["n_finite"] for row in ended} == {"0"} and not any(row["mean"] or row["ci_lo"] for row in ended)
    for name, counted in (("units", ("born_dead", "died", "revived", "dead_at_end")), ("survival", ("runs", "at_risk", "died"))):
        healthy, with_bad = ([row for row in rows(folder, name) if row["config_id"] in spoiled] for folder in folders)
        assert [[row[key] for key in counted] for row in with_bad] == [[row[key] for key in counted] for row in healthy] != []


def test_every_output_counts_nonfinite_runs(folders: tuple[Path, Path]) -> None:
    """Warnings are errors here, so there was no 0 / 0."""
    folder = folders[1]
    for suffix in ("md", "tex"):
        text = (folder / f"tables/all.{suffix}").read_text()
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
        for arm, said in (("weights", "n=3/4"), ("data", "n=3/4"), ("infinite rate", "n=0/3")):
            (line,) = (line for line in text.splitlines() if re.match(rf"\W*{arm}\b", line))
            assert line.count(said) == 3, line
    for kind in KINDS:
        picture = folder / f"figures/{kind}"
        assert picture.with_suffix(".png").stat().st_size > 5_000 and "nan" not in picture.with_suffix(".svg").read_text()
    assert "n=3/4" in (folder / "figures/curves.svg").read_text() and "8 nonfinite" in (folder / "report.md").read_text()
    assert (folder / "report.html").stat().st_size > 10_000


def recorded(path: Path) -> Iterator[Event]:
    """Return the events of a file, checking each length and both checksums."""
    content = path.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]


def test_tensorboard_has_every_run_with_its_outcome(folders: tuple[Path, Path]) -> None:
    """HParams report failure for a diverged configuration, and no histogram counts a bad run."""
    folder = folders[1] / "tensorboard"
    names = ("relu", "lecun", "weights", "data", "rate", "infinite_rate")
    assert {path.name for path in folder.iterdir()} == {f"{name}@default" for name in names}
    for run, seeds in (("weights@default", 4), ("rate@default", 3)):
        assert len(list(folder.glob(f"{run}/seed-*/{EVENT_FILE}"))) == seeds
        events = list(recorded(folder / run / EVENT_FILE))
        values = [value for event in events for value in event.summary.value]
        (end,) = [v.metadata.plugin_data.content for v in values if v.tag == "_hparams_/session_end_info"]
        status = plugins.plugin_hparams_pb2.HParamsPluginData.FromString(end).session_end_info.status
        assert plugins.api_pb2.Status.Name(status) == ("STATUS_FAILURE" if run == "rate@default" else "STATUS_SUCCESS")
        steps = {event.step for event in events for value in event.summary.value if value.tag.startswith("pre/")}
        assert steps == ({0, 1, 2} if run == "weights@default" else {0})


def test_finite_loss_with_nonfinite_gradients_is_nonfinite() -> None:
    """The run is good at first, its gradients are empty, and one step makes it bad."""
    spec = base.replace(activation="root", initializer="spoiled_zero", epochs=2, rows=120)
    runs = [spec.replace(seed=seed) for seed in (0, BAD, 1)]
    few = MeasureConfig(metrics=("train_loss", "val_loss", "grad_norm", "dead_fraction"), histograms=False)
    tile, healthy = (train_tile.train_tile(some, 4, measure_config=few, num_datasets=4) for some in (runs, runs[::2]))
    assert tile["status"].tolist() == ["ok", "nonfinite", "ok"] and tile["first_bad_epoch"][1] == 1
    assert np.isfinite(tile["metric:train_loss/all"][1, 0]) and not np.isfinite(tile["metric:grad_norm/all"][1, 0])
    for name, values in healthy.items():
        if values.ndim > 1:
            assert tile[name][[0, 2]].tobytes() == values.tobytes(), name


def spoiled_draws(bad: bool) -> None:
    @statistic(
        "spoiled_draws",
        factors={"scale": 1.0},
        numbers={
            "fine": Quantity("always there", spread=(-4, 4)),
            "some": Quantity("not in draw 5"),
            "never": Quantity("in none"),
        },
    )
    def numbers(cell: Any, key: Any) -> dict[str, Any]:
        x = cell["scale"] * jax.random.normal(key)
        fifth = jnp.all(
            jax.random.key_data(key) == jax.random.key_data(random_streams.draw_key(NAMES[cell["scale"]], jnp.uint32(5)))
        )
        return {"fine": x, "some": jnp.where(fifth & bad, jnp.nan, x**2), "never": jnp.where(bad, jnp.nan, x)}


NAMES: dict[float, str] = {}
DRAWN = 300


def test_nan_draw_is_undefined_and_changes_no_other_number(tmp_path: Path) -> None:
    spoiled_draws(bad=False)
    NAMES.update({scale: cell_id("spoiled_draws", statistics["spoiled_draws"].cell(scale=scale)) for scale in (1.0, 2.0)})
    study = DrawStudy(
        "spoiled_draws",
        "Spoiled draws",
        "Who is harmed?",
        [Draws("all", "spoiled_draws", grid_cells(scale=(1.0, 2.0)), DRAWN)],
        tables=[CellTable("main", "All.", ("all",), {"scale": "scale", "number": "number", "measured": "estimate", "n": "n"})],
        figures=[CellFigure("lines", "Lines.", "lines", ("all",), "scale", rows="number")],
    )
    run_draws(study, tmp_path / "healthy")
    values = drawn("spoiled_draws", DRAWN, scale=2.0)["some"]
    spoiled_draws(bad=True)
    run_draws(study, tmp_path / "spoiled")
    healthy, spoiled = (rows(tmp_path / name, "cells") for name in ("healthy", "spoiled"))
    fine = [[row for row in found if row["number"] == "fine"] for found in (healthy, spoiled)]
    assert fine[0] == fine[1] and len(fine[0]) == 2
    (some,) = (row for row in spoiled if row["number"] == "some" and row["scale"] == "2")
    assert (some["draws"], some["n"]) == (str(DRAWN), str(DRAWN - 1))
    assert float(some["estimate"]) == pytest.approx(np.delete(values, 5).mean(), rel=1e-8)
    never = [row for row in spoiled if row["number"] == "never"]
    assert {row["n"] for row in never} == {"0"} and not any(row["estimate"] or row["ci_lo"] for row in never)
    assert "nan" not in (tmp_path / "spoiled/tables/main.md").read_text()
