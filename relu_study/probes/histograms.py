"""How pre, post and the gradients are spread, from vanishing to exploding: counts on a scale of powers of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from relu_study.bins import BINS, LEAST, SIDE
from relu_study.probes.snapshot import Snapshot

BLOCK = 4096  # values counted at a time: they stay in a core's nearest cache
EXAMPLES = 2048  # of the probe set; more would cost a small network more than all other probes together


def bin_of(values: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """The bin of each value, read off its exponent bits: 0 <= bin < 65, in the order of the values.

    Bin 32 is exact zero alone. Bin 33 + k + 24 holds [2^k, 2^(k+1)) for k = -24..7, and bin 31 - k - 24 the same below zero;
    what is smaller than 2^-24 or not smaller than 2^8 in size is counted in the innermost or outermost bin of its sign.
    """
    info = jnp.finfo(values.dtype)
    bits = jax.lax.bitcast_convert_type(values, f"int{info.bits}")
    exponent = ((bits >> info.nmant) & (2 * info.maxexp - 1)) - (info.maxexp - 1)
    size = jnp.clip(exponent - LEAST, 0, SIDE - 1).astype(jnp.int32)
    # A comparison with 0.0 would take subnormals for zero where the processor flushes them.
    is_zero = (bits & jnp.iinfo(bits.dtype).max) == 0
    return jnp.where(is_zero, SIDE, jnp.where(bits < 0, SIDE - 1 - size, SIDE + 1 + size))


def histogram(values: Float[Array, "..."]) -> Int[Array, "65"]:
    """How many values fall into each bin of `bin_of`; NaN falls into none."""
    # As integers: on the way into blocks a processor that flushes subnormals would make them zero.
    bits = jax.lax.bitcast_convert_type(values.ravel(), f"int{jnp.finfo(values.dtype).bits}")
    blocks = jnp.pad(bits, (0, -bits.size % BLOCK), constant_values=-1).reshape(-1, BLOCK)  # all ones: a NaN

    def add(counted: Int[Array, "66"], block: Int[Array, "n"]) -> tuple[Int[Array, "66"], None]:
        floats = jax.lax.bitcast_convert_type(block, values.dtype)
        bins = jnp.where(jnp.isnan(floats), BINS, bin_of(floats))
        return counted.at[bins].add(1, mode="promise_in_bounds"), None

    # In blocks: over all values at once XLA would fuse the bins with what made the values, in a loop that it cannot vectorise.
    counted, _ = jax.lax.scan(add, jnp.zeros(BINS + 1, jnp.int32), blocks)
    return counted[:BINS]


def counts(snapshot: Snapshot) -> dict[str, Int[Array, "65"]]:
    """The histograms of each site, as "pre:site_1", "post:site_1" and "gradient:site_1".

    Of pre and post over units and the first 2,048 probe examples; of the probe-set loss gradient over the kernel and bias
    that feed the site.
    """
    found = {}
    for name, site in snapshot.named().items():
        found[f"pre:{name}"] = histogram(site.pre[:EXAMPLES])
        found[f"post:{name}"] = histogram(site.post[:EXAMPLES])
        gradients = [site.kernel_grad] if site.bias_grad is None else [site.kernel_grad, site.bias_grad]
        found[f"gradient:{name}"] = histogram(jnp.concatenate([gradient.ravel() for gradient in gradients]))
    return found
