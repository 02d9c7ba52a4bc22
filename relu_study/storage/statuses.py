"""Statuses of runs, and the runs that the manifest lists as not stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

STORED = ("ok", "nonfinite")  # of runs with numbers
LISTED = ("oom", "crashed")  # of runs without numbers, by manifest entry
STATUSES = (*STORED, *LISTED, "interrupted")  # in the order of every list
OOM_HINT = "free memory or use a larger device, then run the study again to retry them"
AGAIN = "run the same command to try them again"
MAX_REASONS = 3  # in one line


def listed(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return run_id or cell_id -> status of the runs or cells that the entries of a manifest list as not stored."""
    return {name: status for status in LISTED for name in manifest.get(status, ())}


def reasons_text(reasons: Iterable[str]) -> str:
    """Return the reasons of crashed runs in one line, the most frequent first, each with its number if there are several."""
    counts = Counter(" ".join(reason.split()) or "no reason is recorded" for reason in reasons).most_common()
    if len(counts) == 1:
        return counts[0][0]
    shown = [f"{count:,}: {reason}" for reason, count in counts[:MAX_REASONS]]
    rest = len(counts) - len(shown)
    return "; ".join([*shown, *([f"and {rest:,} more reason{'s' * (rest > 1)}"] if rest else [])])
