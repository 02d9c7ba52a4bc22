"""The truth about every run, measured on all training rows: harm, the sign of each problem, and its onset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from detector_parts import tasks
from detector_parts.configurations import Configuration
from relu_study.diagnosis.detector import PROBLEMS
from relu_study.storage.configurations import Configuration as Stored

HARM, ACCURACY_HARM = 0.10, 0.05  # of the range from the twin's loss to the best constant's; points of accuracy
LEARNS = 0.5  # share of the best constant's loss that a run must remove
IMAGE_SOURCE = "digits"  # the images of digits have the same classes


class Signs(NamedTuple):
    """Thresholds of the signs."""

    dead: float = 0.5  # share of dead units of a site
    exploded: float = 10.0  # loss over its first value
    moved: float = 0.01  # relative movement of the first half of the layers over that of the last layer
    learned: float = 0.05  # share of the range from the best constant's loss to the twin's loss

    def scaled(self, factor: float) -> Signs:
        """Return half or double thresholds. A share of dead units is at most 1."""
        return Signs(min(factor * self.dead, 1.0), factor * self.exploded, factor * self.moved, factor * self.learned)


SIGNS = Signs()


@dataclass(frozen=True)
class Truth:
    """The truth about the R runs of one configuration at E measurements."""

    configuration: Configuration
    learns: bool  # the twin beats the best constant by half of the range, in the mean
    learned: Bool[np.ndarray, " R"]  # the run does
    harmed: bool
    signs: Mapping[str, Bool[np.ndarray, "R E"]]

    @property
    def kind(self) -> str:
        """healthy | sick | harmless fault | nothing to learn | twin that does not learn. Sick: harmed by its fault."""
        if self.configuration.fault == "shuffled labels":
            return "nothing to learn"
        if not self.learns:
            return "twin that does not learn"
        if not self.configuration.fault:
            return "healthy"
        return "sick" if self.harmed else "harmless fault"

    def healthy(self) -> Bool[np.ndarray, " R"]:
        """Return which runs are healthy: of a twin, and they learn."""
        return self.learned & (self.kind == "healthy")

    def sick(self, problem: str, sign: bool = True) -> Bool[np.ndarray, " R"]:
        """Return which runs have a problem: a fault of its family, harm and, with `sign`, the sign at the end."""
        caused = self.kind == "sick" and problem in self.configuration.causes
        return caused & (self.signs[problem][:, -1] if sign else np.ones(len(self.learned), bool))

    def onset(self, problem: str) -> Int[np.ndarray, " R"]:
        """Return the first measurement from which the sign holds to the end; the number of measurements if it does not."""
        holds = np.logical_and.accumulate(self.signs[problem][:, ::-1], axis=1)[:, ::-1]
        return np.where(holds[:, -1], holds.argmax(axis=1), holds.shape[1])


@cache
def constant_loss(source: str) -> float:
    """Loss of the best constant prediction on a source of data. Classes are balanced to within 1 %."""
    rows = tasks.SOURCES[IMAGE_SOURCE if source == "default" else source]
    return tasks.best_constant_loss(rows, rows.draw(jax.random.key(0), rows.rows)[1])


def truths(
    configurations: Sequence[Configuration], stored: Mapping[str, Stored], frozen: Mapping[str, str], signs: Signs = SIGNS
) -> list[Truth]:
    """Return the truth about every configuration.

    Args:
        configurations: the configurations, twins included.
        stored: stored runs, measured on all training rows, by label. `frozen` gives labels with frozen layers.
        frozen: label of the run with frozen layers, by label of the configuration.
        signs: thresholds of the signs.
    """
    return [_truth(one, stored, frozen.get(one.label), signs) for one in configurations]


def _truth(one: Configuration, stored: Mapping[str, Stored], frozen: str | None, signs: Signs) -> Truth:
    runs, twin = stored[one.label], stored[one.twin]
    constant = constant_loss(one.source)
    loss, of_twin = _final(runs, "val_loss"), _final(twin, "val_loss")
    learns = bool(np.mean(of_twin) <= (1 - LEARNS) * constant)
    margin = HARM * (constant - np.mean(of_twin))
    worse = np.mean(loss) - np.mean(of_twin) > margin
    if "val_accuracy/all" in runs.values:
        accuracy, twins = (np.nan_to_num(_final(which, "val_accuracy"), posinf=0.0) for which in (runs, twin))
        worse = worse or np.mean(twins) - np.mean(accuracy) > ACCURACY_HARM
    shown = {
        "dying": _carried(np.max([mask.mean(axis=-1) for mask in runs.dead.values()], axis=0), runs) >= signs.dead,
        "exploding": _exploded(runs, signs.exploded),
        "vanishing": _vanishing(runs, stored[frozen], margin, signs.moved) if frozen else np.zeros(_shape(runs), bool),
        "not_learning": _not_learning(runs, twin, constant, signs.learned),
    }
    return Truth(one, learns, loss <= (1 - LEARNS) * constant, bool(worse) and bool(one.fault), {p: shown[p] for p in PROBLEMS})


def _shape(runs: Stored) -> tuple[int, int]:
    return len(runs.run_ids), len(runs.epochs)


def _bad(runs: Stored) -> Bool[np.ndarray, "R E"]:
    """Whether a run is nonfinite at each measurement."""
    return runs.epochs[None, :] >= np.where(np.isnan(runs.first_bad_epoch), np.inf, runs.first_bad_epoch)[:, None]


def _final(runs: Stored, metric: str) -> Float[np.ndarray, " R"]:
    """Return a metric at the end of each run; infinity for a nonfinite one."""
    return np.nan_to_num(runs.values[f"{metric}/all"][:, -1].astype(float), nan=np.inf)


def _carried(values: Float[np.ndarray, "R E"], runs: Stored) -> Float[np.ndarray, "R E"]:
    """Return values with those after the last finite measurement of a run replaced by its last finite one."""
    last = np.maximum.accumulate(np.where(_bad(runs), 0, np.arange(values.shape[1])), axis=1)
    return np.take_along_axis(values, last, axis=1)


def _exploded(runs: Stored, factor: float) -> Bool[np.ndarray, "R E"]:
    loss = runs.values["train_loss/all"].astype(float)
    return _bad(runs) | ~np.isfinite(loss) | (loss > factor * loss[:, :1])


def movement(runs: Stored) -> tuple[Float[np.ndarray, "R E L"], Float[np.ndarray, "R E"]]:
    """Return the relative movement of each hidden layer, and of the output layer: path lengths over initial norms.

    A path length is the sum of update_norm over measurements. The output layer has what `all` has beyond the sites.
    """
    update, weight = (_by_site(runs, metric) for metric in ("update_norm", "weight_norm"))
    rest = [
        np.sqrt(np.maximum(_all(runs, m) ** 2 - (sites**2).sum(axis=-1), 0.0))
        for m, sites in zip(("update_norm", "weight_norm"), (update, weight), strict=True)
    ]
    path, last = np.nancumsum(update, axis=1), np.nancumsum(rest[0], axis=1)
    return path / weight[:, :1], last / rest[1][:, :1]


def _vanishing(runs: Stored, frozen: Stored, margin: float, share: float) -> Bool[np.ndarray, "R E"]:
    """Return where the first half of the layers hardly moves, if freezing it changes the final loss by at most the margin."""
    change = abs(np.mean(_final(frozen, "val_loss")) - np.mean(_final(runs, "val_loss")))
    if not change <= margin:
        return np.zeros(_shape(runs), bool)
    sites, last = movement(runs)
    half = (sites.shape[-1] + 1) // 2
    return (sites[..., :half].max(axis=-1) < share * last) & (last > 0)


def _not_learning(runs: Stored, twin: Stored, constant: float, share: float) -> Bool[np.ndarray, "R E"]:
    """Return where a run is no better than the best constant although its twin is."""
    loss, of_twin = (np.nan_to_num(which.values["train_loss/all"].astype(float), nan=np.inf) for which in (runs, twin))
    return (loss >= constant - share * (constant - of_twin[:, -1:])) & (of_twin <= (1 - LEARNS) * constant)


def _by_site(runs: Stored, metric: str) -> Float[np.ndarray, "R E L"]:
    return np.stack([runs.values[f"{metric}/{site}"].astype(float) for site in runs.sites], axis=-1)


def _all(runs: Stored, metric: str) -> Float[np.ndarray, "R E"]:
    return runs.values[f"{metric}/all"].astype(float)
