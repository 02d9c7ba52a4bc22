"""Our rules: few, on counts of units, gradients of whole sites and the loss, with numbers from `thresholds.json`."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from relu_study.diagnosis.detector import detector
from relu_study.diagnosis.history import History
from relu_study.diagnosis.thresholds import packaged

NUMBERS = packaged()

rule = functools.partial(detector, source="ours", rival=False)


@rule(
    "dying",
    problem="dying",
    threshold=NUMBERS["dying"]["threshold"],
    requires=("dead_fraction",),
    quantity="share of dead units",
    counts_units=True,
)
def dying(history: History) -> Float[np.ndarray, "*runs L"]:
    """Share of dead units of each site at the last finite measurement. It counts units, not zero entries."""
    return history.latest(history.by_site("dead_fraction"))


@rule(
    "exploding",
    problem="exploding",
    threshold=NUMBERS["exploding"]["threshold"],
    requires=("train_loss",),
    quantity="train loss over its first value",
)
def exploding(history: History) -> Float[np.ndarray, "*runs"]:
    """Train loss over its first value; infinite once a measurement is nonfinite."""
    loss = history.overall("train_loss")
    return np.where(history.finite.all(axis=-1), loss[..., -1] / loss[..., 0], np.inf)


@rule(
    "vanishing",
    problem="vanishing",
    threshold=NUMBERS["vanishing"]["threshold"],
    requires=("grad_norm", "weight_norm"),
    quantity="orders of magnitude less gradient than a later site",
)
def vanishing(history: History) -> Float[np.ndarray, "*runs L"]:
    """Orders of magnitude by which a site received less gradient than the later site with the most.

    The gradient of a site is the sum of grad_norm over the measurements, over its first weight_norm. In a converged network all
    gradients are small; their ratios, and the sums with the early measurements, are not. Gradients count, not updates: Adam
    moves a site by the same amount whatever its gradient. A site without any gradient scores infinity if a later one has some.
    With one site, or without any gradient, there is no comparison: NaN.
    """
    gradients, weights = history.by_site("grad_norm"), history.by_site("weight_norm")
    if len(history.sites) < 2:
        return np.full((*history.runs, len(history.sites)), np.nan)
    counted = np.isfinite(gradients) & history.finite[..., None]
    received = np.where(counted, gradients, 0).sum(axis=-2) / weights[..., 0, :]
    received = np.where(counted.any(axis=-2), received, np.nan)
    most = np.fmax.accumulate(received[..., ::-1], axis=-1)[..., ::-1]
    return np.log10(most / received)


@rule(
    "not_learning",
    problem="not_learning",
    threshold=NUMBERS["not_learning"]["threshold"],
    requires=("train_loss",),
    quantity="train loss over the loss of the best constant",
)
def not_learning(history: History) -> Float[np.ndarray, "*runs"]:
    """Train loss over the loss of the best constant prediction, or over the first loss where that is unknown.

    The rule abstains before the share `after` of training. It scores 0 where the loss still falls: by more than the share
    `fall` between the middle and the last finite measurement.
    """
    numbers, loss = NUMBERS["not_learning"], history.overall("train_loss")
    reference = np.where(np.isnan(history.constant_loss), loss[..., 0], history.constant_loss)
    last, middle = history.latest(loss), history.middle(loss)
    score = np.where(1 - last / middle > numbers["fall"], 0.0, last / reference)
    epoch = history.latest(np.broadcast_to(history.epochs, loss.shape))
    return np.where(epoch >= numbers["after"] * history.total_epochs, np.where(np.isnan(last), np.nan, score), np.nan)
