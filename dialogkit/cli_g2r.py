"""The commands ``dialogkit g2r`` and ``dialogkit index``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainkit.terminal import output_console, plain_errors, quiet, safe, table

if TYPE_CHECKING:
    from dialogkit.dialogues import Example, Turn
    from dialogkit.generation import LanguageModel
    from dialogkit.generation.prompting import DialoguePrompt

__all__ = ["g2r", "index"]

g2r = typer.Typer(help="Distil a generator into a retriever.", no_args_is_help=True)
index = typer.Typer(help="Build and search an index of responses.", no_args_is_help=True)

Layout = Literal["labelled", "lines", "chat"]
ScoreName = Literal["ll", "ll_sum", "mi", "mi_sum"]
KindName = Literal["flat", "hnsw", "ivfpq"]

DataArgument = Annotated[
    Path, typer.Argument(help='JSON lines of {"context": [...], "response": ...}; .gz is read too.')
]
TeacherOption = Annotated[
    str, typer.Option("--teacher", "-t", help="Folder or Hub id of a language model, or 'embedded'.")
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server that runs the teacher, such as http://localhost:8000/v1. "
        "Its key is read from OPENAI_API_KEY.",
    ),
]
LayoutOption = Annotated[
    Layout,
    typer.Option("--layout", help="How contexts are laid out for the teacher; 'chat' for chat models."),
]
InstructionOption = Annotated[str, typer.Option("--instruction", help="First line or system message.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
RetrieverOption = Annotated[
    str, typer.Option("--retriever", "-r", help="'embedded', 'minilm', or folder or Hub id of a bi-encoder.")
]
KindOption = Annotated[
    KindName, typer.Option("--kind", help="'flat' is exact; 'hnsw' and 'ivfpq' are for large sets.")
]


@g2r.command()
def augment(
    data: DataArgument,
    teacher: TeacherOption,
    out: OutOption,
    endpoint: EndpointOption = None,
    responses: Annotated[int, typer.Option("--responses", "-n", min=1, help="Drawn for a context.")] = 10,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest response.")] = 48,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of probability sampled from.")] = 0.9,
    unsafe: Annotated[
        Path | None, typer.Option("--unsafe", help="Text file of words and phrases to drop responses for.")
    ] = None,
    layout: LayoutOption = "labelled",
    instruction: InstructionOption = "",
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Contexts in a shard.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampling.")] = 0,
) -> None:
    """Let a teacher write responses to every context. Run it again to go on after a stop."""
    with plain_errors():
        from dialogkit import g2r as method
        from dialogkit.generation import GenerationConfig

        examples = _examples(data)
        filters = method.Filters()
        if unsafe is not None:
            words = [line.strip() for line in unsafe.read_text(encoding="utf-8").splitlines()]
            filters = replace(filters, unsafe=tuple(word for word in words if word))
        config = method.AugmentConfig(
            responses=responses,
            generation=GenerationConfig(
                max_new_tokens=max_tokens, temperature=temperature, top_k=0, top_p=top_p
            ),
            filters=filters,
            prompt=_prompt(layout, instruction),
        )
        model = _teacher(teacher, endpoint)
        with _server_errors():
            counts = method.augment(model, examples, out, config=config, seed=seed, shard_size=shard_size)
        if _first_process():
            rows = [(source, f"{count:,}") for source, count in counts.items()]
            output_console().print(table(("source", "responses"), rows, numeric=("responses",)))


@g2r.command()
def score(
    source: Annotated[Path, typer.Argument(help="Folder that 'augment' wrote.")],
    teacher: TeacherOption,
    out: OutOption,
    endpoint: EndpointOption = None,
    layout: LayoutOption = "labelled",
    instruction: InstructionOption = "",
) -> None:
    """Let a teacher score all responses. Run it again to go on after a stop."""
    with plain_errors():
        from dialogkit import g2r as method

        config = method.ScoreConfig(prompt=_prompt(layout, instruction))
        with _server_errors():
            method.score(_teacher(teacher, endpoint), source, out, config=config)
        if _first_process():
            count = sum(1 for _ in method.read_scored(out))
            output_console().print(safe(f"{count:,} responses are scored in {out}"))


@g2r.command()
def train(
    scored: Annotated[Path, typer.Argument(help="Folder that 'score' wrote.")],
    encoder: Annotated[
        str,
        typer.Option("--encoder", "-e", help="Folder of a pretrained encoder to start from, or 'minilm'."),
    ],
    out: OutOption,
    by: Annotated[
        ScoreName, typer.Option("--score", help="Which score is the soft target: per token or of the whole.")
    ] = "ll",
    alpha: Annotated[float, typer.Option("--alpha", help="Weight of the soft loss; 0 is G2R-D.")] = 0.1,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the teacher's scores.")] = 1.0,
    negatives: Annotated[int, typer.Option("--negatives", min=0, help="Random responses of a step.")] = 512,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps.")] = 2000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Contexts of a step.")] = 48,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Its peak.")] = 5e-5,
    valid: Annotated[Path | None, typer.Option("--valid", help="Examples to evaluate hits@1 on.")] = None,
    kind: KindOption = "flat",
    data_name: Annotated[
        str | None, typer.Option("--data-name", help="The data set's name, for the model card.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", help="The data set's licence, for the model card.")
    ] = "not stated",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Train a student on scored responses, and save it as a chatbot."""
    with plain_errors():
        from dialogkit import g2r as method
        from dialogkit.retrieval import IndexConfig, biencoder_from
        from trainkit import FitConfig, seed_everything
        from trainkit.cards import DataUse

        quiet()
        rows = method.group_by_context(method.read_scored(scored), by)
        training = FitConfig(
            max_steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(100, steps // 10),
            max_grad_norm=0.1,
            eval_every=max(1, steps // 5),
            seed=seed,
        )
        seed_everything(seed)
        done = method.distil(
            biencoder_from(_encoder(encoder), normalize=True),
            rows,
            out,
            config=method.G2RConfig(alpha=alpha, teacher_temperature=temperature, negatives=negatives),
            training=training,
            valid=_examples(valid) if valid is not None else (),
            index=IndexConfig(kind=kind),
            data=[DataUse(data_name, licence)] if data_name else (),
        )
        output_console().print(safe(f"{done.chatbot.index!r} is saved in {out}"))


@g2r.command()
def evaluate(
    bot: Annotated[str, typer.Argument(help="Folder or Hub id of a chatbot that 'train' saved.")],
    data: DataArgument,
    limit: Annotated[int, typer.Option("--limit", min=2, help="Examples to use at most.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the distractors.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hits@1 on human responses, and latency of a reply."""
    with plain_errors():
        from dialogkit import g2r as method
        from dialogkit.chat import measure_latency

        chatbot = method.RetrievalChatbot.from_pretrained(bot)
        examples = _examples(data)[:limit]
        sizes = [k for k in (10, 100) if k <= len(examples)] or [len(examples)]
        found = method.evaluate_hits(chatbot.retriever, examples, candidates=sizes, seed=seed)
        latency = measure_latency(chatbot, [_history(example) for example in examples[:200]])
        if as_json:
            typer.echo(json.dumps({**found, "latency": asdict(latency)}, indent=2))
            return
        rows = [(name, f"{value:.3f}") for name, value in found.items()]
        rows += [(f"latency {name}", f"{1000 * getattr(latency, name):.1f} ms") for name in ("p50", "p95")]
        output_console().print(table(("", "value"), rows, numeric=("value",)))


@index.command()
def build(
    responses: Annotated[Path, typer.Argument(help="Text file with a response in each line.")],
    retriever: RetrieverOption,
    out: OutOption,
    kind: KindOption = "flat",
    contexts: Annotated[
        Path | None, typer.Option("--contexts", help="Text file of queries to measure recall on.")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", help="File to hold the embeddings meanwhile, for sets larger than memory."),
    ] = None,
) -> None:
    """Encode responses and save their index."""
    with plain_errors():
        from dialogkit.retrieval import IndexConfig, ResponseIndex, load_retriever

        queries = list(_lines(contexts)) if contexts is not None else None
        quiet()
        start = time.perf_counter()
        built = ResponseIndex.build(
            load_retriever(retriever),
            _lines(responses),
            config=IndexConfig(kind=kind),
            contexts=queries,
            scratch=scratch,
        )
        built.save_pretrained(out)
        out_console = output_console()
        seconds = time.perf_counter() - start
        out_console.print(safe(f"{len(built):,} responses in {seconds:.1f} s, saved in {out}"))
        for name, value in built.recall.items():
            out_console.print(safe(f"{name} against exact search: {value:.3f}"))


@index.command()
def search(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of an index.")],
    text: Annotated[str, typer.Argument(help="What the user says.")],
    retriever: RetrieverOption,
    k: Annotated[int, typer.Option("-k", min=1, help="How many responses.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the best responses to a message."""
    with plain_errors():
        from dialogkit.retrieval import ResponseIndex, load_retriever

        quiet()
        encoder, found_in = load_retriever(retriever), ResponseIndex.from_pretrained(folder)
        found_in.check(encoder)
        found = found_in.search(encoder.encode_context([text]), k)
        rows = [
            {"id": int(i), "score": float(score), "response": response}
            for i, score, response, ok in zip(
                found.ids[0], found.scores[0], found.texts[0], found.valid[0], strict=True
            )
            if ok
        ]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
            return
        cells = [(f"{row['score']:.3f}", str(row["response"])) for row in rows]
        output_console().print(table(("score", "response"), cells, numeric=("score",)))


@index.command()
def recall(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of an index.")],
    contexts: Annotated[Path, typer.Argument(help="Text file with a query in each line.")],
    retriever: RetrieverOption,
) -> None:
    """How much of exact search an index finds."""
    with plain_errors():
        from dialogkit.retrieval import ResponseIndex, load_retriever

        quiet()
        encoder, found_in = load_retriever(retriever), ResponseIndex.from_pretrained(folder)
        found_in.check(encoder)
        queries = encoder.encode_context(list(_lines(contexts)))
        sizes = [k for k in (1, 10, 100) if k <= len(found_in)]
        rows = [(f"recall@{k}", f"{found_in.recall_against_exact(queries, k):.3f}") for k in sizes]
        output_console().print(table(("", "value"), rows, numeric=("value",)))


def _examples(path: Path) -> list[Example]:
    from dialogkit.dialogues import read_examples

    return list(read_examples(path))


def _history(example: Example) -> list[Turn]:
    """The context as turns of two speakers, the last of them the user's."""
    from dialogkit.dialogues import Turn

    turns = [turn for turn in example.context if turn.strip()]
    return [Turn("User" if (len(turns) - i) % 2 else "Bot", turn) for i, turn in enumerate(turns)]


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not blank, one after the other: the file may be large."""
    found = False
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason}") from error
            if line:
                found = True
                yield line
    if not found:
        raise ValueError(f"{path} holds no text")


def _first_process() -> bool:
    """Whether this process speaks for all that ``accelerate launch`` started."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _prompt(layout: Layout, instruction: str) -> DialoguePrompt:
    from dialogkit.generation.prompting import DialoguePrompt

    return DialoguePrompt(layout=layout, instruction=instruction)


def _teacher(name: str, endpoint: str | None) -> LanguageModel:
    from dialogkit import embedded
    from dialogkit.generation import EndpointLM, TransformersLM

    quiet()
    if endpoint is not None:
        return EndpointLM(endpoint, name, api_key=os.environ.get("OPENAI_API_KEY"))
    return TransformersLM.from_pretrained(str(embedded.lm_path()) if name == "embedded" else name)


@contextmanager
def _server_errors() -> Iterator[None]:
    """What a server refuses, or cannot do, is a line and no traceback."""
    from dialogkit.generation import EndpointError

    try:
        yield
    except (EndpointError, NotImplementedError) as error:
        raise OSError(str(error)) from error


def _encoder(name: str) -> str:
    from dialogkit.retrieval import BiEncoder, load_retriever

    if name != "minilm":
        return name
    minilm = load_retriever(name)
    assert isinstance(minilm, BiEncoder)
    return str(minilm.path)
