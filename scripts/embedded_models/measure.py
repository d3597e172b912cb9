"""Figures and cards of the shipped models: perplexity, distinct-n, sample replies, recall."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dialogkit.embedded import biencoder_path, character_names, lm_path
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import PDPChatbot, PDPConfig
from dialogkit.retrieval import BiEncoder, Retriever, load_retriever
from trainkit import ModelCard, write_json
from trainkit.cards import DataUse, Metric, Sample

from .corpus import load_corpus
from .language_model import LM_STAGES, LMSettings, heldout_perplexity, heldout_windows
from .matching import with_matches
from .retriever import Encoder, RetrieverSettings, bm25_scores, dailydialog_pairs, heldout_pairs, recall_table
from .style import questions

__all__ = ["measure"]

_TRAINED_ON = (
    DataUse("Topical-Chat (valid and test parts)", "CDLA-Sharing-1.0"),
    DataUse("Shakespeare's plays", "public domain"),
    DataUse("PersonalityChat", "MIT"),
    DataUse("The project's own everyday exchanges", "Apache-2.0"),
)


def measure(runs: Path) -> None:
    """Measures the folders in ``dialogkit/embedded`` and writes their cards and ``figures.json``."""
    figures = {"lm": _language_model(runs), "retriever": _retriever()}
    write_json(runs / "figures.json", figures)
    (lm_path() / "README.md").write_text(_lm_card(figures["lm"], runs).render(), encoding="utf-8")
    (biencoder_path() / "README.md").write_text(
        _retriever_card(figures["retriever"], runs).render(), encoding="utf-8"
    )


def _language_model(runs: Path) -> dict[str, object]:
    heldout = with_matches("heldout", runs)
    model = TransformersLM.from_pretrained(lm_path())
    perplexity = heldout_perplexity(model.model, model.tokenizer, heldout_windows(heldout, count=200, seed=8))
    replies, samples = _replies(model)
    return {
        "perplexity": perplexity,
        "distinct-1": _distinct(replies, 1),
        "distinct-2": _distinct(replies, 2),
        "replies": len(replies),
        "samples": samples,
        "parameters": sum(weights.numel() for weights in model.model.parameters()),
    }


def _replies(model: TransformersLM) -> tuple[list[str], list[dict[str, str]]]:
    """Every character answers every development question once; the first ten make the card's samples."""
    asked = questions("dev_questions")
    config = PDPConfig(max_dialogs=8, generation=GenerationConfig(num_candidates=8, max_new_tokens=40))
    replies: list[str] = []
    samples: list[dict[str, str]] = []
    for number, name in enumerate(character_names()):
        bot = PDPChatbot(model, name, retriever=BiEncoder(biencoder_path()), config=config)
        texts = [reply.text for reply in bot.reply_batch(asked, seed=number)]
        replies += texts
        place = number % len(asked)
        samples.append({"prompt": f"{asked[place]} (to {bot.name})", "output": texts[place]})
    return replies, samples[:10]


def _distinct(texts: Sequence[str], n: int) -> float:
    grams = [
        tuple(words[i : i + n])
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def _scores_of(retriever: Retriever):
    contexts_seen: dict[str, np.ndarray] = {}
    responses_seen: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str], seen: dict[str, np.ndarray], encoder: Encoder) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in seen]:
            seen.update(zip(new, encoder(new), strict=True))
        return np.stack([seen[text] for text in texts])

    def scores(contexts: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        asked = encode(contexts, contexts_seen, retriever.encode_context)
        return asked @ encode(candidates, responses_seen, retriever.encode_response).T

    return scores


def _retriever() -> dict[str, object]:
    train = load_corpus()
    minilm = load_retriever("minilm")
    scorers = {
        "BM25": bm25_scores,
        "MiniLM (pretrained)": _scores_of(minilm),
        "embedded bi-encoder": _scores_of(BiEncoder(biencoder_path())),
    }
    distractors = [item.response for item in train.brief] + [
        item.response for lines in train.plays.values() for item in lines
    ]
    return {
        "held-out free sets": recall_table(heldout_pairs(load_corpus("heldout")), distractors, scorers),
        "DailyDialog": recall_table(dailydialog_pairs(), [], scorers),
    }


def _hardware() -> str:
    return f"2 CPU cores ({platform.machine()}), no GPU, bf16 autocast"


def _seconds(*files: Path) -> float | None:
    """Training time from the metrics files' seconds per step, None where they are gone."""
    total = 0.0
    for file in files:
        if not file.is_file():
            return None
        before = 0
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if row["split"] == "train":
                total += row["seconds_per_step"] * (row["step"] - before)
                before = row["step"]
    return total


def _lm_card(figures: Mapping, runs: Path) -> ModelCard:
    settings = LMSettings()
    tokens = (
        (settings.stop_step + settings.copy_steps + settings.voice_steps)
        * settings.batch_size
        * settings.length
    )
    return ModelCard(
        title="dialogkit embedded language model",
        method="Causal language model (Llama architecture) trained on windows in the layout of Pseudo Dialog "
        "Prompting (arXiv 2204.10825)",
        summary=f"{figures['parameters'] / 1e6:.1f} million parameters, {tokens / 1e6:.1f} million tokens. "
        "It continues short dialogues and follows a speaker's voice from a few lines in its prompt. It ships "
        "with dialogkit so that the first conversation needs no download; it is a demonstration, not a "
        "knowledgeable assistant.",
        licence="Apache-2.0",
        data=_TRAINED_ON,
        metrics=(
            *(
                Metric(
                    "perplexity of the last reply",
                    value,
                    "held out from the training sets",
                    split=kind,
                    n=200,
                )
                for kind, value in figures["perplexity"].items()
            ),
            Metric(
                "distinct-1", figures["distinct-1"], "replies of the shipped characters", n=figures["replies"]
            ),
            Metric(
                "distinct-2", figures["distinct-2"], "replies of the shipped characters", n=figures["replies"]
            ),
        ),
        seed=settings.seed,
        limits=(
            "It knows little of the world and often contradicts itself; nothing it says is information.",
            "The sources carry the views and words of their time and writers; no safety filter was applied.",
            "English only.",
        ),
        samples=tuple(Sample(**sample) for sample in figures["samples"]),
        command=" && ".join(f"python scripts/train_embedded.py {stage}" for stage in (*LM_STAGES, "export")),
        hardware=_hardware(),
        training_seconds=_seconds(*(runs / "lm" / stage / "metrics.jsonl" for stage in LM_STAGES)),
        tags=("dialogue", "pseudo-dialog-prompting"),
        library="transformers",
    )


def _retriever_card(figures: Mapping, runs: Path) -> ModelCard:
    metrics = [
        Metric(
            f"{measure} among {row['candidates']:,}",
            row[measure],
            data,
            split=row["retriever"],
            spread=row[f"{measure} sd"],
            spread_kind="standard deviation over 3 draws of 1,000 queries",
        )
        for data, rows in figures.items()
        for row in rows
        for measure in ("recall@1", "recall@10")
    ]
    return ModelCard(
        title="dialogkit embedded bi-encoder",
        method="Two small DistilBERT encoders (context and response), mean pooling, inner product, trained "
        "with in-batch softmax in both directions",
        summary="Scores how well a response answers a context. A sentence-transformers model: "
        "`encode_query` for contexts, `encode_document` for responses.",
        licence="Apache-2.0",
        data=(*_TRAINED_ON, DataUse("DailyDialog", "CC BY-NC-SA 4.0", role="measuring only")),
        metrics=tuple(metrics),
        seed=RetrieverSettings().seed,
        limits=("English only.", "Reads the first 32 tokens of a text.", "Made for short everyday turns."),
        command="python scripts/train_embedded.py retriever && python scripts/train_embedded.py export",
        hardware=_hardware(),
        training_seconds=_seconds(runs / "retriever/run/metrics.jsonl"),
        task="sentence-similarity",
        library="sentence-transformers",
        tags=("dialogue", "retrieval"),
    )
