"""Training a generator, and its retriever's context side, with exemplars; k of them in bounded memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn

from dialogkit.dialogues import Example
from dialogkit.generation import TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.retrieval import ResponseIndex, Retriever
from trainkit import FitConfig, FitResult, fit
from trainkit.objectives import Loss, StepContext
from trainkit.seeding import preserved_rng, restore_rng_state, rng_state

from .loss import ExemplarLoss, exemplar_loss, relevance_scores
from .metrics import Source, exemplar_perplexity, exemplars_from
from .packing import ExemplarEncoder, ExemplarPacker, LengthBudget
from .policy import ExemplarPolicy
from .selection import Exemplars, ExemplarSelector, as_tensor, context_query
from .tower import ContextTower

__all__ = ["ExemplarConfig", "ExemplarMethod", "ExemplarModel", "Trained", "train_exemplar"]

logger = logging.getLogger(__name__)

# Above this mean weight of the most relevant exemplar the others hardly count.
_SATURATED = 0.95


class ExemplarModel(nn.Module):
    """What is trained: the generator, and the context side of the retriever where that learns, too.

    Args:
        generator: The language model.
        encoder: How exemplars enter it.
        tower: The retriever's context side; None leaves the retriever as it is.
    """

    def __init__(
        self, generator: nn.Module, encoder: ExemplarEncoder, tower: ContextTower | None = None
    ) -> None:
        super().__init__()
        self.generator, self.tower = generator, tower
        self.encoder = encoder

    def forward(
        self, batch: Mapping[str, Any], contexts: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Log-likelihoods ``ell`` of a batch's rows ``[rows]``, vectors ``u(c)`` of contexts ``[B, d]``."""
        vectors = None if contexts is None or self.tower is None else self.tower(contexts)
        return self.encoder.log_likelihoods(self.generator, batch), vectors


@dataclass(frozen=True)
class _Group:
    """Some examples of a step, whose exemplars go through the model together."""

    pairs: list[Any]  # one for every true place of the mask, row by row
    mask: Tensor  # [G, k]
    queries: list[str]
    contexts: Tensor | None  # [G, d], where the retriever is frozen
    exemplars: Tensor | None  # [G, k, d]


class ExemplarMethod:
    """Trains an :class:`ExemplarModel` with :func:`exemplar_loss`, as a ``trainkit`` step method.

    A forward pass holds at most ``chunk_size`` pairs of a context and an exemplar. Where that is all
    exemplars of an example or more, there is one forward and one backward pass. Where it is less, the
    likelihoods are first found without gradients, and the gradient of the loss is then carried back through
    one chunk at a time (gradient caching, Gao et al. 2021): k exemplars cost the memory of ``chunk_size``,
    an additional forward pass, and give the same gradients. Dropout falls alike in both passes.

    The posterior of an example needs all of its exemplars, but no other example: loss and gradient do not
    depend on the chunks.

    Args:
        encoder: How exemplars enter the generator.
        selector: Finds exemplars; None trains without any.
        tower: The context side in training, the one of the model; None where the retriever is frozen.
        hits: Hits of the whole training set, see :meth:`ExemplarSelector.cached_hits`; None searches in each
            step. With a tower in training and ``query="context"`` there is no other way.
        chunk_size: Pairs in one forward pass.

    Raises:
        ValueError: ``chunk_size`` is below 1, or ``hits`` would go stale.
    """

    def __init__(
        self,
        encoder: ExemplarEncoder,
        selector: ExemplarSelector | None = None,
        *,
        tower: ContextTower | None = None,
        hits: npt.NDArray[np.int64] | None = None,
        chunk_size: int = 16,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        policy = selector.policy if selector is not None else ExemplarPolicy(k=0, loss="nll")
        if hits is not None and tower is not None and policy.query == "context":
            raise ValueError("hits of contexts go stale while the context side learns: leave hits unset")
        if tower is not None and not policy.weighs:
            raise ValueError("this policy gives the context side nothing to learn: leave tower unset")
        self.encoder, self.selector, self.policy = encoder, selector, policy
        self.tower, self.hits, self.chunk_size = tower, hits, chunk_size
        self._checked = False

    def collate(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Exemplars are drawn in :meth:`step`, where the run's random numbers are."""
        return examples

    def state_dict(self) -> Mapping[str, Any]:
        """What a run must go on with; what is random comes from the run."""
        return {
            "policy": repr(self.policy),
            "index": None if self.selector is None else self.selector.index.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that the stopped run had the same policy and responses.

        Raises:
            ValueError: It had others.
        """
        for name, value in self.state_dict().items():
            if state[name] != value:
                raise ValueError(
                    f"the stopped run had another {name} ({state[name]}; now {value}): "
                    "go on with that one, or write elsewhere"
                )

    def step(self, model: nn.Module, batch: Sequence[Example], context: StepContext) -> Loss:
        """Chooses exemplars, and updates the model once.

        Raises:
            RuntimeError: Under DeepSpeed, which divides each backward pass by itself.
        """
        if context.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise RuntimeError("a step has several backward passes, which DeepSpeed cannot add up: use DDP")
        chosen = self._select(batch, context)
        groups = self._groups(batch, chosen, context.accelerator.device)
        found = [
            self._learn(model, group, context, last=number == len(groups))
            for number, group in enumerate(groups, start=1)
        ]
        context.optimizer_step()
        return self._report(groups, found, chosen)

    # Exemplars

    def _select(self, batch: Sequence[Example], context: StepContext) -> Exemplars | None:
        if self.selector is None or self.policy.k == 0:
            return None
        hits = None
        if self.hits is not None:
            hits = self.hits[context.example_ids.numpy()]
        elif self.tower is not None and self.policy.query == "context":
            queries = [context_query(example.context, self.selector.max_turns) for example in batch]
            hits = self.selector.hits_of(queries, self.tower.encode_context(queries))
        return self.selector.select(batch, context.generator, hits)

    def _groups(
        self, batch: Sequence[Example], chosen: Exemplars | None, device: torch.device
    ) -> list[_Group]:
        """Examples of like length together: less padding."""
        order = sorted(range(len(batch)), key=lambda row: _length(batch[row]))
        size = max(1, self.chunk_size // max(1, self.policy.k))
        return [
            self._group(batch, order[start : start + size], chosen, device)
            for start in range(0, len(order), size)
        ]

    def _group(
        self,
        batch: Sequence[Example],
        rows: Sequence[int],
        chosen: Exemplars | None,
        device: torch.device,
    ) -> _Group:
        mask = torch.zeros(len(rows), max(1, self.policy.k), dtype=torch.bool)
        pairs = []
        for place, row in enumerate(rows):
            example = batch[row]
            texts: list[tuple[int, str | None]] = []
            if chosen is not None:
                texts += [(int(j), chosen.texts[row][j]) for j in chosen.mask[row].nonzero()[0]]
            # Without any exemplar the response is learned from the context alone.
            for column, text in texts or [(0, None)]:
                mask[place, column] = True
                pairs.append(self.encoder.encode(example.context, text, example.response))
        queries: list[str] = []
        contexts = exemplars = None
        if chosen is not None and self.selector is not None and self.policy.weighs:
            queries = [context_query(batch[row].context, self.selector.max_turns) for row in rows]
            if self.tower is None:
                contexts = as_tensor(self.selector.retriever.encode_context(queries), device)
            golds = [batch[row].response for row in rows]
            exemplars = as_tensor(self.selector.vectors(chosen.ids[rows], golds), device)
        return _Group(pairs, mask.to(device), queries, contexts, exemplars)

    # The update

    def _learn(self, model: nn.Module, group: _Group, context: StepContext, *, last: bool) -> ExemplarLoss:
        """Adds the gradient of a group; processes exchange gradients in the last backward pass of a step."""
        device = context.accelerator.device
        starts = range(0, len(group.pairs), self.chunk_size)
        contexts = self.tower.tokenize(group.queries) if self.tower is not None else None

        def run(start: int) -> tuple[Tensor, Tensor | None]:
            batch = self.encoder.collate(group.pairs[start : start + self.chunk_size])
            asked = contexts if start == starts[-1] else None
            found: tuple[Tensor, Tensor | None] = model(*send_to_device((batch, asked), device))
            return found

        def exchanged(now: bool) -> AbstractContextManager[Any]:
            return nullcontext() if now else context.without_communication()

        examples = len(group.mask)
        if len(starts) == 1:
            with exchanged(last):
                ell, vectors = run(0)
                found = self._loss(group, ell, vectors)
                context.backward(found.per_example.sum(), examples)
            return found

        states, parts, vectors = [], [], None
        with torch.no_grad():
            for start in starts:
                states.append(rng_state())
                ell, vectors = run(start)
                parts.append(ell)
        ells = torch.cat(parts).requires_grad_()
        leaf = None if vectors is None else vectors.requires_grad_()
        found = self._loss(group, ells, leaf)
        found.per_example.sum().backward()
        assert ells.grad is not None
        slopes = ells.grad.split([len(part) for part in parts])
        for start, state, slope in zip(starts, states, slopes, strict=True):
            end = start == starts[-1]
            with exchanged(last and end):
                with preserved_rng():
                    restore_rng_state(state)
                    ell, vectors = run(start)
                total = (ell * slope).sum()
                if vectors is not None and leaf is not None and leaf.grad is not None:
                    total = total + (vectors * leaf.grad).sum()
                context.backward(total, examples if end else 0)
        return found

    def _loss(self, group: _Group, ell: Tensor, vectors: Tensor | None) -> ExemplarLoss:
        table = ell.new_zeros(group.mask.shape).masked_scatter(group.mask, ell)
        asked = vectors if vectors is not None else group.contexts
        relevance = None
        if asked is not None and group.exemplars is not None:
            # A softmax over large inner products saturates in half precision.
            relevance = relevance_scores(asked.float(), group.exemplars)
        return exemplar_loss(
            table, relevance, mode=self.policy.loss, temperature=self.policy.temperature, mask=group.mask
        )

    def _report(
        self, groups: Sequence[_Group], found: Sequence[ExemplarLoss], chosen: Exemplars | None
    ) -> Loss:
        """Metrics: the greatest weight and posterior of an example, replaced exemplars, their Jaccard."""
        examples = sum(len(group.mask) for group in groups)
        weight = torch.cat([part.weights.detach().amax(dim=1) for part in found])
        several = torch.cat([group.mask.sum(dim=1) > 1 for group in groups])
        if not self._checked and self.policy.weighs and bool(several.any()):
            self._checked = True
            greatest = float(weight[several].mean())
            if greatest > _SATURATED:
                logger.warning(
                    "the most relevant of %d exemplars has a weight of %.4f: raise the policy's temperature "
                    "(now %g), or the others do not count",
                    self.policy.k,
                    greatest,
                    self.policy.temperature,
                )
        there = 0 if chosen is None else int(chosen.mask.sum())
        replaced = 0 if chosen is None else int(chosen.replaced.sum())
        closeness = 0.0 if chosen is None else float(chosen.jaccard[chosen.mask].sum())
        return Loss(
            total=torch.stack([part.per_example.detach().sum() for part in found]).sum(),
            weight=examples,
            metrics={
                "top_weight": (weight.sum(), examples),
                "top_posterior": (sum(part.posterior.amax(dim=1).sum() for part in found), examples),
                "replaced": (float(replaced), float(there)),
                "jaccard": (closeness, float(there)),
            },
        )


def _length(example: Example) -> int:
    return sum(map(len, example.context)) + len(example.response)


@dataclass(frozen=True)
class ExemplarConfig:
    """How a generator is trained with exemplars.

    Attributes:
        policy: Which exemplars, and which loss.
        budget: Most tokens of context, exemplar and response.
        train_retriever: The retriever's context side learns, too (as released), where relevance counts.
        chunk_size: Pairs of context and exemplar in one forward pass (ours). Memory grows with it; results
            do not change.
        max_turns: Turns of a context that the retriever reads, the last ones.

    Raises:
        ValueError: A number is below 1.
    """

    policy: ExemplarPolicy = field(default_factory=ExemplarPolicy)
    budget: LengthBudget = field(default_factory=LengthBudget)
    train_retriever: bool = True
    chunk_size: int = 16
    max_turns: int = 20

    def __post_init__(self) -> None:
        for name in ("chunk_size", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Trained:
    """What :func:`train_exemplar` returns.

    Attributes:
        packer: Lays out contexts and exemplars for the trained generator, ``packer.lm``.
        retriever: Encodes contexts with the trained context side; as it was given where that did not learn.
        index: The responses, as an index of ``retriever``.
        result: Steps, history and best evaluation.
    """

    packer: ExemplarPacker
    retriever: Retriever | None
    index: ResponseIndex | None
    result: FitResult


def train_exemplar(
    lm: TransformersLM,
    examples: Sequence[Example],
    retriever: Retriever | None = None,
    index: ResponseIndex | None = None,
    *,
    training: FitConfig,
    config: ExemplarConfig | None = None,
    prompt: DialoguePrompt | None = None,
    valid: Sequence[Example] = (),
    cache: str | Path | None = None,
) -> Trained:
    """Trains a generator in place with the exemplars that a policy chooses.

    Under ``accelerate launch`` all processes train; with ``cache`` the first one searches for all.

    Args:
        lm: Any causal or encoder-decoder model.
        examples: The training examples.
        retriever: Finds and weighs exemplars. It may be left out for a policy of ``k = 0``.
        index: The response set, built with ``retriever``. It may hold the gold responses.
        training: The run; ``micro_batch_size`` stays unset. Released: batches of 32, Adam at 7e-6, 100 steps
            of warm-up, gradient norm 0.1.
        config: Policy, budget, chunks.
        prompt: Layout of contexts, see :class:`ExemplarPacker`.
        valid: Examples to evaluate on: ``perplexity`` of their responses with exemplars that were retrieved
            by context (none for ``k = 0``), which ``metric_for_best`` may name, and ``loss``, its logarithm.
        cache: Folder for the hits of the training examples, see :meth:`ExemplarSelector.cached_hits`.

    Raises:
        ValueError: There are no examples, or the policy needs a retriever and an index.
        TypeError: The retriever's context side cannot be trained (``train_retriever=False`` leaves it).
        StaleIndexError: The index belongs to another retriever.
    """
    config = config or ExemplarConfig()
    policy = config.policy
    if not examples:
        raise ValueError("examples is empty: there is nothing to learn from")
    packer = ExemplarPacker(lm, prompt, budget=config.budget)
    selector = tower = hits = None
    if policy.k:
        if retriever is None or index is None:
            raise ValueError(f"a policy of {policy.k} exemplars needs a retriever and an index")
        selector = ExemplarSelector(retriever, index, policy, lm.tokenizer, max_turns=config.max_turns)
        if config.train_retriever and policy.weighs:
            tower = ContextTower(retriever)
        if tower is None or policy.query == "gold":
            on_cpu = training.cpu or not torch.accelerator.is_available()
            with PartialState(cpu=on_cpu).main_process_first():
                hits = selector.cached_hits(examples, cache)
    method = ExemplarMethod(packer, selector, tower=tower, hits=hits, chunk_size=config.chunk_size)
    model = ExemplarModel(lm.model, packer, tower)

    def evaluate(_: Any) -> Mapping[str, float]:
        source: Source = "context" if policy.k else "none"
        given = exemplars_from(source, valid, tower or retriever, index, max_turns=config.max_turns)
        perplexity = exemplar_perplexity(packer, valid, given)
        return {"loss": math.log(perplexity), "perplexity": perplexity}

    result = fit(model, method, examples, config=training, evaluate=evaluate if valid else None)
    if tower is not None and index is not None:
        learned = tower.retriever()
        return Trained(packer, learned, tower.index(index, learned), result)
    return Trained(packer, retriever, index, result)
