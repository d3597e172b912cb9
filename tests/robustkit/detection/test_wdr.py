import numpy as np
import pytest

from robustkit.classifiers import TextClassifier
from robustkit.detection import WDRDetector
from robustkit.detection.wdr import _Trees, wdr_vector
from tests.robustkit.tiny import tiny_classifier, toy_sentiment


@pytest.fixture(scope="module")
def classifier():
    return TextClassifier(*tiny_classifier(labels=3))


TEXTS, LABELS = toy_sentiment(40)


def attacked(texts):
    return [" ".join(reversed(text.split())) for text in texts]


def test_vector_by_hand_behaviour_23():
    logits = np.array([1.0, 3.0, 0.0])
    without = np.array([[0.0, 4.0, 1.0], [2.0, 0.0, 1.0], [0.0, 1.0, 5.0]])
    # Predicted class 1: saliencies -1, 3, 2; reactions 4 - 1, 0 - 2, 1 - 5.
    np.testing.assert_array_equal(wdr_vector(logits, without, 5), [-2, -4, 3, 0, 0])
    np.testing.assert_array_equal(wdr_vector(logits, without[:0], 2), [0, 0])


def test_vectors_ask_for_each_word(classifier):
    """Sorted by saliency, padded with zeros, of fixed length (behaviour 23)."""
    detector = WDRDetector(classifier, max_words=12)
    texts = ["the film is good", "", " a   bad plot, with  music ", " ".join(["good"] * 30)]
    vectors = detector.vectors(classifier.extract(texts))
    assert vectors.shape == (4, 12)
    for text, vector in zip(texts, vectors, strict=True):
        words = text.split()[:12]
        whole = classifier.logits([text])[0].astype(float)
        predicted = whole.argmax()
        found = []
        for i in range(len(words)):
            copy = " ".join([*text.split()[:i], "[UNK]", *text.split()[i + 1 :]])
            without = classifier.logits([copy])[0].astype(float)
            reaction = without[predicted] - max(np.delete(without, predicted))
            found.append((whole[predicted] - without[predicted], reaction))
        expected = [reaction for _, reaction in sorted(found, key=lambda pair: -pair[0])]
        np.testing.assert_allclose(vector[: len(words)], expected, atol=1e-5)
        assert not vector[len(words) :].any()


def test_unknown_token_is_the_tokenizers():
    roberta = TextClassifier(*tiny_classifier("roberta"))
    assert WDRDetector(roberta)._without_each_word("good film") == ["<unk> film", "good <unk>"]
    assert WDRDetector(roberta, mask="[UNK]")._without_each_word("good")[0] == "[UNK]"


def test_trees_equal_scikit_learn():
    from sklearn.ensemble import GradientBoostingClassifier

    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 9))
    y = (x[:, 0] * x[:, 1] + 0.3 * generator.normal(size=300) > 0.3).astype(int)
    model = GradientBoostingClassifier(n_estimators=13, max_depth=4, learning_rate=0.3, random_state=0)
    model.fit(x, y)
    new = generator.normal(size=(500, 9))
    np.testing.assert_allclose(_Trees.of(model).log_odds(new), model.decision_function(new), atol=1e-12)


def test_learns_and_is_deterministic(classifier):
    clean, adversarial = classifier.extract(TEXTS), classifier.extract(attacked(TEXTS))
    detector = WDRDetector(classifier, n_trees=10).fit(clean, LABELS, adversarial)
    scores = detector.score_samples(adversarial)
    assert scores.mean() > detector.score_samples(clean).mean()
    again = WDRDetector(classifier, n_trees=10).fit(clean, LABELS, adversarial)
    np.testing.assert_array_equal(again.score_samples(adversarial), scores)


def test_scores_do_not_depend_on_the_batch(classifier):
    clean, adversarial = classifier.extract(TEXTS), classifier.extract(attacked(TEXTS))
    detector = WDRDetector(classifier, n_trees=5)
    whole = detector.vectors(clean)
    np.testing.assert_allclose(detector.vectors(clean[[7, 3]]), whole[[7, 3]], atol=1e-5)
    detector.fit(clean, LABELS, adversarial)
    few = WDRDetector(classifier, n_trees=5, max_samples=10).fit(clean, LABELS, adversarial)
    assert few.score_samples(clean).shape == (40,)


def test_bad_input(classifier):
    clean = classifier.extract(TEXTS[:4])
    with pytest.raises(ValueError, match="pass adversarial="):
        WDRDetector(classifier).fit(clean, LABELS[:4])
    with pytest.raises(ValueError, match="max_words is 0"):
        WDRDetector(classifier, max_words=0)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        WDRDetector(classifier, learning_rate=0)
    other = TextClassifier(*tiny_classifier(labels=3, seed=1))
    with pytest.raises(ValueError, match="another classifier"):
        WDRDetector(other).fit(clean, LABELS[:4], clean)
