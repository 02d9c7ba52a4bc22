"""A shard: the i-th of n parts of a study."""

from __future__ import annotations

from typing import NamedTuple

from relu_study.errors import UserError


class Shard(NamedTuple):
    """Part `number` of the `of` parts that a study is cut into, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_of(number: object, of: object) -> Shard:
    """A shard by its two numbers, whole ones with 1 <= index <= of; others are refused (UserError)."""
    if not (type(number) is int and type(of) is int and 1 <= number <= of):
        raise UserError(f"a shard is I/N, whole numbers with 1 <= I <= N, such as 2/8; {number}/{of} is none")
    return Shard(number, of)
