"""Options of components in the engine: what they reach, what they compile, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_networks import FEW, IMAGES, registered

from relu_study.components.activations import activation
from relu_study.components.networks import network
from relu_study.components.optimizers import optimizer
from relu_study.components.options import filled
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.engine import cohorts, compilation, train_tile
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

SMALL = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal", learning_rate=0.01, optimizer="sgd")


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    with registered():
        activation("test_shifted", options={"shift": 0.0, "power": 1}, traced=("shift",))(shifted)
        task("test_noisy", options={"noise": 0.0}, traced=("noise",))(noisy)
        yield


def shifted(pre: Any, shift: Any, power: int) -> Any:
    """(max(0, z - shift)) ** power."""
    return jax.nn.relu(pre - shift) ** power


def noisy(spec: RunSpec) -> Task:
    """The mean of four inputs, with noise of a traced size."""

    def sample(key: Any, phase: Any, noise: Any = 0.0) -> tuple[Any, Any]:
        x = jax.random.normal(key, (spec.rows, 4))
        return x, x.mean(axis=1, keepdims=True) + noise * jax.random.normal(jax.random.fold_in(key, 1), (spec.rows, 1))

    return Task(Signature(spec.rows - 20, 20, 4, 1), sample)


def losses(*specs: RunSpec) -> np.ndarray:
    tile = train_tile.start_tile(list(specs), len(specs), jax.devices()[0], FEW)
    assert tile is not None
    return train_tile.fetch(tile)["metric:train_loss/all"]


def traces(*specs: RunSpec) -> int:
    """The number of training programs that runs trace, one tile each."""
    compilation.clear()
    for spec in specs:
        losses(spec, spec.replace(seed=1))
    return sum(len(cache.entries) for name, cache in compilation.CACHES.items() if name == "advance")


def test_a_traced_option_compiles_nothing_and_a_static_one_a_program() -> None:
    base = SMALL.replace(activation="test_shifted")
    assert traces(base.replace(shift=0.1), base.replace(shift=0.7)) == 1
    assert traces(base.replace(power=1), base.replace(power=2)) == 2


@pytest.mark.parametrize("kind", ["activation", "task"])
def test_runs_with_different_traced_options_share_a_tile(kind: str) -> None:
    base = SMALL.replace(activation="test_shifted") if kind == "activation" else SMALL.replace(task="test_noisy")
    name = "shift" if kind == "activation" else "noise"
    few, many = base.replace(**{name: 0.1}), base.replace(**{name: 0.9})
    together = losses(few, many)
    assert np.array_equal(together[0], losses(few, few)[0]) and np.array_equal(together[1], losses(many, many)[1])
    assert (together[0] != together[1]).all()


def test_an_option_at_its_default_gives_the_numbers_of_an_unset_one() -> None:
    base = IMAGES.replace(network="test_dropout")
    assert np.array_equal(losses(base), losses(base.replace(rate=0.5)))
    assert not np.array_equal(losses(base), losses(base.replace(rate=0.25)))


def test_builders_read_all_declared_options() -> None:
    read = dict(filled(SMALL.replace(activation="test_shifted", power=3)).options)
    assert (read["power"], read["shift"], read["schedule"]) == (3, 0, "constant")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chanels": 3}, "unknown RunSpec field or option 'chanels'"),
        ({"learning_rte": 0.1}, "Did you mean learning_rate,"),
        ({"rate": 0.5}, "option 'rate' belongs to network 'test_dropout', which this run does not use"),
        ({"activation": "test_shifted", "power": 1.5}, "option 'power' must be a whole number, not 1.5"),
        ({"activation": "test_shifted", "shift": "much"}, "option 'shift' must be a number, not 'much'"),
        ({"activation": "test_shifted", "power": True}, "option 'power' must be a whole number, not True"),
    ],
)
def test_a_wrong_option_is_refused_before_training(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        cohorts.check(SMALL.replace(**changes), FEW)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda: network("n", options={"width": 3})(shifted), "option 'width' is a RunSpec field"),
        (lambda: network("n", options={"shift": 3})(shifted), "option 'shift' belongs to activation 'test_shifted'"),
        (lambda: network("n", options={"a": [1]})(shifted), "option a must be"),
        (lambda: network("n", options=["a"])(shifted), "Give a dictionary"),
        (lambda: activation("n", options={"slope": 1.0})(jnp.tanh), "no parameter of its function"),
        (lambda: activation("n", options={"b": "x"}, traced=("b",))(lambda z, b: z), "cannot be traced"),
        (lambda: optimizer("n", options={"a": 1}, traced=("c",))(lambda lr, a: None), "traced option of optimizer 'n'"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_is_registered(register: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        register()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "test_linen", "norm": "batch_norm"}, "does not read norm"),
        ({"network": "cnn", "initializer": "sign_flip"}, "reads the inputs of every layer"),
        ({"network": "cnn", "norm": "batch_norm", "bias_shift": 0.5}, "no hidden bias"),
        ({"network": "mlp"}, "maps vectors to vectors"),
        ({"network": "mlp", "task": "negative_box", "initializer": "own"}, "draws no weights"),
        ({"network": "cnn", "initializer": "he_norml"}, "he_normal"),
    ],
)
def test_a_network_with_a_wrong_field_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        cohorts.check(IMAGES.replace(**changes), FEW)
    assert words in str(error.value)


@pytest.mark.parametrize("first", ["set", "unset"])
def test_runs_with_and_without_a_traced_task_option_share_a_tile(first: str) -> None:
    """The option's default is 0: a run that sets none has its numbers."""
    unset, some = SMALL.replace(task="test_noisy"), SMALL.replace(task="test_noisy", noise=5.0)
    pair = [some, unset] if first == "set" else [unset, some]
    found = dict(zip(pair, losses(*pair), strict=True))
    assert np.array_equal(found[unset], losses(unset, unset)[0]) and np.array_equal(found[some], losses(some, some)[0])
    assert (found[some] > 5 * found[unset]).all()


def test_a_task_with_a_traced_option_passes_the_checks() -> None:
    for spec in (SMALL.replace(task="test_noisy"), SMALL.replace(task="test_noisy", noise=5.0)):
        cohorts.check(spec, FEW)
