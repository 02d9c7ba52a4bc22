"""The price of a monitor: `python benchmarks/speed/monitor.py`.

A 3 x 256 MLP, 1,024 probe rows, NNX. Each repeat times in turn a compiled forward and backward pass on the probe set, a measured
call of the monitor with all its files, and a call that does not measure. A ratio is the median over repeats. Writes
results/speed/monitor.csv and .md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
import timing
from flax import nnx

from relu_study import Monitor
from relu_study.watch.models import as_function

ROWS, WIDTH, DEPTH, CALLS = 1024, 256, 3, 20
GOALS = {"measured call / forward and backward": 2.0, "call that does not measure, us": 20.0}


class MLP(nnx.Module):
    """64 inputs, three hidden layers of ReLUs, 10 outputs."""

    def __init__(self, rngs: nnx.Rngs):
        widths = [64, *[WIDTH] * DEPTH]
        self.hidden = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in itertools.pairwise(widths)])
        self.out = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.out(x)


def loss(outputs: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def repeated(call: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that measures the seconds of one call, a median over several."""

    def seconds() -> float:
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    model, keys = MLP(nnx.Rngs(0)), jax.random.split(jax.random.key(0))
    x, labels = jax.random.normal(keys[0], (ROWS, 64)), jax.random.randint(keys[1], (ROWS,), 0, 10)
    form = as_function(model, {})
    passes = jax.jit(jax.value_and_grad(lambda params, state, x, labels: loss(form.function(params, state, x), labels)))
    with tempfile.TemporaryDirectory() as folder, Monitor(model, out=folder, probe=x, targets=labels, loss=loss) as monitor:
        step = iter(range(10**9))
        works = {
            "pass": lambda: jax.block_until_ready(passes(form.params, form.state, x, labels)),
            "measured": lambda: monitor.measure(next(step), model),
            "skipped": lambda: monitor(monitor._last, model),
        }
        for work in works.values():
            work()
        took = timing.interleaved({name: repeated(work) for name, work in works.items()}, repeats)
    ratio = timing.ratio(took["measured"], took["pass"])
    idle = [1e6 * seconds for seconds in took["skipped"]]
    figures = {
        "measured call / forward and backward": ratio,
        "call that does not measure, us": (statistics.median(idle), min(idle), max(idle)),
    }
    lines = []
    for name, (median, least, most) in figures.items():
        rounded = {key: round(value, 2) for key, value in (("median", median), ("least", least), ("most", most))}
        lines.append({"figure": name, **rounded, "goal": GOALS[name], "repeats": repeats, **timing.about()})
        print(lines[-1], flush=True)
    timing.write("monitor", lines)


if __name__ == "__main__":
    main()
