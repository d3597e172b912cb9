"""The ``robustkit`` command: attack and explain a classifier, fit and use detectors, report on robustness.

Model libraries are imported when a command needs them, so that ``robustkit --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustkit.cli_explain import explain
from robustkit.cli_train import RECORD
from robustkit.cli_train import train as train_command
from trainkit.terminal import plain_errors, quiet, show_version

if TYPE_CHECKING:
    from robustkit.attacks.logs import AttackLog
    from robustkit.attacks.words.engine import WordAttack
    from robustkit.classifiers.images import ImageClassifier
    from robustkit.classifiers.text import TextClassifier
    from robustkit.detection.replaced import ReplacedWordsSettings
    from robustkit.evaluation.inputs import Resources

__all__ = ["app", "main"]

app = typer.Typer(
    help="Robustness of classifiers: attacks, detectors, explanations, reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
detect = typer.Typer(help="Detectors of attacked texts.", no_args_is_help=True)
app.add_typer(detect, name="detect")
app.command()(explain)
app.command("train")(train_command)

RecipeName = Literal["textfooler", "pwws", "bae", "textfooler_adjusted", "a2t", "deepwordbug"]

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of the classifier.")]
DataOption = Annotated[
    Path, typer.Option("--data", "-d", help="Texts with labels: JSON lines or CSV with 'text' and 'label'.")
]
ResourcesOption = Annotated[
    list[Path] | None,
    typer.Option("--resources", "-r", help="Folder with word lists and models for attacks; may be repeated."),
]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", help="Sentence encoder of attacks. Default: resources, else packaged MiniLM."),
]
MaskedOption = Annotated[str | None, typer.Option("--masked-lm", help="Masked language model, for bae.")]
CausalOption = Annotated[str | None, typer.Option("--lm", help="Causal language model, for perplexity.")]
ReaderOption = Annotated[
    str | None,
    typer.Option(
        "--reader",
        help="Trained reader, for replaced and suspect. Default: one learns from the texts first.",
    ),
]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="Take that many texts of the data, drawn by --seed.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same results.")]
LockStepOption = Annotated[int, typer.Option("--lock-step", min=1, help="Texts attacked at the same time.")]
BudgetOption = Annotated[int | None, typer.Option("--query-budget", min=1, help="Most queries for one text.")]
FprOption = Annotated[float, typer.Option("--fpr", help="Share of clean texts that may be flagged.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the model.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Such as cpu or cuda:0.")]


def main() -> None:
    """Run the command with the arguments of the process."""
    app()


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=show_version("robustkit"), is_eager=True
        ),
    ] = False,
) -> None:
    """Robustness of classifiers: attacks, detectors, explanations, reports."""


@app.command()
def attack(
    model: ModelOption,
    data: DataOption,
    recipe: Annotated[RecipeName, typer.Option("--recipe", help="The attack.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Log to write or to go on with, a .csv file.")],
    resources: ResourcesOption = None,
    encoder: EncoderOption = None,
    masked_lm: MaskedOption = None,
    sample: SampleOption = None,
    seed: SeedOption = 0,
    goal_score: Annotated[
        float | None,
        typer.Option("--goal-score", help="Probability that the wrong class must reach, such as 0.9."),
    ] = None,
    query_budget: BudgetOption = None,
    n_best: Annotated[int, typer.Option("--n-best", min=1, help="Attacked texts kept for each text.")] = 1,
    lock_step: LockStepOption = 64,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Attack every text and log what came of it. The same command goes on with an interrupted log."""
    with plain_errors():
        if out.suffix != ".csv":
            raise ValueError(f"--out is {str(out)!r}; expected a name that ends in .csv")
        _require(data)
        from robustkit.evaluation.inputs import make_attack

        chosen = make_attack(recipe, _resources(resources, encoder, masked_lm, device), goal_score)
        classifier = _classifier(model, revision, device)
        log = chosen.attack(
            classifier,
            _labelled(data, classifier, sample, seed),
            lock_step=lock_step,
            query_budget=query_budget,
            n_best=n_best,
            path=out,
            seed=seed,
        )
        summary = asdict(log.summary())
        if as_json:
            typer.echo(json.dumps({k: None if v != v else v for k, v in summary.items()}))
            return
        for name, value in summary.items():
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            typer.echo(f"{name.replace('_', ' '):<22} {'-' if value != value else shown}")


@detect.command()
def fit(
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the detector to.")],
    detector: Annotated[str, typer.Option("--detector", help="Its name; a wrong one lists all.")] = "rde",
    validation: Annotated[
        Path | None,
        typer.Option("--validation", help="Clean texts for the threshold. Default: a fifth of the data."),
    ] = None,
    fpr: FprOption = 0.10,
    params: Annotated[
        str,
        typer.Option("--params", help="Settings of the detector as JSON, such as '{\"n_components\": 50}'."),
    ] = "{}",
    adversarial: Annotated[
        Path | None, typer.Option("--adversarial", help="Attack log, for detectors that learn from attacks.")
    ] = None,
    resources: ResourcesOption = None,
    lm: CausalOption = None,
    reader: ReaderOption = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="Encoder that a reader starts as. Default: as for attacks."),
    ] = None,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    device: DeviceOption = None,
) -> None:
    """Fit a detector on clean texts, set its threshold, and save it."""
    with plain_errors():
        from robustkit.attacks.logs import AttackLog, strip_marks
        from robustkit.detection.suspects import check_places
        from robustkit.detection.text_detector import TextDetector
        from robustkit.evaluation.inputs import DETECTORS, READING, make_detector, read_texts, train_reader
        from trainkit.hub import MANIFEST

        if detector not in DETECTORS:
            raise ValueError(f"there is no detector {detector!r}; there are {', '.join(DETECTORS)}")
        if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
            raise FileExistsError(f"{out} exists and is no detector's folder; name another one")
        if not 0 < fpr < 1:
            raise ValueError(f"--fpr is {fpr}, expected a share between 0 and 1")
        settings = _object("--params", params)
        trains = detector in READING and reader is None
        training = _reader_settings(detector, settings) if trains else None
        for path in (data, *([validation] if validation else []), *([adversarial] if adversarial else [])):
            _require(path)
        attacked = None
        if adversarial is not None:
            log = AttackLog.read_csv(adversarial)
            attacked = [strip_marks(r.perturbed_text) for r in log if r.outcome == "Successful"]
        classifier = _classifier(model, revision, device)
        if detector == "suspect":
            check_places(classifier)  # before a reader is trained
        lexicon = _resources(resources, encoder, None, device)
        parts = _parts(lexicon, lm, device, reader)
        rows = _labelled(data, classifier, None, seed)
        if validation is not None:
            clean = list(read_texts(validation))
        else:
            Random(seed).shuffle(rows)
            held = math.ceil(len(rows) / 5)
            rows, clean = rows[held:], [text for text, _ in rows[:held]]
        least = math.ceil(1 / fpr - 1e-9) - 1
        if len(clean) < least:
            raise ValueError(
                f"a threshold for a false positive rate of {fpr} needs at least {least} clean texts, there "
                f"are {len(clean)}; give more with --validation"
            )
        labels, texts = [label for _, label in rows], [text for text, _ in rows]
        if trains:
            run = out.with_name(f"{out.name}.run")
            parts["reader"] = train_reader(texts, lexicon, output_dir=run, settings=training, seed=seed)
        found = make_detector(detector, classifier, parts, settings)
        if found.needs_fit and len(set(labels)) == 1:
            raise ValueError(
                f"{data} holds the class {classifier.labels[labels[0]]!r} only; a detector learns from at "
                "least two classes"
            )
        guarding = TextDetector(classifier, found)
        if found.needs_fit:
            guarding.fit(texts, labels, attacked)
        threshold = guarding.calibrate(clean, fpr)
        guarding.save_pretrained(out)
        learned = f"fitted on {len(rows)} texts" if found.needs_fit or trains else "needs no fitting"
        typer.echo(
            f"{detector} {learned}; threshold {threshold:.6g} from {len(clean)} clean texts; saved in {out}"
        )


@detect.command()
def score(
    detector: Annotated[str, typer.Option("--detector", help="Folder or Hub id of a saved detector.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSON lines or CSV with 'text', or a text in each line. Default or '-': standard input."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or Hub id of the classifier. Default: as saved."),
    ] = None,
    resources: ResourcesOption = None,
    lm: CausalOption = None,
    words: Annotated[
        bool, typer.Option("--words", help="Say it of each word, too; for replaced and suspect.")
    ] = False,
    revision: RevisionOption = None,
    device: DeviceOption = None,
) -> None:
    """Print what a detector says of each text as a line of JSON."""
    with plain_errors():
        from robustkit.detection.replaced import ReaderDetector
        from robustkit.detection.suspects import SuspectWord
        from robustkit.detection.text_detector import TextDetector
        from robustkit.evaluation.inputs import read_texts

        if file == Path("-"):
            file = None
        if file is not None:
            _require(file)
        parts = _parts(_resources(resources, None, None, device), lm, device)
        if model is None:
            found = TextDetector.from_pretrained(detector, parts=parts, device=device)
        else:
            loaded = _classifier(model, revision, device)
            found = TextDetector.for_model(detector, loaded.model, loaded.tokenizer, parts=parts)
        reading = found.detector
        if words and not isinstance(reading, ReaderDetector):
            raise ValueError(f"--words: {detector} holds a {type(reading).__name__}, which judges no words")
        texts = read_texts(file) if file is not None else _lines()
        while batch := list(islice(texts, 256)):
            judged = reading.judged_words(batch) if isinstance(reading, ReaderDetector) and words else None
            for number, (text, result) in enumerate(zip(batch, found.predict(batch), strict=True)):
                row: dict[str, object] = {
                    "text": text,
                    "label": result.predicted_label,
                    "adversarial": result.is_adversarial,
                    "score_adversarial": result.score,
                    "p_value": result.p_value,
                }
                if judged is not None:
                    row["words"] = [
                        asdict(word) | ({"score": word.score} if isinstance(word, SuspectWord) else {})
                        for word in judged[number]
                    ]
                typer.echo(json.dumps(row))
            sys.stdout.flush()


@app.command()
def evaluate(
    context: typer.Context,
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and the attack logs.")],
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attacks", "-a", help="Recipes, separated by commas; may be repeated."),
    ] = None,
    logs: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="NAME=FILE", help="Log of an attack on this model; may be repeated."),
    ] = None,
    far: Annotated[
        bool, typer.Option("--far", help="Run each recipe once more until the wrong class has 0.9.")
    ] = False,
    detectors: Annotated[
        list[str] | None,
        typer.Option("--detectors", help="Detectors, separated by commas; max-softmax is always there."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option("--train", help="Texts with labels that detectors learn from.")
    ] = None,
    resources: ResourcesOption = None,
    encoder: EncoderOption = None,
    masked_lm: MaskedOption = None,
    lm: CausalOption = None,
    reader: ReaderOption = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Measure how similar texts stay, with the sentence encoder.")
    ] = False,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Name of the data in the report.")] = None,
    sample: SampleOption = None,
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of draws of detection sets.")] = 3,
    fpr: FprOption = 0.10,
    n_boot: Annotated[int, typer.Option("--n-boot", min=0, help="Bootstrap samples for intervals.")] = 1000,
    threat: Annotated[
        str | None,
        typer.Option("--threat", help="Gradient attacks within linf:8/255, l2:0.5, token:0.2 or the like."),
    ] = None,
    pgd_steps: Annotated[int, typer.Option("--pgd-steps", min=1, help="Steps of PGD and CW.")] = 50,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Queries of Square, on images.")] = 5000,
    mixed_precision: Annotated[
        Literal["no", "bf16"],
        typer.Option(
            "--mixed-precision", help="Of the search of gradient attacks; success is judged in full."
        ),
    ] = "no",
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            help="Maps before and after attacks by these attribution methods, "
            "separated by commas, and how far they can be trusted; may be repeated.",
        ),
    ] = None,
    explain_sample: Annotated[
        int, typer.Option("--explain-sample", min=1, help="Texts or images behind each number about maps.")
    ] = 100,
    explain_examples: Annotated[
        int, typer.Option("--explain-examples", min=0, help="Examples whose maps are shown, of each attack.")
    ] = 5,
    query_budget: BudgetOption = None,
    lock_step: LockStepOption = 64,
    revision: RevisionOption = None,
    device: DeviceOption = None,
) -> None:
    """Attack, detect, and write a report as Markdown, JSON, CSV and one HTML page.

    Images, a folder with a folder for each class, are attacked by --threat alone.
    """
    with plain_errors():
        _refuse_idle(context, "threat", "pgd_steps", "queries", "mixed_precision")
        _refuse_idle(context, "explain", "explain_sample", "explain_examples")
        from robustkit.attacks.gradient.sets import EmbeddingBall
        from robustkit.attacks.logs import AttackLog
        from robustkit.detection.suspects import check_places
        from robustkit.evaluation.explanations import ExplanationConfig
        from robustkit.evaluation.gradients import GradientConfig, evaluate_images, text_gradient_section
        from robustkit.evaluation.images import holds_images, read_labelled_images
        from robustkit.evaluation.inputs import READING, make_attack, make_detector, train_reader
        from robustkit.evaluation.robustness import (
            EvaluationConfig,
            check_evaluation,
            evaluate_robustness,
        )
        from robustkit.evaluation.threats import parse_threat

        ball = None if threat is None else parse_threat(threat)
        gradients = GradientConfig(
            steps=pgd_steps, queries=queries, seed=seed, mixed_precision=mixed_precision
        )
        methods = tuple(_names(explain))
        explained = ExplanationConfig(
            methods, sample=explain_sample, examples=explain_examples, n_boot=n_boot, seed=seed
        ) if methods else None  # fmt: skip
        named = data.name if dataset is None else dataset
        if holds_images(data):
            if ball is None or isinstance(ball, EmbeddingBall):
                raise ValueError(f"{data} holds images; give --threat linf:RADIUS, l2:RADIUS or l1:RADIUS")
            if attacks or logs or detectors:
                raise ValueError(f"{data} holds images; --attacks, --log and --detectors are for texts")
            images = read_labelled_images(data, pictures := _images(model, revision, device))
            shown = evaluate_images(
                pictures,
                images,
                ball,
                shown=str(threat),
                dataset=named,
                rows=_drawn(len(images), sample, seed, data),
                config=gradients,
                explained=explained,
            )
            replace(shown, facts={**shown.facts, **_training(model)}).write(out)
            typer.echo(f"{out / 'report.html'}")
            return
        if ball is not None and not isinstance(ball, EmbeddingBall):
            raise ValueError(f"--threat is {threat}; texts need token:RADIUS or sentence:RADIUS")

        config = EvaluationConfig(
            seeds=tuple(range(seed, seed + seeds)),
            fpr=fpr,
            n_boot=n_boot,
            query_budget=query_budget,
            lock_step=lock_step,
        )
        if train is not None:
            _require(train)
        found = _resources(resources, encoder, masked_lm, device)
        runs: dict[str, WordAttack | AttackLog] = {}
        for name in _names(attacks):
            runs[name] = make_attack(name, found)
            if far:
                runs[f"{name}-far"] = make_attack(name, found, config.far_confidence)
        for item in logs or ():
            name, equals, path_of_log = item.partition("=")
            if not equals:
                raise ValueError(f"--log is {item!r}; expected NAME=FILE")
            runs[name] = AttackLog.read_csv(path_of_log, name=name, broken="skip")
        if not runs and ((ball is None and explained is None) or detectors):
            raise ValueError(
                "nothing to evaluate: give --attacks or --log, or --threat or --explain without --detectors"
            )
        meter = found.sentence_encoder if similarity else None
        classifier = _classifier(model, revision, device)
        wanted = _names(detectors)
        if "suspect" in wanted:
            check_places(classifier)  # before a reader is trained
        parts = _parts(found if "fgws" in wanted else None, lm, device, reader)
        rows = _labelled(data, classifier, sample, seed)
        taught = [] if train is None else _labelled(train, classifier, None, seed)
        later = [name for name in wanted if name in READING and reader is None]
        watching = {name: make_detector(name, classifier, parts) for name in wanted if name not in later}
        if later:
            from robustkit.detection.replaced import ReaderDetector

            if not taught:
                raise ValueError(f"{later[0]} learns from clean texts: give --train, or a trained --reader")
            check_evaluation(
                classifier,
                rows,
                runs,
                (*watching.values(), ReaderDetector),
                train=taught,
                config=config,
                explained=explained,
            )
            learned = train_reader(
                [text for text, _ in taught], found, output_dir=out / "reader.run", seed=seed
            )
            learned.save_pretrained(out / "reader")
            parts["reader"] = learned
            watching |= {name: make_detector(name, classifier, parts) for name in later}
        report = evaluate_robustness(
            classifier,
            rows,
            runs,
            {name: watching[name] for name in wanted},
            train=taught,
            encoder=meter,
            folder=out,
            dataset=named,
            config=config,
            explained=explained,
        )
        if ball is not None:
            report = report.with_section(
                text_gradient_section(classifier, rows, ball, shown=str(threat), config=gradients)
            )
        replace(report, facts={**report.facts, **_training(model)}).write(out)
        typer.echo(f"{out / 'report.html'}")


# What the commands share ------------------------------------------------------------------------------------


def _require(path: Path) -> None:
    """Report a missing file before anything is loaded."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")


def _classifier(model: str, revision: str | None, device: str | None) -> TextClassifier:
    quiet()
    from robustkit.classifiers.text import TextClassifier

    return TextClassifier.from_pretrained(model, revision=revision, device=device)


def _images(model: str, revision: str | None, device: str | None) -> ImageClassifier:
    quiet()
    from robustkit.classifiers.images import ImageClassifier

    found = ImageClassifier.from_pretrained(model, revision=revision)
    return found if device is None else found.to(device)


def _training(model: str) -> dict[str, str]:
    """What `robustkit train` wrote of a model in a folder, as a line of the report."""
    record = Path(model) / RECORD
    if not record.is_file():
        return {}
    from trainkit.hub import read_json

    told = read_json(record)
    within = f" within {told['threat']}" if told["threat"] else ""
    since = "" if told["resumed_from"] is None else f" since step {told['resumed_from']}"
    return {
        "training": f"{told['method']}{within}, {told['steps']} steps of {told['batch_size']} examples, "
        f"{told['units_per_example']} units of cost an example, {told['seconds']} s{since}"
    }


def _resources(
    folders: Sequence[Path] | None, encoder: str | None, masked_lm: str | None, device: str | None
) -> Resources:
    from robustkit.evaluation.inputs import Resources

    for folder in folders or ():
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder of resources {str(folder)!r}")
    # Encoders among them load with bars.
    quiet()
    return Resources(tuple(folders or ()), encoder, masked_lm, device or "cpu")


def _parts(
    found: Resources | None, lm: str | None, device: str | None, reader: str | None = None
) -> dict[str, object]:
    """The models that detectors take besides the classifier; of the resources those that are there."""
    parts: dict[str, object] = {}
    if found is not None and found.folders:
        parts["lexicon"] = found.wordnet if found.find("oewn_entries.json") else None
        parts["neighbours"] = found.neighbours if found.find("counterfitted_neighbors.json") else None
    if lm is not None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        quiet()
        loaded: Any = AutoModelForCausalLM.from_pretrained(lm, use_safetensors=True)
        parts |= {"lm": loaded.to(device or "cpu").eval(), "tokenizer": AutoTokenizer.from_pretrained(lm)}
    if reader is not None:
        from robustkit.detection.replaced import WordReader

        quiet()
        parts["reader"] = WordReader.from_pretrained(reader, device=device)
    return parts


def _refuse_idle(context: typer.Context, main: str, *settings: str) -> None:
    """Refuse settings of something that was not asked for: they would be ignored."""
    if context.params[main]:
        return
    for name in settings:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--{name.replace('_', '-')} says how --{main} works: give both, or neither")


def _reader_settings(detector: str, params: dict[str, Any]) -> ReplacedWordsSettings:
    """How a reader is trained, taken out of the settings of its detector."""
    from robustkit.detection.replaced import ReplacedWordsSettings

    names = [field.name for field in fields(ReplacedWordsSettings)]
    training = {name: params.pop(name) for name in names if name in params}
    if unknown := sorted(params.keys() - {"truncate"}):
        known = ", ".join(["truncate", *names])
        raise ValueError(f"--params: {detector} has no {unknown[0]!r}; it has {known}")
    # The detector is made when its reader is trained: too late to say so.
    if not isinstance(truncate := params.get("truncate", False), bool):
        raise ValueError(f"--params: truncate is {truncate!r}; expected true or false")
    return ReplacedWordsSettings(**training)


def _labelled(path: Path, classifier: TextClassifier, sample: int | None, seed: int) -> list[tuple[str, int]]:
    from robustkit.evaluation.inputs import read_labelled_texts

    rows = read_labelled_texts(path, classifier.labels)
    return [rows[row] for row in _drawn(len(rows), sample, seed, path)]


def _drawn(count: int, sample: int | None, seed: int, path: Path) -> list[int]:
    """The rows of a sample; all in order without one."""
    if sample is None:
        return list(range(count))
    if sample > count:
        raise ValueError(f"--sample is {sample}, {path} holds {count}")
    return Random(seed).sample(range(count), sample)


def _names(options: Iterable[str] | None) -> list[str]:
    """The names in options that may be repeated and may hold commas, each once."""
    return list(
        dict.fromkeys(name.strip() for item in options or () for name in item.split(",") if name.strip())
    )


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} is a JSON {type(value).__name__}, expected an object")
    return value


def _lines() -> Iterator[str]:
    """The lines of standard input, blank ones left out."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")
