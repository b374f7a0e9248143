"""Complex numbers and Fourier transforms: JAX's cotangents are not conjugated, other frameworks' are."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, rule, setup


def complex_normal(rng: Any, *shape: int) -> jax.Array:
    return jax.lax.complex(normal(rng, *shape), normal(rng, *shape))


@planted("w", source="tensorflow/tensorflow #4859")
def product_with_a_conjugate_too_many(rng: Any) -> Setup:
    """dw = x*ᵀ·dy as in other frameworks; in JAX it is xᵀ·dy."""
    op = rule(lambda x, w: x @ w, lambda x, w, y, dy: (dy @ w.T, x.conj().T @ dy))
    return setup(op, complex_normal(rng, 3, 4), complex_normal(rng, 4, 2))


@planted("z", source="EnzymeAD/Enzyme-JAX #2105")
def absolute_square_without_the_conjugate(rng: Any) -> Setup:
    """The gradient of |z|² in JAX is 2·z*."""
    return setup(
        rule(lambda z: (z * z.conj()).real, lambda z, y, dy: (2 * z * dy.astype(z.dtype),)), complex_normal(rng, 4)
    )


@planted("z")
def wirtinger_s_factor_two(rng: Any) -> Setup:
    """∂|z|²/∂z = z* is Wirtinger's derivative, half of JAX's gradient."""
    return setup(
        rule(lambda z: (z * z.conj()).real, lambda z, y, dy: (z.conj() * dy.astype(z.dtype),)),
        complex_normal(rng, 4),
    )


@planted("z")
def holomorphic_function_conjugated(rng: Any) -> Setup:
    """dz = dy·conj(f′) for a holomorphic function."""
    return setup(rule(lambda z: jnp.exp(z), lambda z, y, dy: (dy * y.conj(),)), complex_normal(rng, 4))


@planted("x", source="EnzymeAD/Enzyme-JAX #2105")
def phase_with_the_wrong_sign(rng: Any) -> Setup:
    """e^{ix}: the gradient of a real number through a complex path, with the sign of the conjugate."""
    op = rule(lambda x: jax.lax.complex(jnp.cos(x), jnp.sin(x)), lambda x, y, dy: ((dy * 1j * y.conj()).real,))
    return setup(lambda x: op(x).real + 2 * op(x).imag, normal(rng, 4))


@planted("x", source="locuslab/pytorch_fft #38")
def real_transform_without_the_halves(rng: Any) -> Setup:
    """rfft leaves out half of the spectrum: irfft of dy counts the middle twice unless it is halved."""
    op = rule(lambda x: jnp.fft.rfft(x), lambda x, y, dy: (jnp.fft.irfft(dy.conj(), x.size) * x.size,))
    return setup(op, normal(rng, 8))


@planted("z")
def inverse_transform_without_1_n(rng: Any) -> Setup:
    """The adjoint of ifft needs its 1/N."""
    op = rule(lambda z: jnp.fft.ifft(z), lambda z, y, dy: (jnp.fft.fft(dy),))
    return setup(op, complex_normal(rng, 6))


@planted("z")
def imaginary_part_dropped(rng: Any) -> Setup:
    """Only the real part of the gradient survives a cast."""
    return setup(
        rule(lambda z: z**2, lambda z, y, dy: ((2 * z * dy).real.astype(z.dtype),)), complex_normal(rng, 4)
    )
