"""Any transformers sequence classifier as logits, the vector its head reads, and gradients."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.classifiers.cache import WeightsDigest, open_cache
from robustkit.classifiers.features import Features, Text
from robustkit.classifiers.folders import model_folder
from robustkit.classifiers.heads import (
    Pooling,
    Position,
    Reading,
    find_reading,
    hidden_state,
    pool,
    watched_encoder,
)
from trainkit.hub import fingerprint
from trainkit.progress import Progress
from trainkit.seeding import preserved_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TextClassifier", "TokenGradients"]

_log = logging.getLogger(__name__)

# Padded tokens in one batch. On a processor more gains nothing; on a GPU memory is the limit, and the number
# is halved when it does not suffice.
_TOKENS = {"cpu": 2048, "cuda": 65_536}
# Texts that are tokenized and sorted together: bounds the memory for tokens and sets how often a disk cache
# is written.
_CHUNK = 16_384
_DEFAULT_LENGTH = 512
# What UTF-8, and so a tokenizer, cannot take.
_HALF = re.compile("[\ud800-\udfff]")
# They name the origin of a model and the library that saved it, not what it computes.
_NOT_CONTENT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class TokenGradients(NamedTuple):
    """How the loss of one text, or its margin, changes with its tokens.

    Attributes:
        tokens: The T tokens, special ones included.
        offsets: int64 ``(T, 2)``: first character and the one after the last; (0, 0) for special tokens, and
            for all with a tokenizer that keeps no offsets.
        gradient: float32 ``(T, d)``: by the input embeddings.
    """

    tokens: tuple[str, ...]
    offsets: NDArray[np.int64]
    gradient: NDArray[np.float32]


@dataclass(frozen=True)
class _Tokens:
    """One tokenized text."""

    ids: NDArray[np.int64]
    types: NDArray[np.int64] | None
    offsets: NDArray[np.int64] | None


class TextClassifier:
    """A transformers sequence classifier with its tokenizer.

    Texts are sorted by length and padded to the longest of their batch; results come in the order of the
    texts, and texts that occur several times are computed once. The model's mode, gradients, device and the
    random state are afterwards as they were.

    Args:
        model: What ``AutoModelForSequenceClassification`` gives, with two classes or more.
        tokenizer: Its tokenizer.
        name: What tables call it; by default the name that it was loaded by, or its class.
        layer: Index into the hidden states whose vector `extract` takes: -1 is the last, 0 the embeddings.
        pooling: ``"auto"``: where the head reads (for BERT the first token of the last hidden state, before
            the tanh pooler, as in Yoo et al. 2022). ``"first"``, ``"last"`` (that is no padding), ``"mean"``
            over tokens, ``"pooler"``: the encoder's ``pooler_output``. Or a function of hidden states
            ``(n, T, d)`` and attention mask ``(n, T)`` that gives ``(n, d)``.
        max_length: Tokens, special ones included, after which a text is cut off (with a warning, once). By
            default the most that model and tokenizer take, 512 if neither says.
        batch_size: Texts in one batch. ``"auto"``: as many as make 2,048 tokens with padding (65,536 on a
            GPU). Both are halved when memory does not suffice.
        device: Where to move the model; None leaves it where it is.
        dtype: ``"auto"``: bfloat16 autocast on a GPU, otherwise the model's own. Or ``"float32"`` (no
            autocast), ``"bfloat16"``, ``"float16"`` or the torch dtype.
        cache: Results are remembered by text, fingerprint of the model, layer, pooling, maximum length and
            dtype: that many texts in memory (an int), or all in a folder on disk. None remembers nothing.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
        name: See above.
        labels: Names of the classes.
        num_labels: C.
        max_length: See above.

    Raises:
        TypeError: An argument of the wrong kind.
        ValueError: The model gives one number (a regression) or independent labels, or an argument is out of
            range.

    Example:
        >>> classifier = TextClassifier.from_pretrained("textattack/bert-base-uncased-SST-2")
        >>> classifier.predict(["a fine film", "a waste of time"])
        array([1, 0])
        >>> classifier.extract(texts).values.shape
        (1821, 768)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        layer: int = -1,
        pooling: Pooling = "auto",
        max_length: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        cache: int | str | Path | None = None,
    ) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
            raise TypeError(f"model is a {type(model).__name__}; expected a transformers sequence classifier")
        if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer")
        config = model.config
        labels = {int(i): str(label) for i, label in (config.id2label or {}).items()}
        if len(labels) < 2 or config.problem_type in ("regression", "multi_label_classification"):
            raise ValueError(
                f"{type(model).__name__} with {len(labels)} labels and problem type {config.problem_type} is "
                "no classifier of exclusive classes"
            )
        if pooling not in ("auto", "first", "last", "mean", "pooler") and not callable(pooling):
            raise ValueError(
                f"pooling is {pooling!r}; expected auto, first, last, mean, pooler or a function"
            )
        if pooling == "pooler" and layer != -1:
            raise ValueError(f"pooling='pooler' reads the last layer, layer is {layer}")
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size is {batch_size!r}; expected 'auto' or a number from 1")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name if name is not None else config._name_or_path or type(model).__name__
        self.labels = tuple(labels[i] for i in range(len(labels)))
        self.num_labels = len(self.labels)
        self.layer = layer
        self.pooling: Pooling = pooling
        self.max_length = _max_length(model, tokenizer, max_length)
        if device is not None:
            model.to(device)  # type: ignore[arg-type]  # its wrapper is annotated without the device
        self._dtype = _as_dtype(dtype)
        self._cache = open_cache(cache)
        if callable(pooling) and self._cache is not None and not isinstance(cache, int):
            raise ValueError("a cache on disk cannot tell one pooling function from another; use cache=<int>")
        self._pad = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        self._rows = None if batch_size == "auto" else batch_size
        self._tokens: int | None = None
        self._reading: Reading | None = None
        self._weights = WeightsDigest(model)
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        *,
        revision: str | None = None,
        name: str | None = None,
        layer: int = -1,
        pooling: Pooling = "auto",
        max_length: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        cache: int | str | Path | None = None,
    ) -> Self:
        """Load a classifier from a folder or the Hugging Face Hub; safetensors weights only.

        Args:
            folder_or_id: A folder with model and tokenizer, or a repository.
            revision: Branch, tag or commit of the repository.
            name: See the class, as for the rest.
            layer: See the class.
            pooling: See the class.
            max_length: See the class.
            batch_size: See the class.
            device: See the class.
            dtype: See the class.
            cache: See the class.

        Raises:
            FileNotFoundError: The folder, or its safetensors weights, are missing.
            ValueError: The folder holds no classifier, or one whose head is not trained.
            HubError: See `trainkit.resolve`.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = model_folder(folder_or_id, revision)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        if loading["missing_keys"]:
            raise ValueError(
                f"{os.fspath(folder_or_id)!r} is no trained {type(model).__name__}: it has no weights for "
                f"{', '.join(sorted(loading['missing_keys'])[:3])}"
            )
        return cls(
            model.eval(),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            name=os.fspath(folder_or_id) if name is None else name,
            layer=layer,
            pooling=pooling,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            cache=cache,
        )

    def __repr__(self) -> str:
        return (
            f"TextClassifier({self.name!r}, {self.num_labels} classes, layer={self.layer}, "
            f"pooling={_name(self.pooling)!r}, max_length={self.max_length}, device='{self.device}')"
        )

    # Identity -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration and tokenizer: the same for the same model by whatever name.

        Taken at the first use (a second for half a gigabyte of weights), and anew after the weights were
        changed in place, as training does.
        """
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_CONTENT}
        described = json.dumps(config, sort_keys=True, default=str)
        return fingerprint(self._weights(), described, self._splitting)

    @cached_property
    def _splitting(self) -> str:
        return fingerprint(_described(self.tokenizer))

    @property
    def source(self) -> str:
        """Fingerprint of everything that the vectors of `extract` depend on, up to rounding."""
        return fingerprint(self.fingerprint, self.layer, _name(self.pooling), self.max_length)

    # What it says of texts ----------------------------------------------------------------------------------

    def logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Logits of texts.

        Args:
            texts: n texts or pairs of texts, empty ones too; a single str is one text.

        Returns:
            float32 ``(n, C)``.

        Raises:
            TypeError: Something that is no text.
            ValueError: The model gives NaN or infinite numbers.
        """
        return self._results(_as_texts(texts), vectors=False)[:, : self.num_labels]

    def probabilities(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """The softmax of `logits`: float32 ``(n, C)``."""
        return torch.from_numpy(self.logits(texts)).softmax(dim=1).numpy()

    def predict(self, texts: Sequence[Text]) -> NDArray[np.int64]:
        """The class of the largest logit: int64 ``(n,)``."""
        return np.asarray(self.logits(texts).argmax(axis=1), dtype=np.int64)

    def extract(self, texts: Sequence[Text], *, progress: bool = False) -> Features:
        """Vectors, logits and predictions of texts from one forward pass each.

        Args:
            texts: As for `logits`.
            progress: Whether to show a bar.

        Returns:
            Features with values ``(n, d)``.

        Raises:
            TypeError: Something that is no text.
            ValueError: What the head reads cannot be told, there is no such layer or pooler, or the model
                gives NaN or infinite numbers.
        """
        items = _as_texts(texts)
        if not items:
            return self.extract([""])[:0]
        rows = self._results(items, vectors=True, progress=progress)
        return Features.of(
            rows[:, self.num_labels :],
            logits=rows[:, : self.num_labels],
            texts=items,
            source=self.source,
        )

    def extract_encoded(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of texts that are tokenized and padded already; nothing is cached.

        Args:
            batch: As from `encode`: ``input_ids``, ``attention_mask`` and what else the model takes, int64
                ``(n, T)``.

        Returns:
            Features of n texts, without the texts.

        Raises:
            ValueError: See `extract`.
        """
        with self._undisturbed(), torch.no_grad():
            rows = self._run(dict(batch), vectors=True)
        return Features.of(rows[:, self.num_labels :], logits=rows[:, : self.num_labels], source=self.source)

    def _results(self, items: list[Text], *, vectors: bool, progress: bool = False) -> NDArray[np.float32]:
        """Logits and, where asked for or cached, vectors behind them: float32 (n, C) or (n, C + d)."""
        if not items:
            return np.empty((0, self.num_labels), np.float32)
        vectors = vectors or self._cache is not None
        distinct = list(dict.fromkeys(items))
        place = {item: i for i, item in enumerate(distinct)}
        key = self._cache_key() if self._cache is not None else None
        parts = []
        with self._undisturbed(), torch.no_grad(), Progress(len(distinct), "texts", enabled=progress) as bar:
            for start in range(0, len(distinct), _CHUNK):
                chunk = distinct[start : start + _CHUNK]
                if self._cache is None or key is None:
                    parts.append(self._forward(chunk, vectors, bar))
                    continue
                keys = [key(item) for item in chunk]
                known = self._cache.get(keys)
                bar.advance(len(known))
                missing = [i for i, k in enumerate(keys) if k not in known]
                if missing:
                    rows = self._forward([chunk[i] for i in missing], vectors, bar)
                    new = {keys[i]: row for i, row in zip(missing, rows, strict=True)}
                    self._cache.put(new)
                    known |= new
                parts.append(np.stack([known[k] for k in keys]))
        return np.concatenate(parts)[[place[item] for item in items]]

    def _cache_key(self) -> Callable[[Text], bytes]:
        prefix = f"{self.source} {self.model.dtype} {self._autocast()} ".encode()
        # JSON tells a text from a pair, and two pairs apart.
        return lambda item: hashlib.sha256(prefix + json.dumps(item).encode()).digest()

    def _forward(self, items: list[Text], vectors: bool, bar: Progress) -> NDArray[np.float32]:
        tokens = self._tokenize(items)
        side = self._read().padding_side
        results: NDArray[np.float32] | None = None

        def run(rows: list[int]) -> None:
            nonlocal results
            found = self._run(self._batch([tokens[i] for i in rows], side), vectors)
            bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
            if bad.size:
                text = str(items[rows[bad[0]]])
                raise ValueError(
                    f"{self.name} gives NaN or infinite numbers for {text[:60]!r}; "
                    "its weights are broken, or float16 is too narrow for them"
                )
            if results is None:
                results = np.empty((len(items), found.shape[1]), np.float32)
            results[rows] = found
            bar.advance(len(rows))

        kind = self._autocast()
        # Around all batches: autocast converts the weights once for each time it is entered.
        with nullcontext() if kind is None else torch.autocast(self.device.type, kind):
            self._in_batches(tokens, run)
        assert results is not None
        return results

    def _autocast(self) -> torch.dtype | None:
        if self._dtype is not None:
            return None if self._dtype == torch.float32 else self._dtype
        return torch.bfloat16 if self.device.type == "cuda" and self.model.dtype == torch.float32 else None

    def _run(self, batch: dict[str, Tensor], vectors: bool) -> NDArray[np.float32]:
        arguments: dict[str, Any] = dict(batch)
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        if vectors and self.layer != -1:
            arguments["output_hidden_states"] = True
        if vectors:
            with watched_encoder(self.model) as outputs:
                logits = self.model(**arguments).logits
            parts = [logits, self._vector(outputs[-1], batch)]
        else:
            parts = [self.model(**arguments).logits]
        return torch.cat([part.float() for part in parts], dim=1).cpu().numpy()

    def _vector(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        if self.pooling == "pooler":
            pooled: Tensor | None = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(f"{type(self.model).__name__} has no pooler; choose another pooling")
            return pooled
        state = hidden_state(output, self.layer)
        if callable(self.pooling):
            pooled = self.pooling(state, batch["attention_mask"])
            if not isinstance(pooled, Tensor) or pooled.ndim != 2 or len(pooled) != len(state):
                raise ValueError(
                    f"the pooling function must give a tensor ({len(state)}, d), got {pooled!r:.200}"
                )
            return pooled
        position: Position | None = self._read().position if self.pooling == "auto" else self.pooling
        if position is None:
            raise ValueError(
                f"which vector the head of {type(self.model).__name__} reads cannot be told: it is neither "
                "the first token nor the last nor the mean; say pooling=... or give a function"
            )
        return pool(
            state, position, batch["attention_mask"], batch["input_ids"], self.model.config.pad_token_id
        )

    def _read(self) -> Reading:
        """What the head reads; must be called in evaluation mode."""
        if self._reading is None:
            tokens = self._tokenize(["one two three"])

            def padded(side: Literal["left", "right"]) -> dict[str, Tensor]:
                return self._batch(tokens, side, extra=0 if self._pad is None else 2)

            self._reading = find_reading(self.model, self._batch(tokens, "right"), padded)
        return self._reading

    # Batches ------------------------------------------------------------------------------------------------

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Run the model in evaluation mode; mode and random state are restored."""
        training = [module for module in self.model.modules() if module.training]
        # What is made in inference mode cannot be differentiated, and some models keep tensors.
        with preserved_rng(), torch.inference_mode(False):
            try:
                if training:
                    self.model.eval()
                yield
            finally:
                for module in training:
                    module.training = True

    def _tokenize(self, items: Sequence[Text], *, offsets: bool = False) -> list[_Tokens]:
        found: list[_Tokens] = []
        for start in range(0, len(items), 1000):
            part = items[start : start + 1000]
            found += self._encoded(part, self.max_length + 1, offsets)
        long = [i for i, tokens in enumerate(found) if len(tokens.ids) > self.max_length]
        if long:
            if not self._warned:
                warnings.warn(
                    f"{len(long)} of {len(items)} texts have more than {self.max_length} tokens; {self.name} "
                    "sees their beginning only (said once)",
                    stacklevel=2,
                )
                self._warned = True
            for i, tokens in zip(
                long, self._encoded([items[i] for i in long], self.max_length, offsets), strict=True
            ):
                found[i] = tokens
        return found

    def _encoded(self, items: Sequence[Text], max_length: int, offsets: bool) -> list[_Tokens]:
        # One call for texts and one for pairs: tokenizers take no mixture.
        found: dict[int, _Tokens] = {}
        for pairs in (False, True):
            rows = [i for i, item in enumerate(items) if isinstance(item, tuple) == pairs]
            if not rows:
                continue
            chosen = [items[i] for i in rows]
            sides = ([item[0] for item in chosen], [item[1] for item in chosen]) if pairs else (chosen,)
            encoded = self.tokenizer(
                *sides,
                truncation=True,
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_offsets_mapping=offsets and self.tokenizer.is_fast,
                verbose=False,
            )
            for place, row in enumerate(rows):
                found[row] = self._tokens_of(encoded, place)
        return [found[i] for i in range(len(items))]

    def _tokens_of(self, encoded: Any, place: int) -> _Tokens:
        ids = encoded["input_ids"][place]
        types = encoded["token_type_ids"][place] if "token_type_ids" in encoded else None
        offsets = encoded["offset_mapping"][place] if "offset_mapping" in encoded else None
        if not ids:
            # A tokenizer without special tokens makes nothing of an empty text, and a model needs a token.
            tokenizer = self.tokenizer
            start = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, self._pad, 0)
            ids = [next(token for token in start if token is not None)]
            types = None if types is None else [0]
            offsets = None if offsets is None else [(0, 0)]
        return _Tokens(
            np.array(ids, np.int64),
            None if types is None else np.array(types, np.int64),
            None if offsets is None else np.array(offsets, np.int64),
        )

    def _batch(
        self, tokens: Sequence[_Tokens], side: Literal["left", "right"], extra: int = 0
    ) -> dict[str, Tensor]:
        """Tensors ``(n, T)`` on the model's device, T the longest of the texts plus ``extra``."""
        length = max(len(one.ids) for one in tokens) + extra
        shape = (len(tokens), length)
        ids = np.full(shape, 0 if self._pad is None else self._pad, np.int64)
        mask = np.zeros(shape, np.int64)
        types = np.full(shape, self.tokenizer.pad_token_type_id, np.int64)
        for row, one in enumerate(tokens):
            n = len(one.ids)
            there = slice(0, n) if side == "right" else slice(length - n, length)
            ids[row, there] = one.ids
            mask[row, there] = 1
            if one.types is not None:
                types[row, there] = one.types
        arrays = {"input_ids": ids, "attention_mask": mask}
        if tokens[0].types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def _in_batches(self, tokens: Sequence[_Tokens], run: Callable[[list[int]], None]) -> None:
        """Call ``run`` with the rows of each batch, longest first; with smaller ones if memory runs out."""
        # BART's and T5's heads refuse a batch of texts with different numbers of <eos>; pairs have more.
        config = self.model.config
        eos = config.eos_token_id if config.is_encoder_decoder else None
        ends = [0 if eos is None else int((one.ids == eos).sum()) for one in tokens]
        order = sorted(range(len(tokens)), key=lambda i: (ends[i], -len(tokens[i].ids)))
        # Without a padding token in its configuration a head cannot tell the last token from padding.
        alone = self._pad is None or (config.pad_token_id is None and self._read().position == "last")
        exact = not self._read().ignores_padding
        start = 0
        while start < len(order):
            longest = len(tokens[order[start]].ids)
            budget = self._tokens or _TOKENS.get(self.device.type, _TOKENS["cuda"])
            size = 1 if alone else max(1, budget // longest) if self._rows is None else self._rows
            first = order[start]
            rows = [i for i in order[start : start + size] if ends[i] == ends[first]]
            if exact:
                rows = [i for i in rows if len(tokens[i].ids) == longest]
            try:
                run(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                smaller = len(rows) // 2
                if self._rows is None:
                    self._tokens = smaller * longest
                else:
                    self._rows = smaller
                _log.info("memory does not suffice for %d texts of %d tokens; halved", len(rows), longest)
                continue
            start += len(rows)

    # Gradients ----------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Texts as one padded batch, as the model takes it.

        Args:
            texts: n texts or pairs, at least one.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``: int64
            ``(n, T)`` on the model's device.
        """
        items = _as_texts(texts)
        if not items:
            raise ValueError("texts is empty; a batch needs at least one")
        with self._undisturbed():
            return self._batch(self._tokenize(items), self._read().padding_side)

    def embeddings(self, input_ids: Tensor) -> Tensor:
        """Input embeddings ``(n, T, d)`` of token ids ``(n, T)``, without positions and types, detached."""
        with torch.no_grad():
            embedded: Tensor = self._embedding()(input_ids)
        return embedded

    def logits_from_embeddings(
        self,
        embeddings: Tensor,
        attention_mask: Tensor,
        *,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of texts whose input embeddings are given; differentiable by them.

        The ids still say where special tokens and padding are, so that positions, types and the head are
        right for every architecture. The model runs in evaluation mode, without autocast.

        Args:
            embeddings: ``(n, T, d)``, as `embeddings` gives them, changed at will.
            attention_mask: ``(n, T)``, from `encode`.
            input_ids: ``(n, T)``, from `encode`.
            token_type_ids: ``(n, T)``, from `encode` where it gives them.

        Returns:
            ``(n, C)``.

        Raises:
            ValueError: A shape does not fit.

        Example:
            >>> batch = classifier.encode(texts)
            >>> embedded = classifier.embeddings(batch["input_ids"]).requires_grad_()
            >>> logits = classifier.logits_from_embeddings(embedded, **batch)
        """
        if embeddings.shape[:2] != input_ids.shape or attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"embeddings {tuple(embeddings.shape)}, attention_mask {tuple(attention_mask.shape)} and "
                f"input_ids {tuple(input_ids.shape)} do not fit together; take the latter two from encode"
            )
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids

        with self.changing_embeddings(lambda _: embeddings, input_ids, token_type_ids), self._undisturbed():
            logits: Tensor = self.model(**batch).logits
        return logits

    @contextmanager
    def changing_embeddings(
        self, change: Callable[[Tensor], Tensor], input_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Iterator[None]:
        """While it lasts the model reads other input embeddings than those of its tokens.

        Call the model as ever, with ids, mask and types: positions and the head then follow from the ids,
        which ``inputs_embeds`` would hide from them (RoBERTa counts positions from padding, other heads look
        for the last token).

        Args:
            change: What the model embeds, ``(n, T, d)`` with gradients, to what it shall read instead. An
                encoder and a decoder over the same text ask it once each.
            input_ids: ``(n, T)``, those that the model will get.
            token_type_ids: ``(n, T)``, where the model gets them.

        Raises:
            ValueError: In the model's pass: it embeds other tokens than these.
        """

        def replace(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            ids, length = arguments[0], input_ids.shape[1]
            if torch.equal(ids[:, :length], input_ids):  # Longformer pads to whole windows.
                return torch.cat([change(output[:, :length]), output[:, length:]], dim=1)
            if token_type_ids is not None and torch.equal(
                ids, token_type_ids
            ):  # XLM has no others for types.
                return output
            if torch.equal(ids, input_ids.T):  # XLNet's axes are swapped.
                return change(output.transpose(0, 1)).transpose(0, 1)
            if torch.equal(ids[:, 1:], input_ids[:, :-1]):  # A decoder's input begins with another token.
                return torch.cat([output[:, :1], change(output.roll(-1, dims=1))[:, :-1]], dim=1)
            raise ValueError(f"{type(self.model).__name__} does not embed the tokens that it is given")

        # Encoder and decoder may have modules of their own around the same weights.
        weight = self._embedding().weight
        handles = [
            module.register_forward_hook(replace)
            for module in self.model.modules()
            if isinstance(module, nn.Embedding) and module.weight is weight
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def token_gradients(
        self, texts: Sequence[Text], labels: Sequence[int], *, of: Literal["loss", "margin"] = "loss"
    ) -> list[TokenGradients]:
        """Gradients of the cross-entropy, or of the margin, by the input embeddings of each text's tokens.

        No gradient is left in the model. Each text's loss is its own: the others of the batch do not matter.

        Args:
            texts: n texts or pairs.
            labels: The class that is meant, for each text.
            of: ``"loss"``, the cross-entropy of the class, or ``"margin"``, its logit minus the largest of
                the others, whose gradient does not vanish where the classifier is sure.

        Returns:
            For each text its tokens, their offsets and the gradient; iterable as such a triple.

        Raises:
            ValueError: Another number of labels than of texts, no such class, or ``of`` is something else.
        """
        if of not in ("loss", "margin"):
            raise ValueError(f"of is {of!r}; expected 'loss' or 'margin'")
        items = _as_texts(texts)
        classes = np.asarray(labels)
        if classes.shape != (len(items),) or (len(items) and classes.dtype.kind not in "iu"):
            raise ValueError(f"labels must be {len(items)} integers, one for each text, got {labels!r:.200}")
        if len(items) and not (classes.min() >= 0 and classes.max() < self.num_labels):
            raise ValueError(
                f"labels go from {classes.min()} to {classes.max()}; there are {self.num_labels} classes"
            )
        found: dict[int, TokenGradients] = {}
        tokens: list[_Tokens] = []

        def run(rows: list[int]) -> None:
            batch = self._batch([tokens[i] for i in rows], self._read().padding_side)
            embedded = self.embeddings(batch["input_ids"]).requires_grad_()
            with torch.enable_grad():
                logits = self.logits_from_embeddings(embedded, **batch)
                gold = torch.as_tensor(classes[rows].astype(np.int64), device=logits.device)
                if of == "loss":
                    meant = nn.functional.cross_entropy(logits.float(), gold, reduction="sum")
                else:
                    own = logits.gather(1, gold[:, None])
                    meant = (own - logits.scatter(1, gold[:, None], -torch.inf).amax(1, keepdim=True)).sum()
                (gradient,) = torch.autograd.grad(meant, embedded)
            mask = batch["attention_mask"].bool().cpu()
            for row, own, real in zip(rows, gradient.float().cpu(), mask, strict=True):
                one = tokens[row]
                offsets = np.zeros((len(one.ids), 2), np.int64) if one.offsets is None else one.offsets
                names = self.tokenizer.convert_ids_to_tokens(one.ids.tolist())
                found[row] = TokenGradients(tuple(names), offsets, own[real].numpy())

        with self._undisturbed():
            tokens += self._tokenize(items, offsets=True)
            self._in_batches(tokens, run)
        return [found[i] for i in range(len(items))]

    def _embedding(self) -> nn.Embedding:
        embedding = self.model.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise ValueError(f"{type(self.model).__name__} has no table of input embeddings")
        return embedding


# Helpers ----------------------------------------------------------------------------------------------------


def _as_texts(texts: Sequence[Text]) -> list[Text]:
    if isinstance(texts, str):
        return [texts]
    items: list[Text] = []
    for i, text in enumerate(texts):
        match text:
            case str():
                item: Text = text
            case [str() as one, str() as other]:
                item = (one, other)
            case _:
                raise TypeError(f"texts[{i}] is {text!r:.100}; expected a str or a pair of str")
        if _HALF.search("".join(item)):
            raise ValueError(f"texts[{i}] holds half of a surrogate pair, no character: {text!r:.100}")
        items.append(item)
    return items


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    limits = [tokenizer.model_max_length]
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    for name, module in model.named_modules():
        # RoBERTa and its relatives count positions from the one after the padding token's id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    limit = int(min(limits))
    # transformers writes "no limit" as 1e30.
    limit = _DEFAULT_LENGTH if limit > 10**9 else limit
    if wanted is None:
        return limit
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if not isinstance(wanted, int) or wanted <= special:
        raise ValueError(f"max_length is {wanted!r}; expected more tokens than the {special} special ones")
    if isinstance(positions, int) and 0 < positions < wanted:
        raise ValueError(f"max_length is {wanted}; {type(model).__name__} has {positions} positions")
    return wanted


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    kinds = {
        str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.bfloat16, torch.float16)
    }
    kind = kinds.get(str(dtype).removeprefix("torch."))
    if kind is None and dtype != "auto":
        raise ValueError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
    return kind


def _name(pooling: Pooling) -> str:
    if isinstance(pooling, str):
        return pooling
    return f"{getattr(pooling, '__module__', '')}.{getattr(pooling, '__qualname__', repr(pooling))}"


def _described(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides how a tokenizer splits texts."""
    described: Mapping[str, Any]
    if tokenizer.is_fast:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for.
        described = {k: v for k, v in described.items() if k not in ("truncation", "padding")}
    else:
        described = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return json.dumps([described, tokenizer.special_tokens_map], sort_keys=True, default=str)
