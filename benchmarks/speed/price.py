"""What it costs to watch: `python benchmarks/speed/price.py`.

For each net and tile width, on every device at once: an epoch of training alone (140,000 rows, batch 128, each run's own data and
order), and the measurement at its end, as percent of that epoch: every default metric, loss and histogram, at every epoch and at
every fourth; at the plan's own width also the optional metrics on top, and each metric by itself. 8,192 probe examples and 8,192
validation rows.

A metric by itself pays for the passes over the probe set and validation rows that it needs (what nobody asks for, XLA does not
compute), so the single prices add up to more than the price of all. `passes` is its lower limit: one forward and backward pass
over the probe set and one forward pass over the validation rows. Writes results/speed/price.csv and .md, and a picture.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import timing

from relu_study.components.registry import metrics, tasks
from relu_study.engine import cohorts, compilation, places, plan, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import steps_per_epoch
from relu_study.runner import run
from relu_study.study.run_spec import RunSpec

WIDTHS = (8, 32, 128, 512)
NOTHING = ()
OPTIONAL = "all and optional"
PASSES = ("train_loss", "val_loss", "grad_norm")


def epochs(base: RunSpec, width: int, kinds: dict[str, MeasureConfig]) -> dict[str, Callable[[], float]]:
    """Functions that measure, in seconds at every place at once, an epoch's training and each kind of measurement."""
    begun = []
    for place, device in enumerate(places.places()):
        tile = [base.replace(seed=place * width + i) for i in range(width)]
        signature = tasks[base.task](base).signature
        steps = steps_per_epoch(signature.train_rows, base.batch_size)
        at = jax.device_put((np.int32(1), np.int32(0), np.int32(steps)), device)
        begun.append((train_tile.init_tile(tile, device), at))

    def train(place: int, device: jax.Device) -> Any:
        (state, data, seeds, hparams, *_), at = begun[place]
        return compilation.tile_programs(base).advance(state, data.train, seeds, hparams, *at)

    def measuring(measure_config: MeasureConfig) -> Callable[[int, jax.Device], Any]:
        def measure(place: int, device: jax.Device) -> Any:
            (state, data, _, hparams, box, _), _ = begun[place]
            program = compilation.tile_programs(base, measure_config)
            return program.measure(state._replace(opt=None), state.params, data, hparams, box)

        return measure

    works = {"training": train, **{name: measuring(measure_config) for name, measure_config in kinds.items()}}
    return {name: lambda work=work: timing.in_threads(work) for name, work in works.items()}


def kinds_of(alone: bool) -> dict[str, MeasureConfig]:
    """Everything by default, and with `alone` the optional metrics on top, each metric and the histograms by themselves."""
    if not alone:
        return {"all": MeasureConfig()}
    each = {name: MeasureConfig(histograms=False, metrics=(name,)) for name in metrics}
    with_optional = MeasureConfig(metrics=tuple(metrics))
    bare = MeasureConfig(histograms=False, metrics=PASSES)
    return {"all": MeasureConfig(), OPTIONAL: with_optional, "passes": bare, **each, "histograms": MeasureConfig(metrics=NOTHING)}


def rows(name: str, base: RunSpec, width: int, alone: bool, repeats: int) -> list[dict[str, Any]]:
    """The lines of the table for one net at one width."""
    took = timing.interleaved(epochs(base, width, kinds_of(alone)), repeats)
    training = took.pop("training")
    lines = []
    for kind, times in took.items():
        for every in (1, 4) if kind == "all" else (1,):
            median, least, most = timing.ratio([t / every for t in times], training)
            lines.append(
                {
                    "net": name,
                    "batch": base.batch_size,
                    "width": width,
                    "watched": kind,
                    "every": every,
                    "epoch_ms_per_run": round(1e3 * statistics.median(training) / width, 2),
                    "percent": round(100 * median, 2),
                    "least": round(100 * least, 2),
                    "most": round(100 * most, 2),
                    "repeats": repeats,
                    **timing.about(),
                }
            )
    return lines


def picture(lines: list[dict[str, Any]]) -> plt.Figure:
    """Percent of an epoch against tile width, a line a net."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, shade in zip(timing.NETS, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        for every, style in ((1, "o-"), (4, "o--")):
            shown = [line for line in lines if (line["net"], line["watched"], line["every"]) == (name, "all", every)]
            widths = [line["width"] for line in shown]
            label = f"{name}, {'every epoch' if every == 1 else 'every 4th'}"
            axes.plot(widths, [line["percent"] for line in shown], style, color=shade, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tile width (runs)", ylabel="watching, % of an epoch's training", ylim=(0, None))
    figure.legend(loc="outside upper center", frameon=False, fontsize="small", ncols=3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    asked = parser.parse_args()
    run.use_devices()
    jax.config.update("jax_enable_compilation_cache", False)
    lines = []
    for name, base in timing.NETS.items():
        own = plan.width(cohorts.cost_of(base), 1000, jax.devices()[0].platform)
        # A run of net C has 41 MB of its own data: wide tiles of it would measure how much memory there is.
        widths = {own, *(w for w in asked.widths if w * cohorts.cost_of(base).data <= 2 << 30)}
        for width in sorted(widths):
            lines += rows(name, base, width, width == own, asked.repeats)
            print(*lines[-1:], flush=True)
    timing.write("price", lines)
    timing.save("price", picture(lines))


if __name__ == "__main__":
    main()
