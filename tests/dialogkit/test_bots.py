"""Any chatbot by name, the plain language model as one, and what chatbots are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from dialogkit.bots import GeneratorChatbot, bot_fingerprint, find_character, load_bot, sources_of
from dialogkit.chat import Chatbot, ChatSession
from dialogkit.dialogues import Turn
from dialogkit.generation import Candidate, GenerationConfig
from dialogkit.generation.prompting import DialoguePrompt

from .tiny import tiny_causal_lm

SHORT = GenerationConfig(max_new_tokens=6, num_candidates=3)


def test_a_language_model_talks() -> None:
    bot = GeneratorChatbot(tiny_causal_lm(["hello", "tea"]), generation=SHORT)
    assert isinstance(bot, Chatbot)
    reply = bot.reply("hello", seed=1)
    assert reply == reply.__class__(reply.text, reply.candidates, reply.evidence, reply.timing)
    assert reply.evidence["prompt"] == "User: hello\nBot:" and reply.evidence["method"] == "generator"
    assert bot.reply("hello", seed=1).text == reply.text
    assert "\n" not in reply.text
    best = max((one for one in reply.candidates if one.text), key=lambda one: one.logprob)
    assert reply.text == best.text
    session = ChatSession(bot)
    said = "".join(session.stream("hello", seed=1))
    assert session.last_reply is not None and session.last_reply.text == said
    assert session.last_reply.evidence["model"] == bot.model.name
    assert bot.reply_batch([]) == []


def test_the_layout_follows_the_model_and_the_turns() -> None:
    history = [Turn("User", "hello"), Turn("Bot", "tea"), Turn("User", "you")]
    plain = GeneratorChatbot(tiny_causal_lm(["hello"]), generation=SHORT)
    assert plain.reply(history, seed=0).evidence["prompt"] == "User: hello\nBot: tea\nUser: you\nBot:"
    chat = GeneratorChatbot(tiny_causal_lm(["hello"], chat=True), generation=SHORT)
    assert [m["role"] for m in chat.reply(history, seed=0).evidence["prompt"]] == [
        "user",
        "assistant",
        "user",
    ]
    with pytest.raises(ValueError, match="takes no chat messages"):
        GeneratorChatbot(tiny_causal_lm(), prompt=DialoguePrompt("chat"))
    with pytest.raises(ValueError, match="name must not be blank"):
        GeneratorChatbot(tiny_causal_lm(), name=" ")
    with pytest.raises(ValueError, match="must say something"):
        plain.reply("  ")


def test_the_oldest_turns_go_where_the_window_is_too_small() -> None:
    bot = GeneratorChatbot(tiny_causal_lm(["hello"], max_length=64), generation=SHORT)
    history = [Turn("User" if i % 2 == 0 else "Bot", f"number {i} and words") for i in range(21)]
    prompt = bot.reply(history, seed=0).evidence["prompt"]
    assert prompt.endswith("User: number 20 and words\nBot:") and "number 0 " not in prompt
    assert bot.model.count_tokens(prompt) <= 58


class Fixed:
    """A model that always says the same candidates."""

    name = "fixed"
    max_length = None
    supports_chat = False

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates = candidates

    def generate(self, prompts: Sequence[str], **_: object) -> list[list[Candidate]]:
        return [list(self.candidates) for _ in prompts]


def test_the_likeliest_candidate_with_text_is_the_reply() -> None:
    unlikely = Candidate("b", -2.0, -2.0, 1, "stop")
    likely = Candidate("a", -1.0, -1.0, 1, "stop")
    silent = Candidate("", -math.inf, 0.0, 0, "eos")
    unknown = [Candidate(text, math.nan, math.nan, 0, "stop") for text in ("x", "y")]
    for candidates, wanted in (
        ((unlikely, likely, silent), "a"), ((silent,), ""), ((), ""), (unknown, "x"),
    ):  # fmt: skip
        assert GeneratorChatbot(Fixed(*candidates)).reply("hello").text == wanted  # type: ignore[arg-type]


def test_a_fingerprint_changes_with_weights_layout_and_settings() -> None:
    def mark(
        seed: int = 0, prompt: DialoguePrompt | None = None, generation: GenerationConfig = SHORT
    ) -> str:
        return bot_fingerprint(
            GeneratorChatbot(tiny_causal_lm(seed=seed), prompt=prompt, generation=generation)
        )

    marks = [mark(), mark(seed=1), mark(prompt=DialoguePrompt("lines")), mark(generation=GenerationConfig())]
    assert len(set(marks)) == 4 and mark() == marks[0]


def test_sources_are_what_evidence_names() -> None:
    assert sources_of({}) == ()
    assert sources_of({"pairs": [{"utterance": "a"}, {"utterance": "b"}]}) == ("a", "b")
    assert sources_of({"candidates": [{"response": "x"}, {"response": "y"}]}) == ("x",)
    assert sources_of({"exemplars": ["e"], "prompt": "p"}) == ("e",)


def test_names_that_mean_nothing_are_explained(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="did you mean 'captain'"):
        load_bot("character:captian")
    with pytest.raises(ValueError, match="endpoint:MODEL@URL"):
        load_bot("endpoint:gpt")
    with pytest.raises(ValueError, match="holds no"):
        load_bot(str(tmp_path))
    assert find_character("captain").id == "captain"


def test_an_endpoint_is_named_by_model_and_address() -> None:
    pytest.importorskip("openai")
    bot = load_bot("endpoint:org/model@http://127.0.0.1:9/v1")
    assert isinstance(bot, GeneratorChatbot)
    assert bot.model.name == "org/model" and bot.prompt.layout == "chat"
    other = load_bot("endpoint:org/model@http://127.0.0.1:8/v1")
    assert bot_fingerprint(bot) != bot_fingerprint(other)
