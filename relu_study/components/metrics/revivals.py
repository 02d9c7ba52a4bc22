"""Revived fractions, computed in NumPy from a tile's unit masks of all epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

KINDS = {"dead": "revived_fraction", "certified_dead": "certified_revived_fraction"}


def revived(dead: Bool[np.ndarray, "R E U"]) -> Float[np.ndarray, "R E"]:
    """Return the share of units that have revived by each epoch: dead at some epoch and alive at a later one.

    A unit counts once.
    """
    was_dead = np.logical_or.accumulate(dead, axis=1)
    has_revived = np.logical_or.accumulate(was_dead & ~dead, axis=1)
    return has_revived.mean(axis=2)


def fractions(
    masks: dict[str, Bool[np.ndarray, "R E U"]], sites: list[str], dtype: type[np.floating[Any]] = np.float32
) -> dict[str, Float[np.ndarray, "R E"]]:
    """Return `revived_fraction` and `certified_revived_fraction` of every site, and over all sites as `all`.

    `masks` has keys such as "dead:site_1". A fraction without masks is NaN.
    """
    unknown = np.full(next(iter(masks.values())).shape[:2], np.nan)
    values = {}
    for kind, metric in KINDS.items():
        dead = {site: masks[f"{kind}:{site}"] for site in sites if f"{kind}:{site}" in masks}
        for site in sites:
            values[f"{metric}/{site}"] = revived(dead[site]) if site in dead else unknown
        values[f"{metric}/all"] = revived(np.concatenate(list(dead.values()), axis=2)) if dead else unknown
    return {name: values[name].astype(dtype) for name in sorted(values)}


def declared() -> dict[str, dict[str, Any]]:
    """Return the declarations of both metrics for the manifest."""
    about = {"unit": "fraction", "direction": "none", "low": 0, "high": 1, "sites": True, "source": "ours"}
    text = "The share of units that have been alive again by this epoch after having been {}, each counted once."
    return {metric: {**about, "text": text.format(kind.replace("_", " "))} for kind, metric in KINDS.items()}
