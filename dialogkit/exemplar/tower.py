"""The context side of a bi-encoder as a module that learns; the response side stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialogkit.retrieval import BiEncoder, ResponseIndex, Retriever, SentenceTransformerRetriever

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["ContextTower"]


class ContextTower(nn.Module):
    """A trainable copy of the part of a retriever that encodes contexts.

    It is a copy also where both sides are one encoder: training it changes no response's vector, so an index
    of the responses stays valid.

    Args:
        retriever: A sentence-transformers model, as :class:`~dialogkit.retrieval.BiEncoder` or
            :class:`~dialogkit.retrieval.SentenceTransformerRetriever`.

    Raises:
        TypeError: The retriever is of another class, which has no weights that could be trained here.
    """

    def __init__(self, retriever: Retriever) -> None:
        super().__init__()
        from sentence_transformers import SentenceTransformer

        if isinstance(retriever, BiEncoder):
            model, self.normalize, role = (
                SentenceTransformer(str(retriever.path), device="cpu"),
                False,
                "query",
            )
        elif isinstance(retriever, SentenceTransformerRetriever):
            model, self.normalize, role = retriever.model, retriever.normalize, retriever.context_role
        else:
            raise TypeError(
                f"the context side of a {type(retriever).__name__} cannot be trained: "
                "use a sentence-transformers model, or leave the retriever as it is"
            )
        # Hidden from the module: the response side must not be trained, moved or saved with it.
        self._original = (model, retriever)
        self._prompt = model.prompts.get(role) or ""
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in _route(model, role))
        for name, parameter in self.named_parameters():
            # Texts are pooled from their tokens: a pooler of BERT's own, unused, stalls distributed training.
            if "pooler" in name:
                parameter.requires_grad_(False)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks ``[B, T]`` of contexts, which lose their beginning where they are too long."""
        reader: Any = self.layers[0]
        tokenizer = reader.tokenizer
        before = tokenizer.truncation_side
        # What was said last matters most in a context.
        tokenizer.truncation_side = "left"
        try:
            encoded = tokenizer(
                [self._prompt + (text or " ") for text in texts],
                padding=True,
                truncation=True,
                max_length=reader.max_seq_length,
                return_tensors="pt",
            )
        finally:
            tokenizer.truncation_side = before
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """``u(c)`` of tokenised contexts: ``[B, d]``."""
        found: dict[str, Any] = dict(features)
        for layer in self.layers:
            found = layer(found)
        vectors: Tensor = found["sentence_embedding"]
        return normalize(vectors, dim=-1) if self.normalize else vectors

    @torch.no_grad()
    def encode_context(self, texts: Sequence[str], batch_size: int = 64) -> npt.NDArray[np.float32]:
        """``u(c)`` in evaluation mode, without dropout or gradients: float32 ``[n, d]``."""
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(texts), batch_size):
            features = self.tokenize(texts[start : start + batch_size])
            moved = {name: tensor.to(device) for name, tensor in features.items()}
            parts.append(self(moved).float().cpu().numpy())
        self.train(training)
        return np.concatenate(parts) if parts else np.empty((0, self._original[1].dim), dtype=np.float32)

    def retriever(self) -> SentenceTransformerRetriever:
        """This tower for contexts and the original for responses, as one bi-encoder that can be saved."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Router

        model, origin = self._original
        role = origin.response_role if isinstance(origin, SentenceTransformerRetriever) else "document"
        layers: list[Any] = list(self.layers)
        router = Router.for_query_document(query_modules=layers, document_modules=_route(model, role))
        prompts = {"query": self._prompt, "document": model.prompts.get(role) or ""}
        device = str(next(self.parameters()).device)
        both = SentenceTransformer(modules=[router], similarity_fn_name="dot", prompts=prompts, device=device)
        return SentenceTransformerRetriever(both, normalize=self.normalize, symmetric=False)

    def index(self, index: ResponseIndex, retriever: SentenceTransformerRetriever) -> ResponseIndex:
        """The same responses with the same vectors, as an index of the trained bi-encoder.

        An approximate index is built again.
        """
        vectors = index.vectors(np.arange(len(index)))
        return ResponseIndex.build(retriever, index.responses, config=index.config, vectors=vectors)


def _route(model: SentenceTransformer, role: str) -> list[Any]:
    """The modules that texts of a role go through."""
    layers: list[Any] = list(model)
    routes = getattr(layers[0], "sub_modules", None)
    if routes is None:
        return layers
    return [*routes[role], *layers[1:]]
