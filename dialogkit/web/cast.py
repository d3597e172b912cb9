"""Who can be talked with on the page, and how a visitor may change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dialogkit.bots import GeneratorChatbot
from dialogkit.chat import Chatbot
from dialogkit.generation.types import GenerationConfig
from dialogkit.pdp import Blend, Character, DynamicMatcher, Matcher, PDPChatbot, StaticMatcher
from dialogkit.pdp.assembly import make_matcher
from dialogkit.pdp.config import MatcherKind

__all__ = ["UPLOADED", "Cast", "Controls"]

UPLOADED = "your character file"
"""Stands for a visitor's own character where a bot is named."""


@dataclass(frozen=True)
class Controls:
    """What of a bot can be changed on the page.

    Attributes:
        matchers: The ways of matching to choose from; none where there is no choice.
        matcher: The one it uses unless told otherwise.
        temperature: Its temperature unless told otherwise, 0 for greedy decoding; None where there is none.
    """

    matchers: tuple[MatcherKind, ...] = ()
    matcher: str | None = None
    temperature: float | None = None


class Cast:
    """The chatbots of a page, and variations of them.

    A variation is a new chatbot around the same language model, encoder and contexts: making one costs
    nothing, and it changes no other visitor's.

    Args:
        bots: Chatbots by the names that visitors choose from.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, bots: Mapping[str, Chatbot]) -> None:
        if not bots:
            raise ValueError("bots is empty: there is nobody to talk with")
        self.bots = dict(bots)
        self.first = next(iter(self.bots))
        # A visitor's character is played by the models of a chatbot that plays one already.
        self._player = next((bot for bot in self.bots.values() if isinstance(bot, PDPChatbot)), None)
        # Kept, since a matcher remembers the embeddings of the characters it has seen.
        self._made: dict[tuple[Matcher, MatcherKind], Matcher] = {}

    @property
    def takes_characters(self) -> bool:
        """Whether a visitor's own character can be played."""
        return self._player is not None

    def names(self) -> dict[str, str]:
        """What to call each bot: a character by its name, any other by its key; no two alike."""
        names = {key: bot.name if isinstance(bot, PDPChatbot) else key for key, bot in self.bots.items()}
        shown = list(names.values())
        return {key: name if shown.count(name) == 1 else f"{name} ({key})" for key, name in names.items()}

    def controls(self, who: str, character: Character | None = None) -> Controls:
        """What can be changed of a bot.

        Args:
            who: The key of a bot, or `UPLOADED`.
            character: Who is meant by `UPLOADED`.

        Raises:
            ValueError: There is no such bot.
        """
        bot = self._original(who)
        if isinstance(bot, PDPChatbot):
            return Controls(
                _matchers(bot, _played(bot, who, character)),
                bot.matcher.kind if bot.matcher is not None else None,
                _temperature(bot.config.generation),
            )
        if isinstance(bot, GeneratorChatbot):
            return Controls(temperature=_temperature(bot.generation))
        return Controls()

    def bot(
        self,
        who: str,
        character: Character | None = None,
        *,
        matcher: str | None = None,
        temperature: float | None = None,
    ) -> Chatbot:
        """A chatbot as a visitor wants it.

        Args:
            who: The key of a bot, or `UPLOADED`.
            character: Who is meant by `UPLOADED`.
            matcher: One of its :class:`Controls`; None takes the bot's own.
            temperature: 0 decodes greedily; None takes the bot's own. A bot that has none passes it over.

        Raises:
            ValueError: There is no such bot or matcher, the temperature is negative, or the character cannot
                be played.
        """
        bot = self._original(who)
        if isinstance(bot, PDPChatbot):
            played = _played(bot, who, character)
            return PDPChatbot(
                bot.model,
                played,
                matcher=self._matcher(bot, played, matcher),
                prompt=bot.prompt,
                config=replace(bot.config, generation=_at(bot.config.generation, temperature)),
            )
        if isinstance(bot, GeneratorChatbot):
            generation = _at(bot.generation, temperature)
            return GeneratorChatbot(bot.model, prompt=bot.prompt, generation=generation, name=bot.name)
        return bot

    def _original(self, who: str) -> Chatbot:
        bot = self._player if who == UPLOADED else self.bots.get(who)
        if bot is None:
            raise ValueError("nobody of that name can be talked with here")
        return bot

    def _matcher(self, bot: PDPChatbot, played: Character | Blend, wanted: str | None) -> Matcher | None:
        own = bot.matcher
        if own is None or wanted is None or wanted == own.kind:
            return own
        for kind in _matchers(bot, played):
            if kind == wanted and isinstance(own, StaticMatcher | DynamicMatcher):
                contexts = {"gold": None, "random": own.index.pool}.get(kind, own.index)
                config = replace(bot.config, matcher=kind)
                made = make_matcher(config, own.retriever, contexts, allow_symmetric=True)
                return self._made.setdefault((own, kind), made)
        raise ValueError(f"{played.name} cannot be matched that way")


def _played(bot: PDPChatbot, who: str, character: Character | None) -> Character | Blend:
    if who != UPLOADED:
        return bot.character
    if character is None:
        raise ValueError("there is no character file yet")
    return character


def _matchers(bot: PDPChatbot, played: Character | Blend) -> tuple[MatcherKind, ...]:
    """The ways of matching that a bot could use for a character with the contexts that it has."""
    if bot.prompt.needs != "pairs" or not isinstance(bot.matcher, StaticMatcher | DynamicMatcher):
        return ()
    parts = played.characters if isinstance(played, Blend) else (played,)
    gold: tuple[MatcherKind, ...] = ("gold",) if all(part.gold_contexts for part in parts) else ()
    return ("dynamic", "static", "random", *gold)


def _temperature(generation: GenerationConfig) -> float:
    return generation.temperature if generation.do_sample else 0.0


def _at(generation: GenerationConfig, temperature: float | None) -> GenerationConfig:
    if temperature is None:
        return generation
    if 0 <= temperature < 1e-3:
        return replace(generation, do_sample=False)
    return replace(generation, do_sample=True, temperature=temperature)
