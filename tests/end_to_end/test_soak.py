"""The soak test's process measurements, and its detection of growth."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

SPEED = ROOT / "benchmarks" / "speed"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows counts handles, not descriptors")


@pytest.fixture(scope="module")
def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples", SPEED / "samples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sample_sees_memory_descriptors_threads_and_runs(samples: ModuleType, tmp_path: Path) -> None:
    runs, waiting = [0], threading.Event()
    with samples.Sampler(lambda: runs[0], 0.01) as sampler:
        while not sampler.samples:
            time.sleep(0.001)
        held, files = bytearray(b"1") * 2**26, [(tmp_path / str(i)).open("w") for i in range(5)]
        thread = threading.Thread(target=waiting.wait)
        thread.start()
        runs[0] = 7
        seen = len(sampler.samples) + 1
        while len(sampler.samples) <= seen:
            time.sleep(0.001)
        waiting.set()
        thread.join()
        for file in files:
            file.close()
    first, later = sampler.samples[0], sampler.samples[seen]
    assert later.descriptors == first.descriptors + 5 and later.threads == first.threads + 1
    assert 50 < later.mib - first.mib < 100 and len(held) == 2**26 and (first.runs, later.runs) == (0, 7)
    times = [sample.seconds for sample in sampler.samples]
    assert times == sorted(times) and times[0] < 1
    assert sampler._thread not in threading.enumerate()


STEADY = {"mib": lambda t: 800.0, "descriptors": lambda t: 6, "threads": lambda t: 23, "runs": lambda t: int(10 * t)}
HELD = {"resident MiB", "descriptors", "threads", "runs a second"}
GROWN: dict[str, tuple[dict[str, Callable[[float], float]], set[str]]] = {
    "steady": ({}, set()),
    "memory by 4 %": ({"mib": lambda t: 800 + 32 * t / 600}, set()),
    "memory by 7 %": ({"mib": lambda t: 800 + 56 * t / 600}, {"resident MiB"}),
    "memory that falls by 7 %": ({"mib": lambda t: 800 - 56 * t / 600}, {"resident MiB"}),
    "all in the first minute": ({"mib": lambda t: 100 if t < 60 else 800, "threads": lambda t: 90 if t < 60 else 23}, set()),
    "a descriptor in five minutes": ({"descriptors": lambda t: 6 + t // 300}, {"descriptors"}),
    "a file open for a moment": ({"descriptors": lambda t: 6 + (t % 50 == 0)}, set()),
    "a thread": ({"threads": lambda t: 23 + (t > 480)}, {"threads"}),
    "slower by 8 %": ({"runs": lambda t: int(10 * t - 0.8 * max(t - 490, 0))}, set()),
    "slower by 15 %": ({"runs": lambda t: int(10 * t - 1.5 * max(t - 490, 0))}, {"runs a second"}),
}


@pytest.mark.parametrize("name", GROWN)
def test_goals_apply_after_the_first_minute(name: str, samples: ModuleType) -> None:
    changes, missed = GROWN[name]
    about = {**STEADY, **changes}
    seen = [samples.Sample(float(t), *(about[key](t) for key in STEADY)) for t in range(0, 601, 5)]
    rows = samples.judged(seen, seen[-1].runs)
    assert {row["what"] for row in rows} == HELD and {row["what"] for row in rows if row["held"] == "no"} == missed


def test_samples_after_the_last_run_are_ignored(samples: ModuleType) -> None:
    seen = [samples.Sample(5.0 * i, 800.0 if i <= 100 else 1600.0, 6, 23, min(50 * i, 5000)) for i in range(130)]
    assert {row["held"] for row in samples.judged(seen, 5000)} == {"yes"}
    with pytest.raises(SystemExit, match="9 samples after the first minute say nothing: give it more --minutes"):
        samples.judged(seen[:21], 5000)


@pytest.mark.slow
def test_nothing_grows_in_half_an_hour(tmp_path: Path) -> None:
    command = [sys.executable, str(SPEED / "soak.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=SPEED.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"soak.{kind}" for kind in ("csv", "md", "png", "svg")}
