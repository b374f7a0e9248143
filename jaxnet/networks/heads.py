"""What is put on an encoder: words guessed where they are masked, and a class for each sequence.

Axes: B batch · T places · M masked places · E features · V vocabulary.

Both have the encoder's parameters in `params["encoder"]`, so that what one has learnt the other can begin with.
(Devlin et al., "BERT: pre-training of deep bidirectional transformers for language understanding", 2018).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import layers, ops
from jaxnet.activations import Activation, accumulation_dtype
from jaxnet.layers import Layer
from jaxnet.layers.embedding import of_integers
from jaxnet.layers.layer import Inputs, Params, output, split
from jaxnet.networks.blocks import head, whole_numbers


def masked_language_model(
    encoder: Layer, features: int, *, activation: str | Activation = "gelu", implementation: str | None = None
) -> Layer:
    """Logits (B, M, V) of the word at each of some places, from all other words: z = norm(f(y W₀ + b₀)) Wᵀ + b.

    Args:
        encoder: `transformer_encoder` with a vocabulary V; y is what it makes of those places.
        features: E, of the encoder.
        activation: f.
        implementation: see `jaxnet.ops.dispatch`.

    W is the table of the encoder's embedding. x is (ids (B, T), lengths (B,), places (B, M)), as
    `data.mask_words` makes it.

    `params` is `{"encoder": …, "head": …, "bias": b}`.

    Raises:
        ValueError: for features < 1 or an unknown activation; in `init`, for an x of another form.

    Example:
        >>> net = networks.masked_language_model(networks.transformer_encoder(64, 2, 4, vocabulary=1000), 64)
        >>> x = jnp.zeros((8, 20), int), jnp.full(8, 15), jnp.zeros((8, 3), int)
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8, 3, 1000)
    """
    before = layers.serial(
        layers.dense(features, activation=activation, implementation=implementation),
        layers.layer_norm(implementation=implementation),
    )

    def init(key: Array, x: Inputs) -> Params:
        if not isinstance(x, tuple) or len(x) != 3:
            found = jax.tree.map(jnp.shape, x)
            raise ValueError(f"masked_language_model needs (ids, lengths, places); got shapes {found}")
        first, second = jax.random.split(key)
        params = encoder.init(first, x[:2])
        y = output(encoder, params, x[:2])
        table = params[0]["table"]
        return {"encoder": params, "head": before.init(second, y), "bias": jnp.zeros(len(table), table.dtype)}

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        (ids, lengths, places), (first, second) = x, split(key, 2)
        y = _at(encoder.apply(params["encoder"], (ids, lengths), key=first), places)
        y = before.apply(params["head"], y, key=second)
        return ops.linear(y, _weight(params), params["bias"], implementation=implementation)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        (ids, lengths, places), (first, second) = x, split(key, 2)
        y, encoded = encoder.vjp(params["encoder"], (ids, lengths), key=first)
        residuals = places, jnp.zeros((0, *y.shape[1:]), y.dtype)
        y, headed = before.vjp(params["head"], _at(y, places), key=second)
        z, mapped = ops.linear_vjp(y, _weight(params), params["bias"], implementation=implementation)
        return z, Partial(_masked_pullback, encoded, residuals, headed, mapped)

    return Layer(init, apply, vjp)


def _weight(params: Params) -> Array:
    return params["encoder"][0]["table"].T


def _rows(places: Array, length: int) -> Array:
    """The numbers of the places (B, M) in the list of all B·T."""
    return places + length * jnp.arange(len(places), dtype=places.dtype)[:, None]


def _at(y: Array, places: Array) -> Array:
    """y (B, T, E) at places (B, M): (B, M, E)."""
    return y.reshape(-1, y.shape[-1])[_rows(places, y.shape[1])]


def _at_pullback(places: Array, like: Array, dy: Array) -> Array:
    """dx_bt = Σ_m [places_bm = t] dy_bm, x (B, T, E), T and E those of `like`."""
    _, length, features = like.shape
    zeros = jnp.zeros((len(places) * length, features), accumulation_dtype(dy.dtype))
    total = zeros.at[_rows(places, length)].add(dy.astype(zeros.dtype))
    return total.astype(dy.dtype).reshape(len(places), length, features)


def _masked_pullback(
    encoded: Partial, residuals: tuple[Array, Array], headed: Partial, mapped: Partial, dz: Array
) -> tuple[Params, Any]:
    """The table is used twice: dW = dW of the embedding + dW of the last map."""
    dy, dweight, dbias = mapped(dz)
    dhead, dy = headed(dy)
    (embedding, *rest), dx = encoded(_at_pullback(*residuals, dy))
    dencoder = {"table": embedding["table"] + dweight.T}, *rest
    return {"encoder": dencoder, "head": dhead, "bias": dbias}, (*dx, of_integers(residuals[0].shape))


def sequence_classifier(
    encoder: Layer,
    sizes: int | Sequence[int],
    *,
    pool: str = "mean",
    activation: str | Activation = "tanh",
    dropout_rate: float = 0.0,
    implementation: str | None = None,
) -> Layer:
    """Logits (B, classes) of a sequence: dense layers on what an encoder makes of its places.

    Args:
        encoder: of ids (B, T) or x (B, T, I), or a pair of that and lengths (B,), to y (B, T, E).
        sizes: features of the dense layers: the classes, or hidden layers and the classes.
        pool: "first", they see y at the first place, such as a mark put there; or "mean" of the sequence's places.
        activation: of the hidden dense layers.
        dropout_rate: of dropout before each dense layer.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"encoder": …, "head": …}`.

    Raises:
        ValueError: for numbers < 1, another pool, an unknown activation.

    Example:
        >>> net = networks.sequence_classifier(networks.transformer_encoder(64, 2, 4, vocabulary=1000), 2)
        >>> x = jnp.zeros((8, 20), int), jnp.full(8, 15)
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8, 2)
    """
    if pool not in ("first", "mean"):
        raise ValueError(f"sequence_classifier needs a pool 'first' or 'mean'; got {pool!r}")
    sizes = whole_numbers("sizes", sizes)
    dropout = [layers.dropout(dropout_rate)] if dropout_rate else []
    after = layers.serial(*dropout, *head(sizes, activation, dropout_rate, implementation=implementation))

    def weights(x: Inputs, y: Array) -> Array:
        """Of each place in what is pooled, (B, T)."""
        count = jnp.full(len(y), 1 if pool == "first" else y.shape[1], "int32")
        if isinstance(x, tuple) and pool == "mean":
            count = x[1].astype("int32")
        counted = jnp.arange(y.shape[1], dtype="int32")[None] < count[:, None]
        return counted.astype(y.dtype) / jnp.maximum(count, 1).astype(y.dtype)[:, None]

    def init(key: Array, x: Inputs) -> Params:
        first, second = jax.random.split(key)
        params = encoder.init(first, x)
        y = output(encoder, params, x)
        pooled = jax.ShapeDtypeStruct((y.shape[0], y.shape[2]), y.dtype)
        return {"encoder": params, "head": after.init(second, pooled)}

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        first, second = split(key, 2)
        y = encoder.apply(params["encoder"], x, key=first)
        return after.apply(params["head"], _pooled(weights(x, y), y), key=second)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        first, second = split(key, 2)
        y, encoded = encoder.vjp(params["encoder"], x, key=first)
        w = weights(x, y)
        z, headed = after.vjp(params["head"], _pooled(w, y), key=second)
        return z, Partial(_classifier_pullback, encoded, w, headed)

    return Layer(init, apply, vjp)


def _pooled(w: Array, y: Array) -> Array:
    """p_b = Σ_t w_bt y_bt."""
    return jnp.einsum("bt,bte->be", w, y, preferred_element_type=accumulation_dtype(y.dtype)).astype(y.dtype)


def _classifier_pullback(encoded: Partial, w: Array, headed: Partial, dz: Array) -> tuple[Params, Any]:
    """dy_bt = w_bt dp_b."""
    dhead, dpooled = headed(dz)
    dencoder, dx = encoded(w[:, :, None] * dpooled[:, None, :])
    return {"encoder": dencoder, "head": dhead}, dx
