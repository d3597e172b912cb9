"""What the load test says of a server's memory."""

import pytest

pytest.importorskip("openai")

from scripts.serve_load import MIB, Sample, memory


def told(resident: list[float], kept: list[float]) -> dict:
    samples = [
        Sample(5.0 * i, int(all_of_it * MIB), int(part * MIB))
        for i, (all_of_it, part) in enumerate(zip(resident, kept, strict=True))
    ]
    return memory(samples)


def test_what_is_kept_of_prompts_may_grow() -> None:
    found = told([600 + 10 * i for i in range(20)], [10.0 * i for i in range(20)])
    assert found["flat"] and found["besides_kept_least_mib_by_quarter"] == [600] * 4
    assert (found["most_mib"], found["most_kept_mib"]) == (790, 190)
    assert found["over_time"][3] == {"seconds": 15, "mib": 630, "kept_mib": 30}


def test_a_leak_is_not_flat() -> None:
    assert not told([600 + 20.0 * i for i in range(20)], [0.0] * 20)["flat"]


def test_a_large_batch_now_and_then_is_no_leak() -> None:
    assert told([600.0 + 300 * (i % 4 == 3) for i in range(20)], [0.0] * 20)["flat"]


def test_too_short_a_look_shows_nothing() -> None:
    assert not told([600.0] * 3, [0.0] * 3)["flat"]
