"""A character's regression test: is it still in character, consistent, steady, and nobody else?

Four checks on one language model; :data:`~dialogkit.pdp.character_report.CHECKS` says what each measures and
what it cannot tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from dialogkit.dialogues import USER, Turn, single_line
from dialogkit.generation.types import LanguageModel
from dialogkit.retrieval.retriever import Retriever
from trainkit.progress import Progress

from .character_report import CharacterReport, Check
from .characters import Character
from .chatbot import PDPChatbot
from .config import PDPConfig
from .contradiction import NLIJudge, contradiction
from .style import NgramStyleClassifier, StyleJudge

__all__ = ["QUESTIONS", "RegressionConfig", "examine_character", "leaked"]

QUESTIONS = (
    "Hello! Who are you?",
    "Where do you live?",
    "What did you have for dinner yesterday?",
    "What do you think of this weather?",
    "Do you have a family?",
    "What are you afraid of?",
    "How did you sleep?",
    "What do you do all day?",
    "I feel a bit sad today.",
    "Can you tell me a joke?",
    "What makes you angry?",
    "Do you like music?",
    "I bought a new coat this morning.",
    "What was your best day ever?",
    "How much money do you need to be happy?",
    "Do you have any friends?",
    "I think you are wrong about that.",
    "What will you do tomorrow?",
    "What should I cook tonight?",
    "Goodbye! What was your name again?",
)
"""Twenty turns of a user, for any character; written for this test."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_EXAMPLES = 5


@dataclass(frozen=True)
class RegressionConfig:
    """How a character is tested; all of it is our choice.

    Attributes:
        questions: What the user says, at least two turns; a conversation has as many.
        sessions: Conversations, and draws of every single reply, for each half of the lines.
        seed: Of replies and of the order of questions.
        min_style: What the lead in StyleProb over the model without lines must exceed with its whole 95 %
            interval.
        max_contradiction: Highest share of replies that contradict the card.
        max_drift: The share of the lead that a conversation's second half may lose; more is lost for sure if
            the whole 95 % interval of the loss lies above it.
        max_repeats: Highest share of turns that repeat an earlier turn of the conversation.
        max_leakage: Highest share of replies with words of another character.
        run: Words in a row that count as another's.

    Raises:
        ValueError: A number is out of range, or there are fewer than two questions.
    """

    questions: tuple[str, ...] = QUESTIONS
    sessions: int = 2
    seed: int = 0
    min_style: float = 0.0
    max_contradiction: float = 0.05
    max_drift: float = 0.5
    max_repeats: float = 0.5
    max_leakage: float = 0.0
    run: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(single_line(text) for text in self.questions))
        if len(self.questions) < 2 or not all(self.questions):
            raise ValueError(f"questions must be at least two, none blank, got {len(self.questions)}")
        if self.sessions < 1:
            raise ValueError(f"sessions must be at least 1, got {self.sessions}")
        if self.run < 2:
            raise ValueError(f"run must be at least 2, got {self.run}")
        if not -1 <= self.min_style <= 1:
            raise ValueError(f"min_style must be in [-1, 1], got {self.min_style}")
        if not self.max_drift >= 0:
            raise ValueError(f"max_drift must not be negative, got {self.max_drift}")
        for name in ("max_contradiction", "max_repeats", "max_leakage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass
class _Said:
    """One reply under test."""

    question: str
    reply: str
    style: float
    kind: str
    turn: int
    half: int
    before: tuple[str, ...] = field(default=(), repr=False)

    def record(self) -> dict[str, Any]:
        about = ("question", "reply", "style", "kind", "turn")
        return {name: getattr(self, name) for name in about}


@dataclass(frozen=True)
class _Fold:
    """The character with the lines that its prompt shows, and a judge that has not seen these."""

    character: Character
    judge: StyleJudge
    label: int
    half: int = 0

    def style(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        found = self.judge.probabilities(list(texts))[:, self.label]
        return np.where([not text for text in texts], 0.0, found)


def leaked(
    reply: str, lines: Sequence[str], *, allowed: Sequence[str] = (), names: Sequence[str] = (), run: int = 5
) -> str | None:
    """The first words of a reply that are another character's.

    Args:
        reply: What was said.
        lines: Lines of other characters. A run of words counts, and a whole line of three words or more
            where the reply is nothing else.
        allowed: Texts whose words may be said: the character's own lines, what the user said.
        names: Full names of other characters; they count wherever they stand.
        run: Words in a row that count.

    Returns:
        The words; None where there are none.
    """
    words = _words(reply)
    free = {gram for text in allowed for gram in _grams(_words(text), run)}
    whole = {tuple(_words(text)) for text in allowed}
    for line in lines:
        theirs = _words(line)
        if len(theirs) >= 3 and words == theirs and tuple(theirs) not in whole:
            return " ".join(words)
        for gram in _grams(theirs, run):
            if gram not in free and gram in set(_grams(words, run)):
                return " ".join(gram)
    said = f" {' '.join(words)} "
    permitted = " ".join(f" {' '.join(_words(text))} " for text in allowed)
    for name in names:
        whose = f" {' '.join(_words(name))} "
        if whose in said and whose not in permitted:
            return name
    return None


def examine_character(
    character: Character,
    model: LanguageModel,
    retriever: Retriever,
    others: Sequence[Character],
    *,
    judge: StyleJudge | None = None,
    nli: NLIJudge | None = None,
    bot: PDPConfig | None = None,
    config: RegressionConfig | None = None,
) -> CharacterReport:
    """Tests a character on a language model.

    Without a judge one is made of the lines of the character and the others. So that it never knows the
    lines that a prompt shows, the character's lines are halved: each half is shown in prompts while a judge
    of the other half looks on. A judge that is given looks at the whole character.

    Cost: ``2 * len(questions) * sessions`` replies alone and as many without lines, twice that without a
    judge, and conversations of as many turns.

    Args:
        character: Who is tested.
        model: The language model.
        retriever: Matches and orders lines.
        others: Characters that it must not be taken for; one of the same name or lines is left out.
        judge: Knows the character by its name or id, and never learnt its lines; None makes one.
        nli: Judges contradictions; None compares words.
        bot: Settings of the chatbot.
        config: The test's own settings.

    Raises:
        ValueError: There are no others, the character has fewer than four lines (or none, with a judge), or
            the judge does not know it.
        ImportError: scikit-learn is missing, without a judge.
    """
    begin = time.monotonic()
    config, settings = config or RegressionConfig(), bot or PDPConfig()
    rivals = [one for one in others if one.name != character.name and one.utterances != character.utterances]
    folds = _folds(character, rivals, judge)
    said: list[_Said] = []
    bare: list[float] = []
    with Progress(len(folds) * (len(config.questions) + 2), character.name) as progress:
        for fold in folds:
            talking = PDPChatbot(model, fold.character, retriever=retriever, config=settings)
            plain = replace(settings, prompt="zero-shot")
            alone = PDPChatbot(model, fold.character, retriever=retriever, config=plain)
            said += _alone(talking, fold, config)
            progress.advance(1)
            texts = [reply.reply for reply in _alone(alone, fold, config)]
            bare += fold.style(texts).tolist()
            progress.advance(1)
            said += _conversations(talking, fold, config, progress)
    style = _style(said, bare, folds, config)
    checks = (
        style,
        _contradictions(said, character, rivals, nli, config),
        _drift(said, style, config),
        _leakage(said, character, rivals, config),
    )
    replies = tuple(one.record() for one in said)
    return CharacterReport(
        character.name, model.name, checks, replies, asdict(config), time.monotonic() - begin
    )


def _folds(character: Character, others: Sequence[Character], judge: StyleJudge | None) -> list[_Fold]:
    if judge is not None:
        for label in (character.name, character.id):
            if label in judge.labels:
                return [_Fold(character, judge, judge.labels.index(label))]
        raise ValueError(f"the judge knows {', '.join(judge.labels)}, not {character.name!r}")
    if len(character.utterances) < 4:
        raise ValueError(
            f"{character.name!r} has {len(character.utterances)} lines; without a judge of its own the test "
            "needs at least 4, since one half of them judges the other"
        )
    if not any(one.utterances for one in others):
        raise ValueError("there are no other characters to tell this one from")
    rivals = {f"{i}": one.utterances for i, one in enumerate(others) if one.utterances}
    folds = []
    for shown in (0, 1):
        known = NgramStyleClassifier({"character": character.utterances[1 - shown :: 2], **rivals})
        gold = character.gold_contexts
        half = replace(
            character,
            utterances=character.utterances[shown::2],
            gold_contexts=None if gold is None else gold[shown::2],
        )
        folds.append(_Fold(half, known, 0, shown))
    return folds


def _alone(bot: PDPChatbot, fold: _Fold, config: RegressionConfig) -> list[_Said]:
    """Every question on its own, once a session."""
    found = []
    for session in range(config.sessions):
        texts = [r.text for r in bot.reply_batch(list(config.questions), seed=config.seed + session)]
        found += [
            _Said(question, text, style, "alone", 1, fold.half)
            for question, text, style in zip(config.questions, texts, fold.style(texts).tolist(), strict=True)
        ]
    return found


def _conversations(bot: PDPChatbot, fold: _Fold, config: RegressionConfig, progress: Progress) -> list[_Said]:
    """The questions in one conversation, in another order in every session; sessions go on side by side."""
    orders = [list(config.questions) for _ in range(config.sessions)]
    for session, order in enumerate(orders):
        Random(f"{config.seed}-{session}").shuffle(order)
    histories: list[list[Turn]] = [[] for _ in orders]
    found: list[_Said] = []
    for turn in range(len(config.questions)):
        for history, order in zip(histories, orders, strict=True):
            history.append(Turn(USER, order[turn]))
        texts = [reply.text for reply in bot.reply_batch(histories, seed=config.seed)]
        for history, text, style in zip(histories, texts, fold.style(texts).tolist(), strict=True):
            before = tuple(each.text for each in history[:-1])
            found.append(_Said(history[-1].text, text, style, "conversation", turn + 1, fold.half, before))
            history.append(Turn(bot.name, text))
        progress.advance(1)
    return found


def _style(
    said: Sequence[_Said], bare: Sequence[float], folds: Sequence[_Fold], config: RegressionConfig
) -> Check:
    alone = [one for one in said if one.kind == "alone"]
    gains = np.array([one.style for one in alone]) - np.array(bare)
    lead = float(gains.mean())
    low, high = _interval(gains.reshape(-1, len(config.questions)).mean(axis=0), config.seed)
    figures = {
        "lead": lead,
        "low": low,
        "high": high,
        "style_prob": float(np.mean([one.style for one in alone])),
        "without_lines": float(np.mean(bare)),
        "own_lines": float(np.mean([fold.style(fold.character.utterances).mean() for fold in folds])),
        "silent": float(np.mean([not one.reply for one in said])),
    }
    worst = sorted(alone, key=lambda one: one.style)[:_EXAMPLES]
    message = (
        f"StyleProb {figures['style_prob']:.3f}, {lead:+.3f} [{low:+.3f}, {high:+.3f}] against the model "
        f"without lines; the interval must lie above {config.min_style:+.3f}"
    )
    examples = tuple(f"{one.style:.3f}  {one.question} -> {one.reply}" for one in worst)
    return Check("style", low > config.min_style, message, figures, examples)


def _contradictions(
    said: Sequence[_Said],
    character: Character,
    others: Sequence[Character],
    nli: NLIJudge | None,
    config: RegressionConfig,
) -> Check:
    lines = character.utterances
    if nli is None:
        names = [one.name for one in others]
        reasons = [contradiction(one.reply, lines, name=character.name, other_names=names) for one in said]
    else:
        reasons = _inferred(said, lines, nli)
    found = [f"{one.question} -> {one.reply}  ({why})" for one, why in zip(said, reasons, strict=True) if why]
    share = len(found) / len(said)
    way = "by words" if nli is None else "by inference"
    message = (
        f"{len(found)} of {len(said)} replies contradict the card ({way}); "
        f"at most {config.max_contradiction:.1%}"
    )
    return Check(
        "contradiction",
        share <= config.max_contradiction,
        message,
        {"share": share, "replies": float(len(said))},
        tuple(found[:_EXAMPLES]),
    )


def _inferred(said: Sequence[_Said], lines: Sequence[str], nli: NLIJudge) -> list[str | None]:
    """Each reply with each line; the likeliest contradiction counts where it is likelier than not."""
    replies = sorted({one.reply for one in said if one.reply})
    pairs = [(line, reply) for reply in replies for line in lines]
    scores = nli.probabilities([line for line, _ in pairs], [reply for _, reply in pairs])
    table = scores.reshape(len(replies), len(lines))
    worst = {
        reply: f"{row.max():.2f} against {lines[int(row.argmax())]!r}" if row.max() > 0.5 else None
        for reply, row in zip(replies, table, strict=True)
    }
    return [worst.get(one.reply) for one in said]


def _drift(said: Sequence[_Said], style: Check, config: RegressionConfig) -> Check:
    """Compares every late turn with the same question asked alone, with the same half of the lines."""
    afresh: dict[tuple[int, str], list[float]] = {}
    losses: dict[str, list[float]] = {}
    for one in said:
        if one.kind == "alone":
            afresh.setdefault((one.half, one.question), []).append(one.style)
    talk = [one for one in said if one.kind == "conversation"]
    for one in talk:
        if one.turn > len(config.questions) // 2:
            loss = float(np.mean(afresh[one.half, one.question])) - one.style
            losses.setdefault(one.question, []).append(loss)
    by_question = np.array([np.mean(each) for each in losses.values()])
    low, high = _interval(by_question, config.seed)
    again = [one for one in talk if one.reply and one.reply in one.before[1::2]]
    repeats, lead = len(again) / len(talk), style.figures["lead"]
    figures = {
        "loss": float(by_question.mean()),
        "low": low,
        "high": high,
        "repeats": repeats,
        "turns": float(len(config.questions)),
    }
    message = (
        f"StyleProb falls by {figures['loss']:.3f} [{low:+.3f}, {high:+.3f}] in the second half of "
        f"{len(config.questions)} turns; at most {config.max_drift:.0%} of the lead may surely be lost; "
        f"{repeats:.1%} of turns repeat an earlier one, at most {config.max_repeats:.1%}"
    )
    examples = tuple(f"turn {one.turn} repeats: {one.reply}" for one in again[:_EXAMPLES])
    # Without a lead there is nothing to lose, which is the first check's business.
    faded = lead > 0 and low > config.max_drift * lead
    return Check("drift", not faded and repeats <= config.max_repeats, message, figures, examples)


def _leakage(
    said: Sequence[_Said], character: Character, others: Sequence[Character], config: RegressionConfig
) -> Check:
    lines = [line for one in others for line in one.utterances]
    names = [one.name for one in others]
    found = []
    for one in said:
        allowed = (character.name, *character.utterances, one.question, *one.before[::2])
        if words := leaked(one.reply, lines, allowed=allowed, names=names, run=config.run):
            found.append(f"{one.question} -> {one.reply}  ({words!r})")
    share = len(found) / len(said)
    message = (
        f"{len(found)} of {len(said)} replies hold words of {len(others)} other characters; "
        f"at most {config.max_leakage:.1%}"
    )
    figures = {"share": share, "replies": float(len(said)), "others": float(len(others))}
    return Check("leakage", share <= config.max_leakage, message, figures, tuple(found[:_EXAMPLES]))


def _interval(values: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over questions."""
    drawn = np.random.default_rng(seed).choice(values, size=(2000, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
