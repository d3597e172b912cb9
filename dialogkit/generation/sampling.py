"""Drawing the next token: reproducible uniforms, logits processors, inverse-CDF sampling."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dialogkit.generation.types import GenerationConfig

__all__ = ["choose", "logits_processors", "token_logprobs", "uniforms"]


def uniforms(seed: int | None, prompt: Sequence[int], candidate: int, length: int) -> np.ndarray:
    """The random numbers that one candidate of one prompt is drawn with.

    They are a function of the seed, the prompt's tokens and the candidate's number, so a candidate is the
    same whatever else is in the batch, on every device, and as the beginning of a longer one. No global
    generator is read or changed.

    Args:
        seed: Any integer; None takes fresh entropy from the operating system.
        prompt: Token ids of the prompt.
        candidate: Number of the candidate, from 0.
        length: How many numbers.

    Returns:
        Float64 array of shape [length], uniform in [0, 1).
    """
    if seed is None:
        return np.random.default_rng(secrets.randbits(128)).random(length)
    digest = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    # numpy takes only non-negative entropy; the sign becomes a word of its own.
    return np.random.default_rng([abs(seed), int(seed < 0), *words, candidate]).random(length)


def logits_processors(config: GenerationConfig) -> LogitsProcessorList:
    """Processors of transformers for the settings, in the order in which its `generate` applies them.

    Greedy decoding keeps the repetition penalty alone: the others leave the most probable token what it is.
    """
    processors = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=config.repetition_penalty))
    if config.do_sample:
        if config.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            processors.append(TopKLogitsWarper(top_k=config.top_k))
        if config.top_p < 1.0:
            processors.append(TopPLogitsWarper(top_p=config.top_p))
    return processors


def choose(scores: Tensor, uniform: Tensor | None) -> Tensor:
    """Pick a token in each row.

    Args:
        scores: Processed logits of shape [rows, vocabulary]; ``-inf`` excludes a token.
        uniform: Float64 numbers in [0, 1) of shape [rows] for inverse-CDF sampling, None for the argmax.

    Returns:
        Token ids of shape [rows].
    """
    if uniform is None:
        return scores.argmax(dim=-1)
    # In float32 the rounding of a long cumulative sum would reach tokens of probability zero.
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    # A float64 below 1 times the total is below the total: no token beyond the last with a share is reached.
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Scores that overflowed have no distribution; an id beyond the vocabulary would stop a GPU for good.
    return found.clamp(max=scores.shape[-1] - 1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of given tokens under raw logits, in float32 (float64 stays float64).

    Args:
        logits: Shape [rows, vocabulary], any floating type.
        tokens: Token ids of shape [rows].

    Returns:
        Shape [rows].
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)
