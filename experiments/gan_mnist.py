"""Handwritten digits made by a generative adversarial network, each of the class that is asked for."""

from dataclasses import dataclass
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from click import FloatRange
from PIL import Image
from scipy.linalg import sqrtm

from jaxnet import cli, data, layers, losses, networks, train
from jaxnet.cli import POSITIVE, option

LOSSES = ("non_saturating", "least_squares", "adversarial_hinge", "wasserstein")
DRAWN = 5000  # digits made to measure with


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a class-conditional GAN on handwritten digits, and measure it with a classifier trained here."""

    data: str = option("", "Folder of the four IDX files, or of mnist/ with them; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the 8×8 digits of scikit-learn.")
    loss: str = option("non_saturating", f"One of {', '.join(LOSSES)}.", click.Choice(LOSSES))
    penalty: float = option(0.0, "Weight of the gradient penalty; 10 is usual for wasserstein.", FloatRange(min=0))
    discriminator_steps: int = option(1, "Updates of the discriminator for one of the generator.", POSITIVE)
    stages: tuple[int, ...] = option((16, 32), "Features of the convolutions, each of stride 2.")
    latent_size: int = option(64, "Random numbers that a digit is made from.", POSITIVE)
    epochs: int = option(15, "Passes over the training data.", POSITIVE)
    batch_size: int = option(64, "Examples in a step.", POSITIVE)
    learning_rate: float = option(3e-4, "Step size of Adam, β₁ = 0.5.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    digits = data.digits(flat=False) if config.smoke else data.mnist(config.data or None, flat=False)
    judge = Judge(config, folder / "classifier", digits)
    print(f"held-out real digits: {judge.words(judge.real)}\n")

    x, y = 2 * digits.train[0] - 1, digits.train[1]  # in [−1, 1], as tanh's
    gan = networks.gan(x.shape[1:], config.latent_size, stages=config.stages, classes=10, dropout_rate=0.3)
    optimizers = tuple(train.adam(config.learning_rate, b1=0.5) for _ in range(2))
    run_key, order_key, draw_key = jax.random.split(jax.random.key(config.seed), 3)
    batches = data.batches((x, y), config.batch_size, key=order_key, drop_last=True)
    state = train.init_gan(gan, optimizers, run_key, x[:1])

    loss = getattr(losses, config.loss)
    gradients = check_gradients(gan, loss, state.params, x[:4], y[:4])
    print(gradients, "\n")

    z = jax.random.normal(draw_key, (DRAWN, config.latent_size))
    asked = np.arange(DRAWN, dtype=np.int32) % 10
    made = jax.jit(lambda params, z, labels: train.generate(gan, params[0], z, labels))

    def samples(params, count: int = DRAWN) -> np.ndarray:
        parts = [made(params, z[i : i + 500], asked[i : i + 500]) for i in range(0, count, 500)]
        return np.clip((np.concatenate(parts)[:count] + 1) / 2, 0, 1)

    def evaluate(params):
        drawn = samples(params)
        save_grid(folder / "samples", drawn[:100])
        found = judge.measure(drawn, asked)
        return {name: found[name] for name in ("distance", "agreement", "classes")}

    step = train.make_gan_step(
        gan, loss, optimizers, penalty=config.penalty, discriminator_steps=config.discriminator_steps
    )
    state = train.fit(
        state,
        step,
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume and (folder / "checkpoints").exists(),
        config=cli.configuration(config),
        evaluate=evaluate,
    )

    drawn = samples(state.params)
    found = judge.measure(drawn, asked)
    report(config, folder, gan, state.params, digits, judge, gradients, drawn, found)
    print(f"\nheld-out real digits: {judge.words(judge.real)}\nmade digits:          {judge.words(found)}")
    print(f"report                {folder / 'report.html'}")


class Judge:
    """A classifier of digits, and the distribution of its features over real ones."""

    def __init__(self, config: Config, folder: Path, digits: data.Dataset) -> None:
        print("a classifier, to measure with")
        self.features = networks.convolutional([16, 32], 32)
        net = layers.serial(self.features, layers.activation("relu"), layers.dense(10))
        optimizer = train.adam(2e-3)
        key = jax.random.key(0)  # the same judge for every seed
        step = train.make_step(net, losses.cross_entropy, optimizer, metrics={"accuracy": train.accuracy})
        state = train.fit(
            train.init(net, optimizer, key, digits.train[0][:1]),
            step,
            data.batches(digits.train, 128, key=key, drop_last=True),
            epochs=3,
            run=folder,
            resume=(folder / "config.json").exists(),
        )
        self.net, self.params = jax.jit(net.apply), state.params
        self.see = jax.jit(self.features.apply)
        half = len(digits.test[0]) // 2
        self.reference = self.gaussian(digits.test[0][:half])
        self.real = self.measure(digits.test[0][half:], digits.test[1][half:])

    def gaussian(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the features of pictures in [0, 1]."""
        seen = np.concatenate([self.see(self.params[0], x[i : i + 500]) for i in range(0, len(x), 500)])
        return seen.mean(0).astype(np.float64), np.cov(seen.T.astype(np.float64))

    def measure(self, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Fréchet distance ‖μ − μ′‖² + tr(C + C′ − 2 (C C′)^½), and which classes the classifier sees.

        Reference: Heusel et al., "GANs trained by a two time-scale update rule" (2017), there with Inception.
        """
        (mean, covariance), (mean2, covariance2) = self.reference, self.gaussian(x)
        root = np.real(sqrtm(covariance @ covariance2))
        distance = np.sum((mean - mean2) ** 2) + np.trace(covariance + covariance2 - 2 * root)
        said = np.concatenate([self.net(self.params, x[i : i + 500]) for i in range(0, len(x), 500)]).argmax(-1)
        shares = np.bincount(said, minlength=10) / len(said)
        return {
            "distance": float(distance),
            "agreement": float(np.mean(said == labels)),
            "classes": float(np.sum(shares > 0.02)),  # a tenth each if all are made alike
            "smallest share": float(shares.min()),
        }

    def words(self, found: dict[str, float]) -> str:
        return (
            f"Fréchet distance {found['distance']:.2f}, {found['classes']:.0f} of 10 classes "
            f"(smallest share {found['smallest share']:.1%}), {found['agreement']:.1%} of the class asked for"
        )


def check_gradients(gan, loss, params, x, labels):
    """The discriminator's loss of real and made digits, by the hand-written backward pass and its witnesses."""
    z = jax.random.normal(jax.random.key(0), (len(x), gan.latent_size))
    real = networks.with_class(jnp.asarray(x), labels, gan.classes)
    made = networks.with_class(train.generate(gan, params[0], z, labels), labels, gan.classes)
    n = len(x)

    def both(logits, _):
        return loss.discriminator(logits[:n], logits[n:])

    def derivative(logits, _):
        return jax.grad(lambda logits: both(logits, _).sum())(logits)

    both.derivative = derivative
    unused = np.zeros((2 * n, 1), np.float32)
    return train.check_gradients(gan.discriminator, both, params[1], (jnp.concatenate([real, made]), unused))


def save_grid(folder: Path, drawn: np.ndarray) -> None:
    """A hundred digits, a row for each sample of each class, as the next numbered picture."""
    folder.mkdir(exist_ok=True)
    h, w = drawn.shape[1:3]
    grid = drawn[:100, ..., 0].reshape(10, 10, h, w).transpose(0, 2, 1, 3).reshape(10 * h, 10 * w)
    number = len(list(folder.glob("*.png"))) + 1
    temporary = folder / ".next.png"
    Image.fromarray(np.rint(grid * 255).astype(np.uint8)).save(temporary)
    temporary.rename(folder / f"epoch-{number:03}.png")


def report(config, folder, gan, params, digits, judge, gradients, drawn, found) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    page = train.Report(
        "Digits that nobody wrote",
        f"A class-conditional GAN, {config.loss.replace('_', ' ')} loss, of {len(digits.train[0]):,} digits",
        {
            "Fréchet distance": f"{found['distance']:.2f}",
            "of held-out real digits": f"{judge.real['distance']:.2f}",
            "of the class asked for": f"{found['agreement']:.1%}",
            "classes": f"{found['classes']:.0f} of 10",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.pictures("Made digits, and the class asked for", drawn[:60, ..., 0], [str(i % 10) for i in range(60)])
    grids = sorted((folder / "samples").glob("*.png"))
    chosen = [grids[i] for i in np.unique(np.linspace(0, len(grids) - 1, min(6, len(grids))).astype(int))]
    page.pictures(
        "Epoch after epoch, from the same random numbers",
        np.stack([np.asarray(Image.open(path)) for path in chosen]),
        [path.stem.replace("-", " ") for path in chosen],
    )
    ends = jax.random.normal(jax.random.key(config.seed + 1), (2, config.latent_size))
    walk = jnp.linspace(ends[0], ends[1], 9)
    made = np.stack([train.generate(gan, params[0], walk, jnp.full(9, digit))[..., 0] for digit in range(10)])
    strips = np.concatenate(made.swapaxes(0, 1), -1)  # (digit, h, 9 w)
    page.pictures("From one latent vector to another, as each digit", strips, [str(digit) for digit in range(10)])
    page.table(
        "Measured with a classifier",
        [{"": "held-out real digits", **judge.real}, {"": "made digits", **found}],
        "Fréchet distance between the classifier's features and those of the other half of the test digits; how "
        "often the classifier sees the class that was asked for; of how many classes more than 2 % are.",
    )
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
