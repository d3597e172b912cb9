"""What a word attack asks a classifier, and when it has what it wants.

Scores are numbers of 32 bits because ties between candidates decide an attack: TextAttack compares 32-bit
probabilities, and a search that compared longer ones would choose otherwise near a probability of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["Goal", "Gradients", "Probabilities", "TargetedClassification", "UntargetedClassification"]


class Probabilities:
    """Service that answers texts with class probabilities, one query each.

    Args:
        classifier: The classifier under attack.
    """

    def __init__(self, classifier: TextClassifier) -> None:
        self.classifier = classifier

    def answer(self, payloads: Sequence[Any]) -> Sequence[np.ndarray]:
        """Probabilities of texts.

        Args:
            payloads: Texts, strings or tuples of two.

        Returns:
            One float32 array ``(C,)`` for each text.
        """
        logits = torch.from_numpy(self.classifier.logits(payloads))
        return list(torch.softmax(logits.float(), dim=1).numpy())


class Gradients:
    """Service that says how the loss of texts changes with their tokens' embeddings.

    Args:
        classifier: The classifier under attack.
    """

    def __init__(self, classifier: TextClassifier) -> None:
        self.classifier = classifier

    def answer(self, payloads: Sequence[Any]) -> Sequence[tuple[list[str], np.ndarray]]:
        """Gradients of the cross-entropy with respect to the input embeddings.

        Args:
            payloads: Pairs of a text and the class whose cross-entropy is meant.

        Returns:
            For each text its tokens and a float32 array ``(tokens, d)``.
        """
        texts, labels = zip(*payloads, strict=True)
        found = self.classifier.token_gradients(list(texts), list(labels))
        return [(list(tokens), gradient) for tokens, _, gradient in found]


class Goal(Protocol):
    """What an attack wants of a classifier."""

    def check(self, num_classes: int) -> None:
        """Raise `ValueError` if the goal makes no sense for that number of classes."""

    def score(self, probabilities: np.ndarray, label: int) -> np.float32:
        """How near the goal a text is; higher is nearer.

        Args:
            probabilities: The text's class probabilities, float32 ``(C,)``.
            label: The true class.
        """

    def reached(self, probabilities: np.ndarray, label: int) -> bool:
        """Whether a text meets the goal; arguments as for `score`."""

    def pointless(self, probabilities: np.ndarray, label: int) -> bool:
        """Whether there is nothing to attack in an original text; arguments as for `score`."""


@dataclass(frozen=True)
class UntargetedClassification:
    """Any class but the true one; the score is 1 - p(true class).

    A far-boundary attack (``goal_score=0.9``) goes on until the classifier is confidently wrong: it predicts
    a wrong class with at least that probability. With two classes this is TextAttack's ``target_max_score``
    of 1 - ``goal_score``. With more classes TextAttack asks for a small p(true class) only, which a
    classifier that wavers between several wrong classes meets too; here one wrong class must have the
    probability. Originals that are misclassified are skipped always; TextAttack with ``target_max_score``
    attacks those whose p(true class) is not yet below it.

    Args:
        goal_score: Probability that the predicted wrong class must have, in [0, 1]. None means any.

    Raises:
        ValueError: The score is no probability.
    """

    goal_score: float | None = None

    def __post_init__(self) -> None:
        _check_goal_score(self.goal_score)

    def check(self, num_classes: int) -> None:
        """See `Goal.check`."""
        if num_classes < 2:
            raise ValueError(f"the classifier has {num_classes} class; an attack needs at least 2")

    def score(self, probabilities: np.ndarray, label: int) -> np.float32:
        """See `Goal.score`."""
        return np.float32(1) - np.float32(probabilities[label])

    def reached(self, probabilities: np.ndarray, label: int) -> bool:
        """See `Goal.reached`."""
        predicted = int(probabilities.argmax())
        return predicted != label and _confident(probabilities[predicted], self.goal_score)

    def pointless(self, probabilities: np.ndarray, label: int) -> bool:
        """True if the original is misclassified."""
        return int(probabilities.argmax()) != label


@dataclass(frozen=True)
class TargetedClassification:
    """One class, whatever the true one is; the score is the class's probability.

    Originals that are of the target class, or taken for it, are skipped.

    Args:
        target: The class that the classifier shall predict.
        goal_score: Probability that it must have, in [0, 1]. None means any.

    Raises:
        ValueError: The score is no probability.
    """

    target: int
    goal_score: float | None = None

    def __post_init__(self) -> None:
        _check_goal_score(self.goal_score)

    def check(self, num_classes: int) -> None:
        """See `Goal.check`."""
        if not 0 <= self.target < num_classes:
            raise ValueError(f"target is {self.target}, expected a class from 0 to {num_classes - 1}")

    def score(self, probabilities: np.ndarray, label: int) -> np.float32:
        """See `Goal.score`."""
        return np.float32(probabilities[self.target])

    def reached(self, probabilities: np.ndarray, label: int) -> bool:
        """See `Goal.reached`."""
        predicted = int(probabilities.argmax())
        return predicted == self.target and _confident(probabilities[predicted], self.goal_score)

    def pointless(self, probabilities: np.ndarray, label: int) -> bool:
        """True if the original is of the target class or predicted to be."""
        return self.target in (label, int(probabilities.argmax()))


def _check_goal_score(goal_score: float | None) -> None:
    if goal_score is not None and not 0 <= goal_score <= 1:
        raise ValueError(f"goal_score is {goal_score}, expected a probability from 0 to 1")


def _confident(probability: np.float32, goal_score: float | None) -> bool:
    return goal_score is None or bool(probability >= goal_score)
