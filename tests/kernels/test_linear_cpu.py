"""The compiled matrix products: what is particular to them; the rest is in test_contract.py."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from contract import CONTRACTS

from jaxnet import activations
from jaxnet.kernels.linear import cpu
from jaxnet.ops import linear

KINDS = {"NN": (False, False), "TN": (True, False), "NT": (False, True)}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def run(kind, a, b, bias=None, saved=None, slope="identity"):
    """op(A) op(B) + bias; with a `slope`, f′(saved) of what is dz: A, or B where A is transposed."""
    a, b, bias, saved = jax.tree.map(jnp.asarray, (a, b, bias, saved))
    if kind == "TN":
        assert bias is None
        return cpu.gradients(a, b, saved, slope=slope)[0]
    return cpu.product(a, b, saved, bias, transpose_b=KINDS[kind][1], slope=slope)[0]


def numpy_product(kind, a, b, bias=None):
    a, b = (x.T if transposed else x for x, transposed in zip((a, b), KINDS[kind], strict=True))
    return a @ b + (0 if bias is None else bias)


def operands(kind, rows, depth, columns, dtype=np.float32, bias=True):
    rng = np.random.default_rng(rows + 7 * depth + 49 * columns)
    a, b, c = (rng.normal(size=size).astype(dtype) for size in ((rows, depth), (depth, columns), columns))
    a, b = (np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), KINDS[kind], strict=True))
    return a, b, c if bias and kind != "TN" else None


def check(kind, found, *args):
    # Each of the `depth` products and sums, and of the bias, rounds once by at most eps/2 of what is summed up
    # to there, which is at most the sum of all magnitudes: (depth + 1) eps/2 of it, whatever the order; NumPy's
    # own sum, if in the same dtype, as much. Twice that, once for an instruction set without fused operations.
    depth = args[0].shape[0 if KINDS[kind][0] else 1]
    exact = numpy_product(kind, *(None if x is None else x.astype(np.float64) for x in args))
    size = numpy_product(kind, *(None if x is None else np.abs(x.astype(np.float64)) for x in args))
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert found.dtype == args[0].dtype
    assert found.shape == exact.shape
    assert np.all(error <= 2 * (depth + 1) * np.finfo(found.dtype).eps * size)


# Around a tile's rows (14 or 6), a vector and a panel of columns (4 to 32), a block (320) and a region (512); few
# rows around the depth from which they are computed as columns (256), if that isn't a multiple of 4 KB.
SIZES = [
    *((m, 5, 7) for m in (0, 1, 2, 5, 6, 7, 13, 14, 15, 29, 97)),
    *((31, 9, n) for n in (0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 61, 64, 65, 131)),
    *((17, k, 37) for k in (0, 1, 2, 3, 15, 16, 17, 127, 319, 320, 321, 641)),
    *((m, 33, 41) for m in (511, 512, 513, 1031)),
    *((m, 257, 43) for m in (1, 4, 7, 8, 9, 12, 15, 16, 17, 24, 25, 31, 32, 33)),
    *((12, k, 70) for k in (255, 256, 1024, 1025)),
    *((30, 300, n) for n in (1, 5, 6, 7, 13, 14, 15, 16, 500)),
    *((1, 1, 1), (1, 700, 1), (128, 784, 10), (12, 128, 512), (600, 650, 70), (530, 330, 9), (3, 5000, 40)),
]


@pytest.mark.isa
@both_dtypes
@every_kind
def test_sizes(kind, dtype):
    with jax.enable_x64(dtype == np.float64):
        each = [operands(kind, *size, dtype, bias=i % 2 == 0) for i, size in enumerate(SIZES)]
        found = jax.jit(lambda each: [run(kind, *args) for args in each])(each)  # one program compiles sooner
        for product, args in zip(found, each, strict=True):
            check(kind, product, *args)


@every_kind
def test_depth_beyond_what_is_packed_at_once(kind):
    args = operands(kind, 500, 3000, 40)
    check(kind, run(kind, *args), *args)


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(15, 19, 43), (12, 300, 43), (30, 300, 43)])
def test_nan_and_infinity_stay_in_their_row_and_column(kind, value, size):
    for where in (0, 1):
        args = operands(kind, *size)
        args[where][3, 5] = value
        with np.errstate(invalid="ignore"):  # NumPy warns of infinities, on some machines
            expected = numpy_product(kind, *args)
        np.testing.assert_allclose(run(kind, *args), expected, rtol=1e-3, atol=1e-4)


# With few columns A is used as it lies, with many and where there is a y it is packed; B always is, whole or not.
FUSED = [
    (1, 1, 1),
    (0, 3, 5),
    (4, 0, 3),
    (15, 19, 43),
    (128, 100, 64),
    (530, 330, 9),
    (33, 400, 700),
    (128, 65, 512),
    (12, 300, 45),
    (30, 300, 45),
]


ACTIVATIONS = {
    "relu": activations.relu,
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "silu": activations.silu,
    "gelu": activations.gelu,
    "gelu exact": partial(activations.gelu, approximate=False),
}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


@both_dtypes
@pytest.mark.parametrize(
    ("kind", "size"), [*(("NN", size) for size in FUSED), *(("NT", size) for size in FUSED[-2:])]
)
def test_activation_of_the_product_and_what_it_is_of(kind, size, dtype):
    @jax.jit
    def every(a, b, bias):
        product = partial(cpu.product, a, b, None, bias, transpose_b=kind == "NT")

        def one(name, f):
            return product(activation=name, keep=True), product(activation=name), f(z)

        z = run(kind, a, b, bias)
        return z, {name: one(name, f) for name, f in ACTIVATIONS.items()}

    with jax.enable_x64(dtype == np.float64):
        a, b, bias = operands(kind, *size, dtype)
        a[-1:, :1] = np.nan
        z, results = every(a, b, bias)
        for name, ((found, kept), (plain, nothing), expected) in results.items():
            np.testing.assert_array_equal(kept, z)
            # f, at most 1 + |z|, is computed to some units in the last place, by XLA too; gelu's σ is of |z|³.
            bound = 16 * np.finfo(dtype).eps * (1 + np.abs(z)) ** (3 if name == "gelu" else 1)
            assert np.all(np.isnan(found) == np.isnan(z)), name
            assert not np.any(np.abs(found - expected) > bound), name
            assert nothing is None
            np.testing.assert_array_equal(plain, found)


@both_dtypes
@every_kind
@pytest.mark.parametrize("size", FUSED)
def test_derivative_of_relu(kind, size, dtype):
    with jax.enable_x64(dtype == np.float64):
        check_slope("relu", kind, size, dtype)


@every_activation
@every_kind
def test_derivatives(name, kind):
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            check_slope(name, kind, (33, 70, 45), dtype)


def check_slope(name, kind, size, dtype):
    a, b, _ = operands(kind, *size, dtype)
    where = 1 if kind == "TN" else 0

    @jax.jit
    def products(a, b, z):
        dy = (a, b)[where]
        dz = activations.pullback(ACTIVATIONS[name])(z, dy)
        saved = ACTIVATIONS[name](z) if name in ("relu", "tanh") else z
        magnitudes = (a, dy) if where else (dy, b)
        plain = (a, dz) if where else (dz, b)
        return (
            run(kind, *map(jnp.abs, magnitudes)),
            run(kind, a, b, saved=saved, slope=name),
            run(kind, *plain),
        )

    dy = (a, b)[where]
    dy[-1:, -1:] = np.nan  # 0 · NaN stays
    z = (3 * np.random.default_rng(1).normal(size=dy.shape)).astype(dtype)
    size, found, expected = map(np.asarray, products(a, b, z))
    # Beside `check`'s bound some eps of each slope, which is at most 1.2; of tanh's 1 − y that y has lost.
    eps, depth = float(np.finfo(dtype).eps), a.shape[0 if where else 1]
    gap = np.abs(found - expected)
    assert not np.any(gap > (2 * depth + 100) * eps * size)
    assert np.all(np.isnan(gap) == np.isnan(size))


def test_another_activation_never_reaches_the_kernel():
    a = jnp.ones((2, 2))
    for call in (
        partial(cpu.product, a, a, None, None, activation="mish"),
        partial(cpu.gradients, a, a, a, slope="mish"),
    ):
        with pytest.raises(ValueError, match="'gelu exact'; got 'mish'"):
            call()


FUNCTIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


@pytest.mark.isa
@pytest.mark.parametrize(("dtype", "wide"), [("float32", np.float64), ("float64", np.longdouble)])
def test_functions_to_units_in_the_last_place(dtype, wide):
    """tanh and σ to 2, z σ to the third that the product adds; edges as they should be."""
    with jax.enable_x64(dtype == "float64"):
        z = np.geomspace(1e-12, 60, 40_001)
        z = np.concatenate([-z[::-1], [0.0], z]).astype(dtype)
        for name, f in FUNCTIONS.items():
            check_units(name, z, f(z.astype(wide)), 3 if name == "silu" else 2)
        edges = np.array([0.0, -0.0, 1e30, -1e30, np.inf, -np.inf, np.nan], dtype)
        for name, f in ACTIVATIONS.items():
            np.testing.assert_array_equal(of(name, edges), f(edges))


@pytest.mark.isa
def test_the_normal_distribution_to_units_in_the_last_place():
    """z Φ(z): 2 of Φ and one of the product, as far as Φ is a normal number; in float64 2 of erfc in C."""
    for dtype, top, units in (("float32", 12.9, 2), ("float64", 37.0, 4)):
        with jax.enable_x64(dtype == "float64"):
            z = np.geomspace(1e-6, top, 20_001)
            z = np.concatenate([-z[::-1], z]).astype(dtype)
            phi = distribution(z)
            bound = np.abs(z) * units * np.spacing(phi.astype(dtype))
            bound += np.spacing(np.abs(z * phi).astype(dtype))
            assert np.all(np.abs(of("gelu exact", z) - z * phi) <= bound)


@pytest.mark.long
@pytest.mark.isa
def test_the_normal_distribution_of_every_number():
    """2 units of Φ(z), and the rounding of the product, for all float32 from −12.9 to −2⁻⁶."""
    ends = np.linspace(*np.array([2.0**-6, 12.9], np.float32).view(np.uint32), 41).astype(np.uint32)
    for first, last in itertools.pairwise(ends):
        z = -np.arange(first, last, dtype=np.uint32).view(np.float32)
        phi = scipy.special.ndtr(z.astype(np.float64))
        bound = -z * 2 * np.spacing(phi.astype(np.float32)) + np.spacing(np.abs(z * phi).astype(np.float32)) / 2
        assert np.all(np.abs(of("gelu exact", z) - z * phi) <= bound)


def distribution(z):
    """Φ(z) = erfc(t) / 2, t = −z/√2, which is rounded: its rest moves erfc by its derivative −2/√π e^(−t²)."""
    t = -z.astype(np.longdouble) / np.sqrt(np.longdouble(2))
    near = t.astype(np.float64)
    erfc = np.array([math.erfc(each) for each in near])
    return (erfc - (t - near) * 2 / np.sqrt(np.pi) * np.exp(-(near**2))) / 2


def of(name, z):
    one = jnp.ones((1, 1), z.dtype)
    return np.asarray(cpu.product(jnp.asarray(z)[:, None], one, None, None, activation=name)[0])[:, 0]


def check_units(name, z, expected, units):
    spacing, normal = np.spacing(np.abs(expected).astype(z.dtype)), np.abs(expected) >= np.finfo(z.dtype).tiny
    assert np.all((np.abs(of(name, z) - expected) <= units * spacing)[normal])


@both_dtypes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", FUSED)
def test_gradient_of_the_bias(size, masked, dtype):
    with jax.enable_x64(dtype == np.float64):
        x, dy, _ = operands("TN", *size, dtype)
        y = np.random.default_rng(1).normal(size=dy.shape).astype(dtype).clip(0) if masked else None
        dz = (dy * (y > 0) if masked else dy).astype(np.float64)
        _, found = cpu.gradients(*jax.tree.map(jnp.asarray, (x, dy, y)), slope="relu" if masked else "identity")
        # As in `check`: one rounding for each of the terms.
        bound = len(dz) * np.finfo(dtype).eps * np.abs(dz).sum(0)
        assert found.dtype == dtype
        assert np.all(np.abs(np.asarray(found, np.float64) - dz.sum(0)) <= bound)


# ------------------------------------------------------------------------------------------------ the op


def squares(*args, **options):
    return jnp.square(linear(*args, **options)).sum()


def test_third_order(x64):
    args = CONTRACTS["linear"].arguments(((2,), 3, 2), "float64")

    def third(implementation):
        f = partial(squares, activation="tanh", implementation=implementation)
        return jax.jit(jax.jacrev(jax.jacrev(jax.grad(f, 1), 1), 0))(*args)

    np.testing.assert_allclose(third("cpu"), third("xla"), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("wanted", "counts"), [((1, 2), (1, 1)), (0, (2, 0)), ((0, 1, 2), (2, 1))])
def test_what_is_not_needed_is_not_computed(wanted, counts, activation):
    args = CONTRACTS["linear"].arguments(((64,), 128, 128), "float32")
    f = partial(squares, activation=activation, implementation="cpu")
    compiled = jax.jit(jax.grad(f, wanted)).lower(*args).compile().as_text()
    names = CONTRACTS["linear"].targets
    assert tuple(compiled.count(f'custom_call_target="{name}"') for name in names) == counts
