"""The histories of a training from its checkpoints."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import numpy as np
from flax import nnx, serialization

from relu_study.errors import UserError
from relu_study.monitor.monitor import Monitor
from relu_study.storage.frames import load
from relu_study.storage.results import Results

NAMED_STEP = re.compile(r"(?:step|epoch|ckpt|checkpoint|iter)[-_=.]?(\d+)", re.IGNORECASE)


def monitor_checkpoints(
    fn: Any,
    checkpoints: Iterable[Any],
    *,
    probe: Any,
    targets: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    read: Callable[[Path], Any] | None = None,
    ensemble: bool | Literal["params"] = False,
    unit_axis: Mapping[str, int] | None = None,
    **call: Any,
) -> Results:
    """Measure a list of checkpoints as `Monitor` measures a training, and return the results as `relu_study.load` does.

    Checkpoints are read one at a time, in rising order of their steps.

    Args:
      fn: `fn(params, *inputs)`, a Linen module, or an `nnx.Module` with the structure of the checkpoints.
      checkpoints: states or paths. A state holds the parameters of a function, the variables of a Linen module, or is an
        `nnx.Module` or `nnx.State`; a `TrainState` is read too. A path is an Orbax folder, a .msgpack file of
        `flax.serialization`, or an .npz file with a dotted name for each array.
      probe, targets, loss, ensemble, unit_axis, call: as for `Monitor`.
      steps: the step of each checkpoint. Without it, the `step` of a state, the number after "step", "epoch" or "ckpt" in the
        name of a path, the last number there, or the place in the list.
      out: the folder of the measurements, as for `Monitor`. Its stored steps are not measured again. None: a temporary folder,
        which is removed.
      read: a function that returns the state at a path, for other formats.

    Raises:
      UserError: a checkpoint of unknown format or of another structure, steps that repeat, no checkpoint, or an invalid argument.
    """
    listed = list(checkpoints)
    numbers = _steps(listed, steps)
    order = sorted(range(len(listed)), key=numbers.__getitem__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out) if out is not None else Path(temporary) / "checkpoints"
        monitor: Monitor | None = None
        try:
            for index, state in zip(order, _states((listed[i] for i in order), read), strict=True):
                model = _model(fn, state)
                if monitor is None:
                    monitor = Monitor(
                        model,
                        out=folder,
                        probe=probe,
                        targets=targets,
                        loss=loss,
                        every=1,
                        ensemble=ensemble,
                        unit_axis=unit_axis,
                        on_error="raise",
                        **call,
                    )
                if numbers[index] not in monitor.steps:
                    monitor.measure(numbers[index], model)
        finally:
            if monitor is not None:
                monitor.close()
        return load(folder)


def _steps(listed: list[Any], steps: Sequence[int] | None) -> list[int]:
    if not listed:
        raise UserError("there are no checkpoints. Pass at least one state or path.")
    if steps is not None and len(steps) != len(listed):
        raise UserError(f"steps has {len(steps)} numbers, but there are {len(listed)} checkpoints. Pass one for each.")
    numbers = list(steps) if steps is not None else [_step(item, index) for index, item in enumerate(listed)]
    if repeated := [number for number in numbers if numbers.count(number) > 1]:
        raise UserError(f"two checkpoints have the step {repeated[0]}. Pass the step of each with steps=.")
    return numbers


def _step(item: Any, index: int) -> int:
    if isinstance(item, str | Path):
        name = Path(item).name.removesuffix(Path(item).suffix if Path(item).is_file() else "")
        found = NAMED_STEP.findall(name) or re.findall(r"\d+", name)
        return int(found[-1]) if found else index
    step = getattr(item, "step", None)
    return index if step is None or np.ndim(step) else int(step)


def _states(items: Iterable[Any], read: Callable[[Path], Any] | None) -> Iterator[Any]:
    for item in items:
        if not isinstance(item, str | Path):
            yield item
            continue
        try:
            yield (read or _read)(Path(item))
        except UserError:
            raise
        except Exception as error:  # each format has its own errors
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"{item} cannot be read ({text}). Pass the path of a complete checkpoint.") from error


def _read(path: Path) -> Any:
    """Return the state at a path. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Pass the path of a checkpoint.")
    if path.is_dir():
        from orbax import checkpoint

        return checkpoint.StandardCheckpointer().restore(path.absolute())
    if path.suffix == ".msgpack":
        return serialization.msgpack_restore(path.read_bytes())
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return _nested({name: arrays[name] for name in arrays.files})
    raise UserError(f"{path} has an unknown format. Pass an Orbax folder, a .msgpack or .npz file, or a function with read=.")


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays with dotted names as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = array
    return tree


def _model(fn: Any, state: Any) -> Any:
    """Return a checkpoint in a form that a monitor takes."""
    if isinstance(state, nnx.Module) or hasattr(state, "apply_fn"):
        return state
    if isinstance(fn, nnx.Module):
        graph, current = nnx.split(fn)
        if not isinstance(state, nnx.State):
            try:
                nnx.replace_by_pure_dict(current, _integer_keys(state))
            except (ValueError, KeyError, TypeError) as error:
                text = " ".join(str(error).split())[:300]
                raise UserError(f"a checkpoint does not fit the module {type(fn).__name__} ({text}). Pass its state.") from None
            state = current
        return nnx.merge(graph, state)
    if isinstance(fn, nn.Module):
        if isinstance(state, Mapping) and "params" not in state:
            state = {"params": state}
        return fn, {name: collection for name, collection in state.items() if name not in ("step", "opt_state")}
    if isinstance(state, Mapping) and {"params", "opt_state"} <= set(state):
        state = state["params"]  # a stored training state
    return fn, state


def _integer_keys(tree: Any) -> Any:
    """Return a tree with the keys of lists as numbers: files store them as text."""
    if not isinstance(tree, Mapping):
        return tree
    return {int(key) if str(key).isdigit() else key: _integer_keys(value) for key, value in tree.items()}
