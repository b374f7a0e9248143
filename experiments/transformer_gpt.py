"""A transformer that writes: nanoGPT's configurations, by characters, on Shakespeare or a text of yours."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

import click
import jax
import numpy as np
import optax

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option


class Preset(NamedTuple):
    """Sizes and hyper-parameters."""

    depth: int
    heads: int
    features: int
    block: int  # characters that are seen
    batch_size: int
    steps: int
    dropout: float


# nanoGPT's for Shakespeare's characters: those for a CPU in its README, and config/train_shakespeare_char.py.
PRESETS = {
    "cpu": Preset(4, 4, 128, 64, 12, 2000, 0.0),
    "gpu": Preset(6, 6, 384, 256, 64, 5000, 0.2),
}
SMOKE = {"depth": 1, "heads": 2, "features": 32, "block": 16, "batch_size": 8, "steps": 24}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a language model of characters with nanoGPT's hyper-parameters, and let it write.

    With --resume a finished run is trained no more, and writes on from another --prompt.
    """

    data: str = option("", "Folder of input.txt, or of shakespeare/ with it; by default $JAXNET_DATA.")
    text: str = option("", "A text file of your own, in place of Shakespeare.")
    smoke: bool = option(False, "Try everything in seconds, on sentences made here.")
    preset: str = option("cpu", "Sizes for a machine: cpu or gpu.", click.Choice(tuple(PRESETS)))
    epochs: int = option(8, "Parts of the training, with a measurement after each.", POSITIVE)
    prompt: str = option("", "What is written on from; by default the end of a line.", free=True)
    length: int = option(500, "Characters to write.", POSITIVE, free=True)
    temperature: float = option(
        0.8, "Of chance: at 0 the likeliest is written.", click.FloatRange(min=0), free=True
    )


def main(config: Config, folder: Path) -> None:
    if config.text:
        text = data.characters(config.text)
    else:
        text = data.small_text() if config.smoke else data.shakespeare(config.data or None)
    tokenizer = data.CharacterTokenizer(text.train + text.validation)
    prompt = config.prompt or "\n"
    start = tokenizer.encode(prompt)  # before hours of training: all its characters are known
    preset = PRESETS[config.preset]._replace(**SMOKE if config.smoke else {})
    net = networks.transformer_decoder(
        len(tokenizer),
        preset.features,
        preset.depth,
        preset.heads,
        activation="gelu",
        normalization="layer",
        positions="learned",
        length=preset.block,
        dropout_rate=preset.dropout,
    )
    run_key, order_key, write_key = jax.random.split(jax.random.key(config.seed), 3)
    steps = -(-preset.steps // config.epochs)
    batches = data.excerpts(
        tokenizer.encode(text.train), preset.block, preset.batch_size, steps=steps, key=order_key
    )
    total = config.epochs * steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, min(100, total // 4), total, 1e-4)
    decay = train.adamw(
        schedule, b2=0.99, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda w: w.ndim >= 2, params)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), decay)
    x, y = data.next_tokens(tokenizer.encode(text.validation), preset.block)
    state = train.init(net, optimizer, run_key, x[:1])

    gradients = train.check_gradients(net, losses.cross_entropy, state.params, (x[:2, :6], y[:2, :6]))
    print(gradients, "\n")

    held_out = data.batches((x, y), 64, drop_last=len(x) >= 64)
    state = train.fit(
        state,
        train.make_step(net, losses.cross_entropy, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, held_out, {"loss": losses.cross_entropy}),
    )

    print(f"\n{prompt.strip()}", end="")
    parts = []
    for part in written(net, state.params, start, preset.block, config, write_key):
        parts.append(tokenizer.decode(part))
        print(parts[-1], end="", flush=True)
    report(config, folder, state.params, text, gradients, prompt + "".join(parts))
    loss = train.read_metrics(folder / "metrics.csv")[-1]["test_loss"]
    print(f"\n\nvalidation loss {loss:.3f} nats, {loss / np.log(2):.3f} bits a character")
    print(f"report          {folder / 'report.html'}")


def written(net, params, prompt: np.ndarray, block: int, config: Config, key) -> Iterator[np.ndarray]:
    """What is written after the prompt, half a block at a time; the other half is what is written on from."""
    half, ids = block // 2, prompt
    for part in range(-(-config.length // half)):
        seen, lengths = data.padded([ids[-half:]], half)
        found = networks.generate(
            net,
            params,
            (seen, lengths),
            half,
            key=jax.random.fold_in(key, part),
            temperature=config.temperature,
        )
        new = np.asarray(found.ids[0])
        ids = np.concatenate([ids, new])
        yield new[: config.length - part * half]


def report(config, folder, params, text, gradients, sample) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    loss = rows[-1]["test_loss"]
    page = train.Report(
        f"A writer of {text.name}",
        f"A transformer, preset {config.preset}, trained on {len(text.train):,} characters and measured on the "
        f"{len(text.validation):,} after them",
        {
            "validation loss, nats": f"{loss:.3f}",
            "bits a character": f"{loss / np.log(2):.3f}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.html("What it writes", f"<pre>{escape(sample)}</pre>")
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
