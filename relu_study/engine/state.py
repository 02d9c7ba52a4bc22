"""Arrays and settings of the compiled programs: training state, data, traced hyperparameters, measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.layers import Context, Site
from relu_study.components.registry import networks
from relu_study.components.tasks.task import Signature
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

DEFAULT_EXAMPLES = 8192  # of the probe set, or all where there are fewer

TracedNumbers = Mapping[str, Float[Array, ""]]


class State(NamedTuple):
    """All that training changes of a run."""

    params: Any
    stats: Any
    opt: Any


class Weights(NamedTuple):
    """What a run begins with, before its optimiser has seen it."""

    params: Any
    stats: Any


class Data(NamedTuple):
    """What one run trains on and is judged by: inputs and targets side by side."""

    train: Float[Array, "n DO"]
    val: Float[Array, "v DO"]


class MeasureConfig(NamedTuple):
    """How a run is looked at. What is not asked for is not computed; a study asks for all of it."""

    examples: int | None = None  # None: DEFAULT_EXAMPLES, or all where there are fewer
    val_examples: int | None = 8192  # the most validation rows; None: all
    histograms: bool = True
    metrics: tuple[str, ...] | None = None  # None: every registered one
    every: int = 1  # epochs from one measurement to the next; the last epoch is measured whatever its number
    linear_bins: bool = True  # of the outputs of bounded activations; False: powers of two for them too

    def probe_set(self, signature: Signature) -> int:
        """N: the first N training examples are the probe set."""
        return min(self.examples or DEFAULT_EXAMPLES, signature.train_rows)

    def validation(self, signature: Signature) -> int:
        """The first of the validation rows, as many as `val_loss` reads."""
        return signature.val_rows if self.val_examples is None else min(signature.val_rows, self.val_examples)


def build(spec: RunSpec, d_in: int, d_out: int) -> nnx.Module:
    """The network of a spec with its weights still blank."""
    return networks[spec.network](spec, d_in, d_out, rngs=nnx.Rngs(0))


def site_units(spec: RunSpec, signature: Signature) -> dict[str, int]:
    """Units at each site, from shapes alone."""
    return {f"site_{i}": units for i, (_, units) in enumerate(sites_of(spec, signature), 1)}


def sites_of(spec: RunSpec, signature: Signature) -> list[tuple[str, int]]:
    """The activation and the units of each site, in the order of the calls."""
    found: list[tuple[str, int]] = []

    def look(x: Float[Array, "1 D"]) -> None:
        ctx = Context({name: jnp.zeros(()) for name in TRACED_FIELDS})
        build(spec, signature.d_in, signature.d_out)(x, ctx)
        found.extend((entry[0].activation, entry[1].shape[-1]) for entry in ctx.activations_log if isinstance(entry[0], Site))

    jax.eval_shape(look, jax.ShapeDtypeStruct((1, signature.d_in), jnp.result_type(float)))
    return found


def components_of(spec: RunSpec, signature: Signature) -> tuple[Any, bool, Any]:
    """A network without its weights, whether it takes Columns and Intervals, and the shapes of its parameters."""
    model = nnx.eval_shape(lambda: build(spec, signature.d_in, signature.d_out))  # blank weights would compile a program a shape
    graph, params, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, getattr(model, "bounded", False), params
