"""From names and settings to the parts of a chatbot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dialogkit import embedded
from dialogkit.generation.types import LanguageModel
from dialogkit.retrieval.biencoder import quiet_progress
from dialogkit.retrieval.index import ContextIndex, StaleIndexError
from dialogkit.retrieval.pool import ContextPool
from dialogkit.retrieval.retriever import EMBEDDED, Retriever

from .characters import Blend, Character
from .config import PDPConfig
from .matching import DynamicMatcher, GoldMatcher, Matcher, RandomMatcher, StaticMatcher
from .prompts import ChatTemplatePrompt, DialogPrompt, PromptBuilder, UtterancesPrompt, ZeroShotPrompt

__all__ = [
    "PROMPTS",
    "ModelReference",
    "check_character",
    "config_of_matcher",
    "embedded_index",
    "load_language_model",
    "make_matcher",
    "shows_pairs",
]

PROMPTS: dict[str, type[DialogPrompt | UtterancesPrompt | ZeroShotPrompt | ChatTemplatePrompt]] = {
    "dialog": DialogPrompt,
    "utterances": UtterancesPrompt,
    "zero-shot": ZeroShotPrompt,
    "chat": ChatTemplatePrompt,
}
"""Prompt layouts by their names in the configuration."""


@dataclass(frozen=True)
class ModelReference:
    """Where a language model can be loaded again.

    Attributes:
        name: Folder, Hub id, or ``"embedded"``.
        revision: Commit of the Hub id: the name alone may mean other weights tomorrow. None for what is not
            on the Hub, and where it is unknown.
    """

    name: str
    revision: str | None = None


def load_language_model(
    model: LanguageModel | str | Path, device: str | None, *, revision: str | None = None
) -> tuple[LanguageModel, ModelReference | None]:
    """Returns the language model, and where it can be loaded again (None if nowhere).

    Args:
        model: The model, or a folder, a Hub id or ``"embedded"``. One given by name keeps the keys and values
            of prompts for reuse (``kept_bytes=None``), since the turns of a conversation begin alike.
        device: Torch device for a model given by name.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        FileNotFoundError: There is no such folder or Hub id.
        TypeError: ``model`` is neither a name nor a language model.
        ValueError: A file of the model is corrupt.
    """
    if isinstance(model, str | Path):
        from dialogkit.generation.local import TransformersLM

        source = embedded.lm_path() if model == EMBEDDED else model
        with quiet_progress():
            loaded = TransformersLM.from_pretrained(source, revision=revision, device=device, kept_bytes=None)
        on_hub = model != EMBEDDED and not Path(model).is_dir()
        return loaded, ModelReference(str(model), _commit(str(model), revision) if on_hub else None)
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"model must be a language model, a folder or a Hub id, got {type(model).__name__}; "
            "wrap a transformers model in TransformersLM"
        )
    loaded_from = getattr(getattr(model, "model", None), "name_or_path", None)
    return model, ModelReference(model.name) if loaded_from == model.name else None


def _commit(repo_id: str, revision: str | None) -> str | None:
    """The commit of a model that has just been loaded, by the folder of the Hub's cache it lies in."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def shows_pairs(builder: PromptBuilder | None) -> bool:
    """Whether a prompt shows contexts; None stands for whichever the model suggests, and those do."""
    return builder is None or builder.needs == "pairs"


def check_character(character: Character | Blend, *, gold: bool) -> None:
    """Checks that a character has what its prompt shows.

    Raises:
        ValueError: It has no utterances or, with ``gold``, no gold contexts.
    """
    for part in character.characters if isinstance(character, Blend) else (character,):
        if not part.utterances:
            raise ValueError(
                f"character {part.name!r} has no utterances; give it some, or use prompt='zero-shot'"
            )
        if gold and part.gold_contexts is None:
            raise ValueError(f"gold match needs gold_contexts, which {part.name!r} lacks")


def config_of_matcher(config: PDPConfig, matcher: Matcher) -> PDPConfig:
    """Returns the configuration changed to describe a matcher; one of another class is described in part."""
    config = replace(config, max_dialogs=matcher.max_dialogs, order=matcher.order)
    if isinstance(matcher, StaticMatcher | DynamicMatcher | RandomMatcher):
        config = replace(config, fallback_context=matcher.fallback_context)
    if isinstance(matcher, DynamicMatcher):
        return replace(
            config,
            matcher="dynamic",
            input_weight=matcher.input_weight,
            exclude_input=matcher.exclude_input,
        )
    if isinstance(matcher, RandomMatcher):
        return replace(config, matcher="random", random_seed=matcher.seed, random_per=matcher.per)
    if isinstance(matcher, StaticMatcher):
        return replace(config, matcher="static")
    return replace(config, matcher="gold") if isinstance(matcher, GoldMatcher) else config


def make_matcher(
    config: PDPConfig,
    retriever: Retriever,
    contexts: ContextIndex | ContextPool | None,
    *,
    allow_symmetric: bool,
) -> Matcher:
    """Returns the matcher that a configuration describes.

    Args:
        config: The configuration.
        retriever: Encodes inputs and utterances.
        contexts: An index of the retriever, or the pool that random match draws from; None makes a matcher
            without contexts, for gold match and for prompts that show none.
        allow_symmetric: Do not warn about a retriever with one encoder for both sides.
    """
    if contexts is None:
        return GoldMatcher(retriever, max_dialogs=config.max_dialogs, order=config.order)
    if isinstance(contexts, ContextPool):
        return RandomMatcher(
            contexts,
            retriever,
            seed=config.random_seed,
            per=config.random_per,
            max_dialogs=config.max_dialogs,
            order=config.order,
            fallback_context=config.fallback_context,
        )
    if config.matcher == "static":
        return StaticMatcher(
            contexts,
            max_dialogs=config.max_dialogs,
            order=config.order,
            fallback_context=config.fallback_context,
            allow_symmetric=allow_symmetric,
        )
    return DynamicMatcher(
        contexts,
        input_weight=config.input_weight,
        exclude_input=config.exclude_input,
        max_dialogs=config.max_dialogs,
        order=config.order,
        fallback_context=config.fallback_context,
        allow_symmetric=allow_symmetric,
    )


def embedded_index(retriever: Retriever) -> ContextIndex:
    """Returns the shipped pool with its embeddings: shipped too, cached by an earlier run, or made now.

    The cache is Hugging Face's folder for such things (``HF_ASSETS_CACHE``).
    """
    pool = ContextPool.from_lines(embedded.contexts_path())
    for folder in embedded.index_paths():
        try:
            return ContextIndex.load(folder, retriever, pool)
        except StaleIndexError:
            continue
    from huggingface_hub import constants

    return ContextIndex.cached(retriever, pool, Path(constants.HF_ASSETS_CACHE) / "dialogkit" / "indexes")
