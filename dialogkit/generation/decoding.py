"""A batch of replies being generated, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dialogkit.generation.encoding import PromptEncoder
from dialogkit.generation.forward import Batch, Forward
from dialogkit.generation.sampling import choose, logits_processors, token_logprobs, uniforms
from dialogkit.generation.text import IncrementalDecoder, ReplyText
from dialogkit.generation.types import GenerationConfig

__all__ = ["Decoding", "Endings"]


@dataclass(frozen=True)
class Endings:
    """Tokens with a meaning for the end of a reply.

    Attributes:
        eos: End-of-sequence tokens.
        stop: Special tokens that are stop strings; they never become text, where they could be found.
        special: All special tokens: none of them is text or counts for the score.
    """

    eos: frozenset[int]
    stop: frozenset[int]
    special: frozenset[int]


class Decoding:
    """Replies to prompts that were read; `step` adds a token to each that is not finished.

    Rows that are finished leave the batch at once, so that nothing is computed for them.

    Args:
        forward: The model.
        encoder: Its tokenizer.
        batch: A row for each prompt; used up.
        rows: For each reply the row of its prompt and its candidate number.
        prompts: Token ids of the prompts, which with `seed` determine what is drawn.
        config: Settings.
        endings: Where replies end.
        seed: Seed.

    Attributes:
        replies: The replies, in the order of `rows`.
        active: Numbers of those that are not finished.
    """

    def __init__(
        self,
        forward: Forward,
        encoder: PromptEncoder,
        batch: Batch,
        rows: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        *,
        config: GenerationConfig,
        endings: Endings,
        seed: int | None,
    ) -> None:
        self._forward, self._batch, self._config, self._endings = forward, batch, config, endings
        self._processors = logits_processors(config)
        self._steps = 0
        self._unread: Tensor | None = None  # tokens that were chosen last
        self._uniforms: Tensor | None = None
        if config.do_sample:
            drawn = [uniforms(seed, prompts[row], number, config.max_new_tokens) for row, number in rows]
            self._uniforms = torch.from_numpy(np.stack(drawn)).to(forward.device)
        self._decoders = [IncrementalDecoder(encoder.decode) for _ in rows]
        self.replies = [ReplyText(config.stop, endings.special) for _ in rows]
        self.active = list(range(len(rows)))
        batch.pick(torch.tensor([row for row, _ in rows], device=forward.device))

    @torch.inference_mode()
    def step(self) -> None:
        """Choose the next token of each active reply.

        The model reads a token not before the next one is wanted: the first is there as soon as the prompt is
        read.
        """
        batch = self._batch
        if self._unread is not None:
            self._forward.extend(batch, self._unread)
        scores = self._processors(batch.seen, batch.logits)  # type: ignore[arg-type]
        uniform = None if self._uniforms is None else self._uniforms[:, self._steps]
        tokens = choose(scores, uniform)
        drawn = zip(tokens.tolist(), token_logprobs(batch.logits, tokens).tolist(), strict=True)
        self._steps += 1
        ended = [self._push(reply, *pair) for reply, pair in zip(self.active, drawn, strict=True)]
        going = [row for row, end in enumerate(ended) if not end]
        self.active = [self.active[row] for row in going]
        if not going:
            return
        if len(going) < len(ended):
            rows = torch.tensor(going, device=tokens.device)
            batch.pick(rows)
            tokens = tokens[rows]
            if self._uniforms is not None:
                self._uniforms = self._uniforms[rows]
        self._unread = tokens

    def _push(self, number: int, token: int, logprob: float) -> bool:
        """Give a reply its next token; True if that was the last one."""
        reply, decoder = self.replies[number], self._decoders[number]
        ended = token in self._endings.eos or token in self._endings.stop
        if not ended and reply.push(decoder.push(token), token, logprob):
            return True
        if not ended and self._steps < self._config.max_new_tokens:
            return False
        if not reply.push(decoder.flush()):
            reply.finish_reason = "length" if not ended else "stop" if token in self._endings.stop else "eos"
        return True
