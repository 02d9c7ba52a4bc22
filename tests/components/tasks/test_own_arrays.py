"""Tasks from arrays, data frames and files: their splits, classes, fingerprints and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from relu_study import RunSpec, Task, task_from_arrays
from relu_study.components.registry import ours, tasks
from relu_study.components.tasks.digits import images
from relu_study.engine import check_tasks, compilation, tile_data, train_tile
from relu_study.engine.state import Data, MeasureConfig
from relu_study.errors import UserError
from relu_study.study.fingerprint import essence, fingerprint

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4)).astype(np.float32)
LABELS = np.arange(30) % 3
ALL = MeasureConfig(val_examples=None)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.load()
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))


def mine(*arrays: Any, **words: Any) -> Task:
    return task_from_arrays("mine", *arrays, **words)(RunSpec(task="mine"))


def rows_of(task: Task, seed: int = 0) -> np.ndarray:
    assert task.split is not None
    return np.asarray(task.split(jax.random.key(seed), 0))


def drawn(seeds: int = 3, **fields: Any) -> Data:
    compilation.clear()
    tile_data.shared_table.cache_clear()
    return tile_data.draw([RunSpec(task="mine", seed=seed, **fields) for seed in range(seeds)], 0, jax.devices()[0], ALL)


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(("rows", "share", "val"), [(30, 0.1, 3), (1797, 0.2, 360), (10, 0.25, 3), (2, 0.5, 1), (7, 0.001, 1)])
def test_share_is_rounded_up(rows: int, share: float, val: int) -> None:
    x = np.arange(float(rows))[:, None]
    for fixed in (False, True):
        assert mine(x, x, val=share, fixed=fixed).signature[:2] == (rows - val, val)


def test_seed_draws_a_disjoint_and_complete_split() -> None:
    task = mine(X, LABELS)
    assert task.signature[:6] == (24, 6, 4, 3, "cross_entropy", ("accuracy", "balanced_accuracy"))
    assert not task.fixed and task.box == (X.min(), X.max()) and len({rows_of(task, seed).tobytes() for seed in range(5)}) == 5
    assert np.array_equal(rows_of(task, 1), rows_of(task, 1))
    for seed in range(5):
        assert sorted(rows_of(task, seed)) == list(range(30))


def test_fixed_split_is_the_same_for_all_seeds() -> None:
    task = mine(X, LABELS, fixed=True)
    assert task.fixed and task.signature[:2] == (24, 6) and len({rows_of(task, seed).tobytes() for seed in range(5)}) == 1
    assert sorted(rows_of(task)) == list(range(30)) and task.table is not None
    assert sorted(map(tuple, task.table[0])) == sorted(map(tuple, X)), "every row is there once"
    places = {row.tobytes(): label for row, label in zip(X, LABELS)}
    assert all(places[row.tobytes()] == label for row, label in zip(*task.table)), "each with its label"


def test_validation_pair_is_kept() -> None:
    task = mine(X[:20], LABELS[:20], val=(X[20:], LABELS[20:]))
    assert task.fixed and task.signature[:2] == (20, 10) and task.table is not None
    assert np.array_equal(task.table[0], X) and np.array_equal(task.table[1], LABELS) and list(rows_of(task)) == list(range(30))


@pytest.mark.parametrize("pair", [False, True])
def test_fewer_rows_are_drawn_by_the_seed(pair: bool) -> None:
    words = {"val": (X[20:], LABELS[20:])} if pair else {}
    entry = task_from_arrays("mine", X[:20] if pair else X, LABELS[:20] if pair else LABELS, **words)
    assert entry.rows == 30
    few = entry(RunSpec(task="mine", rows=15))
    assert few.signature[:2] == ((5, 10) if pair else (12, 3)) and not few.fixed
    chosen = [rows_of(few, seed) for seed in range(4)]
    assert all(len(set(rows)) == 15 for rows in chosen) and len({rows.tobytes() for rows in chosen}) == 4
    if pair:
        assert all(list(rows[5:]) == list(range(20, 30)) and max(rows[:5]) < 20 for rows in chosen)
    with pytest.raises(UserError, match=r"task mine has 30 rows, not rows=31. Leave rows out, or set fewer"):
        entry(RunSpec(task="mine", rows=31))


def test_rows_are_gathered_from_one_table() -> None:
    task_from_arrays("mine", X, LABELS)
    data = drawn()
    assert data.table.shape == (30, 7) and data.train.shape == (3, 24) and data.val.shape == (3, 6)
    for seed in range(3):
        x = np.concatenate([data.rows(part[seed]) for part in (data.train, data.val)])
        assert sorted(map(tuple, x[:, :4])) == sorted(map(tuple, X))
        assert all((X[i] == x[:, :4]).all(axis=1).any() for i in range(30))
        assert np.array_equal(x[:, 4:].argmax(axis=1), [LABELS[(row[:4] == X).all(axis=1).argmax()] for row in x])


def test_table_gives_the_same_rows_as_the_drawn_digits() -> None:
    pixels, classes = images()
    task_from_arrays("mine", pixels, classes.argmax(axis=1))
    data, device = drawn(), jax.devices()[0]
    wanted = tile_data.draw([RunSpec(task="digits", seed=seed) for seed in range(3)], 0, device, ALL)
    for seed in range(3):
        for part, rows in ((data.train, wanted.train), (data.val, wanted.val)):
            assert np.array_equal(data.rows(part[seed]), rows[seed])


def test_training_on_a_table_gives_the_numbers_of_drawn_rows() -> None:
    pixels, classes = images()
    task_from_arrays("mine", pixels, classes.argmax(axis=1))
    compilation.clear()
    tile_data.shared_table.cache_clear()
    fields = {"width": 8, "epochs": 1, "initializer": "he_normal"}
    few = MeasureConfig(histograms=False, metrics=("train_loss", "val_loss"))
    table, rows = (
        train_tile.train_tile(
            [RunSpec(task=task, seed=seed, **fields) for seed in (0, 3)], 2, measure_config=few, keep_params=True
        )
        for task in ("mine", "digits")
    )
    for name in ("metric:train_loss/all", "metric:val_loss/all", "metric:val_accuracy/all", "param:output.kernel"):
        assert np.array_equal(table[name], rows[name]), name


# ------------------------------------------------------------------------------------------- kinds of rows


def test_labels_of_every_kind_are_sorted_classes() -> None:
    names = np.array(["cat", "ant", "bee"])
    for y in (LABELS * 5 - 5, names[LABELS], list(names[LABELS]), LABELS == 1, pd.Series(names[LABELS]), LABELS[:, None]):
        task = mine(X, y)
        assert task.signature.loss == "cross_entropy" and task.table is not None
        assert np.array_equal(task.table[1], np.unique(np.ravel(np.asarray(y)), return_inverse=True)[1])
    for categories in (["bee", "ant", "cat"], [2.5, 0.5, 1.5]):
        y = pd.Series(np.array(categories)[LABELS]).astype("category")
        table = mine(X, y).table
        assert table is not None and np.array_equal(table[1], np.unique(np.asarray(y), return_inverse=True)[1])
    assert mine(X, np.arange(30) % 6).signature.metrics == ("accuracy", "balanced_accuracy", "top5_accuracy")


def test_floats_are_a_regression() -> None:
    for y in (X[:, 0], X[:, :1], pd.Series(X[:, 0])):
        task = mine(X, y)
        assert task.signature[:6] == (24, 6, 4, 1, "squared_error", ("r2",)) and task.table is not None
        assert np.array_equal(task.table[1], X[:, :1])
    assert mine(X, X[:, :2]).signature.d_out == 2


def test_images_sequences_and_integers() -> None:
    images = RNG.integers(256, size=(30, 6, 5, 3)).astype(np.uint8)
    signature = mine(images, LABELS).signature
    assert (signature.d_in, signature.input_shape, signature.input_dtype) == (90, (6, 5, 3), "float")
    assert mine(RNG.normal(size=(30, 7, 2)), LABELS).signature.input_shape == (7, 2)
    whole = mine(images[:, 0, :, 0], LABELS)
    assert whole.signature.input_dtype == "float" and whole.signature.input_shape == () and drawn().table.dtype == np.float32
    x, y = whole.sample(jax.random.key(0), 0)
    assert x.dtype == np.float32 and np.array_equal(x, images[rows_of(whole), 0, :, 0]) and y.dtype == np.int32


def test_tokens_stay_integers() -> None:
    x = RNG.integers(9, size=(30, 5))
    task = mine(x, LABELS, tokens=True)
    assert task.signature.inputs == jax.ShapeDtypeStruct((5,), np.int32) and task.box is None
    positions = mine(x, (x > 4).astype(int), tokens=True, classes=2)
    assert positions.signature.outputs.shape == (5, 2) and positions.signature.d_out == 10
    data = drawn()
    assert data.table[0].dtype == data.table[1].dtype == np.int32 and np.array_equal(data.table[0], x)
    assert mine(x, LABELS, classes=7).signature.d_out == 7


def test_centred_inputs_have_mean_0() -> None:
    entry = task_from_arrays("mine", X + 3, LABELS)
    task = entry(RunSpec(task="mine", inputs="centred"))
    assert task.table is not None and np.abs(task.table[0].mean(axis=0)).max() < 1e-6
    assert np.allclose(task.table[0], X - X.mean(axis=0), atol=1e-5) and task.box == (task.table[0].min(), task.table[0].max())
    fixed = task_from_arrays("mine", X[:20], LABELS[:20], val=(X[20:] + 1, LABELS[20:]))(RunSpec(inputs="centred"))
    assert fixed.table is not None and np.abs(fixed.table[0][:20].mean(axis=0)).max() < 1e-6
    assert np.allclose(fixed.table[0][20:], X[20:] + 1 - X[:20].mean(axis=0), atol=1e-5)


def test_later_changes_of_the_arrays_change_nothing() -> None:
    x, y = X.copy(), LABELS.copy()
    task = mine(x, y)
    x[:] = 0
    y[:] = 0
    assert task.table is not None and np.array_equal(task.table[0], X) and np.array_equal(task.table[1], LABELS)
    with pytest.raises(ValueError, match="read-only"):
        task.table[0][0] = 1


@pytest.mark.parametrize("words", [{}, {"fixed": True}, {"val": (X[:7], LABELS[:7])}, {"tokens": True}, {"inputs": "centred"}])
def test_task_keeps_the_contract_of_tasks(words: dict[str, Any]) -> None:
    fields = {"inputs": words.pop("inputs")} if "inputs" in words else {}
    task_from_arrays("mine", RNG.integers(5, size=(30, 4)) if "tokens" in words else X, LABELS, **words)
    assert check_tasks.check_task(RunSpec(task="mine", rows=30, **fields)) == []


# ------------------------------------------------------------------------------------------- files and fingerprints


def test_files_give_the_rows_of_the_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X[:20], y=LABELS[:20], x_test=X[20:], y_test=LABELS[20:])
    frame = pd.DataFrame(X.astype(float), columns=list("abcd")).assign(label=np.array(["u", "v", "w"])[LABELS])
    frame.to_csv(tmp_path / "a.csv", index=False)
    wanted = mine(X, LABELS).table
    for task in (
        mine(tmp_path / "a.npz", val=("x_test", "y_test")),
        mine(str(tmp_path / "a.npz"), "y", inputs="x", val=(X[20:], LABELS[20:])),
        mine(tmp_path / "a.csv", "label"),
        mine(frame, "label"),
        mine(frame[:20], "label", val=(frame[20:], "label")),
        mine(frame.drop(columns="label"), LABELS),
    ):
        assert task.table is not None and wanted is not None
        assert np.allclose(task.table[0], wanted[0], atol=1e-6) and np.array_equal(task.table[1], wanted[1])
    nullable = pd.DataFrame(
        {"a": pd.array([1, 2, 3, 4], "Int64"), "b": [True, False, True, True], "y": pd.array([0, 1, 0, 1], "Int8")}
    )
    table = mine(nullable, "y", val=0.5).table
    assert table is not None and np.array_equal(table[0], [[1, 1], [2, 0], [3, 1], [4, 1]]) and list(table[1]) == [0, 1, 0, 1]


def mark() -> str:
    return fingerprint(essence(tasks["mine"]))["whole"]


def test_changed_rows_change_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=LABELS)
    task_from_arrays("mine", path)
    first = mark()
    assert not ours(tasks["mine"]) and "unverified" not in fingerprint(essence(tasks["mine"]))
    tasks["mine"](RunSpec(task="mine", inputs="centred")).sample(jax.random.key(0), 0)  # use changes nothing
    assert mark() == first
    task_from_arrays("mine", X, LABELS)
    assert mark() == first, "the rows count, not their place"
    changed = X.copy()
    changed[29, 3] += 1e-6
    np.savez(path, x=changed, y=LABELS)
    for arrays, words in (((path,), {}), ((X, LABELS[::-1]), {}), ((X, LABELS), {"val": 0.3}), ((X, LABELS), {"fixed": True})):
        task_from_arrays("mine", *arrays, **words)
        assert mark() != first


# ------------------------------------------------------------------------------------------- errors

TEXTS = np.array(["a"] * 30)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "one axis": ((X[:, 0], LABELS), {}, r"x has shape \(30,\). Give one row per example, such as x\[:, None\]"),
    "no rows": ((X[:0], LABELS[:0]), {}, r"x has shape \(0, 4\)"),
    "no columns": ((X[:, :0], LABELS), {}, r"x has shape \(30, 0\)"),
    "ragged": (([[1.0], [2.0, 3.0]], [0, 1]), {}, "x is no array"),
    "masked": ((np.ma.array(X, mask=X > 1), LABELS), {}, "x has masked values. Remove these rows"),
    "texts as inputs": ((TEXTS[:, None], LABELS), {}, "x has dtype <U1. Give numbers"),
    "objects as inputs": ((X.astype(object), LABELS), {}, "x has dtype object"),
    "complex": ((X.astype(complex), LABELS), {}, "x has dtype complex"),
    "NaN": ((np.where(X[3, 1] == X, np.nan, X), LABELS), {}, "1 rows of x have NaN.*the first in row 3"),
    "infinite": ((X, np.where(np.arange(30) > 20, np.inf, X[:, 0])), {}, "9 rows of y have NaN, infinite.*row 21"),
    "too large": ((X.astype(float) * 1e39, LABELS), {}, "too large numbers"),
    "lengths": ((X, LABELS[:29]), {}, "x has 30 rows and y has 29"),
    "one class": ((X, LABELS * 0 + 4), {}, "all 30 labels are 4. Give rows of at least 2 classes"),
    "one row": ((X[:1], X[:1, 0]), {}, "1 rows with val=0.2 leave no training rows"),
    "few rows": ((X[:4], LABELS[:4]), {"val": 0.9}, "4 rows with val=0.9 leave no training rows"),
    "no y": ((X,), {}, "y is None. Give an array of targets"),
    "name without columns": ((X, "label"), {}, "y is 'label'. Give an array"),
    "dates": ((X, np.arange(30).astype("M8[D]")), {}, "y has dtype datetime64"),
    "missing label": ((X, np.array(["a", None] * 15, object)), {}, "A label is missing"),
    "missing category": ((X, pd.Series(["a", None] * 15).astype("category")), {}, "A label is missing"),
    "objects as labels": ((X, np.array([{}] * 30)), {}, "y has dtype object with dict"),
    "one-hot": ((X, np.eye(3, dtype=int)[LABELS]), {}, r"labels of shape \(30, 3\).*y.argmax\(axis=1\)"),
    "share of 0": ((X, LABELS), {"val": 0.0}, "val=0.0. Give a share between 0 and 1, or a pair"),
    "share of 1": ((X, LABELS), {"val": 1}, "val=1. Give a share"),
    "number of rows": ((X, LABELS), {"val": 20}, "val=20. Give a share"),
    "NaN share": ((X, LABELS), {"val": float("nan")}, "val=nan. Give a share"),
    "no share": ((X, LABELS), {"val": True}, "val=True. Give a share"),
    "one array": ((X, LABELS), {"val": (X,)}, "Give a share between 0 and 1, or a pair"),
    "new label": ((X, LABELS), {"val": (X, LABELS + 1)}, r"no labels of training rows \(3\)"),
    "other columns": ((X, LABELS), {"val": (X[:, :3], LABELS)}, r"x is float32 of shape \(30, 4\), and its validation rows"),
    "other targets": ((X, LABELS), {"val": (X, X[:, 0])}, "Give rows of one kind"),
    "validation NaN": ((X, LABELS), {"val": (X * np.nan, LABELS)}, "task 'mine', validation: 30 rows of x have NaN"),
    "validation lengths": ((X, LABELS), {"val": (X, LABELS[:5])}, "validation: x has 30 rows and y has 5"),
    "rare label": ((X, np.arange(30).astype(str)), {"fixed": True}, r"no labels of training rows \(\d+, \d+, .* and 1 more\)"),
    "fixed": ((X, LABELS), {"fixed": 1}, "fixed and tokens must be True or False"),
    "float tokens": ((X, LABELS), {"tokens": True}, r"tokens are float32 of shape \(30, 4\)"),
    "negative tokens": ((LABELS[:, None] - 1, LABELS), {"tokens": True}, "from -1. Give whole numbers from 0"),
    "classes of floats": ((X, X[:, 0]), {"classes": 3}, "has classes=3, and y has dtype float32"),
    "too few classes": ((X, LABELS), {"classes": 2}, "labels int64 from 0 to 2. Give whole numbers from 0 to 1"),
    "no classes": ((X, LABELS), {"classes": 1}, "classes=1. Give a whole number of at least 2"),
    "text classes": ((X, TEXTS), {"classes": 3}, "labels <U1. Give whole numbers"),
    "no column": ((pd.DataFrame(X, columns=list("abcd")), "lable"), {}, "unknown column of task 'mine' 'lable'"),
    "text column": ((pd.DataFrame({"a": TEXTS, "b": LABELS}), "b"), {}, "column 'a' has dtype str"),
    "no inputs": ((pd.DataFrame({"b": LABELS}), "b"), {}, "has no column of inputs"),
    "no file": (("absent.npz",), {}, "'absent.npz' cannot be read .No such file"),
    "no table": (("absent.csv", "y"), {}, "'absent.csv' cannot be read .No such file"),
    "other file": (("a.parquet",), {}, "'a.parquet' is no .npz or .csv file"),
    "no name": (("a.csv",), {}, "Give the name of the target's column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_refused_with_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, words, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        task_from_arrays("mine", *arrays, **words)
    assert "mine" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert "mine" not in tasks


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=X, y=LABELS)
    with pytest.raises(UserError, match=r"unknown array of .*a.npz 'x'. Choose one of images, y"):
        task_from_arrays("mine", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=X.astype(object), y=LABELS)
    with pytest.raises(UserError, match=r"cannot be read .Object arrays cannot be loaded"):
        task_from_arrays("mine", tmp_path / "b.npz")
    (tmp_path / "c.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"c.npz' cannot be read"):
        task_from_arrays("mine", tmp_path / "c.npz")
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(UserError, match=r"d.csv' is no .csv file"):
        task_from_arrays("mine", tmp_path / "d.csv", "y")


def test_name_of_the_suite_and_wrong_fields_are_refused() -> None:
    with pytest.raises(UserError, match="task 'digits' is registered already"):
        task_from_arrays("digits", X, LABELS)
    with pytest.raises(UserError, match="unknown target of task mine 'parity'"):
        task_from_arrays("mine", X, LABELS)(RunSpec(task="mine", target="parity"))
    with pytest.raises(UserError, match="tokens, which have no mean"):
        task_from_arrays("mine", LABELS[:, None], LABELS, tokens=True)(RunSpec(task="mine", inputs="centred"))
    with pytest.raises(UserError, match="rows=8 has no training rows, because 10 are validation rows"):
        task_from_arrays("mine", X, LABELS, val=(X[:10], LABELS[:10]))(RunSpec(task="mine", rows=8))
