"""Augmentation: each is what it says, on its own for each image, and a function of its key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data
from jaxnet.data import augment

X = jnp.arange(1.0, 64 * 6 * 5 * 2 + 1).reshape(64, 6, 5, 2)
KEY = jax.random.key(0)
ALL = {
    "flip": augment.flip(),
    "shift": augment.shift(2),
    "shift reflected": augment.shift(2, mode="reflect"),
    "cutout": augment.cutout(3),
    "compose": augment.compose(augment.shift(1), augment.flip(), augment.cutout(2)),
}


@pytest.mark.parametrize("name", ALL)
def test_a_pure_function_of_the_key(name):
    f = jax.jit(ALL[name])
    once, again, other = f(KEY, X), f(KEY, X), f(jax.random.key(1), X)
    assert (once.shape, once.dtype) == (X.shape, X.dtype)
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    with pytest.raises(ValueError, match=r"needs images \(n, h, w, c\); got \(3,\)"):
        ALL[name](KEY, jnp.ones(3))


def test_flip_turns_half_of_the_images():
    turned = augment.flip()(KEY, X)
    same = (turned == X).all((1, 2, 3))
    np.testing.assert_array_equal(turned[~same], X[~same][:, :, ::-1])
    assert 16 < same.sum() < 48


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_shift_moves_by_whole_pixels_in_each_direction(mode):
    moved = augment.shift(2, mode=mode)(KEY, X)
    padded = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)), mode)
    found = set()
    for image, wide in zip(moved, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if (wide[i : i + 6, j : j + 5] == image).all()]
        assert places
        found.add(places[0])
    assert len(found) > 15  # of 25


def test_cutout_clears_a_square():
    cut = augment.cutout(3)(KEY, X) == 0
    assert (cut[..., 0] == cut[..., 1]).all()
    for hole in cut[..., 0]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert 2 <= len(rows) <= 3
        assert 2 <= len(columns) <= 3
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert cut[..., 0].any(0).all()  # every place, sometimes


def test_refusals():
    for make, message in (
        (lambda: augment.cutout(0), "cutout needs size ≥ 1; got 0"),
        (lambda: augment.shift(-1), "needs pixels ≥ 0"),
        (lambda: augment.shift(1, mode="wrap"), "got 1 and 'wrap'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert data.augment is augment
