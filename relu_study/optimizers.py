"""Optimisers by name: each builds an optax transformation from a traced rate and weight decay.

The rate is never part of the optimiser's state, so every rate shares one program.
"""

from __future__ import annotations

import optax
from jaxtyping import Array, Float

from relu_study.registry import optimizers

optimizer = optimizers.register
Knob = float | Float[Array, ""]


@optimizer("adam")
def adam(learning_rate: Knob, weight_decay: Knob) -> optax.GradientTransformation:
    """Adam (0.9, 0.999, 1e-8) with decoupled weight decay.

    Source: Kingma & Ba 2014, arXiv 1412.6980, algorithm 1; the decay: Loshchilov & Hutter 2017, arXiv 1711.05101.
    """
    return optax.adamw(learning_rate, weight_decay=weight_decay)


@optimizer("sgd")
def sgd(learning_rate: Knob, weight_decay: Knob) -> optax.GradientTransformation:
    """Stochastic gradient descent: theta <- theta - rate (gradient + decay theta). Source: Robbins & Monro 1951."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


@optimizer("momentum")
def momentum(learning_rate: Knob, weight_decay: Knob) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum 0.9. Source: Polyak 1964; Sutskever et al. 2013, section 2."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9))


@optimizer("rmsprop")
def rmsprop(learning_rate: Knob, weight_decay: Knob) -> optax.GradientTransformation:
    """RMSProp with decay 0.9 and epsilon 1e-8, added inside the root. Source: Tieleman & Hinton 2012, lecture 6.5."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.rmsprop(learning_rate))
