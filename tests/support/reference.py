"""A slow reference for the engine: training of dense networks in NumPy, with hand-written gradients.

All numbers are float64. Random numbers are inputs: initial weights, batches, dropout masks.
Parameters have the names used in a tile: `hidden.0.dense.kernel`, ..., `output.bias`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import erf, expit

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772  # SELU
OFF = -LAMBDA * ALPHA  # the value of a coordinate that alpha dropout drops


# ---------------------------------------------------------------------------------------- activations


def pointwise(value: Callable, slope: Callable) -> tuple[Callable, Callable]:
    """Return phi(z, leak) and its pullback: (gradient of post, z, leak) -> gradient of z."""
    return value, lambda grad, z, leak: grad * slope(z, leak)


def bell(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def below(z: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(z, 0))


def phi_normal(z: np.ndarray) -> np.ndarray:
    return (1 + erf(z / np.sqrt(2))) / 2


def crelu_back(grad: np.ndarray, z: np.ndarray, leak: float) -> np.ndarray:
    up, down = np.split(grad, 2, axis=1)
    return up * (z > 0) - down * (z < 0)


ACTIVATIONS = {
    "relu": pointwise(lambda z, leak: z * (z > 0), lambda z, leak: z > 0),
    "leaky_relu": pointwise(lambda z, leak: np.where(z > 0, z, leak * z), lambda z, leak: np.where(z > 0, 1, leak)),
    "relu6": pointwise(lambda z, leak: np.clip(z, 0, 6), lambda z, leak: (z > 0) & (z < 6)),
    "hard_tanh": pointwise(lambda z, leak: np.clip(z, -1, 1), lambda z, leak: np.abs(z) < 1),
    "crelu": (lambda z, leak: np.concatenate([z * (z > 0), -z * (z < 0)], axis=1), crelu_back),
    "linear": pointwise(lambda z, leak: z, lambda z, leak: 1.0),
    "tanh": pointwise(lambda z, leak: np.tanh(z), lambda z, leak: 1 / np.cosh(z) ** 2),
    "sigmoid": pointwise(lambda z, leak: expit(z), lambda z, leak: expit(z) * expit(-z)),
    "elu": pointwise(lambda z, leak: np.where(z > 0, z, below(z) - 1), lambda z, leak: np.where(z > 0, 1, below(z))),
    "selu": pointwise(
        lambda z, leak: LAMBDA * np.where(z > 0, z, ALPHA * (below(z) - 1)),
        lambda z, leak: LAMBDA * np.where(z > 0, 1, ALPHA * below(z)),
    ),
    "gelu": pointwise(lambda z, leak: z * phi_normal(z), lambda z, leak: phi_normal(z) + z * bell(z)),
    "silu": pointwise(lambda z, leak: z * expit(z), lambda z, leak: expit(z) * (1 + z * expit(-z))),
}


# ------------------------------------------------------------------------------------------- networks


@dataclass
class Network:
    """`depth` hidden layers and an output layer. `params` names its parameters and running averages."""

    params: dict[str, np.ndarray]
    depth: int
    activation: str
    output: str = "linear"
    norm: str = "none"  # none | batch_norm | layer_norm
    dropout: str = "none"  # none | dropout | alpha_dropout
    rate: float = 0.0
    leak: float = 0.01
    averages: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.params = {name: np.asarray(value, np.float64) for name, value in self.params.items()}


def forward(net: Network, x: np.ndarray, keep: list[np.ndarray] | None = None, train: bool = False) -> tuple[np.ndarray, list]:
    """Return the prediction, and the intermediate values of each layer for the backward pass."""
    saved, p = [], net.params
    for i in range(net.depth):
        pre = z = x @ p[f"hidden.{i}.dense.kernel"] + p[f"hidden.{i}.dense.bias"]
        if net.norm != "none":
            z, pre = normalise(net, f"hidden.{i}.norm.norm", pre, train)
        saved.append((x, z, pre))
        x = ACTIVATIONS[net.activation][0](pre, net.leak)
        if train and net.dropout != "none":
            x = drop(net, x, keep[i])
    pre = x @ p["output.kernel"] + p["output.bias"]
    return ACTIVATIONS[net.output][0](pre, net.leak), [*saved, (x, pre, pre)]


def normalise(net: Network, name: str, z: np.ndarray, train: bool) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return ((z - mean) / deviation, deviation), and the quotient scaled and shifted.

    The mean is over examples for batch norm, and over units for layer norm.
    """
    axis, tiny = (0, 1e-5) if net.norm == "batch_norm" else (1, 1e-6)
    mean, var = z.mean(axis, keepdims=True), z.var(axis, keepdims=True)
    if net.norm == "batch_norm":
        for key, new, start in (("mean", mean, 0.0), ("var", var, 1.0)):
            old = net.averages.setdefault(f"{name}.{key}", np.full(z.shape[1], start))
            if train:
                net.averages[f"{name}.{key}"] = 0.99 * old + 0.01 * new[0]
        if not train:
            mean, var = net.averages[f"{name}.mean"], net.averages[f"{name}.var"]
    deviation = np.sqrt(var + tiny)
    unit = (z - mean) / deviation
    return (unit, deviation), unit * net.params[f"{name}.scale"] + net.params[f"{name}.bias"]


def drop(net: Network, x: np.ndarray, keep: np.ndarray) -> np.ndarray:
    q = 1 - net.rate
    if net.dropout == "dropout":
        return x * keep / q
    a = 1 / np.sqrt(q + OFF**2 * q * (1 - q))
    return a * np.where(keep, x, OFF) - a * (1 - q) * OFF


def backward(net: Network, saved: list, grad: np.ndarray, keep: list[np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return the gradient of every parameter from the gradient of the prediction."""
    grads = {}
    for i in reversed(range(net.depth + 1)):
        x, z, pre = saved[i]
        dense, phi = (f"hidden.{i}.dense", net.activation) if i < net.depth else ("output", net.output)
        if i < net.depth and net.dropout != "none":
            q = 1 - net.rate
            factor = 1 / q if net.dropout == "dropout" else 1 / np.sqrt(q + OFF**2 * q * (1 - q))
            grad = grad * keep[i] * factor
        grad = ACTIVATIONS[phi][1](grad, pre, net.leak)
        if i < net.depth and net.norm != "none":
            unit, deviation = z
            name, axis = f"hidden.{i}.norm.norm", 0 if net.norm == "batch_norm" else 1
            grads[f"{name}.scale"], grads[f"{name}.bias"] = (grad * unit).sum(0), grad.sum(0)
            grad = grad * net.params[f"{name}.scale"]
            along = unit * (grad * unit).mean(axis, keepdims=True)
            grad = (grad - grad.mean(axis, keepdims=True) - along) / deviation
        grads[f"{dense}.kernel"], grads[f"{dense}.bias"] = x.T @ grad, grad.sum(0)
        grad = grad @ net.params[f"{dense}.kernel"].T
    return grads


# ------------------------------------------------------------------------------------------- training


def adam(p: np.ndarray, grad: np.ndarray, memory: dict, rate: float, decay: float) -> np.ndarray:
    """Take a step of Adam with decoupled weight decay, which does not enter the moments."""
    memory["t"] = t = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * grad
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * grad**2
    m, v = memory["m"] / (1 - 0.9**t), memory["v"] / (1 - 0.999**t)
    return p - rate * (m / (np.sqrt(v) + 1e-8) + decay * p)


def sgd(p: np.ndarray, grad: np.ndarray, memory: dict, rate: float, decay: float) -> np.ndarray:
    return p - rate * (grad + decay * p)


def momentum(p: np.ndarray, grad: np.ndarray, memory: dict, rate: float, decay: float) -> np.ndarray:
    memory["u"] = 0.9 * memory.get("u", 0) + grad + decay * p
    return p - rate * memory["u"]


def rmsprop(p: np.ndarray, grad: np.ndarray, memory: dict, rate: float, decay: float) -> np.ndarray:
    """Take a step of RMSProp with epsilon inside the root."""
    grad = grad + decay * p
    memory["v"] = 0.9 * memory.get("v", 0) + 0.1 * grad**2
    return p - rate * grad / np.sqrt(memory["v"] + 1e-8)


OPTIMIZERS = {"adam": adam, "sgd": sgd, "momentum": momentum, "rmsprop": rmsprop}


def loss(net: Network, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared error in evaluation mode."""
    return float(np.mean((forward(net, x)[0] - y) ** 2))


def train(
    net: Network,
    x: np.ndarray,
    y: np.ndarray,
    batches: Iterable[np.ndarray],
    optimizer: str,
    rate: float,
    decay: float = 0.0,
    keep: Callable[[int, int], list[np.ndarray]] | None = None,
    memory: dict | None = None,
    done: int = 0,
    outputs: int | None = None,
) -> Network:
    """Train in place over `batches` of row numbers. `keep(step, rows)` gives one mask per hidden layer.

    `done` is the number of earlier steps. The squared error is divided by the number of rows and by `outputs` (default: the
    outputs of y). A larger `outputs` means that y is a part of the targets.
    """
    memory = {} if memory is None else memory
    for step, rows in enumerate(batches, done):
        masks = keep(step, len(rows)) if keep else None
        prediction, saved = forward(net, x[rows], masks, train=True)
        error = 2 * (prediction - y[rows]) / (len(rows) * (outputs or y.shape[1]))
        for name, grad in backward(net, saved, error, masks).items():
            net.params[name] = OPTIMIZERS[optimizer](net.params[name], grad, memory.setdefault(name, {}), rate, decay)
    return net
