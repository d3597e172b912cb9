"""The command ``robustkit train``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trainkit.terminal import plain_errors, quiet

if TYPE_CHECKING:
    from torch import nn

    from robustkit.attacks.gradient.sets import PerturbationSet
    from robustkit.training import OnTexts, RobustMethod

__all__ = ["RECORD", "train"]

RECORD = "training.json"
"""What a run was asked for; in the model's folder also what it cost."""

MethodName = Literal["natural", "pgd", "fgsm-rs", "free", "yopo", "dat", "trades", "mart", "sihg", "freelb"]
_KINDS = {
    "natural": "Natural",
    "pgd": "PGDTraining",
    "fgsm-rs": "FGSMRS",
    "free": "FreeTraining",
    "yopo": "YOPO",
    "dat": "DynamicTraining",
    "trades": "TRADES",
    "mart": "MART",
    "sihg": "SIHG",
    "freelb": "FreeLB",
}


def train(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of the classifier.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", "-d",
            help="Folder with a folder of images for each class; texts with labels as JSON lines or CSV; or "
            "a data set saved by `datasets`.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints and the trained model.")],
    method: Annotated[MethodName, typer.Option("--method", help="How to train.")] = "sihg",
    threat: Annotated[
        str | None,
        typer.Option("--threat", help="linf:8/255, l2:0.5 or l1:12 for images; token:0.2 or sentence:0.2 for "
                     "texts."),
    ] = None,
    params: Annotated[
        str, typer.Option("--params", help="Settings of the method as JSON, such as '{\"alpha\": 0.5}'.")
    ] = "{}",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples of one step.")] = 32,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Its peak.")] = 5e-5,
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        typer.Option("--optimizer", help="sgd has momentum 0.9 and weight decay 5e-4."),
    ] = "adamw",
    warmup: Annotated[float, typer.Option("--warmup", help="Warm-up as a share of all steps.")] = 0.1,
    grow: Annotated[
        float,
        typer.Option("--grow", min=0, max=1, help="Share of all steps in which the threat's radius grows; "
                     "helps where training never leaves the start."),
    ] = 0.0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Mirror images and shift them by up to 4 pixels.")
    ] = False,
    average: Annotated[
        float | None, typer.Option("--average", help="Save averaged weights: decay, such as 0.999.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stop if robustness to PGD-5 collapses; looks once an epoch.")
    ] = False,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Start with an untrained head for the classes of the data.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=4, help="Tokens after which a text is cut off.")
    ] = None,
    mixed_precision: Annotated[Literal["no", "bf16"], typer.Option("--mixed-precision")] = "no",
    save_every: Annotated[
        int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints. Default: an epoch.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read images.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same model.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the model.")
    ] = None,
) -> None:  # fmt: skip
    """Train a classifier to withstand small perturbations.

    The same command goes on with an interrupted run.
    """
    with plain_errors():
        quiet()
        asked = _Asked(model, str(data), method, threat, params, epochs, batch_size, learning_rate, optimizer,
                       warmup, augment, average, watch, new_head, max_length, seed, grow)  # fmt: skip
        from robustkit.evaluation.images import holds_images

        images = holds_images(data)
        ball = _threat(asked, images)
        if not images and (augment or watch):
            raise ValueError("--augment and --watch are for images")
        _check_folder(out, asked)
        subject = _Images(asked, revision) if images else _Texts(asked, revision)
        told = _run(asked, subject, ball, out / "run", save_every, mixed_precision, workers, cpu)
        from accelerate import PartialState

        if PartialState().is_main_process:
            typer.echo(
                f"{method} trained for {told['steps']} steps at {told['units_per_example']:.2f} units of "
                f"cost an example; saved in {out / 'model'}"
            )


@dataclass(frozen=True)
class _Asked:
    """What makes one run another; a resumed run must ask for the same."""

    model: str
    data: str
    method: MethodName
    threat: str | None
    params: str
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str
    warmup: float
    augment: bool
    average: float | None
    watch: bool
    new_head: bool
    max_length: int | None
    seed: int
    grow: float = 0.0


def _threat(asked: _Asked, images: bool) -> PerturbationSet | None:
    """The set of perturbations, None for natural training."""
    from robustkit.attacks.gradient.sets import EmbeddingBall
    from robustkit.evaluation.threats import parse_threat

    if asked.method == "natural":
        if asked.threat is not None or asked.grow:
            raise ValueError("natural training has no --threat, nor one that could --grow")
        return None
    if asked.threat is None:
        raise ValueError(
            f"--method {asked.method} needs a --threat, such as linf:8/255, or token:0.2 for texts"
        )
    ball = parse_threat(asked.threat)
    if isinstance(ball, EmbeddingBall) == images:
        kinds = "linf, l2 or l1" if images else "token or sentence"
        raise ValueError(f"--threat is {asked.threat}; for {'images' if images else 'texts'} it is {kinds}")
    return ball


def _check_folder(out: Path, asked: _Asked) -> None:
    """Compares what is asked for with what an earlier run into this folder asked for.

    Raises:
        FileExistsError: The folder holds something else.
        ValueError: It holds another run.
    """
    from trainkit.hub import read_json

    record = out / RECORD
    if record.is_file():
        before = {"grow": 0.0, **read_json(record)}  # older records do not have it
        if other := [name for name, value in asdict(asked).items() if before.get(name) != value]:
            raise ValueError(
                f"{out} holds a run with {other[0]} {before.get(other[0])!r}, not "
                f"{getattr(asked, other[0])!r}; name another folder to start anew"
            )
    elif out.exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and holds no training run; name another folder")


class _Images:
    """An image classifier with its data."""

    def __init__(self, asked: _Asked, revision: str | None) -> None:
        from robustkit.classifiers.images import ImageClassifier
        from robustkit.evaluation.images import class_names, read_labelled_images

        if asked.new_head:
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            folder, names = _folder(asked.model, revision), class_names(asked.data)
            net = AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, ignore_mismatched_sizes=True, **_named(names)
            )
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.classifier = ImageClassifier(net, processor, name=asked.model)
        else:
            self.classifier = ImageClassifier.from_pretrained(asked.model, revision=revision)
        self.data = read_labelled_images(asked.data, self.classifier)
        self.module: nn.Module = self.classifier

    def banked(self, epsilon: float) -> Any:
        """A bank for these images."""
        from robustkit.training import PerturbationBank

        return PerturbationBank(len(self.data), self.data[0][0].shape, epsilon, dtype="int8")

    def method(self, method: RobustMethod) -> RobustMethod:
        """The method as it is."""
        return method

    def save(self, folder: Path) -> None:
        """Model and processor as transformers reads them."""
        self.classifier.model.save_pretrained(folder)  # type: ignore[operator]
        assert self.classifier.processor is not None
        self.classifier.processor.save_pretrained(folder)


class _Texts:
    """A text classifier with its data."""

    def __init__(self, asked: _Asked, revision: str | None) -> None:
        from robustkit.classifiers.text import TextClassifier
        from robustkit.evaluation.inputs import label_names, read_labelled_texts

        if asked.new_head:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            folder = _folder(asked.model, revision)
            net = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, ignore_mismatched_sizes=True, **_named(label_names(asked.data))
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.classifier = TextClassifier(net, tokenizer, name=asked.model, max_length=asked.max_length)
        else:
            self.classifier = TextClassifier.from_pretrained(
                asked.model, revision=revision, max_length=asked.max_length
            )
        self.data = read_labelled_texts(asked.data, self.classifier.labels)
        self.module: nn.Module = self.classifier.model

    def banked(self, epsilon: float) -> Any:
        """A bank for these texts."""
        from robustkit.training import TextBank

        return TextBank(len(self.data))

    def method(self, method: RobustMethod) -> OnTexts:
        """The method on embeddings."""
        from robustkit.training import OnTexts

        return OnTexts(method, self.classifier)

    def save(self, folder: Path) -> None:
        """Model and tokenizer as transformers reads them."""
        self.classifier.model.save_pretrained(folder)
        self.classifier.tokenizer.save_pretrained(folder)


def _run(
    asked: _Asked,
    subject: _Images | _Texts,
    ball: PerturbationSet | None,
    folder: Path,
    save_every: int | None,
    mixed_precision: Literal["no", "bf16"],
    workers: int,
    cpu: bool,
) -> dict[str, Any]:
    """Trains and saves; gives what the record says."""
    import torch
    from accelerate import PartialState

    from robustkit.training import Averaged, OverfittingWatch
    from trainkit import FitConfig, fit
    from trainkit.hub import atomic_directory, write_json

    steps = -(-len(subject.data) // asked.batch_size)
    method = _method(asked, subject, ball, steps * asked.epochs)
    averaged = None if asked.average is None else Averaged(subject.method(method), asked.average)
    watches = []
    if asked.watch:
        if ball is None or not isinstance(subject, _Images):
            raise ValueError("--watch needs a --threat to images")
        watched = subject.data.take(range(min(128, len(subject.data))))
        watches = [OverfittingWatch(*watched, ball, every=steps)]
    config = FitConfig(
        output_dir=folder,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        warmup_ratio=asked.warmup,
        mixed_precision=mixed_precision,
        seed=asked.seed,
        num_workers=workers,
        cpu=cpu,
        save_every=save_every or steps,
        resume=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.parent / RECORD, asdict(asked))
    sgd = None
    if asked.optimizer == "sgd":
        sgd = lambda model: torch.optim.SGD(  # noqa: E731
            model.parameters(), asked.learning_rate, momentum=0.9, weight_decay=5e-4
        )
    began = perf_counter()
    result = fit(
        subject.module,
        averaged or subject.method(method),
        subject.data,
        config=config,
        callbacks=watches,
        optimizer=sgd,
    )
    seen = result.steps / steps * len(subject.data) / PartialState().num_processes
    told = {
        **asdict(asked),
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "resumed_from": result.resumed_from,
        "seconds": round(perf_counter() - began, 1),
        "passes": method.cost.state_dict(),
        "units_per_example": round(method.cost.units / seen, 3),
    }
    if PartialState().is_main_process:
        with (
            nullcontext() if averaged is None else averaged.applied(subject.module),
            atomic_directory(folder.parent / "model", replace=True) as place,
        ):
            subject.save(place)
            write_json(place / RECORD, told)
    return told


def _method(
    asked: _Asked, subject: _Images | _Texts, ball: PerturbationSet | None, total: int
) -> RobustMethod:
    """The method by its name with its settings."""
    from robustkit import training

    settings = _object(asked.params)
    if asked.augment:
        settings["augmentation"] = training.FlipCrop()
    if asked.method == "dat":
        settings.setdefault("horizon", max(1, round(0.8 * total)))
    if asked.method == "sihg" and settings.get("init", "bank") == "bank":
        settings["bank"] = subject.banked(float(ball.epsilon))  # type: ignore[union-attr]
    kind = getattr(training, _KINDS[asked.method])
    try:
        made: RobustMethod = (
            kind(**settings)
            if ball is None
            else kind(training.Growing(ball, round(asked.grow * total)), **settings)
        )
    except TypeError as error:
        raise ValueError(f"--params of {asked.method}: {error}") from error
    return made


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--params is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--params is a JSON {type(value).__name__}, expected an object")
    return value


def _folder(model: str, revision: str | None) -> Path:
    from trainkit.hub import resolve

    return resolve(model, revision=revision, ignore=("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.pt"))


def _named(names: tuple[str, ...]) -> Mapping[str, Any]:
    """What a configuration says of classes."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
