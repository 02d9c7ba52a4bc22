"""The summary of a replay: equality with the stored run, the window, and the first events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

SHOWN = 10  # events in the summary


def replay_summary(about: Mapping[str, Any], events: pd.DataFrame) -> list[str]:
    """Return the lines of a replay's summary. `about` are the entries of replay.json."""
    equal = ["its final row equals runs.csv"] if about["equal_row"] else []
    equal += [f"all {about['equal_measurements']:,} measurements equal raw/"] if about["equal_measurements"] else []
    first, last, per_epoch = about["first_step"], about["last_step"], about["steps_per_epoch"]
    lines = [
        f"run {about['run_id']} of {about['study']}: {' and '.join(equal)}, bit for bit",
        f"steps {first:,} to {last:,} of {about['total_steps']:,} (epochs {first / per_epoch:.4g} to {last / per_epoch:.4g}): "
        f"{about['died']:,} died, {about['revived']:,} revived",
    ]
    if "finding" in about:
        lines.append(about["finding"])
    if about["nonfinite_at_start"]:
        lines.append("the run is nonfinite at the start of the window, so no unit is counted: choose an earlier epoch")
    lines += [_line(event) for event in events.head(SHOWN).to_dict("records")]
    if len(events) > SHOWN:
        lines.append(f"{len(events) - SHOWN:,} more events are in events.csv")
    if about["events_without_arrays"]:
        lines.append(
            f"{about['events_without_arrays']:,} events have no arrays: they would exceed 256 MiB. Choose a smaller window."
        )
    return lines


def _line(event: Mapping[Any, Any]) -> str:
    """Return one event in words."""
    when = f"step {event['total_step']:,} (epoch {event['epoch']}, step {event['step']})"
    if event["event"] == "nonfinite":
        parts = [f"pre of {event['site']}"] if event["site"] else []
        parts += [_first(kind, event[f"{kind}s"].split()) for kind in ("parameter", "gradient") if event[f"{kind}s"]]
        return f"{when}: nonfinite after it: {', '.join(parts) or 'the training loss'}; {_rows(event)}"
    pre = f"largest pre {event['probe_before_max']:.4g} -> {event['probe_after_max']:.4g}"
    if event["by"] == "data":
        return f"{when}: {event['site']} unit {event['unit']} {event['event']} at a change of the data; {pre}"
    norms = [f"{name} {event[f'{name}_norm']:.4g}" for name in ("grad", "step") if not pd.isna(event[f"{name}_norm"])]
    return f"{when}: {event['site']} unit {event['unit']} {event['event']}; {'; '.join([pre, *norms, _rows(event)])}"


def _first(kind: str, names: list[str]) -> str:
    return f"{kind} {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _rows(event: Mapping[Any, Any]) -> str:
    rows = event["batch_rows"]
    more = f", ... ({len(rows)} rows)" if len(rows) > 5 else ""
    return f"batch rows {', '.join(map(str, rows[:5]))}{more}"
