"""A reader of W&B's offline files: the records of a run, as W&B's server would get them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK, LEAST = 7, 32768, 7  # bytes: of the file's header, of a block, of a record's header
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One offline run: its labels, config, history by step, summary and exit status."""

    folder: Path
    run_id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Return the offline runs below `folder`/wandb."""
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun(path.parent)
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            about = record.run
            run.run_id, run.name, run.group, run.job_type = about.run_id, about.display_name, about.run_group, about.job_type
            run.project, run.tags = about.project, tuple(about.tags)
            run.config |= _items(about.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, after W&B's header."""
    assert content[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + LEAST <= len(content):
        if BLOCK - at % BLOCK < LEAST:  # the rest of a block is padding
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts = (b"" if kind in (FULL, FIRST) else parts) + content[at + LEAST : at + LEAST + size]
        at += LEAST + size
        if kind in (FULL, LAST):
            yield parts
