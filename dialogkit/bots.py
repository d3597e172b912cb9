"""Any chatbot by name, whatever its method; the plain language model as a chatbot.

What must know every kind of chatbot stands here, for the commands, the evaluation and the server.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.chat import Chatbot, Reply
from dialogkit.dialogues import Turn, as_history, single_line
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.text import collected
from dialogkit.generation.trimming import trim_history
from dialogkit.generation.types import GenerationConfig, LanguageModel, Prompt
from trainkit.hub import fingerprint

if TYPE_CHECKING:
    from dialogkit.pdp import Character

__all__ = [
    "GeneratorChatbot",
    "bot_fingerprint",
    "encoders_of",
    "find_character",
    "load_bot",
    "named_bots",
    "sources_of",
]


class GeneratorChatbot:
    """A language model that answers as it is, without a character and without retrieval.

    Args:
        model: Any language model.
        prompt: How the conversation is laid out. None takes chat messages where the model knows them, else
            labelled lines.
        generation: How a reply is drawn. None draws a single one with the defaults. Of several candidates
            the one with the highest mean log-probability is the reply.
        name: Its display name.

    Raises:
        ValueError: ``name`` is blank, or chat messages are asked of a model that knows none.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        prompt: DialoguePrompt | None = None,
        generation: GenerationConfig | None = None,
        name: str = "Bot",
    ) -> None:
        if not single_line(name):
            raise ValueError(f"name must not be blank, got {name!r}")
        self.prompt = prompt or DialoguePrompt("chat" if model.supports_chat else "labelled")
        if self.prompt.layout == "chat" and not model.supports_chat:
            raise ValueError(f"{model.name} takes no chat messages; use the layout 'labelled' or 'lines'")
        self.model = model
        self.generation = generation or GenerationConfig(num_candidates=1)
        self.name = single_line(name)

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answers the last turn; see :meth:`reply_batch`."""
        return self.reply_batch([history], seed=seed)[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answers several conversations together.

        Args:
            histories: The conversations, each with turns of two speakers in alternation, the last one the
                user's. The oldest turns go where the model's window is too small.
            seed: Any integer for the same replies each time.

        Returns:
            One reply per conversation. The evidence holds ``"method"``, ``"model"`` and ``"prompt"``;
            ``timing`` is that of the whole batch.

        Raises:
            ValueError: A history is empty or its last turn is blank.
        """
        if not histories:
            return []
        begin = time.perf_counter()
        prompts = [self._prompt(history) for history in histories]
        drawn = self.model.generate(prompts, config=self._config(), seed=seed)
        seconds = {"total": time.perf_counter() - begin}
        replies = []
        for prompt, candidates in zip(prompts, drawn, strict=True):
            speaking = [one for one in candidates if one.text]
            # Without log-probabilities (a server's choice) the first one wins.
            best = max(speaking, key=lambda one: one.logprob) if speaking else None
            text = best.text if best is not None else ""
            replies.append(Reply(text, tuple(candidates), self._evidence(prompt), seconds))
        return replies

    def stream(
        self, history: Sequence[Turn] | str, *, seed: int | None = None
    ) -> Generator[str, None, Reply]:
        """Answers piece by piece with a single candidate."""
        prompt = self._prompt(history)
        text, drawn = yield from collected(self.model.stream(prompt, config=self._config(), seed=seed))
        return Reply(text, drawn, self._evidence(prompt))

    @property
    def fingerprint(self) -> str:
        """Changes with the model's name or weights, the layout and the settings of generation."""
        return fingerprint("generator", *_model_marks(self.model), repr(self.prompt), repr(self.generation))

    def _config(self) -> GenerationConfig:
        stop = dict.fromkeys((*self.prompt.stop, *self.generation.stop))
        return replace(self.generation, stop=tuple(stop))

    def _prompt(self, history: Sequence[Turn] | str) -> Prompt:
        turns = as_history(history)

        def build(kept: Sequence[Turn]) -> Prompt:
            return self.prompt.build([turn.text for turn in kept])

        if self.model.max_length is not None:
            room = self.model.max_length - self.generation.max_new_tokens
            turns = trim_history(turns, lambda kept: self.model.count_tokens(build(kept)) <= room)
        return build(turns)

    def _evidence(self, prompt: Prompt) -> dict[str, Any]:
        shown = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
        return {"method": "generator", "model": self.model.name, "prompt": shown}


def load_bot(name: str, *, retriever: str | None = None) -> Chatbot:
    """A chatbot by name.

    Args:
        name: One of

            - a folder or Hub id of a saved chatbot of any kind,
            - ``"character:NAME"``: an embedded character, or a character's JSON file, with the embedded
              model,
            - ``"lm:NAME"``: folder or Hub id of a plain language model, or ``"lm:embedded"``,
            - ``"endpoint:MODEL@URL"``: a model of an OpenAI-compatible server; its key is read from
              ``OPENAI_API_KEY``.
        retriever: The encoder of a character; see :func:`~dialogkit.retrieval.load_retriever`.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: The folder is no chatbot, or there is no such character.
    """
    kind, _, rest = name.partition(":")
    if kind == "character":
        from dialogkit.pdp import PDPChatbot

        return PDPChatbot.from_character(find_character(rest), retriever=retriever)
    if kind == "lm":
        from dialogkit import embedded
        from dialogkit.generation.local import TransformersLM

        path = str(embedded.lm_path()) if rest == "embedded" else rest
        return GeneratorChatbot(TransformersLM.from_pretrained(path, kept_bytes=None))
    if kind == "endpoint":
        from dialogkit.generation.endpoint import EndpointLM

        model, at, url = rest.partition("@")
        if not at or not model:
            raise ValueError(
                f"name an endpoint as endpoint:MODEL@URL, such as "
                f"endpoint:Qwen/Qwen3-0.6B@http://localhost:8000/v1, got {name!r}"
            )
        return GeneratorChatbot(EndpointLM(url, model, api_key=os.environ.get("OPENAI_API_KEY")))
    return _saved_bot(name)


def named_bots(given: Sequence[str]) -> dict[str, str]:
    """What each chatbot of a command line is called, and what `load_bot` is to load for it.

    Args:
        given: Each ``[NAME=]WHAT``; without a name, the last part of ``WHAT`` is one.

    Raises:
        ValueError: Two have the same name, or one is blank.
    """
    named: dict[str, str] = {}
    for one in given:
        name, equals, what = one.partition("=")
        if not equals:
            name, what = one.removeprefix("character:").rstrip("/").rpartition("/")[2], one
        if name in named or not name:
            raise ValueError(f"--bot {one}: give each chatbot a name of its own, as in --bot NAME={what}")
        named[name] = what
    return named


def _saved_bot(name: str) -> Chatbot:
    from dialogkit.exemplar import ExemplarChatbot
    from dialogkit.g2r import RetrievalChatbot
    from dialogkit.pdp import PDPChatbot
    from trainkit.hub import MANIFEST, read_json, resolve

    folder = resolve(name)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{name} is no saved chatbot: it holds no {MANIFEST}")
    kind = read_json(folder / MANIFEST).get("kind")
    if kind == RetrievalChatbot.__name__:
        return RetrievalChatbot.from_pretrained(folder)
    if kind == ExemplarChatbot.__name__:
        return ExemplarChatbot.from_pretrained(folder)
    return PDPChatbot.from_pretrained(folder)


def find_character(name: str) -> Character:
    """The character that a user means by an id, a display name in any case, or a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such character; the message names the nearest.
    """
    from dialogkit import embedded
    from dialogkit.pdp import Character, read_character
    from dialogkit.pdp.files import CHARACTER_FILES

    if name.lower().endswith(CHARACTER_FILES):
        return read_character(name)
    known = [Character.from_json(embedded.character_path(each)) for each in embedded.character_names()]
    wanted = name.strip().casefold()
    for character in known:
        if wanted in (character.id.casefold(), character.name.casefold()):
            return character
    spellings = {spelling.casefold(): one.id for one in known for spelling in (one.id, one.name)}
    near = difflib.get_close_matches(wanted, spellings, n=1)
    guess = f"did you mean {spellings[near[0]]!r}? " if near else ""
    raise ValueError(
        f"no character is called {name!r}; {guess}known: {', '.join(one.id for one in known) or 'none'}, "
        f"or the path of a file ({', '.join(CHARACTER_FILES)})"
    )


# What a chatbot is made of ----------------------------------------------------------------------------------


def bot_fingerprint(bot: Chatbot) -> str:
    """Identifies a chatbot and its settings, so that its replies are not taken for another's.

    A chatbot's own ``fingerprint``, if it has one, is taken. Otherwise it covers class, name, ``config``,
    character, retriever, index, prompt, the language model's name and a sample of its weights, as far as
    the chatbot has them: two of a class unknown here that differ in something else look alike.
    """
    own = getattr(bot, "fingerprint", None)
    if isinstance(own, str):
        return own
    parts = [type(bot).__name__, bot.name]
    parts += [repr(getattr(bot, part, None)) for part in ("config", "prompt")]
    parts += [type(getattr(bot, "reranker", None)).__name__]
    matcher = getattr(bot, "matcher", None)
    for part in (
        *(getattr(bot, name, None) for name in ("character", "index")),
        getattr(getattr(matcher, "index", None), "pool", None),
    ):
        parts.append(str(getattr(part, "fingerprint", None)))
    model = getattr(bot, "model", None)
    marks = [] if model is None else _model_marks(model)
    return fingerprint("chatbot", *parts, *sorted(encoders_of(bot)), *marks)


def encoders_of(bot: Chatbot) -> set[str]:
    """Fingerprints of the encoders that a chatbot searches with; an evaluation must use another one."""
    owners = (bot, getattr(bot, "matcher", None))
    found = (getattr(getattr(owner, "retriever", None), "fingerprint", None) for owner in owners)
    return {mark for mark in found if isinstance(mark, str)}


def sources_of(evidence: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that a reply's evidence says it was made from: a character's lines, a retrieved response.

    Args:
        evidence: Of a :class:`~dialogkit.chat.Reply`: ``pairs`` with an ``utterance`` each, ``candidates``
            with a ``response`` each, best first, or ``exemplars``, texts.
    """
    pairs = [str(pair["utterance"]) for pair in evidence.get("pairs", ())]
    retrieved = [str(row["response"]) for row in list(evidence.get("candidates", ()))[:1]]
    return (*pairs, *retrieved, *map(str, evidence.get("exemplars", ())))


def _model_marks(model: LanguageModel) -> list[Any]:
    """Name, address and a sample of the weights of a language model, as parts of a fingerprint."""
    from torch import nn

    marks: list[Any] = [model.name, str(getattr(model, "base_url", ""))]
    network = getattr(model, "model", None)
    if isinstance(network, nn.Module):
        for name, weights in network.named_parameters():
            # A few numbers of every tensor: training changes them, and reading them costs nothing.
            marks += [name, weights.detach().flatten()[:64].float().cpu().numpy()]
        marks[0] = Path(model.name).name  # the same model in another folder
    return marks
