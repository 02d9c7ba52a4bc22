"""The hashed bits of draws: uniform, independent across draws and elements, and reproducible."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from relu_study.components import random_streams

CELL = "0123456789ab"


def bits(draws: int, words: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda i: jax.random.bits(random_streams.draw_key(CELL, i), (words,))))(jnp.arange(draws)))


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return bits(4096, 64)


def test_every_bit_is_a_fair_coin(drawn):
    ones = np.unpackbits(drawn.reshape(-1, 1).view(np.uint8), axis=1).sum(axis=0)
    assert scipy_stats.chi2.sf((4 * (ones - drawn.size / 2) ** 2 / drawn.size).sum(), 32) > 1e-4


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_are_independent(drawn, axis):
    # The counts of every pair of 4-bit heads, of words side by side in a draw or at the same place of the next one.
    first, second = (np.take(drawn >> 28, range(start, drawn.shape[axis] - 1 + start), axis) for start in (0, 1))
    table = np.bincount((16 * first + second).ravel(), minlength=256)
    assert scipy_stats.chisquare(table).pvalue > 1e-4


def test_bit_of_the_draws_number_changes_half_of_every_word():
    flipped = [np.unpackbits((bits(2048, 4)[::2] ^ bits(2048, 4)[1::2]).view(np.uint8)).mean()]
    assert abs(flipped[0] - 0.5) < 5 * 0.5 / np.sqrt(1024 * 4 * 32)


def test_sign_patterns_of_eight_units_are_uniform():
    def units(index):
        return jax.random.normal(jax.random.fold_in(random_streams.draw_key(CELL, index), 3), (8,))

    normal = jax.jit(jax.vmap(units))(jnp.arange(65536))
    table = np.bincount((np.asarray(normal) > 0) @ (1 << np.arange(8)), minlength=256)
    assert scipy_stats.chisquare(table).pvalue > 1e-4


def test_normal_numbers_are_normal():
    values = np.asarray(jax.random.normal(random_streams.draw_key(CELL, 7), (200_000,)))
    assert scipy_stats.kstest(values, "norm").pvalue > 1e-4
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / len(values))


def test_draw_is_independent_of_batch():
    key = random_streams.draw_key(CELL, 5)
    np.testing.assert_array_equal(jax.random.bits(key, (64,)), bits(8, 64)[5])


def test_cells_draws_and_foldings_differ():
    keys = [random_streams.draw_key(CELL, 5), random_streams.draw_key(CELL, 6), random_streams.draw_key("0123456889ab", 5)]
    keys += list(jax.random.split(keys[0], 2))  # JAX's own fold_in(key, 1) is the second of them
    assert len({tuple(np.asarray(jax.random.bits(key, (4,)))) for key in keys}) == len(keys)


@pytest.mark.parametrize("kind", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_narrow_words_are_the_heads_of_wide_ones(kind):
    key, wide = random_streams.draw_key(CELL, 1), jnp.iinfo(kind).bits
    whole = np.asarray(jax.random.bits(key, (32,), jnp.uint32)) >> (32 - wide)
    np.testing.assert_array_equal(jax.random.bits(key, (32,), kind), whole)
