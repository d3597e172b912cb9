"""``dialogkit g2r`` and ``dialogkit index`` from data to a chatbot that talks."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialogkit.cli import app
from dialogkit.g2r import CrossEncoderReranker, RetrievalChatbot, read_scored
from tests.dialogkit.g2r.test_chatbot import encoder_folder
from tests.dialogkit.g2r.test_reranking import cross_encoder_folder
from tests.dialogkit.tiny import tiny_causal_lm

WORDS = ("red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "violet", "cyan", "teal")


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, an encoder, and what each command makes of them."""
    root = tmp_path_factory.mktemp("g2r")
    rows = [{"context": ["so", f"say {word}"], "response": f"{word} it is"} for word in WORDS]
    (root / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "replies.txt").write_text("".join(f"{word} it is\n" for word in WORDS))
    lm = tiny_causal_lm(WORDS)
    lm.model.save_pretrained(root / "teacher")
    lm.tokenizer.save_pretrained(root / "teacher")
    encoder_folder(root / "encoder")
    return root


@pytest.fixture(scope="module")
def bot(folder: Path) -> Path:
    teacher, data = folder / "teacher", folder / "data.jsonl"
    written = run("g2r", "augment", data, "-t", teacher, "-o", folder / "written", "-n", 2, "--max-tokens", 6)
    assert written.exit_code == 0, written.output
    assert "original" in written.output
    scored = run("g2r", "score", folder / "written", "-t", teacher, "-o", folder / "scored")
    assert scored.exit_code == 0, scored.output
    assert "responses are scored" in scored.output
    options = ("--steps", 4, "--batch-size", 4, "--negatives", 8, "--valid", data, "--score", "mi")
    options += ("--data-name", "Colours", "--licence", "CC0-1.0")
    trained = run("g2r", "train", folder / "scored", "-e", folder / "encoder", "-o", folder / "bot", *options)
    assert trained.exit_code == 0, trained.output
    assert "flat) is saved" in trained.output
    return folder / "bot"


def test_a_trained_bot_is_evaluated(folder: Path, bot: Path) -> None:
    result = run("g2r", "evaluate", bot, folder / "data.jsonl", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert 0 <= found["hits@1/10"] <= 1
    assert found["latency"]["replies"] == len(WORDS)
    shown = run("g2r", "evaluate", bot, folder / "data.jsonl").output
    assert "hits@1/10" in shown
    assert "latency p95" in shown


def test_a_trained_bot_talks(bot: Path) -> None:
    result = run("chat", "--bot", bot, stdin="say red\n/why\n")
    assert result.exit_code == 0, result.output
    assert "Bot: " in result.output
    assert "response found" in result.output


def test_a_cross_encoder_has_the_last_word(bot: Path, tmp_path: Path) -> None:
    cross = cross_encoder_folder(tmp_path / "cross")
    result = run("chat", "--bot", bot, "--rerank", cross, stdin="say red\n")
    assert result.exit_code == 0, result.output
    loaded = RetrievalChatbot.from_pretrained(bot)
    loaded.reranker = CrossEncoderReranker.from_pretrained(str(cross))
    assert loaded.reply("say red").text in result.output
    for arguments in (("--character", "captain"), ("--bot", "lm:embedded")):
        refused = run("chat", *arguments, "--rerank", cross)
        assert refused.exit_code == 2
        assert "--rerank needs a --bot that retrieves" in refused.stderr


def test_the_card_of_a_trained_bot(bot: Path) -> None:
    card = (bot / "README.md").read_text()
    for words in ("Colours", "CC0-1.0", "hits@1/10", "4 steps", "8 random negatives"):
        assert words in card, words


def test_indexes(folder: Path) -> None:
    replies = folder / "replies.txt"
    student = "embedded"
    built = run("index", "build", replies, "-r", student, "-o", folder / "index", "--kind", "hnsw")
    assert built.exit_code == 0, built.output
    assert "12 responses" in built.output
    assert "recall@1 against exact search: 1.000" in built.output
    found = run("index", "search", folder / "index", "say red", "-r", student, "-k", 3, "--json")
    rows = json.loads(found.output)
    assert len(rows) == 3
    assert {row["response"] for row in rows} <= {f"{word} it is" for word in WORDS}
    assert rows[0]["score"] >= rows[1]["score"]
    assert rows[0]["response"] in run("index", "search", folder / "index", "say red", "-r", student).output
    recalled = run("index", "recall", folder / "index", replies, "-r", student)
    assert "recall@10" in recalled.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("g2r", "augment", "nowhere.jsonl", "-t", "embedded", "-o", "x"), "nowhere.jsonl"),
        (("g2r", "score", "nowhere", "-t", "embedded", "-o", "x"), "holds no settings.json"),
        (("index", "search", "nowhere", "hi", "-r", "embedded"), "nowhere"),
        (("index", "build", "nowhere.txt", "-r", "embedded", "-o", "x"), "nowhere.txt"),
        (("chat",), "either a --character or a saved --bot"),
        (("chat", "--bot", "a", "--character", "b"), "either a --character or a saved --bot"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_of_responses(tmp_path: Path) -> None:
    (tmp_path / "replies.txt").write_text("\n \n")
    result = run("index", "build", tmp_path / "replies.txt", "-r", "embedded", "-o", tmp_path / "index")
    assert result.exit_code == 2
    assert "holds no text" in result.stderr


def test_a_list_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "replies.txt").write_bytes(b"\xef\xbb\xbffine\nnot \xff fine\n")
    result = run("index", "build", tmp_path / "replies.txt", "-r", "embedded", "-o", tmp_path / "index")
    assert result.exit_code == 2
    assert "replies.txt, line 2: not UTF-8" in result.stderr


def test_an_index_larger_than_memory_lies_in_a_file_meanwhile(folder: Path, tmp_path: Path) -> None:
    where = ("-r", "embedded", "-o", tmp_path / "index", "--scratch", tmp_path / "vectors.npy")
    assert run("index", "build", folder / "replies.txt", *where).exit_code == 0
    assert (tmp_path / "vectors.npy").stat().st_size > 12 * 4
    assert (tmp_path / "index" / "responses.txt").read_text() == (folder / "replies.txt").read_text()


def test_a_teacher_behind_a_server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    from tests.dialogkit.test_endpoint import Server

    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        teacher = ("-t", "big", "--endpoint", server.url)
        written = run("g2r", "augment", folder / "data.jsonl", *teacher, "-o", tmp_path / "written", "-n", 2)
        assert written.exit_code == 0, written.output
        scored = run("g2r", "score", tmp_path / "written", *teacher, "-o", tmp_path / "scored")
        assert scored.exit_code == 0, scored.output
        server.echoes = False
        refused = run("g2r", "score", tmp_path / "written", *teacher, "-o", tmp_path / "again")
        server.shutdown()
    assert {body["model"] for _, body, _ in server.requests} == {"big"}
    rows = list(read_scored(tmp_path / "scored"))
    assert {row["response"] for row in rows if row["source"] == "generated"} <= {
        "Hello there, friend.",
        "Aye, the sea \N{WAVING HAND SIGN} calls.",
        "No.",
    }
    assert len(rows) > len(WORDS)
    assert refused.exit_code == 2
    assert "does not score given text" in refused.stderr
    assert "Traceback" not in refused.output
    nowhere = ("-t", "big", "--endpoint", "here", "-o", tmp_path / "x")
    assert "must begin with http://" in run("g2r", "augment", folder / "data.jsonl", *nowhere).stderr
