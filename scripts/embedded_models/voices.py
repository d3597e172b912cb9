"""Invented voices: random habits of speech that turn a neutral reply into a speaker's own.

A language model learns to follow a voice from its lines only if it meets very many voices, each seen
through a few lines and nothing else. Real speakers are too few for that, so every training window that
uses an invented voice draws a new combination of habits: how a line opens and ends, how the other person
is addressed, which words are replaced, how sentences are cut and punctuated. Interjections are often
nonsense syllables, so that the habit can be learnt from the window alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

__all__ = ["Voice", "random_name", "random_voice", "strong_voice"]

_WORDS = json.loads((Path(__file__).parent.parent / "data" / "voice_habits.json").read_text(encoding="utf-8"))
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z']+")


def _invented(rng: Random) -> str:
    return "".join(rng.choice(_WORDS["syllables"]) for _ in range(rng.randint(2, 3))).capitalize()


def random_name(rng: Random) -> str:
    """A display name: a first name, a title and a name, or invented syllables."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(_WORDS["first"])
    if kind < 0.7:
        return f"{rng.choice(_WORDS['titles'])} {rng.choice(_WORDS['first'])}"
    if kind < 0.85:
        return f"{rng.choice(_WORDS['titles'])} {_invented(rng)}"
    return _invented(rng)


@dataclass(frozen=True)
class Voice:
    """A combination of habits; ``apply`` says a neutral line in it.

    Attributes:
        openers: Interjections of which one may open a line.
        closers: Tags of which one may end the last sentence.
        address: Words for the other person.
        sentences: Whole sentences that may follow a line.
        lexicon: Replacements of words, lower case.
        filler: A word that may be inserted between two words.
        rates: Probability of each habit by name.
        casing: ``"as_is"``, ``"lower"`` or ``"upper"``.
        ending: What replaces a full stop.
        short: Only the first sentence is kept.
        drop_g: "walking" becomes "walkin'".
        accent: Letters and what replaces it.
        stretch: A vowel is drawn out.
    """

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    address: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    lexicon: dict[str, str] = field(default_factory=dict)
    filler: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    casing: str = "as_is"
    ending: str = "."
    opener_mark: str = ","
    short: bool = False
    drop_g: bool = False
    accent: tuple[str, str] = ("", "")
    stretch: bool = False

    def _hit(self, habit: str, rng: Random) -> bool:
        return rng.random() < self.rates.get(habit, 0.0)

    def _words(self, text: str, rng: Random) -> str:
        for old, new in self.lexicon.items():

            def replaced(match: re.Match[str], new: str = new) -> str:
                return (
                    new[0].upper() + new[1:] if match.group()[0].isupper() and match.group() != "I" else new
                )

            text = re.sub(rf"\b{re.escape(old)}\b", replaced, text, flags=re.IGNORECASE)
        if self.drop_g:
            text = re.sub(r"(\w\w)ing\b", r"\1in'", text)
        if self.accent[0]:
            text = text.replace(*self.accent)
        words = text.split(" ")
        if self.filler and len(words) > 3 and self._hit("filler", rng):
            spot = rng.randint(1, len(words) - 2)
            words.insert(spot, self.filler + ",")
            if not words[spot - 1].endswith((",", ".", "!", "?")):
                words[spot - 1] += ","
        if self.stretch and self._hit("stretch", rng):
            spot = rng.randrange(len(words))
            words[spot] = re.sub(r"([aeou])(?!.*[aeou])(?!\W*$)", r"\1\1\1", words[spot], count=1)
        return " ".join(words)

    def apply(self, text: str, rng: Random) -> str:
        """Says ``text`` (plain English, one line) in this voice."""
        sentences = _SENTENCE.split(text)
        if self.short:
            sentences = sentences[:1]
        text = self._words(" ".join(sentences), rng)
        if self.address and self._hit("address", rng):
            word = rng.choice(self.address)
            if rng.random() < 0.5 and text[-1] in ".!?":
                text = f"{text[:-1]}, {word}{text[-1]}"
            elif (comma := text.find(",")) > 0:
                text = f"{text[:comma]}, {word}{text[comma:]}"
            else:
                text = f"{word.capitalize()}, {_uncapital(text)}"
        if self.closers and self._hit("closer", rng) and text[-1] in ".!?":
            text = f"{text[:-1]}, {rng.choice(self.closers)}{text[-1]}"
        if self.openers and self._hit("opener", rng):
            opener = rng.choice(self.openers)
            text = (
                f"{opener}, {_uncapital(text)}"
                if self.opener_mark == ","
                else f"{opener}{self.opener_mark} {text}"
            )
        if self.sentences and self._hit("sentence", rng):
            extra = rng.choice(self.sentences)
            text = f"{extra} {text}" if rng.random() < 0.25 else f"{text} {extra}"
        if self.ending != ".":
            text = re.sub(r"\.(?=\s|$)", self.ending, text)
        if self.casing == "lower":
            text = text.lower()
        elif self.casing == "upper":
            text = text.upper()
        return text


def _uncapital(text: str) -> str:
    word = _WORD.match(text)
    if word is None or word.group() == "I" or word.group().startswith("I'"):
        return text
    return text[0].lower() + text[1:]


def _some(items: list[str], low: int, high: int, rng: Random) -> tuple[str, ...]:
    return tuple(rng.sample(items, rng.randint(low, high)))


def random_voice(rng: Random) -> Voice:
    """Draws a voice of one to four habits, each with its own frequency."""
    habits = set(
        rng.choices(
            list(_WORDS["habits"]), weights=list(_WORDS["habits"].values()), k=rng.choice((2, 3, 3, 4, 5))
        )
    )
    rates = {habit: rng.choice((0.35, 0.5, 0.7, 0.9, 1.0)) for habit in sorted(habits)}
    openers = _some(_WORDS["openers"], 1, 3, rng)
    if rng.random() < 0.4:
        openers = tuple(_invented(rng) for _ in range(rng.randint(1, 2)))
    closers = _some(_WORDS["closers"], 1, 2, rng)
    if rng.random() < 0.2:
        closers = (_invented(rng).lower(),)
    return Voice(
        openers=openers if "opener" in habits else (),
        closers=closers if "closer" in habits else (),
        address=_some(_WORDS["address"], 1, 2, rng) if "address" in habits else (),
        sentences=_some(_WORDS["sentences"], 1, 3, rng) if "sentence" in habits else (),
        lexicon=rng.choice(_WORDS["lexicons"]) if "lexicon" in habits else {},
        filler=rng.choice(_WORDS["fillers"]) if "filler" in habits else "",
        rates=rates,
        casing=rng.choice(("lower", "lower", "upper")) if "casing" in habits else "as_is",
        ending=rng.choice(("!", "!", "...", "!!", "~", " :)", "?!", "..")) if "ending" in habits else ".",
        opener_mark=rng.choice((",", ",", "!", "...", ".", ":")),
        short="short" in habits,
        drop_g="drop_g" in habits,
        accent=rng.choice((("th", "d"), ("w", "v"))) if "accent" in habits else ("", ""),
        stretch="stretch" in habits,
    )


def strong_voice(rng: Random) -> Voice:
    """A voice whose marks stand in every line: what a model must copy to do well at all."""
    habits = rng.sample(("opener", "closer", "address", "sentence"), rng.randint(1, 2))
    opener = _invented(rng) if rng.random() < 0.6 else rng.choice(_WORDS["openers"])
    return Voice(
        openers=(opener,) if "opener" in habits else (),
        closers=(rng.choice(_WORDS["closers"]),) if "closer" in habits else (),
        address=(rng.choice(_WORDS["address"]),) if "address" in habits else (),
        sentences=(rng.choice(_WORDS["sentences"]),) if "sentence" in habits else (),
        rates=dict.fromkeys(habits, 1.0),
        opener_mark=rng.choice((",", "!", "...", ".")),
        ending=rng.choice((".", ".", ".", "!", "...")),
        short=True,
    )
