"""Low precision, mixed precision, complex numbers, and kernels that know only one dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from .registry import Setup, away_from_zero, correct, normal, positive, rule, setup, wide


@correct()
def float16_products(rng: Any) -> Setup:
    """A layer in float16, summed in float32."""
    return setup(
        lambda w, x: wide(jnp.tanh(x @ w)).sum(),
        normal(rng, 8, 4, dtype=jnp.float16), normal(rng, 3, 8, dtype=jnp.float16),
    )  # fmt: skip


@correct()
def bfloat16_network(rng: Any) -> Setup:
    """Two layers in bfloat16."""

    def loss(a: Any, b: Any, x: Any) -> Any:
        return (wide(jax.nn.gelu(x @ a) @ b) ** 2).sum()

    return setup(loss, *(normal(rng, *shape, dtype=jnp.bfloat16) for shape in ((4, 6), (6, 2), (3, 4))))


@correct()
def accumulation_in_float32(rng: Any) -> Setup:
    """1,024 bfloat16 rows; the backward widens before it sums, and rounds once."""

    def backward(x: Any, scale: Any, y: Any, dy: Any) -> Any:
        return dy * scale[None], (wide(dy) * wide(x)).sum(axis=0).astype(scale.dtype)

    op = rule(lambda x, scale: x * scale[None], backward)
    return setup(
        lambda x, scale: wide(op(x, scale)).sum(),
        positive(rng, 1024, 4, dtype=jnp.bfloat16), positive(rng, 4, dtype=jnp.bfloat16),
    )  # fmt: skip


@correct()
def bfloat16_inputs_and_float32_parameters(rng: Any) -> Setup:
    """Two dtypes among the arguments: each gradient is judged in its own."""
    return setup(
        lambda w, x: jnp.tanh(wide(x) @ w).sum(), normal(rng, 4, 3), normal(rng, 5, 4, dtype=jnp.bfloat16)
    )


@correct()
def layer_norm_in_bfloat16(rng: Any) -> Setup:
    """Statistics in float32, the output rounded once."""

    def norm(x: Any, scale: Any) -> Any:
        z = wide(x)
        z = (z - z.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(z.var(axis=-1, keepdims=True) + 1e-5)
        return wide((z * wide(scale)[None]).astype(x.dtype)) ** 3

    return setup(norm, normal(rng, 4, 8, dtype=jnp.bfloat16), positive(rng, 8, dtype=jnp.bfloat16))


@correct()
def float16_near_its_largest(rng: Any) -> Setup:
    """Values of 50,000 whose mean is taken in float32."""
    return setup(lambda x: wide(x).mean() / 1e4, 25_000 * positive(rng, 6, dtype=jnp.float16))


@correct()
def float16_gradient_that_rounds_to_zero(rng: Any) -> Setup:
    """A true gradient of 1e-9 is 0 in float16: nothing better can be said."""
    return setup(lambda x: (wide(x) * 1e-9).sum(), normal(rng, 4, dtype=jnp.float16))


@correct()
def float64_under_x64(rng: Any) -> Setup:
    """NumPy's float64, and a linspace of the default dtype."""
    return setup(
        lambda x: jnp.exp(x * jnp.linspace(0.0, 1.0, 4).astype(x.dtype)), np.asarray(rng.standard_normal(4))
    )


@correct()
def eps_of_the_dtype(rng: Any) -> Setup:
    """A guard that depends on finfo: float64 computes another function than float32, a hair apart."""
    return setup(lambda x: jnp.log(x + jnp.finfo(x.dtype).tiny) / (x + jnp.finfo(x.dtype).eps), positive(rng, 5))


@correct()
def quantised_weight(rng: Any) -> Setup:
    """int8 weights with a float scale."""
    q = jnp.asarray(rng.integers(-127, 128, (4, 3)), jnp.int8)
    return setup(
        lambda scale, x, q: x @ (q.astype(scale.dtype) * scale[None]), positive(rng, 3), normal(rng, 2, 4), q
    )


@correct()
def rounded_inside(rng: Any) -> Setup:
    """float32 arguments, the product in bfloat16; the reference is the same without rounding."""

    def fn(x: Any, w: Any) -> Any:
        return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype)

    return setup(fn, normal(rng, 3, 4), normal(rng, 4, 2), reference=lambda x, w: x @ w, rtol=3e-2)


@correct()
def float32_only_callback(rng: Any) -> Setup:
    """A host kernel for float32 and nothing else, with a backward that is one too."""

    def call(f: Any, *args: Any) -> Any:
        if any(a.dtype != jnp.float32 for a in args):
            raise TypeError("this kernel takes float32")
        shape = jax.ShapeDtypeStruct(args[0].shape, jnp.float32)
        return jax.pure_callback(lambda *a: f(*map(np.asarray, a)), shape, *args, vmap_method="sequential")

    op = rule(lambda x: call(np.sin, x), lambda x, y, dy: (call(lambda x, dy: np.cos(x) * dy, x, dy),))
    return setup(lambda x: op(x) ** 2, normal(rng, 5), reference=lambda x: jnp.sin(x) ** 2)


@correct()
def pallas_kernel(rng: Any) -> Setup:
    """Forward and backward as float32 kernels, interpreted."""

    def launch(body: Any, *args: Any) -> Any:
        if args[0].dtype != jnp.float32:
            raise TypeError("this kernel takes float32")
        shape = jax.ShapeDtypeStruct(args[0].shape, jnp.float32)
        return pl.pallas_call(body, out_shape=shape, interpret=True)(*args)

    def forward(x: Any, y: Any) -> None:
        y[...] = x[...] * jax.nn.sigmoid(x[...])

    def backward(x: Any, dy: Any, dx: Any) -> None:
        s = jax.nn.sigmoid(x[...])
        dx[...] = dy[...] * s * (1 + x[...] * (1 - s))

    op = rule(lambda x: launch(forward, x), lambda x, y, dy: (launch(backward, x, dy),))
    return setup(lambda x: op(x), normal(rng, 8, 4), reference=lambda x: x * jax.nn.sigmoid(x))


@correct()
def holomorphic_functions(rng: Any) -> Setup:
    """exp and a square root of complex numbers, complex results."""
    z = jax.lax.complex(normal(rng, 4), positive(rng, 4))
    return setup(lambda z: jnp.exp(z) * jnp.sqrt(z), z)


@correct()
def complex_in_between(rng: Any) -> Setup:
    """Real argument, complex path, real result."""

    def fn(x: Any) -> Any:
        return jnp.abs(jnp.exp(jax.lax.complex(x, 2 * x)) + 2) + jnp.angle(jax.lax.complex(x, 1 + x**2))

    return setup(fn, normal(rng, 4))


@correct()
def conjugates_and_absolute_values(rng: Any) -> Setup:
    """Not holomorphic."""
    z = jax.lax.complex(away_from_zero(rng, 4), normal(rng, 4))
    return setup(lambda z: (z * z.conj()).real + z.imag**3 + jnp.abs(z), z)


@correct()
def complex_linear_algebra(rng: Any) -> Setup:
    """A hermitian form and a solve."""
    a = jax.lax.complex(normal(rng, 3, 3), normal(rng, 3, 3)) + 3 * jnp.eye(3, dtype=jnp.complex64)
    b = jax.lax.complex(normal(rng, 3), normal(rng, 3))
    return setup(lambda a, b: (b.conj() @ jnp.linalg.solve(a, b)).real, a, b)


@correct()
def absolute_value_of_complex_zero(rng: Any) -> Setup:
    """|z| at 0 is a cone; JAX says 0 or 1, both of them inside the disc."""
    z = jax.lax.complex(normal(rng, 3), normal(rng, 3)).at[1].set(0)
    return setup(lambda z: jnp.abs(z), z)
