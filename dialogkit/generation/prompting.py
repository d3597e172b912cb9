"""How a plain dialogue is laid out for a language model that answers its last turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dialogkit.dialogues import single_line
from dialogkit.generation.types import Prompt

__all__ = ["DialoguePrompt"]


@dataclass(frozen=True)
class DialoguePrompt:
    r"""Turns of two speakers who take turns, the last of them the user's.

    Every turn is put on one line first, so none can forge another.

    Attributes:
        layout: ``"labelled"`` puts a speaker's name before each turn and ends with the model's own, for plain
            causal models. ``"lines"`` is one turn a line without names, as dialogue encoders read it.
            ``"chat"`` makes chat messages for models with a chat template.
        instruction: First line or system message; none if empty.
        user: The user's name in ``"labelled"``.
        bot: The model's name in ``"labelled"``.

    Raises:
        ValueError: The layout is unknown, or a name is blank, ends with a colon or equals the other.
    """

    layout: Literal["labelled", "lines", "chat"] = "labelled"
    instruction: str = ""
    user: str = "User"
    bot: str = "Bot"

    def __post_init__(self) -> None:
        if self.layout not in ("labelled", "lines", "chat"):
            raise ValueError(f"layout must be 'labelled', 'lines' or 'chat', got {self.layout!r}")
        for name in (self.user, self.bot):
            if not name.strip() or single_line(name) != name or name.endswith(":"):
                raise ValueError(
                    f"a speaker's name must be one line without a colon at its end, got {name!r}"
                )
        if self.user.casefold() == self.bot.casefold():
            raise ValueError(f"user and bot must have different names, both are {self.user!r}")

    def build(self, context: Sequence[str]) -> Prompt:
        """Lays out a context.

        Args:
            context: The turns, oldest first. None at all gives the prompt of a response to nothing.

        Returns:
            Text, or chat messages.
        """
        if isinstance(context, str):
            raise TypeError("context must be a sequence of turns, got a string")
        turns = [single_line(turn) for turn in context]
        own = [(len(turns) - i) % 2 == 0 for i in range(len(turns))]
        instruction = single_line(self.instruction)
        if self.layout == "chat":
            said = [
                {"role": "assistant" if mine else "user", "content": turn}
                for mine, turn in zip(own, turns, strict=True)
            ]
            first = {"role": "system", "content": instruction}
            return [*([first] if instruction else []), *(said or [{"role": "user", "content": ""}])]
        lines = [instruction] if instruction else []
        if self.layout == "lines":
            return "\n".join([*lines, *turns])
        names = [self.bot if mine else self.user for mine in own]
        lines += [f"{name}: {turn}" for name, turn in zip(names, turns, strict=True)]
        return "\n".join([*lines, f"{self.bot}:"])

    def answer(self, response: str) -> str:
        """A response as it continues the prompt: with the space that stands after a name."""
        line = single_line(response)
        return f" {line}" if self.layout == "labelled" else line

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a response."""
        if self.layout == "labelled":
            return ("\n", f"{self.user}:", f"{self.bot}:")
        return ("\n",) if self.layout == "lines" else ()
