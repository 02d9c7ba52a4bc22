"""Fingerprints of generated modules: a change of a read name counts, a change of an unread one does not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.study.fingerprint import fingerprint

FORMS = (
    "function",
    "lambda",
    "default",
    "closure",
    "class",
    "nested",
    "decorated",
    "partial",
    "jitted",
    "comprehension",
    "method",
)
HEAD = "import functools, jax\n"


@dataclass(frozen=True)
class Name:
    """A name of a generated module: a constant, or a helper that reads later names."""

    form: str
    number: int
    reads: tuple[int, ...] = ()
    notes: tuple[str, str] = field(default=("a comment", "a documentation"))


def line(at: int, name: Name) -> str:
    """The code of the name f<at>."""
    calls = "".join(f" + f{i}(x)" for i in name.reads)
    value, (comment, text) = f"{name.number}.5", name.notes
    body = {
        "function": f"def f{at}(x):\n    '{text}'\n    return x * {value}{calls}  # {comment}\n",
        "lambda": f"f{at} = lambda x: x * {value}{calls}  # {comment}\n",
        "default": f"def f{at}(x, k={value}):  # {comment}\n    return x * k{calls}\n",
        "closure": f"def m{at}(k):\n    return lambda x: x * k{calls}\nf{at} = m{at}({value})  # {comment}\n",
        "class": f"class F{at}:\n    k = {value}  # {comment}\n"
        f"    def __call__(self, x): return x * self.k{calls}\nf{at} = F{at}()\n",
        "method": f"class F{at}:\n    def g(self, x): return x * {value}{calls}  # {comment}\nf{at} = F{at}().g\n",
        "nested": f"def f{at}(x):\n    def g(y):  # {comment}\n        return y * {value}{calls}\n    return g(x)\n",
        "decorated": f"@functools.lru_cache\ndef f{at}(x):  # {comment}\n    return x * {value}{calls}\n",
        "jitted": f"@jax.jit\ndef f{at}(x):  # {comment}\n    return x * {value}{calls}\n",
        "partial": f"f{at} = functools.partial(lambda x, k: x * k{calls}, k={value})  # {comment}\n",
        "comprehension": f"C{at} = [{value}, 1]  # {comment}\ndef f{at}(x):\n    return sum(x * c for c in C{at}){calls}\n",
    }
    return body[name.form]


def source(names: list[Name]) -> str:
    return HEAD + "".join(line(at, name) for at, name in reversed(list(enumerate(names))))


def read_by_entry(names: list[Name]) -> set[int]:
    """The names that f0 reaches."""
    found, todo = set(), [0]
    while todo:
        if (at := todo.pop()) not in found:
            found.add(at)
            todo += names[at].reads
    return found


def whole(text: str) -> str:
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "<generated>", "exec", dont_inherit=True), names)
    parts = fingerprint(names["f0"])
    assert "unverifiable" not in parts and "unverified" not in parts
    return parts["whole"]


@st.composite
def modules(draw: st.DrawFn) -> list[Name]:
    size = draw(st.integers(2, 7))
    names = []
    for _ in range(size):
        later = draw(st.sets(st.integers(0, size - 1), max_size=3))  # cycles too: helpers may call each other
        names.append(Name(draw(st.sampled_from(FORMS)), draw(st.integers(1, 9)), tuple(sorted(later))))
    return names


@given(modules(), st.data())
@settings(max_examples=150)
def test_read_change_counts(names: list[Name], data: st.DataObject) -> None:
    before, read = whole(source(names)), read_by_entry(names)
    at = data.draw(st.integers(0, len(names) - 1))
    changed = list(names)
    match data.draw(st.sampled_from(["number", "reads", "notes", "lines"])):
        case "number":
            changed[at] = replace(names[at], number=names[at].number + 1)
        case "reads":
            new = data.draw(st.sets(st.integers(0, len(names) - 1), max_size=3).map(sorted).map(tuple))
            changed[at] = replace(names[at], reads=new)
        case "notes":
            changed[at] = replace(names[at], notes=("another comment", "another documentation"))
        case _:
            assert whole("\n# moved\n\n" + source(names)) == before
    counts = at in read and replace(changed[at], notes=names[at].notes) != names[at]
    assert (whole(source(changed)) != before) == counts


@given(modules(), modules())
@settings(max_examples=50)
def test_unread_names_do_not_count(names: list[Name], others: list[Name]) -> None:
    moved = [replace(name, reads=tuple(i + len(names) for i in name.reads)) for name in others]
    assert whole(source([*names, *moved])) == whole(source(names))
