"""The ``dialogkit`` command: talk, list characters, look at matches, distil retrievers, watch the demo.

Model libraries are imported when a command needs them, so that ``dialogkit --help`` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dialogkit.bots import find_character, load_bot
from dialogkit.cli_character import character as character_files
from dialogkit.cli_diversity import diversity
from dialogkit.cli_dress import dress
from dialogkit.cli_evaluate import evaluate
from dialogkit.cli_exemplar import exemplar
from dialogkit.cli_g2r import g2r, index
from dialogkit.cli_serve import serve
from dialogkit.demo import pairs_table
from trainkit.terminal import error_console, output_console, plain_errors, quiet, safe, show_version, table

if TYPE_CHECKING:
    from dialogkit.chat import Chatbot, ChatSession
    from dialogkit.generation import Candidate, GenerationConfig, LanguageModel, Likelihood, Prompt
    from dialogkit.pdp import PDPChatbot

__all__ = ["app", "main"]

app = typer.Typer(
    help="Dialogue systems that talk in character.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(character_files, name="character")
app.add_typer(g2r, name="g2r")
app.add_typer(index, name="index")
app.add_typer(dress, name="dress")
app.add_typer(exemplar, name="exemplar")
app.add_typer(diversity, name="diversity")
app.command()(evaluate)
app.command()(serve)

MatcherName = Literal["dynamic", "static", "random", "gold"]
PromptName = Literal["auto", "dialog", "chat", "utterances", "zero-shot"]
SelectionName = Literal["logprob", "ranker", "random", "first"]

CharacterOption = Annotated[
    str, typer.Option("--character", "-c", help="An embedded character, or a character's file or card.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or Hub id of a language model. Default: the embedded one."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server that runs --model, such as http://localhost:8000/v1. "
        "Its key is read from OPENAI_API_KEY.",
    ),
]
MatcherOption = Annotated[
    MatcherName, typer.Option("--matcher", help="How turns of the user are matched to the character's lines.")
]
RetrieverOption = Annotated[
    str | None,
    typer.Option(
        "--retriever",
        help="'embedded', 'minilm', or folder or Hub id of a sentence-transformers model. "
        "Default: MiniLM where its extra is installed, else the embedded one.",
    ),
]
ContextsOption = Annotated[
    Path | None,
    typer.Option("--contexts", help="Text file with a turn in each line. Default: the embedded contexts."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command with the arguments of the process."""
    app()


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=show_version("dialogkit"), is_eager=True
        ),
    ] = False,
) -> None:
    """Dialogue systems that talk in character."""


@app.command()
def characters(as_json: JsonOption = False) -> None:
    """List the characters that ship with the package."""
    with plain_errors():
        from dialogkit import embedded
        from dialogkit.pdp import Character

        found = [Character.from_json(embedded.character_path(name)) for name in embedded.character_names()]
        if as_json:
            rows = [
                {"id": one.id, "name": one.name, "summary": one.summary, "utterances": len(one.utterances)}
                for one in found
            ]
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
            return
        lines = [(one.id, one.name, one.summary, str(len(one.utterances))) for one in found]
        columns = ("id", "name", "summary", "lines")
        output_console().print(table(columns, lines, numeric=("lines",), unbroken=("id", "name")))


@app.command()
def match(
    text: Annotated[str, typer.Argument(help="What the user says.")],
    character: CharacterOption,
    matcher: MatcherOption = "dynamic",
    retriever: RetrieverOption = None,
    contexts: ContextsOption = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of random match.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the pseudo-dialogues of a character for a message, with their scores."""
    with plain_errors():
        parts = _Parts(matcher=matcher, prompt="dialog", retriever=retriever, contexts=contexts, seed=seed)
        bot = parts.bot(character, mute=True)
        if bot.matcher is None:
            raise AssertionError("the dialog layout has a matcher")
        pairs = [asdict(pair) for pair in bot.matcher.match(bot.character, text)]
        if as_json:
            typer.echo(json.dumps(pairs, ensure_ascii=False, indent=2))
        else:
            output_console().print(pairs_table(pairs, bot.name))


@app.command()
def demo(
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the answers.")] = 0,
    model: ModelOption = None,
    retriever: RetrieverOption = None,
    contexts: ContextsOption = None,
) -> None:
    """Let three characters answer the same three questions."""
    with plain_errors():
        from dialogkit.demo import demo_bots, run_demo

        quiet()
        bots = demo_bots(model or "embedded", retriever=retriever, pool=contexts)
        run_demo(output_console(), bots, seed=seed)


@app.command()
def chat(
    character: Annotated[
        str | None,
        typer.Option("--character", "-c", help="An embedded character, or a character's file or card."),
    ] = None,
    bot: Annotated[
        str | None,
        typer.Option(
            "--bot",
            help="A saved chatbot's folder or Hub id, lm:MODEL, endpoint:MODEL@URL; instead of a character.",
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            "--rerank", help="Folder or Hub id of a cross-encoder that ranks what a retrieving --bot finds."
        ),
    ] = None,
    model: ModelOption = None,
    endpoint: EndpointOption = None,
    matcher: MatcherOption = "dynamic",
    prompt: Annotated[
        PromptName, typer.Option("--prompt", help="Layout; 'auto' uses a chat template if the model has one.")
    ] = "auto",
    rank: Annotated[
        bool,
        typer.Option(
            "--rank/--stream", help="Draw several candidates and show the best, or stream one as it comes."
        ),
    ] = False,
    selection: Annotated[
        SelectionName | None, typer.Option("--selection", help="How the best is chosen; implies --rank.")
    ] = None,
    retriever: RetrieverOption = None,
    contexts: ContextsOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The same messages get the same answers.")
    ] = None,
) -> None:
    """Talk with a character, or with a saved chatbot."""
    with plain_errors():
        from dialogkit.chat import ChatSession

        if rerank is not None and bot is None:
            raise ValueError("--rerank needs a --bot that retrieves")
        if character is not None and bot is None:
            parts = _Parts(
                model, endpoint, matcher, prompt, selection or "logprob", retriever, contexts, seed
            )
            session = parts.bot(character).session()
        elif bot is not None and character is None:
            quiet()
            session = ChatSession(_reranked(load_bot(bot), rerank))
        else:
            raise ValueError("name either a --character or a saved --bot to talk with")
        _Talk(session, rank=rank or selection is not None, seed=seed).run()


def _reranked(bot: Chatbot, cross_encoder: str | None) -> Chatbot:
    from dialogkit.g2r import CrossEncoderReranker, RetrievalChatbot

    if cross_encoder is not None:
        if not isinstance(bot, RetrievalChatbot):
            raise ValueError("--rerank needs a --bot that retrieves")
        bot.reranker = CrossEncoderReranker.from_pretrained(cross_encoder)
    return bot


@dataclass(frozen=True)
class _Parts:
    """What the options say about the chatbot to make."""

    model: str | None = None
    endpoint: str | None = None
    matcher: MatcherName = "dynamic"
    prompt: PromptName = "auto"
    selection: SelectionName = "logprob"
    retriever: str | None = None
    contexts: Path | None = None
    seed: int | None = None

    def bot(self, character: str, *, mute: bool = False) -> PDPChatbot:
        """Makes a chatbot; a ``mute`` one can only match."""
        # A wrong name is reported before anything is loaded.
        who = find_character(character)
        if self.endpoint is not None and self.model is None:
            raise ValueError("--endpoint needs --model, the name of the model to ask the server for")
        quiet()
        from dialogkit.generation import EndpointLM
        from dialogkit.pdp import PDPChatbot, PDPConfig, embedded_config

        start = PDPConfig() if self.model else embedded_config()
        config = replace(start, matcher=self.matcher, prompt=self.prompt, selection=self.selection)
        if self.seed is not None:
            config = replace(config, random_seed=self.seed)
        model: LanguageModel | str = _Mute() if mute else self.model or "embedded"
        if self.endpoint is not None and self.model is not None:
            model = EndpointLM(self.endpoint, self.model, api_key=os.environ.get("OPENAI_API_KEY"))
        return PDPChatbot(model, who, retriever=self.retriever, pool=self.contexts, config=config)


class _Mute:
    """Stands for the language model of a chatbot that is asked for its matches only: nothing is loaded."""

    name = "none"
    max_length = None
    supports_chat = False

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        raise NotImplementedError("there is no language model")

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> Iterator[str]:
        raise NotImplementedError("there is no language model")

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        raise NotImplementedError("there is no language model")

    def count_tokens(self, prompt: Prompt) -> int:
        raise NotImplementedError("there is no language model")


class _Talk:
    """The loop of ``dialogkit chat``: reads messages and commands, prints replies.

    Where the input is no terminal (a pipe, a file), only the replies are printed: no greeting, no prompt.
    """

    def __init__(self, session: ChatSession, *, rank: bool, seed: int | None) -> None:
        self.session = session
        self.rank = rank
        self.seed = seed
        self.out = output_console()
        self.err = error_console()
        self.interactive = sys.stdin.isatty()
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/why": ("where the last reply comes from", self.why),
            "/reset": ("forget the conversation", self.reset),
            "/save FILE": ("write the conversation to a JSON file", self.save),
            "/help": ("show the commands", self.help),
            "/quit": ("leave (so do Ctrl-D and Ctrl-C)", self.quit),
        }

    def run(self) -> None:
        """Talks until the input ends, the user quits, or Ctrl-C."""
        name = self.session.bot.name
        if self.interactive:
            how = (
                "the best of several candidates"
                if self.rank
                else "streamed; --rank picks the best of several"
            )
            self.out.print(safe(f"You talk with {name} ({how}). /help lists the commands.", "dim"))
        try:
            for line in self.lines():
                self.answer(line)
        except KeyboardInterrupt:
            self.out.print()
        except _Quit:
            pass

    def lines(self) -> Iterator[str]:
        """The user's lines, blank ones left out."""
        if self.interactive:
            # Importing it gives `input` line editing and a history.
            import readline  # noqa: F401
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        while True:
            try:
                line = input("You: ") if self.interactive else next(sys.stdin)
            except (EOFError, StopIteration):
                if self.interactive:
                    self.out.print()
                return
            if line.strip():
                yield line.strip()

    def answer(self, line: str) -> None:
        """Obeys a command or answers a message; an error is reported and the conversation goes on."""
        from dialogkit.generation import EndpointError

        try:
            if line.startswith("/"):
                self.obey(line)
            else:
                self.reply(line)
        except (ValueError, OSError, EndpointError) as error:
            self.err.print(safe(f"error: {error}", "bold red"))

    def obey(self, line: str) -> None:
        """Runs a command such as ``/save talk.json``."""
        word, _, argument = line.partition(" ")
        for usage, (_, action) in self.commands.items():
            if word == usage.split()[0]:
                action(argument.strip())
                return
        raise ValueError(f"there is no command {word}; /help lists the commands")

    def reply(self, message: str) -> None:
        """Prints the answer to a message, piece by piece or ranked."""
        # Each message has a seed of its own, else the same words would always get the same answer.
        seed = None if self.seed is None else self.seed + len(self.session.history) // 2
        label = safe(f"{self.session.bot.name}: ", "bold cyan")
        if self.rank:
            answer = self.session.reply(message, seed=seed)
            self.out.print(label, safe(answer.text), sep="", soft_wrap=True)
            return
        pieces = self.session.stream(message, seed=seed)
        try:
            # Errors come before the first piece, and so before the label.
            first = next(pieces, "")
            self.out.print(label, end="", soft_wrap=True)
            for piece in chain([first], pieces):
                self.out.print(safe(piece), end="", soft_wrap=True)
                self.out.file.flush()
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self.out.print(safe(" (interrupted, not remembered)", "dim"), end="")
        self.out.print()

    def why(self, argument: str) -> None:
        """Shows the evidence of the last reply."""
        reply = self.session.last_reply
        if reply is None:
            raise ValueError("there is no reply to explain yet")
        evidence = reply.evidence
        if "pairs" in evidence:
            self.out.print(pairs_table(evidence["pairs"], self.session.bot.name))
        elif "candidates" in evidence:
            rows = [(f"{row['score']:.3f}", row["response"]) for row in evidence["candidates"]]
            self.out.print(table(("score", "response found"), rows, numeric=("score",)))
        elif evidence.get("exemplars"):
            drafts = [
                (f"{row['score']:.3f}", row["exemplar"], row["reply"]) for row in evidence["considered"]
            ]
            self.out.print(table(("score", "exemplar", "reply written with it"), drafts, numeric=("score",)))
        else:
            raise ValueError("a plain language model has no sources to show")

    def reset(self, argument: str) -> None:
        """Forgets the conversation."""
        self.session.reset()
        self.out.print(safe("(the conversation starts anew)", "dim"))

    def save(self, argument: str) -> None:
        """Writes the conversation to a file."""
        if not argument:
            raise ValueError("say where to: /save FILE")
        path = Path(argument).expanduser()
        self.session.save(path)
        self.out.print(safe(f"({len(self.session.history)} turns written to {path})", "dim"))

    def help(self, argument: str) -> None:
        """Lists the commands."""
        rows = [(usage, meaning) for usage, (meaning, _) in self.commands.items()]
        self.out.print(table(("command", "what it does"), rows, unbroken=("command",)))

    def quit(self, argument: str) -> None:
        """Leaves."""
        raise _Quit


class _Quit(Exception):
    """The user wants to leave."""


if __name__ == "__main__":
    main()
