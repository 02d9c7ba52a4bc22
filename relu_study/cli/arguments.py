"""What the words of a command ask for: a study at its size, a part of it, a folder that is there. JAX stays out of it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_study.errors import UserError
from relu_study.study.loading import find_study, load_study

if TYPE_CHECKING:
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.shard import Shard
    from relu_study.study.study import Study


def describe_stored(study: Study | DrawStudy, folder: Path) -> str:
    """What a results folder holds by now."""
    from relu_study.storage import block_files, tile_files
    from relu_study.study.draw_study import DrawStudy

    if isinstance(study, DrawStudy):
        return f"{sum(count for _, _, count in block_files.stored_blocks(folder, [])):,} draws"
    return f"{len(tile_files.stored_runs(folder, []))} finished runs"


def parse_shard(text: str | None) -> Shard | None:
    """The shard that `--shard I/N` names."""
    from relu_study.study.shard import shard_of

    if text is None:
        return None
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal()):
        raise UserError(f"--shard is I/N, whole numbers with 1 <= I <= N, such as 2/8; {text!r} is none")
    return shard_of(int(index), int(of))


def strip_shard(words: list[str]) -> list[str]:
    """The words of a command without its --shard."""
    others = [word for word in words if not word.startswith("--shard=")]
    return [word for i, word in enumerate(others) if "--shard" not in others[max(i - 1, 0) : i + 1]]


def existing_folder(folder: str) -> Path:
    """A results folder that is there; one that is not is refused with the nearest names."""
    path = Path(folder).expanduser()
    if path.is_file():
        raise UserError(f"{folder} is a file; give the results folder that it lies in, {path.parent}")
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UserError(f"no folder {folder}; {hint}make one with 'relu-study run STUDY --out {folder}'")
    return path


def resolve_study(
    study: str,
    preset: str,
    seeds: int | None,
    epochs: float | None,
    probe_examples: int | None,
    val_examples: Any,
    draws: int | None,
    out: str | None,
) -> tuple[Study | DrawStudy, Path, Any]:
    """The study at its size, its results folder, and what is probed (of a draw study nothing); bad words are refused."""
    from relu_study.study.draw_study import DrawStudy

    path, validation = find_study(study), None if val_examples == "all" else val_examples
    sizes = {"seeds": seeds, "probe-examples": probe_examples, "val-examples": validation, "draws": draws}
    for name, value in sizes.items():
        if value is not None and not (str(value).isdecimal() and int(value) >= 1):
            raise UserError(f"--{name} must be a whole number of at least 1, not {value}")
    if epochs is not None and not 0 <= epochs < float("inf"):
        raise UserError(f"--epochs must be at least 0, not {epochs:g}")
    found = load_study(path)
    if isinstance(found, DrawStudy):
        for name, value in (("seeds", seeds), ("epochs", epochs), ("probe-examples", probe_examples)):
            if value is not None:
                raise UserError(
                    f"{found.name} draws networks and trains none: --{name} does not apply; --max-draws sets its size"
                )
        return found.with_preset(preset, draws), Path(out or f"results/{found.name}").expanduser(), None
    if draws is not None:
        raise UserError(f"{found.name} trains networks: --max-draws does not apply; --seeds sets its size")
    declared = found.with_preset(preset, seeds=seeds, epochs=epochs)
    from relu_study.engine.state import MeasureConfig

    return (
        declared,
        Path(out or f"results/{declared.name}").expanduser(),
        MeasureConfig(
            declared.probe_examples if probe_examples is None else probe_examples, int(validation) if validation else None
        ),
    )
