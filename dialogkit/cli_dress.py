"""The command ``dialogkit dress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trainkit.terminal import output_console, plain_errors, quiet, safe, table

__all__ = ["dress"]

dress = typer.Typer(help="Train a language model to mean more different things.", no_args_is_help=True)

NegativeName = Literal["nll", "unlikelihood", "clipped", "none"]
NormalizationName = Literal["none", "mean", "max"]
Layout = Literal["labelled", "lines", "chat"]


@dress.command()
def train(
    data: Annotated[
        Path, typer.Argument(help='JSON lines of {"context": [...], "response": ...}; .gz is read too.')
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder or Hub id of a language model, or 'embedded'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: model, clusters, run.")],
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            help="What clusters responses: 'lm:' and a folder or Hub id (the last token of a causal model), "
            "'minilm', 'embedded', or a sentence-transformers model. Default: --model itself, as it is now.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=2, help="Number of clusters.")] = 20,
    gamma: Annotated[
        float, typer.Option("--gamma", min=0, help="How fast weights fall with the share.")
    ] = 30,
    normalization: Annotated[
        NormalizationName, typer.Option("--normalization", help="Of the weights; the paper has none.")
    ] = "none",
    negative: Annotated[
        NegativeName,
        typer.Option("--negative", help="How mined replies are pushed down; 'none' is DRESS(-NT)."),
    ] = "nll",
    contexts: Annotated[int, typer.Option("--contexts", min=1, help="Answered each epoch.")] = 5000,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="A greater share of the replies is too much.")
    ] = 0.1,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data at most.")] = 10,
    patience: Annotated[
        int, typer.Option("--patience", min=1, help="Epochs without a better perplexity; needs --valid.")
    ] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs of a step.")] = 32,
    micro_batch_size: Annotated[
        int | None, typer.Option("--micro-batch-size", min=1, help="Pairs of a forward pass.")
    ] = None,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Its peak.")] = 7e-6,
    valid: Annotated[Path | None, typer.Option("--valid", help="Examples to measure perplexity on.")] = None,
    layout: Annotated[
        Layout, typer.Option("--layout", help="How contexts are laid out; 'chat' for chat models.")
    ] = "labelled",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Train with DRESS, and save the model. Run it again to go on after a stop."""
    with plain_errors():
        from dialogkit import embedded
        from dialogkit.dialogues import read_examples
        from dialogkit.diversity import (
            DressConfig,
            MiningConfig,
            SemanticClusters,
            dress_weights,
            load_encoder,
            train_dress,
        )
        from dialogkit.generation import TransformersLM
        from dialogkit.generation.prompting import DialoguePrompt
        from trainkit import FitConfig, atomic_directory

        quiet()
        examples = list(read_examples(data))
        held_out = list(read_examples(valid)) if valid is not None else []
        source = str(embedded.lm_path()) if model == "embedded" else model
        lm = TransformersLM.from_pretrained(source)
        yardstick = load_encoder(encoder if encoder is not None else f"lm:{source}")
        folder = out / "clusters"
        if folder.exists():
            clusters = SemanticClusters.from_pretrained(folder).attach(yardstick)
        else:
            clusters = SemanticClusters.fit([one.response for one in examples], yardstick, k=k)
            clusters.save_pretrained(folder)
        scale = None if normalization == "none" else normalization
        config = DressConfig(
            gamma=gamma,
            normalization=scale,
            negative=None if negative == "none" else negative,
            mining=MiningConfig(contexts=contexts, threshold=threshold),
            micro_batch_size=micro_batch_size,
        )
        training = FitConfig(
            output_dir=out / "run",
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule="constant",
            warmup_steps=100,
            max_grad_norm=0.1,
            patience=patience if held_out else None,
            save_every=200,
            resume=True,
            seed=seed,
        )
        prompt = DialoguePrompt(layout=layout)
        result = train_dress(
            lm, examples, clusters, training=training, config=config, prompt=prompt, valid=held_out
        )
        with atomic_directory(out / "model", replace=True) as written:
            lm.model.save_pretrained(written)
            lm.tokenizer.save_pretrained(written)
        weights = dress_weights(clusters.train_histogram, gamma, scale).tolist()
        shares = clusters.train_histogram.tolist()
        rows = [
            (f"{shares[j]:.3f}", f"{weights[j]:.4f}", "; ".join(clusters.examples(j, 2)))
            for j in sorted(range(clusters.k), key=lambda j: -shares[j])
        ]
        console = output_console()
        console.print(table(("share", "weight", "for example"), rows, numeric=("share", "weight")))
        console.print(safe(f"{result.steps:,} steps; the model is saved in {out / 'model'}"))
