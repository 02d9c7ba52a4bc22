"""Does the article's story hold beyond MLPs? MLP, CNN, ResNet and ViT with four activations, two starts and three rates.

Source: the questions are those of "Is ReLU Dead?" (2019). Digits: Alpaydin & Kaynak 1998. MNIST-1D: Greydanus & Kobak 2020,
arXiv 2011.14439. The networks are small, so their numbers are not those of any paper.
"""

from relu_study import Claim, EventTable, Experiment, Figure, RunSpec, Section, Study, Table

RATES = (1e-3, 1e-2, 1e-1)
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "selu")
NETWORKS = {
    "mlp": RunSpec(network="mlp", depth=4, width=32),
    "cnn": RunSpec(network="cnn", depth=3, width=16),
    "resnet": RunSpec(network="resnet", depth=3, width=8),
    "vit": RunSpec(network="vit", depth=3, width=16),
}
NORMS = {"mlp": "batch_norm", "cnn": "batch_norm", "resnet": "batch_norm", "vit": "layer_norm"}
# The first site, and the last one: a residual block has two sites, and there is one after the last block.
SITES = {"mlp": ("site_1", "site_4"), "cnn": ("site_1", "site_3"), "resnet": ("site_1", "site_7"), "vit": ("site_1", "site_3")}
TASKS = ("digits", "mnist1d")
OWN = ("mlp", "vit")  # networks with a default initialiser other than he_normal
STARTS = {"he_normal": "he_normal", "own start": "default"}


def spec_of(net: str, task: str, activation: str, norm: bool, start: str, rate: float) -> RunSpec:
    """Return the run of one cell. Both tasks have nearly the same number of training rows, 1,437 and 1,500."""
    spec = NETWORKS[net].replace(activation=activation, learning_rate=rate, initializer=STARTS[start], batch_size=64, epochs=10)
    if task == "digits":
        spec = spec.replace(task="digits" if net == "mlp" else "digits_image", rows=1797)
    else:
        spec = spec.replace(task="mnist1d", rows=2500)
    if net == "vit":
        spec = spec.replace(patch=4 if task == "digits" else 8)  # four patches of 4 x 4 pixels, five of 8 numbers
    return spec.replace(norm=NORMS[net]) if norm else spec


def label(net: str, task: str, rate: float, activation: str = "relu", norm: bool = False, start: str = "he_normal") -> str:
    """Return the label of an arm. Maps over rates merge labels that differ only in their last part."""
    parts = [net, activation, "norm" if norm else "", start if start != "he_normal" else "", task, f"rate {rate:g}"]
    return ", ".join(filter(None, parts))


def arms(net: str, task: str, start: str) -> dict[str, RunSpec]:
    """Return every cell of a network on a task. SELU is trained without normalisation only."""
    cells = [(a, norm) for a in ACTIVATIONS for norm in (False, True) if not (a == "selu" and norm)]
    return {
        label(net, task, rate, activation, norm, start): spec_of(net, task, activation, norm, start, rate)
        for activation, norm in cells
        for rate in RATES
    }


EXPERIMENTS = [Experiment(f"{net}, {task}", arms(net, task, "he_normal")) for net in NETWORKS for task in TASKS] + [
    Experiment(f"{net}, {task}, own start", arms(net, task, "own start")) for net in OWN for task in TASKS
]

# ------------------------------------------------------------------------------------------- claims

# 40 rows, written before any result was seen. An unnormalised ViT at 0.1 was known to go nonfinite, so no row needs one.
UNIT = {"margin": 0.05, "why": "one unit in twenty"}
FINITE = ("mlp", "cnn", "resnet")  # at a rate of 0.1 without normalisation
A1 = "A rate of 0.01 kills more ReLU units than 0.001, in every architecture"
A2 = "Convolutions, residual blocks and attention lose fewer ReLU units than an MLP"
A3 = "Normalisation keeps ReLU units alive, in every architecture"
A4 = "The last site loses more ReLU units than the first, in every architecture"
A5 = "Where most units die, a leaky ReLU learns better than a ReLU"
A6 = "A network's own initialiser and he_normal end with equally many dead ReLU units"

CLAIMS = [
    *(
        Claim("A1", A1, "dead_fraction", label(net, task, 0.01), label(net, task, 0.001), "greater", **UNIT)
        for net in NETWORKS
        for task in TASKS
    ),
    *(
        Claim("A2", A2, "dead_fraction", label(net, task, 0.01), label("mlp", task, 0.01), "less", **UNIT)
        for net in ("cnn", "resnet", "vit")
        for task in TASKS
    ),
    *(
        Claim("A3", A3, "dead_fraction", label(net, task, 0.01, norm=True), label(net, task, 0.01), "less", **UNIT)
        for net in NETWORKS
        for task in TASKS
    ),
    *(
        Claim("A4", A4, "dead_fraction", label(net, task, 0.01), label(net, task, 0.01), "greater",
              site="last", against_site="site_1", **UNIT)
        for net in NETWORKS
        for task in TASKS
    ),
    *(
        Claim("A5", A5, "val_accuracy", label(net, task, 0.1, "leaky_relu"), label(net, task, 0.1), "greater", 0.05,
              why="one validation row in twenty")
        for net in FINITE
        for task in TASKS
    ),
    *(
        Claim("A6", A6, "dead_fraction", label(net, task, 0.01, start="own start"), label(net, task, 0.01), "equivalent", **UNIT)
        for net in OWN
        for task in TASKS
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------- tables and figures


def of(net: str, own: bool = False) -> tuple[str, ...]:
    """Return the experiments of a network."""
    return tuple(f"{net}, {task}{', own start' if own else ''}" for task in TASKS)


def relu(*rates: float, norms: tuple[bool, ...] = (False,), tasks: tuple[str, ...] = TASKS) -> tuple[str, ...]:
    """Return the labels of the ReLU arms of every network."""
    return tuple(label(net, task, rate, norm=norm) for net in NETWORKS for task in tasks for norm in norms for rate in rates)


HE = tuple(name for net in NETWORKS for name in of(net))
TABLES = [
    Table("architectures", "ReLU without normalisation: dead units and validation accuracy by architecture and rate.", HE,
          ("dead_fraction@0", "dead_fraction", "collapsed", "constant", "val_accuracy"), arms=relu(*RATES)),
    *(
        Table(f"tuned_{task}", f"{task}: each arm at the rate chosen on the even seeds, reported on the odd ones.",
              tuple(f"{net}, {task}" for net in NETWORKS), ("val_accuracy", "val_loss", "dead_fraction"), tune="learning_rate")
        for task in TASKS
    ),
    *(
        Table(f"starts_{net}", f"{net}: the network's own initialiser and he_normal, with ReLU.", (*of(net), *of(net, own=True)),
              ("dead_fraction@0", "dead_fraction", "val_accuracy"),
              arms=tuple(label(net, task, rate, start=start) for task in TASKS for rate in RATES for start in STARTS))
        for net in OWN
    ),
    *(
        Table(f"all_{net}_{task}", f"{net} on {task}: every activation, with and without normalisation, at every rate.",
              (f"{net}, {task}",),
              ("dead_fraction", *(f"dead_fraction/{site}" for site in SITES[net]), "collapsed", "val_accuracy"))
        for net in NETWORKS
        for task in TASKS
    ),
    EventTable("ends", "ReLU runs that end with a dead site or with a constant output. A nonfinite run counts as neither.", HE,
               keys={"arm": "arm"}, events={"collapsed": ("collapsed",), "constant": ("collapsed", "constant")},
               arms=relu(*RATES, norms=(False, True))),
]  # fmt: skip


def by_rate(name: str, caption: str, *metrics: str, **options: object) -> Figure:
    return Figure(name, caption, "map", metrics=metrics, rows="arm", cols="learning_rate", **options)


FIGURES = [
    by_rate("rates", "ReLU: dead units at the end, by architecture, task, normalisation and rate.", "dead_fraction",
            experiments=HE, arms=relu(*RATES, norms=(False, True))),
    Figure("when", "ReLU without normalisation, at 0.01: dead units and validation accuracy over the epochs.", "curves", HE,
           arms=relu(0.01), metrics=("dead_fraction", "val_accuracy")),
    *(
        Figure(f"sites_{task}", f"{task}, ReLU without normalisation, at 0.01: dead units at each site, before training and at "
               "the end.", "depth", HE, arms=relu(0.01, tasks=(task,)), metrics=("dead_fraction",), epoch=(0, "last"))
        for task in TASKS
    ),
    *(
        by_rate(f"activations_{net}", f"{net}: dead units and validation accuracy of every activation, by rate.",
                "dead_fraction", "val_accuracy", experiments=of(net))
        for net in NETWORKS
    ),
    Figure("death", "Differences in the fraction of dead units: the rows of the claims.", "forest", claims=("A1", "A2", "A3")),
    Figure("depth", "Dead units: the last site less the first.", "forest", claims=("A4",)),
    Figure("leaky", "Validation accuracy at a rate of 0.1: leaky ReLU less ReLU.", "forest", claims=("A5",)),
    Figure("starts", "Dead units: the network's own initialiser less he_normal.", "forest", claims=("A6",)),
]  # fmt: skip

SECTIONS = [
    Section(
        "Do ReLU units die in every architecture?",
        """
        A unit is a coordinate of a pre-activation. In a CNN or a ResNet it is a channel, in a ViT a hidden unit of a block's MLP.
        A channel is dead only if it is off at every position of every example. The map has all ReLU arms with He's initialiser.

        At 0.001 few units die in training. At 0.1 most ReLU units of the unnormalised MLP, CNN and ResNet are dead. Nearly all
        runs of the unnormalised ViT go nonfinite there, and say little. So the article's story holds in CNNs and ResNets too,
        but only at a high rate. The claims are about 0.01, since their rate was chosen without knowledge of the deaths. There
        the effects are near the margin or below it. The MLP has the most dead units on digits, but about half of them are dead
        before training. The ViT has the fewest. On MNIST-1D the CNN and the ResNet do not have fewer than the MLP.
        """,
        ("A1", "A2"),
        ("architectures",),
        ("rates", "when"),
    ),
    Section(
        "Does normalisation keep units alive?",
        """
        The MLP, the CNN and the ResNet have batch normalisation before each activation. The ViT has layer normalisation before
        attention and before each MLP, so a linear layer is between its normalisation and its activation.

        Normalised networks have no dead unit at 0.001, and nearly none at 0.01. At 0.1 some of their units are dead too, but no
        run loses a whole site. Claim A3 fails where few units die without normalisation: there is little to prevent.
        """,
        ("A3",),
        ("ends",),
        ("death",),
    ),
    Section(
        "Where in the network do units die?",
        """
        Site 1 is nearest the input. The MLP has four sites, the CNN three, the ResNet seven and the ViT three. Each panel has
        the distribution over twelve seeds.

        The CNN and the ResNet have more dead units at the last site than at the first. The MLP has fewer there on digits and
        more on MNIST-1D. The ViT has hardly any. In the ResNet most dead units are at sites 3, 5 and 7, which read the sum of
        all earlier blocks. The second site of a block, with an even number, has few.
        """,
        ("A4",),
        figures=("sites_digits", "sites_mnist1d", "depth"),
    ),
    Section(
        "Does another activation help?",
        """
        A leaky ReLU has no flat piece, so its units cannot be dead. GELU and SELU have flat limits: in float32 their slope is
        exactly 0 at very negative pre-activations, and a unit there counts as dead. SELU is not normalised here, since it is
        meant to replace normalisation (Klambauer et al. 2017, arXiv 1706.02515). A count of dead units shows no cost.
        The tables with tuned rates compare each arm at its best rate.

        At 0.1 the leaky ReLU is more accurate in the CNN on both tasks, and in the ResNet on MNIST-1D. In the MLP, and in the
        ResNet on digits, no difference is shown, although most ReLU units are dead. The rate also harms networks without dead
        units. At the best rates the tests distinguish no arm from the best one. They show no cost of the remaining dead units.
        """,
        ("A5",),
        ("tuned_digits", "tuned_mnist1d"),
        ("leaky", *(f"activations_{net}" for net in NETWORKS)),
    ),
    Section(
        "Does the initialiser matter?",
        """
        The MLP's own initialiser is glorot_uniform, the ViT's is lecun_normal. For the CNN and the ResNet it is he_normal itself.

        The MLP ends with more dead units from its own initialiser, by nearly the margin. The ViT has hardly any from both. Its
        own one is more accurate at 0.001 and at 0.01. Most of its layers are not followed by a ReLU, and He's factor is made
        for layers that are.
        """,
        ("A6",),
        tuple(f"starts_{net}" for net in OWN),
        ("starts",),
    ),
    Section(
        "Limits",
        """
        The networks have 8 to 64 units per site and see 1,437 or 1,500 training rows for ten epochs with Adam, so no number here
        is one of a large network. Twelve seeds can confirm at most 102 rows under Holm's correction; this study has 40. Pairs
        with a nonfinite run are left out of a row. The claims need no unnormalised ViT at 0.1, since trials of the
        programs showed that it goes nonfinite. Both tasks are small and have ten classes. On the ViT the patches are large:
        4 x 4 pixels, or 8 numbers.
        """,
    ),
    Section("Every configuration", "", tables=tuple(f"all_{net}_{task}" for net in NETWORKS for task in TASKS)),
]

study = Study(
    name="architectures",
    title="Does the article's story hold beyond MLPs?",
    text="""
    The article "Is ReLU Dead?" (2019) saw dead units in multilayer perceptrons on one synthetic task. Here an MLP, a CNN, a
    residual network and a vision transformer classify two sets of small data, scikit-learn's digits and MNIST-1D. Each is
    trained with ReLU, leaky ReLU, GELU and SELU, from He's initialiser and its own, with and without normalisation, and at three
    rates of Adam: 0.001, 0.01 and 0.1. Every cell has twelve seeds; batches have 64 rows, and training takes ten epochs.

    MNIST-1D is cut to 1,500 training rows, drawn by the seed, so that both tasks give about 235 steps. The MLP sees the digits
    as 64 numbers, the others as 8 x 8 images, with the same split. The full grid has 64 programs. SELU with normalisation is left
    out, which leaves 56. The claims and their margins were committed before the first result.
    """,
    experiments=EXPERIMENTS,
    seeds=12,
    every=2,
    metrics=("collapsed", "constant", "val_loss"),
    claims=CLAIMS,
    tables=TABLES,
    figures=FIGURES,
    sections=SECTIONS,
    presets={"quick": {"seeds": 2, "skip": tuple(e.name for e in EXPERIMENTS if "mnist1d" in e.name)}, "full": {"seeds": 32}},
)
