"""Contradictions with a card."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from dialogkit.pdp import NLIJudge
from dialogkit.pdp.contradiction import contradiction
from tests.dialogkit.tiny import byte_tokenizer

LINES = (
    "I live in a barrel by the harbour.",
    "I never eat fish soup.",
    "I have six cats, and two of them are mine.",
    "Do you like dancing in the rain?",
)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (
            "I do not live in a barrel.",
            "'I do not live in a barrel.' denies 'I live in a barrel by the harbour.'",
        ),
        ("Oh yes, I eat fish soup!", "'I eat fish soup!' denies 'I never eat fish soup.'"),
        ("We don’t live in barrels, friend.", "denies 'I live in a barrel"),
        ("I have three cats.", "another number of 'cat'"),
        ("I have 4 cats.", "another number of 'cat'"),
        ("My name is Alfred Pellworth.", "introduces itself as Alfred Pellworth"),
        ("Call me Ishmael.", "introduces itself as Ishmael"),
        ("Hello! I am Captain Brask.", "introduces itself as Captain Brask"),
    ],
)
def test_what_words_betray_is_found(reply: str, why: str) -> None:
    found = contradiction(reply, LINES, name="Old Tom", other_names=("Captain Brask",))
    assert found is not None and why in found


@pytest.mark.parametrize(
    "reply",
    [
        "I live in a barrel.",
        "I never eat soup.",
        "I have six cats.",
        "Three cats sat on your roof.",  # neither about the speaker nor sharing a word
        "Do I not live in a barrel by the harbour?",  # a question
        "I do not like dancing in the rain.",  # what the card asks is no claim
        "My name is Tom.",
        "My name is on the door.",
        "I am English.",
        "I am not afraid.",
        "I sleep in a house.",  # said in other words: missed, as documented
        "",
    ],
)
def test_what_is_no_contradiction_in_words_is_let_pass(reply: str) -> None:
    assert contradiction(reply, LINES, name="Old Tom", other_names=("Captain Brask",)) is None


WORDS = ("I", "live", "never", "eat", "fish", "soup", "six", "cats", "barrel", "not", "very")


@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_a_clause_does_not_contradict_itself(words: list[str]) -> None:
    line = " ".join(words)
    assert contradiction(line, [line], name="Tom") is None


def nli(labels: dict[int, str]) -> NLIJudge:
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label=labels, label2id={name: i for i, name in labels.items()},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        model.classifier.weight.data.normal_(0, 2)
    return NLIJudge(model, byte_tokenizer(pad=True, model_max_length=64))


def test_inference_takes_the_label_by_its_name_and_keeps_the_order() -> None:
    judge = nli({0: "ENTAILMENT", 1: "neutral", 2: "Contradiction"})
    premises = ["I live in a barrel.", "Soup.", "I eat fish every single day of the year."]
    hypotheses = ["No.", "I hate soup more than anything.", "Yes."]
    found = judge.probabilities(premises, hypotheses, batch_size=2)
    batch = [judge.tokenizer(a, b, return_tensors="pt") for a, b in zip(premises, hypotheses, strict=True)]
    with torch.no_grad():
        expected = [judge.model(**one).logits.softmax(-1)[0, 2].item() for one in batch]
    assert np.allclose(found, expected, atol=1e-5) and len(set(expected)) == 3


def test_a_model_without_the_label_is_refused() -> None:
    with pytest.raises(ValueError, match="one label 'contradiction'"):
        nli({0: "positive", 1: "negative"})
