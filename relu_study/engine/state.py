"""Arrays and settings of the compiled programs: training state, data, traced hyperparameters, measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from relu_study.components.networks import network_of
from relu_study.components.tasks.task import Signature, targets
from relu_study.study.measurement_times import Every
from relu_study.study.run_spec import RunSpec

DEFAULT_EXAMPLES = 8192  # of the probe set, or all if fewer

TracedNumbers = Mapping[str, Any]  # scalar arrays; an option that is not traced is a constant


class State(NamedTuple):
    """The training state of a run: parameters, all other variables (batch statistics, keys, counters), optimiser state."""

    params: Any
    stats: Any
    opt: Any


class Weights(NamedTuple):
    """The initial parameters and all other variables of a run."""

    params: Any
    stats: Any


class Data(NamedTuple):
    """Training and validation rows of one run.

    A row is a pytree of arrays: (input, target), or one vector with both if both are vectors of floats (`packed`). With a
    `table` of rows that all runs share, `train` and `val` are indices into it.
    """

    train: Any
    val: Any
    table: Any = None

    def rows(self, part: Any) -> Any:
        """Return the rows of `train` or `val`, or of a part of them."""
        return part if self.table is None else jax.tree.map(lambda leaf: leaf.at[part].get(mode="promise_in_bounds"), self.table)


def packed(signature: Signature) -> bool:
    """Whether input and target of a row are stored as one vector, which is gathered at once."""
    return not (signature.input_shape or signature.output_shape) and signature.input_dtype == "float"


def pack(signature: Signature, x: Any, y: Any) -> Any:
    """Return rows of inputs and targets, in the dtypes of the signature."""
    x = jnp.asarray(x, jnp.result_type(float) if signature.input_dtype == "float" else signature.input_dtype)
    y = targets(signature, y)
    return jnp.concatenate([x, y], axis=1) if packed(signature) else (x, y)


def unpack(signature: Signature, rows: Any) -> tuple[Any, Any]:
    """Return the inputs and the targets of rows."""
    return (rows[..., : signature.d_in], rows[..., signature.d_in :]) if packed(signature) else rows


def parameter_names(params: Any) -> list[str]:
    """Return the dotted path of each array of a pytree of parameters, in the order of its leaves."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path).removesuffix(".value") for path in paths]


class MeasureConfig(NamedTuple):
    """How a run is measured. Only requested quantities are computed. The default is all but the optional metrics."""

    probe_examples: int | None = None  # None: DEFAULT_EXAMPLES, or all if fewer
    val_examples: int | None = 8192  # maximum of validation examples; None: all
    histograms: bool = True
    metrics: tuple[str, ...] | None = None  # None: every default one
    measure_every: Every = 1  # epochs between measurements, or measured epochs; the end is always measured
    linear_bins: bool = True  # for outputs of bounded activations; False: powers of two

    def probe_set(self, signature: Signature) -> int:
        """N: the first N training examples are the probe set."""
        return min(self.probe_examples or DEFAULT_EXAMPLES, signature.train_rows)

    def validation(self, signature: Signature) -> int:
        """Number of validation examples that metrics read (the first ones)."""
        return signature.val_rows if self.val_examples is None else min(signature.val_rows, self.val_examples)

    def for_measurement(self) -> MeasureConfig:
        """The fields that a compiled measurement reads, with constants in the others."""
        return self._replace(measure_every=MeasureConfig().measure_every)


def build(spec: RunSpec, d_in: int, d_out: int) -> nnx.Module:
    """The network of a spec with placeholder weights, of a kind that takes sizes."""
    return network_of(spec)(spec, d_in, d_out, rngs=nnx.Rngs(0))
