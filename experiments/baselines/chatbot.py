"""What a chatbot is measured beside: n-grams, and the replies to what is nearest to what was said."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from jaxnet import data

NEIGHBOURS = (1, 3, 10, 30, 100)  # so many replies may be retrieved


class Pairs(NamedTuple):
    """Each utterance that is answered, and its answer; as tokens also all that was said before."""

    said: list[str]
    replied: list[str]
    histories: list[np.ndarray]  # from the tokenizer's beginning to its end, which ends each utterance
    targets: list[np.ndarray]  # the reply, to the end

    def at(self, rows: np.ndarray) -> "Pairs":
        return Pairs(*([column[i] for i in rows] for column in self))

    def tokens(self) -> np.ndarray:
        """Of the replies, one after the other."""
        return np.concatenate(self.targets)

    def rows(self) -> np.ndarray:
        """Of which reply each of them is."""
        return np.repeat(np.arange(len(self.targets)), [len(ids) for ids in self.targets])


class Retrieval:
    """The replies to what is nearest: by the cosine of words and pairs of words, the rare ones counting more."""

    def __init__(self, known: Pairs, vocabulary: int) -> None:
        self.words = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32
        )
        self.words.fit(known.said + known.replied)
        self.said = self.words.transform(known.said).T.tocsr()  # (words, n)
        self.replied = self.words.transform(known.replied)  # (n, words)
        rows = known.rows()
        shares = 1 / np.bincount(rows)[rows]
        self.tokens = csr_array((shares, (rows, known.tokens())), (len(known.targets), vocabulary))

    def nearest(self, said: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the nearest, (m, k), the nearest first, and how near they are."""
        k, found = min(NEIGHBOURS[-1], self.said.shape[1]), []
        for i in range(0, len(said), 200):
            near = (self.words.transform(said[i : i + 200]) @ self.said).toarray()
            best = np.argpartition(-near, k - 1, -1)[:, :k]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(near, best, -1), -1), -1)
            found.append((best, np.take_along_axis(near, best, -1)))
        numbers, nearness = zip(*found, strict=True)
        return np.concatenate(numbers), np.concatenate(nearness)

    def weights(self, nearest: tuple[np.ndarray, np.ndarray], k: int) -> csr_array:
        """What each of the k nearest counts, by how near it is, in sum 1; (m, n)."""
        best, near = (part[:, :k] for part in nearest)
        near = near + 1e-6  # where no word is known, all are equally near
        rows = np.repeat(np.arange(len(best)), best.shape[1])
        shares = near / near.sum(-1, keepdims=True)
        return csr_array((shares.ravel(), (rows, best.ravel())), (len(best), self.said.shape[1]))

    def chances(self, pairs: Pairs) -> dict[int, np.ndarray]:
        """p of each token of the replies: its share in those retrieved, for each number of them."""
        nearest = self.nearest(pairs.said)
        at = pairs.rows(), pairs.tokens()
        return {k: np.asarray((self.weights(nearest, k) @ self.tokens)[at]).ravel() for k in NEIGHBOURS}

    def likeness(self, pairs: Pairs, k: int) -> np.ndarray:
        """(m, m): the cosine of the mean of the k replies retrieved to what was said, and each of the replies."""
        mean = (self.weights(self.nearest(pairs.said), k) @ self.replied).toarray()
        lengths = np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-9)
        return (self.words.transform(pairs.replied) @ (mean / lengths).T).T

    def common(self, pairs: Pairs) -> np.ndarray:
        """(m, m): the cosine of what was said and each of the replies."""
        return (self.words.transform(pairs.said) @ self.words.transform(pairs.replied).T).toarray()


def baselines(retrieval: Retrieval, known: Pairs, validation: Pairs, test: Pairs) -> dict[str, float]:
    """Perplexities of the test. The validation chooses how many replies are mixed in, and with what weight."""
    found, retrieved = {}, [retrieval.chances(part) for part in (validation, test)]
    # Replies one after the other: the token before one is the end of another.
    model = data.NGrams(known.tokens(), retrieval.tokens.shape[1], 3)
    ngrams = [np.exp(model.log_probabilities(part.tokens())) for part in (validation, test)]
    for order, name in {1: "unigrams", 3: "trigrams"}.items():
        alone = [p[order - 1] for p in ngrams]
        found[name] = perplexity(alone[1])

        def mixed(part: int, k: int, w: float, alone: list[np.ndarray] = alone) -> float:
            return perplexity(w * retrieved[part][k] + (1 - w) * alone[part])

        mixtures = [(k, w) for k in NEIGHBOURS for w in np.linspace(0.02, 0.98, 49)]
        k, w = min(mixtures, key=lambda mixture: mixed(0, *mixture))
        found[f"{name}, and {k} retrieved by {w:.2f}"] = mixed(1, k, w)
    return found


def perplexity(p: np.ndarray) -> float:
    return float(np.exp(-np.log(p).mean()))
