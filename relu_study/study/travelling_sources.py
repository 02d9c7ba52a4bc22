"""Own source files of a study as text, for workers on other machines: modules, their siblings and their data files."""

from __future__ import annotations

import importlib
import marshal
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.study import data_files
from relu_study.study.draw_study import DrawStudy
from relu_study.study.imports import imports, located, package_of, parents, submodules
from relu_study.study.loading import MODULE_PREFIX, load_study
from relu_study.study.origins import package
from relu_study.study.source_text import nested
from relu_study.study.study import Study


@dataclass(frozen=True)
class TravellingSources:
    """Files with their relative layout, and how to load them."""

    root: str  # the folder of all files on the driver
    here: str  # the current folder of the driver
    files: Mapping[str, bytes]  # path from the root -> content
    studies: tuple[str, ...]  # study files, as paths from the root
    modules: tuple[str, ...]  # other modules to import
    search: tuple[str, ...]  # folders of these modules, as paths from the root
    # The data files that functions have opened: file and code of the function, paths of the files. Fingerprints count them.
    opened: tuple[tuple[str, bytes, tuple[str, ...]], ...] = ()

    def unpack(self, folder: Path) -> None:
        """Write the files below a new folder, and load them: their entries are then registered."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        data_files.moved.update({os.path.join(self.root, name): str(folder / name) for name in self.files})
        data_files.other_folders[:] = [self.here]
        for name in self.search:
            sys.path.append(str(folder / name))
        importlib.invalidate_caches()
        for name in self.studies:
            load_study(folder / name)
        for name in self.modules:
            importlib.import_module(name)
        for name, code, paths in self.opened:
            found = data_files.opened_by.setdefault((str(folder / name), marshal.loads(code)), {})
            found.update(dict.fromkeys(str((folder / path).resolve()) for path in paths))


def travelling_sources(functions: Mapping[str, Any], study: str = "") -> TravellingSources | None:
    """Return the files that define these functions, by entry, and the file of the study; None without own functions.

    Functions of installed packages need no file: the study's file registers them. A data file travels if it has been opened, so
    the study's entries must have been called.

    Raises:
        UserError: a function is defined in a notebook or in the running script, which workers cannot load.
    """
    homes = {entry: module_of(function) for entry, function in functions.items() if not of_package(function)}
    own = {name for name in homes.values() if _package_of_module(name) is None}
    for entry, name in homes.items():
        if name in own and (name == "__main__" or not isinstance(getattr(sys.modules.get(name), "__file__", None), str)):
            raise UserError(
                f"{entry} is defined in a notebook or in the running script, which the workers of a cluster cannot load. Move it "
                "to a module file next to it, and import it from there."
            )
    roots = dict.fromkeys([*sorted(own), *(name for name in sys.modules if homes and _declares(name, study))])
    if not roots:
        return None
    paths: dict[str, None] = {}
    for name in roots:
        _collect(Path(str(sys.modules[name].__file__)).resolve(), package_of(vars(sys.modules[name])), paths)
    opened = [(file, code, names) for (file, code), names in data_files.opened_by.items() if str(Path(file).resolve()) in paths]
    data = {path for file, names in data_files.read_for.items() if str(Path(file).resolve()) in paths for path in names}
    data.update(path for _, _, names in opened for path in names)
    every = sorted({*paths, *data})
    root = os.path.commonpath([os.path.dirname(path) for path in every])
    relative = {path: os.path.relpath(path, root) for path in every}
    modules = [name for name in roots if not name.startswith(MODULE_PREFIX)]
    return TravellingSources(
        root,
        os.getcwd(),
        {relative[path]: _content(path) for path in every},
        tuple(relative[str(Path(str(sys.modules[name].__file__)).resolve())] for name in roots if name.startswith(MODULE_PREFIX)),
        tuple(modules),
        tuple(sorted({os.path.relpath(_search_folder(name), root) for name in modules})),
        tuple(
            (relative[str(Path(file).resolve())], marshal.dumps(code), tuple(relative[path] for path in names))
            for file, code, names in opened
        ),
    )


def module_of(function: Any) -> str:
    """Return the name of the module that defines a function, a partial or a callable object."""
    while hasattr(function, "func"):
        function = function.func
    name = getattr(function, "__module__", None)
    return str(name if isinstance(name, str) else type(function).__module__)


def of_package(function: Any) -> bool:
    """Return whether a module of this package defines a function: `task_from_arrays` makes such entries."""
    return _package_of_module(module_of(function)) == "relu_study"


def _package_of_module(name: str) -> str | None:
    return None if name == "__main__" else package(name, getattr(sys.modules.get(name), "__file__", None))


def _declares(module: str, study: str) -> bool:
    """Whether a module is the loaded file of a study with this name."""
    values = vars(sys.modules[module]).values() if module.startswith(MODULE_PREFIX) else ()
    return any(isinstance(value, (Study, DrawStudy)) and value.name == study for value in values)


def _search_folder(name: str) -> Path:
    """Return the folder that contains a top-level module or package."""
    path = Path(str(sys.modules[name].__file__)).resolve()
    depth = name.count(".") + (path.name == "__init__.py")
    return path.parents[depth]


def _collect(path: Path, home: str, paths: dict[str, None]) -> None:
    """Add a user's file, and the user's modules that it imports."""
    if str(path) in paths:
        return
    paths[str(path)] = None
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return
    for part in nested(code):
        for one in imports(part)[0]:
            try:
                name = one.absolute(home)
            except ImportError:
                continue
            _collect_module(name, one.names, paths)


def _collect_module(name: str, names: Iterable[str], paths: dict[str, None]) -> None:
    spec = None
    for step in parents(name):
        if (spec := located(step)) is None or spec.origin in (None, "built-in", "frozen"):
            if spec is None:
                return
            continue
        if package(spec.name, spec.origin) is not None:
            return
        _collect(Path(str(spec.origin)).resolve(), spec.parent or "", paths)
    for step in submodules(spec, tuple(names)) if spec is not None else ():
        inner = located(step)
        if inner is not None and inner.origin and package(inner.name, inner.origin) is None:
            _collect(Path(inner.origin).resolve(), inner.parent or "", paths)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). The workers of a cluster need it.") from None
