"""Shards: the i-th of n parts of a study."""

from __future__ import annotations

from typing import NamedTuple

from relu_study.errors import UserError


class Shard(NamedTuple):
    """Part `number` of the `of` parts of a study, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_of(number: object, of: object) -> Shard:
    """Return the shard with these numbers. Raises UserError unless both are integers with 1 <= number <= of."""
    if not (type(number) is int and type(of) is int and 1 <= number <= of):
        raise UserError(f"{number}/{of} is no shard. Give I/N with whole numbers 1 <= I <= N, e.g. 2/8")
    return Shard(number, of)
