"""Lexical diversity as a module of Hugging Face `evaluate`: ``evaluate.load(".../lexical_diversity")``."""

from __future__ import annotations

import datasets
import evaluate

from dialogkit.diversity import TokenTable, distinct_n, entropy_n, low_frequency, mean_length, self_bleu

_CITATION = """\
distinct-n: "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016.
entropy-n: "Generating Informative and Diverse Conversational Responses", NeurIPS 2018.
self-BLEU: "Texygen: A Benchmarking Platform for Text Generation Models", SIGIR 2018.
"""
_DESCRIPTION = """\
Diversity of the words of a set of responses: distinct-n, entropy-n in bits, share of rare words, self-BLEU,
length. Words are those of NLTK's casual_tokenize.
"""
_INPUTS = """\
Args:
    predictions: Responses, all of one model.
    n: The longest n-grams of distinct-n and entropy-n.
    denominator: "ngrams" or "tokens", what distinct-n divides by.
    threshold: The largest count of a rare word.
Returns:
    distinct_1 .. distinct_n, entropy_1 .. entropy_n, low_frequency, self_bleu (None for one response),
    mean_length.
"""


class LexicalDiversityModule(evaluate.Metric):  # type: ignore[misc]
    """Tokenises responses once and computes all figures."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self, predictions: list[str], n: int = 3, denominator: str = "ngrams", threshold: int = 100
    ) -> dict[str, float | None]:
        table, orders = TokenTable(predictions), range(1, n + 1)
        figures: dict[str, float | None] = {
            f"distinct_{i}": distinct_n(table, i, denominator=denominator)  # type: ignore[arg-type]
            for i in orders
        }
        figures |= {f"entropy_{i}": entropy_n(table, i) for i in orders}
        figures["low_frequency"] = low_frequency(table, threshold=threshold)
        figures["self_bleu"] = self_bleu(table) if len(table) > 1 else None
        figures["mean_length"] = mean_length(table)
        return figures
