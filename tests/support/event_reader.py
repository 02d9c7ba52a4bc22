"""Scalars of TensorBoard files, read with TensorBoard's loader."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Series = dict[str, dict[int, float]]  # tag -> step -> value


def read(run: Path) -> Series:
    """Return the scalars of one run as TensorBoard loads them, with all points."""
    loaded = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    loaded.Reload()
    series: Series = {}
    for tag in loaded.Tags()["scalars"]:
        points = loaded.Scalars(tag)
        series[tag] = {point.step: point.value for point in points}
        assert [point.step for point in points] == sorted(series[tag]), "a step is repeated or out of order"
        assert all(point.wall_time == point.step for point in points)
    return series
