"""The figure of a replay: dead units, norms, and a panel for each of the first six units with an event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from rendered import drawn, labels, said

from relu_study.report.figures import canvas
from relu_study.report.figures.step_traces import step_traces

STEPS, UNITS = 41, 9
ABOUT = {"run_id": "0f3a6c2b9d41", "study": "article", "first_step": 100, "last_step": 140, "steps_per_epoch": 25}
ABOUT |= {"probe_examples": 8192}


def traces(deaths: dict[int, int], revivals: dict[int, int] | None = None) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Steps, events and arrays of one site, with `deaths` and `revivals` of units at steps of the window."""
    total = 100 + np.arange(STEPS)
    dead = np.zeros((STEPS, UNITS), bool)
    rows = []
    for kind, at_of in (("died", deaths), ("revived", revivals or {})):
        for unit, at in at_of.items():
            dead[at:, unit] = kind == "died"
            rows.append({"event": kind, "by": "step", "total_step": 100 + at, "site": "site_1", "unit": unit})
    events = pd.DataFrame(rows, columns=["event", "by", "total_step", "site", "unit"]).astype({"unit": "Int64"})
    events["batch_rows"] = [[7 * i, 11, 123456, 4, 5, 6, 77, 78] for i in range(len(events))]
    high = np.where(dead, -0.5, 1.0) * np.linspace(1, 2, STEPS)[:, None]
    arrays = {"total_step": total, "dead:site_1": dead, "pre_max:site_1": high.astype(np.float32)}
    loss = np.where(np.arange(STEPS) == 0, np.nan, 0.5)
    steps = pd.DataFrame({"total_step": total, "site": "site_1", "units": UNITS, "dead": dead.sum(axis=1)})
    return steps.assign(batch_loss=loss, grad_norm=2 * loss, step_norm=loss / 100), events, arrays


def picture(*arguments: Any, **about: Any) -> Any:
    return drawn(lambda: step_traces({**ABOUT, **about}, *arguments))


def test_dead_units_and_events_are_those_of_the_steps() -> None:
    steps, events, arrays = traces({3: 5, 1: 20}, {3: 30})
    figure = picture(steps, events, arrays)
    top = figure.axes[0]
    line, died, revived = top.lines[:3]
    assert np.array_equal(line.get_xdata(), steps.total_step) and np.array_equal(line.get_ydata(), steps.dead)
    assert died.get_xdata().tolist() == [105, 120] and died.get_ydata().tolist() == [1, 2]
    assert revived.get_xdata().tolist() == [130] and revived.get_ydata().tolist() == [1]
    assert top.get_title() == "run 0f3a6c2b9d41 of article: steps 100 to 140, epochs 4 to 5.6"
    assert labels(figure) == ["site_1 (9 units)", "died", "revived"]
    assert said(figure) == "2 deaths; 1 revival\nlargest pre on N = 8,192 probe examples; hollow: the unit is dead"
    assert [text.get_text() for text in top.texts] == [" epoch 5", " epoch 6"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["batch loss", "gradient norm", "step norm"]


def test_a_panel_shows_the_steps_around_the_death() -> None:
    steps, events, arrays = traces({3: 5, 1: 20})
    figure = picture(steps, events, arrays)
    assert [ax.get_title() for ax in figure.axes[2:]] == [
        "site_1, unit 3: step 105\nrows 0, 11, 123456, 4, … (8)",
        "site_1, unit 1: step 120\nrows 7, 11, 123456, 4, … (8)",
    ]
    for ax, unit, at in zip(figure.axes[2:], (3, 1), (5, 20), strict=True):
        near = slice(max(at - 12, 0), at + 13)
        zero, mark, line, alive, dead = ax.lines[:5]
        assert zero.get_ydata() == [0, 0] and mark.get_xdata() == [100 + at] * 2
        np.testing.assert_allclose(line.get_ydata(), arrays["pre_max:site_1"][near, unit])
        assert alive.get_xdata().tolist() == list(range(100 + max(at - 12, 0), 100 + at))
        assert dead.get_xdata().tolist() == list(range(100 + at, 100 + at + 13))


@pytest.mark.parametrize(
    ("deaths", "panels", "more"), [(0, 0, ""), (6, 6, ""), (7, 6, "1 more unit with"), (9, 6, "3 more units")]
)
def test_units_beyond_six_are_counted(deaths: int, panels: int, more: str) -> None:
    figure = picture(*traces({unit: 2 + unit for unit in range(deaths)}))
    assert len(figure.axes) == 2 + panels and more in said(figure)
    assert deaths or said(figure) == "no unit died or revived"


def test_an_event_at_a_change_of_the_data_has_no_rows() -> None:
    steps, events, arrays = traces({3: 5})
    events = events.assign(by="data", batch_rows=[[]])
    assert picture(steps, events, arrays).axes[2].get_title() == "site_1, unit 3: step 105\nat a change of the data"


def test_titles_stay_within_the_figure() -> None:
    steps, events, arrays = traces({unit: 3 * unit for unit in range(1, 7)})
    events["batch_rows"] = [[138618, 139999, 123456, 100000] * 32] * 6
    figure = picture(steps.assign(total_step=steps.total_step + 27000), events.assign(total_step=events.total_step + 27000), {
        **arrays, "total_step": arrays["total_step"] + 27000
    }, first_step=27100, last_step=27140)  # fmt: skip
    right = figure.get_window_extent().x1
    assert all(ax.title.get_window_extent().x1 <= right for ax in figure.axes)


def test_a_nonfinite_run_is_marked_and_its_missing_numbers_are_gaps() -> None:
    steps, events, arrays = traces({2: 4})
    bad = {"event": "nonfinite", "by": "step", "total_step": 110, "site": "site_1", "unit": pd.NA, "batch_rows": [1, 2]}
    events = pd.concat([events, pd.DataFrame([bad])], ignore_index=True).astype({"unit": "Int64"})
    steps.loc[steps.total_step >= 110, ["batch_loss", "grad_norm"]] = np.inf
    arrays["pre_max:site_1"][10:] = np.nan
    figure = picture(steps, events, arrays)
    assert labels(figure) == ["site_1 (9 units)", "died", "nonfinite"] and len(figure.axes) == 3
    assert figure.axes[0].lines[2].get_xdata().tolist() == [110]
    assert np.isnan(figure.axes[1].lines[0].get_ydata()[-5:]).all()


def test_equal_numbers_give_equal_bytes() -> None:
    arguments = traces({3: 5})
    one, other = (canvas.render(lambda: step_traces(ABOUT, *arguments), ("png", "svg", "pdf")) for _ in range(2))
    assert one == other
