"""English into German by long short-term memory with attention, trained on Multi30K."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange, IntRange

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

SMOKE = {"vocabulary": 80, "features": 32, "layers": 1, "hidden": 32, "batch_size": 33}
PADDING = data.BytePairTokenizer.padding
DRAWN, TOLD = 4, 12  # test sentences whose attention is drawn, and whose translation is told


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train an encoder and decoder of LSTM layers to translate English into German, on Multi30K.

    With --resume it is trained no more, and translates a sentence of yours: --translate "A man is sleeping."
    """

    data: str = option("", "Folder of Multi30K's files, or of multi30k/ with them; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on numerals: sixty is sechzig.")
    translate: str = option("", "A sentence to translate; with --resume nothing else is done.", free=True)
    vocabulary: int = option(4000, "Tokens of each language: characters and frequent parts of words.", POSITIVE)
    features: int = option(256, "Features of each token.", POSITIVE)
    layers: int = option(1, "Recurrent layers of the encoder, and of the decoder.", POSITIVE)
    hidden: int = option(256, "Features of each recurrent layer, in each direction.", POSITIVE)
    dropout: float = option(0.3, "Dropout rate.", FloatRange(0, 1, max_open=True))
    smoothing: float = option(0.1, "Label smoothing of the loss.", FloatRange(0, 1, max_open=True))
    epochs: int = option(12, "Passes over the training data.", POSITIVE)
    batch_size: int = option(64, "Sentences in a step.", POSITIVE)
    learning_rate: float = option(2e-3, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0))
    weight_decay: float = option(0.01, "Weight decay of AdamW.", FloatRange(min=0))
    beams: int = option(5, "Translations that the search keeps at each step.", IntRange(1, 100), free=True)


def main(config: Config, folder: Path) -> None:
    config = replace(config, **SMOKE) if config.smoke else config
    names = [folder / "source.json", folder / "target.json"]
    if config.translate and config.resume:
        tokenizers = tuple(map(data.BytePairTokenizer.load, names))
        net = network(config, tokenizers)
        params = train.best_parameters(folder, net.init(jax.random.key(0), example(tokenizers)))
        print(*train.translate(net, params, tokenizers, [config.translate], beams=config.beams))
        return

    text = data.numerals() if config.smoke else data.multi30k(config.data or None)
    english, german = text.test
    # A translation memory gives the translation of the likest sentence that it has. Measured before an hour of
    # training, so that it is known that there is what measures.
    memory = train.bleu([text.train[1][i] for i in data.nearest(text.train[0], english)], german)
    tokenizers = tuple(data.BytePairTokenizer.train(part, config.vocabulary) for part in text.train)
    net, buckets = network(config, tokenizers), 1 if config.smoke else 4

    def batches(part, **options) -> data.Bucketed:
        ids = (
            [tokenizer.encode(sentence, ends=True) for sentence in sentences]
            for tokenizer, sentences in zip(tokenizers, part, strict=True)
        )
        return data.bucketed(tuple(ids), config.batch_size, value=PADDING, arrange=data.teacher_forcing, **options)

    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    training = batches(text.train, key=order_key, boundaries=buckets, drop_last=True)
    steps = config.epochs * len(training)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    decay = train.adamw(schedule, weight_decay=config.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), decay)
    smoothed = partial(losses.cross_entropy, label_smoothing=config.smoothing)
    loss = losses.counted(smoothed, PADDING)
    state = train.init(net, optimizer, run_key, example(tokenizers))

    ((source, _), target), labels = next(iter(batches(text.validation, boundaries=1)))
    short = ((source[:2, :5], np.array([5, 3], np.int32)), target[:2, :4]), labels[:2, :4]
    gradients = train.check_gradients(net, loss, state.params, short)
    print(gradients, "\n")

    folder.mkdir(parents=True, exist_ok=True)
    for tokenizer, name in zip(tokenizers, names, strict=True):
        tokenizer.save(name)
    held_out = batches(text.validation, boundaries=buckets)

    metrics = {"loss": smoothed, "nats": losses.cross_entropy, "accuracy": train.accuracy}

    def evaluate(params) -> dict[str, float]:
        return train.evaluate(net, params, held_out, metrics, ignore_label=PADDING)

    state = train.fit(
        state,
        train.make_step(net, loss, optimizer),
        training,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config) | {"translate": ""},
        evaluate=train.Best(folder, evaluate, of="nats"),
    )

    params = train.best_parameters(folder, state.params)
    translations = train.translate(
        net, params, tokenizers, english, beams=config.beams, batch_size=config.batch_size, boundaries=buckets
    )
    found = train.bleu(translations, german)
    report(config, folder, net, params, tokenizers, text, gradients, translations, found, memory)
    print(f"\nBLEU on the test sentences {found.score:.1f} ({found.signature})")
    print(f"of a translation memory    {memory.score:.1f}")
    print(f"report                     {folder / 'report.html'}")
    if config.translate:
        print(*train.translate(net, params, tokenizers, [config.translate], beams=config.beams))


def network(config: Config, tokenizers) -> networks.Decoder:
    return networks.sequence_to_sequence(
        tuple(map(len, tokenizers)),
        config.features,
        layers=config.layers,
        hidden=config.hidden,
        dropout_rate=config.dropout,
    )


def example(tokenizers) -> tuple:
    """What the network takes."""
    source, target = (np.array([[tokenizer.beginning, tokenizer.end]], np.int32) for tokenizer in tokenizers)
    return (source, np.array([2], np.int32)), target


def report(config, folder, net, params, tokenizers, text, gradients, translations, found, memory) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    least = min(row["test_nats"] for row in rows if row["test_nats"] is not None)
    english, german = text.test
    page = train.Report(
        f"{text.name}, English into German",
        f"An encoder and decoder of LSTM layers with attention, trained on {len(text.train[0]):,} sentences and "
        f"tested on {len(english):,} others",
        {
            "BLEU of the test": f"{found.score:.1f}",
            "BLEU of a translation memory": f"{memory.score:.1f}",
            "validation perplexity of a token": f"{np.exp(least):.2f}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds'] / 60:.0f} min",
        },
    )
    said = [*zip(english, german, translations, strict=True)][:TOLD]
    page.translations("Translations", said, "The first test sentences.")
    drawn = train.alignments(net, params, tokenizers, english[:DRAWN], translations[:DRAWN])
    maps = [(line, a.target, a.source, a.p[0, 0]) for line, a in zip(english, drawn, strict=False)]
    page.alignments(
        "Where it looks",
        maps,
        "For each token that is written, what percentages of the attention are on those of the source.",
    )
    page.curves(rows)
    page.html(
        "How it was measured",
        f"<p>BLEU {found.score:.2f} by sacreBLEU, <code>{found.signature}</code>, with {config.beams} beams, the "
        "parameters of the epoch that was best on the validation sentences. A translation memory gives the "
        "translation of the training sentence that has most words in common (TF-IDF).</p>",
    )
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
