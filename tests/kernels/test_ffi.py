"""Loading the compiled kernels, and calling them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.kernels import ffi


def test_kernels_are_loaded():
    assert ffi.unavailable() is None
    assert ffi.isa() in ("avx512", "avx2", "baseline")
    assert "jaxnet_adamw" in ffi.targets()
    assert all(name.startswith("jaxnet_") for name in ffi.targets())


def test_reason_if_nothing_was_built(monkeypatch, tmp_path):
    monkeypatch.setattr(ffi, "_folders", [str(tmp_path)])
    isa, targets, reason = ffi._load()
    assert (isa, targets) == ("none", ())
    assert "without a C++ compiler" in reason


def test_reason_if_the_library_is_broken(monkeypatch, tmp_path):
    (tmp_path / "jaxnet_baseline.so").write_bytes(b"no library")
    monkeypatch.setattr(ffi, "_folders", [str(tmp_path)])
    isa, targets, reason = ffi._load()
    assert (isa, targets) == ("none", ())
    assert "can't be loaded" in reason
    assert "jaxnet_baseline.so" in reason


@pytest.mark.parametrize("asked", ["avx512", "sse9"])
def test_instruction_set_that_is_not_supported(monkeypatch, asked):
    monkeypatch.setenv("JAXNET_ISA", asked)
    with pytest.raises(
        ValueError, match=rf"one of those that this CPU supports \(avx2, baseline\); got '{asked}'"
    ):
        ffi._choose_isa(["avx2", "baseline"])


def adam_step(batched):
    """One Adam step of a vector by the kernel; `batched` as in `ffi.call`."""

    def run(g, scalars):
        zeros = jnp.zeros_like(g)
        out = [jax.ShapeDtypeStruct(g.shape, g.dtype)] * 3
        options = {"apply": False, "nesterov": False, "decay": np.zeros(1, np.int8)}
        return ffi.call("jaxnet_adamw", out, scalars, g, zeros, zeros, batched=batched, **options)

    return run


SCALARS = jnp.asarray([0.9, 0.1, 0.999, 0.001, 0.1, 0.19, 0.001, 1e-8, 0.0, 0.0, 0.5], jnp.float32)


@pytest.mark.parametrize("batched", [False, True])
def test_vmap_methods_agree(batched):
    g = jnp.linspace(-1, 1, 20).reshape(4, 5)
    found = jax.vmap(adam_step(batched), in_axes=(0, None))(g, SCALARS)
    for i in range(4):
        expected = adam_step(batched)(g[i], SCALARS)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_batch_of_none():
    found = jax.vmap(adam_step(True), in_axes=(0, None))(jnp.zeros((0, 5)), SCALARS)
    assert [x.shape for x in found] == [(0, 5)] * 3


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has pages of one size"
)
def test_large_results_lie_on_large_pages():
    result = adam_step(batched=False)(jnp.ones(1 << 21), SCALARS)[0]  # 8 MB
    middle = result.unsafe_buffer_pointer() + (4 << 20)
    flags = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(address, 16) for address in name.split("-"))
        elif name == "VmFlags:":
            flags[range(begin, end)] = rest
    [found] = [flags[addresses] for addresses in flags if middle in addresses]
    assert "hg" in found
