"""Loss of the best constant prediction of a task's targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from relu_study.components.tasks.task import LABELLED, Signature


def constant_loss(signature: Signature, y: Shaped[Array, "N *T"]) -> Float[Array, ""]:
    """Return the loss of the best constant prediction of targets: their variance, or the entropy of their classes in nats.

    The variance is the mean over outputs. Each position of a sequence has its own constant. It is exactly 0 where all targets
    are equal.
    """
    if signature.loss not in LABELLED:
        return jnp.mean(jnp.var(y - y[:1], axis=0))
    if signature.loss == "bce":
        y = jnp.concatenate([1 - y, y], axis=-1)
    elif jnp.issubdtype(y.dtype, jnp.integer):
        y = jax.nn.one_hot(y, signature.outputs.shape[-1])
    return jnp.mean(jnp.sum(jax.scipy.special.entr(jnp.mean(y, axis=0)), axis=-1))
