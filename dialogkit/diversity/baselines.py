"""What DRESS is compared with: EDF filter, negative training, unlikelihood, re-ranking by information."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.functional import cross_entropy

from dialogkit.dialogues import Example
from dialogkit.generation import GenerationConfig, LanguageModel, TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from trainkit.objectives import Loss, StepContext

from .dress import dress_terms
from .pairs import IGNORED, PairBatch, PairEncoder, pair_logits, update

__all__ = [
    "EDFConfig",
    "LikelihoodObjective",
    "MMIReranker",
    "NegativeTraining",
    "NegativeTrainingConfig",
    "edf_filter",
    "pair_entropies",
    "unlikelihood_loss",
]


# EDF: entropy-based data filtering


@dataclass(frozen=True)
class EDFConfig:
    """What is filtered out. Defaults are those of the authors' code.

    Attributes:
        threshold: A cluster whose partners have a greater entropy, in bits, is dropped.
        side: Whose clusters count: of the context's last turn, of the response, or either.
        max_mean_words: A cluster whose utterances have this many words or more on average is kept.
        min_size: A cluster with fewer utterances is kept.
    """

    threshold: float = 1.1
    side: Literal["source", "target", "both"] = "both"
    max_mean_words: float = 15.0
    min_size: int = 2

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.side not in ("source", "target", "both"):
            raise ValueError(f"side must be 'source', 'target' or 'both', got {self.side!r}")


def pair_entropies(keys: Sequence[Hashable], partners: Sequence[Hashable]) -> dict[Hashable, float]:
    """Entropy of each key's partners ``u`` in bits: ``-sum_u p(u | key) log2 p(u | key)``."""
    groups: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for key, partner in zip(keys, partners, strict=True):
        groups[key][partner] += 1
    return {
        key: -sum(n / counts.total() * log2(n / counts.total()) for n in counts.values()) + 0.0
        for key, counts in groups.items()
    }


def edf_filter(
    examples: Sequence[Example],
    config: EDFConfig | None = None,
    *,
    source_clusters: Sequence[Hashable] | None = None,
    target_clusters: Sequence[Hashable] | None = None,
) -> list[int]:
    """Entropy-based data filtering: drops pairs whose utterances go with too many others.

    "Yes." answers everything, "What?" follows everything: their partners have a high entropy. (Csaky, Purgai,
    Recski, "Improving Neural Conversational Models with Entropy-Based Data Filtering", ACL 2019, arXiv
    1905.05471.) The authors' further rule, that a dropped cluster's medoid has fewer than 50 words, is left
    out: with the default clusters the rule on the mean implies it.

    Args:
        examples: The training pairs. The source of a pair is the context's last turn.
        config: Threshold and side.
        source_clusters: Cluster of each source; by default equal texts form one (the authors' IDENTITY).
        target_clusters: The same for responses.

    Returns:
        Positions of the pairs that are kept, in order.
    """
    config = config or EDFConfig()
    turns = [example.context[-1] for example in examples], [example.response for example in examples]
    given = source_clusters, target_clusters
    for name, clusters in zip(("source_clusters", "target_clusters"), given, strict=True):
        if clusters is not None and len(clusters) != len(examples):
            raise ValueError(f"{name} must be as many as examples, got {len(clusters)} for {len(examples)}")
    keys = [
        texts if clusters is None else list(clusters) for texts, clusters in zip(turns, given, strict=True)
    ]
    dropped = set()
    for number, side in enumerate(("source", "target")):
        if config.side in (side, "both"):
            bad = _too_common(keys[number], keys[1 - number], turns[number], config)
            dropped |= {i for i, key in enumerate(keys[number]) if key in bad}
    return [i for i in range(len(examples)) if i not in dropped]


def _too_common(
    keys: Sequence[Hashable], partners: Sequence[Hashable], texts: Sequence[str], config: EDFConfig
) -> set[Hashable]:
    words: Counter[Hashable] = Counter()
    for key, text in zip(keys, texts, strict=True):
        words[key] += len(text.split())
    sizes = Counter(keys)
    return {
        key
        for key, entropy in pair_entropies(keys, partners).items()
        if entropy > config.threshold
        and sizes[key] >= config.min_size
        and words[key] / sizes[key] < config.max_mean_words
    }


# Unlikelihood


def unlikelihood_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Token-level unlikelihood of repeated tokens: ``-sum_t sum_c log(1 - p(c | y_<t))``.

    (Welleck et al., "Neural Text Generation with Unlikelihood Training", ICLR 2020, arXiv 1908.04319.) The
    candidates ``c`` at ``t`` are the distinct targets before ``t`` except the target itself; ``1 - p`` is at
    least 1e-5.

    Args:
        logits: ``[B, T, V]``, aligned with ``labels``.
        labels: ``int64 [B, T]``.
        ignore_index: The label of positions that do not count.

    Returns:
        The sum of each sequence, ``[B]``.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    length = labels.shape[1]
    real = labels != ignore_index
    tokens = labels.where(real, torch.zeros_like(labels))
    logp = logits.log_softmax(dim=2)
    candidates = logp.gather(2, tokens[:, None, :].expand(-1, length, -1))  # [b, t, s]: log p(y_s) at t
    before = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril(-1)
    same = tokens[:, :, None] == tokens[:, None, :]
    repeated = (same & before & real[:, None, :]).any(dim=2)  # y_s stood before s
    counts = before & ~same & real[:, :, None] & (real & ~repeated)[:, None, :]
    penalties = -(1 - candidates.exp()).clamp(min=1e-5).log()
    return penalties.where(counts, torch.zeros_like(penalties)).sum(dim=(1, 2))


class LikelihoodObjective:
    """Maximum likelihood, with ``unlikelihood`` above 0 plus that many times :func:`unlikelihood_loss`.

    With 0 it is the vanilla baseline. The loss is a mean over target tokens.

    Args:
        encoder: Makes batches of examples.
        unlikelihood: Weight of the second term, 1 in the paper.
    """

    def __init__(self, encoder: PairEncoder, unlikelihood: float = 0.0) -> None:
        if not unlikelihood >= 0:
            raise ValueError(f"unlikelihood must not be negative, got {unlikelihood}")
        self.encoder, self.unlikelihood = encoder, unlikelihood

    def collate(self, examples: Sequence[Example]) -> PairBatch:
        """A batch of some pairs."""
        return self.encoder.collate([self.encoder.encode(one.context, one.response) for one in examples])

    def __call__(self, model: Any, batch: PairBatch) -> Loss:
        """The loss of a batch."""
        logits, labels = pair_logits(model, batch), batch["labels"]
        nll = dress_terms(logits, labels, batch["weights"]).sum()
        total = nll
        if self.unlikelihood:
            total = nll + self.unlikelihood * unlikelihood_loss(logits, labels).sum()
        tokens = (labels != IGNORED).sum()
        return Loss(total, tokens, {"nll": (nll.detach(), tokens)})


# Negative training on frequent replies


@dataclass(frozen=True)
class NegativeTrainingConfig:
    """How frequent replies are found and pushed down. Defaults are those of the authors' code.

    Attributes:
        threshold: A reply with a greater share of the replies in the window is frequent; 0.001 or 0.01, by
            data set.
        window: Batches of replies that are remembered.
        end_weight: Weight of the token that ends a reply.
        generation: How replies are decoded; the layout's stop strings are added.
    """

    threshold: float = 0.01
    window: int = 200
    end_weight: float = 0.1
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=64)
    )

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


class NegativeTraining:
    """Negative training on frequent replies, as a ``trainkit`` step method.

    (He and Glass, "Negative Training for Neural Dialogue Response Generation", ACL 2020, arXiv 1903.02134.)
    Each step learns a batch of pairs, lets the model answer the same contexts, and takes a second step, of
    gradient ascent, on those replies whose exact words had more than the threshold's share of the last
    ``window`` batches. What was said once is not frequent (ours: at first one reply in few is a great share).
    Every process remembers its own replies.

    Args:
        lm: The model in training; :func:`trainkit.fit` is given ``lm.model``.
        encoder: Makes batches of examples.
        config: Threshold, window, decoding.
    """

    def __init__(
        self, lm: TransformersLM, encoder: PairEncoder, config: NegativeTrainingConfig | None = None
    ) -> None:
        self.lm, self.encoder = lm, encoder
        self.config = config or NegativeTrainingConfig()
        stop = (*self.config.generation.stop, *encoder.prompt.stop)
        self._generation = replace(self.config.generation, stop=stop)
        self.window: deque[list[str]] = deque(maxlen=self.config.window)

    def collate(self, examples: Sequence[Example]) -> tuple[Sequence[Example], PairBatch]:
        """A batch of some pairs, and the pairs themselves."""
        pairs = [self.encoder.encode(example.context, example.response) for example in examples]
        return examples, self.encoder.collate(pairs)

    def state_dict(self) -> Mapping[str, Any]:
        """The window."""
        return {"window": list(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.window.clear()
        self.window.extend(state["window"])

    def frequent(self, replies: Sequence[str]) -> list[int]:
        """Positions of the replies whose share of the window exceeds the threshold."""
        counts = Counter(reply for batch in self.window for reply in batch)
        limit = self.config.threshold * counts.total()
        return [i for i, reply in enumerate(replies) if counts[reply] > max(limit, 1)]

    def step(self, model: Any, batch: tuple[Sequence[Example], PairBatch], context: StepContext) -> Loss:
        """One step on the pairs and, where replies are frequent, one against them."""
        examples, pairs = batch
        total, weight = update(model, [pairs], _likelihood, context)
        replies = self._answers(examples)
        if context.real:
            self.window.append(replies)
        bad = self.frequent(replies) if context.real else []
        down = (0.0, 0.0)
        if _any_process(bool(bad), context.accelerator):
            down = self._push_down(model, examples, replies, bad, context)
        share = (float(len(bad)), float(len(replies)))
        return Loss(torch.tensor(total), weight, {"negative": down, "frequent": share})

    def _answers(self, examples: Sequence[Example]) -> list[str]:
        model = self.lm.model
        training = model.training
        model.eval()
        prompts = [self.encoder.prompt.build(example.context) for example in examples]
        found = self.lm.generate(prompts, config=self._generation, seed=0)
        model.train(training)
        return [candidates[0].text for candidates in found]

    def _push_down(
        self,
        model: Any,
        examples: Sequence[Example],
        replies: Sequence[str],
        bad: Sequence[int],
        context: StepContext,
    ) -> tuple[float, float]:
        pairs = [self.encoder.encode(examples[i].context, replies[i]) for i in bad or [0]]
        batch = self.encoder.collate(pairs)
        if not bad:  # the other processes wait for a backward pass
            batch["labels"].fill_(IGNORED)

        def loss(logits: Tensor, chunk: PairBatch) -> Loss:
            labels = chunk["labels"]
            real = labels != IGNORED
            nll = cross_entropy(
                logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
            )
            ends = real & (real.flip(1).cumsum(1).flip(1) == 1)
            scale = torch.where(ends, self.config.end_weight, 1.0)
            return Loss(-(scale * nll).sum(), real.sum())

        return update(model, [send_to_device(batch, context.accelerator.device)], loss, context)


def _likelihood(logits: Tensor, batch: PairBatch) -> Loss:
    labels = batch["labels"]
    return Loss(dress_terms(logits, labels, batch["weights"]).sum(), (labels != IGNORED).sum())


def _any_process(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    value = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(value, reduction="sum") > 0)


# Maximum mutual information


@dataclass(frozen=True)
class MMIReranker:
    """Ranks responses by maximum mutual information.

    (Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016, arXiv
    1510.03055.) Without ``backward`` it is MMI-antiLM: ``log p(r | c) - weight * log p(r)``, where ``p(r)``
    is that of the same model without context. With it MMI-bidi: ``(1 - weight) * log p(r | c) + weight * log
    p(c | r)``. Both add ``length_bonus`` a token.

    Attributes:
        model: Gives ``p(r | c)``.
        weight: Lambda; 0 ranks by likelihood.
        backward: A model trained on swapped pairs, asked for the context's last turn given the response.
        length_bonus: Nats for each token of the response.
        prompt: Layout of contexts.
    """

    model: LanguageModel
    weight: float = 0.5
    backward: LanguageModel | None = None
    length_bonus: float = 0.0
    prompt: DialoguePrompt = field(default_factory=DialoguePrompt)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")

    def __call__(self, context: Sequence[str], responses: Sequence[str]) -> list[float]:
        """A score for each response, none of them empty; higher is better."""
        answers = [self.prompt.answer(response) for response in responses]
        forward = self.model.log_likelihood([self.prompt.build(context)] * len(answers), answers)
        if self.backward is None:
            other = self.model.log_likelihood([self.prompt.build(())] * len(answers), answers)
            share, sign = 1.0, -1.0
        else:
            prompts = [self.prompt.build([response]) for response in responses]
            last = self.prompt.answer(context[-1])
            other = self.backward.log_likelihood(prompts, [last] * len(prompts))
            share, sign = 1 - self.weight, 1.0
        return [
            share * one.sum_logprob
            + sign * self.weight * two.sum_logprob
            + self.length_bonus * one.num_tokens
            for one, two in zip(forward, other, strict=True)
        ]
