"""Negative mining: what the model says too often, in meaning, becomes what it must not say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from dialogkit.generation import GenerationConfig, LanguageModel
from dialogkit.generation.prompting import DialoguePrompt

__all__ = ["Mined", "MiningConfig", "NegativeMiner", "ReplyClusters", "head_clusters"]


class ReplyClusters(Protocol):
    """What DRESS asks of clusters; ``SemanticClusters`` is one."""

    @property
    def train_histogram(self) -> NDArray[np.floating[Any]]:
        """Share of the training responses in each cluster, ``[k]``."""
        ...

    def assign(self, responses: Sequence[str], /) -> NDArray[np.integer[Any]]:
        """Cluster of each response, ``[n]``."""
        ...


def head_clusters(shares: NDArray[np.float64] | Sequence[float], threshold: float) -> NDArray[np.bool_]:
    """Clusters whose share of the generated replies exceeds the threshold, strictly (step A of DRESS).

    Args:
        shares: Share of each cluster, ``[k]``.
        threshold: 0.1 in the released code.

    Returns:
        Whether each cluster is head, ``[k]``.
    """
    found: NDArray[np.bool_] = np.asarray(shares, dtype=np.float64) > threshold
    return found


@dataclass(frozen=True)
class MiningConfig:
    """How negatives are mined. Defaults are those of the released code.

    Attributes:
        contexts: Training contexts that are answered each epoch, drawn anew; all if there are fewer.
        threshold: A cluster with a greater share of the replies is head; ``"2/k"`` follows the number of
            clusters (equal to the default at k = 20).
        generation: How replies are decoded; the layout's stop strings are added.
    """

    contexts: int = 5000
    threshold: float | Literal["2/k"] = 0.1
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=128)
    )

    def __post_init__(self) -> None:
        if self.contexts < 1:
            raise ValueError(f"contexts must be at least 1, got {self.contexts}")
        if isinstance(self.threshold, str):
            if self.threshold != "2/k":
                raise ValueError(f"threshold must be a number or '2/k', got {self.threshold!r}")
        elif not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")


@dataclass(frozen=True)
class Mined:
    """The replies of one epoch.

    Attributes:
        rows: Positions of the contexts in the training data.
        replies: The reply to each.
        clusters: Its cluster.
        shares: Share of each cluster among the replies.
        head: The head clusters.
    """

    rows: tuple[int, ...]
    replies: tuple[str, ...]
    clusters: tuple[int, ...]
    shares: tuple[float, ...]
    head: frozenset[int]

    @property
    def weights(self) -> tuple[float, ...]:
        """-1 for a reply in a head cluster, else 0."""
        return tuple(-1.0 if cluster in self.head else 0.0 for cluster in self.clusters)


class NegativeMiner:
    """Lets a model answer training contexts and finds the head clusters of its replies.

    Cost: one greedy decoding of ``config.contexts`` replies and their embedding; with several processes each
    does its part.

    Args:
        model: The model in training, as a :class:`~dialogkit.generation.LanguageModel`.
        clusters: Where meanings lie; fixed for the whole run.
        config: Number of contexts, threshold, decoding.
        prompt: Layout of contexts.
    """

    def __init__(
        self,
        model: LanguageModel,
        clusters: ReplyClusters,
        config: MiningConfig | None = None,
        prompt: DialoguePrompt | None = None,
    ) -> None:
        self.model, self.clusters = model, clusters
        self.config, self.prompt = config or MiningConfig(), prompt or DialoguePrompt()

    def draw(self, count: int, seed: int) -> list[int]:
        """Positions of the contexts to answer, out of ``count``, in random order."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        rows: list[int] = order[: self.config.contexts].tolist()
        return rows

    def mine(
        self,
        contexts: Sequence[Sequence[str]],
        rows: Sequence[int],
        accelerator: Accelerator | None = None,
    ) -> Mined:
        """Answers contexts and finds the head clusters.

        Args:
            contexts: All training contexts.
            rows: Which of them to answer.
            accelerator: Shares the work among its processes, all of which get the same result.
        """
        rank, world = (
            (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        )
        own = list(rows[rank::world])
        generation = replace(self.config.generation, stop=(*self.config.generation.stop, *self.prompt.stop))
        prompts = [self.prompt.build(contexts[row]) for row in own]
        replies = [found[0].text for found in self.model.generate(prompts, config=generation, seed=0)]
        labels = self.clusters.assign(replies).tolist() if replies else []
        parts = _gathered([own, replies, labels], accelerator)
        known = {row: (text, label) for part in parts for row, text, label in zip(*part, strict=True)}
        k = len(self.clusters.train_histogram)
        found = [known[row] for row in rows]
        counts = np.bincount([label for _, label in found], minlength=k)
        shares = counts / len(found)
        threshold = 2 / k if self.config.threshold == "2/k" else float(self.config.threshold)
        head = head_clusters(shares, threshold)
        return Mined(
            tuple(rows),
            tuple(text for text, _ in found),
            tuple(label for _, label in found),
            tuple(shares.tolist()),
            frozenset(np.flatnonzero(head).tolist()),
        )


def _gathered(own: list[Any], accelerator: Accelerator | None) -> list[list[Any]]:
    """Every process's part, sent as JSON."""
    if accelerator is None or accelerator.num_processes == 1:
        return [own]
    device = accelerator.device
    data = torch.tensor(list(json.dumps(own).encode()), dtype=torch.uint8, device=device)
    sizes = accelerator.gather(torch.tensor([len(data)], device=device)).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(data[None], dim=1)).cpu()
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(padded, sizes, strict=True)]
