"""Settings of JAX that a user may have: pinned while a study runs, and the digest of a CPU's arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from relu_study import settings
from relu_study.identity import differences

OTHER = {"jax_debug_nans": True, "jax_numpy_dtype_promotion": "strict", "jax_threefry_partitionable": False}
CODE = "from relu_study.settings import digest; print(digest())"


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_is_pinned_inside_and_comes_back(name: str):
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, OTHER[name])
        with settings.pinned():
            assert getattr(jax.config, name) == settings.PINNED[name] != OTHER[name]
        assert getattr(jax.config, name) == OTHER[name]
    finally:
        jax.config.update(name, before)


def test_another_digest_is_named_and_a_folder_without_one_is_continued():
    here = {"digest": settings.digest(), "own": {}}
    assert here["digest"] == settings.digest()
    assert differences(here, {"own": {}}) == [] and "digest" in differences(here, {"digest": "other", "own": {}})[0]


def digest_with(**environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.slow
def test_an_instruction_set_changes_the_digest_and_a_device_count_does_not():
    first = digest_with(XLA_FLAGS="")
    assert digest_with(XLA_FLAGS="--xla_force_host_platform_device_count=3") == first
    assert digest_with(XLA_FLAGS="--xla_cpu_max_isa=SSE4_2") != first
