"""Unit histories (born dead, died, revived) and Kaplan-Meier survival of the units born alive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from relu_study.stats.intervals import interval_over_runs


@dataclass(frozen=True)
class UnitHistories:
    """The histories of the U units of one site in each of R runs.

    Numbers of units per run:

    - `born_dead`: dead before training;
    - `died`: born alive, dead later;
    - `revived`: dead at some time, alive later; each unit once;
    - `dead_at_end`: dead at the run's last finite epoch.

    `first_death` is the index of the epoch at which a unit died, or -1. `censored`: the run went nonfinite.
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
    """Return unit histories from the dead (or certified dead) flags of all epochs.

    Born dead and died are disjoint: a unit that is born dead, revives and dies again counts as born dead and revived.
    Flags from `first_bad_epoch` on (NaN: never) are ignored.
    """
    seen = _seen(epochs, first_bad_epoch)
    dead, alive = dead & seen[:, :, None], ~dead & seen[:, :, None]
    falls = dead & alive[:, :1]
    was_dead = np.logical_or.accumulate(dead, axis=1)
    end = np.maximum(seen.sum(axis=1) - 1, 0)  # a run that was never finite has no valid flags
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
    """Return the Kaplan-Meier survival of the units born alive, S_e = prod over j <= e of (1 - died_j / at_risk_j).

    Returns arrays (E,):
      runs: number of finite runs.
      at_risk: their units born alive and not dead before this epoch.
      died: units at risk that die at this epoch.
      censored: units at risk whose run goes nonfinite at this epoch; at_risk - died - the next censored = the next at_risk.
      survival: in [0, 1]; NaN if no run is finite, and everywhere if no unit is born alive.
      lo, hi: its 95 % interval over runs (`interval_over_runs`).

    Source: Kaplan & Meier 1958, Journal of the American Statistical Association 53, 457-481. The interval resamples whole
    runs: the units of one run are dependent.
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
    surviving = 1 - died / np.where(at_risk > 0, at_risk, 1)
    return np.where(at_risk[..., :1] > 0, np.cumprod(surviving, axis=-1), np.nan)
