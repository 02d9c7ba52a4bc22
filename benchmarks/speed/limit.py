"""How near the training step is to what the machine can multiply, and where the rest goes: `python benchmarks/speed/limit.py`.

On every device at once and in one run: sgemm of 1,024 x 1,024 matrices, and the training of one tile of each net. What a
step's parts cost is found by leaving parts out of it, on rows that are gathered beforehand:

- forward: the loss alone; backward: its gradient, less forward; optimiser: the update, less both;
- order: the engine's own step, less all of these: which rows, and fetching them;
- probes: every metric and histogram of an epoch's end, spread over its steps;
- host: a whole epoch as the engine queues it, less step and probes.

A step is counted as 6 B W floating-point operations, B the batch and W the kernels' weights; what activations, biases and Adam
need comes on top and counts for nothing. Writes results/speed/limit.csv and .md, and a picture.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import timing
from flax import nnx
from jaxtyping import Array

from relu_study.components.layers import Context, FeatureMajorBatch
from relu_study.components.registry import optimizers, tasks
from relu_study.components.tasks.task import LOSSES, Signature
from relu_study.engine import cohorts, compilation, places, plan, train_tile
from relu_study.engine.state import MeasureConfig, State, build
from relu_study.engine.train_step import BLOCK, steps_per_epoch
from relu_study.runner import run
from relu_study.study.run_spec import RunSpec

SIDE = 1024
PARTS = ("forward", "backward", "optimiser", "order", "probes", "host")


def sgemm() -> Callable[[], float]:
    """GFLOP/s of square float32 products on every device."""

    @jax.jit
    def multiply(x: Array) -> Array:
        return jax.lax.fori_loop(0, 8, lambda _, y: jnp.dot(y, x, precision="highest") / SIDE**0.5, x)

    matrix = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    there = [jax.device_put(matrix, device) for device in places.places()]
    return lambda: len(there) * 8 * 2 * SIDE**3 / timing.in_threads(lambda place, device: multiply(there[place])) / 1e9


def repeated(spec: RunSpec, signature: Signature, part: str) -> Callable[..., Any]:
    """BLOCK steps of one run on rows that are there already, up to and including one part of the step."""
    graph, _, _ = nnx.split(build(spec, signature.d_in, signature.d_out), nnx.Param, nnx.BatchStat)

    def loss(params: Any, stats: Any, xy: Array, hparams: Any) -> Array:
        model = nnx.merge(graph, params, stats, copy=True)
        prediction = model(FeatureMajorBatch(xy[: signature.d_in]), Context(hparams, train=True, key=jax.random.key(0))).values
        return LOSSES[signature.loss](prediction.T, xy[signature.d_in :].T)

    def step(state: State, xy: Array, hparams: Any) -> State:
        params, stats, opt = state
        # Too little to move a weight, but the compiler cannot know that and must compute the part.
        if part == "forward":
            value = 1e-30 * loss(params, stats, xy, hparams)
            return state._replace(params=jax.tree.map(lambda p: p + value, params))
        grads = jax.grad(loss)(params, stats, xy, hparams)
        if part == "backward":
            return state._replace(params=jax.tree.map(lambda p, g: p - 1e-30 * g, params, grads))
        tx = optimizers[spec.optimizer](hparams["learning_rate"], hparams["weight_decay"])
        updates, opt = tx.update(grads, opt, params)
        return State(optax.apply_updates(params, updates), stats, opt)

    def steps(state: State, block: Array, hparams: Any, rounds: Array) -> State:
        one = functools.partial(jax.lax.fori_loop, 0, BLOCK)
        return jax.lax.fori_loop(0, rounds, lambda _, s: one(lambda k, s: step(s, block[k], hparams), s), state)

    return jax.vmap(steps, in_axes=(0, 0, 0, None))


def parts(base: RunSpec, width: int) -> dict[str, Callable[[], float]]:
    """For each part a function that measures the seconds a step of a tile takes up to it, on every device at once."""
    signature, measure_config = tasks[base.task](base).signature, MeasureConfig()
    per_epoch = steps_per_epoch(signature.train_rows, base.batch_size)
    rounds = max(per_epoch // BLOCK, 1)
    program, begun, measured = compilation.tile_programs(base, measure_config), [], {}
    for place, device in enumerate(places.places()):
        tile = [base.replace(seed=place * width + i, epochs=1) for i in range(width)]
        state, data, *rest = train_tile.init_tile(tile, device, measure_config)
        block = data.train[:, : BLOCK * base.batch_size].reshape(width, BLOCK, base.batch_size, -1).swapaxes(2, 3)
        at = jax.device_put((np.int32(1), np.int32(0), np.int32(per_epoch)), device)
        begun.append((state, data, *rest, block, at))

    def advance(place: int, device: jax.Device) -> Any:
        state, data, seeds, hparams, *_, at = begun[place]
        return program.advance(state, data.train, seeds, hparams, *at)

    def measure(place: int, device: jax.Device) -> Any:
        state, data, _, hparams, box, *_ = begun[place]
        return program.measure(state._replace(opt=None), state.params, data, hparams, box)

    for part in PARTS[:3]:
        go = compilation.TracedOnce(repeated(cohorts.cohort(base, signature)[0], signature, part))

        def up_to(place: int, device: jax.Device, go: Callable[..., Any] = go) -> Any:
            state, _, _, hparams, *_, block, _ = begun[place]
            return go(state, block, hparams, jax.device_put(np.int32(rounds), device))

        measured[part] = functools.partial(lambda work: timing.in_threads(work) / (rounds * BLOCK), up_to)
    measured["step"] = lambda: timing.in_threads(advance) / per_epoch
    measured["probes"] = lambda: timing.in_threads(measure) / per_epoch
    longer, shorter = base.replace(epochs=3), base.replace(epochs=1)
    measured["epoch"] = lambda: (
        (timing.busy(longer, width, measure_config) - timing.busy(shorter, width, measure_config)) / (2 * per_epoch)
    )
    return measured


def shares(took: dict[str, float]) -> dict[str, float]:
    """What each part costs, from the times up to each."""
    forward, backward, optimiser, step = (took[name] for name in ("forward", "backward", "optimiser", "step"))
    return {
        "forward": forward,
        "backward": backward - forward,
        "optimiser": optimiser - backward,
        "order": step - optimiser,
        "probes": took["probes"],
        "host": took["epoch"] - step - took["probes"],
    }


def row(name: str, base: RunSpec, repeats: int) -> dict[str, Any]:
    """One line of the table: a net at one batch size."""
    work = cohorts.cost_of(base)
    width, devices = plan.width(work, 1000, jax.devices()[0].platform), len(jax.devices())
    took = timing.interleaved({"sgemm": sgemm(), **parts(base, width)}, repeats)
    middle = {part: statistics.median(times) for part, times in took.items()}
    runs = width * devices
    rate = [work.flops * runs / seconds / 1e9 for seconds in took["step"]]
    of_sgemm = [step / limit for step, limit in zip(rate, took["sgemm"], strict=True)]
    return {
        "net": name,
        "batch": base.batch_size,
        "width": width,
        "devices": devices,
        "sgemm_gflops": round(middle["sgemm"], 1),
        "step_gflops": round(statistics.median(rate), 1),
        "share_of_sgemm": round(statistics.median(of_sgemm), 3),
        "least": round(min(of_sgemm), 3),
        "most": round(max(of_sgemm), 3),
        "step_us": round(1e6 * middle["step"] / width, 2),
        **{f"{part}_us": round(1e6 * seconds / width, 2) for part, seconds in shares(middle).items()},
        "repeats": repeats,
        **timing.about(),
    }


def picture(rows: list[dict[str, Any]]) -> plt.Figure:
    """Where an epoch goes, a bar a net and batch, with the step's share of sgemm beside it."""
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(rows) + 1.2), layout="constrained")
    labels = [f"{r['net']}, batch {r['batch']}" for r in rows]
    left = np.zeros(len(rows))
    for shade, part in zip(np.linspace(0.05, 0.9, len(PARTS)), PARTS, strict=True):
        share = np.array([max(r[f"{part}_us"], 0) for r in rows])
        share = share / np.array([sum(max(r[f"{p}_us"], 0) for p in PARTS) for r in rows])
        axes.barh(labels, share, left=left, label=part, color=plt.get_cmap("cividis")(shade))
        left += share
    for place, r in enumerate(rows):
        axes.text(1.02, place, f"{r['share_of_sgemm']:.0%}", va="center")
    axes.text(1.02, -1, "of sgemm", va="center")
    axes.set(xlim=(0, 1), xlabel="share of an epoch's time")
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=len(PARTS), frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    run.use_devices()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for name, base in timing.NETS.items():
        for batch in (32, 128, 512):
            rows.append(row(name, base.replace(batch_size=batch), asked.repeats))
            print(rows[-1], flush=True)
    timing.write("limit", rows)
    timing.save("limit", picture(rows))


if __name__ == "__main__":
    main()
