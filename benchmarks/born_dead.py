"""How often is a deep narrow network stillborn? Every depth from 2 to 40, seven initialisers, decided exactly.

Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, theorems 3.3 and 4.2; L counts the output layer there and here. The
chain and the table of safe depths are ours.
"""

from relu_study import CellClaim, CellFigure, CellTable, Draws, DrawStudy, Section, grid_cells

NARROW, WIDE, ALL = tuple(range(2, 9)), tuple(range(9, 17)), tuple(range(2, 17))
ZERO_BIAS = ("he_normal", "he_uniform", "xavier", "orthogonal")
OTHERS = ("he_uniform", "xavier", "orthogonal", "he_normal_random_bias", "pytorch_default", "rai")
SCHEMES = ("he_normal", *OTHERS)
BORN_DEAD = {
    **{name: name for name in ("scheme", "domain", "d_in", "width", "layers", "n")},
    **{"born_dead": "estimate", "ci_lo": "ci_lo", "ci_hi": "ci_hi", "lower": "lower", "upper": "upper"},
    **{"chain": "theory", "chain_se": "theory_se"},
}
DRAWN = ("he_normal", "he_normal, wide", "interval", "plane", "digits")

experiments = [
    Draws("chain", "chain", grid_cells(width=ALL), 100_000),
    Draws("deep chain", "chain", grid_cells(width=ALL, max_layers=4096), 512),
    Draws("he_normal", "stillborn", grid_cells(scheme="he_normal", domain="interval", width=NARROW), 1_000_000, theory="chain"),
    Draws("he_normal, wide", "stillborn", grid_cells(scheme="he_normal", domain="interval", width=WIDE), 100_000, theory="chain"),
    Draws("interval", "stillborn", grid_cells(scheme=OTHERS, domain="interval", width=ALL), 100_000),
    Draws("plane", "stillborn", grid_cells(scheme=ZERO_BIAS, domain="plane", d_in=2, width=ALL), 20_000),
    Draws("digits", "stillborn", grid_cells(scheme=SCHEMES, domain="digits", d_in=64, width=ALL, max_layers=20), 500),
]
claims = [
    CellClaim("B1", "10 layers of width 10: below 1 %", "he_normal, wide", "width=10", "born_dead", 0.01, "less", 0.0, at=10),
    CellClaim("B2", "10 layers of width 5: above 10 %", "he_normal", "width=5", "born_dead", 0.10, "greater", 0.0, at=10),
    CellClaim("B3", "10 layers of width 3: about 60 %", "he_normal", "width=3", "born_dead", 0.60, "equivalent", 0.05, at=10,
              why="the paper reads 60 % off a plot: five points"),
]  # fmt: skip
for layers in (3, 5, 10, 20, 40):
    claims += [
        CellClaim("B4", "What is drawn agrees with the chain", "he_normal", f"width={width}", "born_dead", "theory", "equivalent",
                  0.005, at=layers, why="half a point of probability")
        for width in NARROW
    ]  # fmt: skip
claims += [
    CellClaim("B5", "RAI is stillborn less often than He (uniform)", "interval", f"scheme=rai, width={width}", "born_dead",
              f"scheme=he_uniform, width={width}", "less", 0.0, at=10)
    for width in (2, 3, 4, 5)
]  # fmt: skip

study = DrawStudy(
    name="born_dead",
    title="Stillborn networks: how deep may a narrow ReLU network be?",
    text="""
    A network is stillborn when some hidden layer is off, in all its units, over the whole domain: a constant function, which no
    gradient can wake. Lu, Shin, Su and Karniadakis (2020, arXiv 1903.06733, theorems 3.3 and 4.2) bound how often that happens
    before training. Here it is measured: one network of 40 layers a draw, every depth read from the layer at which it dies,
    without a grid: on an interval a network is piecewise linear and decided at its kinks, with zero bias at the rays x = 1 and
    x = -1; on the plane at the kinks along a square around 0; on scikit-learn's digits by all 1,797 images. Layers count the
    output layer, as in the paper.
    """,
    experiments=experiments,
    claims=claims,
    tables=[
        CellTable(
            "born_dead",
            "Probability of being stillborn at 10 layers, on the interval.",
            DRAWN,
            BORN_DEAD,
            shown=("layers=10", "domain=interval"),
        ),
        CellTable(
            "safe_depth",
            "The most layers at which at most 1, 10 and 50 % of He-normal networks (d_in = 1, zero bias) are stillborn.",
            ("deep chain",),
            {"width": "width", "chain": "estimate", "bound": "upper"},
            where=("number=born_dead",),
            along="layers",
            levels=(0.01, 0.1, 0.5),
        ),
    ],
    figures=[
        CellFigure("depth_width", "Probability of being stillborn, He normal on the interval, by width and layers.", "map",
                   ("he_normal", "he_normal, wide"), "layers", rows="width", where=("layers=2,3,4,5,7,10,15,20,30,40",)),
        CellFigure("chain", "Measured (lines) and the chain (crosses), He normal on the interval.", "lines", ("he_normal",),
                   "layers", rows="width"),
        CellFigure("schemes", "Every scheme on the interval, by width.", "lines", ("he_normal", "interval"), "layers",
                   rows="scheme", by="width", where=("width=2,3,4,5,6,8",)),
        CellFigure("domains", "The same networks on the interval, on the plane and on the digits, at width 3.", "lines", DRAWN,
                   "layers", rows="scheme", by="domain", where=("width=3",)),
    ],
    sections=[
        Section("The paper's statements", "He normal, zero bias, d_in = 1, ten layers.", ("B1", "B2", "B3"), ("born_dead",),
                ("depth_width",)),
        Section("Against the chain", """
            With zero bias and d_in = 1 a network is decided by two rays, and whether both, one or none is alive is a Markov chain
            whose only state besides is the angle between them. The angle is carried by simulation, all else in closed form.
            The paper's upper bound is 1 - (1 - 2^-N)^(L-1); with zero bias on the interval one of the rays survives the first
            layer, and the exponent L - 2 stands in those rows. Lower bound and chain are of independent normal weights: rows of
            an orthogonal matrix are not independent, and such nets are stillborn less often than the lower bound allows.
            """, ("B4",), (), ("chain",)),
        Section("How deep is safe?", """
            From the chain, and from the upper bound 1 - (1 - 2^-N)^(L-2). Beyond 40 layers the chain is kept at every twentieth
            part further, and what lies between is interpolated.
            """, (), ("safe_depth",)),
        Section("Other schemes and domains", """
            With zero bias the law of the weights hardly matters, normal or uniform; orthogonal ones are stillborn a little less
            often. Biases of their own save some networks if they are large (he_normal_random_bias), and PyTorch's small uniform
            ones cost some. RAI, whose weights lean to the positive, is far below all others. On the plane and on the images a
            layer has to be off for more inputs than two rays, and the first layers seldom are.
            """, ("B5",), (), ("schemes", "domains")),
    ],
    presets={"full": {"times": 10}},
)  # fmt: skip
