"""A chatbot: an LSTM that has read dialogues and replies in them, to talk with in the terminal."""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np
import optax
from baselines.chatbot import NEIGHBOURS, Pairs, Retrieval, baselines
from jax import Array
from scipy.special import logsumexp

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import NOT_NEGATIVE, POSITIVE, option

Dialogue = list[str]

BEGINNING, END = data.BytePairTokenizer.beginning, data.BytePairTokenizer.end
CANDIDATES = 100  # replies to find the right one among
SMOKE = {"vocabulary": 150, "features": 32, "block": 16, "batch_size": 16, "longest": 32, "buckets": 2, "parts": 1}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a language model of dialogues, and measure its replies beside retrieved ones.

    With --resume --chat a finished run is talked with: a line in, a line out, until an empty one.
    """

    data: str = option("", "Folder of dialogue/ with DailyDialog and ChatterBot; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on dialogues made here.")
    chat: bool = option(False, "Talk with a finished run, by --resume.", free=True)
    vocabulary: int = option(4000, "Tokens: the most frequent parts of words.", POSITIVE)
    features: int = option(256, "Features of the embedding and of each LSTM's state.", POSITIVE)
    layers: int = option(1, "LSTMs, one on the other.", POSITIVE)
    dropout: float = option(0.1, "Dropout rate.", click.FloatRange(0, 1, max_open=True))
    epochs: int = option(4, "Passes over the training data.", POSITIVE)
    block: int = option(64, "Tokens that are gone back through.", POSITIVE)
    batch_size: int = option(32, "Pieces of so many tokens in a step.", POSITIVE)
    learning_rate: float = option(4e-3, "Peak step size of AdamW, which rises and falls.", click.FloatRange(min=0))
    weight_decay: float = option(0.01, "Weight decay of AdamW.", click.FloatRange(min=0))
    longest: int = option(
        64, "Tokens that a reply, and what was said before it, is cut to.", click.IntRange(min=2)
    )
    buckets: int = option(5, "Lengths that replies to be measured are padded to.", POSITIVE)
    parts: int = option(4, f"Parts of the test, of {CANDIDATES} replies each to find the right one in.", POSITIVE)
    temperature: float = option(0.7, "Of chance: at 0 the likeliest is said.", click.FloatRange(min=0), free=True)
    top_p: float = option(
        0.9, "The likeliest tokens of this sum are drawn from.", click.FloatRange(0, 1, min_open=True), free=True
    )
    beams: int = option(0, "Beam search with so many, in place of chance.", NOT_NEGATIVE, free=True)


class Texts(NamedTuple):
    """Dialogues, as one types them."""

    name: str
    train: list[Dialogue]
    validation: list[Dialogue]
    test: list[Dialogue]
    left_out: int  # replies of the training


def main(config: Config, folder: Path) -> None:
    if config.smoke:
        config = replace(config, **SMOKE)
    if config.chat:
        talk(config, folder)
        return
    texts = questions() if config.smoke else everyday(config.data or None)
    tokenizer = data.BytePairTokenizer.train(chain.from_iterable(texts.train), config.vocabulary)
    known, *measured = (pairs(tokenizer, dialogues) for dialogues in texts[1:4])
    amounts = amount(config, texts, known, *measured)
    print(*amounts, "", sep="\n")
    validation, test = (cut(part, config.longest) for part in measured)
    ids = np.concatenate([said for dialogue in texts.train for said in numbers(tokenizer, dialogue)])

    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    steps = max(1, len(ids) // (config.block * config.batch_size))
    batches = data.excerpts(ids, config.block, config.batch_size, steps=steps, key=order_key)
    net, optimizer = network(config, len(tokenizer)), adamw(config, config.epochs * steps)
    state = train.init(net, optimizer, run_key, EXAMPLE)

    # That a dialogue ends is not foretold: one always replies.
    loss = partial(losses.cross_entropy, ignore_label=BEGINNING)
    x, y = data.next_tokens(ids, 6)
    gradients = train.check_gradients(net, loss, state.params, (x[:2], y[:2]))
    print(gradients, "\n")

    state = train.fit(
        state,
        train.make_step(net, loss, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: {"loss": np.log(perplexity_of(net, params, validation, config.buckets))},
    )
    tokenizer.save(folder / "tokenizer.json")

    retrieval = Retrieval(known, len(tokenizer))
    perplexities = baselines(retrieval, known, validation, test)
    perplexities["network"] = perplexity_of(net, state.params, test, config.buckets)
    found = choices(net, state.params, retrieval, validation, test, config)
    bot = Bot(net, state.params, tokenizer, config)
    report(config, folder, bot, texts, amounts, perplexities, found, retrieval, known, test, gradients)
    print("\nperplexity of a token of the test's replies")
    for name, value in perplexities.items():
        print(f"  {name:<45} {value:6.1f}")
    print("\nthe right reply found")
    for row in found:
        print(f"  {row['']:<45} first {row['first']:.1%}, among ten {row['among ten']:.1%}")
    print(f"\nreport  {folder / 'report.html'}")


# The network

EXAMPLE = np.full((1, 1), BEGINNING)


def network(config: Config, vocabulary: int) -> networks.Decoder:
    return networks.recurrent_decoder(
        vocabulary, config.features, layers=config.layers, dropout_rate=config.dropout
    )


def adamw(config: Config, steps: int) -> optax.GradientTransformation:
    schedule = optax.linear_onecycle_schedule(steps, config.learning_rate, pct_start=0.1, pct_final=0.9)
    return optax.chain(optax.clip_by_global_norm(1.0), train.adamw(schedule, weight_decay=config.weight_decay))


@partial(jax.jit, static_argnums=0)
def log_likelihood(net: networks.Decoder, params: Any, x: Array, labels: Array) -> Array:
    """ln p(reply | what was said), (B,); the label of what is not the reply is BEGINNING."""
    return -losses.cross_entropy(net.apply(params, x), labels, ignore_label=BEGINNING).sum(-1)


def log_likelihoods(net: networks.Decoder, params: Any, histories, targets, buckets: int) -> np.ndarray:
    """ln p(reply | what was said), (n,)."""
    found = np.empty(len(targets))
    both = [np.concatenate(pair) for pair in zip(histories, targets, strict=True)]
    labels = [np.append(np.full_like(h, BEGINNING), t) for h, t in zip(histories, targets, strict=True)]
    columns = both, labels, np.arange(len(found))
    for (ids, _), (labels, _), rows in data.bucketed(columns, 100, boundaries=buckets, value=BEGINNING):
        found[rows] = log_likelihood(net, params, ids[:, :-1], labels[:, 1:])
    return found


def perplexity_of(net: networks.Decoder, params: Any, pairs: Pairs, buckets: int) -> float:
    ln_p = log_likelihoods(net, params, pairs.histories, pairs.targets, buckets)
    return float(np.exp(-ln_p.sum() / len(pairs.tokens())))


# The data


def everyday(folder: str | None) -> Texts:
    """DailyDialog, and to train on also ChatterBot's corpus."""
    daily, more = data.daily_dialog(folder), data.chatterbot(folder)
    return without_known("everyday life", daily.train + more, daily.validation, daily.test)


def questions() -> Texts:
    """Where something is."""
    rng = np.random.default_rng(0)
    things, places = ("ball", "cat", "key"), ("under the table", "in the garden", "on the roof")

    def dialogue() -> Dialogue:
        thing = f"{rng.choice(things)} {rng.integers(1000)}"
        return [f"Where is the {thing} ?", f"The {thing} is {rng.choice(places)} .", "Thank you !"]

    return without_known("a house", *([dialogue() for _ in range(n)] for n in (400, 60, 120)))


def without_known(name: str, *parts: list[Dialogue]) -> Texts:
    """Without the replies of the training that are in the validation or the test as replies to the same.

    A dialogue is parted there: many of the release are nearly the same as others.
    """
    known, *held_out = ([[plain(said) for said in dialogue] for dialogue in part] for part in parts)
    seen = {pair for part in held_out for pair in zip(*data.replies(part), strict=True)}
    kept: list[Dialogue] = []
    left_out = 0
    for dialogue in known:
        told = [i for i, pair in enumerate(pairwise(dialogue), 1) if pair in seen]
        left_out += len(told)
        ends = zip([0, *(i + 1 for i in told)], [*told, len(dialogue)], strict=True)
        kept += [dialogue[i:j] for i, j in ends if i < j]
    return Texts(name, kept, *held_out, left_out)


def plain(text: str) -> str:
    """As one types it: DailyDialog has blanks before punctuation and around some apostrophes."""
    text = re.sub("[’‘`′]", "'", text).replace("。", ".")
    text = re.sub(r"\s*'\s*(s|t|m|d|re|ve|ll)\b", r"'\1", text, flags=re.IGNORECASE)
    text = re.sub(r"\s+([.,;:?!%)])", r"\1", text)
    text = re.sub(r"(?<=[a-z]{2}[.?!,])(?=[A-Za-z])", " ", text)
    return " ".join(text.split())


def numbers(tokenizer: data.BytePairTokenizer, dialogue: Dialogue) -> list[np.ndarray]:
    """The tokens of each utterance, to END; before the first one BEGINNING."""
    found = [np.append(tokenizer.encode(said), np.int32(END)) for said in dialogue]
    return [np.append(np.int32(BEGINNING), found[0]), *found[1:]]


def pairs(tokenizer: data.BytePairTokenizer, dialogues: list[Dialogue]) -> Pairs:
    histories, targets = [], []
    for ids in (numbers(tokenizer, dialogue) for dialogue in dialogues):
        histories += [np.concatenate(ids[:i]) for i in range(1, len(ids))]
        targets += ids[1:]
    return Pairs(*data.replies(dialogues), histories, targets)


def cut(pairs: Pairs, longest: int) -> Pairs:
    """What is left of what was said is its end, of a reply its beginning."""
    histories, targets = ([ids[-longest:] for ids in pairs.histories], [ids[:longest] for ids in pairs.targets])
    return pairs._replace(histories=histories, targets=targets)


def amount(config: Config, texts: Texts, known: Pairs, *measured: Pairs) -> list[str]:
    """In words."""
    found = [
        f"training: {len(texts.train):,} dialogues with {len(known.said):,} replies of {len(known.tokens()):,} "
        f"tokens; left out, and the dialogue parted there: {texts.left_out:,} that the validation or the test has"
    ]
    for name, part in zip(("validation", "test"), measured, strict=True):
        long = [sum(len(ids) > config.longest for ids in column) for column in part[2:]]
        found.append(
            f"{name}: {len(part.said):,} replies of {len(part.tokens()):,} tokens; cut to {config.longest} are "
            f"{long[1]:,} of them, and what was said before {long[0]:,}"
        )
    return found


# Which reply is the right one?


def drawn(pairs: Pairs, number: int) -> list[Pairs]:
    """So many at a time, drawn by chance, no two of them with the same reply."""
    order = np.random.default_rng(0).permutation(len(pairs.replied))
    _, first = np.unique(np.array(pairs.replied)[order], return_index=True)
    rows = order[np.sort(first)]
    n = min(CANDIDATES, len(rows))
    return [pairs.at(rows[i : i + n]) for i in range(0, len(rows) - n + 1, n)][:number]


def among(scores: np.ndarray, k: int) -> float:
    """How often the right one, on the diagonal of (parts, n, n), is among the first k; of equals by chance."""
    own = np.einsum("bii->bi", scores)[..., None]
    better, equal = (scores > own).sum(-1), (scores == own).sum(-1)
    return float(np.clip((k - better) / equal, 0, 1).mean())


def choices(net, params, retrieval: Retrieval, validation: Pairs, test: Pairs, config: Config) -> list[dict]:
    """How often each finds the right one of a part's replies to each thing said in it."""
    chosen, tried = drawn(test, config.parts), drawn(validation, config.parts)
    k = max(NEIGHBOURS, key=lambda k: among(np.stack([retrieval.likeness(part, k) for part in tried]), 1))
    n = len(chosen[0].said)
    histories = [ids for part in chosen for ids in part.histories for _ in range(n)]
    targets = [ids for part in chosen for _ in range(n) for ids in part.targets]
    ln_p = log_likelihoods(net, params, histories, targets, config.buckets).reshape(-1, n, n)
    scores = {
        "words in common": np.stack([retrieval.common(part) for part in chosen]),
        f"likeness to {k} retrieved replies": np.stack([retrieval.likeness(part, k) for part in chosen]),
        "network, p(reply | what was said)": ln_p,
        "network, p(reply | what was said) / p(reply)": ln_p - logsumexp(ln_p, 1, keepdims=True),
    }
    return [{"": name, "first": among(s, 1), "among ten": among(s, 10)} for name, s in scores.items()]


# Talking


class Bot(NamedTuple):
    """A network that replies."""

    net: networks.Decoder
    params: Any
    tokenizer: data.BytePairTokenizer
    config: Config

    def replies(self, dialogues: list[Dialogue], turn: int = 0) -> list[str]:
        """One to the end of each; another turn draws others."""
        config = self.config
        said = [np.concatenate(numbers(self.tokenizer, dialogue))[-config.longest :] for dialogue in dialogues]
        key = jax.random.fold_in(jax.random.key(config.seed), turn)
        chance = {"key": key, "temperature": config.temperature, "top_p": config.top_p}
        how = {"beams": config.beams} if config.beams else chance
        prompt = data.padded(said, config.longest)
        found = networks.generate(self.net, self.params, prompt, config.longest, stop=END, **how)
        return [self.tokenizer.decode(ids) for ids in np.asarray(found.ids)]


def talk(config: Config, folder: Path) -> None:
    """A reply to each line of the standard input. The run is only read."""
    if not config.resume or not (folder / "report.html").exists():
        raise ValueError(f"--chat talks with a finished run, by --resume and its name in --run; got {folder}")
    tokenizer = data.BytePairTokenizer.load(folder / "tokenizer.json")
    net = network(config, len(tokenizer))
    state = train.init(net, adamw(config, 1), jax.random.key(0), EXAMPLE)
    state = train.Checkpoints(folder / "checkpoints").restore(state)
    if state is None:
        raise FileNotFoundError(f"{folder} has no whole checkpoint: --resume it without --chat")
    bot = Bot(net, state.params, tokenizer, config)
    print("Say something; an empty line ends it.")
    dialogue: Dialogue = []
    with suppress(EOFError, KeyboardInterrupt):
        while said := plain(input("> ")):
            dialogue.append(said)
            dialogue += bot.replies([dialogue], len(dialogue))
            print(dialogue[-1], flush=True)
        return
    print()


# The report


def conversations(bot: Bot, openings: list[str]) -> str:
    """The network with itself."""
    dialogues = [[said] for said in openings]
    for turn in range(5):
        for dialogue, reply in zip(dialogues, bot.replies(dialogues, turn), strict=True):
            dialogue.append(reply)
    return "<hr>".join("".join(f"<p>— {escape(said)}</p>" for said in dialogue) for dialogue in dialogues)


def side_by_side(said: list[str], replies: dict[str, list[str]]) -> str:
    """The replies to each, below it."""
    lines = (
        "".join(f"<br><i>{name}</i> {escape(some[i])}" for name, some in replies.items()) for i in range(len(said))
    )
    return "".join(f"<p>— {escape(text)}{below}</p>" for text, below in zip(said, lines, strict=True))


def report(config, folder, bot, texts, amounts, perplexities, found, retrieval, known, test, gradients) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    names = list(perplexities)
    page = train.Report(
        f"A chatbot of {texts.name}",
        f"A language model of LSTMs, trained on {len(texts.train):,} dialogues and measured on the "
        f"{len(test.said):,} replies of others",
        {
            "perplexity of a token": f"{perplexities['network']:.1f}",
            "of retrieved replies": f"{perplexities[names[1]]:.1f}",
            **{f"of {name}": f"{perplexities[name]:.1f}" for name in ("unigrams", "trigrams")},
            "parameters": f"{train.count(bot.params):,}",
            "training time": f"{rows[-1]['seconds'] / 60:.0f} min",
        },
    )
    some = test.at(np.random.default_rng(1).permutation(len(test.said))[:12])
    retrieved = [known.replied[i] for i in retrieval.nearest(some.said)[0][:, 0]]
    replies = {
        "network": bot.replies([[said] for said in some.said]),
        "retrieved": retrieved,
        "truth": some.replied,
    }
    page.html("Replies to what the network never saw", side_by_side(some.said, replies))
    page.html("The network, talking with itself", conversations(bot, some.said[:3]))
    page.table(
        "Perplexity of a token of the test's replies",
        [{"": name, "perplexity": value} for name, value in perplexities.items()],
        "exp of the mean of −ln p; the end of a reply is one of its tokens. The network knows all that was said "
        "before; the others the last utterance, or nothing but the reply so far. Retrieved replies are those to "
        "what is nearest by the cosine of TF-IDF vectors of words and pairs of words; a token's p is its share in "
        "them, by how near they are, mixed with that of the n-grams (Kneser-Ney). Their number "
        "and weight are the best on the validation.",
    )
    page.table(
        "Is the right reply found?",
        found,
        f"{config.parts} × {CANDIDATES} things said in the test, with the replies of its part, all different: "
        "how often the right one scores best, or is among the best ten. Words in common: cosine of the TF-IDF "
        "vectors of what was said and of the reply. Likeness: of the reply and the mean of retrieved ones, whose "
        "number is the best on the validation. p(reply) is the mean over what was said in the part; without it "
        "the same short replies are the likeliest, whatever was said.",
    )
    page.html("The data", "".join(f"<p>{escape(line)}</p>" for line in amounts))
    page.curves([{key.replace("test_", "validation_"): value for key, value in row.items()} for row in rows])
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
