"""Language models that run in this process: any transformers causal or encoder-decoder model."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dialogkit.generation.decoding import Decoding, Endings
from dialogkit.generation.encoding import PromptEncoder
from dialogkit.generation.forward import Batch, Forward
from dialogkit.generation.loading import load
from dialogkit.generation.types import Candidate, GenerationConfig, Likelihood, Prompt, PromptError

__all__ = ["TransformersLM"]

# Logits of one scoring batch: 2**27 values are 256 MiB in bfloat16.
_MAX_LOGITS = 2**27
# What `kept_bytes=None` stands for: a hundred prompts of 300 tokens for a model of 30 million parameters.
_KEPT_BYTES = 2**28


class TransformersLM:
    """A transformers model as a `LanguageModel`.

    **Prompts.** Plain text is encoded as the tokenizer does it (with its beginning-of-sequence token, for
    encoder inputs also with its end-of-sequence token); control tokens spelled out in it stay plain text
    unless `parse_special_tokens` is set. Chat messages go through the tokenizer's chat template, where
    control tokens in the messages stay plain text always. A prompt too long for the context window loses its
    beginning (a leading BOS token stays), with a warning.

    **Candidates.** Every prompt is read once and its key-value cache shared by its candidates. Candidate i of
    a prompt is a function of the model, the settings, the seed, the prompt and i: it does not depend on what
    else is asked in the same call, on `num_candidates` or on `batch_size` (up to floating-point rounding,
    which may differ between batch shapes). Padding never depends on the tokenizer's settings.

    **Reuse.** With `kept_bytes` the keys and values of prompts that were read are kept, the ones used last
    first, and a prompt that begins like one of them is read from where it differs: the next turn of a
    conversation, another conversation with the same character. What several prompts of a call begin with is
    read once. Candidates are the same up to rounding. Models with an encoder, with recurrent states or with
    rotary embeddings that depend on the length read every prompt as a whole, and so do models with a sliding
    window beyond its size. Weights that are changed in place or replaced are noticed; after switching or
    merging adapters call `forget`.

    **Threads.** All methods may be called from several threads at once.

    Args:
        model: A causal or encoder-decoder model whose forward takes ``past_key_values``; put in eval mode.
        tokenizer: Its tokenizer; a pad token is not needed.
        device: Where to move the model; None leaves it where it is.
        batch_size: Most sequences (candidates, or responses to score) in one forward pass.
        batch_tokens: Most tokens, padding included, in one scoring pass of several responses.
        kept_bytes: Most bytes of keys and values to keep on the model's device, 0 for none. None is 256 MiB,
            or 0 for a model in half precision, where rounding decides what is drawn.
        name: What to call the model; None takes the name in its configuration.
        parse_special_tokens: Read control tokens spelled out in plain prompts as control tokens. Leave it off
            when any part of the prompt comes from a user.

    Raises:
        ValueError: If the model cannot continue text with a cache, or a size is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        batch_tokens: int = 8192,
        kept_bytes: int | None = 0,
        name: str | None = None,
        parse_special_tokens: bool = False,
    ) -> None:
        for argument, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        if kept_bytes is not None and kept_bytes < 0:
            raise ValueError(f"kept_bytes must not be negative, got {kept_bytes}")
        if device is not None:
            model.to(torch.device(device))  # type: ignore[arg-type]  # annotated for another wrapper
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.name = name or model.config.name_or_path or type(model).__name__
        self.max_length = _context_window(model, tokenizer)
        if kept_bytes is None:
            kept_bytes = _KEPT_BYTES if model.dtype in (torch.float32, torch.float64) else 0
        self._forward = Forward(model, tokenizer, kept_bytes=kept_bytes)
        self._encoder = PromptEncoder(
            tokenizer,
            self.name,
            closed=self._forward.is_encoder_decoder,
            parse_special_tokens=parse_special_tokens,
        )
        self._special_ids = _special_ids(tokenizer)
        self._eos_ids = _eos_ids(model, tokenizer)
        # A decoder's own window; relative positions (T5) set none.
        self._decoder_length: int | None = getattr(model.config, "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantization_config: Any = None,
        batch_size: int = 64,
        batch_tokens: int = 8192,
        kept_bytes: int | None = 0,
    ) -> TransformersLM:
        """Load a model and its tokenizer from a folder or the Hugging Face Hub, safetensors weights only.

        Args:
            path_or_id: Folder, or model id on the Hub. Either may hold a PEFT adapter (extra ``peft``),
                which is merged into its base model.
            revision: Branch, tag or commit on the Hub.
            device: Where to put the model; None takes the first GPU if there is one, else the CPU.
            dtype: ``"float32"``, ``"bf16"``/``"bfloat16"``, ``"fp16"``/``"float16"``, ``"float64"``, a torch
                dtype, or ``"auto"`` for that of the weights. None is ``"auto"`` on a GPU and float32 on the
                CPU.
            quantization_config: One of transformers' configurations (``BitsAndBytesConfig``, ...), handed on.
            batch_size: As for the class.
            batch_tokens: As for the class.
            kept_bytes: As for the class.

        Returns:
            The model, ready to generate.

        Raises:
            FileNotFoundError: If there is no such folder or model, or the folder lacks a file; the message
                names the folder and what is expected in it.
            ValueError: If a file is damaged (it is named), the weights do not fit the configuration, or
                `dtype` is unknown.
        """
        model, tokenizer = load(
            path_or_id, revision=revision, device=device, dtype=dtype, quantization_config=quantization_config
        )
        return cls(
            model,
            tokenizer,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            kept_bytes=kept_bytes,
            name=str(path_or_id),
        )

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._forward.device

    @property
    def supports_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self._encoder.supports_chat

    @property
    def kept_prompts(self) -> tuple[int, int]:
        """How many prompts are kept for reuse, and the bytes of their keys and values."""
        kept = self._forward.kept
        return (0, 0) if kept is None else (len(kept), kept.bytes)

    def forget(self) -> None:
        """Drop what is kept for reuse: to free its memory, or because an adapter was switched."""
        if self._forward.kept is not None:
            self._forward.kept.clear()

    def count_tokens(self, prompt: Prompt) -> int:
        """Number of tokens of a prompt, special tokens included.

        Args:
            prompt: Plain text or chat messages.

        Returns:
            Number of tokens that it takes of `max_length`.
        """
        return len(self._encoder.encode(prompt))

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        """Draw candidates for each prompt.

        Cost: one forward pass over each prompt (over what is not kept of it), then one step for each new
        token of up to `batch_size` rows; memory holds the key-value cache of one batch and what is kept.

        Args:
            prompts: Plain texts or lists of chat messages.
            config: How to draw.
            seed: Any integer for the same candidates each time; None for new ones. Global random states are
                neither read nor changed.

        Returns:
            For each prompt its candidates in the order of their numbers, not of their scores.

        Raises:
            TypeError: If `prompts` is a string or a prompt is neither text nor messages.
            ValueError: If a prompt is empty, messages are given without a chat template, or `max_new_tokens`
                leaves no room for a prompt.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a sequence of prompts, got a single string")
        return self._drawn([self._fit(prompt, config) for prompt in prompts], config, seed)

    def generate_from_ids(
        self, rows: Sequence[Sequence[int]], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        """Draw candidates for prompts that are token ids already, control tokens included; see `generate`.

        Args:
            rows: Token ids of each prompt, for an encoder-decoder model those of the encoder's input.
            config: How to draw.
            seed: As for `generate`.

        Returns:
            As `generate`.

        Raises:
            ValueError: If a row is empty or does not fit into the context window with `max_new_tokens`.
        """
        room = self._room(config)
        for row in rows:
            if not len(row) or (room is not None and len(row) > room):
                raise ValueError(f"a row must hold 1 to {room} tokens to leave room, got {len(row)}")
        return self._drawn([list(row) for row in rows], config, seed)

    def _drawn(
        self, encoded: list[list[int]], config: GenerationConfig, seed: int | None
    ) -> list[list[Candidate]]:
        """Candidates for prompts that fit."""
        wanted = config.num_candidates if config.do_sample else 1
        results: list[list[Candidate]] = [[] for _ in encoded]
        by_length = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
        group_size = max(1, self.batch_size // wanted)
        for begin in range(0, len(by_length), group_size):
            group = by_length[begin : begin + group_size]
            texts = [encoded[index] for index in group]
            batch = self._forward.read(texts)
            rows = [(member, number) for member in range(len(group)) for number in range(wanted)]
            for first in range(0, len(rows), self.batch_size):
                chunk = rows[first : first + self.batch_size]
                last = first + self.batch_size >= len(rows)
                # Decoding uses the cache up; a prompt with more candidates than rows is still read once.
                own = batch if last else copy.deepcopy(batch)
                decoding = self._decoding(own, chunk, texts, config, seed)
                while decoding.active:
                    decoding.step()
                for (member, _), reply in zip(chunk, decoding.replies, strict=True):
                    results[group[member]].append(reply.candidate())
        return results

    def stream(
        self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None
    ) -> Generator[str, None, Candidate]:
        """Yield the first candidate of `generate` piece by piece.

        Nothing is yielded that could be the beginning of a stop string, an unfinished character or white
        space at an end of the text, so the joined pieces are that candidate's text exactly.

        Args:
            prompt: Plain text or chat messages.
            config: How to draw; `num_candidates` is ignored.
            seed: As for `generate`.

        Yields:
            Pieces of text, none empty.

        Returns:
            The candidate.

        Raises:
            TypeError: As for `generate`, before the first piece.
            ValueError: As for `generate`, before the first piece.
        """
        single = replace(config, num_candidates=1)
        ids = self._fit(prompt, single)
        decoding = self._decoding(self._forward.read([ids]), [(0, 0)], [ids], single, seed)
        while decoding.active:
            decoding.step()
            if piece := decoding.replies[0].take():
                yield piece
        return decoding.replies[0].candidate()

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        """Score given responses.

        A response is scored exactly as it is given: where the format puts a space after the speaker's label,
        the response begins with that space. Prompt and response are encoded together where the prompt's
        tokens then stand unchanged at the beginning, otherwise (a token would reach across the boundary, or
        the prompt is chat messages) the response is encoded on its own as a continuation; prompt tokens are
        the same for all responses either way. The end-of-sequence token is not scored. For an encoder-decoder
        model the prompt goes into the encoder and the response is scored in the decoder.

        If both together are too long, the prompt loses its beginning (a leading BOS token stays), with a
        warning, the response never anything.

        Cost: one forward pass over all tokens, in batches of at most `batch_size` rows and `batch_tokens`
            tokens; logits are computed only where responses stand (if the model can), for at most 2**27
            values at once, and normalised row by row.

        Args:
            prompts: Plain texts or lists of chat messages.
            responses: As many responses, none empty.

        Returns:
            One likelihood for each pair.

        Raises:
            TypeError: If an argument is a string or a prompt is neither text nor messages.
            ValueError: If the lengths differ, a response or prompt is empty, or a response alone does not fit
                into the context window.
        """
        if isinstance(prompts, str) or isinstance(responses, str):
            raise TypeError("prompts and responses must be sequences, got a single string")
        if len(prompts) != len(responses):
            raise ValueError(
                f"prompts and responses must be as many, got {len(prompts)} and {len(responses)}"
            )
        pairs = [self._pair(*pair) for pair in zip(prompts, responses, strict=True)]
        results: list[Likelihood | None] = [None] * len(pairs)
        for batch in self._scoring_batches(pairs):
            for index, score in zip(batch, self._forward.score([pairs[i] for i in batch]), strict=True):
                results[index] = Likelihood(score, len(pairs[index][1]))
        return [result for result in results if result is not None]

    def _decoding(
        self,
        batch: Batch,
        rows: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seed: int | None,
    ) -> Decoding:
        added = self.tokenizer.added_tokens_encoder
        stops = self._special_ids.intersection(added[string] for string in config.stop if string in added)
        endings = Endings(self._eos_ids, stops, self._special_ids)
        return Decoding(
            self._forward, self._encoder, batch, rows, prompts, config=config, endings=endings, seed=seed
        )

    def _fit(self, prompt: Prompt, config: GenerationConfig) -> list[int]:
        """Token ids of a prompt, shortened so that the new tokens have room."""
        return self._encoder.shorten(self._encoder.encode(prompt), self._room(config))

    def _room(self, config: GenerationConfig) -> int | None:
        """Most tokens of a prompt, None for any number."""
        new = config.max_new_tokens
        if self._forward.is_encoder_decoder:
            limit, room = self._decoder_length, self.max_length
            used = len(self._forward.prefix) + new - 1
        else:
            limit = self.max_length
            room = None if limit is None else limit - new
            used = new + 1
        if limit is not None and used > limit:
            raise PromptError(
                f"max_new_tokens must leave room in the context window of {limit} tokens, got {new}"
            )
        return room

    def _pair(self, prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
        """Token ids of prompt and response, the prompt shortened so that the response has room."""
        if not isinstance(response, str):
            raise TypeError(f"responses must be strings, got {type(response).__name__}")
        if not response:
            raise ValueError("responses must not be empty, got ''")
        context = self._encoder.encode(prompt)
        if self._forward.is_encoder_decoder:
            answer = self._encoder.plain(response)
            limit, room = self._decoder_length, self.max_length
            used = len(self._forward.prefix) + len(answer) - 1
        else:
            answer = self._encoder.continuation(prompt, context, response)
            limit = self.max_length
            # The last token of a response is predicted but not read, and needs no place.
            room = None if limit is None else limit - len(answer) + 1
            used = len(answer)
        if not answer:
            raise ValueError(f"responses must hold at least one token, got {response!r}")
        if limit is not None and used > limit:
            raise ValueError(
                f"a response of {len(answer)} tokens does not fit into the context window of {limit} tokens"
            )
        return self._encoder.shorten(context, room), answer

    def _scoring_batches(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        """Indices of pairs of like length, within the limits on rows, tokens and logits."""
        vocabulary = self._forward.vocabulary
        batch: list[int] = []
        low = high = longest = 0
        # Alike in the prompt first: the positions whose logits are needed then overlap.
        for index in sorted(range(len(pairs)), key=lambda index: tuple(map(len, pairs[index]))):
            first, past = self._forward.columns([pairs[index]])
            length = max(longest, sum(map(len, pairs[index])))
            begin, end = (min(low, first), max(high, past)) if batch else (first, past)
            rows = len(batch) + 1
            if batch and (
                rows > self.batch_size
                or rows * length > self.batch_tokens
                or rows * (end - begin) * vocabulary > _MAX_LOGITS
            ):
                yield batch
                batch, begin, end, length = [], first, past, sum(map(len, pairs[index]))
            batch.append(index)
            low, high, longest = begin, end, length
        if batch:
            yield batch


def _context_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Smallest of the limits that model and tokenizer name; tokenizers write 1e30 for none."""
    config = model.config.get_text_config()
    named = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions")]
    limits = [limit for limit in [*named, tokenizer.model_max_length] if isinstance(limit, int)]
    return min((limit for limit in limits if 0 < limit < 10**9), default=None)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that decoding leaves out, also those without a role of their own."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(value)
    return frozenset(found)
