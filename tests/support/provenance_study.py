"""A study file and a module next to it, with components that depend on every kind of code and data in provenance."""

from __future__ import annotations

from pathlib import Path

COMMON = '''
"""A study of entries of its own."""
import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import near
from near import bent, LIMITS as limits
from relu_study import *
from relu_study.components.networks import MLP
from relu_study.components.metrics.metric import metric
from relu_study.components.layers import Dense, Site

UNREAD = 1.0
SHIFT = 0.125
TABLE = np.array([0.5, 0.25])
NESTED = {"outer": [[1.0, 2.0], {"inner": 0.5}]}
ROWS = np.loadtxt(data_file("rows.csv"), delimiter=",")
FILE = data_file("named.csv")


@dataclasses.dataclass(frozen=True)
class Options:
    scale: float = 1.0
    power: int = 2


OPTIONS = Options(scale=0.75)


def unread(x):
    return x


def deepest(x):
    return x * 0.625


def helper(x):
    """Documentation of the helper."""
    return deepest(x) + 0.0625  # a comment


def wrapped(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args) * 0.875

    return call


@functools.lru_cache
def cached(n):
    return n * 0.3125


@jax.jit
def jitted(x):
    return x - 0.1875


@partial(jax.jit, static_argnames="n")
def static(x, n=3):
    return x * n * 0.28125


@wrapped
def decorated(x):
    return x + 0.4375


class Base:
    slope = 0.75

    def value(self, x):
        return x * self.slope

    @property
    def half(self):
        return 0.53125

    @staticmethod
    def fixed():
        return 0.84375


class Kind(Base):
    def __init__(self, extra):
        self.extra = extra

    def __call__(self, x):
        return self.value(x) + self.extra


KIND = Kind(0.03125)
BOUND = partial(lambda x, by=1.0: x * by, by=0.90625)
METHOD = Kind(0.96875).value
CHOICES = {"first": lambda x: x * 0.71875, "second": deepest}


def rows_of_helper():
    return np.loadtxt(data_file("inside.csv"), delimiter=",")


def power(x, by=1.0, offset=0.34375):
    return x * by + offset


def made(k):
    def inner(x):
        return x * k

    return inner


CLOSED = made(0.40625)


@jax.jit
def total():
    """A number that depends on everything above."""

    def inside(y):
        return y * SHIFT + sum(NESTED["outer"][0])

    x = 1.0 + sum(TABLE[i] for i in range(2)) + jnp.asarray(ROWS).sum() + np.loadtxt(FILE, delimiter=",").sum()
    x = decorated(jitted(helper(x))) * OPTIONS.scale + cached(2) + static(x, 3)
    x = x + KIND(x) + inside(x) + near.lift(x) + bent(x) + BOUND(x) + METHOD(x) + CHOICES["first"](x) + limits[0]
    x = x + KIND.half + Base.fixed() + rows_of_helper().sum() + near.stored().sum() + CLOSED(x)
    return jnp.asarray(partial(power, by=1.5)(x) + (lambda z: z * 0.015625)(x), float) * 1e-6
'''
TRAINED = """

@activation("bent")
def _(pre, tail=0.1):
    return jnp.maximum(pre, (tail + total()) * pre)


@initializer("drawn", needs_inputs=False)
def _(key, layer, inputs):
    kernel = jax.random.normal(key, (layer.fan_in, layer.fan_out)) * (0.5 + total())
    return kernel, jnp.zeros(layer.fan_out)


@optimizer("paced")
def _(learning_rate, weight_decay):
    return optax.sgd(learning_rate * (1 + total()))


@network("own")
class Own(MLP):
    bounded = False

    def __call__(self, x, ctx):
        return super().__call__(x, ctx) + total()


@task("noisy")
def _(spec):
    def sample(key, phase):
        x = jax.random.uniform(key, (spec.rows, 2), minval=-1.0)
        return x, x[:, :1] * x[:, 1:] + total()

    return Task(Signature(spec.rows // 2, spec.rows // 2, 2, 1), sample, box=(-1, 1))


@metric("level", per="network", unit="1")
def _(snapshot):
    \"\"\"A number of the study's own.\"\"\"
    return total() + sum(jnp.mean(site.post) for site in snapshot.named().values())


ARM = RunSpec(task="noisy", network="own", activation="bent", initializer="drawn", optimizer="paced", rows=40, width=4)
ARM = ARM.replace(epochs=1, batch_size=20)
study = Study("own", "Own", "?", [Experiment("main", {"arm": ARM})], seeds=2, metrics=("level", "val_loss"))
"""
DRAW = """

@statistic("level", factors={"phi": "bent"}, numbers={"value": Quantity("a level")})
def _(cell, key):
    return {"value": jax.random.normal(key) + total()}
"""
DRAWN = """

@activation("bent")
def _(pre, tail=0.1):
    return jnp.maximum(pre, (tail + total()) * pre)


study = DrawStudy("own", "Own", "?", [Draws("main", "level", {"all": {}}, 40)])
"""
NEAR = '''
"""A module next to the study."""
import numpy as np
from relu_study import data_file

UNREAD = 2.0
STEP = 0.15625
LIMITS = [0.21875, 4]


def _deep(x):
    return x * STEP


def lift(x):
    return _deep(x) + 0.09375


class Bend:
    turn = 0.46875

    def __call__(self, x):
        return x * self.turn


bent = Bend()


def stored():
    return np.loadtxt(data_file("near.csv"), delimiter=",")
'''
# Changes of a dependency: the file, a text, its replacement, and the name of the changed part in the error message.
READ: dict[str, tuple[str, str, str, str]] = {
    "global number": ("study.py", "SHIFT = 0.125", "SHIFT = 0.25", "SHIFT"),
    "global array": ("study.py", "[0.5, 0.25]", "[0.5, 0.26]", "TABLE"),
    "global nested list": ("study.py", "[[1.0, 2.0]", "[[1.0, 3.0]", "NESTED"),
    "global nested dict": ("study.py", '"inner": 0.5', '"inner": 0.75', "NESTED"),
    "dataclass value": ("study.py", "Options(scale=0.75)", "Options(scale=0.5)", "OPTIONS"),
    "helper": ("study.py", "+ 0.0625", "+ 0.125", "helper"),
    "helper of a helper": ("study.py", "x * 0.625", "x * 0.75", "deepest"),
    "wrapped helper": ("study.py", "x + 0.4375", "x + 0.5", "decorated"),
    "wrapper": ("study.py", "* 0.875", "* 0.8125", "decorated"),
    "cached helper": ("study.py", "n * 0.3125", "n * 0.375", "cached"),
    "jitted helper": ("study.py", "x - 0.1875", "x - 0.25", "jitted"),
    "partly jitted helper": ("study.py", "n * 0.28125", "n * 0.5", "static"),
    "default of a jitted helper": ("study.py", "n=3", "n=4", "static"),
    "class attribute": ("study.py", "slope = 0.75", "slope = 0.5", "Base"),
    "method": ("study.py", "x * self.slope", "x - self.slope", "Base"),
    "property": ("study.py", "0.53125", "0.5", "Base"),
    "static method": ("study.py", "0.84375", "0.5", "fixed"),
    "state of an object": ("study.py", "Kind(0.03125)", "Kind(0.5)", "KIND"),
    "order of bases": ("study.py", "class Kind(Base)", "class Kind(Options, Base)", "Kind"),
    "keyword of a partial": ("study.py", "by=0.90625", "by=0.5", "BOUND"),
    "keyword of a partial in a call": ("study.py", "by=1.5", "by=1.75", "total"),
    "lambda of a partial": ("study.py", "x * by, by", "x / by, by", "lambda"),
    "default of a helper": ("study.py", "offset=0.34375", "offset=0.5", "power"),
    "bound method": ("study.py", "Kind(0.96875)", "Kind(0.5)", "METHOD"),
    "lambda in a dict": ("study.py", "x * 0.71875", "x * 0.5", "lambda"),
    "function in a dict": ("study.py", '"second": deepest', '"second": helper', "CHOICES"),
    "constant in a lambda": ("study.py", "z * 0.015625", "z * 0.5", "total"),
    "closure": ("study.py", "made(0.40625)", "made(0.5)", "made"),
    "module next to it": ("near.py", "+ 0.09375", "+ 0.5", "lift"),
    "global of a module next to it": ("near.py", "STEP = 0.15625", "STEP = 0.5", "STEP"),
    "helper of a module next to it": ("near.py", "x * STEP", "x - STEP", "_deep"),
    "object of a module next to it": ("near.py", "turn = 0.46875", "turn = 0.5", "Bend"),
    "imported name": ("near.py", "[0.21875, 4]", "[0.5, 4]", "limits"),
    "data at import": ("rows.csv", "1,2", "1,3", "ROWS"),
    "named data file": ("named.csv", "1,2", "1,3", "FILE"),
    "data of a helper": ("inside.csv", "1,2", "1,3", "inside.csv"),
    "data of a module next to it": ("near.csv", "1,2", "1,3", "near.csv"),
}
# Changes that move no number: the file, a text and its replacement.
UNREAD: dict[str, tuple[str, str, str]] = {
    "comment": ("study.py", "# a comment", "# another comment"),
    "documentation": ("study.py", "Documentation of the helper", "Another documentation"),
    "documentation of a module": ("near.py", "A module next to the study", "A module"),
    "layout": ("study.py", "return deepest(x) + 0.0625", "return (\n        deepest(x)\n\n        + 0.0625\n    )"),
    "lines above": ("study.py", "UNREAD = 1.0", "UNREAD = 1.0\n\n\n\n"),
    "global that is not read": ("study.py", "UNREAD = 1.0", "UNREAD = 2.0"),
    "global of a module that is not read": ("near.py", "UNREAD = 2.0", "UNREAD = [4]"),
    "function that is not read": ("study.py", "def unread(x):\n    return x", "def other(x, y):\n    return y"),
    "new helper": ("study.py", "def deepest", "def new(x):\n    return 3\n\n\ndef deepest"),
    "order of imports": (
        "study.py",
        "import jax\nimport jax.numpy as jnp\nimport numpy as np",
        "import numpy as np\nimport jax.numpy as jnp\nimport jax",
    ),
    "new import": ("study.py", "import dataclasses", "import dataclasses\nimport json"),
    "module's imports": ("near.py", "import numpy as np", "import os\nimport numpy as np"),
    "title of the study": ("study.py", '"Own", "?"', '"Title", "What?"'),
}


def written(folder: Path, drawn: bool = False) -> Path:
    """Write the study file with all its dependencies."""
    folder.mkdir(parents=True)
    (folder / "study.py").write_text(COMMON + DRAW + (DRAWN if drawn else TRAINED))
    (folder / "near.py").write_text(NEAR)
    for name in ("rows", "named", "inside", "near"):
        (folder / f"{name}.csv").write_text("1,2\n")
    return folder / "study.py"


def changed(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a text in a file that contains it."""
    text = (folder / name).read_text()
    assert old in text, old
    (folder / name).write_text(text.replace(old, new))
