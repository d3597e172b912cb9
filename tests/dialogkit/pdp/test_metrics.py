"""P11: StyleProb and style accuracy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from dialogkit.pdp import classify_responses, style_accuracy, style_prob
from tests.dialogkit.tiny import byte_tokenizer


@given(st.integers(1, 20), st.integers(1, 10), st.data())
@settings(deadline=None)
def test_p11_style_prob_at_its_extremes(n: int, labels: int, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, labels - 1))
    one_hot = np.zeros((n, labels))
    one_hot[:, label] = 1
    assert style_prob(one_hot, label) == 1 and style_accuracy(one_hot, label) == 1
    assert style_prob(np.full((n, labels), 1 / labels), label) == pytest.approx(1 / labels)
    if labels > 1:
        assert style_prob(one_hot, (label + 1) % labels) == 0
        assert style_accuracy(one_hot, (label + 1) % labels) == 0


@given(st.integers(2, 30), st.integers(2, 6), st.integers(0, 10**6))
@settings(deadline=None)
def test_p11_the_mean_over_a_split_is_the_weighted_mean_of_its_parts(n: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, cut = rng.dirichlet(np.ones(labels), size=n), int(rng.integers(1, n))
    for measure in (style_prob, style_accuracy):
        parts = (cut * measure(table[:cut], 1) + (n - cut) * measure(table[cut:], 1)) / n
        assert measure(table, 1) == pytest.approx(parts)


def test_a_label_for_each_response() -> None:
    table = [[0.7, 0.3], [0.4, 0.6]]
    assert style_prob(table, [0, 1]) == pytest.approx(0.65)
    assert style_accuracy(table, [0, 0]) == 0.5


@pytest.mark.parametrize(
    ("table", "label"),
    [
        ([], 0),
        ([[0.5, 0.4]], 0),
        ([[1.5, -0.5]], 0),
        ([[float("nan"), 1.0]], 0),
        ([[0.5, 0.5]], 2),
        ([[0.5, 0.5]], -1),
        ([[0.5, 0.5]], [0, 1]),
        ([[0.5, 0.5]], [0.5]),
        ([0.5, 0.5], 0),
    ],
)
def test_bad_tables_and_labels_are_refused(table: list[list[float]], label: int) -> None:
    for measure in (style_prob, style_accuracy):
        with pytest.raises(ValueError, match=r"probabilities|label"):
            measure(table, label)


def test_classify_responses_is_the_softmax_whatever_the_batch() -> None:
    tokenizer = byte_tokenizer(pad=True)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).train()
    texts = ["Arr.", "I should like a cup of tea.", "Beep " * 60]
    table = classify_responses(model, tokenizer, texts, max_length=32)
    assert table.shape == (3, 3) and model.training
    np.testing.assert_allclose(table.sum(axis=1), 1)
    np.testing.assert_allclose(
        table, classify_responses(model, tokenizer, texts, max_length=32, batch_size=1), atol=1e-5
    )
    model.eval()
    batch = tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(table[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="empty"):
        classify_responses(model, tokenizer, [])
