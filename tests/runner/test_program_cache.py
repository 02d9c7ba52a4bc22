"""JAX's cache of compiled programs: one folder for each kind of processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from relu_study.engine import jax_settings, stored_programs
from relu_study.runner.devices import use_devices

SETTINGS = (
    "enable_compilation_cache",
    "compilation_cache_dir",
    "persistent_cache_min_compile_time_secs",
    "persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the settings of JAX's cache, and stores no programs."""
    monkeypatch.setattr(stored_programs, "_store", None)
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("settings")
def test_processors_with_other_features_share_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Machines that share a home folder may have other processors, which cannot run each other's programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def folder(model: str, *flags: str) -> str:
        monkeypatch.setattr(jax_settings, "_model_and_flags", lambda: (model, set(flags)))
        jax.config.update("jax_compilation_cache_dir", None)
        use_devices()
        return str(jax.config.jax_compilation_cache_dir)

    folders = [folder("one", "avx2", "fma"), folder("one", "avx2"), folder("other", "avx2", "fma")]
    assert len(set(folders)) == 3 and folder("one", "fma", "avx2") == folders[0]
    assert {Path(one).parent for one in folders} == {tmp_path / "relu_study"}


@pytest.mark.usefixtures("settings")
def test_without_the_cache_of_jax_no_program_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for enabled in (True, False):
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", enabled)
        use_devices()
        assert (stored_programs._store is not None) == enabled
