"""Convolutions, depthwise ones and transposed ones: jaxnet, plain JAX and PyTorch, float32.

    python experiments/benchmarks/convolution.py                    # every row, some ten minutes
    python experiments/benchmarks/convolution.py depthwise          # those whose name begins so

Plain JAX is autodiff of `lax.conv_general_dilated`, as Flax has it. PyTorch gets its arrays channels last.
The rows named by a number are the scripts of that issue of jax-ml/jax, one layer of each.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from rich.console import Console
from rich.table import Table
from timing import Contender, Times, heading, measure

from jaxnet import ops


class Case(NamedTuple):
    image: tuple[int, ...]
    window: tuple[int, ...]
    channels: tuple[int, int]
    batch: int
    stride: int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int | None = None  # of a transposed one, in the convention of PyTorch

    @property
    def x(self) -> tuple[int, ...]:
        return (self.batch, *self.image, self.channels[0])

    @property
    def weight(self) -> tuple[int, ...]:
        return (*self.window, self.channels[0] // self.groups, self.channels[1])


CASES = {
    "conv B64 32×32 32→64 k3": Case((32, 32), (3, 3), (32, 64), 64),
    "conv B64 16×16 64→128 k3": Case((16, 16), (3, 3), (64, 128), 64),
    "conv B128 14×14 32→64 k5": Case((14, 14), (5, 5), (32, 64), 128),
    "conv B64 32×32 64→64 k3 stride 2": Case((32, 32), (3, 3), (64, 64), 64, stride=2),
    "conv B64 32×32 64→64 k1": Case((32, 32), (1, 1), (64, 64), 64),
    "conv B64 32×32 3→32 k3": Case((32, 32), (3, 3), (3, 32), 64),
    "grouped B32 28×28 128→128 k3, 4 groups": Case((28, 28), (3, 3), (128, 128), 32, groups=4),
    "grouped B32 28×28 128→128 k3, 32 groups": Case((28, 28), (3, 3), (128, 128), 32, groups=32),
    "depthwise B16 56×56×128 k3": Case((56, 56), (3, 3), (128, 128), 16, groups=128),
    "depthwise B32 T1024 C512 k5, #13800": Case((1024,), (5,), (512, 512), 32, groups=512),
    "transposed B64 14×14 128→64 k4 stride 2": Case((14, 14), (4, 4), (128, 64), 64, stride=2, transposed=True),
    "transposed B2 T256 512→1 k512 stride 128, as #23783": Case(
        (256,), (512,), (512, 1), 2, stride=128, transposed=True, output_padding=0
    ),
    "transposed B1 64×64×32 64→1 k3 stride 2, #31662": Case(
        (64, 64, 32), (3, 3, 3), (64, 1), 1, stride=2, transposed=True, output_padding=1
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    console = Console()
    heading(console)
    columns = "jaxnet ms", "JAX ms", "PyTorch ms", "times faster than JAX", "than PyTorch"
    table = Table("", "", *columns)
    for name, case in CASES.items():
        if not args.names or name.startswith(tuple(args.names)):
            for what, contenders in programs(case).items():
                times = measure(contenders, args.rounds, args.repeats)
                row(table, name, what, times)
                ratios = ", ".join(f"{times.ratio('jaxnet', peer):.2f} × {peer}" for peer in ("JAX", "PyTorch"))
                console.print(f"{name}, {what}: {ratios}", highlight=False)
    console.print(table)


def row(table: Table, name: str, what: str, times: Times) -> None:
    seconds = (f"{1e3 * times.seconds(contender):.1f}" for contender in ("jaxnet", "JAX", "PyTorch"))
    ratios = (f"{times.ratio('jaxnet', peer):.2f}" for peer in ("JAX", "PyTorch"))
    table.add_row(name, what, *seconds, *ratios)


def programs(case: Case) -> dict[str, dict[str, Contender]]:
    """Of the forward pass, and of forward and backward, the three contenders."""
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in (case.x, case.weight))
    functions = {"jaxnet": in_jaxnet(case), "JAX": in_jax(case)}
    dy = rng.normal(size=jax.eval_shape(functions["JAX"], x, weight).shape).astype(np.float32)
    forward, both = torch_programs(case, x, weight, dy)
    both_ways = {name: gradients(f) for name, f in functions.items()}
    return {
        "forward": {n: jitted(f, x, weight) for n, f in functions.items()} | {"PyTorch": Contender(forward)},
        "forward + backward": {n: jitted(f, x, weight, dy) for n, f in both_ways.items()}
        | {"PyTorch": Contender(both)},
    }


def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
    def both(x: jax.Array, weight: jax.Array, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(f, x, weight)
        return y, pullback(dy)

    return both


def jitted(f: Callable[..., Any], *arrays: np.ndarray) -> Contender:
    compiled, on_device = jax.jit(f), [jnp.asarray(a) for a in arrays]
    return Contender(lambda: jax.block_until_ready(compiled(*on_device)))


def in_jaxnet(case: Case) -> Callable[..., Any]:
    options: dict[str, Any] = {"stride": case.stride, "groups": case.groups}
    if not case.transposed:
        return lambda x, weight: ops.conv(x, weight, **options)
    if case.output_padding is None:
        return lambda x, weight: ops.conv_transpose(x, weight, **options)
    options |= {"padding": case.window[0] // 2, "output_padding": case.output_padding, "convention": "gradient"}
    return lambda x, weight: ops.conv_transpose(x, jnp.swapaxes(weight, -1, -2), **options)


def in_jax(case: Case) -> Callable[..., Any]:
    places = "DHW"[-len(case.image) :]
    numbers = f"N{places}C", f"{places}IO", f"N{places}C"
    strides = [case.stride] * len(case.image)
    if not case.transposed:
        return lambda x, weight: lax.conv_general_dilated(
            x, weight, strides, "SAME", dimension_numbers=numbers, feature_group_count=case.groups
        )
    if case.output_padding is None:
        return lambda x, weight: lax.conv_transpose(x, weight, strides, "SAME", dimension_numbers=numbers)
    pads = [(k - 1 - k // 2, k - 1 - k // 2 + case.output_padding) for k in case.window]
    options: dict[str, Any] = {"lhs_dilation": strides, "dimension_numbers": numbers}
    reverse = tuple(range(len(pads)))
    return lambda x, w: lax.conv_general_dilated(x, jnp.flip(w, reverse), [1] * len(pads), pads, **options)


def torch_programs(
    case: Case, x: np.ndarray, weight: np.ndarray, dy: np.ndarray
) -> tuple[Callable[[], object], Callable[[], object]]:
    axes = len(case.image)
    first, last = (0, axes + 1, *range(1, axes + 1)), (0, *range(2, axes + 2), 1)
    arrays = [torch.tensor(a, requires_grad=True) for a in (x, weight)]
    cotangent = torch.tensor(dy)
    transposed = "_transpose" if case.transposed else ""
    f = getattr(torch.nn.functional, f"conv{transposed}{axes}d")
    order = (axes, axes + 1, *range(axes)) if case.transposed else (axes + 1, axes, *range(axes))
    padding = (case.window[0] - (case.stride - 1 if case.transposed else 0)) // 2
    options: dict[str, Any] = {"stride": case.stride, "padding": padding, "groups": case.groups}
    if case.output_padding is not None:
        options |= {"padding": case.window[0] // 2, "output_padding": case.output_padding}

    def call() -> torch.Tensor:
        return f(arrays[0].permute(first), arrays[1].permute(order), **options).permute(last)

    def forward() -> None:
        with torch.no_grad():
            call()

    def both() -> None:
        for array in arrays:
            array.grad = None
        call().backward(cotangent)

    return forward, both


if __name__ == "__main__":
    main()
