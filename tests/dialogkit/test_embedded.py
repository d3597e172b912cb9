"""What ships with the package: characters, contexts, models, and a first reply without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from dialogkit import embedded
from dialogkit.generation import TransformersLM
from dialogkit.pdp import Character, ContextIndex, ContextPool, PDPChatbot, PDPConfig, embedded_config
from dialogkit.pdp.assembly import embedded_index
from dialogkit.retrieval import BiEncoder
from tests.dialogkit.pdp.helpers import HashRetriever

ROOT = Path(embedded.__file__).parent


def test_there_are_at_least_eight_complete_characters_with_voices_of_their_own() -> None:
    names = embedded.character_names()
    found = [Character.from_json(embedded.character_path(name)) for name in names]
    assert len(found) >= 8
    assert [character.id for character in found] == names
    assert len({character.name for character in found}) == len(found)
    for character in found:
        assert 8 <= len(character.utterances) <= 20
        assert character.summary and character.licence == "Apache-2.0"
    lines = [line for character in found for line in character.utterances]
    assert len(set(lines)) == len(lines)


def test_the_contexts_are_a_pool_without_repeats() -> None:
    pool = ContextPool.from_lines(embedded.contexts_path())
    assert len(pool) >= 500 and len(set(pool)) == len(pool)
    assert max(len(text.split()) for text in pool) <= 30


def test_embeddings_of_the_contexts_are_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    first = embedded_index(HashRetriever())
    retriever = HashRetriever()
    again = embedded_index(retriever)
    assert retriever.calls == []
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert [path.name for path in tmp_path.iterdir()] == ["dialogkit"]


def test_shipped_embeddings_are_used_for_their_retriever_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = ContextPool.from_lines(embedded.contexts_path())
    ContextIndex(HashRetriever(), pool).save(tmp_path / "shipped", half=True)
    monkeypatch.setattr(embedded, "index_paths", lambda: [tmp_path / "shipped"])
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    retriever = HashRetriever()
    embedded_index(retriever)
    assert retriever.calls == [] and not (tmp_path / "cache").exists()
    embedded_index(HashRetriever(salt="other"))
    assert (tmp_path / "cache").exists()


def test_the_models_are_small_and_hold_no_pickles() -> None:
    folders = [ROOT / name for name in ("lm", "biencoder", "indexes")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 18_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    for folder in folders[:2]:
        assert (folder / "README.md").is_file()


def test_the_models_load_and_fit_each_other() -> None:
    lm = TransformersLM.from_pretrained(embedded.lm_path(), device="cpu")
    assert lm.max_length is not None and lm.max_length >= 512 and not lm.supports_chat
    retriever = BiEncoder(embedded.biencoder_path(), device="cpu")
    assert not retriever.symmetric
    assert retriever.encode_context(["Hello."]).shape == (1, retriever.dim)


def test_sentence_transformers_loads_the_biencoder() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["Hello, who are you?", "I keep the lighthouse."]
    light = BiEncoder(embedded.biencoder_path(), device="cpu")
    full = SentenceTransformer(str(embedded.biencoder_path()), device="cpu")
    np.testing.assert_allclose(light.encode_context(texts), full.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(light.encode_response(texts), full.encode_document(texts), atol=1e-5)


def test_every_character_answers_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    first = PDPChatbot.from_character(embedded.character_names()[0], retriever="embedded", device="cpu")
    for name in embedded.character_names():
        bot = PDPChatbot(first.model, name, matcher=first.matcher, config=first.config)
        replies = bot.reply_batch(["Hello, who are you?", "What do you like to eat?"], seed=0)
        for reply in replies:
            # Words of letters, not byte soup; one word may do ("Onward!").
            letters = sum(letter.isalpha() or letter in " '" for letter in reply.text)
            assert letters >= 2 and letters > 0.7 * len(reply.text)
            assert json.loads(json.dumps(reply.evidence))["pairs"]
        assert bot.reply("Hello, who are you?", seed=0).text == replies[0].text


def test_a_first_reply_needs_no_network_and_no_slow_import(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dialogkit import PDPChatbot\n"
        f"bot = PDPChatbot.from_character({embedded.character_names()[0]!r})\n"
        "print(bot.reply('Hello, who are you?').text)\n"
        "slow = {'sentence_transformers', 'faiss', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(str(slow) if slow else 0)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ASSETS_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.strip()) > 3


def test_the_small_model_has_settings_of_its_own() -> None:
    retriever = HashRetriever()
    bot = PDPChatbot.from_character("captain", retriever=retriever)
    assert bot.config == embedded_config()
    assert (bot.config.max_dialogs, bot.config.generation.temperature) == (8, 0.7)
    assert PDPChatbot.from_character("captain", retriever=retriever, config=PDPConfig()).config == PDPConfig()
    other = PDPChatbot(bot.model, "captain", retriever=retriever)
    assert other.config == PDPConfig()
