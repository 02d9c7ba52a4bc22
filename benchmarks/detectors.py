"""Which rule finds dying, vanishing, exploding and not learning in time, and how often is it wrong?

    python benchmarks/detectors.py [--tune] [--seeds N]

Every configuration is one fault at one dose in one small network; its healthy twin is the same network without the fault.
Detectors see 256 training examples. The truth is measured on all training rows: harm, and a sign of the problem.
The command trains the networks, scores every detector and writes results/detectors and the error rates that
`relu-study diagnose` shows. `--tune` first chooses the thresholds of our rules on the tuning half and writes them.
With another folder or number of seeds, both files go to the folder of the outputs instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 8


def main() -> None:
    """Train, tune if asked to, evaluate and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each configuration (default: {SEEDS})")
    parser.add_argument("--out", type=Path, help="folder of the outputs (default: results/detectors)")
    parser.add_argument("--tune", action="store_true", help="choose the thresholds again, from the tuning half")
    arguments = parser.parse_args()
    from detector_parts import benchmark, tuning  # imports JAX

    own = arguments.out is not None or arguments.seeds != SEEDS  # then the shipped numbers stay as they are
    out = arguments.out or ROOT / "results" / "detectors"
    benchmark.run(out, arguments.seeds, arguments.tune, out if own else tuning.PACKAGE)


if __name__ == "__main__":
    main()
