"""The functions that networks are made of: their structure is the trap."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, correct, normal, positive, rule, setup


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
