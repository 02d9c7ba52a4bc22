"""Random stacks of layers with the names of their sites, for Hypothesis.

A part is a function of its parameters and an activation of shape (2, 6, 4), which it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st
from watched_activations import ACTIVATIONS, NAMES

SHAPE = (2, 6, 4)
CHOICES = [name for name in ACTIVATIONS if name not in ("square", "sparse_sigmoid", "another slope at 0", "mask", "threshold")]
Sites = list[tuple[str, str]]


@dataclass
class Part:
    """A part of a stack: its parameters, its function, and the layer and activation of each site."""

    params: dict[str, Any]
    apply: Callable[[Any, Any], Any]
    sites: Sites
    label: str = ""

    def __repr__(self) -> str:
        return self.label

    def named(self, path: str, ending: str = "") -> Sites:
        """Return the sites under a path, with the index of an iteration at the end."""
        return [(f"{path}.{layer}{ending}", activation) for layer, activation in self.sites]


def weights(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def dense(seed: int) -> dict[str, jax.Array]:
    return {"w": weights(seed, 4, 4), "b": weights(seed + 1, 4)}


def affine(layer: Any, x: Any) -> Any:
    return x @ layer["w"] + layer["b"]


def convolution(layer: Any, x: Any) -> Any:
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, layer["kernel"], (1,), "SAME", dimension_numbers=numbers) + layer["bias"]


NORMS: dict[str, Callable[[Any], Any]] = {
    "layer": jax.nn.standardize,
    "rms": lambda h: h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6),
    "batch": lambda h: (h - h.mean((0, 1))) * jax.lax.rsqrt(h.var((0, 1)) + 1e-5),
    "l2": lambda h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-6),
    "l1": lambda h: h / (jnp.abs(h).mean(-1, keepdims=True) + 1e-6),
    "groups": lambda h: jax.nn.standardize(h.reshape(*h.shape[:-1], 2, 2)).reshape(h.shape),
}
PLAIN: dict[str, Callable[[Any], Any]] = {
    "max pooling": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 1), (1, 1, 1), "SAME"),
    "mean pooling": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 1), (1, 1, 1), "SAME") / 3,
    "largest position": lambda x: jnp.broadcast_to(x.max(1, keepdims=True), SHAPE),
    "mean position": lambda x: x + x.mean(1, keepdims=True),
    "mask of positions": lambda x: jnp.where(jnp.arange(6)[:, None] < 4, x, 0.0),
    "dropout": lambda x: jnp.where(jax.random.bernoulli(jax.random.key(3), 0.8, SHAPE), x / 0.8, 0.0),
    "reversed": lambda x: jnp.roll(x[:, ::-1], 1, axis=0),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "concatenation": lambda x: jnp.concatenate([x[..., 2:], x[..., :2]], axis=-1),
    "transposed": lambda x: jnp.swapaxes(jnp.swapaxes(x, 0, 1) + 0.5, 0, 1),
}


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """Draw one part: a layer with or without an activation."""
    kind = draw(st.sampled_from(["dense", "convolution", "linear", "norm", "residual", "gate", "attention", "plain", "prelu"]))
    detail = draw(st.sampled_from(sorted({"plain": PLAIN, "norm": NORMS}.get(kind, CHOICES))))
    part = layer(draw, kind, detail)
    part.label = f"{kind} {detail}"
    return part


def layer(draw: st.DrawFn, kind: str, detail: str) -> Part:
    """Return a part of one kind."""
    seed, name = draw(st.integers(0, 999)), draw(st.sampled_from(CHOICES))
    phi, known = ACTIVATIONS[name], NAMES.get(name, "elementwise")
    if kind == "plain":
        function = PLAIN[detail]
        return Part({}, lambda _, x: function(x), [])
    if kind == "linear":
        return Part({"dense": dense(seed)}, lambda p, x: affine(p["dense"], x), [])
    if kind == "convolution":
        params = {"conv": {"kernel": weights(seed, 3, 4, 4), "bias": weights(seed + 1, 4)}}
        return Part(params, lambda p, x: phi(convolution(p["conv"], x)), [("conv", known)])
    if kind == "norm":
        norm, learned = NORMS[detail], draw(st.booleans())
        affine_norm = {"norm": {"scale": weights(seed + 2, 4), "bias": weights(seed + 3, 4)}} if learned else {}

        def normalised(p: Any, x: Any) -> Any:
            h = norm(affine(p["dense"], x))
            return phi(h * p["norm"]["scale"] + p["norm"]["bias"] if learned else h)

        return Part({"dense": dense(seed)} | affine_norm, normalised, [("norm" if learned else "dense", known)])
    if kind == "residual":
        return Part({"dense": dense(seed)}, lambda p, x: x + phi(affine(p["dense"], x)), [("dense", known)])
    if kind == "gate":
        params = {"gate": dense(seed), "up": dense(seed + 5)}
        return Part(params, lambda p, x: phi(affine(p["gate"], x)) * affine(p["up"], x), [("gate", known)])
    if kind == "attention":
        params = {layer: dense(seed + 2 * index) for index, layer in enumerate(("query", "key", "value"))}

        def attend(p: Any, x: Any) -> Any:
            scores = jnp.einsum("btd,bsd->bts", affine(p["query"], x), affine(p["key"], x))
            weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -1e9))
            return x + jnp.einsum("bts,bsd->btd", weights, affine(p["value"], x))

        return Part(params, attend, [])
    if kind == "prelu":
        params = {"dense": dense(seed), "slope": jnp.abs(weights(seed + 2, 4))}
        return Part(
            params, lambda p, x: jnp.where((z := affine(p["dense"], x)) > 0, z, p["slope"] * z), [("dense", "elementwise")]
        )
    return Part({"dense": dense(seed)}, lambda p, x: phi(affine(p["dense"], x)), [("dense", known)])


@st.composite
def wrapped(draw: st.DrawFn) -> Part:
    """Draw a part inside a jit, remat, scan, cond, vmap or nothing."""
    inner, around = draw(parts()), draw(st.sampled_from(["nothing", "jit", "remat", "scan", "cond", "vmap"]))
    part = around_part(draw, inner, around)
    part.label = f"{around}({inner})"
    return part


def around_part(draw: st.DrawFn, part: Part, around: str) -> Part:
    """Return a part inside a transformation."""
    if around == "jit":
        return Part(part.params, jax.jit(part.apply), part.sites)
    if around == "remat":
        return Part(part.params, jax.checkpoint(part.apply), part.sites)
    if around == "scan":
        stacked = {"loop": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.9]), part.params)}

        def loop(params: Any, x: Any) -> Any:
            return jax.lax.scan(lambda h, p: (part.apply(p, h), None), x, params["loop"], length=2)[0]

        return Part(stacked, loop, part.named("loop", "[0]") + part.named("loop", "[1]"))
    if around == "cond":
        other = draw(parts())

        def branch(params: Any, x: Any) -> Any:
            first, second = (lambda x: part.apply(params["yes"], x)), (lambda x: other.apply(params["no"], x))
            return jax.lax.cond(x[0, 0, 0] > 0, first, second, x)

        return Part({"yes": part.params, "no": other.params}, branch, other.named("no") + part.named("yes"))
    if around == "vmap" and part.params:
        return Part(part.params, lambda p, x: jax.vmap(lambda h: part.apply(p, h[None])[0])(x), part.sites)
    return part


ENDS: dict[str, Callable[[Any, Any], Any]] = {
    "output": lambda out, y: out,
    "squared": lambda out, y: jnp.mean((out - y) ** 2),
    "absolute": lambda out, y: jnp.abs(out - y),
    "huber": lambda out, y: optax.huber_loss(out, y).sum(),
    "hinge": lambda out, y: jnp.maximum(0, 1 - y * out).mean(),
    "log-cosh": lambda out, y: optax.log_cosh(out, y).mean(),
    "binary cross-entropy": lambda out, y: optax.sigmoid_binary_cross_entropy(out, jnp.sign(y) / 2 + 0.5),
    "cross-entropy": lambda out, y: optax.softmax_cross_entropy(out, jax.nn.softmax(y)).mean(),
    "probabilities": lambda out, y: jax.nn.softmax(out),
}


@st.composite
def stacks(draw: st.DrawFn, largest: int = 4) -> tuple[Callable[[Any, Any, Any], Any], dict[str, Any], Sites]:
    """Draw `fn(params, x, y)` with its parameters and the names and activations of its sites, in order."""
    found = draw(st.lists(wrapped(), min_size=1, max_size=largest))
    end = ENDS[ending := draw(st.sampled_from(sorted(ENDS)))]
    params: dict[str, Any] = {f"part{index}": part.params for index, part in enumerate(found)}
    params |= {"first": dense(7), "last": dense(8)}

    def fn(params: Any, x: Any, y: Any) -> Any:
        h = affine(params["first"], x)
        for index, part in enumerate(found):
            h = part.apply(params[f"part{index}"], h)
        return end(affine(params["last"], h), y)

    fn.label = f"{found} {ending}"  # type: ignore[attr-defined]
    return fn, params, [site for index, part in enumerate(found) for site in part.named(f"part{index}")]
