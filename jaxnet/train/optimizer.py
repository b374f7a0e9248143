"""Adam and AdamW with the whole step fused into one pass over the memory.

They are drop-in replacements for `optax.adam` and `optax.adamw`; all other optimizers are optax's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from jaxnet.ops.adamw import adamw as adamw_step

PyTree = Any
Schedule = Callable[[jax.Array], ArrayLike]


class FusedTransformation(optax.GradientTransformationExtraArgs):
    """An `optax.GradientTransformation` that can also take the whole step.

    `apply(grads, state, params) -> (params, state)` computes what `update` followed by
    `optax.apply_updates` does, without storing the updates. Its kernel works in the buffers of the old
    parameters and state if those are donated; let the function that is jitted take them in the order in
    which it returns them, since `jax.jit` pairs donated buffers with results by shape and order, and
    copies where the pairs are wrong.
    """

    apply: Callable[[PyTree, optax.OptState, PyTree], tuple[PyTree, optax.OptState]]


def adamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    *,
    nesterov: bool = False,
    implementation: str | None = None,
) -> FusedTransformation:
    """Adam with decoupled weight decay: `optax.adamw`, fused.

        w ← w − η (m̂ / (√(v̂ + ε_root) + ε) + λ w)

    with the bias-corrected moments m̂ and v̂ of `jaxnet.ops.adamw`. Floating-point parameters of any
    shapes; the arithmetic is done in at least float32. Not differentiable (use `optax.adamw` for
    meta-learning).

    Args:
        learning_rate: η, a number or a schedule: a function of the count of steps done.
        b1: β₁ in [0, 1), the decay of the first moment m.
        b2: β₂ in [0, 1), the decay of the second moment v.
        eps: ε ≥ 0.
        eps_root: ε_root ≥ 0.
        mu_dtype: the dtype that m is stored in; None for the parameter's.
        weight_decay: λ, a number or a schedule.
        mask: which parameters decay: a pytree of booleans, a prefix of the parameters', or a function
            that makes one from the parameters. None for all.
        nesterov: whether m̂ looks one step ahead.
        implementation: see `jaxnet.ops.dispatch`; `"cpu"` serves float32 and float64.

    Returns:
        An optimizer whose state is an `optax.ScaleByAdamState`: `count`, `mu`, `nu`.

    Raises:
        ValueError: for a hyper-parameter out of its range (those that are traced are not checked), for
            parameters that are not real numbers, and if the parameters are not given where they decay.

    Example:
        >>> optimizer = train.adamw(optax.cosine_decay_schedule(1e-3, 1000), weight_decay=0.01)
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.apply(grads, state, params)

    Reference:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101
    """
    _check_range("learning_rate", learning_rate)
    _check_range("b1", b1, below=1.0)
    _check_range("b2", b2, below=1.0)
    _check_range("eps", eps)
    _check_range("eps_root", eps_root)
    _check_range("weight_decay", weight_decay)
    decays = not (isinstance(weight_decay, (int, float)) and weight_decay == 0)

    def init(params: PyTree) -> optax.ScaleByAdamState:
        for path, leaf in jax.tree.leaves_with_path(params):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                name, found = jax.tree_util.keystr(path), jnp.result_type(leaf)
                raise ValueError(f"params must be real floating-point arrays; params{name} is {found}")
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
        )

    def step(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree | None, *, apply: bool
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        if decays and params is None:
            raise ValueError("params must be given to an update with weight_decay; got None")
        tree: Any = jax.tree.structure(grads)
        count = optax.safe_increment(state.count)
        out, mu, nu = adamw_step(
            _leaves(tree, grads),
            _leaves(tree, state.mu),
            _leaves(tree, state.nu),
            None if params is None else _leaves(tree, params),
            count,
            learning_rate=_at(learning_rate, state.count),
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            weight_decay=_at(weight_decay, state.count),
            decayed=_mask_leaves(mask, params) if decays else [False] * tree.num_leaves,
            nesterov=nesterov,
            apply=apply,
            implementation=implementation,
        )
        return tree.unflatten(out), optax.ScaleByAdamState(count, tree.unflatten(mu), tree.unflatten(nu))

    def update(
        updates: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del extra  # optax hands them to every member of a chain
        return step(updates, state, params, apply=False)

    def apply(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        return step(grads, state, params, apply=True)

    optimizer = FusedTransformation(init, update)
    optimizer.apply = apply
    return optimizer


def adam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    implementation: str | None = None,
) -> FusedTransformation:
    """Adam: `adamw` without weight decay, `optax.adam` fused.

    Reference:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay=0.0,
        nesterov=nesterov,
        implementation=implementation,
    )


def _at(value: ArrayLike | Schedule, count: jax.Array) -> ArrayLike:
    return value(count) if callable(value) else value


def _leaves(tree: Any, values: PyTree) -> list[jax.Array]:
    """The leaves of `values`, which must have the structure `tree`."""
    return [jnp.asarray(x) for x in tree.flatten_up_to(values)]


def _mask_leaves(mask: PyTree | Callable[[PyTree], PyTree] | None, params: PyTree) -> list[bool]:
    if mask is None:
        return [True] * len(jax.tree.leaves(params))
    # A pytree can be callable too, as the modules of some libraries are.
    if callable(mask) and jax.tree_util.all_leaves([mask]):
        mask = mask(params)
    return [bool(m) for m in jax.tree.leaves(jax.tree.broadcast(mask, params))]


def _check_range(name: str, value: ArrayLike | Schedule, below: float = float("inf")) -> None:
    """Raises unless 0 ≤ value < below; values that aren't known yet pass."""
    if isinstance(value, (int, float)) and not 0 <= value < below:
        raise ValueError(f"{name} must be in [0, {below:g}); got {value}")
