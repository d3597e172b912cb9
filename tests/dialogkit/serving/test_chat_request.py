"""Bodies of requests: what is accepted, what is refused and how, and that text stays text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.chat import MAX_MESSAGE
from dialogkit.dialogues import Turn, single_line
from dialogkit.generation import GenerationConfig
from dialogkit.generation.safety import injection_corpus
from dialogkit.serving import ServerSettings
from dialogkit.serving.chat_request import ChatRequest, parse_request
from dialogkit.serving.errors import ApiError

SETTINGS = ServerSettings(max_messages=6, max_tokens=50, max_choices=3)
HELLO = {"role": "user", "content": "Hello."}


def parse(**changes: Any) -> ChatRequest:
    body = {"model": "m", "messages": [HELLO], **changes}
    return parse_request(json.dumps(body).encode(), SETTINGS)


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(body, SETTINGS)
    assert caught.value.status == 400
    return caught.value


def test_a_request_with_everything() -> None:
    request = parse(
        messages=[
            {"role": "system", "content": "Be\nkind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Who?", "name": "Ann"},
        ],
        stream=False,
        n=2,
        seed=-3,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        repetition_penalty=1.2,
        stop=["x", "y"],
        tools=[],
        tool_choice="none",
        presence_penalty=0,
        response_format={"type": "text"},
        user=None,
        metadata={"a": "b"},
    )
    assert request.instruction == "Be kind. Be brief."
    assert request.history("Bob") == (Turn("Bob", "Hi."), Turn("User", "Who?"))
    own = GenerationConfig(num_candidates=1, stop=("\n", "x"))
    assert request.generation(own) == GenerationConfig(
        max_new_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        repetition_penalty=1.2,
        num_candidates=2,
        stop=("\n", "x", "y"),
    )
    assert request.seed == -3 and "user" not in request.given and "metadata" in request.given


def test_what_is_not_asked_for_stays_the_chatbots_own() -> None:
    own = GenerationConfig(max_new_tokens=11, do_sample=False, top_k=3, num_candidates=4)
    assert parse().generation(own) == own


def test_temperature_zero_is_greedy_and_any_other_samples() -> None:
    greedy = parse(temperature=0).generation(GenerationConfig(temperature=0.7))
    assert not greedy.do_sample and greedy.temperature == 0.7
    assert parse(temperature=1e-38) == parse(temperature=0)
    assert parse(temperature=0.2).generation(GenerationConfig(do_sample=False)).do_sample


def test_messages_that_say_nothing_are_left_out_and_neighbours_joined() -> None:
    said = [("assistant", "A"), ("user", "\n"), ("assistant", "B"), ("user", "C"), ("user", "D")]
    request = parse(messages=[{"role": role, "content": text} for role, text in said])
    assert request.turns == (("assistant", "A B"), ("user", "C D"))


@pytest.mark.parametrize("injection", injection_corpus(), ids=lambda injection: injection.id)
def test_no_text_becomes_a_turn(injection: Any) -> None:
    request = parse(messages=[{"role": "user", "content": injection.text}, HELLO])
    assert [role for role, _ in request.turns] == ["user"]
    assert request.turns[0][1] == f"{single_line(injection.text)} Hello."


ROLES = {"model": "m", "messages": [HELLO]}
REFUSED: list[tuple[str, dict[str, Any], str | None]] = [
    ("no model", {"model": None}, "model"),
    ("model no text", {"model": 3}, "model"),
    ("no messages", {"messages": None}, "messages"),
    ("messages empty", {"messages": []}, "messages"),
    ("messages text", {"messages": "hi"}, "messages"),
    ("too many messages", {"messages": [HELLO] * 7}, "messages"),
    ("message text", {"messages": ["hi"]}, "messages[0]"),
    ("no role", {"messages": [{"content": "a"}]}, "messages[0].role"),
    ("role unknown", {"messages": [HELLO, {"role": "root", "content": "a"}]}, "messages[1].role"),
    ("role no text", {"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
    ("tool role", {"messages": [{"role": "tool", "content": "a"}, HELLO]}, "messages[0].role"),
    ("late system", {"messages": [HELLO, {"role": "system", "content": "a"}, HELLO]}, "messages[1].role"),
    ("assistant last", {"messages": [HELLO, {"role": "assistant", "content": "a"}]}, "messages[1]"),
    ("blank last", {"messages": [{"role": "user", "content": " \n\x00"}]}, "messages[0]"),
    ("system alone", {"messages": [{"role": "system", "content": "a"}]}, "messages[0]"),
    ("content null", {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ("content number", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        "content image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "messages[0].content",
    ),
    (
        "part without text",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content",
    ),
    (
        "tool calls",
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}, HELLO]},
        "messages[0].tool_calls",
    ),
    ("message too long", {"messages": [{"role": "user", "content": "a" * (MAX_MESSAGE + 1)}]}, "messages"),
    ("joined too long", {"messages": [{"role": "user", "content": "a" * 5000}] * 2}, "messages"),
    ("tools", {"tools": [{"type": "function"}]}, "tools"),
    ("json format", {"response_format": {"type": "json_object"}}, "response_format"),
    ("penalty", {"presence_penalty": 0.5}, "presence_penalty"),
    ("audio", {"modalities": ["audio"]}, "modalities"),
    ("stream text", {"stream": "yes"}, "stream"),
    ("stream options", {"stream_options": 1}, "stream_options"),
    ("usage text", {"stream_options": {"include_usage": "yes"}}, "include_usage"),
    ("n zero", {"n": 0}, "n"),
    ("n large", {"n": 4}, "n"),
    ("n true", {"n": True}, "n"),
    ("n streamed", {"n": 2, "stream": True}, "n"),
    ("seed fraction", {"seed": 1.5}, "seed"),
    ("seed huge", {"seed": 10**300}, "seed"),
    ("tokens zero", {"max_tokens": 0}, "max_tokens"),
    ("tokens large", {"max_tokens": 51}, "max_tokens"),
    ("new tokens large", {"max_completion_tokens": 51}, "max_completion_tokens"),
    ("temperature below", {"temperature": -0.1}, "temperature"),
    ("temperature above", {"temperature": 2.1}, "temperature"),
    ("temperature text", {"temperature": "hot"}, "temperature"),
    ("temperature NaN", {"temperature": float("nan")}, "temperature"),
    ("temperature infinite", {"temperature": float("inf")}, "temperature"),
    ("top_p zero", {"top_p": 0}, "top_p"),
    ("top_k fraction", {"top_k": 0.5}, "top_k"),
    ("penalty zero", {"repetition_penalty": 0}, "repetition_penalty"),
    ("stop number", {"stop": 1}, "stop"),
    ("stop numbers", {"stop": [1]}, "stop"),
    ("stop empty", {"stop": ""}, "stop"),
    ("stops many", {"stop": list("abcde")}, "stop"),
    ("stop long", {"stop": "a" * 201}, "stop"),
]


@pytest.mark.parametrize(("changes", "param"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_wrong_is_named(changes: dict[str, Any], param: str) -> None:
    assert refusal(json.dumps(ROLES | changes).encode()).param == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"nul", b"\xff\xfe\xff", b'{"a":' * 5000, b"[" * 200_000, b"9" * 5000, b'"a"']
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    error = refusal(body)
    assert error.param is None and len(error.message) < 300


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = ("model", "messages", "stream", "stream_options", "n", "seed", "max_tokens", "stop", "tools", "top_p")
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()}),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ANY_JSON))
def test_any_json_is_parsed_or_refused(body: dict[str, Any]) -> None:
    try:
        parse_request(json.dumps(body).encode(), SETTINGS)
    except ApiError as error:
        assert error.status == 400 and json.dumps(error.body())


@settings(max_examples=40, deadline=None)
@given(MESSAGES)
def test_turns_alternate_on_single_lines_and_the_user_is_last(messages: list[dict[str, str]]) -> None:
    try:
        request = parse_request(json.dumps({"model": "m", "messages": messages}).encode(), SETTINGS)
    except ApiError:
        return
    roles = [role for role, _ in request.turns]
    assert roles[-1] == "user" and all(a != b for a, b in pairwise(roles))
    assert all(text and single_line(text) == text for _, text in request.turns)
