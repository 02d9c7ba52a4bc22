"""Learning rate schedules and gradient clipping, as options of the package's optimisers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from relu_study.errors import UserError, nearest

Number = float | Float[Array, ""]
Rate = Number | Callable[[Any], Any]  # a constant, or a function of the step count
SCHEDULES = ("constant", "cosine", "step")
DEFAULTS: dict[str, str | int | float | bool] = {"schedule": "constant", "warmup": 0.0, "clip_norm": 0.0}
TRACED = ("warmup", "clip_norm")


def scheduled(function: Callable[[Rate, Number], Any]) -> Callable[..., Any]:
    """Return an optimiser with the options `schedule`, `warmup` and `clip_norm`, from one of a rate and a weight decay.

    The rate of step t, of T in total, is the learning rate times `factor`. Gradients of a norm above `clip_norm` are scaled to
    that norm before anything else; 0 clips none. An option that is not set adds nothing to the compiled program.

    Source of the clipping: Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063, section 3.2 (algorithm 1).
    """

    def built(
        learning_rate: Number, weight_decay: Number, *, steps: Number, schedule: str, warmup: Number, clip_norm: Number
    ) -> optax.GradientTransformation:
        _check(schedule, warmup, clip_norm)
        rate: Rate = learning_rate
        if schedule != "constant" or not _is_zero(warmup):
            rate = lambda count: learning_rate * factor(count, steps, schedule, warmup)  # noqa: E731
        transformation = function(rate, weight_decay)
        if _is_zero(clip_norm):
            return transformation
        return optax.chain(optax.clip_by_global_norm(jnp.where(clip_norm > 0, clip_norm, jnp.inf)), transformation)

    parameters = inspect.signature(built)
    functools.update_wrapper(built, function)
    built.__signature__ = parameters  # type: ignore[attr-defined]  # update_wrapper replaces it by the function's
    return built


def factor(count: Int[Array, ""] | int, steps: Number, schedule: str, warmup: Number = 0.0) -> Float[Array, ""]:
    """Return the learning rate of step t = `count`, from 0, as a multiple of the highest one. T = `steps`.

    Warm-up: t / W in the first W = round(`warmup` T) steps. Afterwards:
    - constant: 1
    - cosine: (1 + cos(pi (t - W) / (T - W))) / 2
    - step: 1, from T / 2 on 0.1, and from 3 T / 4 on 0.01

    Source: the warm-up: Goyal et al. 2017, arXiv 1706.02677, section 2.2; the cosine: Loshchilov & Hutter 2016,
    arXiv 1608.03983, equation 5, with one period; the steps: He et al. 2015, arXiv 1512.03385, section 4.2.
    """
    t, total = jnp.asarray(count, jnp.result_type(float)), jnp.maximum(jnp.asarray(steps, jnp.result_type(float)), 1)
    rise = jnp.round(warmup * total)
    value = jnp.ones_like(t)
    if schedule == "cosine":
        progress = jnp.clip((t - rise) / jnp.maximum(total - rise, 1), 0, 1)
        value = (1 + jnp.cos(jnp.pi * progress)) / 2
    if schedule == "step":
        value = jnp.where(t >= 0.75 * total, 0.01, jnp.where(t >= 0.5 * total, 0.1, 1.0)).astype(t.dtype)
    return value if _is_zero(warmup) else jnp.where(t < rise, t / jnp.maximum(rise, 1), value)


def _is_zero(number: Number) -> bool:
    """Whether a number is a constant zero. A traced number is none."""
    return isinstance(number, int | float) and number == 0


def _check(schedule: str, warmup: Number, clip_norm: Number) -> None:
    """Raise UserError for an unknown schedule, and for constants out of their ranges."""
    if schedule not in SCHEDULES:
        raise nearest(schedule, SCHEDULES, "schedule")
    if isinstance(warmup, int | float) and not 0 <= warmup <= 1:
        raise UserError(f"warmup is {warmup:g}. Give a share of the steps, from 0 to 1.")
    if isinstance(clip_norm, int | float) and clip_norm < 0:
        raise UserError(f"clip_norm is {clip_norm:g}. Give a positive norm, or 0 for no clipping.")
