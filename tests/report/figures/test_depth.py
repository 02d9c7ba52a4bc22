"""Quantile fans over depth: quantiles over runs at each site, one panel per arm, target and epoch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from rendered import config_ids, labels, numbers, pictures, planted, said

from relu_study.errors import UserError
from relu_study.report.figures import depth, study_figures
from relu_study.report.figures.inputs import FigureData
from relu_study.storage import frames
from relu_study.study.outputs import Figure

ARMS = ("baseline", "he_normal", "shallow")
DEPTH = Figure("f", "", "depth", arms=ARMS, metrics=("grad_norm",), epoch=(0, "last"))
PANELS = [(target, epoch, arm) for target in ("wave", "coin_flip") for epoch in (0, -1) for arm in ARMS]


def panel_values(target: str, epoch: int, arm: str, metric: str = "grad_norm") -> np.ndarray:
    """Runs x sites of the planted folder, the finite ones."""
    c = planted()[1][config_ids()[arm, target]]
    values = np.stack([c.values[f"{metric}/{site}"][:, epoch] for site in c.sites], axis=1).astype(float)
    return values[np.isfinite(values).all(axis=1)]


def shades(ax: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By colour, the lower and the upper edge of each shade at its sites."""
    found = {}
    for shade in ax.collections:
        points = shade.get_paths()[0].vertices
        at = sorted(set(points[:, 0]))
        edges = [points[points[:, 0] == x, 1] for x in at]
        found[to_hex(shade.get_facecolor()[0])] = np.array([e.min() for e in edges]), np.array([e.max() for e in edges])
    return found


def test_the_quantiles_are_those_of_the_runs_in_every_panel() -> None:
    (picture,) = pictures(DEPTH)
    assert len(picture.axes) == len(PANELS)
    for ax, (target, epoch, arm) in zip(picture.axes, PANELS, strict=True):
        values = panel_values(target, epoch, arm)
        assert len(values) == (7 if (arm, target, epoch) == ("he_normal", "wave", -1) else 8)
        low, inner_low, middle, inner_high, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), 1 + np.arange(values.shape[1]))
        np.testing.assert_allclose(ax.lines[0].get_ydata(), middle, rtol=1e-8)
        outer, inner = (shades(ax)[colour.lower()] for colour in depth.SHADES)
        for (lower, upper), wanted in ((outer, (low, high)), (inner, (inner_low, inner_high))):
            np.testing.assert_allclose(lower, np.repeat(wanted[0], 2 if arm == "shallow" else 1), rtol=1e-8)
            np.testing.assert_allclose(upper, np.repeat(wanted[1], 2 if arm == "shallow" else 1), rtol=1e-8)


def test_titles_labels_and_legend_are_complete() -> None:
    (picture,) = pictures(DEPTH)
    assert [ax.get_title() for ax in picture.axes[:6]] == [*ARMS, "", "n=7/8", ""]
    ylabels = [re.sub(r"\s+", " ", ax.get_ylabel()) for ax in picture.axes]
    assert ylabels[::3] == [
        f"grad norm target: {target}, {epoch}" for target in ("wave", "coin_flip") for epoch in ("epoch 0", "last epoch")
    ]
    assert not any(ylabels[i] for i in range(12) if i % 3)
    assert [ax.get_xlabel() for ax in picture.axes] == [*[""] * 9, *["site"] * 3]
    assert labels(picture) == ["median", "25 % to 75 %", "5 % to 95 %"]
    assert said(picture) == "quantiles over 7 to 8 runs; site 1 is nearest the input"
    limits = [ax.get_ylim() for ax in picture.axes]
    assert len(set(limits[:6])) == len(set(limits[6:])) == 1 and limits[0] != limits[6]  # each target has a norm
    assert {ax.get_yscale() for ax in picture.axes} == {"log"}


def test_norms_are_logarithmic_and_fractions_never() -> None:
    (picture,) = pictures(replace(DEPTH, metrics=("dead_fraction", "grad_norm"), epoch="last", log=True))
    assert [ax.get_yscale() for ax in picture.axes[::3]] == ["linear", "linear", "log", "log"]
    assert picture.axes[0].get_ylabel().endswith("N = 512\nprobe examples")  # in one line it reaches the next panel


def test_unmeasured_epoch_leaves_labelled_panels_or_no_figure() -> None:
    (picture,) = pictures(replace(DEPTH, epoch=(3, 5)))
    assert [[t.get_text() for t in ax.texts] for ax in picture.axes[:6]] == [["no values"]] * 3 + [[]] * 3
    assert pictures(replace(DEPTH, epoch=3)) == []


def test_an_arm_whose_runs_are_all_nonfinite_is_counted_as_none() -> None:
    stored = planted()[1]
    config_id = config_ids()["baseline", "wave"]
    lost = replace(
        stored[config_id],
        status=np.full(8, "nonfinite"),
        values={name: np.full_like(values, np.nan) for name, values in stored[config_id].values.items()},
    )
    of = replace(numbers(), configurations={**stored, config_id: lost})
    (picture,) = pictures(replace(DEPTH, epoch="last"), of=of)
    assert picture.axes[0].get_title() == "baseline\nn=0/8"
    assert [t.get_text() for t in picture.axes[0].texts] == ["no values"]


@pytest.mark.slow
def test_the_last_epoch_is_the_same_from_runs_csv() -> None:
    manifest, stored, _ = planted()
    of = FigureData(
        numbers().summary, numbers().survival, (), frames.configurations_from_runs_csv(frames.runs_frame(stored, manifest))
    )
    last = replace(DEPTH, epoch="last", metrics=("grad_norm", "dead_fraction"))
    files = [study_figures.canvas.render(study_figures.build_figure(last, manifest.declaration, n)) for n in (of, numbers())]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("val_loss",), "is measured for the whole network only. Metrics with sites are grad_norm"),
        (("grad_norm/site_1",), "kind depth shows every site of a metric. Write grad_norm without a site"),
        (("grad_nrm",), "unknown metric of figure f 'grad_nrm'. Did you mean grad_norm"),
    ],
)
def test_a_metric_without_sites_is_refused(metrics: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        study_figures.check(replace(planted()[0].declaration, figures=(replace(DEPTH, metrics=metrics),)))
