"""L2 norms of parameters, gradients and the updates of an epoch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import Snapshot


def norm(tree: Any) -> Float[Array, ""]:
    """Return the global L2 norm of a pytree, sqrt(sum x^2), computed leaf by leaf as m sqrt(sum (x / m)^2), m = max abs x.

    The scaling keeps vanishing gradients, for example of 1e-30, from being squared to zero.

    Source: the scaling of BLAS nrm2, Lawson, Hanson, Kincaid & Krogh 1979, ACM TOMS 5(3).
    """
    leaves = [_norm(leaf) for leaf in jax.tree.leaves(tree) if leaf.size]
    return _norm(jnp.stack(leaves)) if leaves else jnp.zeros(())


def _norm(x: Array) -> Array:
    largest = jnp.max(jnp.abs(x))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sqrt(jnp.sum(jnp.square(x / unit)))


def _norms(sites: dict[str, tuple[Any, Any]]) -> dict[str, Float[Array, ""]]:
    """Return the norm of a kernel and its bias by site. Sites without a kernel have none."""
    return {name: norm(weights) for name, weights in sites.items() if weights[0] is not None}


@metric(
    "grad_norm", per="site", unit="L2 norm", direction="none", low=0, requires=("grads",), source="textbook; scaled as in `norm`"
)
def grad_norm(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Norm of the probe-set loss gradient of the kernel and bias that feed the site; `all`: of every parameter."""
    sites = {name: (site.kernel_grad, site.bias_grad) for name, site in snapshot.named().items()}
    return {"all": norm(snapshot.grads), **_norms(sites)}


@metric(
    "weight_norm",
    per="site",
    unit="L2 norm",
    direction="none",
    low=0,
    requires=("params",),
    source="textbook; scaled as in `norm`",
)
def weight_norm(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Norm of the kernel and bias that feed the site; `all`: of every parameter."""
    sites = {name: (site.kernel, site.bias) for name, site in snapshot.named().items()}
    return {"all": norm(snapshot.params), **_norms(sites)}


@metric(
    "update_norm",
    per="site",
    unit="L2 norm",
    direction="none",
    low=0,
    requires=("steps",),
    source="textbook; scaled as in `norm`",
)
def update_norm(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """Norm of theta_e - theta_(e-1), what the epoch did to the kernel and bias that feed the site; empty before training."""
    sites = {name: (site.kernel_step, site.bias_step) for name, site in snapshot.named().items()}
    return {"all": norm(snapshot.steps), **_norms(sites)}


@metric(
    "update_ratio",
    per="site",
    unit="ratio",
    direction="none",
    low=0,
    requires=("steps", "params"),
    default=False,
    source="after the update ratio of one step in Stanford's course CS231n, notes on neural networks, part 3",
)
def update_ratio(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """update_norm / weight_norm; empty before training and where every weight is 0."""
    updates, weights = update_norm(snapshot), weight_norm(snapshot)
    sites = (name for name in (*snapshot.named(), "all") if name in updates)
    return {name: updates[name] / jnp.where(weights[name] == 0, jnp.nan, weights[name]) for name in sites}
