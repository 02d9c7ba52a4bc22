"""An inspection as a printed table and as HTML."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from watched_models import normal

from relu_study import Inspection, inspect
from relu_study.watch.display import HEADERS, WIDTH, entry
from relu_study.watch.inspection import FLAGS, SITES


def forward(params: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"])
    return jax.nn.gelu(hidden @ params["second"]["w"])


def params() -> Any:
    return {
        "first": {"w": normal(0, 4, 16), "b": np.where(np.isin(np.arange(16), [2, 5]), np.float32(-1e3), np.float32(0))},
        "second": {"w": normal(1, 16, 8)},
    }


def rows() -> jax.Array:
    return jnp.asarray(normal(1, 64, 4))


def wide(name: str, **changed: Any) -> pd.DataFrame:
    """Return one site with every column measured and long entries."""
    shares = {f"{flag}_fraction": 0.1234 for flag in FLAGS}
    moments = {"post_mean": -0.01234, "post_std": 1.2e-5, "grad_norm": 1234.5, "zero_entries": 0.99999}
    row = {"site": name, "activation": "leaky_relu(0.1)", "units": 3072, "n": 8192, **shares, **moments} | changed
    return pd.DataFrame([row], columns=list(SITES))


def units(dead: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"site": "up", "unit": range(len(dead)), "dead": pd.array(dead, dtype="boolean")})


def test_the_table_names_dead_units_and_the_columns_without_a_value() -> None:
    lines = repr(inspect((forward, params()), rows())).splitlines()
    assert lines[3].split()[:4] == ["first", "relu", "16", "12.5%"]
    assert lines[4].split()[:4] == ["second", "gelu", "8", "0"]
    assert "n = 64 examples." in lines and "Dead units: first: 2, 5." in lines
    assert "zero gradient (needs y and loss)" in " ".join(lines)


def test_every_column_has_a_header() -> None:
    assert tuple(HEADERS) == SITES


@pytest.mark.parametrize("name", ["up", "encoder.layers[11].attention.mlp.up", "a_name_of_one_layer_that_has_no_dot_at_all"])
def test_the_table_fits_100_columns_and_keeps_names(name: str) -> None:
    text = repr(Inspection(units([True, False]), pd.concat([wide(name), wide("out", n=7)])))
    assert max(map(len, text.splitlines())) <= WIDTH
    table = text.split("\n\n")[0].splitlines()[3:-1]
    assert "".join(line.split()[0] for line in table) == name
    assert "8,192" in text and "12.3%" in text and "leaky_relu(0.1)" in text


def test_long_lists_of_dead_units_are_cut_with_their_number() -> None:
    assert "up: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more." in repr(Inspection(units([True] * 100), wide("up")))


def test_units_without_a_measurement_are_counted_and_are_not_called_alive() -> None:
    absent = dict.fromkeys((*(f"{flag}_fraction" for flag in FLAGS), "post_mean"), pd.NA)
    text = repr(Inspection(units([None] * 3), wide("up", **absent)))
    assert "Units without a measurement: 3." in text and "No dead units" not in text and "<NA>" in text
    assert "Units without a measurement: 1." in repr(Inspection(units([None, True]), wide("up")))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("dead_fraction", 0.0, "0"),
        ("dead_fraction", 1.0, "100%"),
        ("dead_fraction", 1 / 3072, "<0.1%"),
        ("dead_fraction", 3071 / 3072, ">99.9%"),
        ("dead_fraction", pd.NA, "<NA>"),
        ("zero_entries", 0.5, "50.0%"),
        ("post_mean", np.float32(-0.0123).item(), "-0.012"),
        ("units", 3072, "3,072"),
    ],
)
def test_entries(name: str, value: Any, text: str) -> None:
    assert entry(name, value) == text


def test_html_escapes_names_and_has_the_notes() -> None:
    html = Inspection(units([True]), wide("<b>"))._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html and "<p>Dead units: up: 0.</p>" in html and "<th>zero gradient</th>" in html


def test_a_model_without_sites_says_this_in_both_forms() -> None:
    with pytest.warns(UserWarning, match="the model has no sites"):
        found = inspect((lambda params, x: x @ params["w"], {"w": jnp.ones((4, 2))}), rows())
    assert repr(found).startswith("No sites") and found._repr_html_().startswith("<p>No sites")
    assert found.units.empty and found.sites.empty
