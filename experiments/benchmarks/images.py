"""Pooling, upsampling and normalisation, forward and forward + backward: jaxnet, JAX's own autodiff, PyTorch.

    python experiments/benchmarks/images.py            # all
    python experiments/benchmarks/images.py max        # those with "max" in the name

Images are (batch, height, width, channels). PyTorch gets its own layout (channels first), and "channels last",
the same memory as JAX. Every gradient is under a fixed random cotangent.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from timing import Contender, heading, measure, table

from jaxnet import ops

F = torch.nn.functional
IMAGES = (64, 32, 32, 64)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def standard(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)


def by_groups(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    apart = x.reshape(*x.shape[:-1], 8, x.shape[-1] // 8)
    return standard(apart, (1, 2, 4)).reshape(x.shape) * scale + bias


C = IMAGES[-1]
FACTORS = [draw(C, seed=1), draw(C, seed=2)]
# title: (arguments, jaxnet, JAX with Flax's pooling or the formula, PyTorch channels first)
Case = tuple[list[np.ndarray], Callable[..., Any], Callable[..., Any], Callable[..., Any]]
CASES: dict[str, Case] = {
    "max pool 64×32×32×64, 2×2": (
        [draw(*IMAGES)],
        lambda x: ops.max_pool(x, 2),
        lambda x: nn.max_pool(x, (2, 2), (2, 2)),
        lambda x: F.max_pool2d(x, 2),
    ),
    "max pool 64×32×32×64, 3×3 stride 2": (
        [draw(*IMAGES)],
        lambda x: ops.max_pool(x, 3, stride=2, padding=[(1, 1), (1, 1)]),
        lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "max pool 64×32×32×64, 3×3 stride 1": (
        [draw(*IMAGES)],
        lambda x: ops.max_pool(x, 3, stride=1, padding=[(1, 1), (1, 1)]),
        lambda x: nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))),
        lambda x: F.max_pool2d(x, 3, 1, 1),
    ),
    "average pool 64×32×32×64, 2×2": (
        [draw(*IMAGES)],
        lambda x: ops.avg_pool(x, 2),
        lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
        lambda x: F.avg_pool2d(x, 2),
    ),
    "average pool 64×32×32×64, 3×3 stride 2": (
        [draw(*IMAGES)],
        lambda x: ops.avg_pool(x, 3, stride=2, padding=[(1, 1), (1, 1)]),
        lambda x: nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
    ),
    "global average pool 64×32×32×64": (
        [draw(*IMAGES)],
        ops.global_avg_pool,
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((2, 3)),
    ),
    "global max pool 64×32×32×64": (
        [draw(*IMAGES)],
        ops.global_max_pool,
        lambda x: x.max((1, 2)),
        lambda x: F.adaptive_max_pool2d(x, 1),
    ),
    "upsample nearest 64×16×16×64, ×2": (
        [draw(64, 16, 16, 64)],
        lambda x: ops.upsample(x, 2),
        lambda x: jax.image.resize(x, IMAGES, "nearest"),
        lambda x: F.interpolate(x, scale_factor=2),
    ),
    "upsample bilinear 64×16×16×64, ×2": (
        [draw(64, 16, 16, 64)],
        lambda x: ops.upsample(x, 2, method="bilinear"),
        lambda x: jax.image.resize(x, IMAGES, "bilinear"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
    "layer norm 2048×256": (
        [draw(2048, 256), draw(256, seed=1), draw(256, seed=2)],
        ops.layer_norm,
        lambda x, scale, bias: standard(x, (1,)) * scale + bias,
        lambda x, scale, bias: F.layer_norm(x, (256,), scale, bias),
    ),
    "group norm 64×32×32×64, 8 groups": (
        [draw(*IMAGES), *FACTORS],
        lambda x, scale, bias: ops.group_norm(x, scale, bias, groups=8),
        by_groups,
        lambda x, scale, bias: F.group_norm(x, 8, scale, bias),
    ),
    "batch norm 64×32×32×64": (
        [draw(*IMAGES), *FACTORS],
        lambda x, scale, bias: ops.batch_norm(x, scale, bias)[0],
        lambda x, scale, bias: standard(x, (0, 1, 2)) * scale + bias,
        lambda x, scale, bias: F.batch_norm(x, None, None, scale, bias, training=True),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="of the names of the cases to run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    console = Console()
    heading(console, "flax")
    for title, (arguments, ours, autodiff, theirs) in CASES.items():
        if args.part not in title:
            continue
        for backward in (False, True):
            contenders = {
                "JAX": in_jax(autodiff, arguments, backward),
                "PyTorch": in_torch(theirs, arguments, backward, last=False),
                "PyTorch, channels last": in_torch(theirs, arguments, backward, last=True),
                "jaxnet": in_jax(ours, arguments, backward),
            }
            if arguments[0].ndim == 2:
                del contenders["PyTorch, channels last"]
            times = measure(contenders, args.rounds, args.repeats)
            table(console, f"{title}, forward{' + backward' * backward}", times, list(contenders)[:-1])


def in_jax(function: Callable[..., Any], arguments: list[np.ndarray], backward: bool) -> Contender:
    arrays = [jnp.asarray(a) for a in arguments]
    dy = jnp.asarray(draw(*jax.eval_shape(function, *arrays).shape, seed=9))

    def both(arrays: list[jax.Array], dy: jax.Array) -> Any:
        y, pullback = jax.vjp(function, *arrays)
        return y, pullback(dy)

    jitted = jax.jit(both) if backward else jax.jit(lambda arrays, dy: function(*arrays))
    return Contender(lambda: jax.block_until_ready(jitted(arrays, dy)))


def in_torch(
    function: Callable[..., Any], arguments: list[np.ndarray], backward: bool, *, last: bool
) -> Contender:
    image, *rest = (torch.from_numpy(a) for a in arguments)
    if image.ndim > 2:
        image = image.permute(0, 3, 1, 2)
        image = image.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    tensors = [t.detach().requires_grad_(backward) for t in (image, *rest)]
    with torch.no_grad():
        y = function(*tensors)
    dy = torch.empty_like(y).normal_()

    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        with torch.set_grad_enabled(backward):
            y = function(*tensors)
        if backward:
            y.backward(dy)

    return Contender(run)


if __name__ == "__main__":
    main()
