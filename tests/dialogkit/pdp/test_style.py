"""Judges of style."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from dialogkit.pdp import NgramStyleClassifier, StyleClassifier, classify_responses, style_prob
from dialogkit.pdp.style import _Balanced, _Row, split_lines
from tests.dialogkit.tiny import byte_tokenizer
from trainkit import FitConfig
from trainkit.hub import ArtefactError

LINES = {
    "pirate": ["Arr matey, ahoy", "Ahoy, me ship", "Arr, the sea", "Ahoy matey, rum"],
    "robot": ["Query received. Beep.", "Beep. Worry level high.", "Processing. Beep.", "Query failed. Beep."],
}
SHORT = FitConfig(epochs=15, batch_size=4, learning_rate=1e-2, cpu=True, progress=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    words = [word for lines in LINES.values() for line in lines for word in line.split()]
    tokenizer = byte_tokenizer(words, pad=True, model_max_length=32)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(encoder: Path) -> StyleClassifier:
    return StyleClassifier.train(LINES, encoder, held_out=0.25, training=SHORT)


def test_an_encoder_learns_two_voices(judge: StyleClassifier) -> None:
    assert judge.labels == ("pirate", "robot") and judge.held_out == 2
    found = judge.probabilities(["Arr, ahoy matey", "Beep. Query."])
    assert found.shape == (2, 2) and np.allclose(found.sum(axis=1), 1)
    assert found[0, 0] > 0.8 and found[1, 1] > 0.8
    assert judge.accuracy in (0.0, 0.5, 1.0)


def test_the_order_of_texts_and_their_repetition_change_nothing(judge: StyleClassifier) -> None:
    texts = ["Beep.", "Arr matey, the longest line of all", "Beep.", "Ahoy"]
    found = judge.probabilities(texts)
    one_by_one = [classify_responses(judge.model, judge.tokenizer, [text])[0] for text in texts]
    assert np.allclose(found, one_by_one, atol=1e-5)


def test_a_saved_judge_is_a_plain_transformers_folder(judge: StyleClassifier, tmp_path: Path) -> None:
    judge.save_pretrained(tmp_path / "judge")
    again = StyleClassifier.from_pretrained(tmp_path / "judge")
    assert (again.labels, again.accuracy, again.held_out) == (judge.labels, judge.accuracy, judge.held_out)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    expected = judge.probabilities(["Ahoy", "Beep."])
    assert np.allclose(again.probabilities(["Ahoy", "Beep."]), expected, atol=1e-6)
    assert np.allclose(classify_responses(plain, judge.tokenizer, ["Ahoy", "Beep."]), expected, atol=1e-5)
    assert plain.config.label2id == {"pirate": 0, "robot": 1}
    assert "accuracy" in (tmp_path / "judge" / "README.md").read_text()
    with pytest.raises(ArtefactError):
        StyleClassifier.from_pretrained(tmp_path)


def test_the_seed_decides_a_new_head(encoder: Path) -> None:
    one_step = FitConfig(max_steps=1, learning_rate=1e-6, cpu=True, progress=False)
    heads = [
        StyleClassifier.train(
            LINES, encoder, held_out=0, training=one_step, seed=seed
        ).model.classifier.weight
        for seed in (1, 1, 2)
    ]
    # The folder brings a head for two labels: one for three must be drawn.
    assert torch.equal(heads[0], heads[1]) and torch.allclose(heads[0], heads[2], atol=1e-4)
    three = {**LINES, "monk": ["Rain falls.", "The bell rests."]}
    heads = [
        StyleClassifier.train(
            three, encoder, held_out=0, training=one_step, seed=seed
        ).model.classifier.weight
        for seed in (1, 1, 2)
    ]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1]) and not torch.allclose(heads[0], heads[2], atol=1e-2)


def test_characters_weigh_alike_in_the_loss() -> None:
    tokenizer = byte_tokenizer(pad=True)
    objective = _Balanced(tokenizer, 1.0 / np.array([3, 1]))
    rows = [_Row("a", 0), _Row("b", 0), _Row("c", 0), _Row("d", 1)]
    batch = objective.collate(rows)

    class Fixed:
        logits = torch.tensor([[0.0, 0.0]] * 3 + [[2.0, 0.0]])

        def __call__(self, **inputs: torch.Tensor) -> "Fixed":
            assert set(inputs) == {"input_ids", "attention_mask"}
            return self

    loss = objective(Fixed(), batch)
    easy, hard = np.log(2), np.log(1 + np.exp(2))
    # Weights 0.5 for each of three lines and 1.5 for the one.
    assert float(loss.total) == pytest.approx(1.5 * easy + 1.5 * hard, rel=1e-5)
    assert float(loss.weight) == pytest.approx(3.0)


def test_ngrams_tell_voices_and_keep_the_order_of_labels() -> None:
    judge = NgramStyleClassifier({name: LINES[name] for name in ("robot", "pirate")})
    assert judge.labels == ("robot", "pirate")
    found = judge.probabilities(["Beep. Processing.", "Ahoy, the ship"])
    assert found[0, 0] > 0.6 and found[1, 1] > 0.6 and np.allclose(found.sum(axis=1), 1)
    assert style_prob(found, [0, 1]) > 0.6
    with pytest.raises(ValueError, match="texts must not be empty"):
        judge.probabilities([])


@given(st.integers(1, 30), st.floats(0, 0.99), st.integers(0, 3))
def test_a_split_keeps_every_line_once(count: int, share: float, seed: int) -> None:
    lines = {"a": [str(i) for i in range(count)], "b": ["x", "y"]}
    kept, out = split_lines(lines, share, seed=seed)
    assert sorted(kept["a"] + out["a"]) == sorted(lines["a"]) and kept["a"]
    assert len(out["a"]) == int(count * share)
    assert split_lines(lines, share, seed=seed) == (kept, out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"a": ["x"]}, "two characters or more, got 1"),
        ({"a": ["x"], "b": []}, "lines of 'b' must be a list of at least one"),
        ({"a": ["x"], "b": "y"}, "lines of 'b' must be a list of at least one"),
    ],
)
def test_too_few_lines_are_refused(lines: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NgramStyleClassifier(lines)


def test_what_cannot_be_trained_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"held_out must be in \[0, 1\)"):
        StyleClassifier.train(LINES, encoder, held_out=1.0)
    BertForSequenceClassification.from_pretrained(encoder).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no padding token"):
        StyleClassifier.train(LINES, tmp_path)
    one = BertForSequenceClassification(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=8, num_labels=1))  # fmt: skip
    with pytest.raises(ValueError, match="needs two labels or more"):
        StyleClassifier(one, byte_tokenizer())
