"""Choice of a detector's threshold from scored runs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from relu_study.errors import UserError


def choose_threshold(scores: Float[np.ndarray, " n"], sick: Bool[np.ndarray, " n"], max_false_alarms: float = 0.05) -> float:
    """Return the threshold with the largest balanced accuracy among those with few false alarms.

    Balanced accuracy is the mean of the share of sick runs that fire and the share of healthy runs that do not. A run fires if
    its score is at least the threshold; NaN never fires. Candidates are the smallest finite score, the midpoints between
    neighbouring finite scores, and the next float above the largest one. Ties go to the higher threshold.

    Args:
      scores: one score per run.
      sick: whether each run has the problem.
      max_false_alarms: the largest allowed share of healthy runs that fire.

    Raises:
      UserError: if no run is sick, none is healthy, no score is finite, or no threshold has so few false alarms.
    """
    scores, sick = np.asarray(scores, np.float64), np.asarray(sick, bool)
    if not sick.any() or sick.all():
        raise UserError("a threshold needs runs with and without the problem. Add runs of the missing kind")
    finite = np.unique(scores[np.isfinite(scores)])
    if not finite.size:
        raise UserError("no run has a finite score. Record the metrics that the detector requires")
    middle = finite[1:] / 2 + finite[:-1] / 2
    candidates = np.unique(np.concatenate([finite[:1], middle, np.nextafter(finite[-1:], np.inf)]))
    fires = scores >= candidates[:, None]
    alarms = fires[:, ~sick].mean(axis=1)
    accuracy = (fires[:, sick].mean(axis=1) + 1 - alarms) / 2
    allowed = alarms <= max_false_alarms
    if not allowed.any():
        raise UserError(f"every threshold has more than {max_false_alarms:g} false alarms. Allow more, or change the rule")
    best = np.flatnonzero(allowed & (accuracy == accuracy[allowed].max()))
    return float(candidates[best[-1]])
