"""Places of a machine where tiles train at the same time."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax


def places() -> list[jax.Device]:
    """Return the device of each place: one place per device.

    All places of a CPU share its first device, whose programs run at the same time when several threads call them. A program
    is then compiled once, not once per device, with the same bits.
    """
    devices = jax.devices()
    return devices if devices[0].platform != "cpu" else devices[:1] * len(devices)


def variant_of(arguments: Any) -> Hashable:
    """Return the device, shapes and dtypes of a program's arguments: they decide whether it must be compiled."""
    leaves = jax.tree.leaves(arguments)
    devices = next((leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array)), None)
    return devices, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
