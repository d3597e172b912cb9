"""What a generator does with exemplars: perplexities, copying, fit, and what a swap changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from dialogkit.dialogues import Example
from dialogkit.diversity.lexical import distinct_n, mean_length
from dialogkit.evaluation.overlap import ngram_f1, split_words
from dialogkit.exemplar import ExemplarPacker, exemplar_bleu, exemplar_perplexity
from dialogkit.generation import GenerationConfig
from dialogkit.retrieval import Retriever

__all__ = ["FIGURES", "SOURCES", "Answers", "answers", "figures", "summary", "swap_test"]

SOURCES = ("none", "context", "gold", "random")
FIGURES = (
    "PPL none",
    "PPL context",
    "PPL gold",
    "PPL random",
    "gap",
    "exemplar BLEU-2",
    "fit",
    "F1",
    "Dist-2",
    "words",
    "changed",
)


@dataclass(frozen=True)
class Answers:
    """The replies of a run to the test contexts.

    Attributes:
        retrieved: With the exemplar that the context finds.
        swapped: With a random exemplar in its place.
    """

    retrieved: list[str]
    swapped: list[str]


def answers(
    packer: ExemplarPacker, examples: Sequence[Example], exemplars: Sequence[str | None]
) -> list[str]:
    """Greedy replies, one to each context with its exemplar."""
    greedy = GenerationConfig(do_sample=False, max_new_tokens=packer.budget.response)
    found = packer.generate([one.context for one in examples], exemplars, config=greedy)
    return [candidates[0].text for candidates in found]


def figures(
    packer: ExemplarPacker,
    examples: Sequence[Example],
    exemplars: Mapping[str, Sequence[str | None]],
    given: Answers,
    encoder: Retriever,
) -> dict[str, float]:
    """All figures of a run.

    Args:
        packer: Lays out rows for the run's generator.
        examples: The test pairs.
        exemplars: For each of `SOURCES` one for each pair.
        given: The replies.
        encoder: Gives the cosine of reply and human reply.
    """
    perplexity = {name: exemplar_perplexity(packer, examples, exemplars[name]) for name in SOURCES}
    shown = [text or "" for text in exemplars["context"]]
    human = [one.response for one in examples]
    f1 = [
        ngram_f1(reply, [gold], 1)
        for reply, gold in zip(split_words(given.retrieved), split_words(human), strict=True)
    ]
    return {
        **{f"PPL {name}": value for name, value in perplexity.items()},
        "gap": float(np.log(perplexity["context"] / perplexity["gold"])),
        "exemplar BLEU-2": fmean(exemplar_bleu(given.retrieved, shown)),
        "fit": float(cosines(given.retrieved, human, encoder).mean()),
        "F1": fmean(f1),
        "Dist-2": distinct_n(given.retrieved, 2),
        "words": mean_length(given.retrieved),
        "changed": float(changes(given).mean()),
    }


def changes(given: Answers) -> NDArray[np.float64]:
    """How much of each reply another exemplar changes: 1 - BLEU-2 of the two replies, in [0, 1]."""
    return 1 - np.array(exemplar_bleu(given.swapped, given.retrieved))


def cosines(texts: Sequence[str], others: Sequence[str], encoder: Retriever) -> NDArray[np.float64]:
    """Cosine of each text and its counterpart; an empty text counts 0."""
    one, two = (encoder.encode_response([text or "." for text in column]) for column in (texts, others))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray((one * two).sum(axis=1) / lengths * [bool(text.strip()) for text in texts])


def swap_test(one: Sequence[Answers], other: Sequence[Answers]) -> tuple[float, float]:
    """Whether another exemplar changes replies of some runs more than those of others.

    Args:
        one: Replies of some runs to the same contexts, one for each seed.
        other: The same of others.

    Returns:
        Mean difference of the change, and p of Wilcoxon's signed-rank test over contexts (means over seeds),
        two-sided.
    """
    from scipy.stats import wilcoxon

    difference = np.mean([changes(a) for a in one], axis=0) - np.mean([changes(a) for a in other], axis=0)
    return float(difference.mean()), float(wilcoxon(difference).pvalue)


def summary(rows: Sequence[Mapping[str, object]], methods: Sequence[str]) -> str:
    """A Markdown line for each method: mean ± standard deviation over seeds."""
    lines = ["| method | " + " | ".join(FIGURES) + " |", "|" + " --- |" * (len(FIGURES) + 1)]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = []
        for name in FIGURES:
            values = [float(str(row[name])) for row in own]
            digits = 1 if name.startswith("PPL") or name == "words" else 3
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.{digits}f}{spread}" if values else "")
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)
