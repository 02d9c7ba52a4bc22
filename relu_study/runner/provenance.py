"""Provenance: everything that a number depends on besides its RunSpec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from relu_study.components.metrics.metric import declared
from relu_study.components.registry import activations, function_of, initializers, networks, optimizers, ours, tasks
from relu_study.components.registry import metrics as registered
from relu_study.components.tasks.task import METRICS
from relu_study.engine import compilation, draw_block
from relu_study.engine.jax_settings import digest
from relu_study.engine.state import DEFAULT_EXAMPLES, MeasureConfig
from relu_study.runner.machine import local_host
from relu_study.stats import histogram_bins
from relu_study.study.fingerprint import essence, fingerprint, source_hash
from relu_study.study.run_spec import RunSpec


def provenance(
    measure_config: MeasureConfig, runs: Iterable[RunSpec] = (), host: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that the numbers of these runs depend on besides RunSpecs and tile widths, without the digest.

    `host` is the part that the machine decides (default: this one).
    """
    runs = list({run.replace(seed=0): None for run in runs})
    kinds = (
        ("activation", "activation", activations),
        ("activation", "output", activations),
        ("initializer", "initializer", initializers),
        ("optimizer", "optimizer", optimizers),
        ("network", "network", networks),
        ("task", "task", tasks),
    )
    entries = {
        f"{kind} {name}": registry[name]
        for kind, field, registry in kinds
        for name in {getattr(run, field) for run in runs}
        if name in registry  # a network's own initialisation is no entry
    }
    every = measure_config.measure_every
    measured = list(declared(measure_config.metrics))
    entries |= {f"metric {name}": registered[name] for name in measured}
    of_tasks = {name for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics}
    entries |= {f"metric {name}": METRICS[name] for name in of_tasks if name in METRICS}
    return {
        **(local_host() if host is None else host),
        "probe_examples": measure_config.probe_examples or DEFAULT_EXAMPLES,
        "val_examples": measure_config.val_examples,
        "measured_every": list(every) if isinstance(every, tuple) else every,
        "histogram_bins": histogram_bins.LINEAR if measure_config.linear_bins else histogram_bins.POWERS,
        "metrics": None if measure_config.metrics is None else ", ".join(measure_config.metrics),
        "measured": measured,
        "histograms": measure_config.histograms,
        "own": sources(entries),
    }


def sources(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of every entry defined outside the package, by name. Drops compiled programs of changed entries."""
    fingerprints: dict[str, Any] = {}
    for name, entry in sorted(entries.items()):
        if not ours(entry):
            source = source_hash(function_of(entry))
            fingerprints[name] = {**fingerprint(essence(entry)), **({"source": source} if source else {})}
    _evict_changed(fingerprints)
    return fingerprints


_traced: dict[str, Any] = {}  # name -> fingerprint of the entries that this process has traced


def _evict_changed(fingerprints: Mapping[str, Any]) -> None:
    """Drop all compiled programs if an entry has changed, because a jitted function keeps the globals of its first call."""
    changed = [name for name, parts in fingerprints.items() if _traced.get(name, parts) != parts or "unverifiable" in parts]
    _traced.update(fingerprints)
    if changed:
        compilation.clear()
        draw_block.draw_program.clear()
        jax.clear_caches()


def with_digest(provenance: dict[str, Any], machine_digest: Callable[[], str | None] = digest) -> dict[str, Any]:
    """A provenance with the digest of the arithmetic of a machine (default: this one)."""
    return {**provenance, "digest": machine_digest()}
