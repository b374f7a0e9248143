"""Mutation of every backward pass of jaxnet: does `jaxnet.verify` find the mistakes that are put into it?

    python experiments/benchmarks/mutation.py                     # every mutant, target after target
    python experiments/benchmarks/mutation.py linear softmax      # of these
    python experiments/benchmarks/mutation.py --of 6 --sample 3   # three mutants of each of six

Exit code 1 if a mutant survived. An op is added by a line in `TARGETS`: its functions, and the trials that
between them take every branch (those of the ops are made in mutation_ops.py, of the layers in mutation_layers.py).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mutation_layers import LAYERS
from mutation_ops import (
    HALF,
    IMAGE,
    Target,
    draw,
    held,
    module,
    of_attention,
    of_batch_norm,
    of_batch_norm_inference,
    of_conv,
    of_conv_transpose,
    of_correlation,
    of_embedding,
    of_gru,
    of_linear,
    of_linear_cross_entropy,
    of_lstm,
    of_norms,
    of_op,
    of_rnn,
    of_roads,
    of_rotary,
    of_windows,
)

from jaxnet import activations, losses, verify
from jaxnet.verify.trials import Trial, trial

# ---------------------------------------------------------------------------------------- activations


def of_activation(name: str, *options: dict[str, Any]) -> Target:
    f = activations.get(name)

    def one(f: Any) -> Trial:
        x, dy = draw(5, 5, scale=2.5), draw(5, 5, seed=1)
        pullback = activations.pullback(f)
        return trial(
            lambda x: (dy.astype(x.dtype) * f(x)).sum(),
            x,
            hand_written=lambda x: (pullback(x, dy.astype(x.dtype)),),
        )

    cases = [partial(f, **option) for option in options or ({},)]
    return held(f.derivative, "g"), [*map(one, cases), *map(far, cases)]


def far(f: Any) -> Trial:
    """Where exponentials and powers overflow, unless the derivatives are written with care."""
    return trial(f, draw(6, scale=1e30), order=2)


def of_softmax(name: str) -> Target:
    f = activations.get(name)
    (rule,) = held(f, "g")
    functions = [*held(rule.jvp, "jvp"), *held(f.pullback, "g"), *held(f.derivative, "g")]

    def one(axis: int, *shape: int) -> list[Trial]:
        x, dy = draw(*shape), draw(*shape, seed=1)
        along = partial(f, axis=axis)

        def total(x: jax.Array) -> jax.Array:
            return (dy.astype(x.dtype) * along(x)).sum()

        def by_pullback(x: jax.Array) -> tuple[jax.Array]:
            return (activations.pullback(along)(x, dy.astype(x.dtype)),)

        def by_jacobian(x: jax.Array) -> tuple[jax.Array]:
            rows = jnp.moveaxis(dy.astype(x.dtype), axis, -1)
            return (
                jnp.moveaxis(jnp.einsum("...i,...ij->...j", rows, activations.derivative(along)(x)), -1, axis),
            )

        return [trial(total, x, hand_written=by_pullback), trial(total, x, hand_written=by_jacobian)]

    return list(dict.fromkeys(functions)), [*one(-1, 5, 5), *one(1, 2, 3, 4)]


# --------------------------------------------------------------------------------------------- losses


def of_loss(name: str, *cases: tuple[Any, Any, dict[str, Any]]) -> Target:
    loss = attrgetter(name)(losses)
    (rule,) = held(loss, "g")
    functions = held(rule.jvp, "derivative", "target_derivative")

    def one(prediction: jax.Array, target: Any, options: dict[str, Any]) -> Trial:
        f = partial(loss, **options)
        dy = draw(*jax.eval_shape(f, prediction, target).shape, seed=7)

        def total(p: jax.Array, t: Any) -> jax.Array:
            return (dy.astype(p.dtype) * f(p, t)).sum()

        def by_hand(p: jax.Array, t: Any) -> tuple[jax.Array]:
            weight = dy if dy.ndim == p.ndim else dy[:, None]  # the same for all classes of an example
            return (losses.derivative(f)(p, t) * weight.astype(p.dtype),)

        return trial(total, prediction, target, hand_written=by_hand)

    return functions, [one(*case) for case in cases]


def of_negative_elbo() -> Target:
    """Its derivative in all that a variational autoencoder returns."""
    loss, target = partial(losses.negative_elbo, beta=0.3), activations.sigmoid(draw(3, 4, seed=3))

    def by_hand(prediction: Any) -> tuple[Any]:
        return (losses.derivative(loss)(prediction, target),)

    prediction = draw(3, 4), draw(3, 2, seed=1), draw(3, 2, seed=2)
    return [module("losses.divergence")._negative_elbo_derivative], [
        trial(lambda p: loss(p, target).sum(), prediction, hand_written=by_hand)
    ]


def of_counted() -> Target:
    """Its derivative beside that of the loss that it scales."""
    loss = losses.counted(partial(losses.cross_entropy, label_smoothing=0.2), 1)

    def by_hand(prediction: Any) -> tuple[Any]:
        return (losses.derivative(loss)(prediction, CLASSES),)

    return [module("losses.loss")._counted_derivative], [
        trial(lambda p: loss(p, CLASSES).sum(), LOGITS, hand_written=by_hand)
    ]


LOGITS = draw(5, 5)
CLASSES = np.array([0, 4, 1, 1, 2], np.int32)
PROBABILITIES = activations.softmax(draw(5, 5, seed=1))


TARGETS: dict[str, Callable[[], Target]] = {
    "linear": of_linear,
    "max_pool": lambda: of_windows("max_pool", "max_backward", "_edges"),
    "max_pool with holes": lambda: of_op(
        "max_pool",
        [module("ops.pooling").max_backward],
        ((draw(1, 7, 5, 2),), {"window": 2, "stride": (1, 3), "dilation": (3, 2)}),
    ),
    "avg_pool": lambda: of_windows("avg_pool", "avg_backward", "_spread", count_include_pad=False),
    "global_max_pool": lambda: of_op(
        "global_max_pool", [module("ops.global_pooling").max_backward], ((draw(2, 3, 2, 4),), {})
    ),
    "global_avg_pool": lambda: of_op(
        "global_avg_pool", [module("ops.global_pooling").avg_backward], *(((x,), {}) for x in (IMAGE, HALF[0]))
    ),
    "upsample": lambda: of_op(
        "upsample",
        [module("ops.upsampling").backward],
        ((IMAGE,), {"factor": (2, 3)}),
        ((IMAGE,), {"factor": (3, 2), "method": "bilinear"}),
        ((HALF[0],), {"factor": (1, 4), "method": "bilinear"}),
    ),
    "layer_norm, rms_norm and group_norm": of_norms,
    "batch_norm": of_batch_norm,
    "batch_norm_inference": of_batch_norm_inference,
    "attention": of_attention,
    "embedding": of_embedding,
    "rotary": of_rotary,
    "linear_cross_entropy": of_linear_cross_entropy,
    "conv": of_conv,
    "conv_transpose": of_conv_transpose,
    "correlation": of_correlation,
    "correlation_xla": lambda: of_roads("correlation_xla", "input_gradient", "weight_gradient", "transposed"),
    "correlation_cpu": lambda: of_roads(
        "correlation_cpu",
        "input_gradient",
        "_phase",
        "_shifted",
        "_multiplied_first",
        "_interleaved",
        "weight_gradient",
        "_add_rows",
        "_patches",
    ),
    "rnn": of_rnn,
    "lstm": of_lstm,
    "gru": of_gru,
    **{name: partial(of_activation, name) for name in ("identity", "sigmoid", "tanh", "relu", "selu", "softplus")},
    **{name: partial(of_activation, name) for name in ("silu", "mish", "hard_swish")},
    "leaky_relu": lambda: of_activation("leaky_relu", {}, {"negative_slope": 0.2}),
    "elu": lambda: of_activation("elu", {}, {"alpha": 1.7}),
    "gelu": lambda: of_activation("gelu", {}, {"approximate": False}),
    "softmax": lambda: of_softmax("softmax"),
    "log_softmax": lambda: of_softmax("log_softmax"),
    "activations' rule": lambda: (
        [held(activations.tanh, "g")[0].jvp, held(activations.elu, "g")[0].jvp],
        of_activation("tanh")[1] + of_activation("elu", {"alpha": 1.7})[1],
    ),
    "squared_error": lambda: of_loss("squared_error", (LOGITS, draw(5, 5, seed=1), {})),
    "huber": lambda: of_loss("huber", *((LOGITS, draw(5, 5, seed=1), {"delta": delta}) for delta in (1.0, 0.3))),
    "cross_entropy": lambda: of_loss(
        "cross_entropy",
        (LOGITS, CLASSES, {"label_smoothing": 0.2, "ignore_label": 1}),
        (LOGITS, PROBABILITIES, {"label_smoothing": 0.2}),
        (LOGITS, 3 * PROBABILITIES, {}),
    ),
    "binary_cross_entropy": lambda: of_loss("binary_cross_entropy", (LOGITS, PROBABILITIES, {})),
    "focal": lambda: of_loss("focal", *((LOGITS, PROBABILITIES, {"gamma": gamma}) for gamma in (2.0, 3.5))),
    "hinge": lambda: of_loss("hinge", (LOGITS, jnp.sign(draw(5, 5, seed=1)), {})),
    "kl_divergence": lambda: of_loss("kl_divergence", (activations.log_softmax(LOGITS), PROBABILITIES, {})),
    "gaussian_kl": lambda: of_loss("gaussian_kl", (LOGITS, draw(5, 5, seed=1), {})),
    **{
        name: partial(of_loss, name, (LOGITS, draw(5, 5, seed=1), {}))
        for name in (
            "non_saturating.discriminator",
            "non_saturating.generator",
            "least_squares.discriminator",
            "least_squares.generator",
            "adversarial_hinge.discriminator",
            "wasserstein.discriminator",
            "wasserstein.generator",
        )
    },
    "counted": of_counted,
    "losses' rule": lambda: (
        [held(loss, "g")[0].jvp for loss in (losses.squared_error, losses.kl_divergence)],
        of_loss("squared_error", (LOGITS, draw(5, 5, seed=1), {}))[1]
        + of_loss("kl_divergence", (activations.log_softmax(LOGITS), PROBABILITIES, {}))[1],
    ),
    "negative_elbo": of_negative_elbo,
    "gradient_penalty": lambda: (
        [module("losses.adversarial")._norm.jvp],
        [trial(partial(losses.gradient_penalty, slope=0.5), draw(3, 2, 2, scale=scale)) for scale in (1.5, 0.1)],
    ),
    **LAYERS,
}


def path(function: Any) -> str:
    outer, *inside = function if isinstance(function, tuple) else (function,)
    return ".".join([outer.__module__, outer.__qualname__, *inside])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TARGETS)}")
    help_sample = "so many of each that count, drawn evenly from the kinds of mistake"
    parser.add_argument("--sample", type=int, help=help_sample)
    parser.add_argument("--of", type=int, help="so many targets; the next seed takes the next ones")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--equivalent", action="store_true", help="list the equivalent mutants too")
    parser.add_argument("--list", action="store_true", help="the functions of each target as JSON, and no more")
    options = parser.parse_args()
    if options.list:
        print(json.dumps({name: [path(function) for function in target()[0]] for name, target in TARGETS.items()}))
        return 0
    began, reports = time.perf_counter(), []
    if unknown := sorted(set(options.names) - set(TARGETS)):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    names = options.names or list(TARGETS)
    if options.of is not None:
        names = [names[(options.seed * options.of + i) % len(names)] for i in range(min(options.of, len(names)))]
    with verify.mutate.programs_kept():  # for all targets
        for name in names:
            functions, trials = TARGETS[name]()
            report = verify.mutate.mutate(functions, trials, title=name, sample=options.sample, seed=options.seed)
            lines = str(report).splitlines()
            shown = [line for line in lines if options.equivalent or not line.startswith("  equivalent")]
            print("\n".join(shown), flush=True)
            reports.append(report)
    counts = {state: sum(report.count(state) for report in reports) for state in verify.mutate.STATES}
    total, seconds = sum(counts.values()), time.perf_counter() - began
    print(f"{total} mutants: {', '.join(f'{n} {state}' for state, n in counts.items())} in {seconds:.0f} s")
    return 0 if all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
