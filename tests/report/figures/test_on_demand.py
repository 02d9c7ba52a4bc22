"""`relu-study figure` and `relu_study.figure`: written files and one-line errors, with and without raw/."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from command_line import command
from known_results import planted_folder
from rendered import labels, said
from tiers import tiered

import relu_study
from relu_study.errors import UserError
from relu_study.report.figures import canvas, on_demand
from relu_study.report.figures.on_demand import figure
from relu_study.report.report import report
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.outputs import Figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("command") / "planted", epochs=(0, 1, 2, 3, 5))  # 3 is no report epoch
    report(path)
    return path


@pytest.fixture(scope="module")
def clone(folder: Path) -> Path:
    return shutil.copytree(folder, folder.parent / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard"))


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, for tests that look at none."""
    monkeypatch.setattr(canvas, "DPI", 40)


@pytest.fixture
def seen(coarse: None, monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The pictures that are rendered while a test runs, as they are drawn."""
    made: list[matplotlib.figure.Figure] = []
    render = canvas.render

    def caught(draw: Any, formats: Any) -> dict[str, bytes]:
        return render(lambda: (made.append(draw()), made[-1])[1], formats)

    monkeypatch.setattr(on_demand.canvas, "render", caught)
    return made


KINDS: dict[str, dict[str, Any]] = {
    "curves": {"metrics": "val_loss", "experiments": "initialisers"},
    "survival": {"experiments": "shapes"},
    "forest": {},
    "depth": {"arms": ("baseline", "tanh")},
    "histograms": {"arms": "baseline"},
    "map": {"metrics": "val_loss", "experiments": "tuned", "rows": "activation", "cols": "learning_rate"},
}


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("kind", tiered(KINDS, "map"))
def test_every_kind_is_written_in_the_formats_of_its_names(kind: str, folder: Path, tmp_path: Path) -> None:
    names = [tmp_path / "new" / f"{kind}.{suffix}" for suffix in ("pdf", "png", "svg")]
    assert relu_study.figure(folder, kind, **KINDS[kind], out=names) == names
    assert [path.read_bytes()[:5] for path in names] == [b"%PDF-", b"\x89PNG\r", b"<?xml"]
    first = {path: path.read_bytes() for path in names}
    figure(folder, kind, **KINDS[kind], out=names)
    assert {path: path.read_bytes() for path in names} == first


def test_declared_figure_equals_the_reported_one(folder: Path, tmp_path: Path) -> None:
    for name in ("initialisers", "survival", "claims"):
        (path,) = figure(folder, name=name, out=tmp_path / f"{name}.svg")
        assert path.read_bytes() == (folder / "figures" / f"{name}.svg").read_bytes()


def test_the_command_writes_to_the_current_folder_and_never_imports_jax(folder: Path, tmp_path: Path) -> None:
    words = ["--kind", "map", "--metrics", "val_loss", "dead_fraction/*", "--rows", "activation", "--cols", "learning_rate"]
    done = command(
        "figure", str(folder), *words, "--experiments", "tuned", "--epoch", "1", "--where", "target=wave", cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout == "map.png\n", done.stderr
    assert done.stderr.splitlines()[-1] == "False" and [path.name for path in tmp_path.iterdir()] == ["map.png"]
    other = figure(
        folder,
        "map",
        metrics=("val_loss", "dead_fraction/*"),
        rows="activation",
        cols="learning_rate",
        experiments="tuned",
        epoch=1,
        where="target=wave",
        out=tmp_path / "other.png",
    )
    assert other[0].read_bytes() == (tmp_path / "map.png").read_bytes()


# --------------------------------------------------------------------------------- conditions


def test_conditions_choose_configurations_and_runs(folder: Path, seen: list[Any], tmp_path: Path) -> None:
    where = ("target=wave", "seed<4")
    figure(folder, "curves", metrics="val_loss", arms=("he_normal", "baseline"), where=where, out=tmp_path / "a.png")
    (picture,) = seen
    assert [ax.get_title() for ax in picture.axes] == ["target: wave"]
    assert labels(picture) == ["he_normal (n=3/4)", "baseline"]
    assert said(picture).splitlines() == ["mean and 95 % interval over 4 runs", "where target=wave, seed<4"]
    runs = relu_study.load(folder).curves
    chosen = runs[(runs["metric"] == "val_loss") & (runs["seed"] < 4) & (runs["epoch"] == 3)]
    entry = next(e for e in read_manifest(folder)["declaration"]["configurations"] if e["arm"] == "baseline")
    mean = chosen[chosen["config_id"] == entry["config_id"]]["value"].astype(float).mean()
    assert picture.axes[0].lines[1].get_ydata()[3] == pytest.approx(mean, rel=1e-8)


def test_histograms_are_pooled_over_selected_runs_only(folder: Path, seen: list[Any], tmp_path: Path) -> None:
    figure(folder, "histograms", arms="baseline", where="seed=0,1,2", metrics="post/site_1", out=tmp_path / "a.png")
    assert seen[0].axes[-1].get_xlabel().startswith("share of the values of an epoch, pooled over 3 runs")


def test_conditions_on_metrics_use_the_last_epoch(folder: Path, seen: list[Any], tmp_path: Path) -> None:
    # `stuck` loses all of site_2 on the odd four of its eight seeds
    figure(folder, "survival", arms="stuck", where="dead_fraction/site_2=1", out=tmp_path / "a.png")
    assert said(seen[0]).startswith("share and its 95 % band over 4 runs")
    assert seen[0].axes[2].lines[0].get_ydata()[-1] == 0


def test_a_forest_takes_claims_and_a_target(folder: Path, seen: list[Any], tmp_path: Path) -> None:
    figure(folder, "forest", claims="P1", where="target=coin_flip", out=tmp_path / "a.png")
    figure(folder, "forest", out=tmp_path / "a.png")
    assert [[ax.get_title() for ax in picture.axes] for picture in seen] == [
        ["target: coin_flip"],
        ["target: wave", "target: coin_flip", "", "", "", ""],
    ]


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {},
            "no figure is named. Give a kind (curves, survival, forest, depth, histograms, map), or the name of a declared one (",
        ),
        ({"kind": "heatmap"}, "unknown kind of figure 'heatmap'. Did you mean map"),
        ({"name": "survivals"}, "unknown figure of this study 'survivals'. Did you mean survival"),
        ({"name": "survival", "arms": "tanh"}, "the figure survival is drawn as declared. Leave out arms"),
        ({"kind": "curves"}, "names no metrics"),
        ({"kind": "curves", "metrics": "val_los"}, "unknown metric of figure curves 'val_los'. Did you mean val_loss"),
        ({"kind": "curves", "metrics": "val_loss", "arms": "basline"}, "unknown arm 'basline'. Did you mean baseline"),
        ({"kind": "curves", "metrics": "val_loss", "experiments": "shape"}, "unknown experiment 'shape'. Did you mean shapes"),
        ({"kind": "curves", "metrics": "val_loss", "where": "activaton=relu"}, "'activaton'. Did you mean activation"),
        ({"kind": "curves", "metrics": "val_loss", "out": "a.jpg"}, "a.jpg has an unknown format"),
        ({"kind": "curves", "metrics": "val_loss", "out": "picture"}, "picture has an unknown format"),
        ({"kind": "map", "metrics": "val_loss", "rows": "activation"}, "figure map needs a factor as cols"),
        ({"kind": "map", "metrics": "val_loss", "rows": "seed", "cols": "depth"}, "unknown factor as rows of figure map 'seed'"),
        ({"kind": "map", "metrics": "val_loss", "rows": "depth", "cols": "width", "experiments": "tuned"}, "equally common"),
        ({"kind": "depth", "epoch": "lats"}, "has the epoch 'lats'. Use 'last' or a number of at least 0"),
        ({"kind": "depth", "epoch": 4}, "no value of grad_norm at epoch 4, only at 0, 1, 2, 3, 5"),
        ({"kind": "forest", "claims": "P9"}, "unknown name among the claims of 'forest' 'P9'"),
        ({"kind": "forest", "arms": "tanh"}, "a forest shows claims and takes no arms. Use claims (P1, P2, P3)"),
        ({"kind": "forest", "where": "seed<2"}, "a forest shows verdicts on all runs, so seed cannot restrict it. Use target"),
        (
            {"kind": "curves", "metrics": "val_loss", "arms": "tanh", "where": "activation=relu"},
            "no configuration is left to draw (requested: arms tanh; where activation=relu). Leave a condition out",
        ),
        (
            {"kind": "curves", "metrics": "val_loss", "where": ("val_loss<-1", "arm=tanh")},
            "no run is left to draw (requested: where val_loss<-1, arm=tanh). Leave a condition out",
        ),
        (
            {"kind": "curves", "metrics": "saturated_fraction", "arms": "baseline"},
            "there is nothing to draw: no value of saturated_fraction in 2 configurations (requested: arms baseline). Choose",
        ),
    ],
)
def test_invalid_figure_request_writes_nothing(
    words: dict[str, Any], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        figure(folder, **words)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("coarse")
def test_unwritable_path_is_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, message in (("file/a.png", "cannot write"), ("dir.png", "is a folder. Name a file")):
        (tmp_path / "dir.png").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            figure(folder, "depth", arms="baseline", out=tmp_path / place)


def test_bad_folders_are_one_line_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a results folder: it has no manifest"):
        figure(tmp_path, "depth")
    manifest = read_manifest(folder)
    write_manifest(tmp_path, {**manifest, "format": 99})
    with pytest.raises(UserError, match="has format 99, and this relu-study reads formats"):
        figure(tmp_path, "depth")
    write_manifest(tmp_path, {**manifest, "declaration": {"title": "t"}})
    for refused in (lambda: figure(tmp_path, "depth"), lambda: report(tmp_path)):
        with pytest.raises(UserError, match=r"missing required field `\w+` at `\$`\): it is corrupt or of another"):
            refused()
    write_manifest(tmp_path, manifest)  # half-written: nothing is trained yet
    with pytest.raises(UserError, match=r"runs.csv is missing. Rebuild it with 'relu-study report"):
        figure(tmp_path, "depth")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "tile-0.npz").write_bytes(b"PK half")
    with pytest.raises(UserError, match=r"tile-0.npz is not a readable tile"):
        figure(tmp_path, "depth")


@pytest.mark.usefixtures("coarse")
def test_runs_of_other_configurations_are_not_drawn(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    for entry in manifest["declaration"]["configurations"]:
        entry["spec"]["width"] += 1
        entry["config_id"] = relu_study.RunSpec(**entry["spec"]).config_id
    write_manifest(other, manifest)
    with pytest.raises(UserError, match="none of the requested runs is stored yet"):
        figure(other, "depth", out=tmp_path / "a.png")


# ---------------------------------------------------------------------------------- from a clone


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("depth", {"where": "seed<4"}),
        ("map", {"epoch": 2}),
        *tiered([("survival", {}), ("forest", {}), ("depth", {}), ("map", {}), ("map", {"where": "val_loss>0"})]),
    ],
)
def test_a_clone_draws_the_same(kind: str, words: dict[str, Any], folder: Path, clone: Path, tmp_path: Path) -> None:
    made = [figure(place, kind, **KINDS[kind], **words, out=tmp_path / f"{place.name}.png")[0] for place in (folder, clone)]
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize(
    ("kind", "words", "needs"),
    [
        ("curves", {}, "raw (summary.csv has the report epochs only)"),
        ("histograms", {}, "raw (no CSV file holds histograms)"),
        ("depth", {"epoch": (0, "last")}, "raw (runs.csv has the last epoch only)"),
        ("map", {"epoch": 3}, "raw (summary.csv has no epoch 3)"),
        ("curves", {"where": "seed<4"}, "raw for curves, which is missing"),
        ("survival", {"where": "seed<4"}, "raw for survival, which is missing"),
        ("map", {"epoch": 2, "where": "seed<4"}, "raw for map, which is missing"),
    ],
)
def test_clone_names_missing_inputs(kind: str, words: dict[str, Any], needs: str, clone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(needs)):
        figure(clone, kind, **KINDS[kind], **words, out=tmp_path / "a.png")


def test_a_missing_csv_is_named(clone: Path, tmp_path: Path) -> None:
    less = shutil.copytree(clone, tmp_path / "less")
    (less / "verdicts.csv").unlink()
    with pytest.raises(UserError, match=r"verdicts.csv is missing. Rebuild it with 'relu-study report"):
        figure(less, "forest")


@pytest.mark.usefixtures("coarse")
def test_report_draws_all_kinds_and_a_clone_those_with_input(tmp_path: Path) -> None:
    shown = (
        Figure("depth", "d", "depth", arms=("baseline", "tanh"), metrics=("grad_norm",)),
        Figure("histograms", "h", "histograms", arms=("baseline",), metrics=("post/site_1",)),
        Figure("map", "m", "map", ("tuned",), metrics=("val_loss",), rows="activation", cols="learning_rate"),
    )
    own = planted_folder(tmp_path / "own", seeds=2, figures=shown)
    report(own)
    names = sorted(path.name for path in (own / "figures").iterdir())
    assert names == sorted(f"{kind}.{suffix}" for kind in ("depth", "histograms", "map") for suffix in ("png", "svg"))
    less = shutil.copytree(own, tmp_path / "less", ignore=shutil.ignore_patterns("raw", "tensorboard", "depth.*", "map.*"))
    said = report(less)
    assert [line.rpartition("figures/")[2] for line in said[1:]] == [
        f"histograms stays unchanged: it needs {less / 'raw'} (no CSV file holds histograms)."
    ]
    assert {p.name: p.read_bytes() for p in (less / "figures").iterdir()} == {
        p.name: p.read_bytes() for p in (own / "figures").iterdir()
    }
