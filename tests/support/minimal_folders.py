"""Minimal results folders with every kind of file, written from known numbers without training or drawing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from known_results import planted_manifest
from small_draw_study import study as coins

from relu_study.report.report import report
from relu_study.runner.prepare import manifest_of, prepare
from relu_study.stats.histogram_bins import BINS
from relu_study.stats.streaming_moments import Sums, accumulate
from relu_study.storage import block_files, tile_files
from relu_study.storage.manifest import write_manifest
from relu_study.study.claims import Claim, Target
from relu_study.study.outputs import Table
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment, Study

RELU = RunSpec(width=3, epochs=2)
ARMS = {"relu": RELU, "tanh": RELU.replace(activation="tanh")}
EPOCHS = np.array([0.0, 1.0, 2.0])
SEEDS = 3
STUDY = Study(
    name="tiny",
    title="Tiny",
    text="Every byte of it counts.",
    seeds=SEEDS,
    targets=(Target("wave", 1.0, 0.0),),
    experiments=(Experiment("main", ARMS),),
    claims=(Claim("T1", "tanh loses fewer units", "dead_fraction", "tanh", "relu", "less", 0.05),),
    tables=(Table("main", "All.", ("main",), ("val_loss", "dead_fraction")),),
)
DRAWS = replace(coins.with_preset(draws=40), figures=())


def trained(folder: Path, study: Study = STUDY, declaration: dict[str, Any] | None = None) -> Path:
    """Write a folder with one tile per arm, and all derived files."""
    manifest = planted_manifest(study)
    manifest |= {"declaration": declaration} if declaration else {}
    cohorts = {arm: f"c{number}" for number, arm in enumerate(study.arms())}
    manifest |= {"widths": dict.fromkeys(cohorts.values(), 4)}
    write_manifest(folder, manifest)
    for arm, spec in study.arms().items():
        runs = [spec.replace(target="wave", seed=seed) for seed in range(study.seeds)]
        made = {**manifest["provenance"], "cohort": cohorts[arm], "width": 4}
        tile_files.write_tile(folder, _tile(runs, json.dumps(made)))
    report(folder)
    return folder


def _tile(runs: list[RunSpec], made: str) -> tile_files.TileArrays:
    n, e = len(runs), len(EPOCHS)
    seeds = np.array([run.seed for run in runs], np.float32)
    dead = np.zeros((n, e, 3), bool)
    dead[:, 1:, 0] = runs[0].activation == "relu"
    level = sum(float(value) for _, value in runs[0].options if not isinstance(value, str)) / 64
    return {
        "run_id": np.array([run.run_id for run in runs]),
        "spec": np.array([json.dumps(run.changed()) for run in runs]),
        "status": np.array(["ok"] * n),
        "first_bad_epoch": np.full(n, np.nan),
        "epoch": EPOCHS,
        "probe_examples": np.array(64),
        "provenance": np.array(made),
        "metric:val_loss/all": (seeds[:, None] + 1 / (1 + EPOCHS) + level).astype(np.float32),
        "metric:dead_fraction/all": dead.mean(2).astype(np.float32),
        "metric:dead_fraction/site_1": dead.mean(2).astype(np.float32),
        "dead:site_1": np.packbits(dead, axis=-1),
        "units:site_1": np.array(3),
        "histogram:post:site_1": np.ones((n, e, BINS), np.int32),
    }


def drawn(folder: Path) -> Path:
    """Write a folder of coin throws with one block per cell, and all derived files."""
    job = prepare(DRAWS, None)
    write_manifest(folder, {**manifest_of(job, {"command": "test", "preset": "default"}), "timing": {}})
    for number, block in enumerate(job.plan.tiles):
        bits = np.random.default_rng(number).random((block.count, 3)) < dict(block.cell)["p"]
        sums: Sums = {}
        accumulate(sums, "heads", bits.astype(float))
        accumulate(sums, "height", np.where(bits[:, 0], np.linspace(-1, 1, block.count), np.nan), (-4, 4))
        made = {**job.provenance, "cohort": block.cohort, "width": block.width}
        block_files.write_block(folder, (block.cohort, block.first, block.count), sums, made)
    report(folder)
    return folder
