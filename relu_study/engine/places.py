"""Places where tiles train at the same time: the devices of this machine, or those of workers on other machines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from relu_study.engine.compile_time import thread_compile_seconds


class PlaceLost(Exception):
    """A place ended while it had a tile. `counted` is False if the tile cannot be the cause: a lost node, a preemption."""

    def __init__(self, reason: str, counted: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.counted = reason, counted


class Started(NamedTuple):
    """A tile at its place: `pending` is for `Place.collect`."""

    pending: Any
    compiling: float  # compile time in seconds
    seconds: float | None = None  # of the training, if the tile is already finished


@runtime_checkable
class Place(Protocol):
    """A place for one tile at a time. Threads call its methods."""

    number: int
    name: str
    slots: int  # threads that start tiles: with 2, one tile computes and the next one waits

    @property
    def worker(self) -> Hashable:
        """The process: its places share compiled programs, and are lost together."""

    def start(self, tile: Any, should_continue: Callable[[], bool]) -> Started | None:
        """Start a tile. None if no longer requested. Raises PlaceLost."""

    def collect(self, pending: Any) -> Any:
        """Wait for the numbers of a started tile."""


@runtime_checkable
class Places(Protocol):
    """The places of a run."""

    changing: bool  # whether places come and go, and may be slow or lost

    @property
    def exact(self) -> bool:
        """Whether all places give the same bits."""

    def current(self) -> Sequence[Place]:
        """The usable places. If they change, it is called often, and does not wait."""

    def kill(self, place: Place, reason: str) -> None:
        """End the worker of a place: its tiles raise PlaceLost."""

    def close(self) -> None:
        """End all waiting calls of `start`."""

    def on_message(self, line: str) -> None:
        """Tell the user."""


def places() -> list[jax.Device]:
    """Return the device of each place: one place per device.

    All places of a CPU share its first device, whose programs run at the same time when several threads call them. A program
    is then compiled once, not once per device, with the same bits.
    """
    devices = jax.devices()
    return devices if devices[0].platform != "cpu" else devices[:1] * len(devices)


class DevicePlace:
    """A device of this machine. Tiles are queued asynchronously, each before the previous one has finished."""

    slots = 1

    def __init__(self, number: int, device: jax.Device, start: Callable[..., Any], collect: Callable[[Any], Any]) -> None:
        self.number = number
        self.worker: Hashable = number  # no affinity between the places of a CPU, so that each starts another cohort
        self.name, self.device = f"device {number}", device
        self._start, self.collect = start, collect

    def start(self, tile: Any, should_continue: Callable[[], bool]) -> Started | None:
        """Queue a tile on the device."""
        before = thread_compile_seconds()
        pending = self._start(tile, self.device, should_continue)
        return None if pending is None else Started(pending, thread_compile_seconds() - before)


class DevicePlaces:
    """The places of this machine, which never change."""

    changing, exact = False, True

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def current(self) -> Sequence[Place]:
        """All places."""
        return self._places

    def kill(self, place: Place, reason: str) -> None:
        """Never called."""

    def close(self) -> None:
        """Nothing waits."""

    def on_message(self, line: str) -> None:
        """No message."""


def variant_of(arguments: Any) -> Hashable:
    """Return the device, structure, shapes and dtypes of a program's arguments: they decide whether it must be compiled."""
    leaves, structure = jax.tree.flatten(arguments)
    device = next((leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None), None)
    return device, structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves)
