"""Layers for Flax models, Linen and NNX, with the parameters of the Flax layers whose place they take.

Modules and classes are named as in Flax: `linen.RNN` takes the place of `flax.linen.RNN`.
"""

from importlib.util import find_spec

if find_spec("flax") is None:
    raise ImportError("jaxnet.interop.flax needs Flax: pip install 'jaxnet[flax]'")

from jaxnet.interop.flax import linen as linen
from jaxnet.interop.flax import nnx as nnx
