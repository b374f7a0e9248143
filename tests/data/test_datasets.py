"""Data sets and the IDX format, on real files."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@given(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 4), max_size=4), st.booleans(), st.integers(0, 99))
def test_idx_reads_back_what_was_written(tmp_path_factory, dtype, shape, zipped, seed):
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    read = data.idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


WHOLE = idx_bytes(np.ones((3, 4), "u1"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-1], r"has 11 bytes of values; its shape \(3, 4\) needs 12"),
        (WHOLE + b"x", "has 13 bytes of values"),
        (WHOLE[:6], "is cut short: its header has 6 bytes of 12"),
        (b"PNG of something", "is not an IDX file: it begins with 504e4720"),
        (b"", "is not an IDX file: it begins with nothing"),
        (gzip.compress(WHOLE)[:-6], "is a damaged gzip file"),
        (gzip.compress(WHOLE)[:-8] + b"12345678", "is a damaged gzip file"),
    ],
    ids=["cut by a byte", "a byte more", "cut header", "no IDX", "empty", "cut gzip", "changed gzip"],
)
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images {message}"):
        data.idx(path)


@pytest.mark.parametrize(
    ("load", "features", "examples", "classes"),
    [(data.digits, 64, 1797, 10), (data.breast_cancer, 30, 569, 2), (data.diabetes, 10, 442, 0)],
)
def test_the_sets_of_scikit_learn(load, features, examples, classes):
    one, again, other = load(), load(), load(seed=1)
    (train_x, train_y), (test_x, test_y) = one.train, one.test
    assert train_x.shape[1:] == test_x.shape[1:] == (features,)
    assert len(train_x) + len(test_x) == examples
    assert len(test_x) == -(-examples // 5)
    assert train_x.dtype == np.float32
    assert train_y.dtype == (np.int32 if classes else np.float32)
    assert len(one.classes) == classes
    np.testing.assert_array_equal(train_x, again.train[0])
    assert not np.array_equal(train_x, other.train[0])
    if classes:  # each class in proportion, to within one example
        share = np.bincount(test_y) / np.bincount(np.concatenate([train_y, test_y]))
        assert np.abs(share - len(test_y) / examples).max() < 1 / np.bincount(test_y).min()
    if load is not data.digits:  # standardised by the training data alone
        np.testing.assert_allclose(train_x.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(train_x.std(0), 1, atol=1e-5)
        assert np.abs(test_x.mean(0)).max() > 1e-3


def test_digits_as_pictures():
    flat, pictures = data.digits(), data.digits(flat=False)
    assert pictures.train[0].shape[1:] == (8, 8, 1)
    np.testing.assert_array_equal(flat.test[0], pictures.test[0].reshape(-1, 64))
    assert 0 <= flat.train[0].min() < flat.train[0].max() == 1


@pytest.fixture
def small_mnist(tmp_path):
    """The four files in a subfolder mnist, two of them gzipped."""
    folder, rng = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for part, n in (("train", 12), ("t10k", 5)):
        images, labels = rng.integers(0, 256, (n, 28, 28)).astype("u1"), rng.integers(0, 10, n).astype("u1")
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_mnist_from_files(small_mnist, monkeypatch):
    monkeypatch.setenv("JAXNET_DATA", str(small_mnist))
    flat, pictures = data.mnist(small_mnist / "mnist"), data.mnist(flat=False)
    assert [a.shape for a in (*flat.train, *flat.test)] == [(12, 784), (12,), (5, 784), (5,)]
    assert pictures.train[0].shape == (12, 28, 28, 1)
    assert flat.train[0].max() <= 1
    np.testing.assert_array_equal(flat.train[0], pictures.train[0].reshape(12, 784))


def test_mnist_whose_labels_belong_to_other_images(small_mnist):
    (small_mnist / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, "u1")))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte doesn't hold digits for its images"):
        data.mnist(small_mnist)


def test_what_is_missing_is_named(small_mnist, monkeypatch):
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte.*from https://.*--data DIR.*JAXNET_DATA"
    ):
        data.mnist()
    with pytest.raises(FileNotFoundError, match=r"the data folder .*nowhere isn't there"):
        data.mnist(small_mnist / "nowhere")
    (small_mnist / "mnist" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no train-labels-idx1-ubyte or .*\.gz.*https://"):
        data.mnist(small_mnist)


def test_the_real_mnist(real_data):
    mnist = data.mnist(real_data("mnist"))
    assert [a.shape for a in (*mnist.train, *mnist.test)] == [(60000, 784), (60000,), (10000, 784), (10000,)]
    assert list(mnist.train[1][:6]) == [5, 0, 4, 1, 9, 2]
    assert list(np.bincount(mnist.test[1])) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
