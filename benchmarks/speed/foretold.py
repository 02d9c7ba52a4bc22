"""What was foretold and what came: `python benchmarks/speed/foretold.py`.

A few studies, each planned and then carried out in processes of their own, with an empty compilation cache (cold) and with what
this left there (warm): the peak memory that `relu-study plan` prints beside the greatest part of the process that lay in
memory, and the finish of the training as it was foretold when a tenth, a quarter and a half of the tiles were stored, in percent
of when it came. Linux alone tells the peak so. Writes results/speed/foretold.csv and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing

from relu_study import Experiment, RunSpec, Study, grid
from relu_study.cli.eta import EtaEstimator
from relu_study.engine.state import MeasureConfig
from relu_study.runner.callback import Callback

BASE = RunSpec(initializer="he_normal", rows=20_000, epochs=5)
WIDTHS = list(range(8, 48))
ARMS = {
    "small nets": (grid(BASE, learning_rate=[1e-4, 1e-3, 1e-2, 1e-1]), 256),
    "many rows": ({"all": BASE.replace(rows=1_000_000, epochs=1)}, 64),
    "40 programs": (grid(BASE.replace(rows=2_000), width=WIDTHS), 16),
    "20 layers": (grid(BASE.replace(rows=2_000), depth=[1, 20]), 64),
}
AT = (0.1, 0.25, 0.5)
COMMAND = [sys.executable, "-c", "from relu_study.cli.commands import main; main()"]


def study_of(name: str) -> Study:
    """One of the studies by its name."""
    arms, seeds = ARMS[name]
    return Study("foretold", "Foretold", "When, and how much?", [Experiment("main", arms)], seeds=seeds)


class Foresees(Callback):
    """Asks for the finish at each tile."""

    def on_start(self, plan: Any, stored: int) -> None:
        self.began, self.forecast, self.tiles = time.perf_counter(), EtaEstimator(plan), len(plan.tiles)
        self.finish: list[float] = []

    def on_tile_end(self, tile: Any, device: int, compiling: float, dead_fraction: float) -> None:
        self.now = time.perf_counter() - self.began
        self.forecast.stored(tile, self.now, device, compiling)
        self.finish.append(self.now + self.forecast.seconds(self.now))


def carried_out(name: str) -> dict[str, float]:
    """Carry out a study in this process and say what was foretold, and what it took."""
    from relu_study.runner import execute, run

    run.use_devices()
    callback = Foresees()
    with tempfile.TemporaryDirectory() as scratch:
        execute.execute(study_of(name), Path(scratch) / "out", MeasureConfig(), callback, {"command": "", "preset": "default"})
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    said = {f"finish_at_{at:.0%}": callback.finish[max(round(at * callback.tiles), 1) - 1] for at in AT}
    return {"peak_mib": int(peak.split()[1]) / 1024, "tiles": callback.tiles, "finish_s": callback.now, **said}


def once(name: str, start: str, cache: Path, folder: Path) -> dict[str, Any]:
    """One study, planned and carried out."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    path = folder / "foretold.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n")
    path.write_text(path.read_text() + f"from foretold import study_of\nstudy = study_of({name!r})\n")
    began = time.perf_counter()
    words = [*COMMAND, "plan", str(path)]
    planned = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, check=True).stdout
    plan_s = time.perf_counter() - began
    words = [sys.executable, __file__, "--case", name]
    came = json.loads(subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    found = re.search(r"peak memory about ([\d,]+) MiB", planned)
    assert found, planned
    foretold = int(found[1].replace(",", ""))
    return {
        "study": name,
        "cache": start,
        "tiles": came["tiles"],
        "plan_s": round(plan_s, 1),
        "peak_foretold_mib": foretold,
        "peak_mib": round(came["peak_mib"]),
        "peak_off_percent": round(100 * (foretold / came["peak_mib"] - 1), 1),
        "finish_s": round(came["finish_s"], 1),
        **{f"off_percent_at_{at:.0%}": round(100 * (came[f"finish_at_{at:.0%}"] / came["finish_s"] - 1), 1) for at in AT},
        **timing.about(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(carried_out(asked.case)))
        return
    rows = []
    for name in asked.studies:
        with tempfile.TemporaryDirectory() as scratch:
            for start in ("cold", "warm"):
                rows.append(once(name, start, Path(scratch) / "cache", Path(scratch)))
                print(*list(rows[-1].values())[:12], sep="  ", flush=True)
    timing.write("foretold", rows)


if __name__ == "__main__":
    main()
