"""Named random streams, and the order in which an epoch visits its rows."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Int, Key, UInt32

ROUNDS = 12
FEW = 64  # rows too few for rounds to mix: their order is that of random words
MANY = 4096  # rows beyond which half of the rounds mix as well


Word = int | Int[Array, ""] | UInt32[Array, ""]


def stream(seed: Word, *path: str | Word) -> Key[Array, ""]:
    """The random key of a named stream, e.g. `stream(seed, "order", epoch)`.

    Names enter by their CRC-32 and numbers as they are, one `fold_in` each, so that no stream
    depends on how many others there are or in what order they are drawn.
    """
    key = jax.random.key(seed, impl="threefry2x32")  # whatever the process has for its default
    for part in path:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key


def _keyed(key: UInt32[Array, "2"]) -> Key[Array, ""]:
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def _hashed_bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    place = jnp.arange(math.prod(shape) * max(bit_width // 32, 1), dtype=jnp.uint32)
    bits = _hash(_hash(_hash(place ^ key[0]) + key[1]) ^ key[0])
    if bit_width == 64:
        high, low = jnp.split(bits.astype(jnp.uint64), 2)
        return (high << 32 | low).reshape(shape)
    return (bits >> (32 - bit_width)).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width]).reshape(shape)


HASHED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
    split=lambda key, shape: jax.random.key_data(jax.random.split(_keyed(key), shape)),
    fold_in=lambda key, word: jax.random.key_data(jax.random.fold_in(_keyed(key), word)),
    random_bits=_hashed_bits,
    name="hashed",
    tag="hsh",
)


def draw_key(cell_id: str, index: Word) -> Key[Array, ""]:
    """The key of one draw of a cell (`cell_id`: hexadecimal): every draw of every cell has a stream of its own.

    Whatever `jax.random` makes of it takes its bits from a keyed hash of the place in the array, seven times as fast on a CPU
    as Threefry, which would take more time than all the rest of a draw; Threefry is left for `split` and `fold_in`.
    Source: the hash is Wellons' `lowbias32` (2018), three rounds of it, with a word of the key between.
    """
    with jax.ensure_compile_time_eval():  # else every program of draws would have these two hashes in it, for one constant
        cell = stream(int(cell_id[:8], 16), "draw")
    key = jax.random.fold_in(cell, index)
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=HASHED)


def order_key(seed: int | UInt32[Array, ""], epoch: int | Int[Array, ""]) -> UInt32[Array, "12"]:
    """The words that key one epoch's order."""
    return jax.random.bits(stream(seed, "order", epoch), (ROUNDS,), jnp.uint32)


def shuffled(key: UInt32[Array, "12"], position: UInt32[Array, " *n"], rows: int) -> UInt32[Array, " *n"]:
    """The row visited at each `position` of an epoch: a keyed bijection of 0..rows-1.

    A position is written q b + r on an a x b grid of least excess over `rows`; rounds add a
    keyed hash of one coordinate to the other, modulo its range, which is invertible round by
    round. Images beyond the last row walk on along their cycle until they land inside. Unlike a
    sort it makes any part of an epoch's order by itself, in constant memory. After 2k rounds two
    positions keep their distance with probability 1 / rows + a^-k, so few rows take more rounds than many.

    Positions must be below `rows` (<= 2**30), of any shape.
    Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains", section 3 (cycle walking) and
    section 4 (Feistel on a x b); the rounds' hash is Wellons' `lowbias32` (2018).
    """
    if rows <= FEW:
        return _ranked(key, position, rows)
    a, b = _grid(rows)
    rounds = ROUNDS if rows <= MANY else ROUNDS // 2

    def permute(index: UInt32[Array, " *n"]) -> UInt32[Array, " *n"]:
        q, r = index // b, index % b
        for round_ in range(0, rounds, 2):
            r = _add(r, _hash(q ^ key[round_]), b)
            q = _add(q, _hash(r ^ key[round_ + 1]), a)
        return q * b + r

    index = permute(position)
    if a * b == rows:
        return index
    return jax.lax.while_loop(
        lambda i: jnp.any(i >= rows),
        lambda i: jnp.where(i >= rows, permute(i), i),
        index,
    )


def words(key: Key[Array, ""], shape: tuple[int, ...], columns: bool = False) -> UInt32[Array, "*shape"]:
    """Random words, one for each element of an array: its place there (of `columns`: among the rows), keyed and hashed twice.

    Much less arithmetic than `jax.random.bits`, whose Threefry would cost a small network more than its training; it is
    left for the key, which each step and site has of its own. At most 2**32 elements; no two words are equal.
    Source: the hash is Wellons' `lowbias32` (2018).
    """
    first, second = jax.random.key_data(key)
    if columns:
        place = shape[0] * jnp.arange(shape[1], dtype=jnp.uint32) + jnp.arange(shape[0], dtype=jnp.uint32)[:, None]
    else:
        place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _hash(_hash(place ^ first) + second)


def _ranked(key: UInt32[Array, "12"], position: UInt32[Array, " *n"], rows: int) -> UInt32[Array, " *n"]:
    words = jnp.arange(rows, dtype=jnp.uint32)
    for word in key:
        words = _hash(words ^ word)  # one-to-one, so no two words are equal
    return jnp.sum(words < words[position][..., None], axis=-1, dtype=jnp.uint32)


def _grid(rows: int) -> tuple[int, int]:
    root = math.isqrt(rows - 1) + 1
    heights = range(root // 2, root + 1)
    return min(((a, -(-rows // a)) for a in heights), key=lambda ab: (ab[0] * ab[1], -ab[0]))


def _add(value: UInt32[Array, " *n"], word: UInt32[Array, " *n"], modulus: int) -> UInt32[Array, " *n"]:
    # The high 16 bits scaled to the range: no division, and a range never exceeds 2**16.
    total = value + ((word >> 16) * jnp.uint32(modulus) >> 16)
    return jnp.where(total >= modulus, total - jnp.uint32(modulus), total)


def _hash(word: UInt32[Array, " *n"]) -> UInt32[Array, " *n"]:
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)
