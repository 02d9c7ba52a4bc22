"""Studies as files: found by name, from a clone or an installed wheel, or by path."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from relu_study.errors import UserError, nearest

if TYPE_CHECKING:
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.study import Study

STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def studies() -> dict[str, Path]:
    """The studies by name: from a clone's `benchmarks`, or from an installed wheel."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here.parent / "benchmarks", here / "benchmarks"):
        if (folder / "article.py").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    return {}


def find_study(name: str) -> Path:
    """The file of a study, by name or by path."""
    if name.endswith(".py") or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"no study file {name}; give a path to a Python file, or one of: {', '.join(studies())}")
        return path
    known = studies()
    if name not in known:
        raise nearest(name, known, "study")
    return known[name]


# The folder of the study that was loaded last, the names of the modules in it, and the modules before it.
_last: list[tuple[Path, set[str], set[str]]] = []


@contextlib.contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Let a study import the modules next to its file, and only those: equal names next to another study are not mixed up.

    Until another study is loaded, functions of the study may import more of them: the folder stays last on the path.
    """
    for earlier, theirs, known in _last:
        for name in [n for n in sys.modules if n.partition(".")[0] in theirs and n not in known]:
            if _inside(sys.modules[name], earlier):
                del sys.modules[name]
        if sys.path and sys.path[-1] == str(earlier):
            sys.path.pop()
    _last.clear()
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    names -= {"__main__", "relu_study"}
    hidden = {n: m for n, m in list(sys.modules.items()) if n.partition(".")[0] in names and _elsewhere(m, folder)}
    for name in hidden:
        del sys.modules[name]
    before, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # kept bytecode may be stale after an edit within its clock's step
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        sys.path.append(str(folder))
        _last.append((folder, names, before))
        sys.modules.update(hidden)


def _inside(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(folder)


def _elsewhere(module: object, folder: Path) -> bool:
    """Is a module a user's, from another folder? Installed packages and the running script stay."""
    file = getattr(module, "__file__", None)
    user = isinstance(file, str) and not {"site-packages", "dist-packages"} & set(Path(file).parts)
    return user and not _inside(module, folder) and not Path(str(file)).resolve().is_relative_to(STDLIB)


def load_study(path: Path) -> Study | DrawStudy:
    """Run a study file (it is Python, and does what it contains) and take the Study it declares."""
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.study import Study

    module_spec = importlib.util.spec_from_file_location(f"relu_study_of_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{path} is no Python file; a study's file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        with _siblings(path.resolve().parent):
            module_spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:
        at = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f", line {at[-1]}" if at else f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        said = " ".join(str(error).split())
        raise UserError(
            f"{path}{line} raises {type(error).__name__}{': ' if said else ''}{said} (--traceback shows the whole error)"
        ) from error
    found = list({id(value): value for value in vars(module).values() if isinstance(value, (Study, DrawStudy))}.values())
    if not found:
        raise UserError(f"{path} declares no Study; assign one to a name, e.g. study = Study(...)")
    if len(found) > 1:
        raise UserError(f"{path} declares {len(found)} studies; keep one to a file")
    return found[0]
