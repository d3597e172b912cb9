"""Sem-Ent as a module of Hugging Face `evaluate`: ``evaluate.load(".../sem_ent")``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import datasets
import evaluate

from dialogkit.diversity import SemanticClusters, SemEnt, load_encoder

_CITATION = """\
Measuring and Improving Semantic Diversity of Dialogue Generation.
Findings of EMNLP 2022, pages 934-950. arXiv 2210.05725.
"""
_DESCRIPTION = """\
Semantic diversity of the responses of a dialogue model: the entropy of their distribution over semantic
clusters of training responses. Values compare only between responses to the same contexts with the same
clusters; they say nothing about whether a response fits its context.
"""
_INPUTS = """\
Args:
    predictions: A response of the model to each context.
    references: Human responses to the same contexts; may be left out.
    clusters: Folder or Hub repository of clusters that `dialogkit diversity fit` or `SemanticClusters` saved.
    revision: Branch, tag or commit of that repository.
    encoder: Name of the encoder that the clusters were fitted with, where it has moved; by default the name
        saved with them.
    seed: Of the bootstrap.
Returns:
    sem_ent (nats), normalized (by ln k), interval (95 % bootstrap), histogram, n, k, empty (clusters without
    a response), reference_sem_ent and mauve (with references), clusters (fingerprint).
"""


class SemEntModule(evaluate.Metric):  # type: ignore[misc]
    """Loads clusters and their encoder once and scores responses."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2210.05725"],
        )

    def compute(
        self, *, predictions: list[str] | None = None, references: list[str] | None = None, **settings: Any
    ) -> dict[str, Any] | None:
        """Scores responses; see ``inputs_description``."""
        # The library has no optional references: they pass by it as a setting.
        found: dict[str, Any] | None = super().compute(predictions=predictions, human=references, **settings)
        return found

    def _compute(
        self,
        predictions: list[str],
        human: list[str] | None = None,
        clusters: str | None = None,
        revision: str | None = None,
        encoder: str | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        if clusters is None:
            raise ValueError("clusters is missing: name the folder or Hub repository of saved clusters")
        found = SemanticClusters.from_pretrained(clusters, revision=revision)
        if not (encoder or found.encoder_name):
            raise ValueError("the clusters do not name their encoder; give encoder=")
        found.attach(load_encoder(encoder or found.encoder_name))
        return asdict(SemEnt(found).compute(predictions, human, seed=seed))
