"""Writing a retriever into a chatbot's folder, and where a chatbot's parts come from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.cards import DataUse, Metric

from .biencoder import BiEncoder
from .retriever import Retriever, SentenceTransformerRetriever, load_retriever

__all__ = ["Provenance", "read_retriever", "write_retriever"]


@dataclass(frozen=True)
class Provenance:
    """Where a chatbot's models come from; it is saved and stands in the model card.

    Attributes:
        method: How they were trained, in a line.
        data: The data sets they were trained or measured on.
        metrics: What was measured.
        seed: The seed of the run.
        licence: Licence of the chatbot, as an SPDX identifier.
    """

    method: str
    data: tuple[DataUse, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seed: int | None = None
    licence: str = "not stated"

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Provenance | None:
        """What ``dataclasses.asdict`` made of one, read from JSON."""
        if record is None:
            return None
        data = tuple(DataUse(**entry) for entry in record["data"])
        return cls(
            **{**record, "data": data, "metrics": tuple(Metric(**entry) for entry in record["metrics"])}
        )


def write_retriever(retriever: Retriever, folder: Path) -> dict[str, Any] | None:
    """Copies a retriever into a new folder.

    Returns:
        Settings that :func:`read_retriever` wants back; JSON.

    Raises:
        TypeError: The retriever is no sentence-transformers model.
    """
    if isinstance(retriever, BiEncoder):
        unwanted = shutil.ignore_patterns("*.bin", "onnx", "openvino")
        shutil.copytree(retriever.path, folder, ignore=unwanted)
        return None
    if isinstance(retriever, SentenceTransformerRetriever):
        retriever.model.save_pretrained(str(folder), create_model_card=False)
        names = ("context_role", "response_role", "normalize", "symmetric")
        return {name: getattr(retriever, name) for name in names}
    raise TypeError(f"a {type(retriever).__name__} cannot be saved; use a sentence-transformers model")


def read_retriever(folder: Path, settings: Mapping[str, Any] | None) -> Retriever:
    """Loads what :func:`write_retriever` wrote."""
    return load_retriever(folder) if settings is None else SentenceTransformerRetriever(folder, **settings)
