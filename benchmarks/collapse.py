"""Who dies in training: deep and narrow ReLU nets that end as a constant, by target and initialiser, and what helps.

Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, sections 3-5, and an independent re-run of its experiments. The paper
counts the output layer (its 10 layers are 9 hidden ones) and trains until convergence; 5,000 steps and the remedies are ours.
"""

from relu_study import Claim, EventTable, Experiment, Figure, RunSpec, Section, Study, Table, Target

BATCHES = 47  # of 64 rows in 3,000, the last of 56
TEN = RunSpec(task="lu_targets", rows=4000, depth=9, width=2, batch_size=64, initializer="he_normal", epochs=5_000 / BATCHES)
TWENTY = TEN.replace(depth=19, width=4)
NARROW, WIDE = ("abs", "x_sin_5x", "step_sine"), ("two_dim",)
RUNS = 1_000  # networks, as in the paper

REMEDIES = {
    **{f"leaky_{leak}": {"activation": "leaky_relu", "leak": leak} for leak in (0.01, 0.1, 0.3)},
    **{name: {"activation": name} for name in ("elu", "selu", "gelu", "crelu")},
    "layer_norm": {"norm": "layer_norm"},
    "skip": {"network": "skip"},
    "positive_bias": {"bias_shift": 0.1},
}


def starts(net: RunSpec) -> dict[str, RunSpec]:
    """Both initialisers."""
    return {"he_normal": net, "rai": net.replace(initializer="rai")}


def remedies(net: RunSpec) -> dict[str, RunSpec]:
    """He's start, and the same with one thing changed."""
    return {"he_normal": net} | {label: net.replace(**changed) for label, changed in REMEDIES.items()}


EXPERIMENTS = [
    Experiment("10 layers", starts(TEN), "Ten layers of two units", targets=NARROW),
    Experiment("20 layers", starts(TWENTY), "Twenty layers of four units", targets=WIDE),
    Experiment("remedies, 10 layers", remedies(TEN), "What helps ten layers", seeds=100, targets=("abs",)),
    Experiment("remedies, 20 layers", remedies(TWENTY), "What helps twenty layers", seeds=100, targets=WIDE),
    Experiment("remedies, other targets", remedies(TEN), "What helps on the other targets", seeds=100, targets=NARROW[1:]),
]
WITH_REMEDIES = tuple(e.name for e in EXPERIMENTS)

# ------------------------------------------------------------------------------------------- claims

RE_RUN = {"abs": (0.935, 0.003), "x_sin_5x": (0.933, 0.003), "step_sine": (0.928, 0.003), "two_dim": (0.734, 0.014)}
PUBLISHED = {"he_normal": "", "rai": ""} | {
    **{"he_normal@abs": "> 90", "he_normal@x_sin_5x": "91.9", "he_normal@step_sine": "93.8", "he_normal@two_dim": "76.8"},
    **{"rai@x_sin_5x": "29.2", "rai@step_sine": "32.6", "rai@two_dim": "9.6"},
}
AGAIN = {"rai": ""} | {f"he_normal@{target}": f"{100 * share:.1f} ({100 * se:.1f})" for target, (share, se) in RE_RUN.items()}


def error(share: float) -> float:
    """Standard error of a share of so many runs."""
    return (share * (1 - share) / RUNS) ** 0.5


CLAIMS = [
    *(
        Claim("L1", "He: as many networks collapse as in the independent re-run", "constant", "he_normal", share, "equivalent",
              4 * (theirs**2 + error(share) ** 2) ** 0.5, targets=(target,),
              why="four standard errors of the difference, theirs and that of 1,000 runs together")
        for target, (share, theirs) in RE_RUN.items()
    ),
    Claim("L2", "RAI: fewer networks collapse than from He's start", "constant", "rai", "he_normal", "less", 0.05),
    *(
        Claim(f"R{i}", f"{label}: fewer networks collapse than without", "constant", label, "he_normal", "less", 0.05)
        for i, label in enumerate(REMEDIES, 1)
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------- tables and figures

TABLES = [
    EventTable(
        "published",
        "Networks that collapse: as published and in an independent re-run (in %), and here.",
        WITH_REMEDIES[:2],
        keys={"target": "target", "initializer": "initializer", "published": PUBLISHED, "re-run": AGAIN},
        events={"collapsed": ("collapsed", "constant")},
    ),
    EventTable(
        "collapse",
        "Networks that collapse: the output is constant at the end.",
        WITH_REMEDIES,
        keys={"target": "target", "initializer": "initializer", "remedy": {"he_normal": "none", "rai": "none"}},
        events={"stillborn": ("collapsed@0",), "collapsed": ("collapsed", "constant")},
    ),
    Table("learned", "What is learned, and by how much of the network.", WITH_REMEDIES,
          ("val_loss", "constant", "dead_fraction", "grad_norm"), baseline="he_normal"),
]  # fmt: skip
HELPS = tuple(f"R{i + 1}" for i in range(len(REMEDIES)))
FIGURES = [
    Figure("starts", "Networks whose output is constant, from before training to its end.", "curves", WITH_REMEDIES[:2],
           metrics=("constant",)),
    Figure("remedies", "Networks whose output is constant, with one remedy each. Before training a signal that fades from layer "
           "to layer is enough for that.", "curves", WITH_REMEDIES[2:], metrics=("constant",)),
    Figure("re_run", "Our share of collapsed networks from He's start less that of the re-run.", "forest", claims=("L1",)),
    Figure("helps", "Each remedy's share of collapsed networks less that without, seed by seed.", "forest", claims=HELPS),
]  # fmt: skip

SECTIONS = [
    Section(
        "How many networks collapse?",
        """
        Ten layers of two units, twenty of four on two_dim. A network is stillborn if a whole hidden layer is dead on all 3,000
        points before training: nothing can move it then. It has collapsed if that is so at the end, or if its output varies by
        less than 1e-4 of the target's variance. Before training many outputs vary less than that because the signal fades on its
        way; some come back. The re-run took 20,000 steps (its standard error in brackets).

        RAI's published values were not fully reproduced by the re-run, and ours lie above them too: nothing is claimed of them.
        """,
        ("L1", "L2"),
        ("published", "collapse"),
        ("re_run", "starts"),
    ),
    Section(
        "What helps?",
        """
        One thing is changed at a time, with the same seeds: so SELU too begins with He's weights, not with LeCun's, and positive
        biases are He's weights with 0.1 added to every hidden bias. Layer normalisation over two units leaves little more of
        each layer than a sign. A skip network leads around a dead layer: it has collapsed only if its output is constant.
        From He's weights the second moment of its signal doubles at every layer, though, and twenty layers explode.
        """,
        HELPS,
        ("learned",),
        ("remedies", "helps"),
    ),
]

study = Study(
    name="collapse",
    title="Who dies in training?",
    text="""
    Deep and narrow ReLU nets often end as a constant. Lu, Shin, Su and Karniadakis (2020, arXiv 1903.06733) trained a thousand
    of them on each of four targets, from He's start and from one of their own (RAI). Most of those that collapse are born dead.

    Inputs are uniform on [-sqrt 3, sqrt 3]^d, 3,000 of them for training; squared error, Adam at 1e-3, batches of 64. Biases
    begin at zero, and the output layer is Glorot uniform for He's start; RAI sets all layers. Training takes 5,000 steps
    (20,000 with `--preset full`); a re-run of 20,000 saw fewer than 5 % of the deaths after step 2,000.
    """,
    experiments=EXPERIMENTS,
    seeds=RUNS,
    targets=[
        Target("abs", 0.25),
        Target("x_sin_5x", 0.55983),
        Target("step_sine", 0.31091),
        Target("two_dim", 2 / 3),
    ],
    claims=CLAIMS,
    tables=TABLES,
    figures=FIGURES,
    sections=SECTIONS,
    skip=("remedies, other targets",),
    every=20,
    metrics=("collapsed", "constant", "grad_norm", "train_loss", "val_loss"),
    presets={"full": {"seeds": RUNS, "epochs": 20_000 / BATCHES, "skip": (), "every": 50}},
)
