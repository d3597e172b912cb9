"""DRESS: training that spreads a dialogue model's replies over the clusters of meaning.

Han, Kim, Chang, "Measuring and Improving Semantic Diversity of Dialogue Generation", Findings of EMNLP 2022,
arXiv 2210.05725. Written from the equations; the released code was not copied.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from dialogkit.dialogues import Example
from dialogkit.generation import TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from trainkit import FitConfig, FitResult, derive_seed, fit
from trainkit.objectives import Loss, StepContext

from .mining import Mined, MiningConfig, NegativeMiner, ReplyClusters
from .pairs import IGNORED, PairBatch, PairEncoder, TokenPair, update

__all__ = [
    "DressConfig",
    "DressMethod",
    "DressRow",
    "dress_loss",
    "dress_terms",
    "dress_weights",
    "human_perplexity",
    "train_dress",
]

logger = logging.getLogger(__name__)

Negative = Literal["nll", "unlikelihood", "clipped"]
Normalization = Literal["mean", "max"]


# The equations


def dress_weights(
    histogram: Tensor | NDArray[Any] | Sequence[float],
    gamma: float = 30.0,
    normalization: Normalization | None = None,
) -> Tensor:
    """Weight of a training response by its cluster: equation (5), ``w_j = (1 - p_j) ^ gamma``.

    Args:
        histogram: Shares of the training responses in the clusters, ``[k]``, which add up to 1.
        gamma: How fast the weight falls with the share; 0 gives every response weight 1.
        normalization: ``None`` as in the paper and its code; ``"mean"`` divides by the mean weight of the
            training responses, ``sum_j p_j w_j``; ``"max"`` by the greatest weight (both are ours).

    Returns:
        ``float64 [k]``.

    Raises:
        ValueError: The shares are no distribution, ``gamma`` is negative, or a normalisation has nothing to
            divide by.
    """
    shares = torch.as_tensor(np.asarray(histogram), dtype=torch.float64)
    if shares.ndim != 1 or not len(shares):
        raise ValueError(f"histogram must be a vector of shares, got shape {list(shares.shape)}")
    if not bool((shares >= 0).all()) or abs(float(shares.sum()) - 1) > 1e-4:
        raise ValueError(f"histogram must be shares that add up to 1, got {shares.tolist()}")
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be finite and not negative, got {gamma}")
    if normalization not in (None, "mean", "max"):
        raise ValueError(f"normalization must be None, 'mean' or 'max', got {normalization!r}")
    weights = (1 - shares).clamp(min=0) ** gamma
    mean = float((shares * weights).sum())
    if mean == 0:
        warnings.warn("every training response has weight 0: nothing is learned from them", stacklevel=2)
    if normalization is None:
        return weights
    scale = mean if normalization == "mean" else float(weights.max())
    if scale == 0:
        raise ValueError(f"normalization {normalization!r} divides by a weight of 0")
    return weights / scale


def dress_terms(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    negative: Negative = "nll",
    clip: float = 5.0,
    ignore_index: int = IGNORED,
) -> Tensor:
    """The weighted loss of each sequence: the terms of equation (4), ``-w(r_i) log p(r_i | c_i)``.

    A negative weight pushes a sequence down. What is then minimised, times ``|w|``:

    * ``"nll"``: ``log p(r | c)``, as in the paper; unbounded below.
    * ``"unlikelihood"``: ``-sum_t log(1 - p(y_t))``, at least 0 (Welleck et al. 2020).
    * ``"clipped"``: ``-sum_t min(NLL_t, clip)``: a token that is improbable enough is left alone (ours).

    Args:
        logits: ``[B, T, V]``, aligned with ``labels`` (for causal models: already shifted).
        labels: ``int64 [B, T]``.
        weights: ``[B]``.
        negative: What a negative weight does.
        clip: NLL in nats at which ``"clipped"`` stops.
        ignore_index: The label of positions that do not count.

    Returns:
        ``[B]`` in float32 (float64 stays float64).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weights = weights.to(logits)
    nll = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=ignore_index)
    losses = nll
    down = weights < 0
    if negative != "nll" and bool(down.any()):
        if negative == "clipped":
            lowered = nll.clamp(max=clip)
        else:
            lowered = -_unlikelihood(logits, labels, ignore_index)
        losses = torch.where(down[:, None], lowered, nll)
    return weights * losses.sum(dim=1)


def _unlikelihood(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """``-log(1 - p(y_t))`` of every position, ``[B, T]``, zero where ignored."""
    counts = labels != ignore_index
    target = labels.where(counts, torch.zeros_like(labels))[..., None]
    # 1 - p is the mass of all other tokens: exact where p is nearly 1.
    others = logits.scatter(2, target, -torch.inf).logsumexp(dim=2)
    return (logits.logsumexp(dim=2) - others).where(counts, torch.zeros_like(others))


def dress_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    reduction: Literal["tokens", "weighted_tokens", "sum"] = "tokens",
    ignore_index: int = IGNORED,
    *,
    negative: Negative = "nll",
    clip: float = 5.0,
) -> Tensor:
    """The loss of a batch, equation (4).

    Args:
        logits: ``[B, T, V]``, aligned with ``labels`` (for causal models: already shifted).
        labels: ``int64 [B, T]``.
        weights: Of the sequences, ``[B]``; a negative one pushes its sequence down.
        reduction: ``"tokens"`` divides by the number of targets, those of zero-weight sequences included (the
            released code); ``"weighted_tokens"`` by the targets times ``|w|`` (ours); ``"sum"`` by nothing.
        ignore_index: The label of positions that do not count.
        negative: See :func:`dress_terms`.
        clip: See :func:`dress_terms`.

    Returns:
        A scalar; 0 where there is nothing to divide by.

    Raises:
        ValueError: Shapes or ``reduction`` do not fit.
    """
    if logits.shape[:2] != labels.shape or weights.shape != labels.shape[:1]:
        raise ValueError(
            f"logits [B, T, V], labels [B, T] and weights [B] must fit, got {list(logits.shape)}, "
            f"{list(labels.shape)} and {list(weights.shape)}"
        )
    if reduction not in ("tokens", "weighted_tokens", "sum"):
        raise ValueError(f"reduction must be 'tokens', 'weighted_tokens' or 'sum', got {reduction!r}")
    total = dress_terms(
        logits, labels, weights, negative=negative, clip=clip, ignore_index=ignore_index
    ).sum()
    if reduction == "sum":
        return total
    size = _size(labels, weights.to(total), reduction, ignore_index)
    return total / torch.where(size > 0, size, torch.ones_like(size))


def _size(labels: Tensor, weights: Tensor, reduction: str, ignore_index: int = IGNORED) -> Tensor:
    """What a batch's loss is divided by."""
    lengths = (labels != ignore_index).sum(dim=1)
    return (lengths * weights.abs()).sum() if reduction == "weighted_tokens" else lengths.sum().to(weights)


# Training


@dataclass(frozen=True)
class DressConfig:
    """What is learned from. Defaults are those of the released code, except where our choice is named.

    Attributes:
        gamma: See :func:`dress_weights`.
        normalization: See :func:`dress_weights`.
        reduction: See :func:`dress_loss`.
        negative: What mined replies are pushed down with, see :func:`dress_terms`; ``None`` mines nothing:
            DRESS(-NT).
        clip: For ``negative="clipped"``.
        mining: How replies are mined each epoch.
        max_context_tokens: Tokens of a context that are read, the last ones.
        max_response_tokens: Tokens of a response that are learned, the first ones.
        micro_batch_size: Pairs in one forward pass (ours); ``None``: a process's whole share. Results do not
            change with it.
    """

    gamma: float = 30.0
    normalization: Normalization | None = None
    reduction: Literal["tokens", "weighted_tokens"] = "tokens"
    negative: Negative | None = "nll"
    clip: float = 5.0
    mining: MiningConfig = field(default_factory=MiningConfig)
    max_context_tokens: int = 512
    max_response_tokens: int = 128
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.reduction not in ("tokens", "weighted_tokens"):
            raise ValueError(f"reduction must be 'tokens' or 'weighted_tokens', got {self.reduction!r}")
        if self.negative not in (None, "nll", "unlikelihood", "clipped"):
            raise ValueError(f"negative must be nll, unlikelihood, clipped or None, got {self.negative!r}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {self.micro_batch_size}")


@dataclass(frozen=True)
class DressRow:
    """A training pair.

    Attributes:
        example: Context and response.
        cluster: The response's cluster.
    """

    example: Example
    cluster: int


class DressMethod:
    """One epoch of DRESS as a ``trainkit`` step method: weighted pairs, and negatives mined at its start.

    Mined replies make batches of their own, spread evenly among those of the pairs (the released code
    shuffles both). Each takes a step of the optimizer within the loop's step, so schedule and logs count the
    batches of pairs. A batch without a reply in a head cluster takes no step.

    Args:
        lm: The model in training; :func:`trainkit.fit` is given ``lm.model``.
        rows: The training pairs.
        clusters: The clusters, fixed for the whole run.
        config: Settings.
        prompt: Layout of contexts.
        seed: Of the contexts that are answered.
    """

    def __init__(
        self,
        lm: TransformersLM,
        rows: Sequence[DressRow],
        clusters: ReplyClusters,
        config: DressConfig | None = None,
        *,
        prompt: DialoguePrompt | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config or DressConfig()
        self.weights = dress_weights(
            clusters.train_histogram, self.config.gamma, self.config.normalization
        ).tolist()
        self.lm, self.rows, self.seed = lm, rows, seed
        self.encoder = PairEncoder(
            lm,
            prompt,
            max_context_tokens=self.config.max_context_tokens,
            max_response_tokens=self.config.max_response_tokens,
        )
        self.miner = None
        if self.config.negative is not None:
            self.miner = NegativeMiner(lm, clusters, self.config.mining, self.encoder.prompt)
        self.mined: Mined | None = None
        self._epoch = -1  # whose replies `mined` holds
        self._seen = 0  # pairs of this epoch, over all processes
        self._used = 0  # mined replies of this epoch
        self._batch = 0  # pairs of a full batch

    def collate(self, rows: Sequence[DressRow]) -> list[PairBatch]:
        """The micro batches of some pairs."""
        pairs = [self.encoder.encode(row.example.context, row.example.response) for row in rows]
        return self._chunks(pairs, [self.weights[row.cluster] for row in rows])

    def _chunks(self, pairs: Sequence[TokenPair], weights: Sequence[float]) -> list[PairBatch]:
        size = self.config.micro_batch_size or len(pairs)
        return [
            self.encoder.collate(pairs[start : start + size], weights[start : start + size])
            for start in range(0, len(pairs), size)
        ]

    def state_dict(self) -> Mapping[str, Any]:
        """The replies of the epoch and how far it has come."""
        mined = self.mined
        return {
            "epoch": self._epoch,
            "seen": self._seen,
            "used": self._used,
            "batch": self._batch,
            "mined": mined and {**vars(mined), "head": sorted(mined.head)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._seen, self._used = state["seen"], state["used"]
        mined = state["mined"]
        self.mined = mined and Mined(
            tuple(mined["rows"]),
            tuple(mined["replies"]),
            tuple(mined["clusters"]),
            tuple(mined["shares"]),
            frozenset(mined["head"]),
        )

    def step(self, model: Any, batch: Sequence[PairBatch], context: StepContext) -> Loss:
        """Learns one batch of pairs and the negatives that are due."""
        if context.epoch != self._epoch:
            self._begin(context)
        likelihood = [0.0, 0.0]

        def loss(logits: Tensor, chunk: PairBatch) -> Loss:
            labels, weights = chunk["labels"], chunk["weights"]
            nll = dress_terms(logits, labels, torch.ones_like(weights))
            likelihood[0] += float(nll.detach().sum())
            likelihood[1] += float((labels != IGNORED).sum())
            return Loss((weights * nll).sum(), _size(labels, weights, self.config.reduction))

        total, weight = update(model, batch, loss, context)
        self._batch = max(self._batch, sum(context.shares))
        self._seen += sum(context.shares)
        down = [self._push_down(model, start, end, context) for start, end in self._due()]
        metrics: dict[str, tuple[float, float]] = {"nll": (likelihood[0], likelihood[1])}
        if self.miner is not None:
            metrics["negative"] = (sum(part[0] for part in down), sum(part[1] for part in down))
        return Loss(torch.tensor(total), weight, metrics)

    def _begin(self, context: StepContext) -> None:
        self._epoch, self._seen, self._used = context.epoch, 0, 0
        if self.miner is None:
            return
        drawn = self.miner.draw(len(self.rows), derive_seed("mining", self.seed, context.epoch))
        model = self.lm.model
        training = model.training
        model.eval()
        contexts = [row.example.context for row in self.rows]
        self.mined = self.miner.mine(contexts, drawn, context.accelerator)
        model.train(training)
        shares = {cluster: round(self.mined.shares[cluster], 3) for cluster in sorted(self.mined.head)}
        logger.info("epoch %d: head clusters of the replies and their shares: %s", context.epoch, shares)

    def _due(self) -> Iterator[tuple[int, int]]:
        """Ranges of the mined replies whose turn has come, as many in each as a batch has pairs."""
        if self.mined is None:
            return
        count = len(self.mined.rows)
        due = self._seen * count // len(self.rows)
        while due - self._used >= self._batch or (self._seen == len(self.rows) and self._used < count):
            start, self._used = self._used, min(self._used + self._batch, count)
            yield start, self._used

    def _push_down(self, model: Any, start: int, end: int, context: StepContext) -> tuple[float, float]:
        """A step on a batch of mined replies, of which each process takes its share."""
        assert self.mined is not None
        weights = self.mined.weights
        if not any(weights[start:end]):
            return 0.0, 0.0
        rank, world = context.accelerator.process_index, context.accelerator.num_processes
        first, last = (start + (end - start) * part // world for part in (rank, rank + 1))
        own = [(self._mined_pair(i), weights[i]) for i in range(first, last)]
        active = [pair for pair, weight in own if weight]
        # Replies of weight 0 need no forward pass, but their tokens count.
        idle = sum(len(pair.answer) for pair, weight in own if not weight)
        chunks = self._chunks(active or [self._mined_pair(start)], [-1.0] * max(1, len(active)))
        if not active:  # the other processes wait for a backward pass
            chunks[0]["labels"].fill_(IGNORED)

        def loss(logits: Tensor, chunk: PairBatch) -> Loss:
            labels, weights = chunk["labels"], chunk["weights"]
            negative = self.config.negative or "nll"
            terms = dress_terms(logits, labels, weights, negative=negative, clip=self.config.clip)
            return Loss(terms.sum(), _size(labels, weights, self.config.reduction))

        # A stand-in for pairs, which the loop may have given this process, says nothing of its replies.
        context.real = True
        moved = send_to_device(chunks, context.accelerator.device)
        return update(model, moved, loss, context, idle=idle if self.config.reduction == "tokens" else 0)

    def _mined_pair(self, i: int) -> TokenPair:
        assert self.mined is not None
        return self.encoder.encode(self.rows[self.mined.rows[i]].example.context, self.mined.replies[i])


def human_perplexity(
    lm: TransformersLM, examples: Sequence[Example], prompt: DialoguePrompt | None = None
) -> float:
    """Perplexity of the human responses per token, ends not counted."""
    layout = prompt or DialoguePrompt()
    found = lm.log_likelihood(
        [layout.build(example.context) for example in examples],
        [layout.answer(example.response) for example in examples],
    )
    return math.exp(-sum(one.sum_logprob for one in found) / sum(one.num_tokens for one in found))


def train_dress(
    lm: TransformersLM,
    examples: Sequence[Example],
    clusters: ReplyClusters,
    *,
    training: FitConfig,
    config: DressConfig | None = None,
    prompt: DialoguePrompt | None = None,
    valid: Sequence[Example] = (),
    labels: Sequence[int] | None = None,
) -> FitResult:
    """Trains a language model in place with DRESS, or DRESS(-NT) with ``config.negative = None``.

    Args:
        lm: Any causal or encoder-decoder model.
        examples: The training pairs.
        clusters: Fitted on training responses; they stay fixed.
        training: The run; ``micro_batch_size`` belongs into ``config``. The released runs: batches of 32,
            Adam at 7e-6 with 100 steps of warm-up, gradient norm 0.1, patience on the perplexity.
        config: Settings of the method.
        prompt: Layout of contexts.
        valid: Human dialogues; ``perplexity`` of their responses (unweighted), which ``metric_for_best`` may
            name, and ``loss``, its logarithm.
        labels: Clusters of the training responses where they are known already.

    Returns:
        Steps, history and best evaluation.

    Raises:
        ValueError: There are no examples, labels that do not fit, or the clusters' encoder is ``lm.model``
            itself, which training would change.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to learn from")
    if labels is None:
        labels = clusters.assign([example.response for example in examples]).tolist()
    if len(labels) != len(examples):
        raise ValueError(f"labels must be as many as examples, got {len(labels)} and {len(examples)}")
    k = len(clusters.train_histogram)
    if not 0 <= min(labels) <= max(labels) < k:
        raise ValueError(f"labels must be 0 to {k - 1}, got {min(labels)} to {max(labels)}")
    if getattr(getattr(clusters, "encoder", None), "model", None) is lm.model:
        raise ValueError("the clusters' encoder is the model to be trained: load the encoder once more")
    rows = [DressRow(example, int(label)) for example, label in zip(examples, labels, strict=True)]
    method = DressMethod(lm, rows, clusters, config, prompt=prompt, seed=training.seed)

    def evaluate(_: Any) -> Mapping[str, float]:
        perplexity = human_perplexity(lm, valid, prompt)
        return {"loss": math.log(perplexity), "perplexity": perplexity}

    return fit(lm.model, method, rows, config=training, evaluate=evaluate if valid else None)
