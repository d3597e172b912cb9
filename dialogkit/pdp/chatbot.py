"""PDPChatbot: a language model that answers in a character's voice, prompted with pseudo-dialogues."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from dialogkit import embedded
from dialogkit.chat import MAX_MESSAGE, ChatSession, Reply
from dialogkit.dialogues import Turn, as_history, single_line
from dialogkit.generation.text import collected
from dialogkit.generation.trimming import trim_history
from dialogkit.generation.types import Candidate, GenerationConfig, LanguageModel, Prompt, PromptError
from dialogkit.retrieval.index import ContextIndex
from dialogkit.retrieval.pool import ContextPool
from dialogkit.retrieval.retriever import EMBEDDED, Retriever, default_retriever_name, load_retriever
from trainkit.hub import HubMixin

from .assembly import (
    PROMPTS,
    check_character,
    config_of_matcher,
    embedded_index,
    load_language_model,
    make_matcher,
    shows_pairs,
)
from .characters import Blend, Character
from .config import MatcherKind, PDPConfig, PromptKind, Selection, embedded_config
from .files import load_character
from .matching import Matcher, PseudoDialog
from .prompts import ChatTemplatePrompt, DialogPrompt, PromptBuilder
from .saving import Parts, read_parts, reference_of, write_parts

if TYPE_CHECKING:
    from trainkit.cards import ModelCard

__all__ = ["PDPChatbot"]

logger = logging.getLogger(__name__)


_STREAM_ATTEMPTS = 5


class _Laid(NamedTuple):
    """A prompt that fits, and what it was made of."""

    prompt: Prompt
    pairs: list[PseudoDialog]
    message: str
    dropped_pairs: int
    dropped_turns: int
    shortened: bool


# What a caller of save_pretrained or from_pretrained adds to what a saved folder says of itself.
_INCLUDE_MODEL: ContextVar[bool] = ContextVar("include_model", default=False)
_GIVEN: ContextVar[tuple[LanguageModel | str | Path | None, Retriever | str | Path | None, str | None]] = (
    ContextVar("given", default=(None, None, None))
)


class PDPChatbot(HubMixin):
    """A character that talks, from a few of its utterances, without any training.

    Each utterance is placed in the prompt as the answer to a retrieved pseudo-context, so that the language
    model takes it for the character's earlier turn and keeps the voice (Pseudo Dialog Prompting, NAACL 2022,
    arXiv 2204.10825).

    A reply costs one encoding of the user's message, one product with the pool's embeddings (dynamic match)
    and the generation of the candidates. A chatbot holds no conversation and changes nothing of itself when
    it replies, so one may serve many conversations.

    Prompts longer than the model's context window are cut in this order: a last message that takes more than
    ``max_message_share`` of the room loses its beginning (with a warning); then the pairs with the lowest
    order scores go; then the oldest turns. A message of more than 8,000 characters keeps its last 8,000, with
    a warning. What was dropped stands in the reply's evidence.

    Args:
        model: A language model, or a folder or Hub id of a transformers model, or ``"embedded"`` for the
            small one that ships with the package.
        character: A character, a blend of several, a JSON file, or the name of an embedded character.
        matcher: ``"dynamic"``, ``"static"``, ``"random"``, ``"gold"``, or a matcher. None takes the config's.
        prompt: ``"auto"``, ``"dialog"``, ``"chat"``, ``"utterances"``, ``"zero-shot"``, or a builder. None
            takes the config's.
        retriever: An encoder or the name of one (see :func:`~dialogkit.retrieval.load_retriever`). None takes
            :func:`~dialogkit.retrieval.default_retriever`. Not together with a matcher object.
        pool: Contexts, or a text file with one per line. None takes the pool that ships with the package. Not
            together with a matcher object.
        selection: Overrides ``config.selection``.
        generation: Overrides ``config.generation``. Stop strings of the format are added to its own.
        config: Everything else. None takes :class:`PDPConfig`, or :func:`embedded_config` for ``"embedded"``.
        device: Torch device for a model or retriever given by name; the GPU when there is one.

    Attributes:
        name: The character's display name.
        character: Who talks.
        model: The language model.
        matcher: Finds the pairs; None for the zero-shot prompt.
        prompt: Lays out the prompt.
        config: The settings in use.

    Raises:
        FileNotFoundError: A model folder, character file or pool file is missing.
        TypeError: An argument is of a wrong type.
        ValueError: The character has no utterances (any prompt but zero-shot), gold match lacks contexts, the
            pool is empty or badly encoded, a model file is corrupt, or chat messages are asked of a model
            without a chat template.

    Example:
        >>> bot = PDPChatbot.from_character("captain")
        >>> print(bot.reply("Hello, who are you?", seed=0).text)
    """

    hub_kind = "PDPChatbot"

    def __init__(
        self,
        model: LanguageModel | str | Path,
        character: Character | Blend | str | Path,
        *,
        matcher: MatcherKind | Matcher | None = None,
        prompt: PromptKind | PromptBuilder | None = None,
        retriever: Retriever | str | Path | None = None,
        pool: ContextPool | str | Path | None = None,
        selection: Selection | None = None,
        generation: GenerationConfig | None = None,
        config: PDPConfig | None = None,
        device: str | None = None,
    ) -> None:
        config = config or (embedded_config() if model == EMBEDDED else PDPConfig())
        if selection is not None:
            config = replace(config, selection=selection)
        if generation is not None:
            config = replace(config, generation=generation)
        if isinstance(matcher, Matcher):
            if retriever is not None or pool is not None:
                raise ValueError("a matcher has its own retriever and pool; give either it or those")
            config = config_of_matcher(config, matcher)
        elif matcher is not None:
            config = replace(config, matcher=matcher)
        if isinstance(prompt, str):
            config = replace(config, prompt=prompt)

        self.character = load_character(character)
        self.name = self.character.name
        # Everything cheap is checked before models are loaded.
        builder = None if prompt is None or isinstance(prompt, str) else prompt
        if builder is None and config.prompt != "auto":
            builder = PROMPTS[config.prompt]()
        if builder is None or builder.needs != "nothing":
            check_character(self.character, gold=config.matcher == "gold" and shows_pairs(builder))
        contexts = ContextPool.from_lines(pool) if isinstance(pool, str | Path) else pool

        self.model, self._model_reference = load_language_model(model, device)
        if builder is None:
            builder = ChatTemplatePrompt() if self.model.supports_chat else DialogPrompt()
        if builder.chat and not self.model.supports_chat:
            raise ValueError(
                f"the chat prompt needs a model with a chat template, which {self.model.name} lacks; "
                "use prompt='dialog'"
            )
        self.prompt: PromptBuilder = builder
        # Also finds a name that clashes with the user's label.
        self.prompt.build(self.character, (), (Turn(f"not {self.name}", "Hello."),))
        self.config = config
        self.matcher: Matcher | None
        self._retriever_name: str | None = None
        if isinstance(matcher, Matcher):
            self.matcher = matcher
            self._retriever_name = reference_of(matcher.retriever)
        elif builder.needs == "nothing" and config.selection != "ranker":
            self.matcher = None
        else:
            self.matcher = self._make_matcher(retriever, contexts, device)

    @classmethod
    def from_character(
        cls,
        character: Character | Blend | str | Path,
        *,
        matcher: MatcherKind | Matcher | None = None,
        prompt: PromptKind | PromptBuilder | None = None,
        retriever: Retriever | str | Path | None = None,
        pool: ContextPool | str | Path | None = None,
        selection: Selection | None = None,
        generation: GenerationConfig | None = None,
        config: PDPConfig | None = None,
        device: str | None = None,
    ) -> Self:
        """Lets a character talk through the small models that ship with the package; no network is used.

        Args:
            character: The name of an embedded character, a JSON file, or a character.
            matcher: As for the class.
            prompt: As for the class.
            retriever: As for the class.
            pool: As for the class.
            selection: As for the class.
            generation: As for the class.
            config: As for the class.
            device: As for the class.

        Raises:
            FileNotFoundError: The installation lacks the embedded models.
            ValueError: As for the class.
        """
        return cls(
            EMBEDDED,
            character,
            matcher=matcher,
            prompt=prompt,
            retriever=retriever,
            pool=pool,
            selection=selection,
            generation=generation,
            config=config,
            device=device,
        )

    # Talking ------------------------------------------------------------------------------------------------

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answers the last turn.

        Args:
            history: The conversation, oldest turn first, or the user's words. Turns by a speaker of the
                character's name are the character's; see :class:`~dialogkit.pdp.DialogPrompt`.
            seed: Any integer for the same reply each time.

        Returns:
            The reply with all candidates. Its ``evidence`` holds ``pairs`` (context, utterance, match_score,
            order_score, context_id, character, in the order of the prompt), ``prompt``, ``matcher``,
            ``selection``, and what had to be dropped; its ``timing`` the seconds of ``match``, ``generate``,
            ``select`` and ``total``. The text is empty if no candidate had any, with a warning in the log.

        Raises:
            ValueError: There is nothing to answer: no turn, an empty last turn, or one by the character.
        """
        return self.reply_batch([history], seed=seed)[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answers several conversations, encoding and generating for all of them together.

        Args:
            histories: The conversations.
            seed: Any integer for the same replies each time.

        Returns:
            One reply per conversation; ``timing`` is that of the whole batch.

        Raises:
            ValueError: As for :meth:`reply`.
        """
        if isinstance(histories, str):
            raise TypeError("histories must be a sequence of conversations, got one string")
        if not len(histories):
            return []
        clock = [time.perf_counter()]
        laid = self._lay_out(histories)
        clock.append(time.perf_counter())
        candidates = self.model.generate([one.prompt for one in laid], config=self._generation(), seed=seed)
        clock.append(time.perf_counter())
        chosen = [self._select(found, one.message, seed) for found, one in zip(candidates, laid, strict=True)]
        clock.append(time.perf_counter())
        timing = _timing(clock)
        return [
            Reply(
                text=found[best].text if found else "",
                candidates=tuple(found),
                evidence={**self._evidence(one), "chosen": best},
                timing=timing,
            )
            for (best, found), one in zip(chosen, laid, strict=True)
        ]

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Iterator[str]:
        """Answers piece by piece with a single candidate: nothing is ranked, since ranking needs whole texts.

        With greedy decoding the joined pieces are the text of :meth:`reply`. A sample that ends before it
        says anything is drawn again, with the next seed, at most four times.

        Args:
            history: As for :meth:`reply`; checked and matched before the first piece is asked for.
            seed: Any integer for the same reply each time.

        Returns:
            Iterator over pieces of text. It is a generator whose return value is the whole
            :class:`~dialogkit.chat.Reply`, which a chat session keeps.

        Raises:
            ValueError: As for :meth:`reply`.
        """
        begin = time.perf_counter()
        laid = self._lay_out([history])[0]
        return self._stream(laid, seed, [begin, time.perf_counter()])

    def session(self) -> ChatSession:
        """Returns a conversation that remembers its turns."""
        return ChatSession(self)

    def _stream(self, laid: _Laid, seed: int | None, clock: list[float]) -> Generator[str, None, Reply]:
        config = replace(self._generation(), num_candidates=1)
        text, drawn = "", tuple[Candidate, ...]()
        for attempt in range(_STREAM_ATTEMPTS if config.do_sample else 1):
            again = seed if seed is None else seed + attempt
            text, drawn = yield from collected(self.model.stream(laid.prompt, config=config, seed=again))
            if text:
                break
        clock += [time.perf_counter(), time.perf_counter()]
        evidence = {**self._evidence(laid), "selection": "first", "chosen": 0}
        return Reply(text, drawn, evidence, _timing(clock))

    def _generation(self) -> GenerationConfig:
        own = self.config.generation
        return replace(own, stop=tuple(dict.fromkeys((*self.prompt.stop(self.character), *own.stop))))

    # Prompts ------------------------------------------------------------------------------------------------

    def _lay_out(self, histories: Sequence[Sequence[Turn] | str]) -> list[_Laid]:
        cleaned = [_clean(history) for history in histories]
        conversations = [history for history, _ in cleaned]
        matches: list[list[PseudoDialog]]
        if self.prompt.needs == "pairs" and self.matcher is not None:
            matches = self.matcher.match_batch(self.character, conversations)
        elif self.prompt.needs == "utterances" and self.matcher is not None:
            matches = [self.matcher.arrange(self.character, history) for history in conversations]
        else:
            matches = [[] for _ in conversations]
        return [
            self._fit(pairs, history, shortened)
            for pairs, (history, shortened) in zip(matches, cleaned, strict=True)
        ]

    def _fit(self, pairs: list[PseudoDialog], history: tuple[Turn, ...], shortened: bool) -> _Laid:
        """Builds the prompt, dropping what does not fit."""

        def build(kept: Sequence[PseudoDialog], turns: Sequence[Turn]) -> Prompt:
            return self.prompt.build(self.character, kept, turns)

        prompt, turns, kept = build(pairs, history), history, pairs
        if self.model.max_length is not None:
            room = self.model.max_length - self.config.generation.max_new_tokens
            if room < 1:
                raise PromptError(
                    f"max_new_tokens={self.config.generation.max_new_tokens} leaves no room for a prompt in "
                    f"the model's {self.model.max_length} tokens"
                )

            def fits(candidate: Prompt) -> bool:
                return self.model.count_tokens(candidate) <= room

            if not fits(prompt):
                share = int(room * self.config.max_message_share)
                last = trim_history(turns[-1:], lambda one: self.model.count_tokens(one[0].text) <= share)
                shortened = shortened or last != turns[-1:]
                turns = (*turns[:-1], *last)
                ranking = sorted(range(len(pairs)), key=lambda i: pairs[i].order_score)

                def without(lowest: int) -> list[PseudoDialog]:
                    dropped = set(ranking[:lowest])
                    return [pair for i, pair in enumerate(pairs) if i not in dropped]

                low, high = 0, len(pairs)
                while low < high:
                    middle = (low + high) // 2
                    if fits(build(without(middle), turns)):
                        high = middle
                    else:
                        low = middle + 1
                kept = without(low)
                if not kept:
                    whole = turns
                    turns = trim_history(turns, lambda some: fits(build((), some)))
                    shortened = shortened or turns[-1] != whole[-1]
                prompt = build(kept, turns)
        return _Laid(
            prompt=prompt,
            pairs=kept,
            message=single_line(turns[-1].text),
            dropped_pairs=len(pairs) - len(kept),
            dropped_turns=len(history) - len(turns),
            shortened=shortened,
        )

    def _evidence(self, laid: _Laid) -> dict[str, Any]:
        matcher = self.matcher if self.prompt.needs == "pairs" else None
        return {
            "method": "pdp",
            "character": self.name,
            "model": self.model.name,
            "prompt_kind": self.prompt.kind,
            "matcher": None if matcher is None else matcher.kind,
            "selection": self.config.selection,
            "pairs": [asdict(pair) for pair in laid.pairs],
            "prompt": laid.prompt if isinstance(laid.prompt, str) else [dict(m) for m in laid.prompt],
            "dropped_pairs": laid.dropped_pairs,
            "dropped_turns": laid.dropped_turns,
            "shortened_message": laid.shortened,
        }

    # Choosing -----------------------------------------------------------------------------------------------

    def _select(
        self, candidates: list[Candidate], message: str, seed: int | None
    ) -> tuple[int, list[Candidate]]:
        """Place of the chosen candidate, and all candidates with what the choice learnt about them."""
        speaking = [i for i, candidate in enumerate(candidates) if candidate.text]
        if not speaking:
            logger.warning("%s said nothing in any of %d candidates", self.model.name, len(candidates))
            return 0, candidates
        way = self.config.selection
        if way == "first":
            return speaking[0], candidates
        if way == "random":
            return int(
                np.random.default_rng(None if seed is None else abs(seed)).choice(speaking)
            ), candidates
        if way == "logprob":
            scores = np.array([candidates[i].logprob for i in speaking])
            if np.isnan(scores).any():
                raise ValueError(
                    f"{self.model.name} gives no log-probabilities; use selection='ranker' or 'first'"
                )
            return speaking[int(scores.argmax())], candidates
        if self.matcher is None:
            raise AssertionError("the constructor makes a matcher for the ranker")
        retriever = self.matcher.retriever
        fit = retriever.encode_response([candidates[i].text for i in speaking])
        scores = fit @ retriever.encode_context([message])[0]
        scored = list(candidates)
        for i, score in zip(speaking, scores.tolist(), strict=True):
            scored[i] = replace(candidates[i], ranker_score=score)
        return speaking[int(scores.argmax())], scored

    # Parts --------------------------------------------------------------------------------------------------

    def _make_matcher(
        self, retriever: Retriever | str | Path | None, pool: ContextPool | None, device: str | None
    ) -> Matcher:
        chosen = retriever is not None
        if retriever is None:
            retriever = default_retriever_name()
        if isinstance(retriever, str | Path):
            self._retriever_name = str(retriever)
            retriever = load_retriever(retriever, device=device)
        else:
            self._retriever_name = reference_of(retriever)
        if not chosen and retriever.symmetric:
            logger.info("contexts are matched by MiniLM, which finds paraphrases; see docs/pdp.md")
        contexts: ContextIndex | ContextPool | None
        # Gold match brings its contexts; where none are shown, any matcher selects and orders alike.
        if not shows_pairs(self.prompt) or self.config.matcher == "gold":
            contexts = None
        elif self.config.matcher == "random":
            contexts = ContextPool.from_lines(embedded.contexts_path()) if pool is None else pool
        else:
            contexts = embedded_index(retriever) if pool is None else ContextIndex(retriever, pool)
        return make_matcher(self.config, retriever, contexts, allow_symmetric=not chosen)

    # Keeping ------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        card: ModelCard | None = None,
        overwrite: bool = False,
        include_model: bool = False,
    ) -> None:
        """Writes character, pool, embeddings, settings and references to the models into a folder.

        Args:
            directory: The folder; all or nothing is written.
            card: Model card; by default one is made.
            overwrite: Also replace a folder with other content, which is lost.
            include_model: Copy the language model and the retriever into the folder instead of naming them.

        Raises:
            FileExistsError: The folder holds files of another kind, and ``overwrite`` is false.
            TypeError: The matcher or prompt is not one of this package's, or a model cannot be copied.
        """
        # `push_to_hub` comes by here, with its own wish set already.
        token = _INCLUDE_MODEL.set(include_model or _INCLUDE_MODEL.get())
        try:
            super().save_pretrained(directory, card=card, overwrite=overwrite)
        finally:
            _INCLUDE_MODEL.reset(token)

    @classmethod
    def from_pretrained(
        cls,
        dir_or_repo: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        model: LanguageModel | str | Path | None = None,
        retriever: Retriever | str | Path | None = None,
        device: str | None = None,
    ) -> Self:
        """Reads a chatbot from a folder or from the Hub.

        Args:
            dir_or_repo: A folder, which wins, or a Hub repository.
            revision: Branch, tag or commit.
            token: Access token for a private repository.
            model: Use this language model instead of the saved or named one; needed when the chatbot was
                saved with a server's model.
            retriever: Use this retriever; it must be the one the embeddings were made with.
            device: Torch device for what is loaded.

        Returns:
            The chatbot.

        Raises:
            ArtefactError: The folder is no saved chatbot, or is damaged.
            StaleIndexError: The embeddings were made with another retriever or pool.
            ValueError: No model is named and none was given.
            OSError: See :func:`trainkit.hub.resolve`.
        """
        given = _GIVEN.set((model, retriever, device))
        try:
            return super().from_pretrained(dir_or_repo, revision=revision, token=token)
        finally:
            _GIVEN.reset(given)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        card: ModelCard | None = None,
        include_model: bool = False,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes, in one commit.

        Args:
            repo_id: ``"owner/name"``; created when missing.
            private: Whether the repository is to be private.
            token: Access token with write permission.
            revision: Branch to commit to.
            commit_message: First line of the commit.
            card: Model card; by default one is made.
            include_model: Also upload the language model and the retriever.

        Returns:
            The commit's id.

        Raises:
            ValueError: A model is named by a folder of this machine, which nobody else has; use
                ``include_model=True``. See also :func:`trainkit.hub.push_folder`.
        """
        if not include_model:
            model = self._model_reference.name if self._model_reference is not None else None
            for part, name in (("language model", model), ("retriever", self._retriever_name)):
                if name is not None and Path(name).is_dir():
                    raise ValueError(
                        f"the {part} is the folder {name} of this machine; pass include_model=True, "
                        "or make the chatbot with a Hub id"
                    )
        flag = _INCLUDE_MODEL.set(include_model)
        try:
            return super().push_to_hub(
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                card=card,
            )
        finally:
            _INCLUDE_MODEL.reset(flag)

    def _save(self, directory: Path) -> None:
        parts = Parts(
            config=self.config,
            character=self.character,
            model=self.model,
            prompt=self.prompt,
            matcher=self.matcher,
            model_reference=self._model_reference,
            retriever_name=self._retriever_name,
        )
        write_parts(parts, directory, include_model=_INCLUDE_MODEL.get())

    @classmethod
    def _load(cls, directory: Path) -> Self:
        model, retriever, device = _GIVEN.get()
        parts = read_parts(directory, model=model, retriever=retriever, device=device)
        bot = cls(
            parts.model, parts.character, matcher=parts.matcher, prompt=parts.prompt, config=parts.config
        )
        # The constructor describes the parts it was given; these are the words of whoever saved them.
        bot.config = parts.config
        bot._model_reference = parts.model_reference
        bot._retriever_name = parts.retriever_name
        return bot

    def _card(self) -> ModelCard:
        from trainkit.cards import ModelCard

        blend = isinstance(self.character, Blend)
        voices = self.character.characters if isinstance(self.character, Blend) else (self.character,)
        licences = sorted({voice.licence or "not stated" for voice in voices})
        about = " ".join(voice.summary for voice in voices if voice.summary)
        lines = sum(len(voice.utterances) for voice in voices)
        matcher = self.matcher.kind if self.matcher is not None else "no"
        return ModelCard(
            title=self.name,
            method=(
                "Pseudo Dialog Prompting (Han et al., NAACL 2022, arXiv 2204.10825), "
                f"{matcher} match, {self.prompt.kind} prompt"
            ),
            summary=(
                f"A {'blend of characters' if blend else 'character'} that talks from {lines} utterances, "
                f"without training. {about}\n\nLanguage model: {self.model.name}."
            ),
            licence=licences[0] if len(licences) == 1 else "other",
            limits=(
                "Knows no facts about the character beyond its utterances.",
                "Imitates whatever the utterances and the user bring, also what is unsafe.",
                "Coherence is lower than without pseudo-dialogues in the paper's measurements.",
            ),
            tags=("dialogue", "pseudo-dialog-prompting"),
        )


# Helpers ----------------------------------------------------------------------------------------------------


def _clean(history: Sequence[Turn] | str) -> tuple[tuple[Turn, ...], bool]:
    """The conversation on single lines, and whether its last message had to be shortened."""
    turns = tuple(Turn(turn.speaker, single_line(turn.text)) for turn in as_history(history))
    last = turns[-1]
    if len(last.text) <= MAX_MESSAGE:
        return turns, False
    warnings.warn(
        f"a message of {len(last.text):,} characters is shortened to its last {MAX_MESSAGE:,}", stacklevel=6
    )
    return (*turns[:-1], Turn(last.speaker, last.text[-MAX_MESSAGE:].lstrip())), True


def _timing(clock: Sequence[float]) -> dict[str, float]:
    stages = ("match", "generate", "select")
    timing = {name: clock[i + 1] - clock[i] for i, name in enumerate(stages)}
    return timing | {"total": clock[-1] - clock[0]}
