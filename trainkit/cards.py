"""Model cards: what was trained, how, on what, how well, and what it must not be used for.

A card is a dataclass; `ModelCard.render` turns it into the ``README.md`` that the Hub shows, with the Hub's
metadata (licence, tags, data sets, results) in front. All text is escaped: it appears on the page as it was
given, and can neither break the metadata nor bring markup or HTML of its own.
"""

from __future__ import annotations

import html
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "DataUse",
    "Metric",
    "ModelCard",
    "Sample",
    "clean_text",
    "collect_versions",
    "markdown_line",
    "markdown_paragraphs",
]

_PACKAGES = (
    "dialogkit-robustkit",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "sentence-transformers",
    "faiss-cpu",
    "numpy",
    "huggingface_hub",
)
# Licences that the Hub's metadata knows by name; any other is "other" with a name of its own.
_HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-sa-3.0",
    }
    | {
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "gpl-3.0",
        "lgpl-3.0",
        "mit",
        "odbl",
    }
    | {"openrail", "unlicense"}
)


@dataclass(frozen=True)
class DataUse:
    """One data set and what it was used for.

    Attributes:
        name: The set's name, such as ``"Topical-Chat"``.
        licence: Its licence, or ``"not stated"``.
        role: What it was used for. Sets whose role begins with ``"training"`` are listed in the Hub's
            metadata.
    """

    name: str
    licence: str
    role: str = "training"


@dataclass(frozen=True)
class Metric:
    """One measured figure.

    Attributes:
        name: What was measured, such as ``"perplexity"``.
        value: The figure, finite.
        data: The data set it was measured on.
        split: The part of it, such as ``"held-out dialogues"``.
        spread: How far the figure is uncertain, in the figure's unit.
        spread_kind: What ``spread`` is.
        n: Number of examples (or runs) behind the figure.
        unit: Unit, appended to the figure.
    """

    name: str
    value: float
    data: str
    split: str = ""
    spread: float | None = None
    spread_kind: str = "standard deviation"
    n: int | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        _require_text("Metric", name=self.name, data=self.data)
        for name, number in (("value", self.value), ("spread", self.spread)):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} of the metric {self.name!r} is {number}; expected a finite number")
        if self.spread is not None and self.spread < 0:
            raise ValueError(f"spread of the metric {self.name!r} is {self.spread}; expected 0 or more")
        if self.n is not None and self.n < 1:
            raise ValueError(f"n of the metric {self.name!r} is {self.n}; expected 1 or more")

    def text(self) -> str:
        """The figure with its spread and unit, such as ``"0.812 ± 0.013 (standard deviation)"``."""
        unit = f" {self.unit}" if self.unit else ""
        if self.spread is None:
            return f"{self.value:.4g}{unit}"
        # No more decimals than the spread's second digit carries.
        decimals = 4 if self.spread == 0 else min(6, max(0, 1 - math.floor(math.log10(self.spread))))
        return f"{self.value:.{decimals}f} ± {self.spread:.{decimals}f}{unit} ({self.spread_kind})"


@dataclass(frozen=True)
class Sample:
    """One input and the unedited output.

    Attributes:
        prompt: What the model was given.
        output: What it answered.
    """

    prompt: str
    output: str


def collect_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that decide a result.

    Returns:
        Version by name; packages that are not installed are left out.
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class ModelCard:
    """What a reader of a model must know.

    Attributes:
        title: Name of the model or artefact.
        method: How it works, with the source, in a line.
        summary: What it is and what it is for; empty lines separate paragraphs.
        licence: Licence of the artefact, as an SPDX identifier such as ``"Apache-2.0"``.
        data: The data sets it was trained or measured on.
        metrics: What was measured.
        seed: The seed of the run that made it.
        versions: Software by name; collected from the running environment by default.
        limits: What it cannot do or must not be used for, a sentence each.
        samples: Unedited inputs and outputs.
        command: The command that makes it again.
        hardware: What it was trained on.
        training_seconds: Wall-clock training time in seconds.
        task: The Hub's name of the task, such as ``"text-generation"`` or ``"sentence-similarity"``.
        library: Import name of the library that loads it.
        languages: ISO 639-1 codes.
        tags: Further words to find it by.
        base_models: Hub names of the models it was built from.
    """

    title: str
    method: str
    summary: str
    licence: str
    data: tuple[DataUse, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=collect_versions)
    limits: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    command: str = ""
    hardware: str = ""
    training_seconds: float | None = None
    task: str = "text-generation"
    library: str = "dialogkit"
    languages: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_text(
            "ModelCard", title=self.title, method=self.method, summary=self.summary, licence=self.licence
        )
        for name in ("limits", "languages", "tags", "base_models"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} of a ModelCard is a str; expected a tuple of str")
        seconds = self.training_seconds
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"training_seconds is {seconds}; expected a number of seconds, 0 or more")

    def render(self) -> str:
        """The card as Markdown with the Hub's metadata in front.

        Returns:
            The text of ``README.md``. The same card always renders to the same text.
        """
        return _template().render(card=self, metadata=self._metadata())

    def _metadata(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        licence = _slug(self.licence)
        known = licence in _HUB_LICENCES
        trained_on = [_slug(entry.name) for entry in self.data if entry.role.startswith("training")]
        return ModelCardData(
            language=[_line(code) for code in self.languages] or None,
            license=licence if known else "other",
            license_name=None if known else licence,
            library_name=_line(self.library),
            pipeline_tag=_line(self.task),
            base_model=[_line(name) for name in self.base_models] or None,
            datasets=list(dict.fromkeys(trained_on)) or None,
            tags=[_line(tag) for tag in self.tags] or None,
            model_name=_line(self.title),
            eval_results=[
                EvalResult(
                    task_type=_line(self.task),
                    dataset_type=_slug(metric.data),
                    dataset_name=_line(metric.data),
                    dataset_split=_line(metric.split) or None,
                    metric_type=_slug(metric.name),
                    metric_name=_line(metric.name),
                    metric_value=metric.value,
                )
                for metric in self.metrics
            ]
            or None,
        ).to_yaml(line_break="\n")


def _require_text(owner: str, **values: str) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} of a {owner} must be text, got {type(value).__name__}")
        if not value.strip():
            raise ValueError(f"{name} of a {owner} is empty")


# Escaping ---------------------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """Line breaks unified, lone surrogates replaced, other control characters removed."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = re.sub(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]", "\n", text)
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]", "", text)


def _line(text: str) -> str:
    return " ".join(clean_text(text).split())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def markdown_line(text: str) -> str:
    """One line in which no character means anything to Markdown or HTML."""
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", _line(text))
    # At the start of a line these would open a list, a rule or a heading.
    text = re.sub(r"^([-+=:])(?=[-+=:\s]|$)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return html.escape(text, quote=False)


def markdown_paragraphs(text: str) -> str:
    """Text whose empty lines separate paragraphs, each escaped as by `markdown_line`."""
    blocks = re.split(r"\n\s*\n", clean_text(text).strip())
    return "\n\n".join(markdown_line(block) for block in blocks)


def _fenced(text: str) -> str:
    text = clean_text(text).strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    # Escaping is Markdown's, not HTML's, and done by the filters.
    environment = Environment(autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(
        inline=markdown_line, paragraphs=markdown_paragraphs, fenced=_fenced, duration=_duration
    )
    source = Path(__file__).parent / "templates" / "model_card.md.jinja"
    return environment.from_string(source.read_text(encoding="utf-8"))
