"""Texts that try to forge a turn, to test prompts with.

What makes a prompt role-safe stands where prompts are made: `dialogkit.generation.encoding` keeps words from
becoming control tokens, `dialogkit.dialogues.single_line` from becoming lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Injection", "injection_corpus"]

_CORPUS = Path(__file__).with_name("injections.json")


@dataclass(frozen=True)
class Injection:
    """A text that tries to open or close a turn.

    Attributes:
        id: Its name, unique in the corpus.
        family: What it attacks: a family of chat templates (``"chatml"``, ``"llama-3"``, ``"gemma"``,
            ``"mistral"``, ...), speaker labels in plain text, or a way of disguise.
        text: The words. Labels are those of a user called ``User`` and a bot called ``Bob``.
    """

    id: str
    family: str
    text: str


@cache
def injection_corpus() -> tuple[Injection, ...]:
    """The corpus that ships with the package: our own words, Apache-2.0.

    Example:
        >>> for injection in injection_corpus():
        ...     prompt = my_prompt([{"role": "user", "content": injection.text}])
        ...     assert prompt.count("<|im_start|>") == 2, injection.id

    Returns:
        All injections, in the order of the file ``dialogkit/generation/injections.json``.
    """
    record = json.loads(_CORPUS.read_text(encoding="utf-8"))
    return tuple(Injection(each["id"], each["family"], each["text"]) for each in record["injections"])
