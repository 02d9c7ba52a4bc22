"""Marks of table entries (best, tied, better or worse than the baseline) on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from relu_study.report.tables.entries import Entry, Group, Mark, RunLookup, format_entry, notes, rank_entries

SEEDS = 16
NOISE = np.random.default_rng(0).normal(0, 1, SEEDS)
TINY = np.random.default_rng(1).normal(0, 1e-3, SEEDS)


def cell(values: np.ndarray, n: int | None = None) -> Entry:
    finite = values[np.isfinite(values)]
    return Entry(float(finite.mean()), 0.0, 1.0, n or len(values), len(finite), True, values)


BEST, NEAR, FAR = cell(NOISE), cell(NOISE + TINY - TINY.mean() + 1e-4), cell(NOISE + 1)


def said(group: Group) -> list[Mark]:
    return rank_entries([group])[0]


def test_best_is_bold_and_indistinguishable_entries_are_tied() -> None:
    found = said(Group("lower", [FAR, NEAR, BEST]))
    assert found == [Mark(), Mark(tied=True), Mark(best=True)]
    found = said(Group("higher", [FAR, NEAR, BEST]))
    assert found == [Mark(best=True), Mark(), Mark()]


def test_pairing_by_seed_separates_overlapping_entries() -> None:
    # The seeds differ by 1 and the cells by 0.01: only pairs separate them.
    assert scipy.stats.ttest_ind(NOISE, NOISE + 0.01).pvalue > 0.9
    assert said(Group("lower", [BEST, cell(NOISE + 0.01)])) == [Mark(best=True), Mark()]


def test_no_best_without_direction_or_difference() -> None:
    assert said(Group("lower", [BEST, BEST])) == [Mark(), Mark()]
    assert said(Group("none", [BEST, FAR], baseline=0)) == [Mark(), Mark()]


def test_the_only_cell_without_nonfinite_runs_is_the_best() -> None:
    holes = np.where(np.arange(SEEDS) == 3, np.nan, NOISE - 5)
    assert said(Group("lower", [cell(holes), FAR])) == [Mark(), Mark(best=True)]
    absent = Entry(math.nan, math.nan, math.nan, SEEDS, 0, False, np.full(SEEDS, np.nan))
    assert said(Group("lower", [absent, FAR])) == [Mark(), Mark()]  # nothing to be better than


def test_entry_with_nonfinite_runs_is_neither_best_nor_tied() -> None:
    holes = np.where(np.arange(SEEDS) == 3, np.nan, NOISE - 5)
    assert said(Group("lower", [cell(holes), BEST, NEAR])) == [Mark(), Mark(best=True), Mark(tied=True)]


def test_against_the_baseline() -> None:
    found = said(Group("lower", [BEST, NEAR, FAR], baseline=1))
    assert [mark.versus for mark in found] == ["", "", "worse"]
    found = said(Group("higher", [BEST, NEAR, FAR], baseline=1))
    assert [mark.versus for mark in found] == ["", "", "better"]


def test_p_is_corrected_over_the_whole_table() -> None:
    # p = 2 * 2^-6 = 1/32 for six pairs of one sign: below 0.05 by itself, not if it is one of two questions.
    low, high = cell(np.arange(6.0)), cell(np.arange(6.0) + 1)
    one = Group("lower", [low, high], baseline=0)
    assert rank_entries([one]) == [[Mark(best=True), Mark(versus="worse")]]
    assert rank_entries([one, one]) == [[Mark(best=True), Mark(tied=True)]] * 2


def test_entries_from_the_summary_are_not_compared() -> None:
    plain = [Entry(1.0, 0.9, 1.1, 8, 8, True), Entry(2.0, 1.9, 2.1, 8, 8, True)]
    assert said(Group("lower", plain, baseline=1)) == [Mark(best=True), Mark()]


def test_cells_of_runs_by_seed_with_what_is_missing() -> None:
    frame = pd.DataFrame(
        {
            "config_id": ["a", "a", "b", "b", "c", "c"],
            "seed": [0, 1, 1, 0, 0, 1],
            "val_loss/all": np.array([1, 3, 20, np.nan, np.nan, np.nan], np.float32),
            "collapsed/all": np.array([1, 0, 0, np.nan, np.nan, np.nan], np.float32),
            "dead_fraction/site_2": np.array([np.nan, np.nan, 0.5, np.nan, np.nan, np.nan], np.float32),
        }
    )
    runs = RunLookup(frame)
    half = scipy.stats.t.ppf(0.975, 1) * 1
    a = runs.cell("a", "val_loss", "all")
    assert (a.mean, a.n, a.n_finite, a.whole, a.defined) == (2, 2, 2, True, True)
    assert (a.lo, a.hi) == pytest.approx((2 - half, 2 + half))
    np.testing.assert_array_equal(runs.values("b", "val_loss/all"), [np.nan, 20])  # by seed, not by row
    b = runs.cell("b", "val_loss", "all")
    assert (b.mean, b.n, b.n_finite, b.whole) == (20, 2, 1, False) and math.isnan(b.lo)
    assert not runs.cell("a", "dead_fraction", "site_2").defined  # it has no such site
    assert runs.cell("c", "dead_fraction", "site_2").defined  # nothing of it is known
    low, high = scipy.stats.binomtest(1, 2).proportion_ci(0.95, "wilson")
    share = runs.cell("a", "collapsed", "all")
    assert (share.mean, share.lo, share.hi) == pytest.approx((0.5, low, high))
    assert (runs.cell("nowhere", "val_loss", "all").n, runs.cell("nowhere", "val_loss", "all").defined) == (0, False)
    odd = RunLookup(frame, (frame["seed"] == 1).to_numpy())
    assert (odd.cell("a", "val_loss", "all").mean, odd.cell("a", "val_loss", "all").n) == (3, 1)


def test_the_text_of_a_cell() -> None:
    whole = Entry(0.5, 0.4, 0.6, 32, 32, True)
    assert format_entry(whole, "val_loss") == "0.50 ± 0.10"
    assert format_entry(whole, "val_loss", Mark(tied=True, versus="worse")) == "0.50 ± 0.10 ≈•"
    assert format_entry(whole, "collapsed", Mark(versus="better")) == "0.5 [0.4, 0.6] ◦"
    assert format_entry(Entry(0.5, 0.4, 0.6, 32, 31, True), "val_loss") == "0.50 ± 0.10 (n=31/32)"
    assert format_entry(Entry(math.nan, math.nan, math.nan, 32, 0, True), "val_loss") == "- (n=0/32)"
    assert format_entry(Entry(math.nan, math.nan, math.nan, 32, 0, False), "val_loss") == "-"
    assert format_entry(Entry(0.5, math.nan, math.nan, 1, 1, True), "val_loss") == "0.5"


def test_notes_explain_the_marks_that_occur() -> None:
    bare = " ".join(notes([Mark()], [Entry(1.0, 0.9, 1.1, 8, 8, True)], ["val_loss"], "over n = 8 seeds", "column"))
    assert bare == "Mean ± half width of the 95 % interval over n = 8 seeds."
    every = [Mark(best=True), Mark(tied=True), Mark(versus="better"), Mark(versus="worse")]
    full = " ".join(notes(every, [Entry(1.0, 0.9, 1.1, 8, 7, True)], ["val_loss", "collapsed"], "over n = 8 seeds", "column"))
    for part in (
        "For collapsed the share of runs",
        "n=k/m",
        "Bold: the best of its column",
        "≈: not",
        "◦ better, • worse",
        "Holm",
    ):
        assert part in full
