"""Source text of functions without comments, layout and documentation; their code objects where no source exists."""

from __future__ import annotations

import ast
import dis
import linecache
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_parsed: dict[tuple[str, str], tuple[set[CodeType], list[Node]] | None] = {}


def definition(code: CodeType) -> tuple[Any, ...]:
    """The source text of a code object, or its instructions and constants, as nested tuples of plain values.

    The text counts only where its compilation gives this code object: a file may have changed since it was loaded.
    """
    node = _node(code)
    if node is None:
        return ("code", *plain(code))
    text = ast.unparse(_stripped(node))
    return ("source", text)


def plain(code: CodeType) -> tuple[Any, ...]:
    """A code object without file names, line numbers and documentation."""
    constants = tuple(plain(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    if constants and isinstance(constants[0], str) and not _loads_first(code):
        constants = (None, *constants[1:])  # the documentation
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_name, code.co_code, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, constants, *names)


def _loads_first(code: CodeType) -> bool:
    return any(step.opcode in dis.hasconst and step.arg == 0 for step in dis.get_instructions(code))


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and all that are defined inside it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested(value)


def chains(code: CodeType) -> list[tuple[str, ...]]:
    """The globals that a code object reads, each with the attributes that are read off it at once."""
    found: dict[tuple[str, ...], None] = {}
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, step.argval)
            continue
        if chain:
            found[chain] = None
        chain = (step.argval,) if "GLOBAL" in step.opname or step.opname == "LOAD_NAME" else ()
    return list(found)


def _node(code: CodeType) -> Node | None:
    known = _file(code.co_filename)
    if known is None or code not in known[0]:
        return None
    found = [n for n in known[1] if _first_line(n) == code.co_firstlineno and getattr(n, "name", "<lambda>") == code.co_name]
    if len(found) < 2:
        return found[0] if found else None
    spans = [i.positions for i in dis.get_instructions(code) if i.opname not in ("RESUME", "COPY_FREE_VARS", "MAKE_CELL")]
    places = [p for p in spans if p is not None and p.lineno is not None and p.col_offset is not None]
    inside = [n for n in found if places and all(_within(n, p) for p in places)]
    return min(inside, key=_size) if inside else None


def _file(name: str) -> tuple[set[CodeType], list[Node]] | None:
    linecache.checkcache(name)
    text = "".join(linecache.getlines(name))
    if (name, text) not in _parsed:
        try:
            tree = ast.parse(text)
            codes = set(nested(compile(text, name, "exec", dont_inherit=True)))
            nodes = [n for n in ast.walk(tree) if isinstance(n, Node)]
            _parsed[name, text] = (codes, nodes) if text else None
        except (SyntaxError, ValueError, RecursionError):
            _parsed[name, text] = None
    return _parsed[name, text]


def _first_line(node: Node) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _body(node: Node) -> tuple[ast.AST, ast.AST]:
    return (node.body, node.body) if isinstance(node, ast.Lambda) else (node.body[0], node.body[-1])


def _within(node: Node, place: Any) -> bool:
    first, last = _body(node)
    start, end = (first.lineno, first.col_offset), (last.end_lineno, last.end_col_offset)  # type: ignore[attr-defined]
    return start <= (place.lineno, place.col_offset) and (place.end_lineno, place.end_col_offset) <= end


def _size(node: Node) -> tuple[int, int]:
    first, last = _body(node)
    return (last.end_lineno - first.lineno, last.end_col_offset - first.col_offset)  # type: ignore[attr-defined]


def _stripped(node: Node) -> ast.AST:
    """A copy without documentation and the decorators of the outermost function: a wrapper is read as an object."""
    copy = ast.parse(ast.unparse(node), mode="exec").body[0]
    if isinstance(copy, (ast.FunctionDef, ast.AsyncFunctionDef)):
        copy.decorator_list = []
    return _undocumented(copy)


def _undocumented(tree: ast.AST) -> ast.AST:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for part in ast.walk(tree):
        if isinstance(part, kinds) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return tree


def module_text(file: str) -> tuple[str, CodeType | None]:
    """The text of a Python file, free of comments, layout and documentation, and its code.

    Any other file gives its content and no code.
    """
    content = Path(file).read_bytes()
    try:
        tree = ast.parse(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python shows them when it loads the module
            code = compile(tree, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return repr(content), None
    return ast.unparse(_undocumented(tree)), code
