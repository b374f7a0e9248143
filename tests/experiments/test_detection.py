"""The detector's own arithmetic: targets, boxes read off, overlap, average precision."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxnet.data import Boxes

PATH = Path(__file__).parents[2] / "experiments" / "convolutional_detection.py"


@pytest.fixture(scope="module")
def detection():
    spec = importlib.util.spec_from_file_location("convolutional_detection", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


BOXES = np.array([[8.0, 0, 28, 16], [30, 4, 90, 60], [2, 40, 12, 52], [12, 40, 22, 50]])
KINDS = np.array([1, 0, 2, 2])


def test_a_perfect_answer_gives_the_boxes_back(detection):
    y = detection.target((64, 96), BOXES, KINDS, 3)
    heat = np.clip(y[..., :3], 1e-6, 1 - 1e-6)
    found = detection.objects(np.concatenate([np.log(heat / (1 - heat)), y[..., 3:7]], -1), 3)
    order = np.lexsort((found.boxes[:, 0], found.boxes[:, 1]))
    expected = np.lexsort((BOXES[:, 0], BOXES[:, 1]))
    np.testing.assert_allclose(found.boxes[order], BOXES[expected], atol=1e-4)
    np.testing.assert_array_equal(found.kinds[order], KINDS[expected])
    truth = Boxes(np.zeros((1, 64, 96, 3), np.uint8), [BOXES], [KINDS], ["one"])
    for kind, number in enumerate((1, 1, 2)):
        assert detection.precision([found], truth, kind) == (1, 1, 1, number)


def test_target_of_one_object(detection):
    y = detection.target((32, 48), np.array([[8.0, 0.0, 28.0, 16.0]]), [1], 2)  # middle (18, 8), 20 × 16
    assert y.shape == (4, 6, 7)
    row, column = 1, 2  # of 8 pixels each
    assert y[row, column, 1] == y[row, column, -1] == 1
    np.testing.assert_allclose(y[row, column, 2:6], [18 / 8 - 2.5, 8 / 8 - 1.5, np.log(20 / 16), 0], atol=1e-6)
    np.testing.assert_allclose(y[row, 3, 1], np.exp(-((8 / 3) ** 2) / 2), rtol=1e-6)
    assert not y[..., 0].any()
    assert (y[..., -1] > 0).sum() == 1


def test_overlap(detection):
    a = np.array([[0.0, 0.0, 2.0, 2.0]])
    b = np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    np.testing.assert_allclose(detection.overlap(a, b), [[1, 1 / 7, 0, 0]])


def test_average_precision_by_hand(detection):
    """Sure of a right box, then of a wrong one, then of the same object again, then right: 2 of 3 are found."""
    objects = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    truth = Boxes(np.zeros((1, 64, 64, 3), np.uint8), [objects], [np.zeros(3, int)], ["one"])
    boxes = np.array([[0.0, 0, 10, 10], [50, 0, 60, 10], [0, 0, 10, 9], [20, 20, 30, 31]])
    found = detection.Found(boxes, np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.3]))
    of = detection.precision([found], truth, 0)
    np.testing.assert_allclose(of.area, (1 + 2 / 4) / 3)
    assert (of.precision, of.recall, of.objects) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    nothing = detection.Found(boxes[:0], np.zeros(0, int), np.zeros(0))
    assert detection.precision([nothing], truth, 0) == (0, 0, 0, 3)


def test_what_overlaps_a_surer_box_of_its_kind_is_left_out(detection):
    said = np.full((4, 6, 6), -9.0, np.float32)  # two kinds
    said[..., 2:] = 0
    said[1, 1, 0], said[1, 3, 0], said[1, 3, 1] = 2, 1, 3
    said[..., 4:] = np.log(40 / 16)  # 40 × 40, the middles 16 apart: 24 of 56 columns are shared
    found = detection.objects(said, 2)
    assert sorted(found.kinds) == [0, 0, 1]
    said[..., 4:] = np.log(64 / 16)  # 48 of 80
    found = detection.objects(said, 2)
    assert [*zip(found.kinds, np.round(found.scores, 3), strict=True)] == [(1, 0.953), (0, 0.881)]


def test_reflections(detection):
    image = np.zeros((1, 64, 96, 3), np.uint8)
    image[0, 4:10, 7:20] = 255
    part = Boxes(image, [np.array([[7.0, 4, 20, 10]])], [np.array([2])], ["a"])
    whole = detection.reflected(part, part)
    assert (len(whole.images), whole.names) == (8, ["a"] * 8)
    assert len({tuple(boxes[0]) for boxes in whole.boxes}) == 4
    for image, (box,) in zip(whole.images, whole.boxes, strict=True):
        x1, y1, x2, y2 = map(int, box)
        assert (image[y1:y2, x1:x2] == 255).all()
        assert image.sum() == 255 * 3 * (y2 - y1) * (x2 - x1)
