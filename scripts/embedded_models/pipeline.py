"""The stages of making the embedded models, from the data to the folders that ship."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from .corpus import context_pool, load_corpus
from .language_model import LM_STAGES, LMSettings, train_lm
from .matching import with_matches

__all__ = ["STAGES", "export", "run"]

STAGES = (*LM_STAGES, "retriever", "export", "measure")
EMBEDDED = Path(__file__).parents[2] / "dialogkit" / "embedded"


def run(stage: str, runs: Path, *, threads: int = 2) -> None:
    """Runs one stage (see ``scripts/train_embedded.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    runs.mkdir(parents=True, exist_ok=True)
    if stage in LM_STAGES:
        train_lm(with_matches("train", runs), with_matches("heldout", runs), LMSettings(), runs / "lm", stage)
    elif stage == "retriever":
        from dialogkit.retrieval import save_biencoder

        from .retriever import RetrieverSettings, train_retriever

        model = train_retriever(
            load_corpus(), load_corpus("heldout"), RetrieverSettings(), runs / "retriever"
        )
        save_biencoder(model, runs / "retriever" / "model", overwrite=True)
    elif stage == "export":
        export(runs)
    elif stage == "measure":
        from .measure import measure

        measure(runs)
    else:
        raise ValueError(f"stage must be one of {STAGES}, got {stage!r}")


def export(runs: Path) -> None:
    """Writes what ships: half-precision weights that load as float32, tokenizers, pool, index."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from dialogkit.retrieval import BiEncoder, ContextIndex, ContextPool, load_retriever
    from trainkit.hub import atomic_directory

    trained = runs / "lm" / "model"
    with atomic_directory(EMBEDDED / "lm", replace=True) as folder:
        LlamaForCausalLM.from_pretrained(trained, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
        weights = folder / "model.safetensors"
        tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(weights).items()}
        weights.write_bytes(save(tensors, metadata={"format": "pt"}))
    with atomic_directory(EMBEDDED / "biencoder", replace=True) as folder:
        shutil.copytree(runs / "retriever" / "model", folder, dirs_exist_ok=True)
    (EMBEDDED / "contexts.txt").write_text("\n".join(context_pool()) + "\n", encoding="utf-8")
    pool = ContextPool.from_lines(EMBEDDED / "contexts.txt")
    # MiniLM's too: encoding the pool would double the time to the first reply where it is installed.
    for name, retriever in (
        ("biencoder", BiEncoder(EMBEDDED / "biencoder")),
        ("minilm", load_retriever("minilm")),
    ):
        with atomic_directory(EMBEDDED / "indexes" / name, replace=True) as folder:
            ContextIndex(retriever, pool).save(folder, half=True)
