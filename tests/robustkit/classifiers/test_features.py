"""Features as arrays: checks, rows, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from robustkit.classifiers import Features
from trainkit.hub import ArtefactError

VALUES = np.arange(12, dtype=np.float64).reshape(4, 3)
LOGITS = np.array([[0.0, 1.0], [3.0, -1.0], [0.5, 0.25], [-2.0, -1.0]])


def features(**changes: Any) -> Features:
    given: dict[str, Any] = {"values": VALUES, "logits": LOGITS, "texts": ["a", "b", ("c", "d"), "é"]}
    return Features.of(**given | {"source": "abc"} | changes)


def test_predictions_are_the_classes_of_the_largest_logits() -> None:
    found = features()
    np.testing.assert_array_equal(found.predictions, [1, 0, 0, 1])
    assert found.predictions.dtype == np.int64 and found.values.dtype == np.float32
    assert len(found) == 4
    np.testing.assert_array_equal(features(predictions=[0, 0, 1, 1]).predictions, [0, 0, 1, 1])


def test_no_columns_are_fine_for_detectors_that_read_texts() -> None:
    found = Features.of(np.empty((2, 0)), [0, 1], texts=["a", "b"])
    assert found.values.shape == (2, 0) and found.logits is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"values": VALUES[0]}, r"values has shape \(3,\)"),
        ({"values": np.where(VALUES == 7, np.nan, VALUES)}, "values: row 2 holds NaN"),
        ({"values": np.where(VALUES == 7, np.inf, VALUES)}, "values: row 2 holds NaN or infinite"),
        ({"values": np.where(VALUES == 7, 1e300, VALUES)}, "values: row 2"),
        ({"logits": LOGITS[:3]}, r"logits has shape \(3, 2\); expected \(4, C\)"),
        ({"logits": np.where(LOGITS == 3, np.nan, LOGITS)}, "logits: row 1"),
        ({"predictions": [0, 1]}, r"predictions has shape \(2,\)"),
        ({"predictions": [0.0, 1.0, 0.0, 1.0]}, "predictions must be integers"),
        ({"logits": None}, "give predictions"),
        ({"texts": ["a"]}, "1 texts for 4 rows"),
    ],
)
def test_what_does_not_fit_raises(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        features(**changes)


def test_one_str_is_no_sequence_of_texts() -> None:
    with pytest.raises(TypeError, match="one str"):
        features(texts="abcd")


@given(st.lists(st.integers(-4, 3), max_size=6))
def test_rows_by_number(rows: list[int]) -> None:
    found = features()[rows]
    np.testing.assert_array_equal(found.values, VALUES[rows].reshape(-1, 3))
    assert found.logits is not None and found.texts is not None and found.source == "abc"
    np.testing.assert_array_equal(found.logits, LOGITS[rows].astype(np.float32).reshape(-1, 2))
    assert found.texts == tuple(features().texts[row] for row in rows)  # type: ignore[index]
    assert len(found.predictions) == len(rows)


def test_rows_by_mask_and_slice() -> None:
    mask = np.array([True, False, False, True])
    assert features()[mask].texts == ("a", "é")
    assert features()[1:3].texts == ("b", ("c", "d"))
    assert len(features()[:0]) == 0
    assert features(texts=None)[mask].texts is None


@pytest.mark.parametrize("index", [1, np.int64(2), [[0], [1]], None])
def test_other_indices_raise(index: Any) -> None:
    with pytest.raises(TypeError, match="slice or a list"):
        features()[index]


def test_a_mask_of_another_length_or_a_row_out_of_range_raises() -> None:
    with pytest.raises(IndexError):
        features()[np.array([True, False])]
    with pytest.raises(IndexError):
        features()[[4]]


@pytest.mark.parametrize("changes", [{}, {"texts": None}, {"logits": None, "predictions": [0, 1, 1, 0]}])
def test_saved_features_come_back_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    features(**changes).save(path)
    found, want = Features.load(path), features(**changes)
    np.testing.assert_array_equal(found.values, want.values)
    np.testing.assert_array_equal(found.predictions, want.predictions)
    assert (found.logits is None) == (want.logits is None)
    if found.logits is not None:
        np.testing.assert_array_equal(found.logits, want.logits)
    assert found.texts == want.texts and found.source == want.source
    assert [file.name for file in tmp_path.iterdir()] == ["features.safetensors"]


def test_rows_of_a_slice_can_be_saved(tmp_path: Path) -> None:
    features()[::2].save(tmp_path / "f")
    np.testing.assert_array_equal(Features.load(tmp_path / "f").values, VALUES[::2])


def test_odd_texts_survive_a_file(tmp_path: Path) -> None:
    texts = ["\ud83d", "", "\x00\n", "😀"]
    features(texts=texts).save(tmp_path / "f")
    assert Features.load(tmp_path / "f").texts == tuple(texts)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Features.load(tmp_path / "missing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ArtefactError, match="no safetensors file"):
        Features.load(tmp_path / "text")
    save_file({"values": VALUES}, tmp_path / "other")
    with pytest.raises(ArtefactError, match="holds no features"):
        Features.load(tmp_path / "other")
    features().save(tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-10])
    with pytest.raises(ArtefactError, match="damaged"):
        Features.load(tmp_path / "cut")
