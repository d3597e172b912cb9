"""What turns responses into vectors before they are clustered: causal language models, sentence encoders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainkit.hub import fingerprint
from trainkit.progress import Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dialogkit.retrieval import Retriever

__all__ = ["CausalLMEncoder", "ResponseEncoder", "SentenceTransformerEncoder", "load_encoder"]

logger = logging.getLogger(__name__)

Pooling = Literal["last", "mean"]

_CAUSAL = "lm:"


class ResponseEncoder(Protocol):
    """Maps responses to vectors.

    An encoder may also have a ``name`` by which `load_encoder` finds it; clusters are saved with it.

    Attributes:
        fingerprint: Changes whenever the vectors may change.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder and its settings."""
        ...

    def encode(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Embeds n responses: ``float32 [n, d]``."""
        ...


class CausalLMEncoder:
    """The hidden state of a causal language model after it has read a response alone.

    As in the released code of Sem-Ent: the text has no context, no special tokens and no end-of-sequence
    token; of a long text the last tokens are read; the vector is the last hidden layer (after the final layer
    norm, where transformers' models apply it) at the last token. The paper's model is
    ``microsoft/DialoGPT-large``. An empty text, for which that code is undefined, is read as one
    end-of-sequence token. Padding stands on the right and changes nothing.

    Args:
        model: A causal language model, with or without its head; put in eval mode.
        tokenizer: Its tokenizer; a pad token is not needed.
        pooling: ``"last"`` token, or ``"mean"`` over tokens.
        layer: Index into the hidden states; -1 is the last layer, 0 the embeddings.
        max_length: Tokens read of a text, the last ones.
        batch_size: Texts in one forward pass.
        name: By which `load_encoder` finds the model; by default ``"lm:"`` and the name in its configuration.

    Raises:
        ValueError: The model is an encoder-decoder, a setting is out of range, or ``max_length`` is more than
            the model's context window.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: Pooling = "last",
        layer: int = -1,
        max_length: int = 256,
        batch_size: int = 32,
        name: str | None = None,
    ) -> None:
        config = model.config
        if config.is_encoder_decoder:
            raise ValueError(f"model must be a causal language model, got {type(model).__name__}")
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling must be 'last' or 'mean', got {pooling!r}")
        states = int(config.num_hidden_layers) + 1
        if not -states <= layer < states:
            raise ValueError(f"layer must be {-states} to {states - 1}, got {layer}")
        window = getattr(config, "max_position_embeddings", None)
        if max_length < 1 or (window is not None and max_length > window):
            raise ValueError(
                f"max_length must be 1 to {window or 'any'} (the model's window), got {max_length}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.layer = layer
        self.max_length = max_length
        self.batch_size = batch_size
        self.name = name if name is not None else f"{_CAUSAL}{config.name_or_path}"

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        pooling: Pooling = "last",
        layer: int = -1,
        max_length: int = 256,
        batch_size: int = 32,
    ) -> CausalLMEncoder:
        """Loads a model and its tokenizer, safetensors weights only.

        Args:
            path_or_id: Folder, Hub id, or ``"embedded"`` for the small model that ships with the package.
            revision: Branch, tag or commit on the Hub.
            device: Where to put the model; None takes the first GPU if there is one, else the CPU.
            dtype: As for :class:`~dialogkit.generation.TransformersLM`.
            pooling: As for the class.
            layer: As for the class.
            max_length: As for the class.
            batch_size: As for the class.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: A file is damaged, or see the class.
        """
        from dialogkit import embedded
        from dialogkit.generation.loading import load

        path = embedded.lm_path() if path_or_id == "embedded" else path_or_id
        model, tokenizer = load(path, revision=revision, device=device, dtype=dtype)
        return cls(
            model,
            tokenizer,
            pooling=pooling,
            layer=layer,
            max_length=max_length,
            batch_size=batch_size,
            name=f"{_CAUSAL}{path_or_id}",
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, the tokenizer and the settings that decide the vectors."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        parts: list[str | int | npt.NDArray[Any]] = [self.pooling, self.layer, self.max_length, words]
        for key, tensor in sorted(self.model.base_model.state_dict().items()):
            parts += [key, tensor.detach().cpu().float().numpy()]
        return fingerprint(*parts)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Embeds responses, those of like length together.

        Args:
            texts: n responses.

        Returns:
            ``float32 [n, d]``.

        Raises:
            TypeError: ``texts`` is one string.
            ValueError: A text is empty and the tokenizer has no end-of-sequence token.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        vectors = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        if not len(texts):
            return vectors
        ids = [self._tail(row) for row in self._tokens(texts)]
        order = np.argsort([len(row) for row in ids], kind="stable").tolist()
        with Progress(len(order), "encoding") as progress:
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                vectors[rows] = self._pooled([ids[i] for i in rows]).float().cpu().numpy()
                progress.advance(len(rows))
        return vectors

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            padding=False,
            truncation=False,
            verbose=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        return rows

    def _tail(self, ids: list[int]) -> list[int]:
        if ids:
            return ids[-self.max_length :]
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "a text is empty, and the tokenizer has no end-of-sequence token to read instead"
            )
        return [end]

    def _pooled(self, rows: list[list[int]]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = self.model.device
        ids, mask, lengths = ids.to(device), mask.to(device), lengths.to(device)
        output = self.model.base_model(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=self.layer != -1
        )
        states: Tensor = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        if self.pooling == "last":
            return states[torch.arange(len(rows), device=device), lengths - 1]
        return (states * mask[..., None]).sum(dim=1) / lengths[:, None]


class SentenceTransformerEncoder:
    """Any sentence-transformers model, such as MiniLM, by its encoding of documents.

    Args:
        model: A ``SentenceTransformer``, or a :class:`~dialogkit.retrieval.Retriever` such as
            :class:`~dialogkit.retrieval.BiEncoder`, which runs common models with little to import.
        name: By which `load_encoder` finds the model.
    """

    def __init__(self, model: SentenceTransformer | Retriever, *, name: str = "") -> None:
        from dialogkit.retrieval import SentenceTransformerRetriever

        self.retriever: Retriever
        if isinstance(model, torch.nn.Module):
            self.retriever = SentenceTransformerRetriever(model)
        else:
            self.retriever = model
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ) -> SentenceTransformerEncoder:
        """Loads a model.

        Args:
            path_or_id: ``"minilm"``, ``"embedded"``, a folder, or a Hub id of a sentence-transformers model.
            revision: Branch, tag or commit on the Hub.
            device: Where to put the model; None takes the first GPU if there is one, else the CPU.

        Raises:
            FileNotFoundError: There is no such model.
            ImportError: It needs an extra that is not installed.
            ValueError: A file is damaged.
        """
        from dialogkit.retrieval import load_retriever

        retriever = load_retriever(path_or_id, revision=revision, device=device)
        return cls(retriever, name=os.fspath(path_or_id))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the vectors."""
        return self.retriever.fingerprint

    def encode(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Embeds n responses, ``float32 [n, d]``; a text without tokens may get the zero vector."""
        return self.retriever.encode_response(texts)


def load_encoder(
    name: str, *, revision: str | None = None, device: str | torch.device | None = None
) -> CausalLMEncoder | SentenceTransformerEncoder:
    """Loads an encoder by the name that is saved with clusters.

    Args:
        name: ``"lm:"`` and a folder or Hub id for the last token of a causal language model
            (``"lm:embedded"`` for the one that ships with the package); otherwise ``"minilm"``,
            ``"embedded"``, or a folder or Hub id of a sentence-transformers model.
        revision: Branch, tag or commit on the Hub.
        device: Where to put the model; None takes the first GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: There is no such model.
        ImportError: It needs an extra that is not installed.
        ValueError: A file is damaged.
    """
    if name.startswith(_CAUSAL):
        return CausalLMEncoder.from_pretrained(name.removeprefix(_CAUSAL), revision=revision, device=device)
    return SentenceTransformerEncoder.from_pretrained(name, revision=revision, device=device)
