"""The life of every unit: born dead, died, revived, and how long those alive at the start survive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from relu_study.stats.intervals import interval_over_runs


@dataclass(frozen=True)
class UnitHistories:
    """What became of the U units of each of R runs at one site.

    Counts: `born_dead`; `died` (born alive, later dead); `revived` (was dead, later alive; each unit once); `dead_at_end`, at the
    last epoch at which the run was finite. `first_death`: the index of the epoch at which a unit died, -1 where it did not.
    `censored`: the run went nonfinite.
    """

    born_dead: Int[np.ndarray, " R"]
    died: Int[np.ndarray, " R"]
    revived: Int[np.ndarray, " R"]
    dead_at_end: Int[np.ndarray, " R"]
    first_death: Int[np.ndarray, "R U"]
    censored: Bool[np.ndarray, " R"]


def unit_histories(
    dead: Bool[np.ndarray, "R E U"], epochs: Real[np.ndarray, " E"], first_bad_epoch: Float[np.ndarray, " R"]
) -> UnitHistories:
    """The life of every unit, from its dead (or certified dead) flags over the epochs.

    Born dead and died are disjoint: a unit that is born dead, revives and dies again was never at risk and counts as
    born dead and revived. From `first_bad_epoch` on (NaN: never) the flags of a run mean nothing and are not read.
    """
    seen = _seen(epochs, first_bad_epoch)
    dead, alive = dead & seen[:, :, None], ~dead & seen[:, :, None]
    falls = dead & alive[:, :1]
    was_dead = np.logical_or.accumulate(dead, axis=1)
    end = np.maximum(seen.sum(axis=1) - 1, 0)  # a run that was never finite has no flags left to count there
    return UnitHistories(
        born_dead=dead[:, 0].sum(axis=1),
        died=falls.any(axis=1).sum(axis=1),
        revived=(was_dead & alive).any(axis=1).sum(axis=1),
        dead_at_end=dead[np.arange(len(dead)), end].sum(axis=1),
        first_death=np.where(falls.any(axis=1), falls.argmax(axis=1), -1),
        censored=~seen[:, -1],
    )


def _seen(epochs: Real[np.ndarray, " E"], first_bad_epoch: Float[np.ndarray, " R"]) -> Bool[np.ndarray, "R E"]:
    return ~(np.asarray(epochs)[None, :] >= np.asarray(first_bad_epoch, np.float64)[:, None])  # no epoch is >= NaN


def survival(
    dead: Bool[np.ndarray, "R E U"],
    epochs: Real[np.ndarray, " E"],
    first_bad_epoch: Float[np.ndarray, " R"],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Share of the units born alive that have not died yet, epoch by epoch: S_e = prod over j <= e of (1 - died_j / at_risk_j).

    Returns, each (E,): `runs` that are still finite; `at_risk`, their units born alive and not dead before this epoch; those
    that `died` at it; `censored`, units at risk whose run went nonfinite at it, so that at_risk - died - the next censored is
    the next at_risk; `survival` in [0, 1] with `lo` and `hi`, its 95 % interval over runs (`over_runs`).
    Survival is NaN where no run is finite any more, and everywhere if no unit is born alive.

    Source: Kaplan & Meier 1958, Journal of the American Statistical Association 53, 457-481; interval by resampling whole runs,
    as the units of one run share their fate.
    """
    seen = _seen(epochs, first_bad_epoch)
    born_alive = ~dead[:, 0] & seen[:, :1]
    death = unit_histories(dead, epochs, first_bad_epoch).first_death
    index = np.arange(dead.shape[1])[None, :, None]
    pending = (born_alive[:, None] & ((death[:, None] < 0) | (death[:, None] >= index))).sum(axis=2)
    at_risk, died = pending * seen, (death[:, None] == index).sum(axis=2)
    lost = pending * (~seen & np.roll(seen, 1, axis=1) & (index[:, :, 0] > 0))
    runs = seen.sum(axis=0)
    totals = {"runs": runs, "at_risk": at_risk.sum(axis=0), "died": died.sum(axis=0), "censored": lost.sum(axis=0)}
    curve = _kaplan_meier(totals["at_risk"], totals["died"])
    lo, hi = np.clip(
        interval_over_runs(lambda w: _kaplan_meier(w @ at_risk.astype(float), w @ died.astype(float)), len(dead), rng), 0, 1
    )
    return totals | {name: np.where(runs > 0, x, np.nan) for name, x in (("survival", curve), ("lo", lo), ("hi", hi))}


def _kaplan_meier(at_risk: Real[np.ndarray, "... E"], died: Real[np.ndarray, "... E"]) -> Float[np.ndarray, "... E"]:
    left = 1 - died / np.where(at_risk > 0, at_risk, 1)
    return np.where(at_risk[..., :1] > 0, np.cumprod(left, axis=-1), np.nan)
