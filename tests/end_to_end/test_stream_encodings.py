"""Commands with output streams of any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minimal_folders import trained
from paths import ROOT
from tiers import tiered
from user_process import COMMANDS, SCRIPTS, command

from relu_study.cli.encoding import write_plainly


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_stream_of_any_encoding_accepts_any_text(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    write_plainly(stream)
    stream.write(SCRIPTS + " naïve \udce7")
    stream.flush()
    said, byte = raw.getvalue()[:-1], raw.getvalue()[-1:]
    assert byte == b"\xe7"  # of a file's name that is no text: as the system gave it
    if encoding == "utf-8":
        assert said.decode() == SCRIPTS + " naïve "
    else:
        assert b"\\u6fc0" in said and "ï" not in said.decode(encoding).replace("naïve", "")
    if encoding == "ascii":
        assert said.endswith(b"+-~o*+ naive ")


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "cp437"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "cp437", "posix"],
)
def test_commands_write_to_streams_without_utf8(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = trained(tmp_path / "研究")
    done = command(";".join(f"{verb} {folder}" for verb in ("table", "compare", "report")), code=COMMANDS, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert b"| relu |" in done.stdout and b"\xc2\xb1" not in done.stdout


SCRIPTED = """
from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=60, width=4, epochs=1, batch_size=30)
arms = {"激活 Ω": base, "naïve ± ≈": base.replace(activation="tanh")}
study = Study("scripts", "激活 “Ω” ≤ ±", "Naïve?", [Experiment("main", arms)], seeds=2, metrics=("val_loss",))
"""

SAID = """
import io
import sys
from relu_study.cli.commands import main
encoding = sys.argv[1]
for words in [["list"], ["plan", "own.py", "--no-memory"], ["run", "own.py", "--out", "~/研究"], ["table", "~/研究"],
              ["compare", "~/研究"], ["report", "~/研究"], ["table", "~/研室"], ["run", "own.py", "--seeds", "½"],
              ["plan", "激活"]]:
    raw = [io.BytesIO(), io.BytesIO()]
    sys.stdout, sys.stderr = (io.TextIOWrapper(one, encoding=encoding) for one in raw)
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush(), sys.stderr.flush()
        status = end.code
    for one in raw:
        text = one.getvalue()
        text.decode(encoding)
        assert b"Traceback" not in text and b"?" not in text.replace(b"did you mean", b"").replace(b"? ", b""), (words, text)
        sys.__stdout__.buffer.write(f"{words} {status}\\n".encode() + text + b"\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1"])
def test_every_command_writes_to_a_stream_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "own.py").write_text(SCRIPTED, encoding="utf-8")
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
    }
    words = [sys.executable, "-c", SAID, encoding]
    done = subprocess.run(words, capture_output=True, env=variables, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout
    assert (tmp_path / "研究/runs.csv").is_file() and not (tmp_path / "~").exists()
    statuses = [int(line.rpartition(b" ")[2]) for line in said.splitlines() if line.startswith(b"['")]
    assert statuses == [0] * 12 + [2] * 6
    assert b"\\u6fc0\\u6d3b" in said and said.count(b"relu-study: ") == 2
    for letter, plain in {"±": "+-", "Ω": "\\u03a9", "≈": "~"}.items():
        try:
            wanted = letter.encode(encoding)
        except UnicodeEncodeError:
            wanted = plain.encode()
        assert wanted in said, letter


POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("environment", tiered([{"PYTHONIOENCODING": "cp1252"}, POSIX], POSIX), ids=["cp1252", "posix"])
def test_module_writes_to_streams_without_utf8(tmp_path: Path, environment: dict[str, str]) -> None:
    listed, unknown = command("list", **environment), command("table", str(tmp_path / "激活"), **environment)
    assert listed.returncode == 0 and b"article" in listed.stdout and not listed.stderr
    assert unknown.returncode == 2 and b"\\u6fc0\\u6d3b" in unknown.stderr and unknown.stderr.count(b"\n") == 1
    assert unknown.stderr.startswith(b"relu-study: There is no folder")
