"""Options: factors that a network, task, optimiser or activation declares, with their defaults."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from relu_study.components.registry import OPTIONAL, activations, networks, optimizers, tasks
from relu_study.errors import UserError, nearest
from relu_study.study.options import Scalar, could_be_option, scalar
from relu_study.study.run_spec import FIELDS, RunSpec


class Option(NamedTuple):
    """A declared option: the kind of its component, its default, and whether programs take it as an input."""

    kind: str
    default: Scalar
    traced: bool


def check_declared(kind: str, name: str, options: Any, traced: Any = ()) -> dict[str, Scalar]:
    """Return an entry's options as a dictionary.

    Raises:
      UserError: for options that are no mapping of names to strings, numbers or booleans, a name of a RunSpec field or of
        an option of another kind, and a traced option that is not declared or no number.
    """
    what = f"{kind} {name!r}"
    if not isinstance(options, Mapping) or not all(isinstance(option, str) and option.isidentifier() for option in options):
        raise UserError(f"{what} has options={options!r}. Give a dictionary of names and defaults, options={{'channels': 16}}.")
    for option, default in options.items():
        if option in FIELDS:
            raise UserError(f"{what}: option {option!r} is a RunSpec field. Read the field, or choose another name.")
        if not could_be_option(option):
            raise UserError(f"{what}: option {option!r} is the name of a column. Choose another name.")
        scalar(option, default)  # raises UserError for a default that is no string, number or boolean
        if other := _other_kind(kind, option):
            raise UserError(f"{what}: option {option!r} belongs to {other} already. Choose another name.")
    if not isinstance(traced, tuple | list | set | frozenset):
        raise UserError(f"{what} has traced={traced!r}. Give a tuple of its options, traced=('beta',).")
    for option in traced:
        if option not in options:
            raise nearest(option, options, f"traced option of {what}")
        if isinstance(options[option], str | bool):
            raise UserError(f"{what}: option {option!r} is {options[option]!r} and cannot be traced. Only numbers can.")
    return dict(options)


def _other_kind(kind: str, option: str) -> str | None:
    """Return the entry of another kind that declares an option. Only entries registered so far count."""
    for registry in OPTIONAL:
        if registry.kind != kind:
            for name, entry in registry.registered().items():
                if option in getattr(entry, "options", {}):
                    return f"{registry.kind} {name!r}"
    return None


def declared(spec: RunSpec) -> dict[str, Option]:
    """Return the options that the components of a spec declare, by name."""
    found: dict[str, Option] = {}
    for registry, name in (
        (networks, spec.network),
        (tasks, spec.task),
        (optimizers, spec.optimizer),
        (activations, spec.activation),
        (activations, spec.output),
    ):
        entry = registry[name]
        traced = getattr(entry, "traced", ())
        for option, default in getattr(entry, "options", {}).items():
            one = Option(registry.kind, default, option in traced)
            if (other := found.setdefault(option, one)).kind != one.kind:
                raise UserError(f"option {option!r} belongs to {one.kind} {name!r} and to a {other.kind}. Rename one of them.")
    return found


def check_options(spec: RunSpec) -> None:
    """Raise UserError if a spec sets an option that none of its components declares, or a value of another type."""
    known = declared(spec)
    names = [*FIELDS, *known]
    for name, value in spec.options:
        if name not in known:
            others = [f"{registry.kind} {entry!r}" for registry in OPTIONAL for entry in _declaring(registry, name)]
            if others:
                raise UserError(f"option {name!r} belongs to {others[0]}, which this run does not use. Leave it out.")
            raise nearest(name, names, "RunSpec field or option")
        _converted(name, known[name], value)


def _declaring(registry: Any, option: str) -> list[str]:
    return [name for name in registry if option in getattr(registry[name], "options", {})]


def _converted(name: str, option: Option, value: Any) -> Scalar:
    """Return a value in the type of an option's default. Raises UserError if it has another one."""
    default = option.default
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(default, bool | str):
        valid = isinstance(value, type(default))
    elif isinstance(default, int) and not option.traced:
        valid = is_number and float(value).is_integer()
    else:
        return _number(name, option, value, is_number)
    if not valid:
        kinds = {bool: "True or False", str: "a name", int: "a whole number"}
        raise UserError(f"option {name!r} must be {kinds[type(default)]}, not {value!r}")
    return type(default)(value)


def _number(name: str, option: Option, value: Any, is_number: bool) -> float:
    if not is_number:
        raise UserError(f"option {name!r} must be a number, not {value!r}")
    return float(value)


def values(spec: RunSpec, *kinds: str) -> dict[str, Scalar]:
    """Return the value of every option that the components of a spec declare: set, or the default. `kinds` selects components."""
    known, given = declared(spec), dict(spec.options)
    chosen = {name: option for name, option in known.items() if not kinds or option.kind in kinds}
    return {name: _converted(name, option, given.get(name, option.default)) for name, option in chosen.items()}


def filled(spec: RunSpec) -> RunSpec:
    """Return a spec with a value for every declared option, as builders receive it."""
    given = values(spec)
    return spec.replace(**given) if given else spec


def traced_options(spec: RunSpec) -> tuple[str, ...]:
    """Return the names of the traced options that a spec sets. Options that are not set are constants of the programs."""
    known, given = declared(spec), dict(spec.options)
    return tuple(sorted(name for name, option in known.items() if option.traced and name in given))


def program_options(spec: RunSpec, *kinds: str) -> tuple[tuple[str, Scalar], ...]:
    """Return the options of components of some kinds that enter a program, without static options at their default.

    A traced option has its default: programs depend on its presence only.
    """
    given, chosen = values(spec), dict(spec.options)
    options: dict[str, Scalar] = {}
    for name, option in declared(spec).items():
        if option.kind in kinds and option.traced and name in chosen:
            options[name] = option.default
        elif option.kind in kinds and not option.traced and given[name] != option.default:
            options[name] = given[name]
    return tuple(sorted(options.items()))
