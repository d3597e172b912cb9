"""A classifier and a detector together: texts in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypedDict

from numpy.typing import ArrayLike, NDArray

from robustkit.detection.base import Detector
from trainkit.hub import ArtefactError, HubMixin, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from robustkit.classifiers.features import Text
    from robustkit.classifiers.text import TextClassifier

__all__ = ["DetectionResult", "TextDetector"]

_CONFIG = "config.json"
_DETECTOR = "detector"


class _Saved(TypedDict):
    """What is saved of the classifier."""

    name: str
    layer: int
    pooling: Literal["auto", "first", "last", "mean", "pooler"]
    max_length: int


# What a caller adds to what the saved folder says: how to make the classifier, and other models.
_GIVEN: ContextVar[tuple[Callable[[_Saved], TextClassifier], Mapping[str, object]]] = ContextVar("given")


@dataclass(frozen=True)
class DetectionResult:
    """What a detector says of one text.

    Attributes:
        is_adversarial: Whether the score is above the threshold.
        score: Higher for more adversarial; the scale is the detector's own.
        p_value: Share of clean texts that look at least as adversarial, the text itself counted.
        predicted_label: Name of the class that the classifier predicts.
        threshold: The detector's threshold.
    """

    is_adversarial: bool
    score: float
    p_value: float
    predicted_label: str
    threshold: float


class TextDetector(HubMixin):
    """A detector that takes texts: the classifier under guard turns them into features.

    Args:
        classifier: The classifier.
        detector: A detector, fitted or not.

    Raises:
        ValueError: The detector was fitted on features of another classifier.

    Example:
        ```python
        detector = TextDetector(TextClassifier.from_pretrained("my-model"), RDEDetector())
        detector.fit(train_texts, train_labels)
        detector.calibrate(validation_texts, fpr=0.05)
        detector.predict(["a fine film"])[0].is_adversarial
        ```
    """

    def __init__(self, classifier: TextClassifier, detector: Detector) -> None:
        detector.check_classifier(classifier)
        self.classifier = classifier
        self.detector = detector

    def fit(
        self, texts: Sequence[Text], labels: ArrayLike, adversarial: Sequence[Text] | None = None
    ) -> Self:
        """Learn what clean texts look like.

        Args:
            texts: n clean texts, best those that the classifier was trained on.
            labels: Gold labels (n,), whole numbers.
            adversarial: Adversarial texts, for detectors that need them.

        Raises:
            ValueError: See `Detector.fit`.
        """
        attacked = None if adversarial is None else self.classifier.extract(adversarial)
        self.detector.fit(self.classifier.extract(texts), labels, attacked)
        return self

    def calibrate(self, texts: Sequence[Text], fpr: float = 0.10) -> float:
        """Set the threshold from clean texts that were not used in `fit`.

        Args:
            texts: Held-out clean texts, at least 1 / fpr - 1.
            fpr: Share of clean texts that may be flagged.

        Returns:
            The threshold.

        Raises:
            ValueError: See `Detector.calibrate`.
        """
        return self.detector.calibrate(self.classifier.extract(texts), fpr)

    def score(self, texts: Sequence[Text]) -> NDArray[np.float64]:
        """How adversarial texts look: float64 (n,), higher for more adversarial.

        Raises:
            NotFittedError: The detector is not fitted.
        """
        return self.detector.score_samples(self.classifier.extract(texts))

    def predict(self, texts: Sequence[Text]) -> list[DetectionResult]:
        """Which texts are adversarial, one result for each; the detector scores them once.

        Raises:
            NotFittedError: The detector is not calibrated.
        """
        features = self.classifier.extract(texts)
        scores = self.detector.score_samples(features)
        p_values = self.detector.p_values_of(scores)
        threshold, labels = self.detector.threshold_, self.classifier.labels
        return [
            DetectionResult(bool(score > threshold), float(score), float(p), labels[label], threshold)
            for score, p, label in zip(scores, p_values, features.predictions, strict=True)
        ]

    def _save(self, directory: Path) -> None:
        classifier = self.classifier
        if callable(classifier.pooling):
            raise ValueError("pooling is a function, which cannot be saved; save the detector alone")
        saved: _Saved = {
            "name": classifier.name,
            "layer": classifier.layer,
            "pooling": classifier.pooling,
            "max_length": classifier.max_length,
        }
        self.detector.save_pretrained(directory / _DETECTOR)
        write_json(directory / _CONFIG, {"classifier": saved})

    @classmethod
    def from_pretrained(
        cls,
        dir_or_repo: str | Path,
        classifier: TextClassifier | None = None,
        *,
        parts: Mapping[str, object] | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Read a detector from a folder or from the Hub.

        Of the classifier only the name is saved, and how features are taken from it.

        Args:
            dir_or_repo: A folder, which wins, or a Hub repository ``"owner/name"``.
            classifier: The classifier; None loads it by its saved name, a folder or a Hub id.
            parts: Other models that the detector's constructor takes, by argument name.
            device: Where a classifier that is loaded here goes, and a reader with it.
            revision: Branch, tag or commit of the detector's repository.
            token: Access token for a private repository.

        Raises:
            ArtefactError: The folder is no `TextDetector` or is damaged.
            ValueError: The classifier is not the one the detector was fitted on.
            OSError: See `trainkit.resolve`, for detector and classifier.
        """

        def make(saved: _Saved) -> TextClassifier:
            from robustkit.classifiers.text import TextClassifier

            if classifier is not None:
                return classifier
            return TextClassifier.from_pretrained(
                saved["name"],
                device=device,
                layer=saved["layer"],
                pooling=saved["pooling"],
                max_length=saved["max_length"],
            )

        given = _GIVEN.set((make, parts or {}))
        try:
            return super().from_pretrained(dir_or_repo, revision=revision, token=token)
        finally:
            _GIVEN.reset(given)

    @classmethod
    def for_model(
        cls,
        dir_or_repo: str | Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        parts: Mapping[str, object] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Read a detector for a model that is loaded already; features are taken as when it was saved.

        Args:
            dir_or_repo: A folder, which wins, or a Hub repository.
            model: The classifier that the detector was fitted on.
            tokenizer: Its tokenizer.
            parts: See `from_pretrained`, as for the rest.
            revision: See `from_pretrained`.
            token: See `from_pretrained`.

        Raises:
            ArtefactError: The folder is no `TextDetector` or is damaged.
            ValueError: The model is not the one the detector was fitted on.
            OSError: See `trainkit.resolve`.
        """

        def make(saved: _Saved) -> TextClassifier:
            from robustkit.classifiers.text import TextClassifier

            return TextClassifier(model, tokenizer, **saved)

        given = _GIVEN.set((make, parts or {}))
        try:
            return super().from_pretrained(dir_or_repo, revision=revision, token=token)
        finally:
            _GIVEN.reset(given)

    @classmethod
    def _load(cls, directory: Path) -> Self:
        make, parts = _GIVEN.get()
        try:
            saved = read_json(directory / _CONFIG)["classifier"]
            known = _Saved(
                name=saved["name"],
                layer=saved["layer"],
                pooling=saved["pooling"],
                max_length=saved["max_length"],
            )
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"{directory / _CONFIG} names no classifier: {error!r}") from error
        classifier = make(known)
        return cls(classifier, Detector.from_pretrained(directory / _DETECTOR, classifier, parts=parts))
