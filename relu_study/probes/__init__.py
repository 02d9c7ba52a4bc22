"""The probes: what is measured of a run, one file a family. A new family is a new file here, nothing else."""

import importlib
import pkgutil

from relu_study.probes.metric import Metric, declared, measure, probe
from relu_study.probes.snapshot import SiteView, Snapshot

__all__ = ["Metric", "SiteView", "Snapshot", "declared", "measure", "probe"]

for _family in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_family.name)
