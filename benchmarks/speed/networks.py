"""Networks trained together and one by one: `python benchmarks/speed/networks.py`.

Seeds of `cnn`, of the same network with Flax's own convolutions, and of `resnet` and `vit`, on the images of digits. Together: a
tile on every device, as `run` trains it, without measurements between the first and the last. One by one: the usual loop, an
`nnx.jit` step of the same module and optimiser in a Python loop over batches, on all cores. Both have compiled before. Each
repeat times both in turn: the difference of two trainings, one of `EPOCHS` epochs and one of a single step. A ratio is the median
over repeats. Writes results/speed/networks.csv and .md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import timing
from flax import nnx

from relu_study import Activate, RunSpec, network
from relu_study.components.networks import network_of
from relu_study.components.options import filled
from relu_study.components.registry import tasks
from relu_study.engine import cohorts, plan
from relu_study.engine.train_step import steps_per_epoch
from relu_study.runner import run

SEEDS, ALONE, EPOCHS = 32, 2, 4  # the loop trains two seeds, whose time is scaled to all
GOAL = 5.0
BASE = RunSpec(task="digits_image", width=16, depth=2, batch_size=32, learning_rate=1e-3)


@network("flax_cnn", initializer="he_normal")
class FlaxCNN(nnx.Module):
    """The `cnn` of two stages with `nnx.Conv`, as a user writes it."""

    def __init__(self, spec: RunSpec, inputs: Any, outputs: Any, rngs: nnx.Rngs):
        self.first = nnx.Conv(inputs.shape[-1], spec.width, (3, 3), rngs=rngs)
        self.second = nnx.Conv(spec.width, spec.width, (3, 3), rngs=rngs)
        self.activate = Activate(spec)
        self.output = nnx.Linear(4 * spec.width, outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv in (self.first, self.second):
            x = nnx.avg_pool(self.activate(conv(x)), (2, 2), (2, 2))
        return self.output(x.reshape(len(x), -1))


def together(spec: RunSpec) -> Callable[[], float]:
    """Return a function that measures the seconds of a training step of all seeds."""
    signature = tasks[spec.task](spec).signature
    per_epoch = steps_per_epoch(signature.train_rows, spec.batch_size)
    devices = len(jax.devices())
    width = min(plan.width(cohorts.cost_of(spec), SEEDS, jax.devices()[0].platform), SEEDS // devices)

    def seconds(epochs: float) -> float:
        return timing.busy(spec.replace(epochs=epochs), width, probe=False)

    def measure() -> float:
        took = seconds(EPOCHS) - seconds(1 / per_epoch)
        return took / (EPOCHS * per_epoch - 1) * SEEDS / (width * devices)

    measure()
    return measure


def one_by_one(spec: RunSpec) -> Callable[[], float]:
    """Return a function that measures the seconds of a training step of all seeds, one seed after the other."""
    task = tasks[spec.task](spec)
    rows = np.asarray(task.signature.train_rows)
    x, y = (np.asarray(part) for part in task.sample(jax.random.key(0), 0))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    def train(seed: int) -> int:
        model = network_of(spec)(filled(spec), task.signature.inputs, task.signature.outputs, nnx.Rngs(seed))
        optimizer, order = nnx.Optimizer(model, optax.adam(spec.learning_rate), wrt=nnx.Param), np.random.default_rng(seed)
        steps = 0
        for _ in range(EPOCHS):
            batches = np.split(order.permutation(int(rows))[: rows // spec.batch_size * spec.batch_size], rows // spec.batch_size)
            for batch in batches:
                step(model, optimizer, x[batch], y[batch])
            steps += len(batches)
        jax.block_until_ready(nnx.state(model))
        return steps

    train(0)

    def measure() -> float:
        began = time.perf_counter()
        steps = sum(train(seed) for seed in range(ALONE))
        return (time.perf_counter() - began) / steps * SEEDS

    return measure


def line_of(name: str, repeats: int) -> dict[str, Any]:
    """Return the line of the table for one network."""
    spec = BASE.replace(network=name)
    took = timing.interleaved({"together": together(spec), "one by one": one_by_one(spec)}, repeats)
    median, least, most = timing.ratio(took["one by one"], took["together"])
    return {
        "network": name,
        "seeds": SEEDS,
        "together_ms": round(statistics.median(took["together"]) * 1e3, 2),
        "one_by_one_ms": round(statistics.median(took["one by one"]) * 1e3, 2),
        "ratio": round(median, 1),
        "least": round(least, 1),
        "most": round(most, 1),
        "goal": GOAL if name == "cnn" else "",
        "repeats": repeats,
        **timing.about(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    run.use_devices()
    lines = []
    for name in ("cnn", "flax_cnn", "resnet", "vit"):
        lines.append(line_of(name, repeats))
        print(lines[-1], flush=True)
    timing.write("networks", lines)


if __name__ == "__main__":
    main()
