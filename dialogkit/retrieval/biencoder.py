"""A bi-encoder of two text encoders: build it, train it, and run it with little to import.

A bi-encoder maps contexts (what was said before) and responses (what answers it) into one space;
their raw inner product says how well the response fits. On disk it is a plain sentence-transformers
model whose ``Router`` has the routes ``query`` (contexts) and
``document`` (responses), so ``SentenceTransformer(folder).encode_query(...)`` works without this package.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainkit.hub import read_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dialogkit.dialogues import Example
    from trainkit.objectives import Loss

__all__ = [
    "BiEncoder",
    "BiEncoderObjective",
    "UnsupportedModelError",
    "biencoder_from",
    "build_biencoder",
    "contrastive_loss",
    "save_biencoder",
]

logger = logging.getLogger(__name__)

Route = Literal["query", "document"]


def contrastive_loss(
    context_emb: Tensor,
    response_emb: Tensor,
    score_scale: float = 1.0,
    *,
    bidirectional: bool = False,
    duplicates: Tensor | None = None,
) -> Tensor:
    r"""In-batch softmax: every context must find its own response among the batch's responses.

    .. math:: L = -\sum_i \log \frac{\exp(s\, c_i \cdot r_i)}{\sum_j \exp(s\, c_i \cdot r_j)}

    Cost: one ``B x B`` product.

    Args:
        context_emb: Context embeddings ``[B, d]``; row i belongs to row i of ``response_emb``.
        response_emb: Response embeddings ``[B, d]``.
        score_scale: The factor ``s`` on the raw inner product (an inverse temperature).
        bidirectional: Adds the same loss with the roles exchanged and halves the sum.
        duplicates: Boolean ``[B, B]``; true where response j also answers context i, so that it is no
            wrong answer and leaves the denominator. The diagonal is ignored.

    Returns:
        The loss summed over the B pairs, a scalar in float32.

    Raises:
        ValueError: The shapes do not agree.
    """
    if context_emb.ndim != 2 or context_emb.shape != response_emb.shape:
        raise ValueError(
            "context_emb and response_emb must both be [B, d], "
            f"got {tuple(context_emb.shape)} and {tuple(response_emb.shape)}"
        )
    # The softmax over many negatives loses its tail in half precision.
    with torch.autocast(context_emb.device.type, enabled=False):
        scores = score_scale * context_emb.float() @ response_emb.float().T
        if duplicates is not None:
            if duplicates.shape != scores.shape:
                raise ValueError(f"duplicates must be {tuple(scores.shape)}, got {tuple(duplicates.shape)}")
            own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(duplicates.to(scores.device) & ~own, -torch.inf)
        loss = -scores.log_softmax(dim=1).diagonal().sum()
        if bidirectional:
            loss = (loss - scores.log_softmax(dim=0).diagonal().sum()) / 2
        return loss


class BiEncoderObjective:
    """Trains both routes of a bi-encoder with :func:`contrastive_loss`, as a ``trainkit`` objective.

    The negatives of a pair are the other pairs of the same micro batch, so here (unlike for token
    losses) gradient accumulation is not the same as one large batch: prefer a micro batch that holds
    the whole step.

    Args:
        tokenizer: Fast tokenizer with a padding token; the one the bi-encoder was built with.
        score_scale: Factor on the inner product, see :func:`contrastive_loss`.
        max_length: Tokens read of a text; the rest is cut.
        context_turns: How many of the last turns of ``Example.context`` form the context, joined by a space.
        bidirectional: Also ask every response for its context.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        score_scale: float = 1.0,
        *,
        max_length: int = 64,
        context_turns: int = 1,
        bidirectional: bool = True,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a padding token")
        if context_turns < 1:
            raise ValueError(f"context_turns must be at least 1, got {context_turns}")
        self.tokenizer = tokenizer
        self.score_scale = score_scale
        self.max_length = max_length
        self.context_turns = context_turns
        self.bidirectional = bidirectional

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Turns pairs into a batch.

        Returns:
            ``context`` and ``response``: token ids and masks ``[B, T]``; ``duplicates`` ``[B, B]``, true
            where the two examples share their context or their response.

        Raises:
            ValueError: An example has no context.
        """
        for example in examples:
            if not example.context:
                raise ValueError(f"an example without context cannot train a bi-encoder: {example!r}")
        contexts = [" ".join(example.context[-self.context_turns :]) for example in examples]
        responses = [example.response for example in examples]
        shared = _equal_pairs(contexts) | _equal_pairs(responses)
        return {
            "context": self._tokenize(contexts),
            "response": self._tokenize(responses),
            "duplicates": torch.from_numpy(shared),
        }

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Loss:
        """Sums the loss over the batch's pairs; the weight is their number.

        Returns:
            A ``trainkit.Loss`` with the metric ``hits@1``: the share of contexts that score their own
            response highest in the batch.
        """
        from trainkit.objectives import Loss

        # Both routes go through the model's own forward, where a distributed wrapper hooks in.
        context = model(dict(batch["context"]), task="query")["sentence_embedding"]
        response = model(dict(batch["response"]), task="document")["sentence_embedding"]
        total = contrastive_loss(
            context,
            response,
            self.score_scale,
            bidirectional=self.bidirectional,
            duplicates=batch["duplicates"],
        )
        pairs = len(context)
        with torch.no_grad():
            best = (context.float() @ response.float().T).argmax(dim=1)
            hits = batch["duplicates"].to(best.device)[torch.arange(pairs, device=best.device), best].sum()
        return Loss(total=total, weight=pairs, metrics={"hits@1": (hits, pairs)})


def _equal_pairs(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    _, labels = np.unique(np.asarray(texts, dtype=object).astype(str), return_inverse=True)
    equal: npt.NDArray[np.bool_] = labels[:, None] == labels[None, :]
    return equal


def build_biencoder(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    intermediate_size: int = 512,
    max_length: int = 64,
    dropout: float = 0.1,
    shared: bool = False,
) -> SentenceTransformer:
    """Builds an untrained bi-encoder: two small BERT-like encoders with mean pooling.

    The encoders are DistilBERT: BERT without the pooler and segment embeddings, which mean pooling of
    single texts would leave unused (and unused weights stall distributed training). Weights are drawn
    from torch's global generator; seed it for repeatable weights.

    Args:
        tokenizer: Fast tokenizer with a padding token.
        hidden_size: Width d of the tokens and of the embeddings.
        num_layers: Transformer layers of each route.
        num_heads: Attention heads; must divide ``hidden_size``.
        intermediate_size: Width of the feed-forward layers.
        max_length: Tokens read of a text; longer texts are cut.
        dropout: Dropout probability while training.
        shared: One encoder for both routes instead of two; the model is then symmetric.

    Returns:
        A ``SentenceTransformer`` with routes ``query`` (contexts) and ``document`` (responses) whose
        similarity is the raw inner product. Ready for plain torch training or ``.save_pretrained``.

    Raises:
        ValueError: The tokenizer has no padding token or the sizes do not fit.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("tokenizer must have a padding token")
    if hidden_size % num_heads:
        raise ValueError(f"num_heads must divide hidden_size={hidden_size}, got {num_heads}")

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Module, Pooling, Router, Transformer
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        dim=hidden_size,
        n_layers=num_layers,
        n_heads=num_heads,
        hidden_dim=intermediate_size,
        dropout=dropout,
        attention_dropout=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )

    def route() -> list[Module]:
        # sentence-transformers only reads encoders from a folder.
        with tempfile.TemporaryDirectory() as folder, quiet_progress():
            DistilBertModel(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            encoder = Transformer(folder, max_seq_length=max_length)
        encoder.model.name_or_path = encoder.model.config._name_or_path = ""
        return [encoder, Pooling(hidden_size, pooling_mode="mean")]

    query = route()
    document = query if shared else route()
    router = Router.for_query_document(query_modules=query, document_modules=document)
    return SentenceTransformer(modules=[router], similarity_fn_name="dot", device="cpu")


def biencoder_from(
    encoder: str | os.PathLike[str],
    *,
    shared: bool = False,
    pooling: Literal["mean", "cls"] = "mean",
    normalize: bool = False,
    max_context_tokens: int = 240,
    max_response_tokens: int = 128,
) -> SentenceTransformer:
    """Makes an untrained bi-encoder of a pretrained text encoder, one copy for each route.

    Args:
        encoder: Folder of a transformers encoder, or of a sentence-transformers model that holds one.
        shared: One copy for both routes; the model is then symmetric.
        pooling: Mean over tokens, or the first token.
        normalize: Scale embeddings to length 1. The loss then needs a ``score_scale`` of 10 to 50.
        max_context_tokens: Tokens read of a context, the last ones; with ``shared`` of a response, too.
        max_response_tokens: Tokens read of a response, the first ones.

    Returns:
        A ``SentenceTransformer`` as :func:`build_biencoder` returns it.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Module,
        Normalize,
        Pooling,
        Router,
        Transformer,
    )

    folder = Path(encoder)
    if not (folder / "config.json").is_file():
        inner = sorted(
            path.parent
            for path in folder.glob("*/config.json")
            if (path.parent / "tokenizer_config.json").is_file()
        )
        if not inner:
            raise FileNotFoundError(f"no encoder (config.json with a tokenizer) in {folder}")
        folder = inner[0]

    def route(limit: int, side: Literal["left", "right"]) -> list[Module]:
        # What was said last matters most in a context. Saved with the tokenizer, so every loader cuts alike.
        cut = {"truncation_side": side}
        with quiet_progress():
            transformer = Transformer(os.fspath(folder), max_seq_length=limit, processor_kwargs=cut)
        modules: list[Module] = [
            transformer,
            Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling),
        ]
        return [*modules, Normalize()] if normalize else modules

    query = route(max_context_tokens, "left")
    document = query if shared else route(max_response_tokens, "right")
    router = Router.for_query_document(query_modules=query, document_modules=document)
    return SentenceTransformer(modules=[router], similarity_fn_name="dot", device="cpu")


def save_biencoder(
    model: SentenceTransformer,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Saves a bi-encoder with weights in ``dtype`` that still loads and computes in float32.

    The configuration keeps saying float32, so :class:`BiEncoder` and ``SentenceTransformer(folder)`` both
    widen the weights when they load. The model in memory is left as it is.

    Args:
        model: What :func:`build_biencoder` returned, trained.
        folder: Where to write, all or nothing.
        dtype: Storage type of the weights.
        overwrite: Replace a folder that is not empty, with all that it holds.

    Raises:
        FileExistsError: The folder is not empty and ``overwrite`` is false.
        ValueError: A weight does not fit into ``dtype`` (half precision overflows at 65,504).
    """
    from safetensors.torch import load_file, save

    from trainkit.hub import atomic_directory

    with atomic_directory(Path(folder), replace=overwrite) as temporary:
        with quiet_progress():
            model.save_pretrained(os.fspath(temporary), create_model_card=False)
        for path in sorted(temporary.rglob("*.safetensors")):
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    place = path.relative_to(temporary)
                    raise ValueError(f"weight {name} of {place} has values that {dtype} cannot hold")
            path.write_bytes(save(tensors, metadata={"format": "pt"}))


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Hides transformers' progress bars inside the block: these files take milliseconds to read."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class UnsupportedModelError(ValueError):
    """A sentence-transformers folder has parts that the light loader does not run."""


@dataclass(frozen=True)
class _Encoder:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    cut: Literal["left", "right"]
    lower_case: bool
    pooling: Literal["mean", "cls"]
    normalize: bool
    prompt: str


class BiEncoder:
    """Runs a saved bi-encoder with transformers alone.

    Importing sentence-transformers takes several seconds; this loader reads the same folders without
    it and gives the same vectors. Only a context that is too long is always cut from the left here, so that
    the last turn of a conversation is read. It runs models made of a Transformer, mean or first-token Pooling
    and optional Normalize, with or without a Router; for anything else use
    :class:`~dialogkit.retrieval.SentenceTransformerRetriever`. Half-precision weights are widened to float32.

    Args:
        folder: A sentence-transformers folder (with ``modules.json``).
        device: Torch device; the GPU when there is one, otherwise the CPU.
        batch_size: Texts in one forward pass; bounds the memory.

    Attributes:
        dim: Embedding size d.
        symmetric: True when contexts and responses share one encoder, so that a text is most similar to
            its paraphrases rather than to its answers.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        UnsupportedModelError: The folder holds modules that this loader does not run.
        ValueError: A file of the folder is corrupt.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.path = Path(folder)
        self.batch_size = batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        routes = self._routes = _read_routes(self.path)
        self.symmetric = routes["query"][0] == routes["document"][0]
        self._files: set[Path] = set()
        query = self._load_encoder(routes["query"][0], routes["query"][1])
        if self.symmetric:
            document = replace(query, prompt=routes["document"][1])
        else:
            document = self._load_encoder(routes["document"][0], routes["document"][1])
        # What was said last matters most in a context, whatever the encoder was made for.
        query = replace(query, cut="left")
        self._encoders: dict[Route, _Encoder] = {"query": query, "document": document}
        dims = {encoder.model.config.hidden_size for encoder in (query, document)}
        if len(dims) != 1:
            raise ValueError(f"the two encoders in {self.path} have different sizes: {sorted(dims)}")
        self.dim = int(dims.pop())
        self._warned = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the vectors: weights, tokenizers, routes, prompts, settings."""
        from trainkit.hub import fingerprint

        parts: list[str | Path] = [repr(sorted(self._routes.items()))]
        for path in sorted(self._files):
            parts += [path.relative_to(self.path).as_posix(), path]
        return fingerprint(*parts)

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds contexts.

        Args:
            texts: n texts. One without any token gets the zero vector; one that is too long loses its
                beginning, with a warning in the log once.

        Returns:
            ``float32 [n, d]``.
        """
        return self._encode(texts, "query")

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds responses; see :meth:`encode_context`.

        One that is too long loses its end, unless the tokenizer's settings say otherwise.

        Returns:
            ``float32 [n, d]``.
        """
        return self._encode(texts, "document")

    def _load_encoder(self, folders: tuple[str, ...], prompt: str) -> _Encoder:
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        root, pooling_folder, normalize = self.path / folders[0], self.path / folders[1], len(folders) > 2
        if not (root / "config.json").is_file():
            raise FileNotFoundError(f"no config.json in {root}")
        if not any(root.glob("*.safetensors")):
            raise FileNotFoundError(f"no safetensors weights in {root}")
        settings_path = root / "sentence_bert_config.json"
        settings = read_json(settings_path) if settings_path.is_file() else {}
        try:
            with quiet_progress():
                # Other weight files are pickles, which may run code when they are read.
                model = AutoModel.from_pretrained(
                    root, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
        except SafetensorError as error:
            raise ValueError(f"the weights in {root} are corrupt: {error}") from error
        tokenizer = AutoTokenizer.from_pretrained(root, local_files_only=True)
        lengths = [
            settings.get("max_seq_length"),
            tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None),
        ]
        # Only what decides the vectors: a model card or an index beside it must not change the fingerprint.
        names = ("*.safetensors", "config.json", "tokenizer*", "vocab*", "merges.txt")
        self._files |= {path for name in names for path in root.glob(name) if path.is_file()}
        self._files.add(pooling_folder / "config.json")
        if settings:
            self._files.add(settings_path)
        return _Encoder(
            model=model.eval().to(self.device),
            tokenizer=tokenizer,
            max_length=min(int(length) for length in lengths if length),
            cut="left" if tokenizer.truncation_side == "left" else "right",
            lower_case=bool(settings.get("do_lower_case")),
            pooling=_read_pooling(pooling_folder),
            normalize=normalize,
            prompt=prompt,
        )

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], route: Route) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        if not len(texts):
            return vectors
        encoder = self._encoders[route]
        prepared = [encoder.prompt + (text.lower() if encoder.lower_case else text) for text in texts]
        encoder.tokenizer.truncation_side = encoder.cut
        ids = encoder.tokenizer(
            prepared, truncation=True, max_length=encoder.max_length, padding=False, verbose=False
        )["input_ids"]
        self._warn_if_cut(prepared, ids, encoder)
        # Texts of like length together: less padding. Texts without tokens keep the zero vector.
        order = [i for i in np.argsort([len(row) for row in ids], kind="stable").tolist() if ids[i]]
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = encoder.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            batch = batch.to(self.device)
            hidden = encoder.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            if encoder.pooling == "cls":
                pooled = hidden[:, 0]
            else:
                mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            if encoder.normalize:
                pooled = nn.functional.normalize(pooled, dim=-1)
            vectors[rows] = pooled.float().cpu().numpy()
        return vectors

    def _warn_if_cut(self, texts: Sequence[str], ids: Sequence[Sequence[int]], encoder: _Encoder) -> None:
        if self._warned:
            return
        for text, row in zip(texts, ids, strict=True):
            # A row at the limit may just fit: only then is the text tokenised again, in full.
            full = len(row) >= encoder.max_length
            if full and len(encoder.tokenizer(text, verbose=False)["input_ids"]) > encoder.max_length:
                self._warned = True
                logger.warning(
                    "%s reads the %s %d tokens of a %s; a longer one was cut (said once)",
                    self.path.name,
                    "last" if encoder.cut == "left" else "first",
                    encoder.max_length,
                    "context" if encoder is self._encoders["query"] else "response",
                )
                return


def _read_routes(root: Path) -> dict[Route, tuple[tuple[str, ...], str]]:
    """Finds the module folders, relative to ``root``, and the prompt of each route."""
    if not root.is_dir():
        raise FileNotFoundError(f"no such model folder: {root}")
    modules = [
        (module["type"].rsplit(".", 1)[-1], module["path"]) for module in read_json(root / "modules.json")
    ]
    after = [module for module in modules if module[0] not in ("Router", "Asym")]
    if len(after) < len(modules):
        router = next(path for kind, path in modules if kind in ("Router", "Asym"))
        config_path = root / router / "router_config.json"
        config = read_json(config_path if config_path.is_file() else root / router / "config.json")
        chains: dict[Route, list[tuple[str, str]]] = {}
        routes: tuple[Route, ...] = ("query", "document")
        for route in routes:
            if route not in config["structure"]:
                raise UnsupportedModelError(
                    f"{root} routes {sorted(config['structure'])}; expected 'query' and 'document'"
                )
            chains[route] = [
                (config["types"][name].rsplit(".", 1)[-1], f"{router}/{name}" if router else name)
                for name in config["structure"][route]
            ] + after
    else:
        chains = {"query": modules, "document": modules}
    kinds = [["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]]
    for chain in chains.values():
        found = [kind for kind, _ in chain]
        if found not in kinds:
            raise UnsupportedModelError(
                f"{root} is made of {found}; expected Transformer, Pooling and optional Normalize"
            )
    settings_path = root / "config_sentence_transformers.json"
    prompts = (read_json(settings_path) if settings_path.is_file() else {}).get("prompts") or {}
    texts: dict[Route, str] = {
        "query": prompts.get("query") or "",
        "document": next(
            (prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), ""
        ),
    }
    return {route: (tuple(path for _, path in chain), texts[route]) for route, chain in chains.items()}


def _read_pooling(folder: Path) -> Literal["mean", "cls"]:
    config = read_json(folder / "config.json")
    legacy = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = config.get("pooling_mode") or [
        legacy.get(name, name) for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes == ["mean"] and config.get("include_prompt", True):
        return "mean"
    if modes == ["cls"]:
        return "cls"
    raise UnsupportedModelError(f"{folder} pools by {modes}; the light loader knows 'mean' and 'cls'")
