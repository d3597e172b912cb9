"""Every data set in use has a card, and every card is complete and true."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import re
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trainkit.datafiles import DATA_SETS, data_file, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "data_cards"
SECTIONS = ("Contents", "Known problems", "Use in this project", "Forbidden uses")
SCHEMA = json.loads((CARDS / "schema.json").read_text(encoding="utf-8"))
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}


# Reading cards ----------------------------------------------------------------------------------------------


def problems(value: object, schema: Mapping[str, Any], where: str = "card") -> Iterator[str]:
    """What is wrong with a value by a JSON Schema; a keyword not known here is an error of the schema."""
    for keyword, wanted in schema.items():
        match keyword:
            case "$schema" | "title" | "description":
                pass
            case "type":
                if not isinstance(value, TYPES[wanted]) or (wanted == "integer" and isinstance(value, bool)):
                    yield f"{where} is {type(value).__name__}, not {wanted}"
                    return
            case "enum":
                if value not in wanted:
                    yield f"{where} is {value!r}, not one of {wanted}"
            case "pattern":
                if not re.search(wanted, str(value)):
                    yield f"{where} is {value!r}, which does not match {wanted}"
            case "minLength":
                if len(str(value).strip()) < wanted:
                    yield f"{where} is shorter than {wanted} characters"
            case "minItems" | "minProperties":
                if len(value) < wanted:  # type: ignore[arg-type]
                    yield f"{where} has fewer than {wanted} entries"
            case "uniqueItems":
                if len({json.dumps(item) for item in value}) < len(value):  # type: ignore[attr-defined,arg-type]
                    yield f"{where} has equal entries"
            case "items":
                for number, item in enumerate(value):  # type: ignore[arg-type,var-annotated]
                    yield from problems(item, wanted, f"{where}[{number}]")
            case "required":
                yield from (f"{where} lacks {name}" for name in wanted if name not in value)  # type: ignore[operator]
            case "properties" | "additionalProperties":
                pass
            case _:
                raise AssertionError(f"the schema uses {keyword!r}, which this check does not know")
    if isinstance(value, dict):
        named, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in named:
                yield from problems(item, named[name], f"{where}.{name}")
            elif other is False:
                yield f"{where} has the unknown entry {name!r}"
            elif isinstance(other, dict):
                yield from problems(item, other, f"{where}.{name}")


def parse(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A card's front matter and its sections."""
    match = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    assert match, "a card begins with front matter between two lines of ---"
    front = yaml.safe_load(match[1])
    parts = re.split(r"^## (.+)$", match[2], flags=re.MULTILINE)
    return front, {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def faults(name: str, text: str) -> list[str]:
    """Everything that is wrong with one card."""
    front, sections = parse(text)
    found = list(problems(front, SCHEMA))
    if found:
        return found
    if front["id"] != name:
        found.append(f"id is {front['id']}, the file is {name}.md")
    if tuple(sections) != SECTIONS:
        found.append(f"sections are {tuple(sections)}, not {SECTIONS}")
    found += [f"section {title} is too short" for title, body in sections.items() if len(body.split()) < 8]
    if "training" in front["roles"] and not front["free"]:
        found.append("a set that is not free is marked for training")
    if "shipped" in front["roles"] and front["kind"] != "own":
        found.append("a public set is marked as shipped")
    return found


def card_names() -> list[str]:
    return sorted(path.stem for path in CARDS.glob("*.md") if path.name != "README.md")


def front(name: str) -> dict[str, Any]:
    return parse((CARDS / f"{name}.md").read_text(encoding="utf-8"))[0]


def test_there_are_cards() -> None:
    assert {"topical_chat", "own_characters"} <= set(card_names())


@pytest.mark.parametrize("name", card_names())
def test_a_card_is_complete(name: str) -> None:
    assert faults(name, (CARDS / f"{name}.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", card_names())
def test_a_card_names_files_that_exist(name: str) -> None:
    card = front(name)
    if card["kind"] == "public":
        entries = {DATA_SETS[file].id for file in card["files"]}
        assert entries == {name}
        assert set(card["files"]) == {file for file, entry in DATA_SETS.items() if entry.id == name}
    elif card["kind"] == "packaged":
        assert [file for file in card["files"] if not packaged_file(file).is_file()] == []
    else:
        assert [pattern for pattern in card["files"] if not list(ROOT.glob(pattern))] == []


def packaged_file(name: str) -> Path:
    """A file in an installed package, by the package's name and the path inside it."""
    package, _, path = name.partition("/")
    found = pytest.importorskip(package).__file__
    return Path(found).parent / path


def test_the_table_in_the_readme_is_that_of_the_cards() -> None:
    text = (CARDS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (.+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    listed = {row[0]: row[1:] for row in rows}
    assert listed == {
        name: (
            name,
            card["kind"],
            card["licence"],
            "yes" if card["free"] else "no",
            ", ".join(card["roles"]),
        )
        for name, card in ((name, front(name)) for name in card_names())
    }


# Sets in use ------------------------------------------------------------------------------------------------


def data_file_calls(source: str) -> Iterator[tuple[int, str | None]]:
    """Line and literal name of every ``data_file(...)`` call; ``None`` where the name is computed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "data_file":
                arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
                literal = len(arguments) == 1 and isinstance(arguments[0], ast.Constant)
                yield node.lineno, str(arguments[0].value) if literal else None  # type: ignore[attr-defined]


def sources() -> list[Path]:
    """The Python files whose data sets must have cards."""
    # These two call data_file with whatever name their own tables hold.
    spared = {Path(__file__).resolve(), ROOT / "tests" / "trainkit" / "test_datafiles.py"}
    folders = ("scripts", "tests", "benchmarks", "trainkit", "dialogkit", "robustkit")
    return [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path not in spared
    ]


def test_every_public_set_in_use_has_a_card() -> None:
    names, unreadable, without = set(), [], []
    for path in sources():
        source = path.read_text(encoding="utf-8")
        # Parsing every file of the project would take seconds.
        for line, name in data_file_calls(source) if "data_file" in source else ():
            where = f"{path.relative_to(ROOT)}:{line}"
            if name is None:
                unreadable.append(f"{where}: data_file needs a literal name, so that its card can be checked")
            elif name not in DATA_SETS or DATA_SETS[name].id not in card_names():
                without.append(f"{where}: {name} has no card")
            else:
                names.add(name)
    assert unreadable == []
    assert without == []
    assert "dialogue/topical_chat.jsonl.gz" in names, "the check sees no calls any more"


def test_every_own_file_has_a_card() -> None:
    covered = {
        path for name in card_names() for pattern in front(name)["files"] for path in ROOT.glob(pattern)
    }
    own = {path for path in (ROOT / "scripts" / "data").rglob("*") if path.is_file()}
    own |= set((ROOT / "dialogkit" / "embedded" / "characters").glob("*.json"))
    own |= set((ROOT / "dialogkit" / "embedded").glob("contexts*"))
    assert sorted(str(path.relative_to(ROOT)) for path in own - covered) == []


# Counts -----------------------------------------------------------------------------------------------------


def words(*texts: str) -> int:
    return sum(len(text.split()) for text in texts)


def own_json(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def count_topical_chat() -> dict[str, int]:
    dialogues = list(read_jsonl(data_file("dialogue/topical_chat.jsonl.gz")))
    texts = [turn["text"] for dialogue in dialogues for turn in dialogue["turns"]]
    return {
        "dialogues": len(dialogues),
        "turns": len(texts),
        "words": words(*texts),
        "distinct_turns": len(set(texts)),
    }


def count_shakespeare() -> dict[str, int]:
    scenes = list(read_jsonl(data_file("dialogue/shakespeare.jsonl.gz")))
    speeches = [turn for scene in scenes for turn in scene["turns"]]
    speakers = Counter(turn["speaker"] for turn in speeches)
    return {
        "plays": len({scene["play"] for scene in scenes}),
        "scenes": len(scenes),
        "speeches": len(speeches),
        "words": words(*(turn["text"] for turn in speeches)),
        "speakers": len(speakers),
        "speakers_with_50_speeches": sum(count >= 50 for count in speakers.values()),
    }


def count_personality_chat() -> dict[str, int]:
    rows = list(read_jsonl(data_file("dialogue/personality_chat.jsonl.gz")))
    return {
        "rows": len(rows),
        "rows_without_query": sum(row["query"] is None for row in rows),
        "scenarios": len({row["scenario"] for row in rows}),
        "distinct_queries": len({row["query"] for row in rows if row["query"]}),
        "distinct_responses": len({row["response"] for row in rows}),
        "words_in_responses": words(*(row["response"] for row in rows)),
    }


def count_dailydialog() -> dict[str, int]:
    counts: Counter[str] = Counter()
    for dialogue in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz")):
        counts["dialogues"] += 1
        counts[f"dialogues_{dialogue['split']}"] += 1
        counts["turns"] += len(dialogue["turns"])
        counts["words"] += words(*(turn["text"] for turn in dialogue["turns"]))
    return dict(counts)


def count_dailydialog_pp() -> dict[str, int]:
    rows = list(read_jsonl(data_file("dialogue/dailydialog_pp.jsonl.gz")))
    good = [reply for row in rows for reply in row["positive_responses"]]
    kinds = [name for name in rows[0] if name.endswith("_responses")]
    return {
        "contexts": len(rows),
        **{f"contexts_{part}": sum(row["split"] == part for row in rows) for part in ("dev", "test")},
        "good_replies": len(good),
        "distinct_good_replies": len(set(good)),
        "replies": sum(len(row[kind]) for row in rows for kind in kinds),
    }


def count_fed() -> dict[str, int]:
    records = json.loads(gzip.decompress(data_file("ratings/fed.json.gz").read_bytes()))
    whole = [record for record in records if "response" not in record]
    lines = [line for record in whole for line in record["context"].split("\n")]
    return {
        "records": len(records),
        "records_of_dialogues": len(whole),
        "turns_of_dialogues": len(lines),
        "system_turns_of_dialogues": sum(line.startswith("System:") for line in lines),
        "systems": len({record["system"] for record in whole}),
        "ratings_of_diversity": sum(len(record["annotations"]["Diverse"]) for record in whole),
    }


def count_sst2() -> dict[str, int]:
    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    train = list(read_jsonl(data_file("text/sst2_train.jsonl.gz")))
    validation = list(read_jsonl(data_file("text/sst2_dev.jsonl.gz")))
    test = list(read_jsonl(data_file("text/sst2_test.jsonl.gz")))
    rows = [*train, *validation, *test]
    others = {letters(row["text"]) for row in read_jsonl(data_file("text/sentence_polarity.jsonl.gz"))}
    return {
        "train": len(train),
        "validation": len(validation),
        "test": len(test),
        "positive": sum(row["label"] for row in rows),
        "words": words(*(row["text"] for row in rows)),
        "in_sentence_polarity": sum(letters(row["text"]) in others for row in rows),
    }


def count_sentence_polarity() -> dict[str, int]:
    rows = list(read_jsonl(data_file("text/sentence_polarity.jsonl.gz")))
    return {
        "sentences": len(rows),
        "positive": sum(row["label"] for row in rows),
        "words": words(*(row["text"] for row in rows)),
    }


def count_movie_reviews() -> dict[str, int]:
    rows = list(read_jsonl(data_file("text/movie_reviews.jsonl.gz")))
    return {
        "reviews": len(rows),
        "positive": sum(row["label"] for row in rows),
        "words": words(*(row["text"] for row in rows)),
    }


def count_ag_news() -> dict[str, int]:
    train = [row["text"] for row in read_jsonl(data_file("text/ag_news_train.jsonl.gz"))]
    test = [row["text"] for row in read_jsonl(data_file("text/ag_news_test.jsonl.gz"))]
    return {
        "train": len(train),
        "train_distinct": len(set(train)),
        "test": len(test),
        "words": words(*train, *test),
    }


def count_attack_logs() -> dict[str, int]:
    counts: Counter[str] = Counter()
    for path in (
        data_file("attack_logs/bert-base-uncased-sst2_pwws.csv.gz"),
        data_file("attack_logs/bert-base-uncased-imdb_textfooler.csv.gz"),
    ):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                counts["rows"] += 1
                counts[row["result_type"].lower()] += 1
    return dict(counts)


def gzipped_json(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def count_counterfitted_neighbors() -> dict[str, int]:
    neighbours = gzipped_json(data_file("lexicon/counterfitted_neighbors.json.gz"))
    return {
        "words": len(neighbours),
        "words_with_neighbours": sum(map(bool, neighbours.values())),
        "neighbours": sum(map(len, neighbours.values())),
        "most_neighbours": max(map(len, neighbours.values())),
    }


def count_open_english_wordnet() -> dict[str, int]:
    entries = gzipped_json(data_file("lexicon/oewn_entries.json.gz"))
    return {
        "synsets": sum(1 for _ in read_jsonl(data_file("lexicon/oewn_synsets.jsonl.gz"))),
        "lemmas": len(entries["entries"]),
        "irregular_forms": len(entries["forms"]),
    }


def count_averaged_perceptron_tagger() -> dict[str, int]:
    tagger = gzipped_json(data_file("lexicon/averaged_perceptron_tagger.json.gz"))
    return {
        "tags": len(tagger["classes"]),
        "words_with_one_tag": len(tagger["tagdict"]),
        "features": len(tagger["weights"]),
        "weights": sum(map(len, tagger["weights"].values())),
    }


def count_glove_twitter() -> dict[str, int]:
    with gzip.open(data_file("lexicon/glove_twitter_25d_12k.txt.gz"), "rt", encoding="utf-8") as lines:
        numbers = [len(line.split()) - 1 for line in lines]
    return {"words": len(numbers), "dimensions": max(numbers)}


def count_stopwords() -> dict[str, int]:
    return {"words": len(data_file("lexicon/stopwords_en.txt").read_text(encoding="utf-8").split())}


def count_opinion_lexicon() -> dict[str, int]:
    with zipfile.ZipFile(data_file("lexicon/nltk/opinion_lexicon.zip")) as archive:
        texts = (
            archive.read(f"opinion_lexicon/{name}-words.txt").decode() for name in ("positive", "negative")
        )
        positive, negative = (set(re.findall(r"^[^;\s]\S*", text, re.MULTILINE)) for text in texts)
    return {"positive": len(positive), "negative": len(negative), "in_both": len(positive & negative)}


def count_mnist() -> dict[str, int]:
    with gzip.open(data_file("image/mnist/t10k-images-idx3-ubyte.gz")) as images:
        _, count, side, _ = struct.unpack(">4I", images.read(16))
    with gzip.open(data_file("image/mnist/t10k-labels-idx1-ubyte.gz")) as labels:
        return {"images": count, "classes": len(set(labels.read()[8:])), "side": side}


def count_cifar10_jpeg() -> dict[str, int]:
    def images(path: Path) -> list[str]:
        with tarfile.open(path) as archive:
            return [name for name in archive.getnames() if name.endswith(".jpg")]

    test = images(data_file("image/cifar10_jpeg/test.tar.xz"))
    train = images(data_file("image/cifar10_jpeg/train_part0.tar.xz"))
    train += images(data_file("image/cifar10_jpeg/train_part1.tar.xz"))
    classes = {name.split("/")[1] for name in test}
    return {"test_images": len(test), "train_images": len(train), "classes": len(classes)}


def trained_numbers(path: Path) -> int:
    """How many numbers of a file of weights were trained, statistics of batch normalization left out."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    left_out = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for name, value in weights.items() if not name.endswith(left_out))


def count_cifar10_resnet() -> dict[str, int]:
    return {
        "resnet20_weights": trained_numbers(data_file("weights/cifar10_resnet/resnet20-12fca82f.th")),
        "resnet56_weights": trained_numbers(data_file("weights/cifar10_resnet/resnet56-4bfd9763.th")),
    }


def count_mnist_lenet5() -> dict[str, int]:
    return {
        "clean_weights": trained_numbers(data_file("weights/mnist/mnist_lenet5_clntrained.pt")),
        "adversarial_weights": trained_numbers(data_file("weights/mnist/mnist_lenet5_advtrained.pt")),
    }


def count_mnist_trades() -> dict[str, int]:
    return {"weights": trained_numbers(data_file("weights/mnist/trades_mnist_smallcnn.pt"))}


def count_digits() -> dict[str, int]:
    with gzip.open(packaged_file("sklearn/datasets/data/digits.csv.gz"), "rt", encoding="utf-8") as file:
        rows = [line.rstrip().split(",") for line in file]
    return {
        "images": len(rows),
        "pixels": len(rows[0]) - 1,
        "classes": len({row[-1] for row in rows}),
        "greys": len({value for row in rows for value in row[:-1]}),
    }


def count_own_small_talk() -> dict[str, int]:
    rows = [
        row for path in sorted((ROOT / "scripts/data").glob("smalltalk_*.jsonl")) for row in read_jsonl(path)
    ]
    pool = (ROOT / "dialogkit/embedded/contexts.txt").read_text(encoding="utf-8").splitlines()
    return {
        "exchanges": len(rows),
        "distinct_contexts": len({row["context"] for row in rows}),
        "words": words(*(text for row in rows for text in (row["context"], row["response"]))),
        "pool_contexts": len(pool),
    }


def count_own_characters() -> dict[str, int]:
    characters = [
        json.loads(path.read_text()) for path in (ROOT / "dialogkit/embedded/characters").glob("*.json")
    ]
    utterances = [line for character in characters for line in character["utterances"]]
    return {"characters": len(characters), "utterances": len(utterances), "words": words(*utterances)}


def count_own_style_evaluation() -> dict[str, int]:
    study = own_json("scripts/data/style_eval.json")
    return {
        "speakers": len(study["speakers"]),
        "lines": sum(len(speaker["lines"]) for speaker in study["speakers"].values()),
        "questions": len(study["questions"]),
        "dev_questions": len(study["dev_questions"]),
        "gold_contexts": sum(len(turns) for turns in study["gold_contexts"].values()),
    }


def count_own_voice_habits() -> dict[str, int]:
    habits = own_json("scripts/data/voice_habits.json")
    names = {"forms_of_address": "address"}
    return {
        name: len(habits[names.get(name, name)])
        for name in ("openers", "closers", "forms_of_address", "sentences", "lexicons")
    }


COUNTERS: dict[str, Callable[[], dict[str, int]]] = {
    "topical_chat": count_topical_chat,
    "shakespeare": count_shakespeare,
    "personality_chat": count_personality_chat,
    "dailydialog": count_dailydialog,
    "dailydialog_pp": count_dailydialog_pp,
    "fed": count_fed,
    "sst2": count_sst2,
    "sentence_polarity": count_sentence_polarity,
    "ag_news": count_ag_news,
    "movie_reviews": count_movie_reviews,
    "attack_logs": count_attack_logs,
    "counterfitted_neighbors": count_counterfitted_neighbors,
    "open_english_wordnet": count_open_english_wordnet,
    "averaged_perceptron_tagger": count_averaged_perceptron_tagger,
    "glove_twitter": count_glove_twitter,
    "stopwords": count_stopwords,
    "opinion_lexicon": count_opinion_lexicon,
    "mnist": count_mnist,
    "mnist_lenet5": count_mnist_lenet5,
    "mnist_trades": count_mnist_trades,
    "cifar10_jpeg": count_cifar10_jpeg,
    "cifar10_resnet": count_cifar10_resnet,
    "digits": count_digits,
    "own_small_talk": count_own_small_talk,
    "own_characters": count_own_characters,
    "own_style_evaluation": count_own_style_evaluation,
    "own_voice_habits": count_own_voice_habits,
}


def test_every_card_has_a_counter() -> None:
    assert set(COUNTERS) == set(card_names())


@pytest.mark.parametrize("name", card_names())
def test_the_counts_are_those_of_the_files(name: str) -> None:
    card = front(name)
    try:
        counted = COUNTERS[name]()
    except FileNotFoundError as missing:
        if card["kind"] == "own":
            raise
        pytest.skip(str(missing))
    assert card["counts"] == counted


def test_no_line_of_the_style_study_is_shipped() -> None:
    study = own_json("scripts/data/style_eval.json")
    lines = {line for speaker in study["speakers"].values() for line in speaker["lines"]}
    shipped = {
        line
        for path in (ROOT / "dialogkit/embedded/characters").glob("*.json")
        for line in json.loads(path.read_text(encoding="utf-8"))["utterances"]
    }
    assert lines & shipped == set()


# The checks themselves --------------------------------------------------------------------------------------

GOOD = (CARDS / "own_characters.md").read_text(encoding="utf-8")


def test_the_check_accepts_a_good_card() -> None:
    assert faults("own_characters", GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (r"^licence: .*$", "licence: ''", "card.licence is shorter"),
        (r"^licence_url: .*$", "licence_url: somewhere", "card.licence_url is 'somewhere'"),
        (r"^licence_url: .*\n", "", "card lacks licence_url"),
        (r"^free: true$", "free: maybe", "card.free is str, not boolean"),
        (r"^kind: own$", "kind: borrowed", "card.kind is 'borrowed'"),
        (r"^languages: .*$", "languages: []", "card.languages has fewer than 1"),
        (r"^languages: .*$", "languages: [en, en]", "card.languages has equal entries"),
        (r"^languages: .*$", "languages: [English]", "card.languages[0] is 'English'"),
        (r"^  characters: .*$", "  characters: many", "card.counts.characters is str, not integer"),
        (r"^  characters: .*$", "  characters: true", "card.counts.characters is bool, not integer"),
        (r"^citation: none$", "citation: none\nmood: good", "unknown entry 'mood'"),
        (r"^roles: .*$", "roles: [selling]", "card.roles[0] is 'selling'"),
        (r"^id: .*$", "id: other", "id is other"),
        (r"^## Known problems$", "## Problems", "sections are"),
        (r"(^## Contents\n)(.|\n)*?(?=^## Known)", r"\1\nText.\n\n", "section Contents is too short"),
        (r"^kind: own$", "kind: public", "a public set is marked as shipped"),
    ],
)
def test_the_check_catches_a_bad_card(old: str, new: str, fault: str) -> None:
    text, changed = re.subn(old, new, GOOD, count=1, flags=re.MULTILINE)
    assert changed == 1
    found = faults("own_characters", text)
    assert len(found) == 1 and fault in found[0]


def test_the_check_catches_training_on_a_set_that_is_not_free() -> None:
    text = (
        (CARDS / "dailydialog.md")
        .read_text(encoding="utf-8")
        .replace("roles: [experiment, measuring]", "roles: [training]")
    )
    assert faults("dailydialog", text) == ["a set that is not free is marked for training"]


def test_the_check_refuses_a_schema_that_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="'oneOf'"):
        list(problems({}, {"oneOf": []}))


def test_calls_are_found_however_they_are_written() -> None:
    source = 'data_file("a")\nfiles.data_file(name="b")\ndef f():\n    open(data_file(f"{x}"))\nother("c")\n'
    assert sorted(data_file_calls(source)) == [(1, "a"), (2, "b"), (4, None)]
