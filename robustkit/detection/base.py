"""What every detector of adversarial inputs has in common: checks, calibration, p-values, files.

A detector gives each input a score, higher for more suspicious, from the `Features` that one forward pass of
the classifier leaves behind. A subclass fills in `_fit` and `_score`, and `_state` and `_restore` where there
is something to keep.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustkit.classifiers.features import Features, Text
from trainkit.cards import ModelCard, collect_versions
from trainkit.hub import ArtefactError, HubMixin, read_json, write_json

from .metrics import threshold_from_clean

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["Detector", "Estimator", "as_rows", "logits_of", "not_fitted", "texts_of"]

_CONFIG = "config.json"
_TENSORS = "detector.safetensors"
_FITTED = "fitted."
_CLEAN_SCORES = "calibration.clean_scores"

# What a caller of from_pretrained adds to what the saved folder says.
_GIVEN: ContextVar[tuple[TextClassifier | None, Mapping[str, object]]] = ContextVar(
    "given", default=(None, {})
)


def not_fitted(message: str) -> Exception:
    """The error for use before `fit`: scikit-learn's ``NotFittedError``, or one with its bases without it.

    Both are a ``ValueError`` and an ``AttributeError``.
    """
    try:
        from sklearn.exceptions import NotFittedError
    except ModuleNotFoundError:
        return _NotFittedError(message)
    error: Exception = NotFittedError(message)
    return error


class _NotFittedError(ValueError, AttributeError):
    """Used before it was fitted."""


class Estimator:
    """Constructor arguments as parameters, in scikit-learn's manner, so that ``sklearn.base.clone`` works.

    A constructor stores every argument unchanged under its own name and ends with ``self._check_params()``.
    """

    def _check_params(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` if a parameter is out of range."""

    @classmethod
    def _param_names(cls) -> tuple[str, ...]:
        return tuple(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name.

        Args:
            deep: Accepted for scikit-learn's sake; parameters are never nested.
        """
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self, **params: object) -> Self:
        """Change parameters; what was fitted stays until the next `fit`.

        Args:
            **params: Constructor arguments by name.

        Raises:
            ValueError: There is no such parameter, or a value is out of range.
        """
        before = self.get_params()
        unknown = sorted(set(params) - set(before))
        if unknown:
            raise ValueError(f"{type(self).__name__} has no parameter {unknown[0]!r}; it has {list(before)}")
        vars(self).update(params)
        try:
            self._check_params()
        except (TypeError, ValueError):
            vars(self).update(before)
            raise
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = (f"{k}={v!r}" for k, v in self.get_params().items() if v is not defaults[k].default)
        return f"{type(self).__name__}({', '.join(changed)})"


class Detector(Estimator, HubMixin):
    """Scores inputs by how adversarial they look: fit, score, calibrate, predict, save.

    Args of a subclass are plain values that JSON can hold, except those named in ``not_saved``.

    Attributes:
        needs_adversarial: Whether `fit` needs adversarial examples.
        needs_fit: Whether `score_samples` needs `fit` first.
        extra_forwards: Forward passes per text beyond the classifier's own, for tables.
        not_saved: Names of constructor arguments, such as ``("classifier",)``, that are models and are given
            again when the detector is loaded.
        source_: `Features.source` of the features it was fitted on; empty for plain arrays.
        n_features_in_: Dimension d of these features.
        classes_: int64 array, the distinct gold labels, ascending.
        clean_scores_: float64 array, ascending: the scores that `calibrate` saw.
        threshold_: Scores above it are called adversarial.
        fpr_: The share of clean texts that `calibrate` let exceed the threshold.

    Example:
        >>> detector = RDEDetector().fit(train_features, train_labels)
        >>> detector.calibrate(validation_features, fpr=0.05)
        >>> detector.predict(classifier.extract(texts))
    """

    hub_kind = "Detector"
    needs_adversarial: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = True
    extra_forwards: ClassVar[str] = "0"
    not_saved: ClassVar[tuple[str, ...]] = ()

    source_: str
    n_features_in_: int
    classes_: NDArray[np.int64]
    clean_scores_: NDArray[np.float64]
    threshold_: float
    fpr_: float

    # What a subclass fills in -------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        """Learn from checked features (n >= 1, finite) and gold labels (n,)."""

    @abstractmethod
    def _score(self, inputs: Features) -> NDArray[np.float64]:
        """Scores (n,) of checked features (n >= 1, finite); higher is more adversarial."""

    def _state(self) -> dict[str, Any]:
        """What `_fit` learned: tensors are saved as safetensors, anything else as JSON."""
        return {}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `_state` returned; JSON has turned tuples into lists and keys into strings."""

    # What a user calls --------------------------------------------------------------------------------------

    def fit(self, clean: Features, labels: ArrayLike, adversarial: Features | None = None) -> Self:
        """Learn what clean inputs look like.

        An earlier calibration is forgotten.

        Args:
            clean: Features of n clean texts, best those that the classifier was trained on.
            labels: Gold labels of these texts, integers (n,).
            adversarial: Features of adversarial texts, for detectors with ``needs_adversarial``; the others
                do not look at them.

        Returns:
            The detector.

        Raises:
            TypeError: ``clean`` is no `Features`.
            ValueError: NaN or infinite features, no texts, labels of another length or kind, or adversarial
                features missing or from another classifier.
        """
        self._check_params()
        _check_features("clean", clean)
        labels = _check_labels(labels, len(clean))
        if self.needs_adversarial:
            if adversarial is None:
                raise ValueError(f"{type(self).__name__} learns from adversarial examples; pass adversarial=")
            _check_features("adversarial", adversarial)
            _check_same("adversarial", adversarial, clean.source, clean.values.shape[1])
        for name in ("clean_scores_", "threshold_", "fpr_"):
            vars(self).pop(name, None)
        self._fit(clean, labels, adversarial)
        self.source_ = clean.source
        self.n_features_in_ = clean.values.shape[1]
        self.classes_ = np.unique(labels)
        return self

    def score_samples(self, inputs: Features) -> NDArray[np.float64]:
        """How adversarial inputs look.

        Args:
            inputs: Features of n texts, from the classifier that the detector was fitted on.

        Returns:
            float64 (n,); higher is more adversarial. The scale is the detector's own.

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: ``inputs`` is no `Features`.
            ValueError: NaN or infinite features, or features of another classifier or dimension.
        """
        self._check_fitted()
        if isinstance(inputs, Features) and len(inputs) == 0:
            return np.empty(0)
        _check_features("inputs", inputs)
        if hasattr(self, "source_"):
            _check_same("inputs", inputs, self.source_, self.n_features_in_)
        return np.asarray(self._score(inputs), dtype=np.float64)

    def calibrate(self, clean: Features, fpr: float = 0.10) -> float:
        """Set the threshold from clean texts that were not used in `fit`.

        The threshold is that of `threshold_from_clean`: a new clean text is flagged with probability ``fpr``
        at most, and so is a text among the given ones.

        Args:
            clean: Features of held-out clean texts.
            fpr: Share of clean texts that may be flagged, between 0 and 1.

        Returns:
            The threshold.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: ``fpr`` is not between 0 and 1, or there are fewer than 1 / fpr - 1 texts.
        """
        return self._calibrate(clean, self.score_samples(clean), fpr)

    def _calibrate(self, clean: Features, scores: NDArray[np.float64], fpr: float) -> float:
        threshold = threshold_from_clean(scores, fpr)
        if not hasattr(self, "source_"):
            self.source_, self.n_features_in_ = clean.source, clean.values.shape[1]
        self.clean_scores_, self.fpr_, self.threshold_ = np.sort(scores), float(fpr), threshold
        return self.threshold_

    def p_values(self, inputs: Features) -> NDArray[np.float64]:
        """The share of clean texts that look at least as adversarial, the input itself counted.

        Args:
            inputs: Features of n texts.

        Returns:
            float64 (n,): (1 + number of calibration scores >= score) / (1 + number of calibration scores);
            uniform, up to ties, for clean texts, small for adversarial ones.

        Raises:
            NotFittedError: `calibrate` was not called.
        """
        self._check_calibrated()
        return self.p_values_of(self.score_samples(inputs))

    def p_values_of(self, scores: ArrayLike) -> NDArray[np.float64]:
        """`p_values` from scores (n,) that `score_samples` gave, at no further cost."""
        self._check_calibrated()
        below = np.searchsorted(self.clean_scores_, np.asarray(scores, dtype=np.float64), side="left")
        n = len(self.clean_scores_)
        return np.asarray((1 + n - below) / (1 + n), dtype=np.float64)

    def predict(self, inputs: Features) -> NDArray[np.bool_]:
        """Which inputs are adversarial: bool (n,), score above the threshold, that is p-value at most fpr.

        Raises:
            NotFittedError: `calibrate` was not called.
        """
        self._check_calibrated()
        return np.asarray(self.score_samples(inputs) > self.threshold_)

    def _check_fitted(self) -> None:
        if self.needs_fit and not hasattr(self, "source_"):
            raise not_fitted(f"this {type(self).__name__} is not fitted; call fit(features, labels) first")

    def _check_calibrated(self) -> None:
        self._check_fitted()
        if not hasattr(self, "threshold_"):
            raise not_fitted(
                f"this {type(self).__name__} has no threshold; call calibrate(features, fpr) first"
            )

    # Files --------------------------------------------------------------------------------------------------

    def _save(self, directory: Path) -> None:
        from safetensors.torch import save_file

        self._check_fitted()
        state = self._state()
        tensors = {
            f"{_FITTED}{name}": value.detach().cpu().contiguous()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        config: dict[str, Any] = {
            "class": type(self).__name__,
            "params": {k: v for k, v in self.get_params().items() if k not in self.not_saved},
            "fitted": {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)},
            "versions": collect_versions(),
        }
        if hasattr(self, "source_"):
            config["features"] = {
                "source": self.source_,
                "dimension": self.n_features_in_,
                "classes": self.classes_.tolist() if hasattr(self, "classes_") else None,
            }
        if hasattr(self, "threshold_"):
            config["calibration"] = {"threshold": self.threshold_, "fpr": self.fpr_}
            tensors[_CLEAN_SCORES] = torch.from_numpy(self.clean_scores_)
        save_file(tensors, directory / _TENSORS)
        write_json(directory / _CONFIG, config)

    def _card(self) -> ModelCard:
        lines = (inspect.getdoc(type(self)) or type(self).__name__).splitlines()
        params = {k: v for k, v in self.get_params().items() if k not in self.not_saved}
        summary = "Scores texts by how adversarial they look to one classifier; higher is more suspicious."
        if hasattr(self, "source_"):
            origin = f"fingerprint {self.source_}" if self.source_ else "origin not recorded"
            summary += f"\n\nFitted on {self.n_features_in_} features per text of a classifier ({origin})."
        if hasattr(self, "threshold_"):
            summary += (
                f"\n\nThreshold {self.threshold_:.6g}, for a false positive rate of {self.fpr_:g} on "
                f"{len(self.clean_scores_)} clean texts."
            )
        return ModelCard(
            title=f"{type(self).__name__} for one classifier",
            method=lines[0],
            summary=f"{summary}\n\nSettings: {params}",
            licence="not stated",
            seed=params.get("random_state"),
            limits=(
                "It serves only the classifier, layer and pooling that it was fitted on.",
                "It can be evaded by an attacker who knows of it.",
            ),
            task="text-classification",
            library="robustkit",
            languages=(),
            tags=("adversarial-detection",),
        )

    @classmethod
    def from_pretrained(
        cls,
        dir_or_repo: str | Path,
        classifier: TextClassifier | None = None,
        *,
        parts: Mapping[str, object] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Read a detector from a folder or from the Hub.

        ``Detector.from_pretrained`` reads any detector of this package, a subclass only its own kind.

        Args:
            dir_or_repo: A folder, which wins, or a Hub repository ``"owner/name"``.
            classifier: The classifier the detector will serve; refused if it is not the one whose features
                the detector was fitted on. Required by detectors that run the classifier.
            parts: Other models that the constructor takes, by argument name, such as ``{"lm": model}``.
            revision: Branch, tag or commit of the repository.
            token: Access token for a private repository.

        Returns:
            The detector, fitted and calibrated as it was saved.

        Raises:
            ArtefactError: The folder holds another kind of detector or is damaged.
            ValueError: The classifier is another one, or an argument that is not saved is missing.
            OSError: See `trainkit.resolve`.
        """
        given = _GIVEN.set((classifier, parts or {}))
        try:
            return super().from_pretrained(dir_or_repo, revision=revision, token=token)
        finally:
            _GIVEN.reset(given)

    @classmethod
    def _load(cls, directory: Path) -> Self:
        from safetensors.torch import load_file

        config = read_json(directory / _CONFIG)
        try:
            kind = cls._named(directory, config["class"])
            detector = kind(**config["params"], **kind._parts(directory))
            tensors = load_file(directory / _TENSORS)
            if "features" in config:
                detector.source_ = config["features"]["source"]
                detector.n_features_in_ = config["features"]["dimension"]
                if config["features"]["classes"] is not None:
                    detector.classes_ = np.array(config["features"]["classes"], dtype=np.int64)
            if "calibration" in config:
                detector.threshold_ = config["calibration"]["threshold"]
                detector.fpr_ = config["calibration"]["fpr"]
                detector.clean_scores_ = tensors.pop(_CLEAN_SCORES).numpy()
            fitted = {name.removeprefix(_FITTED): tensor for name, tensor in tensors.items()}
            detector._restore({**config["fitted"], **fitted})
        except (KeyError, TypeError) as error:
            raise ArtefactError(
                f"{directory / _CONFIG} was edited, or written by another version: {error!r}"
            ) from error
        classifier = _GIVEN.get()[0]
        if classifier is not None:
            detector.check_classifier(classifier)
        return detector

    @classmethod
    def _named(cls, directory: Path, name: str) -> type[Self]:
        if cls.__name__ == name:
            return cls
        room = import_module("robustkit.detection")
        found = getattr(room, name) if name in room.__all__ else None
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise ArtefactError(f"{directory} holds a {name}, not a {cls.__name__}")
        return found

    @classmethod
    def _parts(cls, directory: Path) -> dict[str, object]:
        classifier, parts = _GIVEN.get()
        given = {**parts, **({} if classifier is None else {"classifier": classifier})}
        arguments = inspect.signature(cls).parameters
        needed = [name for name in cls.not_saved if arguments[name].default is inspect.Parameter.empty]
        missing = [name for name in needed if name not in given]
        if missing:
            raise ValueError(f"the {cls.__name__} in {directory} was saved without its {missing[0]}; pass it")
        return {name: given[name] for name in cls.not_saved if name in given}

    def check_classifier(self, classifier: TextClassifier) -> None:
        """Refuse a classifier whose features this detector was not fitted on; one not fitted takes any.

        Raises:
            ValueError: Another classifier, layer, pooling or maximum length, or too few classes.
        """
        if getattr(self, "source_", "") and classifier.source != self.source_:
            raise ValueError(
                f"this {type(self).__name__} was fitted on features of another classifier, layer, pooling or "
                f"length (fingerprint {self.source_[:12]}, {classifier.name} gives {classifier.source[:12]})"
            )
        if hasattr(self, "classes_") and self.classes_[-1] >= classifier.num_labels:
            raise ValueError(
                f"this {type(self).__name__} knows the classes {self.classes_.tolist()}, "
                f"{classifier.name} has {classifier.num_labels}"
            )


# Checks -----------------------------------------------------------------------------------------------------


def as_rows(values: ArrayLike | torch.Tensor, name: str = "X") -> torch.Tensor:
    """A matrix from outside as a finite float32 or float64 tensor on its own device; no copy where possible.

    Args:
        values: Array or tensor (n, d).
        name: What error messages call it.

    Raises:
        ValueError: Not two-dimensional, without rows or columns, or with NaN or infinite values.
    """
    if isinstance(values, torch.Tensor):
        rows = values.detach()
    else:
        # Torch has no read-only tensors and warns of arrays that are.
        rows = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected n rows of d numbers, n and d >= 1")
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.to(torch.float32 if rows.is_floating_point() else torch.float64)
    # One sum is cheaper than a look at each number; only large numbers make it infinite without need.
    if not math.isfinite(rows.sum()) and (bad := ~torch.isfinite(rows).all(dim=1)).any():
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} holds NaN or infinite values")
    return rows


def texts_of(inputs: Features) -> tuple[Text, ...]:
    """The texts, or pairs of texts, of features, for detectors that read them.

    Raises:
        ValueError: The features carry no texts.
    """
    if inputs.texts is None:
        raise ValueError("this detector reads texts; give features that carry them (Features.of(texts=...))")
    return inputs.texts


def logits_of(inputs: Features) -> NDArray[np.float32]:
    """The logits (n, C) of features, for detectors that read them.

    Raises:
        ValueError: The features carry no logits.
    """
    if inputs.logits is None:
        raise ValueError(
            "this detector reads logits; give features that carry them (Features.of(logits=...))"
        )
    return inputs.logits


def _check_features(name: str, features: object) -> None:
    if not isinstance(features, Features):
        raise TypeError(
            f"{name} is a {type(features).__name__}; expected Features, from a classifier's extract "
            "or from Features.of(values, predictions)"
        )
    if len(features) == 0:
        raise ValueError(f"{name} holds no texts")
    if features.values.size:
        as_rows(features.values, name)


def _check_same(name: str, features: Features, source: str, dimension: int) -> None:
    if features.values.shape[1] != dimension:
        raise ValueError(
            f"{name} has {features.values.shape[1]} features per text, the detector was fitted on {dimension}"
        )
    if features.source and source and features.source != source:
        raise ValueError(
            f"{name} comes from another classifier, layer, pooling or length (fingerprint "
            f"{features.source[:12]}) than what the detector was fitted on ({source[:12]})"
        )


def _check_labels(labels: ArrayLike, n: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"labels has shape {array.shape}, expected ({n},): one label for each text")
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {array.dtype}")
    if (array < 0).any():
        raise ValueError(f"labels must be at least 0, got {array.min()}")
    return array.astype(np.int64)
