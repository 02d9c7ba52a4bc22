"""JAX as a user writes it, for peers.py: `jit` of `vmap` of a scan over batches, with optax.

No probes; one data set for all networks. `own`: each shuffles it for itself, as a training function of a seed does under vmap;
`shared`: one permutation an epoch serves all networks of the process, which is less work than ours.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peer
from jax import Array

Params = list[tuple[Array, Array]]
OWN = sys.argv[1:] == ["own"]


def init(layers: tuple[int, ...], width: int) -> Params:
    """Dense layers of `width` networks: he_normal kernels, zero biases; by NumPy, as nobody times it."""
    rng = np.random.default_rng(0)
    kernels = (rng.normal(0, (2 / a) ** 0.5, (width, a, b)).astype(np.float32) for a, b in itertools.pairwise(layers))
    return [(jnp.asarray(kernel), jnp.zeros((width, kernel.shape[-1]))) for kernel in kernels]


def loss(params: Params, x: Array, y: Array) -> Array:
    """Mean squared error of a ReLU network."""
    *hidden, (kernel, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(jnp.dot(x, w, precision="highest") + b)
    return jnp.mean((jnp.dot(x, kernel, precision="highest") + bias - y) ** 2)


@functools.partial(jax.jit, static_argnames=("rows", "batch"))
def order(key: Array, rows: int, batch: int) -> Array:
    """Which rows the full batches of an epoch take."""
    steps = rows // batch
    return jax.random.permutation(key, rows)[: steps * batch].reshape(steps, batch)


class JitVmap:
    """`width` networks in one vmap.

    A piece is made of calls of about a third of a second each on a CPU, and of an epoch at most: where all networks together
    need longer for one epoch, a call is a part of it. Products have full float precision, which is a CPU's own.
    """

    def __init__(self, job: peer.Job, width: int) -> None:
        self.job, self.width, self.networks = job, width, width
        on_cpu = jax.default_backend() == "cpu"  # `job.seconds` is a CPU's; an accelerator takes an epoch a call
        self.call = min(job.steps, math.ceil(0.3 / (job.seconds() * width))) if on_cpu else job.steps
        self.x, self.y = (jnp.asarray(array) for array in peer.data(job))
        self.key, adam, mine = jax.random.key(0), optax.adam(1e-3), 0 if OWN else None

        def train(params: Params, opt: Any, x: Array, y: Array, order: Array, start: int) -> tuple[Params, Any]:
            def step(state: tuple[Params, Any], rows: Array) -> tuple[tuple[Params, Any], None]:
                params, opt = state
                grads = jax.grad(loss)(params, x[rows], y[rows])
                updates, opt = adam.update(grads, opt)
                return (optax.apply_updates(params, updates), opt), None

            return jax.lax.scan(step, (params, opt), jax.lax.dynamic_slice_in_dim(order, start, self.call))[0]

        self.train = jax.jit(jax.vmap(train, in_axes=(0, 0, None, None, mine, None)))
        self.order = jax.vmap(order, in_axes=(0, None, None)) if OWN else order
        params = init(job.layers, width)
        self.state = params, jax.vmap(adam.init)(params)
        self.piece(1)  # compiles

    def piece(self, steps: int) -> tuple[int, float]:
        calls, an_epoch = math.ceil(steps / self.call), self.job.steps // self.call

        def shuffle() -> None:
            self.key, key = jax.random.split(self.key)
            keys = jax.random.split(key, self.width) if OWN else key
            self.rows = jax.block_until_ready(self.order(keys, self.job.rows, self.job.batch))

        def train() -> int:
            for i in range(calls):
                self.state = self.train(*self.state, self.x, self.y, self.rows, i % an_epoch * self.call)
            jax.block_until_ready(self.state)
            return calls * self.call

        return peer.in_proportion(shuffle, train, self.job.steps)


if __name__ == "__main__":
    peer.serve(f"jax {jax.__version__}, optax {optax.__version__}", JitVmap)
