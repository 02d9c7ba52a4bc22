"""Errors of a study's own code: one line with file, line and the way on, whatever entry raises and whenever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """
import jax, jax.numpy as jnp, optax
from flax import nnx
from relu_study import (Experiment, RunSpec, Signature, Study, Task, activation, initializer, network, optimizer, task)
from relu_study.components.layers import Dense, Site

def fails(x):
    raise ValueError("planted fault")  # here

def at_run_time(x):
    return jax.pure_callback(fails, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

def prints(x):
    jax.debug.callback(fails, x)
    return x

FAULT = {fault}
def entry(kind, x):
    return FAULT[1](x) if FAULT[0] == kind else x

@task("t")
def t(spec):
    def sample(key, phase):
        x = entry("sample", jax.random.uniform(key, (60, 2), minval=-1.0))
        return x, x[:, :1]
    entry("task", 0)
    return Task(Signature(30, 30, 2, 1), sample, box=(-1.0, 1.0))

@activation("a")
def a(pre):
    return entry("activation", jnp.abs(pre))

@initializer("i")
def i(key, layer, inputs):
    return jax.random.normal(key, (layer.fan_in, layer.fan_out)), entry("initializer", jnp.zeros(layer.fan_out))

@optimizer("o")
def o(lr, wd):
    entry("optimizer", 0)
    update = lambda u, s, p=None: (jax.tree.map(lambda g: -lr * entry("update", g), u), s)
    return optax.GradientTransformation(lambda p: (), update)

@network("n")
class N(nnx.Module):
    def __init__(self, spec, d_in, d_out, rngs):
        self.one, self.site, self.two = Dense(d_in, 4), Site(spec.activation), Dense(4, d_out)
        entry("network", 0)
    def __call__(self, x, ctx):
        return self.two(entry("call", self.site(self.one(x, ctx), ctx)), ctx)

own = RunSpec(task="t", activation="a", initializer="i", optimizer="o", network="n", rows=60, width=4, epochs=1, batch_size=30)
study = Study("planted", "Planted", "?", [Experiment("main", {{"arm": own}})], seeds=1, metrics=("val_loss",))
"""
LINE = next(i for i, line in enumerate(STUDY.splitlines(), 1) if line.endswith("# here"))
KINDS = ("task", "sample", "activation", "initializer", "optimizer", "update", "network", "call")
LATE = [*((kind, "at_run_time") for kind in ("sample", "update")), *((kind, "prints") for kind in KINDS[1:] if kind != "network")]


def ended(folder: Path, fault: tuple[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """The command on a study whose entry of a kind raises, at tracing or at run time."""
    (folder / "study.py").write_text(STUDY.format(fault=f'("{fault[0]}", {fault[1]})'))
    code = "import sys; sys.argv[0] = 'relu-study'; from relu_study.cli.commands import main; main()"
    words = [sys.executable, "-c", code, "run", "study.py", "--out", "out", *options]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*((kind, "fails") for kind in KINDS), *LATE], ids="-".join)
def test_the_command_ends_with_one_line(fault: tuple[str, str], tmp_path: Path):
    found = ended(tmp_path, fault)
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 2 and last.startswith("relu-study: ")
    assert "ValueError: planted fault" in last and f"study.py, line {LINE})" in last and "--traceback" in last
    assert "Traceback" not in found.stderr and "callback failed" not in found.stderr, found.stderr


def test_traceback_prints_the_whole_error(tmp_path: Path):
    found = ended(tmp_path, ("task", "fails"), "--traceback")
    assert found.returncode == 2 and "Traceback" in found.stderr
    assert found.stderr.strip().splitlines()[-1].startswith("relu-study: ")
