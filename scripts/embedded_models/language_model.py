"""The embedded language model: tokenizer, packed windows, objective, training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainkit import Callback, CheckpointFolder, FitConfig, FitState, Loss, fit

from .corpus import ANNEAL_MIX, Corpus, Exchange, Segment, WindowSampler

__all__ = ["LMSettings", "PackedWindows", "heldout_perplexity", "new_model", "train_lm", "train_tokenizer"]

END = "<|end|>"


@dataclass(frozen=True)
class LMSettings:
    """Size and schedule of the embedded language model.

    Attributes:
        vocab_size: Byte-level BPE entries, the end token included.
        layers, hidden, heads, intermediate: Llama shape.
        length: Tokens in a packed training row.
        max_length: Longest context the model is declared for.
        steps: Length of the cosine schedule in optimizer steps.
        stop_step: Where the cosine is left, at a high rate; annealing follows.
        anneal_steps: Steps of the second stage, in which the rate falls linearly to nothing.
        batch_size: Rows in a step.
        learning_rate: Peak rate of the cosine schedule.
        seed: Of initial weights, windows and order.
    """

    vocab_size: int = 4096
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    intermediate: int = 704
    length: int = 384
    max_length: int = 768
    steps: int = 2000
    stop_step: int = 1000
    anneal_steps: int = 250
    batch_size: int = 24
    learning_rate: float = 2e-3
    seed: int = 17


def train_tokenizer(
    corpus: Corpus, settings: LMSettings, *, windows: int = 30_000
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample of the windows it will have to spell."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    sampler, rng = WindowSampler(corpus), Random(settings.seed)
    texts = ("".join(segment.text for segment in sampler.window(rng)) for _ in range(windows))
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=settings.max_length,
        clean_up_tokenization_spaces=False,
    )


class PackedWindows(Dataset[dict[str, torch.Tensor]]):
    """Row i is drawn from seed and i alone: windows one after another until the row is full."""

    def __init__(
        self, sampler: WindowSampler, tokenizer: PreTrainedTokenizerFast, *, rows: int, length: int, seed: int
    ) -> None:
        self.sampler, self.tokenizer = sampler, tokenizer
        self.rows, self.length, self.seed = rows, length, seed
        self._end = tokenizer.convert_tokens_to_ids(END)

    def __len__(self) -> int:
        return self.rows

    def _encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        encoded = self.tokenizer([segment.text for segment in segments], add_special_tokens=False)[
            "input_ids"
        ]
        for segment, tokens in zip(segments, encoded, strict=True):
            ids += tokens
            weights += [segment.weight] * len(tokens)
        return [*ids, self._end], [*weights, 0.1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = Random(f"{self.seed}-{index}")
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < self.length + 1:
            more_ids, more_weights = self._encode(self.sampler.window(rng))
            ids += more_ids
            weights += more_weights
        return {
            "input_ids": torch.tensor(ids[: self.length + 1]),
            "weights": torch.tensor(weights[: self.length + 1]),
        }


class WeightedTokens:
    """Objective: weighted cross-entropy of the next token, summed over the row's tokens."""

    def __call__(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Loss:
        """Returns the weighted sum of token losses and the sum of weights for a batch of packed rows."""
        ids, weights = batch["input_ids"], batch["weights"][:, 1:]
        logits = model(input_ids=ids[:, :-1]).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return Loss(total=(losses * weights).sum(), weight=weights.sum())


def new_model(settings: LMSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and fresh weights."""
    torch.manual_seed(settings.seed)
    end = tokenizer.convert_tokens_to_ids(END)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            intermediate_size=settings.intermediate,
            max_position_embeddings=settings.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def heldout_windows(
    heldout: Corpus, *, count: int = 60, seed: int = 5
) -> dict[str, list[tuple[Segment, ...]]]:
    """Windows of the held-out part by kind; in PDP kinds only the last reply carries weight."""
    sampler = WindowSampler(heldout)
    kinds = {
        "dialogue": sampler._dialogue,
        "play speaker": sampler._play,
        "persona": sampler._persona,
        "everyday": sampler._everyday,
        "invented voice": sampler._invented,
    }
    if heldout.matched:
        kinds["play speaker, modern contexts"] = sampler._matched
    windows: dict[str, list[tuple[Segment, ...]]] = {}
    for kind, draw in kinds.items():
        rng = Random(f"{seed}-{kind}")
        windows[kind] = [_last_reply_only(sampler, draw(rng)[:8], rng) for _ in range(count)]
    return windows


def _last_reply_only(
    sampler: WindowSampler, exchanges: Sequence[Exchange], rng: Random
) -> tuple[Segment, ...]:
    from .voices import random_name

    *before, last = sampler._layout(random_name(rng), exchanges)
    return (*(Segment(segment.text, 0.0) for segment in before), Segment(last.text, 1.0))


@torch.no_grad()
def heldout_perplexity(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    windows: Mapping[str, Sequence[Sequence[Segment]]],
) -> dict[str, float]:
    """Perplexity of the last reply of each window, by kind of window."""
    result = {}
    for kind, group in windows.items():
        total = weight = 0.0
        for segments in group:
            encoded = tokenizer([segment.text for segment in segments], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([token for tokens in encoded for token in tokens])
            logits = model(input_ids=ids[None, :-1]).logits[0].float()
            reply = len(encoded[-1])
            total += torch.nn.functional.cross_entropy(logits[-reply:], ids[-reply:], reduction="sum").item()
            weight += reply
        result[kind] = math.exp(total / weight)
    return result


class _StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        state.should_stop = state.step >= self.step


def train_lm(
    corpus: Corpus, heldout: Corpus, settings: LMSettings, output: Path, *, anneal: bool = False
) -> None:
    """Trains the model through ``trainkit.fit``; checkpoints and metrics go to ``output``.

    With ``anneal``, the second stage: from the first stage's last checkpoint, the rate it had falls to
    nothing, and windows of dialogue count more than windows of plays.
    """
    folder = output / "tokenizer"
    if folder.is_dir():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = train_tokenizer(corpus, settings)
        tokenizer.save_pretrained(folder)
    model = new_model(settings, tokenizer)
    windows = heldout_windows(heldout)
    sampler = WindowSampler(corpus)
    steps, seed, rate = settings.steps, settings.seed, settings.learning_rate
    if anneal:
        latest = CheckpointFolder(output / "run").latest()
        if latest is None:
            raise FileNotFoundError(
                f"{output / 'run'} has no checkpoint to anneal from; run the stage 'lm' first"
            )
        load_model(model, latest / "model.safetensors")
        sampler = dataclasses.replace(sampler, mix=ANNEAL_MIX)
        steps, seed = settings.anneal_steps, settings.seed + 1
        rate *= 0.5 * (1 + math.cos(math.pi * settings.stop_step / settings.steps))
    rows = PackedWindows(
        sampler, tokenizer, rows=steps * settings.batch_size, length=settings.length, seed=seed
    )

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        perplexity = heldout_perplexity(model, tokenizer, windows)
        mean = sum(map(math.log, perplexity.values())) / len(perplexity)
        return {"loss": mean, **{f"ppl {kind}": value for kind, value in perplexity.items()}}

    fit(
        model,
        WeightedTokens(),
        rows,
        config=FitConfig(
            output_dir=output / ("anneal" if anneal else "run"),
            max_steps=steps,
            batch_size=settings.batch_size,
            learning_rate=rate,
            schedule="linear" if anneal else "cosine",
            warmup_steps=0 if anneal else 100,
            mixed_precision="bf16",
            seed=seed,
            eval_every=250,
            save_every=250,
            log_every=10,
            keep_checkpoints=2,
            resume=True,
        ),
        evaluate=evaluate,
        callbacks=() if anneal else (_StopAt(settings.stop_step),),
    )
    if anneal:
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
