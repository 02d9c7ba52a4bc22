"""Sources of small modules with functions, transformations and classes as dependencies."""

# entry_kinds.py describes the form of a block.
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
"""
