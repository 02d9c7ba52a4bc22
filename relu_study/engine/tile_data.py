"""Datasets and other arrays of a tile's runs on its device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from relu_study.components.registry import Registry, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import cohorts, compilation
from relu_study.engine.state import Data, MeasureConfig, pack, unpack
from relu_study.study.run_spec import RunSpec


@functools.partial(jax.jit, donate_argnums=0)
def _select_runs(kept: Any, other: Any, where: Bool[Array, " W"]) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(where, range(1, a.ndim)), b, a), kept, other)


def init_per_key(specs: list[RunSpec], key: Callable[[RunSpec], RunSpec], make: Callable[[RunSpec], Any]) -> Any:
    """Initial arrays of all runs: `make` them for the whole tile once per distinct `key`, then select per run."""
    keys = [key(spec) for spec in specs]
    distinct = list(dict.fromkeys(keys))
    initial = make(distinct[0])
    for other in distinct[1:]:
        initial = _select_runs(initial, make(other), np.array([key == other for key in keys]))
    return initial


def datasets_of(specs: list[RunSpec], num_datasets: int | None) -> tuple[list[RunSpec], np.ndarray | None]:
    """One reader for each of the `num_datasets` datasets, and the index of the dataset of each run.

    The index is None if every run has its own dataset. Unused datasets repeat the first reader.
    """
    if num_datasets is None or num_datasets == len(specs):
        return specs, None
    keys = [(cohorts.data_spec(spec), spec.seed, *cohorts.task_numbers(spec).items()) for spec in specs]
    distinct = list(dict.fromkeys(keys))
    readers = [specs[keys.index(key)] for key in distinct]
    assert len(readers) <= num_datasets, f"the runs read {len(readers)} datasets, more than {num_datasets}"
    return [*readers, *[readers[0]] * (num_datasets - len(readers))], np.array([distinct.index(key) for key in keys], np.int32)


def draw(readers: list[RunSpec], phase: int, device: Any, measure_config: MeasureConfig) -> Data:
    """The data of one phase of the task, one dataset per reader. All readers share a table, if their task has one."""
    seeds = jax.device_put(np.array([s.seed for s in readers], np.uint32), device)
    traced = [cohorts.task_numbers(spec) for spec in readers]

    def sample(key: RunSpec) -> Data:
        # Runs of another key, whose rows are not selected, may lack an option.
        options = {name: numbers([run.get(name, 0.0) for run in traced], device) for name in cohorts.task_numbers(key)}
        return compilation.sample_program(key, phase, measure_config.validation(tasks[key.task](key).signature))(seeds, options)

    data = init_per_key(readers, cohorts.data_spec, sample)
    if tasks[readers[0].task](readers[0]).table is not None:
        data = data._replace(table=shared_table(cohorts.data_spec(readers[0]), device, Registry.version))
    return data


@functools.lru_cache(maxsize=8)
def shared_table(spec: RunSpec, device: Any, version: int) -> Any:
    """The rows of a task with a table, on a device. A replaced task has another `version` of the registries."""
    task = tasks[spec.task](spec)
    assert task.table is not None
    return jax.device_put(pack(task.signature, *task.table), device)


def numbers(values: Sequence[float], device: Any) -> Float[Array, " W"]:
    """Return one number per run as an array on a device."""
    with np.errstate(over="ignore"):  # a rate beyond float32 becomes infinite, and its run nonfinite
        return jax.device_put(np.array(values, jnp.result_type(float)), device)


def probe_inputs(signature: Signature, data: Data, source: Any, measure_config: MeasureConfig) -> Float[Array, "W N D"]:
    """The inputs of the probe set of each run."""
    rows = data.rows(data.train[:, : measure_config.probe_set(signature)])
    x, _ = unpack(signature, rows)
    return x if source is None else x[source]
