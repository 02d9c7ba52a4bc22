"""A monitor of one's own training loop."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.diagnosis.finding import MemberFinding
from relu_study.errors import UserError
from relu_study.monitor.arguments import check_arguments, check_rows, step_number
from relu_study.monitor.measure import Program, measuring_program
from relu_study.monitor.measurement import Measurement
from relu_study.monitor.problems import Problems
from relu_study.monitor.recorder import Recorder
from relu_study.stats.unit_events import Event, UnitStates
from relu_study.storage.monitor_log import MonitorInfo, SiteInfo
from relu_study.watch.display import NO_SITES
from relu_study.watch.models import as_function

NAMED = 5  # members in one line

OnProblem = TypeVar("OnProblem", bound=Callable[[MemberFinding], Any])


class MonitorWarning(UserWarning):
    """A problem of a monitor, or a nonfinite model. It does not stop the training."""


class _Given(NamedTuple):
    """The checked structure of a model: a later version must have the same."""

    tree: Any
    shapes: list[tuple[tuple[int, ...], Any]]


class Monitor:
    """Watch a training loop: measure every site of a model on a probe set, and write TensorBoard, CSV and unit histories.

        monitor = Monitor(model, out="runs/mine", probe=x, targets=y, loss=loss_fn, every=100)
        for step in range(steps):
            ...
            monitor(step, model)
            if monitor.should_stop:
                break
        monitor.close()

    A measurement has, by site, the fractions of dead, nearly dead, always on, saturated, dormant and zero-gradient units, the
    norms of gradient, weights and update, update_ratio = norm(theta - theta_last) / norm(theta) since the last measurement, the
    mean and standard deviation of post, the share of zero entries, and histograms of pre, post and gradients. A metric that is
    not defined at a site, for example saturated units of a ReLU, is absent. Definitions: `relu_study.inspect`.

    After each measurement the detectors judge the measurements of this monitor. `findings` lists the problems that hold now.

    Args:
      model: an `nnx.Module` (read in evaluation mode), an `nnx.ModelAndOptimizer`, `(linen_module, variables)`, a Flax
        `TrainState`, or `(fn, params)` with `fn(params, *inputs)`. It is not changed, and only copies of its arrays are kept.
      out: the folder. One with measurements of the same model is continued.
      probe: N examples, an array or a tuple of the model's arguments. They are copied.
      targets, loss: `loss(outputs, targets)` is the mean over examples. Without them there are no losses and no gradients.
      every: steps between measurements. The first call is measured.
      ensemble: all parameters and all other state have a leading axis of M members, as from `jax.vmap`. Each member is measured.
        "params": only the parameters have it.
      unit_axis: axis of the units by site, where it is not the last.
      stop_on: problems that set `should_stop`: exploding, dying, vanishing, not_learning.
      total_steps: the planned length of training. Without it, not_learning is not judged.
      on_error: "warn": a problem during training is a `MonitorWarning`. "raise": it is a `UserError`. A nonfinite model is always
        a warning.
      call: keyword arguments of the model, for example `train=False`.

    Raises:
      UserError: an argument is not valid, or the model cannot be evaluated on the probe set.

    Source: dead: Maas, Hannun & Ng 2013, ICML workshop, section 2. Dormant: Sokar et al. 2023, arXiv 2302.12902, definition 3.1.
    """

    def __init__(
        self,
        model: Any,
        *,
        out: str | Path,
        probe: Any,
        targets: Any = None,
        loss: Callable[[Any, Any], Any] | None = None,
        every: SupportsIndex = 100,
        ensemble: bool | Literal["params"] = False,
        unit_axis: Mapping[str, int] | None = None,
        stop_on: str | Iterable[str] = (),
        total_steps: float | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        **call: Any,
    ):
        self.every = check_arguments(targets, loss, every, on_error)
        self._raises = on_error == "raise"
        self._inputs = _copied(probe if isinstance(probe, tuple) else (probe,))
        self._targets = _copied(targets)
        check_rows(self._inputs, self._targets)
        model_form = as_function(model, call)
        self._program: Program = measuring_program(model_form, self._inputs, self._targets, loss, dict(unit_axis or {}), ensemble)
        self._given = _structure(self._program.read(model))
        self._ensemble = bool(ensemble)
        self._updates = [i for i, name in enumerate(self._program.series) if name.startswith(("update_norm/", "update_ratio/"))]
        self._previous: Any = None
        self._last: int | None = None  # step of the last call
        self._due = -(2**63)
        self._closed = False
        self._told: set[str] = set()
        info, writes = _info(self._program), jax.process_index() == 0
        self._problems = Problems(info, stop_on, total_steps)
        self._recorder = Recorder(Path(out).expanduser(), info, self._program.bins, self._report, writes)
        self._states = UnitStates(info.units, info.members)
        self._states.restore(self._recorder.events, self._recorder.first)
        if self._program.left_out:
            self._warn(
                f"the sites {', '.join(self._program.left_out)} are inside branches of lax.cond, which a call may not take. "
                "They are not measured; use jnp.where to measure them."
            )
        if not self._program.sites:
            self._warn(f"the model has no sites: {NO_SITES} Only the whole network is measured.")

    @property
    def out(self) -> Path:
        """The folder of the measurements."""
        return self._recorder.folder

    @property
    def steps(self) -> list[int]:
        """The measured steps, those of earlier monitors of the folder included."""
        return list(self._recorder.steps)

    @property
    def findings(self) -> tuple[MemberFinding, ...]:
        """The problems that hold at the last measurement, by member. Earlier monitors of the folder do not count."""
        return self._problems.findings

    @property
    def should_stop(self) -> bool:
        """Whether a problem of `stop_on` was found, of an ensemble in every member. It stays True until the step goes back."""
        return self._problems.should_stop

    def on_problem(self, callback: OnProblem) -> OnProblem:
        """Call `callback(finding)` once for each problem, site and member, at the measurement that shows it first.

        The call that measures makes it, after the measurement is stored, in its thread. An error of the callback is raised there.
        Returns the callback, so that this method is a decorator too.
        """
        self._problems.on_problem(callback)
        return callback

    def __call__(self, step: Any, model: Any) -> Measurement | None:
        """Measure the model if `every` steps have passed since the last measurement, and return the numbers.

        Args:
          step: the number of the step, a whole number, which rises. After a step back, later measurements move to `earlier-N`.
          model: in the form given first; of a pair, the variables or parameters suffice.
        """
        try:
            if self._last is not None and self._last <= step < self._due:
                self._last = step
                return None
        except Exception:
            pass  # an array of several steps, or no number: `step_number` decides
        return self._called_back(self._attempt(step, model, at_once=False))

    def measure(self, step: Any, model: Any) -> Measurement | None:
        """Measure the model at this step, whatever `every` is. None if that fails. A stored step is not stored again."""
        return self._called_back(self._attempt(step, model, at_once=True))

    def _called_back(self, measurement: Measurement | None) -> Measurement | None:
        if measurement is not None:
            self._problems.call_back()
        return measurement

    def _attempt(self, step: Any, model: Any, at_once: bool) -> Measurement | None:
        try:
            number = step_number(step)
            if self._closed:
                raise UserError("the monitor is closed. Make a new one with the same folder to continue.")
            if not at_once and self._last is not None and self._last <= number < self._due:
                self._last = number
                return None
            self._last, self._due = number, (number // self.every + 1) * self.every
            return self._measure(number, model)
        except Exception as error:
            if self._raises:
                raise
            text = _sentence(error)
            if text not in self._told:
                self._told.add(text)
                self._warn(f"step {step} is not measured. {text}")
            return None

    def _measure(self, step: int, model: Any) -> Measurement:
        params, state = self._read(model)
        if step < self._recorder.last:
            self._step_back(step)
        previous = params if self._previous is None else self._previous
        running, copied = self._program.run(params, state, previous, self._inputs, self._targets)
        measured = jax.tree.map(np.asarray, running)  # without a copy on a CPU, unlike jax.device_get
        values = np.array(measured.values)
        updates = values[:, self._updates]
        values[:, self._updates] = np.nan if self._previous is None else np.where(np.isfinite(updates), updates, np.nan)
        self._previous = copied
        places = [None if row.all() else self._program.places[int(row.argmin())] for row in measured.finite]
        values[[place is not None for place in places]] = np.nan
        dead = {
            site.name: np.unpackbits(bits, axis=-1, count=site.units).astype(bool)
            for site, bits in zip(self._program.sites, measured.dead, strict=True)
        }
        nonfinite = {member: place for member, place in enumerate(places) if place is not None}
        new = {member: place for member, place in nonfinite.items() if not self._states.nonfinite[member]}
        events: list[Event] = []
        if step > self._recorder.last:
            after = self._states.copy()  # an interrupt before the files are written leaves the old state
            events = after.update(step, dead, places)
            self._recorder.write(step, values, events, dict(zip(self._program.histograms, measured.histograms, strict=True)))
            self._states = after
            self._problems.add(step, values, np.array([place is None for place in places]))
        elif self._states.differ(dead, places):
            self._report(f"the model of step {step} differs from the stored one. This measurement of it is not stored.")
        self._report_nonfinite(step, new)
        masks = {site: np.where(self._states.nonfinite[:, None], self._states.dead[site], mask) for site, mask in dead.items()}
        if not self._ensemble:
            masks = {site: mask[0] for site, mask in masks.items()}
        numbers = dict(zip(self._program.series, values.T if self._ensemble else values[0].tolist(), strict=True))
        return Measurement(step, numbers, masks, tuple(events), nonfinite, self._problems.findings)

    def _read(self, model: Any) -> tuple[Any, Any]:
        """Return the parameters and the state of a model. Raises UserError if its structure changed, or inside jit."""
        params, state = self._program.read(model)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, state))):
            raise UserError("the monitor is called inside jit, vmap or scan. Call it outside, with the arrays that they return.")
        given = _structure((params, state))
        if given == self._given:
            return params, state
        if given.tree != self._given.tree:
            raise UserError("the model has another structure than the first one. Pass it in the form given to Monitor.")
        for (path, _), now, first in zip(
            jax.tree_util.tree_leaves_with_path((params, state)), given.shapes, self._given.shapes, strict=True
        ):
            if now != first:
                name = jax.tree_util.keystr(path[1:])
                raise UserError(f"{name} has the shape {now[0]} of {now[1]}, not {first[0]} of {first[1]}. Pass the same model.")
        return params, state

    def _step_back(self, step: int) -> None:
        last = self._recorder.last
        if self._raises:
            raise UserError(f"the step went back from {last} to {step}. Pass a rising step, or a new folder.")
        archive = self._recorder.rewind(step)
        self._states = UnitStates(self._recorder.info.units, self._recorder.info.members)
        self._states.restore(self._recorder.events, self._recorder.first)
        self._previous = None
        self._problems.rewind(step)
        where = f" are in {archive}" if archive else " are dropped"
        self._warn(f"the step went back from {last} to {step}. The measurements of the steps from {step} on{where}.")

    def _report_nonfinite(self, step: int, places: Mapping[int, str]) -> None:
        """Report the members that went nonfinite since the last measurement."""
        if not places:
            return
        sites = [site.name for site in self._program.sites]
        named = [f"site {place!r}" if place in sites else place for place in places.values()]
        if not self._ensemble:
            self._warn(f"step {step}: {named[0]} went nonfinite since the last measurement.")
            return
        listed = [f"member {member} in {place}" for member, place in zip(places, named, strict=True)]
        more = f", and {len(listed) - NAMED} more (see events.csv)" if len(listed) > NAMED else ""
        self._warn(f"step {step}: went nonfinite since the last measurement: {', '.join(listed[:NAMED])}{more}.")

    def _report(self, line: str) -> None:
        if self._raises:
            raise UserError(line)
        self._warn(line)

    def _warn(self, line: str) -> None:
        warnings.warn(line, MonitorWarning, stacklevel=_outside())

    def close(self) -> None:
        """Write units.csv and release the folder. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._recorder.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _info(program: Program) -> MonitorInfo:
    sites = tuple(SiteInfo(site.name, site.activation, site.units) for site in program.sites)
    return MonitorInfo(sites, program.series, program.metrics(), program.members, program.examples)


def _structure(tree: Any) -> _Given:
    leaves, treedef = jax.tree.flatten(tree)
    return _Given(treedef, [(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else ((), type(leaf)) for leaf in leaves])


def _copied(tree: Any) -> Any:
    """Return copies of arrays on the device, which later changes of the caller's arrays do not reach. A list is an array."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree, is_leaf=lambda leaf: isinstance(leaf, list))


def _sentence(error: BaseException) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def _outside() -> int:
    """Return the stack level of the caller's code."""
    for level in itertools.count(1):
        frame = sys._getframe(level)
        if frame.f_back is None or not str(frame.f_globals.get("__name__", "")).startswith("relu_study.monitor"):
            return level
    raise AssertionError
