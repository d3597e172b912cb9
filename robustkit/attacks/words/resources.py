"""What word attacks read: lexicon, word vectors, tagger, sentence encoder, masked language model, stop words.

Everything is an argument or a local file, and nothing here downloads. Files may be compressed with gzip if
their name ends in ``.gz``.
"""

from __future__ import annotations

import gzip
import json
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
import torch

from robustkit.attacks.words.text import split_words
from robustkit.classifiers.fingerprints import model_fingerprint
from trainkit.hub import fingerprint

__all__ = [
    "MaskQuery",
    "MaskedLanguageModel",
    "Neighbours",
    "SentenceEncoder",
    "Tagger",
    "WordNet",
    "WordVectors",
    "read_stopwords",
    "universal_tag",
]

Payload = TypeVar("Payload")
Answer = TypeVar("Answer")


@contextmanager
def _open(path: str | Path, what: str) -> Iterator[TextIO]:
    """Read a text file that may be compressed; say what was expected if it is missing or damaged."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: expected {what}")
    opener: Callable[..., TextIO] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error}); expected {what}") from error


def _read_json(path: str | Path, what: str) -> dict[str, Any]:
    with _open(path, what) as file:
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error}); expected {what}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}; expected {what}")
    return value


def read_stopwords(path: str | Path) -> frozenset[str]:
    """Read a list of stop words.

    Args:
        path: A file with one word a line, such as ``corpora/stopwords/english`` of NLTK's data.

    Returns:
        The words, as they are written.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no words.
    """
    what = "a file with one stop word a line, such as corpora/stopwords/english of NLTK's data"
    with _open(path, what) as file:
        words = frozenset(line.strip() for line in file) - {""}
    if not words:
        raise ValueError(f"{path}: no words; expected one a line")
    return words


# The endings that WordNet's morphological processor exchanges, in its order: morphy(7WN).
_ENDINGS = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}


class WordNet:
    """Synonyms from a lexicon of synsets.

    Args:
        synsets: Maps a word to its synsets, each the sequence of its members.
        fingerprint: Names the lexicon in the settings of an attack.
    """

    def __init__(self, synsets: Callable[[str], Iterable[Sequence[str]]], *, fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self._synsets = synsets
        self._found: dict[str, tuple[str, ...]] = {}

    @classmethod
    def from_files(cls, entries: str | Path, synsets: str | Path) -> WordNet:
        """Read Open English WordNet.

        Inflected forms are led back to entries by WordNet's own rules (morphy): irregular forms first, else
        endings.

        Args:
            entries: JSON with ``entries``: lemma -> part of speech (``n``, ``v``, ``a``, ``r``, also
                ``n-1``) -> senses, each a list that begins with a synset's id; and ``forms``: lemma -> part
                of speech -> irregular forms.
            synsets: JSON lines with ``id`` and ``members``.

        Returns:
            The lexicon.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file has another format.
        """
        hint = "{} of Open English WordNet (https://en-word.net, CC BY 4.0) as JSON"
        table = _read_json(entries, hint.format("the entries (lemma -> part of speech -> senses)"))
        members: dict[str, list[str]] = {}
        with _open(synsets, hint.format("the synsets (JSON lines with id and members)")) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    members[row["id"]] = row["members"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{synsets}:{number}: {error!r}; expected JSON with id and members"
                    ) from error
        try:
            lexicon = _Lexicon(table["entries"], table.get("forms", {}), members)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{entries}: {error!r}; expected 'entries' (lemma -> part of speech -> senses), 'forms', and "
                f"only synsets that {synsets} holds"
            ) from error
        return cls(lexicon.synsets, fingerprint=fingerprint(Path(entries), Path(synsets)))

    @classmethod
    def from_nltk(cls) -> WordNet:
        """The WordNet of a local NLTK.

        Returns:
            The lexicon.

        Raises:
            ImportError: NLTK is not installed.
            LookupError: NLTK's data has no WordNet.
        """
        try:
            from nltk.corpus import wordnet
        except ImportError as error:
            raise ImportError("nltk is not installed; pip install nltk, or use WordNet.from_files") from error
        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise LookupError(
                "NLTK's data has no WordNet; run nltk.download('wordnet'), or use WordNet.from_files"
            ) from error
        return cls(
            lambda word: (synset.lemma_names() for synset in wordnet.synsets(word)),
            fingerprint=fingerprint("nltk", str(wordnet.get_version())),
        )

    def synonyms(self, word: str) -> tuple[str, ...]:
        """The one-word members of a word's synsets.

        Args:
            word: Any word; its case does not matter.

        Returns:
            Members in the order of the synsets, each once, without the word as it was given.
        """
        if word not in self._found:
            members = dict.fromkeys(
                member
                for synset in self._synsets(word)
                for member in synset
                if member != word and not set("_ ") & set(member) and len(split_words(member)) == 1
            )
            self._found[word] = tuple(members)
        return self._found[word]


class _Lexicon:
    """Synsets of inflected words, from lists of entries and irregular forms."""

    def __init__(
        self,
        entries: Mapping[str, Mapping[str, Sequence[Sequence[Any]]]],
        forms: Mapping[str, Mapping[str, Sequence[str]]],
        members: Mapping[str, Sequence[str]],
    ) -> None:
        self._members = members
        self._senses: dict[str, dict[str, list[str]]] = {part: {} for part in _ENDINGS}
        self._irregular: dict[str, dict[str, list[str]]] = {part: {} for part in _ENDINGS}
        for lemma, parts in entries.items():
            for part, senses in parts.items():
                ids = self._senses[part[0]].setdefault(_key(lemma), [])
                ids += [sense[0] for sense in senses if sense[0] not in ids]
                for sense in senses:
                    members[sense[0]]
        for lemma, inflected in forms.items():
            for part, words in inflected.items():
                for word in words:
                    self._irregular[part[0]].setdefault(_key(word), []).append(_key(lemma))

    def synsets(self, word: str) -> Iterator[Sequence[str]]:
        """The members of each synset of a word, nouns before verbs, adjectives and adverbs."""
        word = word.lower()
        for part, endings in _ENDINGS.items():
            bases = self._irregular[part].get(word)
            if bases is None:
                bases = [word[: -len(old)] + new for old, new in endings if word.endswith(old)]
            for form in dict.fromkeys([word, *bases]):
                for synset in self._senses[part].get(form, ()):
                    yield self._members[synset]


def _key(lemma: str) -> str:
    return lemma.lower().replace(" ", "_")


class Neighbours:
    """For each word its nearest neighbours in meaning.

    Args:
        lists: Lower-case word -> neighbours, nearest first, without the word itself.
    """

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        self._lists = lists

    @classmethod
    def from_file(cls, path: str | Path) -> Neighbours:
        """Read neighbours from JSON.

        Args:
            path: A file with an object ``word -> list of neighbours``, nearest first.

        Returns:
            The neighbours.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file has another format.
        """
        what = "JSON with lists of neighbours (word -> nearest words), or make them by WordVectors.neighbours"
        lists = _read_json(path, what)
        for word, near in lists.items():
            if not isinstance(near, list) or not all(isinstance(other, str) for other in near):
                raise ValueError(f"{path}: the entry {word!r} is {near!r:.60}; expected a list of words")
        return cls(lists)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal neighbours."""
        return fingerprint(json.dumps({word: list(near) for word, near in self._lists.items()}))

    def of(self, word: str) -> Sequence[str]:
        """The neighbours of a word.

        Args:
            word: In lower case.

        Returns:
            Nearest first; none for an unknown word.
        """
        return self._lists.get(word, ())


class WordVectors:
    """Word vectors, and how near two words are by them.

    Args:
        words: The words, each once.
        matrix: Their vectors, ``(len(words), d)``, kept in the precision that it has; whole numbers become
            float32.

    Raises:
        ValueError: Lengths differ, a word stands twice or a number is not finite.
    """

    def __init__(self, words: Sequence[str], matrix: np.ndarray) -> None:
        matrix = np.asarray(matrix)
        if not np.issubdtype(matrix.dtype, np.floating):
            matrix = matrix.astype(np.float32)
        if matrix.ndim != 2 or len(matrix) != len(words):
            raise ValueError(f"matrix has shape {matrix.shape}; expected ({len(words)}, d), one row per word")
        if not np.isfinite(matrix).all():
            raise ValueError("matrix holds numbers that are not finite")
        self._index = {word: index for index, word in enumerate(words)}
        if len(self._index) != len(words):
            raise ValueError("words holds a word twice")
        self.words = tuple(words)
        self.matrix = matrix
        self._cosine = lru_cache(maxsize=2**18)(self._cosine_of_rows)

    @classmethod
    def from_file(cls, path: str | Path) -> WordVectors:
        """Read vectors in GloVe's text format.

        Args:
            path: A file with a word and its numbers on each line; a first line with two whole numbers, as
                word2vec writes it, is skipped. Of a word that stands twice the first line counts.

        Returns:
            The vectors, float32.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A line has another format; the message names it.
        """
        what = "word vectors as text (word and numbers on each line), such as counter-fitted-vectors.txt"
        rows: dict[str, np.ndarray] = {}
        width = 0
        with _open(path, what) as lines:
            for number, line in enumerate(lines, 1):
                word, *values = line.rstrip("\r\n ").split(" ")
                if number == 1 and len(values) == 1:
                    continue
                width = width or len(values)
                try:
                    row = np.array(values, dtype=np.float32)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error}; expected {what}") from error
                if not len(row) == width > 0:
                    raise ValueError(
                        f"{path}:{number}: {len(row)} numbers, not {width or 'any'}; expected {what}"
                    )
                rows.setdefault(word, row)
        if not rows:
            raise ValueError(f"{path}: no vectors; expected {what}")
        return cls(tuple(rows), np.stack(list(rows.values())))

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal words and vectors."""
        return fingerprint(self.words, self.matrix)

    def __contains__(self, word: object) -> bool:
        return word in self._index

    def _row(self, word: str) -> torch.Tensor:
        return torch.tensor(self.matrix[self._index[word]])

    def cosine(self, first: str, second: str) -> float:
        """The cosine similarity of two words.

        Args:
            first: A word that has a vector.
            second: Another.

        Returns:
            From -1 to 1.

        Raises:
            KeyError: A word has no vector.
        """
        return self._cosine(first, second) if first <= second else self._cosine(second, first)

    def _cosine_of_rows(self, first: str, second: str) -> float:
        return torch.nn.functional.cosine_similarity(self._row(first), self._row(second), dim=0).item()

    def squared_distance(self, first: str, second: str) -> float:
        """The squared Euclidean distance of two words.

        Args:
            first: A word that has a vector.
            second: Another.

        Returns:
            The distance, 0 or more.

        Raises:
            KeyError: A word has no vector.
        """
        return torch.sum((self._row(first) - self._row(second)) ** 2).item()

    def neighbours(self, count: int = 50) -> Neighbours:
        """The nearest neighbours of every word by cosine similarity.

        The cost is one matrix product of all words with all words, made in slices.

        Args:
            count: Neighbours per word.

        Returns:
            The neighbours.
        """
        norms = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        unit = torch.from_numpy(self.matrix / np.maximum(norms, np.finfo(self.matrix.dtype).tiny))
        lists = {}
        for start in range(0, len(unit), 512):
            similar = unit[start : start + 512] @ unit.T
            similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -2.0
            nearest = similar.topk(min(count, len(unit) - 1), dim=1).indices
            for offset, row in enumerate(nearest.tolist()):
                lists[self.words[start + offset]] = [self.words[index] for index in row]
        return Neighbours(lists)


_UNIVERSAL = {
    tag: universal
    for universal, tags in {
        "ADJ": "JJ JJR JJS",
        "ADP": "IN",
        "ADV": "RB RBR RBS WRB",
        "CONJ": "CC",
        "DET": "DT EX PDT WDT",
        "NOUN": "NN NNP NNPS NNS",
        "NUM": "CD",
        "PRON": "PRP PRP$ WP WP$",
        "PRT": "POS RP TO",
        "VERB": "MD VB VBD VBG VBN VBP VBZ",
        ".": "! # $ '' ( ) , -LRB- -RRB- . : ? ``",
    }.items()
    for tag in tags.split()
}


def universal_tag(tag: str) -> str:
    """The part of speech that a Penn Treebank tag stands for.

    Args:
        tag: Such as ``VBZ``.

    Returns:
        A tag of the universal set, such as ``VERB``; ``X`` for all other tags.

    Source: Petrov, Das and McDonald, A universal part-of-speech tagset (arXiv 1104.2086).
    """
    return _UNIVERSAL.get(tag, "X")


class Tagger:
    """The averaged perceptron tagger: from left to right, each word gets the tag of most weight.

    With the same weights it gives the tags of NLTK's ``PerceptronTagger``.

    Args:
        weights: Feature -> tag -> weight.
        tagdict: Words that always have the same tag -> tag.
        classes: All tags.

    Source: M. Honnibal, A good part-of-speech tagger in about 200 lines of Python (2013), whose features the
    published weights belong to.
    """

    def __init__(
        self, weights: Mapping[str, Mapping[str, float]], tagdict: Mapping[str, str], classes: Iterable[str]
    ) -> None:
        # Equal sums are won by the tag that comes last in the alphabet.
        self._tags = sorted(set(classes), reverse=True)
        column = {tag: index for index, tag in enumerate(self._tags)}
        self._tagdict = dict(tagdict)
        rows = np.zeros((len(weights), len(column)))
        for row, values in zip(rows, weights.values(), strict=True):
            for tag, weight in values.items():
                if tag in column:
                    row[column[tag]] = weight
        self._weights = dict(zip(weights, rows, strict=True))
        self._best = lru_cache(maxsize=2**16)(self._best_tag)

    @classmethod
    def from_file(cls, path: str | Path) -> Tagger:
        """Read weights from JSON.

        Args:
            path: A file with the objects ``weights`` and ``tagdict`` and the list ``classes``, which are also
                the three files of NLTK's ``averaged_perceptron_tagger_eng``.

        Returns:
            The tagger.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file has another format.
        """
        what = (
            "JSON with weights, tagdict and classes of an averaged perceptron tagger, such as the three "
            "files of NLTK's averaged_perceptron_tagger_eng in one object"
        )
        model = _read_json(path, what)
        try:
            return cls(model["weights"], model["tagdict"], model["classes"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: {error!r}; expected {what}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        weights = np.stack(list(self._weights.values())) if self._weights else np.zeros(0)
        return fingerprint(self._tags, json.dumps(self._tagdict), tuple(self._weights), weights)

    def tag(self, words: Sequence[str], count: int | None = None) -> list[str]:
        """Tag a sequence of words.

        Args:
            words: The words; those behind the ones to tag are read too.
            count: How many to tag, from the first; None means all.

        Returns:
            One Penn Treebank tag per word.
        """
        context = ("-START-", "-START2-", *map(_normalised, words), "-END-", "-END2-")
        tags: list[str] = []
        last, before = "-START-", "-START2-"
        for place, word in enumerate(words[:count]):
            tag = self._tagdict.get(word) or self._best(word, context[place : place + 5], last, before)
            tags.append(tag)
            last, before = tag, last
        return tags

    def _best_tag(self, word: str, context: tuple[str, ...], last: str, before: str) -> str:
        """The tag with the highest sum of weights; ``context`` is the word amid the two before and behind."""
        second, first, here, follows, follows2 = context
        features = (
            "bias",
            f"i suffix {word[-3:]}",
            f"i pref1 {word[:1]}",
            f"i-1 tag {last}",
            f"i-2 tag {before}",
            f"i tag+i-2 tag {last} {before}",
            f"i word {here}",
            f"i-1 tag+i word {last} {here}",
            f"i-1 word {first}",
            f"i-1 suffix {first[-3:]}",
            f"i-2 word {second}",
            f"i+1 word {follows}",
            f"i+1 suffix {follows[-3:]}",
            f"i+2 word {follows2}",
        )
        total = np.zeros(len(self._tags))
        for feature in features:
            row = self._weights.get(feature)
            if row is not None:
                total += row
        return self._tags[int(total.argmax())]


def _normalised(word: str) -> str:
    if "-" in word[1:] and word[0] != "-":
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    if word[:1].isdigit():
        return "!DIGITS"
    return word.lower()


class SentenceEncoder:
    """A sentence encoder that answers texts with vectors.

    Args:
        encode: Maps a list of texts to an array ``(n, d)``, such as a ``SentenceTransformer``'s ``encode``.
        batch_size: Most texts per call. Texts of about the same length go together.
        fingerprint: Names the encoder in the settings of an attack.
    """

    def __init__(
        self, encode: Callable[[list[str]], Any], *, batch_size: int = 64, fingerprint: str = ""
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.fingerprint = fingerprint
        self._encode = encode
        self._batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", batch_size: int = 64
    ) -> SentenceEncoder:
        """Load a sentence-transformers model that averages the vectors of its tokens, without that package.

        Vectors are not normalised, which no similarity used here minds.

        Args:
            folder: The model's folder, or the name of a model in the local Hub cache.
            device: Where it runs.
            batch_size: Most texts per call.

        Returns:
            The encoder.

        Raises:
            FileNotFoundError: There is no such folder and no such model in the cache.
            ValueError: The model pools its tokens in another way.
        """
        from transformers import AutoModel, AutoTokenizer

        tokenizer = _from_local(AutoTokenizer, folder)
        model = _from_local(AutoModel, folder).to(device).eval()
        pooling = Path(folder, "1_Pooling", "config.json")
        if pooling.is_file():
            modes = _read_json(pooling, "the pooling of a sentence-transformers model")
            mode = modes.get("pooling_mode", [name for name, on in modes.items() if on is True])
            if mode not in ("mean", ["mean"]) and "pooling_mode_mean_tokens" not in mode:
                raise ValueError(
                    f"{folder}: pools by {mode}; expected the mean of the tokens. Load it with "
                    "sentence-transformers and give SentenceEncoder its encode"
                )
        limits = Path(folder, "sentence_bert_config.json")
        settings = (
            _read_json(limits, "the settings of a sentence-transformers model") if limits.is_file() else {}
        )
        max_length = settings.get("max_seq_length") or min(tokenizer.model_max_length, 512)

        def encode(texts: list[str]) -> torch.Tensor:
            inputs = tokenizer(
                texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            ).to(device)
            mask = inputs["attention_mask"].unsqueeze(-1)
            states: torch.Tensor = model(**inputs).last_hidden_state
            mean: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
            return mean

        return cls(encode, batch_size=batch_size, fingerprint=model_fingerprint(model, tokenizer))

    def answer(self, payloads: Sequence[str]) -> list[np.ndarray]:
        """Encode texts.

        Args:
            payloads: Texts.

        Returns:
            A vector ``(d,)`` for each.

        Raises:
            ValueError: ``encode`` returned another number of vectors.
        """
        return _in_batches(payloads, len, self._batch_size, self._vectors)

    def _vectors(self, texts: list[str]) -> list[np.ndarray]:
        with torch.inference_mode():
            vectors = self._encode(texts)
        array = vectors.float().cpu().numpy() if isinstance(vectors, torch.Tensor) else np.asarray(vectors)
        if array.ndim != 2 or len(array) != len(texts):
            raise ValueError(f"encode returned shape {array.shape} for {len(texts)} texts; expected (n, d)")
        return list(array)


class MaskQuery(NamedTuple):
    """What is asked of a masked language model.

    Attributes:
        text: A text with the mask in it; the first one is filled.
        limit: Most guesses.
        min_probability: Least probability of a guess.
    """

    text: str
    limit: int
    min_probability: float


class MaskedLanguageModel:
    """A masked language model that answers a text with the tokens it expects in place of the mask.

    Args:
        model: A transformers model for masked language modelling.
        tokenizer: Its tokenizer, with a mask token.
        max_length: Texts are cut to so many tokens; a mask beyond gets no guesses.
        batch_size: Most texts per forward pass. Texts of about the same length go together.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 512, batch_size: int = 16) -> None:
        if tokenizer.mask_token is None:
            raise ValueError("the tokenizer has no mask token; expected that of a masked language model")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size
        self.mask_token: str = tokenizer.mask_token
        self._tokens, self._countable = _guessable(tokenizer, model.config.vocab_size)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        max_length: int = 512,
        batch_size: int = 16,
    ) -> MaskedLanguageModel:
        """Load a transformers model for masked language modelling, such as ``bert-base-uncased``.

        Args:
            folder: The model's folder, or the name of a model in the local Hub cache.
            device: Where it runs.
            max_length: See the class.
            batch_size: See the class.

        Returns:
            The model.

        Raises:
            FileNotFoundError: There is no such folder and no such model in the cache.
        """
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        tokenizer = _from_local(AutoTokenizer, folder)
        model = _from_local(AutoModelForMaskedLM, folder).to(device)
        return cls(model, tokenizer, max_length=max_length, batch_size=batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal weights, settings and vocabularies."""
        return model_fingerprint(self._model, self._tokenizer)

    def answer(self, payloads: Sequence[MaskQuery]) -> list[tuple[str, ...]]:
        """Guess what the mask hides.

        Args:
            payloads: Texts with a mask, and how many guesses are wanted.

        Returns:
            Guesses for each, likeliest first: tokens that hold a word, without the marks of sub-words. They
            may hold duplicates, digits and special tokens; all of them count towards ``limit``.
        """
        return _in_batches(payloads, lambda query: len(query.text), self._batch_size, self._guesses)

    @torch.inference_mode()
    def _guesses(self, queries: list[MaskQuery]) -> list[tuple[str, ...]]:
        inputs = self._tokenizer(
            [query.text for query in queries],
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        ).to(self._model.device)
        hidden = inputs["input_ids"] == self._tokenizer.mask_token_id
        places = hidden.int().argmax(dim=1)
        logits = self._model(**inputs).logits
        logits = logits[torch.arange(len(queries), device=logits.device), places]
        probabilities = logits.float().softmax(-1).cpu()
        # A token that does not count is no guess, however likely.
        probabilities[:, ~self._countable] = -1.0
        most = min(max(query.limit for query in queries), int(self._countable.sum()))
        best = probabilities.topk(most, dim=1)
        answers = []
        for query, found, values, ids in zip(
            queries, hidden.any(dim=1).tolist(), best.values.tolist(), best.indices.tolist(), strict=True
        ):
            ranked = zip(ids[: query.limit], values, strict=False)
            words = (self._tokens[index] for index, value in ranked if value >= query.min_probability)
            answers.append(tuple(words) if found else ())
        return answers


def _guessable(tokenizer: Any, size: int) -> tuple[list[str], torch.Tensor]:
    """Each token as it is written in a text, and whether it counts as a guess.

    Sub-words are marked as continuations (``##ing``, WordPiece) or words by a blank before them (``Ġgood``,
    byte-level BPE). TextAttack counts the latter before it takes the mark off, so that ``Ġ,`` counts though
    it is no word in the end.
    """
    raw: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces = any(token is not None and token.startswith("##") for token in raw)
    tokens, countable = [""] * size, torch.zeros(size, dtype=torch.bool)
    for index, token in enumerate(raw):
        if token is None:
            continue
        word = token.replace("##", "") if pieces else token
        countable[index] = len(split_words(word)) == 1 and not set(word) <= set(string.punctuation)
        tokens[index] = word.strip("Ġ")
    return tokens, countable


def _from_local(kind: Any, folder: str | Path) -> Any:
    """Load with transformers from a folder or the local Hub cache, never from the network."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"no model {str(folder)!r} for {kind.__name__}: no folder and not in the local Hub cache. Fetch "
            f"it with `hf download {folder}` and try again ({error})"
        ) from error


def _in_batches(
    payloads: Sequence[Payload],
    length: Callable[[Payload], int],
    size: int,
    compute: Callable[[list[Payload]], list[Answer]],
) -> list[Answer]:
    """Compute answers in batches of payloads of about the same length; they keep the payloads' order."""
    order = sorted(range(len(payloads)), key=lambda index: length(payloads[index]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        answers.update(zip(batch, compute([payloads[index] for index in batch]), strict=True))
    return [answers[index] for index in range(len(payloads))]
