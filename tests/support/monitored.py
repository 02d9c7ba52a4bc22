"""A small model of two ReLU sites in every form that a monitor takes, and a slow reference of its numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from relu_study import Monitor, load
from relu_study.monitor.measure import differentiable, measuring_program
from relu_study.storage.results import MonitorResults

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(32, 2)).astype(np.float32)
SIZES = ((4, 6), (6, 5), (5, 2))
TX = optax.sgd(0.1)


def loss(outputs: Any, targets: Any) -> Any:
    return jnp.mean((outputs - targets) ** 2)


def params_of(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        name: {"kernel": rng.normal(size=size).astype(np.float32), "bias": rng.normal(size=size[1]).astype(np.float32)}
        for name, size in zip(("one", "two", "out"), SIZES, strict=True)
    }


def forward(params: Any, x: Any) -> Any:
    for name in ("one", "two"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.one, self.two, self.out = (nnx.Linear(*size, rngs=rngs) for size in SIZES)

    def __call__(self, x: Any) -> Any:
        return self.out(nnx.relu(self.two(nnx.relu(self.one(x)))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name, size in zip(("one", "two"), SIZES, strict=False):
            x = nn.relu(nn.Dense(size[1], name=name)(x))
        return nn.Dense(SIZES[-1][1], name="out")(x)


class Normalised(nn.Module):
    """With batch statistics, which a training state keeps in a field."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
        return nn.Dense(2)(x)


class NormalisedState(TrainState):
    batch_stats: Any = None


def nnx_module(params: Any) -> NNX:
    module = NNX(nnx.Rngs(0))
    for name, layer in params.items():
        getattr(module, name).kernel[...], getattr(module, name).bias[...] = layer["kernel"], layer["bias"]
    return module


def train_state(module: NNX) -> nnx.TrainState:  # type: ignore[type-arg]
    return nnx.TrainState.create(nnx.split(module)[0], params=nnx.state(module), tx=TX)


FORMS: dict[str, Callable[[Any], Any]] = {
    "function": lambda params: (forward, params),
    "nnx": lambda params: nnx_module(params),
    "nnx with optimizer": lambda params: (module := nnx_module(params), nnx.Optimizer(module, TX, wrt=nnx.Param)),
    "nnx.ModelAndOptimizer": lambda params: nnx.ModelAndOptimizer(nnx_module(params), TX, wrt=nnx.Param),
    "nnx.split": lambda params: tuple(nnx.split(nnx_module(params))),
    "nnx.TrainState": lambda params: train_state(nnx_module(params)),
    "linen": lambda params: (Linen(), {"params": params}),
    "TrainState": lambda params: TrainState.create(apply_fn=Linen().apply, params=params, tx=TX),
    "TrainState of a function": lambda params: TrainState.create(apply_fn=forward, params=params, tx=TX),
}
"""The model in every form, from its parameters."""


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Compile the measuring program of a plain function only once for its shapes and its loss."""
    programs: dict[Any, Any] = {}
    build = measuring_program

    def shared(model: Any, *arguments: Any) -> Any:
        functions = [cell.cell_contents for cell in model.function.__closure__ or () if callable(cell.cell_contents)]
        shapes = jax.tree.map(
            lambda leaf: (np.shape(leaf), getattr(leaf, "dtype", None)), (model.params, model.state, arguments[:2])
        )
        key = repr((functions, arguments[2:], jax.tree.structure(shapes), jax.tree.leaves(shapes)))
        if key not in programs:
            programs[key] = build(model, *arguments)
        return dataclasses.replace(programs[key], read=differentiable(model).read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relu_study.monitor.monitor.measuring_program", shared)
        yield


def pre_by_hand(params: Any) -> dict[str, np.ndarray]:
    """Return the pre-activations of both sites, in NumPy."""
    one = X @ params["one"]["kernel"] + params["one"]["bias"]
    return {"one": one, "two": np.maximum(one, 0) @ params["two"]["kernel"] + params["two"]["bias"]}


def killed(params: Any, site: str, *units: int) -> Any:
    """Return parameters with dead units."""
    bias = params[site]["bias"].copy()
    bias[list(units)] = -1e3
    return params | {site: params[site] | {"bias": bias}}


PARAMS = params_of()
DEAD = killed(PARAMS, "one", 0, 4)
NAN = PARAMS | {"two": PARAMS["two"] | {"kernel": np.full_like(PARAMS["two"]["kernel"], np.nan)}}


def monitor(out: Path, model: Any = (forward, PARAMS), **options: Any) -> Monitor:
    return Monitor(model, out=out, **{"probe": X, "targets": Y, "loss": loss, "every": 1, **options})


def results(folder: Path) -> MonitorResults:
    found = load(folder)
    assert isinstance(found, MonitorResults)
    return found


def history(folder: Path, *steps: tuple[int, Any]) -> MonitorResults:
    """Return the results of a monitor of some steps."""
    with monitor(folder) as watching:
        for step, params in steps:
            watching(step, params)
    return results(folder)
