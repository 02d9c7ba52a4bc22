"""Shipped convolutional, residual and attention networks: shapes, sites, parameters and initial weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import tiered

from relu_study.components.networks import initializer_of
from relu_study.components.registry import activations, networks, ours
from relu_study.components.tasks.task import Signature
from relu_study.engine import compilation
from relu_study.engine.flax_init import by_path, flax_layers
from relu_study.engine.forward import forward_of, probe_function, sites_of
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec
from relu_study.watch.find import find_sites

FORMS = {
    "image": Signature(8, 2, 8 * 8, 3, "ce", input_shape=(8, 8, 1)),
    "wide image": Signature(8, 2, 6 * 4 * 3, 3, "ce", input_shape=(6, 4, 3)),
    "vector": Signature(8, 2, 10, 3, "ce"),
    "sequence": Signature(8, 2, 6 * 2, 1, input_shape=(6, 2)),
    "tokens": Signature(8, 2, 6, 3, "ce", input_shape=(6,), input_dtype="int32"),
    "tokens by position": Signature(8, 2, 6, 18, "ce", input_shape=(6,), input_dtype="int32", output_shape=(6, 3)),
}
SUPPORTED = [(name, form) for name in ("cnn", "resnet", "vit") for form in FORMS if name == "vit" or "tokens" not in form]
SPEC = RunSpec(width=4, depth=2, norm="layer_norm")
IMAGE = FORMS["image"]
SEEDS = np.arange(12, dtype=np.uint32)


def call(spec: RunSpec, signature: Signature, train: bool) -> Any:
    """The shapes of the outputs and of the other variables after a call with 5 examples."""
    model = forward_of(spec, signature).flax
    assert model is not None
    x = jax.ShapeDtypeStruct((5, *signature.inputs.shape), signature.inputs.dtype)
    return jax.eval_shape(lambda params, rest, x: model.apply(params, rest, x, train, None), model.params, model.rest, x)


def found(spec: RunSpec, signature: Signature) -> list[Any]:
    """The sites that a user's `find_sites` finds."""
    forward = forward_of(spec, signature)
    assert forward.flax is not None
    x = jax.ShapeDtypeStruct((5, *signature.inputs.shape), signature.inputs.dtype)
    return find_sites(probe_function(forward), forward.params, forward.flax.rest, x)


def size(spec: RunSpec, signature: Signature = IMAGE) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(forward_of(spec, signature).params))


def weights(spec: RunSpec, signature: Signature = IMAGE, **numbers: float) -> dict[tuple[str, ...], np.ndarray]:
    """The initial parameters of all seeds, by their paths."""
    fields = {name: jnp.full(len(SEEDS), numbers.get(name, getattr(RunSpec(), name)), jnp.float32) for name in TRACED_FIELDS}
    init = compilation.init_program(spec, signature.inputs, signature.outputs)
    return {path: np.asarray(leaf) for path, leaf in by_path(init(jnp.asarray(SEEDS), fields, None).params).items()}


@pytest.mark.parametrize(("name", "form"), SUPPORTED)
@pytest.mark.parametrize("norm", ["none", "layer_norm", "batch_norm"])
def test_outputs_have_the_shape_of_the_task(name: str, form: str, norm: str) -> None:
    spec, signature = SPEC.replace(network=name, norm=norm), FORMS[form]
    if (name, norm) == ("vit", "batch_norm"):
        return
    for train in (False, True):
        out, rest = call(spec, signature, train)
        assert out.shape == (5, *signature.outputs.shape) and out.dtype == jnp.float32
        assert jax.tree.map(jnp.shape, rest) == jax.tree.map(jnp.shape, forward_of(spec, signature).flax.rest)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "activation", tiered([name for name in activations if ours(activations[name])], "relu", "crelu", "linear")
)
@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_sites_are_the_activations_in_order(name: str, activation: str) -> None:
    """An activation with several outputs per unit has one site for each. A traced leak has no name, and the identity no site."""
    spec = SPEC.replace(network=name, activation=activation)
    layers = {
        "cnn": ["stages.0.norm", "stages.1.norm"],
        "resnet": [f"blocks.{i}.{part}.norm" for i in range(2) for part in ("first", "second")] + ["norm"],
        "vit": ["blocks.0.up", "blocks.1.up"],
    }[name]
    units, fanout = 16 if name == "vit" else 4, activations[activation].fanout
    each = {"linear": [], "crelu": ["relu", "elementwise"], "leaky_relu": ["elementwise"]}.get(activation, [activation])
    expected = [(layer if i == 0 else f"{layer}.{i + 1}", units) for layer in layers for i, _ in enumerate(each)]
    sites = found(spec, IMAGE)
    assert [(site.name, site.units) for site in sites] == expected and len(each) in (0, fanout)
    assert [site.activation.partition("(")[0] for site in sites] == each * len(layers)
    assert [units for _, units in sites_of(spec, IMAGE)] == [units for _, units in expected]


@pytest.mark.parametrize(("name", "form"), SUPPORTED)
def test_no_input_has_other_sites(name: str, form: str) -> None:
    spec, signature = SPEC.replace(network=name), FORMS[form]
    assert len(found(spec, signature)) == {"cnn": 2, "resnet": 5, "vit": 2}[name]


def test_numbers_of_parameters() -> None:
    """Kernels, biases, and a scale and shift of every normalisation."""
    for depth, width in ((1, 4), (3, 6)):
        spec = RunSpec(network="cnn", depth=depth, width=width)
        pixels = max(8 >> depth, 1) ** 2
        convs = 9 * width + (depth - 1) * 9 * width**2
        assert size(spec) == convs + depth * width + pixels * width * 3 + 3
        assert size(spec.replace(norm="layer_norm")) == size(spec) + depth * 2 * width
        assert size(spec.replace(norm="batch_norm")) == size(spec) + depth * width  # scale and shift, without the bias

        spec = spec.replace(network="resnet")
        assert size(spec) == 10 * width + depth * 2 * (9 * width**2 + width) + width * 3 + 3
        assert size(spec.replace(norm="layer_norm")) == size(spec) + (2 * depth + 1) * 2 * width
        assert size(spec.replace(activation="crelu")) == size(spec) + depth * 2 * 9 * width**2 + 3 * width

        spec = spec.replace(network="vit")
        block = 4 * (width**2 + width) + width * 4 * width + 4 * width + 4 * width * width + width
        embedding = 4 * width + width + 16 * width  # of patches and positions
        assert size(spec) == embedding + depth * block + 3 * width + 3
        assert size(spec.replace(norm="layer_norm")) == size(spec) + (2 * depth + 1) * 2 * width
        assert size(spec.replace(patch=4)) == size(spec) + 12 * width - 12 * width
        assert size(spec, FORMS["tokens"]) == (256 + 6) * width + depth * block + 3 * width + 3
        assert size(spec.replace(vocabulary=5), FORMS["tokens"]) == size(spec, FORMS["tokens"]) - 251 * width


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_each_field_changes_the_network(name: str) -> None:
    def text(**changes: Any) -> str:
        spec = RunSpec(network=name, depth=2, width=4).replace(**changes)
        forward = forward_of(spec, IMAGE)
        x = jax.ShapeDtypeStruct((2, *IMAGE.inputs.shape), jnp.float32)
        return str(jax.make_jaxpr(probe_function(forward))(forward.params, forward.flax.rest, x))  # type: ignore[union-attr]

    fields: list[dict[str, Any]] = [{"activation": "tanh"}, {"norm": "layer_norm"}, {"depth": 3}, {"width": 6}]
    fields += [{"patch": 4}, {"heads": 4}] if name == "vit" else [{"norm": "batch_norm"}]
    assert len({text(), *(text(**changes) for changes in fields)}) == len(fields) + 1


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_kernels_have_the_scheme_of_the_initializer(name: str) -> None:
    """Variance 2 / fan_in in all layers but the last, other kernels for every seed, and gain and bias shift of hidden layers."""
    spec = RunSpec(network=name, depth=1, width=8, initializer="he_normal", activation="crelu")
    drawn, moved = weights(spec), weights(spec, gain=2.0, bias_shift=0.5)
    layers = flax_layers(spec, IMAGE)
    kernels = [path for path in drawn if path[-1] == "kernel"]
    assert len(kernels) == len(layers) == {"cnn": 2, "resnet": 4, "vit": 8}[name]
    for path in kernels:
        kernel, bias = drawn[path], (*path[:-1], "bias")
        assert len({one.tobytes() for one in kernel}) == len(SEEDS), path  # no two seeds share a kernel
        if path[0] == "output":
            assert np.array_equal(moved[path], kernel) and not moved[bias].any()
            continue
        outputs = kernel.shape[-2:] if path[-2] in ("query", "key", "value") else kernel.shape[-1:]
        fan_in = kernel[0].size // math.prod(outputs)
        assert kernel.var() == pytest.approx(2 / fan_in, rel=6 * math.sqrt(2 / kernel.size)), path
        assert np.array_equal(moved[path], 2 * kernel) and not drawn[bias].any() and np.all(moved[bias] == 0.5), path
    others = [path for path in drawn if path[-1] not in ("kernel", "bias")]
    assert others == ([("positions",)] if name == "vit" else [])
    for path in others:
        assert np.array_equal(moved[path], drawn[path]) and len({one.tobytes() for one in drawn[path]}) == len(SEEDS)
    expected = {"cnn": [9, 256], "resnet": [9, 144, 144, 16], "vit": [4, 8, 8, 8, 8, 8, 64, 8]}[name]
    assert [layer.fan_in for layer in layers] == expected and [layer.last for layer in layers].count(True) == 1


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_own_weights_are_those_of_the_modules(name: str) -> None:
    """Flax draws kernels of variance 1 / fan_in. The same seed gives the same weights in any company."""
    spec = RunSpec(network=name, depth=1, width=8, initializer="own")
    drawn = weights(spec)
    assert len({one.tobytes() for path in drawn if path[-1] == "kernel" for one in drawn[path]}) == len(SEEDS) * sum(
        path[-1] == "kernel" for path in drawn
    )
    output = drawn["output", "kernel"]
    assert output.var() == pytest.approx(1 / output.shape[1], rel=6 * math.sqrt(2 / output.size))
    init = compilation.init_program(spec, IMAGE.inputs, IMAGE.outputs)
    numbers = {name: jnp.full(len(SEEDS), getattr(RunSpec(), name), jnp.float32) for name in TRACED_FIELDS}
    turned = by_path(init(jnp.asarray(SEEDS[::-1].copy()), numbers, None).params)
    assert all(np.array_equal(np.asarray(turned[path])[::-1], drawn[path]) for path in drawn)


def test_default_initializers() -> None:
    defaults = {name: initializer_of(RunSpec(network=name)) for name in ("cnn", "resnet", "vit")}
    assert defaults == {"cnn": "he_normal", "resnet": "he_normal", "vit": "lecun_normal"}
    assert networks["vit"].options == {"patch": 2, "heads": 2, "vocabulary": 256}


@pytest.mark.parametrize(
    ("name", "form", "changes", "message"),
    [
        ("cnn", "tokens", {}, r"^network 'cnn' convolves floats, but the inputs are int32\[6\]\. Choose network='vit'"),
        ("resnet", "tokens by position", {}, r"^network 'resnet' convolves floats"),
        ("vit", "image", {"norm": "batch_norm"}, r"^network 'vit' has no form with norm='batch_norm'\. Choose 'layer_norm'"),
        ("vit", "image", {"heads": 3}, r"^network 'vit' cannot divide width=4 among heads=3\. Choose a multiple of heads"),
        ("vit", "image", {"heads": 0}, r"^network 'vit' cannot divide width=4 among heads=0"),
        (
            "vit",
            "image",
            {"patch": 3},
            r"^network 'vit' cannot divide inputs of shape \(8, 8, 1\) into patches of patch=3\. .* 8\.",
        ),
        ("vit", "wide image", {"patch": 4}, r"^network 'vit' cannot divide .* Choose a divisor of 6 and 4\."),
        ("vit", "vector", {"patch": 0}, r"^network 'vit' cannot divide"),
        ("vit", "tokens", {"vocabulary": 0}, r"^network 'vit' has vocabulary=0\. Give the number of distinct tokens"),
    ],
)
def test_faults_are_refused_in_one_line(name: str, form: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        forward_of(SPEC.replace(network=name, **changes), FORMS[form])


def test_outputs_of_other_positions_are_refused() -> None:
    signature = FORMS["image"]._replace(output_shape=(64, 3), d_out=192)
    with pytest.raises(UserError, match=r"^network 'vit' has 16 positions, but the outputs have shape \(64, 3\)"):
        forward_of(SPEC.replace(network="vit"), signature)
    with pytest.raises(UserError, match=r"^network 'cnn' predicts one vector for each example"):
        forward_of(SPEC.replace(network="cnn"), signature)


Arrays = dict[str, np.ndarray]  # of one run, by dotted path


def normalised(weights: Arrays, layer: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{layer}.scale"] + weights[f"{layer}.bias"]


def convolved(weights: Arrays, layer: str, x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] @ weights[f"{layer}.kernel"][i, j] for i in range(3) for j in range(3)]
    return np.sum(shifted, axis=0) + weights[f"{layer}.bias"]


def halves(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean(axis=(2, 4))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def dense(weights: Arrays, layer: str, x: np.ndarray, axes: int = 1) -> np.ndarray:
    return np.tensordot(x, weights[f"{layer}.kernel"], axes) + weights[f"{layer}.bias"]


def cnn_by_hand(weights: Arrays, x: np.ndarray) -> np.ndarray:
    for stage in ("stages.0", "stages.1", "stages.2"):
        x = halves(relu(normalised(weights, f"{stage}.norm", convolved(weights, f"{stage}.conv", x))))
    return dense(weights, "output", x.reshape(len(x), -1))


def resnet_by_hand(weights: Arrays, x: np.ndarray) -> np.ndarray:
    x = convolved(weights, "stem", x)
    for i in range(3):
        x = residual = x if i == 0 else halves(x)
        for part in (f"blocks.{i}.first", f"blocks.{i}.second"):
            residual = convolved(weights, f"{part}.conv", relu(normalised(weights, f"{part}.norm", residual)))
        x = x + residual
    return dense(weights, "output", relu(normalised(weights, "norm", x)).mean(axis=(1, 2)))


def vit_by_hand(weights: Arrays, x: np.ndarray) -> np.ndarray:
    patches = x.reshape(len(x), 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 16, 4)
    x = patches @ weights["embed.kernel"] + weights["embed.bias"] + weights["positions"]
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        h = normalised(weights, f"{block}.norm_1", x)
        q, k, v = (dense(weights, f"{block}.attention.{name}", h) for name in ("query", "key", "value"))
        scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]))
        mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(axis=-1, keepdims=True), v)
        x = x + dense(weights, f"{block}.attention.out", mixed, axes=2)
        h = normalised(weights, f"{block}.norm_2", x)
        x = x + dense(weights, f"{block}.down", relu(dense(weights, f"{block}.up", h)))
    return dense(weights, "output", normalised(weights, "norm", x).mean(axis=1))


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_outputs_equal_those_of_numpy(name: str) -> None:
    spec = RunSpec(network=name, depth=3, width=4, norm="layer_norm")
    model = forward_of(spec, IMAGE).flax
    assert model is not None
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(model.params)
    params = jax.tree.unflatten(tree, [0.5 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    x = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    found, _ = jax.jit(lambda params, x: model.apply(params, model.rest, x, False))(params, x)
    by_hand = {"cnn": cnn_by_hand, "resnet": resnet_by_hand, "vit": vit_by_hand}[name]
    exact = {".".join(path): np.asarray(leaf, np.float64) for path, leaf in by_path(params).items()}
    np.testing.assert_allclose(found, by_hand(exact, x.astype(np.float64)), rtol=1e-4, atol=1e-4)
