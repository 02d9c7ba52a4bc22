"""Runs that a program maps over together: one at a time on a CPU, groups within a memory budget on an accelerator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relu_study.components.networks import network_of
from relu_study.components.tasks.task import Signature
from relu_study.engine.arithmetic import arithmetic
from relu_study.engine.forward import network_spec, site_units
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

GROUP_BYTES = {"gpu": 2 << 30, "tpu": 1 << 30}  # temporary memory of a group; not measured yet
COPIES = 8  # arrays of the size of all pre-activations that a measurement may have in memory at once


def map_in_groups(function: Callable[[Any], Any], runs: Any, bytes_per_run: Callable[[], int]) -> Any:
    """Return `function` of each run, mapped over the first axis of all leaves of `runs`.

    The runs of a group are mapped together, and the groups follow one another. On a CPU a group is one run, which stays in the
    cache. On an accelerator it is the largest power of two of runs whose temporary memory is within `GROUP_BYTES`.
    """
    budget = GROUP_BYTES.get(jax.default_backend())
    group = 1 if budget is None else group_size(bytes_per_run(), jax.tree.leaves(runs)[0].shape[0], budget)
    return jax.lax.map(function, runs) if group == 1 else jax.lax.map(function, runs, batch_size=group)


def group_size(bytes_per_run: int, runs: int, budget: int) -> int:
    """Return the largest power of two, at most `runs`, whose temporary memory is within `budget` bytes; at least 1."""
    most = max(min(budget // max(bytes_per_run, 1), runs), 1)
    return 1 << (most.bit_length() - 1)


def measured_bytes(spec: RunSpec, signature: Signature, measure_config: MeasureConfig) -> int:
    """Return the approximate temporary memory of measuring one run, in bytes: activations of all measured examples."""
    if network_of(spec).sized:
        entries = sum(site_units(spec, signature).values()) + signature.d_out
    else:
        entries = arithmetic(network_of(spec), network_spec(spec), signature.inputs, signature.outputs).activations
    examples = measure_config.probe_set(signature) + measure_config.validation(signature)
    return jnp.result_type(float).itemsize * examples * (signature.d_in + COPIES * entries)


def sampled_bytes(signature: Signature) -> int:
    """Return the approximate temporary memory of sampling the rows of one run, in bytes: twice the rows."""
    columns = math.prod(signature.inputs.shape) + math.prod(signature.outputs.shape)
    return 2 * jnp.result_type(float).itemsize * (signature.train_rows + signature.val_rows) * columns
