"""Flax models, training states and plain functions as one form: a function of parameters, other state, and inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from relu_study.errors import UserError

FIELDS = {"step", "apply_fn", "params", "tx", "opt_state", "graphdef"}  # of a training state; further ones are collections
Arrays = tuple[Any, Any]  # parameters and other state


class Model(NamedTuple):
    """A model as `function(params, state, *inputs)`; only `params` are differentiated."""

    function: Callable[..., Any]
    params: Any
    state: Any
    read: Callable[[Any], Arrays]  # params and state of a later version of the model, given in the same form


def as_function(model: Any, call: Mapping[str, Any]) -> Model:
    """Return a model as a function. The caller's module is not changed.

    Args:
      model: an `nnx.Module`, read in evaluation mode, by itself, in an `nnx.ModelAndOptimizer`, with its optimiser in a tuple,
        or as `(graphdef, state, ...)`; `(linen_module, variables)`; a Flax `TrainState`, with further collections as fields; or
        `(fn, params)`.
      call: keyword arguments of the model.

    Raises:
      UserError: for anything else.
    """
    if isinstance(module := _module(model), nnx.Module):
        return _nnx(module, model, call)
    if hasattr(model, "params") and callable(getattr(model, "apply_fn", None)):
        return _train_state(model, call)
    if isinstance(model, tuple) and len(model) == 2:
        function, params = model
        if isinstance(function, nn.Module):
            return _linen(function, params, call)
        if callable(function):
            return Model(lambda params, state, *inputs: function(params, *inputs, **call), params, {}, _second(lambda p: (p, {})))
    raise _unknown(model)


def _unknown(model: Any) -> UserError:
    given = "a tuple" if isinstance(model, tuple) else f"{type(model).__name__}"
    action = "Pass one of these."
    if isinstance(model, nn.Module):
        action = "Pass the Linen module with its variables: (module, variables)."
    elif isinstance(model, nnx.Optimizer):
        action = "Pass the module with its optimizer: (model, optimizer)."
    elif isinstance(model, Mapping) and "params" in model:
        action = "Pass the variables with their Linen module: (module, variables)."
    elif callable(model):
        action = "Pass the function with its parameters: (function, params)."
    return UserError(
        f"a model is an nnx.Module, (linen_module, variables), a TrainState or (function, params), not {given}. {action}"
    )


def _second(read: Callable[[Any], Arrays]) -> Callable[[Any], Arrays]:
    """Return a reader of a pair (function, arrays) that also takes the arrays without the function."""

    def read_pair(given: Any) -> Arrays:
        is_pair = isinstance(given, tuple) and len(given) == 2 and (isinstance(given[0], nn.Module) or callable(given[0]))
        return read(given[1] if is_pair else given)

    return read_pair


# --------------------------------------------------------------------------------------------- NNX


def _module(model: Any) -> Any:
    """Return the NNX module of an optimiser, of a pair with one, or of a split module; else the model itself."""
    if isinstance(model, nnx.ModelAndOptimizer):
        return model.model
    if isinstance(model, tuple) and model and isinstance(model[0], nnx.GraphDef):
        return _module(nnx.merge(*model))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], nnx.Optimizer):
        return model[0]
    if hasattr(model, "params") and isinstance(getattr(model, "graphdef", None), nnx.GraphDef):
        return nnx.merge(model.graphdef, model.params, *_collections(model).values())
    return model


def _nnx(module: nnx.Module, given: Any, call: Mapping[str, Any]) -> Model:
    copy = nnx.clone(module)
    copy.eval()
    graph, params, state = nnx.split(copy, nnx.Param, ...)
    given_graph = given[0] if isinstance(given, tuple) and isinstance(given[0], nnx.GraphDef) else None

    def function(params: Any, state: Any, *inputs: Any) -> Any:
        return nnx.merge(graph, params, state)(*inputs, **call)

    def read(model: Any) -> Arrays:
        if given_graph is not None and isinstance(model, nnx.State):
            model = given_graph, model
        if not isinstance(module := _module(model), nnx.Module):
            raise _unknown(model)
        _, params, state = nnx.split(module, nnx.Param, ...)
        return params, state

    return Model(function, params, state, read)


# ------------------------------------------------------------------------------------------- Linen


def _linen(module: nn.Module, variables: Any, call: Mapping[str, Any]) -> Model:
    return _applied(module.apply, f"the Linen module {type(module).__name__}", variables, call, lambda given: given)


def _train_state(model: Any, call: Mapping[str, Any]) -> Model:
    """Return a training state as a function: of its variables if `apply_fn` is a Linen module's, else of its parameters."""
    apply = model.apply_fn
    method = apply.func if isinstance(apply, functools.partial) else apply
    module = getattr(method, "__self__", None)
    if isinstance(module, nn.Module):
        return _applied(apply, f"the Linen module {type(module).__name__}", _variables(model), call, _variables)
    return Model(
        lambda params, state, *inputs: apply(params, *inputs, **call), model.params, {}, lambda given: (_params(given), {})
    )


def _params(model: Any) -> Any:
    if not hasattr(model, "params"):
        raise _unknown(model)
    return model.params


def _variables(model: Any) -> dict[str, Any]:
    params = _params(model)
    params = params if isinstance(params, Mapping) and "params" in params else {"params": params}
    return {**params, **_collections(model)}


def _collections(model: Any) -> dict[str, Any]:
    """Return the fields that a subclass of a training state adds, for example `batch_stats`."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in FIELDS]
    return {name: value for name in names if isinstance(value := getattr(model, name), Mapping | nnx.State)}


def _applied(
    apply: Callable[..., Any], what: str, variables: Any, call: Mapping[str, Any], variables_of: Callable[[Any], Any]
) -> Model:
    def split(variables: Any) -> Arrays:
        if not isinstance(variables, Mapping) or "params" not in variables:
            names = f"the collections {sorted(variables)}" if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
            raise UserError(f"the variables of {what} are {names}, without 'params'. Pass the result of module.init.")
        return variables["params"], {name: collection for name, collection in variables.items() if name != "params"}

    def function(params: Any, state: Any, *inputs: Any) -> Any:
        out = apply({"params": params, **state}, *inputs, **call)
        return out[0] if call.get("mutable") else out  # without the updated collections

    return Model(function, *split(variables), _second(lambda given: split(variables_of(given))))
