"""Prompts and answers stacked for training: labels lie where a model's logits say the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dialogkit.generation.forward import Forward
from dialogkit.generation.local import TransformersLM

__all__ = ["IGNORED", "TargetCollator"]

IGNORED = -100
"""The label of a position that is no target."""


class TargetCollator:
    """Stacks prompts and answers, padded on the right behind all of a row: no row depends on the others.

    A causal model reads the prompt and all of the answer but its last token; of a model with an encoder that
    reads the prompt, and the decoder what starts it and the answer but its last token.

    Args:
        lm: The model; it is asked for its signature only.

    Attributes:
        is_encoder_decoder: Whether the model has an encoder.
        prefix: What a decoder starts with; empty for causal models.
    """

    def __init__(self, lm: TransformersLM) -> None:
        forward = Forward(lm.model, lm.tokenizer)
        self.is_encoder_decoder, self.prefix = forward.is_encoder_decoder, forward.prefix
        self._narrows = forward.narrows_logits and not self.is_encoder_decoder
        pad, eos = lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id
        self._pad = pad if pad is not None else eos or 0

    def collate(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the model, and labels int64 ``[rows, T]`` of its logits, `IGNORED` where there is none.

        Args:
            prompts: Token ids, at least one row of at least one.
            answers: Targets of each row.
        """
        inputs: dict[str, Tensor] = {}
        if self.is_encoder_decoder:
            inputs["input_ids"], inputs["attention_mask"] = self._stack(prompts)
            rows = [(*self.prefix, *answer[:-1]) for answer in answers]
            inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = self._stack(rows)
            begins = [len(self.prefix) - 1] * len(rows)
        else:
            rows = [(*prompt, *answer[:-1]) for prompt, answer in zip(prompts, answers, strict=True)]
            inputs["input_ids"], inputs["attention_mask"] = self._stack(rows)
            begins = [len(prompt) - 1 for prompt in prompts]
        labels = torch.full((len(rows), max(map(len, rows))), IGNORED)
        for label, begin, answer in zip(labels, begins, answers, strict=True):
            label[begin : begin + len(answer)] = torch.tensor(answer)
        if self._narrows:
            # Logits of what is only read would be thrown away.
            inputs["logits_to_keep"] = torch.arange(min(begins), labels.shape[1])
            labels = labels[:, min(begins) :]
        return inputs, labels

    def _stack(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(rows), max(map(len, rows))), self._pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        return ids, mask
