"""Key-value caches of prompts that were read, kept for prompts that begin alike.

The keys and values of a token depend on the tokens before it alone. So where a prompt begins like one that
was read before, they are copied, and the model reads the rest: between the turns of a conversation, between
conversations with the same character, and between rows of a batch.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["KeptPrompts", "States", "common_beginning", "filled_cache", "longest_kept", "states_of"]

States = list[tuple[Tensor, Tensor]]
"""For each layer keys and values of one sequence, [heads, tokens, features]."""


class KeptPrompts:
    """Keys and values of the prompts that were used last, as many as fit into a limit.

    A prompt that is the beginning of another one needs no place of its own. All methods may be called from
    several threads at once; what they hand out is never changed.

    Cost: finding a prompt is a binary search among those that are kept.

    Args:
        limit: Most bytes of keys and values, on the model's device.

    Attributes:
        bytes: How many they are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._used: OrderedDict[bytes, States] = OrderedDict()  # the prompt used last stands last
        # Among sorted sequences, the one with the longest common beginning is a neighbour.
        self._sorted: list[bytes] = []
        self._weights: object = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def longest(self, tokens: Sequence[int]) -> tuple[int, States]:
        """Finds the kept prompt with the longest common beginning.

        Args:
            tokens: Token ids.

        Returns:
            Number of common tokens, and the states of the kept prompt, which may be longer.
        """
        key = _key(tokens)
        with self._lock:
            place = bisect_left(self._sorted, key)
            near = self._sorted[max(0, place - 1) : place + 1]
            if not near:
                return 0, []
            common, best = max((_common(key, other), other) for other in near)
            if common:
                self._used.move_to_end(best)
            return common, self._used[best]

    def add(self, tokens: Sequence[int], states: States) -> None:
        """Keeps a prompt, at the cost of those that were not used for longest; too large a one is not kept.

        Args:
            tokens: Token ids.
            states: Their keys and values; must not be changed any more.
        """
        key, size = _key(tokens), _bytes(states)
        if size > self._limit:
            return
        with self._lock:
            place = bisect_left(self._sorted, key)
            if place < len(self._sorted) and self._sorted[place].startswith(key):
                self._used.move_to_end(self._sorted[place])
                return
            for beginning in [one for one in self._sorted[max(0, place - 1) : place] if key.startswith(one)]:
                self._remove(beginning)
            insort(self._sorted, key)
            self._used[key] = states
            self.bytes += size
            while self.bytes > self._limit:
                self._remove(next(iter(self._used)))

    def belong_to(self, model: PreTrainedModel) -> None:
        """Forgets everything if the weights are others than at the last call.

        Seen are weights that were replaced, moved or changed in place (by an optimiser, by loading).
        """
        weights = [
            (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
            for parameter in model.parameters()
        ]
        with self._lock:
            if weights != self._weights:
                self._clear()
                self._weights = weights

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._used.clear()
        self._sorted.clear()
        self.bytes = 0

    def _remove(self, key: bytes) -> None:
        self.bytes -= _bytes(self._used.pop(key))
        del self._sorted[bisect_left(self._sorted, key)]


def longest_kept(model: PreTrainedModel) -> float:
    """Length up to which the cache of a model holds all tokens as they were read; 0 if it never does.

    Beyond a sliding window keys are dropped; recurrent states and compressed caches have no keys of single
    tokens; some rotary embeddings of a token depend on how much follows it.

    Returns:
        Number of tokens, infinite for plain attention.
    """
    if model.config.is_encoder_decoder or _rotary_depends_on_length(model):
        return 0
    layers = DynamicCache(config=model.config).layers
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    return min(
        (layer.sliding_window - 1 for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)),
        default=math.inf,
    )


def states_of(cache: object, row: int, tokens: int, columns: int) -> States | None:
    """Copies the keys and values of one row.

    Args:
        cache: The cache of a batch that is padded on the left.
        row: Which row.
        tokens: How many tokens the row has.
        columns: How many tokens and pads each row has.

    Returns:
        The states; None if the cache does not hold those of every token.
    """
    if not isinstance(cache, DynamicCache):
        return None
    states = []
    layers: list[Any] = cache.layers  # of kinds that are looked at here
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys.shape[-2] != columns:
            return None
        keys, values = layer.keys[row, :, columns - tokens :], layer.values[row, :, columns - tokens :]
        states.append((keys.clone(), values.clone()))
    return states


def filled_cache(model: PreTrainedModel, rows: Sequence[tuple[int, States]], columns: int) -> DynamicCache:
    """Makes the cache that a model would have after reading the beginnings of left-padded rows.

    Args:
        model: The model.
        rows: For each row how many tokens of its beginning, at most `columns`, and states of at least these;
            at least one row has tokens. Before them the row is padded.
        columns: Tokens and pads of each row.

    Returns:
        A cache of its own: nothing is shared with the states.
    """
    cache = DynamicCache(config=model.config)
    some = next(states for tokens, states in rows if tokens)
    for layer, pattern in enumerate(some):
        parts = []
        for kind, one in enumerate(pattern):
            part = one.new_zeros(len(rows), one.shape[0], columns, one.shape[2])
            for row, (tokens, states) in enumerate(rows):
                if tokens:
                    part[row, :, columns - tokens :] = states[layer][kind][:, :tokens]
            parts.append(part)
        cache.update(parts[0], parts[1], layer)
    return cache


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with."""
    keys = [_key(prompt) for prompt in prompts]
    return _common(min(keys), max(keys))


def _key(tokens: Sequence[int]) -> bytes:
    """Bytes that are sorted as the tokens are."""
    return np.asarray(tokens, dtype=">u4").tobytes()


def _common(one: bytes, other: bytes) -> int:
    size = min(len(one), len(other)) // 4
    differ = np.frombuffer(one, ">u4", size) != np.frombuffer(other, ">u4", size)
    return int(differ.argmax()) if differ.any() else size


def _bytes(states: States) -> int:
    return sum(part.nbytes for pair in states for part in pair)


def _rotary_depends_on_length(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config(decoder=True)
    rotary = getattr(config, "rope_parameters", None) or {}
    # Some models have settings of their own for each type of layer.
    each = [value for value in rotary.values() if isinstance(value, dict)] or [rotary]
    kinds = [str(one.get("rope_type")) for one in each]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
