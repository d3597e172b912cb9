import numpy as np
import pytest
import torch

from robustkit.classifiers import TextClassifier
from robustkit.detection import GradMaskDetector, SharpnessDetector
from tests.robustkit.tiny import tiny_classifier, toy_sentiment, trained_bert

TEXTS = [*toy_sentiment(12)[0], "good", "the film is bad"]


@pytest.fixture(scope="module")
def classifier():
    return TextClassifier(*trained_bert())


@pytest.mark.parametrize("share", [0.15, 1.0])
def test_gradmask_masks_the_tokens_with_the_largest_gradients(classifier, share):
    """An independent way: token by token, with the mask token's id in the model's input."""
    inputs = classifier.extract(TEXTS)
    scores = GradMaskDetector(classifier, share=share).score_samples(inputs)
    model, tokenizer = classifier.model, classifier.tokenizer
    gradients = classifier.token_gradients(TEXTS, inputs.predictions)
    for text, score, predicted, (tokens, _, gradient) in zip(
        TEXTS, scores, inputs.predictions, gradients, strict=True
    ):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        inner = [i for i, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
        norms = np.linalg.norm(gradient, axis=1)
        largest = sorted(inner, key=lambda i: -norms[i])[: int(np.ceil(share * len(inner)))]
        masked = ids.clone()
        masked[0, largest] = tokenizer.mask_token_id
        with torch.no_grad():
            before, after = (
                model(input_ids=i).logits.softmax(-1)[0, predicted].item() for i in (ids, masked)
            )
        assert score == pytest.approx(before - after, abs=1e-5)


def test_gradmask_of_an_empty_text_is_zero(classifier):
    assert GradMaskDetector(classifier).score_samples(classifier.extract([""]))[0] == 0


def test_sharpness_of_one_step_by_hand(classifier):
    inputs = classifier.extract(TEXTS[:3])
    scores = SharpnessDetector(classifier, radius=0.1, steps=1).score_samples(inputs)
    for text, score, predicted in zip(TEXTS, scores, inputs.predictions, strict=False):
        batch = classifier.encode([text])
        start = classifier.embeddings(batch["input_ids"])

        def loss(embedded, batch=batch, predicted=predicted):
            return -classifier.logits_from_embeddings(embedded, **batch).log_softmax(-1)[0, int(predicted)]

        moved = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(moved), moved)
        step = 0.1 * start.norm() * gradient / gradient.norm()
        with torch.no_grad():
            assert score == pytest.approx((loss(start + step) - loss(start)).item(), rel=1e-3, abs=1e-5)


def test_sharpness_grows_with_the_radius_and_stays_in_the_ball(classifier, monkeypatch):
    inputs = classifier.extract(TEXTS)
    small, large = (SharpnessDetector(classifier, r).score_samples(inputs) for r in (0.01, 0.1))
    assert (small > 0).all() and (small < large).all()
    seen = []
    logits = classifier.logits_from_embeddings

    def watched(embeddings, attention_mask, **rest):
        seen.append((embeddings.detach(), attention_mask, rest["input_ids"]))
        return logits(embeddings, attention_mask, **rest)

    monkeypatch.setattr(classifier, "logits_from_embeddings", watched)
    SharpnessDetector(classifier, 0.1, steps=4).score_samples(inputs)
    for embeddings, mask, ids in seen:
        start = classifier.embeddings(ids)
        moved = (embeddings - start).flatten(1).norm(dim=1)
        assert (moved <= 0.1 * (start * mask[:, :, None]).flatten(1).norm(dim=1) * (1 + 1e-5)).all()
        assert not (embeddings - start)[mask == 0].any()  # padding is left alone


def test_a_very_sure_prediction_still_has_a_slope():
    """In float32 its loss is 0 and so is the gradient."""
    model, tokenizer = tiny_classifier()
    with torch.no_grad():
        model.classifier.bias += torch.tensor([25.0, 0.0])
    classifier = TextClassifier(model, tokenizer)
    assert (SharpnessDetector(classifier).score_samples(classifier.extract(TEXTS[:4])) > 0).all()


@pytest.mark.parametrize("kind", [GradMaskDetector, SharpnessDetector])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "gpt2", "t5"])
def test_scores_do_not_depend_on_the_batch(kind, family):
    classifier = TextClassifier(*tiny_classifier(family))
    detector, inputs = kind(classifier), classifier.extract(TEXTS)
    whole = detector.score_samples(inputs)
    rows = [13, 5, 12, 5]
    # A token may change its rank by rounding, which these texts do not show.
    np.testing.assert_allclose(detector.score_samples(inputs[rows]), whole[rows], atol=2e-5)
    assert np.ptp(whole) > 0


@pytest.mark.parametrize("kind", [GradMaskDetector, SharpnessDetector])
def test_no_gradient_is_left_and_no_padding_token_is_needed(kind):
    model, tokenizer = tiny_classifier("gpt2")
    model.config.pad_token_id = None
    classifier = TextClassifier(model.train(), tokenizer)
    detector = kind(classifier)
    detector.calibrate(classifier.extract(TEXTS))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_bad_input(classifier):
    with pytest.raises(ValueError, match="share is 0"):
        GradMaskDetector(classifier, share=0)
    with pytest.raises(ValueError, match="radius is -1"):
        SharpnessDetector(classifier, radius=-1)
    with pytest.raises(ValueError, match="steps is 0"):
        SharpnessDetector(classifier, steps=0)
    other = TextClassifier(*tiny_classifier())
    with pytest.raises(ValueError, match="another classifier"):
        SharpnessDetector(classifier).score_samples(other.extract(TEXTS[:1]))
