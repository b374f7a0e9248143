"""Faces told apart by an embedding that has never seen the people: the ORL faces."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from jaxnet import cli, data, layers, losses, networks, train
from jaxnet.cli import NOT_NEGATIVE, POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train an embedding of faces on 30 people, and identify 10 others by one picture of each."""

    data: str = option("", "Folder of orl_faces.tar.gz, or of faces/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds: digits for faces, the last three for strangers.")
    stages: tuple[int, ...] = option((16, 32, 64, 64), "Features of the convolutions; each halves the resolution.")
    embedding: int = option(64, "Numbers in the embedding.", POSITIVE)
    dropout: float = option(0.3, "Dropout rate before the embedding.", FloatRange(0, 1, max_open=True))
    smoothing: float = option(0.1, "Label smoothing.", FloatRange(0, 1, max_open=True))
    shift: int = option(4, "Augmentation: each face is moved by up to so many pixels.", NOT_NEGATIVE)
    cutout: int = option(12, "Augmentation: so large a square is left out.", POSITIVE)
    epochs: int = option(150, "Passes over the training data.", POSITIVE)
    batch_size: int = option(50, "Examples in a step.", POSITIVE)
    learning_rate: float = option(2e-3, "Peak step size of AdamW; a cosine takes it to 0.", FloatRange(min=0))
    weight_decay: float = option(0.1, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    faces = smoke() if config.smoke else halved(data.faces(config.data or None))  # x (n, 56, 46, 1), y the person
    known = len(np.unique(faces.train[1]))
    embed = layers.serial(
        networks.convolutional(
            config.stages, config.embedding, normalization="group", global_pool=False, dropout_rate=config.dropout
        ),
        layers.layer_norm(scale=False, bias=False),  # of one length: only the direction tells people apart
    )
    net = layers.serial(embed, layers.dense(known, bias=False))
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(faces.train, config.batch_size, key=order_key, drop_last=True)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.epochs * len(batches))
    optimizer = train.adamw(schedule, weight_decay=config.weight_decay)
    state = train.init(net, optimizer, run_key, faces.train[0][:1])

    gradients = train.check_gradients(net, losses.cross_entropy, state.params, tuple(a[:2] for a in faces.train))
    print(gradients, "\n")

    @jax.jit
    def see(params, x):
        """Of a face and its mirror image together."""
        return embed.apply(params, x) + embed.apply(params, x[:, :, ::-1])

    def embeddings(params) -> np.ndarray:
        return np.concatenate(
            [see(params[0], faces.test[0][i : i + 100]) for i in range(0, len(faces.test[0]), 100)]
        )

    def evaluate(params):
        return {"identification": identification(embeddings(params), faces.test[1])}

    step = train.make_step(
        net,
        partial(losses.cross_entropy, label_smoothing=config.smoothing),
        optimizer,
        metrics={"accuracy": train.accuracy},
        augment=data.augment.compose(
            data.augment.flip(), data.augment.shift(config.shift, mode="edge"), data.augment.cutout(config.cutout)
        ),
    )
    state = train.fit(
        state,
        step,
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=evaluate,
    )

    vectors = embeddings(state.params)
    table, scores = compare(vectors, faces)
    report(config, folder, state.params, faces, gradients, vectors, table, scores)
    print()
    for row in table:
        print(
            f"{row['']:<28} identification {row['identification']:.1%}, area under ROC {row['area under ROC']:.4f}"
        )
    print(f"report        {folder / 'report.html'}")


def halved(faces: data.Dataset) -> data.Dataset:
    """At half the resolution, each face with the mean 0 and the deviation 1."""

    def smaller(x):
        x = x.reshape(len(x), 56, 2, 46, 2, 1).mean((2, 4))
        return (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)

    (x, y), (test_x, test_y) = faces.train, faces.test
    return faces._replace(train=(smaller(x), y), test=(smaller(test_x), test_y))


def smoke() -> data.Dataset:
    """Digits 0 to 6 as known people and 7 to 9 as strangers, ten pictures of each, at 16×16 pixels."""
    x, y = data.digits(flat=False).train
    x = np.repeat(np.repeat(x, 2, 1), 2, 2)
    rows = np.concatenate([np.flatnonzero(y == person)[:10] for person in range(10)])
    x, y = x[rows], y[rows]
    return data.Dataset("digits", (x[:70], y[:70]), (x[70:], y[70:]), tuple("0123456789"), "scikit-learn")


def similarity(vectors: np.ndarray) -> np.ndarray:
    """The cosine of the angle between each two."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def identification(vectors: np.ndarray, people: np.ndarray) -> float:
    """How often the most similar of one picture of each person is the right one's: the mean over which picture."""
    alike, right = similarity(vectors), []
    for choice in range(10):
        gallery = np.concatenate(
            [np.flatnonzero(people == person)[choice : choice + 1] for person in np.unique(people)]
        )
        probes = np.setdiff1d(np.arange(len(people)), gallery)
        said = people[gallery][alike[np.ix_(probes, gallery)].argmax(1)]
        right.append(np.mean(said == people[probes]))
    return float(np.mean(right))


def compare(vectors, faces):
    """The embedding beside eigenfaces (Turk and Pentland, 1991), as they are and whitened."""
    known, (x, people) = faces.train[0].reshape(len(faces.train[0]), -1), faces.test
    flat, size = x.reshape(len(x), -1), min(60, len(known) - 1)
    found = {"embedding": vectors, "pixels": flat - known.mean(0)}
    for whiten, name in ((False, "eigenfaces"), (True, "eigenfaces, whitened")):
        found[name] = PCA(size, whiten=whiten, random_state=0).fit(known).transform(flat)
    upper = np.triu_indices(len(people), 1)
    same = (people[:, None] == people[None])[upper]
    scores = {name: similarity(v)[upper] for name, v in found.items()}
    table = []
    for name, v in found.items():
        false_positive, true_positive, _ = roc_curve(same, scores[name])
        equal = np.argmin(np.abs(false_positive - (1 - true_positive)))
        table.append(
            {
                "": name,
                "identification": identification(v, people),
                "area under ROC": float(roc_auc_score(same, scores[name])),
                "equal error rate": float(false_positive[equal]),
            }
        )
    return table, (same, scores["embedding"])


def report(config, folder, params, faces, gradients, vectors, table, scores) -> None:
    rows, (x, people) = train.read_metrics(folder / "metrics.csv"), faces.test
    known, strangers = len(np.unique(faces.train[1])), len(np.unique(people))
    best = max(table[1:], key=lambda row: row["identification"])
    page = train.Report(
        "Faces never seen",
        f"An embedding of {config.embedding} numbers, trained on {len(faces.train[0])} pictures of {known}, "
        f"tested on {len(x)} of {strangers} others",
        {
            "identified": f"{table[0]['identification']:.1%}",
            best[""]: f"{best['identification']:.1%}",
            "area under ROC": f"{table[0]['area under ROC']:.4f}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "Who is it?",
        table,
        "Identification: the most similar of one picture of each stranger, the mean over which picture that is. "
        "ROC curve: are two pictures of one person, for all pairs; and where both kinds of error are equal.",
    )
    same, score = scores
    false_positive, true_positive, _ = roc_curve(same, score)
    page.roc(false_positive, true_positive, table[0]["area under ROC"])
    page.pictures("The strangers", x[::10, ..., 0], [f"person {p + 1}" for p in people[::10]])
    alike = similarity(vectors) - 2 * np.eye(len(x))
    alike[people[:, None] == people[None]] = -2
    confused = np.argsort(-alike.max(1))[:6]
    pairs = np.stack([np.stack([x[i], x[alike[i].argmax()]]) for i in confused]).reshape(-1, *x.shape[1:3])
    names = [
        text for i in confused for text in (f"person {people[i] + 1}", f"person {people[alike[i].argmax()] + 1}")
    ]
    page.pictures("The most similar pictures of two people", pairs, names)
    main_plane = PCA(2).fit_transform(vectors)
    page.scatter("The strangers in the embedding's main plane", *main_plane.T, "1", "2", classes=people + 1)
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
