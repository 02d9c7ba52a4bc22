"""The article study from nothing to its last file, cold and warm: `python benchmarks/speed/article.py --preset full`.

Runs `relu-study run article` twice, each time into an empty folder in a process of its own: cold with an empty compilation cache,
warm with the one that the first left behind. Beside it stands what Keras would take for the same networks, one process a core,
with the article's histograms after every epoch: nets A and B at the study's batch sizes are measured for `--seconds` each, on
140,000 rows, and every run of the study is charged its own number of steps at the rate of the measured net of its depth and
batch size. Other activations, dropout and normalisation are charged as if they were free, which favours Keras.
Without Keras installed these columns are empty.

Adds its lines to results/speed/article.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peer
import timing
from peer_team import Competitor, Missing, Team

from relu_study.components.registry import tasks
from relu_study.engine.train_step import steps_per_epoch
from relu_study.study.loading import find_study, load_study

KERAS = Competitor("keras", "peer_keras.py", "histograms")


def once(folder: Path, preset: str, cache: Path) -> dict[str, Any]:
    """One run of the study, in `folder`, into a new results/article there."""
    out = folder / "results" / "article"
    words = ["run", "article", "--preset", preset, "--out", str(out.relative_to(folder))]
    folder.mkdir()
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", "from relu_study.cli.commands import main; main()", *words],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        cwd=folder,
    )
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"relu-study {' '.join(words)} ended with status {status}")
    manifest = json.loads((out / "manifest.json").read_text())
    spent = manifest["timing"]
    return {
        "runs": sum(manifest["counts"].values()),
        "wall_s": round(wall, 1),
        "training_s": spent["wall_s"],
        "compile_s": spent["compile_s"],
        "report_s": round(wall - spent["wall_s"], 1),
        "peak_mib": used.ru_maxrss // 1024,
        "files": sum(path.is_file() for path in out.rglob("*")),
        "mib": round(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20, 1),
        "devices": manifest["device"]["devices"],
    }


def asked(preset: str) -> Counter[tuple[int, int]]:
    """Steps of all runs of the study together, by depth and batch size."""
    steps: Counter[tuple[int, int]] = Counter()
    for run in load_study(find_study("article")).with_preset(preset).runs():
        rows = tasks[run.task](run).signature.train_rows
        steps[run.depth, run.batch_size] += round(run.epochs * steps_per_epoch(rows, run.batch_size))
    return steps


def keras(steps: Counter[tuple[int, int]], seconds: float) -> dict[str, Any]:
    """Hours that Keras would take for so many steps on all cores, from its rate at each depth and batch size."""
    hours, version = 0.0, ""
    with ExitStack() as stack:
        try:
            team = Team(KERAS, stack)
            version = team.started()
            for (depth, batch), count in steps.items():
                job = peer.Job("keras", (4, *[32] * depth, 1), batch, timing.ROWS)
                team.settle(job, seconds, None)
                hours += count / team.measure() / 3600
        except Missing as reason:
            print(f"keras skipped: {reason}", flush=True)
            return {"keras_hours": "", "keras": ""}
    return {"keras_hours": round(hours, 2), "keras": version}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out", type=Path, help="keep the results of the cold run here")
    parser.add_argument("--cold-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of Keras")
    options = parser.parse_args()
    table = timing.RESULTS / "article.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    beside = keras(asked(options.preset), options.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        for start in ("cold",) if options.cold_only else ("cold", "warm"):
            folder = Path(scratch) / start
            made = {"preset": options.preset, "start": start, **once(folder, options.preset, Path(scratch) / "cache"), **beside}
            ahead = round(3600 * beside["keras_hours"] / made["wall_s"]) if beside["keras_hours"] else ""
            words = ["--preset", options.preset, *["--cold-only"] * options.cold_only]
            command = " ".join(["python benchmarks/speed/article.py", *words])
            rows.append({**made, "keras_over_ours": ahead, **timing.about(), "command": command})
            print(rows[-1], flush=True)
            timing.write("article", rows)
            if options.out and start == "cold":
                shutil.move(folder / "results" / "article", options.out)


if __name__ == "__main__":
    main()
