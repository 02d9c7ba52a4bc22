"""Flax models and plain functions as one form: a function of parameters, other state, and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from relu_study.errors import UserError


class Model(NamedTuple):
    """A model as `function(params, state, *inputs)`; only `params` are differentiated."""

    function: Callable[..., Any]
    params: Any
    state: Any


def as_function(model: Any, call: Mapping[str, Any]) -> Model:
    """Return a model as a function. The caller's module is not changed.

    Args:
      model: an `nnx.Module`, read in evaluation mode, `(linen_module, variables)`, or `(fn, params)`.
      call: keyword arguments of the model.

    Raises:
      UserError: for anything else.
    """
    if isinstance(model, nnx.Module):
        return _nnx(model, call)
    if isinstance(model, tuple) and len(model) == 2:
        function, params = model
        if isinstance(function, nn.Module):
            return _linen(function, params, call)
        if callable(function):
            return Model(lambda params, state, *inputs: function(params, *inputs, **call), params, {})
    given = "a tuple" if isinstance(model, tuple) else f"{type(model).__name__}"
    action = "Pass one of these."
    if isinstance(model, nn.Module):
        action = "Pass the Linen module with its variables: (module, variables)."
    elif callable(model):
        action = "Pass the function with its parameters: (function, params)."
    raise UserError(f"a model is an nnx.Module, (linen_module, variables) or (function, params), not {given}. {action}")


def _nnx(model: nnx.Module, call: Mapping[str, Any]) -> Model:
    copy = nnx.clone(model)
    copy.eval()
    graph, params, state = nnx.split(copy, nnx.Param, ...)

    def function(params: Any, state: Any, *inputs: Any) -> Any:
        return nnx.merge(graph, params, state)(*inputs, **call)

    return Model(function, params, state)


def _linen(module: nn.Module, variables: Any, call: Mapping[str, Any]) -> Model:
    if not isinstance(variables, Mapping) or "params" not in variables:
        names = f"the collections {sorted(variables)}" if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
        raise UserError(
            f"the variables of the Linen module {type(module).__name__} are {names}, without 'params'. "
            "Pass the result of module.init."
        )
    state = {name: collection for name, collection in variables.items() if name != "params"}

    def function(params: Any, state: Any, *inputs: Any) -> Any:
        out = module.apply({"params": params, **state}, *inputs, **call)
        return out[0] if call.get("mutable") else out  # without the updated collections

    return Model(function, variables["params"], state)
