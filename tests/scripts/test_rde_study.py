"""The study of detectors: victims, texts under attack, the table, and the choice of a combination."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rde_study import combine, measure, pipeline, tables
from rde_study.attacks import AttackPlan, attacked_rows
from rde_study.combine import Judged
from rde_study.data import DATA, StudyData, load_data
from rde_study.replaced import train_reader
from rde_study.spelling import SpellingDetector
from rde_study.substitution import SubstitutionDetector, hidden_states
from rde_study.tables import averaged
from rde_study.victims import VictimSettings, length_batches, train_victim

from robustkit.attacks.logs import AttackLog, AttackRecord
from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import ReplacedWordsSettings, WordReader, edited_copies, typos
from robustkit.detection.replaced_edits import edited
from tests.robustkit.tiny import tiny_classifier, toy_sentiment, trained_bert


def study_data(texts: Sequence[str], labels: Sequence[int]) -> StudyData:
    rows = tuple(zip(texts, labels, strict=True))
    return StudyData("toy", ("bad", "good"), 16, 4, rows[:-60], rows[-60:-30], rows[-30:])


# Data and victims -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_no_text_stands_in_two_parts(name: str) -> None:
    try:
        data = load_data(name)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    texts = [text for part in (data.train, data.validation, data.test) for text, _ in part]
    assert len(texts) == len(set(texts))
    for part in (data.train, data.validation, data.test):
        shares = Counter(label for _, label in part)
        assert set(shares) == set(range(len(data.labels)))
        assert min(shares.values()) > 0.4 * len(part) / len(data.labels) * 2 / len(data.labels)


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sst2.*got 'imdb'"):
        load_data("imdb")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=50), st.integers(1, 8))
def test_batches_hold_every_row_once_and_are_alike_in_length(lengths: list[int], size: int) -> None:
    rows = [("w " * n + str(i), i) for i, n in enumerate(lengths)]
    batches = length_batches(rows, size)
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    assert all(len(batch) == size for batch in batches[:-1])
    shortest = [min(len(text.split()) for text, _ in batch) for batch in batches]
    longest = [max(len(text.split()) for text, _ in batch) for batch in batches]
    assert all(before - 4 <= after for before, after in zip(longest, shortest[1:], strict=False))


def test_a_victim_learns_and_is_a_plain_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts, labels = toy_sentiment(400)
    model, tokenizer = tiny_classifier("bert", texts, spread=0.05)
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    settings = VictimSettings(encoder=str(tmp_path / "encoder"), batch_size=20, learning_rate=3e-3)
    data = study_data(texts, labels)
    figures = train_victim(data, tmp_path / "victim", seed=1, settings=settings)
    assert figures["test_accuracy"] > 0.9
    assert 1 <= figures["epoch"] <= 4
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "victim")
    assert loaded.config.id2label == {0: "bad", 1: "good"}
    inputs = AutoTokenizer.from_pretrained(tmp_path / "victim")(
        list(texts[-30:]), return_tensors="pt", padding=True
    )
    right = (loaded(**inputs).logits.argmax(-1).numpy() == np.array(labels[-30:])).mean()
    assert right == pytest.approx(figures["test_accuracy"])


# Attacks ----------------------------------------------------------------------------------------------------


def test_victims_that_are_not_attacked_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no victim has been attacked in .*: run the stage 'attack'"):
        pipeline.run("detect", ["sst2"], victim_seeds=[0, 1], runs=tmp_path)
    (tmp_path / "logs" / "sst2-1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="readers"):
        pipeline.run("detect", ["sst2"], victim_seeds=[0, 1], runs=tmp_path)
    assert [record.message for record in caplog.records] == ["not attacked, so left out: sst2-0"]


def test_a_longer_draw_of_texts_begins_with_the_shorter() -> None:
    data = study_data([f"text {i}" for i in range(200)], [0, 1] * 100)
    few = attacked_rows(data, "train", AttackPlan(train=10))
    many = attacked_rows(data, "train", AttackPlan(train=50))
    assert many[:10] == few and len(set(many)) == 50
    assert set(many) <= set(data.train)


# The table --------------------------------------------------------------------------------------------------


def record(number: int, flipped: bool, score: float = 0.6) -> AttackRecord:
    return AttackRecord(
        original_text=f"text {number} is [[fine]]",
        perturbed_text=f"text {number} is [[decent]]",
        original_score=0.1,
        perturbed_score=score,
        original_output=1,
        perturbed_output=int(not flipped),
        ground_truth_output=1,
        num_queries=3,
        result_type="Successful" if flipped else "Failed",
    )


def test_only_new_texts_are_scored(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    prepared = []

    def score(texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        return [float(len(text)) for text in texts]

    def prepare() -> Callable[[Sequence[str]], list[float]]:
        prepared.append(len(asked))
        return score

    path = tmp_path / "scores" / "length.json"
    assert measure.remembered_scores(path, "length", ["a", "bb"], prepare)[0] == {"a": 1.0, "bb": 2.0}
    assert measure.remembered_scores(path, "length", ["bb", "ccc"], prepare)[0] == {"bb": 2.0, "ccc": 3.0}
    assert asked == [["a", "bb"], ["ccc"]]
    assert measure.remembered_scores(path, "length", ["bb"], prepare)[0] == {"bb": 2.0}
    assert prepared == [0, 1]
    measure.remembered_scores(path, "another", ["a"], prepare)
    assert asked[2:] == [["a"]]


def test_far_sets_hold_confident_flips_only_and_small_sets_are_left_out() -> None:
    near = AttackLog([record(i, flipped=i < 30) for i in range(60)], "toy")
    far = AttackLog([record(i, flipped=i < 30, score=0.95 if i < 12 else 0.7) for i in range(60)], "toy")
    few = AttackLog([record(i, flipped=i < 3) for i in range(60)], "few")
    logs = {("toy", "near"): near, ("toy", "far"): far, ("few", "near"): few}
    sets = list(measure.settings_of("d", "d-0", logs, [0, 1], least=10))
    counts = {(s.attack, s.distance, s.scenario): int(d.is_adversarial.sum()) for s, d in sets if s.seed == 0}
    assert counts["toy", "near", "s2"] == 30
    assert counts["toy", "far", "s2"] == 12
    assert not any(attack == "few" for attack, _, _ in counts)
    assert {s.seed for s, _ in sets} == {0, 1}


def test_a_source_has_one_number_wherever_its_row_stands() -> None:
    rows = [record(i, flipped=True) for i in range(30)]
    logs = {("toy", "near"): AttackLog(rows, "toy"), ("other", "near"): AttackLog(rows[:4:-1], "other")}
    numbers: dict[str, set[int]] = {}
    for _, drawn in measure.settings_of("d", "d-0", logs, [0], least=5):
        for text, number in zip(drawn.texts, drawn.source_id.tolist(), strict=True):
            numbers.setdefault(text.split()[1], set()).add(number)
    assert len(numbers) == 30 and all(len(found) == 1 for found in numbers.values())
    assert len(set.union(*numbers.values())) == 30


def test_the_table_has_the_mean_over_seeds_and_thresholds_from_clean_text() -> None:
    log = AttackLog([record(i, flipped=True) for i in range(20)], "toy")
    sets = list(measure.settings_of("d", "d-0", {("toy", "near"): log}, [0, 1, 2], least=10))
    of = {
        f"text {i} is {word}": i / 10 + (5 if word == "decent" else 0)
        for i in range(20)
        for word in ("fine", "decent")
    }
    perfect = measure.Scores(of, np.linspace(0, 2, 99), 0.5)
    blind = measure.Scores(dict.fromkeys(of, 1.0), np.linspace(0, 2, 99), 0.1)
    rows = measure.summary(sets, {"d-0": {"perfect": {0: perfect}, "blind": {s: blind for s in range(3)}}})
    assert len(rows) == 4
    first = next(row for row in rows if row["detector"] == "perfect" and row["scenario"] == "s2")
    assert first["auc"] == first["tpr"] == first["tpr_oracle"] == 1.0
    assert first["fpr"] == pytest.approx(
        0.05
    )  # of 0.0 to 1.9 only 1.9 exceeds the tenth largest of the clean scores
    assert first["f1"] == pytest.approx(2 * 20 / (2 * 20 + 1))
    assert first["auc_sd"] == 0.0 and first["ms"] == 0.5
    other = next(row for row in rows if row["detector"] == "blind" and row["scenario"] == "s2")
    assert other["auc"] == 0.5 and other["tpr"] == 0.0


# Combinations -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    adversarial = [value for value, flag in pairs if flag]
    clean = [value for value, flag in pairs if not flag]
    if not adversarial or not clean:
        return
    wins = sum((a > c) + 0.5 * (a == c) for a in adversarial for c in clean)
    found = combine.auc([value for value, _ in pairs], [flag for _, flag in pairs])
    assert found == pytest.approx(wins / len(adversarial) / len(clean))


def test_the_table_averages_over_victims() -> None:
    log = AttackLog([record(i, flipped=True) for i in range(20)], "toy")
    sets = [
        one
        for victim in ("d-0", "d-1")
        for one in measure.settings_of("d", victim, {("toy", "near"): log}, [0], least=10)
    ]
    of = {f"text {i} is {word}": float(word == "decent") for i in range(20) for word in ("fine", "decent")}
    right = measure.Scores(of, np.zeros(9), 1.0)
    wrong = measure.Scores({text: -value for text, value in of.items()}, np.zeros(9), 3.0)
    rows = measure.summary(sets, {"d-0": {"one": {0: right}}, "d-1": {"one": {0: wrong}}})
    assert [row["auc"] for row in rows] == [0.5, 0.5]
    assert [row["auc_sd"] for row in rows] == pytest.approx([np.std([0, 1], ddof=1)] * 2)
    assert {row["victims"] for row in rows} == {2.0} and {row["ms"] for row in rows} == {2.0}


def test_the_interval_of_a_row_takes_the_first_draw_that_is_there() -> None:
    """In one victim's first draw of scenario 1 too few texts may be adversarial."""
    log = AttackLog([record(i, flipped=True) for i in range(40)], "toy")
    drawn = {
        victim: list(measure.settings_of("d", victim, {("toy", "near"): log}, [0, 1], least=10))
        for victim in ("d-0", "d-1")
    }
    sets = [*drawn["d-0"], *(one for one in drawn["d-1"] if one[0].seed == 1)]
    texts = {text for _, found in sets for text in found.texts}
    good = measure.Scores({text: float("decent" in text) for text in texts}, np.zeros(9), 0.1)
    bad = measure.Scores(dict.fromkeys(texts, 0.0), np.zeros(9), 0.1)
    scores = {victim: {"good": {0: good}, "bad": {0: bad}} for victim in drawn}
    for found in (sets, sets[len(drawn["d-0"]) :]):
        interval = pipeline.interval_of(("d", "toy", "near", "s1"), "good", "bad", found, scores)
        assert interval == pytest.approx((0.5, 0.5))


def test_rows_are_averaged_and_counts_are_summed() -> None:
    rows = [{"data": "d", "texts": 10, "share": 0.2}, {"data": "d", "texts": 30, "share": 0.4}]
    assert averaged(rows, ("data",), counts=("texts",)) == [
        {"data": "d", "texts": 40, "share": pytest.approx(0.3)}
    ]
    rows += [{"data": "d", "texts": 5, "share": math.nan}, {"data": "none", "texts": 5, "share": math.nan}]
    assert averaged(rows, ("data",), counts=("texts",)) == [
        {"data": "d", "texts": 45, "share": pytest.approx(0.3)},
        {"data": "none", "texts": 5, "share": ""},
    ]


def judged(seed: int = 0, n: int = 400) -> Judged:
    """Members: half of the truth, the other half, noise."""
    rng = np.random.default_rng(seed)
    adversarial = np.arange(n) % 2 == 1
    surprises = rng.exponential(size=(n, 3))
    surprises[:, 0] += 1.5 * adversarial
    surprises[:, 1] += 1.5 * adversarial
    return Judged(f"set {seed}", adversarial, np.arange(n) // 2, surprises)


def test_the_interval_of_a_lead_covers_it_and_keeps_sources_together() -> None:
    rng = np.random.default_rng(0)
    adversarial = np.arange(400) % 2 == 1
    strong, weak = (rng.normal(size=400) + shift * adversarial for shift in (1.5, 0.5))
    pairs = combine.Compared(strong, weak, adversarial, np.arange(400) // 2)
    low, high = combine.lead_interval([pairs, pairs])
    lead = combine.auc(strong, adversarial) - combine.auc(weak, adversarial)
    assert 0 < low < lead < high < 0.4
    assert combine.lead_interval([pairs]) == pytest.approx((low, high), abs=0.08)
    one_source = combine.Compared(strong, weak, adversarial, np.zeros(400, int))
    assert combine.lead_interval([one_source]) == pytest.approx((lead, lead))


def test_a_stack_learns_what_members_say_together() -> None:
    found = combine.Stack(trees=50).fit([judged(0), judged(1)]).score(judged(2).surprises)
    truth = judged(2).is_adversarial
    assert combine.auc(found, truth) > max(combine.auc(row, truth) for row in judged(2).surprises.T) + 0.02
    again = combine.Stack(trees=50).fit([judged(0), judged(1)]).score(judged(2).surprises)
    np.testing.assert_array_equal(found, again)


def test_the_trees_of_a_stack_take_no_surprise_for_a_good_sign() -> None:
    stack = combine.Stack(trees=50).fit([judged(0), judged(1)])
    for member in range(3):
        rows = np.repeat(judged(2, n=20).surprises, 50, axis=0)
        rows[:, member] = np.tile(np.linspace(0, 8, 50), 20)
        steps = np.diff(stack.trees.decision_function(rows).reshape(20, 50))
        assert (steps >= 0).all() and (member == 2 or steps.sum() > 1)


def test_every_set_counts_the_same_in_a_stack() -> None:
    """A member that a small set contradicts is trusted as little as in a set of the same size."""
    small = judged(1, n=40)
    turned = Judged("turned", small.is_adversarial, small.source, -small.surprises)
    truth = judged(2).is_adversarial
    alone = combine.Stack(trees=50).fit([judged(0)])
    both = combine.Stack(trees=50).fit([judged(0), turned])
    assert combine.auc(alone.regression.decision_function(judged(2).surprises), truth) > 0.85
    assert np.abs(both.regression.coef_).max() < np.abs(alone.regression.coef_).max() / 2


def test_out_of_fold_scores_come_from_other_sources() -> None:
    rng = np.random.default_rng(1)
    n, members = 60, 100
    adversarial = np.arange(n) % 2 == 1
    values = rng.exponential(size=(n, members))
    noise = Judged("noise", adversarial, np.arange(n), values)
    stack = combine.Stack(trees=50).fit([noise])
    assert combine.auc(stack.score(noise.surprises), adversarial) > 0.8  # chance, exploited
    assert combine.auc(combine.out_of_fold([noise])[0], adversarial) < 0.65


def test_texts_of_one_source_share_a_fold_in_every_set() -> None:
    sets = [judged(0), judged(1)]
    first, second = combine.folds(sets, 5)
    assert (first[::2] == first[1::2]).all() and (first == second).all()
    assert set(first) == set(range(5))


def test_the_best_sum_joins_what_complements() -> None:
    choice = combine.best_sum([judged(0), judged(1)], ["one", "other", "noise"])
    assert set(choice.weights) == {"one", "other"}
    assert min(choice.leads) > 0


def test_rows_are_counted_where_a_detector_reaches_the_best_of_others() -> None:
    aucs = {"one": (0.9, 0.6, 0.7), "other": (0.8, 0.7, 0.7), "third": (0.5, 0.9, 0.2)}
    rows = [
        {"data": "d", "attack": f"a{i}", "distance": "near", "scenario": "s1", "detector": name, "auc": auc}
        for name, values in aucs.items()
        for i, auc in enumerate(values)
    ]
    found = tables.reached(rows, ["one"], {"both": ["one", "other"], "all": list(aucs)}).splitlines()[-1]
    # Leads .1, -.1, 0 and .1, -.3, 0.
    assert found == "| one | 2 of 3 (+0.0, worst -10.0) | 2 of 3 (-6.7, worst -30.0) |"


# Edit probes ------------------------------------------------------------------------------------------------


def test_the_probe_finds_words_that_were_replaced_without_seeing_an_attack() -> None:
    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer)
    texts, labels = toy_sentiment(300)
    detector = SubstitutionDetector(classifier, [typos], penalty=1.0)
    detector.fit(classifier.extract(texts[:200]), np.array(labels[:200]))
    clean = texts[200:]
    altered = [
        edited(text, lambda word: [word[::-1]], frozenset(), Random(i)).text for i, text in enumerate(clean)
    ]
    scores = detector.score_samples(classifier.extract([*clean, *altered]))
    assert combine.auc(scores, np.arange(200) >= 100) > 0.9
    again = SubstitutionDetector(classifier, [typos], penalty=1.0)
    again.fit(classifier.extract(texts[:200]), np.array(labels[:200]))
    np.testing.assert_allclose(again.score_samples(classifier.extract(clean)), scores[:100], rtol=1e-4)


def test_hidden_states_do_not_depend_on_the_batch() -> None:
    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer)
    texts, _ = toy_sentiment(50)
    together = hidden_states(classifier, texts)
    assert together.shape == (50, 2 * 3 * 32)
    alone = np.concatenate([hidden_states(classifier, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    vectors = classifier.extract(texts).values
    np.testing.assert_allclose(together[:, 2 * 32 : 3 * 32], vectors, atol=1e-5)


# Spelling ---------------------------------------------------------------------------------------------------


def test_the_surprise_of_a_word_by_hand() -> None:
    detector = SpellingDetector(smoothing=0.5)
    detector.fit(Features.of(np.zeros((1, 1)), np.zeros(1, int), texts=("ab ac",)), np.zeros(1, int))
    # Runs of "ab", "ac": ^^a twice, ^ab, ^ac, ab$, ac$; symbols a, b, c, $.
    expected = [
        math.log((2 + 0.5 * 5) / (2 + 0.5)),  # ^^a
        math.log((2 + 0.5 * 5) / (1 + 0.5)),  # ^ab
        math.log((1 + 0.5 * 5) / (0 + 0.5)),  # abc
        math.log((0 + 0.5 * 5) / (0 + 0.5)),  # bc$
    ]
    assert detector.surprise("abc") == pytest.approx(sum(expected) / 4)
    assert detector.surprise("ab") == 0.0
    scores = detector.score_samples(
        Features.of(np.zeros((2, 1)), np.zeros(2, int), texts=("Ab , abc ac", "..."))
    )
    assert scores == pytest.approx([sum(expected) / 4 / 3, 0.0])


def test_typos_stand_out(tmp_path: Path) -> None:
    texts, labels = toy_sentiment(300)
    of = lambda part: Features.of(np.zeros((len(part), 1)), np.zeros(len(part), int), texts=tuple(part))  # noqa: E731
    detector = SpellingDetector().fit(of(texts), np.array(labels))
    rng = Random(0)
    altered = [edited(text, lambda word: typos(word, rng), frozenset(), rng).text for text in texts[:100]]
    scores = detector.score_samples(of([*texts[:100], *altered]))
    assert (scores[:100] == 0).all()
    assert combine.auc(scores, np.arange(200) >= 100) > 0.9
    detector.save_pretrained(tmp_path / "detector")
    again = SpellingDetector.from_pretrained(tmp_path / "detector")
    np.testing.assert_array_equal(again.score_samples(of(altered)), scores[100:])


def test_a_probe_is_saved_and_loaded(tmp_path: Path) -> None:
    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer)
    texts, labels = toy_sentiment(120)
    offers = [typos]
    detector = SubstitutionDetector(classifier, offers, penalty=1.0)
    detector.fit(classifier.extract(texts), np.array(labels))
    detector.save_pretrained(tmp_path / "probe")
    parts = {"offers": offers, "spared": frozenset()}
    again = SubstitutionDetector.from_pretrained(tmp_path / "probe", classifier=classifier, parts=parts)
    inputs = classifier.extract(texts[:20])
    np.testing.assert_array_equal(again.score_samples(inputs), detector.score_samples(inputs))


# Readers of replaced words ----------------------------------------------------------------------------------


def test_a_reader_learns_to_find_replaced_words(tmp_path: Path) -> None:
    texts, labels = toy_sentiment(400)
    model, tokenizer = tiny_classifier("bert", texts, spread=0.05)
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    data = study_data(texts, labels)
    sources = [lambda word, rng: [word[::-1]]]
    figures = train_reader(
        data,
        sources,
        frozenset(),
        tmp_path / "reader",
        seed=0,
        encoder=str(tmp_path / "encoder"),
        settings=ReplacedWordsSettings(copies=3, batch_size=20, learning_rate=3e-3),
    )
    assert figures["validation_auc"] > 0.9
    assert json.loads((tmp_path / "reader" / "figures.json").read_text())["seed"] == 0
    clean = [text for text, _ in data.test]
    altered = [new.text for new in edited_copies(clean, sources, seed=9)]
    reader = WordReader.from_pretrained(tmp_path / "reader")
    assert reader.max_length == data.max_length
    scores = reader.log_odds([*clean, *altered])
    assert combine.auc(scores, np.arange(len(scores)) >= len(clean)) > 0.9
