"""Agreement of the workers of a cluster: with the driver on software, and with each other on bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from relu_study.errors import UserError
from relu_study.report.markup import counted
from relu_study.runner.machine import Machine
from relu_study.runner.worker import Report

SHOWN = 3  # reasons in one message


def agreed(reports: Mapping[str, Report], digest: str | None = None) -> Report:
    """Return the first report of the largest group of workers with equal bits.

    Only groups with this `digest`, if there is one: a folder is continued by no other.

    Raises:
        UserError: no group is largest.
    """
    matching = {name: report for name, report in reports.items() if digest is not None and report.digest == digest} or reports
    groups = Counter(report.bits for report in matching.values())
    (chosen, most), *others = groups.most_common()
    if others and others[0][1] == most:
        names = "; ".join(", ".join(name for name, report in matching.items() if report.bits == bits) for bits in groups)
        raise UserError(
            f"the workers do not agree on the bits of a small training, and no group is largest ({names}). Use machines of one "
            "kind, or one worker with --workers 1."
        )
    return next(report for report in matching.values() if report.bits == chosen)


def difference(report: Report, here: tuple[Mapping[str, Any], str], platform: str, own: Mapping[str, Any]) -> str:
    """Return the reason why a worker cannot compute the driver's study; empty if it can.

    Args:
        report: The machine of the worker.
        here: Versions and precision of the driver, and the hash of its package.
        platform: The platform of the cluster's places.
        own: The fingerprints of the study's own entries in the driver.
    """
    software, package = here
    for name, value in software.items():
        if differing := _differing(name, report.host.get(name), value):
            return f"has {', '.join(differing)}"
    if report.package != package:
        return "has another version of relu_study than the driver (its source files differ)"
    if report.platform != platform:
        return f"has the platform {report.platform}, not {platform}"
    for name, parts in own.items():
        if report.own.get(name) != parts:
            return f"loads {name} with other content than the driver"
    return ""


def unusable(reasons: Sequence[str]) -> UserError:
    """Return the error if no worker can be used. It names the first reasons."""
    more = f"; and {counted(len(reasons) - SHOWN, 'more node')}" if len(reasons) > SHOWN else ""
    return UserError(
        f"no worker of the cluster can be used: {'; '.join(reasons[:SHOWN])}{more}. Install the packages and versions of the "
        "driver on every node, or correct the named error."
    )


def unlike(report: Report, machine: Machine) -> str:
    """Return the differences of a worker's bits from those of the others; empty if they are equal."""
    digest = machine.digest()
    if (report.platform, report.host, report.digest) == (machine.platform, machine.host, digest):
        return ""
    return f"device {report.host['device']}, processor {report.processor.get('processor')}, digest {report.digest}, not {digest}"


def _differing(name: str, there: Any, here: Any) -> list[str]:
    """The names with their values on a worker and on the driver: of packages, only those with another version."""
    if isinstance(here, Mapping):
        return [text for one in here for text in _differing(one, (there or {}).get(one), here[one])]
    return [] if there == here else [f"{name} {'missing' if there is None else there} (driver {here})"]
