"""The message about rows that the planned seeds cannot decide, against the verdicts of perfectly separated runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from small_draw_study import study as coins
from small_study import study as small
from verdict_cases import COIN, WAVE, loss_claim, stored

from relu_study.report.claim_rows import undecidable_rows
from relu_study.report.verdicts import evaluate_claims
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.runner.machine import local_machine
from relu_study.runner.prepare import prepare
from relu_study.runner.prepare_draws import request_draws
from relu_study.storage.declaration import Declaration, DeclaredConfiguration, parse_cell_declaration
from relu_study.study.claims import CellClaim, Claim, Target

DIRECTIONS = ("greater", "less", "equivalent")


def declared(claims: Sequence[Claim], targets: Sequence[Target] = (WAVE,), **seeds: int) -> Declaration:
    """Return a declaration with these claims and arms, by their numbers of seeds."""
    entries = [
        DeclaredConfiguration("main", arm, f"{arm}, {target.name}", {"target": target.name}, n)
        for arm, n in seeds.items()
        for target in targets
    ]
    nothing = {name: () for name in ("sections", "factors", "figures", "columns", "report_epochs", "tables")}
    given = {"configurations": tuple(entries), "targets": tuple(targets), "claims": tuple(claims)}
    return Declaration(title="", text="", seeds=1, metrics={}, **nothing, **given)


def rows_of(count: int, direction: str = "greater") -> list[Claim]:
    return [loss_claim(direction=direction) for _ in range(count)]


def verdicts(claims: Sequence[Claim], n: int) -> set[str]:
    """Return the verdicts of claims with n seeds per arm, from runs on which every row is as clear as it can be."""
    level = {"greater": 9.0, "less": -9.0, "equivalent": 1.0}[claims[0].direction]
    arms = {
        ("arm", "wave"): stored({"val_loss/all": level + np.linspace(0, 0.01, n), "collapsed/all": np.zeros(n)}),
        ("base", "wave"): stored({"val_loss/all": np.ones(n)}),
    }
    return {row["verdict"] for row in evaluate_claims(claims, arms, [WAVE]) if row["contrast"] != "overall"}


def hinted(message: str, noun: str) -> int:
    (number,) = re.findall(rf"at (?:least|most) ([\d,]+) {noun}s?\b", message)
    return int(number.replace(",", ""))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [1, 2, 6, 7, 40, 100])
def test_named_seeds_are_the_fewest_that_can_decide_a_row(count: int, direction: str) -> None:
    claims = rows_of(count, direction)
    enough = hinted(undecidable_rows(declared(claims, arm=2, base=2)), "seed")
    assert enough == math.floor(math.log2(2 * count / 0.05)) + 1
    assert verdicts(claims, enough) == {"confirmed"} and not undecidable_rows(declared(claims, arm=enough, base=enough))
    assert verdicts(claims, enough - 1) == {"inconclusive"}
    assert "no row can be" in undecidable_rows(declared(claims, arm=enough - 1, base=enough + 5))


@pytest.mark.parametrize("n", [6, 8, 10])
def test_named_rows_are_the_most_that_the_seeds_can_decide(n: int) -> None:
    most = hinted(undecidable_rows(declared(rows_of(60), arm=n, base=n)), "row")
    assert most == math.ceil(0.05 * 2 ** (n - 1)) - 1
    assert verdicts(rows_of(most), n) == {"confirmed"} and verdicts(rows_of(most + 1), n) == {"inconclusive"}


def test_message_has_two_sentences() -> None:
    assert undecidable_rows(declared(rows_of(40), arm=8, base=8)) == (
        "8 seeds give p = 0.00391 at best, and Holm's correction over 40 testable rows needs p < 0.000625: "
        "no row can be confirmed or refuted. Use at least 11 seeds, or at most 6 rows."
    )
    alone = undecidable_rows(declared([loss_claim(least_seeds=1)], arm=1, base=1))
    assert alone.startswith("1 seed gives p = 0.5 at best, and Holm's correction over 1 testable row needs p < 0.025: no row")
    assert alone.endswith("Use at least 6 seeds.")
    assert undecidable_rows(declared(rows_of(3), arm=1, base=1)) == "With 1 seed no claim is testable. Use at least 7 seeds."
    dead = [loss_claim(least_seeds=10)] * 8
    assert undecidable_rows(declared(dead, arm=8, base=9)) == "With 8 seeds no claim is testable. Use at least 10 seeds."


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shares_of_runs_have_the_limit_of_the_binomial_test(direction: str) -> None:
    against, margin = {"greater": (0.05, 0.05), "less": (0.2, 0.05), "equivalent": (0.1, 0.2)}[direction]
    claims = [loss_claim("arm", against, direction, margin, metric="collapsed", claim=f"C{i}") for i in range(3)]
    enough = hinted(undecidable_rows(declared(claims, arm=2)), "seed")

    def decides(n: int) -> bool:
        outcomes = [{("arm", "wave"): stored({"collapsed/all": np.arange(n) < k})} for k in range(n + 1)]
        p = [
            min(row["p_corrected"] for row in evaluate_claims(claims, arms, [WAVE]) if row["p_corrected"] > 0)
            for arms in outcomes
        ]
        return min(p) < 0.05

    assert decides(enough) and not decides(enough - 1)


def test_rows_with_enough_seeds_leave_more_to_the_others() -> None:
    few, many = rows_of(3), [loss_claim(arm="many", against="base") for _ in range(37)]
    message = undecidable_rows(declared([*few, *many], arm=6, many=12, base=12))
    assert (
        "6 seeds give p = 0.0156 at best" in message and "over 40 testable rows needs p < 0.00833: 3 of them cannot be" in message
    )
    assert message.endswith("Use at least 7 seeds.")
    arms = {"many": (9.0, 12), "arm": (9.0, 6), "base": (1.0, 12)}
    for n, expected in ((6, "inconclusive"), (7, "confirmed")):
        runs = {
            (arm, "wave"): stored({"val_loss/all": np.full(n if arm == "arm" else size, level)})
            for arm, (level, size) in arms.items()
        }
        rows = evaluate_claims([*few, *many], runs, [WAVE])
        assert {row["verdict"] for row in rows if row["contrast"] == "arm vs base"} == {expected}
        assert {row["verdict"] for row in rows if row["contrast"] == "many vs base"} == {"confirmed"}


def test_more_than_32_seeds_may_be_too_many() -> None:
    claims = rows_of(5000)
    message = undecidable_rows(declared(claims, arm=40, base=40))
    assert "40 seeds give p = 7.63e-06 at best" in message and message.endswith("Use 18 to 32 seeds, or at most 3,276 rows.")
    assert not undecidable_rows(declared(claims, arm=18, base=18)) and not undecidable_rows(declared(claims, arm=32, base=32))
    assert not undecidable_rows(declared(claims[:3276], arm=40, base=40))


def test_rows_without_runs_do_not_count() -> None:
    claims = [*rows_of(6), loss_claim(arm="skipped"), loss_claim(least_seeds=9), loss_claim(targets=("coin_flip",))]
    assert not undecidable_rows(declared(claims, arm=8, base=8))
    assert "8 testable rows" in undecidable_rows(declared([*rows_of(2), *rows_of(2)], (WAVE, COIN), arm=6, base=6))
    assert not undecidable_rows(declared([], arm=1))


def test_shares_of_draws_have_a_limit_and_means_have_none() -> None:
    of_shares = CellClaim("K", "It is fair", "several", "p=0.5, kind=plain", "heads", 0.5, "greater", 0.0, at=1)
    of_means = CellClaim("K", "It is 0", "several", "p=0.5, kind=plain", "height", 0.0, "greater", 0.0)

    def message(*claims: CellClaim, draws: int) -> str:
        study = type(coins)(coins.name, coins.title, coins.text, coins.experiments, claims).with_preset(draws=draws)
        return undecidable_rows(parse_cell_declaration(request_draws(study, local_machine()).declaration))

    assert message(of_shares, draws=5).startswith("5 draws give p = 0.0312 at best")
    assert message(of_shares, draws=5).endswith("Use at least 6 draws.") and not message(of_shares, draws=6)
    assert not message(of_means, draws=2)


class Stopped(Exception):
    """The end of a run before its first tile."""


class Lines(Callback):
    """Keeps the messages of a run, and stops it before training."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_start(self, plan, stored) -> None:
        raise Stopped

    def on_message(self, line) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("shard", [None, (1, 2)])
def test_run_gives_the_message_before_training_and_stores_none(shard, tmp_path) -> None:
    lines = Lines()
    with pytest.raises(Stopped):
        runner.run(small, tmp_path, seeds=2, callback=lines, shard=shard)
    job = prepare(small.with_preset(seeds=2), None)
    assert lines.lines == [job.undecidable_rows]
    assert job.undecidable_rows.startswith("2 seeds give p = 0.25 at best")
    assert job.undecidable_rows[:20] not in (tmp_path / "manifest.json").read_text()
    assert not prepare(small.with_preset(seeds=6), None).undecidable_rows
