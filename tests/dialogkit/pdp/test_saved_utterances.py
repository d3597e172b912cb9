"""The embeddings of a character's utterances: computed once, saved with the index."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import Blend, Character, DynamicMatcher, PDPChatbot, StaticMatcher, ZeroShotPrompt
from dialogkit.pdp.saving import read_parts
from tests.dialogkit.pdp.helpers import DIM, HashRetriever, character, index
from tests.dialogkit.tiny import tiny_causal_lm

GREEDY = GenerationConfig(max_new_tokens=2, do_sample=False)


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return tiny_causal_lm(max_length=700)


def responses(retriever: HashRetriever) -> list[tuple[str, ...]]:
    return [texts for side, texts in retriever.calls if side == "response"]


@pytest.mark.parametrize("make", [StaticMatcher, DynamicMatcher])
def test_a_loaded_chatbot_encodes_no_utterance_and_no_context(
    make: type[StaticMatcher] | type[DynamicMatcher], tmp_path: Path, lm: TransformersLM
) -> None:
    fresh = HashRetriever()
    voices = Blend("Two", (character(3), Character("Mr Fig", ("Figs are fine.",))), (2, 1))
    bot = PDPChatbot(lm, voices, matcher=make(index(fresh)), generation=GREEDY)
    bot.save_pretrained(tmp_path / "bot")
    assert len(responses(fresh)) == 2  # once for each character, though it has not talked yet
    retriever = HashRetriever()
    again = PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=retriever)
    for text in ("Hello.", "And then?"):
        assert again.reply(text).evidence["pairs"] == bot.reply(text).evidence["pairs"]
    assert retriever.calls == [("context", ("Hello.",)), ("context", ("And then?",))]
    assert len(responses(fresh)) == 2


def test_utterances_that_were_changed_in_the_file_are_encoded_anew(
    tmp_path: Path, lm: TransformersLM
) -> None:
    PDPChatbot(lm, character(), matcher=StaticMatcher(index()), generation=GREEDY).save_pretrained(
        tmp_path / "bot"
    )
    changed = character(utterances=("Something else.", *character().utterances[1:]))
    matcher = StaticMatcher(index(HashRetriever()))
    matcher.load_utterances(tmp_path / "bot" / "utterances.safetensors")
    fresh = StaticMatcher(index())
    assert matcher.match(changed, "Hello.") == fresh.match(changed, "Hello.")
    assert isinstance(matcher.retriever, HashRetriever)
    assert responses(matcher.retriever) == [changed.utterances]
    assert matcher.match(character(), "Hello.") == fresh.match(character(), "Hello.")
    assert len(responses(matcher.retriever)) == 1


def test_what_is_saved_are_the_embeddings(tmp_path: Path) -> None:
    matcher = StaticMatcher(index())
    matcher.save_utterances(tmp_path / "some.safetensors", character())
    (vectors,) = load_file(tmp_path / "some.safetensors").values()
    np.testing.assert_array_equal(vectors, HashRetriever().encode_response(character().utterances))


def test_folders_without_the_file_are_read(tmp_path: Path, lm: TransformersLM) -> None:
    bot = PDPChatbot(lm, character(), matcher=StaticMatcher(index()), generation=GREEDY)
    bot.save_pretrained(tmp_path / "bot")
    (tmp_path / "bot" / "utterances.safetensors").unlink()
    retriever = HashRetriever()
    parts = read_parts(tmp_path / "bot", model=lm, retriever=retriever, device=None)
    assert parts.matcher is not None and bot.matcher is not None
    assert parts.matcher.match(character(), "Hello.") == bot.matcher.match(character(), "Hello.")
    assert len(responses(retriever)) == 1


def test_a_character_without_utterances_has_nothing_to_save(tmp_path: Path, lm: TransformersLM) -> None:
    bot = PDPChatbot(
        lm, Character("Nobody"), matcher=StaticMatcher(index()), prompt=ZeroShotPrompt(), generation=GREEDY
    )
    bot.save_pretrained(tmp_path / "bot")
    again = PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=HashRetriever())
    assert again.reply("Hello.").text == bot.reply("Hello.").text


@pytest.mark.parametrize(
    "content",
    [np.zeros((5, DIM + 1), np.float32), np.zeros((5, DIM), np.float64), np.zeros(DIM, np.float32), None],
)
def test_a_damaged_file_is_refused(content: np.ndarray | None, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    if content is None:
        path.write_bytes(b"nothing of the kind")
    else:
        save_file({"a": content}, path)
    with pytest.raises(ValueError, match=r"some\.safetensors (is corrupt|holds float)"):
        StaticMatcher(index()).load_utterances(path)
