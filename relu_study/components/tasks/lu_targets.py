"""Regression targets on which deep and narrow ReLU nets collapse: inputs uniform on [-sqrt 3, sqrt 3]^d, of variance 1.

Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, section 5; its 3,000 training points correspond to rows=4000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.components.tasks.task import Signature, Task, task
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import RunSpec

END = 3**0.5


def absolute(x: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    """|x|: two linear pieces, exactly representable by a hidden layer of two units."""
    return jnp.abs(x)


def x_sin_5x(x: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    """x sin 5x: smooth, even, with many extrema."""
    return x * jnp.sin(5 * x)


def step_sine(x: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    """1_{x > 0} + 0.2 sin 5x: discontinuous, so no network represents it."""
    return (x > 0) + 0.2 * jnp.sin(5 * x)


def two_dim(x: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """(|x1 + x2|, |x1 - x2|)."""
    return jnp.stack([jnp.abs(x[:, 0] + x[:, 1]), jnp.abs(x[:, 0] - x[:, 1])], axis=1)


class Target(NamedTuple):
    """A function of d inputs with d outputs."""

    function: Callable[[Array], Array]
    d: int


TARGETS = {
    "default": Target(absolute, 1),
    "abs": Target(absolute, 1),
    "x_sin_5x": Target(x_sin_5x, 1),
    "step_sine": Target(step_sine, 1),
    "two_dim": Target(two_dim, 2),
}


@task("lu_targets")
def lu_targets(spec: RunSpec) -> Task:
    """Regression on inputs uniform on [-sqrt 3, sqrt 3]^d, drawn separately per seed, 75 % for training.

    Raises:
      UserError: for an unknown target, or centred inputs.
    """
    if spec.target not in TARGETS:
        raise nearest(spec.target, TARGETS, f"target of task {spec.task}")
    if spec.inputs == "centred":
        raise UserError("the inputs of task lu_targets already have mean 0. Leave inputs='raw'")
    target, train = TARGETS[spec.target], spec.rows * 3 // 4

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        x = jax.random.uniform(key, (spec.rows, target.d), minval=-END, maxval=END)
        return x, target.function(x)

    return Task(Signature(train, spec.rows - train, target.d, target.d), sample, box=(-END, END))
