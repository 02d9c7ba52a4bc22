"""The price of `tap`: `python benchmarks/speed/tap.py`.

Two networks with ReLU, and the MLP with GELU, jitted on one device in one process: the plain function, and `tap` of it with
pre, post and slope of every site among the outputs. For the gradients: `jax.value_and_grad` of a loss, and
`tap(loss, gradients=True)` with all its taps among the outputs. The first of them also computes the gradients of the weights.
The two are measured in turn, and a ratio is the median over pairs: of wall time, and of the CPU time of all threads of the
process, which other processes on the machine disturb less. Writes results/speed/tap.csv and .md.

- MLP: three hidden layers of 256 units, batch 1,024.
- CNN: convolutions of 16 and 32 channels (3 x 3) with max pooling, a dense layer of 64 units, 28 x 28 inputs, batch 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import timing
from flax import nnx

from relu_study import tap

GOAL = 1.6  # times the plain forward pass
CALLS = 10  # in one measurement


class MLP(nnx.Module):
    """Three hidden layers of 256 units."""

    def __init__(self, activation: Callable[..., Any], rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(256, 256, rngs=rngs) for _ in range(3)])
        self.output = nnx.Linear(256, 10, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.output(x)


class CNN(nnx.Module):
    """Two convolutions with max pooling, and a dense layer."""

    def __init__(self, activation: Callable[..., Any], rngs: nnx.Rngs):
        self.first, self.second = nnx.Conv(1, 16, (3, 3), rngs=rngs), nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.dense, self.output = nnx.Linear(32 * 7 * 7, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (self.first, self.second):
            x = nnx.max_pool(self.activation(layer(x)), (2, 2), (2, 2))
        return self.output(self.activation(self.dense(x.reshape(len(x), -1))))


NETS: dict[str, tuple[Any, Callable[..., Any], tuple[int, ...]]] = {
    "MLP, relu": (MLP, jax.nn.relu, (1024, 256)),
    "MLP, gelu": (MLP, jax.nn.gelu, (1024, 256)),
    "CNN, relu": (CNN, jax.nn.relu, (64, 28, 28, 1)),
}


def functions(name: str) -> dict[str, Callable[[], tuple[float, float]]]:
    """Return functions that measure a network in milliseconds of wall and CPU time a call, with and without taps."""
    kind, activation, shape = NETS[name]
    graph, params = nnx.split(kind(activation, nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), shape)

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward(params, x)))

    works = {
        "forward": forward,
        "tap": tap(forward),
        "value_and_grad": jax.value_and_grad(loss),
        "tap, gradients": tap(loss, gradients=True),
    }

    def timed(work: Callable[..., Any]) -> Callable[[], tuple[float, float]]:
        compiled = jax.jit(work)

        def measure() -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(CALLS):
                jax.block_until_ready(compiled(params, x))
            return (time.perf_counter() - wall) / CALLS * 1e3, (time.process_time() - cpu) / CALLS * 1e3

        return measure

    return {work: timed(function) for work, function in works.items()}


def rows(name: str, repeats: int) -> list[dict[str, Any]]:
    """Return the lines of the table for one network."""
    took = timing.interleaved(functions(name), repeats)
    lines = []
    for work, plain in (("tap", "forward"), ("tap, gradients", "value_and_grad")):
        wall, cpu = zip(*took[work], strict=True)
        plain_wall, plain_cpu = zip(*took[plain], strict=True)
        median, least, most = timing.ratio(wall, plain_wall)
        lines.append(
            {
                "net": name,
                "function": work,
                "over": plain,
                "plain_ms": round(statistics.median(plain_wall), 2),
                "tapped_ms": round(statistics.median(wall), 2),
                "ratio": round(median, 2),
                "least": round(least, 2),
                "most": round(most, 2),
                "cpu_ratio": round(timing.ratio(cpu, plain_cpu)[0], 2),
                "goal": GOAL if plain == "forward" else "",
                "repeats": repeats,
                **timing.about(),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    lines = []
    for name in NETS:
        lines += rows(name, repeats)
        print(*lines[-2:], sep="\n", flush=True)
    timing.write("tap", lines)


if __name__ == "__main__":
    main()
