"""Layers: `Layer`, those with parameters, and the combinators that make networks of them."""

from jaxnet.layers import initializers as initializers
from jaxnet.layers.activation import activation as activation
from jaxnet.layers.combinators import parallel as parallel
from jaxnet.layers.combinators import repeat as repeat
from jaxnet.layers.combinators import residual as residual
from jaxnet.layers.combinators import serial as serial
from jaxnet.layers.convolution import conv as conv
from jaxnet.layers.convolution import conv_transpose as conv_transpose
from jaxnet.layers.dense import dense as dense
from jaxnet.layers.dropout import dropout as dropout
from jaxnet.layers.layer import Layer as Layer
from jaxnet.layers.reshape import flatten as flatten
from jaxnet.layers.reshape import reshape as reshape
