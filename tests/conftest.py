"""Settings of all tests: annotations checked at each call, two CPU devices, and a cache of compiled programs."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest
from paths import ROOT
from ray_cluster import RayCluster
from tiers import QUICK, SHIPPED

# The import hook makes every function and dataclass check its annotations, including array shapes, also in lazy imports.
# Unchecked modules refuse bad input with messages that tests assert, so the hook must not refuse it first.
# `study.data_files` is unchecked because `data_file` inspects its caller, which would be the wrapper of the hook.
UNCHECKED = {"errors", "components.registry", "cli.commands", "cli.arguments"}
UNCHECKED |= {
    f"study.{name}" for name in ("fingerprint", "data_files", "run_spec", "study", "draw_study", "claims", "outputs", "shard")
}
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT / "relu_study")], "relu_study.") if not m.ispkg]
CHECKED = [name for name in MODULES if name.removeprefix("relu_study.") not in UNCHECKED]
# In the fast tier only modules with arrays: mypy checks the other annotations, and checks at each call took a tenth of the time.
# The workers inherit the choice of their controller, whose command line they do not have.
if not os.environ.setdefault("RELU_STUDY_CHECKS", "all" if "-m" in sys.argv else ""):
    ARRAYS = {path for path in (ROOT / "relu_study").rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")}
    CHECKED = [name for name in CHECKED if ROOT / f"{name.replace('.', '/')}.py" in ARRAYS]
# An int is valid where a float is annotated, as in mypy.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook(CHECKED, CHECKER)

# On two devices tiles finish in any order. More devices would only compile every program more often.
# The settings are not environment variables, so a subprocess of a test starts like a user's process.
jax.config.update("jax_num_cpu_devices", 2)
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")

# The examples are the same in every run. Deadlines and the check for slow tests are off, since first calls compile.
hypothesis.settings.register_profile(
    "relu_study", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("relu_study")


def compiles_quickly(config: pytest.Config) -> bool:
    return bool(QUICK) and config.option.markexpr == "not slow" and jax.config.jax_platforms == "cpu"


def pytest_report_header(config: pytest.Config) -> str:
    return f"compiled {'quickly' if compiles_quickly(config) else 'as for a user'}"


def pytest_configure(config: pytest.Config) -> None:
    """Store compiled programs, including programs of subprocesses, in pytest's cache. A second run of the tests compiles less.

    The fast tier compiles with the flags of `QUICK` in this process. Its programs differ in their last bits from a user's, so
    they have a separate folder. Tests with `as_shipped`, the slow tier and most subprocesses run a user's programs.
    """
    if config.option.dist != "no" and not config.option.collectonly:
        return  # the controller runs no test, and its workers start only after it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background, whose children would ignore Ctrl-C too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for registry in importlib.import_module("relu_study.components.registry").REGISTRIES:
        registry.load()  # before tests add and remove entries
    if quick := compiles_quickly(config):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}"
        jax.devices()  # XLA reads its flags once, for its first backend
        os.environ["XLA_FLAGS"] = flags
    if (cache := getattr(config, "cache", None)) is not None:
        settings = {"compilation_cache_dir": str(cache.mkdir("jax"))}
        settings |= {"persistent_cache_min_compile_time_secs": "0", "persistent_cache_min_entry_size_bytes": "-1"}
        os.environ |= {f"JAX_{name}".upper(): value for name, value in settings.items()}
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax-quick" if quick else "jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Folders by duration, the longest first. Each worker takes whole files in this order, so all workers end at about the same time.
FOLDERS = ("engine", "components", "end_to_end", "benchmarks", "report", "watch", "runner", "monitor", "diagnosis", "study")
FOLDERS += ("cli", "storage", "stats")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / folder: place for place, folder in enumerate(FOLDERS)}
    items.sort(key=lambda item: next((places[path] for path in item.path.parents if path in places), len(places)))


def pytest_collection_finish() -> None:
    """Garbage collections skip imported modules and collected tests, and start after ten times as many new objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(7_000, 10, 10)


def _with_deep_stack(call: Callable[[], bool]) -> bool:
    return call()


# CPython maps its stack in chunks of 16 KB and frees a chunk when the first frame in it returns. A loop at the end of a chunk
# maps and unmaps memory at each call: 190,000 times in 9 s of tracing. The chunk of a frame of 560 KB has 1 MB: room for all.
_with_deep_stack.__code__ = _with_deep_stack.__code__.replace(co_stacksize=70_000)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test with its fixtures as pytest does, but in one chunk of Python's stack."""
    runner = item.config.pluginmanager.get_plugin("runner")
    return _with_deep_stack(lambda: runner.pytest_runtest_protocol(item=item, nextitem=nextitem))


@pytest.fixture(scope="module")
def as_shipped(pytestconfig: pytest.Config) -> Iterator[None]:
    """Compile the engine's programs with a user's flags, for tests of equal bits."""
    from relu_study.engine import cohorts, compilation

    with pytest.MonkeyPatch.context() as patch:
        if compiles_quickly(pytestconfig):
            patch.setitem(cohorts.OPTIONS, "cpu", {**cohorts.OPTIONS["cpu"], **SHIPPED})
        compilation.clear()
        yield
    compilation.clear()


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command in this process and in the test's folder.

    It returns the exit status and the output on stdout and stderr.
    """
    from relu_study.cli import commands

    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["relu-study", *words])
        with pytest.raises(SystemExit) as left:
            commands.main()
        return int(left.value.code or 0), *capsys.readouterr()

    return run_command


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheel and without this source tree, for a subprocess's PYTHONPATH.

    The dependencies come from the interpreter of the tests.
    """
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Return a Ray cluster with two nodes of one CPU on the loopback device. Tests that end nodes start their own."""
    cluster = RayCluster([1, 1], tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.close()
