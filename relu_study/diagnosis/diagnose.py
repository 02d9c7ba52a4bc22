"""Findings of runs from their histories, and their summary over the seeds of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from relu_study.diagnosis.detector import Detector, detectors
from relu_study.diagnosis.finding import ConfigurationFinding, Finding
from relu_study.diagnosis.history import History

OURS = ("exploding", "vanishing", "dying", "not_learning")  # causes first

ADVICE = {
    "exploding": "Lower the learning rate or clip gradients, and look at train_loss and weight_norm by site before the onset.",
    "dying": "Look at dead_fraction by site and epoch, then try a smaller learning rate or a leaky activation.",
    "vanishing": "Look at grad_norm and update_norm by site, then try another initialiser, normalisation or a skip connection.",
    "not_learning": "Look for another problem first, then at the learning rate, and whether the data can be learned at all.",
}


def diagnose(history: History, only: Iterable[str] = OURS) -> list[list[Finding]]:
    """Return the findings of each run, in the order of `only`. Leading axes of runs are flattened.

    A finding is a detector that fires at the end of the record. One that fired earlier and no longer does is not listed.

    Args:
      history: the recorded metrics.
      only: names of detectors.

    Raises:
      UserError: for an unknown detector.
    """
    history = history.flat()
    findings: list[list[Finding]] = [[] for _ in range(history.runs[0])]
    for detector in [detectors[name] for name in only]:
        sick = np.flatnonzero(detector.fires(history))  # only these need the scores over time
        if not sick.size:
            continue
        some = history.of_run(sick)
        over_time, by_site, shares = detector.over_time(some), detector.site_scores(some), detector.shares(some)
        for i, run in enumerate(sick):
            share = None if shares is None else shares[i]
            findings[run].append(_finding(detector, history, over_time[i], by_site[i], share))
    return findings


def summarise(findings: Sequence[Sequence[Finding]]) -> list[ConfigurationFinding]:
    """Return one row per detector with a finding, from the findings of each run of a configuration.

    The order is by share, largest first. Runs without a finding count in the share.
    """
    by_detector: dict[str, list[Finding]] = {}
    for finding in (finding for run in findings for finding in run):
        by_detector.setdefault(finding.detector, []).append(finding)
    rows = [_row(found, len(findings)) for found in by_detector.values()]
    return sorted(rows, key=lambda row: (-row.share, row.detector))


def _finding(
    detector: Detector,
    history: History,
    over_time: Float[np.ndarray, "E"],
    by_site: Float[np.ndarray, "L"],
    shares: Float[np.ndarray, "L"] | None,
) -> Finding:
    """Return the finding of one run in which the detector fires at the end."""
    fires = over_time >= detector.threshold
    quiet = np.flatnonzero(~fires)
    first, onset = int(np.argmax(fires)), quiet[-1] + 1 if quiet.size else 0
    times = float(history.epochs[first]), float(history.epochs[onset])
    return finding_of(detector, history, float(over_time[-1]), by_site, shares, *times)


def finding_of(
    detector: Detector,
    history: History,
    score: float,
    by_site: Float[np.ndarray, "L"],
    shares: Float[np.ndarray, "L"] | None,
    first_flag: float,
    onset: float,
) -> Finding:
    """Return the finding of a run with a known first flag and onset. `history` gives sites, units and the clock.

    `shares` are the affected shares of each site's units; None: the detector is not about units.
    """
    site = history.sites[int(np.nanargmax(by_site))] if not np.isnan(by_site).all() else ""
    units = None if shares is None else _units(history, site, shares)
    amount = f"{units[0]} of {units[1]} units, " if units else ""
    amount += "infinite" if np.isinf(score) else f"{score:.3g}"
    place = f" at {site}" if site else ""
    since = f", since {history.clock} {onset:g}" if history.clock else ""
    return Finding(
        problem=detector.problem,
        detector=detector.name,
        site=site,
        units=units,
        onset=onset,
        first_flag=first_flag,
        score=score,
        threshold=detector.threshold,
        evidence=f"{detector.quantity}{place}: {amount}, threshold {detector.threshold:.3g}{since}",
        advice=ADVICE[detector.problem],
    )


def _units(history: History, site: str, shares: Float[np.ndarray, "L"]) -> tuple[int, int] | None:
    """Return the number of affected units and of units of the site, if they are known."""
    if site not in history.units or np.isnan(share := shares[history.sites.index(site)]):
        return None
    return round(share * history.units[site]), history.units[site]


def _row(found: Sequence[Finding], runs: int) -> ConfigurationFinding:
    count, onset = len(found), float(np.median([finding.onset for finding in found]))
    sites = [finding.site for finding in found]
    worst = max(found, key=lambda finding: (sites.count(finding.site), finding.score)).site
    scores = float(np.median([finding.score for finding in found]))
    place = f", most often at {worst} ({sites.count(worst)} of {count})" if worst else ""
    return ConfigurationFinding(
        problem=found[0].problem,
        detector=found[0].detector,
        count=count,
        runs=runs,
        share=count / runs,
        onset=onset,
        site=worst,
        evidence=f"{count} of {runs} runs, median score {scores:.3g}, median onset at epoch {onset:g}{place}",
    )
