"""Named random streams, and the shuffled row order of each epoch."""

from __future__ import annotations

import functools
import math
import zlib

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Int, Key, UInt32

ROUNDS = 12
FEW = 64  # up to this many rows, the rounds do not mix well, so rows are ranked by random words
MANY = 4096  # above this many rows, half of the rounds mix equally well

Word = int | Int[Array, ""] | UInt32[Array, ""]


def stream(seed: Word, *path: str | Word) -> Key[Array, ""]:
    """Return the random key of a named stream, e.g. `stream(seed, "order", epoch)`.

    Each part of the path is one `fold_in`: a name by its CRC-32, a number unchanged. A stream therefore does not depend on
    the number or the order of other streams.
    """
    key = jax.random.key(seed, impl="threefry2x32")  # explicit: JAX's default generator can be configured
    for part in path:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key


def _threefry_key(key: UInt32[Array, "2"]) -> Key[Array, ""]:
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def _hashed_bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    """Return random bits from a keyed hash of the element index. 64-bit elements take two words each."""
    index = jnp.arange(math.prod(shape) * max(bit_width // 32, 1), dtype=jnp.uint32)
    bits = _hash(_hash(_hash(index ^ key[0]) + key[1]) ^ key[0])
    if bit_width == 64:
        high, low = jnp.split(bits.astype(jnp.uint64), 2)
        return (high << 32 | low).reshape(shape)
    return (bits >> (32 - bit_width)).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width]).reshape(shape)


HASHED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
    split=lambda key, shape: jax.random.key_data(jax.random.split(_threefry_key(key), shape)),
    fold_in=lambda key, word: jax.random.key_data(jax.random.fold_in(_threefry_key(key), word)),
    random_bits=_hashed_bits,
    name="hashed",
    tag="hsh",
)


def draw_key(cell_id: str, index: Word) -> Key[Array, ""]:
    """Return the key of one draw of a cell. Every draw of every cell has a separate stream. `cell_id` is hexadecimal.

    `jax.random` takes the bits of this key from a keyed hash of the element index. On a CPU the hash is seven times as fast
    as Threefry, which would take longer than the rest of a draw. `split` and `fold_in` use Threefry.

    Source: Wellons' hash `lowbias32` (2018), three times, each time after mixing in a word of the key.
    """
    with jax.ensure_compile_time_eval():  # the cell's key is a constant, so its hashes need not be in the program
        cell = stream(int(cell_id[:8], 16), "draw")
    key = jax.random.fold_in(cell, index)
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=HASHED)


def order_key(seed: int | UInt32[Array, ""], epoch: int | Int[Array, ""]) -> UInt32[Array, "12"]:
    """Return the random words that key one epoch's row order, one per round."""
    return jax.random.bits(stream(seed, "order", epoch), (ROUNDS,), jnp.uint32)


@functools.partial(jax.jit, static_argnums=2)  # traced once for all programs of a shape, not twice in each of them
def shuffled(key: UInt32[Array, "12"], position: UInt32[Array, " *n"], rows: int) -> UInt32[Array, " *n"]:
    """Return the row at each `position` of an epoch's order: a keyed bijection of 0..rows-1.

    A position is q b + r on an a x b grid with the smallest excess over `rows`. A round adds a keyed hash of one coordinate
    to the other, modulo its range, which is invertible. A position mapped beyond the last row is mapped again until it is a
    row (cycle walking). Unlike a sort, this computes any part of the order separately, in constant memory.

    After 2k rounds two positions keep their distance with probability 1 / rows + a^-k. Few rows therefore need more rounds.

    Args:
      key: the words of `order_key`.
      position: positions below `rows`, of any shape.
      rows: number of rows, at most 2**30.

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
    if a * b == rows:  # the grid has no position beyond the last row
        return index
    return jax.lax.while_loop(
        lambda i: jnp.any(i >= rows),
        lambda i: jnp.where(i >= rows, permute(i), i),
        index,
    )


def words(key: Key[Array, ""], shape: tuple[int, ...], columns: bool = False) -> UInt32[Array, "*shape"]:
    """Return distinct random words, one per element of an array: the keyed element index, hashed twice.

    This is much less arithmetic than `jax.random.bits`: Threefry would cost a small network more than its training. The
    array has at most 2**32 elements. With `columns`, indices run down the columns of a matrix instead of along its rows.

    Source: Wellons' hash `lowbias32` (2018).
    """
    first, second = jax.random.key_data(key)
    if columns:
        index = shape[0] * jnp.arange(shape[1], dtype=jnp.uint32) + jnp.arange(shape[0], dtype=jnp.uint32)[:, None]
    else:
        index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _hash(_hash(index ^ first) + second)


def _ranked(key: UInt32[Array, "12"], position: UInt32[Array, " *n"], rows: int) -> UInt32[Array, " *n"]:
    """Return the rank of each position's random word among the words of all rows: a permutation by sorting."""
    words = jnp.arange(rows, dtype=jnp.uint32)
    for word in key:
        words = _hash(words ^ word)  # invertible, so all words differ and no ranks are tied
    return jnp.sum(words < words[position][..., None], axis=-1, dtype=jnp.uint32)


def _grid(rows: int) -> tuple[int, int]:
    """Return the height a and width b of the nearly square grid with the fewest positions; of equal ones, the highest."""
    root = math.isqrt(rows - 1) + 1
    grids = [(a, -(-rows // a)) for a in range(root // 2, root + 1)]  # each width is the smallest for its height
    return min(grids, key=lambda grid: (math.prod(grid), -grid[0]))


def _add(value: UInt32[Array, " *n"], word: UInt32[Array, " *n"], modulus: int) -> UInt32[Array, " *n"]:
    """Return value + a random number from `word`, modulo a modulus of at most 2**16. `value` is below the modulus."""
    # Scale the high 16 bits of the word to the range: this needs no division.
    total = value + ((word >> 16) * jnp.uint32(modulus) >> 16)
    return jnp.where(total >= modulus, total - jnp.uint32(modulus), total)


def _hash(word: UInt32[Array, " *n"]) -> UInt32[Array, " *n"]:
    """Return Wellons' `lowbias32` of each word, a bijection of 32-bit integers."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)
