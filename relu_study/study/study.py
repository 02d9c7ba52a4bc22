"""What a study is: experiments, claims, tables and figures, all plain data that fit in a manifest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.study.claims import Claim, Target
from relu_study.study.outputs import EventTable, Figure, Section, Table
from relu_study.study.run_spec import FIELDS, RunSpec

REPORT_EPOCHS = (0, 1, 2, 5, 10)
MOST_SEEDS = 2**32  # a seed is 32 bits wide
MOST_RUNS = 2_000_000  # more do not fit in the memory of one process, one by one
SIZES = ("seeds", "epochs", "use_targets", "skip", "probe_examples", "every")  # what a preset may change


@dataclass(frozen=True)
class Experiment:
    """Arms to compare: each arm is a label and a RunSpec without its seed and target.

    `seeds` and `targets` are its own, where it has fewer or more than the study; a label may then stand for another RunSpec on
    other targets. A configuration of several experiments has as many seeds as the one that asks for most.
    """

    name: str
    arms: Mapping[str, RunSpec]
    title: str = ""
    text: str = ""
    seeds: int | None = None  # None: the study's
    targets: tuple[str, ...] = ()  # none: the study's


@dataclass(frozen=True)
class Study:
    """A named set of experiments with the claims they answer; `presets` change its size by name."""

    name: str
    title: str
    text: str
    experiments: Sequence[Experiment]
    seeds: int = 16
    targets: Sequence[Target] = ()  # empty: each arm keeps the target of its own RunSpec
    claims: Sequence[Claim] = ()
    tables: Sequence[Table | EventTable] = ()
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    use_targets: tuple[str, ...] = ()  # the targets of this size; empty: all
    skip: tuple[str, ...] = ()  # experiments left out at this size
    probe_examples: int | None = None  # N, where the study needs another than the usual
    every: int = 1  # epochs from one measurement to the next; the first is before training, the last at its end
    metrics: tuple[str, ...] = ()  # all that is measured besides dead_fraction; none named: everything, histograms too

    def __post_init__(self) -> None:
        own = [(f"seeds of experiment {e.name}", e.seeds) for e in self.experiments if e.seeds is not None]
        for what, number in [("seeds", self.seeds), ("every", self.every), *own]:
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UserError(f"study {self.name}: {what} must be a whole number of at least 1, not {number!r}")
            if number > MOST_SEEDS:
                raise UserError(f"study {self.name}: {what} must be at most 2^32, not {number:,}; take fewer seeds")
        if not self.experiments:
            raise UserError(f"study {self.name} declares no experiments; give it at least one Experiment")
        for kind, names in (("experiment", [e.name for e in self.experiments]), ("target", [t.name for t in self.targets])):
            twice = {n for n in names if names.count(n) > 1}
            if twice:
                raise UserError(f"study {self.name}: {kind} {sorted(twice)[0]!r} is declared twice")
        arms = self.arms()
        for label, spec in arms.items():
            if spec.seed:
                raise UserError(f"study {self.name}: arm {label!r} has seed {spec.seed}; seeds belong to the study: seeds=N")
        for claim in self.claims:
            for label in [*_labels(claim.arm), *([claim.against] if isinstance(claim.against, str) else [])]:
                if label not in arms:
                    raise nearest(label, arms, f"arm in claim {claim.claim}")
        known = [target.name for target in self.targets]
        asked = [(f"experiment {e.name}", e.targets) for e in self.experiments]
        for what, targets in [*asked, *((f"claim {c.claim}", c.targets) for c in self.claims)]:
            for name in targets:
                if name not in known:
                    raise nearest(name, known, f"target of {what}")
        names = [e.name for e in self.experiments]
        shown: tuple[Table | EventTable | Figure, ...] = (*self.tables, *self.figures)
        for item in shown:
            for name in item.experiments:
                if name not in names:
                    raise nearest(name, names, f"experiment in {item.name}")
            for label in item.arms:
                if label not in arms:
                    raise nearest(label, arms, f"arm in {item.name}")
        for preset, changes in self.presets.items():
            for key in changes:
                if key not in SIZES:
                    raise nearest(key, SIZES, f"setting of preset {preset}")
        for name in (*self.skip, *(n for p in self.presets.values() for n in p.get("skip", ()))):
            if name not in names:
                raise nearest(name, names, "experiment")

    def arms(self) -> dict[str, RunSpec]:
        """Every arm by its label; on one target a label is one RunSpec throughout a study."""
        found: dict[str, RunSpec] = {}
        by_target: dict[tuple[str, str], RunSpec] = {}
        for experiment in self.experiments:
            for label, spec in experiment.arms.items():
                found.setdefault(label, spec)
                for target in experiment.targets or [t.name for t in self.targets] or [""]:
                    if by_target.setdefault((label, target), spec) != spec:
                        on = f" on target {target!r}" if experiment.targets else ""
                        raise UserError(f"study {self.name}: arm {label!r} stands for two different RunSpecs{on}")
        return found

    def with_preset(self, preset: str | None = None, **changes: Any) -> Study:
        """This study at a preset's size, with `changes` (seeds, epochs) on top.

        `seeds` of a preset or of `changes` are those of every experiment, also of those that have their own.
        """
        study = self
        if preset and preset != "default":
            if preset not in self.presets:
                raise nearest(preset, ["default", *self.presets], "preset")
            changes = {**self.presets[preset], **{k: v for k, v in changes.items() if v is not None}}
        epochs = changes.pop("epochs", None)
        study = replace(study, **{k: v for k, v in changes.items() if v is not None})
        if changes.get("seeds") is not None:
            study = replace(study, experiments=[replace(e, seeds=None) for e in study.experiments])
        if epochs is not None:
            study = replace(
                study,
                experiments=[
                    replace(e, arms={k: s.replace(epochs=epochs) for k, s in e.arms.items()}) for e in study.experiments
                ],
            )
        study.check_size()
        return study

    def check_size(self) -> None:
        """Refuse more runs than one process can list."""
        seeds = self._seeds()
        if (runs := sum(seeds.values())) > MOST_RUNS:
            raise UserError(
                f"study {self.name}: {len(seeds):,} configurations make {runs:,} runs, and the limit is {MOST_RUNS:,}; "
                f"take at most {max(MOST_RUNS // len(seeds), 1):,} seeds, or fewer configurations"
            )

    def configurations(self) -> list[tuple[str, str, RunSpec]]:
        """(experiment, arm, RunSpec with seed 0) for each experiment of this size, crossed with its targets."""
        known = [t.name for t in self.targets]
        for name in self.use_targets:
            if name not in known:
                raise nearest(name, known, "target")
        asked = self.use_targets or known
        return [
            (e.name, label, spec.replace(target=target) if known else spec)
            for e in self.experiments
            if e.name not in self.skip
            for label, spec in e.arms.items()
            for target in ([t for t in asked if t in (e.targets or known)] if known else [spec.target])
        ]

    def runs(self) -> list[RunSpec]:
        """Every run once, in the order the configurations are declared, seeds innermost."""
        self.check_size()
        return [spec.replace(seed=seed) for spec, seeds in self._seeds().items() for seed in range(seeds)]

    def _seeds(self) -> dict[RunSpec, int]:
        asked = {e.name: self.seeds if e.seeds is None else e.seeds for e in self.experiments}
        found: dict[RunSpec, int] = {}
        for name, _, spec in self.configurations():
            found[spec] = max(found.get(spec, 0), asked[name])
        return found

    def declaration(self) -> dict[str, Any]:
        """The whole study as plain data for `manifest.json`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiments", "presets")}
        if not self.targets:
            plain["targets"] = [Target(name) for name in dict.fromkeys(spec.target for _, _, spec in self.configurations())]
        for name in ("targets", "claims", "tables", "figures", "sections"):
            plain[name] = [asdict(item) for item in plain[name]]
        plain["experiments"] = [
            {"name": e.name, "title": e.title, "text": e.text} for e in self.experiments if e.name not in self.skip
        ]
        seeds, declared = self._seeds(), self.configurations()
        plain["configurations"] = [
            {"experiment": e, "arm": arm, "config_id": s.config_id, "seeds": seeds[s]}
            | {"spec": {k: v for k, v in s.as_dict().items() if k != "seed"}}
            for e, arm, s in declared
        ]
        on: dict[str, set[str]] = {}
        for _, arm, spec in declared:
            on.setdefault(arm, set()).add(spec.target)
        for claim in plain["claims"]:  # one whose arms meet nowhere is asked everywhere, and answered "not testable"
            labels = [*_labels(claim["arm"]), *([claim["against"]] if isinstance(claim["against"], str) else [])]
            shared = set.intersection(*(on.get(label, set()) for label in labels))
            claim["targets"] = list(claim["targets"]) or [t["name"] for t in plain["targets"] if t["name"] in shared]
        return plain


def grid(base: RunSpec | None = None, **values: Sequence[Any]) -> dict[str, RunSpec]:
    """Arms for every combination of the swept fields, labelled "value" or "field=value, ..."."""
    base = base or RunSpec()
    for name in values:
        if name not in FIELDS:
            raise nearest(name, FIELDS, "RunSpec field")
    arms = {}
    for combo in itertools.product(*values.values()):
        pairs = dict(zip(values, combo, strict=True))
        label = str(combo[0]) if len(pairs) == 1 else ", ".join(f"{k}={v}" for k, v in pairs.items())
        arms[label] = base.replace(**pairs)
    return arms


def _labels(arm: str | tuple[str, ...]) -> tuple[str, ...]:
    return (arm,) if isinstance(arm, str) else tuple(arm)
