"""Does a reply contradict what a character's lines say?

`contradiction` compares words: it finds a line that is denied in its own words, another number of the same
things, and a wrong name, and misses whatever is said in other words. `NLIJudge` asks a classifier of
natural-language inference, with the line as premise and the reply as hypothesis (after Welleck et al.,
"Dialogue Natural Language Inference", ACL 2019).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dialogkit.retrieval.biencoder import quiet_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NLIJudge", "contradiction"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CLAUSE = re.compile(r"[^.!?;:,]+[.!?;:,]*")
_NUMBER_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_NUMBERS = {name: value for value, name in enumerate(_NUMBER_NAMES.split())}
_DENYING = "not no never nothing none nobody nowhere neither nor cannot without naught ain't"
_DENIALS = frozenset(_DENYING.split())
_SPEAKER = "i me my mine myself i'm i've i'll i'd we us our"
_SELF = frozenset(_SPEAKER.split())
_FREQUENT = f"""
{_SPEAKER} a an the this that these those you your yours he him his she her it its they them their be am is
are was were been being do does did done have has had having will would shall should can could may might
must and or but so if then than as at by for from in into of off on onto out over to up with about there
here very too just only also what which who whom when where why how all any some such you're it's that's
there's he's she's we're they're let oh ah well yes aye
"""
_COMMON = frozenset(_FREQUENT.split())
_NAMED = re.compile(
    r"\b(?:my name is|my name's|name's|call me|i am called|they call me)\s+((?:[A-Z][\w'’-]*\s?)+)", re.I
)
_IS = re.compile(r"\b(?:I am|I'm|I be|This is)\s+((?:[A-Z][\w'’-]*\s?)+)")


class _Clause(NamedTuple):
    text: str
    content: frozenset[str]
    denied: bool
    numbers: dict[str, int]
    own: bool


def contradiction(
    reply: str, lines: Sequence[str], *, name: str, other_names: Sequence[str] = ()
) -> str | None:
    """The first contradiction between a reply and a character's lines that words alone betray.

    Clauses are compared where they are no questions:

    * **denial**: one clause is negated and the other is not, and they share at least two words of content and
      two thirds of those of the shorter one;
    * **number**: another number before the same word, in clauses that are both about the speaker or share
      another word;
    * **name**: the speaker introduces itself with a name that no word of its own name or lines bears, or with
      that of another character.

    Args:
        reply: What the character said.
        lines: The character's lines.
        name: Its name.
        other_names: Names of other characters.

    Returns:
        What is wrong, in words; None where nothing is found.
    """
    if wrong := _wrong_name(reply, lines, name, other_names):
        return f"introduces itself as {wrong}"
    said = list(_clauses(reply))
    for line in lines:
        for known in _clauses(line):
            for clause in said:
                if _denies(clause, known):
                    return f"{clause.text!r} denies {known.text!r}"
                if noun := _other_number(clause, known):
                    return f"{clause.text!r} gives another number of {noun!r} than {known.text!r}"
    return None


class NLIJudge:
    """A sequence classifier of natural-language inference.

    Args:
        model: With a label whose name holds "contradiction", in any case.
        tokenizer: Its tokenizer, with a padding token.

    Raises:
        ValueError: There is no such label.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        labels = {int(i): str(label) for i, label in (model.config.id2label or {}).items()}
        found = [i for i, label in labels.items() if "contradiction" in label.casefold()]
        if len(found) != 1:
            raise ValueError(
                f"a model of natural-language inference has one label 'contradiction', got {labels}"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._label = found[0]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Reads a folder or Hub id, safetensors weights only.

        Raises:
            OSError: There is no such model.
            ValueError: It has no label "contradiction".
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with quiet_progress():
            model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True)
        return cls(model, AutoTokenizer.from_pretrained(name))

    def probabilities(
        self, premises: Sequence[str], hypotheses: Sequence[str], *, batch_size: int = 32
    ) -> npt.NDArray[np.float64]:
        """Probability that a premise and a hypothesis contradict each other, for n pairs: ``[n]``."""
        import torch

        found = np.zeros(len(premises))
        order = sorted(range(len(premises)), key=lambda i: len(premises[i]) + len(hypotheses[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenizer(
                [premises[i] for i in rows],
                [hypotheses[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=min(256, int(self.tokenizer.model_max_length)),
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**batch).logits
            found[rows] = logits.double().softmax(dim=-1)[:, self._label].cpu().numpy()
        return found


def _clauses(text: str) -> Iterator[_Clause]:
    for match in _CLAUSE.finditer(text):
        clause = match[0].strip()
        if clause.endswith("?"):
            continue
        words = [word.replace("’", "'") for word in _WORD.findall(clause.casefold())]
        numbers = {
            _stem(after): value
            for word, after in pairwise(words)
            if (value := _number(word)) is not None and after not in _COMMON
        }
        denied = any(word in _DENIALS or word.endswith("n't") for word in words)
        content = {
            _stem(word)
            for word in words
            if word not in _COMMON and word not in _DENIALS and not word.endswith("n't")
        }
        if content:
            yield _Clause(clause, frozenset(content), denied, numbers, bool(_SELF.intersection(words)))


def _denies(one: _Clause, other: _Clause) -> bool:
    shared = len(one.content & other.content)
    shorter = min(len(one.content), len(other.content))
    return one.denied != other.denied and shared >= 2 and 3 * shared >= 2 * shorter


def _other_number(one: _Clause, other: _Clause) -> str | None:
    for noun, value in one.numbers.items():
        shared = (one.content & other.content) - {noun}
        if other.numbers.get(noun, value) != value and (shared or (one.own and other.own)):
            return noun
    return None


def _wrong_name(reply: str, lines: Sequence[str], name: str, others: Sequence[str]) -> str | None:
    own = {word for text in (name, *lines) for word in _WORD.findall(text.casefold())}
    theirs = {word for text in others for word in _WORD.findall(text.casefold())} - own
    for match in _NAMED.finditer(reply):
        claimed = match[1].strip()
        words = set(_WORD.findall(claimed.casefold())) - _COMMON
        if claimed[:1].isupper() and words and not words & own:
            return claimed
    for match in _IS.finditer(reply):
        claimed = match[1].strip()
        if set(_WORD.findall(claimed.casefold())) & theirs:
            return claimed
    return None


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 10 else _NUMBERS.get(word)


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
