"""The command in a process that tells whether it imported JAX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from paths import ROOT

PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
EACH = """
import contextlib, io, json, sys
from relu_study.cli.commands import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:], status, out, err = words, 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, out.getvalue(), err.getvalue(), "jax" in sys.modules]))
"""


class Done(NamedTuple):
    """The outcome of a command. Whether JAX was imported counts earlier commands of its process."""

    status: int
    out: str
    err: str
    imported_jax: bool


def commands(lines: Sequence[Sequence[str]], cwd: Path) -> list[Done]:
    """Run several commands in one process."""
    env = {**os.environ, "PYTHONPATH": PATH, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", EACH, json.dumps(lines)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Done(*json.loads(line)) for line in done.stdout.splitlines()]


def command(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from relu_study.cli.commands import main\ntry: main()\nfinally: print('jax' in sys.modules, file=sys.stderr)"
    )
    full = {**os.environ, "PYTHONPATH": PATH, "COLUMNS": "200", **env}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=full, capture_output=True, text=True, check=False)
