"""A monitor's numbers equal those of `inspect` and of NumPy, in every form of a model, and of every member of an ensemble."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from monitored import (
    FORMS,
    NNX,
    Normalised,
    NormalisedState,
    X,
    Y,
    forward,
    killed,
    loss,
    nnx_module,
    params_of,
    pre_by_hand,
)
from tiers import tiered

from relu_study import Monitor, MonitorWarning, inspect, table
from relu_study.errors import UserError
from relu_study.stats.histogram_bins import BINS, edges

FRACTIONS = ("dead", "nearly_dead", "always_on", "dormant", "zero_gradient")
PARAMS = killed(params_of(), "two", 1, 3)


def monitor(model: Any, out: Path, **options: Any) -> Monitor:
    return Monitor(model, out=out, **{"probe": X, "targets": Y, "loss": loss, "every": 1, **options})


@pytest.mark.parametrize("form", tiered(FORMS, "nnx", "linen", "TrainState"))
def test_equals_inspect_in_every_form(form: str, tmp_path: Path) -> None:
    model = FORMS[form](PARAMS)
    with monitor(model, tmp_path) as watching:
        measured = watching(0, model)
    expected = inspect((forward, PARAMS), X, y=Y, loss=loss)
    assert measured is not None
    assert list(measured.dead) == ["one", "two"]
    for site, row in expected.sites.set_index("site").iterrows():
        for flag in FRACTIONS:
            assert measured.values[f"{flag}_fraction/{site}"] == pytest.approx(row[f"{flag}_fraction"], abs=1e-7), flag
        for name in ("post_mean", "post_std", "grad_norm", "zero_entries"):
            assert measured.values[f"{name}/{site}"] == pytest.approx(row[name], rel=1e-5), name
    assert measured.dead["two"].nonzero()[0].tolist() == [1, 3]
    assert measured.loss == pytest.approx(float(loss(forward(PARAMS, X), Y)), rel=1e-6)


def test_all_pools_units_and_entries(tmp_path: Path) -> None:
    with monitor((forward, PARAMS), tmp_path) as watching:
        measured = watching(0, PARAMS)
    assert measured is not None
    assert measured.values["dead_fraction/all"] == pytest.approx(2 / 11)
    post = [np.maximum(pre, 0) for pre in pre_by_hand(PARAMS).values()]
    assert measured.values["zero_entries/all"] == pytest.approx(np.mean(np.concatenate([p.ravel() for p in post]) == 0))
    grads = jax.grad(lambda p: loss(forward(p, X), Y))(PARAMS)
    assert measured.values["grad_norm/all"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-5)


def test_update_ratio_is_since_the_last_measurement(tmp_path: Path) -> None:
    steps = [jax.tree.map(lambda leaf, s=s: leaf * (1 + 0.1 * s), params_of()) for s in range(4)]
    with Monitor((forward, steps[0]), out=tmp_path, probe=X, every=3) as watching:
        first, skipped, _, last = (watching(s, params) for s, params in enumerate(steps))
    assert first is not None and skipped is None and last is not None
    assert np.isnan(first.values["update_ratio/one"])
    assert last.values["update_ratio/one"] == pytest.approx(0.3 / 1.3, rel=1e-5)
    assert last.values["update_ratio/all"] == pytest.approx(0.3 / 1.3, rel=1e-5)
    assert "grad_norm/one" not in last.values and "loss/all" not in last.values and np.isnan(last.loss)


def test_histograms_count_every_entry_with_exact_zeros_apart(tmp_path: Path) -> None:
    watching = monitor((forward, PARAMS), tmp_path)
    counts: dict[str, Any] = {}
    write = watching._recorder.write
    watching._recorder.write = lambda *given: (counts.update(given[3]), write(*given))[1]  # type: ignore[method-assign]
    watching(0, PARAMS)
    watching.close()
    for site, pre in pre_by_hand(PARAMS).items():
        expected, _ = np.histogram(np.clip(pre, -255, 255), edges())
        assert np.abs(counts[f"pre/{site}"] - expected).sum() <= 2  # an entry next to an edge may be rounded
        assert counts[f"post/{site}"][BINS // 2] == (pre <= 0).sum()
        assert counts[f"gradient/{site}"].sum() == PARAMS[site]["kernel"].size + PARAMS[site]["bias"].size


def test_batch_statistics_of_a_training_state(tmp_path: Path) -> None:
    module = Normalised()
    variables = module.init(jax.random.key(0), X)
    stats = jax.tree.map(lambda leaf: leaf + 3.0, variables["batch_stats"])
    state = NormalisedState.create(
        apply_fn=module.apply, params=variables["params"], tx=optax.sgd(0.1), batch_stats=variables["batch_stats"]
    )
    with monitor(state, tmp_path) as watching:
        before, after = watching(0, state), watching(1, state.replace(batch_stats=stats))
    assert before is not None and after is not None
    for measured, given in ((before, variables["batch_stats"]), (after, stats)):
        found = inspect((module, {"params": variables["params"], "batch_stats": given}), X)
        assert measured.values["post_mean/BatchNorm_0"] == pytest.approx(found.sites.post_mean[0], rel=1e-5)
    assert before.values["post_mean/BatchNorm_0"] != after.values["post_mean/BatchNorm_0"]


def test_dropout_is_off_and_the_module_is_unchanged(tmp_path: Path) -> None:
    class Dropped(nnx.Module):
        def __init__(self) -> None:
            self.one, self.drop = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return nnx.relu(self.one(self.drop(x)))

    module = Dropped()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    with Monitor(module, out=tmp_path, probe=X, every=1) as watching:
        first, second = watching(0, module), watching(1, module)
    assert first is not None and second is not None
    assert first.values["post_mean/one"] == second.values["post_mean/one"]
    assert not module.drop.deterministic
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def test_every_member_of_an_ensemble_is_measured_as_if_it_were_the_only_one(tmp_path: Path) -> None:
    members = [params_of(0), killed(params_of(1), "one", 2), params_of(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    with monitor((forward, stacked), tmp_path / "all", ensemble=True) as watching:
        measured = watching(0, stacked)
    assert measured is not None
    for index, params in enumerate(members):
        with monitor((forward, params), tmp_path / str(index)) as one:
            expected = one(0, params)
        assert expected is not None and list(expected.values) == list(measured.values)
        for name, value in expected.values.items():
            np.testing.assert_allclose(np.asarray(measured.values[name])[index], value, rtol=2e-5, err_msg=name)
        for site in expected.dead:
            np.testing.assert_array_equal(measured.dead[site][index], expected.dead[site])


def test_an_ensemble_of_modules(tmp_path: Path) -> None:
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Any:
        return NNX(rngs)

    module = build(nnx.Rngs(0).fork(split=3))
    with monitor(module, tmp_path, ensemble=True) as watching:
        measured = watching(0, module)
    assert measured is not None and np.asarray(measured.values["dead_fraction/one"]).shape == (3,)
    assert len(set(np.asarray(measured.loss).tolist())) == 3


def test_parameters_that_are_no_floats(tmp_path: Path) -> None:
    params = {**params_of(), "steps": np.int32(3)}
    with monitor((lambda p, x: forward(p, x) + p["steps"] * 0, params), tmp_path) as watching:
        measured = watching(0, params)
    assert measured is not None and np.isfinite(measured.values["grad_norm/one"])


def test_donated_buffers_and_changed_arrays_do_not_matter(tmp_path: Path) -> None:
    probe, targets = X.copy(), Y.copy()
    params = jax.tree.map(jnp.asarray, params_of())
    step = jax.jit(lambda p: jax.tree.map(lambda leaf: leaf * 1.1, p), donate_argnums=0)
    with monitor((forward, params), tmp_path, probe=probe, targets=targets) as watching:
        watching(0, params)
        probe[:], targets[:] = 0, 0
        params = step(params)
        measured = watching(1, params)
    assert measured is not None
    assert measured.values["update_ratio/all"] == pytest.approx(0.1 / 1.1, rel=1e-4)
    assert measured.loss == pytest.approx(float(loss(forward(jax.tree.map(np.asarray, params), X), Y)), rel=1e-5)


def test_it_compiles_once(tmp_path: Path) -> None:
    module = nnx_module(params_of())
    with monitor(module, tmp_path) as watching:
        for step in range(4):
            watching(step, module)
            module.one.bias[...] = module.one.bias[...] + 0.1
        assert watching._program.run._cache_size() == 1  # type: ignore[attr-defined]


def test_a_call_between_measurements_reads_nothing_of_the_model(tmp_path: Path) -> None:
    with monitor((forward, PARAMS), tmp_path, every=10) as watching:
        watching(0, PARAMS)
        assert watching(1, object()) is None
        assert watching(9, object()) is None


def test_steps_that_skip_a_multiple_are_measured_at_the_next_call(tmp_path: Path) -> None:
    with monitor((forward, PARAMS), tmp_path, every=100) as watching:
        measured = [step for step in range(0, 700, 117) if watching(step, PARAMS) is not None]
    assert measured == [0, 117, 234, 351, 468, 585]


def test_a_bounded_activation_has_linear_bins_and_saturated_units(tmp_path: Path) -> None:
    def smooth(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["w"])

    params = {"w": np.full((4, 3), 100.0, np.float32)}
    with Monitor((smooth, params), out=tmp_path, probe=np.abs(X) + 1) as watching:
        measured = watching(0, params)
        assert watching._program.bins == {"post/w": (-1.0, 1.0)} or list(watching._program.bins.values()) == [(-1.0, 1.0)]
    assert measured is not None
    (site,) = measured.dead
    assert measured.values[f"saturated_fraction/{site}"] == 1.0


def test_a_model_without_sites_has_the_numbers_of_the_whole_network(tmp_path: Path) -> None:
    params = {"w": np.ones((4, 2), np.float32)}
    with pytest.warns(MonitorWarning, match="the model has no sites"):
        watching = monitor((lambda p, x: x @ p["w"], params), tmp_path)
    measured = watching(0, params)
    watching.close()
    assert measured is not None and not measured.dead
    assert {"loss/all", "grad_norm/all", "weight_norm/all"} <= set(measured.values)


def test_a_site_that_may_not_be_taken_is_left_out_with_a_warning(tmp_path: Path) -> None:
    def model(params: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ params["one"])
        return jax.lax.cond(h[0, 0] > 1e9, lambda h: jax.nn.relu(h @ params["two"]), lambda h: h @ params["two"], h)

    params = {"one": np.ones((4, 3), np.float32), "two": np.ones((3, 2), np.float32)}
    with pytest.warns(MonitorWarning, match="the sites two are inside branches of lax.cond"):
        watching = monitor((model, params), tmp_path, on_error="raise")
    measured = watching(0, params)
    watching.close()
    assert measured is not None and list(measured.dead) == ["one"] and not measured.nonfinite


def test_sites_in_a_scan_and_units_on_another_axis(tmp_path: Path) -> None:
    def model(params: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, layer: (jax.nn.relu(h @ layer["w"] + layer["b"]), None), x, params["layers"])
        return jax.nn.relu(jnp.swapaxes(h @ params["out"], 0, 1))

    bias = np.zeros((3, 4), np.float32)
    bias[1, 2] = -1e3
    params = {"layers": {"w": np.stack([np.eye(4, dtype=np.float32)] * 3), "b": bias}, "out": np.ones((4, 2), np.float32)}
    targets = np.zeros((2, 32), np.float32)
    options: dict[str, Any] = {"targets": None, "loss": None, "unit_axis": {"out": 0}}
    with monitor((model, params), tmp_path, **options) as watching:
        measured = watching(0, params)
    assert measured is not None and list(measured.dead) == ["layers[0]", "layers[1]", "layers[2]", "out"]
    assert [mask.sum() for mask in measured.dead.values()] == [0, 1, 1, 0] and len(measured.dead["out"]) == len(targets)


def test_a_site_with_the_name_of_the_whole_network(tmp_path: Path) -> None:
    def model(params: Any, x: Any) -> Any:
        return jax.nn.relu(jax.nn.relu(x @ params["all"]) @ params["z"])

    params = {"all": np.stack([np.ones(4), -np.ones(4)], axis=1).astype(np.float32), "z": -np.ones((2, 4), np.float32)}
    with monitor((model, params), tmp_path, probe=np.abs(X) + 1, targets=None, loss=None) as watching:
        measured = watching(0, params)
    assert measured is not None and list(measured.dead) == ["all_site", "z"]
    assert [measured.values[f"dead_fraction/{site}"] for site in ("all_site", "z", "all")] == [0.5, 1.0, pytest.approx(5 / 6)]


def test_other_state_of_an_ensemble_is_stacked_or_shared(tmp_path: Path) -> None:
    module, members = Normalised(), 6  # as many members as features
    keys = jax.random.split(jax.random.key(0), members)
    stacked = jax.vmap(lambda key: module.init(key, X))(keys)
    stats = jax.tree.map(lambda leaf: leaf + np.arange(members)[:, None], stacked["batch_stats"])
    shared = {"params": stacked["params"], "batch_stats": jax.tree.map(lambda leaf: leaf[2], stats)}
    cases = [("all", True, stacked | {"batch_stats": stats}, None), ("params", "params", shared, shared["batch_stats"])]
    for name, ensemble, variables, common in cases:
        with Monitor((module, variables), out=tmp_path / name, probe=X, ensemble=ensemble) as watching:
            measured = watching(0, variables)
        assert measured is not None
        for member in range(members):
            own = jax.tree.map(lambda leaf, member=member: leaf[member], {"params": stacked["params"], "batch_stats": stats})
            found = inspect((module, own if common is None else {"params": own["params"], "batch_stats": common}), X)
            value = np.asarray(measured.values["post_mean/BatchNorm_0"])[member]
            assert value == pytest.approx(found.sites.post_mean[0], rel=1e-4)
    mixed = {"params": stacked["params"], "batch_stats": stats | {"other": np.zeros(5)}}
    with pytest.raises(UserError, match=r"\['other'\] has the shape \(5,\).* pass ensemble='params'"):
        Monitor((module, mixed), out=tmp_path / "mixed", probe=X, ensemble=True)


def test_a_nonfinite_member_keeps_its_flags_and_has_no_update(tmp_path: Path) -> None:
    bad = PARAMS | {"one": PARAMS["one"] | {"kernel": np.full_like(PARAMS["one"]["kernel"], np.inf)}}
    with monitor((forward, PARAMS), tmp_path) as watching:
        watching(0, PARAMS)
        with pytest.warns(MonitorWarning):
            during = watching(1, bad)
        after = watching(2, PARAMS)
    assert during is not None and after is not None
    assert during.dead["two"].nonzero()[0].tolist() == [1, 3] and np.isnan(during.values["dead_fraction/two"])
    assert np.isnan(after.values["update_ratio/all"]) and np.isfinite(after.values["dead_fraction/two"])
    assert "(no earlier finite measurement)" in table(tmp_path)


def test_low_precision_is_not_rounded_again(tmp_path: Path) -> None:
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params_of())
    with Monitor((forward, half), out=tmp_path, probe=jnp.asarray(X, jnp.bfloat16)) as watching:
        measured = watching(0, half)
    assert measured is not None
    expected = np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(half)))
    assert measured.values["weight_norm/all"] == pytest.approx(expected, rel=1e-6)


def test_it_keeps_no_array_of_the_model(tmp_path: Path) -> None:
    params = jax.tree.map(jnp.asarray, params_of())
    watching = monitor((forward, params), tmp_path)
    watching(0, params)
    held = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    del params
    gc.collect()
    assert not any(reference() is not None for reference in held)
    watching.close()


def test_a_functional_nnx_loop(tmp_path: Path) -> None:
    module = nnx_module(params_of())
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    graph, state = nnx.split((module, optimizer))
    with monitor((graph, state), tmp_path) as watching:
        pair, single = watching(0, (graph, state)), watching.measure(1, state)
    assert pair is not None and single is not None and pair.values["dead_fraction/all"] == single.values["dead_fraction/all"]


def test_a_model_that_does_not_fit_the_probe_is_refused_in_one_line(tmp_path: Path) -> None:
    for options in ({"probe": X[:, :3]}, {"loss": lambda outputs, targets: outputs["x"]}):
        with pytest.raises(UserError, match="cannot be evaluated on the probe set"):
            monitor((forward, PARAMS), tmp_path / "mine", **options)
    with monitor((forward, PARAMS), tmp_path / "list", probe=X.tolist()) as watching:
        assert watching(0, PARAMS) is not None
