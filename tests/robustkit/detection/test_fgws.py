import math

import numpy as np
import pytest

from robustkit.attacks.words.resources import Neighbours, WordNet
from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import Detector, FGWSDetector
from tests.robustkit.tiny import SYNONYMS, tiny_classifier, toy_sentiment, trained_bert

TRAIN = ["good good good good film film film", "fine fine fine plot plot movie", "Good story."]
SYNSETS = {"superb": ["fine", "good", "unheard"], "movie": ["film"], "plot": ["story"], "good": ["fine"]}


def lexicon(table=SYNSETS, fingerprint="a"):
    return WordNet(lambda word: [table.get(word, ())], fingerprint=fingerprint)


@pytest.fixture(scope="module")
def classifier():
    return TextClassifier(*tiny_classifier(texts=[*TRAIN, "superb unheard fancy"]))


def fitted(classifier, **options):
    options = {"lexicon": lexicon(), "percentile": 50} | options
    return FGWSDetector(classifier, **options).fit(classifier.extract(TRAIN), [0, 1, 0])


def test_only_rarer_words_give_way_to_more_frequent_ones_behaviour_23(classifier):
    # Counts: good 5, film 3, fine 3, plot 2, movie 1, story 1; the median of the logarithms is that of 2.5.
    detector = fitted(classifier)
    assert detector.substituted("a superb movie , a good plot .") == "a good film , a good plot ."
    # plot is rare, but story is rarer; good is frequent, whatever its synonyms.
    assert detector.substituted("good plot") == "good plot"
    assert fitted(classifier, percentile=100).substituted("good fine") == "good fine"


def test_percentile_zero_takes_unknown_words_only(classifier):
    detector = fitted(classifier, percentile=0)
    assert detector.substituted("superb movie plot") == "good movie plot"


def test_ties_go_to_the_last_in_the_alphabet(classifier):
    detector = fitted(classifier, lexicon=lexicon({"dull": ["film", "fine"], "bright": ["fine", "film"]}))
    assert detector.substituted("dull bright") == "fine fine"


def test_capitals_and_everything_else_stay(classifier):
    detector = fitted(classifier)
    assert (
        detector.substituted("Superb!\n(SUPERB)  superb-ish superb's") == "Good!\n(GOOD)  superb-ish superb's"
    )
    assert detector.substituted(("superb", "Movie")) == ("good", "Film")


def test_neighbours_are_candidates_too(classifier):
    near = Neighbours({"fancy": ["unheard", "plot", "good"]})
    # Six words have 3 synonyms between them: one neighbour each.
    assert fitted(classifier, neighbours=near).substituted("fancy") == "fancy"
    assert fitted(classifier, neighbours=near, n_neighbours=2).substituted("fancy") == "plot"
    assert fitted(classifier, lexicon=None, neighbours=near, n_neighbours=3).substituted("fancy") == "good"


def test_score_is_the_drop_of_the_predictions_probability(classifier):
    detector = fitted(classifier)
    texts = ["a superb movie", "good film", "superb superb plot", "", "movie movie"]
    features = classifier.extract(texts)
    scores = detector.score_samples(features)
    for text, score, predicted in zip(texts, scores, features.predictions, strict=True):
        before, after = classifier.probabilities([text, detector.substituted(text)])[:, predicted]
        assert score == pytest.approx(max(0.0, before - after), abs=1e-6)
    assert (scores >= 0).all() and scores.max() > 0
    assert scores[1] == 0 and scores[3] == 0  # no rare word gives exactly 0


def test_no_rare_word_costs_no_forward_pass(classifier, monkeypatch):
    detector, features = fitted(classifier), classifier.extract(["good film", "fine good"])
    asked = []
    monkeypatch.setattr(classifier, "logits", lambda texts: asked.extend(texts) or np.zeros((len(texts), 2)))
    np.testing.assert_array_equal(detector.score_samples(features), [0, 0])
    assert not asked


def test_tune_takes_the_best_percentile():
    model = TextClassifier(*trained_bert())
    texts, labels = toy_sentiment(120, seed=5)
    words = {new: [old] for old, news in SYNONYMS.items() for new in news}
    detector = FGWSDetector(model, lexicon(words), percentile=10)
    detector.fit(model.extract(texts), labels)
    clean = model.extract(toy_sentiment(60, seed=6)[0])
    attacked = model.extract(
        [" ".join(SYNONYMS.get(word, (word,))[-1] for word in text.split()) for text in clean.texts]
    )
    best = detector.tune(clean, attacked)
    assert detector.percentile == best and not hasattr(detector, "threshold_")
    shares = {}
    for percentile in range(0, 101, 10):
        detector.set_params(percentile=percentile)
        detector.calibrate(clean)
        shares[percentile] = detector.predict(attacked).mean()
    assert shares[best] == max(shares.values())


def test_bad_input(classifier, tmp_path):
    with pytest.raises(ValueError, match="give a lexicon"):
        FGWSDetector(classifier)
    with pytest.raises(ValueError, match="percentile is 101"):
        FGWSDetector(classifier, lexicon(), percentile=101)
    with pytest.raises(ValueError, match="not fitted"):
        FGWSDetector(classifier, lexicon()).substituted("good")
    with pytest.raises(ValueError, match="no words"):
        FGWSDetector(classifier, lexicon()).fit(classifier.extract(["...", ""]), [0, 1])
    with pytest.raises(ValueError, match="reads texts"):
        FGWSDetector(classifier, lexicon()).fit(Features.of([[1.0]], [0]), [0])
    fitted(classifier).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="another lexicon"):
        Detector.from_pretrained(tmp_path / "saved", classifier, parts={"lexicon": lexicon(fingerprint="b")})


def test_rarity_is_that_of_the_logarithms(classifier):
    detector = fitted(classifier, percentile=50)
    assert detector._rare_below() == pytest.approx((math.log(3) + math.log(4)) / 2)
