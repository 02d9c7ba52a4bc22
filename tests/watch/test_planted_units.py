"""Dead units that a test plants are found, unit by unit, and no others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
import pytest
import watched_flax_models  # noqa: F401  registers its models
from watched_flax_models import residual
from watched_models import DEAD, IMAGES, MODELS, Planted, X, dense, mlp

from relu_study.watch.inspection import inspect
from relu_study.watch.models import as_function
from relu_study.watch.tap import tap


def dead_units(units: pd.DataFrame) -> dict[str, set[int] | None]:
    """Return the dead units of each site; None where dead is not measured."""
    found: dict[str, set[int] | None] = {}
    for site, rows in units.groupby("site", sort=False):
        found[str(site)] = None if rows.dead.isna().all() else set(rows.unit[rows.dead])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_dead_units_are_the_planted_ones(name: str) -> None:
    planted: Planted = MODELS[name]()
    found = inspect(planted.model, planted.x, **planted.call)
    assert dead_units(found.units) == planted.dead
    assert list(found.sites.site) == list(planted.dead)  # in program order
    for row, dead in zip(found.sites.itertuples(), planted.dead.values(), strict=True):
        assert pd.isna(row.dead_fraction) if dead is None else row.dead_fraction == len(dead) / row.units


def test_positive_biases_plant_units_that_are_always_on() -> None:
    layer = dense(0, 6, 8, 3)
    layer["b"] = layer["b"].at[jnp.array([0, 5])].set(-DEAD)
    units = inspect((mlp, [layer, dense(1, 8, 2)]), X).units
    assert set(units.unit[units.always_on]) == {0, 5} and set(units.unit[units.dead]) == {3}


def test_members_of_an_ensemble_have_dead_units_of_their_own() -> None:
    planted = [{0: {1}, 1: set()}, {0: set(), 1: {0, 7}}, {0: set(range(8)), 1: {2}}]
    members = [[dense(3 * m, 6, 8, *dead[0]), dense(3 * m + 1, 8, 8, *dead[1]), dense(2, 8, 2)] for m, dead in enumerate(planted)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    _, taps = jax.jit(jax.vmap(tap(mlp), (0, None)))(stacked, X)
    for member, dead in enumerate(planted):
        for site, units in dead.items():
            assert set(jnp.nonzero((taps[str(site)].slope[member] == 0).all(0))[0].tolist()) == units


@pytest.mark.parametrize(
    "name", ["list_of_layers", "two_arguments", "one_scan_iteration", "convolutions_with_batch_norm_and_skip"]
)
def test_streamed_batches_give_the_same_flags(name: str) -> None:
    planted = MODELS[name]()
    whole = inspect(planted.model, planted.x).units
    for size in (7, 1):
        if size == 7 or name == "list_of_layers":
            pd.testing.assert_frame_equal(inspect(planted.model, planted.x, batch_size=size).units, whole)


def test_an_iterable_of_batches_is_one_probe_set() -> None:
    planted = MODELS["two_arguments"]()
    x, mask = planted.x
    batches = [(x[:3], mask[:3]), (x[3:4], mask[3:4]), (x[4:], mask[4:])]
    units = inspect(planted.model, iter(batches)).units
    pd.testing.assert_frame_equal(units, inspect(planted.model, planted.x).units)
    assert set(units.n) == {len(x)}


def test_the_users_module_is_read_in_evaluation_mode_and_stays_as_it_is() -> None:
    from flax import nnx

    model = residual()
    model.train()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    inspect(model, IMAGES)
    assert not model.drop.deterministic and not model.norm.use_running_average
    jax.tree.map(
        lambda a, b: jnp.array_equal(a, b) or pytest.fail("the module changed"), _arrays(before), _arrays(nnx.state(model))
    )


def _arrays(state: Any) -> Any:
    return [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in jax.tree.leaves(state)]


def test_linen_variables_stay_as_they_are() -> None:
    planted = MODELS["linen_mlp_with_batch_norm_and_dropout"]()
    _, variables = planted.model
    before = jax.tree.map(jnp.copy, variables)
    model = as_function(planted.model, planted.call)
    inspect(planted.model, planted.x, **planted.call)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, variables)) and "batch_stats" in model.state
