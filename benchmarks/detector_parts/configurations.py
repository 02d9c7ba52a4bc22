"""Networks with one fault each, next to their healthy twins: 31 architectures, their tasks, and the doses of every fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detector_parts import tasks
from relu_study import RunSpec

# The problems that a fault may cause.
CAUSES = {
    "learning rate": ("exploding", "dying", "not_learning"),
    "negative biases": ("dying", "not_learning"),
    "small kernels": ("vanishing", "not_learning"),
    "large kernels": ("exploding", "dying", "not_learning"),
    "saturating depth": ("vanishing", "not_learning"),
    "negative weights": ("dying", "not_learning"),
    "uncentred inputs": ("exploding", "dying", "not_learning"),
    "no normalisation": ("exploding", "dying", "vanishing", "not_learning"),
    "shuffled labels": (),
    "few updates": ("not_learning",),
}
Change = dict[str, Any]
RATES = {f"x{dose}": {"learning_rate": dose} for dose in (10, 100, 1000)}  # factors of the healthy rate
BIASES = {f"{dose:g}": {"bias_shift": dose} for dose in (-0.1, -1, -10)}
SMALL = {f"x{dose:g}": {"gain": dose} for dose in (0.01, 0.1, 0.3)}
LARGE = {f"x{dose:g}": {"gain": dose} for dose in (3, 10, 30)}
INPUTS = {f"x{dose:g}": {"scale": dose, "offset": 2.0} for dose in (1, 10, 100)}
NEGATIVE = {"all": {"initializer": "negative_uniform"}}
SHUFFLED = {"all": {"shuffled": True}}
FEW = {f"/{round(1 / dose)}": {"learning_rate": dose} for dose in (1e-3, 1e-4)}
DOSES: dict[str, dict[str, Change]] = {
    "learning rate": RATES,
    "negative biases": BIASES,
    "small kernels": SMALL,
    "large kernels": LARGE,
    "uncentred inputs": INPUTS,
    "negative weights": NEGATIVE,
    "shuffled labels": SHUFFLED,
    "few updates": FEW,
}


@dataclass(frozen=True)
class Configuration:
    """A RunSpec with its fault, dose and twin. A twin has no fault, and is its own twin."""

    label: str
    architecture: str
    source: str  # of the data
    split: str  # tuning | held_out
    fault: str
    dose: str
    spec: RunSpec
    twin: str  # label

    @property
    def causes(self) -> tuple[str, ...]:
        """The problems that its fault may cause."""
        return CAUSES.get(self.fault, ())


@dataclass(frozen=True)
class Architecture:
    """A healthy network, the sources of its data, and the faults that it gets.

    `removed` contains networks that lack what keeps this one healthy, by fault and dose.
    """

    name: str
    split: str
    sources: tuple[str, ...]
    spec: RunSpec
    faults: tuple[str, ...]
    removed: tuple[tuple[str, str, RunSpec], ...] = ()

    def configurations(self) -> Iterator[Configuration]:
        """The twin on each source, then its faults."""
        for source in self.sources:
            base, twin = self.spec.replace(target=source), f"{self.name} on {source}"
            yield Configuration(twin, self.name, source, self.split, "", "", base, twin)
            changed = [(fault, dose, _changed(base, change)) for fault in self.faults for dose, change in DOSES[fault].items()]
            changed += [(fault, dose, spec.replace(target=source)) for fault, dose, spec in self.removed]
            for fault, dose, spec in changed:
                yield Configuration(f"{twin}, {fault} {dose}", self.name, source, self.split, fault, dose, spec, twin)


def _changed(base: RunSpec, change: Change) -> RunSpec:
    change = dict(change)
    if "learning_rate" in change:
        change["learning_rate"] *= base.learning_rate
    return base.replace(**change)


BASE = RunSpec(
    task="faulty", batch_size=50, epochs=20, learning_rate=3e-3, initializer="he_normal",
    options={"scale": 1.0, "offset": 0.0, "shuffled": False},
)  # fmt: skip
SMOOTH = {"initializer": "lecun_normal"}
SGD, MOMENTUM = {"optimizer": "sgd", "learning_rate": 0.1}, {"optimizer": "momentum", "learning_rate": 0.02}
USUAL = ("learning rate", "negative biases", "large kernels", "small kernels")
DATA = ("uncentred inputs", "shuffled labels", "few updates")


def _net(name: str, split: str, sources: str, faults: tuple[str, ...], **fields: Any) -> Architecture:
    return Architecture(name, split, tuple(sources.split()), BASE.replace(**fields), faults)


def _deep(name: str, split: str, sources: str, fields: Change, fault: str, *removed: tuple[str, Change]) -> Architecture:
    """A deep network that trains, and networks without what makes it train."""
    spec = BASE.replace(**fields)
    return Architecture(
        name, split, tuple(sources.split()), spec, ("learning rate",),
        tuple((fault, dose, spec.replace(**{"norm": "none", **change})) for dose, change in removed),
    )  # fmt: skip


def _saturating(*doses: tuple[str, Change]) -> list[tuple[str, Change]]:
    return [(dose, {**SMOOTH, **change}) for dose, change in doses]


T, H = "tuning", "held_out"
ARCHITECTURES = (
    _net("relu 2x32", T, "circles blobs", (*USUAL, *DATA, "negative weights"), depth=2),
    _net("relu 4x16", T, "article_sum article_wave", (*USUAL, "negative weights", "shuffled labels"), depth=4, width=16),
    _net("leaky_relu 3x32", T, "circles blobs", USUAL, depth=3, activation="leaky_relu"),
    _net("relu 6x24 momentum", T, "circles blobs", USUAL, depth=6, width=24, **MOMENTUM),
    _net("tanh 3x24 sgd", T, "article_sum", (*USUAL, "few updates"), depth=3, width=24, activation="tanh", **SMOOTH, **SGD),
    _net("gelu 4x32", T, "article_sum article_wave", ("learning rate", "large kernels", *DATA), depth=4, activation="gelu"),
    _net("elu 6x16", T, "circles", ("learning rate", "large kernels", "shuffled labels"), depth=6, width=16, activation="elu"),
    _net(
        "sigmoid 2x32",
        T,
        "circles blobs",
        ("learning rate", "small kernels", "few updates"),
        depth=2,
        activation="sigmoid",
        **SMOOTH,
    ),
    _net("relu6 2x48", T, "article_wave", (*USUAL, "uncentred inputs"), width=48, depth=2, activation="relu6"),
    _net("skip relu 8x16", T, "circles blobs", ("learning rate", "large kernels"), network="skip", depth=8, width=16),
    _deep(
        "relu 10x16 layer norm",
        T,
        "circles blobs",
        {"depth": 10, "width": 16, "norm": "layer_norm"},
        "no normalisation",
        ("he", {}),
        ("glorot", {"initializer": "glorot_uniform"}),
        ("glorot momentum", {"initializer": "glorot_uniform", **MOMENTUM}),
    ),
    _deep(
        "relu 8x16 for sigmoid",
        T,
        "circles blobs",
        {"depth": 8, "width": 16},
        "saturating depth",
        *_saturating(
            ("sigmoid sgd", {"activation": "sigmoid", **SGD}), ("sigmoid momentum", {"activation": "sigmoid", **MOMENTUM})
        ),
    ),
    _deep(
        "relu 12x16 layer norm for sigmoid",
        T,
        "circles blobs",
        {"depth": 12, "width": 16, "norm": "layer_norm"},
        "saturating depth",
        *_saturating(
            ("sigmoid", {"activation": "sigmoid"}),
            ("sigmoid sgd", {"activation": "sigmoid", **SGD}),
            ("tanh x0.3 sgd", {"activation": "tanh", "gain": 0.3, **SGD}),
            ("tanh x0.6 sgd", {"activation": "tanh", "gain": 0.6, **SGD}),
        ),
    ),
    # -------------------------------------------------------------------------------------- held out
    _net("relu 3x24", H, "saddle ripple", (*USUAL, *DATA, "negative weights"), depth=3, width=24),
    _net("relu 2x64", H, "digits", (*USUAL, *DATA, "negative weights"), depth=2, width=64),
    _net("relu 5x20 momentum", H, "saddle ripple", (*USUAL, "negative weights"), depth=5, width=20, **MOMENTUM),
    _net("relu 7x24", H, "digits", (*USUAL, "shuffled labels"), depth=7, width=24),
    _net("leaky_relu 5x16", H, "saddle ripple", USUAL, depth=5, width=16, activation="leaky_relu"),
    _net("silu 3x32", H, "mnist1d", ("learning rate", "large kernels", "few updates"), depth=3, activation="silu"),
    _net("hard_tanh 4x24 sgd", H, "digits", USUAL, depth=4, width=24, activation="hard_tanh", **SMOOTH, **SGD),
    _net(
        "selu 8x16",
        H,
        "saddle ripple",
        ("learning rate", "large kernels", "shuffled labels"),
        depth=8,
        width=16,
        activation="selu",
        **SMOOTH,
    ),
    _net("crelu 2x16", H, "digits", (*USUAL, "uncentred inputs"), depth=2, width=16, activation="crelu"),
    _net(
        "skip gelu 10x16",
        H,
        "saddle ripple",
        ("learning rate", "large kernels"),
        network="skip",
        depth=10,
        width=16,
        activation="gelu",
    ),
    _net("relu 3x96", H, "mnist1d", (*USUAL, *DATA), depth=3, width=96),
    _deep(
        "relu 14x24 layer norm",
        H,
        "digits",
        {"depth": 14, "width": 24, "norm": "layer_norm"},
        "no normalisation",
        ("he", {}),
        ("glorot", {"initializer": "glorot_uniform"}),
        ("glorot momentum", {"initializer": "glorot_uniform", **MOMENTUM}),
    ),
    _deep(
        "relu 9x20 for sigmoid",
        H,
        "saddle ripple",
        {"depth": 9, "width": 20},
        "saturating depth",
        *_saturating(
            ("sigmoid sgd", {"activation": "sigmoid", **SGD}), ("sigmoid momentum", {"activation": "sigmoid", **MOMENTUM})
        ),
    ),
    _deep(
        "relu 16x16 layer norm for tanh",
        H,
        "saddle ripple",
        {"depth": 16, "width": 16, "norm": "layer_norm"},
        "saturating depth",
        *_saturating(
            ("sigmoid momentum", {"activation": "sigmoid", **MOMENTUM}),
            ("tanh x0.3 momentum", {"activation": "tanh", "gain": 0.3, **MOMENTUM}),
            ("tanh x0.6 momentum", {"activation": "tanh", "gain": 0.6, **MOMENTUM}),
        ),
    ),
    _deep(
        "relu 10x32 layer norm for sigmoid",
        H,
        "digits",
        {"depth": 10, "width": 32, "norm": "layer_norm"},
        "saturating depth",
        *_saturating(
            ("sigmoid sgd", {"activation": "sigmoid", **SGD}),
            ("sigmoid", {"activation": "sigmoid"}),
            ("hard_tanh x0.3 sgd", {"activation": "hard_tanh", "gain": 0.3, **SGD}),
        ),
    ),
)
IMAGE = RunSpec(task="digits_image", batch_size=50, epochs=20, width=16, depth=2, learning_rate=3e-3)
IMAGES = tuple(
    Architecture(name, H, ("default",), IMAGE.replace(network=name, **fields), ("learning rate",))
    for name, fields in {"cnn": {}, "resnet": {}, "vit": {"activation": "gelu"}}.items()
)


def configurations() -> list[Configuration]:
    """Every configuration, twins included."""
    return [one for architecture in (*ARCHITECTURES, *IMAGES) for one in architecture.configurations()]


def frozen(spec: RunSpec) -> RunSpec:
    """The same run with the first half of its layers frozen at the start."""
    return spec.replace(optimizer=f"frozen_{spec.optimizer}")


def may_vanish(one: Configuration) -> bool:
    """Whether a run with frozen layers decides about `vanishing`: an MLP of depth 4 or more with a fault of that family."""
    return "vanishing" in one.causes and one.spec.network in ("mlp", "skip") and one.spec.depth >= 4


assert tasks.SOURCES  # registers the tasks and optimisers
