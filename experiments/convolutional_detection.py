"""Blood cells under the microscope, found and named by a small single-stage detector trained from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from click import FloatRange
from PIL import Image, ImageDraw

from jaxnet import activations, cli, data, layers, losses, train
from jaxnet.cli import POSITIVE, option

CELL = 8  # pixels: the network says for each cell of this size whether the middle of an object is in it
UNIT = 16.0  # pixels: of widths and heights
NEAR = 0.3  # of the heat: these cells learn the object's box
MATCH = 0.5  # of intersection over union: so far two boxes are of one object
COLOURS = ((230, 40, 40), (60, 90, 230), (20, 150, 60))


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a detector of red and white blood cells and platelets on the 292 pictures that BCCD has for it."""

    data: str = option("", "Folder of BCCD_Dataset.tar, or of bccd/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on drawn discs of three sizes.")
    features: tuple[int, ...] = option((16, 32, 64, 96), "Of the four resolutions, each half of the one before.")
    colour: float = option(
        0.15, "Augmentation: each colour is up to so much stronger or weaker.", FloatRange(0, 1)
    )
    epochs: int = option(20, "Passes over the pictures, each in its four reflections.", POSITIVE)
    batch_size: int = option(8, "Pictures in a step.", POSITIVE)
    learning_rate: float = option(3e-3, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0))
    weight_decay: float = option(0.05, "Weight decay of AdamW.", FloatRange(min=0))


class Found(NamedTuple):
    """Objects in a picture."""

    boxes: np.ndarray  # (k, 4): x₁, y₁, x₂, y₂ in pixels
    kinds: np.ndarray
    scores: np.ndarray


class Precision(NamedTuple):
    """How well the objects of one kind are found."""

    area: float  # under precision against recall: the average precision
    precision: float  # of what has a score ≥ 0.4
    recall: float
    objects: int


def main(config: Config, folder: Path) -> None:
    if len(config.features) != 4:
        raise ValueError(f"--features needs four numbers, one for each resolution; got {config.features}")
    cells = discs() if config.smoke else data.blood_cells(config.data or None, size=(240, 320))
    kinds, test = len(cells.classes), cells.test
    known = reflected(cells.train, cells.validation)  # images (n, h, w, 3), bytes
    y = np.stack(
        [target(known.images.shape[1:3], *of, kinds) for of in zip(known.boxes, known.labels, strict=True)]
    )
    net = detector(config.features, kinds)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches((known.images, y), config.batch_size, key=order_key, drop_last=True)
    steps = config.epochs * len(batches)
    schedule = optax.linear_onecycle_schedule(steps, config.learning_rate, pct_start=0.15, pct_final=0.9)
    optimizer = train.adamw(schedule, weight_decay=config.weight_decay, mask=layers.trainable)
    state = train.init(net, optimizer, run_key, seen(known.images[:1]))

    sample = seen(known.images[:2, :64, :64]), y[:2, : 64 // CELL, : 64 // CELL]
    gradients = train.check_gradients(net, loss, state.params, sample)
    print(gradients, "\n")

    def augment(key, x):
        strength = jax.random.uniform(key, (len(x), 1, 1, 3), minval=1 - config.colour, maxval=1 + config.colour)
        return seen(x) * strength

    some = [seen(known.images[i :: len(batches)][: config.batch_size]) for i in range(min(20, len(batches)))]
    predict = jax.jit(lambda params, x: net.apply(params, seen(x)))

    def look(params) -> np.ndarray:
        params = train.population_statistics(net, params, some, key=run_key)
        return np.concatenate([predict(params, test.images[i : i + 8]) for i in range(0, len(test.images), 8)])

    def evaluate(params):
        found = [objects(picture, kinds) for picture in look(params)]
        return {"mAP": np.mean([precision(found, test, kind).area for kind in range(kinds)])}

    state = train.fit(
        state,
        train.make_step(net, loss, optimizer, augment=augment),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=evaluate,
    )

    said = look(state.params)
    found = [objects(picture, kinds) for picture in said]
    measured = {name: precision(found, test, kind) for kind, name in enumerate(cells.classes)}
    report(config, folder, state.params, cells, len(known.images), gradients, said, found, measured)
    print()
    for name, of in measured.items():
        print(f"{name:<10} average precision {of.area:.3f} ({of.objects} objects)")
    print(f"mAP@0.5    {np.mean([of.area for of in measured.values()]):.3f}")
    print(f"report     {folder / 'report.html'}")


def detector(features: tuple[int, ...], kinds: int) -> layers.Layer:
    """(n, h, w, 3) → (n, h/8, w/8, kinds + 4): each kind's heat as a logit, then dx, dy, ln width, ln height."""

    def unit(count, size=3, stride=1, activation="relu"):
        parts = [layers.conv(count, size, stride=stride, bias=False, weight_init="he_normal"), layers.batch_norm()]
        return layers.serial(*parts, *([layers.activation(activation)] if activation else []))

    def residual(count):
        return layers.serial(
            layers.residual(layers.serial(unit(count), unit(count, activation=None))), layers.activation("relu")
        )

    def rare(key, shape, dtype):  # almost everywhere there is nothing: training begins with a heat of 1 %
        return jnp.where(jnp.arange(kinds + 4) < kinds, -4.6, 0.0).astype(dtype)

    first, second, third, fourth = features
    # What is seen at half the resolution, and so from farther around, is added to what is seen at the cells' own.
    around = [unit(fourth, stride=2), residual(fourth), residual(fourth), unit(third, 1, activation=None)]
    return layers.serial(
        unit(first, stride=2),
        unit(second, stride=2),
        unit(third, stride=2),
        residual(third),
        layers.residual(layers.serial(*around, layers.upsample(2))),
        layers.activation("relu"),
        residual(third),
        layers.conv(kinds + 4, 1, bias_init=rare),
    )


def seen(x):
    """Bytes as numbers in [−1, 1]."""
    return jnp.asarray(x, jnp.float32) / 127.5 - 1


def target(size, boxes, labels, kinds: int) -> np.ndarray:
    """What the network is to say, (h/8, w/8, kinds + 5); the last number is the weight of a cell's box.

    The heat of an object is 1 in the cell of its middle and falls off as a Gaussian with a deviation of 0.15 of
    its width and height; where two meet, a cell has the box of the hotter. (Zhou, Wang and Krähenbühl, "Objects
    as points", 2019).
    """
    rows, columns = np.arange(size[0] // CELL)[:, None], np.arange(size[1] // CELL)[None]
    heat, box, weight = np.zeros((rows.size, columns.size, kinds)), np.zeros((rows.size, columns.size, 4)), NEAR
    for (x1, y1, x2, y2), kind in zip(boxes, labels, strict=True):
        x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        column, row = min(x // CELL, columns.size - 1), min(y // CELL, rows.size - 1)
        across, down = (columns - column) * CELL / (0.15 * width), (rows - row) * CELL / (0.15 * height)
        own = np.exp(-(across**2 + down**2) / 2)
        heat[..., kind] = np.maximum(heat[..., kind], own)
        dx, dy = x / CELL - columns - 0.5, y / CELL - rows - 0.5
        mine = np.stack(np.broadcast_arrays(dx, dy, np.log(width / UNIT), np.log(height / UNIT)), -1)
        box = np.where((own > weight)[..., None], mine, box)
        weight = np.maximum(weight, own)
    weight = np.where(weight > NEAR, weight, 0) * np.ones(heat.shape[:2])
    return np.concatenate([heat, box, weight[..., None]], -1).astype(np.float32)


def loss(prediction, y):
    """Focal loss of the heat + Huber loss of the boxes in the cells that have one, for each object."""
    kinds = y.shape[-1] - 5
    heat = losses.focal(prediction[..., :kinds], y[..., :kinds])
    box = y[..., -1:] * losses.huber(prediction[..., kinds:], y[..., kinds:-1])
    return (heat.sum((1, 2, 3)) + box.sum((1, 2, 3))) / count(y)


def _derivative(prediction, y):
    kinds = y.shape[-1] - 5
    heat = losses.derivative(losses.focal)(prediction[..., :kinds], y[..., :kinds])
    box = y[..., -1:] * losses.derivative(losses.huber)(prediction[..., kinds:], y[..., kinds:-1])
    return jnp.concatenate([heat, box], -1) / count(y)[:, None, None, None]


loss.derivative = _derivative


def count(y):
    """How many objects a target has, at least 1."""
    return jnp.maximum((y[..., :-5] == 1).sum((1, 2, 3)), 1)


def objects(said: np.ndarray, kinds: int, most: int = 100) -> Found:
    """Where the heat of a kind is greatest among the 8 cells around; the hotter hides what it overlaps."""
    heat = 1 / (1 + np.exp(-said[..., :kinds]))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(heat, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))
    row, column, kind = np.nonzero((heat == around.max((-2, -1))) & (heat > 0.01))
    score = heat[row, column, kind]
    order = np.argsort(-score)[:most]
    row, column, kind, score = (a[order] for a in (row, column, kind, score))
    dx, dy, width, height = said[row, column, kinds:].T
    x, y = (column + 0.5 + dx) * CELL, (row + 0.5 + dy) * CELL
    half_width, half_height = (np.exp(np.clip(n, -3, 4)) * UNIT / 2 for n in (width, height))
    boxes = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)
    overlaps = (overlap(boxes, boxes) > MATCH) & (kind[:, None] == kind)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not overlaps[i, kept].any():
            kept.append(i)
    return Found(boxes[kept], kind[kept], score[kept])


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each box of a with each of b."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both)


def precision(found: list[Found], truth: data.Boxes, kind: int) -> Precision:
    """Average precision at an overlap of 0.5: an object counts once, for the surest box that overlaps it most.

    The area under the curve of precision against recall, made to fall. (Everingham et al., "The PASCAL visual
    object classes challenge", from 2010 on).
    """
    scores, hits, total = [], [], 0
    for picture, boxes, labels in zip(found, truth.boxes, truth.labels, strict=True):
        boxes, mine, taken = boxes[labels == kind], picture.kinds == kind, set()
        total += len(boxes)
        for box, score in zip(picture.boxes[mine], picture.scores[mine], strict=True):  # the surest first
            shared = overlap(box[None], boxes)[0]
            best = int(shared.argmax()) if len(boxes) else -1
            hit = len(boxes) > 0 and shared[best] >= MATCH and best not in taken
            taken |= {best} if hit else set()
            scores.append(score)
            hits.append(hit)
    order = np.argsort(-np.array(scores), kind="stable")
    hit, sure = np.array(hits, float)[order], np.array(scores)[order] >= 0.4
    right = np.cumsum(hit)
    falling = np.maximum.accumulate((right / np.arange(1, len(hit) + 1))[::-1])[::-1]
    area = float(np.sum(falling * hit) / max(total, 1))
    return Precision(area, hit[sure].mean() if sure.any() else 0.0, hit[sure].sum() / max(total, 1), total)


def reflected(*parts: data.Boxes) -> data.Boxes:
    """The pictures of all parts, and their reflections: left to right, top to bottom, both."""
    images, boxes = np.concatenate([part.images for part in parts]), [b for part in parts for b in part.boxes]
    labels, names = [of for part in parts for of in part.labels], [of for part in parts for of in part.names]
    height, width = images.shape[1:3]
    sideways = [np.array([width, 0, width, 0]) + b[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] for b in boxes]
    images, boxes = np.concatenate([images, images[:, :, ::-1]]), boxes + sideways
    down = [np.array([0, height, 0, height]) + b[:, [0, 3, 2, 1]] * [1, -1, 1, -1] for b in boxes]
    return data.Boxes(np.concatenate([images, images[:, ::-1]]), boxes + down, labels * 4, names * 4)


def discs() -> data.Detection:
    """Small, middling and large discs, each of its colour, on a noisy ground."""
    rng = np.random.default_rng(0)
    height, width, radii = 64, 96, (5, 9, 15)
    down, across = np.mgrid[:height, :width]

    def part(pictures: int) -> data.Boxes:
        images, boxes, labels = rng.integers(150, 200, (pictures, height, width, 3), np.uint8), [], []
        for image in images:
            kinds = rng.integers(0, 3, 4)
            places = [(rng.uniform(15, width - 15), rng.uniform(15, height - 15), radii[kind]) for kind in kinds]
            for (x, y, radius), kind in zip(places, kinds, strict=True):
                image[(across - x) ** 2 + (down - y) ** 2 < radius**2] = COLOURS[kind]
            boxes.append(np.array([(x - r, y - r, x + r, y + r) for x, y, r in places]))
            labels.append(kinds)
        return data.Boxes(images, boxes, labels, [f"picture {i + 1}" for i in range(pictures)])

    return data.Detection("Discs", part(24), part(8), part(8), ("small", "middling", "large"), "drawn here")


def outlined(image: np.ndarray, found: Found) -> np.ndarray:
    """The picture with a box around each object that is fairly sure, in its kind's colour."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for box, kind, score in zip(*found, strict=True):
        if score >= 0.4:
            draw.rectangle([*map(float, box)], outline=COLOURS[kind], width=2)
    return np.asarray(picture)


def report(config, folder, params, cells, pictures, gradients, said, found, measured) -> None:
    rows, test, kinds = train.read_metrics(folder / "metrics.csv"), cells.test, len(cells.classes)
    page = train.Report(
        f"Objects in pictures: {cells.name}",
        f"A single-stage detector, trained on {pictures // 4} pictures in four reflections, tested on "
        f"{len(test.images)}",
        {
            "mAP at an overlap of 0.5": f"{np.mean([of.area for of in measured.values()]):.3f}",
            **{name: f"{of.area:.3f}" for name, of in measured.items()},
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "What is found",
        [
            {
                "": name,
                "average precision": of.area,
                "precision": of.precision,
                "recall": of.recall,
                "objects": of.objects,
            }
            for name, of in measured.items()
        ],
        "A box is right if it shares at least half of the joint area with one of its kind. Average precision: the "
        "area under the curve of precision against recall; the two as they are for scores of at least 0.4.",
    )
    pairs, names = [], []
    for i in range(min(6, len(found))):
        true = Found(test.boxes[i], test.labels[i], np.ones(len(test.labels[i])))
        pairs += [outlined(test.images[i], true), outlined(test.images[i], found[i])]
        names += [f"{test.names[i]}: true", f"{test.names[i]}: found"]
    page.pictures(
        "True and found: "
        + ", ".join(f"{n} {c}" for n, c in zip(cells.classes, ("red", "blue", "green"), strict=True)),
        np.stack(pairs),
        names,
    )
    heat = np.moveaxis(np.asarray(activations.sigmoid(said[0, ..., :kinds])), -1, 0)
    page.pictures(f"The heat of each kind in {test.names[0]}", heat, cells.classes)
    weight = np.moveaxis(np.asarray(params[0][0]["weight"]), -1, 0)  # (features, 3, 3, 3)
    page.pictures("Learned filters of the first layer", weight, [f"filter {i + 1}" for i in range(len(weight))])
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
