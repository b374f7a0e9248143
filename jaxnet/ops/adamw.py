"""One step of Adam with decoupled weight decay, for all leaves of a parameter tree at once.

    m  ← β₁ m + (1 − β₁) g
    v  ← β₂ v + (1 − β₂) g²
    m̂  = m / (1 − β₁ᵗ)                                     with Nesterov momentum:
    v̂  = v / (1 − β₂ᵗ)                                     m̂ = β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)
    u  = −η (m̂ / (√(v̂ + ε_root) + ε) + λ w)
    w  ← w + u

g the gradient, w a parameter, t = 1, 2, … the step, η the learning rate, λ the weight decay.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxnet.activations import accumulation_dtype
from jaxnet.kernels.adamw import cpu
from jaxnet.ops import dispatch

Leaves = Sequence[Float[Array, "..."]]


class Scalars(NamedTuple):
    """What a step needs besides the leaves: the hyper-parameters, and what depends on t."""

    b1: Array
    one_minus_b1: Array
    b2: Array
    one_minus_b2: Array
    mu_correction: Array  # 1 − β₁ᵗ
    next_mu_correction: Array  # 1 − β₁ᵗ⁺¹
    nu_correction: Array  # 1 − β₂ᵗ
    eps: Array
    eps_root: Array
    weight_decay: Array
    learning_rate: Array


def adamw(
    grads: Leaves,
    mu: Leaves,
    nu: Leaves,
    params: Leaves | None,
    count: Int[Array, ""],
    *,
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    decayed: Sequence[bool],
    nesterov: bool = False,
    apply: bool = False,
    implementation: str | None = None,
) -> tuple[list[Array], list[Array], list[Array]]:
    """Returns what one step of AdamW makes of each leaf; the formulas stand at the head of this file.

    Computed in at least float32; the results have the dtypes of `nu` (the updates), `params`, `mu`, `nu`.
    Not differentiable: an optimizer's step is where gradients end. Differentiate `optax.adamw` for
    meta-learning.

    Args:
        grads: g, a list of arrays of any shapes.
        mu: m, the first moments, shaped as `grads`.
        nu: v, the second moments, shaped as `grads`.
        params: w, shaped as `grads`; None if neither needed for the decay nor for `apply`.
        count: t, counted from 1.
        learning_rate: η.
        b1: β₁.
        b2: β₂.
        eps: ε, outside of the square root.
        eps_root: ε_root, inside of it.
        weight_decay: λ.
        decayed: for each leaf whether λ w is added.
        nesterov: whether m̂ looks one step ahead.
        apply: whether to add the updates to the parameters: one pass over the memory instead of two.
        implementation: None, `"xla"` or `"cpu"`.

    Returns:
        (u, or with `apply` the new w; m; v), each a list.

    Raises:
        ValueError: if `params` is missing, or if the implementation asked for can't serve.

    Reference:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101
        Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980
        Dozat, Incorporating Nesterov Momentum into Adam, 2016
    """
    needs_params = apply or any(decayed)
    if params is None and needs_params:
        raise ValueError("params must be given where they are to be updated or to decay; got None")
    weights: Leaves = params if params is not None and needs_params else ()
    _check_shapes(grads, mu=mu, nu=nu, **({"params": weights} if needs_params else {}))
    scalars = Scalars(
        b1=_scalar(b1),
        one_minus_b1=_scalar(1 - b1),  # subtracted before it is rounded to float32
        b2=_scalar(b2),
        one_minus_b2=_scalar(1 - b2),
        mu_correction=_bias_correction(b1, count),
        next_mu_correction=_bias_correction(b1, optax.safe_increment(count)),
        nu_correction=_bias_correction(b2, count),
        eps=_scalar(eps),
        eps_root=_scalar(eps_root),
        weight_decay=_scalar(weight_decay),
        learning_rate=_scalar(learning_rate),
    )
    options: dict[str, Any] = {"decayed": tuple(decayed), "nesterov": nesterov, "apply": apply}
    kernels = {"cpu": dispatch.Kernel(partial(cpu.run, **options), cpu.unsupported(grads, mu, nu, weights))}
    run = dispatch.choose("adamw", implementation, partial(reference, **options), kernels)
    return run(grads, mu, nu, weights, scalars)


def reference(
    grads: Leaves,
    mu: Leaves,
    nu: Leaves,
    params: Leaves,
    scalars: Scalars,
    *,
    decayed: Sequence[bool],
    nesterov: bool,
    apply: bool,
) -> tuple[list[Array], list[Array], list[Array]]:
    """The specification, leaf by leaf; `params` is empty where none is needed."""
    out, new_mu, new_nu = [], [], []
    for i, (g, m, v) in enumerate(zip(grads, mu, nu, strict=True)):
        dtype = accumulation_dtype(v.dtype)
        s = Scalars(*(x.astype(dtype) for x in scalars))
        wide_g = g.astype(dtype)
        wide_m = s.one_minus_b1 * wide_g + s.b1 * m.astype(dtype)
        wide_v = s.one_minus_b2 * wide_g**2 + s.b2 * v.astype(dtype)
        if nesterov:
            m_hat = s.b1 * wide_m / s.next_mu_correction + s.one_minus_b1 * wide_g / s.mu_correction
        else:
            m_hat = wide_m / s.mu_correction
        u = m_hat / (jnp.sqrt(wide_v / s.nu_correction + s.eps_root) + s.eps)
        if decayed[i]:
            u += s.weight_decay * params[i].astype(dtype)
        u *= -s.learning_rate
        out.append((params[i].astype(dtype) + u).astype(params[i].dtype) if apply else u.astype(v.dtype))
        new_mu.append(wide_m.astype(m.dtype))
        new_nu.append(wide_v.astype(v.dtype))
    return out, new_mu, new_nu


def _scalar(x: ArrayLike) -> Array:
    return jnp.asarray(float(x) if isinstance(x, int) else x)


def _bias_correction(decay: ArrayLike, count: Array) -> Array:
    decay = _scalar(decay)
    return 1 - decay ** count.astype(decay.dtype)


def _check_shapes(grads: Leaves, **others: Leaves) -> None:
    shapes = [g.shape for g in grads]
    for name, leaves in others.items():
        if [x.shape for x in leaves] != shapes:
            raise ValueError(f"{name} must have the shapes of grads, {shapes}; got {[x.shape for x in leaves]}")
