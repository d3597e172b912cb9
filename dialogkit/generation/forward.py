"""Forward passes: reading prompts into a key-value cache, adding tokens to it, scoring given tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from dialogkit.generation.reuse import (
    KeptPrompts,
    States,
    common_beginning,
    filled_cache,
    longest_kept,
    states_of,
)
from dialogkit.generation.sampling import token_logprobs

__all__ = ["Batch", "Forward"]

# Fewer tokens are read about as fast as their keys and values are put in place.
_WORTH_REUSING = 16


@dataclass
class Batch:
    """Sequences that were read up to some token, a row for each.

    Attributes:
        seen: Tokens that a repetition penalty looks at, [rows, length].
        mask: Attention mask of the cached tokens (of the encoder's input, for encoder-decoder models),
            [rows, length].
        encoded: Encoder states, [rows, length, hidden]; None for causal models.
        cache: transformers' key-value cache.
        logits: Raw logits of the next token in float32 or float64, [rows, vocabulary].
    """

    seen: Tensor
    mask: Tensor
    encoded: Tensor | None
    cache: Any
    logits: Tensor

    def pick(self, rows: Tensor) -> None:
        """Keep the given rows; one that is named several times is repeated.

        Args:
            rows: Row numbers, [new rows].
        """
        self.seen, self.mask, self.logits = self.seen[rows], self.mask[rows], self.logits[rows]
        if self.encoded is not None:
            self.encoded = self.encoded[rows]
        self.cache.reorder_cache(rows)


class Forward:
    """Runs a causal or encoder-decoder model on rows of different lengths.

    Args:
        model: The model.
        tokenizer: Its tokenizer, for the ids that the model's configuration does not name.
        kept_bytes: Most bytes of keys and values that are kept for prompts that begin alike, 0 for none.

    Attributes:
        kept: Those keys and values; None if none are to be kept, or the model's cannot be used again.

    Raises:
        ValueError: If the model has no key-value cache, or has a decoder but no token to start it with.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, kept_bytes: int = 0
    ) -> None:
        parameters = inspect.signature(model.forward).parameters
        if "past_key_values" not in parameters:
            raise ValueError(
                "model must be a causal or encoder-decoder language model with a key-value cache, "
                f"got {type(model).__name__}"
            )
        self.model = model
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.narrows_logits = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters and not self.is_encoder_decoder
        # Masked, but some encoders count positions by it.
        named = (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None), 0)
        self._pad_id = next(value for value in named if value is not None)
        self.prefix = _decoder_prefix(model, tokenizer) if self.is_encoder_decoder else []
        self._longest_kept = longest_kept(model) if kept_bytes else 0
        self.kept = KeptPrompts(kept_bytes) if self._longest_kept else None

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device(self.model.device)

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]]) -> Batch:
        """Run prompts through the model, each once; what they begin with is not read again if it is kept.

        Args:
            prompts: Token ids, at least one for each prompt.

        Returns:
            A row for each prompt.
        """
        ids, mask = self._padded(prompts, left=not self.is_encoder_decoder)
        nothing = torch.empty(0, device=self.device)
        if self.is_encoder_decoder:
            encoder = self.model.get_encoder()
            encoded = encoder(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            seen = torch.tensor([self.prefix] * len(prompts), device=self.device)
            batch = Batch(seen, mask, encoded, None, nothing)
            self.advance(batch, seen)
        else:
            # A pad token does not stand in the text, so no penalty may fall on it.
            first = torch.tensor([[prompt[0]] for prompt in prompts], device=self.device)
            known = self._known(prompts)
            columns, cache = self._reused(prompts, known)
            batch = Batch(torch.where(mask.bool(), ids, first), mask, None, cache, nothing)
            self.advance(batch, ids[:, columns:])
            self._keep(prompts, known, batch)
        return batch

    def _known(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, States]]:
        """For each prompt how many tokens of its beginning are kept, and the states of these or more."""
        if self.kept is None:
            return [(0, [])] * len(prompts)
        self.kept.belong_to(self.model)
        known = [self.kept.longest(prompt) for prompt in prompts]
        shared = common_beginning(prompts)
        unread = shared - min(tokens for tokens, _ in known)
        if len(prompts) > 1 and unread >= _WORTH_REUSING and shared <= self._longest_kept:
            self.read([prompts[0][:shared]])  # by a batch of one, for all rows
            known = [self.kept.longest(prompt) for prompt in prompts]
        return known

    def _reused(
        self, prompts: Sequence[Sequence[int]], known: Sequence[tuple[int, States]]
    ) -> tuple[int, Any]:
        """How many columns of the left-padded prompts need not be read, and a cache that holds them."""
        lengths = list(map(len, prompts))
        # The last token is always read, for its logits.
        unread = max(max(1, length - tokens) for length, (tokens, _) in zip(lengths, known, strict=True))
        columns = max(lengths) - unread
        if columns < _WORTH_REUSING:
            return 0, None
        rows = [(max(0, length - unread), states) for length, (_, states) in zip(lengths, known, strict=True)]
        return columns, filled_cache(self.model, rows, columns)

    def _keep(
        self, prompts: Sequence[Sequence[int]], known: Sequence[tuple[int, States]], batch: Batch
    ) -> None:
        if self.kept is None:
            return
        for row, (prompt, (tokens, _)) in enumerate(zip(prompts, known, strict=True)):
            if tokens < len(prompt):
                states = states_of(batch.cache, row, len(prompt), batch.mask.shape[1])
                if states is not None:
                    self.kept.add(prompt, states)

    @torch.inference_mode()
    def extend(self, batch: Batch, tokens: Tensor) -> None:
        """Add one token to each row and read it.

        Args:
            batch: Changed in place.
            tokens: Token ids, [rows].
        """
        tokens = tokens.unsqueeze(-1)
        batch.seen = torch.cat([batch.seen, tokens], dim=-1)
        if not self.is_encoder_decoder:
            batch.mask = torch.cat([batch.mask, torch.ones_like(tokens)], dim=-1)
        self.advance(batch, tokens)

    def advance(self, batch: Batch, ids: Tensor) -> None:
        """Feed tokens that `seen` and `mask` know already, and keep the logits after the last one.

        Args:
            batch: Changed in place.
            ids: Token ids, [rows, new tokens].
        """
        inputs: dict[str, Any] = {"past_key_values": batch.cache, "use_cache": True, "return_dict": True}
        inputs["attention_mask"] = batch.mask
        if batch.encoded is not None:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=batch.encoded)
            inputs["decoder_input_ids"] = ids
        else:
            inputs["input_ids"] = ids
            if self._takes_positions:
                positions = (batch.mask.cumsum(dim=-1) - 1).clamp(min=0)
                inputs["position_ids"] = positions[:, -ids.shape[1] :]
        if self.narrows_logits:
            inputs["logits_to_keep"] = 1
        output = self.model(**inputs)
        batch.cache = output.past_key_values
        logits = output.logits[:, -1]
        batch.logits = logits if logits.dtype == torch.float64 else logits.float()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Sum of the log-probabilities of given answers.

        Args:
            pairs: Token ids of context and answer, at least one each.

        Returns:
            One sum for each pair, in natural logarithms.
        """
        inputs: dict[str, Any] = {"use_cache": False, "return_dict": True}
        contexts = [context for context, _ in pairs]
        if self.is_encoder_decoder:
            inputs["input_ids"], inputs["attention_mask"] = self._padded(contexts, left=False)
            rows = [self.prefix + answer[:-1] for _, answer in pairs]
            inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = self._padded(rows, left=False)
            begins = [len(self.prefix) - 1] * len(pairs)
        else:
            # With padding on the right, real tokens neither see it nor are moved by it.
            rows = [context + answer[:-1] for context, answer in pairs]
            inputs["input_ids"], inputs["attention_mask"] = self._padded(rows, left=False)
            begins = [len(context) - 1 for context in contexts]
            if self.narrows_logits:
                low, high = self.columns(pairs)
                inputs["logits_to_keep"] = torch.arange(low, high, device=self.device)
                begins = [begin - low for begin in begins]
        logits = self.model(**inputs).logits
        scores = []
        for row, (begin, (_, answer)) in enumerate(zip(begins, pairs, strict=True)):
            tokens = torch.tensor(answer, device=self.device)
            # One row at a time, so that a batch is never held in float32.
            scores.append(token_logprobs(logits[row, begin : begin + len(answer)], tokens).sum().item())
        return scores

    def columns(self, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[int, int]:
        """First and one past the last position whose logits `score` asks for.

        Args:
            pairs: Token ids of context and answer.

        Returns:
            The range of positions.
        """
        if self.is_encoder_decoder:
            return 0, len(self.prefix) - 1 + max(len(answer) for _, answer in pairs)
        high = max(len(context) + len(answer) for context, answer in pairs) - 1
        return (min(len(context) for context, _ in pairs) - 1 if self.narrows_logits else 0), high

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[number, place] = row
            mask[number, place] = 1
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def _decoder_prefix(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens a decoder starts with: its start token, then the one it is forced to say first, if any."""
    settings: Any = model.generation_config
    named = (
        getattr(settings, "decoder_start_token_id", None),
        getattr(model.config, "decoder_start_token_id", None),
        tokenizer.bos_token_id,
    )
    start = next((value for value in named if value is not None), None)
    if start is None:
        raise ValueError(f"the configuration of {type(model).__name__} lacks decoder_start_token_id")
    forced = getattr(settings, "forced_bos_token_id", None)
    return [start] if forced is None else [start, forced]
