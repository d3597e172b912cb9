"""The detector that asks a language model: substituted words make a text less likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.classifiers.features import Features
from robustkit.classifiers.fingerprints import model_fingerprint

from .base import Detector, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PerplexityDetector", "log_perplexities"]


def log_perplexities(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 2048,
) -> NDArray[np.float64]:
    """Mean negative log-likelihood of the tokens of texts; the perplexity is its exponential.

    Every token but the first is predicted from those before it. A text longer than the window is read in
    windows that overlap: each token is predicted once, with at least ``max_length - stride`` tokens before
    it. Windows of similar length form a batch. Cost: one forward pass, more for overlapping windows.

    Args:
        lm: A causal language model.
        tokenizer: Its tokenizer; it needs no padding token.
        texts: The texts. One of less than two tokens predicts nothing and gets 0.
        max_length: Tokens in a window; by default the model's number of positions, at most 1024.
        stride: By how many tokens a window is moved; by default half the window.
        batch_tokens: Tokens in a batch, padding included; memory is about 8 bytes times the size of the
            vocabulary for each.

    Returns:
        float64 ``(n,)``, in nats.

    Raises:
        ValueError: ``max_length`` or ``stride`` is out of range.
    """
    positions = getattr(lm.config, "max_position_embeddings", None) or 1024
    window = max_length or min(positions, 1024)
    if not 2 <= window <= positions:
        raise ValueError(f"max_length is {max_length}; expected 2 to {positions}, the model's positions")
    step = stride or max(1, window // 2)
    if not 1 <= step < window:
        raise ValueError(f"stride is {stride}; expected 1 to {window - 1}, less than the window")
    if not texts:
        return np.empty(0)
    ids: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    # (text, start, end, first token to predict)
    windows: list[tuple[int, int, int, int]] = []
    for text, tokens in enumerate(ids):
        done = 1
        while done < len(tokens):
            end = min(len(tokens), window if done == 1 else done + step)
            windows.append((text, max(0, end - window), end, done))
            done = end
    windows.sort(key=lambda w: w[2] - w[1])
    totals = np.zeros(len(ids))
    for batch in _batches(windows, batch_tokens):
        losses = _token_losses(lm, [ids[text][start:end] for text, start, end, _ in batch])
        for (text, start, end, first), row in zip(batch, losses, strict=True):
            totals[text] += row[first - start - 1 : end - start - 1].sum(dtype=np.float64)
    return totals / np.maximum([len(tokens) - 1 for tokens in ids], 1)


def _batches(
    windows: list[tuple[int, int, int, int]], batch_tokens: int
) -> list[list[tuple[int, int, int, int]]]:
    batches: list[list[tuple[int, int, int, int]]] = []
    for window in windows:
        length = window[2] - window[1]
        if not batches or (len(batches[-1]) + 1) * length > batch_tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


@torch.inference_mode()
def _token_losses(lm: PreTrainedModel, rows: list[list[int]]) -> NDArray[np.float32]:
    """Cross-entropies (n, longest - 1) of each next token; those of the padding mean nothing."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=lm.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=lm.device)
    logits = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return np.asarray(losses.view(len(rows), -1).cpu().numpy())


class PerplexityDetector(Detector):
    """Log-perplexity under a causal language model.

    The benchmark took GPT-2 large and cut texts after 1,024 tokens; long texts are read whole here. It needs
    no `fit`, only `calibrate`. Cost: a forward pass of the language model.

    Args:
        lm: A causal language model of transformers, in evaluation mode; not saved.
        tokenizer: Its tokenizer; not saved.
        max_length: See `log_perplexities`; likewise the others.
        stride: By how many tokens a window is moved.
        batch_tokens: Tokens in a batch.

    Raises:
        ValueError: The model is in training mode.

    Example:
        >>> detector = PerplexityDetector(lm, tokenizer)
        >>> detector.calibrate(validation_features)
        >>> detector.save_pretrained("perplexity")
        >>> Detector.from_pretrained("perplexity", parts={"lm": lm, "tokenizer": tokenizer})
    """

    needs_fit = False
    extra_forwards = "1 of the language model"
    not_saved = ("lm", "tokenizer")

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        stride: int | None = None,
        batch_tokens: int = 2048,
    ) -> None:
        self.lm = lm
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.stride = stride
        self.batch_tokens = batch_tokens
        self._check_params()

    def _check_params(self) -> None:
        if self.lm.training:
            raise ValueError("the language model is in training mode; call lm.eval() first")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}; expected at least 1")
        log_perplexities(self.lm, self.tokenizer, (), max_length=self.max_length, stride=self.stride)

    def perplexities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Perplexities (n,) of texts: the exponential of the mean cross-entropy of their tokens."""
        return np.exp(self._log_perplexities(texts))

    def _log_perplexities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return log_perplexities(
            self.lm,
            self.tokenizer,
            texts,
            max_length=self.max_length,
            stride=self.stride,
            batch_tokens=self.batch_tokens,
        )

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        texts_of(clean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        # The parts of a pair are read one after the other.
        texts = (text if isinstance(text, str) else " ".join(text) for text in texts_of(inputs))
        return self._log_perplexities(list(texts))

    def _state(self) -> dict[str, Any]:
        return {"lm": model_fingerprint(self.lm, self.tokenizer)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["lm"] != model_fingerprint(self.lm, self.tokenizer):
            raise ValueError(
                "this PerplexityDetector was calibrated with another language model or tokenizer"
            )
