"""Reading of texts, resources and detectors by name."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.attacks.words.engine import WordAttack
from robustkit.classifiers import TextClassifier
from robustkit.detection import MSPDetector, RDEDetector
from robustkit.evaluation import inputs
from robustkit.evaluation.inputs import (
    DETECTORS,
    RECIPES,
    Resources,
    make_attack,
    make_detector,
    read_labelled_texts,
    read_texts,
)
from tests.robustkit.tiny import tiny_gpt2, tiny_reader, trained_bert
from trainkit.datafiles import data_folder

LABELS = ("bad", "Good")
ROWS = [("a fine film", 1), ('he said "no",\nand left', 0), ("ünïcode", 1)]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_csv(path: Path, rows: list[list[object]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz"])
@pytest.mark.parametrize("spell", [lambda n: n, lambda n: LABELS[n], lambda n: LABELS[n].upper(), str, float])
def test_labels_are_numbers_or_names(tmp_path: Path, suffix: str, spell) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"data{suffix}"
    if "csv" in suffix:
        write_csv(path, [["id", "label", "text"], *[[9, spell(n), text] for text, n in ROWS]])
        if spell is float:
            with pytest.raises(ValueError, match=r"label '1.0' is unknown"):
                read_labelled_texts(path, LABELS)
            return
    else:
        write_jsonl(path, [{"text": text, "label": spell(n), "id": 9} for text, n in ROWS])
    assert read_labelled_texts(path, LABELS) == ROWS
    assert list(read_texts(path)) == [text for text, _ in ROWS]


def test_a_name_that_is_a_number_means_the_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "stars.jsonl", [{"text": "x", "label": "1"}, {"text": "y", "label": 3}])
    assert read_labelled_texts(path, ("1", "2", "3")) == [("x", 0), ("y", 2)]


def test_any_other_file_holds_a_text_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n   \ntwo, three")
    assert list(read_texts(path)) == ["one", "two, three"]
    with pytest.raises(ValueError, match=r"named .jsonl"):
        read_labelled_texts(path, LABELS)


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=40).filter(lambda t: t.strip() and "\r" not in t and "\0" not in t))
def test_csv_and_json_lines_give_the_same_texts(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("round")
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    one = write_jsonl(folder / "a.jsonl", [{"text": text, "label": 0}])
    two = write_csv(folder / "a.csv", [["text", "label"], [text, 0]])
    assert read_labelled_texts(one, LABELS) == read_labelled_texts(two, LABELS) == [(text, 0)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sentence": "x", "label": 0}, "no column 'text'; there are 'sentence', 'label'"),
        ({"text": "x", "gold": 0}, "no column 'label'; there are 'text', 'gold'"),
        ({"text": "x", "label": "neutral"}, "label 'neutral' is unknown; the classifier knows 'bad', 'Good'"),
        ({"text": "x", "label": 2}, "label 2 is unknown"),
        ({"text": "x", "label": True}, "label True is unknown"),
        ({"text": "x", "label": None}, "label None is unknown"),
        ({"text": " \n", "label": 0}, "the text is empty"),
        ({"text": 3, "label": 0}, "text is a int"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object], said: str) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "fine", "label": 1}, row])
    with pytest.raises(ValueError, match=r"data.jsonl: example 2") as caught:
        read_labelled_texts(path, LABELS)
    assert said in str(caught.value)


def test_a_bad_csv_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", [["text", "label"], ["x", 0], ["y"]])
    with pytest.raises(ValueError, match=r"data.csv:3: other cells than the 2 columns"):
        read_labelled_texts(path, LABELS)
    path.write_bytes(b"text,label\nfine,1\ncaf\xe9,0\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_labelled_texts(path, LABELS)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no texts"):
        read_labelled_texts(path, LABELS)
    path.with_suffix(".csv.gz").write_bytes(b"plain")
    with pytest.raises(ValueError, match="damaged"):
        read_labelled_texts(path.with_suffix(".csv.gz"), LABELS)


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file '.*{name}'"):
        list(read_texts(tmp_path / name))


# Attacks.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Resources of toy size, some of them compressed."""
    (tmp_path / "stopwords_en.txt").write_text("the\n")
    neighbours = json.dumps({"good": ["fine"]}).encode()
    (tmp_path / "counterfitted_neighbors.json.gz").write_bytes(gzip.compress(neighbours))
    (tmp_path / "oewn_entries.json").write_text(json.dumps({"entries": {"good": {"a": [["1", "k"]]}}}))
    (tmp_path / "oewn_synsets.jsonl").write_text(json.dumps({"id": "1", "members": ["good", "fine"]}))
    tagger = {"weights": {"bias": {"NN": 1.0}}, "tagdict": {}, "classes": ["NN"]}
    (tmp_path / "averaged_perceptron_tagger.json").write_text(json.dumps(tagger))
    return tmp_path


def test_the_listed_recipes_are_all_there_are() -> None:
    from robustkit.attacks.words import recipes

    assert set(RECIPES) == set(recipes.__all__)


@pytest.mark.parametrize("name", ["pwws", "deepwordbug"])
def test_a_recipe_is_made_of_the_files(folder: Path, name: str) -> None:
    attack = make_attack(name, Resources((folder,)))
    assert isinstance(attack, WordAttack)
    assert attack.name == name
    far = make_attack(name, Resources((folder,)), 0.9)
    assert far.settings() != attack.settings()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("pwws", "oewn_synsets.jsonl"),
        ("deepwordbug", "stopwords_en.txt"),
        ("textfooler", "counterfitted_neighbors.json"),
        ("a2t", "averaged_perceptron_tagger.json"),
        ("bae", "masked_lm/"),
        ("textfooler_adjusted", "sentence_encoder/"),
    ],
)
def test_a_missing_resource_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.setattr(inputs, "_packaged_encoder", lambda: None)
    for path in folder.glob(f"{missing}*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"the resource {missing} is missing") as caught:
        make_attack(name, Resources((folder,)))
    assert str(folder) in str(caught.value)


def test_the_first_folder_wins_and_vectors_stand_in_for_neighbours(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / "stopwords_en.txt").write_text("a\n")
    both = Resources((first, folder))
    assert both.stopwords == {"a"}
    assert both.vectors is None
    (first / "counterfitted_vectors.txt").write_text("good 1 0\nfine 1 0.1\nbad -1 0\n")
    only = Resources((first,))
    assert only.neighbours.of("good")[0] == "fine"
    assert list(Resources((first, folder)).neighbours.of("good")) == ["fine"]


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="no recipe 'textfoolery'; there are textfooler, "):
        make_attack("textfoolery", Resources())


@pytest.mark.skipif(
    not (data_folder() / "lexicon").is_dir(), reason="the data folder of the project (KIT_DATA) is absent"
)
def test_the_projects_lexicon_folder_serves_as_resources() -> None:
    resources = Resources((data_folder() / "lexicon",))
    assert "the" in resources.stopwords
    assert resources.find("oewn_entries.json") and resources.find("averaged_perceptron_tagger.json")
    assert len(resources.neighbours.of("good")) > 0


# Detectors.


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return TextClassifier(*trained_bert())


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_can_be_made(classifier: TextClassifier, folder: Path, name: str) -> None:
    lm, tokenizer = tiny_gpt2()
    lexicon = Resources((folder,)).wordnet
    parts = {
        "lm": lm,
        "tokenizer": tokenizer,
        "lexicon": lexicon,
        "neighbours": None,
        "reader": tiny_reader(),
    }
    made = make_detector(name, classifier, parts)
    if name in ("msp", "margin", "entropy", "energy"):
        assert isinstance(made, MSPDetector)
        assert made.kind == {"msp": "max"}.get(name, name)
    else:
        assert type(made).__name__.lower().startswith(name)


def test_parameters_are_passed_on_and_wrong_ones_refused(classifier: TextClassifier) -> None:
    made = make_detector("rde", classifier, {}, {"n_components": 7})
    assert isinstance(made, RDEDetector) and made.n_components == 7
    with pytest.raises(ValueError, match=r"detector rde: .*'nonsense'"):
        make_detector("rde", classifier, {}, {"nonsense": 1})
    with pytest.raises(ValueError, match=r"detector perplexity: .*'lm'"):
        make_detector("perplexity", classifier, {})
    with pytest.raises(ValueError, match="no detector 'rede'; there are rde, "):
        make_detector("rede", classifier, {})
