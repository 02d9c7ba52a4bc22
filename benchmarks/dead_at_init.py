"""Units, signals and data that are dead before training: what is known in closed form, each beside what is drawn.

Source: Brownlowe et al. 2024, arXiv 2412.06829 (second-layer units); Rister & Rubin 2020, arXiv 2007.06192 (signals, sign
flipping); Cho & Saul 2009 and Daniely et al. 2016, arXiv 1602.05897 (angles). The ball, the box and the inputs are ours.
"""

from relu_study import CellClaim, CellFigure, CellTable, Draws, DrawStudy, Section, grid_cells

G = 3**0.5  # mean over standard deviation of the article's inputs, uniform on (-1, 0)
BIASED, ZERO = "he_normal_random_bias", "he_normal"
SHORT, LONG = "8-4-2-1", "4-4-4-4-4-4"
KNOWN = {"theory": "theory", "measured": "estimate", "ci_lo": "ci_lo", "ci_hi": "ci_hi", "z": "z", "n": "n"}
BOUNDED = {"measured": "estimate", "ci_lo": "ci_lo", "ci_hi": "ci_hi", "lower": "lower", "n": "n"}
ALL_OFF = ("256 coordinates, g = 1", "256 coordinates")
BALLS, UNIFORM = grid_cells(law="normal", d=(1, 2, 4, 8), r=(0.25, 1.0, G)), grid_cells(law="uniform", d=1, r=(1.0, G, 4.0))
CORRELATED = grid_cells(c=(0.25, 0.5, 0.9), examples=2000)

experiments = [
    Draws("ball", "dead_unit", BALLS, 1_000_000),
    Draws("ball, uniform", "dead_unit", UNIFORM, 1_000_000),
    Draws("box", "box_unit", grid_cells(d=(1, 2, 4, 8)), 1_000_000),
    Draws("second layer", "second_layer", grid_cells(initializer=(BIASED, ZERO), d_in=(1, 2, 3), width=range(1, 9)), 1_000_000),
    Draws(
        "uniform weights", "second_layer", grid_cells(initializer="pytorch_default", d_in=(1, 2, 3), width=range(1, 6)), 1_000_000
    ),
    Draws("signal", "signal_death", grid_cells(initializer=(ZERO, BIASED), widths=(LONG, SHORT, "2-3-4-5-6")), 1_000_000),
    Draws("exchangeable", "exchangeable", CORRELATED, 1_000_000),
    Draws("normal inputs", "off_on_inputs", grid_cells(law="normal", d=(4, 64), g=(G, 3.0), examples=1000), 20_000),
    Draws("256 coordinates", "off_on_inputs", grid_cells(law="uniform", d=256, g=(G, 3.0), examples=2000), 10_000),
    Draws("256 coordinates, g = 1", "off_on_inputs", grid_cells(law="uniform", d=256, g=1.0, examples=2000), 100_000),
    Draws("the article", "off_on_inputs", grid_cells(law="uniform", d=4, g=G, examples=100_000), 1000, theory="its correlation"),
    Draws("its correlation", "exchangeable", grid_cells(c=0.75, examples=100_000), 20_000),
    Draws("angle", "cosine", grid_cells(cosine=0.0, width=(64, 256, 1024), depth=10), 1000),
    Draws("data", "alive_data", grid_cells(initializer=("sign_flip", ZERO), width=(1, 2, 4), depth=20), 100_000),
]
HALF = {"margin": 0.005, "why": "half a point of probability"}
TENTH = {"margin": 0.1, "relative": True, "why": "a tenth of it"}


def known(claim, statement, experiment, cells, number, at=(None,), **margin):
    """Rows that say: as the theory has it."""
    return [
        CellClaim(claim, statement, experiment, cell, number, "theory", "equivalent", at=place, **margin)
        for cell in cells
        for place in at
    ]


BALL = "I1", "A unit on a ball is dead as Student's t has it"
PREDICTED = "I6", "With 256 coordinates D(m, c) predicts the units that are off on m inputs"
PROVEN = {
    name: [f"initializer={name}, d_in={d}, width={w}" for d in (1, 2, 3) for w in range(1, d + 2)] for name in (BIASED, ZERO)
}
claims = [
    *known(*BALL, "ball", BALLS, "dead", **HALF),
    *known(*BALL, "ball, uniform", UNIFORM, "dead", **HALF),
    *known("I2", "A second-layer unit is off on all of R^d as the theorem has it", "second layer", PROVEN[BIASED], "off", **HALF),
    *known("I3", "Without biases that is twice as frequent", "second layer", PROVEN[ZERO], "off", **HALF),
    *known(
        "I4",
        "A signal dies by the product of its layers' chances",
        "signal",
        [f"initializer={name}, widths={LONG}" for name in (ZERO, BIASED)],
        "dead",
        (1, 3, 6),
        **HALF,
    ),
    *known(
        "I5", "Exchangeable pre-activations are all off as D(m, c) has it", "exchangeable", CORRELATED, "off", (2, 100), **HALF
    ),
    *known(*PREDICTED, "256 coordinates", grid_cells(g=(G, 3.0)), "off", (10, 100, 2000), **TENTH),
    *known(*PREDICTED, "256 coordinates, g = 1", ["all"], "off", (10, 100, 2000), **TENTH),
    CellClaim(
        "I7",
        "For the article's 4 it does not: more are off than D(1000, 3/4) = 0.0331",
        "the article",
        "all",
        "off",
        0.0331,
        "greater",
        at=1000,
        **TENTH,
    ),
    *known(
        "I8",
        "The angle between two signals closes as the map has it",
        "angle",
        ["width=1024"],
        "cosine_after",
        (1, 3, 10),
        margin=0.01,
        why="a hundredth of a cosine",
    ),
    *(
        CellClaim(
            "I9",
            "Sign flipping keeps 2^-k of the data alive in every network",
            "data",
            f"initializer=sign_flip, width={width}",
            "below",
            0.001,
            "less",
            0.0,
            at=layer,
            why="fewer than one network in a thousand; not one may fail",
        )
        for width in (1, 2, 4)
        for layer in (1, 5, 20)
    ),
]
tables = [
    CellTable(
        "ball",
        "One unit on a ball of radius r in d dimensions, and on the box (-1, 0)^d.",
        ("ball", "ball, uniform", "box"),
        {"domain": "experiment", "d": "d", "r": "r", **KNOWN},
    ),
    CellTable(
        "second_layer",
        "A unit of the second layer off on all of R^d_in, by the width of the first.",
        ("second layer", "uniform weights"),
        {"initializer": "initializer", "d_in": "d_in", "width": "width", **KNOWN},
    ),
    CellTable(
        "signal",
        "One input's signal dead by layer k.",
        ("signal",),
        {"initializer": "initializer", "widths": "widths", "layer": "layer", **KNOWN},
    ),
    CellTable(
        "exchangeable",
        "m exchangeable pre-activations of correlation c all off.",
        ("exchangeable",),
        {"c": "c", "m": "m", **KNOWN},
    ),
    CellTable(
        "inputs",
        "Units off on all of m inputs of d coordinates with mean / standard deviation g.",
        ("normal inputs", *ALL_OFF),
        {"law": "law", "d": "d", "g": "g", "m": "m", **KNOWN},
    ),
    CellTable(
        "article",
        "The article's box: units off on m inputs, the failed approximation D(m, 3/4), and the limit 2^-4.",
        ("the article",),
        {
            "m": "m",
            "D(m, 3/4)": "theory",
            "measured": "estimate",
            "ci_lo": "ci_lo",
            "ci_hi": "ci_hi",
            "z": "z",
            "limit": "lower",
            "n": "n",
        },
    ),
    CellTable("angle", "Cosine between two signals, 0 at first.", ("angle",), {"width": "width", "layer": "layer", **KNOWN}),
    CellTable(
        "data",
        "Data alive in layer k.",
        ("data",),
        {"initializer": "initializer", "width": "width", "layer": "layer", "number": "number", **BOUNDED, "q05": "q05"},
        shown=("layer=1,5,10,20",),
    ),
]
figures = [
    CellFigure(
        "second_layer",
        "Units of the second layer off on all of R^d_in; crosses: theory, where it is known.",
        "lines",
        ("second layer",),
        "width",
        rows="d_in",
        by="initializer",
        log=True,
    ),
    CellFigure(
        "inputs",
        "Units off on m inputs of 256 coordinates; crosses: D(m, c).",
        "lines",
        ALL_OFF,
        "m",
        rows="g",
        log=True,
        log_cols=True,
    ),
    CellFigure(
        "article",
        "The article's box (dashed: its limit 2^-4), and what its correlation alone would say.",
        "lines",
        ("the article", "its correlation"),
        "m",
        rows="experiment",
        log=True,
        bounds=True,
        log_cols=True,
    ),
    CellFigure("angle", "Cosine between two signals, 0 at first; crosses: the map.", "lines", ("angle",), "layer", rows="width"),
    CellFigure(
        "data",
        "Share of the data alive; dashed: the bound 2^-k.",
        "lines",
        ("data",),
        "layer",
        rows="initializer",
        by="width",
        number="alive",
        bounds=True,
    ),
]
sections = [
    Section(
        "One unit",
        "On a ball by its weights' length; on the article's box by their signs. Both laws are ours.",
        ("I1",),
        ("ball",),
    ),
    Section(
        "A unit of the second layer",
        """
        Off on all of R^d_in, decided on the edges of the arrangement of the first layer's hyperplanes. Beyond width = d_in + 1
        nothing is proven; up to there the chance without biases is twice that with them (Brownlowe et al. 2024, arXiv
        2412.06829).
        """,
        ("I2", "I3"),
        ("second_layer",),
        ("second_layer",),
    ),
    Section(
        "A signal",
        "Biases move nothing: a layer with every unit off is met as often (Rister & Rubin 2020, arXiv 2007.06192).",
        ("I4",),
        ("signal",),
    ),
    Section(
        "A unit on m inputs",
        """
        From the inputs' mean over standard deviation g alone, through the correlation c = g^2 / (1 + g^2). It predicts where
        coordinates are many and g is not small: for normal inputs the exact law is within 10 % of D(m, c) at 256 coordinates,
        m <= 2,000 and g >= 1, but at g = 1/2 a third of it. An approximation: with so many draws z may see
        how far off it is. At g = 1 and m = 2,000 it is 7 % too high, and 100,000 nets do not quite settle that it is within 10 %.
        """,
        ("I5", "I6"),
        ("exchangeable", "inputs"),
        ("inputs",),
    ),
    Section(
        "The article's inputs",
        """
        With four coordinates it fails: as m grows the share of dead units goes to 2^-4, those without a negative weight,
        and not to 0.
        """,
        ("I7",),
        ("article",),
        ("article",),
    ),
    Section(
        "Angles close with depth",
        "In wide He nets, by the arc-cosine map (Cho & Saul 2009; Daniely, Frostig & Singer 2016, arXiv 1602.05897).",
        ("I8",),
        ("angle",),
        ("angle",),
    ),
    Section(
        "Sign flipping",
        "At least 2^-k of the data stay alive in k layers (Rister & Rubin 2020, arXiv 2007.06192); on average far more.",
        ("I9",),
        ("data",),
        ("data",),
    ),
]

study = DrawStudy(
    name="dead_at_init",
    title="Dead before training: the closed forms",
    text="""
    What is dead at the start needs no training to be known. Each number here is drawn, network by network, and stands beside its
    closed form where there is one; z is the difference in standard errors.
    """,
    experiments=experiments,
    claims=claims,
    tables=tables,
    figures=figures,
    sections=sections,
    presets={"full": {"times": 10}},
)
