"""Numbers of our rules, frozen in `thresholds.json`: at most three each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from relu_study.errors import UserError

FILE = "thresholds.json"
MAX_NUMBERS = 3  # of one rule

Numbers = Mapping[str, Mapping[str, float]]  # rule -> name -> number


def packaged() -> Numbers:
    """Return the packaged numbers by rule."""
    return json.loads(resources.files("relu_study.diagnosis").joinpath(FILE).read_text(encoding="utf-8"))


def as_json(numbers: Numbers) -> str:
    """Return the text of `thresholds.json`: one rule a line, in name order. Floats keep all digits.

    Raises:
      UserError: if a rule has no threshold, or more than three numbers.
    """
    for rule, values in numbers.items():
        if "threshold" not in values:
            raise UserError(f"rule {rule!r} has no threshold. Add the key 'threshold'")
        if len(values) > MAX_NUMBERS:
            raise UserError(f"rule {rule!r} has {len(values)} numbers. Keep at most {MAX_NUMBERS}")
    lines = [
        f"  {json.dumps(rule)}: {json.dumps(dict(numbers[rule]), sort_keys=True, allow_nan=False)}" for rule in sorted(numbers)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
