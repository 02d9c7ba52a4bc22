"""Small modules by kind of dependency, each with a text that is read and a replacement for it."""

from __future__ import annotations

HEAD = """
import collections, dataclasses, enum, functools, math, operator, typing
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
"""
# Each block: its name, a text and the text in its place, then a module that defines `entry`.
TEXT = """
=== custom_jvp rule | *2.0 | *3.0
@jax.custom_jvp
def f(x): return x
@f.defjvp
def rule(p,t): return p[0], t[0]*2.0
def entry(x): return f(x)
=== custom_vjp rule | *5.0 | *3.0
@jax.custom_vjp
def f(x): return x
def fw(x): return x, x*5.0
def bw(r,g): return (g*2.0,)
f.defvjp(fw,bw)
def entry(x): return f(x)
=== vmap | 2.0 | 3.0
f=jax.vmap(lambda x: x*2.0)
def entry(x): return f(x)
=== vmap axes | in_axes=0 | in_axes=1
f=jax.vmap(lambda x: x*2.0, in_axes=0)
def entry(x): return f(x)
=== grad | 2.0 | 3.0
f=jax.grad(lambda x: x*2.0)
def entry(x): return f(x)
=== grad argnums | argnums=0 | argnums=1
f=jax.grad(lambda x,y: x*2.0, argnums=0)
def entry(x): return f(x,x)
=== checkpoint | 2.0 | 3.0
f=jax.checkpoint(lambda x: x*2.0)
def entry(x): return f(x)
=== vectorize | 2.0 | 3.0
f=jnp.vectorize(lambda x: x*2.0)
def entry(x): return f(x)
=== nnx.jit | 2.0 | 3.0
f=nnx.jit(lambda x: x*2.0)
def entry(x): return f(x)
=== jit of partial | k=2.0 | k=3.0
f=jax.jit(functools.partial(lambda x,k: x*k, k=2.0))
def entry(x): return f(x)
=== jit of jit | 2.0 | 3.0
f=jax.jit(jax.jit(lambda x: x*2.0))
def entry(x): return f(x)
=== jit static | 2.0 | 3.0
f=jax.jit(lambda x: x*2.0, static_argnums=())
def entry(x): return f(x)
=== cache | 2.0 | 3.0
@functools.cache
def f(x): return x*2.0
def entry(x): return f(x)
=== cached_property | 2.0 | 3.0
class A:
  @functools.cached_property
  def v(self): return 2.0
a=A()
def entry(x): return a.v
=== singledispatch | 2.0 | 3.0
@functools.singledispatch
def f(x): return x
@f.register(int)
def _(x): return x*2.0
def entry(x): return f(x)
=== generator | 2.0 | 3.0
def g(): yield 2.0
def entry(x): return sum(g())
=== comprehension global | A=2.0 | A=3.0
A=2.0
def entry(x): return [A for _ in range(3)]
=== set comp nested | A=2.0 | A=3.0
A=2.0
def entry(x): return {(lambda: [A for y in [1]])() for i in x}
=== class in function | A=2.0 | A=3.0
A=2.0
def entry(x):
  class K:
    v=A
  return K.v
=== default factory | 2.0 | 3.0
@dataclasses.dataclass
class D:
  a: list=dataclasses.field(default_factory=lambda: [2.0])
def entry(x): return D().a
=== dataclass default | 2.0 | 3.0
@dataclasses.dataclass
class D:
  a: float=2.0
def entry(x): return D().a
=== dataclass fields order | first, second = "a", "b" | first, second = "b", "a"
first, second = "a", "b"
D = dataclasses.make_dataclass("D", [(first, float, 1.0), (second, float, 1.0)])
def entry(x): return D(2.0).a
=== enum | 2.0 | 3.0
class E(enum.Enum):
  A=2.0
  B=1.0
def entry(x): return E.A.value
=== enum instance | C=E.A | C=E.B
class E(enum.Enum):
  A=2.0
  B=1.0
C=E.A
def entry(x): return C.value
=== intenum | A=2 | A=3
class E(enum.IntEnum):
  A=2
  B=1
C=E.A
def entry(x): return C
=== namedtuple | 2.0 | 3.0
class N(typing.NamedTuple):
  a: float=2.0
def entry(x): return N().a
=== namedtuple value | 2.0 | 3.0
N=collections.namedtuple('N','a b')
n=N(2.0,1)
def entry(x): return n.a
=== deque | 2.0 | 3.0
q=collections.deque([2.0])
def entry(x): return q[0]
=== defaultdict | 2.0 | 3.0
q=collections.defaultdict(float,{'a':2.0})
def entry(x): return q['a']
=== defaultdict factory | 2.0 | 3.0
q=collections.defaultdict(lambda: 2.0)
def entry(x): return q['a']
=== metaclass | 2.0 | 3.0
class M(type):
  def __call__(cls): return 2.0
class A(metaclass=M): pass
def entry(x): return A()
=== init_subclass | 2.0 | 3.0
class B:
  def __init_subclass__(cls): cls.v=2.0
class A(B): pass
def entry(x): return A.v
=== descriptor | 2.0 | 3.0
class D:
  def __get__(self,i,o): return 2.0
class A:
  v=D()
def entry(x): return A.v
=== getattr | 2.0 | 3.0
class D:
  def __getattr__(self,n): return 2.0
d=D()
def entry(x): return d.foo
=== slots | 2.0 | 3.0
class D:
  __slots__=('v',)
  def __init__(self): self.v=2.0
d=D()
def entry(x): return d.v
=== classmethod | 2.0 | 3.0
class D:
  @classmethod
  def v(cls): return 2.0
def entry(x): return D.v()
=== kwonly default | k=2.0 | k=3.0
def entry(x,*,k=2.0): return x*k
=== default is array | 2.0 | 3.0
def entry(x,k=np.array([2.0])): return x*k
=== default jax array | 2.0 | 3.0
def entry(x,k=jnp.array([2.0])): return x*k
=== jax key | key(2) | key(3)
K=jax.random.key(2)
def entry(x): return K
=== jax raw key | Key(2) | Key(3)
K=jax.random.PRNGKey(2)
def entry(x): return K
=== np generator | rng(2) | rng(3)
R=np.random.default_rng(2)
V=R.normal(size=3)
def entry(x): return V
=== np generator object | rng(2) | rng(3)
R=np.random.default_rng(2)
def entry(x): return R.normal()
=== RandomState | State(2) | State(3)
R=np.random.RandomState(2)
def entry(x): return R.normal()
=== random.Random | Random(2) | Random(3)
import random
R=random.Random(2)
def entry(x): return R.random()
=== globals() | A=2.0 | A=3.0
A=2.0
def entry(x): return globals()['A']
=== getattr module | A=2.0 | A=3.0
A=2.0
import sys
def entry(x): return getattr(sys.modules[__name__],'A')
=== vars module | A=2.0 | A=3.0
A=2.0
import sys
me=sys.modules[__name__]
def entry(x): return vars(me)['A']
=== eval | A=2.0 | A=3.0
A=2.0
def entry(x): return eval('A')
=== inner function alias | A=2.0 | A=3.0
A=2.0
def entry(x):
  def g():
    def h(): return A
    return h
  return g()()
=== global statement | A=2.0 | A=3.0
A=2.0
def entry(x):
  global A
  A=A+1
  return A
=== walrus/nonlocal | n=2.0 | n=3.0
def mk():
  n=2.0
  def g():
    nonlocal n
    n+=1
    return n
  return g
entry=mk()
=== mutable closure list | 2.0 | 3.0
def mk():
  n=[2.0]
  return lambda x: n[0]
entry=mk()
=== function attr | 2.0 | 3.0
def entry(x): return entry.k
entry.k=2.0
=== optax chain | 2.0 | 3.0
entry=lambda r,w: optax.chain(optax.clip(2.0), optax.sgd(r))
=== optax prebuilt | 2.0 | 3.0
T=optax.clip(2.0)
def entry(r,w): return T
=== optax schedule | 2.0 | 3.0
S=optax.linear_schedule(2.0,1.0,10)
def entry(r,w): return S
=== optax adam partial | 0.2 | 0.3
entry=functools.partial(optax.adam,b1=0.2)
=== nnx module obj | Rngs(2) | Rngs(3)
M=nnx.Linear(2,3,rngs=nnx.Rngs(2))
def entry(x): return M(x)
=== nnx class | 2.0 | 3.0
class entry(nnx.Module):
  def __init__(self,spec,d_in,d_out,rngs): self.k=2.0
  def __call__(self,x,ctx): return x*self.k
=== nnx class attr | 2.0 | 3.0
class entry(nnx.Module):
  k=2.0
  def __call__(self,x,ctx): return x*self.k
=== nnx base | 2.0 | 3.0
class B(nnx.Module):
  def z(self,x): return x*2.0
class entry(B):
  def __call__(self,x,ctx): return self.z(x)
=== bytes | 2.0 | 3.0
A=b'2.0'
def entry(x): return A
=== complex | 2.0 | 3.0
A=2.0j
def entry(x): return A
=== neg zero | A=0.0 | A=-0.0
A=0.0
def entry(x): return A
=== nan const | '2.0' | 'nan'
A=float('2.0')
def entry(x): return A
=== int vs float | A=2.0 | A=2
A=2.0
def entry(x): return A
=== dtype | np.array([2.0]) | np.array([2.0],'f4')
A=np.array([2.0])
def entry(x): return A
=== object array | 2.0 | 3.0
A=np.array([2.0,None])
def entry(x): return A
=== structured | (2.0, | (3.0,
A=np.array([(2.0,1)],dtype=[('a','f8'),('b','i4')])
def entry(x): return A
=== masked | mask=[0,1] | mask=[1,0]
A=np.ma.array([1.0,2.0],mask=[0,1])
def entry(x): return A
=== string array | 2.0 | 3.0
A=np.array(['2.0'])
def entry(x): return A
=== datetime array | 2020-01-01 | 2020-01-02
A=np.array(['2020-01-01'],dtype='M8[D]')
def entry(x): return A
=== DataFrame | 2.0 | 3.0
import pandas as pd
A=pd.DataFrame({'a':[2.0]})
def entry(x): return A
=== DataFrame str | 2.0 | 3.0
import pandas as pd
A=pd.DataFrame({'a':['2.0']})
def entry(x): return A
=== Series | 'u' | 'v'
import pandas as pd
A=pd.Series([2.0],index=['u'])
def entry(x): return A
=== DataFrame col | 'a' | 'c'
import pandas as pd
A=pd.DataFrame({'a':[2.0],'b':[1.0]})
def entry(x): return A
=== sparse | 2.0 | 3.0
import scipy.sparse as sp
A=sp.csr_matrix(np.array([[2.0,0]]))
def entry(x): return A
=== interp1d | 2.0 | 3.0
from scipy.interpolate import CubicSpline
A=CubicSpline([0,1,2],[2.0,1,0])
def entry(x): return A(x)
=== scipy dist | 2.0 | 3.0
from scipy import stats
A=stats.norm(2.0)
def entry(x): return A.ppf(x)
=== sklearn | 2.0 | 3.0
from sklearn.preprocessing import StandardScaler
A=StandardScaler().fit(np.array([[2.0],[1.0]]))
def entry(x): return A.transform(x)
=== poly1d | 2.0 | 3.0
A=np.poly1d([2.0,1])
def entry(x): return A(x)
=== Polynomial | 2.0 | 3.0
A=np.polynomial.Polynomial([2.0,1])
def entry(x): return A(x)
=== re pattern | 2.0 | 3.0
import re
A=re.compile('2.0')
def entry(x): return A
=== Fraction | 2.0 | 3.0
from fractions import Fraction
A=Fraction('2.0')
def entry(x): return A
=== Decimal | 2.0 | 3.0
from decimal import Decimal
A=Decimal('2.0')
def entry(x): return A
=== itemgetter | (2) | (3)
A=operator.itemgetter(2)
def entry(x): return A(x)
=== methodcaller | ,2) | ,3)
A=operator.methodcaller('sum',2)
def entry(x): return A(x)
=== iterator | 2.0 | 3.0
A=iter([2.0])
def entry(x): return next(A)
=== chainmap | 2.0 | 3.0
A=collections.ChainMap({'a':2.0})
def entry(x): return A['a']
=== Counter | 2} | 3}
A=collections.Counter({'a':2})
def entry(x): return A['a']
=== OrderedDict | 2.0 | 3.0
A=collections.OrderedDict(a=2.0)
def entry(x): return A['a']
=== SimpleNamespace | 2.0 | 3.0
from types import SimpleNamespace
A=SimpleNamespace(a=2.0)
def entry(x): return A.a
=== range | (2) | (3)
A=range(2)
def entry(x): return A
=== array.array | 2.0 | 3.0
import array
A=array.array('d',[2.0])
def entry(x): return A
=== memoryview | 2.0 | 3.0
A=memoryview(b'2.0')
def entry(x): return A
=== bytearray | 2.0 | 3.0
A=bytearray(b'2.0')
def entry(x): return A
=== tree_util partial | k=2.0 | k=3.0
A=jax.tree_util.Partial(lambda x,k: x*k,k=2.0)
def entry(x): return A(x)
=== dict of arrays | 2.0 | 3.0
A={'w':np.array([2.0])}
def entry(x): return A
=== list of tuple of jax | 2.0 | 3.0
A=[(jnp.array([2.0]),)]
def entry(x): return A
=== env var default | 2.0 | 3.0
import os
A=float(os.environ.get('NOPE','2.0'))
def entry(x): return A
=== async/try | A=2.0 | A=3.0
A=2.0
def entry(x):
  try:
    return x
  except ValueError:
    return A

=== match | A=2.0 | A=3.0
A=2.0
def entry(x):
  match x:
    case 1: return A

=== decorator arg | 2.0 | 3.0
def d(k):
  def w(f):
    def g(x): return f(x)*k
    return g
  return w
@d(2.0)
def entry(x): return x
=== decorator class | 2.0 | 3.0
class D:
  def __init__(self,f): self.f=f
  def __call__(self,x): return self.f(x)*2.0
@D
def entry(x): return x
=== decorated inner | 2.0 | 3.0
class D:
  def __init__(self,f): self.f=f
  def __call__(self,x): return self.f(x)
@D
def entry(x): return x*2.0
=== recursive | 2.0 | 3.0
def entry(x): return x*2.0 if x<1 else entry(x-1)
=== mutual | 2.0 | 3.0
def a(x): return entry(x)*2.0
def entry(x): return a(x) if x else 0
=== method default | 2.0 | 3.0
class K:
  def __call__(self,x,k=2.0): return x*k
entry=K()
=== two lambdas line | 2.0 | 3.0
f,g=(lambda x: x*1.0),(lambda x: x*2.0)
def entry(x): return g(x)
=== lambda default | 2.0 | 3.0
entry=lambda x,k=2.0: x*k
=== string const | ij->ji | ij->ij
def entry(x): return jnp.einsum('ij->ji',x)
=== attr name | x.real | x.imag
def entry(x): return x.real
=== fn name | jnp.sin | jnp.cos
def entry(x): return jnp.sin(x)
=== global function alias | f=jnp.sin | f=jnp.cos
f=jnp.sin
def entry(x): return f(x)
=== ufunc alias | f=np.sin | f=np.cos
f=np.sin
def entry(x): return f(x)
=== builtin alias | f=min | f=max
f=min
def entry(x): return f(x)
=== jax.nn alias | f=jax.nn.relu | f=jax.nn.gelu
f=jax.nn.relu
def entry(x): return f(x)
=== shadow builtin | 2.0 | 3.0
def abs(x): return x*2.0
def entry(x): return abs(x)
=== operator method | 2.0 | 3.0
class V:
  def __mul__(self,o): return o*2.0
V0=V()
def entry(x): return V0*x
=== iterator class | 2.0 | 3.0
class V:
  def __iter__(self): return iter([2.0])
def entry(x): return list(V())
=== contextmanager | 2.0 | 3.0
import contextlib
@contextlib.contextmanager
def c(): yield 2.0
def entry(x):
  with c() as v: return v
=== late binding class var | 2.0 | 3.0
class V: pass
V.k=2.0
def entry(x): return V.k
=== monkeypatch | 2.0 | 3.0
class V:
  def f(self): return 1
V.f=lambda self: 2.0
def entry(x): return V().f()
=== annotated class | 2.0 | 3.0
class V:
  k: float = 2.0
def entry(x): return V.k
=== abc | 2.0 | 3.0
import abc
class B(abc.ABC):
  @abc.abstractmethod
  def f(self): ...
class A(B):
  def f(self): return 2.0
a=A()
def entry(x): return a.f()
=== generic | 2.0 | 3.0
T=typing.TypeVar('T')
class A(typing.Generic[T]):
  k=2.0
def entry(x): return A[int].k
=== typeddict/global alias | 2.0 | 3.0
A=dict(a=2.0)
B=A
def entry(x): return B
=== self-containing | 2.0 | 3.0
A=[2.0]
A.append(A)
def entry(x): return A
=== jnp bfloat16 | 2.0 | 3.0
A=jnp.bfloat16(2.0)
def entry(x): return A
=== dtype choice | jnp.float32 | jnp.float16
A=jnp.float32
def entry(x): return x.astype(A)
=== slice | (2) | (3)
A=slice(2)
def entry(x): return x[A]
=== np.s_ | :2 | :3
A=np.s_[:2,0]
def entry(x): return x[A]
=== flax struct | 2.0 | 3.0
from flax import struct
@struct.dataclass
class S:
  a: float=1.0
A=S(a=2.0)
def entry(x): return A.a
=== nnx.Param | 2.0 | 3.0
A=nnx.Param(jnp.array([2.0]))
def entry(x): return A[...]
=== pytree dict frozendict | 2.0 | 3.0
from flax.core import freeze
A=freeze({'a':2.0})
def entry(x): return A
=== jitted w global | A=2.0 | A=3.0
A=2.0
@jax.jit
def f(x): return x*A
def entry(x): return f(x)
=== @vmap | 2.0 | 3.0
@jax.vmap
def f(x): return x*2.0
def entry(x): return f(x)
=== @grad | 2.0 | 3.0
@jax.grad
def f(x): return x*2.0
def entry(x): return f(x)
=== @checkpoint | 2.0 | 3.0
@jax.checkpoint
def f(x): return x*2.0
def entry(x): return f(x)
=== @vectorize | 2.0 | 3.0
@jnp.vectorize
def f(x): return x*2.0
def entry(x): return f(x)
=== @nnx.jit | 2.0 | 3.0
@nnx.jit
def f(x): return x*2.0
def entry(x): return f(x)
=== @jit static | 2.0 | 3.0
@functools.partial(jax.jit,static_argnums=0)
def f(x): return x*2.0
def entry(x): return f(x)
=== @jit entry | 2.0 | 3.0
@jax.jit
def entry(x): return x*2.0
=== @vmap entry | 2.0 | 3.0
@jax.vmap
def entry(x): return x*2.0
=== @lru entry | 2.0 | 3.0
@functools.lru_cache(3)
def entry(x): return x*2.0
=== @np.vectorize | 2.0 | 3.0
@np.vectorize
def f(x): return x*2.0
def entry(x): return f(x)
=== @named_call | 2.0 | 3.0
@jax.named_call
def f(x): return x*2.0
def entry(x): return f(x)
=== @total_ordering | 2.0 | 3.0
@functools.total_ordering
class K:
  def __lt__(s,o): return 2.0
  def __eq__(s,o): return True
def entry(x): return K()<x
=== @inject | 2.0 | 3.0
@optax.inject_hyperparams
def f(learning_rate): return optax.sgd(learning_rate*2.0)
def entry(r,w): return f(r)
=== Random subclass | Q(2) | Q(3)
import random
class Q(random.Random): pass
R=Q(2)
def entry(x): return R.random()
=== ndarray subclass | 2.0 | 3.0
class Q(np.ndarray): pass
R=np.array([2.0]).view(Q)
def entry(x): return R
=== dict subclass | 2.0 | 3.0
class Q(dict): pass
R=Q(a=2.0)
def entry(x): return R
=== dict subclass attr | 2.0 | 3.0
class Q(dict): pass
R=Q(a=1)
R.z=2.0
def entry(x): return R
=== str subclass | 2.0 | 3.0
class Q(str): pass
R=Q('2.0')
def entry(x): return R
=== weak type | 2.0 | np.float32(2.0)
R=jnp.asarray(2.0)
def entry(x): return R
=== count | (2) | (3)
import itertools
R=itertools.count(2)
def entry(x): return next(R)
=== cycle | 2.0 | 3.0
import itertools
R=itertools.cycle([2.0])
def entry(x): return next(R)
=== zip | 2.0 | 3.0
R=list(zip([2.0],[1]))
def entry(x): return R
=== map obj | 2.0 | 3.0
R=map(lambda x: x*2.0,[1])
def entry(x): return R
=== timedelta | (2) | (3)
import datetime
R=datetime.timedelta(2)
def entry(x): return R
=== np.dtype | f4 | f8
R=np.dtype('f4')
def entry(x): return R
=== np.poly.legendre | 2.0 | 3.0
R=np.polynomial.Legendre([2.0])
def entry(x): return R
=== generic alias | int | float
R=list[int]
def entry(x): return R
=== union type | int | float
R=int|None
def entry(x): return R
=== exception class | 2.0 | 3.0
class E(ValueError):
  k=2.0
def entry(x): raise E
=== exception object | 2.0 | 3.0
E=ValueError('2.0')
def entry(x): return E.args
=== method of installed obj | 2.0 | 3.0
R=np.array([2.0]).sum
def entry(x): return R()
=== bound dict get | 2.0 | 3.0
R={'a':2.0}.get
def entry(x): return R('a')
=== ufunc reduce | np.add | np.multiply
R=np.add.reduce
def entry(x): return R(x)
=== proxy | 2.0 | 3.0
from types import MappingProxyType
R=MappingProxyType({'a':2.0})
def entry(x): return R
=== documentation as a constant | return x, 'doc 2.0' | return x, 'doc 3.0'
def entry(x):
  'doc 2.0'
  return x, 'doc 2.0'
"""


def kinds() -> dict[str, tuple[str, str, str]]:
    """Return the modules by name, with the replaced text and its replacement."""
    found = {}
    for block in TEXT.split("\n=== ")[1:]:
        first, code = block.split("\n", 1)
        name, old, new = (part.strip() for part in first.split(" | "))
        found[name] = (HEAD + code, old, new)
    return found
