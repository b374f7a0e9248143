"""The population's statistics of batch normalisation, in one pure pass over data."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet.layers import Layer
from jaxnet.layers.layer import Inputs, Params
from jaxnet.layers.normalization import recorded


def population_statistics(net: Layer, params: Params, batches: Iterable[Any], *, key: Array) -> Params:
    """Returns `params` with the mean and variance of each `layers.batch_norm` over all `batches`.

    The layers see the data as in training, normalised by each batch's own statistics, with the parameters
    as they are now: "precise BatchNorm". Batch i of nᵢ examples with μᵢ and vᵢ counts by its size, and the
    variance is that of all elements together, by the law of total variance:

        μ = Σ nᵢ μᵢ / Σ nᵢ        v = Σ nᵢ (vᵢ + (μᵢ − μ)²) / Σ nᵢ

    What follows a batch normalisation depends a little on the size of the batch; take that of training. Call
    it before every use without a key, such as `evaluate`, after the parameters have changed.

    Args:
        net: any network; all else in `params`, and a `batch_norm` that isn't reached, stays as it is.
        params: its parameters.
        batches: (x, target), as for `evaluate`, or x alone if it isn't a tuple itself; a few thousand examples are
            enough. x is whatever the network takes: an array, or a pair (x, lengths). What is padding counts too,
            as it does in training.
        key: of what else is drawn in training, such as dropout; batch i draws from fold_in(key, i).

    Raises:
        ValueError: if there is no batch.

    Example:
        >>> params = train.population_statistics(net, state.params, training, key=jax.random.key(0))
        >>> train.evaluate(net, params, test, {"accuracy": train.accuracy})

    Reference: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576
    """

    size, reached = 0, None
    means: list[Any] = []
    variances: list[Any] = []
    for i, batch in enumerate(batches):
        x = jax.tree.map(jnp.asarray, batch[0] if isinstance(batch, tuple) else batch)
        examples = len(jax.tree.leaves(x)[0])
        if not examples:
            continue
        at = params, x, jax.random.fold_in(key, i)
        if reached is None:
            reached = _reached(_program("count", net, None)(*at))
            means, variances = [0.0] * (len(reached) // 2), [0.0] * (len(reached) // 2)
        # In the order of a dictionary's leaves "mean" comes before "var", with nothing recorded between them.
        found = [np.asarray(leaf).astype(np.float64) for leaf in _program("statistics", net, reached)(*at)]
        size, share = size + examples, examples / (size + examples)
        for j, (mean, variance) in enumerate(zip(found[::2], found[1::2], strict=True)):
            apart = mean - means[j]
            means[j] = means[j] + share * apart
            variances[j] = variances[j] + share * (variance - variances[j]) + share * (1 - share) * apart**2
    if reached is None:
        raise ValueError("population_statistics needs at least one batch with an example; got none")
    leaves, tree = jax.tree.flatten(params)
    for where, values in ((reached[::2], means), (reached[1::2], variances)):
        for place, value in zip(where, values, strict=True):
            leaves[place] = jnp.asarray(value, leaves[place].dtype)
    return jax.tree.unflatten(tree, leaves)


@lru_cache(maxsize=64)
def _program(kind: str, net: Layer, places: tuple[int, ...] | None) -> Callable[..., list[Array | None]]:
    """Returns what `layers.batch_norm` records of a batch in the leaves of params at `places`, None for all."""

    @jax.jit
    def program(params: Params, x: Inputs, key: Array) -> list[Array | None]:
        leaves, tree = jax.tree.flatten(params)
        asked = range(len(leaves)) if places is None else places
        floats = [i for i in asked if jnp.issubdtype(jnp.result_type(leaves[i]), jnp.floating)]

        def outputs(some: list[Array]) -> list[Array]:
            all_leaves = list(leaves)
            for i, leaf in zip(floats, some, strict=True):
                all_leaves[i] = leaf
            y = net.apply(jax.tree.unflatten(tree, all_leaves), x, key=key)
            return [leaf for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        with recorded(kind):
            y, pullback = jax.vjp(outputs, [leaves[i] for i in floats])
            (found,) = pullback([jnp.zeros_like(leaf) for leaf in y])
        by_place = dict(zip(floats, found, strict=True))
        return [by_place.get(i) for i in asked]

    return program


def _reached(counts: list[Array | None]) -> tuple[int, ...]:
    """The places of the leaves in which statistics are recorded: for all others the gradient of zero is zero."""
    most = [0.0 if count is None else float(np.max(np.asarray(count), initial=0)) for count in counts]
    if any(count > 1 for count in most):
        raise ValueError("a batch_norm is applied more than once with the same params: it has no one population")
    return tuple(i for i, count in enumerate(most) if count == 1)
