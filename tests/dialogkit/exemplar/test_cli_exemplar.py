"""``dialogkit exemplar`` from data to a chatbot that talks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialogkit.cli import app
from dialogkit.exemplar import ExemplarChatbot
from tests.dialogkit.exemplar.toys import WORDS, examples, lm
from tests.dialogkit.g2r.test_chatbot import encoder_folder


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a generator, an encoder, and a trained chatbot."""
    from dialogkit.retrieval import biencoder_from

    root = tmp_path_factory.mktemp("exemplar")
    rows = [{"context": list(row.context), "response": row.response} for row in examples(8)]
    (root / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "replies.txt").write_text("".join(f"{word} it is so\n" for word in WORDS))
    generator = lm(max_length=512)
    generator.model.save_pretrained(root / "generator")
    generator.tokenizer.save_pretrained(root / "generator")
    encoder = biencoder_from(encoder_folder(root / "plain"), normalize=True, max_context_tokens=60)
    encoder.save_pretrained(str(root / "encoder"), create_model_card=False)
    options = ("--steps", 2, "--batch-size", 4, "-k", 2, "--valid", root / "data.jsonl", "--chunk-size", 4)
    options += ("--responses", root / "replies.txt", "--on-filtered", "next", "--data-name", "Colours")
    options += ("--licence", "CC0-1.0")
    models = ("-m", root / "generator", "-r", root / "encoder", "-o", root / "out")
    trained = run("exemplar", "train", root / "data.jsonl", *models, *options)
    assert trained.exit_code == 0, trained.output
    assert "2 steps; the chatbot is saved in" in trained.output
    assert "gold" in trained.output
    return root


def test_what_training_leaves(folder: Path) -> None:
    assert {path.name for path in (folder / "out").iterdir()} == {"bot", "hits", "run"}
    bot = ExemplarChatbot.from_pretrained(folder / "out" / "bot")
    assert len(bot.index) == len(WORDS)
    assert bot.config.exemplars == 1
    card = (folder / "out" / "bot" / "README.md").read_text()
    for words in ("'corge'", "Colours", "CC0-1.0", "k = 2", "exemplar: gold"):
        assert words in card, words


def test_a_trained_bot_is_evaluated(folder: Path) -> None:
    result = run(
        "exemplar", "evaluate", folder / "out" / "bot", folder / "data.jsonl", "--json", "--limit", 4
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert all(
        found[f"perplexity, exemplar: {source}"] > 1 for source in ("none", "context", "gold", "random")
    )
    assert 0 <= found["exemplar BLEU-2"] <= 1
    assert 0 <= found["dist-2 (tokens)"] <= 1


def test_a_trained_bot_talks(folder: Path) -> None:
    bot = folder / "out" / "bot"
    result = run("exemplar", "chat", bot, "--seed", 1, stdin="tell me of red\n\n")
    assert result.exit_code == 0, result.output
    assert result.output.count("Bot: ") == 1
    assert "% copied): " in result.output
    none = run("exemplar", "chat", bot, "-k", 0, stdin="tell me of red\n")
    assert "% copied" not in none.output
    why = run("chat", "--bot", bot, stdin="tell me of red\n/why\n")
    assert "reply written with it" in why.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.jsonl", "-m", "embedded", "-r", "embedded", "-o", "x"), "nowhere.jsonl"),
        (
            ("train", "data.jsonl", "-m", "embedded", "-r", "embedded", "-o", "x", "-p", "corgi"),
            "did you mean 'corge'",
        ),
        (
            ("train", "d", "-m", "e", "-r", "e", "-o", "x", "-p", "rag", "--threshold", "0.5"),
            "this policy has no filter",
        ),
        (("chat", "nowhere"), "nowhere"),
        (("evaluate", "nowhere", "data.jsonl"), "nowhere"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("exemplar", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    data = tmp_path / "empty.jsonl"
    data.touch()
    result = run("exemplar", "train", data, "-m", "embedded", "-r", "embedded", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "empty.jsonl holds no examples" in result.output
    assert not (tmp_path / "out").exists()
