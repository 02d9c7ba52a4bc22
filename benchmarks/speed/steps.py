"""Run-steps per second of nets A and B on the whole machine, with and without probes: `python benchmarks/speed/steps.py`.

140,000 rows, each run's own data and order, Adam, every device busy with tiles of the width the plan gives. Compile time
apart. The two are interleaved and the median of the repeats is kept. Writes results/speed/steps.csv.
"""

import csv
import statistics
import threading
import time
from pathlib import Path

import jax
from article import processor

from relu_study import engine, plan, runner
from relu_study.spec import RunSpec

TABLE = Path(__file__).resolve().parents[2] / "results" / "speed" / "steps.csv"
COLUMNS = (
    *("date", "net", "batch", "width", "devices", "compile_s", "watched_steps_per_s", "unwatched_steps_per_s", "watching_costs"),
    *("processor", "jax", "command"),
)
NETS = {
    "A 4-32-1": RunSpec(epochs=4, initializer="he_normal"),
    "B 4-32-32-32-1": RunSpec(epochs=4, depth=3, initializer="he_normal"),
}
REPEATS = 5


def busy(spec: RunSpec, width: int, probe: bool) -> float:
    """Seconds for one tile on every device at once."""
    tiles = [[spec.but(seed=d * width + i) for i in range(width)] for d in range(len(jax.devices()))]
    began = time.perf_counter()
    threads = [
        threading.Thread(target=engine.train_tile, args=(tile, width, device), kwargs={"probe": probe})
        for tile, device in zip(tiles, jax.devices(), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def main() -> None:
    runner.use_devices()
    jax.config.update("jax_enable_compilation_cache", False)
    lines = []
    for name, base in NETS.items():
        for batch in (32, 128):
            spec = base.but(batch_size=batch)
            work = engine.describe(spec)
            width = plan.width(work, 1000, jax.devices()[0].platform)
            clock = runner.Clock()
            busy(spec.but(epochs=1), width, True)
            compiling = clock.spent()["compile_s"]
            # What an epoch costs is the difference between a long run and a short one: data and start drop out.
            took: dict[bool, list[float]] = {True: [], False: []}
            for probe in (True, False) * REPEATS:
                took[probe].append(busy(spec, width, probe) - busy(spec.but(epochs=1), width, probe))
            steps = 0.75 * work.steps * width * len(jax.devices())
            watched, bare = (steps / statistics.median(took[probe]) for probe in (True, False))
            row = (
                time.strftime("%Y-%m-%d"),
                name,
                batch,
                width,
                len(jax.devices()),
                round(compiling, 2),
                round(watched),
                round(bare),
                f"{bare / watched - 1:.1%}",
                processor(),
                jax.__version__,
                "python benchmarks/speed/steps.py",
            )
            lines.append(row)
            print(dict(zip(COLUMNS, row, strict=True)), flush=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *lines])


if __name__ == "__main__":
    main()
