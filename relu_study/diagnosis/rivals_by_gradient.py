"""Rules of other tools on gradients and losses, re-implemented from their descriptions."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float

from relu_study.diagnosis.detector import above, detector
from relu_study.diagnosis.history import History
from relu_study.diagnosis.rivals_by_activation import DEEPLOCALIZE

rival = functools.partial(detector, rival=True)

PROBE = "the probe set's gradient after each epoch in place of a batch's"
AUTOTRAINER = "Zhang, Zhai, Ma & Shen 2021, ICSE, AUTOTRAINER; shiningrain/AUTOTRAINER, AutoTrainer/utils/monitor.py"
UNCONVERGED = (
    "accuracy on the probe set; where none is recorded, 1 - train loss / loss of the best constant (else the first loss)"
)
START = 0.3  # share of training before which AUTOTRAINER does not judge convergence
THETA = 0.7  # its accuracy of a converged model
STEPS = 10  # between the losses that SageMaker's LossNotDecreasing compares
TINY = 1e-30  # torchmortem's zero


@rival(
    "sagemaker_vanishing_gradient",
    problem="vanishing",
    threshold=above(-1e-7),
    requires=("grad_mean_abs",),
    source="SageMaker Debugger, List of Debugger built-in rules, VanishingGradient: threshold 0.0000001; the same number in "
    "DeepDiagnosis/ICSE2022, callback/callbacks.py, identifyVanishingGradient",
    quantity="minus the mean abs gradient",
    adaptation=f"{PROBE}; kernel and bias of a site together",
)
def sagemaker_vanishing_gradient(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: the mean abs gradient of a layer is below 1e-7."""
    return -history.latest(history.by_site("grad_mean_abs"))


@rival(
    "sagemaker_exploding_tensor",
    problem="exploding",
    threshold=1.0,
    requires=(),
    source="SageMaker Debugger, List of Debugger built-in rules, ExplodingTensor: only_nan False",
    quantity="1 where a measurement is nonfinite",
    adaptation="any measured value of the run in place of chosen tensors",
)
def sagemaker_exploding_tensor(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: a tensor has a NaN or an infinite value."""
    return _nonfinite(history)


@rival(
    "deeplocalize_nonfinite",
    problem="exploding",
    threshold=1.0,
    requires=(),
    source=DEEPLOCALIZE,
    quantity="1 where a measurement is nonfinite",
    adaptation="any measured value of the run in place of the mean outputs; a mean of 0 is deeplocalize_zero_mean",
)
def deeplocalize_nonfinite(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: the mean of a layer's output is NaN or infinite."""
    return _nonfinite(history)


@rival(
    "autotrainer_dying_relu",
    problem="dying",
    threshold=0.7,
    requires=("zero_gradients", "train_loss"),
    source=f"{AUTOTRAINER}: gamma 0.7",
    quantity="largest share of zero gradient entries of an unconverged network",
    adaptation=f"{PROBE}; {UNCONVERGED}",
)
def autotrainer_dying_relu(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: at some check, at least 70 % of all gradient entries are 0, and no convergence.

    Convergence is judged from 30 % of training on. The rule abstains before.
    """
    return _if_unconverged(history, np.fmax.reduce(history.overall("zero_gradients"), axis=-1))


@rival(
    "autotrainer_vanishing",
    problem="vanishing",
    threshold=above(1.0),
    requires=("grad_norm", "train_loss"),
    source=f"{AUTOTRAINER}: beta_1 1e-3, beta_2 1e-4",
    quantity="bounds over the first site's gradient norm and its ratio, the smaller one, of an unconverged network",
    adaptation=f"{PROBE}; kernel and bias of a site together; the last site in place of the output layer; {UNCONVERGED}",
)
def autotrainer_vanishing(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: the first layer's gradient norm is below 1e-4 and below 1e-3 of the last one's.

    Both hold at the same check, and the network has not converged at 30 % of training or later. The score is the largest
    min(1e-3 / ratio, 1e-4 / norm) over the checks.
    """
    first, last = _ends(history)
    strength = np.minimum(1e-3 * last / first, 1e-4 / first)
    return _if_unconverged(history, np.fmax.reduce(strength, axis=-1))


@rival(
    "autotrainer_exploding",
    problem="exploding",
    threshold=above(70.0),
    requires=("grad_norm", "train_loss"),
    source=f"{AUTOTRAINER}: beta_3 70",
    quantity="largest gradient norm of the first site over the last one's, of an unconverged network",
    adaptation=f"{PROBE}; kernel and bias of a site together; the last site in place of the output layer; {UNCONVERGED}",
)
def autotrainer_exploding(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: a nonfinite value, or the first layer's gradient norm above 70 of the last's.

    The ratio counts only if the network has not converged at 30 % of training or later.
    """
    first, last = _ends(history)
    ratio = _if_unconverged(history, np.fmax.reduce(first / last, axis=-1))
    return np.where(_nonfinite(history) == 1, np.inf, ratio)


@rival(
    "autotrainer_slow_convergence",
    problem="not_learning",
    threshold=above(-0.01),
    requires=("train_loss",),
    source=f"{AUTOTRAINER}: delta 0.01",
    quantity="minus the largest gain between measurements",
    adaptation=UNCONVERGED,
)
def autotrainer_slow_convergence(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: from 30 % of training on, accuracy never gained 0.01 between two epochs."""
    gains = np.fmax.reduce(np.diff(_accuracy(history), axis=-1), axis=-1, initial=np.nan)
    return np.where(_judged(history), -np.maximum(gains, 0), np.nan)  # NaN without two measurements


@rival(
    "sagemaker_loss_not_decreasing",
    problem="not_learning",
    threshold=above(-0.1),
    requires=("train_loss",),
    source="SageMaker Debugger, List of Debugger built-in rules, LossNotDecreasing: num_steps 10, diff_percent 0.1",
    quantity="minus the fall of train loss over 10 measurements, in percent",
    adaptation="10 measurements in place of 10 steps; without the bound on increases, which only adds to the same alarm",
)
def sagemaker_loss_not_decreasing(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: the loss is not at least 0.1 % below the loss of 10 steps before."""
    loss = history.overall("train_loss")
    before = np.full(loss.shape, np.nan)
    before[..., STEPS:] = loss[..., :-STEPS]
    return history.latest(-100 * (before - loss) / before)


@rival(
    "torchmortem_vanishing",
    problem="vanishing",
    threshold=100.0,
    requires=("grad_norm",),
    source="sebseager/torchmortem, src/torchmortem/detectors/gradient_flow.py",
    quantity="mean gradient norm of the last site over the first one's, later half",
    adaptation=f"{PROBE}; sites in place of parameters, without the output layer",
)
def torchmortem_vanishing(history: History) -> Float[np.ndarray, "*runs"]:
    """Rule re-implemented from its description: in the later half, the last layer's mean gradient norm is 100 times the first's.

    Below 1e-30, a first layer scores infinity and a last layer 0. With one layer the rule abstains.
    """
    if len(history.sites) < 2:
        return np.full(history.runs, np.nan)
    late = history.later_half()
    first, last = (np.where(late, norms, 0).sum(axis=-1) / late.sum(axis=-1) for norms in _ends(history))
    score = np.where(first < TINY, np.inf, np.where(last < TINY, 0, last / first))
    return np.where(np.isnan(first) | np.isnan(last), np.nan, score)


@rival(
    "torchmortem_exploding",
    problem="exploding",
    threshold=above(1000.0),
    requires=("grad_norm",),
    source="sebseager/torchmortem, src/torchmortem/detectors/gradient_flow.py",
    quantity="largest gradient norm so far",
    adaptation=f"{PROBE}; sites in place of parameters, without the output layer",
)
def torchmortem_exploding(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: a layer's gradient norm is above 1000 at any step."""
    return np.fmax.reduce(history.by_site("grad_norm"), axis=-2)


def _nonfinite(history: History) -> Float[np.ndarray, "*runs"]:
    return (~history.finite.all(axis=-1)).astype(float)


def _ends(history: History) -> tuple[Float[np.ndarray, "*runs E"], Float[np.ndarray, "*runs E"]]:
    """Return the gradient norms of the first and the last site."""
    norms = history.by_site("grad_norm")
    if not norms.shape[-1]:
        return np.full(history.finite.shape, np.nan), np.full(history.finite.shape, np.nan)
    return norms[..., 0], norms[..., -1]


def _accuracy(history: History) -> Float[np.ndarray, "*runs E"]:
    """Return the accuracy, or where none is recorded 1 - train loss / reference.

    The reference is the loss of the best constant, or the first loss where that is unknown.
    """
    loss, accuracy = history.overall("train_loss"), history.overall("accuracy")
    reference = np.where(np.isnan(history.constant_loss), loss[..., 0], history.constant_loss)
    return np.where(np.isnan(accuracy), 1 - loss / reference[..., None], accuracy)


def _judged(history: History) -> Bool[np.ndarray, "*runs"]:
    """Return whether AUTOTRAINER judges convergence by now: from 30 % of training on, at a finite measurement."""
    epoch = history.latest(np.broadcast_to(history.epochs, history.finite.shape))
    return np.asarray(epoch >= START * history.total_epochs)


def _if_unconverged(history: History, scores: Float[np.ndarray, "*runs"]) -> Float[np.ndarray, "*runs"]:
    """Return scores of unconverged runs, 0 for converged ones, NaN before convergence is judged."""
    best = np.fmax.reduce(_accuracy(history), axis=-1)
    known = _judged(history) & ~np.isnan(scores) & ~np.isnan(best)
    return np.where(known, np.where(best >= THETA, 0.0, scores), np.nan)
