"""A small results folder with known numbers, for tests of the file side.

A metric of arm number a, target number t, seed s, site number k (all = 0) and epoch e is
`BASE[metric] + a / 4 + t / 2 + k / 8 - e / 64 + noise(s)`, noise(s) = (s - (seeds - 1) / 2) / 64: exact in
float32, and the noise sums to zero over the seeds. Fractions follow from the flags of `dead_flags`.
The arm "relu, rate=0.001" is the configuration of `he_normal` under a second label, with the first label's numbers.
The only nonfinite run is seed 1 of `he_normal` on `wave`, from the third epoch on. Its flags are all True from that epoch on,
and must not count.
Histograms of pre and post count `HISTOGRAM` values in each of the last two bins. In the zero bin they count one value for each
dead unit. Histograms of the gradient count one value in bin (5 + e) modulo 65. A nonfinite run counts no values from the third
epoch on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.stats.histogram_bins import BINS, KINDS
from relu_study.storage.manifest import FORMAT, write_manifest
from relu_study.storage.tile_files import TileArrays, write_tile
from relu_study.study.claims import Claim, Target
from relu_study.study.outputs import Figure, Section, Table
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import REPORT_EPOCHS, Experiment, Study

HISTOGRAM = 7
UNITS = 10  # not a multiple of eight: the last packed byte is padded
PROBE_EXAMPLES = 512
BASE = {"train_loss": 1.0, "val_loss": 1.5, "grad_norm": 0.5, "weight_norm": 4.0, "update_norm": 0.25}
SPREAD = {"post_mean": 0.75, "post_std": 2.0}
FRACTIONS = ("dead_fraction", "certified_dead_fraction", "saturated_fraction", "zero_gradient_fraction")
BORN = {"baseline": 3, "he_normal": 2, "lecun_normal": 3, "leaky_relu": 0, "tanh": 0, "shallow": 3, "stuck": 1}
RATES = (0.001, 0.01)
PARITY = "relu, rate=0.01"  # val_loss 2 lower on even seeds and 4 higher on odd ones, so tuning on all seeds chooses another


def planted_study(seeds: int = 8, epochs: tuple[float, ...] = (0, 1, 2, 5)) -> Study:
    """Return the declaration of the known results: seven arms, a swept learning rate, two targets."""
    base = RunSpec(depth=2, width=UNITS, initializer="normal_005", epochs=max(epochs))
    arms = {
        "baseline": base,
        "he_normal": base.replace(initializer="he_normal"),
        "lecun_normal": base.replace(initializer="lecun_normal"),
        "leaky_relu": base.replace(activation="leaky_relu"),
        "tanh": base.replace(activation="tanh"),
        "shallow": base.replace(depth=1),
        "stuck": base.replace(bias_shift=-1.0),
    }
    swept = {
        f"{name}, rate={rate:g}": base.replace(activation=name, initializer="he_normal", learning_rate=rate)
        for name in ("relu", "selu")
        for rate in RATES
    }
    return Study(
        name="planted",
        title="Planted numbers",
        text="Every number of this study is known beforehand.",
        seeds=seeds,
        targets=(Target("wave", 1.0, 0.0), Target("coin_flip", 0.25, 0.25)),
        experiments=(
            Experiment("initialisers", {k: arms[k] for k in ("baseline", "he_normal", "lecun_normal")}, "Initialisers"),
            Experiment("activations", {k: arms[k] for k in ("baseline", "leaky_relu", "tanh")}, "Activations"),
            Experiment("shapes", {k: arms[k] for k in ("shallow", "stuck")}, "Shapes"),
            Experiment("tuned", swept, "Tuned"),
        ),
        claims=(
            Claim("P1", "leaky_relu lowers the dead fraction", "dead_fraction", "leaky_relu", "baseline", "less", 0.05),
            Claim(
                "P1",
                "leaky_relu lowers it in site_1",
                "dead_fraction",
                "leaky_relu",
                "baseline",
                "less",
                0.05,
                site="site_1",
                epoch=1,
            ),
            Claim(
                "P2",
                "he_normal has the loss of the baseline",
                "val_loss",
                "he_normal",
                "baseline",
                "equivalent",
                0.1,
                relative=True,
            ),
            Claim("P3", "stuck collapses", "collapsed", "stuck", 0.0, "greater", 0.05),
        ),
        tables=(
            Table(
                "initialisers",
                "Initialisers & what they do",
                ("initialisers",),
                ("val_loss", "dead_fraction/site_1@0", "dead_fraction"),
                baseline="baseline",
            ),
            Table(
                "shapes",
                "Shapes",
                ("shapes", "initialisers"),
                ("accuracy", "collapsed", "dead_fraction/site_2"),
                arms=("shallow", "stuck", "baseline"),
            ),
            Table("tuned", "At its best rate", ("tuned",), ("val_loss", "dead_fraction"), tune="learning_rate"),
        ),
        figures=(
            Figure(
                "initialisers", "Initialisers over the epochs", "curves", ("initialisers",), metrics=("dead_fraction", "val_loss")
            ),
            Figure("survival", "How long units live", "survival", ("activations", "shapes")),
            Figure("claims", "Every contrast with its margin", "forest", claims=("P1", "P2", "P3")),
        ),
        sections=(
            Section(
                "Does the start matter?", "One asks where it begins.", ("P1", "P2"), ("initialisers",), ("initialisers", "claims")
            ),
            Section("Does the shape matter?", "One asks what it is.", ("P3",), ("shapes", "tuned"), ("survival",)),
        ),
    )


def planted_metrics() -> dict[str, dict[str, Any]]:
    """Return the `metrics` entry of the manifest, as the metrics declare them."""

    def entry(direction: str, sites: bool, low: float | None = None, high: float | None = None) -> dict[str, Any]:
        return {"unit": "", "direction": direction, "low": low, "high": high, "sites": sites, "text": "planted", "source": ""}

    losses = {name: entry("lower", False, 0.0) for name in ("train_loss", "val_loss")}
    norms = {name: entry("none", True, 0.0) for name in ("grad_norm", "weight_norm", "update_norm")}
    moments = {name: entry("none", True) for name in SPREAD}
    events = {name: entry("lower", False, 0.0, 1.0) for name in ("collapsed", "constant")}
    fractions = {name: entry("lower", True, 0.0, 1.0) for name in FRACTIONS}
    return losses | norms | moments | events | fractions | {"accuracy": entry("higher", False, 0.0)}


def planted_manifest(study: Study) -> dict[str, Any]:
    """Return a manifest for any study, as the runner writes it."""
    metrics, sites = planted_metrics(), ["all", "site_1", "site_2"]
    declaration = study.declaration() | {
        "metrics": metrics,
        "report_epochs": list(REPORT_EPOCHS),
        "factors": ["depth", "activation", "initializer", "target", "learning_rate", "bias_shift"],
        "columns": [f"{name}/{site}" for name, about in metrics.items() for site in (sites if about["sites"] else ["all"])],
    }
    return {
        "format": FORMAT,
        "study": study.name,
        "command": f"relu-study run {study.name}",
        "preset": "default",
        "seeds": study.seeds,
        "provenance": {
            "engine": 1,
            "versions": {"jax": "0.10.2", "numpy": "2.4.0"},
            "device": "cpu: cpu",
            "precision": "float32",
            "probe_examples": PROBE_EXAMPLES,
        },
        "widths": {"0a1b2c": 4},
        "device": {"platform": "cpu", "kind": "cpu", "devices": 2},
        "declaration_hash": "0123456789ab",
        "declaration": json.loads(json.dumps(declaration)),  # tuples become lists, as in any manifest read from a file
        "timing": {"wall_s": 3.5, "compile_s": 1.25},
        "counts": {"ok": len(study.runs()) - 1, "nonfinite": 1, "interrupted": 0},
    }


def noise(seed: int, seeds: int) -> float:
    """Return the deviation of a seed. It sums to zero over the seeds."""
    return (seed - (seeds - 1) / 2) / 64


def nonfinite(arm: str, target: str, seed: int) -> bool:
    """Whether this run is the one that goes nonfinite at the third epoch."""
    return arm == "he_normal" and target == "wave" and seed == 1


def dead_flags(arm: str, target: str, seed: int, site: str, epochs: int) -> np.ndarray:
    """Return (E, U) flags: BORN[arm] units are born dead.

    The next unit dies at the second epoch on even seeds, and revives at the last epoch for seeds divisible by four. Unit 0 of
    seed 0 is alive from the third epoch on. `stuck` loses the whole of site_2 from the third epoch on, on odd seeds.
    """
    born = BORN.get(arm, 1)
    dead = np.zeros((epochs, UNITS), bool)
    dead[:, :born] = True
    if born:
        dead[1:, born] = seed % 2 == 0
        dead[-1, born] &= seed % 4 != 0
        dead[2:, 0] = seed != 0
    if arm == "stuck" and site == "site_2":
        dead[2:] |= seed % 2 == 1
    if nonfinite(arm, target, seed):
        dead[2:] = True
    return dead


def certified_flags(arm: str, target: str, seed: int, site: str, epochs: int) -> np.ndarray:
    """Return (E, U) flags: the units born dead, except unit 0 and the one that dies later."""
    certified = np.zeros((epochs, UNITS), bool)
    certified[:, 1 : BORN.get(arm, 1)] = True
    return certified & dead_flags(arm, target, seed, site, epochs)


def planted_run(
    arm: str, arm_number: int, target: str, seed: int, study: Study, epochs: tuple[float, ...], sites: list[str]
) -> TileArrays:
    """Return one run's series: `metric:NAME/SITE` (E,), `dead:SITE` (E, U)."""
    when, targets = np.array(epochs), [t.name for t in study.targets]
    shift = arm_number / 4 + targets.index(target) / 2 - when / 64 + noise(seed, study.seeds)
    series: TileArrays = {}
    for number, site in enumerate(["all", *sites]):
        for name, base in (BASE | SPREAD).items():
            if site == "all" or "loss" not in name:
                series[f"metric:{name}/{site}"] = base + shift + number / 8
        series[f"metric:update_norm/{site}"] = np.where(when == 0, np.nan, series[f"metric:update_norm/{site}"])
        chosen = sites if site == "all" else [site]
        dead = np.concatenate([dead_flags(arm, target, seed, s, len(when)) for s in chosen], 1)
        certified = np.concatenate([certified_flags(arm, target, seed, s, len(when)) for s in chosen], 1)
        empty = np.full(len(when), np.nan)
        series[f"metric:dead_fraction/{site}"] = series[f"metric:zero_gradient_fraction/{site}"] = dead.mean(1)
        series[f"metric:certified_dead_fraction/{site}"] = empty if arm == "tanh" else certified.mean(1)
        series[f"metric:saturated_fraction/{site}"] = np.full(len(when), 0.125) if arm == "tanh" else empty
    if arm == PARITY:
        series["metric:val_loss/all"] = series["metric:val_loss/all"] + (4 if seed % 2 else -2)
    for site in sites:
        series[f"dead:{site}"] = dead_flags(arm, target, seed, site, len(when))
        if arm != "tanh":
            series[f"certified_dead:{site}"] = certified_flags(arm, target, seed, site, len(when))
        for kind in KINDS:
            counts = series[f"histogram:{kind}:{site}"] = np.zeros((len(when), BINS), np.int32)
            if kind == "gradient":
                counts[np.arange(len(when)), (5 + np.arange(len(when))) % BINS] = 1
            else:
                counts[:, -2:], counts[:, BINS // 2] = HISTOGRAM, dead_flags(arm, target, seed, site, len(when)).sum(1)
            if nonfinite(arm, target, seed):
                counts[2:] = 0
    collapsed = np.any([series[f"dead:{s}"].all(1) for s in sites], 0).astype(float)
    series["metric:collapsed/all"] = series["metric:constant/all"] = collapsed
    series["metric:accuracy/all"] = 8 - series["metric:val_loss/all"]
    if nonfinite(arm, target, seed):
        for name in series:
            if name.startswith("metric:"):
                series[name] = np.where(np.arange(len(when)) < 2, series[name], np.nan)
    return series


def planted_folder(
    path: Path,
    seeds: int = 8,
    epochs: tuple[float, ...] = (0, 1, 2, 5),
    left_out: tuple[str, ...] = (),
    figures: bool | tuple[Figure, ...] = True,
) -> Path:
    """Write manifest.json and raw/ under `path`, without the run_ids in `left_out`.

    A report with fewer figures is quicker: with none, or with other ones, which no section names.
    """
    study = planted_study(seeds, epochs)
    if figures is not True:
        sections = tuple(replace(section, figures=()) for section in study.sections)
        study = replace(study, figures=figures or (), sections=sections)
    manifest = planted_manifest(study)
    write_manifest(path, manifest)
    pending: dict[tuple[int, bool], list[tuple[RunSpec, TileArrays]]] = {}
    first_label = {spec: key for key, spec in reversed(planted_arms(study).items())}
    for spec, (arm, target) in sorted(first_label.items(), key=lambda item: item[0].config_id):
        sites = [f"site_{k + 1}" for k in range(spec.depth)]
        number = list(study.arms()).index(arm)
        for seed in range(seeds):
            run = spec.replace(seed=seed)
            if run.run_id not in left_out:
                series = planted_run(arm, number, target, seed, study, epochs, sites)
                pending.setdefault((spec.depth, arm == "tanh"), []).append((run, series))
    for runs in pending.values():
        for start in range(0, len(runs), 5):  # tiles of five runs can contain runs of two configurations
            write_tile(path, _tile(runs[start : start + 5], epochs, manifest["provenance"]))
    return path


def planted_arms(study: Study) -> dict[tuple[str, str], RunSpec]:
    """Return (arm, target) -> RunSpec with seed 0."""
    return {(arm, spec.target): spec for _, arm, spec in study.configurations()}


def _tile(runs: list[tuple[RunSpec, TileArrays]], epochs: tuple[float, ...], provenance: dict[str, Any]) -> TileArrays:
    bad = [bool(np.isnan(series["metric:train_loss/all"]).any()) for _, series in runs]
    third = epochs[2] if len(epochs) > 2 else np.nan
    tile: TileArrays = {
        "run_id": np.array([spec.run_id for spec, _ in runs]),
        "spec": np.array([json.dumps(spec.changed()) for spec, _ in runs]),
        "status": np.array(["nonfinite" if b else "ok" for b in bad]),
        "first_bad_epoch": np.array([third if b else np.nan for b in bad]),
        "epoch": np.array(epochs, float),
        "probe_examples": np.array(PROBE_EXAMPLES),
        "provenance": np.array(json.dumps(provenance)),
    }
    for name in runs[0][1]:
        stacked = np.stack([series[name] for _, series in runs])
        if name.startswith("metric:"):
            tile[name] = stacked.astype(np.float32)
        else:
            tile[name] = stacked if name.startswith("histogram:") else np.packbits(stacked, axis=-1)
        if name.startswith("dead:"):
            tile[f"units:{name.removeprefix('dead:')}"] = np.array(UNITS)
    return tile
