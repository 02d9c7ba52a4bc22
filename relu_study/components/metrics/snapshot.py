"""Snapshots of a network: the arrays that metrics read, over the probe set in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from relu_study.components.activations import Activation
from relu_study.components.interval_bounds import Interval


class SiteView(NamedTuple):
    """One site: its pre and post on N probe examples, and the dense layer of its U units.

    A kernel may have several leading axes; its last axis is U. None means that the network has no such array.
    """

    activation: Activation
    pre: Float[Array, "N U"]
    post: Float[Array, "N V"]  # V = fanout * U
    slope: Float[Array, "N U"]  # abs(phi'(pre))
    kernel: Float[Array, "*D U"] | None
    bias: Float[Array, "U"] | None
    kernel_grad: Float[Array, "*D U"] | None
    bias_grad: Float[Array, "U"] | None
    kernel_step: Float[Array, "*D U"] | None  # theta_e - theta_(e-1); NaN or None before training
    bias_step: Float[Array, "U"] | None
    bound: Interval | None  # bounds of pre over the task's box
    max_slope: Float[Array, ""] | None
    end_slopes: Mapping[float, Float[Array, ""]] | None = None  # abs(phi') at finite ends of flat pieces; None: 0
    linear: Bool[Array, "U"] | None = None  # post = pre on every example, where the activation declares no identity piece


class Snapshot(NamedTuple):
    """One network at one measurement. It exists only inside the traced measuring function."""

    sites: tuple[SiteView, ...]  # nearest the input first
    prediction: Float[Array, "N O"]
    target_variance: Float[Array, ""]  # of y over the probe set, summed over the outputs
    train_loss: Float[Array, ""]
    val_loss: Float[Array, ""]
    params: Any  # pytrees of all parameters, output layer included
    grads: Any
    steps: Any  # NaN or None before training

    def named(self) -> dict[str, SiteView]:
        """Return the sites in order, as site_1, site_2, ..."""
        return {f"site_{index}": site for index, site in enumerate(self.sites, 1)}
