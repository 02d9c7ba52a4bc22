"""The command or other code in a process like a user's, and a text in many writing systems."""

from __future__ import annotations

import os
import subprocess
import sys

from paths import ROOT

SCRIPTS = "激活函数 نشط 🔥 Ωмега ±≈◦•†"


def command(*words: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `python -W default -m relu_study`, or other code, in a process with a user's settings."""
    start = ["-c", code] if code else ["-m", "relu_study"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([sys.executable, "-W", "default", *start, *words], capture_output=True, env=variables, timeout=900)


COMMANDS = """
import sys
from relu_study.cli.commands import main
for words in sys.argv[1].split(";"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, end
"""


def commands(*lines: str, **environment: str) -> str:
    """Return the output of several commands run in one process."""
    done = command(";".join(lines), code=COMMANDS, **environment)
    assert done.returncode == 0 and b"arning" not in done.stderr, done.stderr.decode()
    return done.stdout.decode()
