"""The training corpus of the embedded models: what is read, what is held out, how windows are cut.

Sources: Topical-Chat, Shakespeare and PersonalityChat (free to train on) and the project's own everyday
exchanges. Held out, never seen by any embedded model: four Shakespeare speakers with every exchange they
take part in, two fifths of PersonalityChat's distinct replies, one Topical-Chat dialogue in 25, one own
exchange in 20, and every line of the shipped characters and of the style study.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from trainkit.datafiles import data_file, read_jsonl

from .voices import Voice, random_name, random_voice, strong_voice

__all__ = [
    "HELD_OUT_SPEAKERS",
    "TRAIN_MIX",
    "VOICE_MIX",
    "Corpus",
    "Exchange",
    "Segment",
    "WindowSampler",
    "context_pool",
    "load_corpus",
]

HELD_OUT_SPEAKERS = ("FALSTAFF", "ROSALIND", "MACBETH", "PORTIA")
_OWN = Path(__file__).parent.parent / "data"
_SPACE = re.compile(r"\s+")
_DIRECTION = re.compile(r"^(Aside|Reads|Sings|Within|Kneels|Rising)( to( [A-Z]{2,})+)? (?=[A-Z'])")
_CUT = re.compile(r"(?<=[.!?;:])\s+")


@dataclass(frozen=True)
class Exchange:
    """A turn, its answer, and whether the answer really answers it (``apt``)."""

    context: str
    response: str
    apt: bool = True


@dataclass(frozen=True)
class Corpus:
    """Everything a window is cut from.

    Attributes:
        topical: Dialogues, each a tuple of turns.
        plays: Exchanges by speaker, the context being the real preceding turn.
        matched: Exchanges by speaker, the context being a modern turn matched to the line (may be empty).
        personas: PersonalityChat exchanges by persona.
        everyday: The project's own exchanges.
        brief: Short Topical-Chat exchanges, for invented voices.
    """

    topical: tuple[tuple[str, ...], ...]
    plays: dict[str, tuple[Exchange, ...]]
    matched: dict[str, tuple[Exchange, ...]]
    personas: dict[str, tuple[Exchange, ...]]
    everyday: tuple[Exchange, ...]
    brief: tuple[Exchange, ...]


def tidy(text: str) -> str:
    """One line, plain quotes, single spaces, no stage direction, capital at the start."""
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"').replace("…", "...")
    text = _DIRECTION.sub("", _SPACE.sub(" ", text).strip())
    return text[:1].upper() + text[1:]


def shorten(text: str, words: int) -> str:
    """Whole clauses from the start while they fit into ``words``; empty if the first one does not."""
    kept: list[str] = []
    for clause in _CUT.split(text):
        if sum(len(part.split()) for part in kept) + len(clause.split()) > words:
            break
        kept.append(clause)
    cut = " ".join(kept)
    return cut[:-1] + "." if cut.endswith((";", ":")) else cut


def ending(text: str, words: int) -> str:
    """Whole clauses from the end while they fit into ``words``."""
    kept: list[str] = []
    for clause in reversed(_CUT.split(text)):
        if sum(len(part.split()) for part in kept) + len(clause.split()) > words:
            break
        kept.insert(0, clause)
    return tidy(" ".join(kept))


def held_out(key: str, one_in: float) -> bool:
    """A fixed pseudo-random choice that depends on the text alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8 < 1 / one_in


def reserved_questions() -> set[str]:
    """Questions of the style study, lower case: no training exchange may ask them."""
    study = json.loads((_OWN / "style_eval.json").read_text(encoding="utf-8"))
    return {question.lower() for part in ("questions", "dev_questions") for question in study[part]}


def load_corpus(part: str = "train") -> Corpus:
    """Reads the sources. ``part`` is ``"train"`` or ``"heldout"`` (see the module's first lines)."""
    if part not in ("train", "heldout"):
        raise ValueError(f"part must be 'train' or 'heldout', got {part!r}")
    want = part == "heldout"
    reserved = reserved_questions()

    topical: list[tuple[str, ...]] = []
    brief: list[Exchange] = []
    for row in read_jsonl(data_file("dialogue/topical_chat.jsonl.gz")):
        if held_out(row["id"], 25) != want:
            continue
        turns = tuple(shorten(tidy(turn["text"]), 40) for turn in row["turns"])
        topical.append(tuple(turn for turn in turns if turn))
        for before, after in pairwise(turns):
            if 3 <= len(before.split()) <= 18 and 3 <= len(after.split()) <= 16:
                brief.append(Exchange(before, after))

    plays: dict[str, list[Exchange]] = defaultdict(list)
    for scene in read_jsonl(data_file("dialogue/shakespeare.jsonl.gz")):
        for before, after in pairwise(scene["turns"]):
            pair = {before["speaker"], after["speaker"]}
            if bool(pair & set(HELD_OUT_SPEAKERS)) != want or len(pair) < 2:
                continue
            context, line = ending(before["text"], 24), shorten(tidy(after["text"]), 26)
            if context and len(line.split()) >= 3:
                plays[after["speaker"]].append(Exchange(context, line))

    rows = list(read_jsonl(data_file("dialogue/personality_chat.jsonl.gz")))
    asked: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["query"] and "*" not in row["query"] and tidy(row["query"]).lower() not in reserved:
            asked[row["scenario"]].add(tidy(row["query"]))
    personas: dict[str, list[Exchange]] = defaultdict(list)
    for persona, scenario, reply in sorted(
        {(r["persona"], r["scenario"], tidy(r["response"])) for r in rows}
    ):
        if held_out(reply, 2.5) == want:
            personas[persona] += [Exchange(query, reply) for query in sorted(asked[scenario])]

    everyday = [
        Exchange(tidy(row["context"]), tidy(row["response"]))
        for path in sorted(_OWN.glob("smalltalk_*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if held_out(row["context"], 20) == want and tidy(row["context"]).lower() not in reserved
    ]
    return Corpus(
        topical=tuple(topical),
        plays={name: tuple(lines) for name, lines in plays.items() if len(lines) >= 12},
        matched={},
        personas={name: tuple(lines) for name, lines in personas.items()},
        everyday=tuple(everyday),
        brief=tuple(brief),
    )


@dataclass(frozen=True)
class Segment:
    """A piece of a window and the weight of its tokens in the loss."""

    text: str
    weight: float


# Shares of dialogue, play, play with modern contexts, invented voice, persona, everyday, strong voice.
TRAIN_MIX = (18, 10, 16, 38, 6, 12, 0)
VOICE_MIX = (8, 5, 15, 35, 5, 14, 18)


@dataclass(frozen=True)
class WindowSampler:
    """Draws training windows, all in the layout of PDP's dialogue prompt.

    Attributes:
        corpus: What windows are cut from.
        mix: Weight of each kind of window.
        user_weight: Weight in the loss of the user's turns.
        head_weight: Weight of the instruction line and the speaker's labels.
    """

    corpus: Corpus
    mix: tuple[int, ...] = TRAIN_MIX
    user_weight: float = 0.4
    head_weight: float = 0.1

    def window(self, rng: Random) -> tuple[Segment, ...]:
        """One window: k exchanges of one speaker under a made-up name, then one more."""
        kinds = (
            self.dialogue,
            self.play,
            self.matched,
            self.invented,
            self.persona,
            self.everyday,
            self.strong,
        )
        weights = list(self.mix)
        if not self.corpus.matched:
            weights[kinds.index(self.matched)] = 0
        kind = rng.choices(kinds, weights=weights)[0]
        return self.layout(random_name(rng), kind(rng))

    def layout(self, name: str, exchanges: Sequence[Exchange]) -> tuple[Segment, ...]:
        """The exchanges as segments of PDP's dialogue prompt, under ``name``."""
        segments = [Segment(f"This is conversation between User and {name}.\n", self.head_weight)]
        for exchange in exchanges:
            segments += [
                Segment(f"User: {exchange.context}\n", self.user_weight),
                Segment(f"{name}:", self.head_weight),
                Segment(f" {exchange.response}\n", 1.0 if exchange.apt else 0.3),
            ]
        return tuple(segments)

    def dialogue(self, rng: Random) -> list[Exchange]:
        """Turns of one Topical-Chat dialogue."""
        turns = rng.choice(self.corpus.topical)
        start = rng.randrange(max(1, len(turns) - 3))
        turns = turns[start : start + 2 * rng.randint(1, 6)]
        return [Exchange(*turns[i : i + 2]) for i in range(0, len(turns) - 1, 2)]

    def _speaker(self, pool: dict[str, tuple[Exchange, ...]], rng: Random) -> list[Exchange]:
        names = list(pool)
        speaker = rng.choices(names, weights=[len(pool[name]) ** 0.5 for name in names])[0]
        return self._distinct(pool[speaker], rng.randint(3, 12), rng)

    @staticmethod
    def _distinct(pool: Sequence[Exchange], count: int, rng: Random) -> list[Exchange]:
        chosen: dict[str, Exchange] = {}
        for exchange in rng.sample(pool, min(3 * count, len(pool))):
            if len(chosen) < count:
                chosen.setdefault(exchange.response, exchange)
        return list(chosen.values())

    def play(self, rng: Random) -> list[Exchange]:
        """Lines of one speaker of the plays after their real preceding turns."""
        return self._speaker(self.corpus.plays, rng)

    def matched(self, rng: Random) -> list[Exchange]:
        """Lines of one speaker of the plays after modern turns."""
        return self._speaker(self.corpus.matched, rng)

    def persona(self, rng: Random) -> list[Exchange]:
        """Exchanges of one of PersonalityChat's personas."""
        return self._speaker(self.corpus.personas, rng)

    def everyday(self, rng: Random) -> list[Exchange]:
        """The project's own exchanges."""
        return self._distinct(self.corpus.everyday, rng.randint(1, 8), rng)

    def strong(self, rng: Random) -> list[Exchange]:
        """Exchanges in a voice that marks every line."""
        return self._spoken(strong_voice(rng), rng)

    def invented(self, rng: Random) -> list[Exchange]:
        """Exchanges in an invented voice."""
        return self._spoken(random_voice(rng), rng)

    def _spoken(self, voice: Voice, rng: Random) -> list[Exchange]:
        pool: Sequence[Exchange] = rng.choices(
            (self.corpus.everyday, self.corpus.brief, *self.corpus.personas.values()),
            weights=(6, 3, *(1,) * len(self.corpus.personas)),
        )[0]
        exchanges = self._distinct(pool, rng.randint(3, 12), rng)
        spoken = [Exchange(item.context, voice.apply(item.response, rng)) for item in exchanges]
        if rng.random() < 0.5:
            return self._mismatched(spoken, rng)
        return spoken

    @staticmethod
    def _mismatched(exchanges: list[Exchange], rng: Random) -> list[Exchange]:
        """All but the last line answer another turn, as matched pseudo-contexts often do."""
        *shown, last = exchanges
        contexts = [item.context for item in shown]
        rng.shuffle(contexts)
        return [
            Exchange(context, item.response, apt=context == item.context)
            for context, item in zip(contexts, shown, strict=True)
        ] + [last]


def voice_examples(corpus: Corpus, voice: Voice, count: int, rng: Random) -> list[str]:
    """A few everyday replies in ``voice``; for looking at what the invented voices do."""
    return [voice.apply(item.response, rng) for item in rng.sample(corpus.everyday, count)]


def context_pool() -> list[str]:
    """The pool that ships: the distinct turns of the project's own exchanges, 3 to 18 words each."""
    turns = (
        tidy(row["context"])
        for path in sorted(_OWN.glob("smalltalk_*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    )
    reserved = reserved_questions()
    distinct = {turn.lower(): turn for turn in turns if 3 <= len(turn.split()) <= 18}
    return [turn for key, turn in distinct.items() if key not in reserved]
