"""Options from the arms of a study to every file of its results folder, without training."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from known_results import planted_metrics
from minimal_folders import RELU, trained
from tensorboard.plugins.hparams import metadata as hparams_metadata

from relu_study import compare, figure, load, table
from relu_study.errors import UserError
from relu_study.report import conditions
from relu_study.report.report import check, report
from relu_study.report.tensorboard.plugins import session
from relu_study.runner import prepare_runs
from relu_study.storage.configurations import Configuration
from relu_study.storage.csv_files import option_dtypes, read_runs, read_summary
from relu_study.storage.declaration import parse_declaration, read_declared
from relu_study.storage.schema import COLUMNS
from relu_study.study.claims import Target
from relu_study.study.outputs import EventTable, Figure, Table
from relu_study.study.run_spec import FIELDS
from relu_study.study.study import Experiment, Study, grid

DEFAULTS = {"channels": 16, "stem": "slim", "residual": False, "ratio": 0.5}  # as the network skip would declare them
SKIP = RELU.replace(network="skip", ratio=0.1 + 0.2)
ARMS = {
    **grid(SKIP, channels=[8, 16, 32], stem=["slim", "wide"]),
    "residual": SKIP.replace(residual=True, ratio=1),
    "mlp": RELU,
}
OPTIONS = ("channels", "ratio", "residual", "stem")
EVERY = Experiment("main", ARMS)
STUDY = Study(
    name="own",
    title="Own",
    text="Options are factors.",
    seeds=4,
    targets=(Target("wave", 1.0, 0.0),),
    experiments=(EVERY,),
    tables=(
        Table("tuned", "Best channels.", ("main",), ("val_loss",), tune="channels"),
        EventTable("counts", "Events.", ("main",), {"own": "channels", "arm": "arm"}, {"collapsed": ("collapsed",)}),
    ),
    figures=(Figure("map", "By options.", "map", ("main",), metrics=("val_loss",), rows="channels", cols="stem"),),
)


def declared(study: Study = STUDY) -> dict[str, Any]:
    """Return the declaration, as if the network skip had the options DEFAULTS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_runs, "values", lambda spec: DEFAULTS if spec.network == "skip" else {})
        return prepare_runs.build_declaration(study, lambda spec: ["site_1"], planted_metrics())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield trained(tmp_path_factory.mktemp("own"), STUDY, declared())


def test_manifest_shows_the_values_of_every_option() -> None:
    plain = declared()
    assert plain["options"] == [*OPTIONS] and plain["factors"] == ["network", *OPTIONS]
    of = {entry["arm"]: entry for entry in plain["configurations"]}
    assert of["channels=8, stem=wide"]["spec"].items() >= {"channels": 8, "stem": "wide", "residual": False}.items()
    assert of["channels=8, stem=wide"]["unset"] == ["initializer", "residual"]
    assert of["residual"]["spec"].items() >= {**DEFAULTS, "residual": True, "ratio": 1}.items()
    assert not {*OPTIONS} & {*of["mlp"]["spec"]} and "unset" not in of["mlp"]
    declaration = parse_declaration(plain)
    check(declaration)
    for entry in declaration.configurations:
        spec = ARMS[entry.arm].replace(target="wave")
        assert entry.run_spec.options == spec.options and entry.run_spec.config_id == entry.config_id == spec.config_id
        assert declaration.run_ids(entry.config_id) == [spec.replace(seed=seed).run_id for seed in range(4)]


def test_study_without_options_has_no_new_keys() -> None:
    plain = declared(Study("plain", "Plain", "", [Experiment("main", {"mlp": RELU})]))
    assert "options" not in plain and "unset" not in plain["configurations"][0]
    assert list(plain["configurations"][0]["spec"]) == [name for name in FIELDS if name != "seed"]


def test_csv_files_have_a_column_for_each_option(folder: Path) -> None:
    runs, summary = (pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False) for name in ("runs", "summary"))
    for name, frame, after in (("runs", runs, "seed"), ("summary", summary, "bias_shift")):
        fixed = [*COLUMNS[name]]
        last = fixed.index(after) + 1
        assert list(frame)[: len(fixed) + 4] == [*fixed[:last], *OPTIONS, *fixed[last:]]
    shown = runs.drop_duplicates("config_id")[[*OPTIONS]].to_numpy().tolist()
    grid_rows = [[c, repr(0.1 + 0.2), "False", s] for c in ("8", "16", "32") for s in ("slim", "wide")]
    assert shown == [*grid_rows, ["16", "1", "True", "slim"], ["", "", "", ""]]
    assert set(summary.loc[summary["config_id"] == runs["config_id"].iloc[-1], "channels"]) == {""}


def test_frames_round_trip(folder: Path) -> None:
    manifest = read_declared(folder)
    assert option_dtypes(manifest.declaration) == dict(zip(OPTIONS, ("Int64", "float64", "boolean", "str"), strict=True))
    for frame in (read_runs(folder, manifest), read_summary(folder, manifest), load(folder).runs):
        assert [str(frame[name].dtype) for name in OPTIONS] == ["Int64", "float64", "boolean", "str"]
        of_mlp = frame[frame["network"] == "mlp"]
        assert of_mlp[["channels", "ratio", "residual"]].isna().all(axis=None) and (of_mlp["stem"] == "").all()
    for _, row in load(folder).runs.iterrows():
        spec = next(e for e in manifest.declaration.configurations if e.config_id == row["config_id"]).run_spec
        assert all(row[name] == value for name, value in spec.options)


def test_report_gives_the_same_bytes_with_and_without_tiles(folder: Path, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        kinds = ("*.csv", "tables/*", "figures/*", "report.md")
        return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.glob(kind)}

    before = content()
    assert {"figures/map.svg", "tables/tuned.csv", "tables/counts.csv"} <= set(before)
    report(folder)
    assert content() == before
    (folder / "raw").rename(tmp_path / "raw")
    try:
        report(folder)
        assert content() == before
    finally:
        (tmp_path / "raw").rename(folder / "raw")


def test_tables_by_an_option(folder: Path) -> None:
    rows = [line.split("|")[1:-1] for line in table(folder, "channels", "stem", where="network=skip").splitlines() if "|" in line]
    assert [row[0].strip() for row in rows[2:]] == ["8", "16", "32"] and "slim" in rows[0][1] and "wide" in rows[0][2]
    text = table(folder, ("network", "channels"), format="csv", where="stem!=wide")
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert frame[["network", "channels"]].to_numpy().tolist() == [["skip", "8"], ["skip", "16"], ["skip", "32"], ["mlp", ""]]
    assert "| mlp | - |" in table(folder, ("network", "channels"), where="stem!=wide")
    text = table(folder, ("residual", "ratio"), format="csv", where=["channels=16", "stem=slim"])
    assert [line.split(",")[:2] for line in text.splitlines()[1:]] == [
        ["False", repr(0.1 + 0.2)],
        ["True", "1"],
    ]
    assert "| mlp | - |" in (folder / "tables" / "tuned.md").read_text()
    tuned = pd.read_csv(folder / "tables" / "tuned.csv")
    assert tuned["channels"].dropna().tolist() == [8, 8, 16] and tuned["channels"].isna().sum() == 1
    counts = pd.read_csv(folder / "tables" / "counts.csv")
    assert counts["own"].tolist()[:3] == [8, 8, 16] and np.isnan(counts["own"].tolist()[-1])
    effects = compare(folder, "channels", where=["stem=slim", "residual=False"])
    assert len(effects) == 3


@pytest.mark.parametrize(
    ("where", "arms"),
    [
        ("channels=8", ["channels=8, stem=slim", "channels=8, stem=wide"]),
        ("channels=8,32", [arm for arm in ARMS if arm.startswith(("channels=8,", "channels=32"))]),
        ("channels>=16", [arm for arm in ARMS if arm.startswith(("channels=16", "channels=32", "residual"))]),
        ("channels!=16", [arm for arm in ARMS if arm.startswith(("channels=8,", "channels=32", "mlp"))]),
        ("residual=True", ["residual"]),
        ("residual!=True", [arm for arm in ARMS if arm != "residual"]),
        ("stem=wide", [arm for arm in ARMS if arm.endswith("wide")]),
        ("ratio=1", ["residual"]),
        ("ratio<0.5", [arm for arm in ARMS if arm.startswith("channels")]),
    ],
)
def test_conditions_on_options(folder: Path, where: str, arms: list[str]) -> None:
    declaration = read_declared(folder).declaration
    parsed = conditions.parse([where], declaration)
    assert [entry.arm for entry in conditions.configurations(parsed, declaration)] == arms


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: table(f, "chanels"), "unknown factor among the rows 'chanels'. Did you mean channels"),
        (lambda f: table(f, "arm", where="chanels=8"), "unknown factor or metric 'chanels'. Did you mean channels"),
        (lambda f: table(f, "arm", where="channels=9"), "unknown value of channels '9'"),
        (lambda f: table(f, "arm", where="stem=wild"), "unknown value of stem 'wild'. Did you mean wide"),
        (lambda f: table(f, "arm", where="residual=Tru"), "unknown value of residual 'Tru'. Did you mean True"),
        (lambda f: table(f, "arm", where="stem>wide"), "orders stem, whose values are names"),
        (lambda f: table(f, "stem", where="residual=False"), "channels varies too, and 8, 16, 32 are equally common"),
        (
            lambda f: figure(f, "map", metrics="val_loss", rows="chanels", cols="stem"),
            "unknown factor as rows of figure map 'chanels'. Did you mean channels",
        ),
    ],
)
def test_unknown_options_name_the_nearest(folder: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(folder)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (replace(STUDY.tables[0], tune="chanels"), "unknown tuned field of table tuned 'chanels'. Did you mean channels"),
        (
            replace(STUDY.tables[1], keys={"own": "chanels"}),
            "unknown factor among the keys of table counts 'chanels'. Did you mean",
        ),
        (replace(STUDY.figures[0], cols="stemm"), "unknown factor as cols of figure map 'stemm'. Did you mean stem"),
    ],
)
def test_study_refuses_unknown_options_of_outputs(output: Any, message: str) -> None:
    changed = {"figures": (output,)} if isinstance(output, Figure) else {"tables": (output,)}
    with pytest.raises(UserError, match=message):
        replace(STUDY, **changed)
    plain = declared()
    (name,) = changed
    plain[name] = [json.loads(json.dumps(asdict(output)))]
    with pytest.raises(UserError, match=message):
        check(parse_declaration(plain))


def test_preset_without_the_option_is_valid() -> None:
    few = Experiment("few", {"mlp": RELU})
    study = replace(STUDY, experiments=(EVERY, few), presets={"quick": {"skip": ("main",)}}).with_preset("quick")
    check(parse_declaration(declared(study)))


def test_figures_by_an_option(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.svg"
    figure(folder, "map", metrics="val_loss", rows="network", cols="channels", where="stem!=wide", out=out)
    assert out.stat().st_size > 1000
    shown = (folder / "figures" / "map.svg").read_text()
    assert "channels" in shown and "stem" in shown


def test_hparams_have_the_options_of_their_configuration() -> None:
    declaration = parse_declaration(declared())
    found = {}
    for entry in declaration.configurations:
        one = Configuration(entry.config_id, entry.spec, 1, ["a"], np.zeros(1), np.zeros(1), np.array(["ok"]), np.zeros(1), 8)
        start, _ = session(one, declaration.factors, entry.arm)
        content = start.metadata.plugin_data.content
        hparams = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
        found[entry.arm] = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
    assert found["mlp"] == {"network": "mlp"}
    assert found["residual"] == {"network": "skip", "channels": 16, "ratio": 1, "residual": True, "stem": "slim"}
    assert found["channels=8, stem=wide"]["residual"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("options"), "unknown field `channels` at `$.configurations[0].spec`"),
        (lambda d: d["options"].append("alpha"), "`$.options` differs from the options of the configurations"),
        (lambda d: d["options"].reverse(), "`$.options` differs from the options of the configurations"),
        (lambda d: d["configurations"][0]["spec"].update(channels=9), "the spec at `$.configurations[0]` has another id"),
        (lambda d: d["configurations"][0]["spec"].update(channels=None), "option channels must be a text, a number"),
        (lambda d: d["configurations"][0].update(unset=[]), "the spec at `$.configurations[0]` has another id"),
        (lambda d: d["configurations"][0]["spec"].update(residual=[]), "option residual must be a text, a number"),
    ],
)
def test_damaged_options_are_refused(change: Callable[[Any], object], message: str) -> None:
    plain = declared()
    change(plain)
    with pytest.raises(UserError, match=re.escape(message)):
        parse_declaration(plain)


def test_option_with_the_name_of_a_metric_is_refused() -> None:
    study = Study("s", "S", "", [Experiment("main", {"a": RELU.replace(val_loss=1)})])
    with pytest.raises(UserError, match="val_loss is a metric, so no option can have its name"):
        declared(study)


def test_truth_value_and_number_are_not_mixed() -> None:
    arms = {"a": SKIP.replace(residual=True), "b": SKIP.replace(residual=1)}
    with pytest.raises(UserError, match="option residual is 1 in arm 'b' and a truth value in another"):
        Study("s", "S", "", [Experiment("main", arms)])


def test_mixed_texts_and_numbers_are_texts() -> None:
    arms = {"a": SKIP.replace(stem=3), "b": SKIP.replace(stem="wide"), "c": SKIP.replace(stem=0.5)}
    plain = declared(Study("s", "S", "", [Experiment("main", arms)]))
    assert option_dtypes(parse_declaration(plain))["stem"] == "str"


def test_unset_initializer_is_shown_and_keeps_its_id() -> None:
    arms = {"mlp": RELU, "cnn": RELU.replace(network="cnn"), "he": RELU.replace(initializer="he_normal")}
    plain = declared(Study("s", "S", "", [Experiment("main", arms)]))
    of = {entry["arm"]: entry for entry in plain["configurations"]}
    assert [of[arm]["spec"]["initializer"] for arm in arms] == ["glorot_uniform", "he_normal", "he_normal"]
    assert "unset" not in of["mlp"] and "unset" not in of["he"] and of["cnn"]["unset"] == ["initializer"]
    for entry in parse_declaration(plain).configurations:
        assert entry.run_spec.config_id == arms[entry.arm].config_id == entry.config_id
    of["cnn"]["spec"]["initializer"] = "glorot_uniform"  # as earlier versions write it
    del of["cnn"]["unset"]
    assert parse_declaration(plain).configurations[1].run_spec == arms["cnn"]
