"""Findings: a named problem of one run, or of the seeds of one configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem of one run that holds at the end of its record."""

    problem: str  # exploding | dying | vanishing | not_learning
    detector: str
    site: str  # the site with the largest score; "": the whole network
    units: tuple[int, int] | None  # units affected, and units of the site; None: unknown, or the problem has none
    onset: float  # epoch (in `Monitor`: step) from which the detector fires until the end of the record
    first_flag: float  # epoch (step) at which the detector first fires
    score: float
    threshold: float
    evidence: str  # one line with the numbers
    advice: str  # what to look at next, one line


@dataclass(frozen=True)
class ConfigurationFinding:
    """A problem of one configuration, over the runs of its seeds."""

    problem: str
    detector: str
    count: int  # runs with the problem
    runs: int
    share: float  # count / runs
    onset: float  # median over the runs with the problem
    site: str  # most frequent site; among equals the one with the largest score; "": the whole network
    evidence: str


@dataclass(frozen=True)
class MemberFinding(Finding):
    """A problem of one member of an ensemble that trains. A single model is member 0."""

    member: int
