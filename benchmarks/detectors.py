"""Which rule finds dying, vanishing, exploding and not learning in time, and how often is it wrong?

    python benchmarks/detectors.py [--tune] [--seeds N]

Every configuration is one fault at one dose in one small network; its healthy twin is the same network without the fault.
Detectors see 256 training examples. The truth is measured on all training rows: harm, and a sign of the problem.
The command trains the networks, scores every detector and writes results/detectors and the error rates that
`relu-study diagnose` shows. `--tune` first chooses the thresholds of our rules on the tuning half and writes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, tune if asked to, evaluate and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8, help="seeds of each configuration (default: 8)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "detectors", help="folder of the outputs")
    parser.add_argument("--tune", action="store_true", help="choose the thresholds again, from the tuning half")
    arguments = parser.parse_args()
    from detector_parts import benchmark  # imports JAX

    benchmark.run(arguments.out, arguments.seeds, arguments.tune)


if __name__ == "__main__":
    main()
