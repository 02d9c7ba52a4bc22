"""Parts of accelerator.py that measure the engine: tile widths, shares of the device's limits, and bits."""

from __future__ import annotations

import functools
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import price
import timing

from relu_study.components.entry_errors import out_of_memory_reason
from relu_study.components.registry import tasks
from relu_study.engine import cohorts, plan, train_step, train_tile, width_search
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import steps_per_epoch
from relu_study.runner.machine import device_memory
from relu_study.study.run_spec import RunSpec

if TYPE_CHECKING:
    from accelerator import Size

RATE, METRICS = "training steps per second", "time of all metrics over training time of an epoch"
SIDE, COPIED = {"cpu": 512}, {"cpu": 1 << 24}  # of a matrix, and bytes of an array; larger on an accelerator


def line(
    quantity: str,
    values: Sequence[Any] = (),
    unit: str = "",
    net: str = "",
    batch: int | str = "",
    width: int | str = "",
    note: str = "",
) -> dict[str, Any]:
    """Return one row of the table: the median, minimum and maximum of repeated values, or a reason in `note`."""
    numbers = [value for value in values if not isinstance(value, str)]
    middle = statistics.median(numbers) if numbers else (values[0] if values else "")
    ends = (min(numbers), max(numbers)) if numbers else ("", "")
    shown = [float(f"{value:.4g}") if isinstance(value, float) else value for value in (middle, *ends)]
    return {
        "net": net,
        "batch": batch,
        "width": width,
        "quantity": quantity,
        "value": shown[0],
        "least": shown[1],
        "most": shown[2],
        "unit": unit,
        "repeats": len(values),
        "note": note,
    }


def spec_of(net: str, batch: int, rows: int) -> RunSpec:
    """Return a net on so many training rows."""
    base = timing.NETS[net]
    return base.replace(batch_size=batch, rows=rows + timing.VALIDATION if base.task == "wide" else rows * 10 // 7)


def cases(size: Size) -> Iterator[tuple[str, int, RunSpec]]:
    """Return every net and batch size, with its spec."""
    for net, batch in size.cases:
        yield net, batch, spec_of(net, batch, size.rows)


def fits(spec: RunSpec, width: int) -> bool:
    """Whether two tiles fit into the device's memory by the plan's estimate."""
    (cohort,) = planned(spec, width).cohorts
    memory = device_memory()
    return memory is None or 2 * cohort.bytes() <= memory


def planned(spec: RunSpec, width: int) -> plan.Plan:
    """Return the plan of one full tile."""
    work = cohorts.cost_of(spec)
    return plan.plan(
        [spec.replace(seed=i) for i in range(width)], lambda run: work, {work.cohort: width}, 1, jax.default_backend()
    )


# ---------------------------------------------------------------------------------------- widths


def widths(size: Size) -> Iterator[dict[str, Any]]:
    """Measure training and metrics by tile width, and the engine's choice of a width."""
    for net, batch, spec in cases(size):
        steps = steps_per_epoch(tasks[spec.task](spec).signature.train_rows, batch)
        for width in size.widths:
            if not fits(spec, width):
                yield line(RATE, net=net, batch=batch, width=width, note="two tiles exceed the memory of the device")
                break
            try:
                took = timing.interleaved(price.epochs(spec, width, {"all": MeasureConfig()}), size.repeats)
            except Exception as error:
                if not (why := out_of_memory_reason(error)):
                    raise
                yield line(RATE, net=net, batch=batch, width=width, note=why)
                break
            rates = [len(jax.devices()) * width * steps / seconds for seconds in took["training"]]
            yield line(RATE, rates, "1/s", net, batch, width)
            measured = [all_metrics / training for all_metrics, training in zip(took["all"], took["training"], strict=True)]
            yield line(METRICS, measured, "1", net, batch, width)
        yield chosen(net, batch, spec, max(size.widths))


def chosen(net: str, batch: int, spec: RunSpec, runs: int) -> dict[str, Any]:
    """Measure which width the engine chooses for so many runs, and in how many seconds."""
    (cohort,) = planned(spec, runs).cohorts
    cohort = cohort.with_width(min(plan.width(cohort.work, runs, jax.default_backend()), runs))
    began = time.perf_counter()
    width, _ = width_search.fastest_width(cohort, jax.default_backend(), device_memory(), width_search.steps_per_second)
    return line("seconds to choose the tile width", [time.perf_counter() - began], "s", net, batch, width)


# ---------------------------------------------------------------------------------------- shares


def shares(size: Size) -> Iterator[dict[str, Any]]:
    """Measure the step's arithmetic and memory traffic as shares of the device's."""
    multiply, copy = product_rate(), copy_rate()
    for net, batch, spec in cases(size):
        width = max(width for width in size.widths if width == size.widths[0] or fits(spec, width))
        tile = planned(spec, width).tiles[0]
        rates = timing.interleaved(
            {"step": functools.partial(width_search.steps_per_second, tile), "product": multiply, "copy": copy}, size.repeats
        )
        flops = cohorts.cost_of(spec).flops
        yield line("arithmetic of a step", [flops * rate / 1e12 for rate in rates["step"]], "TFLOP/s", net, batch, width)
        of_product = [flops * rate / most for rate, most in zip(rates["step"], rates["product"], strict=True)]
        yield line("arithmetic of a step over that of large products", of_product, "1", net, batch, width)
        moved = bytes_of_a_step(spec, width)
        if moved is None:
            yield line("memory traffic of a step", net=net, batch=batch, width=width, note="XLA does not count it here")
            continue
        per_run = moved / width
        yield line("memory traffic of a step", [per_run * rate / 1e9 for rate in rates["step"]], "GB/s", net, batch, width)
        of_copy = [per_run * rate / most for rate, most in zip(rates["step"], rates["copy"], strict=True)]
        yield line("memory traffic of a step over that of a copy", of_copy, "1", net, batch, width)
    yield line("large products", [rate / 1e12 for rate in rates["product"]], "TFLOP/s")
    yield line("copy", [rate / 1e9 for rate in rates["copy"]], "GB/s")


def product_rate() -> Callable[[], float]:
    """Return a measurement of large float32 products on one device, in floating-point operations per second."""
    side, rounds = SIDE.get(jax.default_backend(), 8192), 8

    @jax.jit
    def multiply(x: Any) -> Any:
        return jax.lax.fori_loop(0, rounds, lambda _, y: jnp.dot(y, x, precision="highest") / side**0.5, x)

    matrix = jax.random.normal(jax.random.key(0), (side, side))
    return lambda: rounds * 2 * side**3 / seconds(lambda: multiply(matrix))


def copy_rate() -> Callable[[], float]:
    """Return a measurement of reading and writing a large array on one device, in bytes per second."""
    size, rounds = COPIED.get(jax.default_backend(), 1 << 32), 8

    @jax.jit
    def scale(x: Any) -> Any:
        return jax.lax.fori_loop(0, rounds, lambda _, y: y * 1.0001, x)

    array = jnp.ones(size // 4, jnp.float32)
    return lambda: rounds * 2 * size / seconds(lambda: scale(array))


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of a piece of work until its arrays are computed."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def bytes_of_a_step(spec: RunSpec, width: int) -> float | None:
    """Return the bytes that the kernels of one training step of a tile read and write, by XLA's count."""
    program, signature = cohorts.cohort(spec, tasks[spec.task](spec).signature)
    begun = train_tile.init_tile([spec.replace(seed=i) for i in range(width)], jax.devices()[0])
    config, seeds = train_step.step_config(program, signature), begun.seeds
    batch = jax.ShapeDtypeStruct((width, signature.d_in + signature.d_out, spec.batch_size), jnp.float32)
    step = jax.jit(jax.vmap(functools.partial(train_step.update, config)))
    keys = jax.vmap(jax.random.key)(seeds)
    counted = step.lower(begun.state, batch, keys, begun.hparams, seeds).compile().cost_analysis()
    return (counted or {}).get("bytes accessed")


# ------------------------------------------------------------------------------------------ bits


def trained(width: int, rows: int, runs: int) -> list[np.ndarray]:
    """Return the parameters of runs of net B after two epochs, in tiles of one width."""
    spec = spec_of("B 4-32-32-32-1", 128, rows).replace(epochs=2)
    tiles = [[spec.replace(seed=i + k) for k in range(width)] for i in range(0, runs, width)]
    one = MeasureConfig(histograms=False, metrics=("train_loss",))
    parts = [train_tile.train_tile(tile, width, measure_config=one, keep_params=True) for tile in tiles]
    return [np.concatenate([part[name] for part in parts]) for name in sorted(parts[0]) if name.startswith("param:")]


def digest(width: int, rows: int) -> str:
    """Return a hash of the parameters of one tile."""
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in trained(width, rows, width))).hexdigest()


def bits(size: Size) -> Iterator[dict[str, Any]]:
    """Compare the parameters of repeated trainings, and of two tile widths."""
    width, rows, about = min(1024, max(size.widths)), min(size.rows, 20_000), {"net": "B 4-32-32-32-1", "batch": 128}
    first, again, half = trained(width, rows, width), trained(width, rows, width), trained(width // 2, rows, width)
    yield line("equal bits in the same process", [yes(equal(first, again).all())], width=width, **about)
    script = Path(__file__).with_name("accelerator.py")
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    words = [sys.executable, str(script), "--digest", str(width), str(rows)]
    digests = {subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.strip() for _ in range(2)}
    note = "two processes, each with programs of its compilation"
    yield line("equal bits in other processes", [yes(digests == {digest(width, rows)})], width=width, note=note, **about)
    share = float(equal(first, half).mean())
    yield line("share of runs with equal bits at half the width", [share], "1", width=width, **about)
    apart = max(float(np.max(np.abs(a - b))) for a, b in zip(first, half, strict=True))
    yield line("greatest difference of a parameter at half the width", [apart], "1", width=width, **about)


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Return for each run whether all its parameters are equal."""
    same = [(a == b).reshape(len(a), -1).all(axis=1) for a, b in zip(first, second, strict=True)]
    return np.all(same, axis=0)


def yes(answer: Any) -> str:
    """Return an answer in words."""
    return "yes" if answer else "no"
