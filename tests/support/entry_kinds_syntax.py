"""Sources of small modules with statements, aliases and decorators as dependencies."""

# entry_kinds.py describes the form of a block.
TEXT = """
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
"""
