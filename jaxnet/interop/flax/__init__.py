"""Layers for Flax models, Linen and NNX, with the parameters of the Flax layers whose place they take.

Modules and classes are named as in Flax: `linen.RNN` takes the place of `flax.linen.RNN`.
"""

try:
    import flax as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("jaxnet.interop.flax needs Flax: pip install 'jaxnet[flax]'") from error

from jaxnet.interop.flax import linen as linen
from jaxnet.interop.flax import nnx as nnx
