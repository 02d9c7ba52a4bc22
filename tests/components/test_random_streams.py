"""Named streams, and the epoch order: every row once, indistinguishable from a uniform permutation."""

from __future__ import annotations

import itertools
import math
import zlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiers import tiered

from relu_study.components import random_streams

LEAST_P = 1e-4  # of each test below; the seeds are fixed, so what passes once passes always
COUNTS = {20: 20_000, 97: 10_000, 128: 10_000, 1000: 2000, 5000: 500}  # orders looked at, by their rows


@cache
def program(rows: int) -> Any:
    def order(seed: Any, epoch: Any, at: Any) -> Any:
        return random_streams.shuffled(random_streams.order_key(seed, epoch), at, rows)

    return jax.jit(jax.vmap(order, (0, 0, None)))


@cache
def orders(rows: int, count: int, ends: bool = False) -> np.ndarray:
    """(count, rows): the orders of four epochs each of count / 4 seeds; of `ends` the first two rows and the last."""
    number = jnp.arange(count, dtype=jnp.uint32)
    at = jnp.array([0, 1, rows - 1], jnp.uint32) if ends else jnp.arange(rows, dtype=jnp.uint32)
    return np.asarray(program(rows)(number // 4, (number % 4 + 1).astype(jnp.int32), at)).astype(np.int64)


def fair(counts: Any, expected: Any = None) -> None:
    counts = np.asarray(counts).ravel()
    assert stats.chisquare(counts, expected).pvalue > LEAST_P


# --------------------------------------------------------------------------------------- every row once


@pytest.mark.parametrize("rows", tiered([1, 2, 3, 5, 64, 65, 97, 128, 1000, 4096, 4097, 99_991, 140_000], 1, 2, 97, 99_991))
def test_epoch_visits_every_row_once(rows):
    every = orders(rows, COUNTS.get(rows, 4))
    assert np.array_equal(np.sort(every, axis=1), np.broadcast_to(np.arange(rows), every.shape))


whole = jax.jit(random_streams.shuffled, static_argnums=2)


@settings(max_examples=25)
@given(rows=st.integers(1, 6000), seed=st.integers(0, 2**32 - 1))
def test_any_number_of_rows(rows, seed):
    key = jnp.asarray(np.random.default_rng(seed).integers(2**32, size=random_streams.ROUNDS, dtype=np.uint32))
    positions = jnp.asarray(np.minimum(np.arange(6000), rows - 1).astype(np.uint32))  # one shape for all: nothing to compile
    with jax.disable_jit(rows > random_streams.FEW):  # few rows are ranked in arrays of another shape
        order = np.asarray(whole(key, positions, rows))
    assert np.array_equal(np.sort(order[:rows]), np.arange(rows))


@pytest.mark.parametrize("rows", tiered([20, 97, 5000], 97))
def test_part_of_an_order_equals_slice(rows):
    at = np.array([[3, rows - 1], [17, 4]])
    part = jax.jit(lambda at: random_streams.shuffled(random_streams.order_key(0, 1), at, rows))(jnp.asarray(at, jnp.uint32))
    assert np.array_equal(part, orders(rows, COUNTS[rows])[0, at])


@pytest.mark.parametrize("rows", tiered(COUNTS, 97))
def test_orders_of_epochs_and_seeds_are_independent(rows):
    every = orders(rows, COUNTS[rows])
    assert len(np.unique(every, axis=0)) == len(every)
    for other in (np.roll(every, 1, axis=0), np.roll(every, 4, axis=0)):  # mostly the next epoch; the next seed
        _poisson(np.sum(every == other, axis=1))


def _poisson(matches: np.ndarray) -> None:
    """Two strangers among permutations agree in a number of places that is Poisson of mean 1, up to 2^n / n!."""
    expected = stats.poisson.pmf(np.arange(5), 1)
    fair(np.bincount(np.minimum(matches, 5), minlength=6), np.append(expected, 1 - expected.sum()) * matches.size)


# -------------------------------------------------------------------------------------------- uniformity


@pytest.mark.parametrize("rows", tiered([2, 3, 4, 5, 6], 4))
def test_few_rows_all_permutations_are_as_likely(rows):
    seen, counts = np.unique(orders(rows, 100_000) @ rows ** np.arange(rows), return_counts=True)
    assert len(seen) == math.factorial(rows)
    fair(counts)


@pytest.mark.parametrize("rows", tiered(COUNTS, 97))
def test_first_and_last_row_are_any_row(rows):
    every = orders(rows, max(50_000, 20 * rows), ends=True)
    fair(np.bincount(every[:, 0], minlength=rows))
    fair(np.bincount(every[:, 2], minlength=rows))


@pytest.mark.parametrize("rows", tiered([9, 20, 97], 20))
def test_first_two_rows_are_any_two(rows):
    first = orders(rows, 100_000, ends=True)
    counts = np.bincount(first[:, 0] * rows + first[:, 1], minlength=rows**2).reshape(rows, rows)
    assert np.all(np.diag(counts) == 0)
    fair(counts[~np.eye(rows, dtype=bool)])


@pytest.mark.parametrize("rows", tiered([*COUNTS, 99_991], 97, 99_991))
def test_position_is_independent_of_row(rows):
    every = orders(rows, COUNTS.get(rows, 16))
    block = np.arange(rows) * 16 // rows
    table = np.bincount((16 * block + block[every]).ravel(), minlength=256).reshape(16, 16)
    sizes = np.bincount(block)
    expected = np.outer(sizes, sizes) / rows * len(every)
    # Of one permutation the table's margins are fixed: (n - 1) / n of the statistic has 15 x 15 degrees of freedom.
    statistic = (rows - 1) / rows * np.sum((table - expected) ** 2 / expected)
    low, high = stats.chi2(15 * 15).interval(1 - LEAST_P)
    assert low < statistic < high


@pytest.mark.parametrize("rows", tiered(COUNTS, 97))
def test_neighbours_of_an_order_have_any_distance(rows):
    every = orders(rows, COUNTS[rows])
    for lag in (1, 2, rows // 2):
        fair(np.bincount(((every[:, lag:] - every[:, :-lag]) % rows).ravel(), minlength=rows)[1:])


@pytest.mark.parametrize("rows", tiered(COUNTS, 97))
def test_rows_that_stay_in_their_place(rows):
    _poisson(np.sum(orders(rows, COUNTS[rows]) == np.arange(rows), axis=1))


# ------------------------------------------------------------------------------------------------- words


@cache
def drawn() -> np.ndarray:
    """(1024, 128, 32): the words of as many steps."""
    of_step = jax.vmap(lambda step: random_streams.words(random_streams.stream(5, "dropout", step, 0), (128, 32)))
    return np.asarray(jax.jit(of_step)(jnp.arange(1024)))


def lowbias32(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_words_are_keyed_index_hashed_twice():
    first, second = data(random_streams.stream(5, "dropout", 2, 0))
    slow = [lowbias32((lowbias32(place ^ first) + second) % 2**32) for place in range(128 * 32)]
    assert drawn()[2].ravel().tolist() == slow
    assert len(set(slow)) == len(slow)


def test_words_are_even_in_every_bit_and_byte():
    every = drawn()[:256].ravel()
    ones = np.unpackbits(every.view(np.uint8)).reshape(-1, 32).sum(axis=0)
    assert min(stats.binomtest(int(n), every.size).pvalue for n in ones) > LEAST_P
    for shift in (0, 8, 16, 24):
        fair(np.bincount(every >> shift & 255, minlength=256))


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5])
def test_masks_are_independent_along_rows_columns_and_steps(rate):
    """Drop with one threshold: neighbours of every kind agree as often as strangers, and each row drops binomially many."""
    dropped = drawn() >> 16 < round(rate * 65536)
    for axis in range(3):
        for lag in (1, 2, 3, 4, 8, 16):
            here, there = (np.moveaxis(dropped, axis, 0)[cut] for cut in (slice(lag, None), slice(None, -lag)))
            both, one, other = (np.count_nonzero(places) for places in (here & there, here, there))
            table = [here.size - one - other + both, other - both, one - both, both]
            fair(table, np.outer([1 - rate, rate], [1 - rate, rate]).ravel() * here.size)
    for axis in (1, 2):
        size = dropped.shape[axis]
        counts = np.bincount(dropped.sum(axis=axis).ravel(), minlength=size + 1)
        expected = stats.binom.pmf(np.arange(size + 1), size, rate) * counts.sum()
        common = expected >= 5
        fair(np.append(counts[common], counts[~common].sum()), np.append(expected[common], expected[~common].sum()))


# ----------------------------------------------------------------------------------------------- streams

PATHS = [("init", 0), ("init", 1), ("data", 0), ("order", 0), ("order", 1), ("dropout",), ("dropout", 0, 1), ("dropout", 1, 0)]


def data(key: Any) -> tuple[int, ...]:
    return tuple(int(word) for word in jax.random.key_data(key))


def test_stream_depends_only_on_its_name():
    for seed, path in itertools.product((0, 7, 2**32 - 1), PATHS):
        key = jax.random.key(jnp.uint32(seed))
        for part in path:
            key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
        assert data(random_streams.stream(seed, *path)) == data(key)
        assert data(random_streams.stream(jnp.uint32(seed), *path)) == data(key)


def test_streams_differ_by_seed_and_name():
    of_seed = jax.vmap(lambda seed: jnp.stack([jax.random.key_data(random_streams.stream(seed, *path)) for path in PATHS]))
    keys = np.asarray(jax.jit(of_seed)(jnp.arange(100))).reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == len(keys) == 100 * len(PATHS)


def test_stream_goes_on_from_a_stream():
    """What the engine folds in step by step is the stream of the whole path."""
    inside = jax.jit(lambda seed, step: jax.random.fold_in(random_streams.stream(seed, "dropout"), step))(
        jnp.uint32(5), jnp.int32(12)
    )
    assert data(inside) == data(random_streams.stream(5, "dropout", 12))


def test_stored_bits_are_unchanged():
    """Committed results depend on these bits; a change must increase `engine.ENGINE`."""
    orders = {
        50: [26, 9, 8, 20, 43, 15],
        1000: [182, 692, 56, 582, 621, 332],
        140_000: [45211, 129431, 67953, 8931, 64967, 17570],
    }

    @jax.jit
    def bits() -> Any:
        key, at = random_streams.order_key(0, 3), jnp.arange(6, dtype=jnp.uint32)
        found = {rows: random_streams.shuffled(key, at, rows) for rows in orders}
        return found, random_streams.words(random_streams.stream(3, "dropout", 1, 0), (3,))

    assert data(random_streams.stream(3, "init", 1)) == (338055248, 2449612937)
    found, words = bits()
    assert {rows: order.tolist() for rows, order in found.items()} == orders
    assert words.tolist() == [3630363671, 2606038222, 3426018123]
