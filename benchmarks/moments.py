"""How long signals and gradients are before training: closed forms beside draws, and every activation with every initialiser.

Source: He et al. 2015, arXiv 1502.01852; Glorot & Bengio 2010; Hanin & Rolnick 2018, arXiv 1803.01719; Klambauer et al. 2017,
arXiv 1706.02515. The logarithm's law is ours.
"""

from relu_study import CellClaim, CellFigure, CellTable, Draws, DrawStudy, Section, grid_cells

ACTIVATIONS = ("relu", "leaky_relu", "relu6", "hard_tanh", "crelu", "linear", "tanh", "sigmoid", "elu", "selu", "gelu", "silu")
INITIALIZERS = (
    *("he_normal", "he_uniform", "he_normal_random_bias", "lecun_normal", "lecun_uniform", "glorot_uniform", "pytorch_default"),
    *("orthogonal", "rai", "sign_flip", "random_normal", "random_uniform", "negative_uniform"),
)
KNOWN = {"theory": "theory", "measured": "estimate", "ci_lo": "ci_lo", "ci_hi": "ci_hi", "z": "z", "n": "n"}
SPREAD = {"median": "median", "q05": "q05", "q95": "q95", "mean": "estimate", "n": "n"}

experiments = [
    Draws("He, width 16", "signal_moments", grid_cells(initializer="he_normal", width=16, depth=50), 200_000),
    Draws("He, width 64", "signal_moments", grid_cells(initializer="he_normal", width=64, depth=50), 50_000),
    Draws("He, width 256", "signal_moments", grid_cells(initializer="he_normal", width=256, depth=35), 2000),
    Draws("Xavier", "signal_moments", grid_cells(initializer="glorot_uniform", width=64, depth=9), 50_000),
    Draws("SELU", "selu_moments", grid_cells(variance=(0.5, 1.0, 2.0), width=512, depth=20), 500),
    Draws("gradients", "gradients", grid_cells(activation=ACTIVATIONS, initializer=INITIALIZERS, width=16, depth=50), 10_000),
]


TWENTIETH = {"margin": 0.05, "relative": True, "why": "a twentieth of it"}
TENTH = {"margin": 0.1, "relative": True, "why": "a tenth of it"}
HUNDREDTHS = {"margin": 0.02, "why": "two hundredths of the inputs' deviation or variance"}


def known(claim, statement, experiment, cell, number, layers, **margin):
    """Rows that say: as the theory has it."""
    return [CellClaim(claim, statement, experiment, cell, number, "theory", "equivalent", at=at, **margin) for at in layers]


LENGTH = "M1", "He normal keeps a signal's squared length"
SQUARE = "M2", "The square of that grows by 1 + 5/n a layer"
LOGARITHM = "M3", "Its logarithm is a sum of independent ones"
FIXED = "M5", "SELU's fixed point is (0, 1)"
SLOPE = "M6", "The slope of its variance map there is 0.7826479"
FADES = "M7", "With Xavier the gradient of a ReLU net fades a millionfold over 50 layers"
STAYS = "M8", "With He normal it stays within a thousandfold"
GROWS = "M9", "With sign flipping it grows a thousandfold"
MILLION, THOUSAND = "a factor of a million", "a factor of a thousand"
claims = [
    *known(*LENGTH, "He, width 16", "all", "second", (1, 2), **TWENTIETH),
    *known(*LENGTH, "He, width 64", "all", "second", (1, 5, 9), **TWENTIETH),
    *known(*SQUARE, "He, width 16", "all", "fourth", (1, 2), **TENTH),
    *known(*SQUARE, "He, width 64", "all", "fourth", (1, 5, 9), **TENTH),
    *known(*LOGARITHM, "He, width 16", "all", "log", (10, 50), **TWENTIETH),
    *known(*LOGARITHM, "He, width 16", "all", "log_square", (10, 50), **TWENTIETH),
    *known(*LOGARITHM, "He, width 64", "all", "log", (10, 50), **TWENTIETH),
    *known(*LOGARITHM, "He, width 64", "all", "log_square", (10, 50), **TWENTIETH),
    *known("M4", "Xavier loses a factor 2 a layer", "Xavier", "all", "second", (1, 2, 5, 9), **TWENTIETH),
    *known(*FIXED, "SELU", "variance=1", "mean", (1, 5, 20), **HUNDREDTHS),
    *known(*FIXED, "SELU", "variance=1", "variance", (1, 5, 20), **HUNDREDTHS),
    CellClaim(*SLOPE, "SELU", "variance=1", "slope", 0.7826479, "equivalent", 0.01, at=1, why="a hundredth"),
    CellClaim(*FADES, "gradients", "activation=relu, initializer=glorot_uniform", "signal", -6.0, "less", 0.0, at=1, why=MILLION),
    CellClaim(
        *STAYS, "gradients", "activation=relu, initializer=he_normal", "signal", 0.0, "equivalent", 3.0, at=1, why=THOUSAND
    ),
    CellClaim(*GROWS, "gradients", "activation=relu, initializer=sign_flip", "signal", 3.0, "greater", 0.0, at=1, why=THOUSAND),
]
HE = ("He, width 16", "He, width 64", "He, width 256")
tables = [
    CellTable(
        "he",
        "He normal: moments of a signal's squared length beside its input's.",
        HE,
        {"width": "width", "layer": "layer", "number": "number", **KNOWN},
        shown=("layer=1,2,5,9,20,35,50",),
    ),
    CellTable(
        "xavier",
        "Xavier (uniform): a signal's squared length beside its input's.",
        ("Xavier",),
        {"layer": "layer", **KNOWN},
        where=("number=second",),
    ),
    CellTable(
        "selu",
        "SELU: mean and variance of each layer, and the second moment's slope by the inputs' variance.",
        ("SELU",),
        {"variance": "variance", "layer": "layer", "number": "number", **KNOWN},
        shown=("layer=1,2,5,10,20",),
    ),
    CellTable(
        "pairs",
        "What vanishes and what explodes: log10 of the gradient that arrives at the first layer beside the last of 50.",
        ("gradients",),
        {"activation": "activation", "initializer": "initializer", **SPREAD},
        ("layer=1", "number=signal"),
        sort="median",
    ),
    CellTable(
        "gradients",
        "log10 of the gradient at a layer's pre-activations (signal) or kernel beside the last of 50.",
        ("gradients",),
        {"activation": "activation", "initializer": "initializer", "layer": "layer", "number": "number", **SPREAD},
        shown=("layer=1,10,20,30,40", "activation=relu", "initializer=he_normal,glorot_uniform,orthogonal,sign_flip"),
    ),
]
figures = [
    CellFigure(
        "logarithm",
        "Mean of the logarithm of a signal's squared length, and its variance.",
        "lines",
        HE,
        "layer",
        rows="width",
        by="number",
        where=("number=log,log_square",),
    ),
    CellFigure("selu", "SELU from three variances of the inputs.", "lines", ("SELU",), "layer", rows="variance", by="number"),
    CellFigure(
        "gradients",
        "The gradient at the first layer beside the last of 50: violet where it fades, orange where it grows; colours end at a "
        "millionfold.",
        "map",
        ("gradients",),
        number="signal",
        cols="activation",
        rows="initializer",
        column="median",
        where=("layer=1",),
        between=(-6.0, 6.0),
    ),
    CellFigure(
        "layers",
        "log10 of the gradient by layer beside the last: median, and the inner half of the networks.",
        "lines",
        ("gradients",),
        "layer",
        rows="initializer",
        by="activation",
        number="signal",
    ),
]
sections = [
    Section(
        "He's scheme",
        """
        Lengths are kept on average (He et al. 2015, arXiv 1502.01852); a typical signal is shorter (Hanin & Rolnick 2018, arXiv
        1803.01719; the law of the logarithm is ours). second and fourth are |h|^2 and |h|^4 beside the input's, log the logarithm
        of the former, log_square its variance.
        """,
        ("M1", "M2", "M3"),
        ("he",),
        ("logarithm",),
    ),
    Section("Xavier's", "The same at half the variance (Glorot & Bengio 2010).", ("M4",), ("xavier",)),
    Section(
        "SELU",
        "With LeCun normal weights (Klambauer et al. 2017, arXiv 1706.02515); deeper layers are off by some 1/width.",
        ("M5", "M6"),
        ("selu",),
        ("selu",),
    ),
    Section(
        "What vanishes and what explodes",
        """
        Every activation with every initialiser, 50 layers of 16 units, 10,000 networks a pair: the gradient that arrives at a
        layer's pre-activations, beside that of the last layer. A pair without a number has no gradient in any network. What falls
        to a millionth or less vanishes here, what grows a millionfold or more explodes.
        """,
        ("M7", "M8", "M9"),
        ("pairs", "gradients"),
        ("gradients", "layers"),
    ),
]

study = DrawStudy(
    name="moments",
    title="Signals and gradients at initialisation",
    text="""
    Before training a network's signals and gradients are products of random matrices, and much about them is known exactly.
    Moments are compared only where the fourth has grown at most twofold: beyond, rare networks carry them and a mean of draws
    says nothing; there the logarithm is compared, among networks whose signal is alive.
    """,
    experiments=experiments,
    claims=claims,
    tables=tables,
    figures=figures,
    sections=sections,
    presets={"full": {"times": 10}},
)
