"""Chatbots for the tests of the chat page."""

import threading
from collections.abc import Iterator, Sequence

from dialogkit.chat import Reply
from dialogkit.dialogues import Turn
from dialogkit.generation import Candidate, GenerationConfig, Likelihood, PromptError
from dialogkit.generation.types import Prompt
from dialogkit.pdp import Character, DynamicMatcher, Matcher, PDPChatbot
from tests.dialogkit.pdp.helpers import character, index


class WordsLM:
    """Says its line word by word, and waits before the second word until ``go`` is set."""

    name = "/folder/of/this/machine/words"
    max_length = None
    supports_chat = False

    def __init__(self, says: str = "Yes.") -> None:
        self.says = says
        self.go = threading.Event()
        self.go.set()
        self.configs: list[GenerationConfig] = []
        self.prompts: list[Prompt] = []

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        return [[Candidate(self.says, -1.0, -1.0, 1, "stop")] for _ in prompts]

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> Iterator[str]:
        self.configs.append(config)
        self.prompts.append(prompt)
        first, *rest = self.says.split(" ")
        yield first
        for word in rest:
            assert self.go.wait(60)
            yield f" {word}"

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        raise NotImplementedError

    def count_tokens(self, prompt: Prompt) -> int:
        return len(prompt)


class WholeBot:
    """Gives its reply in one piece only; a message "fail" it cannot answer, and "break" breaks it."""

    name = "Whole"

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        return self.reply_batch([history])[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        said = [history if isinstance(history, str) else history[-1].text for history in histories]
        if "fail" in said:
            raise PromptError("that is too hard")
        if "break" in said:
            raise ValueError("a secret of the inside")
        return [Reply(f"You said {text}", evidence={"candidates": [_found(text)]}) for text in said]

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Iterator[str]:
        raise NotImplementedError


def _found(text: str) -> dict[str, object]:
    return {"response": f"You said {text}", "id": 0, "score": 1.25}


def pdp(
    says: str = "Yes.", *, who: Character | None = None, matcher: Matcher | None = None
) -> tuple[PDPChatbot, WordsLM]:
    """A character that always says the same, and its language model."""
    model = WordsLM(says)
    own = matcher or DynamicMatcher(index(), max_dialogs=3)
    return PDPChatbot(model, who or character(), matcher=own), model
