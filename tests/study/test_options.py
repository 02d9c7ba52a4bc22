"""Options of a RunSpec: one order, JSON scalars, ids that only set options change, and refused names and values."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_study.errors import UserError
from relu_study.storage.schema import COLUMNS
from relu_study.study.options import LARGEST, RESERVED
from relu_study.study.run_spec import FIELDS, RunSpec
from relu_study.study.study import grid

BASE = RunSpec(width=8, seed=3)
TEXTS = st.text(min_size=1, max_size=8).filter(str.isprintable)
SCALARS = st.one_of(st.booleans(), st.integers(1 - LARGEST, LARGEST - 1), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
NAMES = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True).filter(lambda name: name not in {*FIELDS, *RESERVED})
OPTIONS = st.dictionaries(NAMES, SCALARS, max_size=4)


@given(OPTIONS, st.randoms())
def test_order_and_notation_do_not_matter(options: dict[str, Any], random: Any) -> None:
    pairs = [*options.items()]
    random.shuffle(pairs)
    spec = BASE.replace(**options)
    assert [name for name, _ in spec.options] == sorted(options)
    for other in (RunSpec(width=8, seed=3, options=options), RunSpec(width=8, seed=3, options=pairs)):  # type: ignore[arg-type]
        assert other == spec and hash(other) == hash(spec) and other.run_id == spec.run_id
    assert all(spec.option(name) == value for name, value in options.items())


@given(OPTIONS)
def test_dictionary_and_json_give_the_same_spec(options: dict[str, Any]) -> None:
    spec = BASE.replace(**options)
    again = RunSpec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert again == spec and again.run_id == spec.run_id
    assert RunSpec.from_dict(spec.changed()).config_id == spec.config_id
    assert [type(value) for _, value in again.options] == [type(value) for _, value in spec.options]
    assert list(spec.as_dict()) == [*FIELDS, *sorted(options)]


@given(OPTIONS, OPTIONS)
def test_ids_differ_exactly_by_the_set_options(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = BASE.replace(**one), BASE.replace(**two)
    same = json.dumps(first.changed()) == json.dumps(second.changed())
    assert (first.run_id == second.run_id) == same == (first.config_id == second.config_id)
    assert list(first.changed()) == sorted([*BASE.changed(), *one])
    assert first.replace(options={}).run_id == BASE.run_id and "options" not in first.changed()


@given(st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False, allow_infinity=False, width=32), st.booleans())
def test_numpy_scalars_become_python_ones(whole: int, number: float, truth: bool) -> None:
    plain = BASE.replace(a=whole, b=number, c=truth, d="x")
    for array in (np.int64(whole), np.int32(whole), np.array(whole), float(whole)):
        spec = BASE.replace(a=array, b=np.float32(number), c=np.bool_(truth), d=np.str_("x"))
        assert spec == plain and spec.run_id == plain.run_id
        assert [type(value) for _, value in spec.options] == [type(value) for _, value in plain.options]
    assert type(plain.option("a")) is int and type(plain.option("c")) is bool and type(plain.option("d")) is str


def test_whole_floats_are_whole_numbers() -> None:
    assert repr(RunSpec(options={"a": 1.0, "b": -0.0, "c": 0.5, "d": 1e300}).options) == (  # type: ignore[arg-type]
        "(('a', 1), ('b', 0), ('c', 0.5), ('d', 1e+300))"
    )


def test_pinned_ids() -> None:
    """`printf '{"channels": 32, "seed": 3, "width": 8}' | sha256sum`: options are among the fields, by name."""
    assert BASE.replace(channels=32).run_id == "c89f07625827" and BASE.run_id == "c1abc4141814"


def test_replace_keeps_and_replaces_options() -> None:
    spec = BASE.replace(channels=8, stem="wide")
    assert spec.replace(width=9, channels=16).options == (("channels", 16), ("stem", "wide"))
    assert spec.replace(options={"kernel": 3}, stem="slim").options == (("kernel", 3), ("stem", "slim"))
    assert spec.replace(seed=0).marked("options") == (("options", spec.options),)
    with pytest.raises(UserError, match=r"unknown option of this RunSpec 'chanels'. Did you mean channels"):
        spec.option("chanels")


def test_grid_sweeps_options_and_fields() -> None:
    arms = grid(BASE, channels=np.array([8, 16]), width=[3, 4])
    assert list(arms) == [f"channels={c}, width={w}" for c in (8, 16) for w in (3, 4)]
    assert arms["channels=16, width=3"] == BASE.replace(channels=16, width=3)
    assert list(grid(BASE, norm_first=[True, False])) == ["True", "False"]
    with pytest.raises(UserError, match=r"channels of a grid is 8, which is no list of values. Write channels=\[8\]"):
        grid(BASE, channels=8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (5, "options must be a mapping, not 5"),
        ("ab", "options must be a mapping, not 'ab'"),
        ((5,), "an option must be a name with a value, not 5"),
        ((("a", 1), ("a", 2)), "option a is set twice"),
        ({"a b": 1}, "'a b' cannot be the name of an option"),
        ({3: 1}, "3 cannot be the name of an option"),
        ({"width": 1}, "width is a RunSpec field, so no option can have its name"),
        ({"mean": 1}, "mean is a column of the results, so no option can have its name"),
        ({"a": None}, "option a must be a text, a number or a truth value, not None"),
        ({"a": [1]}, r"option a must be a text, a number or a truth value, not \[1\]"),
        ({"a": np.ones(2)}, "option a must be a text, a number or a truth value, not array"),
        ({"a": 1j}, "option a must be a text, a number or a truth value, not 1j"),
        ({"a": math.nan}, "option a must be finite, not nan"),
        ({"a": -math.inf}, "option a must be finite, not -inf"),
        ({"a": np.float32("inf")}, "option a must be finite, not inf"),
        ({"a": 2**53}, "option a is 9007199254740992, and the limit is 2\\^53"),
        ({"a": ""}, "option a is '', which is no printable text"),
        ({"a": "x\ny"}, "which is no printable text"),
    ],
)
def test_invalid_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunSpec(options=options)
    with pytest.raises(UserError, match=message):
        BASE.replace(options=options)


def test_column_names_are_reserved() -> None:
    for name, columns in COLUMNS.items():
        if name in ("runs", "summary"):
            assert {*columns} <= {*FIELDS, *RESERVED}, name
