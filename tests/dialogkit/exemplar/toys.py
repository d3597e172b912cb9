"""A retriever without a network, examples, a loop's stand-in."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from dialogkit.dialogues import Example
from dialogkit.generation import TransformersLM
from dialogkit.retrieval import ResponseIndex
from tests.dialogkit.tiny import byte_tokenizer, tiny_model

WORDS = ("red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "violet", "cyan", "teal")


class WordRetriever:
    """Texts that share words are near: each word has a fixed random direction."""

    dim = 24
    symmetric = True
    fingerprint = "words"

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._encode(texts)

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
                vectors[row] += np.random.default_rng(seed).normal(size=self.dim)
            vectors[row] /= max(1e-6, np.linalg.norm(vectors[row]))
        return vectors


def examples(count: int = 6) -> list[Example]:
    return [
        Example(("well", f"tell me of {WORDS[i]}"), f"{WORDS[i]} it is then {'x' * (i % 3)}".strip())
        for i in range(count)
    ]


def response_set() -> list[str]:
    return [f"{first} it is {second}" for first in WORDS[:6] for second in WORDS[6:10]]


def response_index(extra: Sequence[str] = ()) -> ResponseIndex:
    return ResponseIndex.build(WordRetriever(), [*response_set(), *extra])


def lm(family: str = "gpt2", *, chat: bool = False, max_length: int = 256, seed: int = 0) -> TransformersLM:
    seq2seq = family in ("bart", "t5")
    tokenizer = byte_tokenizer([*WORDS, "tell", "me", "of"], chat=chat, closing_eos=seq2seq, pad=True)
    model = tiny_model(family, len(tokenizer), seed=seed, max_length=max_length)
    return TransformersLM(model, tokenizer, name=f"tiny-{family}")


class Recorder:
    """Stands in for the loop: keeps gradients and weights, updates nothing."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.accelerator = SimpleNamespace(device=torch.device("cpu"), distributed_type=DistributedType.NO)
        self.example_ids = torch.arange(count)
        self.weights: list[float] = []
        self.silent = self.updates = 0

    def backward(self, total: Tensor, weight: float) -> None:
        total.backward()
        self.weights.append(weight)

    @contextlib.contextmanager
    def without_communication(self) -> object:  # type: ignore[misc]
        self.silent += 1
        yield

    def optimizer_step(self) -> None:
        self.updates += 1
