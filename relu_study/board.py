"""TensorBoard, shown: started as a process of its own, its address printed once it listens."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from relu_study.registry import UserError

SELECTED_BY_ITSELF = 40  # runs; of more, some of TensorBoard's tabs select none


def show(logs: Path, host: str, port: int) -> int:
    """Start TensorBoard on a folder of runs and wait until it ends or is interrupted; its exit status."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", host, "--port", str(port)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by another program, it takes TensorBoard along
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    listens = False
    try:
        for line in running.stderr:  # it says where it listens, once it does: the port may be any, or taken
            if found := re.match(r"TensorBoard \S+ at (http\S+)", line):
                listens = True
                print(found[1], flush=True)
                if (runs := len({path.parent for path in logs.rglob("events.*")})) > SELECTED_BY_ITSELF:
                    print(
                        f"{runs} runs: in Custom Scalars and Histograms TensorBoard selects none of more than "
                        f"{SELECTED_BY_ITSELF}; press Toggle All Runs there, or filter them, e.g. by ^baseline@",
                        file=sys.stderr,
                    )
            else:
                print(line, end="", file=sys.stderr, flush=True)
        status = running.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        running.terminate()
        running.wait()
    if not listens:
        raise UserError(f"TensorBoard did not start (above is what it said); --port 0 takes any free port instead of {port}")
    return status
