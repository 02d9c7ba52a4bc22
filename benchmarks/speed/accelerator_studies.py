"""Parts of accelerator.py that run other processes and whole studies."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growth
import jax
import peer
import timing
from accelerator_engine import RATE, line
from peer_team import ALL, Competitor, Missing, Team

from relu_study.engine.state import MeasureConfig
from relu_study.runner import execute
from relu_study.runner.callback import Callback
from relu_study.storage import manifest

if TYPE_CHECKING:
    from accelerator import Size

OURS, CORES, TORCH = "relu_study", "relu_study on 2 CPU cores", "torch.func.vmap"
TINY = """from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=600, batch_size=32, width=8, epochs=1, optimizer="sgd")
study = Study("tiny", "Tiny", "Does it run?", [Experiment("main", {"relu": base})], seeds=4, metrics=("val_loss",))
"""


# ----------------------------------------------------------------------------------------- peers


def competitors(size: Size) -> list[Competitor]:
    """Return everything that is measured on the same device, and relu_study on two CPU cores."""
    here, wide = jax.default_backend(), size.peer_widths
    return [
        Competitor(TORCH, "peer_torch.py", "nothing", (ALL,), wide, "vmap", here),
        Competitor("jit(vmap), own orders", "peer_jax.py", "nothing", (ALL,), wide, "own", here),
        Competitor("jit(vmap), one order", "peer_jax.py", "nothing", (ALL,), wide, "shared", here),
        Competitor(OURS, "peer_ours.py", "everything", (ALL,), wide, platform=here),
        Competitor(CORES, "peer_ours.py", "everything", (ALL,), cores=2),
    ]


def peers(size: Size) -> Iterator[dict[str, Any]]:
    """Measure every competitor in turn, each at its best width. A competitor that cannot run is one row with the reason."""
    with ExitStack() as stack:
        teams, versions = {c.name: Team(c, stack) for c in competitors(size)}, {}
        for name in list(teams):
            try:
                versions[name] = teams[name].started()
            except Missing as reason:
                yield missing(teams, name, reason)
        for net, batch in size.cases:
            layers = tuple(int(units) for units in net.split()[1].split("-"))
            yield from race(peer.Job(net, layers, batch, size.rows), teams, versions, size, stack)


def race(
    job: peer.Job, teams: dict[str, Team], versions: dict[str, str], size: Size, stack: ExitStack
) -> Iterator[dict[str, Any]]:
    """Measure one job, and the ratios of relu_study to the others."""
    for name in list(teams):
        try:
            teams[name] = settled(teams[name], job, size.seconds, stack)
        except Missing as reason:
            yield missing(teams, name, reason, job)
    took = timing.interleaved({name: team.measure for name, team in teams.items()}, size.repeats)
    for name, rates in took.items():
        yield line(f"{RATE}: {name}", rates, "1/s", job.net, job.batch, teams[name].width, note=versions[name])
    for name, rates in took.items() if OURS in took else ():
        if name != OURS:
            ratios = [ours / other for ours, other in zip(took[OURS], rates, strict=True)]
            yield line(f"{OURS} over {name}", ratios, "1", job.net, job.batch, teams[OURS].width)


def settled(team: Team, job: peer.Job, seconds: float, stack: ExitStack) -> Team:
    """Return a team that is ready for a job at its best width.

    A process that ends, as without memory, is started again, and its widest width is left out. Raises Missing if none is left.
    """
    for tries in range(len(team.competitor.choices), 0, -1):
        try:
            team.settle(job, seconds, tries)
            return team
        except Missing as reason:
            if tries == 1:
                raise
            print(f"{team.competitor.name} without its widest width: {reason}", flush=True)
            team = Team(team.competitor, stack)
            team.started()
    raise AssertionError("a competitor has a choice")


def missing(teams: dict[str, Team], name: str, reason: Missing, job: peer.Job | None = None) -> dict[str, Any]:
    """Remove a competitor and return its row."""
    del teams[name]
    place = {"net": job.net, "batch": job.batch} if job else {}
    return line(f"{RATE}: {name}", note=f"not measured: {reason}", **place)


# --------------------------------------------------------------------------------------- studies


def many_runs(size: Size) -> Iterator[dict[str, Any]]:
    """Carry out one study of many runs of net A at eight learning rates, on at most 14,000 training rows."""
    rows = min(size.rows * 10 // 7, 20_000)
    case = growth.Case("runs", growth.NET_A, size.networks, rows, size.epochs, 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, began = Path(scratch) / "all", time.perf_counter()
        study = case.study(case.runs // len(growth.RATES))
        execute.execute(study, folder, MeasureConfig(), Callback(), growth.ABOUT)
        wall = time.perf_counter() - began
        done = manifest.read_manifest(folder)
    (width, *_) = done["widths"].values()
    place = {"net": case.net, "batch": 128, "width": width}
    yield line("networks in one study", [sum(done["counts"].values())], "1", **place)
    yield from times(wall, done["timing"], place)
    yield line("peak memory of the process", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024], "MiB", **place)
    stats = jax.devices()[0].memory_stats() or {}
    peak = [stats["peak_bytes_in_use"] // 2**20] if "peak_bytes_in_use" in stats else []
    yield line("peak memory of the device", peak, "MiB", **place, note="" if peak else "JAX does not report it here")


def times(wall: float, spent: dict[str, float], place: dict[str, Any], note: str = "") -> Iterator[dict[str, Any]]:
    """Return the rows of a study's times."""
    parts = {"whole study": wall, "training, with compiling": spent["wall_s"], "compiling": spent["compile_s"]}
    for quantity, took in {**parts, "preparation and report": wall - spent["wall_s"]}.items():
        yield line(quantity, [took], "s", **place, note=note)


def article(size: Size) -> Iterator[dict[str, Any]]:
    """Run the article in its own process, with an empty compilation cache."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tiny.py").write_text(TINY)
        words = ["run", "article", *size.article] if size.article else ["run", "./tiny.py"]
        wall, done = command(words, Path(scratch))
    note = f"relu-study {' '.join(words)}"
    yield line("networks in the study", [sum(done["counts"].values())], "1", note=note)
    yield from times(wall, done["timing"], {}, note)


def command(words: Sequence[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """Run `relu-study` in a folder. Returns its seconds and the manifest of its results."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    main = "from relu_study.cli.commands import main; main()"
    subprocess.run([sys.executable, "-c", main, *words, "--out", "out"], env=env, cwd=folder, check=True, stdout=sys.stderr)
    return time.perf_counter() - began, json.loads((folder / "out" / "manifest.json").read_text())
