"""The command ``robustkit explain``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trainkit.terminal import plain_errors, quiet

if TYPE_CHECKING:
    from robustkit.classifiers.images import ImageClassifier
    from robustkit.classifiers.text import TextClassifier
    from robustkit.interpret.attribution import Attribution
    from robustkit.interpret.explaining import Method

__all__ = ["explain"]

SUMMARY = "attributions.json"

ScoreName = Literal["logit", "prob", "logprob", "margin"]


def explain(
    inputs: Annotated[
        Path,
        typer.Argument(help="Folder of images; or texts: JSON lines or CSV with 'text', or a line each."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of the classifier.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the page and pictures to.")],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="Names, separated by commas; a wrong one lists all.  [default: "
                     "integrated_gradients]", show_default=False),
    ] = None,
    params: Annotated[
        str,
        typer.Option("--params", help="Settings of methods as JSON, such as '{\"rectgrad\": {\"q\": 95}}'."),
    ] = "{}",
    target: Annotated[
        str | None, typer.Option("--target", help="Class to explain, by name or number. Default: predicted.")
    ] = None,
    score: Annotated[ScoreName, typer.Option("--score", help="What is explained.")] = "logit",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many, from the first.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs in one pass.")] = 16,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the model.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Such as cpu or cuda:0.")] = None,
) -> None:  # fmt: skip
    """Explain what a classifier says of images or texts, on one page, with pictures and numbers."""
    with plain_errors():
        if out.exists() and not (out / SUMMARY).is_file() and (out.is_file() or any(out.iterdir())):
            raise FileExistsError(f"{out} exists and holds no explanations; name another folder")
        if not inputs.exists():
            raise FileNotFoundError(f"there is no file or folder {str(inputs)!r}")
        wanted = _names(methods) or ["integrated_gradients"]
        settings = _settings(params, wanted)
        quiet()
        chosen = _methods(wanted, settings)
        classifier: ImageClassifier | TextClassifier
        if inputs.is_dir():
            from robustkit.classifiers.images import ImageClassifier

            files = _image_files(inputs)[:limit]
            classifier = ImageClassifier.from_pretrained(model, revision=revision)
            if device is not None:
                classifier.to(device)
            items: Iterator[tuple[str, Any]] = (
                (str(file.relative_to(inputs)), _image(file)) for file in files
            )
        else:
            from robustkit.classifiers.text import TextClassifier
            from robustkit.evaluation.inputs import read_texts

            classifier = TextClassifier.from_pretrained(model, revision=revision, device=device)
            items = ((text, text) for text in islice(read_texts(inputs), limit))
        count = _write(out, classifier, items, chosen, _target(target, classifier.labels), score, batch_size)
        typer.echo(f"{count} explained by {', '.join(wanted)}: {out / 'page.html'}")


def _write(
    out: Path, classifier: ImageClassifier | TextClassifier, items: Iterator[tuple[str, Any]],
    methods: dict[str, Method], target: int | str | None, score: ScoreName, batch_size: int,
) -> int:  # fmt: skip
    """The folder: ``page.html``, ``attributions.json`` and for images a PNG file each."""
    from robustkit.interpret import explaining
    from robustkit.interpret.pictures import articles, heatmap_png, page
    from trainkit.hub import atomic_directory, write_bytes, write_json

    rows: list[dict[str, Any]] = []
    parts: list[str] = []
    found: dict[str, Attribution] = {}
    with atomic_directory(out, replace=True) as folder:
        while batch := list(islice(items, batch_size)):
            names, inputs = [name for name, _ in batch], [item for _, item in batch]
            found = {
                name: explaining.explain(
                    classifier, inputs, method, target=target, score=score, batch_size=batch_size
                )
                for name, method in methods.items()
            }
            own = list(found.values())
            images = own[0].text is None
            parts += articles(own, names=names if images else None)
            for row, name in enumerate(names):
                entry = {"file" if images else "text": name} | _entry(found, row)
                if images:
                    entry["picture"] = f"{len(rows) + 1:04}.png"
                    write_bytes(folder / entry["picture"], heatmap_png([one[row : row + 1] for one in own]))
                rows.append(entry)
        if not rows:
            raise ValueError("there is nothing to explain: the file holds no texts")
        write_bytes(folder / "page.html", page(list(found.values()), parts).encode("utf-8", "replace"))
        described = {name: {"method": one.method} | _plain(one.params) for name, one in found.items()}
        write_json(folder / SUMMARY, {"methods": described, "inputs": rows})
    return len(rows)


def _entry(found: dict[str, Attribution], row: int) -> dict[str, Any]:
    """What the summary says of one input."""
    first = next(iter(found.values()))
    scores: dict[str, Any] = {}
    for name, one in found.items():
        own: dict[str, Any] = {"sum": float(one.values[row].sum())}
        if one.delta is not None:
            own["completeness_gap"] = float(one.delta[row])
        if one.text is not None:
            own["words"] = one[row : row + 1].word_scores()[0]
        scores[name] = own
    return {
        "target": int(first.target[row]),
        "label": first.label(row),
        "score": float(first.output[row]),
        "methods": scores,
    }


def _names(options: Sequence[str] | None) -> list[str]:
    names = [name.strip() for item in options or () for name in item.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _settings(params: str, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    try:
        settings = json.loads(params)
    except json.JSONDecodeError as error:
        raise ValueError(f"--params is no JSON: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(own, dict) for own in settings.values()):
        raise ValueError('--params is no JSON object of objects, such as {"rectgrad": {"q": 95}}')
    if idle := [name for name in settings if name not in wanted]:
        raise ValueError(f"--params has settings of {idle[0]!r}, which is no --method")
    return settings


def _methods(wanted: Sequence[str], settings: dict[str, dict[str, Any]]) -> dict[str, Method]:
    from robustkit.interpret.explaining import METHODS

    chosen = {}
    for name in wanted:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
        method: Any = METHODS[name]
        try:
            chosen[name] = replace(method, **settings.get(name, {}))
        except TypeError as error:
            raise ValueError(f"--params of {name}: {error}") from error
    return chosen


def _target(target: str | None, labels: Sequence[str] | None) -> int | str | None:
    """A name that the model knows, otherwise a number."""
    if target is None or target in (labels or ()) or not target.isdecimal():
        return target
    return int(target)


def _image_files(folder: Path) -> list[Path]:
    from robustkit.evaluation.images import PICTURES

    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise ValueError(f"{folder} holds no images; known endings are {', '.join(sorted(PICTURES))}")
    return files


def _image(file: Path) -> Any:
    """A picture as it is meant to be seen, in RGB."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _plain(params: Any) -> dict[str, Any]:
    """Settings that JSON can hold."""
    return {
        name: value if isinstance(value, bool | int | float | str) or value is None else str(value)
        for name, value in params.items()
    }
