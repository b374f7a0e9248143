"""Operations with a hand-written backward pass, one file each."""

from jaxnet.ops.convolution import conv as conv
from jaxnet.ops.convolution import conv_vjp as conv_vjp
from jaxnet.ops.dispatch import using as using
from jaxnet.ops.linear import linear as linear
from jaxnet.ops.linear import linear_vjp as linear_vjp
from jaxnet.ops.transposed_convolution import conv_transpose as conv_transpose
from jaxnet.ops.transposed_convolution import conv_transpose_vjp as conv_transpose_vjp
