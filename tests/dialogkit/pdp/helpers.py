"""Retrievers that need no model, and a character to use them with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dialogkit.pdp import Character, ContextIndex, ContextPool

DIM = 16


@dataclass
class HashRetriever:
    """Vectors drawn from a hash of the text; contexts and responses live in different draws."""

    salt: str = ""
    dim: int = DIM
    symmetric: bool = False
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return f"hash-{self.salt}-{self.dim}"

    def _vector(self, side: str, text: str) -> np.ndarray:
        digest = hashlib.sha256(f"{self.salt}|{side}|{text}".encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, "<u4").tolist()).normal(size=self.dim)

    def _encode(self, side: str, texts: Sequence[str]) -> np.ndarray:
        self.calls.append((side, tuple(texts)))
        return np.stack([self._vector(side, text) for text in texts]).astype(np.float32)

    def encode_context(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode("context", texts)

    def encode_response(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode("response", texts)


@dataclass
class TableRetriever:
    """Vectors looked up by text; a text that is not in the table has the zero vector."""

    contexts: Mapping[str, Sequence[float]]
    responses: Mapping[str, Sequence[float]]
    dim: int = 2
    symmetric: bool = False
    fingerprint: str = "table"

    def encode_context(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.contexts.get(text, [0.0] * self.dim) for text in texts], dtype=np.float32)

    def encode_response(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.responses.get(text, [0.0] * self.dim) for text in texts], dtype=np.float32)


UTTERANCES = (
    "Kettle's on, love.",
    "I never trust a quiet pigeon.",
    "That will be three buttons, please.",
    "My knees say rain before supper.",
    "Mind the third step, it bites.",
)

_STARTS = ("What about", "Do you like", "Tell me of", "Where is")
_THINGS = ("the garden", "your mother", "the sea", "a warm bath", "the old clock", "my blue hat", "Tuesday")
CONTEXTS = tuple(f"{start} {thing}?" for start in _STARTS for thing in _THINGS)


def character(count: int = 5, **changes: object) -> Character:
    """Mrs Plum with so many utterances."""
    fields: dict[str, object] = {"name": "Mrs Plum", "utterances": UTTERANCES[:count]} | changes
    return Character(**fields)  # type: ignore[arg-type]


def index(
    retriever: HashRetriever | TableRetriever | None = None, texts: Sequence[str] = CONTEXTS
) -> ContextIndex:
    """A numpy index over some contexts."""
    return ContextIndex(retriever or HashRetriever(), ContextPool(texts))
