"""Training studies as plain data: experiments, seeds, targets, claims, tables, figures and presets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.study.claims import Claim, Target
from relu_study.study.measurement_times import Every, checked_every
from relu_study.study.outputs import EventTable, Figure, Section, Table, check_factors
from relu_study.study.run_spec import RunSpec

REPORT_EPOCHS = (0, 1, 2, 5, 10)
DEFAULT_METRICS = "default"  # in `Study.metrics`: every default metric, histograms too
MAX_SEEDS = 2**32  # a seed has 32 bits
MAX_RUNS = 2_000_000  # one process lists every run in memory
SIZES = ("seeds", "epochs", "use_targets", "skip", "probe_examples", "every")  # settings of a preset


@dataclass(frozen=True)
class Experiment:
    """Arms to compare. An arm is a label with a RunSpec; its seed and target come from the study.

    `seeds` and `targets` override those of the study. With other targets, a label of another experiment may have a different
    RunSpec. A configuration that occurs in several experiments is trained with the largest of their seed counts.
    """

    name: str
    arms: Mapping[str, RunSpec]
    title: str = ""
    text: str = ""
    seeds: int | None = None  # None: the study's
    targets: tuple[str, ...] = ()  # none: the study's


@dataclass(frozen=True)
class Study:
    """A named set of experiments with their claims, tables and figures.

    `presets` maps a name to changed sizes: `seeds`, `epochs`, `use_targets`, `skip`, `probe_examples`, `every`.

    Raises:
      UserError: for an invalid number, no experiments, a repeated name, an arm with a seed, or a reference to an unknown
        arm, target, experiment, factor or setting.
    """

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
    use_targets: tuple[str, ...] = ()  # targets to train on at this size; empty: all
    skip: tuple[str, ...] = ()  # experiments left out at this size
    probe_examples: int | None = None  # N; None: the default
    every: Every = 1  # epochs between measurements, or a tuple of measured epochs; 0 and the end are always measured
    # Metrics in addition to dead_fraction. Empty: every default metric, histograms too; ("default", "zero_entries"): one more.
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_names()
        self._check_references()

    def _check_sizes(self) -> None:
        seeds = [(f"seeds of experiment {e.name}", e.seeds) for e in self.experiments if e.seeds is not None]
        object.__setattr__(self, "every", checked_every(self.every, f"study {self.name}: every"))
        for size, number in [("seeds", self.seeds), *seeds]:
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UserError(f"study {self.name}: {size} must be a whole number of at least 1, not {number!r}")
            if number > MAX_SEEDS:
                raise UserError(f"study {self.name}: {size} must be at most 2^32, not {number:,}. Take fewer seeds")

    def _check_names(self) -> None:
        if not self.experiments:
            raise UserError(f"study {self.name} declares no experiments. Give it at least one Experiment")
        for kind, names in (("experiment", [e.name for e in self.experiments]), ("target", [t.name for t in self.targets])):
            repeated = {n for n in names if names.count(n) > 1}
            if repeated:
                raise UserError(f"study {self.name}: {kind} {sorted(repeated)[0]!r} is declared twice")
        for label, spec in self.arms().items():
            if spec.seed:
                raise UserError(
                    f"study {self.name}: arm {label!r} has seed {spec.seed}. Set the study's number of seeds: seeds=N"
                )

    def _check_references(self) -> None:
        arms, names, targets = self.arms(), [e.name for e in self.experiments], [target.name for target in self.targets]
        for claim in self.claims:
            for label in [*_labels(claim.arm), *([claim.against] if isinstance(claim.against, str) else [])]:
                if label not in arms:
                    raise nearest(label, arms, f"arm in claim {claim.claim}")
        users = [(f"experiment {e.name}", e.targets) for e in self.experiments]
        for user, used in [*users, *((f"claim {c.claim}", c.targets) for c in self.claims)]:
            for name in used:
                if name not in targets:
                    raise nearest(name, targets, f"target of {user}")
        outputs: tuple[Table | EventTable | Figure, ...] = (*self.tables, *self.figures)
        for item in outputs:
            for name in item.experiments:
                if name not in names:
                    raise nearest(name, names, f"experiment in {item.name}")
            for label in item.arms:
                if label not in arms:
                    raise nearest(label, arms, f"arm in {item.name}")
        check_factors(outputs, self._options())
        for preset, changes in self.presets.items():
            for key in changes:
                if key not in SIZES:
                    raise nearest(key, SIZES, f"setting of preset {preset}")
        for name in (*self.skip, *(n for p in self.presets.values() for n in p.get("skip", ()))):
            if name not in names:
                raise nearest(name, names, "experiment")

    def _options(self) -> set[str]:
        """Return the options of all arms. Raises UserError for one that is a truth value in one arm and a number in another."""
        truths: dict[str, bool] = {}
        pairs = [(label, *pair) for e in self.experiments for label, spec in e.arms.items() for pair in spec.options]
        for label, name, value in pairs:
            is_truth = isinstance(value, bool)
            if not isinstance(value, str) and truths.setdefault(name, is_truth) != is_truth:
                other = "a number" if is_truth else "a truth value"
                raise UserError(
                    f"study {self.name}: option {name} is {value} in arm {label!r} and {other} in another. Give it one type"
                )
        return {name for _, name, _ in pairs}

    def arms(self) -> dict[str, RunSpec]:
        """Return every arm by its label. Raises UserError if a label has two RunSpecs on the same target."""
        arms: dict[str, RunSpec] = {}
        by_target: dict[tuple[str, str], RunSpec] = {}
        for experiment in self.experiments:
            for label, spec in experiment.arms.items():
                arms.setdefault(label, spec)
                for target in experiment.targets or [t.name for t in self.targets] or [""]:
                    first = by_target.setdefault((label, target), spec)
                    if first != spec and first.config_id != spec.config_id:
                        on = f" on target {target!r}" if experiment.targets else ""
                        raise UserError(f"study {self.name}: arm {label!r} has two different RunSpecs{on}. Rename one of them")
        return arms

    def with_preset(self, preset: str | None = None, **changes: Any) -> Study:
        """Return this study at a preset's size, with further `changes` (e.g. seeds, epochs).

        `seeds` and `epochs` override those of every experiment and arm. Raises UserError for an unknown preset or too many runs.
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
        """Raise UserError for more runs than one process can list."""
        seeds = self._seeds()
        if (runs := sum(seeds.values())) > MAX_RUNS:
            raise UserError(
                f"study {self.name}: {len(seeds):,} configurations make {runs:,} runs, and the limit is {MAX_RUNS:,}. "
                f"Take at most {max(MAX_RUNS // len(seeds), 1):,} seeds, or fewer configurations"
            )

    def configurations(self) -> list[tuple[str, str, RunSpec]]:
        """Return (experiment, arm, RunSpec with seed 0) for each arm and target of the experiments that are not skipped."""
        targets = [t.name for t in self.targets]
        for name in self.use_targets:
            if name not in targets:
                raise nearest(name, targets, "target")
        selected = self.use_targets or targets
        return [
            (e.name, label, spec.replace(target=target) if targets else spec)
            for e in self.experiments
            if e.name not in self.skip
            for label, spec in e.arms.items()
            for target in ([t for t in selected if t in (e.targets or targets)] if targets else [spec.target])
        ]

    def runs(self) -> list[RunSpec]:
        """Return every run once, in the declared order of configurations, seeds innermost."""
        self.check_size()
        return [spec.replace(seed=seed) for spec, seeds in self._seeds().items() for seed in range(seeds)]

    def _seeds(self) -> dict[RunSpec, int]:
        requested = {e.name: self.seeds if e.seeds is None else e.seeds for e in self.experiments}
        found: dict[str, tuple[RunSpec, int]] = {}  # two RunSpecs can have one id: a default may be written or not
        for name, _, spec in self.configurations():
            first, most = found.get(spec.config_id, (spec, 0))
            found[spec.config_id] = first, max(most, requested[name])
        return dict(found.values())

    def declaration(self) -> dict[str, Any]:
        """Return the study as plain data for `manifest.json`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiments", "presets")}
        if not self.targets:
            plain["targets"] = [Target(name) for name in dict.fromkeys(spec.target for _, _, spec in self.configurations())]
        for name in ("targets", "claims", "tables", "figures", "sections"):
            plain[name] = [asdict(item) for item in plain[name]]
        plain["experiments"] = [
            {"name": e.name, "title": e.title, "text": e.text} for e in self.experiments if e.name not in self.skip
        ]
        seeds, declared = {spec.config_id: count for spec, count in self._seeds().items()}, self.configurations()
        plain["configurations"] = [
            {"experiment": e, "arm": arm, "config_id": s.config_id, "seeds": seeds[s.config_id]}
            | {"spec": {k: v for k, v in s.as_dict().items() if k != "seed"}}
            for e, arm, s in declared
        ]
        if options := sorted({name for _, _, spec in declared for name, _ in spec.options}):
            plain["options"] = options
        targets_of: dict[str, set[str]] = {}
        for _, arm, spec in declared:
            targets_of.setdefault(arm, set()).add(spec.target)
        for claim in plain["claims"]:  # no shared target: an empty list, every target "not testable"
            labels = [*_labels(claim["arm"]), *([claim["against"]] if isinstance(claim["against"], str) else [])]
            shared = set.intersection(*(targets_of.get(label, set()) for label in labels))
            if claim["against_site"] is None:  # the hash of earlier declarations does not change
                del claim["against_site"]
            claim["targets"] = list(claim["targets"]) or [t["name"] for t in plain["targets"] if t["name"] in shared]
        return plain


def grid(base: RunSpec | None = None, **values: Sequence[Any]) -> dict[str, RunSpec]:
    """Return the arms of every combination of the swept fields and options, labelled "value" or "field=value, ...".

    Args:
      base: RunSpec of the fields that are not swept.
      **values: field or option -> its values. A name that is no field is an option.

    Raises:
      UserError: for an invalid value, or values without a list.
    """
    base = base or RunSpec()
    for name, swept in values.items():
        if isinstance(swept, str) or not isinstance(swept, Iterable):
            raise UserError(f"{name} of a grid is {swept!r}, which is no list of values. Write {name}=[{swept!r}]")
    arms = {}
    for combo in itertools.product(*values.values()):
        pairs = dict(zip(values, combo, strict=True))
        label = str(combo[0]) if len(pairs) == 1 else ", ".join(f"{k}={v}" for k, v in pairs.items())
        arms[label] = base.replace(**pairs)
    return arms


def _labels(arm: str | tuple[str, ...]) -> tuple[str, ...]:
    return (arm,) if isinstance(arm, str) else tuple(arm)
