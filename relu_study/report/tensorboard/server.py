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

MAX_PRESELECTED = 40  # with more runs, some of TensorBoard's tabs select none


def _quiet() -> dict[str, str]:
    """Return environment variables that make TensorBoard write UTF-8 and hide warnings about its packages."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONIOENCODING": "utf-8", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _advise_selection(logs: Path) -> None:
    """Print how to select runs if the folder has too many for TensorBoard's default selection."""
    runs = len({path.parent for path in logs.rglob("events.*")})
    if runs > MAX_PRESELECTED:
        print(
            f"TensorBoard selects none of these {runs} runs in Custom Scalars and Histograms. "
            "Press Toggle All Runs there, or filter them, e.g. by ^baseline@.",
            file=sys.stderr,
        )


def show(logs: Path, host: str, port: int, prefix: str = "", options: Sequence[str] = ()) -> int:
    """Start TensorBoard on a folder of runs, wait until it ends or is interrupted, and return its exit status.

    `prefix` is the path of its address. `options` are further arguments of TensorBoard's command line.

    Raises:
        UserError: TensorBoard ends before it listens.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", host, "--port", str(port)]
    if path := prefix.strip("/"):
        command.append(f"--path_prefix=/{path}")
    command += options
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, so TensorBoard also ends
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", env=_quiet())
    assert process.stderr is not None
    listens, startup_output = False, ""
    try:
        for line in process.stderr:
            # The address comes from TensorBoard's output: it chooses the port if `port` is 0.
            if match := re.match(r"TensorBoard \S+ at (http\S+)", line):
                listens = True
                print(match[1], flush=True)
                _advise_selection(logs)
            elif listens:
                print(line, end="", file=sys.stderr, flush=True)
            else:  # warnings about its packages, or the reason why it does not start
                startup_output += line
        status = process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.stderr.close()
        process.terminate()
        process.wait()
    if not listens:
        print(startup_output, end="", file=sys.stderr)
        raise UserError(f"TensorBoard did not start (its output is above). Use --port 0 for any free port instead of {port}.")
    return status
