"""Regression on inputs uniform on (-1, 0)^4, with three targets.

Source: "Is ReLU Dead?" (2019), its random sample. The three targets are ours: no conclusion depends on one choice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from relu_study.components.tasks.task import Signature, Task, task
from relu_study.errors import nearest
from relu_study.study.run_spec import RunSpec

D_IN = 4


def wave(x: Float[Array, "n 4"], coin: Bool[Array, " n"]) -> Float[Array, " n"]:
    """sin 2 pi x1 + cos 2 pi x2: mean 0, variance 1 on the box, learnable."""
    return jnp.sin(2 * jnp.pi * x[:, 0]) + jnp.cos(2 * jnp.pi * x[:, 1])


def total(x: Float[Array, "n 4"], coin: Bool[Array, " n"]) -> Float[Array, " n"]:
    """The sum of the inputs: always negative, variance 1/3, easy to learn."""
    return jnp.sum(x, axis=1)


def coin_flip(x: Float[Array, "n 4"], coin: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Fair 0/1 labels: only the mean is learnable; floor and variance are 1/4."""
    return coin.astype(x.dtype)


TARGETS = {"default": wave, "wave": wave, "sum": total, "coin_flip": coin_flip}


@task("negative_box")
def negative_box(spec: RunSpec) -> Task:
    """Regression on inputs uniform on (-1, 0)^4, drawn separately per seed, 70 % for training. Centred inputs add 1/2.

    Raises:
      UserError: for an unknown target.
    """
    if spec.target not in TARGETS:
        raise nearest(spec.target, TARGETS, f"target of task {spec.task}")
    train = spec.rows * 7 // 10
    shift = 0.5 if spec.inputs == "centred" else 0.0

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Float[Array, "n 4"], Float[Array, "n 1"]]:
        x_key, coin_key = jax.random.split(key)
        x = -jax.random.uniform(x_key, (spec.rows, D_IN))
        y = TARGETS[spec.target](x, jax.random.bernoulli(coin_key, 0.5, (spec.rows,)))
        return x + shift, y[:, None]

    return Task(Signature(train, spec.rows - train, D_IN, 1), sample, box=(-1.0 + shift, 0.0 + shift))
