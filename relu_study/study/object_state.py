"""State of objects that attributes do not show: pickled parts, closure cells, slots, and fields of type parameters."""

from __future__ import annotations

import copyreg
import typing
from typing import Any

from relu_study.study.origins import opaque

# Types whose instances are read as values.
OPEN = (object, tuple, list, dict, set, frozenset, int, float, complex, str, bytes, BaseException, Exception)
TYPE_PARAMETERS = {"TypeVar", "ParamSpec", "TypeVarTuple", "TypeAliasType"}  # of `typing`
TYPE_FIELDS: tuple[str, ...] = ("__bound__", "__constraints__", "__covariant__", "__contravariant__", "__infer_variance__")
TYPE_FIELDS += ("__default__", "__type_params__", "__value__")


def pickled_parts(value: Any) -> list[Any] | None:
    """Return the pickled content of an object of a type written in C, as a list. None for other objects."""
    hides = any(opaque(base) and base not in OPEN and not issubclass(base, type) for base in type(value).__mro__)
    if not hides or hasattr(value, "__wrapped__"):
        return None
    try:
        pickled = copyreg.dispatch_table.get(type(value))
        parts = pickled(value) if pickled is not None else value.__reduce_ex__(2)
    except Exception:
        return None
    if not isinstance(parts, tuple):
        return None
    return [*parts[:3], *(list(part) for part in parts[3:] if hasattr(part, "__next__"))]


def type_parameter(value: Any) -> dict[str, Any] | None:
    """Return the fields of a type parameter or type alias written in C, as since Python 3.12. None for other objects."""
    kind = type(value)
    if kind.__module__ != "typing" or kind.__name__ not in TYPE_PARAMETERS or not opaque(kind):
        return None
    return {name: _evaluated(value, name) for name in TYPE_FIELDS if name in dir(kind)}


def _evaluated(value: Any, name: str) -> Any:
    """Return a field of a type parameter, which Python evaluates on access."""
    try:
        field = getattr(value, name)
        return None if field is getattr(typing, "NoDefault", ...) else field
    except Exception as error:  # such as NameError
        return f"{type(error).__name__} on access"


def cell_content(cell: Any) -> Any:
    """Return the value of a closure cell, or "unbound" before its first assignment."""
    try:
        return cell.cell_contents
    except ValueError:
        return "unbound"


def slot_names(kind: type) -> tuple[str, ...]:
    """Return the slots that a class declares itself."""
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def is_slot(value: Any) -> bool:
    """Return whether a class attribute is the descriptor of a slot."""
    return type(value).__name__ in ("member_descriptor", "getset_descriptor")
