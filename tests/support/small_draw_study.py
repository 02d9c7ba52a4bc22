"""A small draw study with a custom statistic: throws of a coin with known bias."""

import jax

from relu_study import CellClaim, CellFigure, CellTable, Draws, DrawStudy, Quantity, Theory, grid_cells, statistic
from relu_study.errors import UserError


def fair(cell):
    if not 0 <= cell["p"] <= 1:
        raise UserError(f"p must lie in [0, 1], not {cell['p']:g}")


@statistic(
    "coin",
    factors={"p": 0.5, "kind": "plain"},
    numbers={
        "heads": Quantity("throws that show heads", share=True, along="throw"),
        "height": Quantity("a normal number, where the first throw shows heads", spread=(-4, 4)),
    },
    along=lambda cell: {"throw": [1, 2, 3]},
    theory=lambda cell: {"heads": Theory([cell["p"]] * 3, upper=1), "height": Theory(0.0)},
    check=fair,
)
def coin(cell, key):
    heads = jax.random.uniform(key, (3,)) < cell["p"]
    return {"heads": heads, "height": jax.numpy.where(heads[0], jax.random.normal(jax.random.fold_in(key, 1)), jax.numpy.nan)}


study = DrawStudy(
    name="coins",
    title="Coins",
    text="Is a coin what it says?",
    experiments=[
        Draws("several", "coin", grid_cells(p=(0.1, 0.5), kind=("plain", "painted")), 20_000),
        Draws("again", "coin", grid_cells(p=(0.1, 0.5)), 700, theory="several"),
    ],
    claims=[
        CellClaim("K1", "The coin is fair", "several", "p=0.5, kind=plain", "heads", "theory", "equivalent", 0.02, at=2),
        CellClaim("K2", "One in ten is less than one in five", "several", "p=0.1, kind=plain", "heads", 0.2, "less", 0.0, at=1),
        CellClaim("K3", "One in ten is more than one in five", "again", "p=0.1", "heads", 0.2, "greater", 0.0, at=1),
        CellClaim("K4", "It is more than the other", "again", "p=0.5", "heads", "p=0.1", "greater", 0.1, at=3),
    ],
    tables=[
        CellTable("main", "All.", ("several",), {"p": "p", "throw": "throw", "measured": "estimate"}, shown=("throw=1",)),
        CellTable("until", "How long.", ("several",), {"p": "p", "heads": "estimate"}, ("number=heads",), (), "throw", (0.3,)),
    ],
    figures=[
        CellFigure("board", "A map.", "map", ("several",), "throw", rows="p", by="kind", number="heads"),
        CellFigure("lines", "Lines.", "lines", ("several", "again"), "throw", rows="p", by="experiment", number="heads"),
    ],
    presets={"full": {"times": 2}},
)
