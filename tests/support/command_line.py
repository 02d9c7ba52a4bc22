"""The command in a process that prints on stderr whether it imported JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT


def command(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from relu_study.cli.commands import main\ntry: main()\nfinally: print('jax' in sys.modules, file=sys.stderr)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    full = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **env}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=full, capture_output=True, text=True, check=False)
