"""The command line: errors are one line and exit status 2, write nothing, and do not import JAX before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Done, command
from command_line import commands as each
from paths import ROOT
from tiers import tiered

from relu_study.cli import commands

HERE = ROOT / "tests" / "support"
SMALL = str(HERE / "small_study.py")


ERRORS = [
    (["run", "artcle"], "article"),
    (["plan", "artcle"], "article"),
    (["run", "no/such.py"], "no/such.py"),
    (["run", SMALL, "--preset", "fulll"], "full"),
    (["run", SMALL, "--seeds", "0"], "--seeds"),
    (["run", SMALL, "--epochs", "-1"], "--epochs"),
    (["run", SMALL, "--epochs", "nan"], "--epochs"),
    (["run", SMALL, "--val-examples", "some"], "--val-examples"),
    (["report", "nowhere"], "nowhere"),
    (["view", "nowhere"], "nowhere"),
    (["figure", "nowhere"], "nowhere"),
    (["table", "nowhere"], "nowhere"),
    (["table", str(HERE)], "no manifest.json"),
    (["figure", str(HERE)], "no manifest.json"),
    (["replay", "nowhere", "--run", "abc"], "nowhere"),
    (["replay", str(HERE), "--run", "abc"], "no manifest.json"),
    (["replay", str(ROOT / "results" / "born_dead"), "--run", "abc"], "draw study"),
    (["replay", str(ROOT / "results" / "collapse"), "--run", "abc"], "unknown run"),
    (["rnu", SMALL], "run"),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Done]:
    """The outcomes of commands that do not need JAX, all run in one process. None of them writes a file."""
    lines = [["--help"], ["list"], *(words for words, _ in ERRORS)]
    outcomes = each(lines, folder := tmp_path_factory.mktemp("empty"))
    assert not list(folder.iterdir())
    return {tuple(words): outcome for words, outcome in zip(lines, outcomes, strict=True)}


@pytest.mark.parametrize(("words", "hint"), ERRORS)
def test_argument_errors_do_not_import_jax(words: list[str], hint: str, done: dict[tuple[str, ...], Done]) -> None:
    status, out, err, imported_jax = done[tuple(words)]
    assert status == 2, err
    assert hint in err + out and "Traceback" not in err and not imported_jax


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", SMALL, "--probe-examples", "421"], "420 training rows"),
        (["run", SMALL, "--only", "beef"], "unknown run"),
    ],
)
def test_invalid_sizes_write_nothing(words: list[str], hint: str, tmp_path: Path, here: Any) -> None:
    status, out, err = here(*words)
    assert status == 2 and hint in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


STUDY = "from relu_study import *\n{}\nstudy = Study('bad', 'Bad', '', [Experiment('main', {{'a': RunSpec({})}})]{})"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x = 1", "declares no Study"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('boom')", "line 1 raises RuntimeError: boom"),
        (STUDY.format("", "activation='rleu', rows=600", ""), "relu"),
        (STUDY.format("", "dropout='dropout', dropout_rate=1.0", ""), "[0, 1)"),
        (STUDY.format("", "dropout_rate=0.5", ""), "dropout kind"),
        (STUDY.format("", "rows=600, batch_size=500", ""), "420 training rows"),
        (STUDY.format("", "epochs=-1", ""), "epochs"),
        (STUDY.format("", "seed=-1", ""), "seed"),
        (STUDY.format("", "rows=600", ", seeds=0"), "seeds"),
        (STUDY.format("", "rows=600", ", claims=[Claim('C', 'x', 'dead_fraction', 'b', 'a', 'less', 0.05)]"), "arm"),
        (STUDY.format("", "rows=600", ", claims=[Claim('C', 'x', 'dead_fractoin', 'a', 0.5, 'less', 0.05)]"), "dead_fraction"),
        (STUDY.format("", "rows=600", ", claims=[Claim('C', 'x', 'val_loss', 'a', 0.5, 'less', 0.05, epoch='lats')]"), "last"),
        (STUDY.format("", "rows=600", ", presets={'full': {'seedz': 4}}"), "seeds"),
        (
            STUDY.format("", "rows=600", ", figures=[Figure('f', '', 'curves', ('main',), arms=('b',), metrics=('val_loss',))]"),
            "arm",
        ),
        (STUDY.format("", "rows=600", ", tables=[Table('t', '', ('man',), ('val_loss',))]"), "main"),
        (STUDY.format("", "rows=600", ", tables=[Table('t', '', ('main',), ('val_los',))]"), "val_loss"),
        (STUDY.format("", "rows=600", ", figures=[Figure('f', '', 'curves', ('main',), metrics=('val_los',))]"), "val_loss"),
    ],
)
def test_invalid_study_files(text: str, hint: str, tmp_path: Path, here: Any) -> None:
    (tmp_path / "bad.py").write_text(text)
    status, out, err = here("run", "bad.py")
    assert status == 2, err
    assert hint in err and len(err.splitlines()) == 1 and not out
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.py", "__pycache__"}


def test_help_does_not_import_jax(done: dict[tuple[str, ...], Done]) -> None:
    status, out, _, imported_jax = done[("--help",)]
    assert status == 0 and not imported_jax
    for name in ("list", "plan", "run", "report", "replay", "figure", "view"):
        assert name in out


@pytest.mark.parametrize("name", tiered(list(commands.COMMANDS), "run", "figure"))
def test_subcommand_help_names_values_and_ends_with_an_example(name: str, here: Any) -> None:
    status, out, _ = here(name, "--help")
    assert status == 0 and out.splitlines()[-1] == f"  {commands.EXAMPLES[name]}"
    assert commands.EXAMPLES[name].startswith(f"relu-study {name}")
    assert "{None}" not in out and " STR" not in out and " INT" not in out


def test_list_estimates_minutes_from_a_manifest(tmp_path: Path, here: Any) -> None:
    configuration = {"config_id": "a", "seeds": 2, "spec": {"epochs": 100.0}}
    manifest = {
        "declaration": {"configurations": [configuration], "seeds": 2},
        "counts": {"ok": 1, "interrupted": 1},
        "timing": {"wall_s": 60.0},
    }
    folder = tmp_path / "results" / "article_rows"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    status, out, _ = here("list")
    _, size, noun, minutes, *_ = next(line for line in out.splitlines() if line.startswith("article_rows")).split()
    assert status == 0 and (size, noun) == ("32", "runs")
    assert float(minutes) == 32, "32 runs of 100 epochs, at one minute per 100 epochs"


def test_list_does_not_import_jax(done: dict[tuple[str, ...], Done]) -> None:
    status, out, _, imported_jax = done[("list",)]
    assert status == 0 and "article" in out and not imported_jax


def test_plan(tmp_path: Path, here: Any) -> None:
    status, out, err = here("plan", SMALL)
    assert status == 0 and "9 runs to train (0 stored) in 2 cohorts" in out, err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_report_single_run_and_another_study_in_one_folder(tmp_path: Path) -> None:
    ran = command("run", SMALL, "--out", "here", "--epochs", "1", cwd=tmp_path)
    assert ran.returncode == 0 and "report: here/report.md\n" in ran.stdout, ran.stderr
    *_, view, table = ran.stdout.splitlines()
    assert "relu-study view here" in view and "relu-study table here" in table
    assert ran.stdout.startswith("small: 9 runs (9 ok), ") and "claims: " in ran.stdout
    before = {p.name: p.read_bytes() for p in (tmp_path / "here").glob("*.*") if p.suffix in (".csv", ".md")}
    for name in before:
        (tmp_path / "here" / name).unlink()
    again = command("report", "here", cwd=tmp_path)
    assert again.returncode == 0 and again.stderr.splitlines()[-1] == "False", again.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "here").glob("*.*") if p.suffix in (".csv", ".md")} == before
    row = (tmp_path / "here" / "runs.csv").read_text().splitlines()[3]
    alone = command("run", SMALL, "--only", row[:12], "--epochs", "1", "--widths-from", "here", "--out", "one", cwd=tmp_path)
    assert alone.stdout.splitlines() == [row], alone.stderr
    assert (tmp_path / "one" / "runs.csv").read_text().splitlines()[1:] == [row]
    full = command("run", SMALL, "--only", row[:12], "--epochs", "1", "--out", "here", cwd=tmp_path)
    assert full.returncode == 2 and "not empty" in full.stderr
    (tmp_path / "other.py").write_text(Path(SMALL).read_text().replace('name="small"', 'name="other"'))
    refused = command("run", "other.py", "--out", "here", cwd=tmp_path)
    assert refused.returncode == 2 and "contains the study 'small'" in refused.stderr and "--out" in refused.stderr
