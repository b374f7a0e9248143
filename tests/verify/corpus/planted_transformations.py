"""Derivatives that are right in one way of calling them and wrong in another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .registry import Setup, normal, planted, positive, rule, setup, transposed_sine


def traced(*values: Any) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


@planted(witness="vmap", source="jax-ml/jax #1249")
def wrong_only_under_vmap(rng: Any) -> Setup:
    """The batching rule of the backward's kernel has a factor of its own."""

    @jax.custom_batching.custom_vmap
    def kernel(x: Any, dy: Any) -> Any:
        return jnp.cos(x) * dy

    @kernel.def_vmap
    def _(size: Any, batched: Any, x: Any, dy: Any) -> Any:
        return 1.5 * jnp.cos(x) * dy, True

    return setup(rule(lambda x: jnp.sin(x), lambda x, y, dy: (kernel(x, dy),)), normal(rng, 4))


@planted(witness="jit")
def right_only_under_jit(rng: Any) -> Setup:
    """Called eagerly, the backward takes another path, with a wrong sign."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (jnp.cos(x) * dy * (1 if traced(x, dy) else -1),))
    return setup(op, normal(rng, 4))


@planted("x")
def wrong_only_under_jit(rng: Any) -> Setup:
    """The compiled path is the wrong one."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (jnp.cos(x) * dy * (-1 if traced(x, dy) else 1),))
    return setup(op, normal(rng, 4))


def noisy(amount: float, rng: Any) -> Any:
    """cos(x)·dy through a host callback that is never twice the same."""

    def host(x: Any, dy: Any) -> Any:
        noise = 1 + amount * rng.standard_normal(x.shape)
        return (np.cos(x) * dy * noise).astype(x.dtype)

    def backward(x: Any, y: Any, dy: Any) -> Any:
        return (jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, dy, vmap_method="sequential"),)

    return rule(lambda x: jnp.sin(x), backward)


@planted(witness="determinism", source="fla-org/flash-linear-attention #889")
def race_in_the_accumulation(rng: Any) -> Setup:
    """The last digits differ from call to call."""
    return setup(noisy(1e-6, rng), normal(rng, 6))


@planted(witness="determinism", source="NVIDIA/apex #1430")
def second_call_finds_another_buffer(rng: Any) -> Setup:
    """The backward overwrites a buffer that it needs: the first call is right, the next isn't."""
    buffer: dict[Any, Any] = {}

    def host(x: Any, dy: Any) -> Any:
        saved = buffer.setdefault(x.tobytes(), np.cos(x))
        result = (saved * dy).astype(x.dtype)
        buffer[x.tobytes()] = 0.5 * saved
        return result

    def backward(x: Any, y: Any, dy: Any) -> Any:
        return (jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, dy, vmap_method="sequential"),)

    return setup(rule(lambda x: jnp.sin(x), backward), normal(rng, 4))


@planted("x", witness="adjoint")
def transpose_of_the_tangent_is_wrong(rng: Any) -> Setup:
    """Forward mode is right; a linear_call brings a transpose of its own, which is twice the right one."""
    return setup(transposed_sine(lambda c, t: c * t, lambda c, ct: 2 * c * ct), normal(rng, 4))


@planted(witness="adjoint")
def forward_mode_alone_is_wrong(rng: Any) -> Setup:
    """The other way round: jax.grad is right, jax.jvp has a wrong sign."""
    return setup(transposed_sine(lambda c, t: -c * t, lambda c, ct: c * ct), normal(rng, 4))


@planted("x", reverse=False)
def tangent_of_a_loop_with_a_wrong_factor(rng: Any) -> Setup:
    """A while_loop has forward mode only, and the rule inside it is wrong."""
    op = jax.custom_jvp(lambda x: x**2)
    op.defjvp(lambda args, dargs: (args[0] ** 2, args[0] * dargs[0]))

    def fn(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, op(s[1])), (0, x))[1]

    return setup(fn, positive(rng, 3))


@planted("x", reverse=False)
def tangent_that_is_not_linear(rng: Any) -> Setup:
    """dx + dx² for dx; JAX can't transpose it, so it is forward mode only."""
    op = jax.custom_jvp(lambda x: jnp.sin(x))
    op.defjvp(lambda args, dargs: (jnp.sin(args[0]), jnp.cos(args[0]) * (dargs[0] + dargs[0] ** 2)))
    return setup(op, normal(rng, 3))


@planted("x", witness="linearity")
def cotangent_clipped(rng: Any) -> Setup:
    """A backward that clips its cotangent isn't linear, and wrong for large ones: here the loss is scaled."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (jnp.cos(x) * jnp.clip(dy, -1, 1),))
    return setup(lambda x: 10 * op(x), normal(rng, 5))


@planted("x", source="pytorch/pytorch #198119")
def wrong_inside_remat(rng: Any) -> Setup:
    """jax.checkpoint around a rule: recomputed, not excused."""
    op = rule(lambda x: jnp.tanh(x), lambda x, y, dy: (dy * (1 - x**2),))
    return setup(jax.checkpoint(lambda x: op(op(x))), normal(rng, 4) / 2)


@planted("x")
def wrong_inside_vmap_and_cond(rng: Any) -> Setup:
    """A rule in a branch of a cond, in a vmap: one row takes the wrong branch."""
    op = rule(lambda x: jnp.exp(x), lambda x, y, dy: (dy,))

    def row(x: Any, choice: Any) -> Any:
        return jax.lax.cond(choice > 1, op, jnp.sin, x)

    return setup(lambda x: jax.vmap(row)(x, jnp.arange(3)), normal(rng, 3, 2))


@planted("x", witness="form")
def gradient_of_another_dtype(rng: Any) -> Setup:
    """A hand-written gradient of a bfloat16 leaf comes back as float32."""

    def loss(x: Any) -> Any:
        return (x.astype(jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype) ** 2).sum()

    def claim(x: Any) -> Any:
        return (2 * (x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x),)

    return setup(loss, normal(rng, 4, dtype=jnp.bfloat16), hand_written=claim)
