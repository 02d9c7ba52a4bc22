"""TensorBoard event files read with TensorBoard's loader: every value and step, and the effects of rewriting."""

from __future__ import annotations

import copy
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_reader import Series, read
from hypothesis import given
from hypothesis import strategies as st
from known_results import planted_folder, planted_manifest, planted_study
from scipy import stats as scipy_stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util.tensor_util import make_ndarray

from relu_study.report.tensorboard import event_files
from relu_study.report.tensorboard.event_files import EVENT_FILE, run_names, write_events
from relu_study.storage import frames
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.declaration import DeclaredConfiguration, StudyManifest, parse_manifest, read_declared
from relu_study.study.claims import Target


def interval(name: str, values: np.ndarray) -> tuple[float, float, float] | None:
    """Mean and interval of the runs at one epoch, by other means than ours; None where there is none."""
    values = values[np.isfinite(values)].astype(float)
    if name in ("collapsed/all", "constant/all") and len(values):
        share = scipy_stats.binomtest(int(values.sum()), len(values)).proportion_ci(0.95, "wilson")
        return values.mean(), share.low, share.high
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return values[0], values[0], values[0]
    return values.mean(), *scipy_stats.t.interval(0.95, len(values) - 1, values.mean(), scipy_stats.sem(values))


def expected(configuration: Configuration) -> Series:
    series: Series = {}
    every = np.stack(list(configuration.values.values()))
    alive = np.isfinite(every).any(axis=(0, 1))
    for name, values in configuration.values.items():
        counts = np.isfinite(values).sum(axis=0)
        known = [tag for tag, least in (("mean", 1), ("lo", 2), ("hi", 2)) if counts.max() >= least]
        if name in ("collapsed/all", "constant/all"):
            known = ["mean", "lo", "hi"]
        for i, epoch in enumerate(configuration.epochs):
            if not known or (alive[i] and not counts[i]):
                continue
            alone = values[:, i][np.isfinite(values[:, i])].mean() if counts[i] else math.nan
            found = interval(name, values[:, i]) or (alone, math.nan, math.nan)
            for tag, value in zip(("mean", "lo", "hi"), found, strict=True):
                if tag in known:
                    series.setdefault(f"{name}/{tag}", {})[math.ceil(epoch)] = value
    return series


def same(found: Series, wanted: Series) -> None:
    assert {tag: list(points) for tag, points in found.items()} == {tag: list(points) for tag, points in wanted.items()}
    for tag, points in wanted.items():
        np.testing.assert_allclose(list(found[tag].values()), list(points.values()), rtol=2e-6, atol=1e-7, err_msg=tag)


def written(path: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Configuration]]:
    manifest = read_declared(planted_folder(path, **options))
    configurations = collect(path, manifest)
    write_events(manifest, configurations, path)
    return manifest, configurations


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in (path / "tensorboard").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Configuration], Path]:
    path = tmp_path_factory.mktemp("events")
    return *written(path), path


@pytest.fixture(scope="module")
def of_two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], tuple[StudyManifest, dict[str, Configuration]]]:
    """A function that copies the event files of two seeds to a folder and returns what `written` returns."""
    path = tmp_path_factory.mktemp("two")
    manifest, configurations = written(path, seeds=2)

    def copied(to: Path) -> tuple[StudyManifest, dict[str, Configuration]]:
        shutil.copytree(path / "tensorboard", to / "tensorboard")
        return manifest, copy.deepcopy(configurations)

    return copied


def test_every_value_of_every_configuration_round_trips(folder: Any) -> None:
    manifest, configurations, path = folder
    names = run_names(manifest)
    assert sorted(p.name for p in (path / "tensorboard").iterdir()) == sorted(names[c] for c in configurations)
    assert len(configurations) == 20
    total = 0
    for config_id, configuration in configurations.items():
        series = read(path / "tensorboard" / names[config_id])
        same(series, expected(configuration))
        total += sum(map(len, series.values()))
    assert total > 5000


def test_gaps_are_left_out_of_all_three_tags(folder: Any) -> None:
    _, _, path = folder
    relu, tanh = (read(path / "tensorboard" / f"{arm}@wave") for arm in ("baseline", "tanh"))
    for tag in ("mean", "lo", "hi"):
        assert list(relu[f"update_norm/all/{tag}"]) == [1, 2, 5]
        assert list(relu[f"grad_norm/site_2/{tag}"]) == [0, 1, 2, 5]
        assert f"saturated_fraction/all/{tag}" in tanh and f"saturated_fraction/all/{tag}" not in relu
        assert f"certified_dead_fraction/all/{tag}" in relu and f"certified_dead_fraction/all/{tag}" not in tanh


def test_values_are_those_of_the_summary(folder: Any) -> None:
    manifest, configurations, path = folder
    summary = frames.summary_frame(configurations, manifest, None)
    names = run_names(manifest)
    for config_id, rows in summary.groupby("config_id"):
        series = read(path / "tensorboard" / names[str(config_id)])
        for row in rows.dropna(subset="mean").itertuples():
            for tag, value in (("mean", row.mean), ("lo", row.ci_lo), ("hi", row.ci_hi)):
                assert series[f"{row.metric}/{row.site}/{tag}"][int(row.epoch)] == np.float32(value)


def test_buckets_of_a_bounded_output_resolve_large_values(tmp_path: Path) -> None:
    manifest = parse_manifest(planted_manifest(planted_study()))
    path = planted_folder(tmp_path)
    config_id, found = next((k, c) for k, c in collect(path, manifest).items() if c.spec["activation"] == "tanh")
    values = np.array([0.6] * 5 + [0.99] * 7 + [-1.0, 1.0, 0.0, 0.0, 0.0])
    linear = np.histogram(values[values != 0], np.linspace(-1, 1, 65))[0]
    counts = np.tile(np.insert(linear, 32, 3), (len(found.epochs), 1))
    shown = replace(found, histograms={"post:site_1": counts, "pre:site_1": counts}, bins={"post:site_1": (-1.0, 1.0)})
    write_events(manifest, {config_id: shown}, path)
    loaded = EventAccumulator(str(path / "tensorboard" / run_names(manifest)[config_id]), size_guidance={"tensors": 0})
    loaded.Reload()
    points = loaded.Tensors("post/site_1")
    assert [point.step for point in points] == [math.ceil(epoch) for epoch in found.epochs]
    for point in points:
        rows = make_ndarray(point.tensor_proto)
        assert rows.shape == (65, 3) and (rows[:, 0] < rows[:, 1]).all() and rows[:, 2].sum() == len(values)
        assert (rows[0, 0], rows[-1, 1]) == (-1, 1) and np.array_equal(rows[1:, 0], rows[:-1, 1])
        assert np.ptp(rows[:, 1] - rows[:, 0]) < 1 / 32 + 1e-6
        holds = {value: rows[(rows[:, 0] <= value) & (value < rows[:, 1])][0].tolist() for value in (0.6, 0.99, 0.0, -0.999)}
        assert [row[2] for row in holds.values()] == [5, 8, 3, 1]
        assert holds[0.0][:2] == [-(2.0**-24), 2.0**-24] and holds[0.6][1] < holds[0.99][0]
    assert make_ndarray(loaded.Tensors("pre/site_1")[0].tensor_proto)[-1, 1] == 2.0**8  # powers of two


def test_one_event_per_step_has_all_tags(folder: Any) -> None:
    _, _, path = folder
    raw = [Event.FromString(e) for e in RawEventFileLoader(str(path / "tensorboard" / "baseline@wave" / EVENT_FILE)).Load()]
    assert raw[0].file_version == "brain.Event:2"
    assert [value.metadata.plugin_data.plugin_name for value in raw[1].summary.value] == ["custom_scalars", "hparams", "hparams"]
    assert [e.step for e in raw[2:]] == [0, 1, 2, 5]
    assert all(len(e.summary.value) > 60 for e in raw[2:])


def test_a_fraction_of_an_epoch_is_rounded_up(tmp_path: Path) -> None:
    written(tmp_path, seeds=3, epochs=(0, 1, 2, 2.5))
    assert list(read(tmp_path / "tensorboard" / "baseline@wave")["val_loss/all/mean"]) == [0, 1, 2, 3]


def test_of_two_epochs_on_one_step_the_last_counts(tmp_path: Path) -> None:
    manifest, configurations = written(tmp_path, seeds=3, epochs=(0, 0.25, 0.5, 1))
    config_id = {name: config_id for config_id, name in run_names(manifest).items()}["baseline@wave"]
    means = configurations[config_id].values["val_loss/all"].mean(axis=0)
    assert len(set(means.tolist())) == 4
    assert read(tmp_path / "tensorboard" / "baseline@wave")["val_loss/all/mean"] == {0: means[0], 1: means[3]}


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    written(tmp_path, seeds=1)
    series = read(tmp_path / "tensorboard" / "baseline@wave")
    assert series["val_loss/all/mean"].keys() == {0, 1, 2, 5}
    assert "val_loss/all/lo" not in series and "val_loss/all/hi" not in series
    assert series["collapsed/all/lo"].keys() == {0, 1, 2, 5}  # Wilson's interval is there for any number of runs
    assert all(math.isfinite(v) for points in series.values() for v in points.values())


def test_unknown_values_of_nonfinite_runs_are_nan(tmp_path: Path) -> None:
    manifest = read_declared(planted_folder(tmp_path, seeds=3))
    configurations = collect(tmp_path, manifest)
    for configuration in configurations.values():
        configuration.values["val_loss/all"][1:, 2] = np.nan  # one run left
        configuration.values["train_loss/all"][:, 1] = [3e38, -3e38, 0]  # an interval beyond single precision
    write_events(manifest, configurations, tmp_path)
    series = read(tmp_path / "tensorboard" / "baseline@wave")
    for tag in ("mean", "lo", "hi"):
        assert list(series[f"val_loss/all/{tag}"]) == list(series[f"train_loss/all/{tag}"]) == [0, 1, 2, 5]
        assert np.isnan(series[f"val_loss/all/{tag}"][2]) == (tag != "mean")
        assert np.isnan(series[f"train_loss/all/{tag}"][1]) == (tag != "mean")
    assert series["val_loss/all/mean"][2] == np.float32(configurations[next(iter(configurations))].values["val_loss/all"][0, 2])


def test_last_point_equals_the_summary_if_every_run_is_nonfinite(tmp_path: Path) -> None:
    manifest = read_declared(planted_folder(tmp_path, seeds=3))
    configurations = collect(tmp_path, manifest)
    for configuration in configurations.values():
        for values in configuration.values.values():
            values[:, 2:] = np.nan
    write_events(manifest, configurations, tmp_path)
    series = read(tmp_path / "tensorboard" / "baseline@wave")
    for tag in ("mean", "lo", "hi"):
        assert list(series[f"val_loss/all/{tag}"]) == [0, 1, 2, 5] and np.isnan(series[f"val_loss/all/{tag}"][5])
        assert list(series[f"update_norm/all/{tag}"]) == [1, 2, 5]  # before training there is none to have


def test_rewriting_gives_the_same_bytes_without_duplicates(tmp_path: Path, of_two_seeds: Any) -> None:
    manifest, configurations = of_two_seeds(tmp_path)
    first = contents(tmp_path)
    assert first and {Path(name).name for name in first} == {EVENT_FILE}
    write_events(manifest, configurations, tmp_path)
    assert contents(tmp_path) == first


def test_new_values_replace_old_files(tmp_path: Path, of_two_seeds: Any) -> None:
    manifest, configurations = of_two_seeds(tmp_path)
    for configuration in configurations.values():
        del configuration.values["grad_norm/all"]
        configuration.values["val_loss/all"] += 1
    write_events(manifest, configurations, tmp_path)
    names = run_names(manifest)
    for config_id, configuration in configurations.items():
        same(read(tmp_path / "tensorboard" / names[config_id]), expected(configuration))


def test_interrupted_write_keeps_the_old_file_only(tmp_path: Path, of_two_seeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, configurations = of_two_seeds(tmp_path)
    before = contents(tmp_path)
    for configuration in configurations.values():
        configuration.values["val_loss/all"] += 1
    write, opened = event_files.RecordWriter.write, []

    def breaks(self: Any, event: bytes) -> None:
        opened.extend([self] if self not in opened else [])
        if len(opened) > 3 and len(event) > 1000:
            raise OSError("no space left on device")
        write(self, event)

    monkeypatch.setattr(event_files.RecordWriter, "write", breaks)
    with pytest.raises(OSError, match="no space left"):
        write_events(manifest, configurations, tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys() and sum(after[name] != before[name] for name in before) == 3
    monkeypatch.undo()
    write_events(manifest, configurations, tmp_path)
    whole_now = contents(tmp_path)
    assert all(after[name] in (before[name], whole_now[name]) for name in before), "a file is the old one or the new one"


def test_only_our_own_runs_of_undeclared_configurations_are_removed(tmp_path: Path, of_two_seeds: Any) -> None:
    manifest, configurations = of_two_seeds(tmp_path)
    root = tmp_path / "tensorboard"
    (root / "mine").mkdir()
    (root / "mine" / "events.out.tfevents.1.mine").write_bytes(b"")
    (root / "tanh@wave" / "notes.txt").write_text("kept")
    (root / "stuck@wave" / ".half-written-1").write_text("left behind by a killed process")
    (root / "readme").write_text("")
    gone = ("tanh", "stuck", "shallow")
    kept = tuple(e for e in manifest.declaration.configurations if e.arm not in gone)
    lost = next(iter(configurations))  # declared, but its runs are no longer stored
    before = contents(tmp_path)
    fewer = {e.config_id: configurations[e.config_id] for e in kept if e.config_id != lost}
    write_events(with_entries(manifest, kept), fewer, tmp_path)
    after = contents(tmp_path)
    removed = {f"tensorboard/{arm}@{target}" for arm in gone for target in ("wave", "coin_flip")} - {"tensorboard/tanh@wave"}
    assert {str(Path(name).parent) for name in before.keys() - after.keys()} == removed
    assert {name: before[name] for name in after} == after


def test_a_relabelled_arm_is_shown_once(tmp_path: Path, of_two_seeds: Any) -> None:
    manifest, configurations = of_two_seeds(tmp_path)
    renamed = [replace(e, arm=e.arm.replace("baseline", "start")) for e in manifest.declaration.configurations]
    write_events(with_entries(manifest, renamed), configurations, tmp_path)
    runs = {p.name for p in (tmp_path / "tensorboard").iterdir()}
    assert "start@wave" in runs and "baseline@wave" not in runs
    assert len(runs) == len(configurations)


def test_names_are_the_arm_and_the_target() -> None:
    names = set(run_names(parse_manifest(planted_manifest(planted_study()))).values())
    assert {"baseline@wave", "baseline@coin_flip", "selu,rate=0.01@wave"} <= names
    assert "he_normal~relu,rate=0.001@wave" in names  # two labels of one configuration
    planted = parse_manifest(planted_manifest(planted_study()))
    entries = [e for e in planted.declaration.configurations if e.target == "wave"]
    assert "baseline" in run_names(with_entries(planted, entries, targets=())).values()


@functools.cache
def planted() -> StudyManifest:
    return parse_manifest(planted_manifest(planted_study()))


def named(labels: list[str], target: str = "wave") -> list[str]:
    entries = [DeclaredConfiguration("main", label, f"{i:012x}", {"target": target}, 1) for i, label in enumerate(labels)]
    return list(run_names(with_entries(planted(), entries, targets=(Target(target),))).values())


def test_names_that_would_coincide_end_in_their_id() -> None:
    assert named(["ReLU", "relu", "tanh"]) == ["ReLU@wave@000000000000", "relu@wave@000000000001", "tanh@wave"]
    assert named(["a/b", "a b", "a_b"]) == [f"a_b@wave@{i:012x}" for i in range(3)]
    assert named(["x" * 300 + "1", "x" * 300 + "2"]) == ["x" * 120 + f"@{i:012x}" for i in range(2)]


@given(st.lists(st.text(max_size=150), min_size=1, max_size=6, unique=True), st.text(max_size=150))
def test_any_label_gives_a_distinct_folder(labels: list[str], target: str) -> None:
    names = named(labels, target)
    assert len({name.casefold() for name in names}) == len(labels)
    for name in names:
        assert 0 < len(os.fsencode(name)) <= 255
        assert not name.startswith(".") and not name.endswith(".")
        assert not set(name) & set('/\\:*?"<>|\0\n\t ')


@pytest.mark.slow
def test_150_000_scalars_take_about_a_second(tmp_path: Path) -> None:
    manifest = read_declared(planted_folder(tmp_path, seeds=2, epochs=tuple(range(100))))
    configurations = collect(tmp_path, manifest)
    for configuration in configurations.values():
        values = next(iter(configuration.values.values()))
        configuration.values = {f"metric_{i}/all": values for i in range(25)}
    start = time.process_time()
    write_events(manifest, configurations, tmp_path)
    assert time.process_time() - start < 1.5


def with_entries(manifest: StudyManifest, entries: Iterable[DeclaredConfiguration], **changes: Any) -> StudyManifest:
    """Return a manifest with other configurations."""
    return replace(manifest, declaration=replace(manifest.declaration, configurations=tuple(entries), **changes))
