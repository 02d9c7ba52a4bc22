"""Verdicts on runs with known numbers: the number of a run, and untestable rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from verdict_cases import COIN, NAN, NOISE, SEEDS, WAVE, ask, loss_claim, losses, stored

from relu_study.errors import UserError
from relu_study.report.verdicts import evaluate_claims, verdict
from relu_study.stats.hypothesis_tests import holm
from relu_study.storage.configurations import Configuration

# the rule


@pytest.mark.parametrize(
    ("direction", "margin", "interval", "expected"),
    [
        ("greater", 0.05, (0.06, 0.2), "confirmed"),
        ("greater", 0.05, (-0.2, 0.04), "refuted"),
        ("greater", 0.05, (0.04, 0.2), "inconclusive"),
        ("greater", -0.05, (-0.04, 0.01), "confirmed"),  # no worse than
        ("greater", -0.05, (-0.2, -0.06), "refuted"),
        ("less", 0.05, (-0.2, -0.06), "confirmed"),
        ("less", 0.05, (-0.04, 0.2), "refuted"),
        ("less", 0.05, (-0.06, -0.04), "inconclusive"),
        ("less", -0.05, (-0.1, 0.04), "confirmed"),
        ("less", 0.0, (0.0, 0.0), "inconclusive"),
        ("equivalent", 0.05, (-0.04, 0.04), "confirmed"),
        ("equivalent", 0.05, (0.06, 0.07), "refuted"),
        ("equivalent", 0.05, (-0.07, -0.06), "refuted"),
        ("equivalent", 0.05, (-0.06, 0.06), "inconclusive"),
        ("equivalent", 0.05, (0.04, 0.06), "inconclusive"),
        ("greater", 0.05, (1 - 0.95, 1 - 0.95), "inconclusive"),  # 0.05 but for rounding, on either side of it
        ("greater", 0.05, (float(np.float32(0.05)), 0.2), "inconclusive"),
        *((direction, 0.05, (NAN, NAN), "inconclusive") for direction in ("less", "greater", "equivalent")),
    ],
)
def test_verdict_of_an_interval(direction: str, margin: float, interval: tuple[float, float], expected: str) -> None:
    assert verdict(direction, margin, *interval) == expected


def test_verdict_refuses_an_unknown_direction() -> None:
    with pytest.raises(UserError, match="less"):
        verdict("lesser", 0.1, 0, 1)


# how a run's number is formed


def test_row_has_effect_interval_and_corrected_p() -> None:
    row = ask(loss_claim(margin=0.1), arm=losses(1.5), base=stored({"val_loss/all": 1.0 - NOISE**2}))
    difference = np.float32(1.5 + NOISE).astype(float) - np.float32(1.0 - NOISE**2)
    interval = scipy.stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    np.testing.assert_allclose((row["effect"], row["ci_lo"], row["ci_hi"]), (difference.mean(), *interval), rtol=1e-9)
    assert (row["n"], row["p"], row["p_corrected"]) == (16, 2.0**-16, 2.0**-15)
    assert (row["verdict"], row["target"], row["metric"], row["site"], row["epoch"]) == (
        "confirmed",
        "wave",
        "val_loss",
        "all",
        "last",
    )
    assert row["contrast"] == "arm vs base" and "lies wholly above 0.1" in row["reason"]
    opposite = ask(loss_claim(direction="less"), arm=losses(1.5), base=losses(1.0))
    assert (opposite["verdict"], opposite["p"]) == ("refuted", 2.0**-16)
    assert "opposite" in opposite["reason"]


def test_runs_are_paired_by_seed_and_not_by_row() -> None:
    spread = np.linspace(0, 10, 12)  # far wider than the effect
    arm = stored({"val_loss/all": (spread + 0.3)[::-1]}, seeds=np.arange(12)[::-1])
    base = stored({"val_loss/all": np.append(spread[2:], [50.0, 60.0])}, seeds=[*range(2, 12), 90, 91])
    row = ask(loss_claim(), arm=arm, base=base)
    assert row["n"] == 10 and row["effect"] == pytest.approx(0.3, abs=1e-5) and row["ci_hi"] - row["ci_lo"] < 1e-4


@pytest.mark.parametrize(("epoch", "expected"), [("last", 3.0), (0, 1.0), (1.0, 5.0), ("min", 1.0), ("max", 5.0), (12.5, None)])
def test_epoch_of_the_number(epoch: Any, expected: float | None) -> None:
    arm = stored({"val_loss/all": np.array([1.0, 5.0, 3.0]) + NOISE[:, None]})
    row = ask(loss_claim(against=0.0, epoch=epoch), arm=arm)
    if expected is None:
        assert row["verdict"] == "not testable" and "epoch 12.5 of 'arm' was not measured" in row["reason"]
    else:
        assert row["effect"] == pytest.approx(expected, abs=1e-6)
        assert row["epoch"] == (epoch if isinstance(epoch, str) else f"{epoch:g}")


def test_against_epoch_compares_an_arm_with_itself() -> None:
    arm = stored({"val_loss/all": np.array([1.0, 5.0, 3.0]) + NOISE[:, None]})
    row = ask(loss_claim(against="arm", against_epoch=1, direction="less"), arm=arm)
    assert row["effect"] == pytest.approx(-2) and row["contrast"] == "arm at the last epoch vs arm at epoch 1"


def test_against_site_compares_two_sites_of_an_arm() -> None:
    sites = {"dead_fraction/site_1": 0.2 + NOISE, "dead_fraction/site_2": 0.9 + NOISE, "dead_fraction/site_3": 0.7 + NOISE}
    claim = loss_claim(against="arm", metric="dead_fraction", site="last", against_site="site_1")
    row = ask(claim, arm=stored(sites, sites=3))
    assert row["effect"] == pytest.approx(0.5) and row["verdict"] == "confirmed"
    assert row["contrast"] == "arm at its last site vs arm at site_1" and row["site"] == "last"
    without = ask(replace(claim, against_site="site_4"), arm=stored(sites, sites=3))
    assert without["reason"] == "not testable because dead_fraction/site_4 of 'arm' was not measured"
    with pytest.raises(UserError, match="a constant has no site"):
        loss_claim(against=0.0, against_site="site_1")


def test_min_and_max_skip_empty_epochs_and_drop_nonfinite_runs() -> None:
    values = np.array([NAN, 5.0, 3.0]) + NOISE[:, None]  # like update_norm, which is empty at epoch 0
    values[3, 2] = NAN
    bad = np.where(np.arange(SEEDS) == 3, 25.0, NAN)
    row = ask(loss_claim(metric="update_norm", against=0.0, epoch="min"), arm=stored({"update_norm/all": values}, bad=bad))
    assert row["n"] == 15 and row["effect"] == pytest.approx(3 - NOISE[3] / 15, abs=1e-6)
    assert "1 of 16 seeds left out as nonfinite or empty" in row["reason"]


def test_over_divides_by_a_site_and_last_is_the_deepest() -> None:
    values = {f"grad_norm/site_{k}": k + NOISE for k in (1, 2, 9, 10)}
    row = ask(
        loss_claim(metric="grad_norm", against=1.0, site="site_1", over="last", direction="less"), arm=stored(values, sites=10)
    )
    assert row["effect"] == pytest.approx(np.mean((1 + NOISE) / (10 + NOISE)) - 1, abs=1e-6)
    assert row["site"] == "site_1 over last"
    row = ask(loss_claim(metric="grad_norm", against=0.0, site="last", over="site_9"), arm=stored(values, sites=10))
    assert row["effect"] == pytest.approx(np.mean((10 + NOISE) / (9 + NOISE)), abs=1e-6)


def test_over_is_a_ratio_at_each_epoch_and_drops_undefined_ratios() -> None:
    top, below = np.tile([1.0, 6.0, 9.0], (SEEDS, 1)), np.tile([1.0, 2.0, 9.0], (SEEDS, 1))
    arm = stored({"grad_norm/site_1": top, "grad_norm/site_2": below}, sites=2)
    row = ask(loss_claim(metric="grad_norm", against=0.0, site="site_1", over="last", epoch="max"), arm=arm)
    assert row["effect"] == 3  # 6 / 2 at epoch 1; the ratio of the two maxima is 1
    below[:2] = 0
    arm = stored({"grad_norm/site_1": top, "grad_norm/site_2": below}, sites=2)
    row = ask(loss_claim(metric="grad_norm", against=0.0, site="site_1", over="last"), arm=arm)
    assert (row["n"], row["effect"]) == (14, 1)


def test_equals_counts_runs() -> None:
    ever = np.tile([1.0, 1.0, 1.0], (SEEDS, 1))
    ever[:4, 1] = 0.96875  # four runs have a gradient at epoch 1
    claim = loss_claim(metric="zero_gradient_fraction", against=0.5, epoch="min", equals=1.0, margin=0.05)
    row = ask(claim, arm=stored({"zero_gradient_fraction/all": ever}))
    expected = scipy.stats.binomtest(12, 16).proportion_ci(0.95, method="wilson")
    assert row["effect"] == pytest.approx(0.25)
    np.testing.assert_allclose((row["ci_lo"], row["ci_hi"]), np.array(expected) - 0.5)
    assert row["p"] == pytest.approx(scipy.stats.binomtest(12, 16, 0.55, alternative="greater").pvalue)
    assert row["contrast"] == "share of runs at 1, arm vs 0.5"
    # Against another arm it is a paired difference of indicators; a value that float32 cannot hold exactly is still met.
    tenth = stored({"zero_gradient_fraction/all": np.full(SEEDS, 0.1)})
    claim = loss_claim(metric="zero_gradient_fraction", equals=0.1, direction="equivalent", margin=0.05)
    assert ask(claim, arm=tenth, base=tenth)["effect"] == 0
    assert ask(claim, arm=tenth, base=stored({"zero_gradient_fraction/all": np.full(SEEDS, 0.2)}))["effect"] == 1


def test_collapsed_against_a_constant_is_a_share_and_a_fraction_is_not() -> None:
    none = np.zeros(SEEDS)
    arm = stored({"collapsed/all": none, "dead_fraction/all": none})
    collapsed = ask(loss_claim(metric="collapsed", against=0.0, direction="equivalent", margin=0.05), arm=arm)
    assert collapsed["verdict"] == "inconclusive" and collapsed["p"] == pytest.approx(0.95**16) and collapsed["ci_hi"] > 0.1
    fraction = ask(loss_claim(metric="dead_fraction", against=0.0, direction="equivalent", margin=0.05), arm=arm)
    assert fraction["verdict"] == "confirmed" and fraction["ci_lo"] == fraction["ci_hi"] == 0


def test_excess_and_relative_are_in_units_of_the_target() -> None:
    row = ask(loss_claim(against=0.0, excess=True, relative=True, margin=0.1), COIN, arm=losses(0.3))
    assert row["effect"] == pytest.approx(0.05) and row["margin"] == pytest.approx(0.025) and row["verdict"] == "confirmed"
    assert row["contrast"].endswith("above the floor")
    assert ask(loss_claim(against=0.0, excess=True, margin=0.1), COIN, arm=losses(0.3))["verdict"] == "refuted"


def test_several_arms_are_averaged_seed_by_seed() -> None:
    tanh = stored({"val_loss/all": 1 + 30 * NOISE})
    sigmoid = stored({"val_loss/all": 3 - 30 * NOISE[:12]})  # cancels in the mean; seeds 12 to 15 are not there
    row = ask(loss_claim(arm=("tanh", "sigmoid")), tanh=tanh, sigmoid=sigmoid, base=stored({"val_loss/all": np.ones(SEEDS)}))
    assert (row["n"], row["contrast"]) == (12, "the mean of tanh and sigmoid vs base")
    assert row["effect"] == pytest.approx(1) and row["ci_hi"] - row["ci_lo"] < 1e-6


def test_against_dead_site_keeps_the_seeds_that_end_with_one() -> None:
    first, second = np.full((SEEDS, 3), 0.5), np.full((SEEDS, 3), 0.5)
    first[:6, 2] = 1.0
    second[6:12, 2] = 1.0
    second[12:, 0] = 1.0  # dead at first, revived: does not count
    base = stored({"val_loss/all": 2 + np.arange(SEEDS), "dead_fraction/site_1": first, "dead_fraction/site_2": second}, sites=2)
    options = {"direction": "less", "against_dead_site": True}
    row = ask(loss_claim(**options, least_seeds=12), arm=losses(1.0), base=base)
    assert row["n"] == 12 and row["effect"] == pytest.approx(-1 - 5.5 + NOISE[:12].mean(), abs=1e-6)
    assert row["contrast"] == "arm vs base with a dead site"
    row = ask(loss_claim(**options, least_seeds=13), arm=losses(1.0), base=base)
    assert (
        row["verdict"] == "not testable"
        and row["n"] == 12
        and "the seeds left to compare are 12 and 13 are needed" in row["reason"]
    )


def test_off_floor_reads_the_loss_of_the_arm() -> None:
    values = {"grad_norm/all": np.ones(SEEDS)}
    claim = loss_claim(metric="grad_norm", against=0.0, off_floor=0.05)
    row = ask(claim, COIN, arm=stored(values | {"val_loss/all": np.full(SEEDS, 0.26)}))
    assert row["verdict"] == "not testable" and "0.01 above the floor" in row["reason"]
    assert ask(claim, COIN, arm=stored(values | {"val_loss/all": np.full(SEEDS, 0.27)}))["verdict"] == "confirmed"


# not testable, never an exception


@pytest.mark.parametrize(
    ("options", "arms", "why"),
    [
        ({}, {"base": losses(1.0)}, "arm 'arm' has no stored runs on target 'wave'"),
        ({}, {"arm": losses(1.0)}, "arm 'base' has no stored runs"),
        ({"metric": "accuracy"}, {"arm": losses(1.0), "base": losses(1.0)}, "accuracy/all of 'arm' was not measured"),
        ({"site": "site_4"}, {"arm": losses(1.0), "base": losses(1.0)}, "val_loss/site_4 of 'arm' was not measured"),
        ({"site": "last"}, {"arm": losses(1.0, sites=0), "base": losses(1.0)}, "'arm' has no sites"),
        ({}, {"arm": losses(NAN), "base": losses(1.0)}, "val_loss/all of 'arm' is empty or nonfinite in every run"),
        ({"epoch": 7}, {"arm": losses(1.0), "base": losses(1.0)}, "epoch 7 of 'arm' was not measured"),
        ({"against_epoch": 7}, {"arm": losses(1.0), "base": losses(1.0)}, "epoch 7 of 'base' was not measured"),
        ({"against_dead_site": True}, {"arm": losses(1.0), "base": losses(1.0)}, "dead fraction of its sites was not measured"),
        ({"against": 0.0, "against_dead_site": True}, {"arm": losses(1.0)}, "a constant has no dead site"),
        ({}, {"arm": losses(1.0, seeds=range(50, 66)), "base": losses(1.0)}, "the seeds left to compare are 0 and 2 are needed"),
        (
            {"least_seeds": 0},
            {"arm": losses(1.0, seeds=range(50, 66)), "base": losses(1.0)},
            "the seeds left to compare are 0 and 1 are needed",
        ),
        ({"metric": "grad_norm", "off_floor": 0.1, "against": 0.0}, {"arm": stored({"grad_norm/all": NOISE})}, "val_loss/all"),
        (
            {},
            {"arm": stored({"val_loss/all": [1.0, NAN, 2.0]}), "base": stored({"val_loss/all": [1.0, 1.0, NAN]})},
            "the seeds left to compare are 1 and 2 are needed; 2 of 3 seeds left out as nonfinite or empty",
        ),
    ],
)
@pytest.mark.parametrize("direction", ["greater", "equivalent"])
def test_missing_data_is_not_testable(options: dict[str, Any], arms: dict[str, Configuration], why: str, direction: str) -> None:
    row = ask(loss_claim(direction=direction, **options), **arms)
    assert row["verdict"] == "not testable" and why in row["reason"] and row["reason"].startswith("not testable because")
    assert all(math.isnan(row[name]) for name in ("effect", "ci_lo", "ci_hi", "p", "p_corrected"))


@pytest.mark.parametrize("metric", ["val_loss", "collapsed"])
def test_one_seed_is_inconclusive_even_when_the_claim_allows_it(metric: str) -> None:
    row = ask(loss_claim(against=0.0, least_seeds=1, margin=-5.0, metric=metric), arm=stored({f"{metric}/all": [1.0]}))
    assert (row["verdict"], row["n"]) == ("inconclusive", 1) and "one seed gives no interval" in row["reason"]


def test_few_seeds_are_inconclusive_with_the_number_needed() -> None:
    for n in range(2, 6):
        row = ask(loss_claim(), arm=stored({"val_loss/all": 2 + NOISE[:n] / 100}), base=stored({"val_loss/all": np.ones(n)}))
        assert row["ci_lo"] > 0.9 and row["verdict"] == "inconclusive"
        assert "but the corrected p" in row["reason"] and "6 seeds are enough" in row["reason"]
    row = ask(loss_claim(), arm=stored({"val_loss/all": 2 + NOISE[:6] / 100}), base=stored({"val_loss/all": np.ones(6)}))
    assert row["verdict"] == "confirmed" and row["p_corrected"] == 2 / 2**6


def test_no_claims_and_no_targets() -> None:
    assert evaluate_claims([], {}, [WAVE]) == []
    assert evaluate_claims([loss_claim()], {}, []) == []


# a study of several rows


def test_claim_applies_to_its_targets_or_all() -> None:
    arms = {(name, target.name): losses(level) for name, level in (("arm", 1.5), ("base", 1.0)) for target in (WAVE, COIN)}
    asked = [("A", ("wave",)), ("A", ("coin_flip",)), ("B", ())]
    rows = evaluate_claims([loss_claim(claim=name, targets=on) for name, on in asked], arms, [WAVE, COIN])
    found = [(row["claim"], row["target"]) for row in rows if row["contrast"] != "overall"]
    assert found == [("A", "wave"), ("A", "coin_flip"), ("B", "wave"), ("B", "coin_flip")]


def test_overall_rows_follow_their_claim_and_holm_counts_testable_rows() -> None:
    arms = {"arm": losses(1.5), "base": losses(1.0), "same": losses(1.0 + 1e-4)}
    configurations = {(name, target): arm for name, arm in arms.items() for target in ("wave", "coin_flip")}
    del configurations["same", "coin_flip"]
    declared = [
        loss_claim(claim="A"),
        loss_claim(claim="B", direction="equivalent"),
        loss_claim(claim="A", arm="same", direction="equivalent"),
        loss_claim(claim="D", arm="same", margin=0.0),
        loss_claim(claim="E", metric="accuracy"),
    ]
    rows = evaluate_claims(declared, configurations, [WAVE, COIN])
    told = [(row["claim"], row["contrast"], row["target"], row["verdict"]) for row in rows]
    assert told == [
        ("A", "arm vs base", "wave", "confirmed"),
        ("A", "arm vs base", "coin_flip", "confirmed"),
        ("A", "same vs base", "wave", "confirmed"),
        ("A", "same vs base", "coin_flip", "not testable"),
        ("A", "overall", "", "confirmed"),
        ("B", "arm vs base", "wave", "refuted"),
        ("B", "arm vs base", "coin_flip", "refuted"),
        ("B", "overall", "", "refuted"),
        ("D", "same vs base", "wave", "confirmed"),
        ("D", "same vs base", "coin_flip", "not testable"),
        ("D", "overall", "", "confirmed"),
        ("E", "arm vs base", "wave", "not testable"),
        ("E", "arm vs base", "coin_flip", "not testable"),
        ("E", "overall", "", "not testable"),
    ]
    tested = [row for row in rows if row["contrast"] != "overall" and row["verdict"] != "not testable"]
    assert len(tested) == 6
    np.testing.assert_array_equal([row["p_corrected"] for row in tested], holm([min(1, 2 * row["p"]) for row in tested]))
    assert rows[4]["reason"] == "of 4 rows 3 confirmed, 1 not testable"
    assert json.dumps(rows) == json.dumps(evaluate_claims(declared, configurations, [WAVE, COIN]))


def test_one_inconclusive_row_leaves_the_whole_claim_open() -> None:
    arms = {
        ("arm", "wave"): losses(1.5),
        ("base", "wave"): losses(1.0),
        ("vague", "wave"): stored({"val_loss/all": 1 + 40 * NOISE}),
    }
    rows = evaluate_claims([loss_claim(), loss_claim(arm="vague", direction="less")], arms, [WAVE])
    assert [row["verdict"] for row in rows] == ["confirmed", "inconclusive", "inconclusive"]


def test_correction_over_many_rows_prevents_confirmation() -> None:
    rng = np.random.default_rng(0)
    arms = {
        ("arm", "wave"): stored({"val_loss/all": 1.014 + 3 * NOISE}),
        ("base", "wave"): stored({"val_loss/all": np.ones(SEEDS)}),
    }
    vague = {(f"v{i}", "wave"): stored({"val_loss/all": 1 + rng.normal(size=SEEDS)}) for i in range(30)}
    alone = evaluate_claims([loss_claim(margin=0.0)], arms, [WAVE])[0]
    among = evaluate_claims(
        [loss_claim(margin=0.0), *(loss_claim(arm=name, margin=0.0) for name, _ in vague)], arms | vague, [WAVE]
    )[0]
    assert alone["verdict"] == "confirmed" and among["verdict"] == "inconclusive"
    assert among["p"] == alone["p"] and among["ci_lo"] > 0 and "but the corrected p" in among["reason"]


def test_a_relative_constant_is_in_units_of_the_targets_variance() -> None:
    """An arm at the best constant's loss equals 1 variance for any target."""
    row = ask(loss_claim(against=1.0, relative=True, margin=0.1, direction="equivalent"), COIN, arm=losses(0.25))
    assert abs(row["effect"]) < 1e-6 and row["verdict"] == "confirmed" and np.isclose(row["margin"], 0.025)
    row = ask(loss_claim(against=1.0, relative=True, margin=0.1, direction="less"), COIN, arm=losses(0.1))
    assert np.isclose(row["effect"], -0.15) and row["verdict"] == "confirmed"
