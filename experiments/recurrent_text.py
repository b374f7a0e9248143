"""Text written character by character by a recurrent network: Shakespeare, or a text of yours."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import click
import jax
import numpy as np
import optax
from click import FloatRange

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

TEMPERATURES = (0.4, 0.7, 1.0)


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a recurrent network to foretell the next character, measure it beside n-grams, and let it write.

    With --resume a finished run is trained no more, and writes on from another --prompt.
    """

    data: str = option("", "Folder of input.txt, or of shakespeare/ with it; by default $JAXNET_DATA.")
    text: str = option("", "A text file of your own, in place of Shakespeare.")
    smoke: bool = option(False, "Try everything in seconds, on sentences made here.")
    cell: str = option("gru", "The recurrent layer: gru, or rnn, Elman's.", click.Choice(("gru", "rnn")))
    features: int = option(384, "Features of the recurrent layer.", POSITIVE)
    embedding: int = option(64, "Features of a character.", POSITIVE)
    dropout: float = option(0.1, "Dropout rate before and after it.", FloatRange(0, 1, max_open=True))
    epochs: int = option(6, "Passes over the training text, in length.", POSITIVE)
    block: int = option(64, "Characters of an excerpt to learn from.", POSITIVE)
    batch_size: int = option(32, "Excerpts in a step.", POSITIVE)
    learning_rate: float = option(8e-3, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0))
    prompt: str = option("", "What is written on from; by default the end of a line.", free=True)
    length: int = option(500, "Characters to write, at each temperature.", POSITIVE, free=True)


def main(config: Config, folder: Path) -> None:
    if config.text:
        text = data.characters(config.text)
    else:
        text = data.small_text() if config.smoke else data.shakespeare(config.data or None)
    tokenizer = data.CharacterTokenizer(text.train + text.validation)
    prompt = config.prompt or "\n"
    start = tokenizer.encode(prompt)  # before the training: all its characters are known
    known, held_out = tokenizer.encode(text.train), tokenizer.encode(text.validation)
    net = networks.recurrent_decoder(
        len(tokenizer),
        config.embedding,
        cell=config.cell,
        hidden=config.features,
        dropout_rate=config.dropout,
        tied=False,
    )
    run_key, order_key, write_key = jax.random.split(jax.random.key(config.seed), 3)
    steps = -(-len(known) // (config.batch_size * config.block))
    batches = data.excerpts(known, config.block, config.batch_size, steps=steps, key=order_key)
    schedule = optax.cosine_onecycle_schedule(config.epochs * steps, config.learning_rate, pct_start=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), train.adamw(schedule, b2=0.99))
    x, y = data.scored(np.concatenate([known[-config.block :], held_out]), 2 * config.block, config.block)
    state = train.init(net, optimizer, run_key, x[:1])

    few = known[None, :6], known[None, 1:7]
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, few)
    print(gradients, "\n")

    def loss(logits, labels):
        """So that the mean over all places is that over those which count."""
        return losses.cross_entropy(logits, labels, ignore_label=-1) * (y.size / len(held_out))

    pieces, metrics = data.batches((x, y), 64), {"loss": loss}
    state = train.fit(
        state,
        train.make_step(net, losses.cross_entropy, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, pieces, metrics),
    )

    rows = train.read_metrics(folder / "metrics.csv")
    ngrams, chosen = data.ngram_losses(known, held_out, len(tokenizer))
    bits = {"recurrent network": rows[-1]["test_loss"] / np.log(2)}
    bits |= {f"{n}-grams": loss / np.log(2) for n, loss in enumerate(ngrams, 1)}
    samples = {
        temperature: prompt
        + tokenizer.decode(
            networks.generate(
                net, state.params, start[None], config.length, key=write_key, temperature=temperature
            ).ids[0]
        )
        for temperature in TEMPERATURES
    }
    report(config, folder, state.params, text, gradients, rows, bits, f"{chosen}-grams", samples)
    for temperature, sample in samples.items():
        print(f"\n--- at temperature {temperature}\n{sample.strip()}")
    print()
    for name, value in bits.items():
        said = "  (chosen within the training text)" if name == f"{chosen}-grams" else ""
        print(f"{name:<18} {value:.3f} bits a character{said}")
    print(f"report             {folder / 'report.html'}")


def report(config, folder, params, text, gradients, rows, bits, chosen, samples) -> None:
    page = train.Report(
        f"A writer of {text.name}",
        f"A recurrent network ({config.cell}) of {config.features} features, trained on {len(text.train):,} "
        f"characters and measured on the {len(text.validation):,} after them",
        {
            "bits a character": f"{bits['recurrent network']:.3f}",
            f"by {chosen}": f"{bits[chosen]:.3f}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "Beside n-grams",
        [{"": name, "bits a character": float(value)} for name, value in bits.items()],
        f"With modified Kneser-Ney smoothing; {chosen} are the best on the last tenth of the training text. All "
        "are measured on the whole of the text held out, each of its characters once.",
    )
    for temperature, sample in samples.items():
        page.html(f"What it writes at temperature {temperature}", f"<pre>{escape(sample)}</pre>")
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
