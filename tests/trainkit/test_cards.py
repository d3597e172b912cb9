"""Model cards: metadata that the Hub's own reader understands, and text that stays text."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from trainkit.cards import DataUse, Metric, ModelCard, Sample, collect_versions

FULL = ModelCard(
    title="Small talker",
    method="Decoder-only transformer (PDP windows)",
    summary="It talks.\n\nIt is small.",
    licence="Apache-2.0",
    data=(
        DataUse("Topical-Chat", "CDLA-Sharing-1.0"),
        DataUse("Everyday exchanges", "Apache-2.0", "training and measuring"),
        DataUse("DailyDialog", "CC-BY-NC-SA-4.0", "measuring"),
    ),
    metrics=(
        Metric("perplexity", 31.25, "Topical-Chat", "held-out", n=86),
        Metric("distinct-2", 0.4321, "Topical-Chat", "held-out", spread=0.0123, n=3),
        Metric("recall@1", 0.5, "DailyDialog", "test", spread=0.02, spread_kind="95 % interval, half"),
    ),
    seed=7,
    versions={"python": "3.11.7", "torch": "2.13.0"},
    limits=("Knows nothing.", "Not for advice."),
    samples=(Sample("Hello, who are you?", "I am a friend."),),
    command="python scripts/train_embedded.py --seed 7",
    hardware="one GPU",
    training_seconds=4000,
    tags=("dialogue", "pdp"),
    base_models=("owner/base",),
)

markdown = MarkdownIt("commonmark").enable("table")


def body(text: str) -> str:
    """The card without its metadata."""
    match = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    assert match
    return text[match.end() :]


def tokens(text: str) -> list[Token]:
    """All Markdown tokens of the body, inner ones included."""
    flat = []
    for token in markdown.parse(body(text)):
        flat += [token, *(token.children or [])]
    return flat


def headings(text: str) -> list[str]:
    """The headings as a reader sees them."""
    found = tokens(text)
    return [
        "".join(child.content for child in found[i + 1].children or [])
        for i, token in enumerate(found)
        if token.type == "heading_open"
    ]


def list_items(text: str) -> list[str]:
    """The items of the lists as a reader sees them."""
    items, inside = [], False
    for token in tokens(text):
        if token.type == "list_item_open":
            items.append("")
        inside = token.type == "list_item_open" or (inside and token.type != "list_item_close")
        if inside and token.type in {"text", "text_special"}:
            items[-1] += token.content
    return items


def visible(text: str) -> str:
    """All text that a reader sees, single-spaced."""
    return " ".join(" ".join(t.content for t in tokens(text) if t.type in {"text", "text_special"}).split())


def test_the_hubs_own_reader_understands_the_metadata() -> None:
    from huggingface_hub import ModelCard as HubCard

    data: Any = HubCard(FULL.render()).data
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.library_name == "dialogkit"
    assert data.pipeline_tag == "text-generation"
    assert data.base_model == ["owner/base"]
    assert data.tags == ["dialogue", "pdp"]
    assert data.datasets == ["topical-chat", "everyday-exchanges"], "only what was trained on"
    assert data.model_name == "Small talker"
    results = [
        (r.metric_name, r.metric_value, r.dataset_name, r.dataset_split, r.task_type)
        for r in data.eval_results
    ]
    assert results == [
        ("perplexity", 31.25, "Topical-Chat", "held-out", "text-generation"),
        ("distinct-2", 0.4321, "Topical-Chat", "held-out", "text-generation"),
        ("recall@1", 0.5, "DailyDialog", "test", "text-generation"),
    ]


def test_the_page_says_everything_the_card_holds() -> None:
    text = visible(FULL.render())
    for said in (
        "Small talker",
        "Decoder-only transformer (PDP windows)",
        "It talks.",
        "It is small.",
        "CC-BY-NC-SA-4.0",
        "31.25",
        "0.432 ± 0.012 (standard deviation)",
        "0.500 ± 0.020 (95 % interval, half)",
        "86",
        "3.11.7",
        "Knows nothing.",
        "Not for advice.",
        "Hello, who are you?",
        "I am a friend.",
        "one GPU",
        "1 h 7 min",
    ):
        assert said in text
    assert headings(FULL.render()) == [
        "Small talker", "Data", "Results", "Sample outputs", "Limits", "Reproduction"
    ]  # fmt: skip
    fences = [t for t in tokens(FULL.render()) if t.type == "fence"]
    assert [(t.info, t.content) for t in fences] == [("bash", "python scripts/train_embedded.py --seed 7\n")]
    tables = [t for t in tokens(FULL.render()) if t.type == "table_open"]
    assert len(tables) == 5


def test_what_is_not_known_is_said_to_be_so() -> None:
    text = ModelCard(title="T", method="m", summary="s", licence="MIT", versions={}).render()
    seen = visible(text)
    assert seen.count("not stated") == 3 and "Not stated." in seen
    assert "No data set was used." in seen and "Nothing was measured." in seen
    assert "Sample outputs" not in headings(text)
    assert yaml.safe_load(text.split("---")[1])["license"] == "mit"


def test_a_licence_the_hub_does_not_know_is_named_as_other() -> None:
    from huggingface_hub import ModelCard as HubCard

    data: Any = HubCard(replace(FULL, licence="My Licence 2").render()).data
    assert data.license == "other" and data.license_name == "my-licence-2"


def test_the_same_card_renders_to_the_same_text() -> None:
    assert FULL.render() == FULL.render()


def test_versions_are_collected_and_belong_to_the_running_environment() -> None:
    import platform

    import numpy

    versions = collect_versions()
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == numpy.__version__
    assert "torch" in versions
    assert ModelCard(title="T", method="m", summary="s", licence="MIT").versions == versions


# Text that stays text ---------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden -->",
    "&lt;b&gt;",
    "[click](javascript:alert(1))",
    "![pixel](http://example.org/x.png)",
    "<http://example.org>",
    "# Heading",
    "text\n# Heading",
    "text\n===",
    "text\n\n---\n\nmore",
    "---\nlicense: mit\n---",
    "\n---\n",
    "a\r\n---\rb",
    "a\u2028---\u2029b",
    "x: y: z",
    "{a: b}",
    "- item",
    "1. item",
    "2) item",
    "> quote",
    "| a | b |",
    "`code` and ``` fence",
    "```\n<script>\n```",
    "~~~",
    "**bold** _it_ ~~gone~~",
    "\\<b>",
    "    indented code",
    "\ttab",
    "[ref]: http://example.org",
    "{{ 7 * 7 }} {% for x in y %}",
    "!!python/object/apply:os.system [ls]",
    "nul \0 bell \a escape \x1b[31m",
    "lone \ud800 surrogate",
    "null",
    "yes",
    "1.5",
    "$x$ and $$y$$",
    "'quotes\" and `ticks`",
    "ümläut 日本語 🎉",
    "* * *",
    "+ plus",
    ":-- | --:",
    "#",
]


def everywhere(text: str) -> ModelCard:
    """A card that holds the text in every place that takes text."""
    return ModelCard(
        title=f"t {text}",
        method=f"m {text}",
        summary=f"s {text}",
        licence="MIT",
        data=(DataUse(text, text, text),),
        metrics=(Metric(f"q {text}", 1.0, f"d {text}", text, spread=0.1, spread_kind=text, unit=text),),
        seed=1,
        versions={text: text},
        limits=(text, text),
        samples=(Sample(text, text),),
        command=text,
        hardware=text,
        tags=(f"tag {text}",),
        base_models=(f"base {text}",),
    )


# All that the template uses.
_PAIRS = ("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item")
ALLOWED = {"inline", "text", "text_special", "fence"}
ALLOWED |= {f"{name}_{end}" for name in _PAIRS for end in ("open", "close")}


def plain(text: str) -> str:
    """What must be seen of a text: one line, without control characters."""
    text = text.encode("utf-8", "replace").decode()
    text = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029\t]", " ", text)
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufeff\ufffe\uffff]", "", text).split())


def check_everywhere(text: str) -> None:
    from huggingface_hub import ModelCard as HubCard

    rendered = everywhere(text).render()
    rendered.encode("utf-8")
    # The metadata end where they should and hold the text as it is.
    data: Any = HubCard(rendered).data
    assert data.license == "mit" and data.library_name == "dialogkit"
    assert data.model_name == plain(f"t {text}")
    assert data.tags == [plain(f"tag {text}")]
    assert data.eval_results[0].dataset_name == plain(f"d {text}")
    # The page has the template's structure and no other.
    found = tokens(rendered)
    assert {token.type for token in found} <= ALLOWED
    assert headings(rendered)[1:] == ["Data", "Results", "Sample outputs", "Limits", "Reproduction"]
    assert sum(token.type == "list_item_open" for token in found) == 2
    assert sum(token.type == "table_open" for token in found) == 5
    assert sum(token.type == "fence" for token in found) == (1 if text else 0)
    assert sum(token.type == "tr_open" for token in found) == 1 + 8 + 2 + 2 + 2 + 2
    # And shows the text.
    assert headings(rendered)[0] == plain(f"t {text}")
    assert list_items(rendered) == [plain(text)] * 2


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_breaks_neither_metadata_nor_page(text: str) -> None:
    check_everywhere(text)


@given(
    text=st.text(
        st.sampled_from("ab1 \n\r\t<>&`~*_#-=+|[]()!\\:.'\"{}%$\x00\x1c\x85\u2028\ud800é"), max_size=24
    )
)
@settings(max_examples=60, deadline=None)
def test_any_text_breaks_neither_metadata_nor_page(text: str) -> None:
    check_everywhere(text)


@given(text=st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_unicode_text_breaks_neither_metadata_nor_page(text: str) -> None:
    check_everywhere(text)


def test_a_command_keeps_its_lines_inside_its_fence() -> None:
    command = "python a.py \\\n  --x '```'\n<b>"
    (fence,) = [t for t in tokens(replace(FULL, command=command).render()) if t.type == "fence"]
    assert fence.content == command + "\n"


# Bad values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["title", "method", "summary", "licence"])
def test_what_a_card_cannot_do_without(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} of a ModelCard is empty"):
        replace(FULL, **{field: " \n"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{field} of a ModelCard must be text, got int"):
        replace(FULL, **{field: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["limits", "languages", "tags", "base_models"])
def test_a_word_is_not_a_tuple_of_words(field: str) -> None:
    with pytest.raises(TypeError, match=f"{field} of a ModelCard is a str"):
        replace(FULL, **{field: "en"})  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_a_training_time_is_a_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="training_seconds"):
        replace(FULL, training_seconds=seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": math.nan}, "value of the metric 'm' is nan"),
        ({"value": math.inf}, "value of the metric 'm' is inf"),
        ({"spread": -0.1}, "spread of the metric 'm' is -0.1"),
        ({"spread": math.nan}, "spread of the metric 'm' is nan"),
        ({"n": 0}, "n of the metric 'm' is 0"),
        ({"name": ""}, "name of a Metric is empty"),
        ({"data": ""}, "data of a Metric is empty"),
    ],
)
def test_a_metric_is_a_figure_with_a_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(Metric("m", 1.0, "d"), **change)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("m", 0.123456, "d"), "0.1235"),
        (Metric("m", 123456.0, "d", unit="tokens/s"), "1.235e+05 tokens/s"),
        (Metric("m", 31.234, "d", spread=0.41), "31.23 ± 0.41 (standard deviation)"),
        (Metric("m", 31.234, "d", spread=12.0), "31 ± 12 (standard deviation)"),
        (Metric("m", 0.5, "d", spread=0.0), "0.5000 ± 0.0000 (standard deviation)"),
    ],
)
def test_a_figure_shows_no_more_digits_than_its_spread_allows(metric: Metric, text: str) -> None:
    assert metric.text() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (36_610, "10 h 10 min")],
)
def test_a_duration_is_readable(seconds: float, text: str) -> None:
    assert f"Training time {text}" in visible(replace(FULL, training_seconds=seconds).render())
