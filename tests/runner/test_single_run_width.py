"""The tile width of a single run of a sweep."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_study import study

from relu_study.engine import cohorts, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.runner import run as runner
from relu_study.runner.single_run import run_single
from relu_study.storage.manifest import read_manifest, write_manifest

few = replace(study, metrics=("val_loss",))


def test_single_run_has_the_width_of_a_sweep_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner.run(few, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "raw")
    folder, chosen = tmp_path / "sweep", few.runs()[0]
    manifest = read_manifest(folder)
    name = cohorts.cost_of(chosen).cohort
    manifest["widths"][name] *= 2
    manifest["provenance"] = {key: manifest["provenance"][key] for key in ("engine", "versions", "device", "precision")}
    write_manifest(folder, manifest)
    widths, whole = [], train_tile.train_tile

    def recorded(runs: Any, width: int, *args: Any, **options: Any) -> Any:
        widths.append(width)
        return whole(runs, width, *args, **options)

    monkeypatch.setattr(train_tile, "train_tile", recorded)
    assert run_single(few, chosen.run_id, tmp_path / "sweep", None, MeasureConfig()).startswith(chosen.run_id)
    assert widths == [manifest["widths"][name]]
