"""Sources of small modules with stored values as dependencies: arrays, containers and objects of libraries."""

# entry_kinds.py describes the form of a block.
TEXT = """
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
