"""Statistics, softmax, attention, masks and losses are no sites. Learned slopes, gates and written masks are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from watched_models import IMAGES, TOKENS, X, affine, built, dense, mlp, stacked

from relu_study.errors import UserError
from relu_study.watch.find import find_sites
from relu_study.watch.tap import trace

PARAMS = [dense(0, 6, 8), dense(1, 8, 8), dense(2, 8, 3)]
W = stacked(*(dense(seed, 6, 6)["w"] for seed in range(3)))
Y = jax.random.normal(jax.random.key(1), (64, 3))
SIGNS, LABELS = jnp.sign(Y), jnp.arange(64) % 3


def names(fn: Callable[..., Any], *args: Any) -> list[str]:
    return [place.name for place in trace(fn, args, {}).sites.places]


def before_a_product(norm: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda w, x: norm(x @ w[0]) @ w[1]


NORMS: dict[str, Callable[[Any], Any]] = {
    "standardised": jax.nn.standardize,
    "l2": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    "clipped l2": lambda h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-6),
    "l1": lambda h: h / jnp.abs(h).mean(-1, keepdims=True),
    "rms": lambda h: h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6),
    "largest": lambda h: h / jnp.max(jnp.abs(h), axis=-1, keepdims=True),
    "batch": lambda h: (h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5),
    "fast batch": lambda h: (h - h.mean(0)) / jnp.sqrt(jnp.maximum(jnp.square(h).mean(0) - jnp.square(h.mean(0)), 0) + 1e-5),
    "groups": lambda h: jax.nn.standardize(h.reshape(-1, 2, 3)).reshape(h.shape),
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "softmax by hand": lambda h: jnp.exp(h) / jnp.exp(h).sum(-1, keepdims=True),
    "stable softmax": lambda h: (e := jnp.exp(h - h.max(-1, keepdims=True))) / e.sum(-1, keepdims=True),
    "largest entry": lambda h: jax.nn.one_hot(h.argmax(-1), 6),
    "dropout": lambda h: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h / 0.5, 0),
    "masked": lambda h: jnp.where(jnp.arange(6) > 2, h, 0.0),
    "scaled": lambda h: h * 2 + 1,
    "converted": lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_normalisation_is_no_site(norm: str) -> None:
    assert names(before_a_product(NORMS[norm]), W, X) == []


@pytest.mark.parametrize("norm", [name for name in NORMS if "softmax" not in name and name != "largest entry"])
def test_an_activation_after_a_normalisation_is_a_site(norm: str) -> None:
    assert len(names(before_a_product(lambda h: jax.nn.relu(NORMS[norm](h))), W, X)) == 1


def attention(weights: Callable[[Any], Any]) -> Callable[..., Any]:
    def attend(w: Any, x: Any) -> Any:
        scores = jnp.einsum("btd,bsd->bts", x @ w[0], x @ w[1]) / jnp.sqrt(6.0)
        return jnp.einsum("bts,bsd->btd", weights(scores), x @ w[2]) @ w[0]

    return attend


CAUSAL = jnp.tril(jnp.ones((5, 5), bool))


@pytest.mark.parametrize(
    "weights",
    [
        lambda s: jax.nn.softmax(jnp.where(CAUSAL, s, -1e9)),
        lambda s: jax.nn.softmax(s, where=CAUSAL),
        lambda s: jnp.where(CAUSAL, jax.nn.softmax(s), 0.0),
        lambda s: jax.nn.softmax(50 * jnp.tanh(s / 50)),
        jax.nn.relu,
    ],
)
def test_attention_weights_are_no_sites(weights: Callable[[Any], Any]) -> None:
    assert names(attention(weights), W, TOKENS) == []


def of_output(loss: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda params, x, y: loss(mlp(params, x), y)


LOSSES: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "squared": (lambda out, y: (out - y) ** 2, Y),
    "absolute": (lambda out, y: jnp.abs(out - y), Y),
    "huber": (optax.huber_loss, Y),
    "log-cosh": (optax.log_cosh, Y),
    "quantile": (lambda out, y: jnp.maximum(0.9 * (y - out), -0.1 * (y - out)), Y),
    "hinge": (optax.hinge_loss, SIGNS),
    "hinge by hand": (lambda out, y: jnp.maximum(0, 1 - y * out), SIGNS),
    "squared hinge": (lambda out, y: jnp.square(jax.nn.relu(1 - y * out)), SIGNS),
    "cross-entropy of two classes": (optax.sigmoid_binary_cross_entropy, (SIGNS + 1) / 2),
    "focal": (optax.sigmoid_focal_loss, (SIGNS + 1) / 2),
    "first output": (lambda out, y: jnp.abs(out[:, 0] - y[:, 0]), Y),
    "weighted": (lambda out, y: jnp.abs(out - y) * jnp.abs(y), Y),
}


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_no_site(name: str, reduced: bool) -> None:
    loss, target = LOSSES[name]
    total = (lambda out, y: loss(out, y).mean()) if reduced else loss
    assert names(of_output(total), PARAMS, X, target) == ["0", "1"]


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (lambda out, y: optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), LABELS),
        (lambda out, y: optax.softmax_cross_entropy(out, jax.nn.one_hot(y, 3)).mean(), LABELS),
        (lambda out, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1)), LABELS),
        (lambda out, y: optax.kl_divergence(jax.nn.log_softmax(out), jax.nn.softmax(y)).mean(), Y),
        (lambda out, y: jnp.sqrt(jnp.sum((out - y) ** 2)), Y),
        (lambda out, y: jnp.linalg.norm(out - y, axis=-1).mean(), Y),
        (lambda out, y: optax.cosine_distance(out, y).mean(), Y),
    ],
)
def test_losses_of_whole_outputs_are_no_sites(loss: Callable[[Any, Any], Any], target: Any) -> None:
    assert names(of_output(loss), PARAMS, X, target) == ["0", "1"]


def test_a_reconstruction_of_the_input_has_no_site_for_its_loss() -> None:
    assert names(lambda params, x: jnp.abs(mlp(params, x) - x[:, :3]).mean(), PARAMS, X) == ["0", "1"]


def test_an_output_activation_is_a_site_also_below_a_loss() -> None:
    assert names(lambda params, x: jax.nn.sigmoid(mlp(params, x)), PARAMS, X) == ["0", "1", "2"]
    assert names(lambda params, x, y: jnp.mean((jnp.tanh(mlp(params, x)) - y) ** 2), PARAMS, X, Y) == ["0", "1", "2"]


SITES: dict[str, Callable[..., Any]] = {
    "prelu": lambda z, a: jnp.where(z > 0, z, a * z),
    "prelu of two parts": lambda z, a: jax.nn.relu(z) - a * jax.nn.relu(-z),
    "swish with a learned slope": lambda z, a: z * jax.nn.sigmoid(a * z),
    "mask": lambda z, a: z * (z > 0),
    "mask of floats": lambda z, a: z * (z > 0).astype(z.dtype),
    "mask without gradient": lambda z, a: z * jax.lax.stop_gradient(jnp.where(z > 0, 1.0, 0.0)),
    "scaled": lambda z, a: a * jax.nn.relu(z),
    "residual": lambda z, a: z + jax.nn.relu(z),
    "clipped at a learned value": lambda z, a: jnp.minimum(jax.nn.relu(z), a),
    "jit and remat": lambda z, a: jax.jit(jax.checkpoint(jax.nn.relu))(z),
}


@pytest.mark.parametrize("slope", [jnp.float32(0.25), jnp.full(6, 0.25)], ids=["scalar", "vector"])
@pytest.mark.parametrize("name", SITES)
def test_a_learned_or_written_nonlinearity_is_one_site(name: str, slope: Any) -> None:
    phi = SITES[name]
    assert len(names(lambda params, x: phi(x @ params["w"][0], params["a"]) @ params["w"][1], {"w": W, "a": slope}, X)) == 1


@pytest.mark.parametrize("gate", [jax.nn.silu, jax.nn.sigmoid, jax.nn.gelu, jax.nn.relu, jnp.tanh])
def test_a_gate_is_one_site(gate: Callable[[Any], Any]) -> None:
    def net(w: Any, x: Any) -> Any:
        return (gate(x @ w["gate"]) * (x @ w["up"])) @ w["down"]

    assert names(net, dict(zip(("up", "gate", "down"), W, strict=True)), X) == ["gate"]


def test_pooling_and_concatenation_are_no_sites() -> None:
    def net(w: Any, x: Any) -> Any:
        h = (x @ w[0]).reshape(16, 4, 6)
        h = jnp.concatenate([h.max(1), h.mean(1)], axis=-1)[:, 3:9]
        return jax.nn.relu(h @ w[1]).sort(axis=-1) @ w[2]

    assert len(names(net, W, X)) == 1


def test_inputs_before_the_first_layer_are_no_sites() -> None:
    assert names(lambda w, x: jax.nn.relu(jnp.tanh(x) @ w[0]), W, X) == ["w"]
    assert names(lambda w, x: jax.nn.relu(jnp.where(x > 0, x, 0.0) @ jnp.abs(w[0])), W, X) == ["w"]


def looping(w: Any, x: Any) -> Any:
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jax.nn.relu(s[1] @ w["layer"])), (0, x))[1]


@jax.custom_vjp
def layer(w: Any, x: Any) -> Any:
    return jax.nn.relu(x @ w["layer"])


layer.defvjp(lambda w, x: (layer(w, x), None), lambda _, cotangent: (cotangent, cotangent))


def sharded(w: Any, x: Any) -> Any:
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    inner = lambda w, x: jax.nn.relu(x @ w)  # noqa: E731
    return jax.shard_map(inner, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec("d"))(w["layer"], x)


@pytest.mark.parametrize(("fn", "kind"), [(looping, "while loop"), (layer, "custom_vjp function"), (sharded, "shard_map")])
def test_a_construct_that_hides_a_site_is_refused_by_name(fn: Callable[..., Any], kind: str) -> None:
    with pytest.raises(UserError, match=rf"{kind} at .*contains the site 'layer.*cannot be tapped\. \w+") as refused:
        find_sites(lambda w, x: fn(w, x), {"layer": W[0]}, X)
    assert __file__ in str(refused.value)


def test_constructs_without_sites_are_kept_whole() -> None:
    def net(w: Any, x: Any) -> Any:
        h = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] @ w), (0, x))[1]
        return jax.nn.relu(jax.lax.fori_loop(0, 3, lambda _, h: h * 0.5, h) @ w)

    assert names(net, W[0], X) == ["w"]


def test_a_single_example_has_the_same_sites() -> None:
    assert names(mlp, PARAMS, X[0]) == names(mlp, PARAMS, X[:1]) == ["0", "1"]


def test_a_layer_of_one_unit_is_a_site() -> None:
    params = [dense(0, 6, 1), {"w": jnp.ones((1, 3)), "b": jnp.zeros(3)}]
    (site,) = find_sites(mlp, params, X)
    assert (site.name, site.units) == ("0", 1)
    assert names(lambda params, x: jax.nn.sigmoid(affine(params[0], x)[:, 0]), params, X) == ["0"]


class Trained(nnx.Module):
    """Normalisations in training mode: their statistics are those of the batch."""

    def __init__(self, norm: nnx.Module, rngs: nnx.Rngs):
        self.conv, self.norm, self.out = nnx.Conv(3, 4, (3, 3), rngs=rngs), norm, nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(nnx.relu(self.norm(self.conv(x))))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"])
def test_flax_normalisations_in_training_mode_are_no_sites(kind: str, fast: bool) -> None:
    options = {"num_groups": 2} if kind == "GroupNorm" else {}
    norm = functools.partial(getattr(nnx, kind), 4, use_fast_variance=fast, **options)
    graph, state = nnx.split(built(lambda rngs: Trained(norm(rngs=rngs), rngs)))

    def train(state: Any, x: Any) -> Any:
        merged = nnx.merge(graph, state)
        out = merged(x)
        return out, nnx.state(merged, nnx.BatchStat)

    assert [(site.name, site.activation) for site in find_sites(train, state, IMAGES)] == [("norm", "relu")]


def test_parameters_may_be_constants_of_a_closure() -> None:
    def net(x: Any) -> Any:
        return mlp(PARAMS, x).max(0) + jax.nn.softmax(mlp(PARAMS, x)).sum(0)

    found = find_sites(net, X)
    assert [(site.name, site.units) for site in found] == [("dense", 8), ("dense.2", 8), ("dense.3", 8), ("dense.4", 8)]


def test_a_divergence_in_the_loss_has_no_sites() -> None:
    def loss(w: Any, x: Any, noise: Any) -> Any:
        mean, log_variance = x @ w["mean"], x @ w["log_variance"]
        decoded = jax.nn.relu((mean + jnp.exp(0.5 * log_variance) * noise) @ w["up"]) @ w["down"]
        return jnp.mean((decoded - x) ** 2) - 0.5 * jnp.mean(1 + log_variance - mean**2 - jnp.exp(log_variance))

    w = dict(zip(("mean", "log_variance", "up"), W, strict=True)) | {"down": W[0]}
    found = [(site.name, site.activation) for site in find_sites(loss, w, X, X)]
    assert found == [("log_variance", "elementwise"), ("up", "relu")]  # exp(z / 2) is the activation of the scale


@pytest.mark.parametrize("guard", [jnp.nan_to_num, lambda z: jnp.clip(z, -1e4, 1e4)])
def test_a_guard_against_infinities_is_no_site(guard: Callable[[Any], Any]) -> None:
    assert names(lambda w, x: guard(x @ w[0]) @ w[1], W, X) == []


def test_a_batch_may_be_a_dictionary() -> None:
    def loss(w: Any, batch: Any) -> Any:
        return (jnp.abs(jax.nn.relu(batch["x"] @ w[0]) @ w[1] - batch["y"]) * batch["mask"]).mean()

    (site,) = find_sites(loss, W, {"x": X[:, :6], "y": X, "mask": jnp.ones((64, 1))})
    assert (site.name, site.units) == ("w", 6)
