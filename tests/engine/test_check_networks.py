"""Checks of a user's networks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import tiered
from user_entries import FEW, SPEC, refused

from relu_study.components.initializers import Layer
from relu_study.components.layers import Dense, Site
from relu_study.components.networks import Block, network
from relu_study.components.registry import activations, initializers, networks, ours, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import check_functions, check_networks, cohorts
from relu_study.engine.train_step import make_init
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

pytestmark = pytest.mark.usefixtures("restored_registries")

INNER = jax.jit(lambda x: x + np.random.normal(size=x.shape[-1]))


class Own(nnx.Module):
    """A network with one fault; none without."""

    def __init__(self, fault: str, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        self.fault, self.site = fault, Site("relu")
        self.first, self.last = Dense(d_in, spec.width), Dense(spec.width, d_out if fault != "outputs" else d_out + 1)
        if fault == "linear":
            self.first = nnx.Linear(d_in, spec.width, rngs=rngs)
        if fault == "conv":
            self.conv = nnx.Conv(1, 1, (3,), rngs=rngs)
        if fault == "drawn":
            self.scale = nnx.Param(jax.random.normal(rngs.params(), ()))
        if fault == "drawn by a key of its own":
            self.scale = nnx.Param(jax.random.normal(jax.random.key(0), (spec.width,)))
        if fault == "numpy":
            self.scale = np.random.normal(size=spec.width)
        if fault == "idle":
            self.spare = Dense(2, 2)
        if fault == "dropout":
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
        if fault == "constant":
            self.scale = nnx.Param(jnp.full(spec.width, 1.5))
        if fault == "constant row":
            self.scale = nnx.Param(jnp.full((1, spec.width), 1.5))
        if fault == "constant matrix":
            self.scale = nnx.Param(jnp.ones((2, spec.width)))

    def __call__(self, x: Any, ctx: Any) -> Any:
        if self.fault == "before":
            x = self.site(x, ctx)
        if self.fault == "assigned":
            self.first.kernel[...] = jnp.ones(self.first.kernel.shape)
        x = self.first(x, ctx) if self.fault != "linear" else self.first(x)
        if self.fault == "assigned later":
            self.last.kernel[...], self.first.kernel[...] = jnp.ones(self.last.kernel.shape), 2 * self.first.kernel[...]
            ctx.init_hook, x = None, x.copy()
        x = jax.nn.relu(x) if self.fault == "no site" else self.site(x, ctx)
        if self.fault == "numpy inside":
            x = INNER(x)
        return self.last(x * self.scale[...] if hasattr(self, "scale") else x, ctx)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("linear", ["first.kernel", "not drawn by the run's seed", "Dense"]),
        ("conv", ["conv.kernel", "not drawn by the run's seed"]),
        ("drawn", ["scale", "not drawn by the run's seed"]),
        ("drawn by a key of its own", ["scale", "not drawn by the run's seed"]),
        ("no site", ["no Site", "Site"]),
        ("before", ["a Site before any Dense"]),
        ("constant matrix", ["scale", "not drawn by the run's seed"]),
        ("assigned later", ["last.kernel", "same for two seeds"]),
        ("numpy", ["different each time it is traced"]),
        ("numpy inside", ["different each time it is traced"]),
        ("idle", ["never applies its Dense spare"]),
        ("dropout", ["Rng", "dropout"]),
        ("outputs", ["(2, 2)", "(2, 1)"]),
    ],
)
def test_faulty_network_is_refused(fault: str, words: list[str]) -> None:
    networks.add("own", functools.partial(Own, fault))
    refused(SPEC.replace(network="own"), "network 'own'", *words)


@pytest.mark.parametrize("fault", ["none", "constant", "constant row", "assigned"])  # `initialise` overwrites an assigned kernel
def test_network_of_dense_layers_and_constants_is_accepted(fault: str) -> None:
    networks.add("own", functools.partial(Own, fault))
    cohorts.check(SPEC.replace(network="own"), FEW)


def test_norm_modules_of_a_network_are_separate() -> None:
    @network("normed")
    class Normed(nnx.Module):
        def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
            self.block, self.last = Block(spec, 0, d_in, rngs), Dense(spec.width, d_out)

        def __call__(self, x: Any, ctx: Any) -> Any:
            return self.last(self.block(x, ctx), ctx)

    for norm in ("batch_norm", "layer_norm"):
        cohorts.check(SPEC.replace(network="normed", norm=norm), FEW)


def test_network_function_without_a_module_is_refused() -> None:
    networks.add("own", lambda spec, d_in, d_out, rngs: 3)
    refused(SPEC.replace(network="own"), "network 'own' returns int", "nnx.Module")


@pytest.mark.parametrize("kind", tiered((name for name in networks if networks[name].sized), "mlp"))
def test_initial_weights_differ_by_seed(kind: str) -> None:
    specs = [SPEC.replace(network=kind, initializer=name, depth=2) for name in initializers]
    for spec in specs:
        check_networks.check_network(spec, Signature(40, 20, 4, 2))
    x = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
    hparams = {field: np.float32(getattr(SPEC, field)) for field in TRACED_FIELDS}
    inits = {spec.initializer: jax.vmap(make_init(spec, 4, 2), (0, None, None)) for spec in specs}
    drawn = jax.jit(lambda *of: {name: init(*of).params for name, init in inits.items()})  # one program
    for name, params in drawn(np.arange(6, dtype=np.uint32), hparams, x).items():
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3]
        assert len(kernels) == 3, name
        for kernel in kernels:
            assert len({one.tobytes() for one in np.asarray(kernel)}) == 6, name


def test_package_entries_pass_the_checks() -> None:
    for registry, entry in [(r, e) for r in (activations, initializers, networks, tasks) for e in r]:
        assert ours(registry[entry]), entry


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu", "selu"))
def test_package_activations_pass_the_checks(name: str) -> None:
    check_functions.check_activation(name, {field: getattr(SPEC, field) for field in TRACED_FIELDS}, certified=True)


LAYERS = {
    "first": Layer(0, 3, 3, 5, False),
    "hidden": Layer(1, 3, 5, 5, False),
    "last": Layer(2, 3, 5, 2, True),
    "one weight": Layer(1, 3, 1, 1, False),  # an orthogonal kernel of one weight is 1 or -1
}


@pytest.mark.parametrize("layer", tiered(LAYERS, "first"))
def test_package_initializers_pass_the_checks(layer: str) -> None:
    for name in initializers:
        check_functions.check_layer(name, LAYERS[layer])
