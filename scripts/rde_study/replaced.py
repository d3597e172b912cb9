"""A detector that reads every word of a text and says whether somebody else put it there.

An encoder is fine-tuned on clean training texts and on copies with words replaced at random, to tell for each
word whether it is the writer's, as the discriminator of ELECTRA (Clark et al. 2020, arXiv 2003.10555) is. No
attack, no adversarial text and no victim is needed. With words replaced independently, each with probability
p_t, the score of a text is the log-odds that any was: log((1 - q) / q), q the product of 1 - p_t.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from robustkit.classifiers.features import Features
from robustkit.detection import Detector
from robustkit.detection.base import texts_of
from trainkit import FitConfig, Loss, atomic_directory, derive_seed, fingerprint, fit, write_json

from .combine import auc
from .data import StudyData
from .substitution import Edited, edited
from .victims import encoder_path, length_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Offers",
    "ReplacedObjective",
    "ReplacedSettings",
    "ReplacedWordsDetector",
    "edited_copies",
    "text_log_odds",
    "train_reader",
]

Offers = Callable[[str, Random], Sequence[str]]
"""Replacements of a lower-case word, maybe none."""
_BATCH = 64


@dataclass(frozen=True)
class ReplacedSettings:
    """How a reader is trained.

    Attributes:
        encoder: As in `VictimSettings`.
        copies: Times that each training text is seen as it is, and as often with other words replaced.
        batch_size: Texts of a step, alike in length.
        learning_rate: Peak of the linear schedule.
        warmup_ratio: Share of the steps in which the rate rises.
        text_weight: Weight of a text's own log-loss beside the mean of its tokens'.
    """

    encoder: str = "minilm"
    copies: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup_ratio: float = 0.1
    text_weight: float = 0.1


def edited_copies(
    texts: Sequence[str], offers: Sequence[Offers], spared: frozenset[str], *, seed: int
) -> list[Edited]:
    """A copy of each text with words replaced, by one kind of offer or by all; unchanged ones are left out.

    Args:
        texts: The texts.
        offers: Kinds of replacement; every fourth text has words of all kinds.
        spared: Lower-case words that stay.
        seed: Of the edits.
    """
    found = []
    for number, text in enumerate(texts):
        rng = Random(derive_seed("replaced", seed, number))
        kind = rng.randrange(len(offers)) if rng.random() < 0.75 else None

        def offer(word: str, rng: Random = rng, kind: int | None = kind) -> Sequence[str]:
            return offers[rng.randrange(len(offers)) if kind is None else kind](word, rng)

        found.append(edited(text, offer, spared, rng))
    return [new for new in found if new.places]


def text_log_odds(logits: Tensor, is_token: Tensor) -> Tensor:
    """Log-odds that any token is replaced, given those of the tokens and independence.

    Args:
        logits: Log-odds of the tokens ``(n, T)``.
        is_token: Which count, bool ``(n, T)``; at least one of each text.

    Returns:
        ``(n,)``.
    """
    none = -(softplus(logits) * is_token).sum(dim=1)
    # Near log q = 0 the other probability is -log q; a floor keeps its logarithm finite.
    return torch.log(-torch.expm1(none.clamp(max=-1e-30))) - none


class ReplacedObjective:
    """Log-loss of every token, averaged over a text's tokens, plus ``text_weight`` times that of the text.

    Args:
        tokenizer: A fast one; it gives the tokens' places.
        max_length: Tokens read of a text.
        text_weight: See `ReplacedSettings`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, text_weight: float) -> None:
        self.tokenizer, self.max_length, self.text_weight = tokenizer, max_length, text_weight

    def collate(self, batches: Sequence[Sequence[tuple[str, Edited]]]) -> dict[str, Tensor]:
        """Joins batches; adds ``is_token`` and ``replaced``, both ``(n, T)``."""
        texts = [text for batch in batches for _, text in batch]
        batch = encode(self.tokenizer, [text.text for text in texts], self.max_length)
        starts, ends = batch.pop("offsets").unbind(dim=-1)
        replaced = torch.zeros(starts.shape)
        for row, text in enumerate(texts):
            for start, end in text.places:
                replaced[row] += (starts[row] < end) & (ends[row] > start) & (ends[row] > starts[row])
        return {**batch, "replaced": replaced.clamp(max=1)}

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        """Sum over the batch's texts."""
        inputs = {name: t for name, t in batch.items() if name not in ("is_token", "replaced")}
        logits, is_token = model(**inputs).logits[..., 0].float(), batch["is_token"]
        of_tokens = binary_cross_entropy_with_logits(logits, batch["replaced"], reduction="none") * is_token
        changed = batch["replaced"].amax(dim=1)
        of_texts = binary_cross_entropy_with_logits(
            text_log_odds(logits, is_token).clamp(-30, 30), changed, reduction="none"
        )
        total = (of_tokens.sum(dim=1) / is_token.sum(dim=1)).sum() + self.text_weight * of_texts.sum()
        return Loss(total, len(logits))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Model inputs, ``is_token`` (not special, not padding), and ``offsets`` ``(n, T, 2)`` in characters."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt",
        return_offsets_mapping=True,
    )  # fmt: skip
    offsets = batch.pop("offset_mapping")
    return {**batch, "offsets": offsets, "is_token": offsets[..., 1] > offsets[..., 0]}


def train_reader(
    data: StudyData,
    offers: Sequence[Offers],
    spared: frozenset[str],
    folder: Path,
    *,
    seed: int,
    settings: ReplacedSettings | None = None,
) -> dict[str, Any]:
    """Fine-tunes a reader and writes it to ``folder`` as a plain transformers folder, with ``figures.json``.

    Args:
        data: The data set; its training texts are learned from, its validation texts give the figures.
        offers: Kinds of replacement.
        spared: Lower-case words that stay.
        folder: Where it goes; checkpoints lie beside it and are removed by hand.
        seed: Of the head's first weights, the edits, the order and dropout.
        settings: Encoder, batches and rates.

    Returns:
        The figures: AUC of clean against randomly edited validation texts, CPU seconds, settings.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    settings = settings or ReplacedSettings()
    source = encoder_path(settings.encoder)
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=data.max_length)
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(
        source, id2label={0: "replaced"}, label2id={"replaced": 0}, ignore_mismatched_sizes=True
    )
    texts = [text for text, _ in data.train]
    rows: list[tuple[str, Edited]] = []
    for copy in range(settings.copies):
        changed = edited_copies(texts, offers, spared, seed=derive_seed("copy", seed, copy))
        rows += [(new.text, new) for new in (*(Edited(text, ()) for text in texts), *changed)]
    objective = ReplacedObjective(tokenizer, data.max_length, settings.text_weight)
    batches = length_batches(rows, settings.batch_size, seed=seed)
    started = time.process_time()
    fit(
        model,
        objective,
        batches,
        config=FitConfig(
            output_dir=folder.with_name(folder.name + ".run"),
            epochs=1,
            batch_size=1,
            learning_rate=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            mixed_precision="bf16",
            seed=seed,
            save_every=200,
            keep_checkpoints=1,
            log_every=50,
            resume=True,
        ),
    )
    clean = [text for text, _ in data.validation]
    changed = edited_copies(clean, offers, spared, seed=derive_seed("validation", seed))
    scores = scores_of(model.eval(), tokenizer, [*clean, *(new.text for new in changed)], data.max_length)
    figures: dict[str, Any] = {
        "data": data.name,
        "seed": seed,
        "validation_auc": auc(scores, np.arange(len(scores)) >= len(clean)),
        "cpu_seconds": time.process_time() - started,
        "settings": asdict(settings),
    }
    with atomic_directory(folder, replace=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "figures.json", figures)
    return figures


@torch.no_grad()
def scores_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> NDArray[np.float64]:
    """`text_log_odds` of texts under a reader in evaluation mode, float64 (n,)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores = np.empty(len(texts))
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = encode(tokenizer, [texts[i] for i in part], max_length)
        del batch["offsets"]
        is_token = batch.pop("is_token")
        scores[part] = text_log_odds(model(**batch).logits[..., 0].double(), is_token).numpy()
    return scores


class ReplacedWordsDetector(Detector):
    """Log-odds that a reader gives to any word of a text being replaced.

    Cost: one forward pass of the reader.

    Args:
        folder: Where `train_reader` left it.
    """

    needs_fit = False
    extra_forwards = "1"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"ReplacedWordsDetector({fingerprint(Path(self.folder))})"

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        pass

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        model = AutoModelForTokenClassification.from_pretrained(self.folder).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        texts = [str(text) for text in texts_of(inputs)]
        return scores_of(model, tokenizer, texts, tokenizer.model_max_length)
