"""Source text of functions without comments, layout and docstrings. Functions without a source give their bytecode.

Fingerprints hash these texts, so a change of comments, layout or docstrings changes no fingerprint.
"""

from __future__ import annotations

import ast
import dis
import linecache
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
ParsedFile = tuple[set[CodeType], list[Node]]  # all code objects and all functions of a file
_parsed: dict[tuple[str, str], ParsedFile | None] = {}  # (file name, text) -> its content; None without valid source
# Instructions without a place inside the function's body.
_PROLOGUE = ("RESUME", "COPY_FREE_VARS", "MAKE_CELL")


def definition(code: CodeType) -> tuple[Any, ...]:
    """Return ("source", text) of a code object, or ("code", *fields) without a source.

    The text counts only if its compilation gives this code object, because a file may have changed since it was loaded.
    """
    node = _node(code)
    if node is None:
        return ("code", *_bytecode(code))
    return ("source", ast.unparse(_stripped(node)))


def _bytecode(code: CodeType) -> tuple[Any, ...]:
    """Return the fields of a code object without file names, line numbers and docstrings."""
    constants = tuple(_bytecode(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    if constants and isinstance(constants[0], str) and not _loads_first_constant(code):
        constants = (None, *constants[1:])  # a first constant that no instruction loads is the docstring
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_name, code.co_code, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, constants, *names)


def _loads_first_constant(code: CodeType) -> bool:
    return any(instruction.opcode in dis.hasconst and instruction.arg == 0 for instruction in dis.get_instructions(code))


def nested(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all code objects inside it, such as inner functions."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested(value)


def chains(code: CodeType) -> list[tuple[str, ...]]:
    """Return the globals that a code object reads, each with its chain of attributes: `np.random.normal` gives three names."""
    read: dict[tuple[str, ...], None] = {}
    chain: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        if chain and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, instruction.argval)
            continue
        if chain:
            read[chain] = None
        reads_global = "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME"
        chain = (instruction.argval,) if reads_global else ()
    return list(read)


def _node(code: CodeType) -> Node | None:
    """Return the syntax tree of a code object. None if its file is missing or does not compile to this code object."""
    parsed = _parse_file(code.co_filename)
    if parsed is None or code not in parsed[0]:
        return None
    candidates = [
        node
        for node in parsed[1]
        if _first_line(node) == code.co_firstlineno and getattr(node, "name", "<lambda>") == code.co_name
    ]
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    # Several lambdas begin in this line. The positions of the instructions identify one.
    spans = [step.positions for step in dis.get_instructions(code) if step.opname not in _PROLOGUE]
    places = [place for place in spans if place is not None and place.lineno is not None and place.col_offset is not None]
    containing = [node for node in candidates if places and all(_contains(node, place) for place in places)]
    return min(containing, key=_size) if containing else None


def _parse_file(name: str) -> ParsedFile | None:
    """Return the code objects and functions of a file with its current text. None without valid source."""
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
    """Return the line of a function, or of its first decorator, as in `co_firstlineno`."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _body(node: Node) -> tuple[ast.AST, ast.AST]:
    """Return the first and the last part of a function's body."""
    return (node.body, node.body) if isinstance(node, ast.Lambda) else (node.body[0], node.body[-1])


def _contains(node: Node, place: Any) -> bool:
    """Return whether the body of a function contains the position of an instruction."""
    first, last = _body(node)
    start, end = (first.lineno, first.col_offset), (last.end_lineno, last.end_col_offset)  # type: ignore[attr-defined]
    return start <= (place.lineno, place.col_offset) and (place.end_lineno, place.end_col_offset) <= end


def _size(node: Node) -> tuple[int, int]:
    """Return the lines and columns of a function's body."""
    first, last = _body(node)
    return (last.end_lineno - first.lineno, last.end_col_offset - first.col_offset)  # type: ignore[attr-defined]


def _stripped(node: Node) -> ast.AST:
    """Return a copy without docstrings, and without decorators of the outermost function.

    A decorator's result is an object with a fingerprint, so the decorator's text does not count.
    """
    copy = ast.parse(ast.unparse(node), mode="exec").body[0]
    if isinstance(copy, (ast.FunctionDef, ast.AsyncFunctionDef)):
        copy.decorator_list = []
    return _without_docstrings(copy)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    """Remove all docstrings of a tree in place, and return the tree."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for part in ast.walk(tree):
        if isinstance(part, kinds) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return tree


def module_text(file: str) -> tuple[str, CodeType | None]:
    """Return the text of a Python file without comments, layout and docstrings, and its code object.

    Any other file gives its content and None.
    """
    content = Path(file).read_bytes()
    try:
        tree = ast.parse(content)
        code = compile(tree, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return repr(content), None
    return ast.unparse(_without_docstrings(tree)), code
