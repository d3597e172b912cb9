"""Suites: each attack sees what is left, the sum is at least as strong as each, doubts are raised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.attacks.gradient import (
    APGD,
    FGSM,
    L1,
    L2,
    PGD,
    AttackSuite,
    EmbeddedTexts,
    EmbeddingBall,
    LInf,
    Square,
    dlr,
    margin,
    strong_attack,
)
from robustkit.classifiers import TextClassifier
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says
from tests.robustkit.tiny import toy_sentiment, trained_bert


def case(n: int = 40) -> tuple[torch.nn.Sequential, Tensor, Tensor]:
    model, x = convolutions(), pixels(n)
    y = says(model, x)
    y[:4] = (y[:4] + 1) % 5  # four are misclassified from the start
    return model, x, y


MEMBERS = (("FGSM", FGSM(LInf(0.004))), ("PGD", PGD(LInf(0.006))), ("Square", Square(LInf(0.01), queries=50)))


def test_the_suite_is_at_least_as_strong_as_each_member() -> None:
    """adversarial_training_baselines.md section 10: WorstCase <= each member."""
    model, x, y = case()
    found = AttackSuite(MEMBERS).run(model, x, y)
    assert found.clean_accuracy == 0.9 and not found.robust[:4].any()
    for _, attack in MEMBERS:
        alone = attack.run(model, x, y).success
        assert found.robust_accuracy <= (~alone)[4:].sum().item() / 40
    assert found.robust_accuracy == found.robust.double().mean().item() == found.stages[-1].robust_accuracy
    assert 0 < found.robust_accuracy < 0.9


def test_each_attack_sees_only_what_is_left() -> None:
    model, x, y = case()
    found = AttackSuite(MEMBERS).run(model, x, y)
    left = 36
    for stage, (name, _) in zip(found.stages, MEMBERS, strict=True):
        assert stage.name == name and stage.attacked == left
        left -= stage.fooled
        assert stage.robust_accuracy == left / 40
        assert stage.seconds > 0
    assert found.stages[0].forwards == 36 * 2 and found.stages[0].backwards == 36
    assert found.stages[2].backwards == 0


def test_perturbed_inputs_fool_exactly_where_the_suite_says() -> None:
    model, x, y = case()
    found = AttackSuite(MEMBERS).run(model, x, y)
    assert torch.equal(says(model, found.perturbed) == y, found.robust)
    assert torch.equal(found.perturbed[:4], x[:4])
    assert torch.equal(AttackSuite(MEMBERS).perturb(model, x, y), found.perturbed)


def test_the_size_of_batches_changes_nothing_for_attacks_without_chance() -> None:
    model, x, y = case()
    attacks = (("FGSM", FGSM(LInf(0.004))), ("PGD", PGD(LInf(0.006), random_start=False)))
    large, small = (AttackSuite(attacks, batch_size=size).run(model, x, y) for size in (128, 7))
    assert torch.equal(large.robust, small.robust)
    torch.testing.assert_close(large.perturbed, small.perturbed, atol=1e-5, rtol=0)


def test_radii_of_samples_follow_them_into_their_batches() -> None:
    model, x, y = case()
    epsilon = torch.linspace(0, 0.02, 40)
    found = AttackSuite((("PGD", PGD(LInf(epsilon))),), batch_size=7).run(model, x, y)
    assert ((found.perturbed - x).abs().flatten(1).amax(1) <= epsilon + 1e-6).all()
    assert not found.robust.all() and found.robust[4]


def test_the_usual_members_follow_from_threat_and_classes() -> None:
    def members(threat: Any, classes: int) -> list[tuple[str, Any]]:
        return [(name, attack) for name, attack in strong_attack(threat, classes).attacks]

    ten = members(LInf(8 / 255), 10)
    assert [name for name, _ in ten] == ["APGD-CE", "APGD-T", "Square"]
    assert ten[0][1] == APGD(LInf(8 / 255), steps=100)
    assert ten[1][1].targets == 9 and ten[2][1].queries == 5000
    assert members(L2(0.5), 5)[1][1].targets == 4
    assert members(L2(0.5), 3)[1] == ("APGD-DLR", APGD(L2(0.5), loss=dlr))
    assert members(L2(0.5), 2)[1] == ("APGD-margin", APGD(L2(0.5), loss=margin))
    assert [name for name, _ in members(L1(12.0), 10)] == ["APGD-CE", "APGD-T"]


def test_the_usual_members_are_stronger_than_pgd() -> None:
    model, x, y = case()
    found = strong_attack(LInf(0.005), 5, steps=20, queries=40).run(model, x, y)
    pgd = PGD(LInf(0.005), steps=20).run(model, x, y)
    assert found.robust_accuracy <= (~pgd.success).double().mean().item()
    assert found.robust[~pgd.success].any() and found.doubts == ()


def test_texts_are_attacked_by_their_embeddings() -> None:
    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer)
    sentences, labels = toy_sentiment(12, seed=9)
    texts, gold = EmbeddedTexts(classifier, sentences), torch.tensor(labels)
    ball = EmbeddingBall(0.5).for_mask(texts.mask)
    attacks = (("FGSM", FGSM(ball)), ("PGD", PGD(ball)))
    found = AttackSuite(attacks, batch_size=5).run(texts, texts.embeddings, gold)
    assert found.clean_accuracy == 1 and found.robust_accuracy < 1
    assert torch.equal(texts(found.perturbed).argmax(1) == gold, found.robust)


# Doubts (adversarial_training_baselines.md section 8) -------------------------------------------------------


def doubts(model: Any, x: Tensor, y: Tensor, queries: int = 30) -> str:
    attacks = (("PGD", PGD(LInf(0.02), steps=2)), ("Square", Square(LInf(0.02), queries=queries)))
    return " / ".join(AttackSuite(attacks).run(model, x, y).doubts)


def test_an_honest_model_raises_no_doubts() -> None:
    model, x, y = case()
    assert AttackSuite((("PGD", PGD(LInf(0.02))),)).run(model, x, y).doubts == ()


def test_random_outputs_are_doubted() -> None:
    model, x, y = case()
    noisy = lambda inputs: model.eval()(inputs + 0.01 * torch.randn_like(inputs))  # noqa: E731
    assert "outputs are random" in doubts(noisy, x, y)


def test_probabilities_are_doubted() -> None:
    model, x, y = case()
    assert "probabilities instead of logits" in doubts(lambda inputs: model.eval()(inputs).softmax(1), x, y)


def test_gradients_of_zero_and_a_stronger_black_box_are_doubted() -> None:
    model, x, y = case()
    hidden = lambda inputs: model.eval()((inputs * 64).round() / 64 + 0 * inputs)  # noqa: E731
    found = doubts(hidden, x, y, queries=100)
    assert "gradients are zero for 100%" in found and "they may be hidden" in found


# Bad input --------------------------------------------------------------------------------------------------


def test_bad_suites_and_inputs_are_refused() -> None:
    model, x, y = case(4)
    with pytest.raises(ValueError, match="attacks is empty"):
        AttackSuite(())
    with pytest.raises(ValueError, match="PGD is targeted"):
        AttackSuite((("PGD", PGD(LInf(0.1), targeted=True)),))
    with pytest.raises(ValueError, match="batch_size is 0"):
        AttackSuite(MEMBERS, batch_size=0)
    with pytest.raises(ValueError, match="classes is 1"):
        strong_attack(LInf(0.1), 1)
    with pytest.raises(ValueError, match="without normalization"):
        AttackSuite(MEMBERS).run(model, x * 2, y)
    with pytest.raises(ValueError, match="the model has 5 classes"):
        AttackSuite(MEMBERS).run(model, x, y + 5)
