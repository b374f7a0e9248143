"""Data sets, each a `Dataset` of numpy arrays ready to train on.

Those of scikit-learn are part of that package and need nothing. The others are read from files in their
standard public format, in the folder given or named by the environment variable `JAXNET_DATA`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnet.data.archive import find
from jaxnet.data.idx import idx


class Dataset(NamedTuple):
    """Inputs and targets, split into training and test data.

    Inputs are float32. Targets are int32 class numbers, or float32 values where `classes` is empty.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]
    source: str


def digits(*, flat: bool = True, seed: int = 0) -> Dataset:
    """1,797 handwritten digits of 8×8 pixels in [0, 1]; `flat`: (n, 64), else (n, 8, 8, 1)."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x = x if flat else x.reshape(-1, 8, 8, 1)
    classes = tuple("0123456789")
    return _split("digits", x, y.astype(np.int32), classes, "scikit-learn; Alpaydin and Kaynak, UCI, 1998", seed)


def breast_cancer(*, seed: int = 0) -> Dataset:
    """569 tumours by 30 measurements, standardised; malignant 0, benign 1."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    source = "scikit-learn; Wolberg, Mangasarian, Street and Street, UCI, 1995"
    return _standardised(_split("breast cancer", x, y.astype(np.int32), ("malignant", "benign"), source, seed))


def diabetes(*, seed: int = 0) -> Dataset:
    """442 patients by 10 measurements, standardised; the target is the progression after a year, 25 to 346."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    source = "scikit-learn; Efron, Hastie, Johnstone and Tibshirani, 2004"
    return _standardised(_split("diabetes", x, y.astype(np.float32), (), source, seed))


def mnist(folder: str | Path | None = None, *, flat: bool = True) -> Dataset:
    """70,000 handwritten digits of 28×28 pixels in [0, 1]; `flat`: (n, 784), else (n, 28, 28, 1).

    Reads the four IDX files, gzipped or not, from `folder` or its subfolder `mnist`.

    Raises:
        FileNotFoundError: if they aren't there; the message has the public source and what to put where.
        ValueError: if a file is damaged, or images and labels don't belong together.
    """
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = find(folder, "mnist", names, "https://ossci-datasets.s3.amazonaws.com/mnist/")
    train_x, train_y, test_x, test_y = map(idx, files)
    for x, y, path in ((train_x, train_y, files[1]), (test_x, test_y, files[3])):
        if x.ndim != 3 or y.shape != x.shape[:1] or y.max(initial=0) > 9:
            raise ValueError(f"{path} doesn't hold digits for its images: images {x.shape}, labels {y.shape}")

    def scaled(x: np.ndarray) -> np.ndarray:
        return x.reshape((len(x), -1) if flat else (*x.shape, 1)).astype(np.float32) / 255

    train, test = (scaled(train_x), train_y.astype(np.int32)), (scaled(test_x), test_y.astype(np.int32))
    return Dataset("MNIST", train, test, tuple("0123456789"), "LeCun, Cortes and Burges, 1998")


def _split(name: str, x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], source: str, seed: int) -> Dataset:
    """A fifth for the test, drawn by `seed`, with each class in proportion."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y if classes else None)
    train_x, test_x, train_y, test_y = parts
    return Dataset(name, (train_x, train_y), (test_x, test_y), classes, source)


def _standardised(data: Dataset) -> Dataset:
    """Each feature to mean 0 and deviation 1 over the training data."""
    (train_x, train_y), (test_x, test_y) = data.train, data.test
    mean, deviation = train_x.mean(0, keepdims=True), train_x.std(0, keepdims=True)
    scaled = [((x - mean) / deviation).astype(np.float32) for x in (train_x, test_x)]
    return data._replace(train=(scaled[0], train_y), test=(scaled[1], test_y))
