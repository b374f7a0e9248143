"""Operations with a hand-written backward pass, one file each."""

from jaxnet.ops.dispatch import using as using
from jaxnet.ops.linear import linear as linear
from jaxnet.ops.linear import linear_vjp as linear_vjp
