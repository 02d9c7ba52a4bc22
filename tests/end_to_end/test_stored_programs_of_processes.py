"""A second process reads its programs and traces none of them; other sources, networks and damaged files change no byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_process import command

pytestmark = pytest.mark.slow

STUDY = """
from relu_study import Experiment, RunSpec, Study

base = RunSpec(rows=400, width=8, depth=2, epochs=2)
SMALL = dict(task="digits_image", epochs=1, batch_size=64)
study = Study(
    "stored", "Stored", "?",
    [
        Experiment("mlp", {name: base.replace(activation=name) for name in ("relu", "selu")}),
        Experiment("cnn", {"cnn": base.replace(network="cnn", rows=256, **SMALL)}),
        Experiment("vit", {"vit": base.replace(network="vit", rows=256, **SMALL)}),
    ],
    seeds=3,
)
"""
TRACED = """
import json, sys, jax
traced = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, fun_name="", **_: traced.append(fun_name) if event.endswith("jaxpr_trace_duration") else None
)
from relu_study.cli.commands import main
status = 0
try:
    main()
except SystemExit as end:
    status = end.code
with open(sys.argv[-1] + ".json", "w") as file:
    json.dump(traced, file)
sys.exit(status)
"""
PROGRAMS = {"advance", "measure", "init", "init_optimizer"}


def test_a_second_process_traces_no_program(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)

    def run(name: str) -> tuple[set[str], dict[str, bytes]]:
        """The programs that a process traces, and the numbers it writes."""
        out = tmp_path / name
        words = ("run", str(tmp_path / "study.py"), "--out", str(out))
        done = command(*words, code=TRACED, XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_COMPILATION_CACHE_DIR="")
        assert done.returncode == 0, done.stderr.decode()
        traced = set(json.loads(Path(f"{out}.json").read_text()))
        return traced & PROGRAMS, {path.name: path.read_bytes() for path in out.glob("*.csv")}

    cold, numbers = run("cold")
    assert cold == PROGRAMS and len(numbers) > 5
    files = sorted((tmp_path / "cache" / "relu_study").glob("xla-*/programs/*"))
    warm, again = run("warm")
    assert not warm and again == numbers
    for path in files:
        path.write_bytes(path.read_bytes()[:-9])
    damaged, again = run("damaged")
    assert damaged == PROGRAMS and again == numbers
