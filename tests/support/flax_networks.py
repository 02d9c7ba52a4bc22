"""Small Flax networks and a task of images that tests register."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from relu_study.components.networks import network
from relu_study.components.registry import REGISTRIES
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

ROWS = 40
FEW = MeasureConfig(16, 8, histograms=False, metrics=("train_loss", "val_loss", "dead_fraction", "grad_norm"))
IMAGES = RunSpec(task="test_images", rows=ROWS, batch_size=8, width=3, depth=2, epochs=2, learning_rate=0.01)


@contextmanager
def registered() -> Iterator[None]:
    """Register the entries of this module for the tests within."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in REGISTRIES:
            registry.load()
            patch.setattr(registry, "_entries", dict(registry._entries))
        task("test_images")(images)
        network("test_dropout", options={"rate": 0.5})(Dropping)
        network("test_linen")(lambda spec, inputs, outputs, rngs: LinenNormed(spec.width, outputs.shape[-1]))
        yield


def images(spec: RunSpec) -> Task:
    """Noisy images of 4 x 4 pixels in three classes, by their brightest column."""
    train = spec.rows * 3 // 4

    def sample(key: Any, phase: Any) -> tuple[Any, Any]:
        noise, classes = jax.random.split(key)
        y = jax.random.randint(classes, (spec.rows,), 0, 3)
        x = jax.random.normal(noise, (spec.rows, 4, 4, 1)) + jax.nn.one_hot(y, 4)[:, None, :, None]
        return x, y

    signature = Signature(train, spec.rows - train, 16, 3, "cross_entropy", ("accuracy",), input_shape=(4, 4, 1))
    return Task(signature, sample)


class Dropping(nnx.Module):
    """A network with dropout, whose rate is an option, and a batch normalisation."""

    def __init__(self, spec: RunSpec, inputs: Any, outputs: Any, rngs: nnx.Rngs):
        size = inputs.shape[0] * inputs.shape[1]
        self.first = nnx.Linear(size, spec.width, rngs=rngs)
        self.norm = nnx.BatchNorm(spec.width, rngs=rngs)
        self.dropout = nnx.Dropout(spec.option("rate"), rngs=rngs)
        self.last = nnx.Linear(spec.width, outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jax.nn.relu(self.norm(self.first(x.reshape(len(x), -1))))
        return self.last(self.dropout(x))


class LinenNormed(nn.Module):
    """A Linen network with batch normalisation and dropout, in training mode by its argument `train`."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.outputs)(jnp.mean(x, axis=(1, 2)))
