"""Sign flipping keeps 2^-k of any data alive in layer k of every network; He's scheme does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sampling import drawn, key_of

from relu_study.components.initializers import Layer
from relu_study.components.registry import initializers, statistics
from relu_study.components.untrained.dense_layers import weights
from relu_study.errors import UserError

FLIPPED = jax.jit(initializers["sign_flip"].function, static_argnums=1)


@settings(max_examples=60)
@given(
    data=arrays(np.int8, (9, 3)).filter(lambda rows: rows.any(axis=1).all()),
    widths=st.lists(st.sampled_from([1, 3]), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_sign_flipping_guarantee_holds_on_any_data(data, widths, seed):
    """On any rows but 0, repeated and opposite ones too, through any widths. It may never fail."""
    signals = np.float32(data)
    for place, width in enumerate(widths):
        layer = Layer(0, 2, signals.shape[1], width, False)  # it tells no layers apart
        kernel, bias = FLIPPED(jax.random.fold_in(jax.random.key(seed), place), layer, signals)
        assert not np.any(bias)
        alive = signals.any(axis=1).sum()
        pre = signals @ np.asarray(kernel)
        assert np.all(2 * (pre > 0).sum(axis=0) >= alive)  # every unit is on for half of what arrives
        signals = np.maximum(pre, 0)
        assert 2 ** (place + 1) * signals.any(axis=1).sum() >= len(data)


def test_drawn_networks_preserve_moments_and_he_networks_do_not():
    factors = {"width": 2, "depth": 6, "examples": 33}
    kept, lost = (drawn("alive_data", 500, initializer=name, **factors) for name in ("sign_flip", "he_normal"))
    bound = 0.5 ** np.arange(1, 7)
    assert np.all(kept["alive"] >= bound - 1e-6) and not np.any(kept["below"])
    assert np.array_equal(lost["below"], lost["alive"] < bound) and lost["below"][:, -1].mean() > 0.5
    assert np.all(np.diff(lost["alive"], axis=1) <= 0)


def test_one_drawn_network_layer_by_layer():
    factors = {"initializer": "he_normal", "width": 2, "depth": 3, "examples": 20}
    key = key_of("alive_data", 0, **factors)
    signals, alive = -jax.random.uniform(jax.random.fold_in(key, 3), (20, 4)), []
    for place in range(3):
        kernel, _ = weights("he_normal", key, place, signals, 2, 3)
        signals = jnp.maximum(signals @ kernel, 0)
        alive.append(np.mean(np.any(np.asarray(signals) > 0, axis=1)))
    found = drawn("alive_data", 1, **factors)["alive"][0]
    np.testing.assert_allclose(found, alive, atol=1e-6)


def test_theory_exists_only_for_sign_flipping():
    entry = statistics["alive_data"]
    assert entry.theory(entry.cell(initializer="he_normal")) == {}
    known = entry.theory(entry.cell(depth=3))
    assert known["alive"].lower.tolist() == [1 / 2, 1 / 4, 1 / 8] and known["below"].value.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="sign_flip"):
        entry.cell(initializer="sign_flp")
    with pytest.raises(UserError, match="examples"):
        entry.cell(examples=0)
