"""Study files: look-up by name (in a clone or an installed wheel) or by path, and import."""

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

MODULE_PREFIX = "relu_study_of_"  # of the modules of study files
STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def studies() -> dict[str, Path]:
    """Return the path of every study by name, from a clone's `benchmarks` or an installed wheel.

    A file that never writes "Study(" is a separate command, such as the benchmark of detectors.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here.parent / "benchmarks", here / "benchmarks"):
        if (folder / "article.py").is_file():
            files = (path for path in sorted(folder.glob("*.py")) if path.stem != "__init__")
            return {path.stem: path for path in files if "Study(" in path.read_text(encoding="utf-8")}
    return {}


def find_study(name: str) -> Path:
    """Return the path of a study's file, given its name or path. Raises UserError if there is none."""
    if name.endswith(".py") or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"no study file {name}. Give a path to a Python file, or one of: {', '.join(studies())}")
        return path
    paths = studies()
    if name not in paths:
        raise nearest(name, paths, "study")
    return paths[name]


# For the study loaded last: its folder, the names of the modules in the folder, and the modules imported before it.
_last: list[tuple[Path, set[str], set[str]]] = []


@contextlib.contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Make the modules next to a study's file importable, without mixing them up with those of another study.

    The folder stays last on `sys.path` until another study is loaded: the study's functions may import siblings later.
    """
    for earlier, siblings, preloaded in _last:
        for name in [n for n in sys.modules if n.partition(".")[0] in siblings and n not in preloaded]:
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
    sys.dont_write_bytecode = True  # bytecode goes stale after an edit within one tick of the file system's clock
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
    """Whether a module is user code from another folder. Installed packages and the running script are not."""
    file = getattr(module, "__file__", None)
    user = isinstance(file, str) and not {"site-packages", "dist-packages"} & set(Path(file).parts)
    return user and not _inside(module, folder) and not Path(str(file)).resolve().is_relative_to(STDLIB)


def load_study(path: Path) -> Study | DrawStudy:
    """Import a study file and return the one Study or DrawStudy that it declares.

    The file is Python code and runs with the user's rights.

    Raises:
      UserError: if the file raises, with its line number, or does not declare exactly one study.
    """
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.study import Study

    module_spec = importlib.util.spec_from_file_location(f"{MODULE_PREFIX}{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{path} is no Python file. Give a file that ends in .py")
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
        message = " ".join(str(error).split())
        raise UserError(
            f"{path}{line} raises {type(error).__name__}{': ' if message else ''}{message} (--traceback shows the whole error)"
        ) from error
    declared = list({id(value): value for value in vars(module).values() if isinstance(value, (Study, DrawStudy))}.values())
    if not declared:
        raise UserError(f"{path} declares no Study. Assign one to a name, e.g. study = Study(...)")
    if len(declared) > 1:
        raise UserError(f"{path} declares {len(declared)} studies. Keep one per file")
    return declared[0]
