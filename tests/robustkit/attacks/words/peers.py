"""The real TextAttack beside our parts."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest

from robustkit.attacks import import_textattack
from robustkit.attacks.words import WordText

try:
    TA: Any = import_textattack()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


def pair(text: str | dict[str, str]) -> tuple[WordText, Any]:
    """Our text and TextAttack's."""
    return WordText(text), TA.shared.AttackedText(text if isinstance(text, str) else OrderedDict(text))


def same(ours: WordText, theirs: Any) -> None:
    """Assert that two texts read alike and have the same history."""
    assert ours.text == theirs.text
    assert list(ours.words) == theirs.words
    assert ours.modified == theirs.attack_attrs["modified_indices"]
    assert list(ours.newly_modified) == list(theirs.attack_attrs.get("newly_modified_indices", ()))
    assert list(ours.original_index_map) == theirs.attack_attrs["original_index_map"].tolist()
    for index in range(len(ours.words)):
        for size in (4, 15, math.inf):
            assert ours.window(index, size) == theirs.text_window_around_index(index, size)
