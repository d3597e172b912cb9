"""The three data sets of the study, each cut into training, validation and test texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType

from trainkit.datafiles import data_file, read_jsonl

__all__ = ["DATA", "Row", "StudyData", "load_data"]

Row = tuple[str, int]


@dataclass(frozen=True)
class StudyData:
    """A classification set and its parts.

    Attributes:
        name: Short name.
        labels: Names of the classes; a label is a position in them.
        max_length: Tokens that a victim reads.
        epochs: Passes over the training texts that a victim takes at most.
        train, validation, test: Pairs (text, label); no text stands in two parts.
    """

    name: str
    labels: tuple[str, ...]
    max_length: int
    epochs: int
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def load_data(name: str) -> StudyData:
    """One data set of the study by name, a key of `DATA`.

    Raises:
        ValueError: There is no such set.
        FileNotFoundError: Its files are missing.
    """
    if name not in DATA:
        raise ValueError(f"data must be one of {', '.join(DATA)}, got {name!r}")
    return DATA[name]()


def _rows(path: Path) -> list[Row]:
    return [(row["text"], int(row["label"])) for row in read_jsonl(path)]


def _without(rows: Iterable[Row], *others: Iterable[Row]) -> list[Row]:
    """The rows whose text is new: not in the others, and not before among themselves."""
    seen = {text for other in others for text, _ in other}
    return [row for row in rows if not (row[0] in seen or seen.add(row[0]))]  # type: ignore[func-returns-value]


def _shuffled(rows: Iterable[Row], seed: int = 0) -> list[Row]:
    order = sorted(rows)
    Random(seed).shuffle(order)
    return order


def _sst2() -> StudyData:
    test = _without(_rows(data_file("text/sst2_test.jsonl.gz")))
    validation = _without(_rows(data_file("text/sst2_dev.jsonl.gz")), test)
    train = _without(_rows(data_file("text/sst2_train.jsonl.gz")), test, validation)
    labels = ("negative", "positive")
    return StudyData("sst2", labels, 64, 3, tuple(train), tuple(validation), tuple(test))


def _sentence_polarity() -> StudyData:
    rows = _shuffled(_without(_rows(data_file("text/sentence_polarity.jsonl.gz"))))
    test, validation, train = rows[:1800], rows[1800:2700], rows[2700:]
    labels = ("negative", "positive")
    return StudyData("sentence_polarity", labels, 64, 3, tuple(train), tuple(validation), tuple(test))


def _ag_news() -> StudyData:
    test = _shuffled(_without(_rows(data_file("text/ag_news_test.jsonl.gz"))))
    rest = _shuffled(_without(_rows(data_file("text/ag_news_train.jsonl.gz")), test))
    labels = ("World", "Sports", "Business", "Sci/Tech")
    # Minutes of CPU time do not train on all 17,829 rows.
    return StudyData("ag_news", labels, 128, 1, tuple(rest[1000:5000]), tuple(rest[:1000]), tuple(test))


DATA: Mapping[str, Callable[[], StudyData]] = MappingProxyType(
    {"sst2": _sst2, "sentence_polarity": _sentence_polarity, "ag_news": _ag_news}
)
"""The data sets of the study."""
