"""The engine on a GPU or TPU, in one command: `python benchmarks/speed/accelerator.py`.

Parts, each in its own process, on one device:

- peers: training steps per second of nets A, B and C next to `torch.func.vmap` and `jit(vmap)` on the same device, each at its
  best width, and next to relu_study on two CPU cores. relu_study measures every metric after every epoch, the others nothing.
- widths: training steps per second by tile width, the width that the engine chooses, and the share of training that all
  metrics take at every width.
- shares: the arithmetic of a step as a share of large float32 products, and the memory traffic of its kernels as a share of a
  copy. Both are measured on the same device.
- bits: whether a training repeats bit for bit in one process and in another one, and the difference at half the width.
- runs: one study of 100,000 networks of net A, with all files and the report.
- study: the article's full preset, in a process with an empty compilation cache.

Steps per second are summed over networks. Writes results/speed/gpu.csv, .md and a figure. A measurement that cannot run is a row
with the reason. With `--parts` or `--nets`, the other rows of the table stay. On a CPU, `--small --out DIR` runs every part at a
small size: it tests the command and measures nothing of use.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device, also where the machine has several
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other processes use the device too

import argparse
import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import accelerator_engine
import accelerator_studies
import jax
import matplotlib.pyplot as plt
import timing

from relu_study.runner import run

PARTS = {
    "peers": accelerator_studies.peers,
    "widths": accelerator_engine.widths,
    "shares": accelerator_engine.shares,
    "bits": accelerator_engine.bits,
    "runs": accelerator_studies.many_runs,
    "study": accelerator_studies.article,
}
NETS = {name[0]: name for name in timing.NETS}


class Size(NamedTuple):
    """The size of all parts."""

    cases: tuple[tuple[str, int], ...]  # nets and batch sizes
    rows: int  # training rows of a run
    widths: tuple[int, ...]
    peer_widths: tuple[int, ...]
    repeats: int
    seconds: float  # of a peer's piece
    networks: int  # in one study
    epochs: int  # of that study
    article: tuple[str, ...]  # options of `relu-study run article`; (): a tiny study in its place


FULL = Size(
    tuple((NETS[net], batch) for net, batch in (("A", 128), ("B", 128), ("B", 32), ("B", 512), ("C", 128))),
    timing.ROWS,
    tuple(1 << power for power in (7, 9, 10, 11, 12, 13, 14, 15)),
    (512, 2048, 8192),
    5,
    5.0,
    100_000,
    5,
    ("--preset", "full"),
)
SMALL = Size(((NETS["A"], 128),), 1_400, (2, 4), (2,), 2, 0.5, 16, 1, ())


def kept(folder: Path, parts: Sequence[str], nets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of an earlier table that these parts and nets do not replace."""
    table = folder / "gpu.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    return [row for row in rows if row["part"] not in parts or row["net"] not in (*nets, "")]


def write(lines: list[dict[str, Any]], folder: Path) -> None:
    """Write the table, in the order of the parts, and the figure."""
    timing.write("gpu", sorted(lines, key=lambda line: list(PARTS).index(line["part"])), folder)
    if any(line["part"] == "widths" and line["value"] != "" for line in lines):
        timing.save("gpu", picture(lines), folder)


def picture(lines: Sequence[Mapping[str, Any]]) -> plt.Figure:
    """Return steps per second against tile width, one line for each net and batch size."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    shown = [line for line in lines if line["quantity"] == accelerator_engine.RATE and line["value"] != ""]
    for net, batch in dict.fromkeys((line["net"], str(line["batch"])) for line in shown):
        of_net = [line for line in shown if (line["net"], str(line["batch"])) == (net, batch)]
        rates = {int(line["width"]): float(line["value"]) for line in of_net}
        axes.plot(list(rates), list(rates.values()), "o-", label=f"{net}, batch {batch}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tile width (runs)", ylabel="training steps per second, all runs")
    axes.legend(frameon=False, fontsize="small")
    return figure


def parsed() -> argparse.Namespace:
    """Return the options of the command. Ends without an accelerator, unless `--out` names a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="of peers, widths and shares")
    parser.add_argument("--small", action="store_true", help="a few tiny networks, to test the command")
    parser.add_argument("--out", type=Path, help="folder of gpu.* (default: results/speed)")
    parser.add_argument("--digest", nargs=2, type=int, metavar=("WIDTH", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out is None and not options.digest and (options.small or jax.default_backend() == "cpu"):
        parser.exit(
            1, "accelerator.py: results/speed/gpu.* is measured at full size on a GPU or TPU. Give --out DIR elsewhere.\n"
        )
    return options


def in_processes(parts: Sequence[str]) -> int:
    """Run each part in its own process, which frees the device's memory at its end. Returns the number of failed parts."""
    at = sys.argv.index("--parts") if "--parts" in sys.argv else None
    others = sys.argv[1:] if at is None else [*sys.argv[1:at], *sys.argv[at + 1 + len(parts) :]]
    words = [sys.executable, __file__, *others, "--parts"]
    return sum(subprocess.run([*words, part]).returncode != 0 for part in parts)


def main() -> int:
    options = parsed()
    if options.digest:
        run.use_devices()
        print(accelerator_engine.digest(*options.digest))
        return 0
    if len(options.parts) > 1:
        return in_processes(options.parts)
    run.use_devices()
    (part,), nets, folder = options.parts, [NETS[net] for net in options.nets], options.out or timing.RESULTS
    size = SMALL if options.small else FULL
    size = size._replace(cases=tuple(case for case in size.cases if case[0] in nets))
    lines = kept(folder, options.parts, nets)
    for line in PARTS[part](size):
        lines.append({"part": part, **line, "device": jax.devices()[0].device_kind, **timing.about()})
        print(*list(lines[-1].values())[:10], sep=", ", flush=True)
        write(lines, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
