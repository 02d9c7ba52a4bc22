"""Registered networks: `build(spec, inputs, outputs, rngs)` returns a Flax module that is called as `model(x)`.

The package's `mlp` and `skip` have another form, `build(spec, d_in, d_out, rngs)`: an `nnx.Module` of the modules of
`layers.py`, called as `model(x, ctx)` on vectors. If it declares `bounded = True`, its units can be certified dead, and it
trains on `FeatureMajorBatch`, which is faster.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from relu_study.components.layers import Context, Dense, Dropout, Norm, Site
from relu_study.components.options import Scalar, check_declared, filled
from relu_study.components.registry import activations, networks
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

OWN = "own"  # initialiser: the weights as the network's modules draw them
SIZES = {"d_in", "d_out"}  # parameters of a build function that takes sizes, and whose model takes a Context


@dataclass(frozen=True, eq=False)
class Network:
    """A registered network. A call builds its model.

    `sized`: the function takes sizes, `build(spec, d_in, d_out, rngs)`, and its model a Context.
    """

    name: str
    function: Any  # a function or a class; anything else is refused by its check
    initializer: str  # the default
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def sized(self) -> bool:
        """Whether the function takes sizes and its model a Context."""
        return _takes_sizes(self.function)

    @property
    def bounded(self) -> bool:
        """Whether its units can be certified dead."""
        return bool(getattr(self.function, "bounded", False))

    def __call__(self, spec: RunSpec, inputs: Any, outputs: Any, rngs: nnx.Rngs) -> Any:
        return self.function(filled(spec), inputs, outputs, rngs=rngs)


def _takes_sizes(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    try:  # the metaclass of a module hides the parameters of its class
        parameters = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    except (TypeError, ValueError):  # compiled code without a signature
        return False
    return bool(SIZES & set(parameters))


def network(name: str, *, initializer: str | None = None, options: Any = None) -> Callable[[Any], Any]:
    """Return a decorator that registers `build(spec, inputs, outputs, rngs)` as a network, and returns it unchanged.

    `inputs` and `outputs` are the `jax.ShapeDtypeStruct`s of one example, without an axis of examples. `build` returns an
    `nnx.Module` or a Linen module, which is called as `model(x)` on a batch.

    Args:
      initializer: the initialiser of runs that set none. None: "own", the weights as the modules draw them.
      options: factors of this network, with their defaults. `spec.options` contains their values.

    Raises:
      UserError: for options that are no dictionary of names and defaults, or whose names have another meaning already.
    """

    def register(function: Any) -> Any:
        default = initializer or ("glorot_uniform" if _takes_sizes(function) else OWN)
        networks.add(name, Network(name, function, default, check_declared("network", name, options or {})))
        return function

    return register


def network_of(spec: RunSpec) -> Network:
    """Return the network of a spec."""
    entry = networks[spec.network]
    if isinstance(entry, Network):
        return entry
    return Network(spec.network, entry, "glorot_uniform" if _takes_sizes(entry) else OWN)


def initializer_of(spec: RunSpec) -> str:
    """Return the name of a spec's initialiser: its own, or the network's default."""
    return network_of(spec).initializer if spec.initializer == "default" else spec.initializer


class Block(nnx.Module):
    """A hidden block: Dense, optional normalisation, Site, optional dropout."""

    def __init__(self, spec: RunSpec, index: int, d_in: int, rngs: nnx.Rngs):
        self.dense = Dense(d_in, spec.width)
        self.norm = Norm(spec.norm, spec.width, rngs) if spec.norm != "none" else None
        self.site = Site(spec.activation)
        self.dropout = Dropout(spec.dropout, index) if spec.dropout != "none" else None

    def __call__(self, x: Any, ctx: Context) -> Any:
        x = self.dense(x, ctx)
        if self.norm is not None:
            x = self.norm(x, ctx)
        x = self.site(x, ctx)
        return x if self.dropout is None else self.dropout(x, ctx)


@network("mlp")
class MLP(nnx.Module):
    """A multilayer perceptron: `depth` hidden blocks of `width` units, then a dense output layer.

    If `output` is not linear, the output layer is a site too.
    """

    bounded = True
    skips = False  # whether every hidden block after the first adds its input

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        d_hidden = spec.width * activations[spec.activation].fanout
        self.hidden = nnx.List([Block(spec, i, d_hidden if i else d_in, rngs) for i in range(spec.depth)])
        self.output = Dense(d_hidden, d_out)
        self.output_site = Site(spec.output) if spec.output != "linear" else None

    def __call__(self, x: Any, ctx: Context) -> Any:
        for i, block in enumerate(self.hidden):
            x = x + block(x, ctx) if self.skips and i else block(x, ctx)
        x = self.output(x, ctx)
        return x if self.output_site is None else self.output_site(x, ctx)


@network("skip")
class Skip(MLP):
    """An `mlp` with a skip connection around every hidden block after the first: x + block(x).

    Source: He, Zhang, Ren & Sun 2015, arXiv 1512.03385, section 3.2 (equation 1; each block is one layer here).
    """

    skips = True

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        if activations[spec.activation].fanout > 1:
            raise UserError(
                f"network 'skip' adds a block's output to its input, but activation {spec.activation!r} has several outputs "
                f"per unit. Choose an activation with one output, or network='mlp'."
            )
        super().__init__(spec, d_in, d_out, rngs)
