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
    quantity="score of dead units",
    units_of="dead_fraction",
)
def dying(history: History) -> Float[np.ndarray, "*runs L"]:
    """The larger of two shares of dead units: the network's, and the worst site's minus `margin`. Units count, not zero entries.

    Healthy narrow networks have sites with half of their units dead, but rarely so many in the whole network. A site with less
    than the share `site` of its units dead scores 0. The worst site has the network's share. The last finite measurement counts.
    """
    numbers, sites = NUMBERS["dying"], history.latest(history.by_site("dead_fraction"))
    known = np.where(np.isnan(sites), -1.0, sites)
    network = history.latest(history.overall("dead_fraction"))
    network = np.where(np.isnan(network), _pooled(sites, history), network)[..., None]
    worst = known.max(axis=-1, keepdims=True, initial=-1.0)
    score = np.fmax(sites - numbers["margin"], np.where(known == worst, network, 0.0))
    return np.where(np.isnan(sites), np.nan, np.where(sites >= numbers["site"], np.maximum(score, 0.0), 0.0))


def _pooled(shares: Float[np.ndarray, "*runs L"], history: History) -> Float[np.ndarray, "*runs"]:
    """Return the share over all known sites, weighted by their units where these are known."""
    units = np.array([history.units.get(site, 1) for site in history.sites], float)
    return np.nansum(shares * units, axis=-1) / (units * ~np.isnan(shares)).sum(axis=-1)


@rule(
    "exploding",
    problem="exploding",
    threshold=NUMBERS["exploding"]["threshold"],
    requires=("train_loss",),
    quantity="train loss over its first value",
)
def exploding(history: History) -> Float[np.ndarray, "*runs"]:
    """Train loss over its first value; infinite once a measurement is nonfinite.

    A loss that begins at 0 or below has no such ratio: the rule then waits for a nonfinite measurement.
    """
    loss = history.overall("train_loss")
    ratio = np.where(loss[..., 0] > 0, loss[..., -1] / loss[..., 0], np.nan)
    return np.where(history.finite.all(axis=-1), ratio, np.inf)


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
    reads=("constant",),
    quantity="train loss over the loss of the best constant, or over its first value where that is unknown",
)
def not_learning(history: History) -> Float[np.ndarray, "*runs"]:
    """Train loss over the loss of the best constant prediction, or over the first loss where that is unknown.

    A slow start is no failure: before the share `after` of training the rule scores 0 unless the output is constant, the run is
    nonfinite, or the loss is at least `early` times the reference. In the first fifth of that share it abstains. It also
    abstains where a constant is perfect, as with a single class: there is nothing to learn.
    """
    numbers, loss = NUMBERS["not_learning"], history.overall("train_loss")[..., -1]
    first = history.overall("train_loss")[..., 0]
    reference = np.where(np.isnan(history.constant_loss), first, history.constant_loss)
    reference = np.where(reference > 0, reference, np.nan)
    finite = history.finite[..., -1]
    score = np.where(finite, loss / reference, np.inf)
    clear = ~finite | (history.overall("constant")[..., -1] > 0) | (score >= numbers["early"])
    progress = history.epochs[-1] / history.total_epochs
    if progress < numbers["after"]:
        score = np.where(clear, score, np.where(np.isnan(score), np.nan, 0.0))
    return score if progress >= numbers["after"] / 5 else np.full(score.shape, np.nan)
