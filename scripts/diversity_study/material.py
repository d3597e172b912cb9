"""Responses of a study, tokenised, embedded and assigned once; sets of them measured many times."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from dialogkit.diversity import (
    ResponseEncoder,
    SemanticClusters,
    TokenTable,
    distinct_n,
    entropy_n,
    load_encoder,
    low_frequency,
    mean_length,
    self_bleu,
    sem_ent,
    token_counts,
    vendi_score,
)
from trainkit.datafiles import data_file, read_jsonl
from trainkit.hub import fingerprint, write_bytes

__all__ = ["Material", "Measure", "training_responses"]


def training_responses(count: int) -> list[str]:
    """Distinct responses of DailyDialog's training part in random order."""
    found: dict[str, None] = {}
    for row in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz")):
        if row["split"] == "train":
            found.update(dict.fromkeys(turn["text"].strip() for turn in row["turns"][1:]))
    texts = sorted(text for text in found if text)
    Random(0).shuffle(texts)
    return texts[:count]


@dataclass(frozen=True)
class Material:
    """What sets of responses are measured with.

    Attributes:
        clusters: Fitted on training responses, by the name of the encoder.
        counts: Words of the training responses, for the share of rare words.
        cache: Folder of embeddings.
    """

    clusters: Mapping[str, SemanticClusters]
    counts: Mapping[str, int]
    cache: Path

    @classmethod
    def load(cls, encoders: Sequence[str], *, k: int, responses: int, cache: Path) -> Material:
        """Fits clusters for each encoder."""
        texts = training_responses(responses)
        found = {}
        for name in encoders:
            encoder = load_encoder(name)
            vectors = embedded(encoder, texts, cache)
            found[name] = SemanticClusters.fit(vectors, encoder, k=k, texts=texts)
        return cls(found, token_counts(texts), cache)


def embedded(encoder: ResponseEncoder, texts: Sequence[str], cache: Path) -> npt.NDArray[np.float32]:
    """Embeddings from files of the cache, or computed and kept, a thousand texts at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    chunks = []
    for start in range(0, len(texts), 1000):
        chunk = list(texts[start : start + 1000])
        path = cache / f"{fingerprint(encoder.fingerprint, chunk)[:24]}.npy"
        if not path.is_file():
            buffer = io.BytesIO()
            np.save(buffer, encoder.encode(chunk), allow_pickle=False)
            write_bytes(path, buffer.getvalue())
        chunks.append(np.load(path, allow_pickle=False))
    return np.concatenate(chunks)


class Measure:
    """Figures of any part of a list of responses."""

    def __init__(self, material: Material, texts: Sequence[str]) -> None:
        self.material = material
        self.table = TokenTable(texts)
        self.vectors: dict[str, npt.NDArray[np.float32]] = {}
        self.labels: dict[str, npt.NDArray[np.int64]] = {}
        for name, clusters in material.clusters.items():
            assert clusters.encoder is not None
            self.vectors[name] = embedded(clusters.encoder, texts, material.cache)
            self.labels[name] = clusters.assign(self.vectors[name])

    def words(self, rows: Sequence[int]) -> tuple[float, float, float]:
        """Dist-1, dist-2 and words per response: what sets are matched on."""
        part = self.table.take(rows)
        return distinct_n(part, 1), distinct_n(part, 2), mean_length(part)

    def __call__(self, rows: Sequence[int]) -> dict[str, float]:
        """All figures of a set; every diversity figure rises with diversity."""
        part = self.table.take(rows)
        figures: dict[str, float] = {f"dist-{n}": distinct_n(part, n) for n in (1, 2, 3)}
        figures |= {f"ent-{n}": entropy_n(part, n) for n in (1, 2, 3)}
        figures["LF (training counts)"] = low_frequency(part, reference_counts=self.material.counts)
        figures["1 - self-BLEU"] = 1.0 - self_bleu(part)
        for name, clusters in self.material.clusters.items():
            figures[f"Sem-Ent ({name})"] = sem_ent(self.labels[name][list(rows)], clusters.k)
        for name in self.material.clusters:
            vectors: npt.NDArray[Any] = self.vectors[name][list(rows)]
            figures[f"Vendi ({name})"] = vendi_score(vectors)
        figures["words per response"] = mean_length(part)
        figures["words"] = float(part.lengths.sum())
        figures["responses"] = float(len(part))
        return figures
