"""The measures of the study of token maps, on texts, words and numbers written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.interpret import IntegratedGradients, explain
from robustkit.interpret.tokens import Word
from scripts.interpret_study.token_maps import (
    CAPTUM,
    FRACTIONS,
    OURS,
    Explained,
    agreement,
    captum_maps,
    deletion_areas,
    interval,
    measured,
    opinion_words,
    tables,
    without,
)
from tests.robustkit.interpret.test_texts import classifier
from trainkit.datafiles import data_file

TEXT = "a fine , awful film"
WORDS = tuple(
    Word(word, (), start=start)
    for word, start in (("a", 0), ("fine", 2), (",", 7), ("awful", 9), ("film", 15))
)


def explained(*scores: float, target: int = 1) -> Explained:
    return Explained(scores, WORDS, target)


def test_words_are_taken_out_of_the_text_itself() -> None:
    assert without(TEXT, WORDS, [False] * 5) == TEXT
    assert without(TEXT, WORDS, [False, True, False, True, False]).split() == ["a", ",", "film"]
    assert without(f"  {TEXT}!", [Word("fine", (), start=4)], [True]) == "  a  , awful film!"


def test_areas_of_deletion_by_hand() -> None:
    def probabilities(texts: Sequence[str]) -> NDArray[np.float32]:
        sure = np.array([0.5 + 0.4 * ("fine" in text) for text in texts], dtype=np.float32)
        return np.stack([1 - sure, sure], axis=1)

    own = explained(0.1, 0.9, 0.2, -0.5, 0.3)
    most, curves = deletion_areas(probabilities, [TEXT], [own], first="most")
    # Five words: a tenth is none of them (0.5 rounds to 0), from a fifth on "fine" is gone.
    assert curves[0].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert most[0] == pytest.approx(0.1 * 0.9 + 0.1 * 0.7 + 0.8 * 0.5)
    least, curves = deletion_areas(probabilities, [TEXT], [own], first="least")
    assert curves[0].tolist() == pytest.approx([0.9] * (len(FRACTIONS) - 1) + [0.5])
    assert least[0] == pytest.approx(0.7 * 0.9 + 0.3 * 0.7)
    other, _ = deletion_areas(probabilities, [TEXT], [explained(*own.scores, target=0)], first="most")
    assert other[0] == pytest.approx(1 - most[0])  # the explained class's probability


def test_agreement_with_a_lexicon_by_hand() -> None:
    lexicon = {"fine": 1, "awful": -1}
    found = agreement(explained(0.1, 0.9, 0.2, -0.5, 0.6), lexicon, signed=True)
    # "fine" is larger than all three other words, "awful" than two of them.
    assert found == {"auc": pytest.approx(5 / 6), "first": 1.0, "sign": 1.0}
    found = agreement(explained(0.1, 0.9, 0.2, -0.5, 0.6, target=0), lexicon, signed=True)
    assert found["sign"] == 0.0
    tied = agreement(explained(1.0, 1.0, 1.0, 1.0, 1.0), lexicon, signed=True)
    assert tied == {"auc": 0.5, "first": pytest.approx(0.4), "sign": 0.5}
    assert math.isnan(agreement(explained(*[1.0] * 5), lexicon, signed=False)["sign"])
    assert all(math.isnan(value) for value in agreement(explained(*[1.0] * 5), {}, signed=True).values())


def test_intervals_are_over_texts_not_classifiers() -> None:
    alike = np.tile(np.array([0.0, 1.0, math.nan, 1.0]), (2, 1))
    once, twice = interval(alike[:1]), interval(alike)
    assert once == twice and once["mean"] == pytest.approx(2 / 3)
    assert once["low"] == 0.0 and once["high"] == 1.0
    assert interval(np.full((2, 3), math.nan)) == {"mean": None, "low": None, "high": None}


def test_the_lexicon_is_read_without_its_header_and_without_words_in_both_lists() -> None:
    try:
        data_file("lexicon/nltk/opinion_lexicon.zip")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found = opinion_words()
    assert len(found) == 2006 + 4783 - 2 * 3
    assert found["superb"] == 1 and found["dull"] == -1 and "envious" not in found
    assert not any(word.startswith(";") for word in found)


def test_our_maps_are_captums_and_a_whole_study_gives_tables(tmp_path: Path) -> None:
    pytest.importorskip("captum.attr")
    model = classifier("bert")
    texts = ["the film is great .", "a boring plot and a bad , bad ending !"]
    ours = explain(model, texts, IntegratedGradients(baseline="pad", steps=8))
    theirs = captum_maps(model, texts, ours, 8)
    assert torch.allclose(ours.values, theirs.values, atol=1e-5 * float(ours.values.abs().max()))
    page = tmp_path / "page.html"
    with pytest.warns(UserWarning, match="RectGrad-gated"):
        found = measured(model, [(text, 1) for text in texts], 4, {"great": 1, "bad": -1}, page)
    methods = found["methods"]
    assert found["off_captum"] < 1e-4 and found["lexicon_words"] == 1.5 and page.is_file()
    assert methods[OURS]["most"] == pytest.approx(methods[CAPTUM]["most"], abs=1e-5)
    assert all(len(own["least"]) == 2 for own in methods.values())
    rows = tables({"one": found, "two": found}).splitlines()
    for name in methods:
        assert sum(row.startswith(f"| {name} |") for row in rows) == 2
