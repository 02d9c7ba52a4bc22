"""Vanishing and exploding gradients of untrained networks: the gradient norm of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from relu_study.components.registry import activations, initializers
from relu_study.components.untrained.dense_layers import require_int, weights
from relu_study.components.untrained.statistic import Cell, Quantity, statistic
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

EXAMPLES = 8
MAX_LOG = 20.0  # phi is computed at scales e^-20 .. e^20 only, since it is linear beyond
HIGHEST = jax.lax.Precision.HIGHEST


class Scaled(NamedTuple):
    """The array pattern * e^log with max abs(pattern) = 1, which stays in the range of float32 at any depth."""

    pattern: Float[Array, "N U"]
    log: Float[Array, ""]

    @staticmethod
    def of(values: Float[Array, "N U"], log: Float[Array, ""]) -> Scaled:
        """Return values * e^log as `Scaled`. An array of zeros has log 0."""
        largest = jnp.max(jnp.abs(values))
        scale = jnp.where(largest > 0, largest, 1)
        return Scaled(values / scale, jnp.where(largest > 0, log + jnp.log(scale), 0))

    def log_norm(self) -> Float[Array, ""]:
        """Return the natural logarithm of the norm, -inf for 0."""
        return self.log + 0.5 * jnp.log(jnp.sum(self.pattern**2))


class Residuals(NamedTuple):
    """The residuals of one layer for the backward pass: inputs, kernel, and pre-activations at the clipped scale."""

    inputs: Scaled
    kernel: Float[Array, "D U"]
    pre: Float[Array, "N U"]


def _check(cell: Cell) -> None:
    activations[cell["activation"]], initializers[cell["initializer"]]  # raise UserError for an unknown name
    require_int(width=cell["width"])
    require_int(2, depth=cell["depth"])


def _forward(cell: Cell, key: Key[Array, ""], layer: int | Int[Array, ""], inputs: Scaled) -> tuple[Scaled, Residuals]:
    """Return the outputs of one layer (0 nearest the input), and its residuals."""
    phi = activations[cell["activation"]]
    clipped_log = jnp.clip(inputs.log, -MAX_LOG, MAX_LOG)
    clipped_inputs = inputs.pattern * jnp.exp(clipped_log)
    kernel, bias = weights(cell["initializer"], key, layer, clipped_inputs, cell["width"], cell["depth"])
    pre = jnp.dot(clipped_inputs, kernel, precision=HIGHEST) + bias
    return Scaled.of(phi(pre, _hparams()), inputs.log - clipped_log), Residuals(inputs, kernel, pre)


def _backward(cell: Cell, by_outputs: Scaled, layer: Residuals) -> tuple[Scaled, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Return the gradient by a layer's inputs from the gradient by its outputs, with two log norms.

    The norms are of the gradients by its pre-activations and by its kernel.
    """
    phi = activations[cell["activation"]]
    _, pull_back = jax.vjp(lambda z: phi(z, _hparams()), layer.pre)
    by_pre = Scaled.of(pull_back(by_outputs.pattern)[0], by_outputs.log)
    by_kernel = jnp.dot(layer.inputs.pattern.T, by_pre.pattern, precision=HIGHEST)
    by_inputs = jnp.dot(by_pre.pattern, layer.kernel.T, precision=HIGHEST)
    norms = by_pre.log_norm(), Scaled.of(by_kernel, layer.inputs.log + by_pre.log).log_norm()
    return Scaled.of(by_inputs, by_pre.log), norms


def _hparams() -> dict[str, float]:
    """Return the default of every traced RunSpec field, as the parameters of an activation."""
    return {name: getattr(RunSpec(), name) for name in TRACED_FIELDS}


@statistic(
    "gradients",
    factors={"activation": "relu", "initializer": "he_normal", "width": 32, "depth": 50},
    numbers={
        "signal": Quantity(
            "log10 of the gradient by a layer's pre-activations, beside the last layer's", along="layer", spread=(-300.0, 100.0)
        ),
        "kernel": Quantity(
            "log10 of the gradient by a layer's kernel, beside the last layer's", along="layer", spread=(-300.0, 100.0)
        ),
        "zero": Quantity("Share of networks in which the gradient of a layer is exactly 0", share=True, along="layer"),
    },
    along=lambda cell: {"layer": range(1, cell["depth"] + 1)},
    check=_check,
    cost=lambda cell: cell["depth"] * cell["width"] ** 2 * (8.0 + 8.0 * EXAMPLES),
)
def gradients(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Norms of the loss gradient at every layer of an untrained net with `depth` hidden layers of `width` units.

    The loss is linear in the last layer's outputs, with one normal direction for each of 8 normal examples. Its scale cancels.
    `signal` and `kernel` are log10 of a Frobenius norm divided by its value at the last layer. The norms are of the gradients
    by the pre-activations and by the kernel. A quotient is undefined if either norm is 0, as below a dead layer. `zero`: the
    gradient by the pre-activations is 0. Only phi and its slope can under- or overflow in float32.

    Source: Glorot & Bengio 2010, AISTATS, section 4.2; Hanin 2018, arXiv 1801.03744.
    """
    depth, width = cell["depth"], cell["width"]
    data = jax.random.normal(jax.random.fold_in(key, depth), (EXAMPLES, width))
    signal, first = _forward(cell, key, 0, Scaled.of(data, jnp.zeros((), data.dtype)))
    signal, later = jax.lax.scan(lambda inputs, layer: _forward(cell, key, layer, inputs), signal, jnp.arange(1, depth))
    direction = jax.random.normal(jax.random.fold_in(key, depth + 1), signal.pattern.shape)
    gradient = Scaled.of(direction, jnp.zeros((), data.dtype))  # of the linear loss, by the last layer's outputs
    gradient, norms = jax.lax.scan(lambda g, layer: _backward(cell, g, layer), gradient, later, reverse=True)
    _, first_norms = _backward(cell, gradient, first)
    by_pre, by_kernel = (jnp.concatenate([one[None], more]) for one, more in zip(first_norms, norms, strict=True))

    def relative_to_last(log: Float[Array, " L"]) -> Float[Array, " L"]:
        both = jnp.isfinite(log) & jnp.isfinite(log[-1])
        return jnp.where(both, (log - log[-1]) / np.log(10), jnp.nan)

    return {"signal": relative_to_last(by_pre), "kernel": relative_to_last(by_kernel), "zero": jnp.isneginf(by_pre)}
