"""The recurrent layers: sequences (B, T, I) → (B, T, H), or → (B, H), the last state of each.

x may be a pair (x, lengths): after its length a sequence is padding, which isn't read, and y is 0 there. y is an
array all the same, so that dense layers may follow; several recurrent layers are one layer with `layers=`.

From the beginning to the end they also read piece by piece (`layers.Reader`); the state is that of each layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxnet import activations, ops
from jaxnet.layers import initializers
from jaxnet.layers.combinators import parallel, serial
from jaxnet.layers.dropout import dropout
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Inputs, Layer, Params, Reader

_OUTPUTS = ("sequence", "last")


def rnn(
    features: int,
    *,
    activation: str = "tanh",
    layers: int = 1,
    bidirectional: bool = False,
    reverse: bool = False,
    output: str = "sequence",
    dropout_rate: float = 0.0,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    remat: bool = False,
    implementation: str | None = None,
) -> Reader:
    """hₜ = f(xₜ W + b + hₜ₋₁ U) from h = 0: `ops.rnn` with parameters, one layer or several.

    Args:
        features: H, the size of h.
        activation: f, "tanh" or "relu".
        layers: how many, each on the outputs of the one before.
        bidirectional: whether each layer goes through the sequences in both directions, with parameters for each.
            The two outputs lie side by side, (…, 2 H).
        reverse: whether the one direction is from the end to the beginning.
        output: "sequence", all h of the last layer, (B, T, H); or "last", its h after the step that comes last in
            its direction, (B, H).
        dropout_rate: of dropout between two layers; 0 is none.
        bias: whether there is a b.
        weight_init: of W; None takes what suits the activation (`initializers.suited_to`).
        recurrent_init: of U.
        bias_init: of b. All three are names or functions of `layers.initializers`.
        remat: whether the backward pass computes f(z) again; see `ops.rnn`.
        implementation: see `jaxnet.ops.dispatch`.

    x is (B, T, I), or a pair of that and lengths (B,).

    `params` is `{"weight": W, "recurrent_weight": U, "bias": b}`, in the dtype of x; a pair of those if
    bidirectional, the direction from the end second; for several layers a tuple with an entry for each, and `()`
    for each dropout.

    Raises:
        ValueError: for options that don't fit, an unknown initializer; in `init`, for an x that doesn't fit.

    Example:
        >>> net = layers.serial(layers.rnn(32, output="last"), layers.dense(10))
        >>> net.apply(net.init(jax.random.key(0), x := jnp.ones((8, 20, 3))), x).shape
        (8, 10)
    """
    if activation not in (names := ("tanh", "relu")):
        raise ValueError(
            f"rnn needs an activation 'tanh' or 'relu'; got {activation!r}{activations.instead(activation, names)}"
        )
    inits = _inits(
        initializers.suited_to(activation) if weight_init is None else weight_init, recurrent_init, bias_init
    )
    options: dict[str, Any] = {"activation": activation, "remat": remat, "implementation": implementation}
    operation = _Operation("rnn", ops.rnn, ops.rnn_vjp, 1, ("bias",) if bias else (), inits, options)
    return _layer(operation, features, _Shape(layers, bidirectional, reverse, output, dropout_rate))


def lstm(
    features: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    reverse: bool = False,
    output: str = "sequence",
    dropout_rate: float = 0.0,
    bias: bool = True,
    forget_bias: float = 1.0,
    weight_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    remat: bool = False,
    implementation: str | None = None,
) -> Reader:
    """cₜ = f cₜ₋₁ + i g,  hₜ = o tanh cₜ from h = c = 0: `ops.lstm` with parameters, one layer or several.

    Args:
        features: H, the size of h and c.
        layers: see `layers.rnn`; so for `bidirectional`, `reverse`, `output`, `dropout_rate` and `bias`.
        bidirectional: whether in both directions, (…, 2 H).
        reverse: whether from the end to the beginning.
        output: "sequence", all h, or "last", the last h (not c).
        dropout_rate: of dropout between two layers.
        bias: whether there is a b.
        forget_bias: what is added to the initial b of the forget gate, if there is one: with 1 a new network
            remembers. (Jozefowicz, Zaremba and Sutskever, 2015).
        weight_init: of W, gate by gate.
        recurrent_init: of U, gate by gate.
        bias_init: of b.
        remat: whether the backward pass computes the gates again; see `ops.lstm`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is as in `layers.rnn`; the gates lie in the order i, f, g, o.

    Raises:
        ValueError: for options that don't fit, an unknown initializer; in `init`, for an x that doesn't fit.

    Example:
        >>> layer = layers.lstm(32, layers=2, bidirectional=True)
        >>> layer.init(jax.random.key(0), jnp.ones((8, 20, 3)))[1][0]["weight"].shape
        (64, 128)
    """
    inits = _inits(weight_init, recurrent_init, bias_init)
    options: dict[str, Any] = {"remat": remat, "implementation": implementation}
    operation = _Operation(
        "lstm", ops.lstm, ops.lstm_vjp, 4, ("bias",) if bias else (), inits, options, forget_bias
    )
    return _layer(operation, features, _Shape(layers, bidirectional, reverse, output, dropout_rate))


def gru(
    features: int,
    *,
    reset_after: bool = True,
    layers: int = 1,
    bidirectional: bool = False,
    reverse: bool = False,
    output: str = "sequence",
    dropout_rate: float = 0.0,
    bias: bool = True,
    weight_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    remat: bool = False,
    implementation: str | None = None,
) -> Reader:
    """hₜ = (1 − z) n + z hₜ₋₁ from h = 0: `ops.gru` with parameters, one layer or several.

    Args:
        features: H, the size of h.
        reset_after: the form of PyTorch and cuDNN, or that of the paper; see `ops.gru`.
        layers: see `layers.rnn`; so for `bidirectional`, `reverse`, `output` and `dropout_rate`.
        bidirectional: whether in both directions, (…, 2 H).
        reverse: whether from the end to the beginning.
        output: "sequence", all h, or "last", the last.
        dropout_rate: of dropout between two layers.
        bias: whether there is a b and, with reset_after, a d.
        weight_init: of W, gate by gate.
        recurrent_init: of U, gate by gate.
        bias_init: of b and d.
        remat: whether the backward pass computes the gates again; see `ops.gru`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is as in `layers.rnn`, with d as "recurrent_bias"; the gates lie in the order r, z, n.

    Raises:
        ValueError: for options that don't fit, an unknown initializer; in `init`, for an x that doesn't fit.
    """
    inits = _inits(weight_init, recurrent_init, bias_init)
    biases = () if not bias else ("bias", "recurrent_bias") if reset_after else ("bias",)
    options: dict[str, Any] = {"reset_after": reset_after, "remat": remat, "implementation": implementation}
    operation = _Operation("gru", ops.gru, ops.gru_vjp, 3, biases, inits, options)
    return _layer(operation, features, _Shape(layers, bidirectional, reverse, output, dropout_rate))


class _Operation(NamedTuple):
    name: str
    apply: Callable[..., tuple[Array, Any]]
    vjp: Callable[..., tuple[tuple[Array, Any], Partial]]
    gates: int
    biases: tuple[str, ...]
    inits: tuple[Initializer, Initializer, Initializer]  # of W, U, and b
    options: dict[str, Any]
    forget_bias: float = 0.0


class _Shape(NamedTuple):
    layers: int
    bidirectional: bool
    reverse: bool
    output: str
    dropout_rate: float


def _inits(*inits: str | Initializer) -> Any:
    return tuple(map(initializers.get, inits))


def _layer(operation: _Operation, features: int, shape: _Shape) -> Reader:
    name = operation.name
    for what, number in (("features", features), ("layers", shape.layers)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} needs a whole number of {what} ≥ 1; got {number!r}")
    if shape.output not in _OUTPUTS:
        raise ValueError(f"{name} needs an output {' or '.join(map(repr, _OUTPUTS))}; got {shape.output!r}")
    if shape.bidirectional and shape.reverse:
        raise ValueError(f"{name} goes through x in both directions if bidirectional=True: leave reverse=False")
    stack = partial(_stack, operation, features, shape, dropout(shape.dropout_rate))

    def init(key: Array, x: Inputs) -> Params:
        sequences, _ = _apart(x)
        if len(sequences.shape) != 3 or not jnp.issubdtype(sequences.dtype, jnp.floating):
            raise ValueError(
                f"{name} needs a floating-point x (B, T, I), or a pair of that and lengths (B,); "
                f"got {sequences.dtype} {sequences.shape}"
            )
        params = stack(None).init(key, sequences)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
        jax.eval_shape(apply, params, shapes)  # checks the lengths
        return params

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        sequences, lengths = _apart(x)
        return stack(lengths).apply(params, sequences, key=key)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        sequences, lengths = _apart(x)
        y, pullback = stack(lengths).vjp(params, sequences, key=key)
        return y, Partial(_pullback_of_x if lengths is None else _pullback_of_pair, pullback, lengths)

    def start(params: Params, x: Input, length: int) -> tuple[Any, ...]:
        if shape.bidirectional or shape.reverse:
            raise ValueError(f"{name} reads piece by piece from the beginning alone; this one begins at the end")
        h = jnp.zeros((x.shape[0], features), x.dtype)
        return ((h, h) if name == "lstm" else h,) * shape.layers

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        return _read(operation, shape.output, params, state, x, lengths)

    return Reader.of(Layer(init, apply, vjp), start, read)


def _read(
    operation: _Operation, output: str, params: Params, state: Any, x: Array, lengths: Array | None
) -> tuple[Array, Any]:
    """All layers on one piece, each from its state; a dropout between them has no parameters, hence no entry."""
    stack = [p for p in (params if isinstance(params, tuple) else (params,)) if p]
    outputs: tuple[Array, Any] = (x, None)
    after = []
    for p, before in zip(stack, state, strict=True):
        weights = map(p.get, _names(operation))
        outputs = operation.apply(outputs[0], *weights, initial=before, lengths=lengths, **operation.options)
        after.append(outputs[1])
    return _used(output, outputs), tuple(after)


def _names(operation: _Operation) -> tuple[str, ...]:
    """The parameters of one layer, in the order of the op's arguments."""
    return ("weight", "recurrent_weight", "bias", "recurrent_bias")[: 4 if operation.name == "gru" else 3]


def _apart(x: Inputs) -> tuple[Any, Any]:
    """The sequences and their lengths, or None."""
    if isinstance(x, tuple) and len(x) != 2:
        raise ValueError(
            f"a recurrent layer needs x (B, T, I), or a pair of that and lengths (B,); got {len(x)} arrays"
        )
    return x if isinstance(x, tuple) else (x, None)


def _pullback_of_x(pullback: Partial, lengths: None, dy: Array) -> tuple[Params, Array]:
    return pullback(dy)


def _pullback_of_pair(pullback: Partial, lengths: Array, dy: Array) -> tuple[Params, tuple[Array, np.ndarray]]:
    """Of whole numbers there is no derivative; this is how JAX writes it."""
    dparams, dx = pullback(dy)
    return dparams, (dx, np.zeros(lengths.shape, jax.dtypes.float0))


def _stack(operation: _Operation, features: int, shape: _Shape, between: Layer, lengths: Array | None) -> Layer:
    """All layers and directions, for sequences of these lengths."""
    stack: list[Layer] = []
    for i in range(shape.layers):
        output = shape.output if i == shape.layers - 1 else "sequence"
        one = partial(_one, operation, features, lengths, output)
        stack += [between] if i and shape.dropout_rate else []
        stack += [parallel(one(False), one(True)) if shape.bidirectional else one(shape.reverse)]
    return serial(*stack) if len(stack) > 1 else stack[0]


def _one(operation: _Operation, features: int, lengths: Array | None, output: str, reverse: bool) -> Layer:
    """One layer in one direction."""
    names = _names(operation)
    options = {**operation.options, "reverse": reverse, "lengths": lengths}

    def init(key: Array, x: Input) -> Params:
        draw_weight, draw_recurrent, draw_bias = operation.inits
        keys = jax.random.split(key, 2 * operation.gates + 2)

        def beside(draw: Initializer, keys: Array, *shape: int) -> Array:
            return jnp.concatenate([draw(k, shape, x.dtype) for k in keys], -1)

        params = {
            "weight": beside(draw_weight, keys[: operation.gates], x.shape[-1], features),
            "recurrent_weight": beside(draw_recurrent, keys[operation.gates : -2], features, features),
        }
        sizes = {"bias": operation.gates * features, "recurrent_bias": features}
        for k, bias in zip(keys[-2:], operation.biases, strict=False):
            params[bias] = draw_bias(k, (sizes[bias],), x.dtype)
        if operation.forget_bias and "bias" in params:
            params["bias"] = params["bias"].at[features : 2 * features].add(operation.forget_bias)
        return params

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return _used(output, operation.apply(x, *map(params.get, names), **options))

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        outputs, pullback = operation.vjp(x, *map(params.get, names), **options)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), outputs)
        return _used(output, outputs), Partial(partial(_pullback, names, output, shapes), pullback)

    return Layer(init, apply, vjp)


def _used(output: str, outputs: tuple[Array, Any]) -> Array:
    """What the layer returns of y and the final state."""
    return outputs[0] if output == "sequence" else jax.tree.leaves(outputs)[1]


def _pullback(
    names: tuple[str, ...], output: str, shapes: Any, pullback: Partial, dy: Array
) -> tuple[Params, Array]:
    """Nothing depends on the rest of the outputs."""
    cotangents, structure = jax.tree.flatten(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes))
    cotangents[0 if output == "sequence" else 1] = dy
    dx, *gradients = pullback(jax.tree.unflatten(structure, cotangents))
    return {name: d for name, d in zip(names, gradients, strict=False) if d is not None}, dx
