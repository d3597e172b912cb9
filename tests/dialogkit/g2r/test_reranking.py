"""A cross-encoder as second opinion: scores, batches, long pairs, models that do not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification

from dialogkit.g2r import CrossEncoderReranker, RetrievalChatbot, RetrievalConfig
from dialogkit.retrieval import BiEncoder, ResponseIndex, build_biencoder, save_biencoder
from tests.dialogkit.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer(pad=True)
RESPONSES = [f"answer {word}" for word in ("red", "green", "blue", "white", "black")]


def cross_encoder_folder(folder: Path, labels: int = 1) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=TOKENIZER.pad_token_id,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_encoder_folder(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> BiEncoder:
    made = tmp_path_factory.mktemp("student") / "student"
    save_biencoder(build_biencoder(TOKENIZER, hidden_size=16, num_layers=1, num_heads=2), made)
    return BiEncoder(made)


def by_hand(folder: Path, context: str, response: str) -> float:
    """The score of one pair by transformers alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = TOKENIZER(context, response, return_tensors="pt")
    with torch.no_grad():
        return float(model(**ids).logits.sigmoid())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_scores_are_the_models_own(folder: Path, batch_size: int) -> None:
    reranker = CrossEncoderReranker.from_pretrained(str(folder), device="cpu", batch_size=batch_size)
    scores = reranker(["so", "say red"], RESPONSES)
    expected = [by_hand(folder, "so\nsay red", response) for response in RESPONSES]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert len(set(scores)) == len(RESPONSES)


def test_a_chatbot_answers_by_its_order(folder: Path, retriever: BiEncoder) -> None:
    reranker = CrossEncoderReranker.from_pretrained(str(folder), device="cpu")
    index = ResponseIndex.build(retriever, RESPONSES)
    bot = RetrievalChatbot(retriever, index, config=RetrievalConfig(candidates=5), reranker=reranker)
    reply = bot.reply("hello")
    scores = {text: by_hand(folder, "hello", text) for text in RESPONSES}
    assert [c.text for c in reply.candidates] == sorted(RESPONSES, key=lambda text: -scores[text])
    assert reply.candidates[0].ranker_score == pytest.approx(max(scores.values()), abs=1e-5)


def test_a_long_context_loses_its_beginning_and_that_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = CrossEncoderReranker(CrossEncoder(str(folder), device="cpu"))
    reranker.model.max_seq_length = 40
    side = reranker.model.tokenizer.truncation_side
    with caplog.at_level(logging.WARNING):
        assert reranker(["short"], RESPONSES[:1])
        assert caplog.text == ""
        tail = "x" * 40
        one = reranker([f"one thing {tail}"], RESPONSES)
        other = reranker([f"another {tail}"], RESPONSES)
    assert one == other
    assert one != reranker([f"{tail} y"], RESPONSES)
    assert caplog.text.count("reads 40 tokens of a pair") == 1
    assert reranker.model.tokenizer.truncation_side == side


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have one output, it has 3"):
        CrossEncoderReranker.from_pretrained(str(cross_encoder_folder(tmp_path / "three", 3)), device="cpu")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        CrossEncoderReranker(CrossEncoder(str(folder), device="cpu"), batch_size=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CrossEncoderReranker.from_pretrained("./nowhere")
    pickled = cross_encoder_folder(tmp_path / "pickled")
    torch.save(
        BertForSequenceClassification.from_pretrained(pickled).state_dict(), pickled / "pytorch_model.bin"
    )
    (pickled / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        CrossEncoderReranker.from_pretrained(str(pickled), device="cpu")
