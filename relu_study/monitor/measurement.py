"""One measurement of a monitored training, as `Monitor` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from relu_study.diagnosis.finding import MemberFinding
from relu_study.stats.unit_events import Event

LISTED = 5  # findings in a printed measurement
SHOWN = ("dead_fraction", "nearly_dead_fraction", "saturated_fraction", "dormant_fraction", "grad_norm", "update_ratio")


@dataclass(frozen=True, repr=False)
class Measurement:
    """The numbers of one step. Prints as a table of sites.

    `values["metric/site"]` is a number; of an ensemble, an array over M members. NaN: the member is nonfinite, or there is no
    earlier finite measurement to compare with. `dead[site]` flags dead units, U or M x U; a nonfinite member has its last finite
    flags. `events` are the changes since the last measurement. `nonfinite` maps each nonfinite member to its first nonfinite
    place: a site, or outputs, loss, gradients or parameters. `findings` are the problems that hold now.
    """

    step: int
    values: Mapping[str, float | Float[np.ndarray, " M"]]
    dead: Mapping[str, Bool[np.ndarray, "..."]]
    events: tuple[Event, ...]
    nonfinite: Mapping[int, str]
    findings: tuple[MemberFinding, ...] = ()

    @property
    def loss(self) -> float | Float[np.ndarray, " M"]:
        """The loss on the probe set; NaN without `targets` and `loss`."""
        return self.values.get("loss/all", np.nan)

    @property
    def sites(self) -> pd.DataFrame:
        """One row a site and one column a metric, in program order; of an ensemble, means over members."""
        rows: dict[str, dict[str, float]] = {}
        for name, value in self.values.items():
            metric, _, site = name.partition("/")
            finite = np.asarray(value, float)[np.isfinite(value)]
            rows.setdefault(site, {})[metric] = float(finite.mean()) if finite.size else np.nan
        order = [*self.dead, *(site for site in rows if site not in self.dead)]
        return pd.DataFrame([rows[site] for site in order if site in rows], [site for site in order if site in rows])

    def __repr__(self) -> str:
        sites = self.sites
        shown = [name for name in SHOWN if name in sites]
        loss = np.asarray(self.loss, float)
        head = f"step {self.step}" + (f", loss {np.nanmean(loss):.4g}" if np.isfinite(loss).any() else "")
        lines = [head, sites[shown].to_string(float_format="{:.3g}".format, na_rep=""), *self._problem_lines()]
        return "\n".join(lines)

    def _problem_lines(self) -> list[str]:
        members = np.size(self.loss) > 1 or any(finding.member for finding in self.findings)
        lines = [
            f"{f'member {finding.member} ' if members else ''}{finding.problem}: {finding.evidence}" for finding in self.findings
        ]
        return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more findings"]
