"""The allocator keeps large freed arrays, so that the next call of a program does not fault them in again."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from relu_study.runner import devices

FAULTS = """
import resource, sys
import numpy as np
from relu_study.runner import devices

if sys.argv[1] == "kept":
    assert devices.keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.empty(48 << 20, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> int:
    # NumPy asks the kernel for huge pages, which hide single faults.
    environ = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    done = subprocess.run([sys.executable, "-c", FAULTS, how], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_arrays_are_used_again() -> None:
    pages = (48 << 20) // 4096
    assert faults("as it is") > 10 * pages
    assert faults("kept") < 2 * pages


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_choice_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    assert not devices.keep_memory()


def test_an_older_glibc_gets_a_smaller_value(monkeypatch: pytest.MonkeyPatch) -> None:
    values = []

    def mallopt(parameter: int, value: int) -> int:
        values.append((parameter, value))
        return int(value <= 64 << 20 and not (parameter == devices.M_MMAP_THRESHOLD and value > 32 << 20))

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert devices.keep_memory()
    assert values[1:] == [(devices.M_MMAP_THRESHOLD, 32 << 20), (devices.M_TRIM_THRESHOLD, 64 << 20)]
