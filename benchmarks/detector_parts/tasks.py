"""Small tasks whose inputs can be scaled, shifted, and separated from their targets: the faults of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from relu_study import RunSpec
from relu_study.components.optimizers import optimizer
from relu_study.components.registry import tasks
from relu_study.components.tasks.task import Signature, Task, task

ROWS = 2_000
Rows = tuple[Float[Array, "n D"], Float[Array, "n O"]]


class Source(NamedTuple):
    """Inputs and targets of a task, before any fault."""

    d_in: int
    d_out: int
    loss: str
    rows: int
    draw: Callable[[Key[Array, ""], int], Rows]


def _labelled(x: Float[Array, "n D"], label: Int[Array, " n"], classes: int = 2) -> Rows:
    return x, jax.nn.one_hot(label, classes)


def circles(key: Key[Array, ""], n: int) -> Rows:
    """Two noisy circles around 0, of radius 1/2 and 1. A class each."""
    angle, noise = (jax.random.uniform(key, (n,)) * 2 * jnp.pi), 0.08 * jax.random.normal(jax.random.fold_in(key, 1), (n, 2))
    label = jnp.arange(n) % 2
    radius = 0.5 + 0.5 * label
    return _labelled(radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) + noise, label)


def blobs(key: Key[Array, ""], n: int) -> Rows:
    """Four blobs at the corners of a square. Opposite corners share a class."""
    corner = jnp.arange(n) % 4
    centre = jnp.stack([jnp.where(corner % 2 == 0, -1.0, 1.0), jnp.where(corner // 2 == 0, -1.0, 1.0)], axis=1)
    return _labelled(0.7 * centre + 0.25 * jax.random.normal(key, (n, 2)), (corner % 2) ^ (corner // 2))


def saddle(key: Key[Array, ""], n: int) -> Rows:
    """x1 x2 on (-1, 1)^2, scaled to variance 1."""
    x = jax.random.uniform(key, (n, 2), minval=-1.0, maxval=1.0)
    return x, 3 * x[:, :1] * x[:, 1:]


def ripple(key: Key[Array, ""], n: int) -> Rows:
    """sin 3 x1 + cos 3 x2 on (-1, 1)^2."""
    x = jax.random.uniform(key, (n, 2), minval=-1.0, maxval=1.0)
    return x, jnp.sin(3 * x[:, :1]) + jnp.cos(3 * x[:, 1:])


def _of(name: str, **fields: Any) -> Callable[[Key[Array, ""], int], Rows]:
    """The rows of a task of the suite."""

    def draw(key: Key[Array, ""], n: int) -> Rows:
        base = tasks[name](RunSpec(task=name, rows=n, **fields))
        if base.table is None:
            x, y = base.sample(key, 0)
            return x[:n], y[:n]
        rows = base.split(key, 0)  # type: ignore[misc]  # a task with a table has a split
        x, y = (jnp.asarray(part)[rows] for part in base.table)
        return x.reshape(n, -1), y if y.ndim > 1 else jax.nn.one_hot(y, base.signature.d_out)

    return draw


SOURCES = {
    "circles": Source(2, 2, "cross_entropy", ROWS, circles),
    "blobs": Source(2, 2, "cross_entropy", ROWS, blobs),
    "saddle": Source(2, 1, "squared_error", ROWS, saddle),
    "ripple": Source(2, 1, "squared_error", ROWS, ripple),
    "article_wave": Source(4, 1, "squared_error", ROWS, _of("negative_box", target="wave")),
    "article_sum": Source(4, 1, "squared_error", ROWS, _of("negative_box", target="sum")),
    "digits": Source(64, 10, "cross_entropy", 1_797, _of("digits")),
    "mnist1d": Source(40, 10, "cross_entropy", 5_000, _of("mnist1d")),
}


def best_constant_loss(source: Source, y: Float[Array, "n O"]) -> float:
    """Loss of the best constant prediction: the entropy of the classes in nats, or the variance of the target."""
    if source.loss == "squared_error":
        return float(jnp.mean(jnp.var(y, axis=0)))
    share = jnp.mean(y, axis=0)
    return float(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)))


@task("faulty", rows=ROWS, options={"scale": 1.0, "offset": 0.0, "shuffled": False}, traced=("scale", "offset"))
def faulty(spec: RunSpec) -> Task:
    """The source named by the target, with inputs scale (x + offset). With `shuffled`, targets belong to other inputs."""
    source = SOURCES["circles" if spec.target == "default" else spec.target]
    rows = spec.rows if spec.rows != ROWS else source.rows
    train = rows * 7 // 10

    def sample(key: Key[Array, ""], phase: Any, scale: Any = 1.0, offset: Any = 0.0) -> Rows:
        x, y = source.draw(key, rows)
        order = jax.random.permutation(jax.random.fold_in(key, 2), rows)  # validation rows of every class
        x, y = x[order], y[order]
        if spec.option("shuffled"):
            y = y[jax.random.permutation(jax.random.fold_in(key, 3), rows)]
        return scale * (x + offset), y

    metrics = ("accuracy",) if source.loss == "cross_entropy" else ()
    return Task(Signature(train, rows - train, source.d_in, source.d_out, loss=source.loss, metrics=metrics), sample)


# ------------------------------------------------------------------------------------------- frozen layers


def _label(path: tuple[Any, ...], layers: int) -> str:
    """Whether a parameter belongs to the first half of the layers, output layer included."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return "frozen" if names[0] == "hidden" and names[1] < (layers + 1) // 2 else "trained"


def _frozen(base: str) -> Callable[..., optax.GradientTransformation]:
    def frozen(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        def labels(params: Any) -> Any:
            layers = len(params["hidden"])
            return jax.tree_util.tree_map_with_path(lambda path, _: _label(path, layers), params)

        trained = OPTIMIZERS[base](learning_rate)
        return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, labels)

    return frozen


OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
}
for _name in OPTIMIZERS:
    optimizer(f"frozen_{_name}")(_frozen(_name))
