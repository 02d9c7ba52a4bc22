"""Command-line arguments: study, size, shard and results folder. Importing this module does not import JAX."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from relu_study.errors import UserError
from relu_study.study.loading import find_study, load_study

if TYPE_CHECKING:
    from relu_study.engine.state import MeasureConfig
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.shard import Shard
    from relu_study.study.study import Study

StudyName = Annotated[
    Positional[str],
    arg(metavar="STUDY", help="Name of a study, or path of a study file. A study file is Python code and is executed."),
]
Folder = Annotated[Positional[str], arg(metavar="DIR", help="Results folder.")]


@dataclass(frozen=True)
class SizeOptions:
    """Options of `run` and `plan` for the size of a study and of its measurements."""

    preset: Annotated[str, arg(metavar="NAME", help='Preset of the study, for example "full".')] = "default"
    seeds: Annotated[
        int | None, arg(metavar="N", help="Seeds of each configuration.", help_behavior_hint="(default: the preset's)")
    ] = None
    epochs: Annotated[
        float | None, arg(metavar="X", help="Epochs of every run.", help_behavior_hint="(default: the study's)")
    ] = None
    probe_examples: Annotated[
        int | None,
        arg(metavar="N", help="Training examples in the probe set.", help_behavior_hint="(default: 8192, or all if fewer)"),
    ] = None
    val_examples: Annotated[str, arg(metavar="N|all", help="Validation examples for val_loss.")] = "8192"
    max_draws: Annotated[
        int | None,
        arg(metavar="N", help="Draw studies only: maximum draws of each cell.", help_behavior_hint="(default: the preset's)"),
    ] = None

    def measure_config(self) -> MeasureConfig:
        """Return the settings of measurements. Imports JAX."""
        from relu_study.engine.state import MeasureConfig

        return MeasureConfig(self.probe_examples, None if self.val_examples == "all" else int(self.val_examples))


def parse_shard(text: str | None) -> Shard | None:
    """Return the shard of the value I/N of `--shard`. Raises UserError for an invalid value."""
    from relu_study.study.shard import shard_of

    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise UserError(f"--shard {text!r} is not a shard. Give whole numbers I/N with 1 <= I <= N, such as 2/8.")
    return shard_of(int(index), int(count))


def strip_shard(arguments: list[str]) -> list[str]:
    """Return the arguments of a command without `--shard I/N` and `--shard=I/N`."""
    kept, is_value = [], False
    for argument in arguments:
        is_option = argument == "--shard"
        if not (is_option or is_value or argument.startswith("--shard=")):
            kept.append(argument)
        is_value = is_option
    return kept


def existing_folder(folder: str) -> Path:
    """Return the path of an existing results folder. Raises UserError with similar names if it does not exist."""
    path = Path(folder).expanduser()
    if path.is_file():
        raise UserError(f"{folder} is a file. Give the results folder that contains it, {path.parent}.")
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings)]
        hint = f"Did you mean {', '.join(close)}? " if close else ""
        raise UserError(f"There is no folder {folder}. {hint}Create one with 'relu-study run STUDY --out {folder}'.")
    return path


def resolve_study(study: str, size: SizeOptions, out: str | None) -> tuple[Study | DrawStudy, Path]:
    """Load a study, apply its size options, and return it with the path of its results folder.

    Raises UserError if an option is invalid or does not apply to this kind of study.
    """
    from relu_study.runner.kinds import kind_of

    path = find_study(study)
    _check_sizes(size)
    loaded = load_study(path)
    kind = kind_of(loaded)
    for option in ("seeds", "epochs", "probe_examples", "max_draws"):
        if option not in kind.size_options and getattr(size, option) is not None:
            valid_option = _flag(kind.size_options[0])
            raise UserError(f"{loaded.name} {kind.action}: {_flag(option)} does not apply. Use {valid_option} to set its size.")
    return kind.with_size(loaded, size.preset, vars(size)), Path(out or f"results/{loaded.name}").expanduser()


def _flag(option: str) -> str:
    """Return the command-line option of a field of SizeOptions."""
    return f"--{option.replace('_', '-')}"


def _check_sizes(size: SizeOptions) -> None:
    """Raise UserError for a size option outside its range."""
    counts = {name: getattr(size, name) for name in ("seeds", "probe_examples", "val_examples", "max_draws")}
    for name, value in counts.items():
        if value not in (None, "all") and not (str(value).isdecimal() and int(value) >= 1):
            or_all = " or all" if name == "val_examples" else ""
            raise UserError(f"{_flag(name)} is {value}. Give a whole number of at least 1{or_all}.")
    if size.epochs is not None and not 0 <= size.epochs < float("inf"):
        raise UserError(f"--epochs is {size.epochs:g}. Give a finite number of at least 0.")
