"""The embedded bi-encoder: pairs, training, and recall against BM25 and MiniLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from dialogkit.dialogues import Example
from dialogkit.retrieval import BiEncoderObjective, build_biencoder
from trainkit import FitConfig, fit
from trainkit.datafiles import data_file, read_jsonl

from .corpus import Corpus, Exchange
from .matching import minilm_embed

__all__ = ["RetrieverSettings", "bm25_scores", "recall_table", "train_retriever"]

Encoder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class RetrieverSettings:
    """Size and schedule of the embedded bi-encoder.

    Attributes:
        vocab_size: Lower-cased byte-level BPE entries.
        hidden, layers, heads, intermediate: Shape of each of the two routes.
        max_length: Tokens read of a text.
        steps: Optimizer steps.
        batch_size: Pairs in a step; each pair has the others' replies as negatives.
        learning_rate: Peak rate of the cosine schedule.
        score_scale: Factor on the inner product inside the softmax.
        seed: Of weights and order.
    """

    vocab_size: int = 8192
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    intermediate: int = 512
    max_length: int = 32
    steps: int = 1000
    batch_size: int = 160
    learning_rate: float = 1e-3
    score_scale: float = 0.1
    seed: int = 23


class Pairs(Dataset[Example]):
    """All (turn, answer) pairs of the corpus, the own exchanges and personas repeated."""

    def __init__(self, corpus: Corpus, *, repeat_everyday: int = 6, repeat_personas: int = 2) -> None:
        topical = [Exchange(before, after) for turns in corpus.topical for before, after in pairwise(turns)]
        plays = [exchange for lines in corpus.plays.values() for exchange in lines]
        personas = [exchange for lines in corpus.personas.values() for exchange in lines]
        self.exchanges = (
            topical + plays + list(corpus.everyday) * repeat_everyday + personas * repeat_personas
        )

    def __len__(self) -> int:
        return len(self.exchanges)

    def __getitem__(self, index: int) -> Example:
        exchange = self.exchanges[index]
        return Example(context=(exchange.context,), response=exchange.response)


def train_tokenizer(pairs: Pairs, settings: RetrieverSettings) -> PreTrainedTokenizerFast:
    """Lower-cased byte-level BPE of the pairs' texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=["<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (text for item in pairs.exchanges for text in (item.context, item.response)), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", model_max_length=settings.max_length
    )


def train_retriever(corpus: Corpus, heldout: Corpus, settings: RetrieverSettings, output: Path):
    """Trains the two routes with in-batch softmax through ``trainkit.fit`` and returns the model."""
    training = Pairs(corpus)
    tokenizer = train_tokenizer(training, settings)
    torch.manual_seed(settings.seed)
    model = build_biencoder(
        tokenizer,
        hidden_size=settings.hidden,
        num_layers=settings.layers,
        num_heads=settings.heads,
        intermediate_size=settings.intermediate,
        max_length=settings.max_length,
    )
    _start_from_meanings(model, tokenizer, settings.hidden)
    pairs = heldout_pairs(heldout)[:1000]

    def evaluate(model) -> dict[str, float]:
        with torch.no_grad():
            contexts = model.encode_query([pair.context for pair in pairs], show_progress_bar=False)
            responses = model.encode_document([pair.response for pair in pairs], show_progress_bar=False)
        hits = (contexts @ responses.T).argmax(1) == np.arange(len(pairs))
        return {"loss": 1 - float(hits.mean()), "hits@1/1000": float(hits.mean())}

    fit(
        model,
        BiEncoderObjective(tokenizer, score_scale=settings.score_scale, max_length=settings.max_length),
        training,
        config=FitConfig(
            output_dir=output / "run",
            max_steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            schedule="cosine",
            warmup_steps=100,
            mixed_precision="bf16",
            seed=settings.seed,
            eval_every=300,
            save_every=500,
            log_every=20,
            keep_checkpoints=2,
            resume=True,
        ),
        evaluate=evaluate,
    )
    return model


def _start_from_meanings(model, tokenizer: PreTrainedTokenizerFast, width: int) -> None:
    """Starts both routes' token embeddings from MiniLM's vectors of the tokens, in their main directions.

    The pairs are too few to learn from nothing which words mean nearly the same.
    """
    words = [tokenizer.decode([i]).strip() or "," for i in range(len(tokenizer))]
    vectors = torch.from_numpy(minilm_embed(words)).float()
    vectors -= vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    start = vectors @ directions[:width].T
    start *= 0.02 / start.std()
    for name, weights in model.named_parameters():
        if name.endswith("word_embeddings.weight"):
            weights.data.copy_(start)


def heldout_pairs(heldout: Corpus, *, seed: int = 3) -> list[Exchange]:
    """Held-out pairs of all free sources with distinct replies, shuffled."""
    plays = [exchange for lines in heldout.plays.values() for exchange in lines]
    topical = [Exchange(before, after) for turns in heldout.topical for before, after in pairwise(turns)]
    distinct = {pair.response: pair for pair in [*topical, *plays, *heldout.everyday]}
    pairs = list(distinct.values())
    Random(seed).shuffle(pairs)
    return pairs


def dailydialog_pairs(
    *, splits: Sequence[str] = ("test", "validation", "valid", "dev"), seed: int = 3
) -> list[Exchange]:
    """(turn, answer) pairs of DailyDialog's unseen splits: a domain no embedded model was trained on."""
    distinct: dict[str, Exchange] = {}
    for dialogue in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz")):
        if dialogue["split"] in splits:
            texts = [turn["text"] for turn in dialogue["turns"]]
            for before, after in pairwise(texts):
                distinct.setdefault(after, Exchange(before, after))
    pairs = list(distinct.values())
    Random(seed).shuffle(pairs)
    return pairs


def bm25_scores(contexts: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """BM25 of every candidate for every context, ``float32 [contexts, candidates]`` (bm25s, its defaults)."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(candidates), show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(contexts), return_ids=False, show_progress=False)
    return np.stack(
        [index.get_scores(words) if words else np.zeros(len(candidates), np.float32) for words in tokens]
    )


def recall_table(
    pairs: Sequence[Exchange],
    distractors: Sequence[str],
    scorers: Mapping[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]],
    *,
    sizes: Sequence[int] = (100, 10_000),
    queries: int = 1000,
    draws: int = 3,
    seed: int = 11,
) -> list[dict[str, object]]:
    """Recall@1 and @10 of the true reply among ``size`` candidates, mean and spread over draws of queries.

    Candidates of a query are its true reply and the same ``size - 1`` other replies for every scorer.
    """
    rows: list[dict[str, object]] = []
    # One order for all draws: an encoder that remembers its texts then meets few new ones.
    distinct = sorted({*(pair.response for pair in pairs), *distractors})
    pool = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    for name, scorer in scorers.items():
        for size in sizes:
            recalls = []
            for draw in range(draws):
                rng = np.random.default_rng((seed, draw))
                chosen = [pairs[i] for i in rng.permutation(len(pairs))[:queries]]
                truths = [pair.response for pair in chosen]
                given = set(truths)
                left = [text for text in pool if text not in given]
                others = left[: max(0, size - len(truths))]
                scores = scorer([pair.context for pair in chosen], truths + others)
                recalls.append(_recall(scores, size, rng))
            mean, spread = np.mean(recalls, axis=0), np.std(recalls, axis=0, ddof=1)
            rows.append(
                {
                    "retriever": name,
                    "candidates": size,
                    "recall@1": mean[0],
                    "recall@1 sd": spread[0],
                    "recall@10": mean[1],
                    "recall@10 sd": spread[1],
                }
            )
    return rows


def _recall(scores: np.ndarray, size: int, rng: np.random.Generator) -> tuple[float, float]:
    queries = len(scores)
    true = scores[np.arange(queries), np.arange(queries)]
    ranks = np.empty(queries)
    for i in range(queries):
        others = np.delete(scores[i], i)
        if len(others) > size - 1:
            others = others[rng.permutation(len(others))[: size - 1]]
        # ties share the places they stand on
        ranks[i] = (others > true[i]).sum() + (others == true[i]).sum() / 2
    return float((ranks < 1).mean()), float((ranks < 10).mean())
