"""Figures with more content than usual, for tests of legibility."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure as Picture

from relu_study.report.figures import curves, depth, forest, heatmap, histograms
from relu_study.report.figures.curves import Band, Row
from relu_study.report.figures.forest import Effect
from relu_study.stats.histogram_bins import BINS, BINS_PER_SIDE
from relu_study.storage.quantities import MetricInfo

WAVE, COIN = "target: wave", "target: coin_flip"
LONG = "where activation=relu,selu, learning_rate>=0.001, dead_fraction/site_1<0.5, seed=0,1,2,3,4,5,6,7,8,9,10,11"


def crowded() -> list[Callable[[], Picture]]:
    """Return figures of 12 arms, 3 targets and 26 epochs on log and linear scales, and a forest of 30 rows on 3 targets."""
    rng = np.random.default_rng(0)
    arms = [*(f"arm number {i}" for i in range(9)), "net B, selu, AlphaDropout", "U(-1, 0) weights", "relu"]
    names = ["certified always on fraction,\nsite_1\nN = 8,192 probe examples", "grad norm, site_1\n(L2 norm)", "val loss"]

    def band(i: int, log: bool) -> Band:
        mean = 10 ** (-rng.random(26) * i) if log else 1e-4 * rng.random(26).cumsum() * i
        return Band(np.arange(26.0), mean, mean * 0.8, mean * 1.2, 16, 8192)

    rows = [
        Row(name, [{arm: band(i, k == 1) for i, arm in enumerate(arms)} for _ in range(3)], log=k == 1)
        for k, name in enumerate(names)
    ]
    rows.append(Row("post mean", [rows[2].cells[0], {}, rows[2].cells[0]]))
    shares = [{arm: replace(band(1, False), probe_examples=140_000) for arm in arms[:2]}]
    about = MetricInfo(unit="fraction", low=0, high=1)
    shown = ["dead_fraction", "certified_dead_fraction", "revived_fraction", "certified_revived_fraction"]
    many = [curves._row(f"{name}/all", shares, False, {name: about}) for name in shown]
    columns = [WAVE, "target: sum", COIN]
    contrast = "400k rows, equal updates vs 200k rows, equal updates with a dead site, above the floor"
    effects = [
        Effect(
            f"difference in {('dead fraction', 'val loss (loss)')[k % 2]}", f"C{k}  {contrast[: 12 + 2 * k]}", column,
            x := rng.normal() if k % 4 < 3 else np.nan, x - 0.3, x + 0.2, (0.05, np.inf), list(forest.VERDICTS)[k % 4],
        )
        for k in range(30)
        for column in columns
    ]  # fmt: skip
    counted = [replace(row, cells=[{k: replace(b, count="n=31/32") for k, b in c.items()} for c in row.cells]) for row in rows]
    return [
        lambda: curves.curves(rows, columns, arms, "mean and 95 % interval over"),
        lambda: curves.curves([Row("val loss", rows[2].cells[:1])], [WAVE], arms, "mean and 95 % interval over"),
        lambda: forest.forest(effects),
        lambda: forest.forest([e for e in effects if e.column == WAVE]),
        lambda: forest.forest(effects[:1]),
        lambda: curves.curves(many, [WAVE], arms[:2], "mean and 95 % interval over"),
        lambda: curves.curves(counted[:2], columns, arms, "mean and 95 % interval over", LONG),
        lambda: forest.forest([replace(e, count="n=31/32") for e in effects], LONG),
        *(lambda few=few: depth.fans(fans_of(arms[-few:]), arms[-few:], LONG) for few in (1, 4, 5)),
        *(lambda few=few: histograms.histograms(spreads_of(arms[-few:]), arms[-few:], LONG) for few in (1, 4, 5)),
        *(
            lambda cells=cells: heatmap.maps(*boards_of(columns, arms, *cells), LONG)
            for cells in ((12, 5), (3, 2), (2, 12), (1, 1))
        ),
    ]


def fans_of(arms: list[str]) -> list[depth.FanGroup]:
    """Return fans over three sites at two epochs, with a gradient of exactly zero, an arm without values, and a missing run."""
    rng = np.random.default_rng(1)
    groups = []
    for epoch in ("epoch 0", "last epoch"):
        cells = {arm: depth.QuantileFan(np.sort(10 ** (-3 * rng.random((5, 3))), axis=0), 32) for arm in arms}
        cells[arms[0]] = replace(cells[arms[0]], count="n=31/32", quantiles=np.zeros((5, 1)))
        if len(arms) > 1:
            cells.pop(arms[-1])
        groups.append(depth.FanGroup(f"grad norm (L2 norm)\ntarget: coin_flip,\n{epoch}", "grad_norm", cells, log=True))
    return groups


def spreads_of(arms: list[str]) -> list[histograms.ValueHistograms]:
    """Return nonnegative outputs and gradients of both signs over 26 epochs; the first arm ends nonfinite in all runs."""
    rng = np.random.default_rng(2)
    groups = []
    for label, first in (("post, site_1\n(a unit's output)", BINS_PER_SIDE), ("gradient, site_1\n(loss per parameter)", 6)):
        cells = {}
        for arm in arms:
            counts = rng.random((26, BINS)) ** 8
            counts[:, :first] = counts[:, -6:] = 0
            cells[arm] = histograms.ValueHistogram(np.arange(26.0), counts / counts.sum(axis=1, keepdims=True), 32)
        cells[arms[0]].shares[20:] = np.nan
        cells[arms[0]] = replace(cells[arms[0]], count="n=0/32")
        groups.append(histograms.ValueHistograms(f"{label}\ntarget: coin_flip", label, cells))
    return groups


def boards_of(
    columns: list[str], arms: list[str], rows: int, cols: int
) -> tuple[list[heatmap.Heatmaps], list[str], heatmap.Factor, heatmap.Factor]:
    """Return maps of a loss and of a fraction, with empty, undefined and incomplete cells."""
    rng = np.random.default_rng(3)
    known = np.ones((rows, cols), bool)
    known[1:, -1:] = False
    losses, shares = 10 ** (-9 * rng.random((rows, cols))), rng.random((rows, cols))
    shares[1:, :1] = np.nan
    counts = [["n=31/32" if (i + j) % 3 == 0 else "" for j in range(cols)] for i in range(rows)]
    groups = [
        heatmap.Heatmaps(
            "val loss\nlast epoch\nlower is better", dict.fromkeys(columns, heatmap.Heatmap(losses, known, counts)), True, False
        ),
        heatmap.Heatmaps(
            "certified dead fraction, all sites\nepoch 25\nlower is better\nN = 8,192 probe examples",
            dict.fromkeys(columns, heatmap.Heatmap(shares, known, counts)),
        ),
    ]
    return groups, columns, ("arm", arms[-rows:]), ("learning rate", [f"{10.0 ** -(j + 1):g}" for j in range(cols)])
