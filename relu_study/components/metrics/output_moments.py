"""Mean and standard deviation of each site's post."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import Snapshot


def moments(values: Float[Array, "..."], axis: int | None = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the mean and the variance (divided by n) along an axis, or of all values.

    mean' = mean + mean(x - mean), variance = mean((x - mean)^2) - mean(x - mean)^2. The second pass removes the rounding
    error of the first. If the values are far from 0, that error exceeds a small variance.

    Source: Chan, Golub & LeVeque 1983, The American Statistician 37(3), the corrected two-pass algorithm (1.7).
    """
    estimate = jnp.mean(values, axis, keepdims=True)
    deviations = values - estimate
    correction = jnp.mean(deviations, axis)
    variance = jnp.mean(jnp.square(deviations), axis) - jnp.square(correction)
    return jnp.squeeze(estimate, axis) + correction, jnp.maximum(variance, 0)  # rounding may make the variance negative


def pooled(snapshot: Snapshot) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Return the mean and variance of post at each site, and over all sites pooled as `all`."""
    sites = {name: moments(site.post) for name, site in snapshot.named().items()}
    if not sites:
        return {}
    counts = jnp.array([site.post.size for site in snapshot.sites], jnp.result_type(float))
    shares = counts / counts.sum()
    means, variances = (jnp.stack(column) for column in zip(*sites.values(), strict=True))
    mean = jnp.sum(shares * means)
    variance = jnp.sum(shares * (variances + jnp.square(means - mean)))  # within the sites plus between them
    return {"all": (mean, variance), **sites}


@metric(
    "post_mean",
    per="site",
    unit="post",
    direction="none",
    requires=("sites",),
    source="Chan, Golub & LeVeque 1983, algorithm (1.7)",
)
def post_mean(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Mean of post over units and probe examples."""
    return {name: mean for name, (mean, _) in pooled(snapshot).items()}


@metric(
    "post_std",
    per="site",
    unit="post",
    direction="none",
    low=0,
    requires=("sites",),
    source="Chan, Golub & LeVeque 1983, algorithm (1.7)",
)
def post_std(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Standard deviation of post over units and probe examples, divided by n."""
    return {name: jnp.sqrt(variance) for name, (_, variance) in pooled(snapshot).items()}
