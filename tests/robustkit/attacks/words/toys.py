"""A classifier, word vectors and other resources from hashes of words: exact, the same on every machine.

What the toys answer depends on one text alone, to the last bit, so that two implementations of an attack must
agree wholly. Most words are made up; those of a cluster are near each other, mostly one part of speech.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from robustkit.attacks.words.resources import Neighbours, SentenceEncoder, WordNet, WordVectors

STOP_WORDS = ("the", "and", "is", "of", "in")
CLUSTERS = tuple(
    tuple(first + middle + last for middle in ("a", "e", "i", "o", "u", "ai", "ou") for last in ("l", "n"))
    for first in ("b", "c", "d", "f", "g", "h", "j", "k", "pr", "sl", "tr", "v")
)
WORDS = tuple(word for cluster in CLUSTERS for word in cluster)
_PLACE = {word: place for place, cluster in enumerate(CLUSTERS) for word in cluster}


@functools.cache
def direction(word: str, size: int, salt: str = "") -> np.ndarray:
    """Standard normal numbers that depend on the word alone, float64 ``(size,)``."""
    seed = int.from_bytes(hashlib.sha256((salt + word).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(size)


class ToyClassifier:
    """Reads the mean of its words' vectors; as much of a `TextClassifier` as word attacks use."""

    def __init__(self, num_labels: int = 2, max_length: int = 30, gain: float = 6.0) -> None:
        self.name = "toy"
        self.fingerprint = f"toy-{num_labels}-{max_length}-{gain}"
        self.num_labels = num_labels
        self.max_length = max_length
        self.batches: list[int] = []
        self._head = gain * direction("head", 6 * num_labels).reshape(num_labels, 6)

    def tokens(self, text: str | tuple[str, ...]) -> list[str]:
        """The words between two special tokens."""
        joined = text if isinstance(text, str) else " ".join(text)
        words = re.findall(r"\[UNK\]|[a-z0-9]+|[^\sa-z0-9]", joined.lower().replace("[unk]", "[UNK]"))
        return ["[CLS]", *words[: self.max_length - 2], "[SEP]"]

    def _states(self, tokens: Sequence[str]) -> np.ndarray:
        return np.tanh(np.stack([direction(token, 6, "model") for token in tokens]))

    def logits(self, texts: Sequence[str | tuple[str, ...]]) -> np.ndarray:
        """As `TextClassifier.logits`."""
        self.batches.append(len(texts))
        rows = [self._head @ self._states(self.tokens(text)).mean(axis=0) for text in texts]
        return np.stack(rows).astype(np.float32)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """As `TextClassifier.predict`."""
        return self.logits(texts).argmax(axis=1)

    def token_gradients(
        self, texts: Sequence[str], labels: Sequence[int]
    ) -> list[tuple[list[str], list[tuple[int, int]], np.ndarray]]:
        """As `TextClassifier.token_gradients`; the embeddings are those before the tanh."""
        found = []
        for text, label in zip(texts, labels, strict=True):
            tokens = self.tokens(text)
            states = self._states(tokens)
            logits = self._head @ states.mean(axis=0)
            error = np.exp(logits - logits.max())
            error = error / error.sum() - np.eye(self.num_labels)[label]
            gradient = (self._head.T @ error) * (1 - states**2) / len(tokens)
            found.append((tokens, [(0, 0)] * len(tokens), gradient.astype(np.float32)))
        return found


def toy_examples(count: int, seed: int = 0, longest: int = 24, num_labels: int = 2) -> list[tuple[str, int]]:
    """Texts with capitals, contractions, hyphens and punctuation; one label in five is wrong to the toy."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        words = []
        for _ in range(chance.randint(1, longest)):
            word = chance.choice(STOP_WORDS) if chance.random() < 0.2 else chance.choice(WORDS)
            match chance.randrange(20):
                case 0:
                    word = word.capitalize()
                case 1:
                    word = word.upper()
                case 2:
                    word += "," if chance.random() < 0.5 else " --"
                case 3:
                    word += f"-{chance.choice(WORDS)}"
                case 4:
                    word += "'s"
            words.append(word)
        texts.append(" ".join(words) + chance.choice([".", " !", ""]))
    predicted = ToyClassifier(num_labels).predict(texts)
    wrong = [chance.random() < 0.2 for _ in texts]
    labels = [int(label + flip) % num_labels for label, flip in zip(predicted, wrong, strict=True)]
    return list(zip(texts, labels, strict=True))


def toy_vectors() -> WordVectors:
    """Vectors whose cosines within a cluster lie between 0 and nearly 1."""
    rows = [
        direction(f"cluster {_PLACE[word]}", 16) + 0.4 * direction(word, 1)[0] * direction(word, 16, "vector")
        for word in WORDS
    ]
    return WordVectors(WORDS, np.stack(rows).astype(np.float32))


def toy_neighbours() -> Neighbours:
    """The 50 nearest by `toy_vectors`."""
    return toy_vectors().neighbours(50)


def toy_tag(word: str) -> str:
    """A Penn tag: mostly the cluster's."""
    tags = ("NN", "VB", "JJ", "RB")
    number = hashlib.sha256(word.lower().encode()).digest()[0]
    return tags[number % 4] if number < 64 else tags[_PLACE.get(word.lower(), 0) % 4]


class ToyTagger:
    """Tags each word by itself."""

    def tag(self, words: Sequence[str], count: int | None = None) -> list[str]:
        """As `Tagger.tag`."""
        return [toy_tag(word) for word in words[:count]]


def encode(texts: Sequence[str]) -> np.ndarray:
    """Sums of words' vectors, float32 ``(n, 12)``; a cluster's words are alike."""
    rows = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        parts = [
            direction(f"cluster {_PLACE.get(word, word)}", 12, "meaning") + 0.5 * direction(word, 12, "shade")
            for word in words
        ]
        rows.append(np.sum(parts, axis=0) if parts else np.ones(12))
    return np.stack(rows).astype(np.float32)


def toy_encoder() -> SentenceEncoder:
    """The service that `encode` makes."""
    return SentenceEncoder(encode)


def synsets(word: str) -> list[tuple[str, ...]]:
    """Two synsets of each made-up word, one with a phrase that no attack may use."""
    place = _PLACE.get(word.lower())
    if place is None:
        return []
    cluster, other = CLUSTERS[place], CLUSTERS[(place + 3) % len(CLUSTERS)]
    at = cluster.index(word.lower())
    return [
        (cluster[at], cluster[at - 1], f"{cluster[at]}_{cluster[at - 1]}"),
        (other[at].upper(), other[at], cluster[at - 1]),
    ]


def toy_wordnet() -> WordNet:
    """The lexicon that `synsets` makes."""
    return WordNet(synsets)


def nltk_wordnet() -> SimpleNamespace:
    """The same lexicon with NLTK's face."""

    def found(word: str, lang: str = "eng") -> list[SimpleNamespace]:
        return [
            SimpleNamespace(lemma_names=lambda lang="eng", members=members: list(members))
            for members in synsets(word)
        ]

    return SimpleNamespace(synsets=found, langs=lambda: ["eng"])
