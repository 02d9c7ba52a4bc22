"""The allocator keeps large freed arrays, so that the next call of a program does not fault them in again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from relu_study.runner import devices

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not devices.keep_memory()
