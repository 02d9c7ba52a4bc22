"""Checks of the user's tasks and networks against their contracts, before anything compiles.

The entries of this package are exempt at run time (`ours`); a test calls the same checks for them.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from relu_study import noise, prng
from relu_study.bounds import Interval
from relu_study.failures import calling
from relu_study.programs import make_init
from relu_study.registry import UserError, nearest, networks, tasks
from relu_study.sites import Columns, Context, Dense, Norm, Site
from relu_study.spec import KNOBS, RunSpec
from relu_study.tasks import LABELLED, LOSSES, METRICS, Signature, Task, is_labels

CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "monotonic", "perf_counter"}
DRAWN = 16  # the most phases of which rows are drawn
TICK = 1.1  # seconds: a clock read in whole seconds differs after it


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


# ------------------------------------------------------------------------------------------- tasks


def check_task(spec: RunSpec) -> list[str]:
    """Refuse a task that breaks its contract (UserError); return notes for the plan and the report.

    One `jax.eval_shape` of `sample` per phase checks shapes and dtypes. Eager draws of up to 16 phases, the first and the last
    among them, check that equal keys give equal rows, that all inputs lie in the box, and that the targets fit the loss.
    """
    name, of_data = spec.task, RunSpec(rows=spec.rows, **dict(spec.marked("data")))
    task, again = (_built(name, one) for one in (spec, of_data))
    check_declared(name, task)
    for field in ("signature", "box", "phases"):
        if (here := getattr(task, field)) != (there := getattr(again, field)):
            raise UserError(
                f"task {name!r}: its {field} depends on more than rows, target and inputs ({here} here, {there} without the "
                "other fields); build it from these three fields only"
            )
    for phase in range(task.phases):
        _check_shapes(name, task, phase)
    fixed = True
    for phase in sorted({round(i * (task.phases - 1) / (DRAWN - 1)) for i in range(DRAWN)}):
        first = _draw(name, task, 0, phase)
        if reads_clock(task.sample):
            time.sleep(TICK)
        for other in (task, again):
            if _draw(name, other, 0, phase) != first or not _repeats(other, phase):
                raise UserError(
                    f"task {name!r}: two draws with the same key give different rows; draw all random numbers from the key, with "
                    "jax.random, not from NumPy, Python's state or a clock"
                )
        fixed = fixed and first == _draw(name, task, 1, phase)
    if fixed and not task.fixed:
        return [
            f"task {name!r} gives two different keys the same rows: seeds differ only in weights and order; "
            "declare Task(fixed=True) if this is meant"
        ]
    return []


def _built(name: str, spec: RunSpec) -> Task:
    with calling(f"task {name!r}"):
        task = tasks[name](spec)
    if not isinstance(task, Task):
        raise UserError(f"task {name!r} returns {type(task).__name__} {str(task)[:60]!r}; return a relu_study.Task")
    return task


def check_declared(name: str, task: Task) -> None:
    """Refuse a Task whose own fields are wrong; nothing is drawn."""
    s = task.signature
    if not isinstance(s, Signature):
        raise UserError(f"task {name!r}: signature must be a relu_study.Signature, not {type(s).__name__}")
    for field, least in (("train_rows", 0), ("val_rows", 0), ("d_in", 1), ("d_out", 1)):  # engine.check names `rows` for 0 rows
        if not _whole(getattr(s, field), least):
            raise UserError(f"task {name!r}: {field} must be a whole number of at least {least}, not {getattr(s, field)!r}")
    if not _whole(task.phases, 1):
        raise UserError(f"task {name!r}: phases must be a whole number of at least 1, not {task.phases!r}")
    if not callable(task.sample):
        raise UserError(f"task {name!r}: sample must be a function sample(key, phase) -> (inputs, targets)")
    if not isinstance(task.fixed, bool):
        raise UserError(f"task {name!r}: fixed must be True or False, not {task.fixed!r}")
    if not isinstance(s.loss, str) or s.loss not in LOSSES:
        raise nearest(str(s.loss), LOSSES, f"loss of task {name!r}:")
    if not isinstance(s.metrics, tuple):
        raise UserError(f"task {name!r}: metrics must be a tuple of names, not {s.metrics!r}; write metrics=('accuracy',)")
    for metric in s.metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise nearest(str(metric), METRICS, f"metric of task {name!r}:")
    if s.loss in ("cross_entropy", "ce") and s.d_out < 2:
        raise UserError(f"task {name!r}: {s.loss} needs an output for each of at least 2 classes, not d_out=1; use loss='bce'")
    if s.loss == "bce" and s.d_out != 1:
        raise UserError(f"task {name!r}: bce takes one logit, so d_out=1, not {s.d_out}; use loss='ce' for several classes")
    if s.metrics and s.d_out == 1 and s.loss != "bce":
        raise UserError(f"task {name!r}: {s.metrics[0]} of one output needs a logit; use loss='bce', or leave the metric out")
    _check_box(name, task.box)


def _check_box(name: str, box: Any) -> None:
    if box is None:
        return
    two = isinstance(box, tuple) and len(box) == 2 and all(isinstance(end, float) for end in box)
    with np.errstate(over="ignore"):  # an end too large for single precision is not finite there
        finite = two and np.isfinite(np.asarray(box, jnp.result_type(float))).all()
    if not finite or box[0] > box[1]:
        raise UserError(f"task {name!r}: box must be two finite numbers (low, high) with low <= high, not {box!r}; correct it")


def _check_shapes(name: str, task: Task, phase: int) -> None:
    s = task.signature
    with calling(f"sample of task {name!r}"):
        found = jax.eval_shape(lambda key: task.sample(key, phase), prng.stream(0, "data", phase))
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(hasattr(part, "shape") for part in found):
        many = f"{len(found)} values" if isinstance(found, tuple | list) else f"one {type(found).__name__}"
        raise UserError(f"task {name!r}: sample returns {many}; return two arrays, (inputs, targets)")
    x, y = found
    rows, at = s.train_rows + s.val_rows, f" in phase {phase}" if phase else ""
    for part, what in ((x, "inputs"), (y, "targets")):
        if not any(jnp.issubdtype(part.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise UserError(f"task {name!r}: the {what} have dtype {part.dtype}{at}; return real numbers")
    labels = is_labels(s, y.shape)
    for part, what, columns, field in ((x, "inputs", s.d_in, "d_in"), (y, "targets", s.d_out, "d_out")):
        if not (labels and what == "targets") and not (len(part.shape) == 2 and part.shape[1] == columns):
            hint = "; give a column, y[:, None]" if len(part.shape) == 1 and columns == 1 else ""
            raise UserError(
                f"task {name!r}: sample returns {what} of shape {part.shape}{at}, and its Signature declares {field}={columns}: "
                f"{rows} x {columns} is expected{hint or '; correct one of them'}"
            )
        if part.shape[0] < rows:
            raise UserError(
                f"task {name!r}: sample returns {part.shape[0]} rows of {what}{at}, fewer than the {s.train_rows} training and "
                f"{s.val_rows} validation rows of its Signature; declare fewer rows"
            )
    if x.shape[0] != y.shape[0]:
        raise UserError(f"task {name!r}: sample returns {x.shape[0]} inputs and {y.shape[0]} targets{at}; return as many of each")


def _draw(name: str, task: Task, seed: int, phase: int) -> str:
    """The digest of the rows that a seed draws; wrong values are refused."""
    sample, key = task.sample, prng.stream(seed, "data", phase)
    while hasattr(sample, "__wrapped__") and hasattr(sample, "lower"):  # jitted: the trace would hide Python's state
        sample = sample.__wrapped__
    with calling(f"sample of task {name!r}"):
        x, y = (np.asarray(part) for part in sample(key, phase))
    _check_indices(name, sample, key, phase)
    numbers = x.astype(jnp.result_type(float))
    known = numbers[~np.isnan(numbers)]
    check_inside(name, task.box, known.min(initial=np.inf), known.max(initial=-np.inf))
    s = task.signature
    if s.loss in LABELLED:
        _check_targets(name, s, y)
    return hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()


def _repeats(task: Task, phase: int) -> bool:
    return noise.repeats(lambda key: task.sample(key, phase), prng.stream(0, "data", phase))


def check_inside(name: str, box: Sequence[float] | None, least: Any, most: Any) -> None:
    """Refuse inputs between `least` and `most` that leave the box of their task."""
    if box is None or least > most:
        return
    low, high = np.asarray(box, jnp.result_type(float))  # as the bounds have it
    if least < low or most > high:
        raise UserError(
            f"task {name!r}: drawn inputs lie in [{least:g}, {most:g}], outside its box {box}; "
            "declare a box that holds them, or box=None"
        )


def _check_targets(name: str, s: Signature, y: np.ndarray) -> None:
    """Targets of a classification loss: labels, 0 or 1, or rows of probabilities. NaN is left to the run's status."""
    known = y[~np.isnan(y)] if y.dtype.kind == "f" else y
    if s.loss == "bce":
        if known.size and (known.min() < 0 or known.max() > 1):
            raise UserError(f"task {name!r}: targets of bce lie in [{known.min():g}, {known.max():g}]; give 0 or 1")
    elif is_labels(s, y.shape):
        if known.size and (known.min() < 0 or known.max() > s.d_out - 1 or (known != np.round(known)).any()):
            raise UserError(
                f"task {name!r}: labels of {s.loss} lie in [{known.min():g}, {known.max():g}]; give whole numbers from 0 to "
                f"{s.d_out - 1}, d_out - 1"
            )
    elif known.size and (known.min() < 0 or np.nanmax(np.abs(y.astype(float).sum(axis=1) - 1)) > 1e-3):
        raise UserError(f"task {name!r}: target rows of {s.loss} are no probabilities; give one-hot rows or integer labels")


def _check_indices(name: str, sample: Callable[..., Any], key: Any, phase: int) -> None:
    """Refuse an index beyond the end of the user's arrays, which JAX clips without a word."""
    from jax.experimental import checkify

    try:
        error, _ = checkify.checkify(lambda key: sample(key, phase), errors=checkify.index_checks)(key)
    except Exception:  # a sample outside of checkify's reach: the plain draw has succeeded
        return
    if message := error.get():
        raise UserError(f"task {name!r}: sample reads beyond the end of an array ({message.splitlines()[0]}); draw fewer rows")


def reads_clock(function: Any) -> bool:
    """Does a function's own code name a clock?"""

    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(const) for const in code.co_consts if isinstance(const, CodeType)))

    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and bool(CLOCKS & names(code))


# ---------------------------------------------------------------------------------------- networks


def check_network(spec: RunSpec, signature: Signature) -> None:
    """Refuse a network that cannot be trained right: weights not drawn by seed, no Site, wrong outputs (UserError)."""
    what, dtype = f"network {spec.network!r}", jnp.result_type(float)
    if not callable(networks[spec.network]):
        raise UserError(f"{what} is no function build(spec, d_in, d_out, rngs) or module class; register one")
    with calling(what):
        model = nnx.eval_shape(lambda: _module(spec, signature))
    x = jax.ShapeDtypeStruct((2, signature.d_in), dtype)
    used, tapes = _passed(spec, signature, x, (2, signature.d_out))
    if not noise.repeats(lambda x: _module(spec, signature)(x, _context()), x):  # type: ignore[operator]
        raise UserError(f"{what} is different each time it is traced; read no random state of NumPy or Python, and no counter")
    _check_weights(spec, signature, model, used)
    sites = [i for i, kind in enumerate(tapes) if kind is Site]
    if not sites:
        raise UserError(f"{what} has no Site, so none of its units is watched; apply its nonlinearities with relu_study's Site")
    if Dense not in tapes[: sites[0]]:
        raise UserError(f"{what} applies a Site before any Dense; put a Dense before its first Site")
    if getattr(model, "bounded", False):
        _check_bounded(spec, signature)


def _module(spec: RunSpec, signature: Signature, seed: int = 0) -> nnx.Module:
    model = networks[spec.network](spec, signature.d_in, signature.d_out, rngs=nnx.Rngs(seed))
    if not isinstance(model, nnx.Module):
        raise UserError(f"network {spec.network!r} returns {type(model).__name__}; return an nnx.Module")
    return model


def _context(**more: Any) -> Context:
    return Context({name: jnp.zeros(()) for name in KNOBS}, **more)


def _passed(spec: RunSpec, signature: Signature, x: Any, shape: tuple[int, ...]) -> tuple[set[Any], list[type]]:
    """The paths of the Dense modules that a forward pass applies, and the kinds on its tape."""
    used: set[Any] = set()
    kinds: list[type] = []

    def forward(x: Any) -> Any:
        model, ctx = _module(spec, signature), _context()
        out = model(x, ctx)  # type: ignore[operator]
        paths = {id(module): path for path, module in nnx.iter_modules(model)}
        used.update(paths[id(entry[0])] for entry in ctx.tape if isinstance(entry[0], Dense) and id(entry[0]) in paths)
        kinds.extend(Dense if isinstance(entry[0], Dense) else Site for entry in ctx.tape)
        return out

    with calling(f"network {spec.network!r}"):
        out = jax.eval_shape(forward, x)
    if getattr(out, "shape", None) != shape or not jnp.issubdtype(out.dtype, jnp.floating):
        found = f"{out.dtype} of shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
        raise UserError(
            f"network {spec.network!r} returns {found} for {shape[0]} examples; return floats of shape {shape}: (examples, d_out)"
        )
    return used, kinds


def _check_weights(spec: RunSpec, signature: Signature, model: nnx.Module, used: set[Any]) -> None:
    """Every weight is drawn by the run's seed (in a Dense), or is the same constant in every run."""
    what, owners = f"network {spec.network!r}", [p for p, m in nnx.iter_modules(model) if isinstance(m, Dense | Norm)]
    for path, variable in nnx.state(model).flat_state():
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            raise UserError(
                f"{what} keeps a {type(variable).__name__} in {_dotted(path)}, which runs do not train; use relu_study's Dense, "
                "Norm, Dropout and Site"
            )
    own = [
        path
        for path, _ in nnx.state(model, nnx.Param).flat_state()
        if not any(path[: len(owner)] == tuple(owner) for owner in owners)
    ]
    if own:
        with calling(what):
            one, two = (dict(nnx.state(_module(spec, signature, seed), nnx.Param).flat_state()) for seed in (0, 1))
        for path in own:
            a, b = (np.asarray(values[path][...]) for values in (one, two))
            kernel = sum(axis > 1 for axis in a.shape) > 1
            if kernel or not np.array_equal(a, b, equal_nan=True) or (a.size and (a != a.flat[0]).any()):
                raise UserError(
                    f"{what}: the weights {_dotted(path)} are not drawn by the run's seed, so all seeds would begin with "
                    "the same ones; use relu_study's Dense, whose weights the initializer draws"
                )
    idle = [p for p, m in nnx.iter_modules(model) if isinstance(m, Dense) and p not in used]
    if idle:
        raise UserError(f"{what} never applies its Dense {_dotted(idle[0])}, so its weights stay 0; apply it or leave it out")
    _check_kernels(spec, signature, [(*path, "kernel") for path, module in nnx.iter_modules(model) if isinstance(module, Dense)])


def _check_kernels(spec: RunSpec, signature: Signature, kernels: list[Any]) -> None:
    """Every kernel of a Dense differs between two seeds. An initialiser has a check of its own."""
    what, dtype = f"network {spec.network!r}", jnp.result_type(float)
    init = make_init(spec.but(initializer="he_normal"), signature.d_in, signature.d_out)
    knobs = {knob: jnp.asarray(getattr(RunSpec(), knob), dtype) for knob in KNOBS}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, signature.d_in)), dtype)
    with calling(what):
        one, two = (dict(init(jnp.uint32(seed), knobs, x).params.flat_state()) for seed in (0, 1))
    for path in kernels:
        if path in one and np.array_equal(one[path][...], two[path][...], equal_nan=True):
            raise UserError(
                f"{what}: the weights {_dotted(path)} are the same for two seeds; apply Dense as it is, and do not "
                "assign its kernel"
            )


def _dotted(path: Any) -> str:
    return ".".join(map(str, path)) or "itself"


def _check_bounded(spec: RunSpec, signature: Signature) -> None:
    what, dtype = f"network {spec.network!r} is declared bounded but", jnp.result_type(float)
    low = jnp.zeros(signature.d_in, dtype)

    def forward(x: Any) -> bool:
        columns = _module(spec, signature)(Columns(x.T), _context())  # type: ignore[operator]
        interval = _module(spec, signature)(Interval(low, low), _context())  # type: ignore[operator]
        kinds.extend((type(columns), type(interval)))
        return True

    kinds: list[type] = []
    with calling(f"{what} on Columns or an Interval"):
        jax.eval_shape(forward, jax.ShapeDtypeStruct((2, signature.d_in), dtype))
    if kinds != [Columns, Interval]:
        raise UserError(f"{what} does not pass Columns and Intervals on; leave `bounded` out")
