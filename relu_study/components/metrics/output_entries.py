"""Single entries of post: the share of zeros, and the 95th percentile of abs(post)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from relu_study.components.metrics.histograms import count
from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import Snapshot

MANTISSA_BITS = 3  # of the bins of abs(post): 8 bins for each power of two


@metric(
    "zero_entries",
    per="site",
    unit="fraction",
    direction="none",
    low=0,
    high=1,
    requires=("sites",),
    default=False,
    source="Glorot, Bordes & Bengio 2011, AISTATS, section 4 (exact sparsity)",
)
def zero_entries(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Share of the entries of post that are exactly 0, over units and probe examples. A zero entry is not a dead unit."""
    # Integers: a float32 stops counting at 2^24.
    zeros = {name: jnp.sum(site.post == 0).astype(float) for name, site in snapshot.named().items()}
    sizes = {name: site.post.size for name, site in snapshot.named().items()}
    if not zeros:
        return {}
    pooled = sum(zeros.values(), jnp.zeros(())) / sum(sizes.values())
    return {"all": pooled, **{name: count / sizes[name] for name, count in zeros.items()}}


@metric(
    "post_p95",
    per="site",
    unit="post",
    direction="none",
    low=0,
    requires=("sites",),
    default=False,
    source="the percentile of Hyndman & Fan 1996, The American Statistician 50(4), definition 1",
)
def post_p95(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """95th percentile of abs(post) over units and probe examples, never too small and less than 1/8 too large.

    It is the smallest of the values 2^k (1 + i/8), i = 0..7, that at least 95 % of the entries do not exceed. Exact for 0.
    """
    sites = snapshot.named()
    counts = {name: size_counts(site.post) for name, site in sites.items()}
    if not counts:
        return {}
    entries = {name: site.post.size for name, site in sites.items()}
    counts = {"all": sum(counts.values(), jnp.zeros((), jnp.int32)), **counts}
    entries = {"all": sum(entries.values()), **entries}
    return {name: percentile(counts[name], entries[name], 95, snapshot.sites[0].post.dtype) for name in counts}


def size_counts(values: Float[Array, "..."]) -> Int[Array, "B"]:
    """Return the number of values in each bin of abs(x). Bin 0 contains exact zeros, the last bin infinity; NaN is in no bin.

    The bits of nonnegative floats sort like the floats. Bin b contains the floats above the one with the bits (b - 1) 2^s, up to
    the one with the bits b 2^s. s is the number of bits of the mantissa minus 3, so each power of two has 8 bins.
    """
    info = jnp.finfo(values.dtype)
    shift, infinity = info.nmant - MANTISSA_BITS, (2 * info.maxexp - 1) << MANTISSA_BITS

    def bins_of(values: Float[Array, "*n"]) -> Int[Array, "*n"]:
        bits = jax.lax.bitcast_convert_type(values, f"int{info.bits}")
        size = bits & jnp.iinfo(bits.dtype).max
        return ((size >> shift) + ((size & ((1 << shift) - 1)) != 0)).astype(jnp.int32)

    return count(values, bins_of, infinity + 1)


def percentile(counts: Int[Array, "B"], entries: int, percent: int, dtype: Any) -> Float[Array, ""]:
    """Return the smallest upper end of a bin of `size_counts` that at least `percent` % of the entries do not exceed.

    The ends of a bin differ by a factor of at most 9/8 (normal floats). The percentile itself is above the lower end and at most
    the upper one. Entries that are in no bin exceed every end.
    """
    info, rank = jnp.finfo(dtype), -(-percent * entries // 100)
    below = jnp.cumsum(counts)
    bits = jnp.argmax(below >= rank).astype(f"int{info.bits}") << (info.nmant - MANTISSA_BITS)
    return jnp.where(below[-1] >= rank, jax.lax.bitcast_convert_type(bits, info.dtype), jnp.nan)
