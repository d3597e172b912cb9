"""A second, slower opinion of the responses that an index found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dialogkit.generation.types import LanguageModel

from .scoring import ScoreConfig, ScoreKind, score_responses

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

__all__ = ["CrossEncoderReranker", "LMReranker", "Reranker"]

_log = logging.getLogger(__name__)


class Reranker(Protocol):
    """Scores responses to a context, higher for better: a cross-encoder, a language model, a rule."""

    def __call__(self, context: Sequence[str], responses: Sequence[str], /) -> Sequence[float]:
        """One score for each response; the context's turns come oldest first."""
        ...


@dataclass(frozen=True)
class LMReranker:
    """Ranks by a language model's likelihood, or by what the context adds to it.

    Attributes:
        model: Any language model that gives likelihoods.
        kind: See :meth:`~dialogkit.g2r.TeacherScore.value`.
        config: Prompt and null context.
    """

    model: LanguageModel
    kind: ScoreKind = "ll"
    config: ScoreConfig | None = None

    def __call__(self, context: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Scores the responses."""
        scores = score_responses(self.model, [context] * len(responses), responses, self.config)
        return [score.value(self.kind) for score in scores]


class CrossEncoderReranker:
    """Ranks by a cross-encoder, which reads context and response as one text.

    It sees what a bi-encoder cannot, at the cost of one forward pass of a pair for each response. A pair that
    is too long loses the beginning of its longer text, usually the context; that is logged once.

    Args:
        model: A cross-encoder of sentence-transformers with a single output, higher for better.
        batch_size: Pairs in one forward pass; bounds the memory.

    Raises:
        ValueError: The model has several outputs, as those for entailment do, or ``batch_size`` is below 1.
    """

    def __init__(self, model: CrossEncoder, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if model.num_labels != 1:
            raise ValueError(f"the cross-encoder must have one output, it has {model.num_labels}")
        self.model = model
        self.batch_size = batch_size
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
    ) -> CrossEncoderReranker:
        """Loads a cross-encoder.

        Args:
            name: Folder or Hub id.
            revision: Hub revision.
            token: Hub access token.
            device: Torch device; the GPU when there is one.
            batch_size: Pairs in one forward pass.

        Raises:
            ImportError: sentence-transformers is missing.
            OSError: There is no such model, or its weights are not in safetensors.
            ValueError: The model has several outputs.
        """
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:
            raise ImportError(
                "a cross-encoder needs sentence-transformers: "
                "pip install 'dialogkit-robustkit[sentence-transformers]'"
            ) from error
        from trainkit.hub import resolve

        model = CrossEncoder(
            str(resolve(name, revision=revision, token=token)),
            device=None if device is None else str(device),
            # Other weight files are pickles, which may run code when they are read.
            model_kwargs={"use_safetensors": True},
        )
        return cls(model, batch_size=batch_size)

    def __call__(self, context: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Scores the responses, as the model's activation leaves them."""
        text = "\n".join(context)
        tokenizer: Any = self.model.tokenizer
        self._warn_if_cut(text, responses, tokenizer)
        before = tokenizer.truncation_side
        # What was said last matters most.
        tokenizer.truncation_side = "left"
        try:
            scores = self.model.predict(
                [(text, response) for response in responses],
                batch_size=self.batch_size,
                show_progress_bar=False,
            )
        finally:
            tokenizer.truncation_side = before
        return [float(score) for score in scores]

    def _warn_if_cut(self, text: str, responses: Sequence[str], tokenizer: Any) -> None:
        limit = self.model.max_seq_length
        if self._warned or limit is None:
            return
        pairs = tokenizer([text] * len(responses), list(responses), verbose=False)["input_ids"]
        if max(len(ids) for ids in pairs) > limit:
            self._warned = True
            _log.warning(
                "the cross-encoder reads %d tokens of a pair; a longer one was cut (said once)", limit
            )
