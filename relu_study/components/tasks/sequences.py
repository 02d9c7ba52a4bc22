"""Sequences with a simple rule over all positions: addition of two marked numbers, and parity of bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.components.tasks.task import Signature, Task, task
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import RunSpec

ROWS = 20_000
CLASSES = 2


def _length(spec: RunSpec, least: int) -> int:
    """Return the length of the sequences. Raises UserError if it is too short, or the spec has another target."""
    if spec.target != "default":
        raise nearest(spec.target, ("default",), f"target of task {spec.task}")
    length = int(spec.option("sequence_length"))
    if length < least:
        raise UserError(f"task {spec.task} has sequence_length={length}. Give at least {least}.")
    return length


@task("addition", rows=ROWS, options={"sequence_length": 20})
def addition(spec: RunSpec) -> Task:
    """Regression on the sum of the two marked numbers of a sequence, drawn separately per seed, 80 % for training.

    A row has shape (sequence_length, 2): numbers uniform on [0, 1], and marks, of which two are 1 and the others 0. The constant
    prediction 1 has the loss 1/6. Centred inputs subtract 1/2 from the numbers.

    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory", experiment 4; numbers and target as in Le, Jaitly & Hinton
    2015, arXiv 1504.00941, section 4.1.
    """
    length, train = _length(spec, 2), spec.rows * 4 // 5
    shift = 0.5 if spec.inputs == "centred" else 0.0

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Float[Array, "n T 2"], Float[Array, "n 1"]]:
        number_key, mark_key = jax.random.split(key)
        values = jax.random.uniform(number_key, (spec.rows, length))
        _, marked = jax.lax.top_k(jax.random.uniform(mark_key, (spec.rows, length)), 2)
        marks = jnp.sum(jax.nn.one_hot(marked, length, dtype=values.dtype), axis=1)
        return jnp.stack([values - shift, marks], axis=-1), jnp.sum(values * marks, axis=1, keepdims=True)

    signature = Signature(train, spec.rows - train, 2 * length, 1, metrics=("r2",), input_shape=(length, 2))
    return Task(signature, sample)


@task("parity", rows=ROWS, options={"sequence_length": 16})
def parity(spec: RunSpec) -> Task:
    """Classification of a sequence of bits by the parity of its sum, drawn separately per seed, 80 % for training.

    A row contains `sequence_length` fair bits as int32 tokens. Guesses have the loss log 2 and the accuracy 1/2.

    Source: Bengio, Simard & Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult".

    Raises:
      UserError: for centred inputs.
    """
    length, train = _length(spec, 1), spec.rows * 4 // 5
    if spec.inputs == "centred":
        raise UserError("the inputs of task parity are tokens, which have no mean. Leave inputs='raw'.")

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Int[Array, "n T"], Int[Array, " n"]]:
        bits = jax.random.bernoulli(key, 0.5, (spec.rows, length)).astype(jnp.int32)
        return bits, jnp.sum(bits, axis=1) % 2

    signature = Signature(
        train,
        spec.rows - train,
        length,
        CLASSES,
        loss="cross_entropy",
        metrics=("accuracy",),
        input_shape=(length,),
        input_dtype="int32",
    )
    return Task(signature, sample)
