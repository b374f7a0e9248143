"""Noise taken out of MNIST's digits by a denoising autoencoder. (Vincent et al., 2008)."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from click import FloatRange
from scipy import ndimage

from jaxnet import cli, data, layers, losses, networks, train
from jaxnet.cli import POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a convolutional autoencoder to take Gaussian noise out of handwritten digits."""

    data: str = option("", "Folder of the four IDX files, or of mnist/ with them; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the 8×8 digits of scikit-learn.")
    noise: float = option(0.4, "Standard deviation of the noise; pixels lie in [0, 1].", FloatRange(min=0.01))
    stages: tuple[int, ...] = option((32, 64), "Features of the convolutions, each with stride 2.")
    code_size: int = option(128, "Numbers in the code.", POSITIVE)
    epochs: int = option(6, "Passes over the training data.", POSITIVE)
    batch_size: int = option(128, "Examples in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Step size of Adam.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    # Pictures (n, h, w, 1) in [0, 1]; the noise is as it is, not clipped.
    digits = data.digits(flat=False) if config.smoke else data.mnist(config.data or None, flat=False)
    clean, test = digits.train[0], digits.test[0]
    autoencoder = networks.autoencoder(
        clean.shape[1:],
        config.code_size,
        stages=config.stages,
        normalization="group",
        output_activation="sigmoid",
    )
    net = layers.serial(layers.gaussian_noise(config.noise), autoencoder)
    optimizer = train.adam(config.learning_rate)
    run_key, order_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    batches = data.batches((clean, clean), config.batch_size, key=order_key, drop_last=True)
    state = train.init(net, optimizer, run_key, clean[:1])

    gradients = train.check_gradients(net, losses.squared_error, state.params, (clean[:2], clean[2:4]))
    print(gradients, "\n")

    noisy = np.asarray(test + config.noise * jax.random.normal(noise_key, test.shape))
    pairs = data.batches((noisy, test), 500)

    def evaluate(params):
        return train.evaluate(net, params, pairs, {"loss": losses.squared_error, "PSNR": _psnr})

    step = train.make_step(net, losses.squared_error, optimizer)
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

    denoised = np.concatenate([jax.jit(net.apply)(state.params, x) for x, _ in pairs])
    pictures = {"noisy": noisy, "autoencoder": denoised, **best_filters(noisy, test)}
    table = [{"": name, "PSNR in dB": psnr(x, test)} for name, x in pictures.items()]
    report(config, folder, state.params, digits, gradients, pictures, table)
    print()
    for row in table:
        print(f"{row['']:<24} {row['PSNR in dB']:.2f} dB")
    print(f"report                   {folder / 'report.html'}")


def best_filters(noisy: np.ndarray, clean: np.ndarray) -> dict[str, np.ndarray]:
    """A median and a Gaussian filter, each at the size that suits these very pictures best."""
    medians = [ndimage.median_filter(noisy, (1, size, size, 1)) for size in (3, 5)]
    gaussians = [ndimage.gaussian_filter(noisy, (0, sigma, sigma, 0)) for sigma in (0.5, 0.75, 1.0, 1.25, 1.5)]
    filters = {"best median filter": medians, "best Gaussian filter": gaussians}
    return {name: max(found, key=lambda x: psnr(x, clean)) for name, found in filters.items()}


def _psnr(x, clean):
    """Peak signal-to-noise ratio in dB of each picture, 10 lg(1 / mean squared error), x clipped to [0, 1]."""
    return -10 * jnp.log10(jnp.mean(jnp.square(jnp.clip(x, 0, 1) - clean), (1, 2, 3)))


def psnr(x: np.ndarray, clean: np.ndarray) -> float:
    return float(jnp.mean(_psnr(jnp.asarray(x), jnp.asarray(clean))))


def report(config, folder, params, digits, gradients, pictures, table) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    values = {row[""]: row["PSNR in dB"] for row in table}
    page = train.Report(
        "Noise reduction",
        f"An autoencoder with a code of {config.code_size} numbers, trained on {len(digits.train[0]):,} digits "
        f"with noise of deviation {config.noise:g} and tested on {len(digits.test[0]):,}",
        {
            "gain": f"{values['autoencoder'] - values['noisy']:.1f} dB",
            "PSNR": f"{values['autoencoder']:.1f} dB",
            "noisy": f"{values['noisy']:.1f} dB",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.curves(rows)
    page.table(
        "Peak signal-to-noise ratio",
        table,
        "Mean over the test pictures. The filters have the size that is best for these very pictures.",
    )
    shown = np.stack([digits.test[0][:8], *(x[:8] for x in pictures.values())], 1)  # (8, kinds, h, w, 1)
    names = ["clean", *pictures]
    page.pictures("Before and after", np.clip(shown, 0, 1).reshape(-1, *shown.shape[2:4]), names * len(shown))
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
