"""Detection sets drawn from attack logs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.attacks.logs import AttackLog, AttackRecord
from robustkit.detection.scenarios import DetectionSet, make_scenario, split_log


def record(number: int, truth: int, before: int, after: int, score: float = 0.6) -> AttackRecord:
    return AttackRecord(
        original_text=f"source {number} is [[good]] [sic]",
        perturbed_text=f"source {number} is [[fine]] [sic]",
        original_score=0.1 if before == truth else 0.8,
        perturbed_score=score,
        original_output=before,
        perturbed_output=after,
        ground_truth_output=truth,
        num_queries=3,
        result_type="Failed",  # wrong on purpose: outcomes come from the predictions
    )


# 20 rows: 12 successful (scores 0.55, 0.60, ... 1.10 capped), 5 failed, 3 skipped.
RECORDS = [
    *(record(i, i % 2, i % 2, 1 - i % 2, min(0.99, 0.55 + 0.05 * i)) for i in range(12)),
    *(record(i, i % 2, i % 2, i % 2, 0.3) for i in range(12, 17)),
    *(record(i, i % 2, 1 - i % 2, 1 - i % 2, 0.9) for i in range(17, 20)),
]
LOG = AttackLog(RECORDS)
SUCCESSFUL, FAILED, SKIPPED = set(range(12)), set(range(12, 17)), set(range(17, 20))


def sides(found: DetectionSet) -> tuple[set[int], set[int]]:
    """Sources of the clean and of the adversarial texts."""
    return set(found.source_id[~found.is_adversarial]), set(found.source_id[found.is_adversarial])


@pytest.mark.parametrize("seed", range(5))
def test_behaviour_16_scenario_1_has_equal_sides_and_no_shared_source(seed: int) -> None:
    found = make_scenario(LOG, "s1", seed=seed, val_ratio=0.0)
    clean, adversarial = sides(found)
    assert len(clean) == len(adversarial) == found.is_adversarial.sum() == len(found) / 2
    assert not clean & adversarial
    assert adversarial <= SUCCESSFUL


def test_behaviour_16_scenario_1_takes_as_many_as_the_order_allows() -> None:
    """The largest n such that n adversarial texts come before n other rows, by brute force."""
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(np.random.default_rng(seed).permutation(20))
        best = max(
            sum(row in SUCCESSFUL for row in order[:size])
            for size in range(21)
            if sum(row in SUCCESSFUL for row in order[:size]) <= 20 - size
        )
        assert make_scenario(LOG, "s1", seed=seed, val_ratio=0.0).is_adversarial.sum() == best


@pytest.mark.parametrize("val_ratio", [0.0, 0.3])
def test_behaviour_16_scenario_2_has_the_whole_split_as_its_clean_side(val_ratio: float) -> None:
    found = make_scenario(LOG, "s2", val_ratio=val_ratio)
    clean, adversarial = sides(found)
    validation, test = split_log(LOG, val_ratio)
    assert len(validation) == int(20 * val_ratio)
    assert {RECORDS[i].original_text for i in clean} == {r.original_text for r in test}
    assert adversarial == clean & SUCCESSFUL


def test_behaviour_16_clean_texts_may_be_misclassified_but_skipped_rows_are_never_adversarial() -> None:
    for include_failed in (False, True):
        clean, adversarial = sides(make_scenario(LOG, "s2", val_ratio=0.0, include_failed=include_failed))
        assert clean >= SKIPPED
        assert adversarial == (SUCCESSFUL | FAILED if include_failed else SUCCESSFUL)


def test_behaviour_16_marks_are_stripped_by_both_conventions() -> None:
    for compat, text in (("github", "source 3 is fine [sic]"), ("acl", "source 3 is fine sic")):
        found = make_scenario(LOG, "s2", val_ratio=0.0, compat=compat)  # type: ignore[arg-type]
        texts = [
            t
            for t, i, a in zip(found.texts, found.source_id, found.is_adversarial, strict=True)
            if a and i == 3
        ]
        assert texts == [text]


def test_behaviour_16_the_seed_decides_the_rows() -> None:
    def rows(seed: int) -> list[int]:
        return [int(i) for i in make_scenario(LOG, "s1", seed=seed).source_id]

    assert rows(0) == rows(0)
    assert len({tuple(rows(seed)) for seed in range(6)}) > 3


def test_behaviour_17_the_outcome_comes_from_the_predictions() -> None:
    assert {r.result_type for r in LOG} == {"Failed"}
    assert sides(make_scenario(LOG, "s2", val_ratio=0.0))[1] == SUCCESSFUL
    assert sides(make_scenario(LOG.relabelled(), "s2", val_ratio=0.0))[1] == SUCCESSFUL


def test_behaviour_17_min_confidence_keeps_adversarial_texts_far_from_the_boundary() -> None:
    clean, adversarial = sides(make_scenario(LOG, "s2", val_ratio=0.0, min_confidence=0.9))
    assert adversarial == {i for i in SUCCESSFUL if RECORDS[i].perturbed_score >= 0.9} == set(range(7, 12))
    assert len(clean) == 20


def test_what_the_log_knows_of_each_text_comes_along() -> None:
    found = make_scenario(LOG, "s2", val_ratio=0.0)
    for text, adversarial, truth, source, output, score in zip(
        found.texts,
        found.is_adversarial,
        found.ground_truth,
        found.source_id,
        found.logged_output,
        found.logged_score,
        strict=True,
    ):
        of = RECORDS[source]
        assert text == f"source {source} is {'fine' if adversarial else 'good'} [sic]"
        assert truth == of.ground_truth_output
        assert output == (of.perturbed_output if adversarial else of.original_output)
        assert score == (of.perturbed_score if adversarial else of.original_score)
    assert list(found.is_adversarial) == sorted(found.is_adversarial)


@given(st.integers(1, 12), st.integers(0, 50), st.sampled_from(["s1", "s2"]))
@settings(max_examples=60, deadline=None)
def test_the_corrected_convention_takes_exactly_what_is_wanted(n_adv: int, seed: int, scenario: str) -> None:
    try:
        found = make_scenario(LOG, scenario, n_adv=n_adv, seed=seed, val_ratio=0.0)  # type: ignore[arg-type]
    except ValueError as error:
        assert scenario == "s1" and f"{n_adv} wanted" in str(error)
        return
    assert found.is_adversarial.sum() == n_adv
    if scenario == "s1":
        assert (~found.is_adversarial).sum() == n_adv


def test_the_released_convention_repeats_the_codes_arithmetic() -> None:
    """1,000 rows, 900 successful, accuracy .95; n_adv 200 gives 200 / .9 / .95 = 233.9 rows."""
    rows = [replace(RECORDS[0], original_text=f"{i}") for i in range(900)]
    rows += [RECORDS[12]] * 50 + [RECORDS[17]] * 50
    log = AttackLog(rows)
    found = make_scenario(log, "s1", n_adv=200, val_ratio=0.0, convention="released")
    order = np.random.default_rng(0).permutation(np.random.default_rng(0).permutation(1000))
    first = [row for row in order[:233] if row < 900]
    assert list(found.source_id[found.is_adversarial]) == first
    assert list(found.source_id[~found.is_adversarial]) == list(order[233 : 233 + len(first)])
    # Above a ratio of .4 the target falls by tens until 350 / 900 = .389.
    found = make_scenario(log, "s1", n_adv=390, val_ratio=0.0, convention="released")
    assert list(found.source_id[found.is_adversarial]) == [row for row in order[:388] if row < 900]
    found = make_scenario(log, "s2", n_adv=200, val_ratio=0.0, convention="released")
    assert list(found.source_id[~found.is_adversarial]) == list(order[:233])
    found = make_scenario(log, "s2", n_adv=5000, val_ratio=0.0, convention="released")
    assert (~found.is_adversarial).sum() == 1000


def test_the_split_is_the_one_the_scenario_uses() -> None:
    validation, test = split_log(LOG, 0.3, seed=2)
    assert len(validation) == 6 and len(test) == 14
    assert {r.original_text for r in validation} | {r.original_text for r in test} == {
        r.original_text for r in RECORDS
    }
    drawn = {RECORDS[i].original_text for i in make_scenario(LOG, "s2", seed=2, val_ratio=0.3).source_id}
    assert drawn == {r.original_text for r in test}


@pytest.mark.parametrize(
    ("log", "options", "message"),
    [
        (LOG, {"scenario": "s3"}, "scenario is 's3'"),
        (LOG, {"convention": "other"}, "convention is 'other'"),
        (LOG, {"compat": "other"}, "compat is 'other'"),
        (LOG, {"n_adv": 0}, "n_adv is 0"),
        (LOG, {"n_adv": 13, "scenario": "s2"}, "13 wanted, but scenario s2 finds 12"),
        (LOG, {"val_ratio": 1.0}, "val_ratio is 1.0"),
        (LOG, {"min_confidence": 1.5}, "no adversarial text"),
        (AttackLog(RECORDS[12:]), {}, "no adversarial text"),
        (AttackLog([]), {}, "no adversarial text"),
        (AttackLog(RECORDS[:1]), {}, "any wanted, but scenario s1 finds 0"),
        (LOG, {"n_adv": 1, "convention": "released"}, "released rule takes"),
    ],
)
def test_bad_input_is_refused(log: AttackLog, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenario(log, **{"scenario": "s1", "val_ratio": 0.0, **options})  # type: ignore[arg-type]
