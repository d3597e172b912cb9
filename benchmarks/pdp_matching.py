"""Dynamic matching of one turn: cached embeddings against encoding everything for every query.

    python benchmarks/pdp_matching.py [--retriever FOLDER] [--contexts 1000] [--queries 20]

The other side is our own plain version of what the authors' released code does: the pool's embeddings are
kept, but every query encodes all utterances of the character again, scores the utterances against the query
in a second pass, and searches the pool once for each utterance. All sides must choose the same contexts in
the same order, or the run fails. A second part compares the two exact search backends, numpy and faiss, on
random vectors. Sides alternate; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from random import Random

import numpy as np

from dialogkit import embedded
from dialogkit.pdp import Character, ContextIndex, ContextPool, DynamicMatcher, PseudoDialog
from dialogkit.retrieval import BiEncoder, default_retriever, load_retriever
from dialogkit.retrieval.retriever import retriever_name

STARTS = (
    "Do you like",
    "Tell me about",
    "What happened to",
    "Where did you find",
    "I am tired of",
    "Who sold you",
)
THINGS = (
    "the garden",
    "your sister",
    "that old boat",
    "the weather",
    "my new hat",
    "the neighbours",
    "winter",
)
ENDS = (
    "today?",
    "on Sunday?",
    "last night?",
    "in the end?",
    "by the river?",
    "before supper?",
    "again?",
    "alone?",
)


def contexts(count: int) -> list[str]:
    """The shipped contexts, continued by made-up ones where more are asked for."""
    texts = list(ContextPool.from_lines(embedded.contexts_path()))
    made = (f"{a} {b} {c} {i}" for i in range(count) for a in STARTS for b in THINGS for c in ENDS)
    while len(texts) < count:
        texts.append(next(made))
    return texts[:count]


def reencoding(index: ContextIndex, character: Character, text: str) -> list[PseudoDialog]:
    """One turn in the manner of the released code."""
    retriever, pool = index.retriever, index.embeddings
    pairs = []
    for utterance in character.utterances:
        query = retriever.encode_context([text])[0] + retriever.encode_response([utterance])[0]
        scores = pool @ query
        best = int(scores.argmax())
        pairs.append((index.pool[best], utterance, float(scores[best]), best))
    fit = [
        float(retriever.encode_response([utterance])[0] @ retriever.encode_context([text])[0])
        for utterance in character.utterances
    ]
    order = sorted(range(len(pairs)), key=lambda i: fit[i])
    return [PseudoDialog(*pairs[i][:3], order_score=fit[i], context_id=pairs[i][3]) for i in order]


def batched_reencoding(index: ContextIndex, character: Character, text: str) -> list[PseudoDialog]:
    """The same, but with each kind of text encoded in one call: the gentlest reading of the released code."""
    retriever = index.retriever
    query = retriever.encode_context([text])[0]
    utterances = retriever.encode_response(character.utterances)
    scores = (utterances + query) @ index.embeddings.T
    best = scores.argmax(axis=1)
    fit = retriever.encode_response(character.utterances) @ retriever.encode_context([text])[0]
    return [
        PseudoDialog(
            index.pool[int(best[i])],
            character.utterances[i],
            float(scores[i, best[i]]),
            order_score=float(fit[i]),
            context_id=int(best[i]),
        )
        for i in np.argsort(fit, kind="stable")
    ]


def medians(sides: dict[str, Callable[[str], object]], queries: Sequence[str]) -> dict[str, float]:
    """Median seconds per query of each side; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for query in queries:
        for name, side in sides.items():
            begin = time.perf_counter()
            side(query)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_matching(retriever: str | None, count: int, queries: int) -> dict[str, object]:
    """Seconds per turn of cached and re-encoding matching."""
    encoder = load_retriever(retriever) if retriever else default_retriever()
    index = ContextIndex(encoder, ContextPool(contexts(count)))
    character = Character.from_json(embedded.character_path(embedded.character_names()[0]))
    matcher = DynamicMatcher(index, exclude_input=False, allow_symmetric=True)
    texts = [f"{text} And why?" for text in Random(1).sample(contexts(count), min(queries + 2, count))]
    warm, texts = texts[:2], texts[2:]
    for text in warm:
        chosen = [(pair.context_id, pair.utterance) for pair in matcher.match(character, text)]
        for other in (reencoding, batched_reencoding):
            if [(pair.context_id, pair.utterance) for pair in other(index, character, text)] != chosen:
                raise SystemExit(f"{other.__name__} chose other contexts for {text!r}")
    seconds = medians(
        {
            "cached": lambda text: matcher.match(character, text),
            "reencoding": lambda text: reencoding(index, character, text),
            "batched_reencoding": lambda text: batched_reencoding(index, character, text),
        },
        texts,
    )
    return {
        "retriever": retriever_name(encoder.path) if isinstance(encoder, BiEncoder) else retriever,
        "contexts": len(index),
        "utterances": len(character.utterances),
        "queries": len(texts),
        "median_s": seconds,
        "ratio": {name: seconds[name] / seconds["cached"] for name in ("reencoding", "batched_reencoding")},
    }


class RandomVectors:
    """Unit vectors instead of an encoder: the search alone is timed."""

    symmetric = False

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.fingerprint = f"random-{dim}"
        self._rng = np.random.default_rng(0)

    def encode_context(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._rng.normal(size=(len(texts), self.dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_response = encode_context


def compare_backends(size: int, dim: int, rows: int, repeats: int) -> dict[str, object] | None:
    """Seconds of one search of ``rows`` queries by numpy and by faiss; None without faiss."""
    try:
        import faiss  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        return None
    pool = ContextPool(f"context {i}" for i in range(size))
    plain = ContextIndex(RandomVectors(dim), pool)
    indexed = ContextIndex(RandomVectors(dim), pool, backend="faiss")
    queries = RandomVectors(dim).encode_context([""] * rows)
    if not np.array_equal(plain.search(queries)[1], indexed.search(queries)[1]):
        raise SystemExit("numpy and faiss found different contexts")
    seconds = medians(
        {"numpy": lambda _: plain.search(queries), "faiss": lambda _: indexed.search(queries)}, [""] * repeats
    )
    return {
        "contexts": size,
        "dim": dim,
        "rows": rows,
        "median_s": seconds,
        "ratio": seconds["faiss"] / seconds["numpy"],
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--retriever", help="'minilm', 'embedded' or a folder; default: the package's default"
    )
    parser.add_argument("--contexts", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 50_000])
    parser.add_argument("--output", type=Path, default=Path("runs/bench/pdp_matching.json"))
    arguments = parser.parse_args()

    matching = compare_matching(arguments.retriever, arguments.contexts, arguments.queries)
    search = [compare_backends(size, 384, 16, 20) for size in arguments.sizes]
    packages = ("numpy", "torch", "transformers", "faiss-cpu")
    installed = {dist.metadata["Name"] for dist in metadata.distributions()}
    result = {
        "benchmark": "pdp_matching",
        "matching": matching,
        "search": [row for row in search if row is not None],
        "versions": {name: metadata.version(name) for name in packages if name in installed},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }
    print(
        f"one turn, {matching['utterances']} utterances, {matching['contexts']} contexts, "
        f"{matching['retriever']}:"
    )
    for name, seconds in matching["median_s"].items():  # type: ignore[attr-defined]
        print(f"{name:>22}: {1000 * seconds:.2f} ms")
    for name, ratio in matching["ratio"].items():  # type: ignore[attr-defined]
        print(f"ratio {name} / cached: {ratio:.1f}")
    for row in result["search"]:  # type: ignore[attr-defined]
        times = row["median_s"]
        print(
            f"search of {row['rows']} rows in {row['contexts']:,} contexts: "
            f"numpy {1000 * times['numpy']:.2f} ms, faiss {1000 * times['faiss']:.2f} ms, "
            f"ratio faiss / numpy {row['ratio']:.2f}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
