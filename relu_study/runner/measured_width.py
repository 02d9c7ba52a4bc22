"""Tile widths of a job's cohorts on an accelerator: measured before the first tile, and stored in the manifest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from relu_study.components.entry_errors import entry_errors
from relu_study.engine import width_search
from relu_study.engine.plan import Plan
from relu_study.runner.prepare import Job
from relu_study.storage.manifest import fix_width, read_manifest
from relu_study.study.study import Study


@entry_errors()
def with_measured_widths(
    job: Job[Study, Plan], folder: Path, on_message: Callable[[str], None], rate: width_search.Rate | None = None
) -> Job[Study, Plan]:
    """Return a job whose provisional widths are replaced by measured ones, which its manifest then states.

    Shards share the widths: the first one that measures a cohort fixes its width, and the others read it. `rate` measures a tile
    (default: `width_search.steps_per_second`). On a CPU no width is provisional, and the job does not change.
    """
    rate = rate or functools.partial(width_search.steps_per_second, measure_config=job.measure_config)
    plan, widths = job.plan, dict(job.widths)
    for cohort in plan.cohorts:
        if not (cohort.provisional and cohort.tiles):
            continue
        wide = read_manifest(folder)["widths"].get(cohort.name)
        if wide is None:
            fastest, rates = width_search.fastest_width(cohort, plan.platform, job.machine.memory, rate)
            wide = fix_width(folder, cohort.name, fastest)
            measured = ", ".join(f"{one:,}: {steps:,.0f}" for one, steps in sorted(rates.items()))
            on_message(
                f"{plan.describe(cohort.tiles[0])} trains at width {wide:,} (steps per second by width: {measured or 'none'})"
            )
        plan, widths = plan.with_width(cohort.name, wide), widths | {cohort.name: wide}
    return replace(job, plan=plan, widths=widths)
