"""Control flow, transformations, randomness, and the functions that networks are made of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .registry import Setup, correct, normal, positive, rule, setup, tangent_rule


@correct(order=2)
def rule_in_a_rule(rng: Any) -> Setup:
    """A custom_vjp inside the tangent of a custom_jvp, right to second order."""
    cosine = tangent_rule(lambda x: jnp.cos(x), lambda x, dx: -jnp.sin(x) * dx)
    sine = tangent_rule(lambda x: jnp.sin(x), lambda x, dx: cosine(x) * dx)
    cube = rule(lambda x: x**3, lambda x, y, dy: (3 * x**2 * dy,))
    return setup(lambda x: cube(sine(x)), normal(rng, 5))


@correct()
def while_loop_in_a_rule(rng: Any) -> Setup:
    """Reverse mode through a while_loop exists only by the rule."""

    def power(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * x), (0, jnp.ones_like(x)))[1]

    return setup(rule(power, lambda x, y, dy: (5 * x**4 * dy,)), normal(rng, 4))


@correct(reverse=False)
def while_loop_forward_only(rng: Any) -> Setup:
    """No reverse mode at all; forward mode can be checked."""

    def fn(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]

    return setup(fn, positive(rng, 3))


@correct()
def scan_cond_switch_and_fori(rng: Any) -> Setup:
    """All of them in one function, with a rule inside."""
    double = rule(lambda x: 2 * x, lambda x, y, dy: (2 * dy,))

    def fn(w: Any, x: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            x, i = row
            h = jax.lax.switch(i % 3, [jnp.sin, double, jnp.tanh], h @ w + x)
            return jax.lax.cond(h.sum() > 0, double, lambda h: h, h), h.sum()

        h, sums = jax.lax.scan(step, jnp.zeros_like(x[0]), (x, jnp.arange(4)))
        return jax.lax.fori_loop(0, 3, lambda _, h: jax.nn.silu(h), h) * sums.mean()

    return setup(fn, normal(rng, 3, 3) / 2, normal(rng, 4, 3))


@correct()
def associative_scan(rng: Any) -> Setup:
    """A linear recurrence in logarithmic depth."""

    def fn(a: Any, x: Any) -> Any:
        return jax.lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, x))[1]

    return setup(fn, positive(rng, 7) / 2, normal(rng, 7))


@correct()
def nested_jit_and_remat(rng: Any) -> Setup:
    """jit in checkpoint in jit, with a rule at the bottom."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (jnp.cos(x) * dy,))
    inner = jax.checkpoint(jax.jit(lambda x: op(x) * x))
    return setup(jax.jit(lambda x: jax.jit(inner)(inner(x))), normal(rng, 4))


@correct()
def vmap_inside(rng: Any) -> Setup:
    """Per-example losses by vmap, over a rule."""
    norm = rule(lambda x: jnp.sqrt((x**2).sum()), lambda x, y, dy: (dy * x / y,))
    return setup(lambda x, w: jax.vmap(lambda x: norm(x * w))(x), normal(rng, 4, 3), positive(rng, 3))


@correct()
def gradient_penalty(rng: Any) -> Setup:
    """A loss with jax.grad inside."""

    def network(w: Any, x: Any) -> Any:
        return (jnp.tanh(x @ w) ** 2).sum()

    def loss(w: Any, x: Any) -> Any:
        return ((jnp.linalg.norm(jax.grad(network, 1)(w, x), axis=1) - 1) ** 2).mean()

    return setup(loss, normal(rng, 3, 4), normal(rng, 2, 3))


@correct()
def unrolled_optimisation(rng: Any) -> Setup:
    """Ten steps of gradient descent, differentiated by the learning rate and the start."""

    def fn(rate: Any, w: Any) -> Any:
        step = jax.grad(lambda w: ((w**2 - 1) ** 2).sum())
        return jax.lax.scan(lambda w, _: (w - rate * step(w), None), w, length=10)[0]

    return setup(fn, 0.02 * positive(rng), normal(rng, 3))


@correct()
def dropout(rng: Any) -> Setup:
    """A mask from a key."""

    def fn(x: Any, key: Any) -> Any:
        return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0) ** 2

    return setup(fn, normal(rng, 4, 5), jax.random.key(int(rng.integers(1000))))


@correct()
def reparametrised_normal(rng: Any) -> Setup:
    """μ + σ·z, where z has the dtype of the arguments: float64 draws other numbers than float32."""

    def fn(mean: Any, log_std: Any, key: Any) -> Any:
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)

    return setup(fn, normal(rng, 4), normal(rng, 4), jax.random.key(int(rng.integers(1000))))


@correct()
def fourier_transforms(rng: Any) -> Setup:
    """rfft, a filter, irfft; and the power of a spectrum."""

    def fn(x: Any, h: Any) -> Any:
        return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(h), x.size) + jnp.abs(jnp.fft.fft(x)) ** 2

    return setup(fn, normal(rng, 8), normal(rng, 8))


@correct()
def convolutions(rng: Any) -> Setup:
    """Strided, dilated, depthwise and transposed."""

    def fn(x: Any, k: Any, d: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, k, (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=numbers)
        y = jax.lax.conv_general_dilated(y, d, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2)
        return jax.lax.conv_transpose(jnp.tanh(y), k, (2, 2), "SAME", dimension_numbers=numbers)

    return setup(fn, normal(rng, 1, 6, 5, 2), normal(rng, 3, 3, 2, 2), normal(rng, 2, 2, 1, 2))


@correct()
def gather_with_duplicates(rng: Any) -> Setup:
    """An embedding with repeated tokens by a rule, scatter-add in its backward."""
    op = rule(
        lambda table, tokens: table[tokens],
        lambda table, tokens, y, dy: (jnp.zeros_like(table).at[tokens].add(dy), None),
    )
    return setup(op, normal(rng, 5, 3), jnp.array([1, 4, 1, 0, 1, -1]))


@correct()
def scatters(rng: Any) -> Setup:
    """add, multiply, max and set, some at equal places."""
    places = jnp.array([0, 2, 2, 3])

    def fn(x: Any, v: Any) -> Any:
        return x.at[places].add(v) * x.at[places].max(v) + x.at[jnp.array([1, 2])].multiply(
            v[:2], unique_indices=True
        )

    return setup(fn, normal(rng, 5), normal(rng, 4))


@correct()
def sorting_and_selecting(rng: Any) -> Setup:
    """sort, top_k, argsort, take_along_axis."""

    def fn(x: Any) -> Any:
        order = jnp.argsort(x, axis=1)
        return jnp.sort(x, axis=1) ** 2 + jnp.take_along_axis(x, order[:, ::-1], axis=1) * jax.lax.top_k(x, 4)[0]

    return setup(fn, normal(rng, 3, 4))


@correct()
def einsum_over_everything(rng: Any) -> Setup:
    """Batch axes, contractions and a trace."""
    return setup(
        lambda x, y, z: jnp.einsum("bij,bjk,bk->bi", x, y, z) + jnp.einsum("bii->b", x[:, :, :3])[:, None],
        normal(rng, 2, 3, 4), normal(rng, 2, 4, 3), normal(rng, 2, 3),
    )  # fmt: skip


@correct(source="tracel-ai/burn #5141")
def cumulative_product_with_zeros(rng: Any) -> Setup:
    """JAX's own; zeros among the factors."""
    return setup(lambda x: jnp.cumprod(x), positive(rng, 6).at[jnp.array([2, 4])].set(0.0))


@correct()
def attention_in_blocks(rng: Any) -> Setup:
    """An online softmax over blocks of keys, causal, with a hand-written backward."""

    def online(q: Any, k: Any, v: Any) -> Any:
        def block(state: Any, start: Any) -> Any:
            top, total, y = state
            keys, values = (jax.lax.dynamic_slice_in_dim(a, start, 2) for a in (k, v))
            s = q @ keys.T / 2
            s = jnp.where(jnp.arange(6)[:, None] >= start + jnp.arange(2)[None], s, -1e30)
            new = jnp.maximum(top, s.max(axis=1))
            p, old = jnp.exp(s - new[:, None]), jnp.exp(top - new)
            return (new, total * old + p.sum(axis=1), y * old[:, None] + p @ values), None

        start = jnp.full(6, -1e30, q.dtype), jnp.zeros(6, q.dtype), jnp.zeros_like(q)
        (_, total, y), _ = jax.lax.scan(block, start, jnp.arange(0, 6, 2))
        return y / total[:, None]

    def backward(q: Any, k: Any, v: Any, y: Any, dy: Any) -> Any:
        s = jnp.where(jnp.tril(jnp.ones((6, 6), bool)), q @ k.T / 2, -1e30)
        p = jax.nn.softmax(s)
        ds = p * (dy @ v.T - (dy * y).sum(axis=1, keepdims=True)) / 2
        return ds @ k, ds.T @ q, p.T @ dy

    return setup(rule(online, backward), *(normal(rng, 6, 4) for _ in range(3)))


@correct()
def batch_norm_with_a_rule(rng: Any) -> Setup:
    """All three terms."""

    def norm(x: Any, scale: Any) -> Any:
        return (
            (x - x.mean(axis=0, keepdims=True)) * jax.lax.rsqrt(x.var(axis=0, keepdims=True) + 1e-3) * scale[None]
        )

    def backward(x: Any, scale: Any, y: Any, dy: Any) -> Any:
        rstd = jax.lax.rsqrt(x.var(axis=0, keepdims=True) + 1e-3)
        z = (x - x.mean(axis=0, keepdims=True)) * rstd
        dz = dy * scale[None]
        mean = {"axis": 0, "keepdims": True}
        return rstd * (dz - dz.mean(**mean) - z * (dz * z).mean(**mean)), (dy * z).sum(axis=0)

    return setup(rule(norm, backward), normal(rng, 8, 3), positive(rng, 3))


@correct()
def connectionist_temporal_classification(rng: Any) -> Setup:
    """A forward-backward recursion in log space with -1e30 for impossible states."""

    def loss(logits: Any) -> Any:
        logp = jax.nn.log_softmax(logits)
        labels = jnp.array([0, 1, 0, 2, 0])
        alpha = jnp.full(5, -1e30, logits.dtype).at[:2].set(logp[0, labels[:2]])

        def step(alpha: Any, logp: Any) -> Any:
            shifted = jnp.concatenate([jnp.full(1, -1e30, alpha.dtype), alpha[:-1]])
            return jnp.logaddexp(alpha, shifted) + logp[labels], None

        alpha = jax.lax.scan(step, alpha, logp[1:])[0]
        return -jnp.logaddexp(alpha[-1], alpha[-2])

    return setup(loss, normal(rng, 7, 3))


@correct()
def hand_written_claim(rng: Any) -> Setup:
    """A right claim for some of the arguments only."""

    def loss(params: Any, x: Any) -> Any:
        return (jnp.tanh(x @ params["w"] + params["b"][None]) ** 2).sum()

    def claim(params: Any, x: Any) -> Any:
        y = jnp.tanh(x @ params["w"] + params["b"][None])
        dz = 2 * y * (1 - y**2)
        return ({"w": x.T @ dz, "b": dz.sum(axis=0)},)

    return setup(loss, {"w": normal(rng, 3, 2), "b": normal(rng, 2)}, normal(rng, 4, 3), hand_written=claim)


@correct()
def noise_within_the_stated_bound(rng: Any) -> Setup:
    """A backward whose sums come in any order: nondeterminism= states how much that may do."""

    def host(x: Any, dy: Any) -> Any:
        return (np.cos(x) * dy * (1 + 1e-7 * rng.standard_normal(x.shape))).astype(x.dtype)

    def backward(x: Any, y: Any, dy: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (jax.pure_callback(host, shape, x, dy, vmap_method="sequential"),)

    return setup(rule(lambda x: jnp.sin(x), backward), normal(rng, 5), nondeterminism=1e-6)


@correct()
def linear_call_with_a_right_transpose(rng: Any) -> Setup:
    """Forward and reverse mode by two functions that agree."""

    @jax.custom_jvp
    def op(x: Any) -> Any:
        return jnp.sin(x)

    @op.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        return op(x), jax.custom_derivatives.linear_call(lambda c, t: c * t, lambda c, ct: c * ct, jnp.cos(x), dx)

    return setup(op, normal(rng, 4))
