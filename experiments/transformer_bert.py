"""BERT in small: a transformer learns English by guessing masked words, then tells praise from blame (SST-2)."""

import re
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from click import FloatRange
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from jaxnet import activations, cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

LONGEST = 64  # tokens of a sentence, its two ends included; what is longer is cut
FIRST = len(data.BytePairTokenizer.special)  # of the tokens that are words or parts of them
RATE = FloatRange(0, 1, min_open=True, max_open=True)  # with dropout a network has other parts than without
SMOKE = {"vocabulary": 120, "features": 16, "depth": 1, "heads": 2, "pretraining": 1, "networks": 1}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Pre-train a transformer on sentences with masked words, and fine-tune it on 6,920 film reviews of SST-2.

    The texts are the training sentences of SST-2, Multi30K (English) and DailyDialog. With --resume a finished
    run is trained no more, and says what it thinks of a --sentence.
    """

    data: str = option("", "Folder of sst2/, multi30k/ and dialogue/dailydialog/; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on sentences made here.")
    vocabulary: int = option(8000, "Tokens, words and parts of them, at most.", POSITIVE)
    features: int = option(128, "Features of each token.", POSITIVE)
    depth: int = option(2, "Blocks of the transformer.", POSITIVE)
    heads: int = option(4, "Heads of its attention.", POSITIVE)
    pretraining: int = option(5, "Passes over the texts in the pre-training.", POSITIVE)
    often: int = option(8, "So many times each review comes in such a pass.", POSITIVE)
    pretraining_dropout: float = option(0.1, "Dropout rate in the pre-training.", RATE)
    pretraining_rate: float = option(2e-3, "Peak step size of AdamW in the pre-training.", FloatRange(min=0))
    epochs: int = option(4, "Passes over the reviews in each fine-tuning.", POSITIVE)
    learning_rate: float = option(1e-3, "Peak step size of AdamW in the fine-tuning.", FloatRange(min=0))
    dropout: float = option(0.3, "Dropout rate in the fine-tuning.", RATE)
    hidden_words: float = option(0.15, "So many words are masked in the fine-tuning.", FloatRange(0, 1))
    networks: int = option(5, "Fine-tunings, by a seed each; the mean of what they say counts.", POSITIVE)
    batch_size: int = option(64, "Sentences in a step; in the fine-tuning half as many.", POSITIVE)
    weight_decay: float = option(0.05, "Weight decay of AdamW.", FloatRange(min=0))
    sentence: str = option("", "A sentence of yours: is it positive or negative?", free=True)


class Language(NamedTuple):
    """Sentences as tokens, and which of those are masked."""

    tokenizer: data.BytePairTokenizer

    @property
    def masking(self) -> data.Masking:
        """The mask is one token more than the tokenizer has."""
        return data.Masking(mask=len(self.tokenizer), words=(FIRST, len(self.tokenizer)))

    def encode(self, sentences) -> list[np.ndarray]:
        return [self.tokenizer.encode(sentence, ends=True)[:LONGEST] for sentence in sentences]


def main(config: Config, folder: Path) -> None:
    config = replace(config, **SMOKE) if config.smoke else config
    if config.sentence and not re.search(r"\w", config.sentence):
        raise ValueError(f"--sentence needs a word; got {config.sentence!r}")
    train.RunFolder(folder, resume=config.resume).configure(cli.configuration(config))
    reviews, others = made_up() if config.smoke else (data.sst2(config.data or None), texts(config.data or None))
    known, others = [words(text) for text in reviews.train[0]], [words(text) for text in others]
    tokenizer = data.BytePairTokenizer.train(known, config.vocabulary)  # whole words of those it is about
    encoder = partial(
        networks.transformer_encoder,
        config.features,
        config.depth,
        config.heads,
        vocabulary=len(tokenizer) + 1,
        positions="learned",
        length=LONGEST,
    )
    language = Language(tokenizer)
    guesser = networks.masked_language_model(encoder(dropout_rate=config.pretraining_dropout), config.features)
    judge = networks.sequence_classifier(
        encoder(dropout_rate=config.dropout), len(reviews.classes), dropout_rate=config.dropout
    )
    guessing, gradients = pretrained(config, folder / "pretraining", language, guesser, reviews, known, others)
    tuned = {
        name: [
            fine_tuned(config, folder / f"{name}-{seed}", language, judge, reviews, begin, seed)
            for seed in range(config.networks)
        ]
        for name, begin in (("tuned", guessing["encoder"]), ("from-scratch", None))
    }
    print()
    if config.sentence:
        positive = predict(judge, tuned["tuned"], language.encode([words(config.sentence)]))[0]
        print(f"“{config.sentence}” is {reviews.classes[positive.argmax()]} ({positive.max():.0%})\n")
    test = language.encode(map(words, reviews.test[0]))
    said = {name: predict(judge, of, test) for name, of in tuned.items()}
    said["bag of words"], bag = bag_of_words(reviews)
    right = {name: p.argmax(-1) == reviews.test[1] for name, p in said.items()}
    report(config, folder, language, guesser, guessing, gradients, reviews, said, right, bag)
    for name, hits in right.items():
        print(f"{name:<13} test accuracy {hits.mean():.2%}")
    print(f"report        {folder / 'report.html'}")


def texts(folder: str | None) -> list[str]:
    """English sentences without labels."""
    dialogues = data.daily_dialog(folder).train
    return data.multi30k(folder).train[0] + [said for dialogue in dialogues for said in dialogue]


def words(text: str) -> str:
    """All texts alike: small letters, no hyphens, each sign right after the word before it ("don't", "a joy.")."""
    text = text.lower().replace("’", "'").replace("-", " ")
    text = re.sub(r"\s*'\s*(?=(?:s|t|re|ve|ll|d|m)\b)", "'", text)
    text = re.sub(r"\s+n't\b", "n't", text)
    return " ".join(re.sub(r"\s*([^\w\s'])\s*", r"\1 ", text).split())


def optimizer_of(config: Config, steps: int, rate: float):
    schedule = optax.linear_onecycle_schedule(steps, rate, pct_start=0.1, pct_final=0.95)
    return train.adamw(
        schedule, weight_decay=config.weight_decay, mask=lambda params: jax.tree.map(lambda w: w.ndim >= 2, params)
    )


def per_word(metric):
    """Of the masked words alone: a target of −1 is none."""

    def measured(prediction, target):
        return metric(prediction, target) * (target.size / jnp.maximum(jnp.sum(target >= 0), 1))

    return measured


guess_loss = partial(losses.cross_entropy, ignore_label=-1)
GUESSES = {"loss": guess_loss, "accuracy": train.accuracy}


def pretrained(config: Config, folder: Path, language: Language, net, reviews, known, others):
    """Parameters of a network that guesses masked words, and the gradient check."""
    print("pre-training")
    run_key, order_key, mask_key, held_key = jax.random.split(jax.random.key(config.seed), 4)
    sentences = data.bucketed(
        language.encode(known * config.often + others),
        config.batch_size,
        key=order_key,
        boundaries=5,
        drop_last=True,
    )
    batches = data.masked(sentences, language.masking, key=mask_key)
    optimizer = optimizer_of(config, config.pretraining * len(batches), config.pretraining_rate)
    held_out = language.encode(map(words, reviews.validation[0]))
    alike = data.bucketed(held_out, config.batch_size, boundaries=1)  # as many places in each: means add up
    held_out = list(data.masked(alike, language.masking, key=held_key))
    short = data.padded([ids[:8] for ids in language.encode(known[:2])])
    sample = data.mask_words(held_key, *short, language.masking)
    state = train.init(net, optimizer, run_key, sample[0])

    gradients = train.check_gradients(net, guess_loss, state.params, sample)
    print(gradients, "\n")

    def evaluate(params):
        counted = {"words": lambda prediction, target: target >= 0}
        found = train.evaluate(net, params, held_out, GUESSES | counted)
        return {name: found[name] / found["words"] for name in GUESSES}

    step = train.make_step(net, per_word(guess_loss), optimizer, metrics={"accuracy": per_word(train.accuracy)})
    state = train.fit(
        state,
        step,
        batches,
        epochs=config.pretraining,
        run=folder,
        resume=config.resume and (folder / "config.json").exists(),
        config=cli.configuration(config),
        evaluate=evaluate,
    )
    return state.params, gradients


def fine_tuned(config: Config, folder: Path, language: Language, net, reviews, encoder, seed: int):
    """Parameters of a network that judges reviews, from a pre-trained encoder's or, without one, from chance."""
    print(f"\n{folder.name}")
    run_key, order_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
    known, validation = (
        (language.encode(map(words, sentences)), labels)
        for sentences, labels in (reviews.train, reviews.validation)
    )
    batches = data.bucketed(known, config.batch_size // 2, key=order_key, boundaries=4, drop_last=True)
    held_out = data.bucketed(validation, 128, boundaries=2)
    optimizer = optimizer_of(config, config.epochs * len(batches), config.learning_rate)
    state = train.init(net, optimizer, run_key, data.padded(known[0][:1]))
    if encoder is not None:
        state = state._replace(params=state.params | {"encoder": jax.tree.map(jnp.copy, encoder)})

    def augment(key, x):
        ids, lengths = x
        hidden = jax.random.bernoulli(key, config.hidden_words, ids.shape) & (ids >= FIRST)
        return jnp.where(hidden, language.masking.mask, ids), lengths

    metrics = {"accuracy": train.accuracy}
    state = train.fit(
        state,
        train.make_step(net, losses.cross_entropy, optimizer, metrics=metrics, augment=augment),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume and (folder / "config.json").exists(),
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, held_out, metrics | {"loss": losses.cross_entropy}),
    )
    return state.params


def predict(net, several, sentences: list[np.ndarray]) -> np.ndarray:
    """The probability of each class for each sentence, the mean of several networks."""
    apply = jax.jit(net.apply)
    parts = [data.padded(sentences[i : i + 128], LONGEST) for i in range(0, len(sentences), 128)]
    return np.concatenate(
        [np.mean([activations.softmax(apply(params, part)) for params in several], 0) for part in parts]
    )


def bag_of_words(reviews: data.Sentences) -> tuple[np.ndarray, str]:
    """Probabilities by logistic regression on words and pairs of them, and which: the best in the validation."""
    found = []
    for name, vectorizer in {"counts": CountVectorizer, "TF-IDF": TfidfVectorizer}.items():
        for longest in (1, 2):
            bag = vectorizer(ngram_range=(1, longest), token_pattern=r"\S+", binary=True)
            x = bag.fit_transform(reviews.train[0])
            seen, test = (bag.transform(sentences) for sentences, _ in (reviews.validation, reviews.test))
            for c in (0.1, 0.3, 1, 3, 10, 30, 100):
                model = LogisticRegression(C=c, max_iter=1000).fit(x, reviews.train[1])
                what = f"{name}, {'words and pairs' if longest == 2 else 'words'}, C = {c:g}"
                found.append((model.score(seen, reviews.validation[1]), what, model.predict_proba(test)))
    accuracy, what, probabilities = max(found, key=lambda row: row[0])
    return probabilities, f"{what} (validation accuracy {accuracy:.2%})"


def made_up() -> tuple[data.Sentences, list[str]]:
    """Reviews of a few words over and over, and sentences without labels."""
    rng = np.random.default_rng(0)
    praise, blame = ("moving", "funny", "joyful", "brilliant"), ("dull", "messy", "stale", "boring")
    about = ("the film", "the plot", "this story", "her voice")

    def some(count: int) -> tuple[list[str], np.ndarray]:
        labels = rng.integers(0, 2, count).astype(np.int32)
        said = [f"{rng.choice(about)} is n't long but {rng.choice(praise if y else blame)} ." for y in labels]
        return said, labels

    reviews = data.Sentences("Reviews", some(256), some(64), some(64), ("negative", "positive"), "made here")
    return reviews, [f"{rng.choice(about).capitalize()} isn't {rng.choice(praise)} but long." for _ in range(64)]


def guesses(net, params, language: Language, sentences: list[str]) -> str:
    """Sentences with masked words, and what is guessed at each, likeliest first, as HTML."""
    masking = language.masking._replace(replaced=1.0, random=0.0)
    x, target = data.mask_words(jax.random.key(0), *data.padded(language.encode(sentences)), masking)
    probabilities = activations.softmax(jax.jit(net.apply)(params, x))
    lines = []
    for ids, places, there, p in zip(x[0], x[2], target, probabilities, strict=True):
        pieces = {i: escape(language.tokenizer.decode([int(i)])) for i in np.unique(ids) if i < masking.mask}
        shown = ["▢" if i == masking.mask else pieces[int(i)] for i in ids]
        for place, token, of in sorted(zip(places, there, p, strict=True), key=lambda guess: int(guess[0])):
            if token >= 0:
                best = np.argsort(-of)[:3]
                said = ", ".join(f"{escape(language.tokenizer.decode([int(i)]))} {of[i]:.0%}" for i in best)
                word = escape(language.tokenizer.decode([int(token)]))
                shown[int(place)] = f"<b>▢</b> <i>({said}; it was “{word}”)</i>"
        lines.append(f"<p>{' '.join(shown[1:]).strip()}</p>")
    return "".join(lines)


def report(config, folder, language, guesser, guessing, gradients, reviews, said, right, bag) -> None:
    labels, classes = reviews.test[1], reviews.classes
    before = train.read_metrics(folder / "pretraining" / "metrics.csv")
    guessed = [row for row in before if row.get("test_loss") is not None][-1]
    after = [train.read_metrics(path) for path in sorted(folder.glob("tuned-*/metrics.csv"))]
    seconds = before[-1]["seconds"] + sum(rows[-1]["seconds"] for rows in after)
    page = train.Report(
        f"{reviews.name}: praise or blame",
        f"A transformer that learnt to guess masked words, fine-tuned on {len(reviews.train[1]):,} reviews and "
        f"tested on {len(labels):,} others",
        {
            "test accuracy": f"{right['tuned'].mean():.2%}",
            "without pre-training": f"{right['from-scratch'].mean():.2%}",
            "bag of words": f"{right['bag of words'].mean():.2%}",
            "masked words guessed": f"{guessed['test_accuracy']:.1%}",
            "parameters": f"{train.count(guessing['encoder']):,}",
            "training time": f"{seconds:.0f} s",
        },
    )
    page.table(
        "Beside others",
        [
            {
                "": name,
                "test accuracy": float(hits.mean()),
                "right, where the bag of words is wrong": int((hits & ~right["bag of words"]).sum()),
                "wrong, where it is right": int((~hits & right["bag of words"]).sum()),
            }
            for name, hits in right.items()
        ],
        f"Both networks are the mean of {config.networks} fine-tunings, which differ in their seed. The bag of "
        f"words is logistic regression, chosen by the validation data: {bag}. The standard error of each accuracy "
        f"is {np.sqrt(right['tuned'].mean() * (1 - right['tuned'].mean()) / len(labels)):.2%}.",
    )
    page.confusion(confusion_matrix(labels, said["tuned"].argmax(-1)), classes)
    sure = said["tuned"].max(-1)
    worst = np.flatnonzero(~right["tuned"])[np.argsort(-sure[~right["tuned"]])][:12]
    page.table(
        "The most surprising mistakes",
        [{"review": reviews.test[0][i], "is": classes[labels[i]], "said, with": float(sure[i])} for i in worst],
    )
    page.html(
        "Guessing masked words",
        guesses(guesser, guessing, language, [words(text) for text in reviews.validation[0][:10]])
        + f"<p>Of the masked words of all {len(reviews.validation[0]):,} validation reviews "
        f"{guessed['test_accuracy']:.1%} are guessed right; perplexity {np.exp(guessed['test_loss']):.1f} of "
        f"{len(language.tokenizer):,} tokens.</p>",
    )
    page.curves(before)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
