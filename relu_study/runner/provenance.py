"""Provenance: everything that a number depends on besides its RunSpec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import jax

from relu_study.components.metrics.metric import declared
from relu_study.components.registry import activations, function_of, initializers, networks, optimizers, tasks
from relu_study.components.registry import metrics as registered
from relu_study.components.tasks.task import METRICS
from relu_study.engine import cohorts, compilation, draw_block
from relu_study.engine.jax_settings import digest
from relu_study.engine.state import DEFAULT_EXAMPLES, MeasureConfig
from relu_study.stats import histogram_bins
from relu_study.study.fingerprint import essence, fingerprint, source_hash
from relu_study.study.run_spec import RunSpec


def provenance(probing: MeasureConfig, runs: Iterable[RunSpec] = ()) -> dict[str, Any]:
    """All that the numbers of these runs depend on beside their RunSpecs and their tiles' width; the digest comes later."""
    runs = list({run.replace(seed=0): None for run in runs})
    kinds = (
        ("activation", "activation", activations),
        ("activation", "output", activations),
        ("initializer", "initializer", initializers),
        ("optimizer", "optimizer", optimizers),
        ("network", "network", networks),
        ("task", "task", tasks),
    )
    brought = {f"{kind} {name}": known[name] for kind, field, known in kinds for name in {getattr(run, field) for run in runs}}
    measured = [name for name in declared() if probing.metrics is None or name in probing.metrics]
    brought |= {f"metric {name}": registered[name] for name in measured}
    of_tasks = {name for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics}
    brought |= {f"metric {name}": METRICS[name] for name in of_tasks if name in METRICS}
    return {
        **host(),
        "probe_examples": probing.examples or DEFAULT_EXAMPLES,
        "val_examples": probing.val_examples,
        "measured_every": probing.every,
        "histogram_bins": histogram_bins.LINEAR if probing.linear_bins else histogram_bins.POWERS,
        "metrics": None if probing.metrics is None else ", ".join(probing.metrics),
        "measured": measured,
        "histograms": probing.histograms,
        "own": sources(brought),
    }


def host() -> dict[str, Any]:
    """What every number depends on: the engine's version, those of the packages, the device and its precision."""
    device = jax.devices()[0]
    return {
        "engine": cohorts.ENGINE,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "device": f"{device.platform}: {device.device_kind}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def sources(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of every entry that a study brings itself, in parts: changed, it is another entry."""
    found: dict[str, Any] = {}
    for name, entry in sorted(entries.items()):
        function = function_of(entry)
        if not (getattr(function, "__module__", None) or "").startswith("relu_study."):
            source = source_hash(function)
            found[name] = {**fingerprint(essence(entry)), **({"source": source} if source else {})}
    _forget_changed(found)
    return found


_traced: dict[str, Any] = {}  # the fingerprints of the entries that this process has traced, by name


def _forget_changed(found: Mapping[str, Any]) -> None:
    """Drop every compiled program if an entry has changed: a jitted helper keeps the globals of its first call."""
    changed = [name for name, parts in found.items() if _traced.get(name, parts) != parts or "unverifiable" in parts]
    _traced.update(found)
    if changed:
        compilation.clear()
        draw_block.draw_program.kept.clear()
        jax.clear_caches()


def with_digest(made: dict[str, Any]) -> dict[str, Any]:
    """A provenance with the digest of this device's arithmetic."""
    return {**made, "digest": digest(), "own": made["own"]}
