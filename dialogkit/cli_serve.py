"""The command ``dialogkit serve``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainkit.terminal import plain_errors, quiet

if TYPE_CHECKING:
    from dialogkit.chat import Chatbot
    from dialogkit.generation import LanguageModel

__all__ = ["serve"]


def serve(
    character: Annotated[
        list[str] | None,
        typer.Option(
            "--character",
            "-c",
            help="An embedded character, or a character's file or card; may be repeated. Without this and "
            "--bot: all embedded characters, and their language model as it is.",
        ),
    ] = None,
    bot: Annotated[
        list[str] | None,
        typer.Option(
            "--bot",
            help="[NAME=]WHAT: a saved chatbot's folder or Hub id, lm:MODEL (lm:embedded), "
            "endpoint:MODEL@URL; may be repeated.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or Hub id of the characters' language model."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="OpenAI-compatible server that runs --model, such as http://localhost:8001/v1. "
            "Its key is read from OPENAI_API_KEY.",
        ),
    ] = None,
    matcher: Annotated[
        Literal["dynamic", "static", "random", "gold"],
        typer.Option("--matcher", help="How turns of the user are matched to a character's lines."),
    ] = "dynamic",
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever", help="The characters' encoder: 'embedded', 'minilm', a folder or Hub id."
        ),
    ] = None,
    contexts: Annotated[
        Path | None, typer.Option("--contexts", help="Text file with a turn in each line.")
    ] = None,
    web: Annotated[
        bool, typer.Option("--web/--no-web", help="Add the chat page, at /chat (extra 'web').")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="DIALOGKIT_API_KEY",
            show_envvar=True,
            help="Clients must send it; needed on any address but this machine's own. Others on the machine "
            "can read options, so prefer the variable.",
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, help="Requests that run or wait; more are refused.")
    ] = 64,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", min=1, help="Most candidates drawn together, for several conversations."
        ),
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Most new tokens that a client may ask for.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds after which a request is given up.")
    ] = 300.0,
    drain: Annotated[
        int, typer.Option("--drain", min=0, help="Seconds that running replies get after SIGTERM.")
    ] = 60,
) -> None:
    """Serve characters and chatbots to OpenAI-compatible clients."""
    with plain_errors():
        from dialogkit.serving import ServerSettings, check_address, create_app, run_app

        settings = ServerSettings(
            api_key=api_key,
            max_requests=max_requests,
            batch_size=batch_size,
            max_tokens=max_tokens,
            timeout=timeout,
        )
        # Before anything is loaded.
        check_address(host, api_key)
        if web:
            from dialogkit.web.page import load_gradio, mount_chat

            load_gradio()
        quiet()
        bots = _bots(character or [], bot or [], model, endpoint, matcher, retriever, contexts)
        app = create_app(bots, settings)
        if web:
            mount_chat(app)
        run_app(app, host=host, port=port, drain_seconds=drain)


def _bots(
    characters: Sequence[str],
    others: Sequence[str],
    model: str | None,
    endpoint: str | None,
    matcher: Literal["dynamic", "static", "random", "gold"],
    retriever: str | None,
    contexts: Path | None,
) -> dict[str, Chatbot]:
    """The chatbots by name. All characters share one language model and one matcher."""
    from dataclasses import replace

    from dialogkit import embedded
    from dialogkit.bots import GeneratorChatbot, find_character, load_bot, named_bots
    from dialogkit.pdp import PDPChatbot, PDPConfig, embedded_config

    if endpoint is not None and model is None:
        raise ValueError("--endpoint needs --model, the name of the model to ask the server for")
    everything = not characters and not others
    found = [find_character(name) for name in (embedded.character_names() if everything else characters)]
    # Names are checked before models are loaded.
    named = named_bots(others)
    plain = (Path(model).name if model else "embedded",) if everything else ()
    names = (*(one.id for one in found), *plain, *named)
    if len(set(names)) < len(names):
        raise ValueError(f"two of the chatbots have the same name, of {', '.join(names)}")
    bots: dict[str, Chatbot] = {}
    if found:
        lm = _language_model(model, endpoint)
        config = replace(PDPConfig() if model else embedded_config(), matcher=matcher)
        first = PDPChatbot(lm, found[0], retriever=retriever, pool=contexts, config=config)
        rest = [PDPChatbot(lm, one, matcher=first.matcher, config=config) for one in found[1:]]
        bots |= {one.id: bot for one, bot in zip(found, (first, *rest), strict=True)}
        bots |= {name: GeneratorChatbot(lm) for name in plain}
    return bots | {name: load_bot(what) for name, what in named.items()}


def _language_model(model: str | None, endpoint: str | None) -> LanguageModel:
    """The characters' language model."""
    from dialogkit import embedded
    from dialogkit.generation import EndpointLM, TransformersLM

    if endpoint is not None and model is not None:
        return EndpointLM(endpoint, model, api_key=os.environ.get("OPENAI_API_KEY"))
    # The turns of a conversation begin alike, and so do those of one character.
    return TransformersLM.from_pretrained(model or embedded.lm_path(), kept_bytes=None)
