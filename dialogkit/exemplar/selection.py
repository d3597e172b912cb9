"""Choosing exemplars: hits of an index, their lexical closeness to the gold response, what replaces them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dialogkit.dialogues import Example, single_line
from dialogkit.retrieval import ResponseIndex, Retriever
from trainkit.hub import atomic_directory, fingerprint, read_json, write_json

from .policy import ExemplarPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ContentTokens",
    "ExemplarSelector",
    "Exemplars",
    "context_query",
    "jaccard",
    "select_exemplars",
]

logger = logging.getLogger(__name__)

_Ids = npt.NDArray[np.int64]
_Vectors = npt.NDArray[np.float32]

NO_EXEMPLAR, GOLD = -1, -2
"""Ids of an empty place, and of the gold response itself."""


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """``J = |A and B| / |A or B|`` of two sets; 1 where both are empty.

    Args:
        a: Members, repeated ones count once.
        b: Members.
    """
    first, second = set(a), set(b)
    union = first | second
    return len(first & second) / len(union) if union else 1.0


class ContentTokens:
    """The set of a text's tokens as a generator reads it, without special tokens.

    The sets of recent texts are kept.

    Args:
        tokenizer: The generator's.
        keep: How many sets are kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: int = 65_536) -> None:
        self.tokenizer = tokenizer
        self._kept = lru_cache(maxsize=keep)(self._tokens)

    def __call__(self, text: str) -> frozenset[int]:
        """The set of the tokens of a text on one line."""
        return self._kept(single_line(text))

    def _tokens(self, text: str) -> frozenset[int]:
        # A special token that is spelled out in a text is text.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return frozenset(encoded["input_ids"])


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The exemplars of B examples, k each.

    Attributes:
        ids: Their ids in the index, int64 ``[B, k]``; -1 for an empty place, -2 for the gold response itself.
        texts: Their texts; empty strings in empty places.
        jaccard: J of exemplar and gold response, float32 ``[B, k]``; 0 in places that nothing was found for.
        replaced: Boolean ``[B, k]``, true where a random response stands in for a hit.
        mask: Boolean ``[B, k]``, false in empty places.
    """

    ids: _Ids
    texts: list[list[str]]
    jaccard: npt.NDArray[np.float32]
    replaced: npt.NDArray[np.bool_]
    mask: npt.NDArray[np.bool_]


def select_exemplars(
    hits: _Ids,
    golds: Sequence[str],
    responses: Sequence[str],
    policy: ExemplarPolicy,
    tokens: Callable[[str], frozenset[int]],
    generator: torch.Generator,
) -> Exemplars:
    """Chooses the exemplars of some examples from their hits.

    Each hit whose ``J >= threshold`` is replaced, skipped or masked, as the policy's filter says. A random
    response is drawn uniformly from those that are not the gold response, and is not judged again; for
    ``"random"`` it also fills places that the index found nothing for. With ``alpha_blend`` the gold response
    takes the first place of an example with that probability.

    Args:
        hits: Ids in the response set, best first, -1 for nothing found: int64 ``[B, m]``.
        golds: The gold responses.
        responses: The response set.
        policy: Which exemplars are wanted.
        tokens: From a text to its content tokens, see :class:`ContentTokens`.
        generator: A CPU generator; nothing is drawn unless the policy leaves something to chance.

    Raises:
        ValueError: There are not as many rows of hits as gold responses.
    """
    if len(hits) != len(golds):
        raise ValueError(f"hits must have a row for each of {len(golds)} golds, got {len(hits)}")
    shape = (len(golds), policy.k)
    chosen = Exemplars(
        ids=np.full(shape, NO_EXEMPLAR, dtype=np.int64),
        texts=[[""] * policy.k for _ in golds],
        jaccard=np.zeros(shape, dtype=np.float32),
        replaced=np.zeros(shape, dtype=np.bool_),
        mask=np.zeros(shape, dtype=np.bool_),
    )
    for row, gold in enumerate(golds):
        found = [(int(i), responses[int(i)]) for i in hits[row] if i >= 0]
        gold = single_line(gold)
        if policy.exclude_gold:
            found = [(i, text) for i, text in found if text != gold]
        _fill(chosen, row, found, gold, responses, policy, tokens, generator)
    return chosen


def _fill(
    chosen: Exemplars,
    row: int,
    found: Sequence[tuple[int, str]],
    gold: str,
    responses: Sequence[str],
    policy: ExemplarPolicy,
    tokens: Callable[[str], frozenset[int]],
    generator: torch.Generator,
) -> None:
    """Fills a row of places."""

    def put(place: int, number: int, text: str, *, j: float, there: bool = True, drawn: bool = False) -> None:
        chosen.ids[row, place] = number if there else NO_EXEMPLAR
        chosen.texts[row][place] = text if there else ""
        chosen.jaccard[row, place], chosen.mask[row, place] = j, there
        chosen.replaced[row, place] = drawn

    rule = policy.filter
    end = rule is not None and rule.count_end
    judged = [(i, text, _closeness(text, gold, tokens, end)) for i, text in found]
    if rule is not None and rule.on_filtered == "next":
        judged = [hit for hit in judged if hit[2] < rule.threshold]
    for place in range(policy.k):
        hit = judged[place] if place < len(judged) else None
        close = hit is not None and rule is not None and hit[2] >= rule.threshold
        if hit is not None and not close:
            put(place, hit[0], hit[1], j=hit[2])
        elif rule is not None and rule.on_filtered == "random":
            number = other_response(responses, gold, generator)
            if number != NO_EXEMPLAR:
                text = responses[number]
                put(place, number, text, j=_closeness(text, gold, tokens, end), drawn=True)
        elif hit is not None:
            put(place, NO_EXEMPLAR, "", j=hit[2], there=False)
    if policy.alpha_blend and policy.k and torch.rand((), generator=generator) < policy.alpha_blend:
        put(0, GOLD, gold, j=_closeness(gold, gold, tokens, end))


def _closeness(text: str, gold: str, tokens: Callable[[str], frozenset[int]], end: bool) -> float:
    # No token has a negative id, so this one stands for the end.
    return jaccard(tokens(text), tokens(gold) | {-1} if end else tokens(gold))


def other_response(responses: Sequence[str], gold: str, generator: torch.Generator) -> int:
    """Uniformly drawn from the responses that are not the gold one."""
    size = len(responses)
    number = int(torch.randint(size, (), generator=generator))
    if responses[number] != gold:
        return number
    if size == 1:
        return NO_EXEMPLAR
    # Responses are distinct, so that all others are other ones.
    return (number + 1 + int(torch.randint(size - 1, (), generator=generator))) % size


def context_query(turns: Sequence[str], max_turns: int = 20) -> str:
    """A context as a retriever is asked with it: its last turns, one a line; empty for blank turns."""
    lines = [single_line(turn) for turn in turns]
    return "\n".join([line for line in lines if line][-max_turns:])


class ContextEncoder(Protocol):
    """Whatever encodes contexts: a retriever, or its context side in training."""

    def encode_context(self, texts: Sequence[str]) -> _Vectors:
        """Embeds n contexts: ``float32 [n, d]``."""
        ...


class ExemplarSelector:
    """Finds the exemplars of training examples, and of contexts that have no gold response.

    Queries are encoded without gradients in evaluation mode: the same example always has the same hits.

    Args:
        retriever: Encodes contexts and responses; the index was built with its response side.
        index: The response set.
        policy: Which exemplars are wanted.
        tokenizer: The generator's, for the filter.
        max_turns: Turns of a context that are read.

    Raises:
        StaleIndexError: The index belongs to another retriever.
    """

    def __init__(
        self,
        retriever: Retriever,
        index: ResponseIndex,
        policy: ExemplarPolicy,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_turns: int = 20,
    ) -> None:
        index.check(retriever)
        self.retriever, self.index, self.policy, self.max_turns = retriever, index, policy, max_turns
        self.tokens = ContentTokens(tokenizer)

    def hits(self, examples: Sequence[Example]) -> _Ids:
        """What the index finds for training examples, by gold response or context as the policy says.

        Cost: an encoding of B texts and one search.

        Returns:
            Ids int64 ``[B, policy.depth]``, -1 for nothing found.
        """
        if self.policy.query == "gold":
            golds = [single_line(example.response) for example in examples]
            return self._found(self.retriever.encode_response(golds))
        queries = [context_query(example.context, self.max_turns) for example in examples]
        return self.hits_of(queries, self.retriever.encode_context(queries))

    def hits_of(self, queries: Sequence[str], vectors: _Vectors) -> _Ids:
        """The same for contexts whose vectors are there; a blank context finds nothing."""
        found = self._found(vectors)
        found[[not query for query in queries]] = NO_EXEMPLAR
        return found

    def _found(self, vectors: _Vectors) -> _Ids:
        return self.index.search(vectors, max(1, self.policy.depth)).ids

    def cached_hits(
        self, examples: Sequence[Example], cache: str | Path | None = None, *, batch_size: int = 1024
    ) -> _Ids:
        """The hits of all training examples, from a folder where they are there already.

        Args:
            examples: The training examples.
            cache: Folder; it is written whole or not at all, and written anew where retriever, index,
                policy or examples are other ones. None keeps nothing.
            batch_size: Examples encoded and searched at once.

        Returns:
            Ids int64 ``[n, policy.depth]``; mapped from the file where there is one.
        """
        key = self._key(examples)
        folder = None if cache is None else Path(cache)
        if folder is not None and (folder / "hits.json").is_file():
            if read_json(folder / "hits.json").get("key") == key:
                kept: _Ids = np.load(folder / "hits.npy", mmap_mode="r", allow_pickle=False)
                return kept
            logger.info("%s holds the hits of another run; they are searched anew", folder)
        parts = [self.hits(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
        found = np.concatenate(parts) if parts else np.empty((0, self.policy.depth), dtype=np.int64)
        if folder is not None:
            with atomic_directory(folder, replace=True) as written:
                np.save(written / "hits.npy", found, allow_pickle=False)
                write_json(written / "hits.json", {"key": key, "examples": len(found)})
        return found

    def _key(self, examples: Sequence[Example]) -> str:
        texts = [
            single_line(example.response)
            if self.policy.query == "gold"
            else context_query(example.context, self.max_turns)
            for example in examples
        ]
        return fingerprint(
            self.retriever.fingerprint,
            self.index.fingerprint,
            self.policy.query,
            self.policy.depth,
            fingerprint("\x00".join(texts)),
        )

    def select(
        self, examples: Sequence[Example], generator: torch.Generator, hits: _Ids | None = None
    ) -> Exemplars:
        """The exemplars of training examples; see :func:`select_exemplars`.

        Args:
            examples: B examples.
            generator: A CPU generator.
            hits: What :meth:`hits` found for them; None searches.
        """
        if self.policy.k == 0:
            found = np.empty((len(examples), 0), dtype=np.int64)
        else:
            found = self.hits(examples) if hits is None else hits
        golds = [example.response for example in examples]
        return select_exemplars(found, golds, self.index.responses, self.policy, self.tokens, generator)

    def vectors(self, ids: _Ids, golds: Sequence[str]) -> _Vectors:
        """``v(z_j)`` of exemplars by their ids ``[B, k]``: float32 ``[B, k, d]``; anything in empty places.

        Args:
            ids: See :class:`Exemplars`.
            golds: The B gold responses, which may be exemplars themselves.
        """
        vectors = self.index.vectors(np.maximum(ids, 0))
        blended = np.argwhere(ids == GOLD)
        if len(blended):
            texts = [single_line(golds[row]) for row, _ in blended]
            vectors[blended[:, 0], blended[:, 1]] = self.retriever.encode_response(texts)
        return vectors


def as_tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device."""
    return torch.from_numpy(np.array(array)).to(device)
