"""A chatbot that retrieves: choice, repetition, ranking, files, latency."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from dialogkit.chat import Chatbot, ChatSession, measure_latency
from dialogkit.dialogues import Turn
from dialogkit.g2r import LMReranker, Provenance, RetrievalChatbot, RetrievalConfig, score_responses
from dialogkit.retrieval import (
    BiEncoder,
    ResponseIndex,
    SentenceTransformerRetriever,
    StaleIndexError,
    biencoder_from,
    build_biencoder,
    save_biencoder,
)
from tests.dialogkit.tiny import byte_tokenizer, tiny_causal_lm
from trainkit.cards import DataUse, Metric
from trainkit.hub import ArtefactError

RESPONSES = [f"answer {word}" for word in ("red", "green", "blue", "white", "black", "grey", "pink")]
TOKENIZER = byte_tokenizer(pad=True)


def encoder_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> BiEncoder:
    root = tmp_path_factory.mktemp("student")
    model = biencoder_from(
        encoder_folder(root / "encoder"), normalize=True, max_context_tokens=24, max_response_tokens=12
    )
    model.save_pretrained(str(root / "student"), create_model_card=False)
    return BiEncoder(root / "student")


@pytest.fixture(scope="module")
def index(retriever: BiEncoder) -> ResponseIndex:
    return ResponseIndex.build(retriever, RESPONSES)


@pytest.fixture
def bot(retriever: BiEncoder, index: ResponseIndex) -> RetrievalChatbot:
    return RetrievalChatbot(retriever, index, config=RetrievalConfig(candidates=4), name="Ann")


def best(retriever: BiEncoder, text: str) -> list[str]:
    scores = retriever.encode_context([text]) @ retriever.encode_response(RESPONSES).T
    return [RESPONSES[i] for i in np.argsort(-scores[0])]


def test_a_pretrained_encoder_becomes_both_towers(retriever: BiEncoder) -> None:
    other = SentenceTransformer(str(retriever.path), device="cpu")
    texts = ["hello there", "a text that is far longer than the tower reads, so its beginning is lost"]
    np.testing.assert_allclose(other.encode_query(texts), retriever.encode_context(texts), atol=1e-6)
    np.testing.assert_allclose(other.encode_document(texts), retriever.encode_response(texts), atol=1e-6)
    assert not retriever.symmetric
    with pytest.raises(FileNotFoundError, match="no encoder"):
        biencoder_from(retriever.path / "nowhere")


def test_a_long_context_is_cut_from_the_left_and_a_response_from_the_right(
    retriever: BiEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    tail = "x" * 24
    retriever._warned = False
    with caplog.at_level(logging.WARNING):
        same = retriever.encode_context([f"one thing{tail}", f"another matter{tail}"])
        retriever.encode_context([f"a third{tail}"])
    assert np.array_equal(same[0], same[1])
    assert len(caplog.records) == 1
    head = "y" * 12
    responses = retriever.encode_response([f"{head} one", f"{head} two"])
    assert np.array_equal(responses[0], responses[1])


def test_the_best_response_is_the_reply(bot: RetrievalChatbot, retriever: BiEncoder) -> None:
    assert isinstance(bot, Chatbot)
    reply = bot.reply("hello")
    ranking = best(retriever, "hello")
    assert reply.text == ranking[0]
    shown = reply.evidence["candidates"]
    assert [row["response"] for row in shown] == ranking[:4] == [c.text for c in reply.candidates]
    assert [RESPONSES[row["id"]] for row in shown] == ranking[:4]
    assert reply.candidates[0].ranker_score == shown[0]["score"]
    assert reply.timing["total"] == pytest.approx(sum(reply.timing[k] for k in ("encode", "search", "rank")))


def test_a_conversation_is_its_turns_line_by_line(bot: RetrievalChatbot, retriever: BiEncoder) -> None:
    history = [Turn("User", "hi\nthere"), Turn("Ann", "yes"), Turn("User", "and")]
    assert bot.reply(history).text == best(retriever, "hi there\nyes\nand")[0]
    short = RetrievalChatbot(retriever, bot.index, config=RetrievalConfig(max_turns=1))
    assert short.reply(history).text == best(retriever, "and")[0]


@pytest.mark.parametrize("light", [True, False])
def test_the_last_turn_of_a_long_conversation_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, light: bool
) -> None:
    """Also with an encoder that cuts texts from the right by its own settings."""
    torch.manual_seed(1)
    model = build_biencoder(TOKENIZER, hidden_size=16, num_layers=1, num_heads=2, max_length=24, shared=True)
    save_biencoder(model, tmp_path / "plain", dtype=torch.float32)
    plain = BiEncoder(tmp_path / "plain") if light else SentenceTransformerRetriever(tmp_path / "plain")
    talk = RetrievalChatbot(plain, ResponseIndex.build(plain, RESPONSES), config=RetrievalConfig(max_turns=9))
    past = [Turn("User" if i % 2 == 0 else "Ann", "a long story goes on") for i in range(6)]

    def scores(turns: Sequence[Turn]) -> dict[str, float]:
        rows = talk.reply(turns).evidence["candidates"]
        return {row["response"]: row["score"] for row in rows}

    with caplog.at_level(logging.WARNING):
        red, white = ([*past, Turn("User", f"say {word}, nothing but it")] for word in ("red", "white"))
        assert scores(red) == scores([Turn("User", "before all"), *red])
        assert scores(red) != scores(white)
    assert len([record for record in caplog.records if "last 24 tokens of a context" in record.message]) == 1


def test_a_session_never_hears_the_same_answer_twice(retriever: BiEncoder, index: ResponseIndex) -> None:
    session = ChatSession(RetrievalChatbot(retriever, index, config=RetrievalConfig(candidates=1)))
    said = [session.reply("hello").text for _ in RESPONSES]
    assert sorted(said) == sorted(RESPONSES)
    with pytest.raises(ValueError, match="the index is too small"):
        session.reply("hello")
    echo = ChatSession(RetrievalChatbot(retriever, index, config=RetrievalConfig(avoid_repeats=False)))
    assert echo.reply("x").text in RESPONSES
    assert echo.reply("x").text in RESPONSES


def test_batches_and_streams_say_the_same(bot: RetrievalChatbot) -> None:
    histories: list[Sequence[Turn] | str] = [
        "hello",
        [Turn("User", "who"), Turn("Ann", "me"), Turn("User", "x")],
        "why",
    ]
    single = [bot.reply(history) for history in histories]
    for one, of_many in zip(single, bot.reply_batch(histories), strict=True):
        assert one.text == of_many.text
        assert one.evidence["candidates"][0]["score"] == pytest.approx(
            of_many.evidence["candidates"][0]["score"], abs=1e-6
        )
    assert list(bot.stream("hello")) == [single[0].text]
    assert bot.reply_batch([]) == []
    session = ChatSession(bot)
    assert "".join(session.stream("hello")) == single[0].text
    assert session.last_reply is not None
    assert session.last_reply.evidence == single[0].evidence


def test_rerankers(retriever: BiEncoder, index: ResponseIndex) -> None:
    def alphabetical(context: Sequence[str], responses: Sequence[str]) -> list[float]:
        assert context == ["hello"]
        return [float(len(responses) - sorted(responses).index(r)) for r in responses]

    config = RetrievalConfig(candidates=7)
    reply = RetrievalChatbot(retriever, index, config=config, reranker=alphabetical).reply("hello")
    assert [c.text for c in reply.candidates] == sorted(RESPONSES)
    lm = tiny_causal_lm()
    by_likelihood = RetrievalChatbot(retriever, index, config=config, reranker=LMReranker(lm, "mi"))
    expected = score_responses(lm, [["hello"]] * 7, RESPONSES)
    scores = {text: value.value("mi") for text, value in zip(RESPONSES, expected, strict=True)}
    reply = by_likelihood.reply("hello")
    assert reply.text == max(scores, key=scores.__getitem__)
    for row in reply.evidence["candidates"]:
        assert row["rank_score"] == pytest.approx(scores[row["response"]], abs=1e-4)
    broken = RetrievalChatbot(retriever, index, reranker=lambda context, responses: [float("nan")])
    with pytest.raises(ValueError, match="finite scores"):
        broken.reply("hello")


@pytest.mark.parametrize("settings", [{}, {"normalize": True, "context_role": "document"}])
def test_a_sentence_transformers_model_is_saved_with_its_bot(
    tmp_path: Path, retriever: BiEncoder, settings: dict[str, Any]
) -> None:
    full = SentenceTransformerRetriever(retriever.path, device="cpu", **settings)
    fresh = SentenceTransformerRetriever(retriever.path, device="cpu", **settings).fingerprint
    bot = RetrievalChatbot(full, ResponseIndex.build(full, RESPONSES))
    said = bot.reply("hello there, what do you say to a long question").evidence
    assert full.fingerprint == fresh
    bot.save_pretrained(tmp_path / "bot")
    loaded = RetrievalChatbot.from_pretrained(tmp_path / "bot")
    assert loaded.reply("hello there, what do you say to a long question").evidence == said
    other = SentenceTransformerRetriever(retriever.path, device="cpu", normalize=not full.normalize)
    with pytest.raises(StaleIndexError, match="another encoder"):
        loaded.index.check(other)


def test_where_it_comes_from_is_saved_and_stands_in_the_card(
    retriever: BiEncoder, index: ResponseIndex, tmp_path: Path
) -> None:
    origin = Provenance(
        "G2R, alpha 0.25",
        (DataUse("Small Talk", "CC0-1.0"),),
        (Metric("hits@1/10", 0.8125, "validation examples", n=16),),
        seed=7,
        licence="CC-BY-4.0",
    )
    RetrievalChatbot(retriever, index, provenance=origin).save_pretrained(tmp_path / "bot")
    loaded = RetrievalChatbot.from_pretrained(tmp_path / "bot")
    assert loaded.provenance == origin
    loaded.save_pretrained(tmp_path / "again")
    for name in ("bot", "again"):
        card = (tmp_path / name / "README.md").read_text()
        for words in ("G2R, alpha 0.25", "Small Talk", "CC0-1.0", "0.8125", "7 responses", "cc-by-4.0"):
            assert words in card, (name, words)
        assert re.search(r"[Ss]eed\W+7\b", card), card


def test_save_and_load(bot: RetrievalChatbot, tmp_path: Path) -> None:
    bot.save_pretrained(tmp_path / "bot")
    loaded = RetrievalChatbot.from_pretrained(tmp_path / "bot")
    assert (loaded.name, loaded.config) == ("Ann", bot.config)
    assert loaded.reply("hello").evidence == bot.reply("hello").evidence
    file = tmp_path / "bot" / "index" / "responses.txt"
    file.write_text(file.read_text().replace("pink", "teal"))
    with pytest.raises(StaleIndexError, match="not the list of responses"):
        RetrievalChatbot.from_pretrained(tmp_path / "bot")
    weights = next((tmp_path / "bot" / "retriever").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ArtefactError, match="damaged"):
        RetrievalChatbot.from_pretrained(tmp_path / "bot")


def test_another_encoder_is_refused(index: ResponseIndex, tmp_path: Path) -> None:
    model = biencoder_from(encoder_folder(tmp_path / "encoder"), shared=True)
    model.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    with pytest.raises(StaleIndexError, match="another encoder"):
        RetrievalChatbot(BiEncoder(tmp_path / "other"), index)


def test_bad_input(bot: RetrievalChatbot) -> None:
    with pytest.raises(ValueError, match="must say something"):
        bot.reply(" \n")
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        RetrievalConfig(candidates=0)
    with pytest.raises(ValueError, match="name must not be blank"):
        RetrievalChatbot(bot.retriever, bot.index, name=" ")


def test_latency(bot: RetrievalChatbot) -> None:
    latency = measure_latency(bot, ["hello", "who", "why"], warmup=1)
    assert latency.replies == 3
    assert 0 < latency.p50 <= latency.p95
    assert latency.mean > 0
    with pytest.raises(ValueError, match="nothing to measure"):
        measure_latency(bot, [])
