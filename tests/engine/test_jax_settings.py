"""Settings of JAX that a user may have: pinned while a study runs, and the digest of a CPU's arithmetic."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from paths import ROOT

from relu_study import Draws, DrawStudy, Experiment, RunSpec, Study, run, run_draws
from relu_study.engine import compilation, jax_settings
from relu_study.storage.provenance import differences

OTHER = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_threefry_partitionable": False,
    "jax_default_prng_impl": "rbg",
    "jax_random_seed_offset": 3,
    "jax_transfer_guard": "disallow",
    "jax_transfer_guard_host_to_device": "disallow_explicit",
    "jax_softmax_custom_jvp": True,
    "jax_high_dynamic_range_gumbel": True,
}
CODE = "from relu_study.engine.jax_settings import digest; print(digest())"


@pytest.mark.parametrize("name", OTHER)
def test_setting_is_fixed_in_a_study_and_restored(name: str):
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, OTHER[name])
        with jax_settings.pinned():
            assert getattr(jax.config, name) == jax_settings.PINNED[name] != OTHER[name]
        assert getattr(jax.config, name) == OTHER[name]
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(("way", "caller"), [("debug.callback", "(f, x)"), ("pure_callback", "(f, x, x)")])
def test_a_failed_callback_writes_no_record(way: str, caller: str, caplog: pytest.LogCaptureFixture):
    def f(*_: object) -> None:
        raise ValueError("planted")

    call = eval(f"lambda x: jax.{way}{caller}", {"jax": jax, "f": f})
    for _ in range(2):  # contexts nest
        with jax_settings.pinned():
            with jax_settings.pinned():
                pass
            with pytest.raises(Exception, match="planted"):
                jax.block_until_ready(jax.jit(call)(1.0))
                jax.effects_barrier()
    assert not caplog.records
    left = [kind for name in jax_settings.LOGGERS for kind in logging.getLogger(name).filters]
    assert not [kind for kind in left if isinstance(kind, jax_settings._NoUseless)], "the filters go with the settings"


def test_settings_of_a_program_move_no_number() -> None:
    def numbers() -> list[float]:
        base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, initializer="he_normal", dropout="dropout", dropout_rate=0.5)
        study = Study("set", "S", "?", [Experiment("main", {"arm": base})], seeds=2, metrics=("val_loss",))
        drawn = run_draws(DrawStudy("set", "S", "?", [Draws("main", "alive_data", {"all": {}}, 20)]))
        return [*run(study).runs["val_loss/all"], *drawn["estimate"]]

    first, before = numbers(), {name: getattr(jax.config, name) for name in OTHER}
    compilation.clear()
    try:
        for name, value in OTHER.items():
            jax.config.update(name, value)
        assert numbers() == first
        assert {name: getattr(jax.config, name) for name in OTHER} == OTHER
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


STUDIES = """
import os, sys
from relu_study import Draws, DrawStudy, Experiment, RunSpec, Study, run, run_draws
import jax
exec(os.environ.get("SETTING", ""))
base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, initializer="he_normal")
study = Study("s", "S", "?", [Experiment("main", {"arm": base})], seeds=1, metrics=("val_loss",))
more = os.environ.get("MORE") == "1"
run(study, sys.argv[1] + "/trained", seeds=2 if more else 1) if sys.argv[2] == "trained" else run_draws(
    DrawStudy("d", "D", "?", [Draws("main", "alive_data", {"all": {}}, 40 if more else 20)]), sys.argv[1] + "/drawn")
"""
MOVING = {  # settings that move numbers, as variables or within a program, and the key that a refusal names
    "x64": ({"JAX_ENABLE_X64": "1"}, "precision: float32 there, float64 here"),
    "x64 in a program": ({"SETTING": "jax.config.update('jax_enable_x64', True)"}, "precision: float32 there, float64 here"),
    "products": ({"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}, "matmul_precision: None there, bfloat16 here"),
    "products in a program": (
        {"SETTING": "jax.config.update('jax_default_matmul_precision', 'bfloat16')"},
        "matmul_precision: None there, bfloat16 here",
    ),
    "fast math": ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}, "digest: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained", "drawn"])
def test_setting_that_changes_numbers_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    def start(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", STUDIES, str(tmp_path), kind]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True)

    assert start().returncode == 0
    for variables, named in MOVING.values():
        refused = start(**variables, MORE="1")
        assert refused.returncode and named in refused.stderr and "Name another folder with --out" in refused.stderr, (
            refused.stderr
        )
    kept = {
        "JAX_DISABLE_JIT": "1",
        "JAX_DEBUG_NANS": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    done = start(**kept, JAX_DEFAULT_PRNG_IMPL="rbg", JAX_THREEFRY_PARTITIONABLE="0", MORE="1")
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_changed_digest_is_named_and_missing_digest_is_accepted():
    here = {"digest": jax_settings.digest(), "own": {}}
    assert here["digest"] == jax_settings.digest()
    assert differences(here, {"own": {}}) == [] and "digest" in differences(here, {"digest": "other", "own": {}})[0]


def digest_with(**environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.slow
def test_instruction_set_but_not_device_count_changes_the_digest():
    first = digest_with(XLA_FLAGS="")
    assert digest_with(XLA_FLAGS="--xla_force_host_platform_device_count=3") == first
    assert digest_with(XLA_FLAGS="--xla_cpu_max_isa=SSE4_2") != first
