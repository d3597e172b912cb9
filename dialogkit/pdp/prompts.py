"""Prompts: the bytes a language model continues.

Every text that goes into a prompt is put on one line first, so no utterance, context or message can forge a
turn. Beyond that nothing is escaped or trimmed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from dialogkit.dialogues import Turn, single_line
from dialogkit.generation.types import Prompt

from .characters import Blend, Character
from .matching import PseudoDialog

__all__ = ["ChatTemplatePrompt", "DialogPrompt", "PromptBuilder", "UtterancesPrompt", "ZeroShotPrompt"]

Needs = Literal["pairs", "utterances", "nothing"]


@runtime_checkable
class PromptBuilder(Protocol):
    """Lays out a conversation for a language model.

    Attributes:
        kind: Name of the layout in configurations.
        needs: What of the matches it shows: pairs, utterances without contexts, or nothing.
        chat: Whether it builds chat messages rather than plain text.
    """

    kind: ClassVar[str]
    needs: ClassVar[Needs]
    chat: ClassVar[bool]

    def build(
        self, character: Character | Blend, pairs: Sequence[PseudoDialog], history: Sequence[Turn]
    ) -> Prompt:
        """Lays out the pairs, in their order, and the conversation."""
        ...

    def stop(self, character: Character | Blend) -> tuple[str, ...]:
        """The strings that end the character's turn."""
        ...


@dataclass(frozen=True)
class _Labelled:
    """What all layouts share: the user's label, speaker labels, stop strings.

    In the texts ``{name}`` stands for the character's name, ``{user}`` for the user's label and
    ``{identity}`` for the name with, where it is known, the show: ``Nora from A Doll's House``.
    """

    user_label: str = "User"

    def __post_init__(self) -> None:
        label = self.user_label
        if not label.strip() or single_line(label) != label or label.endswith(":"):
            raise ValueError(f"user_label must be one line that does not end with a colon, got {label!r}")

    def stop(self, character: Character | Blend) -> tuple[str, ...]:
        """A turn ends at a line break or at a speaker's label."""
        return ("\n", f"{self.user_label}:", f"{character.name}:")

    def _fill(self, text: str, character: Character | Blend) -> str:
        identity = f"{character.name} from {character.show}" if character.show else character.name
        values = {"{user}": self.user_label, "{identity}": identity, "{name}": character.name}
        # One pass from left to right: a name that itself holds "{user}" stays as it is.
        filled, rest = "", text
        while rest:
            found = min((key for key in values if key in rest), key=rest.index, default=None)
            if found is None:
                return filled + rest
            before, rest = rest.split(found, 1)
            filled += before + values[found]
        return filled

    def _turns(self, character: Character | Blend, history: Sequence[Turn]) -> list[tuple[bool, str]]:
        """Each turn as (whether it is the character's, its text); blank turns are dropped.

        Where the character's name is among the speakers, its turns are the character's and all others the
        user's. Otherwise the last speaker is the user and whoever else spoke is taken for the character.
        """
        if _skeleton(character.name) == _skeleton(self.user_label):
            raise ValueError(f"the character must not be called like the user, {self.user_label!r}")
        if not history:
            raise ValueError("history must hold at least one turn")
        if history[-1].speaker == character.name:
            raise ValueError(f"the last turn is {character.name}'s own; there is nothing to answer")
        named = any(turn.speaker == character.name for turn in history)
        user = history[-1].speaker
        turns = [
            ((turn.speaker == character.name) if named else (turn.speaker != user), single_line(turn.text))
            for turn in history
        ]
        return [turn for turn in turns if turn[1]]

    def _conversation(self, character: Character | Blend, history: Sequence[Turn]) -> str:
        lines = [
            f"{character.name if own else self.user_label}: {text}\n"
            for own, text in self._turns(character, history)
        ]
        return "".join(lines) + f"{character.name}:"


def _skeleton(name: str) -> str:
    """The same for labels that differ only in the forms of letters, in case or in what is invisible."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in folded if unicodedata.category(letter) not in ("Cf", "Mn", "Zs"))


@dataclass(frozen=True)
class DialogPrompt(_Labelled):
    r"""The dialogue prompt: pseudo-dialogues as if they had been said, then the conversation.

    .. code-block:: text

        This is conversation between User and {N}.\n
        User: {c_1}\n{N}: {u_1}\n ... User: {c_k}\n{N}: {u_k}\n
        User: {x}\n{N}:

    The lines are wrapped for reading; the only line breaks are the ``\n``. The prompt ends with the colon.

    Attributes:
        user_label: The user's label.
        instruction: First line, without its line break.
    """

    kind: ClassVar[str] = "dialog"
    needs: ClassVar[Needs] = "pairs"
    chat: ClassVar[bool] = False

    instruction: str = "This is conversation between {user} and {name}."

    def build(
        self, character: Character | Blend, pairs: Sequence[PseudoDialog], history: Sequence[Turn]
    ) -> str:
        """Lays out the pairs, in their order, and the conversation.

        Args:
            character: Who answers.
            pairs: May be empty: instruction and conversation remain.
            history: The conversation, oldest turn first; the last turn is the user's.

        Returns:
            The prompt.

        Raises:
            ValueError: The history is empty, or its last turn is the character's.
        """
        user, name = self.user_label, character.name
        shown = "".join(
            f"{user}: {single_line(pair.context)}\n{name}: {single_line(pair.utterance)}\n" for pair in pairs
        )
        instruction = single_line(self._fill(self.instruction, character))
        return f"{instruction}\n{shown}{self._conversation(character, history)}"


@dataclass(frozen=True)
class UtterancesPrompt(_Labelled):
    r"""The utterances-only baseline: the same lines as a list of quotes, without contexts.

    .. code-block:: text

        The below are quotes of {N} during conversation.\n
        - {u_1}\n ... - {u_k}\n
        The below are conversation between User and {N}.\n
        User: {x}\n{N}:

    Attributes:
        user_label: The user's label.
        quotes: Line before the quotes, without its line break.
        instruction: Line before the conversation, without its line break.
    """

    kind: ClassVar[str] = "utterances"
    needs: ClassVar[Needs] = "utterances"
    chat: ClassVar[bool] = False

    quotes: str = "The below are quotes of {name} during conversation."
    instruction: str = "The below are conversation between {user} and {name}."

    def build(
        self, character: Character | Blend, pairs: Sequence[PseudoDialog], history: Sequence[Turn]
    ) -> str:
        """Lays out the utterances of the pairs, in their order, and the conversation.

        Args:
            character: Who answers.
            pairs: Their contexts are ignored.
            history: As for :meth:`DialogPrompt.build`.

        Returns:
            The prompt.

        Raises:
            ValueError: As for :meth:`DialogPrompt.build`.
        """
        shown = "".join(f"- {single_line(pair.utterance)}\n" for pair in pairs)
        quotes = single_line(self._fill(self.quotes, character))
        instruction = single_line(self._fill(self.instruction, character))
        return f"{quotes}\n{shown}{instruction}\n{self._conversation(character, history)}"


@dataclass(frozen=True)
class ZeroShotPrompt(_Labelled):
    """The zero-shot baseline: only the name, and the show where it is known.

    The authors' wording is not known; this one is ours, modelled on their dialogue prompt.

    Attributes:
        user_label: The user's label.
        instruction: First line, without its line break.
    """

    kind: ClassVar[str] = "zero-shot"
    needs: ClassVar[Needs] = "nothing"
    chat: ClassVar[bool] = False

    instruction: str = "This is conversation between {user} and {identity}."

    def build(
        self, character: Character | Blend, pairs: Sequence[PseudoDialog], history: Sequence[Turn]
    ) -> str:
        """Lays out the conversation.

        Args:
            character: Who answers.
            pairs: Ignored.
            history: As for :meth:`DialogPrompt.build`.

        Returns:
            The prompt.

        Raises:
            ValueError: As for :meth:`DialogPrompt.build`.
        """
        instruction = single_line(self._fill(self.instruction, character))
        return f"{instruction}\n{self._conversation(character, history)}"


@dataclass(frozen=True)
class ChatTemplatePrompt(_Labelled):
    """For instruction-tuned models: the pairs as real turns of user and assistant, after a system line.

    The model's own chat template lays the messages out and opens the assistant's turn. This layout is not
    from the paper, whose models are plain language models. Neighbouring turns of one speaker become one
    message, since many templates refuse two in a row.

    Attributes:
        user_label: What the system line calls the user.
        system: The system line.
        system_role: False puts the system line before the first user message, for templates that know no
            system role.
    """

    kind: ClassVar[str] = "chat"
    needs: ClassVar[Needs] = "pairs"
    chat: ClassVar[bool] = True

    system: str = (
        "You are {identity}, talking with a user. Answer in one line, always in the manner that "
        "{name} shows in this conversation."
    )
    system_role: bool = True

    def build(
        self, character: Character | Blend, pairs: Sequence[PseudoDialog], history: Sequence[Turn]
    ) -> list[dict[str, str]]:
        """Makes messages of the pairs, in their order, and the conversation.

        Args:
            character: Who answers.
            pairs: May be empty.
            history: As for :meth:`DialogPrompt.build`.

        Returns:
            Messages ``{"role": "system" | "user" | "assistant", "content": text}``; the last is the user's.

        Raises:
            ValueError: As for :meth:`DialogPrompt.build`.
        """
        turns: list[tuple[str, str]] = []
        for pair in pairs:
            turns += [("user", single_line(pair.context)), ("assistant", single_line(pair.utterance))]
        turns += [("assistant" if own else "user", text) for own, text in self._turns(character, history)]
        system = single_line(self._fill(self.system, character))
        messages = [{"role": "system", "content": system}] if self.system_role else []
        for role, text in turns:
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f" {text}"
            else:
                messages.append({"role": role, "content": text})
        if not self.system_role:
            if messages[0]["role"] == "user":
                messages[0]["content"] = f"{system} {messages[0]['content']}"
            else:
                messages.insert(0, {"role": "user", "content": system})
        return messages
