"""RunSpec: the full specification of one training run, as plain data. A mark on each field says what the field changes."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.study.options import Options, Scalar, normalized

FIRST_INITIALIZER, FIRST_NETWORKS = "glorot_uniform", ("mlp", "skip")  # of ids older than the default initializer


def _marked(mark: str, default: Any) -> Any:
    return field(default=default, metadata={"mark": mark})


@dataclass(frozen=True)
class RunSpec:
    """The specification of one training run.

    Each field has one mark:

    - **program**: changes the compiled training step;
    - **init**: changes only the initial state;
    - **data**: changes the data;
    - **length**: changes the number of steps;
    - **traced**: a number that the compiled program takes as input, free to sweep;
    - **options**: own factors of the network, task, optimizer and activation.

    `options` is a mapping or pairs of a name and a text, number or truth value. It becomes a tuple sorted by name.

    Raises:
      UserError: for a value of the wrong type or out of range.
    """

    network: str = _marked("program", "mlp")
    depth: int = _marked("program", 1)  # hidden layers
    width: int = _marked("program", 32)  # units per hidden layer
    activation: str = _marked("program", "relu")
    output: str = _marked("program", "linear")  # activation of the output layer
    norm: str = _marked("program", "none")  # none | batch_norm | layer_norm
    dropout: str = _marked("program", "none")  # none | dropout | alpha_dropout
    optimizer: str = _marked("program", "adam")
    batch_size: int = _marked("program", 128)
    rows: int = _marked("program", 200_000)  # training and validation rows together
    initializer: str = _marked("init", "default")  # the network's declared default
    task: str = _marked("data", "negative_box")
    target: str = _marked("data", "default")  # one of the task's choices of y
    inputs: str = _marked("data", "raw")  # raw | centred
    epochs: float = _marked("length", 25)  # a fractional value ends within the last epoch
    learning_rate: float = _marked("traced", 1e-3)
    weight_decay: float = _marked("traced", 0.0)
    leak: float = _marked("traced", 0.01)  # slope of leaky activations at pre < 0
    dropout_rate: float = _marked("traced", 0.0)
    gain: float = _marked("traced", 1.0)  # factor on every hidden kernel at initialisation
    bias_shift: float = _marked("traced", 0.0)  # added to every hidden bias at initialisation
    seed: int = _marked("traced", 0)
    options: Options = field(default=(), metadata={"mark": "options"})  # also a mapping

    def __post_init__(self) -> None:
        if self.options != ():
            object.__setattr__(self, "options", normalized(self.options, [f.name for f in fields(self)]))
        for f in fields(self):
            value, kind = getattr(self, f.name), f.type
            if f.name == "options":
                continue
            if kind == "str":
                if not isinstance(value, str):
                    raise UserError(f"{f.name} must be a name, not {value!r}")
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise UserError(f"{f.name} must be a finite number, not {value!r}")
            if kind == "int":
                if not float(value).is_integer():
                    raise UserError(f"{f.name} must be a whole number, not {value!r}")
                object.__setattr__(self, f.name, int(float(value)))
            else:
                object.__setattr__(self, f.name, float(value))
        for name, least in (("depth", 1), ("width", 1), ("batch_size", 1), ("rows", 2), ("epochs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name):g}")
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2**32, not {self.seed}")
        if not 0 <= self.dropout_rate < 1:
            raise UserError(f"dropout_rate must be in [0, 1), not {self.dropout_rate:g}")
        for name, choices in (
            ("norm", ("none", "batch_norm", "layer_norm")),
            ("dropout", ("none", "dropout", "alpha_dropout")),
            ("inputs", ("raw", "centred")),
        ):
            if getattr(self, name) not in choices:
                raise nearest(getattr(self, name), choices, name)
        if self.dropout == "none" and self.dropout_rate:
            raise UserError(f"dropout_rate {self.dropout_rate:g} without a dropout kind. Set dropout='dropout' too")

    @property
    def run_id(self) -> str:
        """Hash of the fields that differ from their defaults, in name order. A new field changes no existing id."""
        return id_of(self.changed())

    @property
    def config_id(self) -> str:
        """Hash of the same fields without the seed, shared by all runs of one configuration."""
        return id_of({k: v for k, v in self.changed().items() if k != "seed"})

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, and the options, in name order.

        The initializer glorot_uniform of the networks mlp and skip is their default, so it is left out too.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if values.get("initializer") == FIRST_INITIALIZER and self.network in FIRST_NETWORKS:
            del values["initializer"]
        options = dict(values.pop("options", ()))
        return dict(sorted((values | options).items()))

    def marked(self, *marks: str) -> tuple[tuple[str, Any], ...]:
        """Return the (name, value) pairs of all fields with one of these marks, in declared order."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.metadata["mark"] in marks)

    def as_dict(self) -> dict[str, Any]:
        """Return every field and its value, in declared order, then the options. The inverse of `from_dict`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"} | dict(self.options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """Return the spec of fields and options by name. A name that is no field is an option."""
        options = tuple((name, value) for name, value in values.items() if name not in FIELDS)
        return cls(**{name: value for name, value in values.items() if name in FIELDS}, options=options)

    def replace(self, **changes: Any) -> RunSpec:
        """Return this spec with some fields changed. A name that is no field is set as an option.

        `options` replaces all options.
        """
        options = dict(normalized(changes.pop("options", self.options), FIELDS))
        options |= {name: changes.pop(name) for name in [*changes] if name not in FIELDS}
        return replace(self, **changes, options=tuple(options.items()))

    def option(self, name: str) -> Scalar:
        """Return the value of an option. Raises UserError if it is not set."""
        options = dict(self.options)
        if name not in options:
            raise nearest(name, options, "option of this RunSpec")
        return options[name]


FIELDS = tuple(f.name for f in fields(RunSpec) if f.name != "options")
TRACED_FIELDS = tuple(f.name for f in fields(RunSpec) if f.metadata["mark"] == "traced" and f.name != "seed")


def id_of(values: Mapping[str, Any]) -> str:
    """Return the id of a run or configuration, given its fields that differ from their defaults."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]
