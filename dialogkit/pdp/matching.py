"""Which context goes before which utterance, and which pairs a prompt shows in what order.

Notation of the paper: utterances ``u_1..u_k``, pool ``C`` of contexts ``c``, user input ``x``, encoders
``e_ctx`` and ``e_resp``. All scores are raw inner products. The functions at the top are the equations; the
classes below hold an encoder and a pool and apply them. No matcher keeps state between calls other than
caches, so one matcher may serve many conversations at once.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dialogkit.dialogues import Turn, as_history, single_line
from dialogkit.retrieval.index import ContextIndex
from dialogkit.retrieval.pool import ContextPool
from dialogkit.retrieval.retriever import Retriever

from .characters import Blend, Character

__all__ = [
    "DynamicMatcher",
    "GoldMatcher",
    "Matcher",
    "PseudoDialog",
    "RandomMatcher",
    "StaticMatcher",
    "dynamic_queries",
    "order_scores",
    "select_and_order",
    "static_scores",
]

Order = Literal["ascending", "descending", "given"]
DrawnPer = Literal["session", "turn"]
Vectors = npt.NDArray[np.float32]

_CACHED_CHARACTERS = 256


def static_scores(context_emb: Vectors, utterance_emb: Vectors) -> Vectors:
    """How well each utterance answers each context: ``s_stat(c; u_i) = e_ctx(c) . e_resp(u_i)``.

    Args:
        context_emb: ``e_ctx(C)``, ``[n, d]``.
        utterance_emb: ``e_resp(U)``, ``[k, d]``.

    Returns:
        Scores ``[k, n]``. Static match is their argmax over the last axis.
    """
    return utterance_emb @ context_emb.T


def dynamic_queries(input_emb: Vectors, utterance_emb: Vectors, input_weight: float = 1.0) -> Vectors:
    """Vectors whose product with a context is the dynamic score.

    ``s_dyn(c; x, u_i) = e_ctx(c) . e_ctx(x) + s_stat(c; u_i) = e_ctx(c) . (e_ctx(x) + e_resp(u_i))``, so one
    search with the sum finds the dynamic match.

    Args:
        input_emb: ``e_ctx(x)``, ``[d]``.
        utterance_emb: ``e_resp(U)``, ``[k, d]``.
        input_weight: Weight of the first term; 1 in the paper, 0 is static match.

    Returns:
        Queries ``[k, d]``.
    """
    return (np.float32(input_weight) * input_emb)[None, :] + utterance_emb


def order_scores(input_emb: Vectors, utterance_emb: Vectors) -> Vectors:
    """How well each utterance would answer the input itself: ``o_i = e_ctx(x) . e_resp(u_i)``.

    Args:
        input_emb: ``e_ctx(x)``, ``[d]``.
        utterance_emb: ``e_resp(U)``, ``[k, d]``.

    Returns:
        Scores ``[k]``; they do not depend on the contexts.
    """
    return utterance_emb @ input_emb


def select_and_order(
    scores: Sequence[float] | Vectors, max_dialogs: int | None = None, order: Order = "ascending"
) -> list[int]:
    """Keeps the highest scores and puts them in order.

    Args:
        scores: The k order scores.
        max_dialogs: How many to keep; None keeps all.
        order: ``"ascending"`` puts the highest last, next to the user's input (the paper); ``"descending"``
            puts it first; ``"given"`` keeps the order of the utterances.

    Returns:
        Indices of the kept scores. Among equal scores the earlier utterance counts as the lower one.
    """
    ascending = np.argsort(np.asarray(scores), kind="stable").tolist()
    kept: list[int] = ascending if max_dialogs is None else ascending[max(0, len(ascending) - max_dialogs) :]
    if order == "given":
        return sorted(kept)
    return kept[::-1] if order == "descending" else kept


@dataclass(frozen=True)
class PseudoDialog:
    """One invented exchange: a context and the utterance that answers it.

    Attributes:
        context: The pseudo-context ``c_i``; empty where a prompt uses none.
        utterance: The character's utterance ``u_i``.
        match_score: The score that chose the context (``s_stat`` or ``s_dyn``); None where none did.
        order_score: ``o_i``.
        context_id: Position of the context in the pool; None where it is not from the pool.
        character: Name of the character whose utterance it is.
    """

    context: str
    utterance: str
    match_score: float | None = None
    order_score: float = 0.0
    context_id: int | None = None
    character: str = ""


class _Context(NamedTuple):
    text: str
    score: float | None
    id: int | None


class Matcher(ABC):
    """Pairs utterances with contexts; the subclasses differ in where the contexts come from.

    Selection and order are the same for all of them: the ``max_dialogs`` pairs with the highest ``o_i``, by
    default ascending. The input ``x`` is the last turn of the history.

    Attributes:
        kind: Name of the way of matching in configurations.
        retriever: Encodes inputs and utterances.
        max_dialogs: Most pairs of one character in a prompt; None for all. A blend brings its own counts.
        order: See :func:`select_and_order`.
    """

    kind: str

    def __init__(
        self, retriever: Retriever, *, max_dialogs: int | None = None, order: Order = "ascending"
    ) -> None:
        if max_dialogs is not None and max_dialogs < 1:
            raise ValueError(f"max_dialogs must be at least 1, or None for all pairs, got {max_dialogs}")
        if order not in ("ascending", "descending", "given"):
            raise ValueError(f"order must be 'ascending', 'descending' or 'given', got {order!r}")
        self.retriever = retriever
        self.max_dialogs = max_dialogs
        self.order: Order = order
        # Saved with a chatbot, by the fingerprints of its characters.
        self._saved: dict[str, Vectors] = {}
        # Keyed by the frozen character itself: its utterances are encoded once, whatever is asked later.
        self._utterance_emb = lru_cache(_CACHED_CHARACTERS)(self._encode_utterances)

    def match(self, character: Character | Blend, history: Sequence[Turn] | str) -> list[PseudoDialog]:
        """Pairs for one conversation, selected and ordered.

        Args:
            character: Who answers.
            history: The conversation, or the user's words.

        Returns:
            At most ``max_dialogs`` pairs (for a blend, the sum of its counts), in the order of the prompt.

        Raises:
            ValueError: A character has no utterances, the pool is empty, or the history is.
        """
        return self.match_batch(character, [history])[0]

    def match_batch(
        self, character: Character | Blend, histories: Sequence[Sequence[Turn] | str]
    ) -> list[list[PseudoDialog]]:
        """Pairs for several conversations; all inputs are encoded in one call.

        Args:
            character: Who answers.
            histories: The conversations.

        Returns:
            For each conversation what :meth:`match` returns.
        """
        conversations = [as_history(history) for history in histories]
        inputs = self.encode_inputs(conversations)
        contexts = [self._contexts(part, conversations, inputs) for part, _ in self._parts(character)]
        return [
            self._arranged(character, [found[i] for found in contexts], inputs[i])
            for i in range(len(conversations))
        ]

    def arrange(self, character: Character | Blend, history: Sequence[Turn] | str) -> list[PseudoDialog]:
        """Selects and orders the utterances alone, for prompts that show no contexts.

        Args:
            character: Who answers.
            history: The conversation, or the user's words.

        Returns:
            As :meth:`match`, with empty contexts.
        """
        conversation = as_history(history)
        none = [[_Context("", None, None)] * len(part.utterances) for part, _ in self._parts(character)]
        return self._arranged(character, none, self.encode_inputs([conversation])[0])

    def encode_inputs(self, histories: Sequence[Sequence[Turn]]) -> Vectors:
        """Encodes the last turn of each conversation: ``e_ctx(x)``, ``[n, d]``."""
        return self.retriever.encode_context([single_line(history[-1].text) for history in histories])

    def save_utterances(self, path: Path, character: Character | Blend) -> None:
        """Writes the embeddings of a character's utterances, so that they are computed once for all.

        Args:
            path: A safetensors file, with a tensor ``[k, d]`` for each character.
            character: Who answers.
        """
        from safetensors.numpy import save_file

        parts = [character] if isinstance(character, Character) else character.characters
        spoken = [part for part in parts if part.utterances]
        save_file(
            {part.fingerprint: np.ascontiguousarray(self._utterance_emb(part)) for part in spoken}, path
        )

    def load_utterances(self, path: Path) -> None:
        """Reads what :meth:`save_utterances` wrote with the same retriever.

        Utterances that are not in the file are encoded when they are needed.

        Raises:
            ValueError: The file is corrupt.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            saved = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is corrupt: {error}") from error
        for vectors in saved.values():
            if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != self.retriever.dim:
                raise ValueError(
                    f"{path} holds {vectors.dtype} {list(vectors.shape)}, "
                    f"expected float32 [k, {self.retriever.dim}]"
                )
        self._saved = saved

    @abstractmethod
    def _contexts(
        self, character: Character, histories: Sequence[Sequence[Turn]], inputs: Vectors
    ) -> list[list[_Context]]:
        """For each conversation one context per utterance of the character."""

    def _parts(self, character: Character | Blend) -> list[tuple[Character, int | None]]:
        parts: list[tuple[Character, int | None]] = (
            [(character, self.max_dialogs)]
            if isinstance(character, Character)
            else [*zip(character.characters, character.max_dialogs, strict=True)]
        )
        for part, _ in parts:
            if not part.utterances:
                raise ValueError(
                    f"character {part.name!r} has no utterances; only the zero-shot prompt needs none"
                )
        return parts

    def _arranged(
        self, character: Character | Blend, contexts: Sequence[Sequence[_Context]], input_emb: Vectors
    ) -> list[PseudoDialog]:
        pairs: list[PseudoDialog] = []
        for (part, most), found in zip(self._parts(character), contexts, strict=True):
            scores = order_scores(input_emb, self._utterance_emb(part))
            pairs += [
                PseudoDialog(
                    context=found[i].text,
                    utterance=part.utterances[i],
                    match_score=found[i].score,
                    order_score=float(scores[i]),
                    context_id=found[i].id,
                    character=part.name,
                )
                for i in select_and_order(scores, most, "given")
            ]
        return [pairs[i] for i in select_and_order([pair.order_score for pair in pairs], None, self.order)]

    def _encode_utterances(self, character: Character) -> Vectors:
        saved = self._saved.get(character.fingerprint)
        if saved is None or len(saved) != len(character.utterances):
            saved = self.retriever.encode_response(character.utterances)
        vectors = np.asarray(saved, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError(f"the embeddings of the utterances of {character.name!r} are not finite")
        vectors.setflags(write=False)
        return vectors


class _IndexMatcher(Matcher):
    """What static and dynamic match share: an index, and what to do when it is empty."""

    def __init__(
        self,
        index: ContextIndex,
        *,
        max_dialogs: int | None,
        order: Order,
        fallback_context: str | None,
        allow_symmetric: bool,
    ) -> None:
        super().__init__(index.retriever, max_dialogs=max_dialogs, order=order)
        if not len(index) and fallback_context is None:
            raise ValueError("the pool of contexts is empty; give it contexts, or set fallback_context")
        if index.retriever.symmetric and not allow_symmetric:
            warnings.warn(
                "the retriever encodes contexts and responses alike, so the best context of an utterance is "
                "a paraphrase of it rather than a turn it answers; prefer a retriever trained on dialogues "
                "or on questions and answers, or set allow_symmetric=True",
                stacklevel=3,
            )
        self.index = index
        self.fallback_context = _fallback(fallback_context)

    def _search(self, queries: Vectors, exclude: Iterable[int] = ()) -> list[_Context]:
        if not len(self.index):
            return [_Context(self.fallback_context or "", None, None)] * len(queries)
        scores, ids = self.index.search(queries, 1, exclude=tuple(exclude))
        return [
            _Context(self.index.pool[i], float(score), i)
            for i, score in zip(ids[:, 0].tolist(), scores[:, 0].tolist(), strict=True)
        ]


class StaticMatcher(_IndexMatcher):
    """Static match: the context that the utterance answers best, whatever the user says.

    ``c_i = argmax_c s_stat(c; u_i)``. The contexts of a character are searched once and cached; the order of
    the pairs still follows the input. Several utterances may get the same context.

    Args:
        index: The embedded pool.
        max_dialogs: See :class:`Matcher`.
        order: See :class:`Matcher`.
        fallback_context: Context to use when the pool is empty (the authors' code uses ``"Hello."``); by
            default an empty pool is an error.
        allow_symmetric: Do not warn about a retriever with one encoder for both sides.
    """

    kind = "static"

    def __init__(
        self,
        index: ContextIndex,
        *,
        max_dialogs: int | None = None,
        order: Order = "ascending",
        fallback_context: str | None = None,
        allow_symmetric: bool = False,
    ) -> None:
        super().__init__(
            index,
            max_dialogs=max_dialogs,
            order=order,
            fallback_context=fallback_context,
            allow_symmetric=allow_symmetric,
        )
        self._matches = lru_cache(_CACHED_CHARACTERS)(self._match_once)

    def _match_once(self, character: Character) -> list[_Context]:
        return self._search(self._utterance_emb(character))

    def _contexts(
        self, character: Character, histories: Sequence[Sequence[Turn]], inputs: Vectors
    ) -> list[list[_Context]]:
        return [self._matches(character)] * len(histories)


class DynamicMatcher(_IndexMatcher):
    """Dynamic match: a context that the utterance answers and that resembles what the user just said.

    ``c_i = argmax_c e_ctx(c) . (input_weight e_ctx(x) + e_resp(u_i))``. Cost per turn: one encoding of ``x``
    and one ``k x |C|`` product, since the pool and the utterances are embedded beforehand.

    Args:
        index: The embedded pool.
        input_weight: Weight of the input's term; 1 in the paper, 0 is static match, large values give every
            utterance the same context.
        exclude_input: Do not choose a context that equals the input word for word: its similarity to itself
            would make it win for every utterance. A pool that holds nothing else is used all the same.
        max_dialogs: See :class:`Matcher`.
        order: See :class:`Matcher`.
        fallback_context: See :class:`StaticMatcher`.
        allow_symmetric: See :class:`StaticMatcher`.
    """

    kind = "dynamic"

    def __init__(
        self,
        index: ContextIndex,
        *,
        input_weight: float = 1.0,
        exclude_input: bool = True,
        max_dialogs: int | None = None,
        order: Order = "ascending",
        fallback_context: str | None = None,
        allow_symmetric: bool = False,
    ) -> None:
        super().__init__(
            index,
            max_dialogs=max_dialogs,
            order=order,
            fallback_context=fallback_context,
            allow_symmetric=allow_symmetric,
        )
        if not (np.isfinite(input_weight) and input_weight >= 0):
            raise ValueError(f"input_weight must be finite and not negative, got {input_weight}")
        self.input_weight = float(input_weight)
        self.exclude_input = exclude_input

    def _contexts(
        self, character: Character, histories: Sequence[Sequence[Turn]], inputs: Vectors
    ) -> list[list[_Context]]:
        utterances = self._utterance_emb(character)
        found = []
        for history, input_emb in zip(histories, inputs, strict=True):
            queries = dynamic_queries(input_emb, utterances, self.input_weight)
            same = self.index.pool.ids_of(history[-1].text) if self.exclude_input else ()
            found.append(self._search(queries, same if len(same) < len(self.index) else ()))
        return found


class RandomMatcher(Matcher):
    """Random match: contexts drawn uniformly from the pool; only the order follows the input.

    The contexts of one character are drawn without replacement. If the pool is smaller than the number of
    utterances it is used up, shuffled anew and used again. The draw depends on the seed, the character and
    (``per="turn"``) the conversation, on nothing else: the same call gives the same contexts.

    Args:
        pool: The contexts.
        retriever: Encodes inputs and utterances for the order.
        seed: Seed of the draw; 777 in the authors' code.
        per: ``"session"`` keeps the contexts of a character for good, as the authors do per run; ``"turn"``
            draws anew for every turn.
        max_dialogs: See :class:`Matcher`.
        order: See :class:`Matcher`.
        fallback_context: See :class:`StaticMatcher`.
    """

    kind = "random"

    def __init__(
        self,
        pool: ContextPool,
        retriever: Retriever,
        *,
        seed: int = 777,
        per: DrawnPer = "session",
        max_dialogs: int | None = None,
        order: Order = "ascending",
        fallback_context: str | None = None,
    ) -> None:
        super().__init__(retriever, max_dialogs=max_dialogs, order=order)
        if per not in ("session", "turn"):
            raise ValueError(f"per must be 'session' or 'turn', got {per!r}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not len(pool) and fallback_context is None:
            raise ValueError("the pool of contexts is empty; give it contexts, or set fallback_context")
        self.pool = pool
        self.seed = seed
        self.per: DrawnPer = per
        self.fallback_context = _fallback(fallback_context)

    def _contexts(
        self, character: Character, histories: Sequence[Sequence[Turn]], inputs: Vectors
    ) -> list[list[_Context]]:
        if not len(self.pool):
            fallback = _Context(self.fallback_context or "", None, None)
            return [[fallback] * len(character.utterances)] * len(histories)
        if self.per == "session":
            return [self._draw(character, ())] * len(histories)
        return [
            self._draw(character, [text for turn in history for text in (turn.speaker, turn.text)])
            for history in histories
        ]

    def _draw(self, character: Character, salt: Sequence[str]) -> list[_Context]:
        # Utterances draw in sorted order, so that listing them differently changes no prompt.
        order = sorted(range(len(character.utterances)), key=lambda i: character.utterances[i])
        texts = [character.name, *(character.utterances[i] for i in order), "", *salt]
        digest = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(digest, dtype="<u4").tolist()])
        size, wanted = len(self.pool), len(order)
        ids: list[int] = []
        while len(ids) < wanted:
            ids += rng.choice(size, min(size, wanted - len(ids)), replace=False).tolist()
        contexts = [_Context("", None, None)] * wanted
        for i, chosen in zip(order, ids, strict=True):
            contexts[i] = _Context(self.pool[chosen], None, chosen)
        return contexts


class GoldMatcher(Matcher):
    """Gold match: the turns that the utterances really answered, ``Character.gold_contexts``.

    Args:
        retriever: Encodes inputs and utterances for the order.
        max_dialogs: See :class:`Matcher`.
        order: See :class:`Matcher`.
    """

    kind = "gold"

    def _contexts(
        self, character: Character, histories: Sequence[Sequence[Turn]], inputs: Vectors
    ) -> list[list[_Context]]:
        if character.gold_contexts is None:
            raise ValueError(f"gold match needs gold_contexts, which {character.name!r} lacks")
        return [[_Context(text, None, None) for text in character.gold_contexts]] * len(histories)


def _fallback(context: str | None) -> str | None:
    if context is None:
        return None
    cleaned = single_line(context)
    if not cleaned:
        raise ValueError("fallback_context must not be blank")
    return cleaned
