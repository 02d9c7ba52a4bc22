"""The command `replay`: its output and files, components of a study file, and double precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dying_study import dying, study_of
from user_process import command

from relu_study import UserError, load, replay, run
from relu_study.components.registry import REGISTRIES, activations
from relu_study.engine import compilation
from relu_study.runner.replay_result import FILES
from relu_study.study.loading import load_study

pytestmark = pytest.mark.usefixtures("one_device")

OWN = """
import jax.numpy as jnp
from relu_study import Experiment, RunSpec, Study, activation

@activation("test_clipped", flat=((-jnp.inf, 0.0), (1.0, jnp.inf)))
def clipped(x):
    return jnp.clip(x, 0.0, 1.0)

spec = RunSpec(rows=200, batch_size=32, width=6, epochs=1, initializer="he_normal", activation="test_clipped", optimizer="sgd")
study = Study("own", "Own", "?", [Experiment("main", {"a": spec})], seeds=1, metrics=("val_loss",))
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the registries after a test."""
    before = [dict(registry._entries) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries = entries
    compilation.clear()


def test_command_names_the_events_and_writes_below_the_folder(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    run(study_of("one", dying.replace(depth=1)), "out")
    run_id = load("out").runs.run_id[0]
    status, out, err = here("replay", "out", "--run", run_id)
    assert status == 0 and not err, err
    first, second, *events = out.splitlines()
    assert first == f"run {run_id} of one: its final row equals runs.csv and all 4 measurements equal raw/, bit for bit"
    place = Path("out/replays") / run_id / "death"
    assert events[-6:] == [str(place / name) for name in FILES] and all((place / name).is_file() for name in FILES)
    about = json.loads((place / "replay.json").read_text())
    assert second == f"steps 0 to 10 of 15 (epochs 0 to 2): {about['died']} died, {about['revived']} revived"
    assert len(events) == 6 + about["died"] + about["revived"] > 7
    step, _, what = events[0].partition(": ")
    assert step.startswith("step ") and "(epoch 1, step " in step
    assert what.startswith("site_1 unit ") and all(
        word in what for word in ("largest pre", "grad", "step", "batch rows", "(32 rows)")
    )
    status, out, err = here("report", "out")
    assert status == 0 and "out/report.md" in out and (place / "events.csv").is_file()
    status, _, err = here("replay", "out", "--run", run_id, "--around", "1", "--window", "0.1", "--out", "elsewhere")
    assert status == 0 and sorted(path.name for path in Path("elsewhere").iterdir()) == sorted(FILES), err


def test_components_of_a_study_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    study = load_study(path)
    run(study, tmp_path / "out")
    run_id = study.runs()[0].run_id
    del activations._entries["test_clipped"]
    with pytest.raises(UserError, match=r"activation 'test_clipped', which is not registered here.*study 'own' with --study"):
        replay(tmp_path / "out", run_id, 1)
    other = tmp_path / "other.py"
    other.write_text(OWN.replace('"own"', '"other"').replace("test_clipped", "test_clipped_too"))
    with pytest.raises(UserError, match="declares the study 'other'"):
        replay(tmp_path / "out", run_id, 1, study=other)
    with pytest.raises(UserError, match=r"no study file .*none\.py"):
        replay(tmp_path / "out", run_id, 1, study=tmp_path / "none.py")
    assert replay(tmp_path / "out", run_id, 1, window=0.2, study=path).about["equal_row"]
    path.write_text(OWN.replace("jnp.clip(x, 0.0, 1.0)", "jnp.clip(1.0 * x, 0.0, 1.0)"))
    with pytest.raises(UserError, match="activation test_clipped has changed"):
        replay(tmp_path / "out", run_id, 1, study=path)


DOUBLE = """
import sys
import numpy as np
from relu_study import replay, run
sys.path.insert(0, sys.argv[2])
from dying_study import study
run(study, sys.argv[1])
found = replay(sys.argv[1], study.runs()[0].run_id, out=sys.argv[1] + "/replays/one")
i = int(np.flatnonzero(found.events.by == "step")[0])
step, gradient = (found.arrays[f"event_{i}:{name}"] for name in ("step", "gradient"))
assert step.dtype == np.float64 and found.arrays["pre_max:site_1"].dtype == np.float64
np.testing.assert_allclose(step, -0.5 * gradient, rtol=1e-12, atol=1e-15)
assert found.about["equal_row"] and found.about["equal_measurements"] == 4
"""


@pytest.mark.slow
def test_double_precision(tmp_path: Path) -> None:
    support = str(Path(__file__).parents[1] / "support")
    done = command(str(tmp_path / "out"), support, code=DOUBLE, JAX_ENABLE_X64="1")
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    run_id = (tmp_path / "out" / "runs.csv").read_text().splitlines()[1][:12]
    single = command("replay", str(tmp_path / "out"), "--run", run_id)
    assert single.returncode == 2 and b"precision: float64 there, float32 here" in single.stderr
