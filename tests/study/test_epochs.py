"""Epochs as numbers, as text and as words, in every place that takes one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from relu_study.errors import UserError
from relu_study.study.claims import Claim
from relu_study.study.epochs import epoch_number, parse_epoch
from relu_study.study.outputs import Figure


@pytest.mark.parametrize(
    ("epoch", "number"),
    [(0, 0.0), (2.5, 2.5), ("5", 5.0), ("0.5", 0.5), ("3.", 3.0), ("1e2", 100.0), ("last", None), (" ", None)],
)
def test_numbers_and_their_text_are_epochs(epoch: Any, number: float | None) -> None:
    assert epoch_number(epoch) == number


@pytest.mark.parametrize("epoch", [-1, "-1", math.nan, "nan", math.inf, "inf", "", "lst", None, (0,)])
def test_anything_else_is_refused_with_its_owner_and_the_words(epoch: Any) -> None:
    assert epoch_number(epoch) is None
    with pytest.raises(UserError) as refused:
        parse_epoch(epoch, "table t")
    assert str(refused.value) == f"table t has the epoch {epoch!r}. Use 'last' or a number of at least 0."


def test_only_claims_have_extremes() -> None:
    assert parse_epoch("min", "claim c", ("last", "min", "max")) is None
    values: dict[str, Any] = {"claim": "c", "statement": "", "metric": "val_loss", "arm": "a", "against": "b"}
    values |= {"direction": "less", "margin": 0.0}
    for epoch in ("last", "min", "max", 0, 5.0):
        assert Claim(**values, epoch=epoch, against_epoch=epoch).epoch == epoch
    for name in ("epoch", "against_epoch"):
        for epoch in ("lst", -1, math.nan):
            with pytest.raises(UserError, match=r"claim c has the epoch .* Use 'last', 'min', 'max' or a number of at least 0"):
                Claim(**values | {name: epoch})
    with pytest.raises(UserError, match="figure f has the epoch 'min'"):
        Figure("f", "", "map", metrics=("val_loss",), rows="depth", cols="width", epoch="min")
