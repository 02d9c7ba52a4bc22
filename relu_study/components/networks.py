"""Registered networks: `build(spec, d_in, d_out, rngs) -> nnx.Module`, with `Site` modules as nonlinearities.

A network that consists of sums and the modules of `layers.py` declares `bounded = True`. Its units can then be certified dead.
It trains on `FeatureMajorBatch`, which is faster. Any other network takes arrays B x D.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from relu_study.components.layers import Context, Dense, Dropout, Norm, Site
from relu_study.components.registry import activations, networks
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

network = networks.register


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
