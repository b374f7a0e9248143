"""A language model by an LSTM, of the characters of Shakespeare or the words of any text, which also writes."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

import click
import jax
import numpy as np
import optax
from click import FloatRange

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

SAMPLES = 3


class Preset(NamedTuple):
    """What suits a unit of text, unless an option says otherwise."""

    embedding: int  # features of a token; with as many as of the LSTM, the last map is the same table
    features: int
    dropout: float
    block: int
    epochs: int
    learning_rate: float


PRESETS = {
    "character": Preset(64, 384, 0.1, 64, 6, 1e-2),
    "word": Preset(256, 256, 0.5, 32, 10, 5e-3),
}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train an LSTM to foretell the next character or word, measure it beside n-grams, and let it write.

    What has no default suits the unit. With --resume a finished run is trained no more, and writes on from another
    --prompt.
    """

    data: str = option("", "Folder of input.txt, or of shakespeare/ with it; by default $JAXNET_DATA.")
    text: str = option("", "A text file of your own, in place of Shakespeare.")
    smoke: bool = option(False, "Try everything in seconds, on sentences made here.")
    unit: str = option("character", "What is foretold: character or word.", click.Choice(tuple(PRESETS)))
    vocabulary: int = option(10_000, "Words that are known, at most; those that occur once never are.", POSITIVE)
    embedding: int | None = option(None, "Features of a character or word.", POSITIVE)
    features: int | None = option(None, "Features of the LSTM.", POSITIVE)
    layers: int = option(1, "Layers of the LSTM.", POSITIVE)
    dropout: float | None = option(
        None, "Dropout rate before, between and after them.", FloatRange(0, 1, max_open=True)
    )
    epochs: int | None = option(None, "Passes over the training text, in length.", POSITIVE)
    block: int | None = option(None, "Characters or words of an excerpt to learn from.", POSITIVE)
    batch_size: int = option(32, "Excerpts in a step.", POSITIVE)
    learning_rate: float | None = option(
        None, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0)
    )
    prompt: str = option("", "What is written on from; by default the end of a line.", free=True)
    length: int = option(500, "Characters or words to write.", POSITIVE, free=True)
    temperature: float = option(0.8, "Of chance: at 0 the likeliest is written.", FloatRange(min=0), free=True)


def main(config: Config, folder: Path) -> None:
    if config.text:
        text = data.characters(config.text)
    else:
        text = data.small_text() if config.smoke else data.shakespeare(config.data or None)
    if config.unit == "word":
        tokenizer = data.WordTokenizer(text.train, config.vocabulary)
    else:
        tokenizer = data.CharacterTokenizer(text.train + text.validation)
    known, held_out = tokenizer.encode(text.train), tokenizer.encode(text.validation)
    prompt = config.prompt or "\n"
    start = tokenizer.encode(prompt)  # before the training: all that is wrong with it is known
    if not len(start):
        raise ValueError(f"--prompt {prompt!r} has no {config.unit} to write on from")
    given = {name: getattr(config, name) for name in Preset._fields if getattr(config, name) is not None}
    preset = PRESETS[config.unit]._replace(**given)
    net = networks.recurrent_decoder(
        len(tokenizer),
        preset.embedding,
        cell="lstm",
        layers=config.layers,
        hidden=preset.features,
        dropout_rate=preset.dropout,
        tied=preset.embedding == preset.features,
    )
    run_key, order_key, write_key = jax.random.split(jax.random.key(config.seed), 3)
    steps = -(-len(known) // (config.batch_size * preset.block))
    batches = data.excerpts(known, preset.block, config.batch_size, steps=steps, key=order_key)
    schedule = optax.cosine_onecycle_schedule(preset.epochs * steps, preset.learning_rate, pct_start=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), train.adamw(schedule, b2=0.99))
    context = 2 * preset.block
    x, y = data.scored(np.concatenate([known[-context:], held_out]), 2 * context, min(context, len(known)))
    state = train.init(net, optimizer, run_key, x[:1])

    few = known[None, :6], known[None, 1:7]
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, few)
    print(gradients, "\n")

    def loss(logits, labels):
        """So that the mean over all places is that over those which count."""
        return losses.cross_entropy(logits, labels, ignore_label=-1) * (y.size / len(held_out))

    pieces, metrics = data.batches((x, y), 32), {"loss": loss}
    state = train.fit(
        state,
        train.make_step(net, losses.cross_entropy, optimizer),
        batches,
        epochs=preset.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, pieces, metrics),
    )

    rows = train.read_metrics(folder / "metrics.csv")
    ngrams, chosen = data.ngram_losses(known, held_out, len(tokenizer))
    found = {"LSTM": rows[-1]["test_loss"]} | {f"{n}-grams": float(loss) for n, loss in enumerate(ngrams, 1)}
    table = [{"": name} | figures(value, config.unit) for name, value in found.items()]
    written = networks.generate(
        net,
        state.params,
        np.repeat(start[None], SAMPLES, 0),
        config.length,
        key=write_key,
        temperature=config.temperature,
    )
    samples = [tokenizer.decode(np.concatenate([start, ids])) for ids in np.asarray(written.ids)]
    report(config, folder, state.params, text, gradients, rows, table, chosen, samples)
    print(f"\n{samples[0].strip()}\n")
    for row in table:
        print(f"{row['']:<10}", *(f"{value:8.3f} {name}" for name, value in row.items() if name))
    print(f"{chosen}-grams are the best on the last tenth of the training text")
    if config.unit == "word":
        print(
            f"{len(tokenizer):,} words; {np.mean(held_out == tokenizer.unknown):.1%} of those held out are unknown"
        )
    print(f"report     {folder / 'report.html'}")


def figures(loss: float, unit: str) -> dict[str, float]:
    """What a mean loss is in the terms of the unit."""
    other = {"perplexity": float(np.exp(loss))} if unit == "word" else {"bits": loss / float(np.log(2))}
    return {f"nats a {unit}": loss} | other


def report(config, folder, params, text, gradients, rows, table, chosen, samples) -> None:
    ours, best = table[0], table[chosen]
    page = train.Report(
        f"A language model of {text.name}",
        f"An LSTM, by {config.unit}s, trained on {len(text.train):,} characters of text and measured on the "
        f"{len(text.validation):,} after them",
        {
            **{
                f"validation loss, {name}" if "nats" in name else name: f"{ours[name]:.3f}"
                for name in ours
                if name
            },
            **{f"by {best['']}, {name}": f"{best[name]:.3f}" for name in best if name},
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "Beside n-grams",
        table,
        f"With modified Kneser-Ney smoothing; {best['']} are the best on the last tenth of the training text. All "
        f"are measured on the whole of the text held out, each {config.unit} once.",
    )
    page.html("What it writes", "<hr>".join(f"<pre>{escape(sample)}</pre>" for sample in samples))
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
