"""Checks of Flax networks: form, output, state, weights by seed, and RunSpec fields. They run before anything compiles."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.components import random_keys
from relu_study.components.entry_errors import calling
from relu_study.components.flax_models import FlaxModel, Kernel, as_functions
from relu_study.components.metrics.metric import default_metrics
from relu_study.components.networks import OWN, initializer_of, network_of
from relu_study.components.options import filled
from relu_study.components.registry import activations, initializers, metrics, networks, ours
from relu_study.components.tasks.task import Signature
from relu_study.engine.flax_init import by_path, called_kernels, plain
from relu_study.engine.forward import NETWORK_FIELDS, flax_model, forward_of, network_spec, sites_of
from relu_study.engine.tapped_sites import TappedNetwork
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec
from relu_study.watch.program import Program

READ = (*NETWORK_FIELDS, "options", "option")  # attributes of a RunSpec that a build function may read
SIZES = ("depth", "width", "activation")
QUICK = {"cpu": {"xla_backend_optimization_level": "0"}}  # a check draws weights only twice


def check_flax_network(spec: RunSpec, signature: Signature) -> list[str]:
    """Raise UserError if a Flax network breaks its contract. Return notes for the plan and the report.

    Tests check the calls and the weights of the package's networks.
    """
    network, what = network_of(spec), f"network {spec.network!r}"
    is_own = not ours(networks[spec.network])
    ignored = _check_reads(spec, signature)
    with calling(what, network.function):
        model = flax_model(network, network_spec(spec), signature.inputs, signature.outputs)
        x = jax.ShapeDtypeStruct((2, *signature.inputs.shape), signature.inputs.dtype)
        if is_own:
            _check_call(what, model, x, (2, *signature.outputs.shape))
        kernels = called_kernels(model, signature.inputs)
    if is_own:
        _check_weights(what, model)
    _check_initializer(what, model, spec, kernels)
    notes = [*ignored, *(_mode_notes(what, model, x) if is_own else []), *_weight_notes(what, model, spec, kernels)]
    if not sites_of(spec, signature):
        return [*notes, f"{what} has no sites: no nonlinearity after weights was found in it, so no unit is measured"]
    if is_own:
        TappedNetwork.of(forward_of(spec, signature), signature, 2)
    return notes


def _mode_notes(what: str, model: FlaxModel, x: Any) -> list[str]:
    """Return a note about layers with a training mode that is not set."""
    notes = []
    modes = [_operations(functools.partial(_call, model, train=train), x) for train in (False, True)]
    if model.has_modes and modes[0] == modes[1]:
        notes.append(
            f"{what} has dropout or batch normalisation, and computes the same in training mode. "
            "Let its __call__ take `train`, or leave the mode of its layers to model.train()"
        )
    return notes


def _weight_notes(what: str, model: FlaxModel, spec: RunSpec, kernels: Sequence[Kernel]) -> list[str]:
    """Return a note about weights that the initialiser leaves as they are."""
    notes = []
    if initializer_of(spec) != OWN:
        drawn = {kernel.path for kernel in kernels}
        own = [path for path, leaf in by_path(model.params).items() if leaf.ndim > 1 and path not in drawn]
        kept = [".".join(path) for path in own if "embedding" not in path]
        if kept:
            notes.append(f"{what}: initializer {initializer_of(spec)!r} leaves {', '.join(kept[:3])} as the modules draw them")
    return notes


def unbounded(network: str, requested: Sequence[str]) -> list[str]:
    """Return a note for requested metrics of interval bounds, which a Flax network does not have.

    A study that requests all default metrics names none of them itself.
    """
    implied = set(default_metrics()) if set(default_metrics()) <= set(requested) else set[str]()
    without = [name for name in requested if "bound" in metrics[name].requires and name not in implied]
    if not without:
        return []
    return [f"network {network!r} is a Flax module without interval bounds, so {', '.join(without)} has no values"]


def _check_reads(spec: RunSpec, signature: Signature) -> list[str]:
    """Raise UserError if a build function reads a field that is no part of the network, or ignores one that is set.

    Return a note for each ignored size or activation, which a study may set for other networks.
    """
    network, read = network_of(spec), set[str]()

    class Recorded(RunSpec):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                read.add(name)
            return super().__getattribute__(name)

        def option(self, name: str) -> Any:
            read.add(f"option {name}")
            return canonical.option(name)

    what, canonical = f"network {spec.network!r}", filled(network_spec(spec))
    recorded = Recorded(**{name: getattr(canonical, name) for name in (*NETWORK_FIELDS, "options")})
    read.clear()

    def build(rngs: Any) -> Any:
        return network.function(recorded, signature.inputs, signature.outputs, rngs=rngs)

    with calling(what, network.function):
        model = as_functions(what, build, signature.inputs)
    fields = set(RunSpec.__dataclass_fields__)
    for name in sorted(read & fields - {*READ}):
        raise UserError(
            f"{what} reads {name}, which is no part of a network: its program serves all values. "
            f"Read only {', '.join(NETWORK_FIELDS[1:])} and options."
        )
    takes_leak = "leak" in activations[spec.activation].hparams  # by a `Traced` variable, as the dropout rate
    fields_set = {name: getattr(spec, name) for name in (*NETWORK_FIELDS[1:], "dropout_rate", *["leak"] * takes_leak)}
    fields_set = {name: value for name, value in fields_set.items() if value != getattr(RunSpec(), name)}
    options_set = {name: value for name, value in spec.options if name in network.options and "options" not in read}
    ignored = {
        name: value
        for name, value in (fields_set | options_set).items()
        if not {name, f"option {name}"} & (read | {*model.traced})
    }
    for name, value in ignored.items():
        if name not in SIZES:
            raise UserError(f"{what} does not read {name}, so {name}={value!r} would do nothing. Leave it out.")
    return [f"{what} does not read {name}, so {name}={value!r} does nothing" for name, value in ignored.items()]


def _check_call(what: str, model: FlaxModel, x: Any, shape: tuple[int, ...]) -> None:
    """Raise UserError for outputs of a wrong shape, variables that change their shapes, and calls that differ."""
    for train in (False, True):
        out, rest = jax.eval_shape(functools.partial(_call, model, train=train), x)
        if getattr(out, "shape", None) != shape or not jnp.issubdtype(out.dtype, jnp.floating):
            returned = f"{out.dtype} of shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
            raise UserError(f"{what} returns {returned} for {shape[0]} examples. Return floats of shape {shape}.")
        if _shapes(rest) != _shapes(model.rest):
            changed = sorted(set(_shapes(rest).items()) ^ set(_shapes(model.rest).items()))[0][0]
            raise UserError(f"{what} changes the shape of its variable {changed} in a call. Keep structure, shapes and dtypes.")
    if not random_keys.repeats(lambda x: _call(model, x)[0], x):
        raise UserError(f"{what} is different each time it is traced. Read no random state of NumPy or Python, and no counter.")


def _operations(function: Any, x: Any) -> list[str]:
    """Return the operations on which the results of a function depend."""
    program = Program.of(jax.make_jaxpr(function)(x))
    live, operations = set(program.outputs), []
    for op in reversed(program.ops):
        if live.intersection(op.outs):
            live.update(op.ins)
            operations.append(f"{op.name} {[program.shape(value) for value in op.outs]}")
    return operations


def _call(model: FlaxModel, x: Any, train: bool = False) -> tuple[Any, Any]:
    return model.apply(_zeros(model.params), _zeros(model.rest), x, train, jax.random.key(0))


def _zeros(shapes: Any) -> Any:
    """Return zeros, or keys, of these shapes."""

    def zero(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zero, shapes)


def _shapes(tree: Any) -> dict[str, str]:
    return {".".join(plain(path)): str(jax.typeof(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_weights(what: str, model: FlaxModel) -> None:
    """Raise UserError if two seeds have the same weights, unless all weights of the array are equal."""
    draw = jax.jit(lambda seed: model.init(seed, {}), compiler_options=QUICK.get(jax.default_backend()))
    with calling(what):
        one, two = (draw(jnp.uint32(seed)) for seed in (0, 1))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one[1]), jax.tree.leaves(two[1]), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) and (jax.random.key_data(a) == jax.random.key_data(b)).all():
            where = ".".join(plain(path))
            raise UserError(f"{what}: the random key {where} is the same for all seeds. Make its layers with `rngs`.")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one[0]), jax.tree.leaves(two[0]), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.size > 1 and np.array_equal(a, b, equal_nan=True) and (a != a.flat[0]).any():
            where = ".".join(plain(path))
            raise UserError(
                f"{what}: the weights {where} are not drawn by the run's seed, so all seeds would begin with the "
                "same ones. Draw them from `rngs`."
            )


def _check_initializer(what: str, model: FlaxModel, spec: RunSpec, kernels: Sequence[Kernel]) -> None:
    """Raise UserError if initialiser, gain or bias shift have nothing to act on, or the initialiser reads inputs of layers."""
    name = initializer_of(spec)
    if name != OWN and initializers[name].needs_inputs:
        raise UserError(
            f"{what} is a Flax module, and initializer {name!r} reads the inputs of every layer. Choose one that reads none."
        )
    if name != OWN and not kernels:
        raise UserError(f"{what} has no Dense, Linear, Conv or attention kernel that initializer {name!r} could draw. Use 'own'.")
    if spec.gain != 1 and len(kernels) < 2:
        raise UserError(f"{what} has no hidden kernel, so gain={spec.gain:g} would do nothing. Leave it out.")
    if spec.bias_shift and not any(kernel.bias for kernel in kernels[:-1]):
        raise UserError(f"{what} has no hidden bias, so bias_shift={spec.bias_shift:g} would do nothing. Leave it out.")
    for kernel in kernels:
        if name != OWN and by_path(model.params)[kernel.path].size != kernel.fan_in * kernel.fan_out:
            where = ".".join(kernel.path)
            raise UserError(f"{what}: {where} stacks several kernels, which initializer {name!r} cannot draw. Use 'own'.")
