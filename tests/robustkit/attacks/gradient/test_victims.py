"""Texts as embeddings under attack: which tokens change, rows, several architectures."""

from __future__ import annotations

import pytest
import torch

from robustkit.attacks.gradient import APGD, FGSM, PGD, EmbeddedTexts, EmbeddingBall, LInf
from robustkit.classifiers import TextClassifier
from tests.robustkit.tiny import FAMILIES, tiny_classifier, toy_sentiment, trained_bert

TEXTS = ["a good film", "the plot is dull and the cast is weak .", "an unheardof music"]


def classifier(family: str = "bert") -> TextClassifier:
    return TextClassifier(*tiny_classifier(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_embeddings_give_the_texts_logits(family: str) -> None:
    """Including models that pad on the left and models whose positions depend on padding."""
    c = classifier(family)
    texts = EmbeddedTexts(c, TEXTS)
    found = texts(texts.embeddings)
    torch.testing.assert_close(found.detach(), torch.from_numpy(c.logits(TEXTS)), atol=1e-4, rtol=1e-4)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(texts(texts.embeddings[rows], rows), found[rows])
    torch.testing.assert_close(texts.take(rows)(texts.embeddings[rows]), found[rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_words_change_and_special_tokens_and_padding_do_not(family: str) -> None:
    c = classifier(family)
    texts = EmbeddedTexts(c, TEXTS)
    ids = c.encode(TEXTS)["input_ids"]
    words = [
        c.tokenizer.convert_ids_to_tokens(row[mask].tolist())
        for row, mask in zip(ids, texts.mask, strict=True)
    ]
    unknown = c.tokenizer.unk_token
    assert words == [
        ["a", "good", "film"],
        ["the", "plot", "is", "dull", "and", "the", "cast", "is", "weak", "."],
        [unknown, unknown, "music"],
    ]  # fmt: skip
    ball = EmbeddingBall(0.5).for_mask(texts.mask)
    found = PGD(ball, steps=2, early_stop=False).perturb(texts, texts.embeddings, torch.tensor([0, 1, 0]))
    changed = (found != texts.embeddings).any(dim=2)
    assert torch.equal(changed, texts.mask)


@pytest.mark.parametrize("per", ["token", "sentence"])
def test_attacks_fool_a_trained_classifier_within_the_ball(per: str) -> None:
    c = TextClassifier(*trained_bert())
    sentences, labels = toy_sentiment(16, seed=5)
    texts, gold = EmbeddedTexts(c, sentences), torch.tensor(labels)
    clean = texts(texts.embeddings).argmax(1)
    assert (clean == gold).all()
    modes = [module.training for module in c.model.modules()]
    ball = EmbeddingBall(0.4, per).for_mask(texts.mask)  # type: ignore[arg-type]
    successes = []
    for attack in (FGSM(ball), PGD(ball, steps=10), APGD(ball, steps=10)):
        found = attack.run(texts, texts.embeddings, gold)
        assert torch.equal(found.success, texts(found.perturbed).argmax(1) != gold)
        assert (ball.norm(found.perturbed - texts.embeddings) <= 0.4 + 1e-5).all()
        successes.append(int(found.success.sum()))
    assert successes[1] > 0 and successes[1] >= successes[0]
    assert [module.training for module in c.model.modules()] == modes
    assert all(weight.grad is None for weight in c.model.parameters())


def test_a_text_does_not_depend_on_the_others_of_its_batch() -> None:
    c = TextClassifier(*trained_bert())
    sentences, labels = toy_sentiment(6, seed=5)
    gold = torch.tensor(labels)

    def attacked(some: list[str], their: torch.Tensor) -> torch.Tensor:
        texts = EmbeddedTexts(c, some)
        ball = EmbeddingBall(0.2).for_mask(texts.mask)
        attack = PGD(ball, steps=4, random_start=False)
        return attack.perturb(texts, texts.embeddings, their)[0][texts.mask[0]]

    torch.testing.assert_close(
        attacked(sentences, gold), attacked(sentences[:1], gold[:1]), atol=1e-4, rtol=1e-3
    )


def test_a_text_classifier_alone_is_refused_with_a_hint() -> None:
    c = classifier()
    with pytest.raises(TypeError, match=r"EmbeddedTexts\(classifier, texts\)"):
        PGD(LInf(0.1)).perturb(c, torch.rand(2, 3), torch.tensor([0, 1]))  # type: ignore[arg-type]
