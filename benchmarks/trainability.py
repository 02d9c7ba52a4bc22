"""How deep can a ReLU net be and still train? Real images, two to sixty hidden layers, eight ways to begin, SGD and Adam.

Source: scikit-learn's digits. The questions are those of He et al. 2015 (arXiv 1502.01852, section 2.2), Saxe, McClelland &
Ganguli 2013 (arXiv 1312.6120), Lu, Shin, Su & Karniadakis 2020 (arXiv 1903.06733) and Rister & Rubin 2020 (arXiv 2007.06192);
none of them trained these networks, and no number of theirs stands beside ours.
"""

from relu_study import Claim, EventTable, Experiment, Figure, RunSpec, Section, Study, Table, Target

DEPTHS = (2, 4, 8, 16, 32, 60)  # hidden layers
BASE = RunSpec(task="digits", rows=1797, width=64, batch_size=128, epochs=20)
STARTS = {
    "xavier": {"initializer": "glorot_uniform"},
    "he_normal": {"initializer": "he_normal"},
    "rai": {"initializer": "rai"},
    "orthogonal": {"initializer": "orthogonal"},
    "sign flip": {"initializer": "sign_flip"},
    "positive bias": {"initializer": "he_normal", "bias_shift": 0.1},
    # At another scale: what He's factor is to Xavier, and its loss where no unit is off on more than half of the examples.
    "orthogonal x 1.41": {"initializer": "orthogonal", "gain": 2**0.5},
    "sign flip x 0.71": {"initializer": "sign_flip", "gain": 0.5**0.5},
}
OPTIMIZERS = {"SGD": {"optimizer": "sgd", "learning_rate": 0.1}, "Adam": {"optimizer": "adam", "learning_rate": 1e-3}}


def at(depth: int, start: str, optimizer: str = "Adam") -> str:
    return f"{start}, {optimizer}, depth {depth}"


EXPERIMENTS = [
    Experiment(
        f"{start}, {optimizer}",
        {at(depth, start, optimizer): BASE.replace(depth=depth, **begins, **steps) for depth in DEPTHS},
    )
    for optimizer, steps in OPTIMIZERS.items()
    for start, begins in STARTS.items()
]

# ------------------------------------------------------------------------------------------- claims


def most(claim: str, statement: str, metric: str, label: str, direction: str, epoch: str | float = "last") -> Claim:
    return Claim(claim, statement, metric, label, 0.5, direction, 0.0, epoch=epoch, equals=1.0, why="most runs")


def better(claim: str, statement: str, start: str, than: str, margin: float = 0.05) -> list[Claim]:
    """Higher train accuracy under Adam at both of the largest depths."""
    why = "one image in twenty"
    return [Claim(claim, statement, "accuracy", at(d, start), at(d, than), "greater", margin, why=why) for d in (32, 60)]


# Few rows: of ten seeds the least p that there is, 0.002, must survive Holm's correction over all of them.
T1 = "Xavier's scheme makes a net of sixty ReLU layers constant before it is trained, He's does not"
T6 = "Sign flipping leaves no unit dead before training"
T9 = "A positive bias leaves fewer units of a deep net dead before training"
T10 = "Adam trains nets that are too deep for SGD"
CLAIMS = [
    most("T1", T1, "constant", at(60, "xavier"), "greater", epoch=0),
    most("T1", T1, "constant", at(60, "he_normal"), "less", epoch=0),
    *better("T2", "He's scheme trains deep ReLU nets better than Xavier's", "he_normal", "xavier"),
    most("T3", "Orthogonal weights train a net however deep it is", "trained", at(60, "orthogonal"), "greater"),
    *better("T4", "At He's scale orthogonal weights train deep nets as well or better", "orthogonal x 1.41", "he_normal", -0.05),
    *better("T5", "Randomised asymmetric weights train deep nets of 64 units better than He's scheme", "rai", "he_normal"),
    *(Claim("T6", T6, "dead_fraction", at(d, "sign flip"), 0.0, "equivalent", 0.05, epoch=0) for d in (32, 60)),
    *better("T7", "Sign flipping trains deep nets better than He's scheme alone", "sign flip", "he_normal"),
    *better("T8", "Sign flipping does better at the scale of units that are always on", "sign flip x 0.71", "sign flip"),
    Claim("T9", T9, "dead_fraction", at(60, "positive bias"), at(60, "he_normal"), "less", 0.05, epoch=0),
    *(Claim("T10", T10, "accuracy", at(d, "he_normal"), at(d, "he_normal", "SGD"), "greater", 0.05) for d in (16, 32)),
]

# ------------------------------------------------------------------------------- tables and figures

NAMES = tuple(experiment.name for experiment in EXPERIMENTS)
SEEN = (
    "accuracy",
    "trained",
    "val_loss",
    "constant@0",
    "dead_fraction@0",
    "dead_fraction",
    "grad_norm/site_1@0",
    "grad_norm/all@0",
)
BEGUN = tuple(name for name in NAMES if name.endswith("Adam"))  # before training both optimisers have the same nets

TABLES = [
    *(
        Table(f"layers_{d}", f"{d} hidden layers.", NAMES, SEEN, arms=tuple(at(d, s, o) for o in OPTIMIZERS for s in STARTS))
        for d in (32, 60)
    ),
    EventTable(
        "trained",
        "Of every configuration the runs above 50 % train accuracy at the end, a run that went nonfinite not among "
        "them, and those whose output is constant before training.",
        NAMES,
        keys={"start": "experiment", "layers": "depth"},
        events={"constant_at_start": ("constant@0",), "trained": ("trained",)}),
]  # fmt: skip


def board(name: str, caption: str, *metrics: str, experiments: tuple[str, ...] = (), **options: object) -> Figure:
    return Figure(name, caption, "map", experiments, metrics=metrics, rows="arm", cols="depth", **options)


FIGURES = [
    board("trained", "Share of the finite runs above 50 % train accuracy, by start, optimiser and depth.", "trained"),
    board("accuracy", "Train accuracy, the mean over the finite runs.", "accuracy"),
    board("gradient", "The gradient's norm over all parameters, before training.", "grad_norm", experiments=BEGUN, epoch=0,
          log=True),
    Figure("gradient_depth", "Sixty layers: the gradient's norm at each layer, before training.", "depth",
           arms=tuple(at(60, start) for start in STARTS), metrics=("grad_norm",), epoch=0),
    board("dead_at_start", "Dead units before training.", "dead_fraction", experiments=BEGUN, epoch=0),
    board("dead", "Dead units at the end.", "dead_fraction"),
    Figure("claims", "Differences in train accuracy: the rows of the claims.", "forest",
           claims=("T2", "T4", "T5", "T7", "T8", "T10")),
]  # fmt: skip

SECTIONS = [
    Section(
        "How deep can it be?",
        "Each cell is ten networks, twenty epochs, 240 steps. A run whose numbers overflow has no accuracy: n=k/m says how many "
        "are left.",
        claims=("T10",),
        figures=("trained", "accuracy", "claims"),
    ),
    Section(
        "Xavier, He, orthogonal: the signal's size",
        "A ReLU halves the second moment of what passes it. He's scheme makes up for that and Xavier's does not, nor do "
        "orthogonal matrices, which keep a length that the ReLU then shortens: in sixty layers by 2^-30. Scaled by the square "
        "root of 2 they have He's second moment and spread less from net to net.",
        claims=("T1", "T2", "T3", "T4"),
        tables=("layers_60",),
        figures=("gradient", "gradient_depth"),
    ),
    Section(
        "Dead units: asymmetric weights, sign flips, positive biases",
        "At 64 units a layer no net is stillborn, which is what asymmetric weights were made against. All the same nearly one "
        "unit in three is dead in a He net of sixty layers, since deep down all examples point nearly the same way; a bias that "
        "all share turns them further together. Sign flipping keeps a unit on for at least half of the examples that reach it, "
        "and so turns most units on for all of them: then nothing is halved, and He's factor doubles the second moment at every "
        "layer. Half of his variance is the right one then, and the outputs no longer explode.",
        claims=("T5", "T6", "T7", "T8", "T9"),
        tables=("layers_32",),
        figures=("dead_at_start", "dead"),
    ),
    Section("Every configuration", "", tables=("trained",)),
]

study = Study(
    name="trainability",
    title="How deep can a ReLU net be and still train?",
    text=(
        "Dead units are one reason why a deep net does not train; a signal that vanishes or explodes is another. Networks of 64 "
        "units a layer and 2 to 60 layers classify scikit-learn's 1,797 digits, 1,437 of them for training, from eight starts "
        "under SGD at 0.1 and Adam at 0.001, in batches of 128. A run is trained when it classifies more than half of its "
        "training images rightly; chance is one in ten. Every start shares its normal draws with the others, seed by seed. "
        "The questions are those of He et al. 2015 (arXiv 1502.01852), Saxe et al. 2013 (1312.6120), Lu et al. 2020 (1903.06733) "
        "and Rister & Rubin 2020 (2007.06192); no number of theirs stands here, since none of them trained these networks."
    ),
    experiments=EXPERIMENTS,
    seeds=10,
    # Before training and at its end, and what is shown alone: sixty sites take long to compile and to measure.
    every=20,
    metrics=("constant", "dead_fraction", "grad_norm", "train_loss", "val_loss"),
    targets=(Target("digit", 2.3026, 0.0),),  # the best constant's loss is log 10
    claims=CLAIMS,
    tables=TABLES,
    figures=FIGURES,
    sections=SECTIONS,
    presets={"full": {"seeds": 30, "epochs": 50, "every": 50}},
)
