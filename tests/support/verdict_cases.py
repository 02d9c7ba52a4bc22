"""Claims and a few runs with known numbers, for tests of verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_study.report.verdicts import evaluate_claims
from relu_study.storage.configurations import Configuration
from relu_study.storage.schema import COLUMNS
from relu_study.study.claims import Claim, Target

NAN = float("nan")
WAVE = Target("wave", variance=1.0, floor=0.0)
COIN = Target("coin_flip", variance=0.25, floor=0.25)
SEEDS = 16
NOISE = np.linspace(-0.01, 0.01, SEEDS)  # symmetric, mean 0


def stored(
    values: dict[str, Any], epochs: tuple[float, ...] = (0, 1, 25), seeds: Any = None, bad: Any = None, sites: int = 1
) -> Configuration:
    """Return runs with these values: (n, E), or (n,) for equal values at every epoch."""
    n = len(next(iter(values.values())))
    full = {k: np.asarray(v, float) for k, v in values.items()}
    full = {k: np.repeat(v[:, None], len(epochs), axis=1) if v.ndim == 1 else v for k, v in full.items()}
    first_bad = np.full(n, NAN) if bad is None else np.asarray(bad, float)
    return Configuration(
        config_id="c",
        spec={},
        num_requested=n,
        run_ids=[str(i) for i in range(n)],
        seeds=np.arange(n) if seeds is None else np.asarray(seeds),
        epochs=np.array(epochs, float),
        status=np.where(np.isnan(first_bad), "ok", "nonfinite"),
        first_bad_epoch=first_bad,
        probe_examples=100,
        values={k: v.astype(np.float32) for k, v in full.items()},
        dead={f"site_{k + 1}": np.zeros((n, len(epochs), 2), bool) for k in range(sites)},
    )


def loss_claim(arm: Any = "arm", against: Any = "base", direction: str = "greater", margin: float = 0.1, **options: Any) -> Claim:
    return Claim(
        options.pop("claim", "C"), "it is so", options.pop("metric", "val_loss"), arm, against, direction, margin, **options
    )


def ask(claim: Claim, target: Target = WAVE, **arms: Configuration) -> dict[str, Any]:
    """Return the one row of one claim."""
    rows = evaluate_claims([claim], {(name, target.name): arm for name, arm in arms.items()}, [target])
    assert len(rows) == 2 and rows[1]["contrast"] == "overall"
    assert all(tuple(row) == COLUMNS["verdicts"] for row in rows)
    return rows[0]


def losses(level: float, **options: Any) -> Configuration:
    return stored({"val_loss/all": level + NOISE}, **options)
