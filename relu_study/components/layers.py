"""The modules that networks are built of: Dense, Norm, Site, Dropout. Each is called with a Context.

In place of an array B x D any of them also takes `Columns`, the same batch in the layout that is fastest to train on, or an
`Interval`, and then bounds its output over it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt32

from relu_study.components import interval_bounds, random_streams
from relu_study.components.interval_bounds import Interval
from relu_study.components.registry import activations

ALPHA_PRIME = -1.7580993408473766  # SELU's value at minus infinity: -lambda alpha


@dataclass(frozen=True)
class FeatureMajorBatch:
    """A batch whose examples are columns; `+` adds the batches of a skip connection.

    Measured on CPUs: XLA hands a batched product to its fast kernels unless the left factor is transposed. With examples as
    rows that factor is a whole batch (in a kernel's gradient); as columns it is at most a kernel, which is turned at little cost.
    """

    values: Float[Array, "U B"]

    def __add__(self, other: FeatureMajorBatch) -> FeatureMajorBatch:
        return FeatureMajorBatch(self.values + other.values)


@jax.custom_vjp
def _dense_columns(kernel: Float[Array, "D U"], bias: Float[Array, " U"], x: Float[Array, "D B"]) -> Float[Array, "U B"]:
    # Without the barrier XLA would fold the turning into the product, which makes it a slow one.
    turned = jax.lax.optimization_barrier(kernel.T)
    return jnp.dot(turned, x, precision=jax.lax.Precision.HIGHEST) + bias[:, None]


def _dense_columns_forward(kernel: Any, bias: Any, x: Any) -> tuple[Any, tuple[Any, Any]]:
    return _dense_columns(kernel, bias, x), (kernel, x)


def _dense_columns_backward(kept: tuple[Any, Any], slope: Float[Array, "U B"]) -> tuple[Any, Any, Any]:
    kernel, x = kept
    of_kernel = jnp.einsum("ub,db->ud", slope, x, precision=jax.lax.Precision.HIGHEST).T
    return of_kernel, jnp.sum(slope, axis=1), jnp.dot(kernel, slope, precision=jax.lax.Precision.HIGHEST)


_dense_columns.defvjp(_dense_columns_forward, _dense_columns_backward)


@dataclass
class Context:
    """What a forward pass is given beside its input, and what it leaves on the tape.

    `tape` collects, in the order of the calls, every Dense with its input and every Site with
    its pre and post; `prepare(dense, inputs)` is called before a Dense is applied. Both act
    while the pass is traced and leave no trace in the compiled program.
    """

    knobs: Mapping[str, Float[Array, ""]]
    train: bool = False
    key: Key[Array, ""] | None = None
    tape: list[tuple[Any, ...]] = field(default_factory=list)
    prepare: Callable[[Dense, Any], None] | None = None


class Dense(nnx.Module):
    """x W + b in full float precision; weights are set by the run's initialiser."""

    def __init__(self, d_in: int, d_out: int):
        self.kernel = nnx.Param(jnp.zeros((d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "B D"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        if ctx.prepare:
            ctx.prepare(self, x)
        ctx.tape.append((self, x))
        kernel, bias = self.kernel[...], self.bias[...]
        if isinstance(x, Interval):
            return interval_bounds.dense(x, kernel, bias)
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(_dense_columns(kernel, bias, x.values))
        return jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


class Site(nnx.Module):
    """A nonlinearity whose units are watched: z -> phi(z)."""

    def __init__(self, activation: str):
        self.activation = activation

    def __call__(self, pre: Float[Array, "B U"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        phi = activations[self.activation]
        post: Any
        if isinstance(pre, Interval):
            post = interval_bounds.through(phi, pre, ctx.knobs)
        elif isinstance(pre, FeatureMajorBatch):  # one output for each unit is found wherever the unit stands
            post = FeatureMajorBatch(phi(pre.values, ctx.knobs) if phi.fanout == 1 else phi(pre.values.T, ctx.knobs).T)
        else:
            post = phi(pre, ctx.knobs)
        ctx.tape.append((self, pre, post))
        return post


class Norm(nnx.Module):
    """Batch or layer normalisation with learned scale and shift, between a Dense and its Site.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167 (running averages, momentum 0.99, in evaluation
    mode); Ba, Kiros & Hinton 2016, arXiv 1607.06450.
    """

    def __init__(self, kind: str, width: int, rngs: nnx.Rngs):
        self.kind = kind
        # The two-pass variance: mean(x^2) - mean(x)^2 cancels in float32, and obeys no bound.
        norm = nnx.BatchNorm if kind == "batch_norm" else nnx.LayerNorm
        self.norm = norm(width, use_fast_variance=False, param_dtype=jnp.result_type(float), rngs=rngs)
        if kind == "batch_norm":  # flax keeps running averages in float32, whatever the parameters are
            self.norm.mean, self.norm.var = nnx.BatchStat(jnp.zeros(width)), nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: Float[Array, "B U"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(self._normalised(x.values, ctx, units=0))
        if not isinstance(x, Interval):
            return self._normalised(x, ctx, units=-1)
        scale, shift = self.norm.scale[...], self.norm.bias[...]
        if self.kind == "layer_norm":
            return interval_bounds.layer_norm(x, scale, shift, self.norm.epsilon)
        return interval_bounds.batch_norm(x, self.norm.mean[...], self.norm.var[...], scale, shift, self.norm.epsilon)

    def _normalised(self, x: Float[Array, "..."], ctx: Context, units: int) -> Float[Array, "..."]:
        norm = copy.copy(self.norm)  # the same weights and averages, read along another axis
        if self.kind == "batch_norm":
            norm.axis = units
            return norm(x, use_running_average=not ctx.train)
        norm.reduction_axes = norm.feature_axes = units
        return norm(x)


class Dropout(nnx.Module):
    """Dropout with a traced rate: `dropout` zeroes and rescales, `alpha_dropout` keeps SELU's mean and variance.

    With q = 1 - rate, alpha dropout sets a share `rate` to alpha' and applies a x + b,
    a = (q + alpha'^2 q (1 - q))^(-1/2), b = -a (1 - q) alpha'. Rates are met to within 2^-17
    up to 1 - 2^-16, the largest there is.

    Source: Srivastava et al. 2014; Klambauer et al. 2017, arXiv 1706.02515, section 3.
    """

    def __init__(self, kind: str, index: int):
        self.kind = kind
        self.index = index

    def __call__(self, x: Float[Array, "B U"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        if not ctx.train or isinstance(x, Interval):
            return x
        assert ctx.key is not None
        key, rate = jax.random.fold_in(ctx.key, self.index), ctx.knobs["dropout_rate"]
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(self._dropped(x.values, random_streams.words(key, x.values.shape, columns=True), rate))
        return self._dropped(x, random_streams.words(key, x.shape), rate)

    def _dropped(self, x: Float[Array, "*n"], words: UInt32[Array, "*n"], rate: Float[Array, ""]) -> Float[Array, "*n"]:
        threshold = jnp.minimum(jnp.round(rate * 65536), 65535)  # q > 0: no gradient is ever 0 * inf
        q = 1 - threshold / 65536
        keep = words >> 16 >= threshold.astype(jnp.uint32)
        if self.kind == "dropout":
            return jnp.where(keep, x / q, 0)
        a = (q + ALPHA_PRIME**2 * q * (1 - q)) ** -0.5
        return a * jnp.where(keep, x, ALPHA_PRIME) - a * (1 - q) * ALPHA_PRIME
