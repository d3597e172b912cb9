"""What all detectors share, tested on one that measures the distance from the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from robustkit.classifiers.features import Features
from robustkit.detection import Detector, MLEDetector, RDEDetector, base
from robustkit.detection.base import as_rows, logits_of, texts_of
from trainkit.hub import ArtefactError, read_json, write_json


class FromMean(Detector):
    """Distance from the mean of clean features."""

    def __init__(self, power: float = 1.0, names: tuple[str, ...] | None = None) -> None:
        self.power = power
        self.names = names
        self._check_params()

    def _check_params(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power is {self.power}; expected a positive number")

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        self._mean = torch.from_numpy(clean.values.mean(axis=0))

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        return np.linalg.norm(inputs.values - self._mean.numpy(), axis=1) ** self.power

    def _state(self) -> dict[str, Any]:
        return {"mean": self._mean, "words": {"a": 1}}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._mean = state["mean"]
        assert state["words"] == {"a": 1}


class FirstNumber(FromMean):
    """The first feature, nothing to learn."""

    needs_fit = False

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        return inputs.values[:, 0].astype(np.float64)

    def _state(self) -> dict[str, Any]:
        return {}

    def _restore(self, state: Mapping[str, Any]) -> None: ...


class Supervised(FromMean):
    """Wants adversarial examples."""

    needs_adversarial = True


class Asking(FromMean):
    """Takes two models, which are not saved."""

    not_saved = ("classifier", "lm")

    def __init__(self, classifier: object, lm: object, power: float = 1.0) -> None:
        self.classifier = classifier
        self.lm = lm
        super().__init__(power)

    @classmethod
    def _param_names(cls) -> tuple[str, ...]:
        return ("classifier", "lm", "power")


@dataclass
class FakeClassifier:
    """What a detector asks of a classifier when it is loaded."""

    source: str
    num_labels: int = 2
    name: str = "fake"


def features(n: int = 50, d: int = 4, seed: int = 0, source: str = "model-a") -> Features:
    values = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return Features.of(values, np.arange(n) % 2, source=source)


def fitted(detector: Detector | None = None) -> Detector:
    return (detector or FromMean()).fit(features(), np.arange(50) % 2)


def column(values: list[float]) -> Features:
    return Features.of(np.array(values, dtype=np.float32)[:, None], np.zeros(len(values), dtype=np.int64))


# Calibration ------------------------------------------------------------------------------------------------


def test_threshold_and_p_values_by_hand() -> None:
    detector = FirstNumber()
    # k = floor(.25 * 8) = 2: the second largest of seven.
    assert detector.calibrate(column([3, 1, 7, 2, 6, 4, 5]), fpr=0.25) == 6
    assert detector.clean_scores_.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert detector.p_values(column([0, 6, 6.5, 7, 8])).tolist() == [1, 3 / 8, 2 / 8, 2 / 8, 1 / 8]
    assert detector.predict(column([0, 6, 6.5, 7, 8])).tolist() == [False, False, True, True, True]


@settings(deadline=None)
@given(
    clean=st.lists(st.integers(0, 30), min_size=10, max_size=200),
    fpr=st.sampled_from([0.1, 0.11, 0.29, 0.3, 0.5, 0.9]),
)
def test_behaviour_15_at_most_fpr_of_the_calibration_set_is_flagged(clean: list[float], fpr: float) -> None:
    detector, inputs = FirstNumber(), column(clean)
    detector.calibrate(inputs, fpr=fpr)
    assert detector.predict(inputs).mean() <= fpr
    news = column(list(range(-1, 32)))
    np.testing.assert_array_equal(detector.predict(news), detector.p_values(news) <= fpr + 1e-12)


def test_behaviour_15_fresh_clean_data() -> None:
    detector = fitted()
    detector.calibrate(features(2000, seed=1), fpr=0.1)
    rate = detector.predict(features(5000, seed=2)).mean()
    # Four standard deviations, of the threshold's and of the fresh texts' sampling.
    assert abs(rate - 0.1) < 4 * np.sqrt(0.09 / 2000 + 0.09 / 5000)


def test_calibration_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"8 clean scores cannot show .* of 0.1; give at least 9"):
        FirstNumber().calibrate(column([1.0] * 8), fpr=0.1)
    FirstNumber().calibrate(column([1.0] * 9), fpr=0.1)
    for fpr in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="fpr is"):
            FirstNumber().calibrate(column([1.0] * 9), fpr=fpr)


def test_fitting_again_forgets_the_calibration() -> None:
    detector = fitted()
    detector.calibrate(features(seed=1))
    assert hasattr(detector, "threshold_")
    fitted(detector)
    with pytest.raises(NotFittedError, match="has no threshold"):
        detector.predict(features())


# Checks -----------------------------------------------------------------------------------------------------


def test_behaviour_21_unfitted_use() -> None:
    for call in (FromMean().score_samples, FromMean().calibrate, FromMean().p_values, FromMean().predict):
        with pytest.raises(NotFittedError, match="FromMean is not fitted"):
            call(features())
    with pytest.raises(NotFittedError, match="call calibrate"):
        fitted().p_values(features())


def test_unfitted_error_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.exceptions", None)
    error = base.not_fitted("not yet")
    assert isinstance(error, ValueError) and isinstance(error, AttributeError)
    assert not isinstance(error, NotFittedError) and str(error) == "not yet"


def test_behaviour_21_bad_features() -> None:
    detector = fitted()
    spoilt = features()
    spoilt.values[3, 0] = np.nan
    with pytest.raises(ValueError, match="clean: row 3 holds NaN"):
        FromMean().fit(spoilt, np.zeros(50, dtype=int))
    with pytest.raises(ValueError, match="inputs: row 3 holds NaN"):
        detector.score_samples(spoilt)
    with pytest.raises(TypeError, match="inputs is a ndarray; expected Features"):
        detector.score_samples(features().values)
    with pytest.raises(ValueError, match="holds no texts"):
        FromMean().fit(features()[:0], [])
    assert detector.score_samples(features()[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 49, r"shape \(49,\), expected \(50,\)"),
        ([0.5] * 50, "must be integers, got float64"),
        ([-1] * 50, "at least 0, got -1"),
        (["positive"] * 50, "must be integers"),
    ],
)
def test_bad_labels(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FromMean().fit(features(), labels)


def test_features_of_another_classifier_are_refused() -> None:
    detector = fitted()
    with pytest.raises(ValueError, match="another classifier, layer, pooling or length"):
        detector.score_samples(features(source="model-b"))
    with pytest.raises(ValueError, match="has 5 features per text, the detector was fitted on 4"):
        detector.score_samples(features(d=5))
    # Plain arrays say nothing about where they come from.
    assert detector.score_samples(features(source="")).shape == (50,)


def test_a_detector_without_fit_learns_its_classifier_from_calibration() -> None:
    detector = FirstNumber()
    assert detector.score_samples(features(source="model-b")).shape == (50,)
    detector.calibrate(features())
    with pytest.raises(ValueError, match="another classifier"):
        detector.score_samples(features(source="model-b"))


def test_adversarial_examples_are_asked_for_and_checked() -> None:
    labels = np.zeros(50, dtype=int)
    with pytest.raises(ValueError, match="learns from adversarial examples"):
        Supervised().fit(features(), labels)
    with pytest.raises(ValueError, match="adversarial comes from another classifier"):
        Supervised().fit(features(), labels, features(source="model-b"))
    assert Supervised().fit(features(), labels, features(seed=1)).classes_.tolist() == [0]


def test_texts_and_logits() -> None:
    with pytest.raises(ValueError, match="reads texts"):
        texts_of(features())
    with pytest.raises(ValueError, match="reads logits"):
        logits_of(features())
    full = Features.of(np.zeros((1, 2)), logits=np.array([[0.0, 1.0]]), texts=["one"])
    assert list(texts_of(full)) == ["one"] and logits_of(full).shape == (1, 2)


def test_rows_from_outside() -> None:
    assert as_rows([[1, 2]]).dtype == torch.float64
    assert as_rows(np.ones((1, 2), dtype=np.float16)).dtype == torch.float32
    assert as_rows(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    frozen = np.ones((2, 2))
    frozen.flags.writeable = False
    assert as_rows(frozen[::-1]).tolist() == [[1, 1], [1, 1]]
    # The sum of these overflows nothing.
    assert as_rows(np.full((4, 4), 3e38, dtype=np.float32)).shape == (4, 4)


# Parameters -------------------------------------------------------------------------------------------------


def test_behaviour_21_parameters_and_clone() -> None:
    detector = FromMean(power=2.0)
    assert detector.get_params() == {"power": 2.0, "names": None}
    assert repr(detector) == "FromMean(power=2.0)"
    copy = clone(fitted(detector))
    assert copy.get_params() == detector.get_params() and not hasattr(copy, "source_")
    assert detector.set_params(power=3.0) is detector and detector.power == 3.0
    with pytest.raises(ValueError, match="no parameter 'strength'"):
        detector.set_params(strength=1)
    with pytest.raises(ValueError, match="power is 0"):
        detector.set_params(power=0)
    assert detector.power == 3.0


# Files ------------------------------------------------------------------------------------------------------


def test_behaviour_21_saved_and_loaded_scores_are_bit_equal(tmp_path: Path) -> None:
    detector = fitted(FromMean(power=1.5))
    detector.calibrate(features(seed=1), fpr=0.2)
    detector.save_pretrained(tmp_path / "d")
    again = FromMean.from_pretrained(tmp_path / "d")
    inputs = features(seed=3)
    np.testing.assert_array_equal(again.score_samples(inputs), detector.score_samples(inputs))
    np.testing.assert_array_equal(again.p_values(inputs), detector.p_values(inputs))
    assert again.threshold_ == detector.threshold_ and again.fpr_ == 0.2
    assert again.get_params() == detector.get_params()
    assert again.source_ == "model-a" and again.classes_.tolist() == [0, 1]
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert names == ["README.md", "config.json", "detector.safetensors", "trainkit.json"]
    card = (tmp_path / "d" / "README.md").read_text(encoding="utf-8")
    for part in ("Distance from the mean of clean features.", "model-a", "rate of 0.2 on 50", "'power': 1.5"):
        assert part.replace("_", "\\_") in card
    with pytest.raises(ValueError, match="another classifier"):
        again.score_samples(features(source="model-b"))


def test_an_unfitted_detector_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        FromMean().save_pretrained(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_a_detector_without_fit_is_saved(tmp_path: Path) -> None:
    FirstNumber().save_pretrained(tmp_path / "plain")
    assert not hasattr(FirstNumber.from_pretrained(tmp_path / "plain"), "source_")
    detector = FirstNumber()
    detector.calibrate(features())
    detector.save_pretrained(tmp_path / "calibrated")
    again = FirstNumber.from_pretrained(tmp_path / "calibrated", FakeClassifier("model-a"))
    assert again.threshold_ == detector.threshold_
    with pytest.raises(ValueError, match="another classifier"):
        again.predict(features(source="model-b"))


def test_another_classifier_is_refused_when_loading(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path / "d")
    FromMean.from_pretrained(tmp_path / "d", FakeClassifier("model-a"))
    with pytest.raises(ValueError, match=r"another classifier, .*fake gives model-b"):
        FromMean.from_pretrained(tmp_path / "d", FakeClassifier("model-b"))
    with pytest.raises(ValueError, match=r"knows the classes \[0, 1\], fake has 1"):
        FromMean.from_pretrained(tmp_path / "d", FakeClassifier("model-a", num_labels=1))


def test_models_in_the_constructor_are_given_again(tmp_path: Path) -> None:
    classifier, lm = FakeClassifier("model-a"), object()
    fitted(Asking(classifier, lm, power=2.0)).save_pretrained(tmp_path / "d")
    assert read_json(tmp_path / "d" / "config.json")["params"] == {"power": 2.0}
    again = Asking.from_pretrained(tmp_path / "d", classifier, parts={"lm": lm})
    assert again.classifier is classifier and again.lm is lm and again.power == 2.0
    with pytest.raises(ValueError, match="saved without its lm"):
        Asking.from_pretrained(tmp_path / "d", classifier)
    with pytest.raises(ValueError, match="saved without its classifier"):
        Asking.from_pretrained(tmp_path / "d", parts={"lm": lm})


def test_any_detector_of_the_package_loads_by_the_base_class(tmp_path: Path) -> None:
    fitted(MLEDetector()).save_pretrained(tmp_path / "mle")
    assert isinstance(Detector.from_pretrained(tmp_path / "mle"), MLEDetector)
    with pytest.raises(ArtefactError, match="holds a MLEDetector, not a RDEDetector"):
        RDEDetector.from_pretrained(tmp_path / "mle")
    fitted().save_pretrained(tmp_path / "own")
    with pytest.raises(ArtefactError, match="holds a FromMean, not a Detector"):
        Detector.from_pretrained(tmp_path / "own")


@pytest.mark.parametrize("name", ["import_module", "DetectionReport", "base", "__all__"])
def test_a_name_that_is_no_detector_is_refused(tmp_path: Path, name: str) -> None:
    fitted().save_pretrained(tmp_path / "d")
    config = read_json(tmp_path / "d" / "config.json")
    write_json(tmp_path / "d" / "config.json", {**config, "class": name})
    with pytest.raises(ArtefactError, match=f"holds a {name}"):
        Detector.from_pretrained(tmp_path / "d")


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path / "d")
    config = read_json(tmp_path / "d" / "config.json")
    write_json(tmp_path / "d" / "config.json", {**config, "params": {"strength": 1}})
    with pytest.raises(ArtefactError, match="was edited"):
        FromMean.from_pretrained(tmp_path / "d")
