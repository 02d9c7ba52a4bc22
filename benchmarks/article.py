"""Is ReLU dead? The article's experiments at their real size, its ten claims, and what helps instead.

Source: "Is ReLU Dead?" (2019). The text fixes the data, the questions and 25 epochs; the rest is declared here.
"""

from article_parts.sections import SECTIONS

from relu_study import Claim, Experiment, Figure, RunSpec, Study, Table, Target

# The article's random start is Keras' random_normal; leaky_relu has Keras' slope of that time, 0.3; SGD its rate of 0.01.
A = RunSpec(task="negative_box", initializer="random_normal", leak=0.3)
B = A.replace(depth=3)
ALPHA = {"dropout": "alpha_dropout", "dropout_rate": 0.1}
SELU = {"activation": "selu", "initializer": "lecun_normal"}
SGD = {"optimizer": "sgd", "learning_rate": 0.01}
INITIALIZERS = ("he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "random_uniform")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TUNED = {
    "baseline": A,
    "he_normal": A.replace(initializer="he_normal"),
    "leaky_relu": A.replace(activation="leaky_relu"),
    "selu": A.replace(**SELU),
    "batch norm": A.replace(norm="batch_norm"),
}

depth = {"baseline": A, "net B": B}
data = {
    "baseline": A,
    "400k rows, equal updates": A.replace(rows=400_000, epochs=12.5),
    "400k rows, equal epochs": A.replace(rows=400_000),
}
dropout = {"baseline": A} | {f"dropout {r}": A.replace(dropout="dropout", dropout_rate=r) for r in (0.2, 0.5)}
longer = {"100 epochs, Adam": A.replace(epochs=100), "100 epochs, SGD": A.replace(epochs=100, **SGD)}
starts = (
    {"baseline": A}
    | {name: A.replace(initializer=name) for name in INITIALIZERS}
    | {"net B, he_normal": B.replace(initializer="he_normal")}
)
negative = {
    "negative weights": A.replace(initializer="negative_uniform"),
    "net B, negative weights": B.replace(initializer="negative_uniform"),
}
smooth = {name: A.replace(activation=name) for name in ("tanh", "sigmoid", "leaky_relu")}
deep_smooth = {f"net B, {name}": spec.replace(depth=3) for name, spec in smooth.items()}
selu = {
    "selu": A.replace(**SELU),
    "selu, AlphaDropout": A.replace(**SELU, **ALPHA),
    "net B, selu": B.replace(**SELU),
    "net B, selu, AlphaDropout": B.replace(**SELU, **ALPHA),
}
relu_output = {"baseline": A, "ReLU output": A.replace(output="relu")}
sensitivity = {
    "baseline": A,
    "width 8": A.replace(width=8),
    "width 128": A.replace(width=128),
    "SGD": A.replace(**SGD),
    "batch 32": A.replace(batch_size=32),
}
remedies = {
    "baseline": A,
    "centred inputs (ours)": A.replace(inputs="centred"),
    "positive bias (ours)": A.replace(bias_shift=0.1),
    "batch norm (ours)": A.replace(norm="batch_norm"),
    "layer norm (ours)": A.replace(norm="layer_norm"),
    "sign flip (ours)": A.replace(initializer="sign_flip"),
    **{f"{name} (ours)": A.replace(activation=name) for name in ("elu", "gelu", "silu")},
}
tuned = {f"{label}, rate {rate:g}": spec.replace(learning_rate=rate) for label, spec in TUNED.items() for rate in RATES}

EXPERIMENTS = [
    Experiment("depth", depth, "One layer and three"),
    Experiment("data", data, "More data of the same kind"),
    Experiment("dropout", dropout, "Dropout"),
    Experiment("epochs", longer, "More epochs"),
    Experiment("initializers", starts, "Other initialisers"),
    Experiment("negative", negative, "Negative weights"),
    Experiment("activations", {"baseline": A, "net B": B} | smooth | deep_smooth, "Other activations"),
    Experiment("selu", {"baseline": A, "net B": B} | selu, "SELU"),
    Experiment("output", relu_output, "ReLU on the output"),
    Experiment("sensitivity", sensitivity, "Width, optimiser, batch size"),
    Experiment("remedies", remedies, "What helps, in our own arms"),
    Experiment("tuned", tuned, "Each at its best learning rate"),
]

# ------------------------------------------------------------------------------------------- claims

SHARE = {"margin": 0.05}  # of units or of runs: the smallest share that matters
LOSS = {"margin": 0.1, "relative": True}  # a tenth of the target's variance
C1 = "The one-layer ReLU net stops learning; outputs and gradients of its layer are 0 in all epochs"
C2 = "More layers do not help"
C3 = "More data of the same kind does not help"
C4 = "Dropout does not help"
C5 = "More epochs do not help"
C6 = "Other initialisers barely help: slightly better at first, then pulled to zero"
C7 = "U(-1, 0) weights help at first, then the units die"
C8 = "tanh, sigmoid and leaky_relu fail here too, by vanishing gradients"
C9 = "SELU with lecun_normal and AlphaDropout rescues: its outputs are not 0 and its gradients move away from 0"
C10 = "When one must choose, vanishing gradients are better than dead units"


def no_better(claim: str, statement: str, arm: str, against: str = "baseline", **options: object) -> list[Claim]:
    """Equivalent or worse: neither fewer dead units nor a lower loss, by more than the margin."""
    dead, loss = {"margin": -0.05}, {"margin": -0.1, "relative": True, "excess": True}
    return [
        Claim(claim, statement, "dead_fraction", arm, against, "greater", **dead, **options),
        Claim(claim, statement, "val_loss", arm, against, "greater", **loss, **options),
    ]


CLAIMS = [
    Claim(
        "C1",
        C1,
        "zero_gradient_fraction",
        "baseline",
        0.5,
        "greater",
        0.0,
        site="site_1",
        epoch="min",
        equals=1.0,
        why="most runs",
    ),
    Claim("C1", C1, "collapsed", "baseline", 0.5, "greater", 0.0, why="most runs"),
    Claim("C1", C1, "train_loss", "baseline", 1.0, "equivalent", why="in units of the best constant's loss", **LOSS),
    *no_better("C2", C2, "net B"),
    *no_better("C3", C3, "400k rows, equal updates"),
    *no_better("C3", C3, "400k rows, equal epochs"),
    *no_better("C4", C4, "dropout 0.2"),
    *no_better("C4", C4, "dropout 0.5"),
    *(c for arm in longer for c in no_better("C5", C5, arm, arm, epoch=100, against_epoch=25)),
]
for name in INITIALIZERS:
    CLAIMS += [
        Claim("C6", C6, "grad_norm", name, "baseline", "greater", 0.0, site="site_1", epoch=0, why="better at first, at all"),
        Claim("C6", C6, "grad_norm", name, "baseline", "greater", 0.0, site="site_1", epoch=1, why="better at first, at all"),
        Claim("C6", C6, "val_loss", name, "baseline", "less", 0.0, epoch=0, why="better at first, at all"),
        Claim("C6", C6, "val_loss", name, "baseline", "less", 0.0, epoch=1, why="better at first, at all"),
        Claim("C6", C6, "grad_norm", name, name, "less", 0.0, site="site_1", epoch=25, against_epoch=0, why="pulled down at all"),
        *(Claim("C6", C6, "dead_fraction", name, "baseline", "equivalent", epoch=e, **SHARE) for e in (0, 1, 25)),
        Claim("C6", C6, "grad_norm", name, "baseline", "equivalent", 0.1, site="site_1", epoch=25, why="of a loss of order 1"),
        Claim("C6", C6, "val_loss", name, "baseline", "equivalent", epoch=25, **LOSS),
    ]
CLAIMS += [
    Claim("C7", C7, "dead_fraction", "negative weights", 0.0, "equivalent", site="site_1", epoch=0, **SHARE),
    Claim("C7", C7, "dead_fraction", "negative weights", "negative weights", "greater", site="site_1", against_epoch=0, **SHARE),
    Claim("C7", C7, "dead_fraction", "net B, negative weights", 1.0, "equivalent", site="site_2", epoch=0, **SHARE),
]
for name in deep_smooth:
    CLAIMS += [
        Claim(
            "C8",
            C8,
            "grad_norm",
            name,
            1.0,
            "less",
            0.5,
            site="site_1",
            over="last",
            off_floor=0.05,
            why="below half of the last's",
        ),
        Claim("C8", C8, "train_loss", name, 0.0, "greater", excess=True, **LOSS),
    ]
for net, prefix in (("baseline", ""), ("net B", "net B, ")):
    for arm in (f"{prefix}selu", f"{prefix}selu, AlphaDropout"):
        CLAIMS += [
            Claim("C9", C9, "dead_fraction", arm, net, "less", **SHARE),
            Claim("C9", C9, "val_loss", arm, net, "less", **LOSS),
            Claim("C9", C9, "val_loss", arm, f"{prefix}leaky_relu", "less", **LOSS),
            Claim("C9", C9, "post_std", arm, 0.0, "greater", 0.0, site="site_1", why="not 0 at all"),
            Claim("C9", C9, "grad_norm", arm, arm, "greater", 0.0, site="site_1", against_epoch=0, why="away from 0 at all"),
        ]
SMOOTH_B = ("net B, tanh", "net B, sigmoid")
# Of all ReLU arms only negative weights in net B are sure to lose a whole site.
PAIRS = {"baseline": ("tanh", "sigmoid"), "net B": SMOOTH_B, "net B, negative weights": SMOOTH_B}
CLAIMS += [
    Claim("C10", C10, "val_loss", arms, net, "less", excess=True, against_dead_site=True, least_seeds=10, **LOSS)
    for net, arms in PAIRS.items()
]

# ------------------------------------------------------------------------------- tables and figures

MAIN = ("val_loss", "dead_fraction", "certified_dead_fraction", "collapsed", "constant", "grad_norm/site_1")


def table(name: str, caption: str, *experiments: str, metrics: tuple[str, ...] = MAIN, **options: object) -> Table:
    """A table whose baseline is the article's own start, where it is among the rows."""
    has_one = any("baseline" in e.arms for e in EXPERIMENTS if e.name in experiments)
    return Table(name, caption, experiments, metrics, baseline="baseline" if has_one else None, **options)


TABLES = [
    table("headline", "Every remedy at the last epoch.", "remedies", "selu", "activations", "dropout", "depth"),
    table("depth", "One and three hidden layers.", "depth", metrics=(*MAIN, "dead_fraction@0", "zero_gradient_fraction/site_1")),
    table("data", "140,000 and 280,000 training rows.", "data"),
    table("dropout", "Dropout against none.", "dropout"),
    table("epochs", "The same runs at 25 and at 100 epochs.", "epochs",
          metrics=(*(f"{m}@{e}" for m in ("val_loss", "dead_fraction", "certified_dead_fraction") for e in (25, 100)),
                   "revived_fraction@100", "certified_revived_fraction@100")),
    table("initializers", "Initialisers at the start, after one epoch and at the end.", "initializers",
          metrics=("dead_fraction@0", "dead_fraction@1", "dead_fraction", "grad_norm/site_1@0", "grad_norm/site_1", "val_loss")),
    table("negative", "Weights from U(-1, 0).", "negative",
          metrics=("dead_fraction/site_1@0", "always_on_fraction/site_1@0", "dead_fraction/site_1", "dead_fraction/site_2@0",
                   "val_loss")),
    table("activations", "Other activations.", "activations",
          metrics=("val_loss", "dead_fraction", "saturated_fraction", "grad_norm/site_1", "grad_norm/site_3")),
    table("selu", "SELU with and without AlphaDropout.", "selu", metrics=(*MAIN, "post_std/site_1")),
    table("output", "A ReLU on the output.", "output"),
    table("sensitivity", "Width, optimiser and batch size.", "sensitivity"),
    table("remedies", "What helps.", "remedies"),
    table("tuned", "Each arm at the rate chosen on the even seeds, reported on the odd ones.", "tuned",
          metrics=("val_loss", "dead_fraction"), tune="learning_rate"),
]  # fmt: skip

CURVES = ("train_loss", "dead_fraction", "grad_norm/site_1")
SEEN = ("post/site_1", "gradient/site_1")  # what the article's own pictures show: outputs and gradients of the first layer
FIGURES = [
    Figure("headline", "Validation loss and dead units of the baseline and of what helps.", "curves", ("remedies",),
           metrics=("val_loss", "dead_fraction"), log=True),
    Figure("c1", "The baseline: loss, dead units and first-layer gradient, nets A and B.", "curves", ("depth",), metrics=CURVES),
    Figure("c1_histograms", "Outputs and gradients of the first layer, nets A and B: how many are how large, and exactly zero.",
           "histograms", ("depth",), metrics=SEEN),
    Figure("c2", "Survival of the units alive at the start, by site.", "survival", ("depth",)),
    Figure("c2_sites", "Dead units of each site.", "curves", ("depth",), metrics=("dead_fraction/*",)),
    Figure("c3", "More data: loss and dead units.", "curves", ("data",), metrics=("val_loss", "dead_fraction")),
    Figure("c4", "Dropout: loss and dead units.", "curves", ("dropout",), metrics=("val_loss", "dead_fraction")),
    Figure("c5", "A hundred epochs: loss, units dead on the probe set and certified dead units.", "curves", ("epochs",),
           metrics=("val_loss", "dead_fraction", "certified_dead_fraction", "revived_fraction")),
    Figure("c6", "Initialisers: dead units and first-layer gradient.", "curves", ("initializers",),
           metrics=("dead_fraction", "grad_norm/site_1")),
    Figure("c7", "Negative weights: dead units by site.", "curves", ("negative",),
           metrics=("dead_fraction/*", "val_loss")),
    Figure("c8", "Net B with other activations: loss and the gradients of its first and last site.", "curves", ("activations",),
           arms=("net B", *deep_smooth), metrics=("train_loss", "grad_norm/site_1", "grad_norm/site_3"), log=True),
    Figure("c8_depth", "Net B: the gradient's norm at each site, before training and at the end.", "depth", ("activations",),
           arms=("net B", *deep_smooth), metrics=("grad_norm",), epoch=(0, "last")),
    Figure("c9", "SELU against ReLU: loss, first-layer output spread and gradient.", "curves", ("selu",),
           metrics=("val_loss", "post_std/site_1", "grad_norm/site_1"), log=True),
    Figure("c9_histograms", "Outputs and gradients of the first layer, SELU against ReLU.", "histograms", ("selu",),
           arms=("baseline", "selu", "selu, AlphaDropout"), metrics=SEEN),
    Figure("output", "A ReLU on the output: loss, dead units and first-layer gradient.", "curves", ("output",),
           metrics=("val_loss", "dead_fraction", "grad_norm/site_1")),
    Figure("output_histograms", "Outputs and gradients of the first layer, with a linear output and with ReLU there too.",
           "histograms", ("output",), metrics=SEEN),
    Figure("tuned", "Loss and dead units of each arm at each learning rate.", "map", ("tuned",),
           metrics=("val_loss", "dead_fraction"), rows="arm", cols="learning_rate", log=True),
    Figure("c10", "Vanishing or dead: the contrasts on the seeds whose ReLU run lost a whole site.", "forest", claims=("C10",)),
]  # fmt: skip

study = Study(
    name="article",
    title="Is ReLU dead?",
    text=(
        "In 2019 an article drew 200,000 inputs from (-1, 0)^4, trained a one-layer ReLU net on them, and saw in "
        "TensorBoard that its outputs and gradients were zero in every epoch; it then tried one remedy after the other. "
        "Its code was pictures, so the target is not known. We ask its questions of a learnable target (wave), an easy "
        "one (sum) and one with nothing to learn (coin_flip), with many seeds, and answer each with an interval. What the "
        "article leaves open we declare: 32 units a layer, a linear output, squared error, Adam at 0.001, batches of 128, "
        "and N(0, 0.05^2) for its random start."
    ),
    experiments=EXPERIMENTS,
    seeds=16,
    targets=(Target("wave", 1.0, 0.0), Target("sum", 1 / 3, 0.0), Target("coin_flip", 0.25, 0.25)),
    use_targets=("wave",),
    skip=("tuned",),
    claims=CLAIMS,
    tables=TABLES,
    figures=FIGURES,
    sections=SECTIONS,
    presets={"full": {"seeds": 32, "use_targets": ("wave", "sum", "coin_flip"), "skip": ()}},
)
