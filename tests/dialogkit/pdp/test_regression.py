"""Characters under test: a voice that holds passes, each way of failing is found by its check."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dialogkit.generation.types import Candidate, GenerationConfig, Likelihood, Prompt
from dialogkit.pdp import Character, CharacterReport, PDPConfig, RegressionConfig, examine_character, leaked
from dialogkit.pdp.character_report import CHECKS, Check
from tests.dialogkit.pdp.helpers import HashRetriever

PIRATE = Character(
    "Captain Gull",
    tuple(
        f"Arr matey, {rest}, ahoy!"
        for rest in (
            "the sea calls me",
            "I sail at dawn",
            "my parrot has six feathers",
            "rum warms the bones",
            "I never trust a shark",
            "the wind is my brother",
            "gold sleeps under palm trees",
            "my boots are full of sand",
        )
    ),
)
ROBOT = Character("Unit Nine", ("Beep. Query received. Please state your name slowly.", "Beep. Battery low."))
MONK = Character("Brother Fern", ("Rain falls on the old stone roof.", "The bell rests, friend."))
QUESTIONS = (
    "Hello there!",
    "What do you eat?",
    "Where do you sleep?",
    "Who was that?",
    "Is it late?",
    "Bye!",
)
CONFIG = RegressionConfig(questions=QUESTIONS, sessions=1)
BOT = PDPConfig(matcher="random", max_dialogs=8)


class Actor:
    """A language model that answers by a function of the prompt."""

    name, max_length, supports_chat = "actor", None, False

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        return [[Candidate(self.answer(str(prompt)), -1.0, -1.0, 1, "stop")] for prompt in prompts]

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> Iterator[str]:
        yield self.answer(str(prompt))

    def count_tokens(self, prompt: Prompt) -> int:
        return len(str(prompt))

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        raise NotImplementedError


def turns(prompt: str) -> int:
    """How many of the user's turns stand in the prompt, the pairs (four shown lines) left out."""
    return prompt.count("User:") - 4


def faithful(prompt: str) -> str:
    """In the voice of the lines in the prompt, with another word each time; plain without lines."""
    said = prompt.rsplit("User: ", 1)[1].split("\n")[0]
    return f"Arr matey, {said.strip('?!. ').lower()} says I, ahoy!" if "matey" in prompt else f"Well, {said}"


def report(answer: Callable[[str], str], **changes: float) -> CharacterReport:
    config = replace(CONFIG, **changes)
    return examine_character(
        PIRATE, Actor(answer), HashRetriever(), (ROBOT, MONK, PIRATE), bot=BOT, config=config
    )


def failed(found: CharacterReport) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


@pytest.fixture(scope="module")
def good() -> CharacterReport:
    return report(faithful)


def test_a_character_in_its_voice_passes(good: CharacterReport) -> None:
    assert good.passed and failed(good) == []
    assert [check.name for check in good.checks] == list(CHECKS)
    style = good.checks[0].figures
    assert style["low"] <= style["lead"] <= style["high"]
    assert style["lead"] == pytest.approx(style["style_prob"] - style["without_lines"])
    assert style["lead"] > 0.3 and style["own_lines"] > 0.5
    # Two halves of the lines, each with six replies alone and a conversation of six turns.
    assert len(good.replies) == 2 * (6 + 6)
    assert sorted(r["turn"] for r in good.replies if r["kind"] == "conversation") == sorted(
        [*range(1, 7)] * 2
    )
    assert all(0 < reply["style"] < 1 for reply in good.replies)


def test_a_voice_that_is_lost_fails_style() -> None:
    found = report(lambda prompt: faithful(prompt.replace("matey", "")))
    assert failed(found) == ["style"]
    assert found.checks[0].figures["lead"] == 0 and found.checks[0].examples


def test_silence_has_no_style() -> None:
    found = report(lambda prompt: "")
    assert "style" in failed(found) and found.checks[0].figures["silent"] == 1.0
    assert all(reply["style"] == 0 for reply in found.replies)


def test_denying_the_card_fails_contradiction() -> None:
    def answer(prompt: str) -> str:
        return (
            "Arr matey, I trust a shark, ahoy!"
            if "Where do you sleep?\nCaptain" in prompt
            else faithful(prompt)
        )

    found = report(answer)
    assert failed(found) == ["contradiction"]
    # Asked alone and in the conversation, with both halves; all turns after it still hold the question.
    assert found.checks[1].figures["share"] >= 4 / 24
    assert "denies" in found.checks[1].examples[0]
    assert report(answer, max_contradiction=1.0).passed


def test_losing_the_voice_late_fails_drift() -> None:
    def late(prompt: str) -> str:
        return faithful(prompt) if turns(prompt) <= 3 else f"I think so, {turns(prompt)}."

    found = report(late)
    assert failed(found) == ["drift"]
    drift = found.checks[2].figures
    assert drift["low"] > 0.5 * found.checks[0].figures["lead"] and drift["repeats"] == 0
    assert report(late, max_drift=5.0).passed


def test_saying_the_same_again_and_again_fails_drift() -> None:
    found = report(lambda prompt: "Arr matey, aye, ahoy!" if "matey" in prompt else "Well.")
    assert failed(found) == ["drift"]
    assert found.checks[2].figures["repeats"] == pytest.approx(5 / 6)
    assert found.checks[2].figures["loss"] == pytest.approx(0)


def test_drift_compares_a_question_with_itself() -> None:
    """A question that is out of character wherever it stands is no drift."""

    def answer(prompt: str) -> str:
        last = prompt.rsplit("User: ", 1)[1]
        return "Certainly not today." if last.startswith(QUESTIONS[:3]) else faithful(prompt)

    assert report(answer).checks[2].figures["loss"] == pytest.approx(0)


def test_words_of_another_character_fail_leakage() -> None:
    stolen = "Arr matey, rain falls on the old stone roof, ahoy!"
    found = report(lambda prompt: stolen if "Is it late?\nCaptain" in prompt[-40:] else faithful(prompt))
    assert failed(found) == ["leakage"]
    assert "rain falls on the old" in found.checks[3].examples[0]
    assert found.checks[3].figures == {"share": 4 / 24, "replies": 24.0, "others": 2.0}


def test_a_judge_that_is_given_sees_the_whole_character() -> None:
    class Judge:
        labels = ("monk", "captain-gull")

        def probabilities(self, texts: Sequence[str]) -> np.ndarray:
            own = np.array([0.9 if "matey" in text else 0.1 for text in texts])
            return np.stack([1 - own, own], axis=1)

    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return faithful(prompt)

    found = examine_character(
        PIRATE, Actor(answer), HashRetriever(), (MONK,), judge=Judge(), bot=BOT, config=CONFIG
    )
    assert found.checks[0].figures["style_prob"] == pytest.approx(0.9)
    assert found.checks[0].figures["lead"] == pytest.approx(0.8)
    assert len(found.replies) == 6 + 6 and max(prompt.count("Arr matey") for prompt in prompts) >= 8
    Judge.labels = ("monk", "somebody")
    with pytest.raises(ValueError, match="the judge knows monk, somebody, not 'Captain Gull'"):
        examine_character(PIRATE, Actor(answer), HashRetriever(), (MONK,), judge=Judge(), config=CONFIG)


def test_inference_takes_the_place_of_words() -> None:
    class Contrary:
        def probabilities(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
            return np.array(
                [
                    0.9 if "shark" in a and "eat" in b else 0.2
                    for a, b in zip(premises, hypotheses, strict=True)
                ]
            )

    found = examine_character(
        PIRATE,
        Actor(faithful),
        HashRetriever(),
        (MONK,),
        nli=Contrary(),
        bot=BOT,
        config=CONFIG,  # type: ignore[arg-type]
    )
    assert failed(found) == ["contradiction"]
    assert "0.90 against 'Arr matey, I never trust a shark, ahoy!'" in found.checks[1].examples[0]


def test_the_prompt_never_shows_a_line_that_the_judge_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[tuple[str, ...]] = []
    shown: list[str] = []

    class Judge:
        def __init__(self, lines: dict[str, Sequence[str]]) -> None:
            learnt.append(tuple(lines["character"]))

        def probabilities(self, texts: Sequence[str]) -> np.ndarray:
            shown.append("")
            return np.full((len(texts), 2), 0.5)

    def answer(prompt: str) -> str:
        shown[-1:] = [shown[-1] + prompt] if shown else [prompt]
        return faithful(prompt)

    monkeypatch.setattr("dialogkit.pdp.regression.NgramStyleClassifier", Judge)
    report(answer)
    assert sorted(learnt[0] + learnt[1]) == sorted(PIRATE.utterances)
    for prompts in shown:
        assert sum(any(line in prompts for line in half) for half in learnt) <= 1


def test_the_same_seed_gives_the_same_report(good: CharacterReport) -> None:
    again = replace(report(faithful), seconds=good.seconds)
    assert again == good


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("Yes, rain falls on the OLD stone roof!", "rain falls on the old"),
        ("The bell rests, friend.", "the bell rests friend"),
        ("Ask Brother Fern about it.", "Brother Fern"),
        ("Rain falls on the hill.", None),
        ("The bell rests, friend, and so do I.", None),
        ("", None),
    ],
)
def test_leaked_words(reply: str, words: str | None) -> None:
    assert leaked(reply, MONK.utterances, names=[MONK.name]) == words


def test_words_that_may_be_said_do_not_leak() -> None:
    line = "Rain falls on the old stone roof."
    assert leaked(line, MONK.utterances, allowed=[line]) is None
    assert leaked("rain falls on the old stone", [line], allowed=["rain falls on the old stone"]) is None
    assert (
        leaked("I know Brother Fern.", [], names=["Brother Fern"], allowed=["Who is Brother Fern?"]) is None
    )
    assert leaked("I know Brother Fernando.", [], names=["Brother Fern"]) is None


def test_json_and_junit_tell_the_same(good: CharacterReport, tmp_path: Path) -> None:
    bad = replace(
        good,
        character='Tom "<&>" \x00',
        checks=(*good.checks[:3], Check("leakage", False, "2 of 3 <b>", {"share": 2 / 3}, ("a\x1b -> ]]>",))),
    )
    bad.write_json(tmp_path / "report.json")
    bad.write_junit(tmp_path / "report.xml")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["format"] == "dialogkit-character-test/1" and record["passed"] is False
    assert [check["passed"] for check in record["checks"]] == [True, True, True, False]
    assert record["settings"]["questions"] == list(QUESTIONS) and len(record["replies"]) == 24
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.attrib["tests"] == "4" and suite.attrib["failures"] == "1"
    assert suite.attrib["name"] == 'character Tom "<&>" \ufffd'
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert list(cases) == list(CHECKS)
    assert [name for name, case in cases.items() if case.find("failure") is not None] == ["leakage"]
    failure = cases["leakage"].find("failure")
    assert failure is not None and failure.attrib["message"] == "2 of 3 <b>" and "]]>" in (failure.text or "")
    figures = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert float(figures["leakage.share"]) == pytest.approx(2 / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": ("Hi.",)}, "at least two"),
        ({"questions": ("Hi.", " \n ")}, "none blank"),
        ({"sessions": 0}, "sessions must be at least 1"),
        ({"run": 1}, "run must be at least 2"),
        ({"min_style": 1.5}, r"min_style must be in \[-1, 1\]"),
        ({"max_drift": -0.1}, "max_drift must not be negative"),
        ({"max_leakage": -0.1}, r"max_leakage must be in \[0, 1\]"),
        ({"max_repeats": float("nan")}, r"max_repeats must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegressionConfig(**changes)  # type: ignore[arg-type]


def test_characters_that_cannot_be_tested_are_refused() -> None:
    few = Character("Bo", ("One.", "Two.", "Three."))
    with pytest.raises(ValueError, match="'Bo' has 3 lines"):
        examine_character(few, Actor(faithful), HashRetriever(), (ROBOT,))
    with pytest.raises(ValueError, match="no other characters"):
        examine_character(PIRATE, Actor(faithful), HashRetriever(), (replace(PIRATE, name="Twin"), PIRATE))
