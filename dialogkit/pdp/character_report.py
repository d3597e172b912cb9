"""The report of a character's regression test, as JSON and as JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from trainkit.hub import write_bytes, write_json

__all__ = ["CHECKS", "CharacterReport", "Check"]

FORMAT = "dialogkit-character-test/1"

CHECKS: Mapping[str, str] = {
    "style": "How much likelier the judge finds the character in its replies than in those of the same model "
    "without any of its lines. Tells a voice that is lost; says nothing about sense, and rewards catchwords.",
    "contradiction": "Share of replies that contradict a line of the card. By words: finds a line denied in "
    "its own words, another number, a wrong name, and misses the rest. By inference: as good as that model.",
    "drift": "How much style the second half of a conversation loses against the same questions asked "
    "afresh, and the share of turns that repeat an earlier one. Questions are scripted: nobody argues.",
    "leakage": "Share of replies that hold a run of words of another character's line, or its name. Finds "
    "copied words of the characters it is given; no borrowed manner, and nobody else's words.",
}
"""What each check measures, and what it cannot tell."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: A key of `CHECKS`.
        passed: Whether the character passed.
        message: The outcome in a line.
        figures: What was measured.
        examples: Some replies that speak against the character, with the reason.
    """

    name: str
    passed: bool
    message: str
    figures: Mapping[str, float]
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class CharacterReport:
    """What came of a test.

    Attributes:
        character: Display name.
        model: Name of the language model.
        checks: The four checks.
        replies: Everything that was said: ``question``, ``reply``, ``style`` (the judge's probability),
            ``kind`` (``"alone"`` or ``"conversation"``) and ``turn``, from 1 (1 for a reply alone).
        settings: Those of the test.
        seconds: Wall-clock time.
    """

    character: str
    model: str
    checks: tuple[Check, ...]
    replies: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all checks are passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "format": FORMAT,
            "character": self.character,
            "model": self.model,
            "passed": self.passed,
            "seconds": self.seconds,
            "checks": [{**asdict(check), "measures": CHECKS[check.name]} for check in self.checks],
            "settings": dict(self.settings),
            "replies": [dict(reply) for reply in self.replies],
        }

    def write_json(self, path: str | Path) -> None:
        """Writes the report as a JSON file, atomically."""
        write_json(path, self.to_dict())

    def to_junit(self) -> str:
        """The report as JUnit XML: a suite for the character, a case for each check."""
        suite = ElementTree.Element(
            "testsuite",
            {
                "name": _xml(f"character {self.character}"),
                "tests": str(len(self.checks)),
                "failures": str(sum(not check.passed for check in self.checks)),
                "errors": "0",
                "skipped": "0",
                "time": f"{self.seconds:.3f}",
            },
        )
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(properties, "property", {"name": "model", "value": _xml(self.model)})
        for check in self.checks:
            for name, value in check.figures.items():
                about = {"name": f"{check.name}.{name}", "value": f"{value:.6g}"}
                ElementTree.SubElement(properties, "property", about)
        for check in self.checks:
            about = {"classname": _xml(f"character.{self.character}"), "name": check.name, "time": "0"}
            case = ElementTree.SubElement(suite, "testcase", about)
            if not check.passed:
                failure = ElementTree.SubElement(case, "failure", {"message": _xml(check.message)})
                failure.text = _xml("\n".join((check.message, *check.examples, CHECKS[check.name])))
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def write_junit(self, path: str | Path) -> None:
        """Writes the report as JUnit XML, atomically."""
        write_bytes(path, self.to_junit().encode())


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
