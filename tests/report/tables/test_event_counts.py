"""Event counts against loops over single runs and an independent interval, also from a clone."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from known_results import planted_folder, planted_manifest, planted_study

from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tables.event_counts import check, counted
from relu_study.storage.declaration import Declaration, DeclaredConfiguration, parse_manifest
from relu_study.storage.frames import load
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.claims import Target
from relu_study.study.outputs import EventTable

TABLE = EventTable(
    name="ends",
    caption="How runs end",
    experiments=("initialisers", "shapes"),
    keys={"target": "target", "initializer": "initializer", "remedy": {"baseline": "none", "shallow": "one layer"}},
    events={"at first": ("collapsed@0",), "then": ("collapsed@2",), "ended": ("collapsed", "constant")},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("counts"))
    manifest = read_manifest(path)
    manifest["declaration"] |= {"tables": [asdict(TABLE)], "figures": [], "sections": []}
    write_manifest(path, manifest)
    report(path)
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / "ends.csv")


def slow_counts(folder: Path) -> list[list[object]]:
    """Run by run, from every stored value of every epoch."""
    declaration, curves = read_manifest(folder)["declaration"], load(folder).curves
    value = {(c, m, e, s): v for c, s, m, e, v in zip(*(curves[n] for n in ("config_id", "seed", "metric", "epoch", "value")))}
    found = []
    for target in ("wave", "coin_flip"):
        for entry in declaration["configurations"]:
            if entry["experiment"] in TABLE.experiments and entry["spec"]["target"] == target:
                seeds = [s for c, m, e, s in value if (c, m, e) == (entry["config_id"], "val_loss", 0)]

                def hits(at: list[tuple[str, float]], config: str = entry["config_id"], seeds: list[int] = seeds) -> int:
                    return sum(any(value.get((config, m, e, s)) == 1 for m, e in at) for s in seeds)

                ends = [("collapsed", 5.0), ("constant", 5.0)]
                label = {"baseline": "none", "shallow": "one layer"}.get(entry["arm"], entry["arm"])
                counts = [hits([("collapsed", 0.0)]), hits([("collapsed", 2.0)]), hits(ends)]
                found.append([target, entry["spec"]["initializer"], label, len(set(seeds)), *counts])
    return found


def test_the_columns_are_the_keys_n_the_events_and_the_interval(made: pd.DataFrame) -> None:
    assert list(made) == ["target", "initializer", "remedy", "n", "at first", "then", "ended", "ci_lo", "ci_hi"]


def test_counts_match_single_runs(folder: Path, made: pd.DataFrame) -> None:
    assert made.iloc[:, :7].to_numpy().tolist() == slow_counts(folder)
    stuck = made[made["remedy"] == "stuck"]  # loses its second site from the third epoch on, on odd seeds
    assert stuck[["n", "at first", "then", "ended"]].to_numpy().tolist() == [[8, 0, 4, 4]] * 2


def test_nonfinite_run_is_counted_in_n_and_noted(folder: Path, made: pd.DataFrame) -> None:
    row = made[(made["remedy"] == "he_normal") & (made["target"] == "wave")].iloc[0]
    assert (row["n"], row["ended"]) == (8, 0)  # its planted flags say collapsed, but its numbers are no measurement
    assert "1 of the runs went nonfinite" in (folder / "tables" / "ends.md").read_text()


def test_the_interval_is_wilsons_of_the_last_event(made: pd.DataFrame) -> None:
    for row in made.itertuples():
        known = scipy.stats.binomtest(row.ended, row.n).proportion_ci(0.95, "wilson")
        assert (row.ci_lo, row.ci_hi) == pytest.approx((known.low, known.high), abs=1e-9)


def test_clone_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    clone = Path(shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard", "tables")))
    report(clone)
    for suffix in ("csv", "md", "tex"):
        assert (clone / "tables" / f"ends.{suffix}").read_bytes() == (folder / "tables" / f"ends.{suffix}").read_bytes()


def test_the_page_shows_share_and_interval(folder: Path) -> None:
    lines = (folder / "tables" / "ends.md").read_text().splitlines()
    assert "| target | initializer | remedy | n | at first | then | ended | share |" in lines
    assert any(line.startswith("| wave | normal_005 | stuck | 8 | 0 | 4 | 4 | 0.5 [0.215, 0.785] |") for line in lines)


def frames_by_hand(n: int) -> tuple[Declaration, pd.DataFrame, pd.DataFrame]:
    """One configuration of n runs; seed 0 is not stored, and of the others every third has collapsed before training."""
    entry = DeclaredConfiguration("main", "relu", "aa", {"target": "t"}, n)
    declaration = parse_manifest(planted_manifest(planted_study())).declaration
    ones = np.array([float(seed % 3 == 0) for seed in range(1, n)])
    runs = pd.DataFrame({"config_id": "aa", "seed": range(n), "status": ["interrupted"] + ["ok"] * (n - 1)})
    runs["collapsed/all"] = np.float32([np.nan, *ones])
    summary = pd.DataFrame({"config_id": ["aa"], "metric": "collapsed", "epoch": 0.0, "n_finite": n - 1})
    summary["mean"] = float(f"{ones.mean():.9g}")  # as summary.csv has it
    return replace(declaration, configurations=(entry,), targets=(Target("t"),)), runs, summary


@pytest.mark.parametrize("n", [2, 3, 8, 1_001, 65_536])
def test_a_mean_of_nine_digits_is_a_count(n: int) -> None:
    keys = {"who": "arm", "here": {"relu@t": "there", "relu": "elsewhere"}}
    events = {"born": ("collapsed@0",), "unseen": ("collapsed@7",), "ended": ("collapsed",)}
    table = replace(TABLE, experiments=("main",), keys=keys, events=events)
    made = pd.read_csv(io.StringIO(counted(table, *frames_by_hand(n))["csv"]))
    expected = (n - 1) // 3
    assert made[["who", "here", "n", "born", "ended"]].to_numpy().tolist() == [["relu", "there", n - 1, expected, expected]]
    assert made["unseen"].isna().all()  # not measured is not none


def test_without_stored_runs_there_is_no_share() -> None:
    declaration, runs, summary = frames_by_hand(4)
    events = {"born": ("collapsed@0",), "ended": ("collapsed",)}
    table = replace(TABLE, experiments=("main",), events=events, keys={"who": "arm"})
    texts = counted(table, declaration, runs[:1], summary[:0])
    assert texts["csv"].splitlines()[1] == "relu,0,,0,," and "| relu | 0 | - | 0 | - |" in texts["md"]
    assert counted(replace(TABLE, experiments=("other",)), declaration, runs, summary) == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("colapsed",), r"unknown metric \(0 or 1 a run\) in event ended of table ends 'colapsed'. Did you mean collapsed"),
        (("dead_fraction",), "unknown metric .* 'dead_fraction'"),
        (("trained",), "unknown metric .* 'trained'"),  # it is 0 or 1, but not a metric of this study
        (
            (
                "collapsed@0",
                "constant@0",
            ),
            "has several metrics, and their runs are known at the last epoch only. Leave out @0",
        ),
        (("collapsed@soon",), "has the epoch 'soon'. Use 'last' or a number"),
    ],
)
def test_uncountable_events_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(replace(TABLE, events={"ended": names}), ["collapsed", "constant", "dead_fraction"])
    check(replace(TABLE, events={"ended": ("collapsed/all", "constant@last")}), ["collapsed", "constant"])
