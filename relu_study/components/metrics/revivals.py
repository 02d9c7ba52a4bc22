"""Revivals: what no single snapshot shows. Formed from the unit masks of all the epochs of a tile, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

KINDS = {"dead": "revived_fraction", "certified_dead": "certified_revived_fraction"}


def revived(dead: Bool[np.ndarray, "R E U"]) -> Float[np.ndarray, "R E"]:
    """The share of units that have come back by each epoch: alive there or before, after having been dead. Counted once."""
    was_dead = np.logical_or.accumulate(dead, axis=1)
    return np.logical_or.accumulate(was_dead & ~dead, axis=1).mean(axis=2)


def fractions(
    masks: dict[str, Bool[np.ndarray, "R E U"]], sites: list[str], dtype: type[np.floating[Any]] = np.float32
) -> dict[str, Float[np.ndarray, "R E"]]:
    """The metrics `revived_fraction` and `certified_revived_fraction` of every site and of `all`, from masks named "dead:site_1".

    A kind of mask that a tile does not have is empty: NaN.
    """
    shape = next(iter(masks.values())).shape[:2]
    found = {}
    for kind, metric in KINDS.items():
        here = {site: masks[f"{kind}:{site}"] for site in sites if f"{kind}:{site}" in masks}
        for site in sites:
            found[f"{metric}/{site}"] = revived(here[site]) if site in here else np.full(shape, np.nan)
        found[f"{metric}/all"] = revived(np.concatenate(list(here.values()), axis=2)) if here else np.full(shape, np.nan)
    return {name: found[name].astype(dtype) for name in sorted(found)}


def declared() -> dict[str, dict[str, Any]]:
    """What the manifest says of both."""
    about = {"unit": "fraction", "direction": "none", "low": 0, "high": 1, "sites": True, "source": "ours"}
    text = "The share of units that have been alive again by this epoch after having been {}, each counted once."
    return {metric: {**about, "text": text.format(kind.replace("_", " "))} for kind, metric in KINDS.items()}
