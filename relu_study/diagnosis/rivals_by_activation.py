"""Rules of other tools on activations, re-implemented from their descriptions. All of them look for dying units."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from relu_study.diagnosis.detector import above, detector
from relu_study.diagnosis.history import History

rival = functools.partial(detector, problem="dying", rival=True)
DEEPLOCALIZE = (
    "Wardat, Le & Rajan 2021, arXiv 2103.03376; the check as the same authors write it in DeepDiagnosis/ICSE2022, "
    "callback/callbacks.py, identifyNumerical of get_layer_output"
)
PROBE = "the probe set after each epoch in place of a training batch"


@rival(
    "sagemaker_dead_relu",
    threshold=above(0.5),
    requires=("dead_fraction", "nearly_dead_fraction"),
    source="SageMaker Debugger, List of Debugger built-in rules, DeadRelu: threshold_inactivity 1 %, threshold_layer 50 %",
    quantity="share of units active on fewer than 1 % of the examples",
    units_of="score",
    adaptation=f"{PROBE}; active means a nonzero slope",
)
def sagemaker_dead_relu(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: more than 50 % of a layer's units are active on fewer than 1 % of examples."""
    return history.latest(history.by_site("dead_fraction") + history.by_site("nearly_dead_fraction"))


@rival(
    "deepdiagnosis_dead_node",
    threshold=0.7,
    requires=("zero_entries",),
    source="Wardat, Cruz, Le & Rajan 2022, arXiv 2112.04036; DeepDiagnosis/ICSE2022, callback/callbacks.py, identifyDead",
    quantity="share of zero entries",
    adaptation=f"{PROBE}; exact zeros in place of entries at or below 0",
)
def deepdiagnosis_dead_node(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: at least 70 % of a layer's output entries are at or below 0."""
    return history.latest(history.by_site("zero_entries"))


@rival(
    "deeplocalize_zero_mean",
    threshold=1.0,
    requires=("post_mean",),
    source=DEEPLOCALIZE,
    quantity="1 where the mean output is 0",
    adaptation=f"{PROBE}; outputs only, without weights and gradients; NaN and infinity are deeplocalize_nonfinite",
)
def deeplocalize_zero_mean(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: the mean of a layer's output is exactly 0."""
    mean = history.latest(history.by_site("post_mean"))
    return np.where(np.isnan(mean), np.nan, (mean == 0).astype(float))


@rival(
    "thedeepchecker_dead",
    threshold=above(0.5),
    requires=("quiet_fraction",),
    source="Ben Braiek & Khomh 2022, arXiv 2204.00694; thedeepchecker/thedeepchecker, deep_checker/checkers.py",
    quantity="share of units whose 95th percentile of abs activation is below 1e-5",
    units_of="score",
    adaptation="the probe set after each epoch in place of a buffer of batches",
)
def thedeepchecker_dead(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: 95th percentile of abs(post) below 1e-5 in more than 50 % of a layer's units."""
    return history.latest(history.by_site("quiet_fraction"))


@rival(
    "torchmortem_dead_units",
    threshold=0.5,
    requires=("zero_entries",),
    source="sebseager/torchmortem, src/torchmortem/detectors/dead_units.py and collectors/activation.py",
    quantity="share of the later half of the measurements with more than 50 % zero entries",
    adaptation=f"{PROBE}; exact zeros in place of abs < 1e-6; a measurement per epoch in place of steps",
)
def torchmortem_dead_units(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: more than 50 % zero entries in at least half of the later half of the steps."""
    zeros, late = history.by_site("zero_entries"), history.later_half()[..., None]
    share = ((zeros > 0.5) & late).sum(axis=-2) / late.sum(axis=-2)
    return np.where((late & np.isnan(zeros)).any(axis=-2), np.nan, share)


@rival(
    "torch_audit_ta105",
    threshold=above(0.9),
    requires=("zero_entries",),
    source="RMalkiv/torch-audit, src/torch_audit/validators/builtin/activation.py, TA105",
    quantity="share of zero entries",
    adaptation=PROBE,
)
def torch_audit_ta105(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: more than 90 % of a layer's output entries are 0."""
    return history.latest(history.by_site("zero_entries"))


@rival(
    "dlcheck_dead_activations",
    threshold=above(0.95),
    requires=("zero_entries",),
    source="QEDan/DLCheck, pytorch_lightning_callback/dlcheck_callback.py, check_dead_activations, after arXiv 1909.02562",
    quantity="share of zero entries",
    adaptation="the probe set after each epoch in place of all batches of the epoch",
)
def dlcheck_dead_activations(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: more than 95 % of a layer's output entries over an epoch are 0."""
    return history.latest(history.by_site("zero_entries"))


@rival(
    "keras_contrib_dead_relu",
    threshold=0.1,
    requires=("silent_fraction",),
    source="keras-team/keras-contrib, keras_contrib/callbacks/dead_relu_detector.py, with verbose=False",
    quantity="share of units that output 0 on every example",
    units_of="score",
    adaptation="the probe set in place of the whole training set; outputs 0 everywhere in place of a sum of 0",
)
def keras_contrib_dead_relu(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: at least 10 % of a layer's units never output anything but 0."""
    return history.latest(history.by_site("silent_fraction"))


@rival(
    "dormant_fraction",
    threshold=0.5,
    requires=("dormant_fraction",),
    source="Sokar, Agarwal, Castro & Evci 2023, arXiv 2302.12902, definition 3.1, tau 0.025",
    quantity="share of dormant units",
    units_of="score",
    adaptation="the paper reports the share and has no threshold for it; 50 % is ours, as in the other rules on units",
)
def dormant_fraction(history: History) -> Float[np.ndarray, "*runs L"]:
    """Rule re-implemented from its description: share of units whose mean abs(post) is at most 0.025 of their layer's average."""
    return history.latest(history.by_site("dormant_fraction"))
