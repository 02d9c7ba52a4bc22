"""Networks by name: `build(spec, d_in, d_out, rngs) -> nnx.Module` whose nonlinearities are `Site` modules.

One that is made of the modules of `sites.py` and of sums alone says so with `bounded = True`: then its units can be certified,
and it is trained on `Columns`, which is faster. Any other is given arrays B x D.
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
    """Dense, then normalisation, then the site, then dropout; the middle and the end only where the spec asks."""

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
    """`depth` hidden blocks of `width` units and a dense output, itself a site where `output` is not linear."""

    bounded = True
    skips = False

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        after = spec.width * activations[spec.activation].fanout
        self.hidden = nnx.List([Block(spec, i, after if i else d_in, rngs) for i in range(spec.depth)])
        self.output = Dense(after, d_out)
        self.output_site = Site(spec.output) if spec.output != "linear" else None

    def __call__(self, x: Any, ctx: Context) -> Any:
        for i, block in enumerate(self.hidden):
            x = x + block(x, ctx) if self.skips and i else block(x, ctx)
        x = self.output(x, ctx)
        return x if self.output_site is None else self.output_site(x, ctx)


@network("skip")
class Skip(MLP):
    """An `mlp` in which every hidden block after the first is added to its own input: x + block(x).

    Source: He, Zhang, Ren & Sun 2015, arXiv 1512.03385, section 3.2 (equation 1; each block is one layer here).
    """

    skips = True

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        if activations[spec.activation].fanout > 1:
            raise UserError(
                f"network 'skip' adds a block's output to its input, and activation {spec.activation!r} gives several numbers "
                f"for each unit; choose an activation that gives one, or network='mlp'"
            )
        super().__init__(spec, d_in, d_out, rngs)
