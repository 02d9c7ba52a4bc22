"""Single entries of gradients: zeros, mean and largest size, and the ratio of the first site to the last."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import Snapshot

gradient = functools.partial(metric, per="site", direction="none", low=0, requires=("grads",), default=False)


@gradient("zero_gradients", unit="fraction", high=1, source="ours; Is ReLU Dead? (2019) watches the same gradients")
def zero_gradients(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Share of exact zeros in the probe-set loss gradient of the site's kernel and bias; `all`: of every parameter."""
    return _by_site(snapshot, _zero_share)


@gradient("grad_mean_abs", unit="gradient", source="textbook; scaled as in `norm`")
def grad_mean_abs(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Mean abs of the probe-set loss gradient of the site's kernel and bias; `all`: of every parameter."""
    return _by_site(snapshot, _mean_abs)


@gradient("grad_max_abs", unit="gradient", source="textbook")
def grad_max_abs(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Largest abs of the probe-set loss gradient of the site's kernel and bias; `all`: of every parameter."""
    return _by_site(snapshot, _max_abs)


@metric(
    "grad_ratio",
    per="network",
    unit="ratio",
    direction="none",
    low=0,
    requires=("grads",),
    default=False,
    source="ours; after the gradients by layer of Glorot & Bengio 2010, AISTATS, section 4",
)
def grad_ratio(snapshot: Snapshot) -> Float[Array, ""]:
    """grad_mean_abs at the first site / at the last site, of those with a kernel; empty where the last one is 0.

    Below 1 the gradient vanishes towards the input, above 1 it explodes.
    """
    means = [mean for site, mean in grad_mean_abs(snapshot).items() if site != "all"]
    if not means:
        return jnp.array(jnp.nan)
    return means[0] / jnp.where(means[-1] == 0, jnp.nan, means[-1])


def _by_site(snapshot: Snapshot, read: Callable[[Sequence[Array]], Array]) -> dict[str, Float[Array, ""]]:
    """Return a number of all gradients, and of those of each site. Sites without a kernel have none."""
    feeds = {name: (site.kernel_grad, site.bias_grad) for name, site in snapshot.named().items() if site.kernel_grad is not None}
    leaves = {
        name: [leaf for leaf in jax.tree.leaves(tree) if leaf.size] for name, tree in ({"all": snapshot.grads} | feeds).items()
    }
    return {name: read(arrays) for name, arrays in leaves.items() if arrays}


def _entries(arrays: Sequence[Array]) -> int:
    return sum(array.size for array in arrays)


def _zero_share(arrays: Sequence[Array]) -> Float[Array, ""]:
    # Integers: a float32 stops counting at 2^24.
    return sum((jnp.sum(array == 0).astype(float) for array in arrays), jnp.zeros(())) / _entries(arrays)


def _max_abs(arrays: Sequence[Array]) -> Float[Array, ""]:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(array)) for array in arrays]))


def _mean_abs(arrays: Sequence[Array]) -> Float[Array, ""]:
    """Return the mean abs as m mean(abs(x) / m), m = max abs x, so that the sum of large gradients does not overflow."""
    largest = _max_abs(arrays)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * (sum((jnp.sum(jnp.abs(array / unit)) for array in arrays), jnp.zeros(())) / _entries(arrays))
