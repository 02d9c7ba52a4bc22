"""Packaging: installation, contents of the wheel, and the checks of the project."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT
from tiers import tiered

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str | Path, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    return done


# ------------------------------------------------------------------------------ what conftest.py promises


def test_annotations_are_checked():
    from relu_study.components.tasks.task import squared_error

    squared_error(jnp.zeros((3, 1)), jnp.zeros((3, 1)))
    for other in (jnp.zeros((2, 1)), jnp.zeros(3), jnp.zeros((3, 1), int), "zeros"):
        with pytest.raises(jaxtyping.TypeCheckError):
            squared_error(jnp.zeros((3, 1)), other)


def test_there_are_more_devices_than_one():
    assert [d.platform for d in jax.devices("cpu")] == ["cpu"] * 2


# ------------------------------------------------------------------------------------------ the tools


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "ruff", "check"),
        (sys.executable, "-m", "ruff", "format", "--check"),
        (sys.executable, "-m", "mypy"),
        (SCRIPTS / "lint-imports", "--no-cache", "--no-logo"),
    ],
    ids=["ruff check", "ruff format", "mypy", "lint-imports"],
)
def test_tool_reports_no_error(command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_folder_is_in_a_contract():
    layers, jax, _, files = PROJECT["tool"]["importlinter"]["contracts"]
    named = {m.strip() for layer in layers["layers"] for m in layer.split("|")}
    sides = {m.removeprefix("relu_study.") for side in (jax, files) for m in side["source_modules"]}
    assert named - sides == {"runner", "monitor", "cli", "__main__"}


# -------------------------------------------------------------------------------------- the constraints


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pinned(python: str) -> dict[str, Version]:
    """Return the pins of constraints.txt for a Python version: name -> version."""
    found: dict[str, Version] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate({"python_version": python, "python_full_version": f"{python}.0"}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice on Python {python}"
            found[name] = Version(next(iter(pin.specifier)).version)
    return found


def declared(*extras: str) -> list[Requirement]:
    """Return the dependencies in pyproject.toml, including these extras."""
    project = PROJECT["project"]
    optional = project["optional-dependencies"]
    return [Requirement(line) for line in (*project["dependencies"], *(line for extra in extras for line in optional[extra]))]


def of_extras() -> dict[str, Requirement]:
    """Return the packages of the extras besides `dev`: their own dependencies are not pinned."""
    extras = PROJECT["project"]["optional-dependencies"]
    named = [Requirement(line) for extra, lines in extras.items() if extra != "dev" for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in named}


def closure(*extras: str) -> set[str]:
    """Return every distribution that `pip install -e ".[extras]"` installs for this interpreter."""
    found: set[tuple[str, str]] = set()
    waiting = declared(*extras)
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) in found:
                continue
            found.add(key)
            environment = {**default_environment(), "extra": extra}
            for line in requires(requirement.name) or ():
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate(environment):
                    waiting.append(further)
    return {name for name, _ in found}


def test_constraints_are_plain_pins():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "\n-" not in text and "file:" not in text
    for pin in pins():
        assert pin.url is None and not pin.extras
        assert [s.operator for s in pin.specifier] == ["=="] and "*" not in str(pin.specifier)


def test_constraints_pin_the_whole_closure_and_nothing_else():
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert set(pinned(python)) - (set(of_extras()) - closure("dev")) == closure("dev")


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_in_the_declared_ranges(python):
    versions = pinned(python)
    for requirement in declared("dev"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), (python, requirement)
    for name, requirement in of_extras().items():
        assert name not in versions or requirement.specifier.contains(versions[name]), (python, requirement)
    assert {"wandb", "mlflow"} <= set(versions)
    assert (versions["jax"] < Version("0.11")) == (python == "3.11")


def test_the_build_backend_of_the_tests_is_the_declared_one():
    (backend,) = (Requirement(line) for line in PROJECT["build-system"]["requires"])
    assert backend.specifier.contains(pinned("3.11")[backend.name])


# ----------------------------------------------------------------------------------------- the metadata


def test_versions_agree():
    version = PROJECT["project"]["version"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    change = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    import relu_study

    assert citation and change
    assert {citation[1], change[1], relu_study.__version__} == {version}


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text().splitlines()
    setup = [line.strip() for line in readme if line.strip().startswith("python3 -m venv .venv && ")]
    assert len(setup) == 2, "the README has two commands, each one line: one runs the article, one the tests"
    article, tests = setup
    assert " && .venv/bin/relu-study run article" in article and tests.endswith(" && .venv/bin/pytest")
    assert all("-c constraints.txt" in line for line in setup)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == tests


# -------------------------------------------------------------------------------------- what JAX costs


def imported_jax(code: str) -> str:
    """Return a fresh interpreter's output on whether JAX is imported after running `code`."""
    tail = "\nimport sys\nprint('HEAVY', sorted({m.partition('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'flax', 'optax'}))"
    done = run(sys.executable, "-c", code + tail)
    assert "HEAVY" in done.stdout, done.stdout + done.stderr
    return done.stdout.rpartition("HEAVY")[2].strip()


WORDS = [("--help", 0), ("list", 0), ("run articel", 2), ("report no/such/folder", 2)]  # also in tests/cli/test_commands.py
MORE = [("run --help", 0), ("no-such-command", 2), ("run article --no-such-option", 2), ("view no/such/folder", 2)]


@pytest.mark.parametrize(("arguments", "status"), tiered([*WORDS, *MORE], ("list", 0)))
def test_command_starts_without_jax(arguments, status):
    code = f"""
import sys
from relu_study.cli.commands import main
sys.argv = ["relu-study", *{shlex.split(arguments)!r}]
try:
    main()
except SystemExit as end:
    assert (end.code or 0) == {status}, end.code
"""
    assert imported_jax(code) == "[]"


def test_study_and_report_modules_load_without_jax():
    # import-linter reads our import lines; this also sees what a library of ours drags in.
    right = PROJECT["tool"]["importlinter"]["contracts"][-1]
    assert imported_jax("\n".join(f"import {module}" for module in right["source_modules"])) == "[]"


def test_import_of_jax_is_detected():
    assert imported_jax("import relu_study.engine.compilation") == "['flax', 'jax', 'jaxlib', 'optax']"


# -------------------------------------------------------------------------------------------- the wheel


def test_wheel_contains_the_package_and_its_studies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "relu_study").rglob("*.py")}
    patterns = ("*.py", "article_parts/*.py", "detector_parts/*.py")
    places = (place for pattern in patterns for place in (ROOT / "benchmarks").glob(pattern))
    studies = {f"relu_study/{path.relative_to(ROOT)}" for path in places}
    assert "relu_study/benchmarks/article.py" in studies
    data = {"relu_study/py.typed", *(str(path.relative_to(ROOT)) for path in (ROOT / "relu_study" / "diagnosis").glob("*.json"))}
    assert held == package | studies | data


def test_an_installed_wheel_finds_its_studies(installed, tmp_path):
    code = (
        "import relu_study; from relu_study.cli import commands; from relu_study.study import loading\n"
        "print(relu_study.__file__, loading.find_study('article')); commands.main()"
    )
    done = run(sys.executable, "-c", code, "list", cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{installed}/relu_study/__init__.py {installed}/relu_study/benchmarks/article.py")
    assert "article" in done.stdout.splitlines()[2]


@pytest.mark.slow
def test_wheel_works_in_a_separate_environment(wheel, tmp_path):
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    installing = run(home / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    assert installing.returncode == 0, installing.stderr
    listing = run(home / "bin" / "relu-study", "list", cwd=tmp_path)
    assert listing.returncode == 0 and "article" in listing.stdout, listing.stdout + listing.stderr
    checking = run(home / "bin" / "pip", "check", cwd=tmp_path)
    assert checking.returncode == 0, checking.stdout
