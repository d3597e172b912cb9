"""A chatbot that writes with exemplars: evidence, ranking, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.bots import load_bot, sources_of
from dialogkit.chat import Chatbot, ChatSession
from dialogkit.dialogues import Turn
from dialogkit.exemplar import ExemplarBotConfig, ExemplarChatbot, ExemplarPacker, LengthBudget
from dialogkit.generation import GenerationConfig
from dialogkit.retrieval import BiEncoder, ResponseIndex, StaleIndexError, build_biencoder
from dialogkit.retrieval.saving import Provenance
from tests.dialogkit.exemplar.toys import WORDS, WordRetriever, lm, response_index, response_set
from tests.dialogkit.tiny import byte_tokenizer
from trainkit.cards import DataUse, Metric

BUDGET = LengthBudget(context=60, exemplar=16, response=24)
GENERATION = GenerationConfig(max_new_tokens=6, num_candidates=2)


def bot(family: str = "gpt2", exemplars: int = 3, **changes: Any) -> ExemplarChatbot:
    config = ExemplarBotConfig(exemplars=exemplars, generation=GENERATION, **changes)
    packer = ExemplarPacker(lm(family), budget=BUDGET)
    return ExemplarChatbot(packer, WordRetriever(), response_index(), config=config, name="Ann")


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_c17_the_exemplars_shown_are_those_conditioned_on(family: str) -> None:
    ann = bot(family)
    assert isinstance(ann, Chatbot)
    history = (Turn("User", "hello"), Turn("Ann", "hi"), Turn("User", "tell me of red"))
    reply = ann.reply(history, seed=3)
    considered = reply.evidence["considered"]
    hits = ann.index.search(WordRetriever().encode_context(["hello\nhi\ntell me of red"]), 3)
    assert {row["exemplar"] for row in considered} == set(hits.texts[0])
    scores = dict(zip(hits.texts[0], hits.scores[0].tolist(), strict=True))
    drawn = ann.packer.generate(
        [["hello", "hi", "tell me of red"]] * 3, hits.texts[0], config=GENERATION, seed=3
    )
    for text, candidates in zip(hits.texts[0], drawn, strict=True):
        row = next(row for row in considered if row["exemplar"] == text)
        assert row["reply"] in {candidate.text for candidate in candidates}
        assert row["score"] == pytest.approx(scores[text])
    best = max(
        (c for candidates in drawn for c in candidates if c.text), key=lambda candidate: candidate.logprob
    )
    assert reply.text == best.text
    assert sources_of(reply.evidence) == tuple(reply.evidence["exemplars"])
    assert reply.evidence["exemplars"] == [considered[0]["exemplar"]]
    assert reply.evidence["score"] == considered[0]["score"]
    assert 0 <= reply.evidence["copied"] <= 1
    assert json.dumps(dict(reply.evidence))
    assert len(reply.candidates) == 6


def test_replies_in_batches_are_those_alone() -> None:
    ann = bot()
    histories = ["tell me of red", "tell me of green"]
    together = ann.reply_batch(histories, seed=1)
    assert [one.text for one in together] == [ann.reply(history, seed=1).text for history in histories]
    assert ann.reply_batch([]) == []
    session = ChatSession(ann)
    pieces = list(session.stream("tell me of red", seed=1))
    assert pieces == [together[0].text]
    assert session.last_reply is not None
    assert session.last_reply.evidence["exemplars"] == together[0].evidence["exemplars"]


def test_copies_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ann = bot(exemplars=1)
    drawn = ann.packer.generate([["x"]], [None], config=GENERATION, seed=0)
    first = ann.reply("red it is gold").evidence["exemplars"][0]
    monkeypatch.setattr(
        ExemplarPacker, "generate", lambda *_, **__: [[replace(drawn[0][0], text=f"well, {first}")]]
    )
    reply = ann.reply("red it is gold")
    assert reply.evidence["copied"] == pytest.approx(4 / 6)


def test_joint_rank_weighs_relevance() -> None:
    cold, warm = (bot(rank="joint", temperature=t).reply("red it is gold", seed=0) for t in (1e-3, 1e6))
    best = max(row["score"] for row in cold.evidence["considered"])
    assert cold.evidence["score"] == best
    sums = [candidate.sum_logprob for candidate in warm.candidates if candidate.text]
    assert sums == sorted(sums, reverse=True)


def test_what_was_said_is_no_exemplar_and_none_is_possible() -> None:
    ann = bot(exemplars=30)
    said = "red it is gold"
    found = ann.reply(f"{said}").evidence["considered"]
    assert said not in {row["exemplar"] for row in found}
    assert len(found) == len(response_set()) - 1
    without = bot(exemplars=0).reply("tell me of red", seed=0)
    assert without.evidence["exemplars"] == []
    assert without.evidence["score"] is None
    assert without.evidence["copied"] == 0
    lonely = ExemplarChatbot(
        ann.packer, WordRetriever(), ResponseIndex.build(WordRetriever(), [said]), config=ann.config
    )
    assert lonely.reply(said).evidence["exemplars"] == []


def test_bad_input() -> None:
    ann = bot()
    with pytest.raises(ValueError, match="the last turn of the history must say something"):
        ann.reply(" \n")
    with pytest.raises(ValueError, match="history"):
        ann.reply([])
    with pytest.raises(ValueError, match="name must not be blank"):
        ExemplarChatbot(ann.packer, WordRetriever(), ann.index, name=" ")

    class Other(WordRetriever):
        fingerprint = "other"

    with pytest.raises(StaleIndexError):
        ExemplarChatbot(ann.packer, Other(), ann.index)
    for changes, message in (
        ({"exemplars": -1}, "exemplars must be"),
        ({"rank": "best"}, "rank must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"max_turns": 0}, "max_turns must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ExemplarBotConfig(**changes)  # type: ignore[arg-type]


def test_ids_that_do_not_fit_are_refused() -> None:
    model = lm(max_length=32)
    for row in ([], [5] * 30):
        with pytest.raises(ValueError, match="a row must hold 1 to 26 tokens"):
            model.generate_from_ids([row], config=GENERATION)
    text = model.generate(["tell me"], config=GENERATION, seed=0)
    ids = model.tokenizer("tell me")["input_ids"]
    assert model.generate_from_ids([ids], config=GENERATION, seed=0) == text


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_biencoder(
        byte_tokenizer(WORDS, pad=True), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
    )
    model.save_pretrained(str(tmp_path / "encoder"), create_model_card=False)
    retriever = BiEncoder(tmp_path / "encoder")
    index = ResponseIndex.build(retriever, response_set())
    packer = ExemplarPacker(lm(family), budget=BUDGET, marker="Like:")
    made = ExemplarChatbot(
        packer,
        retriever,
        index,
        config=ExemplarBotConfig(exemplars=2, rank="joint", generation=replace(GENERATION, stop=("!",))),
        name="Ann",
        provenance=Provenance("CORGE", (DataUse("Colours", "CC0-1.0"),), (Metric("ppl", 3.0, "x"),), 7),
    )
    made.save_pretrained(tmp_path / "bot")
    loaded = load_bot(str(tmp_path / "bot"))
    assert isinstance(loaded, ExemplarChatbot)
    assert loaded.config == made.config
    assert loaded.packer.budget == BUDGET
    assert loaded.packer.marker == "Like:"
    assert loaded.provenance == made.provenance
    one, other = (each.reply("tell me of red", seed=2) for each in (made, loaded))
    assert one.text == other.text
    assert [row["exemplar"] for row in one.evidence["considered"]] == [
        row["exemplar"] for row in other.evidence["considered"]
    ]
    card = (tmp_path / "bot" / "README.md").read_text()
    for words in ("CORGE", "Colours", "CC0-1.0", "24 responses"):
        assert words in card, words
    with pytest.raises(TypeError, match="cannot be saved"):
        bot().save_pretrained(tmp_path / "words")
