"""``dialogkit dress train`` from data to a model that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialogkit.cli import app
from dialogkit.diversity import SemanticClusters
from dialogkit.generation import GenerationConfig, TransformersLM
from tests.dialogkit.tiny import tiny_causal_lm

WORDS = ("red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "violet", "cyan", "teal")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dress")
    rows = [{"context": ["so", f"say {word}"], "response": f"{word} it is"} for word in WORDS]
    (root / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lm = tiny_causal_lm(WORDS)
    lm.model.save_pretrained(root / "lm")
    lm.tokenizer.save_pretrained(root / "lm")
    return root


def test_train_saves_a_plain_model_and_goes_on_where_it_was(folder: Path) -> None:
    options = ["-k", 3, "--contexts", 6, "--batch-size", 6, "--valid", folder / "data.jsonl"]
    start = ("dress", "train", folder / "data.jsonl", "-m", folder / "lm", "-o", folder / "out")
    done = run(*start, *options, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "2 steps; the model is saved in" in done.output
    clusters = SemanticClusters.from_pretrained(folder / "out" / "clusters")
    assert clusters.k == 3
    for share in clusters.train_histogram:
        assert f"{share:.3f}" in done.output
        assert f"{(1 - share) ** 30:.4f}" in done.output
    lm = TransformersLM.from_pretrained(folder / "out" / "model")
    assert lm.generate(["Bot:"], config=GenerationConfig(num_candidates=1, max_new_tokens=3), seed=0)
    again = run(*start, *options, "--epochs", 2)
    assert again.exit_code == 0, again.output
    assert "4 steps" in again.output


def test_another_encoder_is_refused_where_clusters_are_saved(folder: Path) -> None:
    """Else weights would belong to other clusters than those of the checkpoint."""
    test_out = folder / "other"
    start = ("dress", "train", folder / "data.jsonl", "-m", folder / "lm", "-o", test_out, "--epochs", 1)
    assert run(*start, "-k", 2, "--negative", "none").exit_code == 0
    other = tiny_causal_lm(WORDS, seed=1)
    other.model.save_pretrained(folder / "lm2")
    other.tokenizer.save_pretrained(folder / "lm2")
    refused = run(*start, "-e", f"lm:{folder / 'lm2'}")
    assert refused.exit_code == 2
    assert "fitted with another encoder" in refused.output


def test_missing_data_is_one_line(folder: Path) -> None:
    result = run("dress", "train", folder / "none.jsonl", "-m", folder / "lm", "-o", folder / "x")
    assert result.exit_code == 2
    assert "no such dialogue file" in result.output
    assert not (folder / "x").exists()
