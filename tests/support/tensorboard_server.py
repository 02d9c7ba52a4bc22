"""TensorBoard as a separate process, queried over HTTP on the local host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


class Board:
    """A context manager that runs TensorBoard on a folder of runs, with its fast loader, at any free port."""

    def __init__(self, logs: Path, place: Path | None = None) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--load_fast", "true"]
        command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
        self.process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:  # it prints its address once it listens
            said.append(line)
            if found := re.match(r"TensorBoard \S+ at (http\S+)", line):
                self.address = found[1]
                break
        else:
            raise AssertionError(f"TensorBoard did not start: {''.join(said)}")

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def get(self, route: str, **asked: str) -> Any:
        with urlopen(f"{self.address}data/{route}?{urlencode(asked)}", timeout=30) as answer:
            return json.load(answer)

    def post(self, route: str, body: dict[str, Any]) -> Any:
        asked = Request(f"{self.address}data/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def scalars(self, tag: str, runs: list[str]) -> dict[str, list[tuple[int, float]]]:
        """Return run -> (step, value) of each point, for the `runs` with the tag."""
        form = urlencode({"tag": tag, "runs": runs}, doseq=True).encode()
        with urlopen(f"{self.address}data/plugin/scalars/scalars_multirun", form, timeout=30) as answer:
            return {run: [(step, value) for _, step, value in points] for run, points in json.load(answer).items()}

    def histograms(self, run: str, tag: str) -> dict[int, list[list[float]]]:
        """Return step -> left edge, right edge and count of each bucket."""
        return {step: buckets for _, step, buckets in self.get("plugin/histograms/histograms", run=run, tag=tag)}

    def session_groups(self) -> list[dict[str, Any]]:
        """Return the rows of the HParams tab, with any status."""
        asked = {"experimentName": "", "allowedStatuses": STATUSES, "colParams": [], "startIndex": 0, "sliceSize": 10_000}
        return self.post("plugin/hparams/session_groups", asked)["sessionGroups"]

    def wait(self, loaded: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until TensorBoard has loaded the data that `loaded` checks."""
        ends = time.monotonic() + seconds
        while not loaded():
            assert time.monotonic() < ends, "TensorBoard has not loaded the written runs"
            time.sleep(0.1)
