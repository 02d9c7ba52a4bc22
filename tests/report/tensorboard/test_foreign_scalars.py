"""TensorBoard folders of other tools: runs by subfolder, tags by pattern, scalars of PyTorch and of TensorFlow 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.record_writer import RecordWriter

from relu_study.errors import UserError
from relu_study.report.tensorboard.foreign_scalars import read_tensorboard


def simple(run: Path, **series: list[float]) -> None:
    """Write scalars as PyTorch's SummaryWriter does. Two underscores in a name are a slash."""
    with SummaryWriter(str(run)) as writer:
        for tag, values in series.items():
            for step, value in enumerate(values):
                writer.add_scalar(tag.replace("__", "/"), value, step * 10)


def as_tensors(run: Path, tag: str, values: list[float]) -> None:
    """Write scalars as TensorFlow 2's summary.scalar does."""
    run.mkdir(parents=True)
    writer = RecordWriter(str(run / "events.out.tfevents.1.host"))
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    for step, value in enumerate(values):
        tensor = TensorProto(dtype=1, float_val=[value])
        summary = Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=plugin)])
        writer.write(Event(step=step * 10, summary=summary).SerializeToString())
    writer.close()


def test_each_folder_with_events_is_a_run(tmp_path: Path) -> None:
    simple(tmp_path / "a", loss__train=[2.0, 1.0], lr=[0.1, 0.1])
    simple(tmp_path / "sweep" / "b", loss__train=[2.0, 1.5, 1.25])
    found = read_tensorboard(tmp_path, {"train_loss": "loss/train*"}, 2.0)
    assert list(found.histories) == ["a", "sweep/b"] and found.metrics == {"train_loss"}
    one, other = (stored.history for stored in found.histories.values())
    assert one.epochs.tolist() == [0, 10] and one.overall("train_loss").tolist() == [[2.0, 1.0]]
    assert other.overall("train_loss").tolist() == [[2.0, 1.5, 1.25]] and one.total_epochs == other.total_epochs == 20
    assert one.constant_loss.tolist() == [2.0]


def test_a_run_in_the_folder_itself_has_its_name(tmp_path: Path) -> None:
    simple(tmp_path / "one", loss=[1.0])
    assert list(read_tensorboard(tmp_path / "one", {"train_loss": "loss"}).histories) == ["one"]


def test_scalars_of_tensorflow_2(tmp_path: Path) -> None:
    as_tensors(tmp_path / "keras", "epoch_loss", [4.0, 2.0, 1.0])
    history = read_tensorboard(tmp_path, {"train_loss": "epoch_loss"}).histories["keras"].history
    assert history.overall("train_loss").tolist() == [[4.0, 2.0, 1.0]] and history.epochs.tolist() == [0, 10, 20]


def test_many_points_are_all_read(tmp_path: Path) -> None:
    simple(tmp_path / "long", loss=[1.0] * 20_000)
    assert len(read_tensorboard(tmp_path, {"train_loss": "loss"}).histories["long"].history) == 20_000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_scalar_ends_a_run(value: float, tmp_path: Path) -> None:
    simple(tmp_path / "a", loss=[1.0, value, 1.0])
    assert read_tensorboard(tmp_path, {"train_loss": "loss"}).histories["a"].history.finite.tolist() == [[True, False, False]]


def test_sites_by_tag_and_runs_without_a_tag(tmp_path: Path) -> None:
    simple(tmp_path / "a", loss=[1.0, 1.0], g__1=[0.1, 0.2], g__2=[0.3, 0.4])
    simple(tmp_path / "b", loss=[1.0])
    simple(tmp_path / "eval", accuracy=[1.0])
    found = read_tensorboard(tmp_path, {"train_loss": "loss", "grad_norm/in": "g/1", "grad_norm/out": "g/2"})
    assert found.histories["a"].history.sites == ("in", "out") and not found.histories["b"].history.has("grad_norm")
    assert found.skipped == ("eval",)


def test_errors_name_the_problem(tmp_path: Path) -> None:
    simple(tmp_path / "a", loss__train=[1.0], loss__train_mean=[1.0])
    with pytest.raises(UserError, match=r"'loss/\*' matches 2 tags of run 'a': loss/train, loss/train_mean. Narrow"):
        read_tensorboard(tmp_path, {"train_loss": "loss/*"})
    with pytest.raises(UserError, match=r"unknown scalar of .* 'los/train'. Did you mean loss/train"):
        read_tensorboard(tmp_path, {"train_loss": "los/train"})
    with pytest.raises(UserError, match="unknown metric 'los'"):
        read_tensorboard(tmp_path, {"los": "loss/train"})
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(UserError, match="has no TensorBoard event files"):
            read_tensorboard(tmp_path / place, {"train_loss": "loss"})
