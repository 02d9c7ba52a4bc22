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

DEFAULT_EXAMPLES = 8192  # of the probe set, or all if fewer

TracedNumbers = Mapping[str, Float[Array, ""]]


class State(NamedTuple):
    """The training state of a run: parameters, batch statistics, optimiser state."""

    params: Any
    stats: Any
    opt: Any


class Weights(NamedTuple):
    """The initial parameters and batch statistics of a run."""

    params: Any
    stats: Any


class Data(NamedTuple):
    """Training and validation data of one run: inputs and targets concatenated on the last axis."""

    train: Float[Array, "n DO"]
    val: Float[Array, "v DO"]


class MeasureConfig(NamedTuple):
    """How a run is measured. Only requested quantities are computed. The default is all of them."""

    probe_examples: int | None = None  # None: DEFAULT_EXAMPLES, or all if fewer
    val_examples: int | None = 8192  # maximum of validation examples; None: all
    histograms: bool = True
    metrics: tuple[str, ...] | None = None  # None: every registered one
    measure_every: int = 1  # epochs between measurements; the last epoch is always measured
    linear_bins: bool = True  # for outputs of bounded activations; False: powers of two

    def probe_set(self, signature: Signature) -> int:
        """N: the first N training examples are the probe set."""
        return min(self.probe_examples or DEFAULT_EXAMPLES, signature.train_rows)

    def validation(self, signature: Signature) -> int:
        """Number of validation examples that `val_loss` reads (the first ones)."""
        return signature.val_rows if self.val_examples is None else min(signature.val_rows, self.val_examples)


def build(spec: RunSpec, d_in: int, d_out: int) -> nnx.Module:
    """The network of a spec with placeholder weights."""
    return networks[spec.network](spec, d_in, d_out, rngs=nnx.Rngs(0))


def site_units(spec: RunSpec, signature: Signature) -> dict[str, int]:
    """Number of units at each site, from shapes only."""
    return {f"site_{i}": units for i, (_, units) in enumerate(sites_of(spec, signature), 1)}


def sites_of(spec: RunSpec, signature: Signature) -> list[tuple[str, int]]:
    """The activation and the units of each site, in the order of the calls."""
    sites: list[tuple[str, int]] = []

    def record(x: Float[Array, "1 D"]) -> None:
        ctx = Context({name: jnp.zeros(()) for name in TRACED_FIELDS})
        build(spec, signature.d_in, signature.d_out)(x, ctx)
        sites.extend((entry[0].activation, entry[1].shape[-1]) for entry in ctx.activations_log if isinstance(entry[0], Site))

    jax.eval_shape(record, jax.ShapeDtypeStruct((1, signature.d_in), jnp.result_type(float)))
    return sites


def components_of(spec: RunSpec, signature: Signature) -> tuple[Any, bool, Any]:
    """The graph of a network, whether it accepts FeatureMajorBatch and Interval, and the shapes of its parameters."""
    model = nnx.eval_shape(lambda: build(spec, signature.d_in, signature.d_out))  # no arrays: each shape would compile a program
    graph, params, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, getattr(model, "bounded", False), params
