"""Dead units that a test plants are found, unit by unit, and no others."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import watched_flax_models  # noqa: F401  registers its models
from watched_flax_models import residual
from watched_models import DEAD, IMAGES, MODELS, Planted, X, dense, mlp, put, stacked

from relu_study.watch.inspection import Inspection, inspect
from relu_study.watch.models import as_function
from relu_study.watch.tap import tap


def dead_units(units: pd.DataFrame) -> dict[str, set[int] | None]:
    """Return the dead units of each site; None where dead is not measured."""
    found: dict[str, set[int] | None] = {}
    for site, rows in units.groupby("site", sort=False):
        found[str(site)] = None if rows.dead.isna().all() else set(rows.unit[rows.dead])
    return found


@functools.cache
def inspected(name: str) -> tuple[Planted, Inspection]:
    planted = MODELS[name]()
    return planted, inspect(planted.model, planted.x, **planted.call)


@pytest.mark.parametrize("name", MODELS)
def test_the_dead_units_are_the_planted_ones(name: str) -> None:
    planted, found = inspected(name)
    assert dead_units(found.units) == planted.dead
    assert list(found.sites.site) == list(planted.dead)  # in program order
    for row, dead in zip(found.sites.itertuples(), planted.dead.values(), strict=True):
        assert pd.isna(row.dead_fraction) if dead is None else row.dead_fraction == len(dead) / row.units


def test_positive_biases_plant_units_that_are_always_on() -> None:
    layer = dense(0, 6, 8, 3)
    layer["b"] = put(layer["b"], [0, 5], -DEAD)
    units = inspect((mlp, [layer, dense(1, 8, 2)]), X).units
    assert set(units.unit[units.always_on]) == {0, 5} and set(units.unit[units.dead]) == {3}


def test_members_of_an_ensemble_have_dead_units_of_their_own() -> None:
    planted = [{0: {1}, 1: set()}, {0: set(), 1: {0, 7}}, {0: set(range(8)), 1: {2}}]
    members = [[dense(3 * m, 6, 8, *dead[0]), dense(3 * m + 1, 8, 8, *dead[1]), dense(2, 8, 2)] for m, dead in enumerate(planted)]
    _, taps = jax.jit(jax.vmap(tap(mlp), (0, None)))(stacked(*members), X)
    for member, dead in enumerate(planted):
        for site, units in dead.items():
            assert set(np.flatnonzero((np.asarray(taps[str(site)].slope)[member] == 0).all(0)).tolist()) == units


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("list_of_layers", 1),
        ("two_arguments", 7),  # one example is left over
        ("one_scan_iteration", 16),
        ("convolutions_with_batch_norm_and_skip", 8),
    ],
)
def test_streamed_batches_give_the_same_flags(name: str, size: int) -> None:
    planted, whole = inspected(name)
    pd.testing.assert_frame_equal(inspect(planted.model, planted.x, batch_size=size).units, whole.units)


def test_an_iterable_of_batches_is_one_probe_set() -> None:
    planted, whole = inspected("two_arguments")
    x, mask = (np.asarray(part) for part in planted.x)
    batches = [(x[:3], mask[:3]), (x[3:5], mask[3:5]), (x[5:], mask[5:])]
    units = inspect(planted.model, iter(batches)).units
    pd.testing.assert_frame_equal(units, whole.units)
    assert set(units.n) == {len(x)}


def test_the_users_module_is_read_in_evaluation_mode_and_stays_as_it_is() -> None:
    from flax import nnx

    model = residual()
    model.train()
    before = _arrays(nnx.state(model))
    inspect(model, IMAGES)
    assert not model.drop.deterministic and not model.norm.use_running_average
    after = _arrays(nnx.state(model))
    assert len(before) == len(after) > 0 and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def _arrays(state: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(state)
    return [np.array(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a) for a in leaves]


def test_linen_variables_stay_as_they_are() -> None:
    planted, _ = inspected("linen_mlp_with_batch_norm_and_dropout")
    _, variables = planted.model
    _, before = MODELS["linen_mlp_with_batch_norm_and_dropout"]().model
    model = as_function(planted.model, planted.call)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, variables)) and "batch_stats" in model.state
