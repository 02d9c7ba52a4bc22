"""How long one waits before anything is trained: `python benchmarks/speed/startup.py`.

The commands as processes of their own, from start to end: `relu-study --help`, `list`, `plan article`. Then small studies with
all their files, with an empty compilation cache (cold) and with the one that each left behind (warm): the README's first study, a
study on digits, and the article with two seeds and one epoch, every cohort of it. Of the article also the seconds until its first
tile is stored, and what the backend compiled or loaded, by program, summed over devices.
Writes results/speed/startup.csv and .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import timing

COMMAND = [sys.executable, "-c", "from relu_study.cli.commands import main; main()"]
ARTICLE = "article of two seeds and one epoch"
STUDIES = Path(__file__).with_name("startup_studies")
SMALL = {
    "the README's first study": [str(STUDIES / "first.py")],
    "study on digits": [str(STUDIES / "digits.py")],
    ARTICLE: ["article", "--seeds", "2", "--epochs", "1"],
}
PROGRAMS = ("advance", "measure", "init", "sample")
HEARD = """
import json, os, jax
from collections import defaultdict
spent = defaultdict(list)
def hear(event, duration_secs, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        spent[fun_name.removeprefix("jit(").removesuffix(")")].append(duration_secs)
jax.monitoring.register_event_duration_secs_listener(hear)
from relu_study.cli.commands import main
try:
    main()
finally:
    with open(os.environ["HEARD"], "w") as file:
        json.dump(spent, file)
"""


def whole(words: list[str], repeats: int) -> list[float]:
    """Seconds of a command as a process, again and again."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([*COMMAND, *words], stdout=subprocess.DEVNULL, check=True)
        took.append(time.perf_counter() - began)
    return took


def small_study(words: list[str], out: Path, cache: Path) -> tuple[float, float, dict[str, list[float]]]:
    """Seconds until the first tile is stored, until the end, and of every compilation by program."""
    heard = out.with_suffix(".json")
    began, first = time.perf_counter(), 0.0
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "HEARD": str(heard)}
    child = subprocess.Popen([sys.executable, "-c", HEARD, "run", *words, "--out", str(out)], stdout=subprocess.DEVNULL, env=env)
    while child.poll() is None:
        if not first and any((out / "raw").glob("tile-*.npz")):
            first = time.perf_counter() - began
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(f"the study ended with status {child.returncode}")
    return first, time.perf_counter() - began, json.loads(heard.read_text())


def by_program(compiled: dict[str, list[float]]) -> dict[str, list[float]]:
    """The compilations of the large programs, of all others together, and of all."""
    known = {name: compiled.pop(name, []) for name in PROGRAMS}
    known["small programs"] = list(itertools.chain.from_iterable(compiled.values()))
    return known | {"all programs": list(itertools.chain.from_iterable(known.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each command that trains nothing")
    parser.add_argument("--starts", type=int, default=3, help="cold and warm, in turn")
    asked = parser.parse_args()
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    programs: dict[tuple[str, str], int] = {}
    for words in (["--help"], ["list"], ["plan", "article"]):
        taken[f"relu-study {' '.join(words)}", ""] = whole(words, asked.repeats)
    for _, study in itertools.product(range(asked.starts), SMALL):
        with tempfile.TemporaryDirectory() as scratch:
            for start in ("cold", "warm"):
                first, end, compiled = small_study(SMALL[study], Path(scratch) / start, Path(scratch) / "cache")
                taken[study, start].append(end)
                if study == ARTICLE:
                    taken["first tile stored", start].append(first)
                    for name, spent in by_program(compiled).items():
                        taken[f"compiling {name}", start].append(sum(spent))
                        programs[f"compiling {name}", start] = len(spent)
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "cache": start,
            "seconds": round(statistics.median(times), 3),
            "least": round(min(times), 3),
            "most": round(max(times), 3),
            "programs": programs.get((what, start), ""),
            "repeats": len(times),
            **timing.about(),
        }
        for (what, start), times in taken.items()
    ]
    for row in rows:
        print(*list(row.values())[:7], sep="  ", flush=True)
    timing.write("startup", rows)


if __name__ == "__main__":
    main()
