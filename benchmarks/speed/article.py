"""Wall time, compile time and peak memory of the article study, cold: `python benchmarks/speed/article.py --preset full`.

Runs `relu-study run article` in a process of its own with an empty compilation cache, and adds a line to
results/speed/article.csv.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import processor

HERE = Path(__file__).resolve().parents[2]
TABLE = HERE / "results" / "speed" / "article.csv"
COLUMNS = (
    "date",
    "preset",
    "runs",
    "wall_s",
    "training_s",
    "compile_s",
    "report_s",
    "peak_mib",
    "devices",
    "processor",
    "jax",
    "command",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.out or Path(scratch) / "article"
        words = ["run", "article", "--preset", asked.preset, "--out", str(out)]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from relu_study.cli import main; main()", *words],
            env={**os.environ, "XDG_CACHE_HOME": scratch},
            check=True,
        )
        wall = time.perf_counter() - began
        manifest = json.loads((out / "manifest.json").read_text())
    timing = manifest["timing"]
    line = {
        "date": time.strftime("%Y-%m-%d"),
        "preset": asked.preset,
        "runs": sum(manifest["counts"].values()),
        "wall_s": round(wall, 1),
        "training_s": timing["wall_s"],
        "compile_s": timing["compile_s"],
        "report_s": round(wall - timing["wall_s"], 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "devices": manifest["device"]["devices"],
        "processor": processor(),
        "jax": manifest["provenance"]["versions"]["jax"],
        "command": f"python benchmarks/speed/article.py --preset {asked.preset}",
    }
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(line)


if __name__ == "__main__":
    main()
