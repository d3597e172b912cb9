"""P10: sessions, and chatbots as folders."""

import json
import warnings
from pathlib import Path

import pytest

from dialogkit.chat import ChatSession
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import (
    Blend,
    Character,
    ContextIndex,
    ContextPool,
    DialogPrompt,
    DynamicMatcher,
    GoldMatcher,
    Matcher,
    PDPChatbot,
    PDPConfig,
    RandomMatcher,
    StaticMatcher,
)
from dialogkit.retrieval import BiEncoder, StaleIndexError, build_biencoder, save_biencoder
from tests.dialogkit.pdp.helpers import CONTEXTS, HashRetriever, character, index
from tests.dialogkit.tiny import byte_tokenizer, tiny_causal_lm
from trainkit.hub import ArtefactError

GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False)
TEXTS = ("Hello.", "Will it rain?", CONTEXTS[0])


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return tiny_causal_lm(max_length=700)


@pytest.fixture(scope="module")
def lm_folder(lm: TransformersLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "lm"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def biencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "biencoder"
    model = build_biencoder(
        byte_tokenizer(pad=True), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16
    )
    save_biencoder(model, folder)
    return folder


def prompts(bot: PDPChatbot) -> list[str]:
    return [str(bot.reply(text).evidence["prompt"]) for text in TEXTS]


def gold() -> Character:
    return character(gold_contexts=CONTEXTS[:5], show="The Plums", summary="Old.", licence="CC0-1.0")


# Sessions ---------------------------------------------------------------------------------------------------


def test_p10_n_replies_make_2n_turns_and_reset_empties(lm: TransformersLM) -> None:
    bot = PDPChatbot(lm, character(), matcher=DynamicMatcher(index()), generation=GREEDY)
    session = bot.session()
    for n, text in enumerate(TEXTS, start=1):
        reply = session.reply(text)
        assert len(session.history) == 2 * n
        assert (session.history[-2].text, session.history[-1].text) == (text, reply.text)
        assert [turn.speaker for turn in session.history] == ["User", "Mrs Plum"] * n
    prompt = str(reply.evidence["prompt"])
    assert prompt.count("\nUser: ") == 5 + 3 and f"\nUser: {TEXTS[0]}\n" in prompt
    again = ChatSession.from_json(session.to_json(), bot)
    assert again.history == session.history and again.reply("Bye.").text == session.reply("Bye.").text
    session.reset()
    assert session.history == [] and len(again.history) == 8


# Round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["static", "dynamic", "random", "gold"])
def test_p10_a_round_trip_gives_identical_prompts(
    kind: str, tmp_path: Path, lm_folder: Path, biencoder_folder: Path
) -> None:
    config = PDPConfig(
        matcher=kind, prompt="dialog", max_dialogs=4, input_weight=0.7, random_seed=5, random_per="turn",
        selection="ranker", max_message_share=0.4, generation=GREEDY,
    )  # type: ignore[arg-type]  # fmt: skip
    bot = PDPChatbot(lm_folder, gold(), retriever=biencoder_folder, pool=ContextPool(CONTEXTS), config=config)
    bot.save_pretrained(tmp_path / "bot")
    again = PDPChatbot.from_pretrained(tmp_path / "bot")
    assert prompts(again) == prompts(bot)
    assert [again.reply(text).text for text in TEXTS] == [bot.reply(text).text for text in TEXTS]
    assert (again.config, again.character, again.prompt) == (bot.config, bot.character, bot.prompt)
    # And once more, from what was loaded.
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "chatbot.json").read_text()) == json.loads(
        (tmp_path / "bot" / "chatbot.json").read_text()
    )
    card = (tmp_path / "bot" / "README.md").read_text()
    assert card.startswith("---\n") and "Pseudo Dialog Prompting" in card and f"{kind} match" in card


@pytest.mark.parametrize("prompt", ["utterances", "zero-shot"])
def test_p10_round_trip_of_the_baselines(
    prompt: str, tmp_path: Path, lm_folder: Path, biencoder_folder: Path
) -> None:
    bot = PDPChatbot(
        lm_folder,
        character(),
        prompt=prompt,  # type: ignore[arg-type]
        retriever=biencoder_folder,
        pool=ContextPool(CONTEXTS),
        generation=GREEDY,
    )
    bot.save_pretrained(tmp_path / "bot")
    again = PDPChatbot.from_pretrained(tmp_path / "bot")
    assert prompts(again) == prompts(bot) and again.config == bot.config


def test_p10_round_trip_of_a_blend_with_its_own_prompt(tmp_path: Path, lm_folder: Path) -> None:
    fig = Character("Mr Fig", ("Figs are fine.", "I fell off a tree."))
    blend = Blend("Plum and Fig", (character(), fig), (2, 1))
    bot = PDPChatbot(
        lm_folder,
        blend,
        matcher=DynamicMatcher(index()),
        prompt=DialogPrompt(user_label="Guest", instruction="{name} and {user} talk."),
        generation=GREEDY,
    )
    bot.save_pretrained(tmp_path / "bot")
    again = PDPChatbot.from_pretrained(tmp_path / "bot", retriever=HashRetriever())
    assert prompts(again) == prompts(bot) and again.character == blend


def test_p10_a_copy_with_the_models_needs_nothing_else(
    tmp_path: Path, lm: TransformersLM, lm_folder: Path, biencoder_folder: Path
) -> None:
    from_folder = PDPChatbot(
        lm_folder, character(), retriever=biencoder_folder, pool=ContextPool(CONTEXTS), generation=GREEDY
    )
    in_memory = PDPChatbot(
        lm, character(), retriever=BiEncoder(biencoder_folder), pool=ContextPool(CONTEXTS), generation=GREEDY
    )
    for name, bot in (("a", from_folder), ("b", in_memory)):
        bot.save_pretrained(tmp_path / name, include_model=True)
        record = json.loads((tmp_path / name / "chatbot.json").read_text())
        assert str(tmp_path) not in json.dumps(record) and str(lm_folder) not in json.dumps(
            record["retriever"]
        )
        moved = (tmp_path / name).rename(tmp_path / f"moved-{name}")
        again = PDPChatbot.from_pretrained(moved)
        assert prompts(again) == prompts(from_folder)
        assert again.reply("Hello.").text == from_folder.reply("Hello.").text
    # The flag holds for one call.
    in_memory.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c" / "model").exists()


def test_p10_round_trip_with_a_sentence_transformers_retriever(
    tmp_path: Path, lm: TransformersLM, biencoder_folder: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from dialogkit.retrieval import SentenceTransformerRetriever

    retriever = SentenceTransformerRetriever(biencoder_folder, normalize=True)
    bot = PDPChatbot(lm, character(), retriever=retriever, pool=ContextPool(CONTEXTS), generation=GREEDY)
    bot.save_pretrained(tmp_path / "bot", include_model=True)
    again = PDPChatbot.from_pretrained(tmp_path / "bot")
    assert prompts(again) == prompts(bot)
    bot.save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match=r"pass model=|pass retriever="):
        PDPChatbot.from_pretrained(tmp_path / "named")
    assert prompts(PDPChatbot.from_pretrained(tmp_path / "named", model=lm, retriever=retriever)) == prompts(
        bot
    )


# Stale and damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["static", "random", "gold"])
def test_p10_another_retriever_is_rejected(kind: str, tmp_path: Path, lm: TransformersLM) -> None:
    made: dict[str, Matcher] = {
        "static": StaticMatcher(index()),
        "random": RandomMatcher(ContextPool(CONTEXTS), HashRetriever()),
        "gold": GoldMatcher(HashRetriever()),
    }
    bot = PDPChatbot(lm, gold(), matcher=made[kind], generation=GREEDY)
    bot.save_pretrained(tmp_path / "bot")
    with pytest.raises(StaleIndexError, match="another retriever"):
        PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=HashRetriever(salt="new"))
    again = PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=HashRetriever())
    assert prompts(again) == prompts(bot)


def test_p10_an_edited_pool_is_rejected(tmp_path: Path, lm: TransformersLM) -> None:
    bot = PDPChatbot(lm, character(), matcher=StaticMatcher(index()))
    bot.save_pretrained(tmp_path / "bot")
    pool = tmp_path / "bot" / "pool.txt"
    pool.write_text(pool.read_text().replace("Tuesday", "Wednesday"))
    with pytest.raises(StaleIndexError, match="another pool"):
        PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=HashRetriever())


def test_a_damaged_index_is_named(tmp_path: Path, lm: TransformersLM) -> None:
    PDPChatbot(lm, character(), matcher=StaticMatcher(index())).save_pretrained(tmp_path / "bot")
    vectors = tmp_path / "bot" / "index" / "index.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-10])
    with pytest.raises(ArtefactError, match=r"index/index\.safetensors"):
        PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=HashRetriever())


def test_a_damaged_description_is_named(tmp_path: Path, lm: TransformersLM) -> None:
    PDPChatbot(lm, character(), matcher=StaticMatcher(index())).save_pretrained(tmp_path / "bot")
    path = tmp_path / "bot" / "chatbot.json"
    record = json.loads(path.read_text())
    for change in ({"config": {"matcher": "static"}}, {"prompt": {"kind": "loud"}}, {"model": {}}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=r"chatbot\.json"):
            PDPChatbot.from_pretrained(tmp_path / "bot", retriever=HashRetriever())


def test_other_folders_are_refused(tmp_path: Path, lm_folder: Path) -> None:
    with pytest.raises(ArtefactError, match=r"trainkit\.json"):
        PDPChatbot.from_pretrained(lm_folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PDPChatbot.from_pretrained(tmp_path / "nowhere")


def test_a_model_without_a_name_must_be_given_again(tmp_path: Path, lm: TransformersLM) -> None:
    bot = PDPChatbot(lm, character(), matcher=StaticMatcher(index()), generation=GREEDY)
    bot.save_pretrained(tmp_path / "bot")
    with pytest.raises(ValueError, match=r"language model \(tiny-gpt2\); pass model="):
        PDPChatbot.from_pretrained(tmp_path / "bot", retriever=HashRetriever())
    with pytest.raises(ValueError, match="pass retriever="):
        PDPChatbot.from_pretrained(tmp_path / "bot", model=lm)


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path, lm: TransformersLM) -> None:
    class MyPrompt(DialogPrompt):
        pass

    class MyMatcher(StaticMatcher):
        pass

    bots = [
        PDPChatbot(lm, character(), matcher=StaticMatcher(index()), prompt=MyPrompt(), generation=GREEDY),
        PDPChatbot(lm, character(), matcher=MyMatcher(index()), generation=GREEDY),
    ]
    for bot in bots:
        assert bot.reply("Hello.").candidates
        with pytest.raises(TypeError, match="can be saved"):
            bot.save_pretrained(tmp_path / "bot")
    hashed = PDPChatbot(lm, character(), matcher=StaticMatcher(index()))
    with pytest.raises(TypeError, match="HashRetriever cannot be copied"):
        hashed.save_pretrained(tmp_path / "bot", include_model=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_this_machine_is_not_pushed_as_a_name(lm_folder: Path) -> None:
    bot = PDPChatbot(lm_folder, character(), matcher=StaticMatcher(index()))
    with pytest.raises(ValueError, match=r"language model is the folder .*include_model=True"):
        bot.push_to_hub("someone/bot")


def test_loading_does_not_warn_again_about_a_symmetric_retriever(tmp_path: Path, lm: TransformersLM) -> None:
    alike = HashRetriever(symmetric=True)
    matcher = StaticMatcher(ContextIndex(alike, ContextPool(CONTEXTS)), allow_symmetric=True)
    PDPChatbot(lm, character(), matcher=matcher).save_pretrained(tmp_path / "bot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PDPChatbot.from_pretrained(tmp_path / "bot", model=lm, retriever=alike)
    assert loaded.character == character()
