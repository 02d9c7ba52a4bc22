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
FAR = 20.0  # signals are clipped to e^-20 .. e^20 before phi, which is linear beyond
HIGHEST = jax.lax.Precision.HIGHEST


class Scaled(NamedTuple):
    """The array pattern * e^log with max abs(pattern) = 1: no depth leaves the range of float32."""

    pattern: Float[Array, "N U"]
    log: Float[Array, ""]

    @staticmethod
    def of(values: Float[Array, "N U"], log: Float[Array, ""]) -> Scaled:
        """Return values * e^log as `Scaled`; 0 has scale 1."""
        largest = jnp.max(jnp.abs(values))
        scale = jnp.where(largest > 0, largest, 1)
        return Scaled(values / scale, jnp.where(largest > 0, log + jnp.log(scale), 0))

    def log_norm(self) -> Float[Array, ""]:
        """Return the natural logarithm of the norm, -inf for 0."""
        return self.log + 0.5 * jnp.log(jnp.sum(self.pattern**2))


class Passed(NamedTuple):
    """The residuals of one layer for the backward pass: inputs, kernel, and clipped pre-activations."""

    inputs: Scaled
    kernel: Float[Array, "D U"]
    met: Float[Array, "N U"]


def _check(cell: Cell) -> None:
    activations[cell["activation"]], initializers[cell["initializer"]]
    require_int(width=cell["width"])
    require_int(2, depth=cell["depth"])


def _through(cell: Cell, key: Key[Array, ""], place: int | Int[Array, ""], inputs: Scaled) -> tuple[Scaled, Passed]:
    phi = activations[cell["activation"]]
    near = jnp.clip(inputs.log, -FAR, FAR)
    met_inputs = inputs.pattern * jnp.exp(near)
    kernel, bias = weights(cell["initializer"], key, place, met_inputs, cell["width"], cell["depth"])
    met = jnp.dot(met_inputs, kernel, precision=HIGHEST) + bias
    return Scaled.of(phi(met, _hparams()), inputs.log - near), Passed(inputs, kernel, met)


def _back(cell: Cell, arriving: Scaled, layer: Passed) -> tuple[Scaled, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Return a layer's gradient by its inputs from the gradient by its outputs, and log norms by pre-activations and kernel."""
    phi = activations[cell["activation"]]
    _, pull = jax.vjp(lambda z: phi(z, _hparams()), layer.met)
    by_pre = Scaled.of(pull(arriving.pattern)[0], arriving.log)
    by_kernel = jnp.dot(layer.inputs.pattern.T, by_pre.pattern, precision=HIGHEST)
    by_inputs = jnp.dot(by_pre.pattern, layer.kernel.T, precision=HIGHEST)
    norms = by_pre.log_norm(), Scaled.of(by_kernel, layer.inputs.log + by_pre.log).log_norm()
    return Scaled.of(by_inputs, by_pre.log), norms


def _hparams() -> dict[str, float]:
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

    The loss is linear in the last layer's outputs, with one normal direction for each of 8 normal examples; its scale cancels.
    `signal` and `kernel` are log10 of the Frobenius norm relative to the last layer, of the gradient by the pre-activations
    and by the kernel. They are undefined if either norm is 0, as below a dead layer. `zero`: the gradient by the
    pre-activations is 0. Only phi and its slope can under- or overflow, in float32.

    Source: Glorot & Bengio 2010, AISTATS, section 4.2; Hanin 2018, arXiv 1801.03744.
    """
    depth, width = cell["depth"], cell["width"]
    data = jax.random.normal(jax.random.fold_in(key, depth), (EXAMPLES, width))
    signal, first = _through(cell, key, 0, Scaled.of(data, jnp.zeros((), data.dtype)))
    signal, later = jax.lax.scan(lambda h, place: _through(cell, key, place, h), signal, jnp.arange(1, depth))
    outgoing = jax.random.normal(jax.random.fold_in(key, depth + 1), signal.pattern.shape)
    loss = Scaled.of(outgoing, jnp.zeros((), data.dtype))
    arriving, norms = jax.lax.scan(lambda g, layer: _back(cell, g, layer), loss, later, reverse=True)
    _, at_first = _back(cell, arriving, first)
    by_pre, by_kernel = (jnp.concatenate([one[None], more]) for one, more in zip(at_first, norms, strict=True))

    def relative_to_last(log: Float[Array, " L"]) -> Float[Array, " L"]:
        both = jnp.isfinite(log) & jnp.isfinite(log[-1])
        return jnp.where(both, (log - log[-1]) / np.log(10), jnp.nan)

    return {"signal": relative_to_last(by_pre), "kernel": relative_to_last(by_kernel), "zero": jnp.isneginf(by_pre)}
