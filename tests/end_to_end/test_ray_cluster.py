"""Studies on a Ray cluster: the same bytes as on this machine, and one line where there is no cluster."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from ray_cluster import RayCluster, environment, finish, needs_ray, same_bytes, start
from tiers import QUICK

SUPPORT = ROOT / "tests" / "support"
TINY = """
from relu_study import Experiment, RunSpec, Study

base = RunSpec(rows=200, batch_size=32, width=4, epochs=1, optimizer="sgd")
study = Study("tiny", "Tiny", "?", [Experiment("main", {"relu": base})], seeds=2, metrics=("val_loss",))
"""


@needs_ray
def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    """No JAX and no Ray is imported before."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    (tmp_path / "tiny.py").write_text(TINY)
    began = time.monotonic()
    env = environment(tmp_path, RAY_ADDRESS="", RAY_TMPDIR=str(tmp_path))
    cases = {
        "ray": r"there is no Ray cluster\. Start one with 'ray start --head'",
        f"ray:127.0.0.1:{port}": f"no Ray cluster answers at 127.0.0.1:{port}",
        "ray://127.0.0.1:10001": "an address of Ray Client, which is not supported",
    }
    started = {
        text: start("run", "tiny.py", "--out", "o", "--cluster", address, cwd=tmp_path, environment=env)
        for address, text in cases.items()
    }
    for text, process in started.items():
        done = finish(process, 60)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert len(done.stderr.splitlines()) == 1 and text.replace("\\", "") in done.stderr
    assert time.monotonic() - began < 60 and not (tmp_path / "o").exists()


@needs_ray
def test_a_ray_run_has_the_bytes_of_a_local_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    env = environment(tmp_path / "cache", XLA_FLAGS=QUICK, RAY_ADDRESS="127.0.0.1:1")  # ray:local is not for it
    commands = (("ray", "--cluster", "ray:local"), ("here",))
    started = [start("run", "tiny.py", "--out", *words, cwd=tmp_path, environment=env) for words in commands]
    for done in [finish(process) for process in started]:
        assert done.returncode == 0, done.stderr
    assert same_bytes(tmp_path / "here", tmp_path / "ray")


@pytest.mark.slow
@needs_ray
def test_small_studies_on_two_nodes_have_the_bytes_of_a_local_run(ray_cluster: RayCluster, tmp_path: Path) -> None:
    for name in ("small_study", "small_draw_study"):
        study, size = str(SUPPORT / f"{name}.py"), ("--max-draws", "2000") if "draw" in name else ()
        here = start("run", study, *size, "--out", f"{name}_here", cwd=tmp_path, environment=ray_cluster.environment)
        there = ray_cluster.command("run", study, *size, "--out", f"{name}_there", cwd=tmp_path)
        assert finish(here).returncode == 0 and there.returncode == 0, there.stderr
        assert same_bytes(tmp_path / f"{name}_here", tmp_path / f"{name}_there")
        assert len(re.findall(r"^worker \S+: [\d,]+ tiles?, ", there.stderr, re.M)) == 2, there.stderr  # a line for each worker


IMPORTS = """
import sys
from relu_study.cli.commands import main
sys.argv[1:] = sys.argv[1].split()
try:
    main()
except SystemExit:
    pass
print("ray" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("words", ["--help", "run --help", "list"])
def test_other_commands_import_no_ray(words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTS, words]
    done = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "False", done.stderr


def test_one_module_imports_ray() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "relu_study").rglob("*.py")}
    assert [name for name, text in texts.items() if re.search(r"^\s*(import|from) ray\b", text, re.MULTILINE)] == ["cluster.py"]
    assert not re.search(r"^(import|from) ray\b", texts["cluster.py"], re.MULTILINE), "only functions import it"
