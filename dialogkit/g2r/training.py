"""Training a bi-encoder with the loss of G2R, in memory that does not grow with the number of negatives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainkit.objectives import Loss, StepContext

from .data import ScoredContext
from .evaluation import context_text
from .loss import G2RLoss, g2r_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

__all__ = ["G2RBatch", "G2RConfig", "G2RMethod", "draw_batch"]

Side = Literal["query", "document"]


@dataclass(frozen=True)
class G2RConfig:
    """How a student learns. Defaults are those of the released runs, except where our own choice is named.

    Attributes:
        alpha: Weight of the soft loss; 0.1 for G2R-DM, 0 for G2R-D.
        teacher_temperature: Divides the teacher's scores.
        negatives: Random responses of the response set that a step's contexts share.
        max_candidates: Candidates of a context in a step, drawn anew each time.
        in_batch_negatives: Other contexts' candidates are negatives, too; off in the released runs.
        score_scale: Factor on the inner product. The released code scales both outputs by 0.06, here 0.0036;
            20 is our choice and suits unit vectors such as MiniLM's.
        max_turns: Turns of the context that are read, the last ones.
        max_context_tokens: Tokens of the context that are read, the last ones.
        max_response_tokens: Tokens of a response that are read, the first ones.
        chunk_size: Texts in one forward pass (our choice). Memory grows with it, results do not change.
    """

    alpha: float = 0.1
    teacher_temperature: float = 1.0
    negatives: int = 512
    max_candidates: int = 10
    in_batch_negatives: bool = False
    score_scale: float = 20.0
    max_turns: int = 20
    max_context_tokens: int = 240
    max_response_tokens: int = 128
    chunk_size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        for name in ("teacher_temperature", "score_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in (
            "max_candidates",
            "max_turns",
            "max_context_tokens",
            "max_response_tokens",
            "chunk_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.negatives < 0:
            raise ValueError(f"negatives must be at least 0, got {self.negatives}")
        if not self.negatives and not self.in_batch_negatives:
            raise ValueError("without negatives and in_batch_negatives there is nothing to tell apart")


@dataclass(frozen=True)
class G2RBatch:
    """The texts of one step and who belongs to whom.

    Attributes:
        contexts: B contexts as one text each.
        texts: U distinct texts: candidates first, then negatives.
        positive_mask: Boolean ``[B, U]``.
        negative_mask: Boolean ``[U]``.
        teacher_scores: ``float64 [B, U]``, zero outside ``positive_mask``.
    """

    contexts: tuple[str, ...]
    texts: tuple[str, ...]
    positive_mask: Tensor
    negative_mask: Tensor
    teacher_scores: Tensor


def draw_batch(
    examples: Sequence[ScoredContext],
    responses: Sequence[str],
    config: G2RConfig,
    generator: torch.Generator,
) -> G2RBatch:
    """Draws the candidates and the shared negatives of a step.

    Candidates are drawn uniformly, so a person's response may be absent from a step, as in the released runs.
    Negatives are drawn without replacement; those equal to a candidate of the batch are dropped and not
    made up for.

    Args:
        examples: B contexts with their candidates.
        responses: The whole response set.
        config: The student's settings.
        generator: A CPU generator.
    """
    drawn = []
    for example in examples:
        order = torch.randperm(len(example.responses), generator=generator).tolist()
        drawn.append(sorted(order[: config.max_candidates]))
    columns: dict[str, int] = {}
    for example, chosen in zip(examples, drawn, strict=True):
        for j in chosen:
            columns.setdefault(example.responses[j], len(columns))
    candidates = len(columns)
    for row in _sample(len(responses), config.negatives, generator):
        columns.setdefault(responses[row], len(columns))
    positive = torch.zeros(len(examples), len(columns), dtype=torch.bool)
    scores = torch.zeros(len(examples), len(columns), dtype=torch.float64)
    for i, (example, chosen) in enumerate(zip(examples, drawn, strict=True)):
        for j in chosen:
            column = columns[example.responses[j]]
            positive[i, column] = True
            scores[i, column] = example.scores[j]
    return G2RBatch(
        tuple(context_text(example.context, config.max_turns) for example in examples),
        tuple(columns),
        positive,
        torch.arange(len(columns)) >= candidates,
        scores,
    )


def _sample(population: int, count: int, generator: torch.Generator) -> list[int]:
    """Distinct rows in random order, at a cost that does not grow with the population."""
    if 4 * count >= population:
        rows: list[int] = torch.randperm(population, generator=generator)[:count].tolist()
        return rows
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        for row in torch.randint(population, (count,), generator=generator).tolist():
            chosen.setdefault(row)
    return list(chosen)[:count]


class G2RMethod:
    """Trains both routes of a bi-encoder with :func:`g2r_loss`, as a ``trainkit`` step method.

    The model is a ``SentenceTransformer`` with the routes ``query`` and ``document``. A step encodes every
    text twice, first without gradients: the gradient of the loss with respect to the embeddings is then
    carried back through one chunk of texts at a time (gradient caching, Gao et al. 2021). So 512 negatives
    cost the memory of ``chunk_size`` texts, with the gradients of one large batch.

    Args:
        tokenizer: The one of the bi-encoder.
        responses: The response set that negatives are drawn from.
        config: The student's settings.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], config: G2RConfig | None = None
    ) -> None:
        self.config = config or G2RConfig()
        if tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a padding token")
        if not len(responses):
            raise ValueError("responses is empty: there is nothing to draw negatives from")
        self.tokenizer = tokenizer
        self.responses = responses
        self._warned = False

    def collate(self, examples: Sequence[ScoredContext]) -> Sequence[ScoredContext]:
        """Batches are drawn in :meth:`step`, where the run's random numbers are."""
        return examples

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing: what is random comes from the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    def step(self, model: nn.Module, batch: Sequence[ScoredContext], context: StepContext) -> Loss:
        """Draws, encodes, and updates the model once."""
        drawn = draw_batch(batch, self.responses, self.config, context.generator)
        device = context.accelerator.device
        jobs = [*self._chunks("query", drawn.contexts), *self._chunks("document", drawn.texts)]
        states: list[_RandomState] = []
        found: list[Tensor] = []
        with torch.no_grad():
            for job in jobs:
                states.append(_random_state(device))
                found.append(self._encode(model, job, device).float())
        embeddings = {
            side: _in_order([(job.rows, e) for job, e in zip(jobs, found, strict=True) if job.side == side])
            for side in ("query", "document")
        }
        queries = embeddings["query"].requires_grad_()
        documents = embeddings["document"].requires_grad_()
        result = self._loss(queries, documents, drawn)
        contexts = len(batch)
        (result.loss * contexts).backward()
        gradients = {"query": queries.grad, "document": documents.grad}

        def surrogate(job: _Chunk, state: _RandomState) -> Tensor:
            with _replayed(state, device):
                vectors = self._encode(model, job, device).float()
            gradient = gradients[job.side]
            assert gradient is not None
            return (vectors * gradient[job.rows.to(device)]).sum()

        # Processes exchange gradients once, in a backward pass that goes through both routes.
        last = {job.side: position for position, job in enumerate(jobs)}
        for position, (job, state) in enumerate(zip(jobs, states, strict=True)):
            if position not in last.values():
                with context.without_communication():
                    context.backward(surrogate(job, state), 0)
        ends = [surrogate(jobs[position], states[position]) for position in last.values()]
        context.backward(torch.stack(ends).sum(), contexts)
        context.optimizer_step()
        return self._report(result, queries.detach() @ documents.detach().T, drawn)

    def _loss(self, queries: Tensor, documents: Tensor, drawn: G2RBatch) -> G2RLoss:
        device = queries.device
        return g2r_loss(
            self.config.score_scale * queries @ documents.T,
            drawn.positive_mask.to(device),
            drawn.negative_mask.to(device),
            drawn.teacher_scores.to(device),
            alpha=self.config.alpha,
            teacher_temperature=self.config.teacher_temperature,
            in_batch_negatives=self.config.in_batch_negatives,
        )

    def _report(self, result: G2RLoss, scores: Tensor, drawn: G2RBatch) -> Loss:
        """Metrics: both losses, and how often one of a context's own candidates beats every negative."""
        contexts = len(scores)
        positive, negative = drawn.positive_mask.to(scores.device), drawn.negative_mask.to(scores.device)
        own = scores.masked_fill(~positive, -torch.inf).amax(dim=1)
        other = scores.masked_fill(~negative, -torch.inf).amax(dim=1)
        return Loss(
            total=result.loss.detach() * contexts,
            weight=contexts,
            metrics={
                "ce": (result.ce.detach() * contexts, contexts),
                "kd": (result.kd.detach() * contexts, contexts),
                "hits@1": ((own > other).sum(), contexts),
            },
        )

    def _chunks(self, side: Side, texts: Sequence[str]) -> list[_Chunk]:
        """Groups of texts of like length, with the rows they came from."""
        limit = self.config.max_context_tokens if side == "query" else self.config.max_response_tokens
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        groups = [
            order[start : start + self.config.chunk_size]
            for start in range(0, len(order), self.config.chunk_size)
        ]
        return [
            _Chunk(side, torch.tensor(group), self._tokenize(side, [texts[row] for row in group], limit))
            for group in groups
        ]

    def _tokenize(self, side: Side, texts: list[str], limit: int) -> dict[str, Tensor]:
        # What was said last matters most in a context, and what comes first in a response.
        before = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left" if side == "query" else "right"
        try:
            encoded = self.tokenizer(
                texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            # The texts of a chunk are sorted by length.
            if not self._warned and encoded["input_ids"].shape[1] == limit:
                self._warn_if_cut(side, texts[-1], limit)
        finally:
            self.tokenizer.truncation_side = before
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _warn_if_cut(self, side: Side, longest: str, limit: int) -> None:
        if len(self.tokenizer(longest, verbose=False)["input_ids"]) > limit:
            self._warned = True
            what, which = ("context", "last") if side == "query" else ("response", "first")
            _log.warning("%d tokens of a %s are read, the %s; a longer one was cut", limit, what, which)

    def _encode(self, model: nn.Module, chunk: _Chunk, device: torch.device) -> Tensor:
        inputs = {name: tensor.to(device) for name, tensor in chunk.inputs.items()}
        embeddings: Tensor = model(inputs, task=chunk.side)["sentence_embedding"]
        return embeddings


@dataclass(frozen=True)
class _Chunk:
    side: Side
    rows: Tensor
    inputs: dict[str, Tensor]


def _in_order(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows of all parts at their places."""
    rows = torch.cat([rows for rows, _ in parts])
    values = torch.cat([values for _, values in parts])
    return torch.empty_like(values).index_copy_(0, rows.to(values.device), values)


_RandomState = tuple[Tensor, Tensor | None]


def _random_state(device: torch.device) -> _RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: _RandomState, device: torch.device) -> Iterator[None]:
    """Random numbers as they were, so that a second pass drops the same units as the first."""
    cpu, cuda = state
    with torch.random.fork_rng(devices=[] if cuda is None else [device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
