"""MNIST's digits in a few numbers: autoencoders beside principal components, and a variational one to walk in."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from jaxnet import activations, cli, data, layers, losses, networks, train
from jaxnet.cli import POSITIVE, option

NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train autoencoders to a few sizes of code, and a variational one, on handwritten digits."""

    data: str = option("", "Folder of the four IDX files, or of mnist/ with them; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the 8×8 digits of scikit-learn.")
    code_sizes: tuple[int, ...] = option((2, 32), "Numbers in the codes: an autoencoder for each.")
    hidden: tuple[int, ...] = option((1024, 512), "Widths of the encoders' hidden layers.")
    latent_size: int = option(16, "Numbers in the code of the variational autoencoder.", POSITIVE)
    noise: float = option(0.3, "Deviation of noise on the pixels while an autoencoder learns.", FloatRange(min=0))
    epochs: int = option(20, "Passes over the training data, for each network.", POSITIVE)
    batch_size: int = option(128, "Examples in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Peak step size of Adam; a cosine takes it to 0.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    digits = data.digits() if config.smoke else data.mnist(config.data or None)  # x (n, pixels) in [0, 1]
    train.RunFolder(folder, resume=config.resume).configure(cli.configuration(config))
    pixels = digits.train[0].shape[1]
    options = {"hidden": config.hidden, "activation": "gelu"}

    rows, codes = [], {}
    for size in config.code_sizes:
        net = networks.autoencoder(pixels, size, **options)
        # What the code keeps of a noisy picture is what its neighbours share; the target is the clean one.
        noisy = layers.serial(layers.gaussian_noise(config.noise), net)
        params, _, _ = fitted(config, folder / f"code-{size}", noisy, losses.binary_cross_entropy, digits)
        encode, apply = jax.jit(net.encoder.apply), jax.jit(net.apply)
        code = [np.asarray(encode(params[1][0], x)) for x, _ in (digits.train, digits.test)]
        restored = np.asarray(activations.sigmoid(apply(params[1], digits.test[0])))
        rows.append(row(f"autoencoder, {size} numbers", code, restored, digits))
        pca = PCA(size, random_state=0).fit(digits.train[0])
        components = [pca.transform(x) for x, _ in (digits.train, digits.test)]
        rows.append(row(f"PCA, {size} numbers", components, pca.inverse_transform(components[1]), digits))
        codes[size] = code[1], components[1]

    variational = networks.variational_autoencoder(pixels, config.latent_size, **options)
    params, curves, gradients = fitted(config, folder / "variational", variational, losses.negative_elbo, digits)
    report(config, folder, digits, rows, codes, variational, params, curves, gradients)
    print()
    for found in rows:
        print(f"{found['']:<28} squared error {found['squared error']:.4f}, "
              f"nearest neighbours {found['nearest neighbours']:.2%}")  # fmt: skip
    print(f"report        {folder / 'report.html'}")


def fitted(config, folder, net, loss, digits):
    """Parameters, metrics and gradient check of a network trained in a folder of its own."""
    print(f"\n{folder.name}")
    (x, _), (test_x, _) = digits.train, digits.test
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches((x, x), config.batch_size, key=order_key, drop_last=True)
    optimizer = train.adam(optax.cosine_decay_schedule(config.learning_rate, config.epochs * len(batches)))
    state = train.init(net, optimizer, run_key, x[:1])
    gradients = train.check_gradients(net, loss, state.params, (x[:4], x[:4]))
    print(gradients, "\n")
    test_batches = data.batches((test_x, test_x), 1000)
    state = train.fit(
        state,
        train.make_step(net, loss, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume and (folder / "config.json").exists(),
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, test_batches, {"loss": loss}),
    )
    return state.params, train.read_metrics(folder / "metrics.csv"), gradients


def row(name, codes, restored, digits) -> dict[str, object]:
    """How much is lost, and how often the nearest training codes of a test digit are of its class."""
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(codes[0], digits.train[1])
    return {
        "": name,
        "squared error": float(np.mean(np.square(restored - digits.test[0]))),
        "nearest neighbours": float(neighbours.score(codes[1], digits.test[1])),
    }


def report(config, folder, digits, table, codes, net, params, curves, gradients) -> None:
    side = round(digits.train[0].shape[1] ** 0.5)
    x, y = digits.test
    size, (ours, theirs) = config.code_sizes[-1], table[-2:]
    page = train.Report(
        "Dimensionality reduction",
        f"Autoencoders trained on {len(digits.train[0]):,} digits and tested on {len(x):,}, beside PCA",
        {
            f"neighbours right, {size} numbers": f"{ours['nearest neighbours']:.1%}",
            "PCA's": f"{theirs['nearest neighbours']:.1%}",
            "squared error": f"{ours['squared error']:.4f}",
            "PCA's squared error": f"{theirs['squared error']:.4f}",
        },
    )
    page.table(
        "Beside principal components",
        table,
        "Squared error: mean over the test pictures' pixels. Nearest neighbours: accuracy of the "
        f"{NEIGHBOURS} nearest training codes.",
    )
    if 2 in codes:
        for title, points in zip(("autoencoder", "PCA"), codes[2], strict=True):
            page.scatter(f"The test digits in two numbers: {title}", *points.T, "1", "2", classes=y)
    mean = np.asarray(jax.jit(net.encoder.apply)(params[0], x))[:, : config.latent_size]
    ends = (0, 1), (2, 7), (3, 8), (4, 9)
    ways = [np.linspace(*(mean[np.flatnonzero(y == digit)[0]] for digit in pair), 9) for pair in ends]
    walks = np.asarray(activations.sigmoid(net.decoder.apply(params[1], np.concatenate(ways))))
    strips = walks.reshape(len(ends), 9, side, side).swapaxes(1, 2).reshape(len(ends), side, 9 * side)
    names = [f"from {a} to {b}" for a, b in ends]
    page.pictures("From digit to digit through the variational autoencoder's code", strips, names)
    drawn = jax.random.normal(jax.random.key(config.seed), (40, config.latent_size))
    made = np.asarray(activations.sigmoid(net.decoder.apply(params[1], drawn)))
    page.pictures("Made from random codes", made.reshape(-1, side, side), [""] * len(made))
    page.curves(curves)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
