"""TensorBoard as a separate process, with its address printed once it listens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from relu_study.errors import UserError

SELECTED_BY_ITSELF = 40  # runs; above it, some of TensorBoard's tabs select none


def _quiet() -> dict[str, str]:
    """Return environment variables that make TensorBoard write UTF-8 and hide warnings about its packages."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONIOENCODING": "utf-8", "TF_CPP_MIN_LOG_LEVEL": "3"}


def show(logs: Path, host: str, port: int, prefix: str = "", options: Sequence[str] = ()) -> int:
    """Start TensorBoard on a folder of runs, wait until it ends or is interrupted, and return its exit status.

    `prefix` is the path of its address. `options` are arguments of TensorBoard's command line.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", host, "--port", str(port)]
    command += [*([f"--path_prefix=/{path}"] if (path := prefix.strip("/")) else []), *options]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM also ends TensorBoard
    running = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", env=_quiet())
    assert running.stderr is not None
    listens, before = False, ""
    try:
        for line in running.stderr:  # it prints its address once it listens, since the port may be any
            if match := re.match(r"TensorBoard \S+ at (http\S+)", line):
                listens = True
                print(match[1], flush=True)
                if (runs := len({path.parent for path in logs.rglob("events.*")})) > SELECTED_BY_ITSELF:
                    print(
                        f"{runs} runs: in Custom Scalars and Histograms TensorBoard selects none of more than "
                        f"{SELECTED_BY_ITSELF}; press Toggle All Runs there, or filter them, e.g. by ^baseline@",
                        file=sys.stderr,
                    )
            elif listens:
                print(line, end="", file=sys.stderr, flush=True)
            else:  # warnings about its packages, or the reason why it does not start
                before += line
        status = running.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        running.stderr.close()
        running.terminate()
        running.wait()
    if not listens:
        print(before, end="", file=sys.stderr)
        raise UserError(f"TensorBoard did not start (its output is above). Use --port 0 for any free port instead of {port}.")
    return status
