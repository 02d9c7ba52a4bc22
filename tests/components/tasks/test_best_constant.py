"""Loss of the best constant prediction, against the smallest loss that constants reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_study.components.tasks.best_constant import constant_loss
from relu_study.components.tasks.task import LOSSES, Signature
from relu_study.engine.train_tile import train_tile
from relu_study.study.run_spec import RunSpec

DRAWN = np.random.default_rng(3)
LABELS = DRAWN.choice(4, size=400, p=(0.1, 0.2, 0.3, 0.4))
TARGETS = {
    "squared_error": (DRAWN.normal(2.0, 3.0, (400, 2)), Signature(400, 1, 1, 2, loss="squared_error")),
    "cross_entropy": (np.eye(4)[LABELS], Signature(400, 1, 1, 4, loss="cross_entropy")),
    "ce": (LABELS.astype(np.int32), Signature(400, 1, 1, 4, loss="ce")),
    "bce": ((LABELS == 3)[:, None].astype(float), Signature(400, 1, 1, 1, loss="bce")),
    "positions": (
        np.stack([LABELS, LABELS[::-1] % 2], axis=1).astype(np.int32),
        Signature(400, 1, 1, 4, loss="ce", output_shape=(2, 4)),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_constant_has_a_smaller_loss(name: str) -> None:
    y, signature = TARGETS[name]
    y = jnp.asarray(y)
    loss = LOSSES[signature.loss]

    def of_constant(constant: jax.Array) -> jax.Array:
        return loss(jnp.broadcast_to(constant, (len(y), *constant.shape)), y)

    constant, step = jnp.zeros(signature.outputs.shape), optax.adam(0.05)
    state = step.init(constant)
    update = jax.jit(lambda c, s: step.update(jax.grad(of_constant)(c), s))
    for _ in range(1500):
        change, state = update(constant, state)
        constant = optax.apply_updates(constant, change)
    assert constant_loss(signature, y) == pytest.approx(float(of_constant(constant)), rel=1e-3)


def test_one_class_has_no_entropy() -> None:
    assert constant_loss(TARGETS["ce"][1], jnp.zeros(400, jnp.int32)) == 0


def test_a_tile_has_it_for_each_seed() -> None:
    tile = train_tile([RunSpec(rows=900, width=4, epochs=1, seed=seed) for seed in (1, 2)], 2)
    assert tile["constant_loss"].shape == (2,) and tile["constant_loss"][0] != tile["constant_loss"][1]
    np.testing.assert_allclose(tile["constant_loss"], 1, atol=0.1)
