"""TensorBoard's Custom Scalars, HParams and Histograms tabs, as summary values of a run's event file.

TensorBoard merges the layouts of all runs, so charts appear while only some configurations are written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Float, Integer
from tensorboardX.proto import api_pb2, layout_pb2, plugin_hparams_pb2, types_pb2
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

from relu_study.stats.histogram_bins import BINS, BINS_PER_SIDE, KINDS, MIN_EXPONENT, Range, edges, linear_edges
from relu_study.storage.configurations import Configuration
from relu_study.storage.quantities import MetricInfo

HEADLINE = ("val_loss", "train_loss", "dead_fraction", "certified_dead_fraction", "collapsed", "grad_norm")
KEPT_HISTOGRAMS = 100  # per tag: of more, TensorBoard drops some at random
_ZERO = BINS // 2  # the bin that counts exact zeros
_EDGES = np.stack([edges()[:-1], edges()[1:], np.zeros(BINS)], axis=1).astype(np.float32)
_LAYOUT, _SESSION = "custom_scalars__config__", "_hparams_/session_{}_info"  # tags required by TensorBoard


def layout(series: Collection[str], metrics: Mapping[str, MetricInfo]) -> Summary.Value:
    """Return the Custom Scalars tab: a margin chart for each of `series` (metric/site names with a mean and an interval).

    The first category, `headline`, is of whole networks. A closed category for each of the declared `metrics` follows.
    """
    tab = layout_pb2.Layout()
    headline = [f"{metric}/all" for metric in HEADLINE if f"{metric}/all" in series]
    _category(tab, "headline", {name: name.removesuffix("/all") for name in headline}, closed=False)
    for metric in (metric for metric, about in metrics.items() if about.sites or metric not in HEADLINE):
        # A metric without charts in this run keeps an empty category: TensorBoard loses charts that later runs
        # add to a category missing in the first run.
        _category(tab, metric, {name: name for name in series if name.partition("/")[0] == metric}, closed=True)
    return _tab(tab)


def line_charts(series: Collection[str], metrics: Iterable[str]) -> Summary.Value:
    """Return the Custom Scalars tab of a single run: one chart a metric, with a line for each of its sites."""
    tab = layout_pb2.Layout()
    category = tab.category.add(title="sites")
    for metric in metrics:
        chart = category.chart.add(title=metric)
        chart.multiline.tag.extend(f"^{re.escape(name)}$" for name in series if name.partition("/")[0] == metric)
    return _tab(tab)


def _tab(tab: layout_pb2.Layout) -> Summary.Value:
    content = TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=TensorShapeProto(), string_val=[tab.SerializeToString()])
    return _value(_LAYOUT, "custom_scalars", content)


def _category(tab: layout_pb2.Layout, title: str, charts: dict[str, str], closed: bool) -> None:
    category = tab.category.add(title=title, closed=closed)
    for name, shown in reversed(charts.items()):  # TensorBoard shows the last one first
        chart = category.chart.add(title=shown)
        chart.margin.series.add(value=f"{name}/mean", lower=f"{name}/lo", upper=f"{name}/hi")


def session(configuration: Configuration, factors: Iterable[str], group: str) -> Iterator[Summary.Value]:
    """Return the row of the HParams tab: every varied factor, with numbers as numbers, and the status of the runs.

    Success: all runs are stored and at least one is finite. Failure: none is finite. Running: some are missing.
    TensorBoard adds the last value of each tag. Sessions of one `group` share a row that averages each tag.
    """
    start = plugin_hparams_pb2.SessionStartInfo(group_name=group)
    for factor in factors:
        if (value := configuration.spec.get(factor)) is not None:  # None: an option that its components do not declare
            kind = "string_value" if isinstance(value, str) else "bool_value" if isinstance(value, bool) else "number_value"
            setattr(start.hparams[factor], kind, value)
    if len(configuration.run_ids) < configuration.num_requested:
        status = api_pb2.STATUS_RUNNING
    else:
        status = api_pb2.STATUS_SUCCESS if (configuration.status == "ok").any() else api_pb2.STATUS_FAILURE
    end = plugin_hparams_pb2.SessionEndInfo(status=status)
    for when, data in (("start", {"session_start_info": start}), ("end", {"session_end_info": end})):
        content = plugin_hparams_pb2.HParamsPluginData(**data).SerializeToString(deterministic=True)
        yield _value(_SESSION.format(when), "hparams", _numbers(np.zeros(0, np.float32)), content)


def axis_steps(epochs: Float[np.ndarray, " E"], scale: int = 1) -> Integer[np.ndarray, " E"]:
    """Return the TensorBoard steps of some epochs, rounded up. An epoch is `scale` steps."""
    return np.ceil(epochs if scale == 1 else np.round(epochs * scale, 6)).astype(int)


def histograms(configuration: Configuration, scale: int = 1) -> dict[int, list[Summary.Value]]:
    """Return step -> the histograms `pre/SITE`, `post/SITE` and `gradient/SITE` over all runs, with the steps of the scalars.

    A histogram spans the bins with counts and always has the bin of exact zero, which is [-2^-24, 2^-24] in TensorBoard. One with
    linear bins has all of them. Epochs without counts are left out. Of more than a hundred epochs, some in between are left out.
    """
    steps, by_step = axis_steps(configuration.epochs, scale), dict[int, list[Summary.Value]]()
    for kind in KINDS:
        for name in (name for name in configuration.histograms if name.startswith(f"{kind}:")):
            counts = configuration.histograms[name]
            last = {int(step): row for step, row in zip(steps, counts, strict=True) if row.any()}
            for step in _spread(list(last)):
                value = histogram(name.replace(":", "/"), last[step], configuration.bins.get(name))
                by_step.setdefault(step, []).append(value)
    return by_step


def histogram(tag: str, counts: Integer[np.ndarray, " 65"], span: Range | None = None) -> Summary.Value:
    """Return a histogram from its 65 counts, with bins at powers of two or linear ones over `span`."""
    return _value(tag, "histograms", _numbers(_buckets(counts, span)))


def _spread(steps: list[int]) -> list[int]:
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), KEPT_HISTOGRAMS)).round().astype(int)
    return [steps[i] for i in chosen]


def _buckets(counts: Integer[np.ndarray, " 65"], span: Range | None = None) -> Float[np.ndarray, "n 3"]:
    """Return left edge, right edge and count of each bucket."""
    if span is not None:
        return _linear_buckets(counts, *span)
    filled = np.flatnonzero(counts)
    first, last = (min(filled[0], _ZERO), max(filled[-1], _ZERO)) if len(filled) else (_ZERO, _ZERO)
    buckets = _EDGES[first : last + 1].copy()
    buckets[:, 2] = counts[first : last + 1]
    return buckets


def _linear_buckets(counts: Integer[np.ndarray, " 65"], low: float, high: float) -> Float[np.ndarray, "n 3"]:
    """Return the 64 linear bins, and that of exact zero if 0 is in the range or has counts: a narrow bucket at 0.

    The narrow bucket takes its width from its neighbours. A bin that contains 0 is split in two, its count shared by width.
    """
    borders, shares = linear_edges(low, high), np.delete(counts, _ZERO).astype(float)
    rows = list(zip(borders[:-1].tolist(), borders[1:].tolist(), shares.tolist(), strict=True))
    if not (low <= 0 <= high or counts[_ZERO]):
        return np.array(rows, np.float32)
    half = min(2.0**MIN_EXPONENT, (high - low) / (8 * BINS_PER_SIDE))
    buckets = [(-half, half, float(counts[_ZERO]))]
    for left, right, count in rows:
        parts = [(a, b) for a, b in ((left, min(right, -half)), (max(left, half), right)) if b - a > half]
        whole = sum(b - a for a, b in parts)
        buckets += [(a, b, count * (b - a) / whole) for a, b in parts]
    return np.array(sorted(buckets), np.float32)


def _numbers(values: Float[np.ndarray, "..."]) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in values.shape])
    return TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=values.astype("<f4").tobytes())


def _value(tag: str, plugin: str, content: TensorProto, about: bytes = b"") -> Summary.Value:
    said = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=about))
    return Summary.Value(tag=tag, metadata=said, tensor=content)
