"""A chatbot as a folder of plain files.

| file | holds |
| --- | --- |
| ``chatbot.json`` | settings, prompt layout, where the language model and the retriever are found |
| ``character.json`` or ``blend.json`` | who talks |
| ``pool.txt`` | the contexts, one per line |
| ``index/`` | their embeddings, with the fingerprints of retriever and pool |
| ``utterances.safetensors`` | the embeddings of the character's utterances, by the same retriever |
| ``model/``, ``retriever/`` | copies of the models, only if asked for |
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dialogkit import embedded
from dialogkit.generation.types import GenerationConfig, LanguageModel
from dialogkit.retrieval.biencoder import BiEncoder, quiet_progress
from dialogkit.retrieval.index import ContextIndex, StaleIndexError
from dialogkit.retrieval.pool import ContextPool
from dialogkit.retrieval.retriever import (
    EMBEDDED,
    Retriever,
    SentenceTransformerRetriever,
    load_retriever,
    retriever_name,
)
from trainkit.hub import read_json, write_json

from .assembly import PROMPTS, ModelReference, load_language_model, make_matcher
from .characters import Blend, Character
from .config import PDPConfig
from .matching import DynamicMatcher, GoldMatcher, Matcher, RandomMatcher, StaticMatcher
from .prompts import ChatTemplatePrompt, DialogPrompt, PromptBuilder, UtterancesPrompt, ZeroShotPrompt

__all__ = ["Parts", "read_parts", "reference_of", "write_parts"]

_CONFIG = "chatbot.json"
_UTTERANCES = "utterances.safetensors"


@dataclass(frozen=True)
class Parts:
    """What a chatbot is made of.

    Attributes:
        config: The settings.
        character: Who talks.
        model: The language model.
        prompt: The layout.
        matcher: None for the zero-shot prompt.
        model_reference: Where the language model can be loaded again, None if nowhere.
        retriever_name: Name under which the retriever can be loaded again, None if there is none.
    """

    config: PDPConfig
    character: Character | Blend
    model: LanguageModel
    prompt: PromptBuilder
    matcher: Matcher | None
    model_reference: ModelReference | None
    retriever_name: str | None


def reference_of(retriever: Retriever) -> str | None:
    """Returns the name under which a retriever can be loaded again, None if there is none."""
    return retriever_name(retriever.path) if isinstance(retriever, BiEncoder) else None


# Writing ----------------------------------------------------------------------------------------------------


def write_parts(parts: Parts, directory: Path, *, include_model: bool) -> None:
    """Writes a chatbot into an empty folder.

    Raises:
        TypeError: The prompt or matcher is of another class than this package's, or a model cannot be copied.
    """
    prompt = parts.prompt
    if (
        not isinstance(prompt, DialogPrompt | UtterancesPrompt | ZeroShotPrompt | ChatTemplatePrompt)
        or type(prompt) is not PROMPTS[prompt.kind]
    ):
        raise TypeError(f"only the prompts of this package can be saved, not {type(prompt).__name__}")
    record: dict[str, Any] = {
        "config": asdict(parts.config),
        "prompt": {"kind": prompt.kind, **asdict(prompt)},
        "model": _write_model(parts, directory, include_model),
    }
    if parts.matcher is not None:
        record["matcher"] = _write_matcher(parts.matcher, directory)
        parts.matcher.save_utterances(directory / _UTTERANCES, parts.character)
        record["retriever"] = _write_retriever(parts, parts.matcher.retriever, directory, include_model)
    if isinstance(parts.character, Blend):
        characters = [character.to_dict() for character in parts.character.characters]
        blend = {"name": parts.character.name, "max_dialogs": parts.character.max_dialogs}
        write_json(directory / "blend.json", {**blend, "characters": characters})
    else:
        parts.character.to_json(directory / "character.json")
    write_json(directory / _CONFIG, record)


def _write_matcher(matcher: Matcher, directory: Path) -> dict[str, Any]:
    if type(matcher) not in (StaticMatcher, DynamicMatcher, RandomMatcher, GoldMatcher):
        raise TypeError(f"only the matchers of this package can be saved, not {type(matcher).__name__}")
    if isinstance(matcher, StaticMatcher | DynamicMatcher):
        matcher.index.pool.to_lines(directory / "pool.txt")
        matcher.index.save(directory / "index")
        return {"contexts": "index", "backend": matcher.index.backend}
    if isinstance(matcher, RandomMatcher):
        matcher.pool.to_lines(directory / "pool.txt")
        return {"contexts": "pool"}
    return {"contexts": None}


def _write_model(parts: Parts, directory: Path, include_model: bool) -> dict[str, Any]:
    from dialogkit.generation.local import TransformersLM

    model, reference = parts.model, parts.model_reference
    if include_model:
        if not isinstance(model, TransformersLM):
            raise TypeError(f"include_model=True copies transformers models only, not {model.name}")
        if reference is not None and reference.name == EMBEDDED:
            _copy_model(embedded.lm_path(), directory / "model")
        elif reference is not None and Path(reference.name).is_dir():
            _copy_model(Path(reference.name), directory / "model")
        else:
            with quiet_progress():
                model.model.save_pretrained(directory / "model")
            model.tokenizer.save_pretrained(directory / "model")
        return {"kind": "nested", "name": model.name}
    if reference is None:
        return {"kind": "given", "name": model.name}
    return {"kind": "named", "name": reference.name, "revision": reference.revision}


def _write_retriever(
    parts: Parts, retriever: Retriever, directory: Path, include_model: bool
) -> dict[str, Any]:
    mark = {"fingerprint": retriever.fingerprint}
    if not include_model:
        if parts.retriever_name is None:
            return {"kind": "given", **mark}
        return {"kind": "named", "name": parts.retriever_name, **mark}
    target = directory / "retriever"
    if isinstance(retriever, BiEncoder):
        _copy_model(retriever.path, target)
        return {"kind": "nested", **mark}
    if isinstance(retriever, SentenceTransformerRetriever):
        with quiet_progress():
            retriever.model.save_pretrained(str(target), create_model_card=False)
        names = ("context_role", "response_role", "normalize", "symmetric")
        settings = {name: getattr(retriever, name) for name in names}
        return {"kind": "nested", "sentence_transformer": settings, **mark}
    raise TypeError(f"a {type(retriever).__name__} cannot be copied; save without include_model")


def _copy_model(source: Path, target: Path) -> None:
    """Copies what a loader reads; weights in pickles and unrelated files stay behind."""
    suffixes = {".json", ".safetensors", ".txt", ".jinja", ".model"}
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix in suffixes and path.is_file() and not hidden:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)


# Reading ----------------------------------------------------------------------------------------------------


def read_parts(
    directory: Path,
    *,
    model: LanguageModel | str | Path | None,
    retriever: Retriever | str | Path | None,
    device: str | None,
) -> Parts:
    """Reads what :func:`write_parts` wrote.

    Args:
        directory: The folder.
        model: Used instead of the saved or named language model.
        retriever: Used instead of the saved or named retriever; must have its fingerprint.
        device: Torch device for what is loaded.

    Raises:
        StaleIndexError: The retriever is not the one the chatbot was saved with, or the pool was changed.
        ValueError: A file does not hold what it should, or a model is neither saved, named nor given.
    """
    record = read_json(directory / _CONFIG)
    try:
        config = _read_config(record["config"])
        prompt = _read_prompt(record["prompt"])
        character = _read_character(directory)
        language_model, reference = _read_model(record["model"], directory, model, device)
        matcher, encoder_name = None, None
        if "matcher" in record:
            encoder, encoder_name = _read_retriever(record["retriever"], directory, retriever, device)
            matcher = _read_matcher(record["matcher"], directory, config, encoder)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / _CONFIG} was edited, or written by another version: {error!r}"
        ) from error
    return Parts(config, character, language_model, prompt, matcher, reference, encoder_name)


def _read_config(record: Mapping[str, Any]) -> PDPConfig:
    generation = dict(record["generation"])
    generation["stop"] = tuple(generation["stop"])
    return PDPConfig(**{**record, "generation": GenerationConfig(**generation)})


def _read_prompt(record: Mapping[str, Any]) -> PromptBuilder:
    kind = PROMPTS[record["kind"]]
    return kind(**{item.name: record[item.name] for item in fields(kind)})


def _read_character(directory: Path) -> Character | Blend:
    if not (directory / "blend.json").is_file():
        return Character.from_json(directory / "character.json")
    blend = read_json(directory / "blend.json")
    characters = tuple(Character.from_dict(character) for character in blend["characters"])
    return Blend(blend["name"], characters, tuple(blend["max_dialogs"]))


def _read_model(
    record: Mapping[str, Any], directory: Path, given: LanguageModel | str | Path | None, device: str | None
) -> tuple[LanguageModel, ModelReference | None]:
    if given is not None:
        return load_language_model(given, device)
    if record["kind"] == "nested":
        return load_language_model(directory / "model", device)
    if record["kind"] != "named":
        raise ValueError(
            f"the chatbot in {directory} was saved without a way to find its language model "
            f"({record['name']}); pass model=..."
        )
    return load_language_model(record["name"], device, revision=record["revision"])


def _read_retriever(
    record: Mapping[str, Any], directory: Path, given: Retriever | str | Path | None, device: str | None
) -> tuple[Retriever, str | None]:
    name: str | None = None
    retriever: Retriever
    if isinstance(given, str | Path):
        retriever, name = load_retriever(given, device=device), str(given)
    elif given is not None:
        retriever, name = given, reference_of(given)
    elif record["kind"] == "named":
        retriever, name = load_retriever(record["name"], device=device), record["name"]
    elif record["kind"] == "nested" and "sentence_transformer" in record:
        settings = record["sentence_transformer"]
        retriever = SentenceTransformerRetriever(directory / "retriever", device=device, **settings)
    elif record["kind"] == "nested":
        retriever = BiEncoder(directory / "retriever", device=device)
        name = str(directory / "retriever")
    else:
        raise ValueError(
            f"the chatbot in {directory} was saved without a way to find its retriever; pass retriever=..."
        )
    if retriever.fingerprint != record["fingerprint"]:
        raise StaleIndexError(
            f"the chatbot in {directory} was saved with another retriever "
            f"(fingerprint {record['fingerprint'][:12]}, now {retriever.fingerprint[:12]})"
        )
    return retriever, name


def _read_matcher(
    record: Mapping[str, Any], directory: Path, config: PDPConfig, retriever: Retriever
) -> Matcher:
    contexts: ContextIndex | ContextPool | None = None
    if record["contexts"] is not None:
        contexts = ContextPool.from_lines(directory / "pool.txt")
        if record["contexts"] == "index":
            contexts = ContextIndex.load(directory / "index", retriever, contexts, backend=record["backend"])
    # Whoever made the chatbot was warned.
    matcher = make_matcher(config, retriever, contexts, allow_symmetric=True)
    if (directory / _UTTERANCES).is_file():
        matcher.load_utterances(directory / _UTTERANCES)
    return matcher
