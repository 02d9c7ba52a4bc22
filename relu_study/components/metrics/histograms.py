"""Histograms of pre, post and gradients, with bins at powers of two.

The post of a bounded activation has equal bins over its range (`relu_study.stats.histogram_bins`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from relu_study.components.metrics.snapshot import Snapshot
from relu_study.stats.histogram_bins import BINS, BINS_PER_SIDE, MIN_EXPONENT, Range, bounded, linear_edges

BLOCK = 4096  # values counted at a time: they fit in a core's L1 cache
EXAMPLES = 2048  # first examples of the probe set; more would cost a small network more than all other metrics together


def bin_of(values: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Return the bin of each value on the scale of powers of two: 0 <= bin < 65. Larger values have larger bins.

    Bin 32 counts only exact zeros. For k = -24..7, bin 57 + k counts [2^k, 2^(k+1)) and bin 7 - k counts its negatives.
    Magnitudes below 2^-24 are in the innermost bin of their sign, magnitudes from 2^8 on in the outermost.
    """
    info = jnp.finfo(values.dtype)
    bits = jax.lax.bitcast_convert_type(values, f"int{info.bits}")
    exponent = ((bits >> info.nmant) & (2 * info.maxexp - 1)) - (info.maxexp - 1)
    size = jnp.clip(exponent - MIN_EXPONENT, 0, BINS_PER_SIDE - 1).astype(jnp.int32)
    # Compare bits: as floats, subnormals equal 0.0 on a processor that flushes them.
    is_zero = (bits & jnp.iinfo(bits.dtype).max) == 0
    return jnp.where(is_zero, BINS_PER_SIDE, jnp.where(bits < 0, BINS_PER_SIDE - 1 - size, BINS_PER_SIDE + 1 + size))


def _sort_keys(bits: Any) -> Any:
    """Return integers that sort like the floats with these bits, with -0.0 just below 0.0."""
    return bits ^ ((bits >> (8 * bits.dtype.itemsize - 1)) & np.iinfo(bits.dtype).max)


def _edge_keys(low: float, high: float, dtype: Any) -> Int[np.ndarray, "63"]:
    """Return the sort key of the smallest float of `dtype` at or above each inner edge of the linear bins."""
    inner = linear_edges(low, high)[1:-1]
    with np.errstate(over="ignore"):  # an edge too large for the precision is infinite
        floats = inner.astype(dtype)
    floats = np.where(floats < inner, np.nextafter(floats, np.array(np.inf, dtype)), floats).astype(dtype)
    floats += np.array(0, dtype)  # -0.0 becomes 0.0, so both have one key
    return _sort_keys(floats.view(f"int{np.finfo(dtype).bits}"))


def _is_coarse(low: float, high: float, dtype: Any) -> bool:
    """Whether linear bins over [low, high] are much wider than rounding errors in `dtype`, without a risk of overflow."""
    info, step = np.finfo(dtype), (high - low) / (2 * BINS_PER_SIDE)
    rounding = max(float(info.eps) * max(abs(low), abs(high)), float(info.tiny))
    return step > 64 * rounding and high - low < float(info.max) / 4


def linear_bin_of(values: Float[Array, "*n"], low: float, high: float) -> Int[Array, "*n"]:
    """Return the bin of each value on the linear scale over [low, high]: 0 <= bin < 65, bin 32 for exact zero.

    The other bins are the 64 of `linear_edges` in ascending order. Values outside the range are in the end bins.
    """
    bits = jax.lax.bitcast_convert_type(values, f"int{jnp.finfo(values.dtype).bits}")
    # Integer comparisons are exact, also for subnormals.
    edges, keys = _edge_keys(low, high, values.dtype), _sort_keys(bits)
    if _is_coarse(low, high, values.dtype):  # arithmetic instead of a search; fine bins would be off by more than one
        ends = np.concatenate([[np.iinfo(keys.dtype).min], edges, [np.iinfo(keys.dtype).max]])
        scale = np.array(2 * BINS_PER_SIDE / (high - low), values.dtype)
        nearest = jnp.clip(
            (values - np.array(low, values.dtype)) * scale + np.array(0.5, values.dtype), 0, 2 * BINS_PER_SIDE
        ).astype(jnp.int32)
        # `nearest` is the nearest edge up to rounding. The exact comparison decides the side.
        index = nearest - (keys < jnp.asarray(ends, keys.dtype).at[nearest].get(mode="clip"))
    else:
        index = jnp.searchsorted(jnp.asarray(edges), keys, side="right", method="scan_unrolled")
    index = index.astype(jnp.int32)
    is_zero = (bits & jnp.iinfo(bits.dtype).max) == 0
    return jnp.where(is_zero, BINS_PER_SIDE, jnp.where(index < BINS_PER_SIDE, index, index + 1))


def count(values: Float[Array, "..."], bins_of: Callable[[Array], Array], bins: int) -> Int[Array, "bins"]:
    """Return the number of values in each of `bins` bins. NaN is in no bin."""
    # Pad as integers: padding floats may flush subnormals to zero.
    bits = jax.lax.bitcast_convert_type(values.ravel(), f"int{jnp.finfo(values.dtype).bits}")
    blocks = jnp.pad(bits, (0, -bits.size % BLOCK), constant_values=-1).reshape(-1, BLOCK)  # all ones: a NaN

    def add(counted: Int[Array, "bins_and_nan"], block: Int[Array, "n"]) -> tuple[Int[Array, "bins_and_nan"], None]:
        floats = jax.lax.bitcast_convert_type(block, values.dtype)
        valid_bins = bins_of(floats)
        return counted.at[jnp.where(jnp.isnan(floats), bins, valid_bins)].add(1, mode="promise_in_bounds"), None

    # Scan over blocks: otherwise XLA fuses the bins with the computation of the values, in a loop that it cannot vectorise.
    counted, _ = jax.lax.scan(add, jnp.zeros(bins + 1, jnp.int32), blocks)
    return counted[:bins]


def histogram(values: Float[Array, "..."], span: Range | None = None) -> Int[Array, "65"]:
    """Return the number of values in each bin of `bin_of`, or of `linear_bin_of` over `span`. NaN is in no bin."""
    return count(values, bin_of if span is None else lambda floats: linear_bin_of(floats, *span), BINS)


def counts(snapshot: Snapshot, linear: bool = True, entries: int | None = None) -> dict[str, Int[Array, "65"]]:
    """Return the histograms of each site, as "pre:site_1", "post:site_1" and "gradient:site_1".

    Pre and post are counted over units and the first 2,048 probe examples, at one position of each, the next from example to
    example. The gradient of the probe-set loss is counted over the site's kernel and bias. With `entries`, sites with more count
    fewer examples, and every k-th gradient. With `linear`, the post of a bounded activation has linear bins.
    """
    histograms = {}
    for name, site in snapshot.named().items():
        positions = len(site.pre) // len(snapshot.prediction)
        examples = EXAMPLES if entries is None else min(EXAMPLES, max(1, entries // site.pre.shape[1]))
        pre, post = (array[:: positions + 1 if positions > 1 else 1][:examples] for array in (site.pre, site.post))
        histograms[f"pre:{name}"] = histogram(pre)
        histograms[f"post:{name}"] = histogram(post, bounded(site.activation.values) if linear else None)
        gradients = [gradient.ravel() for gradient in (site.kernel_grad, site.bias_grad) if gradient is not None]
        gradient = jnp.concatenate(gradients) if gradients else jnp.zeros(0)
        stride = 1 if entries is None else max(1, gradient.size // entries)
        histograms[f"gradient:{name}"] = histogram(gradient[::stride] if stride > 1 else gradient)
    return histograms
