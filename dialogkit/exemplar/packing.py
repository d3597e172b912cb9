"""Context, exemplar and response as one row of tokens, within an explicit budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dialogkit.dialogues import Turn, single_line
from dialogkit.generation import TransformersLM, trim_history
from dialogkit.generation.encoding import PromptEncoder
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.targets import IGNORED, TargetCollator
from dialogkit.generation.types import Candidate, GenerationConfig, Prompt

__all__ = ["ExemplarEncoder", "ExemplarPacker", "LengthBudget", "PackedRow"]


@dataclass(frozen=True)
class LengthBudget:
    """Most tokens of each part of a row. What is too long is cut, with one warning for each part.

    A context loses its beginning, an exemplar and a response their end. Where the model's window is smaller
    than the parts together, the context gives way, never the exemplar.

    Attributes:
        context: Tokens of the laid-out context; 128 in the released code.
        exemplar: Tokens of the exemplar (64 is ours; up to the label limit, 128, in the released code).
        response: Tokens of the response, its end included; 128 in the released code.

    Raises:
        ValueError: A number is below 1.
    """

    context: int = 128
    exemplar: int = 64
    response: int = 128

    def __post_init__(self) -> None:
        for name in ("context", "exemplar", "response"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class PackedRow:
    """Token ids of what a generator reads, and of what it is to answer.

    Attributes:
        prompt: Context and exemplar, contiguous.
        answer: The targets.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@runtime_checkable
class ExemplarEncoder(Protocol):
    """How an exemplar enters a generator: the hook for other models of the family.

    :class:`ExemplarPacker` is the one that is built here. A model that writes from a skeleton of the
    exemplar (MatToGen) would extract the skeleton in :meth:`encode`; one that reads memory vectors (KIF)
    would keep the exemplar's vector in its rows, and add it to the encoder's output in
    :meth:`log_likelihoods`.
    """

    def encode(self, context: Sequence[str], exemplar: str | None, response: str) -> Any:
        """One row; ``exemplar`` is None where there is none."""
        ...

    def collate(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        """Rows as a batch of tensors, in which no row depends on the others."""
        ...

    def log_likelihoods(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """``log P(y | c, z)`` of every row of a batch, summed over tokens: ``[rows]``, differentiable."""
        ...


class ExemplarPacker:
    """Lays out context, exemplar and response for a causal, chat or encoder-decoder model.

    An encoder reads the context with its end token, then the exemplar and an end token again. A plain causal
    model reads a first line with a marker and the exemplar, then the dialogue; a chat model has that line in
    its system message. Without an exemplar a row is exactly the model's usual prompt. No text becomes a
    control token.

    Args:
        lm: The generator.
        prompt: Layout of contexts. None: chat messages where the model knows them, lines for an
            encoder, labelled lines else.
        budget: Most tokens of each part.
        marker: What stands before an exemplar in causal layouts.

    Raises:
        ValueError: The budget leaves no room for a context in the model's window, or the tokenizer has no
            token to end an encoder's input or a response with.
    """

    def __init__(
        self,
        lm: TransformersLM,
        prompt: DialoguePrompt | None = None,
        *,
        budget: LengthBudget | None = None,
        marker: str = "Example of a reply:",
    ) -> None:
        self.lm, self.budget, self.marker = lm, budget or LengthBudget(), single_line(marker)
        self._collator = TargetCollator(lm)
        self.is_encoder_decoder = self._collator.is_encoder_decoder
        usual = DialoguePrompt("lines" if self.is_encoder_decoder else "labelled")
        self.prompt = prompt or (DialoguePrompt("chat") if lm.supports_chat else usual)
        self._encoder = PromptEncoder(
            lm.tokenizer, lm.name, closed=self.is_encoder_decoder, parse_special_tokens=False
        )
        eos = lm.tokenizer.eos_token_id
        self._separator = eos if eos is not None else lm.tokenizer.sep_token_id
        self._break = "\n" if "\n" in self.prompt.stop and not self.is_encoder_decoder else ""
        if self._separator is None and not self._break:
            raise ValueError(f"the tokenizer of {lm.name!r} has no end-of-sequence token")
        self._check_window()
        self._warned: set[str] = set()

    def _check_window(self) -> None:
        window, budget = self.lm.max_length, self.budget
        if window is None:
            return
        # A decoder with a table of positions has no room for more.
        places = getattr(self.lm.model.config, "max_position_embeddings", None)
        read = len(self._collator.prefix) + budget.response - 1
        if self.is_encoder_decoder and places is not None and read > places:
            raise ValueError(
                f"the budget's response of {budget.response} tokens is longer than the decoder, "
                f"which has {places} positions"
            )
        taken = budget.exemplar + 2 if self.is_encoder_decoder else self._taken()
        if taken >= window:
            raise ValueError(
                f"the budget leaves no room for a context: exemplar {budget.exemplar} and response "
                f"{budget.response} in a window of {window} tokens"
            )

    def _taken(self) -> int:
        """Tokens of a causal row that are no context."""
        bare = self._encoder.encode(self._layout(None).build(["a"]))
        marked = self._encoder.encode(self._layout("a").build(["a"]))
        return len(marked) - len(bare) + self.budget.exemplar + self.budget.response

    # Rows

    def encode(
        self, context: Sequence[str], exemplar: str | None, response: str, *, end: bool = True
    ) -> PackedRow:
        """One row to learn or to score.

        Args:
            context: The turns, oldest first; there may be none.
            exemplar: The exemplar, or None.
            response: The response; it may be empty.
            end: Whether the row's targets end with what ends a response.
        """
        text = self.prompt.answer(response) + (self._break if end else "")
        if self.is_encoder_decoder:
            answer = self._encoder.plain(text)
        else:
            whole = self._layout(None).build(context)
            answer = self._encoder.continuation(whole, self._ids(whole), text)
        if end and not self._break:
            answer = [*answer, self._separator]
        if len(answer) > self.budget.response:
            self._warn("a response", len(answer), self.budget.response)
            answer = answer[: self.budget.response]
        return PackedRow(tuple(self.prompt_ids(context, exemplar, new_tokens=len(answer))), tuple(answer))

    def prompt_ids(
        self, context: Sequence[str], exemplar: str | None, *, new_tokens: int | None = None
    ) -> list[int]:
        """What the generator reads before it answers.

        Args:
            context: The turns, oldest first; there may be none.
            exemplar: The exemplar, or None.
            new_tokens: Tokens that must have room behind a causal prompt; None: the budget's response.
        """
        if exemplar is not None and not single_line(exemplar):
            raise ValueError("exemplar must not be blank; None is no exemplar")
        if self.is_encoder_decoder:
            return self._encoder_row(context, exemplar)
        # The last token of a response is predicted but not read.
        new = self.budget.response if new_tokens is None else new_tokens
        return self._causal_row(context, exemplar, new - 1)

    def _encoder_row(self, context: Sequence[str], exemplar: str | None) -> list[int]:
        ids = self._ids(self.prompt.build(context))
        part: list[int] = []
        if exemplar is not None:
            part = self._encoder.plain(single_line(exemplar))
            if len(part) > self.budget.exemplar:
                self._warn("an exemplar", len(part), self.budget.exemplar)
                part = part[: self.budget.exemplar]
            part.append(self._separator)
            if ids[-1] != self._separator:
                ids.append(self._separator)
        room = self.budget.context
        if self.lm.max_length is not None:
            room = min(room, self.lm.max_length - len(part))
        if len(ids) > room:
            self._warn("a context", len(ids), room)
            head = ids[:1] if room > 1 and ids[0] == self.lm.tokenizer.bos_token_id else []
            ids = head + ids[len(ids) - room + len(head) :]
        return ids + part

    def _causal_row(self, context: Sequence[str], exemplar: str | None, behind: int) -> list[int]:
        layout = self._layout(exemplar)
        window = self.lm.max_length

        def fits(turns: Sequence[str]) -> bool:
            bare = self._ids(self.prompt.build(turns))
            if len(bare) > self.budget.context:
                return False
            return window is None or len(self._ids(layout.build(turns))) + behind <= window

        turns = list(context)
        if turns and not fits(turns):
            self._warn("a context", len(self._ids(self.prompt.build(turns))), self.budget.context)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said above
                kept = trim_history(
                    [Turn("x", turn) for turn in turns], lambda kept: fits([turn.text for turn in kept])
                )
            turns = [turn.text for turn in kept]
        return self._ids(layout.build(turns))

    def _layout(self, exemplar: str | None) -> DialoguePrompt:
        """The layout with the exemplar in its first line or system message."""
        if exemplar is None:
            return self.prompt
        shown = f"{self.marker} {self._shortened(single_line(exemplar))}"
        return replace(self.prompt, instruction=f"{self.prompt.instruction} {shown}".strip())

    def _shortened(self, text: str) -> str:
        """The longest beginning of a text that the budget has room for."""
        room, size = self.budget.exemplar, len(self._encoder.plain(text))
        if size <= room:
            return text
        self._warn("an exemplar", size, room)
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._encoder.plain(text[:middle])) <= room:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() or text[:low]

    def _ids(self, prompt: Prompt) -> list[int]:
        # An encoder without special tokens of its own reads nothing in a context without turns.
        if prompt == "" and self.is_encoder_decoder and not self._encoder.plain(prompt):
            framed = list(self.lm.tokenizer("", add_special_tokens=True)["input_ids"])
            return framed or [self._separator]
        return self._encoder.encode(prompt)

    def _warn(self, what: str, length: int, limit: int) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(
                f"{what} of {length} tokens is cut to {limit} or fewer; later ones are cut silently",
                stacklevel=4,
            )

    # Replies

    def generate(
        self,
        contexts: Sequence[Sequence[str]],
        exemplars: Sequence[str | None],
        *,
        config: GenerationConfig | None = None,
        seed: int | None = None,
    ) -> list[list[Candidate]]:
        """Draws replies to contexts, each with one exemplar.

        Args:
            contexts: The contexts.
            exemplars: One for each; None is none.
            config: How to draw; what ends a response is added to its ``stop``. None: greedily, as long as the
                budget's response.
            seed: Any integer for the same replies each time.

        Returns:
            For each context its candidates.
        """
        config = config or GenerationConfig(do_sample=False, max_new_tokens=self.budget.response)
        ended = replace(config, stop=tuple(dict.fromkeys((*self.prompt.stop, *config.stop))))
        rows = [
            self.prompt_ids(context, exemplar, new_tokens=config.max_new_tokens + 1)
            for context, exemplar in zip(contexts, exemplars, strict=True)
        ]
        return self.lm.generate_from_ids(rows, config=ended, seed=seed)

    def reply(self, contexts: Sequence[Sequence[str]], exemplars: Sequence[str | None]) -> list[str]:
        """Greedy replies to contexts, each with one exemplar; see :meth:`generate`."""
        return [candidates[0].text for candidates in self.generate(contexts, exemplars)]

    # Batches

    def collate(self, rows: Sequence[PackedRow]) -> Mapping[str, Any]:
        """Stacks rows, padded on the right behind all of a row: no row depends on the others.

        Returns:
            ``inputs`` of the model and ``labels`` int64 ``[rows, T]`` of its logits, -100 where there is no
            target.
        """
        inputs, labels = self._collator.collate([row.prompt for row in rows], [row.answer for row in rows])
        return {"inputs": inputs, "labels": labels}

    def log_likelihoods(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """``ell`` of every row, a sum over its targets, not normalised: ``[rows]``, float32 or more."""
        logits: Tensor = model(**batch["inputs"], use_cache=False).logits
        # Sums over a response lose digits in half precision.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nll = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
        return -nll.sum(dim=1)
