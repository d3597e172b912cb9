"""The embedded language model: tokenizer, packed windows, objective, training."""

from __future__ import annotations

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
from trainkit.config import Schedule

from .corpus import TRAIN_MIX, VOICE_MIX, Corpus, Exchange, Segment, WindowSampler
from .voices import random_name

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
        steps: Length of the first stage's cosine schedule in optimizer steps.
        stop_step: Where the cosine is left, at a high rate.
        copy_steps: Steps of the second stage, at a constant rate, mostly on drills in copying (see
            :class:`PackedWindows`): without them a model this small does not learn within our means to
            repeat a habit that it sees in its prompt.
        voice_steps: Steps of the third stage: more invented voices, a few drills, the rate falls linearly
            to nothing.
        late_rate: Rate of the second and third stage.
        late_batch_size: Rows in a step of the second and third stage.
        copy_drills: Shares of repeated sequences and of marked lines in the second stage.
        voice_drills: The same in the third.
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
    stop_step: int = 500
    copy_steps: int = 750
    voice_steps: int = 700
    late_rate: float = 1.2e-3
    late_batch_size: int = 12
    copy_drills: tuple[float, float] = (0.4, 0.3)
    voice_drills: tuple[float, float] = (0.05, 0.2)
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
    """Row i is drawn from seed and i alone: windows one after another until the row is full.

    Two shares of the rows are drills in copying. ``repeated``: a random sequence of 6 to 48 tokens over and
    over, the first round without weight. ``marked``: conversations in which every line of the speaker opens
    and ends with the same random tokens; those tokens carry the weight, from the second line on.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        tokenizer: PreTrainedTokenizerFast,
        *,
        rows: int,
        length: int,
        seed: int,
        repeated: float = 0.0,
        marked: float = 0.0,
    ) -> None:
        self.sampler, self.tokenizer = sampler, tokenizer
        self.repeated, self.marked = repeated, marked
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
        kind = rng.random()
        if kind < self.repeated:
            return self._row(*self._repeated_sequence(rng))
        draw = self._marked_lines if kind < self.repeated + self.marked else self._window
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < self.length + 1:
            more_ids, more_weights = draw(rng)
            ids += more_ids
            weights += more_weights
        return self._row(ids, weights)

    def _row(self, ids: Sequence[int], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor(ids[: self.length + 1]),
            "weights": torch.tensor(weights[: self.length + 1]),
        }

    def _window(self, rng: Random) -> tuple[list[int], list[float]]:
        return self._encode(self.sampler.window(rng))

    def _random_tokens(self, count: int, rng: Random) -> list[int]:
        # The first ids are the end token and single bytes.
        first = min(300, len(self.tokenizer) // 2)
        return [rng.randrange(first, len(self.tokenizer)) for _ in range(count)]

    def _repeated_sequence(self, rng: Random) -> tuple[list[int], list[float]]:
        period = self._random_tokens(rng.randint(6, 48), rng)
        rounds = self.length // len(period) + 2
        return period * rounds, [0.0] * len(period) + [1.0] * (len(period) * (rounds - 1))

    def _marked_lines(self, rng: Random) -> tuple[list[int], list[float]]:
        opening = self._random_tokens(rng.randint(1, 3), rng)
        ending = self._random_tokens(rng.randint(0, 2), rng)
        head, *segments = self.sampler.layout(random_name(rng), self.sampler.everyday(rng))
        ids, weights = self._encode([Segment(head.text, 0.0)])
        ids, weights = ids[:-1], weights[:-1]
        for i in range(0, len(segments), 3):
            turn, label, reply = self.tokenizer(
                [segments[i].text, segments[i + 1].text, segments[i + 2].text.rstrip("\n")],
                add_special_tokens=False,
            )["input_ids"]
            newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
            mark = 1.0 if i else 0.0
            for tokens, weight in (
                (turn + label, 0.0),
                (opening, mark),
                (reply, 0.1),
                (ending, mark),
                (newline, 0.2),
            ):
                ids = ids + tokens
                weights = weights + [weight] * len(tokens)
        return ids, weights


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
        "dialogue": sampler.dialogue,
        "play speaker": sampler.play,
        "persona": sampler.persona,
        "everyday": sampler.everyday,
        "invented voice": sampler.invented,
        "strong voice": sampler.strong,
    }
    if heldout.matched:
        kinds["play speaker, modern contexts"] = sampler.matched
    windows: dict[str, list[tuple[Segment, ...]]] = {}
    for kind, draw in kinds.items():
        rng = Random(f"{seed}-{kind}")
        windows[kind] = [_last_reply_only(sampler, draw(rng)[:8], rng) for _ in range(count)]
    return windows


def _last_reply_only(
    sampler: WindowSampler, exchanges: Sequence[Exchange], rng: Random
) -> tuple[Segment, ...]:
    *before, last = sampler.layout(random_name(rng), exchanges)
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


LM_STAGES = ("lm", "copy", "voice")


def train_lm(corpus: Corpus, heldout: Corpus, settings: LMSettings, output: Path, stage: str) -> None:
    """Runs one stage of training through ``trainkit.fit``; checkpoints and metrics go to ``output / stage``.

    ``"copy"`` and ``"voice"`` start from the last checkpoint of the stage before. The end of ``"voice"``
    is saved in ``output / "model"``.
    """
    if stage not in LM_STAGES:
        raise ValueError(f"stage must be one of {LM_STAGES}, got {stage!r}")
    folder = output / "tokenizer"
    if folder.is_dir():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = train_tokenizer(corpus, settings)
        tokenizer.save_pretrained(folder)
    model = new_model(settings, tokenizer)
    windows = heldout_windows(heldout)
    number = LM_STAGES.index(stage)
    if number:
        before = output / LM_STAGES[number - 1] / "checkpoints"
        latest = CheckpointFolder(before).latest()
        if latest is None:
            raise FileNotFoundError(
                f"{before} has no checkpoint to go on from; run {LM_STAGES[number - 1]!r} first"
            )
        load_model(model, latest / "model.safetensors")
    steps = (settings.steps, settings.copy_steps, settings.voice_steps)[number]
    batch_size = settings.late_batch_size if number else settings.batch_size
    repeated, marked = ((0.0, 0.0), settings.copy_drills, settings.voice_drills)[number]
    rows = PackedWindows(
        WindowSampler(corpus, mix=VOICE_MIX if number else TRAIN_MIX),
        tokenizer,
        rows=steps * batch_size,
        length=settings.length,
        seed=settings.seed + number,
        repeated=repeated,
        marked=marked,
    )

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        perplexity = heldout_perplexity(model, tokenizer, windows)
        mean = sum(map(math.log, perplexity.values())) / len(perplexity)
        return {"loss": mean, **{f"ppl {kind}": value for kind, value in perplexity.items()}}

    schedules: tuple[Schedule, ...] = ("cosine", "constant", "linear")
    fit(
        model,
        WeightedTokens(),
        rows,
        config=FitConfig(
            output_dir=output / stage,
            max_steps=steps,
            batch_size=batch_size,
            learning_rate=settings.late_rate if number else settings.learning_rate,
            schedule=schedules[number],
            warmup_steps=30 if number else 100,
            mixed_precision="bf16",
            seed=settings.seed + number,
            eval_every=100 if number else 250,
            save_every=100 if number else 250,
            log_every=10,
            keep_checkpoints=2,
            resume=True,
        ),
        evaluate=evaluate,
        callbacks=() if number else (_StopAt(settings.stop_step),),
    )
    if stage == LM_STAGES[-1]:
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
