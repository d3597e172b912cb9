"""Judges of style: classifiers that say which character a reply sounds like, from the reply alone.

StyleProb (see :mod:`dialogkit.pdp.metrics`) needs one. `StyleClassifier` fine-tunes any transformers encoder,
as the paper does (its encoder is not known); `NgramStyleClassifier` is fitted in a second on a few lines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from dialogkit.dialogues import single_line
from dialogkit.retrieval.biencoder import quiet_progress
from trainkit.hub import HubMixin, read_json, write_json

from .metrics import classify_responses

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainkit.cards import ModelCard
    from trainkit.config import FitConfig
    from trainkit.objectives import Loss

__all__ = ["NgramStyleClassifier", "StyleClassifier", "StyleJudge", "split_lines"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 256
"""Tokens that a classifier reads of a reply, as in the paper."""

_FACTS = "style.json"

Probabilities = npt.NDArray[np.float64]


class StyleJudge(Protocol):
    """Whatever gives each character's probability for a reply.

    Attributes:
        labels: Names of the L characters, in the order of the columns.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102 - documented in the class

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Class probabilities of n texts, at least one: ``[n, L]``."""
        ...


class _Row(NamedTuple):
    text: str
    label: int


def split_lines(
    lines: Mapping[str, Sequence[str]], held_out: float, *, seed: int = 0
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Draws a share of each character's lines to be kept from training.

    Args:
        lines: Lines by character.
        held_out: The share, in [0, 1); rounded down for each character.
        seed: Of the draw.

    Returns:
        Lines to train on, and lines held out.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be in [0, 1), got {held_out}")
    kept, out = {}, {}
    for name, own in lines.items():
        drawn = list(own)
        Random(f"{seed}-{name}").shuffle(drawn)
        count = int(len(drawn) * held_out)
        out[name], kept[name] = drawn[:count], drawn[count:]
    return kept, out


class NgramStyleClassifier:
    """Logistic regression on TF-IDF of words, word pairs and runs of 2 to 4 characters.

    It knows a voice by its words, endings and punctuation and nothing of meaning. It is never saved: fitting
    takes about a second. Needs scikit-learn (the extra ``diversity``).

    Args:
        lines: Lines by character, at least two characters with a line each. Characters weigh alike, however
            many lines they have.

    Raises:
        ValueError: There are not two characters, or one has no lines.
        ImportError: scikit-learn is missing.
    """

    def __init__(self, lines: Mapping[str, Sequence[str]]) -> None:
        rows, labels = _rows(lines)
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline, make_union
        except ImportError as error:
            raise ImportError(
                "judging style by n-grams needs scikit-learn: install dialogkit-robustkit[diversity]"
            ) from error
        features = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[\w']+|[^\w\s]"),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, lowercase=False),
        )
        model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=2000)
        self.labels = labels
        self._model = make_pipeline(features, model)
        self._model.fit([row.text for row in rows], [row.label for row in rows])

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Class probabilities of n texts, ``[n, L]``.

        Raises:
            ValueError: There are no texts.
        """
        if not len(texts):
            raise ValueError("texts must not be empty")
        return np.asarray(self._model.predict_proba(list(texts)), dtype=np.float64)


class StyleClassifier(HubMixin):
    """A transformers sequence classifier over characters. A saved one is a plain transformers folder, too.

    Args:
        model: With one output for each character and their names in ``config.id2label``.
        tokenizer: Its tokenizer, with a padding token.
        accuracy: Share of held-out lines that it gave to the right character; None where none were held out.
        held_out: Number of these lines.

    Raises:
        ValueError: The model has fewer than two labels.
    """

    hub_kind = "StyleClassifier"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        accuracy: float | None = None,
        held_out: int = 0,
    ) -> None:
        names: dict[int, str] = {int(i): str(name) for i, name in (model.config.id2label or {}).items()}
        if len(names) < 2:
            raise ValueError(f"a style classifier needs two labels or more, the model has {len(names)}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labels = tuple(names[i] for i in sorted(names))
        self.accuracy = accuracy
        self.held_out = held_out

    @classmethod
    def train(
        cls,
        lines: Mapping[str, Sequence[str]],
        encoder: str | Path,
        *,
        held_out: float = 0.25,
        training: FitConfig | None = None,
        seed: int = 0,
    ) -> Self:
        """Fine-tunes an encoder to tell characters by their lines.

        Characters weigh alike in the loss, however many lines they have. Keep the lines that prompts show
        out of ``lines``: a judge that knows them rewards copying.

        Cost: epochs times lines of forward and backward passes of the encoder.

        Args:
            lines: Lines by character, at least two characters.
            encoder: Folder or Hub id of an encoder that ``AutoModelForSequenceClassification`` reads; what
                its head lacks is drawn with the seed.
            held_out: Share of each character's lines that accuracy is measured on; 0 for none.
            training: Settings of the run; by default 10 passes, 16 lines a step, rate 2e-4 (ours: the
                paper's are not known).
            seed: Of the held-out lines and the new head. The order of lines has ``training.seed``.

        Raises:
            ValueError: There are not two characters, one has no line left to learn, or the tokenizer cannot
                pad.
            OSError: The encoder cannot be read.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from trainkit.config import FitConfig
        from trainkit.loop import fit

        kept, out = split_lines(lines, held_out, seed=seed)
        rows, labels = _rows(kept)
        with quiet_progress(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                encoder,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={name: i for i, name in enumerate(labels)},
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        if tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of {encoder} has no padding token")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        config = training or FitConfig(epochs=10, batch_size=16, learning_rate=2e-4, warmup_ratio=0.1)
        counts = np.bincount([row.label for row in rows], minlength=len(labels))
        fit(model, _Balanced(tokenizer, 1.0 / counts), rows, config=config)
        judge = cls(model, tokenizer)
        unseen = _labelled(out, labels)
        if unseen:
            found = judge.probabilities([row.text for row in unseen]).argmax(axis=1)
            judge.accuracy = float((found == [row.label for row in unseen]).mean())
            judge.held_out = len(unseen)
            logger.info("style classifier: accuracy %.3f on %d unseen lines", judge.accuracy, len(unseen))
        return judge

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Class probabilities of n texts, ``[n, L]``; equal texts are read once.

        Raises:
            ValueError: There are no texts.
        """
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        found = classify_responses(self.model, self.tokenizer, distinct, max_length=self._max_length)
        place = {text: i for i, text in enumerate(distinct)}
        return found[[place[text] for text in texts]]

    @property
    def _max_length(self) -> int:
        return min(MAX_TOKENS, int(self.tokenizer.model_max_length))

    def _save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        write_json(directory / _FACTS, {"accuracy": self.accuracy, "held_out": self.held_out})

    @classmethod
    def _load(cls, directory: Path) -> Self:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        facts = read_json(directory / _FACTS)
        with quiet_progress():
            model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        return cls(model, tokenizer, accuracy=facts["accuracy"], held_out=facts["held_out"])

    def _card(self) -> ModelCard:
        from trainkit.cards import Metric, ModelCard

        measured: tuple[Metric, ...] = ()
        if self.accuracy is not None:
            measured = (
                Metric("accuracy", self.accuracy, "the characters' lines", "held out", n=self.held_out),
            )
        return ModelCard(
            title="Style classifier",
            method="Sequence classification of a character's lines, for StyleProb (arXiv 2204.10825)",
            summary=f"Says which of {len(self.labels)} characters a reply sounds like, from the reply alone.",
            licence="other",
            metrics=measured,
            limits=(
                "Rewards the catchwords of the lines that it learnt from, apt or not.",
                "Every text gets a character, also one that sounds like none of them.",
            ),
            task="text-classification",
            tags=("pseudo-dialog-prompting",),
        )


class _Balanced:
    """Cross-entropy in which every character has the same total weight.

    Args:
        tokenizer: Encodes the lines.
        weights: One for each character.
    """

    def __init__(self, tokenizer: Any, weights: npt.NDArray[np.float64]) -> None:
        import torch

        self._tokenizer = tokenizer
        self._weights = torch.tensor(weights / weights.mean(), dtype=torch.float32)

    def collate(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        import torch

        length = min(MAX_TOKENS, int(self._tokenizer.model_max_length))
        batch: dict[str, Tensor] = dict(
            self._tokenizer(
                [row.text for row in rows],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
        )
        return {**batch, "labels": torch.tensor([row.label for row in rows])}

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        from torch.nn.functional import cross_entropy

        from trainkit.objectives import Loss

        labels = batch["labels"]
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()
        weights = self._weights.to(logits.device)[labels]
        losses = cross_entropy(logits, labels, reduction="none")
        return Loss((weights * losses).sum(), weights.sum())


def _rows(lines: Mapping[str, Sequence[str]]) -> tuple[list[_Row], tuple[str, ...]]:
    """The lines with their labels; labels in the order given."""
    labels = tuple(lines)
    if len(labels) < 2:
        raise ValueError(f"a style classifier needs the lines of two characters or more, got {len(labels)}")
    for name, own in lines.items():
        if isinstance(own, str) or not own:
            raise ValueError(f"lines of {name!r} must be a list of at least one line")
    return _labelled(lines, labels), labels


def _labelled(lines: Mapping[str, Sequence[str]], labels: Sequence[str]) -> list[_Row]:
    return [_Row(single_line(text), i) for i, name in enumerate(labels) for text in lines[name]]
