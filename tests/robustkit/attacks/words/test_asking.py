"""Parts of an attack ask services and go on with the answers."""

from collections.abc import Sequence

from robustkit.attacks.words import Ask, Steps, run


class Doubler:
    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []

    def answer(self, payloads: Sequence[int]) -> list[int]:
        self.asked.append(payloads)
        return [2 * payload for payload in payloads]


def test_answers_come_back_in_order() -> None:
    service = Doubler()

    def inner() -> Steps[int]:
        answers = yield Ask(service, (1, 2, 2))
        return sum(answers)

    def outer() -> Steps[list[int]]:
        first = yield from inner()
        nothing = yield Ask(service, ())
        second = yield Ask(service, (first,))
        return [first, *nothing, *second]

    assert run(outer()) == [10, 20]
    assert service.asked == [(1, 2, 2), (10,)]


def test_a_part_that_asks_nothing() -> None:
    def steps() -> Steps[str]:
        yield from ()
        return "done"

    assert run(steps()) == "done"
