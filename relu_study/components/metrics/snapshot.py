"""What the probes see of one run: plain arrays over the probe set, in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from relu_study.components.activations import Activation
from relu_study.components.interval_bounds import Interval


class SiteView(NamedTuple):
    """One site: its input and output on N probe examples, and the layer that feeds its U units.

    Kernels may have more leading axes than one; the last is always U. None says that there is no such thing.
    """

    activation: Activation
    pre: Float[Array, "N U"]
    post: Float[Array, "N V"]  # V = fanout * U
    slope: Float[Array, "N U"]  # abs(phi'(pre))
    kernel: Float[Array, "*D U"]
    bias: Float[Array, "U"] | None
    kernel_grad: Float[Array, "*D U"]
    bias_grad: Float[Array, "U"] | None
    kernel_step: Float[Array, "*D U"] | None  # theta_e - theta_(e-1); NaN or None before training
    bias_step: Float[Array, "U"] | None
    bound: Interval | None  # of pre over the task's box
    max_slope: Float[Array, ""]
    end_slopes: Mapping[float, Float[Array, ""]] | None = None  # abs(phi') at finite ends of flat pieces; None: known to be 0


class Snapshot(NamedTuple):
    """One network at one measurement. Built inside the traced measuring function, never passed across jit."""

    sites: tuple[SiteView, ...]  # nearest the input first
    prediction: Float[Array, "N O"]
    target_variance: Float[Array, ""]  # of y over the probe set, summed over the outputs
    train_loss: Float[Array, ""]
    val_loss: Float[Array, ""]
    params: Any  # pytrees of all parameters, output layer included
    grads: Any
    steps: Any  # NaN or None before training

    def named(self) -> dict[str, SiteView]:
        """The sites as site_1, site_2, ... in order."""
        return {f"site_{index}": site for index, site in enumerate(self.sites, 1)}
