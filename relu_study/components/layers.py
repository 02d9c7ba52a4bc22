"""The modules of networks: Dense, Norm, Site and Dropout. Each is called with an input and a Context.

The input is an array B x D, a `FeatureMajorBatch` (the same batch in the layout that trains fastest), or an `Interval`. On
an interval a module returns bounds of its output.
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
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

ALPHA_PRIME = -1.7580993408473766  # SELU's value at minus infinity: -lambda alpha


@dataclass(frozen=True)
class FeatureMajorBatch:
    """A batch with examples as columns. `+` adds the batches of a skip connection.

    On CPUs, XLA uses its fast kernels for a batched product unless the left factor is transposed. With examples as rows, the
    transposed factor is a whole batch (in a kernel's gradient). With examples as columns it is at most a kernel, which is
    cheap to transpose.
    """

    values: Float[Array, "U B"]

    def __add__(self, other: FeatureMajorBatch) -> FeatureMajorBatch:
        return FeatureMajorBatch(self.values + other.values)


@jax.custom_vjp
def _dense_columns(kernel: Float[Array, "D U"], bias: Float[Array, " U"], x: Float[Array, "D B"]) -> Float[Array, "U B"]:
    # Without the barrier XLA folds the transposition into the product, which is then slow.
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jnp.dot(transposed, x, precision=jax.lax.Precision.HIGHEST) + bias[:, None]


def _dense_columns_forward(kernel: Any, bias: Any, x: Any) -> tuple[Any, tuple[Any, Any]]:
    return _dense_columns(kernel, bias, x), (kernel, x)


def _dense_columns_backward(residuals: tuple[Any, Any], cotangent: Float[Array, "U B"]) -> tuple[Any, Any, Any]:
    kernel, x = residuals
    kernel_grad = jnp.einsum("ub,db->ud", cotangent, x, precision=jax.lax.Precision.HIGHEST).T
    return kernel_grad, jnp.sum(cotangent, axis=1), jnp.dot(kernel, cotangent, precision=jax.lax.Precision.HIGHEST)


_dense_columns.defvjp(_dense_columns_forward, _dense_columns_backward)


@dataclass
class Context:
    """The arguments and the log of one forward pass.

    Args:
      hparams: traced RunSpec fields, and options, by name.
      train: training mode (dropout and batch statistics), else evaluation mode.
      key: random key of the step's dropout.
      activations_log: filled in call order with (Dense, input) and (Site, pre, post).
      init_hook: called as `init_hook(dense, inputs)` before each Dense.

    The log and the hook act during tracing and add nothing to the compiled program.
    """

    hparams: Mapping[str, Any]
    train: bool = False
    key: Key[Array, ""] | None = None
    activations_log: list[tuple[Any, ...]] = field(default_factory=list)
    init_hook: Callable[[Dense, Any], None] | None = None


class Dense(nnx.Module):
    """A dense layer, x W + b, in full float precision. The run's initialiser sets the weights."""

    def __init__(self, d_in: int, d_out: int):
        self.kernel = nnx.Param(jnp.zeros((d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "B D"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        if ctx.init_hook:
            ctx.init_hook(self, x)
        ctx.activations_log.append((self, x))
        kernel, bias = self.kernel[...], self.bias[...]
        if isinstance(x, Interval):
            return interval_bounds.dense(x, kernel, bias)
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(_dense_columns(kernel, bias, x.values))
        return jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


class Site(nnx.Module):
    """A nonlinearity z -> phi(z) whose units the metrics count."""

    def __init__(self, activation: str):
        self.activation = activation

    def __call__(self, pre: Float[Array, "B U"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        phi = activations[self.activation]
        post: Any
        if isinstance(pre, Interval):
            post = interval_bounds.through(phi, pre, ctx.hparams)
        elif isinstance(pre, FeatureMajorBatch):  # with one output per unit phi is elementwise: no transposition
            post = FeatureMajorBatch(phi(pre.values, ctx.hparams) if phi.fanout == 1 else phi(pre.values.T, ctx.hparams).T)
        else:
            post = phi(pre, ctx.hparams)
        ctx.activations_log.append((self, pre, post))
        return post


class Traced(nnx.Variable[Any]):
    """A traced number of the run: a RunSpec field or an option, named by its metadata `field`. The run's value replaces it."""


class Activate(nnx.Module):
    """The activation of a RunSpec as a layer of a Flax network, called as `layer(x)`.

    Its traced fields, such as `leak`, and its options have the values of the run.
    """

    def __init__(self, spec: RunSpec):
        phi, defaults = activations[spec.activation], RunSpec()
        self.activation = spec.activation
        chosen = dict(spec.options) if phi.options else {}
        self.constants = {name: chosen.get(name, default) for name, default in phi.options.items()}
        names = [name for name in phi.hparams if name in (*TRACED_FIELDS, *phi.traced)]
        values = {name: getattr(defaults, name, self.constants.get(name)) for name in names}
        self.traced = nnx.Dict({name: Traced(jnp.asarray(value, float), field=name) for name, value in values.items()})

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return activations[self.activation](x, {**self.constants, **{name: value[...] for name, value in self.traced.items()}})


class Norm(nnx.Module):
    """Batch or layer normalisation with learned scale and shift, between a Dense and its Site.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167 (running averages, momentum 0.99, in evaluation
    mode); Ba, Kiros & Hinton 2016, arXiv 1607.06450.
    """

    def __init__(self, kind: str, width: int, rngs: nnx.Rngs):
        self.kind = kind
        # The two-pass variance: mean(x^2) - mean(x)^2 cancels in float32 and has no proven bound.
        norm = nnx.BatchNorm if kind == "batch_norm" else nnx.LayerNorm
        self.norm = norm(width, use_fast_variance=False, param_dtype=jnp.result_type(float), rngs=rngs)
        if kind == "batch_norm":  # flax stores running averages in float32 for every parameter dtype
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
        norm = copy.copy(self.norm)  # shares the weights and averages, along another axis
        if self.kind == "batch_norm":
            norm.axis = units
            return norm(x, use_running_average=not ctx.train)
        norm.reduction_axes = norm.feature_axes = units
        return norm(x)


class Dropout(nnx.Module):
    """Dropout with a traced rate. `dropout` zeroes and rescales; `alpha_dropout` preserves SELU's mean and variance.

    With q = 1 - rate, alpha dropout sets a share `rate` to alpha' and applies a x + b,
    a = (q + alpha'^2 q (1 - q))^(-1/2), b = -a (1 - q) alpha'. The effective rate is within 2^-17 of the requested one, and
    at most 1 - 2^-16.

    Source: Srivastava et al. 2014; Klambauer et al. 2017, arXiv 1706.02515, section 3.
    """

    def __init__(self, kind: str, index: int):
        self.kind = kind
        self.index = index

    def __call__(self, x: Float[Array, "B U"] | FeatureMajorBatch | Interval, ctx: Context) -> Any:
        if not ctx.train or isinstance(x, Interval):
            return x
        assert ctx.key is not None
        key, rate = jax.random.fold_in(ctx.key, self.index), ctx.hparams["dropout_rate"]
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(self._dropped(x.values, random_streams.words(key, x.values.shape, columns=True), rate))
        return self._dropped(x, random_streams.words(key, x.shape), rate)

    def _dropped(self, x: Float[Array, "*n"], words: UInt32[Array, "*n"], rate: Float[Array, ""]) -> Float[Array, "*n"]:
        threshold = jnp.minimum(jnp.round(rate * 65536), 65535)  # q > 0 prevents gradients 0 * inf
        q = 1 - threshold / 65536
        keep = words >> 16 >= threshold.astype(jnp.uint32)
        if self.kind == "dropout":
            return jnp.where(keep, x / q, 0)
        a = (q + ALPHA_PRIME**2 * q * (1 - q)) ** -0.5
        return a * jnp.where(keep, x, ALPHA_PRIME) - a * (1 - q) * ALPHA_PRIME
