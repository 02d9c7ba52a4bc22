"""Second-layer units off on all of R^d against a linear program per cell; signal death against the product formula."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import scores
from scipy import optimize
from tiers import tiered

from relu_study.components.registry import statistics
from relu_study.components.untrained.symmetric import _off_everywhere
from relu_study.errors import UserError


def theory(name, **factors):
    entry = statistics[name]
    (found,) = entry.theory(entry.cell(**factors)).values()
    return np.asarray(found.value)


def off_by_programs(planes: np.ndarray, outgoing: np.ndarray, bias: float) -> bool:
    """Is the largest value in every cell of the first layer's arrangement at most 0?"""
    w, a = planes[:, :-1], planes[:, -1]
    for on in product((False, True), repeat=len(w)):
        sign = np.where(on, 1.0, -1.0)
        slope, height = (outgoing * on) @ w, bias + (outgoing * on) @ a
        best = optimize.linprog(-slope, A_ub=-sign[:, None] * w, b_ub=sign * a, bounds=(None, None))
        if best.status == 3 or (best.status == 0 and height - best.fun > 1e-7):  # unbounded, or positive
            return False
    return True


FEW = [(1, 3, True), (2, 2, True)]


@pytest.mark.parametrize(("d_in", "width", "biased"), tiered([*FEW, (1, 4, False), (2, 4, True), (3, 4, False)], *FEW))
def test_off_everywhere_against_linear_programs(d_in, width, biased):
    random = np.random.default_rng([d_in, width])
    planes = random.normal(size=(16, width, d_in + 1))
    planes[..., -1] *= biased
    outgoing = random.normal(size=(16, width)) - 0.8  # mostly negative, so that both answers are common
    bias = -np.abs(random.normal(size=16)) * biased
    found = np.asarray(jax.jit(jax.vmap(_off_everywhere))(jnp.float32(planes), jnp.float32(outgoing), jnp.float32(bias)))
    wanted = [off_by_programs(*net) for net in zip(planes, outgoing, bias, strict=True)]
    assert 3 <= np.sum(wanted) <= 13
    assert found.tolist() == wanted


def test_off_everywhere_in_obvious_cases():
    """-|x| + c: two units on a line, outgoing -1 each."""
    planes, off = np.float32([[1.0, 0.0], [-1.0, 0.0]]), jax.jit(_off_everywhere)
    cases = {(-1.0, -1.0): (-1.0, 0.0, 1e-6, 1.0), (-1.0, 1e-6): (-1e3,), (-1.0, 0.0): (0.0,)}
    found = [bool(off(planes, np.float32(outgoing), np.float32(c))) for outgoing, heights in cases.items() for c in heights]
    assert found == [True, True, False, False, False, True]  # the last but one rises without end on the left


@pytest.mark.parametrize(
    ("d_in", "width", "wanted"), [(1, 1, 1 / 4), (3, 2, 1 / 8), (1, 2, 3 / 16), (2, 3, 5 / 64), (3, 4, 9 / 256), (1, 3, np.nan)]
)
def test_papers_probabilities(d_in, width, wanted):
    assert theory("second_layer", d_in=d_in, width=width) == pytest.approx(wanted, nan_ok=True)
    if width <= d_in + 1:
        assert theory("second_layer", initializer="he_normal", d_in=d_in, width=width) == pytest.approx(2 * wanted)


def test_zero_bias_on_a_line_by_counting_signs():
    """Each ray is off by a fair coin unless no unit looks its way."""
    for width in (1, 2, 5):
        rays = [len({*signs}) for signs in product((-1, 1), repeat=width)]
        assert theory("second_layer", initializer="he_uniform", width=width) == pytest.approx(np.mean(0.5 ** np.array(rays)))


@pytest.mark.parametrize(
    ("initializer", "d_in", "width"),
    tiered(
        [
            ("he_normal_random_bias", 1, 2),
            ("he_normal_random_bias", 3, 2),
            ("pytorch_default", 2, 3),
            ("he_normal", 1, 5),
            ("he_uniform", 2, 3),
        ],
        ("he_normal_random_bias", 3, 2),
        ("he_normal", 1, 5),
    ),
)
def test_second_layer_units_agree_with_theory(initializer, d_in, width):
    assert abs(scores("second_layer", 30_000, initializer=initializer, d_in=d_in, width=width)["off"]) < 4.5


def test_signals_die_by_their_widths():
    assert theory("signal_death", widths="1-2-3") == pytest.approx([1 / 2, 1 - 3 / 8, 1 - 21 / 64])
    assert np.all(np.abs(scores("signal_death", 30_000, initializer="pytorch_default", widths="3-1-2")["dead"]) < 4.5)


@pytest.mark.parametrize(
    ("name", "factors", "said"),
    [
        ("second_layer", {"d_in": 4}, "d_in must be at most 3"),
        ("second_layer", {"width": 0}, "width must be a whole number"),
        ("second_layer", {"initializer": "orthogonal"}, "independent, symmetric"),
        ("second_layer", {"initializer": "negative_uniform"}, "independent, symmetric"),
        ("signal_death", {"widths": "8-x"}, "8-4-8"),
        ("signal_death", {"widths": "8-0"}, "8-4-8"),
        ("signal_death", {"widths": ""}, "8-4-8"),
        ("signal_death", {"initializer": "he_norm"}, "he_normal"),
    ],
)
def test_invalid_cell_is_refused(name, factors, said):
    with pytest.raises(UserError, match=said):
        statistics[name].cell(**factors)
