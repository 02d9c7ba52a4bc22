"""What TensorBoard costs at scale: `python benchmarks/speed/aggregate.py`.

50 planted configurations x 20 seeds x 10 metrics x 100 steps, a million numbers in tiles as a sweep stores them, become 150,000
scalars (mean and interval); then 25 configurations with a run for each of their 20 seeds, 500 in all, 500,000 scalars and those
of their configurations besides. Seconds to read the tiles, and to aggregate and write; then of stock TensorBoard with its fast
loader, from the start of its process until it listens and until every run and tag is listed, and the peak memory of its
processes together. TensorFlow, which TensorBoard would load where the peers' extra installed it, is kept out.
Writes results/speed/aggregate.csv and .md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import timing

from relu_study import Experiment, RunSpec, Study, grid
from relu_study.report.tensorboard.event_files import write_events
from relu_study.storage import tile_files
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import StudyManifest, parse_manifest

SEEDS, METRICS, STEPS = 20, 10, 100
WIDTH = 16  # runs of a tile: those of several configurations
BOARD = "import sys; sys.modules['tensorflow'] = None; from tensorboard.main import run_main; run_main()"


def planted(folder: Path, configurations: int) -> StudyManifest:
    """Tiles of random numbers for a study with this many learning rates; its manifest."""
    rates = (0.001 * (1 + np.arange(configurations))).tolist()
    study = Study("planted", "Planted", "How fast?", [Experiment("main", grid(RunSpec(), learning_rate=rates))], seeds=SEEDS)
    names = [f"metric_{i}" for i in range(METRICS)]
    declaration = json.loads(json.dumps(study.declaration())) | {
        "factors": ["learning_rate"],
        "metrics": {name: {"sites": False} for name in names},
        "columns": [f"{name}/all" for name in names],
        "report_epochs": [],
    }
    draws, runs = np.random.default_rng(0), sorted(study.runs(), key=lambda run: run.seed)
    for tile in (runs[i : i + WIDTH] for i in range(0, len(runs), WIDTH)):
        made = {
            "run_id": np.array([run.run_id for run in tile]),
            "spec": np.array([json.dumps(run.changed()) for run in tile]),
            "status": np.array(["ok"] * len(tile)),
            "first_bad_epoch": np.full(len(tile), np.nan),
            "epoch": np.arange(float(STEPS)),
            "probe_examples": np.array(8192),
            "provenance": np.array("{}"),
        }
        series = {f"metric:{name}/all": draws.normal(size=(len(tile), STEPS)).astype(np.float32) for name in names}
        tile_files.write_tile(folder, made | series)
    return parse_manifest({"study": study.name, "provenance": {}, "widths": {}, "declaration": declaration})


def written(configurations: int, per_seed: bool) -> dict[str, float]:
    """Seconds of reading, of writing and of TensorBoard on a new folder, and TensorBoard's MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = planted(folder, configurations)
        began = time.perf_counter()
        found = collect(folder, manifest)
        read = time.perf_counter()
        write_events(manifest, found, folder, per_seed)
        wrote = time.perf_counter()
        runs = configurations * (1 + SEEDS * per_seed)
        tags = configurations * METRICS * (3 + SEEDS * per_seed)
        return {"read_s": read - began, "write_s": wrote - read, **listed(folder / "tensorboard", runs, tags)}


def listed(logs: Path, runs: int, tags: int) -> dict[str, float]:
    """Seconds from TensorBoard's start until it listens and until it lists so many runs and tags, and its peak MiB."""
    words = ["--logdir", str(logs), "--load_fast", "true", "--host", "127.0.0.1", "--port", "0"]
    began = time.perf_counter()
    board = subprocess.Popen([sys.executable, "-c", BOARD, *words], stderr=subprocess.PIPE, text=True)
    assert board.stderr is not None
    try:
        address = next(found[1] for line in board.stderr if (found := re.match(r"TensorBoard \S+ at (http\S+)", line)))
        listens = time.perf_counter() - began

        def ask(route: str) -> Any:
            with urlopen(f"{address}data/{route}", timeout=60) as answer:
                return json.load(answer)

        _until(lambda: len(ask("runs")) == runs and sum(map(len, ask("plugin/scalars/tags").values())) == tags)
        ends = time.perf_counter() - began
        return {"listens_s": listens, "listed_s": ends, "mib": sum(map(_peak, _family(board.pid)))}
    finally:
        board.kill()
        board.wait()


def _until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.02)


def _family(process: int) -> list[int]:
    """A process and all that it started, and those in turn."""
    return [process, *(child.pid for child in psutil.Process(process).children(recursive=True))]


def _peak(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each size, in turn")
    asked = parser.parse_args()
    sizes = {"50 configurations": (50, False), "25 configurations, 500 single seeds": (25, True)}
    taken = timing.interleaved({name: lambda size=size: written(*size) for name, size in sizes.items()}, asked.repeats)
    rows = []
    for name, (configurations, per_seed) in sizes.items():
        of = {column: [one[column] for one in taken[name]] for column in taken[name][0]}
        middle = {column: round(statistics.median(values), 3) for column, values in of.items()}
        rows.append(
            {
                "runs": name,
                "scalars": configurations * METRICS * STEPS * (3 + SEEDS * per_seed),
                **middle,
                "mib": round(middle["mib"]),
                "write_least_s": round(min(of["write_s"]), 3),
                "write_most_s": round(max(of["write_s"]), 3),
                "repeats": asked.repeats,
                **timing.about(),
            }
        )
        print(*list(rows[-1].values())[:10], sep="  ", flush=True)
    timing.write("aggregate", rows)


if __name__ == "__main__":
    main()
