"""The backward passes of the ops for mutation.py: their functions, and trials that take every branch of them."""

import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import ops
from jaxnet.ops import conv, conv_transpose, conv_transpose_vjp, conv_vjp, linear, linear_vjp
from jaxnet.verify.trials import Trial, trial

Target = tuple[Sequence[Any], list[Trial]]


def module(name: str) -> Any:
    return importlib.import_module(f"jaxnet.{name}")


def draw(*shape: int, seed: int = 0, scale: float = 1.5, dtype: Any = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def held(function: Any, *names: str) -> list[Any]:
    """What a function closes over."""
    return [inspect.getclosurevars(function).nonlocals[name] for name in names]


def of_linear() -> Target:
    def one(x: jax.Array, *rest: jax.Array, activation: str | None = None) -> Trial:
        dy = draw(*x.shape[:-1], rest[0].shape[-1], seed=9)

        def total(*args: jax.Array) -> jax.Array:
            y = linear(*args, activation=activation)
            return (dy.astype(y.dtype) * y).sum()

        def by_hand(*args: jax.Array) -> tuple[jax.Array, ...]:
            return linear_vjp(*args, activation=activation)[1](dy.astype(args[0].dtype))[: len(args)]

        return trial(total, x, *rest, hand_written=by_hand)

    weight, bias = draw(4, 4, seed=1), draw(4, seed=2)
    half = [a.astype("bfloat16") for a in (draw(3, 4), weight, bias)]
    op = module("ops.linear")
    return [op.backward, op._xla_gradients, op._sloped], [
        one(draw(4, 4), weight, bias, activation="tanh"),
        one(draw(4, 4), weight, bias, activation="relu"),
        one(draw(2, 3, 4), draw(4, 5), draw(5), activation="gelu"),
        one(draw(3, 4), weight),
        one(*half, activation="tanh"),
    ]


def of_op(name: str, functions: Sequence[Any], *cases: tuple[tuple[jax.Array, ...], dict[str, Any]]) -> Target:
    """An op of `ops` and its twin `…_vjp`, whose pullback gives the gradients of all arguments."""
    op, op_vjp = getattr(ops, name), getattr(ops, f"{name}_vjp")

    def one(args: tuple[jax.Array, ...], options: dict[str, Any]) -> Trial:
        shapes = jax.eval_shape(partial(op, **options), *args)
        dys = jax.tree.map(lambda y: draw(*y.shape, seed=9), shapes)

        def like(y: Any) -> Any:
            return jax.tree.map(lambda dy, leaf: dy.astype(leaf.dtype), dys, y)

        def total(*args: jax.Array) -> jax.Array:
            y = op(*args, **options)
            products = jax.tree.map(lambda dy, leaf: (dy * leaf).sum().astype(args[0].dtype), like(y), y)
            return sum(jax.tree.leaves(products)[1:], jax.tree.leaves(products)[0])

        def by_hand(*args: jax.Array) -> tuple[jax.Array, ...]:
            y, pullback = op_vjp(*args, **options)
            return tuple(pullback(like(y))[: len(args)])

        return trial(total, *args, hand_written=by_hand)

    return functions, [one(*case) for case in cases]


def of_windows(name: str, *functions: str, **options: Any) -> Target:
    """Windows with and without overlap, beyond both edges, other along each axis."""
    pooling = module("ops.pooling")
    return of_op(
        name,
        [getattr(pooling, function) for function in functions],
        ((draw(2, 5, 4, 2),), {"window": 2, **options}),
        ((draw(1, 7, 5, 2),), {"window": (3, 2), "stride": (2, 1), "padding": [(2, 1), (0, 1)], **options}),
        ((draw(1, 4, 6, 1),), {"window": 3, "stride": 2, "padding": "SAME", **options}),
        ((draw(2, 8, 3, dtype="bfloat16"),), {"window": 3, "stride": 1, **options}),
    )


IMAGE, CHANNELS = draw(2, 3, 2, 4), [draw(4, seed=seed) for seed in (1, 2)]
HALF = [a.astype("bfloat16") for a in (IMAGE, *CHANNELS)]


def of_norms() -> Target:
    """One backward pass for all three."""
    functions, trials = of_op(
        "layer_norm",
        [module("ops.normalization").backward],
        ((IMAGE, *CHANNELS), {"eps": 0.1}),
        ((IMAGE, draw(2, 3, seed=5).T, draw(3, 2, seed=6)), {"axis": (1, 2)}),
        ((IMAGE,), {}),
        ((*HALF,), {"eps": 0.1}),
    )
    cases = ((IMAGE, CHANNELS[0]), {"eps": 0.1}), ((IMAGE,), {"axis": (1, 2)}), ((*HALF[:2],), {"eps": 0.1})
    trials += of_op("rms_norm", [], *cases)[1]
    return [*functions, module("ops.normalization")._rms_pullback], [
        *trials,
        *of_op("group_norm", [], ((IMAGE, *CHANNELS), {"groups": 2, "eps": 0.1}))[1],
    ]


def of_batch_norm() -> Target:
    op = module("ops.batch_norm")
    functions = [op.backward, op._sums]
    return of_op("batch_norm", functions, ((*HALF,), {"eps": 0.1}), ((IMAGE[0, 0],), {}))


def of_batch_norm_inference() -> Target:
    op = module("ops.batch_norm")
    population = draw(4, seed=3), 0.5 + draw(4, seed=4) ** 2
    half = [a.astype("bfloat16") for a in population]
    return of_op(
        "batch_norm_inference",
        [op.inference_backward],
        ((HALF[0], *half, *HALF[1:]), {"eps": 0.1}),
        ((IMAGE[0, 0], *population), {}),
    )


def by_hand(f: Any, f_vjp: Any, *args: jax.Array) -> Trial:
    """`f_vjp` gives y and a pullback, whose result is the gradients of all arguments or of the only one."""
    dy = draw(*jax.eval_shape(f, *args).shape, seed=9)

    def total(*args: jax.Array) -> jax.Array:
        y = f(*args)
        return (dy.astype(y.dtype) * y).sum()

    def gradients(*args: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = f_vjp(*args)
        found = pullback(dy.astype(y.dtype))
        return tuple(found[: len(args)]) if isinstance(found, tuple) else (found,)

    return trial(total, *args, hand_written=gradients)


def of_attention() -> Target:
    """In tiles of two queries and two keys, the last ones of one."""
    op, tiles = module("ops.attention"), module("ops.attention_tiles")

    def one(*args: jax.Array, **options: Any) -> Trial:
        bias = args[3] if len(args) > 3 else None
        setup, others = op._check(*args[:3], bias=bias, chunk=2, **options)

        def both(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any = None) -> Any:
            y, residuals = op.forward(setup, q, k, v, bias, others)
            return y, partial(op._pullback, setup, residuals)

        def f(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any = None) -> jax.Array:
            return op._attention(setup, q, k, v, bias, others)

        return by_hand(f, both, *args)

    args = draw(2, 3, 4, 2), draw(2, 5, 2, 2, seed=1), draw(2, 5, 2, 3, seed=2)
    half = [a.astype("bfloat16") for a in args]
    return [op.backward, op._add, op._add_bias, op._pullback, tiles.Tiles.place], [
        one(*args, draw(1, 4, 3, 5, seed=3), causal=True, offset=1),
        one(*args, draw(2, 1, 1, 5, seed=3), lengths=jnp.array([0, 4])),
        one(*args, draw(1, 4, 3, 1, seed=3), dropout_rate=0.4, dropout_key=jax.random.key(1)),
        one(*half, window=(1, 2), scale=0.3),
    ]


def of_embedding() -> Target:
    op, ids = module("ops.embedding"), jnp.array([[2, 0, 2], [4, 4, 4]], jnp.int32)
    f, f_vjp = partial(ops.embedding, ids), partial(ops.embedding_vjp, ids)
    return [op.backward, op._pullback], [
        by_hand(f, f_vjp, table) for table in (draw(5, 4), draw(5, 4, dtype="bfloat16"))
    ]


def of_rotary() -> Target:
    op, options = module("ops.rotary"), {"base": 7.0, "offset": 2}
    f, f_vjp = partial(ops.rotary, **options), partial(ops.rotary_vjp, **options)
    return [op.backward, op._pullback], [
        by_hand(f, f_vjp, x) for x in (draw(2, 3, 2, 4), draw(2, 3, 2, 4, dtype="bfloat16"))
    ]


def of_linear_cross_entropy() -> Target:
    """In chunks of two classes, of which the last has one of its own."""
    op = module("ops.linear_cross_entropy")

    def one(x: jax.Array, weight: jax.Array, labels: Any, *bias: jax.Array, **options: Any) -> Trial:
        def run(f: Any, x: jax.Array, weight: jax.Array, bias: Any = None) -> Any:
            return f(x, weight, jnp.asarray(labels), bias=bias, chunk=2, **options)

        f, f_vjp = partial(run, ops.linear_cross_entropy), partial(run, ops.linear_cross_entropy_vjp)
        return by_hand(f, f_vjp, x, weight, *bias)

    x, weight, bias = draw(4, 3), draw(3, 5, seed=1), draw(5, seed=2)
    half = [a.astype("bfloat16") for a in (x, weight, bias)]
    return [op.backward, op._add, op._pullback], [
        one(x, weight, [0, 4, -1, 3], bias, label_smoothing=0.2, ignore_label=-1),
        one(draw(2, 2, 3), weight, [[0, 4], [1, 3]]),
        one(*half[:2], [1, 2, 3, 4], half[2]),
    ]


def convolved(
    f: Any, vjp: Any, shapes: Sequence[tuple[int, ...]], dtype: Any = "float32", **options: Any
) -> Trial:
    args = [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    dy = draw(*f(*args, **options).shape, seed=9)

    def total(*args: jax.Array) -> jax.Array:
        y = f(*args, **options)
        return (dy.astype(y.dtype) * y).sum()

    def by_hand(*args: jax.Array) -> tuple[jax.Array, ...]:
        return vjp(*args, **options)[1](dy.astype(args[0].dtype))[: len(args)]

    return trial(total, *args, hand_written=by_hand)


def of_conv() -> Target:
    op, one = module("ops.convolution"), partial(convolved, conv, conv_vjp)
    return [op.backward, op.summed], [
        one([(2, 4, 3, 2), (2, 2, 2, 2), (2,)], stride=2),
        one([(2, 4, 3, 2), (2, 2, 2, 2)]),
        one([(2, 4, 2), (2, 2, 2), (2,)], "bfloat16"),
    ]


def of_conv_transpose() -> Target:
    op, one = module("ops.transposed_convolution"), partial(convolved, conv_transpose, conv_transpose_vjp)
    return [op.backward], [
        one([(2, 3, 2, 2), (2, 3, 2, 2), (2,)], stride=2),
        one([(2, 3, 2, 2), (2, 2, 2, 2), (2,)], stride=2, convention="gradient"),
        one([(2, 3, 2), (2, 2, 2)]),
        one([(2, 3, 2), (2, 2, 2), (2,)], "bfloat16", stride=2),
    ]


def of_correlation() -> Target:
    """Second derivatives of both, by all three maps."""
    op = module("ops.correlation")

    def slope(f: Any, *args: jax.Array) -> Any:
        return jax.grad(lambda *args: jnp.square(jnp.tanh(f(*args))).sum(), (0, 1))(*args)

    args = draw(2, 3, 2, 2), draw(2, 2, 2, 2, seed=1)
    half = [a.astype("bfloat16") for a in args]
    return [op._correlate_backward, op._input_gradient_backward, op._weight_gradient_backward], [
        trial(partial(slope, partial(conv, stride=2)), *args),
        trial(partial(slope, partial(conv_transpose, stride=2)), *args),
        trial(partial(slope, conv), *half),
    ]


# What a road of `correlation` claims, beside autodiff of the reference: shapes and options that take each branch.
GEOMETRIES = (
    ([(2, 4, 3, 2), (2, 3, 2, 2)], {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
    ([(2, 5, 2), (3, 2, 2)], {"stride": 2, "dilation": 3, "padding": 3}),
    ([(2, 7, 1), (4, 1, 8)], {"stride": 4, "dilation": 2, "padding": 3}),  # few channels, and phases without a tap
    ([(2, 5, 8), (3, 8, 1)], {"dilation": 2}),
    ([(2, 3, 3, 5), (1, 1, 5, 2)], {"stride": 2, "padding": 1}),  # one tap
    ([(2, 7, 5), (2, 5, 1)], {"stride": 3}),
    ([(2, 3, 3, 2), (1, 1, 2, 2)], {"padding": ((0, 1), (1, 0))}),
    ([(2, 5, 3, 4), (2, 2, 2, 4)], {"stride": (1, 2), "groups": 2, "dilation": (2, 1)}),  # small groups
    ([(2, 4, 20), (2, 10, 20)], {"stride": 2, "groups": 2}),  # large ones
)


def of_roads(name: str, *functions: str) -> Target:
    """The maps of ops.correlation_xla or ops.correlation_cpu, taken for the backward pass on this platform."""
    roads, plain, op = module(f"ops.{name}"), module("ops.correlation_xla"), module("ops.convolution")

    module("ops.correlation_cpu")._CACHE = 1100  # small images, too, are summed in blocks of rows and a rest

    def one(shapes: Sequence[tuple[int, ...]], options: dict[str, Any]) -> Trial:
        args = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
        defaults = {"stride": 1, "padding": "SAME", "dilation": 1, "groups": 1}
        geometry = op._geometry(*args, None, *(defaults | options).values())
        dy = draw(shapes[0][0], *geometry.output, shapes[1][-1], seed=9)

        def total(*args: jax.Array) -> jax.Array:
            return (dy.astype(args[0].dtype) * op.reference(geometry, *args, None)).sum()

        def by_hand(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
            y = dy.astype(x.dtype)
            dx = roads.input_gradient(geometry, y, weight)
            few = module("ops.correlation_cpu").few(geometry, *shapes[1][-2:])
            if name == "correlation_cpu" and (few or geometry.groups > 1):
                return dx, roads.weight_gradient(geometry, x, y)
            sharding = jax.typeof(weight).sharding if "stride" in options else None  # of a first or a higher order
            return dx, plain.weight_gradient(geometry, x, y, sharding)

        return trial(total, *args, hand_written=by_hand)

    return [getattr(roads, function) for function in functions], [one(*case) for case in GEOMETRIES]


def of_recurrent(name: str, functions: Sequence[Any], *cases: dict[str, Any]) -> Target:
    """By XLA. Each case: options of the op, and of `sizes`, `bias`, `initial` and `dtype` what isn't as usual."""
    gates, biases = {"rnn": (1, 1), "lstm": (4, 1), "gru": (3, 2)}[name]
    op, op_vjp = getattr(ops, name), getattr(ops, f"{name}_vjp")

    def one(case: dict[str, Any]) -> Trial:
        options = dict(case)
        b, t, i, h = options.pop("sizes", (2, 3, 2, 3))
        dtype, bias = options.pop("dtype", "float32"), options.pop("bias", True)
        shapes = [(b, t, i), (i, gates * h), (h, gates * h)]
        shapes += [(gates * h,), (h,)][: biases - (options.get("reset_after") is False)] if bias else []
        args = [draw(*shape, seed=k, scale=0.8, dtype=dtype) for k, shape in enumerate(shapes)]
        missing = [None] * (3 + biases - len(args))
        states = [draw(b, h, seed=7 + k, scale=0.8, dtype=dtype) for k in range(2 if name == "lstm" else 1)]
        states = states if options.pop("initial", True) else []

        def called(f: Any, *args: jax.Array) -> Any:
            weights, state = args[: len(args) - len(states)], args[len(args) - len(states) :]
            initial = None if not state else state if name == "lstm" else state[0]
            return f(*weights, *missing, initial, **options, implementation="xla")

        def like(outputs: Any) -> Any:
            return jax.tree.map(lambda y: draw(*y.shape, seed=9, dtype=y.dtype), outputs)

        def total(*args: jax.Array) -> jax.Array:
            outputs = called(op, *args)
            return sum(jax.tree.leaves(jax.tree.map(lambda dy, y: (dy * y).sum(), like(outputs), outputs)))

        def by_hand(*args: jax.Array) -> tuple[jax.Array, ...]:
            outputs, pullback = called(op_vjp, *args)
            return tuple(jax.tree.leaves(pullback(like(outputs))))

        return trial(total, *args, *states, hand_written=by_hand)

    return functions, [one(case) for case in cases]


def of_rnn() -> Target:
    """The loop, too, and what comes after it."""
    op, loop = module("ops.rnn"), module("ops.recurrence")
    functions = [op.backward, op._pullback, loop.backward, loop.recurrent]
    functions += [loop._scan_backward, (loop._scan_backward, "step")]
    lengths = jnp.asarray([2, 1])
    return of_recurrent(
        "rnn",
        functions,
        {"lengths": lengths},
        {"activation": "relu", "reverse": True},
        {"bias": False, "initial": False},
        {"dtype": "bfloat16", "lengths": lengths},
    )


def of_lstm() -> Target:
    op = module("ops.lstm")
    return of_recurrent("lstm", [op.backward, op._pullback], {"lengths": jnp.asarray([3, 1])}, {"bias": False})


def of_gru() -> Target:
    """Both forms."""
    op = module("ops.gru")
    names = "after_backward", "after_recurrent", "before_backward", "before_recurrent", "_candidate_and_update"
    return of_recurrent(
        "gru",
        [*(getattr(op, name) for name in names), op._pullback],
        {"lengths": jnp.asarray([3, 1])},
        {"bias": False, "initial": False},
        {"reset_after": False, "reverse": True},
    )
