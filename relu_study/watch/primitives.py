"""Elementwise primitives, and how each carries the dependence on a pre-activation.

Within a region every value has a class: `CONSTANT` does not depend on the pre-activation, `AFFINE` does by products with
and sums of constants, `SMOOTH` is curved (exp, square), `STEP` is piecewise constant (a comparison), and `DECISIVE` is a
nonlinearity that no statistic or softmax contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Dependence(IntEnum):
    """Dependence of a value on the pre-activation, from none to decisively nonlinear."""

    CONSTANT = 0
    AFFINE = 1
    SMOOTH = 2
    STEP = 3
    DECISIVE = 4


CONSTANT, AFFINE, SMOOTH, STEP, DECISIVE = Dependence

SUMS = {
    "add",
    "sub",
    "add_any",
    "neg",
    "copy",
    "copy_p",
    "real",
    "stop_gradient",
    "optimization_barrier",
    "reduce_precision",
    "name",
}
CURVED = {"exp", "exp2", "log", "expm1", "log1p", "integer_pow", "square", "sqrt", "pow", "rsqrt", "cbrt", "cosh", "sinh"}
COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "is_finite", "gt_to", "le_to", "lt_to", "eq_to"}
LOGICAL = {"and", "or", "not", "xor"}
NONLINEAR = {"max", "min", "clamp", "abs", "tanh", "logistic", "erf", "erfc", "erf_inv", "sign", "round", "floor", "ceil", "rem"}
NONLINEAR |= {"sin", "cos", "tan", "asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "lgamma", "digamma", "nextafter"}
NONLINEAR |= {"bessel_i0e", "bessel_i1e"}
ELEMENTWISE = SUMS | CURVED | COMPARISONS | LOGICAL | NONLINEAR | {"mul", "div", "select_n", "convert_element_type"}

PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin", "reduce"}
REDUCTIONS |= {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k", "reduce_xor"}
INVERSE_ROOTS = {"rsqrt", "sqrt", "pow"}  # a statistic's last step in a normalisation


def dependence(primitive: str, of: Sequence[Dependence], floating: bool) -> Dependence:
    """Return the dependence of an elementwise primitive's result, given its operands' and whether it is a float."""
    highest = max(of)
    if highest == CONSTANT:
        return CONSTANT
    if primitive in COMPARISONS:
        return STEP
    if primitive in LOGICAL:
        return highest
    if primitive == "convert_element_type":
        return highest if floating or highest in (STEP, DECISIVE) else STEP
    if primitive == "select_n":
        predicate, *cases = of
        if predicate == CONSTANT:
            return max(cases)
        return STEP if max(cases) in (CONSTANT, STEP) else DECISIVE
    if primitive == "mul":
        return _product(of)
    if primitive == "div":
        return of[0] if of[1] == CONSTANT else max(SMOOTH, _product(of))
    if primitive in SUMS:
        return DECISIVE if STEP in of and highest != STEP else highest
    return DECISIVE if primitive in NONLINEAR or highest >= STEP else SMOOTH


def _product(of: Sequence[Dependence]) -> Dependence:
    if min(of) == CONSTANT:
        return max(of)
    return DECISIVE if STEP in of or DECISIVE in of else SMOOTH
