"""The command ``dialogkit exemplar``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainkit.terminal import output_console, plain_errors, quiet, safe, table

if TYPE_CHECKING:
    from dialogkit.exemplar import ExemplarPolicy
    from dialogkit.retrieval import ResponseIndex

__all__ = ["exemplar"]

exemplar = typer.Typer(help="Train a language model to write with retrieved exemplars.", no_args_is_help=True)

Layout = Literal["auto", "labelled", "lines", "chat"]
Action = Literal["random", "next", "mask"]

DataArgument = Annotated[
    Path, typer.Argument(help='JSON lines of {"context": [...], "response": ...}; .gz is read too.')
]
BotArgument = Annotated[str, typer.Argument(help="Folder or Hub id of a chatbot that 'train' saved.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]


@exemplar.command()
def train(
    data: DataArgument,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder or Hub id of a language model, or 'embedded'.")
    ],
    retriever: Annotated[
        str,
        typer.Option(
            "--retriever",
            "-r",
            help="'embedded', 'minilm', or folder or Hub id of a sentence-transformers model.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: bot, hits, run.")],
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            "-p",
            help="none, retnref, retnref-alpha, rag, corge, corge-no-kne, corge-no-jf, corge-no-rs, "
            "corge-released, retnref-released.",
        ),
    ] = "corge",
    responses: Annotated[
        Path | None,
        typer.Option(
            "--responses", help="Text file with a response in each line. Default: those of the data."
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Exemplars of an example.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Divides relevance scores. Default: 1 for the released code's policies, else 0.05 times the "
            "mean squared length of the responses' vectors (0.05 for vectors of length 1).",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, help="Jaccard similarity that is too close.")
    ] = None,
    on_filtered: Annotated[
        Action | None, typer.Option("--on-filtered", help="What becomes of exemplars that are too close.")
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen-retriever", help="Leave the retriever's context side as it is.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples of a step.")] = 32,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", min=1, help="Pairs of context and exemplar in a forward pass.")
    ] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Its peak.")] = 7e-6,
    valid: Annotated[Path | None, typer.Option("--valid", help="Examples to measure perplexity on.")] = None,
    layout: Annotated[Layout, typer.Option("--layout", help="How contexts are laid out.")] = "auto",
    data_name: Annotated[
        str | None, typer.Option("--data-name", help="The data set's name, for the model card.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", help="The data set's licence, for the model card.")
    ] = "not stated",
    seed: SeedOption = 0,
) -> None:
    """Train with exemplars, and save a chatbot. Run it again to go on after a stop."""
    with plain_errors():
        from accelerate import PartialState

        from dialogkit import embedded
        from dialogkit import exemplar as method
        from dialogkit.dialogues import read_examples
        from dialogkit.generation import TransformersLM
        from dialogkit.generation.prompting import DialoguePrompt
        from dialogkit.retrieval import ContextPool, ResponseIndex, load_retriever
        from dialogkit.retrieval.saving import Provenance
        from trainkit import FitConfig
        from trainkit.cards import DataUse, Metric

        chosen = _changed(method.preset(policy), k, temperature, threshold, on_filtered)
        quiet()
        examples = list(read_examples(data))
        if not examples:
            raise ValueError(f"{data} holds no examples")
        held_out = list(read_examples(valid)) if valid is not None else []
        texts = (
            ContextPool.from_lines(responses)
            if responses is not None
            else [example.response for example in examples]
        )
        encoder = load_retriever(retriever)
        index = ResponseIndex.build(encoder, texts)
        if temperature is None and not policy.endswith("-released"):
            chosen = replace(chosen, temperature=0.05 * _squared_length(index))
        lm = TransformersLM.from_pretrained(str(embedded.lm_path()) if model == "embedded" else model)
        done = method.train_exemplar(
            lm,
            examples,
            encoder,
            index,
            training=FitConfig(
                output_dir=out / "run",
                max_steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                warmup_steps=min(100, steps // 10),
                max_grad_norm=0.1,
                save_every=200,
                resume=True,
                seed=seed,
            ),
            config=method.ExemplarConfig(policy=chosen, train_retriever=not frozen, chunk_size=chunk_size),
            prompt=None if layout == "auto" else DialoguePrompt(layout),
            valid=held_out,
            cache=out / "hits",
        )
        if not PartialState().is_main_process:
            return
        found = (
            method.perplexities(done.packer, held_out, done.retriever or encoder, done.index or index)
            if held_out
            else {}
        )
        bot = method.ExemplarChatbot(
            done.packer,
            done.retriever or encoder,
            done.index or index,
            config=method.ExemplarBotConfig(exemplars=min(1, chosen.k), temperature=chosen.temperature),
            provenance=Provenance(
                f"exemplar policy {policy!r} of the family of CORGE (Han et al., arXiv 2112.06723), "
                f"k = {chosen.k}, {done.result.steps:,} steps",
                (DataUse(data_name, licence),) if data_name else (),
                tuple(
                    Metric(f"perplexity, exemplar: {source}", value, "validation examples", n=len(held_out))
                    for source, value in found.items()
                ),
                seed,
            ),
        )
        bot.save_pretrained(out / "bot")
        console = output_console()
        if found:
            rows = [(source, f"{value:.2f}") for source, value in found.items()]
            console.print(table(("exemplar", "perplexity"), rows, numeric=("perplexity",)))
        console.print(safe(f"{done.result.steps:,} steps; the chatbot is saved in {out / 'bot'}"))


@exemplar.command()
def evaluate(
    bot: BotArgument,
    data: DataArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Examples to use at most.")] = 200,
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Perplexity by where the exemplar comes from; how far replies copy and fit; their diversity."""
    with plain_errors():
        from dialogkit import exemplar as method
        from dialogkit.dialogues import read_examples
        from dialogkit.diversity import distinct_n

        quiet()
        chatbot = method.ExemplarChatbot.from_pretrained(bot)
        examples = list(read_examples(data))[:limit]
        found: dict[str, float] = {
            f"perplexity, exemplar: {source}": value
            for source, value in method.perplexities(
                chatbot.packer, examples, chatbot.retriever, chatbot.index, seed=seed
            ).items()
        }
        figures = method.measure_replies(chatbot, examples, seed=seed)
        found |= {
            "exemplar BLEU-2": figures.bleu,
            "copied in runs of 4 words": figures.copied,
            "relevance by own retriever": figures.relevance,
        }
        for n in (1, 2, 3):
            found[f"dist-{n} (tokens)"] = distinct_n(
                figures.replies, n, denominator="tokens", tokenize=str.split
            )
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        rows = [(name, f"{value:.3f}") for name, value in found.items()]
        output_console().print(table(("", "value"), rows, numeric=("value",)))


@exemplar.command()
def chat(
    bot: BotArgument,
    exemplars: Annotated[
        int | None, typer.Option("--exemplars", "-k", min=0, help="Exemplars that replies are written with.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same replies each time.")] = None,
) -> None:
    """Talk, and see after each reply which exemplar it was written with. Ctrl-D ends it."""
    with plain_errors():
        from dialogkit.chat import ChatSession
        from dialogkit.exemplar import ExemplarChatbot

        quiet()
        chatbot = ExemplarChatbot.from_pretrained(bot)
        if exemplars is not None:
            chatbot.config = replace(chatbot.config, exemplars=exemplars)
        session, console = ChatSession(chatbot), output_console()
        for line in sys.stdin:
            if not line.strip():
                continue
            turn = None if seed is None else seed + len(session.history) // 2
            reply = session.reply(line, seed=turn)
            console.print(safe(f"{chatbot.name}: ", "bold cyan"), safe(reply.text), sep="", soft_wrap=True)
            for text in reply.evidence["exemplars"]:
                score, copied = reply.evidence["score"], reply.evidence["copied"]
                shown = f"  exemplar ({score:.3f}, {100 * copied:.0f} % copied): {text}"
                console.print(safe(shown, "dim"), soft_wrap=True)


def _squared_length(index: ResponseIndex) -> float:
    """Mean squared length of some of the responses' vectors."""
    import numpy as np

    rows = np.unique(np.linspace(0, len(index) - 1, 1000).astype(np.int64))
    return round(float(np.square(index.vectors(rows).astype(np.float64)).sum(axis=1).mean()), 6)


def _changed(
    policy: ExemplarPolicy,
    k: int | None,
    temperature: float | None,
    threshold: float | None,
    on_filtered: Action | None,
) -> ExemplarPolicy:
    """A preset with the settings that were named."""
    policy = replace(
        policy,
        temperature=policy.temperature if temperature is None else temperature,
        k=policy.k if k is None else k,
    )
    rule = policy.filter
    if rule is None:
        if threshold is not None or on_filtered is not None:
            raise ValueError("this policy has no filter: leave --threshold and --on-filtered")
        return policy
    if threshold is not None:
        rule = replace(rule, threshold=threshold)
    if on_filtered is not None:
        rule = replace(rule, on_filtered=on_filtered)
    return replace(policy, filter=rule)
