from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.attacks.words import recipes
from robustkit.attacks.words.asking import Ask, Steps, run
from robustkit.attacks.words.constraints import RepeatModification
from robustkit.attacks.words.engine import WordAttack, _Answers, in_lock_step
from robustkit.attacks.words.goals import TargetedClassification, UntargetedClassification
from robustkit.attacks.words.search import GreedyWordSwap
from robustkit.attacks.words.transformations import NeighbourSwap
from tests.robustkit.attacks.words import toys

EXAMPLES = toys.toy_examples(30, seed=1, longest=14)


def textfooler() -> WordAttack:
    return recipes.textfooler(
        neighbours=toys.toy_neighbours(),
        vectors=toys.toy_vectors(),
        tagger=toys.ToyTagger(),  # type: ignore[arg-type]
        encoder=toys.toy_encoder(),
        stopwords=toys.STOP_WORDS,
    )


ATTACKS: dict[str, Callable[[], WordAttack]] = {
    "textfooler": textfooler,
    "pwws": lambda: recipes.pwws(wordnet=toys.toy_wordnet(), stopwords=toys.STOP_WORDS),
    "deepwordbug": lambda: recipes.deepwordbug(stopwords=toys.STOP_WORDS),
}


class Doubler:
    """Doubles numbers and notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def answer(self, payloads: Sequence[int]) -> list[int]:
        self.calls.append(list(payloads))
        return [2 * payload for payload in payloads]


def summing(service: Doubler, rounds: Sequence[Sequence[int]]) -> Steps[int]:
    total = 0
    for numbers in rounds:
        answers = yield Ask(service, tuple(numbers))
        assert len(answers) == len(numbers)
        total += sum(answers) + len(rounds) * total
    return total


@given(
    st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4), max_size=12),
    st.integers(1, 15),
)
def test_lock_step_gives_what_each_computation_gives_alone(work: list[list[list[int]]], width: int) -> None:
    services = [Doubler(), Doubler()]
    tasks = [(i, summing(services[i % 2], rounds)) for i, rounds in enumerate(work)]
    expected = {i: run(summing(Doubler(), rounds)) for i, rounds in enumerate(work)}
    assert dict(in_lock_step(tasks, width)) == expected
    for service in services:
        asked = [payload for call in service.calls for payload in call]
        assert len(asked) == len(set(asked)), "no question is asked twice"
        assert all(service.calls), "nobody is asked nothing"


def test_questions_of_a_round_are_merged() -> None:
    service = Doubler()
    tasks = [(i, summing(service, [[i, 100], [i + 10]])) for i in range(4)]
    dict(in_lock_step(tasks, 4))
    assert service.calls == [[0, 100, 1, 2, 3], [10, 11, 12, 13]]


def test_no_more_computations_than_the_width_are_under_way() -> None:
    alive: set[int] = set()
    most = 0

    def task(number: int) -> Steps[int]:
        nonlocal most
        alive.add(number)
        most = max(most, len(alive))
        yield from summing(Doubler(), [[number]] * (1 + number % 3))
        alive.remove(number)
        return number

    started: list[int] = []

    def tasks() -> Any:
        for number in range(20):
            started.append(number)
            assert len(alive) < 4
            yield number, task(number)

    assert sorted(number for number, _ in in_lock_step(tasks(), 4)) == list(range(20))
    assert most == 4


def test_remembered_answers_are_bounded() -> None:
    service = Doubler()
    answers = _Answers(1000)  # five pairs of numbers at 200 bytes
    answers.of(service, range(5))
    answers.of(service, [0])
    answers.of(service, [5])  # 1 is the least recently used
    answers.of(service, [0, 1])
    assert service.calls == [[0, 1, 2, 3, 4], [5], [1]]
    assert answers.of(service, range(50)) == {i: 2 * i for i in range(50)}, "more than fit are answered too"


@pytest.mark.parametrize("name", ATTACKS)
def test_result_does_not_depend_on_lock_step(name: str) -> None:
    classifier = toys.ToyClassifier()
    one = ATTACKS[name]().attack(classifier, EXAMPLES, lock_step=1)
    calls = len(classifier.batches)
    for lock_step in (7, 64):
        classifier.batches.clear()
        assert list(ATTACKS[name]().attack(classifier, EXAMPLES, lock_step=lock_step)) == list(one)
        assert len(classifier.batches) < calls / 3


def test_result_does_not_depend_on_neighbours() -> None:
    classifier = toys.ToyClassifier()
    together = textfooler().attack(classifier, EXAMPLES)
    for number in (0, 7, 29):
        assert textfooler().attack(classifier, [EXAMPLES[number]])[0] == together[number]


def test_the_classifier_sees_no_text_twice_and_full_batches() -> None:
    classifier = toys.ToyClassifier()
    seen: list[Any] = []
    plain = classifier.logits
    classifier.logits = lambda texts: seen.extend(texts) or plain(texts)  # type: ignore
    log = ATTACKS["pwws"]().attack(classifier, [*EXAMPLES, *EXAMPLES[:3]])
    assert len(seen) == len(set(seen))
    assert len(seen) < 0.9 * sum(record.num_queries for record in log), "PWWS asks for some texts twice"
    assert log[:3].records == log[30:].records


def test_seed_decides_draws() -> None:
    classifier = toys.ToyClassifier()
    attack = ATTACKS["deepwordbug"]()
    one = attack.attack(classifier, EXAMPLES, seed=1)
    assert list(one) == list(attack.attack(classifier, EXAMPLES, seed=1))
    assert list(one) != list(attack.attack(classifier, EXAMPLES, seed=2))


def test_n_best_keeps_further_successes_at_no_cost() -> None:
    classifier = toys.ToyClassifier()
    attack = WordAttack(NeighbourSwap(toys.toy_neighbours()), index_constraints=[RepeatModification()])
    plain = attack.attack(classifier, EXAMPLES)
    several = attack.attack(classifier, EXAMPLES, n_best=3)
    assert [r.num_queries for r in plain] == [r.num_queries for r in several]
    assert [r.perturbed_text for r in plain] == [r.perturbed_text for r in several]
    assert {len(r.alternatives) for r in several if r.result_type == "Successful"} >= {2}
    for record in several:
        assert record.result_type == "Successful" or record.alternatives == ()
        texts = [text.replace("[[", "").replace("]]", "") for text in record.alternatives]
        assert len({*texts, record.perturbed_text.replace("[[", "").replace("]]", "")}) == len(texts) + 1
        if texts:
            assert (classifier.predict(texts) != record.ground_truth_output).all()


def test_records_say_what_the_classifier_says() -> None:
    classifier = toys.ToyClassifier()
    log = textfooler().attack(classifier, EXAMPLES)
    assert (log.name, log.model) == ("textfooler", "toy")
    for record, (text, label) in zip(log, EXAMPLES, strict=True):
        assert record.ground_truth_output == label
        assert record.original_text.replace("[[", "").replace("]]", "") == text
        assert record.outcome == record.result_type
        perturbed = record.perturbed_text.replace("[[", "").replace("]]", "")
        assert classifier.predict([perturbed])[0] == record.perturbed_output
        assert (record.num_queries == 1) == (record.result_type == "Skipped") or len(text.split()) < 3


def test_rows_of_a_dataset_are_examples() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": text, "label": label} for text, label in EXAMPLES[:5]]
    classifier = toys.ToyClassifier()
    expected = list(textfooler().attack(classifier, EXAMPLES[:5]))
    assert list(textfooler().attack(classifier, rows)) == expected
    assert list(textfooler().attack(classifier, datasets.Dataset.from_list(rows))) == expected
    assert (
        list(textfooler().attack(classifier, [(t, np.int64(label)) for t, label in EXAMPLES[:5]])) == expected
    )


# Bad and odd input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([("bal", 0), ("ben", 2)], ValueError, "label of example 1 is 2, but the classifier knows 0 to 1"),
        ([("bal", -1)], ValueError, "label of example 0 is -1"),
        ([("bal", 0.5)], TypeError, "label of example 0 is 0.5"),
        ([("bal", True)], TypeError, "label of example 0 is True"),
        ([("bal", "1")], TypeError, "label of example 0 is '1'"),
        ([{"text": "bal"}], TypeError, "example 0 has no label"),
        (["bal"], TypeError, "example 0 is 'bal'"),
        ([(None, 0)], TypeError, "example 0"),
        ([("\ud800", 0)], ValueError, "example 0"),
    ],
)
def test_bad_examples_are_refused_before_any_query(
    dataset: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    classifier = toys.ToyClassifier()
    with pytest.raises(error, match=message):
        textfooler().attack(classifier, dataset, path=tmp_path / "log.csv")
    assert classifier.batches == []
    assert not (tmp_path / "log.csv").exists()


@pytest.mark.parametrize("name", ["lock_step", "query_budget", "n_best"])
def test_arguments_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        textfooler().attack(toys.ToyClassifier(), EXAMPLES, **{name: 0})


def test_a_goal_that_does_not_fit_the_classifier_is_refused() -> None:
    attack = textfooler()
    attack.goal = TargetedClassification(2)
    with pytest.raises(ValueError, match="target is 2"):
        attack.attack(toys.ToyClassifier(), EXAMPLES)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("text", ["", " ", "...", "bal", "the", "é", "a\nb", "[[bal]] ben"])
def test_odd_texts_are_attacked_like_any_other(name: str, text: str) -> None:
    classifier = toys.ToyClassifier()
    label = int(classifier.predict([text])[0])
    (record,) = ATTACKS[name]().attack(classifier, [(text, label)])
    assert record.result_type in ("Failed", "Successful")
    if not any(character.isalnum() for character in text):
        assert (record.result_type, record.num_queries, record.perturbed_text) == ("Failed", 1, text)


def test_no_examples_give_an_empty_log(tmp_path: Path) -> None:
    assert len(textfooler().attack(toys.ToyClassifier(), [], path=tmp_path / "log.csv")) == 0


def test_a_text_of_20000_words_is_bounded_by_budget_or_word_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = toys.ToyClassifier()
    text = " ".join(toys.WORDS * 240)
    assert len(text.split()) > 20_000
    label = int(classifier.predict([text])[0])
    under_way: list[int] = []
    plain = classifier.logits

    def logits(texts: Sequence[Any]) -> np.ndarray:
        under_way.append(sum(map(len, texts)))
        return plain(texts)

    monkeypatch.setattr(classifier, "logits", logits)
    attack = WordAttack(NeighbourSwap(toys.toy_neighbours()), index_constraints=[RepeatModification()])
    (record,) = attack.attack(classifier, [(text, label)], query_budget=60)
    assert record.num_queries <= 60
    attack.search = GreedyWordSwap(max_words=2)
    (record,) = attack.attack(classifier, [(text, label)])
    assert record.num_queries <= 1 + 2 + 2 * 50
    assert max(under_way) < 2**21 + len(text), "a few megabytes of text at once"


# The file of a run ------------------------------------------------------------------------------------------


class Interrupting(toys.ToyClassifier):
    """Is interrupted at its n-th batch, as by Ctrl-C."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._left = batch

    def logits(self, texts: Sequence[Any]) -> np.ndarray:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return super().logits(texts)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("batch", [1, 6, 25])
def test_an_interrupted_run_goes_on_without_loss(
    name: str, batch: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.csv"
    whole = ATTACKS[name]().attack(toys.ToyClassifier(), EXAMPLES, lock_step=4)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        ATTACKS[name]().attack(Interrupting(batch), EXAMPLES, lock_step=4, path=path)
    rows = path.read_bytes().count(b"\n") - 1
    assert f"interrupted: {rows} of 30 examples are in {path}" in caplog.text
    assert 0 < rows < 30 or batch == 1
    left = toys.ToyClassifier()
    log = ATTACKS[name]().attack(left, EXAMPLES, lock_step=16, path=path)
    assert list(log) == list(whole)
    done = toys.ToyClassifier()
    assert list(ATTACKS[name]().attack(done, EXAMPLES, path=path)) == list(whole)
    assert done.batches == [], "nothing is left to do"


def test_a_torn_last_line_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    whole = textfooler().attack(toys.ToyClassifier(), EXAMPLES[:8], path=path)
    data = path.read_bytes()
    path.write_bytes(data[:-17])
    assert list(textfooler().attack(toys.ToyClassifier(), EXAMPLES[:8], path=path)) == list(whole)
    assert sorted(path.read_bytes().split(b"\n")) == sorted(data.split(b"\n"))


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    textfooler().attack(toys.ToyClassifier(), EXAMPLES[:3], path=path)
    before = path.read_bytes()
    other_goal = textfooler()
    other_goal.goal = UntargetedClassification(0.9)
    runs: list[tuple[WordAttack, toys.ToyClassifier, Any, dict[str, Any]]] = [
        (ATTACKS["pwws"](), toys.ToyClassifier(), EXAMPLES[:3], {}),
        (other_goal, toys.ToyClassifier(), EXAMPLES[:3], {}),
        (textfooler(), toys.ToyClassifier(max_length=20), EXAMPLES[:3], {}),
        (textfooler(), toys.ToyClassifier(), EXAMPLES[:4], {}),
        (textfooler(), toys.ToyClassifier(), EXAMPLES[:3], {"query_budget": 9}),
        (textfooler(), toys.ToyClassifier(), EXAMPLES[:3], {"seed": 1}),
        (textfooler(), toys.ToyClassifier(), EXAMPLES[:3], {"n_best": 2}),
    ]
    for attack, classifier, examples, more in runs:
        with pytest.raises(ValueError, match="belongs to another run"):
            attack.attack(classifier, examples, path=path, **more)
    assert path.read_bytes() == before
    textfooler().attack(toys.ToyClassifier(), EXAMPLES[:3], path=path, lock_step=2)


def test_settings_name_every_part() -> None:
    settings = textfooler().settings()
    json.dumps(settings)
    assert settings["transformation"]["kind"] == "NeighbourSwap"
    assert settings["transformation"]["count"] == 50
    assert [part["kind"] for part in settings["constraints"]] == [
        "WordEmbeddingDistance",
        "PartOfSpeech",
        "SentenceSimilarity",
    ]
    assert settings["constraints"][0]["min_cosine"] == 0.5
    assert settings["index_constraints"][1]["stopwords"] == sorted(toys.STOP_WORDS)
    assert settings["search"] == {
        "kind": "GreedyWordSwap",
        "ranking": "delete",
        "unknown": "[UNK]",
        "max_words": None,
    }
    assert settings == textfooler().settings()


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.robustkit.attacks.words import toys
from robustkit.attacks.words import recipes
class Slow(toys.ToyClassifier):
    def logits(self, texts):
        time.sleep(0.05)
        return super().logits(texts)
attack = recipes.pwws(wordnet=toys.toy_wordnet(), stopwords=toys.STOP_WORDS)
attack.attack(Slow(), toys.toy_examples(30, seed=1, longest=14), lock_step=3, path=sys.argv[1])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on_without_loss(how: signal.Signals, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[4])
    path = tmp_path / "log.csv"
    command = [sys.executable, "-c", SCRIPT.format(root=root), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") > 4):
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    rows = path.read_bytes().count(b"\n") - 1
    assert 4 <= rows < 30
    if how == signal.SIGINT:
        assert f"interrupted: {rows} of 30 examples are in {path}; the same call goes on from there" in said
    whole = ATTACKS["pwws"]().attack(toys.ToyClassifier(), EXAMPLES)
    assert list(ATTACKS["pwws"]().attack(toys.ToyClassifier(), EXAMPLES, path=path)) == list(whole)
