import copy

import numpy as np
import pytest
import torch

from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import ADDMUDetector
from robustkit.detection.addmu import _dropping, data_uncertainty, model_uncertainty
from robustkit.detection.variants import softmax
from tests.robustkit.tiny import tiny_classifier, toy_sentiment, trained_bert

SMALL = {"copies": 8, "dropout_copies": 2, "passes": 3}


@pytest.fixture(scope="module")
def classifier():
    return TextClassifier(*tiny_classifier())


TEXTS, LABELS = toy_sentiment(30)


def test_hand_values():
    assert data_uncertainty(np.array([[0.25, 0.75], [0.75, 0.25]]), 1) == 0.5
    # One copy, two passes: norms 1 and 1, mean (1/2, 1/2).
    sure_of_either = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert model_uncertainty(sure_of_either) == pytest.approx(1 - np.sqrt(0.5), rel=1e-14)
    alike = np.array([[[0.6, 0.8], [0.6, 0.8]]])
    assert model_uncertainty(np.concatenate([sure_of_either, alike])) == pytest.approx(
        (1 - np.sqrt(0.5)) / 2, rel=1e-14
    )


def test_copies_mask_a_tenth_of_the_words(classifier):
    detector = ADDMUDetector(classifier)
    text = " ".join(f"word{i}" for i in range(50))
    copies = detector._masked(text)
    assert len(copies) == 100
    masked = np.array([[word == "[MASK]" for word in one.split()] for one in copies])
    # 5,000 draws of probability 0.1: four standard deviations are 0.017.
    assert abs(masked.mean() - 0.1) < 0.017
    kept = [[a == b for a, b in zip(one.split(), text.split(), strict=True)] for one in copies]
    np.testing.assert_array_equal(masked, ~np.array(kept))
    assert detector._masked(text) == copies
    assert detector._masked(text + " more")[:1] != [copies[0] + " more"]
    assert ADDMUDetector(classifier, random_state=1)._masked(text) != copies


def test_data_uncertainty_is_that_of_the_copies(classifier):
    detector = ADDMUDetector(classifier, **SMALL)
    inputs = classifier.extract(TEXTS[:4])
    found = detector.uncertainties(inputs)
    for text, predicted, (data, _) in zip(inputs.texts, inputs.predictions, found, strict=True):
        p = softmax(classifier.logits(detector._masked(text)))
        assert data == pytest.approx(1 - p[:, predicted].mean(), abs=1e-6)


def test_model_mode_rates_and_random_state_stay(classifier):
    model, tokenizer = tiny_classifier()
    model.train()
    model.classifier.eval()
    own = TextClassifier(model, tokenizer)
    modes = [module.training for module in model.modules()]
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    ADDMUDetector(own, **SMALL).uncertainties(own.extract(TEXTS[:2]))
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    assert [module.training for module in model.modules()] == modes
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == rates
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(KeyboardInterrupt), _dropping(model, 0.5):
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_at_work_at_the_given_rate(classifier):
    inputs = classifier.extract(TEXTS[:6])
    little, much = (
        ADDMUDetector(classifier, **SMALL, dropout=rate).uncertainties(inputs)[:, 1] for rate in (1e-6, 0.5)
    )
    assert (little < 1e-6).all()
    assert (much > 1e-4).all()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_scores_do_not_depend_on_other_texts_or_their_order(family):
    model, tokenizer = tiny_classifier(family)
    classifier = TextClassifier(model, tokenizer)
    inputs = classifier.extract(TEXTS[:10])
    detector = ADDMUDetector(classifier, **SMALL)
    whole = detector.uncertainties(inputs)
    rows = [8, 2, 2]
    np.testing.assert_allclose(detector.uncertainties(inputs[rows]), whole[rows], atol=1e-6)
    # Passes of one text are a batch of their own: no rounding at all.
    np.testing.assert_array_equal(detector.uncertainties(inputs[rows])[:, 1], whole[rows, 1])


def test_p_values_are_uniform_on_the_clean_null_behaviour_23():
    from scipy.stats import kstest

    classifier = TextClassifier(*trained_bert())
    texts, labels = toy_sentiment(240, seed=3)
    clean, new = classifier.extract(texts[:140]), classifier.extract(texts[140:])
    few = {"copies": 10, "dropout_copies": 1, "passes": 3}
    detector = ADDMUDetector(classifier, **few).fit(clean, labels[:140])
    p_values = detector.part_p_values(new)
    for column in p_values.T:
        assert kstest(column, "uniform").pvalue > 0.01
    np.testing.assert_allclose(detector.score_samples(new[:5]), -np.log(p_values[:5]).sum(axis=1), rtol=1e-9)
    # Were the reference masked more heavily, as in the released code, they would not be.
    heavily = ADDMUDetector(classifier, **few, rate=0.4).fit(clean, labels[:140])
    detector._reference = heavily._reference
    assert kstest(detector.part_p_values(new)[:, 0], "uniform").pvalue < 1e-4


def test_texts_without_words_and_pairs(classifier):
    detector = ADDMUDetector(classifier, **SMALL)
    inputs = classifier.extract(["", ("a good film", "a bad film"), " \n"])
    assert np.isfinite(detector.uncertainties(inputs)).all()
    assert detector._masked("") == [""] * 8


def test_without_a_padding_token_nothing_is_padded():
    model, tokenizer = tiny_classifier("gpt2")
    model.config.pad_token_id = None
    classifier = TextClassifier(model, tokenizer)
    inputs = classifier.extract(TEXTS[:3])
    assert np.isfinite(ADDMUDetector(classifier, **SMALL).uncertainties(inputs)).all()


def test_bad_input(classifier):
    with pytest.raises(ValueError, match="rate is 1"):
        ADDMUDetector(classifier, rate=1)
    with pytest.raises(ValueError, match="dropout_copies is 9"):
        ADDMUDetector(classifier, copies=8, dropout_copies=9)
    with pytest.raises(ValueError, match="passes is 0"):
        ADDMUDetector(classifier, passes=0)
    with pytest.raises(ValueError, match="reads texts"):
        ADDMUDetector(classifier).fit(Features.of([[1.0]], [0]), [0])
    with pytest.raises(ValueError, match="not fitted"):
        ADDMUDetector(classifier).part_p_values(classifier.extract(TEXTS[:1]))
    model, tokenizer = tiny_classifier()
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Dropout):
                setattr(module, name, torch.nn.Identity())
    with pytest.raises(ValueError, match="no dropout"):
        ADDMUDetector(TextClassifier(model, tokenizer))
