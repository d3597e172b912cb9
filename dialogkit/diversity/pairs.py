"""Contexts and responses as batches of tokens, and one update of a model on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dialogkit.generation import TransformersLM
from dialogkit.generation.encoding import PromptEncoder
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.targets import IGNORED, TargetCollator
from trainkit.objectives import Loss, StepContext

__all__ = ["IGNORED", "PairBatch", "PairEncoder", "TokenPair", "pair_logits", "update"]

PairBatch = Mapping[str, Any]
"""``inputs`` of the model, ``labels`` [B, T] of its logits, ``weights`` [B] of the sequences."""


@dataclass(frozen=True)
class TokenPair:
    """Token ids of a context and of the response with what ends it.

    Attributes:
        context: The laid-out context, at least one token.
        answer: The targets.
    """

    context: tuple[int, ...]
    answer: tuple[int, ...]


class PairEncoder:
    """Lays out contexts and responses as a language model is asked for them, and stacks them.

    A response ends as generated ones do: with a line break where that is a stop string of the layout and the
    model has no encoder, otherwise with the end-of-sequence token. Contexts that are too long lose their
    beginning, responses their end, with one warning each.

    Args:
        lm: The model; it is asked for its signature only.
        prompt: Layout of contexts.
        max_context_tokens: Tokens of a context that are read.
        max_response_tokens: Targets of a response, its end included.

    Raises:
        ValueError: A limit is below 1, or there is nothing to end a response with.
    """

    def __init__(
        self,
        lm: TransformersLM,
        prompt: DialoguePrompt | None = None,
        *,
        max_context_tokens: int = 512,
        max_response_tokens: int = 128,
    ) -> None:
        for name, value in (
            ("max_context_tokens", max_context_tokens),
            ("max_response_tokens", max_response_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.prompt = prompt or DialoguePrompt()
        self.max_context_tokens, self.max_response_tokens = max_context_tokens, max_response_tokens
        self._collator = TargetCollator(lm)
        self._seq2seq = self._collator.is_encoder_decoder
        self._encoder = PromptEncoder(lm.tokenizer, lm.name, closed=self._seq2seq, parse_special_tokens=False)
        self._window = lm.max_length
        self._bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
        self._break = "\n" if "\n" in self.prompt.stop and not self._seq2seq else ""
        if not self._break and eos is None:
            raise ValueError(f"the tokenizer of {lm.name!r} has no end-of-sequence token to end a response")
        self._end = () if self._break else (eos,)
        self._warned: set[str] = set()

    def encode(self, context: Sequence[str], response: str) -> TokenPair:
        """Token ids of a pair.

        Args:
            context: The turns, oldest first.
            response: The response; it may be empty.
        """
        prompt = self.prompt.build(context)
        ids = self._encoder.encode(prompt)
        text = self.prompt.answer(response) + self._break
        plain = self._encoder.plain(text) if self._seq2seq else self._encoder.continuation(prompt, ids, text)
        answer = [*plain, *self._end]
        if len(answer) > self.max_response_tokens:
            self._warn("response", len(answer), self.max_response_tokens)
            answer = answer[: self.max_response_tokens]
        room = self.max_context_tokens
        if self._window is not None:
            room = min(room, self._window if self._seq2seq else self._window - len(answer) + 1)
        if room < 1:
            raise ValueError(f"max_response_tokens leaves no room for a context in {self._window} tokens")
        if len(ids) > room:
            self._warn("context", len(ids), room)
            head = ids[:1] if room > 1 and ids[0] == self._bos else []
            ids = head + ids[len(ids) - room + len(head) :]
        return TokenPair(tuple(ids), tuple(answer))

    def collate(self, pairs: Sequence[TokenPair], weights: Sequence[float] | None = None) -> PairBatch:
        """Stacks pairs, padded on the right.

        Args:
            pairs: At least one.
            weights: Of the responses; 1 by default.
        """
        inputs, labels = self._collator.collate(
            [pair.context for pair in pairs], [pair.answer for pair in pairs]
        )
        return {
            "inputs": inputs,
            "labels": labels,
            "weights": torch.ones(len(pairs)) if weights is None else torch.tensor(weights).float(),
        }

    def _warn(self, what: str, length: int, limit: int) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(
                f"a {what} of {length} tokens is cut to {limit}; later ones are cut silently", stacklevel=3
            )


def pair_logits(model: Any, batch: PairBatch) -> Tensor:
    """The logits [B, T, V] that a batch's ``labels`` are aligned with."""
    logits: Tensor = model(**batch["inputs"], use_cache=False).logits
    return logits


def update(
    model: Any,
    chunks: Sequence[PairBatch],
    loss: Callable[[Tensor, PairBatch], Loss],
    context: StepContext,
    *,
    idle: float = 0.0,
) -> tuple[float, float]:
    """One step of the optimizer on the sum of the chunks' losses over the sum of their weights.

    Args:
        model: The model in training.
        chunks: This process's share, at least one batch.
        loss: Of a batch and its logits.
        context: The loop's.
        idle: Weight of sequences that need no forward pass.

    Returns:
        Sum of losses and sum of weights of this process.
    """
    total, weight = 0.0, idle
    for number, chunk in enumerate(chunks, start=1):
        with nullcontext() if number == len(chunks) else context.without_communication():
            part = loss(pair_logits(model, chunk), chunk)
            context.backward(part.total, part.weight + (idle if number == 1 else 0.0))
        total, weight = total + float(part.total.detach()), weight + float(part.weight)
    context.optimizer_step()
    return total, weight
