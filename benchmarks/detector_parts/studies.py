"""The two studies of the benchmark: the networks as detectors see them, and the truth about them."""

from __future__ import annotations

from dataclasses import replace

from detector_parts.configurations import configurations, frozen, may_vanish
from relu_study import Experiment, Study

EPOCHS = 20
EARLY = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5)  # the first quarter, with epoch 0
LATE = (6.5, 8, 9.5, 11, 12.5, 14, 16, 18, EPOCHS)
SIGNS = ("train_loss", "val_loss", "grad_norm", "weight_norm", "update_norm", "constant")
SEEN = (  # what any detector reads
    *SIGNS,
    "nearly_dead_fraction",
    "dormant_fraction",
    "post_mean",
    "zero_entries",
    "zero_gradients",
    "grad_mean_abs",
    "quiet_fraction",
    "silent_fraction",
)
ALL = configurations()
ARMS = {one.label: one.spec for one in ALL}
FROZEN = {f"{one.label}, frozen": frozen(one.spec) for one in ALL if may_vanish(one)}

SEEN_STUDY = Study(
    "detectors",
    "Detectors of training problems",
    "Which rule finds dying, vanishing, exploding and not learning in time, and how often is it wrong?",
    [Experiment("networks", ARMS, "One fault each, and healthy twins")],
    seeds=8,
    every=(*EARLY, *LATE),
    metrics=SEEN,
    probe_examples=256,
)
# The same networks measured on all training rows, and those with half of their layers frozen.
TRUTH_STUDY = replace(
    SEEN_STUDY,
    name="detectors_truth",
    experiments=[*SEEN_STUDY.experiments, Experiment("frozen", FROZEN, "The first half of the layers frozen at the start")],
    metrics=SIGNS,
    probe_examples=None,  # every training row
)
