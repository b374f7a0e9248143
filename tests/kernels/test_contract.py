"""A kernel is right only if …: DESIGN.md's sentence, held to each entry of contract.py."""

import hashlib
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CONTRACTS
from jax import P
from processes import importing, needs, output

from jaxnet.ops import dispatch, using

each = pytest.mark.parametrize("c", [pytest.param(c, id=name) for name, c in CONTRACTS.items()])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def variants(c, size, dtype):
    """Each set of options; and without all that may be missing."""
    args = c.arguments(size, dtype)
    cases = [(size, options, args) for options in c.options]
    return [*cases, (size, c.options[0], tuple(None if i in c.missing else a for i, a in enumerate(args)))]


def floats(args):
    """The floating-point arrays in `args`, and what puts others in their place."""
    leaves, tree = jax.tree.flatten(args)
    at = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def whole(others):
        others = dict(zip(at, others, strict=True))
        return jax.tree.unflatten(tree, [others.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in at], whole


def cotangents(outputs):
    """That differ everywhere."""
    return jax.tree.map(lambda y: jnp.sin(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype), outputs)


def results(c, implementation, options, args, cotangents=cotangents):
    """Outputs without a backward pass to come and with one, gradients by hand and by autodiff; XLA's twice."""
    kwargs = options | {"implementation": implementation}
    y, pullback = c.vjp(*args, **kwargs)
    gradients = floats(pullback(cotangents(y)))[0]
    if implementation == "xla":
        return y, y, gradients, gradients
    leaves, whole = floats(args)
    _, autodiff = jax.vjp(lambda leaves: c.function(*whole(leaves), **kwargs), leaves)
    return c.function(*args, **kwargs), y, gradients, autodiff(cotangents(y))[0]


def value(c, implementation, options=None):
    """A number whose gradients differ everywhere, and are no constants."""

    def f(*args):
        outputs = c.function(*args, **(options or c.options[0]), implementation=implementation)
        return sum(jnp.sin(y + cotangents(y)).sum() for y in jax.tree.leaves(outputs))

    return f


def gradient(f):
    """The gradients of all floating-point arguments."""

    def run(*args):
        leaves, whole = floats(args)
        return jax.grad(lambda leaves: f(*whole(leaves)))(leaves)

    return run


def close(found, expected, roundings):
    """Each rounding errs by at most half an eps of what is summed up to there, in either computation."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        eps, b = float(jnp.finfo(b.dtype).eps), np.asarray(b, "float64")
        largest = np.abs(b).max(initial=1, where=np.isfinite(b))
        np.testing.assert_allclose(np.asarray(a, "float64"), b, rtol=0, atol=(20 + roundings) * eps * largest)


def check(c, cases):
    """All cases in one program: most of the time is compilation."""

    def all_of(implementation):
        run = jax.jit(
            lambda args: [results(c, implementation, case[1], a) for case, a in zip(cases, args, strict=True)]
        )
        return run([args for *_, args in cases])

    for (size, *_), found, expected in zip(cases, all_of(c.implementation), all_of("xla"), strict=True):
        close(found, expected, c.roundings(size))


@pytest.mark.isa
@both_dtypes
@each
def test_every_option_and_way_to_cut_the_work(c, dtype):
    with jax.enable_x64(dtype == "float64"):
        first, *others = (variants(c, size, dtype) for size in c.sizes)
        check(c, [*first, *(case for cases in others for case in (cases[1], cases[-1]))])


@pytest.mark.long
@both_dtypes
@each
def test_sizes(c, dtype):
    with jax.enable_x64(dtype == "float64"):
        cases = [variants(c, size, dtype) for size in c.more_sizes]
        check(c, [some[i % len(some)] for i, some in enumerate(cases)])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.long)])
@each
def test_nan_and_infinity_go_through_as_by_xla(c, dtype):
    # In float32 gelu's slope below −10 is 0 by the kernel and −3e-36 by XLA: times an infinity NaN, or that.
    sets = [o for o in c.options if dtype == "float64" or o.get("activation") != "gelu"]

    def spoil(a, bad):
        return a.ravel().at[a.size // 2].set(bad).reshape(a.shape)

    def all_of(implementation):
        def run(args, bad):
            def spoiled(outputs):
                return jax.tree.map(partial(spoil, bad=bad), cotangents(outputs))

            return [results(c, implementation, options, args, spoiled) for options in sets]

        return jax.jit(run)

    with jax.enable_x64(dtype == "float64"):
        args = c.arguments(c.sizes[0], dtype)
        # Without lengths: past an end an infinite state may be multiplied by 0, or not.
        args = tuple(None if i in c.missing and not floats(a)[0] else a for i, a in enumerate(args))
        leaves, whole = floats(args)
        by_kernel, by_xla = all_of(c.implementation), all_of("xla")
        for bad in (np.nan, np.inf, -np.inf):
            cases = [
                (whole([*leaves[:i], spoil(leaf, bad), *leaves[i + 1 :]]), 0.5) for i, leaf in enumerate(leaves)
            ]
            for case in [*cases, (args, bad)]:
                close(by_kernel(*case), by_xla(*case), c.roundings(c.sizes[0]))


# ---------------------------------------------------------------------------------------- transformations


def two(c):
    """Arguments, and others."""
    args = c.arguments(c.sizes[0], "float64")
    return args, jax.tree.map(lambda a: a[::-1], args)


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def by_xla(c):
    f = value(c, "xla")
    return jax.jit(lambda *args: (f(*args), gradient(f)(*args)))


@each
def test_vmap_scan_and_remat(c, x64):
    members = two(c)
    f = value(c, c.implementation)

    @jax.jit
    def transformed(*args):
        def scan(f):
            return jax.lax.scan(lambda _, at: (None, f(*at)), None, args)[1]

        once_more = jax.tree.map(lambda a: a[None], args)
        return jax.vmap(f)(*args), {
            "vmap": jax.vmap(gradient(f))(*args),
            "vmap of vmap": jax.tree.map(lambda a: a[0], jax.vmap(jax.vmap(gradient(f)))(*once_more)),
            "grad of vmap": gradient(lambda *args: jax.vmap(f)(*args).sum())(*args),
            "scan": scan(gradient(f)),
            "remat in scan": scan(gradient(jax.checkpoint(f))),
        }

    values, gradients = transformed(*stack(*members))
    expected, slopes = stack(*(by_xla(c)(*args) for args in members))
    close(values, expected, c.roundings(c.sizes[0]))
    for found in gradients.values():
        close(found, slopes, c.roundings(c.sizes[0]))


@each
def test_vmap_over_one_argument(c, x64):
    first, second = two(c)
    f, xla = value(c, c.implementation), by_xla(c)
    present = [i for i, a in enumerate(first) if a is not None]

    @jax.jit
    def mapped(first, second):
        found = []
        for i in present:
            axes = [-1 if j == i else None for j in range(len(first))]
            pair = jax.tree.map(lambda *leaves: jnp.stack(leaves, -1), first[i], second[i])
            args = (*first[:i], pair, *first[i + 1 :])
            found.append(jax.vmap(lambda *args: (f(*args), gradient(f)(*args)), axes)(*args))
        return found

    expected = [stack(xla(*first), xla(*first[:i], second[i], *first[i + 1 :])) for i in present]
    close(mapped(first, second), expected, c.roundings(c.sizes[0]))


@each
def test_second_order(c, x64):
    """The backward pass is differentiable itself, in both modes. Of the options some: compiling takes long."""
    leaves, whole = floats(two(c)[0])

    def second(implementation, options):
        def slope(leaves):
            return gradient(value(c, implementation, options))(*whole(leaves))

        over = jax.grad(lambda leaves: sum(jnp.sin(g).sum() for g in slope(leaves)))
        return over(leaves), jax.jvp(slope, (leaves,), (cotangents(leaves),))[1]

    found, expected = (
        jax.jit(lambda name=name: [second(name, options) for options in c.options[::3]])()
        for name in (c.implementation, "xla")
    )
    close(found, expected, 3 * c.roundings(c.sizes[0]))


# ------------------------------------------------------------------------------------------ which is chosen


def lowered(f, *args):
    return jax.jit(f).lower(*args).as_text()


@each
@pytest.mark.parametrize("name", [None, "by name", "xla"])
def test_which_is_lowered(c, name):
    name = c.implementation if name == "by name" else name
    args, f = c.arguments(c.large[0], "float32"), value(c, name)
    runs = [f"@{target}(" in lowered(g, *args) for g in (f, gradient(f)) for target in c.targets]
    assert runs == ([False] * 4 if name == "xla" else [True, False, True, True])


@each
def test_where_it_is_slow_none_leaves_it_to_xla(c):
    for size in c.left_to_xla:
        args = c.arguments(size, "float32")
        assert f"@{c.targets[0]}(" not in lowered(value(c, None), *args)
        assert f"@{c.targets[0]}(" in lowered(value(c, c.implementation), *args)


@each
def test_a_block_holds_for_a_pullback_called_outside(c):
    args = c.arguments(c.large[0], "float32")
    leaves, whole = floats(args)
    with using("xla"):
        y, pullback = c.vjp(*args, **c.options[0])
        _, autodiff = jax.vjp(lambda leaves: c.function(*whole(leaves), **c.options[0]), leaves)
    assert "@jaxnet" not in lowered(pullback, y)
    assert "@jaxnet" not in lowered(autodiff, y)


@each
def test_half_precision(c):
    """Served in the dtype of its sums and rounded once; or left to XLA, and refused by name."""
    args = c.arguments(c.large[0], "bfloat16")
    found, expected = (partial(results, c, name, c.options[0]) for name in (c.implementation, "xla"))
    if c.half:
        close(jax.jit(found)(args), jax.jit(expected)(args), 0)
    else:
        assert "@jaxnet" not in lowered(partial(results, c, None, c.options[0]), args)
        with pytest.raises(ValueError, match="must be all float32 or all float64; got bfloat16"):
            found(args)


@each
def test_a_second_call_does_not_retrace(c, x64):
    traced = []

    @jax.jit
    def f(*args):
        traced.append(None)
        return gradient(value(c, c.implementation))(*args)

    for args in two(c):
        f(*args)
    assert len(traced) == 1


# ---------------------------------------------------------------------- devices, threads, instruction sets

HERE = importing(__file__)


def check_sharded(c, devices):
    """In a process that has them: by hand and by autodiff, automatically and by `shard_map`, over the batch."""
    args = c.arguments(c.sizes[0], "float32")
    f = partial(c.function, **c.options[0], implementation=c.implementation)
    dy = cotangents(jax.eval_shape(f, *args))
    of = [P("batch") if i in c.batched else P() for i in range(len(args))]
    specs = P("batch"), *of
    outputs = P("batch"), [spec for a, spec in zip(args, of, strict=True) for _ in floats(a)[0]]

    def by_hand(dy, *args):
        y, pullback = c.vjp(*args, **c.options[0], implementation=c.implementation)
        return y, floats(pullback(dy))[0]

    def by_autodiff(dy, *args):
        leaves, whole = floats(args)
        y, pullback = jax.vjp(lambda leaves: f(*whole(leaves)), leaves)
        return y, pullback(dy)[0]

    y, _, expected, _ = results(c, "xla", c.options[0], args)
    mesh = jax.make_mesh((devices,), ("batch",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    put = [jax.device_put(a, jax.NamedSharding(mesh, spec)) for a, spec in zip((dy, *args), specs, strict=True)]
    for g in [by_hand, by_autodiff][:devices]:
        for h in g, jax.shard_map(g, mesh=mesh, in_specs=specs, out_specs=outputs):
            compiled = jax.jit(h).lower(*put).compile()
            assert all(f'custom_call_target="{target}"' in compiled.as_text() for target in c.targets)
            found = compiled(*put)
            close(found, (y, expected), c.roundings(c.sizes[0]))
            # Each device has computed its own rows.
            assert "all-gather" not in compiled.as_text()
            assert devices == 1 or all(y.sharding.spec[0] == "batch" for y in jax.tree.leaves(found[0]))


def check_explicit(c):
    """On a mesh with explicit axes it is left to XLA, and refused by name."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        args = c.arguments(c.large[0], "float32")
        args = [jax.device_put(a, P("batch")) if i in c.batched else a for i, a in enumerate(args)]
        assert "@jaxnet" not in lowered(partial(c.function, **c.options[0]), *args)
        with pytest.raises(ValueError, match="must not lie on a mesh with explicit axes"):
            c.function(*args, **c.options[0], implementation=c.implementation)


@pytest.mark.long
def test_on_several_devices():
    code = "[(t.check_sharded(c, 1), t.check_sharded(c, 2), t.check_explicit(c)) for c in t.CONTRACTS.values()]"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    output(HERE + code, XLA_FLAGS=flags)


def digest():
    """Of what all kernels compute at sizes that threads share."""
    from test_adamw_cpu import three_steps

    found = hashlib.sha256()
    for c in CONTRACTS.values():

        @jax.jit
        def both(*args, c=c):
            y, pullback = c.vjp(*args, **c.options[0], implementation=c.implementation)
            return y, floats(pullback(cotangents(y)))[0]

        for leaf in jax.tree.leaves([both(*c.arguments(size, "float32")) for size in c.large]):
            found.update(np.asarray(leaf).tobytes())
    for leaf in jax.tree.leaves(three_steps()):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


COUNT = "import glob; print(sum('XLAEigen' in open(n).read() for n in glob.glob('/proc/self/task/*/comm')))"
ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_same_bits_for_any_number_of_threads():
    found = set()
    for threads, before in (("1", ""), ("2", ""), ("5", ""), ("5", ONE_CORE)):
        # NPROC sets the size of XLA's pool.
        bits, counted = output(before + HERE + "print(t.digest()); " + COUNT, NPROC=threads).split()
        assert counted == threads
        found.add(bits)
    assert len(found) == 1


@pytest.mark.long
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Whatever is marked `isa`."""
    needs(isa)
    options = ["-q", "-m", "isa", "-o", "addopts=", "-p", "no:jaxnet", "-p", "no:cacheprovider"]
    code = f"import pytest, sys; failed = pytest.main({[*options, str(Path(__file__).parent)]}); "
    code += "from jaxnet.kernels import ffi; print(ffi.isa()); sys.exit(failed)"
    assert output(code, JAXNET_ISA=isa).split()[-1] == isa


def test_every_kernel_is_held_to_the_contract():
    """AdamW is no function with a pullback: tests/train/test_optimizer.py compares it."""
    folders = {path.parent.name for path in (Path(__file__).parents[2] / "kernels").glob("*/cpu.py")}
    assert folders - {"adamw"} == {name.split()[0] for name in CONTRACTS}
    assert all(c.implementation in dispatch.implementations(name.split()[0]) for name, c in CONTRACTS.items())
