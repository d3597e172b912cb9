"""What a set of replies is worth: diversity of meaning and words, coherence with the contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from dialogkit.dialogues import Example
from dialogkit.diversity.clusters import SemanticClusters
from dialogkit.diversity.encoders import SentenceTransformerEncoder
from dialogkit.diversity.lexical import distinct_n, entropy_n, low_frequency, mean_length
from dialogkit.diversity.semantic import sem_ent

__all__ = ["FIGURES", "coherence", "figures", "leads", "summary"]

FIGURES = (
    "Sem-Ent",
    "Sem-Ent held out",
    "cosine",
    "perplexity",
    "Dist-1",
    "Dist-2",
    "Ent-2",
    "LF",
    "words",
    "distinct replies",
)


def figures(
    replies: Sequence[str],
    examples: Sequence[Example],
    *,
    clusters: SemanticClusters,
    held_out: SemanticClusters,
    encoder: SentenceTransformerEncoder,
    train_counts: Mapping[str, int],
    perplexity: float | None,
) -> dict[str, float | None]:
    """All figures of one set of replies.

    Args:
        replies: One for each test context.
        examples: The test pairs.
        clusters: Those that training used.
        held_out: Those of an encoder that training never saw.
        encoder: Gives the cosine of context and reply; training never saw it.
        train_counts: How often each word occurs in training responses.
        perplexity: Of the human replies under the model.
    """
    return {
        "Sem-Ent": sem_ent(clusters.assign(replies), clusters.k),
        "Sem-Ent held out": sem_ent(held_out.assign(replies), held_out.k),
        "cosine": coherence(replies, examples, encoder),
        "perplexity": perplexity,
        "Dist-1": distinct_n(replies, 1),
        "Dist-2": distinct_n(replies, 2),
        "Ent-2": entropy_n(replies, 2),
        "LF": low_frequency(replies, reference_counts=train_counts),
        "words": mean_length(replies),
        "distinct replies": len(set(replies)) / len(replies),
    }


def coherence(
    replies: Sequence[str], examples: Sequence[Example], encoder: SentenceTransformerEncoder
) -> float:
    """Mean cosine of context and reply; an empty reply counts 0."""
    contexts = encoder.encode([" ".join(example.context) for example in examples])
    vectors = encoder.encode(list(replies))
    lengths = np.linalg.norm(contexts, axis=1) * np.linalg.norm(vectors, axis=1)
    products = (contexts * vectors).sum(axis=1)
    said = np.array([bool(reply.strip()) for reply in replies]) & (lengths > 0)
    return float(np.where(said, products / np.where(said, lengths, 1), 0).mean())


def summary(rows: Sequence[Mapping[str, object]], methods: Sequence[str]) -> list[dict[str, str]]:
    """A line for each method: mean ± standard deviation over seeds."""
    lines = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        line = {"method": method}
        for name in FIGURES:
            values = [float(str(row[name])) for row in own if row[name] is not None]
            digits = 1 if name in ("perplexity", "words") else 3
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            line[name] = f"{fmean(values):.{digits}f}{spread}" if values else ""
        lines.append(line)
    return lines


def leads(rows: Sequence[Mapping[str, object]], methods: Sequence[str]) -> list[dict[str, str]]:
    """For each method its lead over vanilla of the same seed: the mean, and the value of every seed."""
    by_seed = {(str(row["method"]), row["seed"]): row for row in rows}
    seeds = sorted({int(str(row["seed"])) for row in rows if row["method"] == "vanilla"})
    lines = []
    for method in methods:
        line = {"method": method}
        for name in FIGURES[:4]:
            found = [
                float(str(by_seed[method, seed][name])) - float(str(by_seed["vanilla", seed][name]))
                for seed in seeds
                if (method, seed) in by_seed
            ]
            digits = 1 if name == "perplexity" else 3
            line[name] = (
                f"{fmean(found):+.{digits}f} ({', '.join(f'{value:+.{digits}f}' for value in found)})"
                if found
                else ""
            )
        lines.append(line)
    return lines
