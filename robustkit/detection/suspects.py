r"""How much of a prediction hangs on words that somebody else seems to have put there.

A reader of replaced words knows the text and not the classifier: it also finds words that the writer
misspelt, and edits that changed nothing. The gradient of the classifier's margin knows which words matter and
not who wrote them. An adversarial text has words of both kinds in one, whether it stops at the flip or goes
on. Both parts are known (see `ReplacedWordsDetector`, and gradient norms as saliency); their product as a
detector is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustkit.classifiers.features import Features, Text

from .replaced import JudgedWord, ReaderDetector, WordReader, joined
from .variants import ClassifierDetector

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier, TokenGradients

__all__ = ["SuspectWord", "SuspectWordsDetector", "check_places"]

# Texts whose gradients are in memory at a time.
_CHUNK = 32


@dataclass(frozen=True)
class SuspectWord(JudgedWord):
    """What a detector says of one word.

    Attributes:
        slope: Sum of the lengths of the margin's gradients by the embeddings of the word's tokens.
    """

    slope: float

    @property
    def score(self) -> float:
        """What the word adds to the score of its text."""
        return float(np.logaddexp(0, self.log_odds)) * self.slope


def check_places(classifier: object) -> None:
    """Refuse what cannot say how its prediction changes with the words of a text.

    Raises:
        TypeError: It is no `TextClassifier`.
        ValueError: Its tokenizer does not say where tokens stand.
    """
    from robustkit.classifiers.text import TextClassifier

    if not isinstance(classifier, TextClassifier):
        raise TypeError(f"classifier is a {type(classifier).__name__}; expected a TextClassifier")
    if not classifier.tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {classifier.name} does not say where tokens stand; a fast one is needed"
        )


class SuspectWordsDetector(ReaderDetector, ClassifierDetector):
    r"""Surprise at each word times the slope of the prediction there, summed.

    .. math:: \sum_w -\log(1 - p_w)\, \sum_{t \in w} \|\partial m / \partial e_t\|

    with :math:`p_w` the reader's probability that word w was replaced, :math:`m = z_{\hat y} - \max_{y \ne
    \hat y} z_y` the classifier's margin and :math:`e_t` the input embedding of token t. It needs no `fit` and
    no adversarial texts, only `calibrate`. Words are what stands between blanks; those that the classifier or
    the reader does not see count nothing. Cost: a forward and a backward pass of the classifier, and a
    forward pass of the reader.

    Args:
        classifier: The classifier that is defended, with a fast tokenizer; not saved.
        reader: A trained reader, such as that of `train_replaced_words`; saved with the detector, and loaded
            to the device of the classifier that is given then.
        truncate: Read only the first tokens of a text, as many as the reader takes at once, instead of the
            whole in windows.

    Raises:
        TypeError: The classifier or the reader is none.
        ValueError: The classifier's tokenizer does not say where tokens stand.

    Example:
        >>> detector = SuspectWordsDetector(classifier, WordReader.from_pretrained("my-reader"))
        >>> detector.calibrate(classifier.extract(validation_texts))
        >>> detector.suspects(["a decent movie"])[0]  # which words, and why
    """

    extra_forwards = "1, 1 backward, 1 of the reader"
    not_saved = ("classifier", "reader")

    def __init__(self, classifier: TextClassifier, reader: WordReader, truncate: bool = False) -> None:
        self.classifier = classifier
        self.reader = reader
        self.truncate = truncate
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_places(self.classifier)

    def suspects(self, texts: Sequence[Text]) -> list[list[SuspectWord]]:
        """What makes up the scores of texts: every word that both models see, in order.

        Args:
            texts: n texts or pairs; places in a pair are those in both texts with a blank between them.

        Raises:
            TypeError: ``texts`` is a str.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a str; expected a sequence of texts")
        return self._judged(texts, self.classifier.predict(texts))

    def judged_words(self, texts: Sequence[Text]) -> list[list[SuspectWord]]:
        """The `suspects`."""
        return self.suspects(texts)

    def _judged(self, texts: Sequence[Text], predicted: NDArray[np.int64]) -> list[list[SuspectWord]]:
        found: list[list[SuspectWord]] = [[] for _ in texts]
        # Alike in length, so that padding costs little.
        order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            part = [texts[row] for row in rows]
            read = self.word_log_odds([joined(text) for text in part])
            gradients = self.classifier.token_gradients(part, predicted[rows], of="margin")  # type: ignore[arg-type]
            for row, words, gradient in zip(rows, read, gradients, strict=True):
                if not np.isfinite(gradient.gradient).all():
                    raise ValueError(
                        f"{self.classifier.name} gives gradients that are no numbers for {texts[row]!r:.60}; "
                        "its weights are broken, or float16 is too narrow for them"
                    )
                found[row] = self._of_words(words, self._places(texts[row], gradient), gradient.gradient)
        return found

    @staticmethod
    def _of_words(
        words: Sequence[JudgedWord], places: NDArray[np.int64], gradient: NDArray[np.float32]
    ) -> list[SuspectWord]:
        lengths = np.linalg.norm(gradient.astype(np.float64), axis=1)
        found = []
        for word in words:
            own = (places[:, 0] < word.end) & (places[:, 1] > word.start)
            if own.any():
                slope = float(lengths[own].sum())
                found.append(SuspectWord(word.word, word.start, word.end, word.log_odds, slope))
        return found

    def _places(self, text: Text, gradient: TokenGradients) -> NDArray[np.int64]:
        """Where tokens stand (T, 2) in the joined text; special ones nowhere."""
        if isinstance(text, str):
            return gradient.offsets
        # As a batch: alone, an empty second text is taken for none.
        sides, limit = ([text[0]], [text[1]]), self.classifier.max_length
        encoded = self.classifier.tokenizer(*sides, truncation=True, max_length=limit, verbose=False)
        second = np.array([side == 1 for side in encoded.sequence_ids(0)])
        return np.asarray(gradient.offsets + (second * (len(text[0]) + 1))[:, None])

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        self._texts(clean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        judged = self._judged(self._texts(inputs), inputs.predictions)
        return np.array([sum(word.score for word in words) for words in judged], dtype=np.float64)
