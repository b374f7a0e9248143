"""Spoken digits, recognised by a recurrent network that hears their mel spectrum."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange
from sklearn.metrics import confusion_matrix

from jaxnet import activations, cli, data, losses, networks, train
from jaxnet.cli import NOT_NEGATIVE, POSITIVE, option

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
VOICES = {"low": 0.97, "high": 1.03}  # of what is made for --smoke


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a recurrent network on 2,700 recordings of spoken digits, and again without each of the speakers."""

    data: str = option("", "Folder of recordings.tar, or of fsdd/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the tones of a telephone's keys.")
    features: int = option(96, "Features of each recurrent layer, in each direction.", POSITIVE)
    layers: int = option(2, "Recurrent layers.", POSITIVE)
    dropout: float = option(0.4, "Dropout rate between the layers.", FloatRange(0, 1, max_open=True))
    noise: float = option(0.3, "Augmentation: deviation of noise on the spectrum, which has 1.", FloatRange(min=0))
    strangers: int = option(
        6, "So many of the speakers are left out in turn, each in a training of its own.", NOT_NEGATIVE
    )
    epochs: int = option(15, "Passes over the training data of all speakers.", POSITIVE)
    stranger_epochs: int = option(8, "The same without a speaker; --epochs if that is less.", POSITIVE)
    batch_size: int = option(64, "Recordings in a step.", POSITIVE)
    learning_rate: float = option(3e-3, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0))
    weight_decay: float = option(0.05, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    train.RunFolder(folder, resume=config.resume).configure(cli.configuration(config))
    net = networks.recurrent(
        config.features, 10, cell="gru", layers=config.layers, bidirectional=True, dropout_rate=config.dropout
    )
    speakers, load = SPEAKERS, partial(data.spoken_digits, config.data or None)
    if config.smoke:
        speakers, load = tuple(VOICES)[:1], tones
    recordings = load()
    params, heard, gradients = fitted(config, config.epochs, folder / "everyone", net, recordings)
    probabilities = predict(net, params, heard)
    by_speaker, epochs = {}, min(config.epochs, config.stranger_epochs)
    for speaker in speakers[: config.strangers]:
        split = load(strangers=(speaker,))
        stranger, test, _ = fitted(config, epochs, folder / f"without-{speaker}", net, split)
        by_speaker[speaker] = float(np.mean(predict(net, stranger, test).argmax(-1) == split.test[1]))

    report(config, folder, params, recordings, heard, probabilities, by_speaker, gradients)
    print(f"\ntest accuracy {np.mean(probabilities.argmax(-1) == recordings.test[1]):.2%}")
    for speaker, accuracy in by_speaker.items():
        print(f"  {speaker + ', never heard':<24} {accuracy:.2%}")
    print(f"report        {folder / 'report.html'}")


def spectra(recordings: data.Recordings) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The log-mel spectrum (frames, 40) of each recording, scaled to mean 0 and deviation 1 in the training."""

    def heard(part) -> list[np.ndarray]:
        (x, lengths), _ = part
        frames = np.asarray(data.mel_frames(lengths, rate=recordings.rate))
        pieces = (data.log_mel(x[i : i + 100], rate=recordings.rate) for i in range(0, len(x), 100))
        y = np.concatenate([np.asarray(piece) for piece in pieces])
        return [spectrum[:n] for spectrum, n in zip(y, frames, strict=True)]

    parts = heard(recordings.train), heard(recordings.test)
    every = np.concatenate(parts[0])
    mean, deviation = every.mean(0), every.std(0)
    return tuple([(spectrum - mean) / deviation for spectrum in part] for part in parts)


def fitted(config: Config, epochs: int, folder: Path, net, recordings: data.Recordings):
    """Parameters of a network trained in a folder of its own, the spectra of the test data, the gradient check."""
    print(f"\n{folder.name}")
    known, heard = spectra(recordings)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.bucketed(
        (known, recordings.train[1]), config.batch_size, key=order_key, boundaries=4, drop_last=True
    )
    schedule = optax.linear_onecycle_schedule(
        epochs * len(batches), config.learning_rate, pct_start=0.2, pct_final=0.9
    )
    optimizer = train.adamw(schedule, weight_decay=config.weight_decay)
    example = data.padded(known[:2])
    state = train.init(net, optimizer, run_key, example)

    short = np.stack([spectrum[:6] for spectrum in known[:2]]), np.array([6, 4], np.int32)
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, (short, recordings.train[1][:2]))
    print(gradients, "\n")

    def augment(key, x):
        spectrum, lengths = x
        return spectrum + config.noise * jax.random.normal(key, spectrum.shape), lengths

    step = train.make_step(
        net, losses.cross_entropy, optimizer, metrics={"accuracy": train.accuracy}, augment=augment
    )
    test = data.bucketed((heard, recordings.test[1]), 100, boundaries=2)
    metrics = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
    state = train.fit(
        state,
        step,
        batches,
        epochs=epochs,
        run=folder,
        resume=config.resume and (folder / "config.json").exists(),
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, test, metrics),
    )
    return state.params, heard, gradients


def predict(net, params, heard: Sequence[np.ndarray]) -> np.ndarray:
    """The probability of each digit for each spectrum."""
    apply = jax.jit(net.apply)
    parts = (data.padded(heard[i : i + 100], max(map(len, heard))) for i in range(0, len(heard), 100))
    return np.concatenate([activations.softmax(apply(params, part)) for part in parts])


def tones(strangers: Sequence[str] = ()) -> data.Recordings:
    """The two tones of each key of a telephone, from a tenth to a third of a second, in noise, by two voices."""
    rng, rate = np.random.default_rng(0), 8000
    rows, columns = (697, 770, 852, 941), (1209, 1336, 1477)
    keys = {0: (3, 1)} | {digit: divmod(digit - 1, 3) for digit in range(1, 10)}
    found: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    for (voice, pitch), digit, number in product(VOICES.items(), range(10), range(10)):
        t = np.arange(rng.integers(rate // 10, rate // 3)) / rate
        waves = [np.sin(2 * np.pi * pitch * f * t) for f in (rows[keys[digit][0]], columns[keys[digit][1]])]
        sound = 0.3 * sum(waves) + 0.05 * rng.normal(size=len(t))
        tested = voice in strangers if strangers else number < 2
        found[tested].append((sound.astype(np.float32), digit))

    def part(tested: bool) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        sounds, digits = zip(*found[tested], strict=True)
        return data.padded(sounds), np.array(digits, np.int32)

    return data.Recordings("tones", part(False), part(True), tuple("0123456789"), rate, "made here")


def report(config, folder, params, recordings, heard, probabilities, by_speaker, gradients) -> None:
    y, said = recordings.test[1], probabilities.argmax(-1)
    rows = train.read_metrics(folder / "everyone" / "metrics.csv")
    page = train.Report(
        recordings.name.capitalize(),
        f"A bidirectional network of {config.layers} gated recurrent layers, trained on "
        f"{len(recordings.train[1]):,} recordings and tested on {len(y):,} others",
        {
            "test accuracy": f"{np.mean(said == y):.2%}",
            **({"speakers never heard": f"{np.mean([*by_speaker.values()]):.1%}"} if by_speaker else {}),
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.curves(rows)
    page.confusion(confusion_matrix(y, said, labels=range(10)), recordings.classes)
    if by_speaker:
        table = [{"": speaker, "accuracy": accuracy} for speaker, accuracy in by_speaker.items()]
        page.table("Speakers never heard", table, "Each by a network trained on the recordings of all the others.")
    first = [int(np.flatnonzero(y == digit)[0]) for digit in range(10)]
    pictures("Log-mel spectra, time to the right", page, heard, first, [f"“{digit}”" for digit in range(10)])
    worst = np.argsort(probabilities[np.arange(len(y)), y])[:10]
    names = [f"is {y[i]}, heard {said[i]} ({probabilities[i, said[i]]:.0%})" for i in worst]
    pictures("The most wrong, and the least sure", page, heard, worst, names)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


def pictures(title: str, page: train.Report, heard: Sequence[np.ndarray], chosen: Sequence[int], names: list[str]):
    """Spectra (filters upwards, frames), cut or filled up to the same time."""
    frames = int(np.median([len(heard[i]) for i in chosen]))
    images, _ = data.padded([heard[i][:frames] for i in chosen], frames, value=float(min(map(np.min, heard))))
    page.pictures(title, images.transpose(0, 2, 1)[:, ::-1], names)


if __name__ == "__main__":
    cli.experiment(main, Config)
