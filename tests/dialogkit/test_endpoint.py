"""Language models behind a server: against a real one on the loopback interface."""

import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai")

from dialogkit.generation import EndpointError, EndpointLM, GenerationConfig, LanguageModel

REPLIES = ["Hello there, friend.\nUser: what?", " Aye, the sea \N{WAVING HAND SIGN} calls.", "No."]
MESSAGES = [{"role": "system", "content": "You are Bob."}, {"role": "user", "content": "Who are you?"}]


def pieces(text):
    """Tokens of the server's model: words with the space before them, and single other characters."""
    return re.findall(r" ?\w+|\W", text)


def score(token):
    return -0.25 * len(token)


class Server(ThreadingHTTPServer):
    """Answers with `REPLIES` in turn, from the one that the seed names on."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.most_choices = 100
        self.reports_scores = True
        self.reports_stop_reason = False
        self.echoes = True
        self.failures = []  # (status, body) of the next answers
        self.delay = 0.0
        self.together = None  # requests that wait for each other
        self.cut_stream = False
        self.body = None

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of a test."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {key.lower(): value for key, value in self.headers.items()}
        server.requests.append((self.path, body, headers))
        time.sleep(server.delay)
        if server.together is not None:
            server.together.wait(timeout=20)
        if server.failures:
            status, message = server.failures.pop(0)
            return self.answer(status, {"error": {"message": message}})
        if server.body is not None:
            return self.answer(200, server.body)
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            return self.answer(404, {"error": {"message": "no such path"}})
        if body.get("echo"):
            if not server.echoes:
                return self.answer(400, {"error": {"message": "echo is not supported"}})
            tokens = ["<s>", *pieces(body["prompt"])]
            values = [None, *map(score, tokens[1:])]
            report = {"tokens": tokens, "token_logprobs": values}
            return self.answer(200, self.wrap(chat, [{"text": body["prompt"], "logprobs": report}]))
        count = min(body.get("n", 1), server.most_choices)
        choices = [self.choice(chat, body, body.get("seed", 0) + i, i) for i in range(count)]
        if body.get("stream"):
            return self.stream(chat, choices[0])
        return self.answer(200, self.wrap(chat, choices))

    def choice(self, chat, body, seed, index):
        text, reason, matched = REPLIES[seed % len(REPLIES)], "stop", None
        tokens = pieces(text)
        for stop in body.get("stop", []):
            if stop in text:
                text, matched = text[: text.index(stop)], stop
        if len(pieces(text)) > body["max_tokens"]:
            text, reason = "".join(pieces(text)[: body["max_tokens"]]), "length"
        choice = {"index": index, "finish_reason": reason, "logprobs": None}
        if self.server.reports_stop_reason:
            choice["stop_reason"] = matched
        used = tokens[: len(pieces(text)) + 1]  # the token that ended it is reported too
        if self.server.reports_scores and chat:
            choice["logprobs"] = {"content": [{"token": t, "logprob": score(t)} for t in used]}
        elif self.server.reports_scores:
            choice["logprobs"] = {"tokens": used, "token_logprobs": [score(t) for t in used]}
        return choice | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text})

    def wrap(self, chat, choices):
        return {"id": "1", "object": "chat.completion" if chat else "text_completion", "choices": choices}

    def answer(self, status, content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, chat, choice):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        text = choice["message"]["content"] if chat else choice["text"]
        sent = [text[at : at + 3] for at in range(0, len(text), 3)]
        events = [{"delta": {"role": "assistant"}} if chat else {"text": ""}]
        events += [{"delta": {"content": part}} if chat else {"text": part} for part in sent]
        events = [event | {"index": 0, "finish_reason": None} for event in events]
        events.append(({"delta": {}} if chat else {"text": ""}) | {"finish_reason": choice["finish_reason"]})
        lines = [json.dumps({"choices": [event]}) for event in events]
        lines.insert(1, json.dumps({"choices": [], "usage": {"total_tokens": 3}}))
        for line in lines[: 3 if self.server.cut_stream else None]:
            self.wfile.write(f"data: {line}\n\n".encode())
            self.wfile.flush()
        if not self.server.cut_stream:
            self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def lm(server):
    return EndpointLM(server.url, "tiny", max_retries=0)


class TestRequests:
    def test_plain_prompts_go_to_completions_with_all_settings(self, server):
        lm = EndpointLM(server.url + "/", "tiny", api_key="secret")
        config = GenerationConfig(
            max_new_tokens=9,
            temperature=0.5,
            top_k=7,
            top_p=0.9,
            num_candidates=2,
            repetition_penalty=1.1,
            stop=("\n", "a", "b", "c", "d"),
        )
        lm.generate(["User: hello\nBob:"], config=config, seed=5)
        ((path, body, headers),) = server.requests
        assert path == "/v1/completions"
        assert body == {
            "model": "tiny",
            "prompt": "User: hello\nBob:",
            "n": 2,
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "repetition_penalty": 1.1,
            "stop": ["\n", "a", "b", "c"],
            "seed": 5,
            "logprobs": 1,
        }
        assert headers["authorization"] == "Bearer secret"

    def test_messages_go_to_chat_completions(self, server, lm, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "mine")
        lm.generate([MESSAGES], config=GenerationConfig(num_candidates=1, do_sample=False))
        ((path, body, headers),) = server.requests
        assert path == "/v1/chat/completions"
        assert body == {
            "model": "tiny",
            "messages": MESSAGES,
            "n": 1,
            "max_tokens": 64,
            "temperature": 0.0,
            "logprobs": True,
        }
        assert "mine" not in headers["authorization"]

    def test_extensions_can_be_left_out(self, server):
        lm = EndpointLM(server.url, "tiny", extensions=())
        lm.generate(["hello"], config=GenerationConfig(num_candidates=1, repetition_penalty=1.1))
        assert not {"top_k", "repetition_penalty"} & set(server.requests[0][1])

    def test_several_prompts_are_asked_at_the_same_time_and_answered_in_order(self, server, lm):
        server.together = threading.Barrier(4)
        prompts = [f"{number}" for number in range(8)]
        answers = lm.generate(prompts, config=GenerationConfig(num_candidates=1), seed=0)
        assert len(answers) == 8
        assert sorted(body["prompt"] for _, body, _ in server.requests) == prompts
        assert not server.together.broken

    @pytest.mark.parametrize(
        ("setting", "error"),
        [
            ({"base_url": "127.0.0.1:8000"}, "base_url must begin with http"),
            ({"timeout": 0}, "timeout must be above 0 seconds, got 0"),
            ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
            ({"extensions": ("min_p",)}, "extensions may hold"),
        ],
    )
    def test_wrong_arguments(self, setting, error):
        with pytest.raises(ValueError, match=error):
            EndpointLM(**({"base_url": "http://127.0.0.1/v1", "model": "tiny"} | setting))

    def test_wrong_prompts(self, server):
        lm = EndpointLM(server.url, "tiny", supports_chat=False)
        config = GenerationConfig()
        with pytest.raises(ValueError, match="supports_chat is off for 'tiny'"):
            lm.generate([MESSAGES], config=config)
        for empty in ("", []):
            with pytest.raises(ValueError, match="prompt must not be empty"):
                next(lm.stream(empty, config=config))
        with pytest.raises(TypeError, match="single string"):
            lm.generate("hello", config=config)
        assert server.requests == []

    def test_it_is_a_language_model(self, lm):
        assert isinstance(lm, LanguageModel)
        assert (lm.name, lm.max_length, lm.supports_chat) == ("tiny", None, True)
        assert lm.count_tokens("abcd") == 2
        assert lm.count_tokens([{"role": "user", "content": "abcd"}]) == 6

    def test_without_the_client_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "openai", None)
        with pytest.raises(ImportError, match=r"pip install 'dialogkit-robustkit\[endpoint\]'"):
            EndpointLM("http://127.0.0.1/v1", "tiny")


class TestCandidates:
    @pytest.mark.parametrize("prompt", ["hello", MESSAGES])
    def test_texts_scores_and_ends(self, lm, prompt):
        config = GenerationConfig(num_candidates=3, max_new_tokens=6, stop=("\n", "User:"))
        first, second, third = lm.generate([prompt], config=config, seed=0)[0]
        assert (first.text, first.finish_reason) == ("Hello there, friend.", "stop")
        tokens = ["Hello", " there", ",", " friend", "."]
        assert first.num_tokens == len(tokens)
        assert first.sum_logprob == pytest.approx(sum(map(score, tokens)))
        assert first.logprob == pytest.approx(first.sum_logprob / len(tokens))
        assert (second.text, second.finish_reason) == ("Aye, the sea \N{WAVING HAND SIGN}", "length")
        assert third.text == "No."

    def test_all_stop_strings_are_applied_also_those_that_are_not_sent(self, server, lm):
        config = GenerationConfig(num_candidates=1, stop=("\n", "#", "%", "$", " there"))
        (candidate,) = lm.generate(["hello"], config=config, seed=0)[0]
        assert " there" not in server.requests[0][1]["stop"]
        assert (candidate.text, candidate.num_tokens, candidate.finish_reason) == ("Hello", 1, "stop")
        assert candidate.sum_logprob == score("Hello")

    @pytest.mark.parametrize("reports", [False, True])
    def test_how_it_ended_is_known_from_servers_that_say_it(self, server, lm, reports):
        server.reports_stop_reason = reports
        config = GenerationConfig(num_candidates=2, stop=("\n",))
        stopped, ended = lm.generate(["hello"], config=config, seed=0)[0]
        assert stopped.finish_reason == "stop"
        assert ended.finish_reason == ("eos" if reports else "stop")
        (free,) = lm.generate(["hello"], config=GenerationConfig(num_candidates=1), seed=2)[0]
        assert free.finish_reason == "eos"

    def test_servers_without_scores(self, server, lm):
        server.reports_scores = False
        for prompt in ("hello", MESSAGES):
            (candidate,) = lm.generate([prompt], config=GenerationConfig(num_candidates=1), seed=2)[0]
            assert candidate.text == "No."
            assert math.isnan(candidate.logprob)
            assert math.isnan(candidate.sum_logprob)
            assert candidate.num_tokens == 0

    def test_tokens_that_do_not_add_up_to_the_text_all_count(self, server, lm):
        report = {"tokens": ["bytes:\\xf0", "bytes:\\x9f"], "token_logprobs": [-1.0, -2.0]}
        choice = {"text": " \N{WAVING HAND SIGN}", "finish_reason": "length", "logprobs": report}
        server.body = {"choices": [choice]}
        (candidate,) = lm.generate(["hello"], config=GenerationConfig(num_candidates=1))[0]
        assert (candidate.text, candidate.sum_logprob, candidate.num_tokens) == (
            "\N{WAVING HAND SIGN}",
            -3.0,
            2,
        )

    def test_missing_choices_are_asked_for_with_the_next_seeds(self, server, lm):
        server.most_choices = 2
        candidates = lm.generate(["hello"], config=GenerationConfig(num_candidates=5, stop=("\n",)), seed=1)[
            0
        ]
        assert [(body["n"], body["seed"]) for _, body, _ in server.requests] == [(5, 1), (3, 3), (1, 5)]
        expected = [REPLIES[(1 + i) % 3].split("\n")[0].strip() for i in range(5)]
        assert [candidate.text for candidate in candidates] == expected


class TestStream:
    @pytest.mark.parametrize("prompt", ["hello", MESSAGES])
    @pytest.mark.parametrize("seed", range(3))
    def test_p9_joined_stream_equals_the_reply(self, lm, prompt, seed):
        config = GenerationConfig(num_candidates=1, stop=("\n", "%", "#", "$", "friend."))
        streamed = list(lm.stream(prompt, config=config, seed=seed))
        drawn = lm.generate([prompt], config=config, seed=seed)[0][0]
        assert "".join(streamed) == drawn.text
        assert all(streamed)
        with pytest.raises(StopIteration) as end:
            stream = lm.stream(prompt, config=config, seed=seed)
            while True:
                next(stream)
        assert (end.value.value.text, end.value.value.finish_reason) == (drawn.text, drawn.finish_reason)

    def test_p8_a_stop_string_that_the_server_does_not_know_is_never_shown(self, server, lm):
        config = GenerationConfig(stop=("%", "#", "$", "!", "\nUser:"))
        shown = list(lm.stream("hello", config=config, seed=0))
        assert server.requests[0][1]["stop"] == ["%", "#", "$", "!"]
        assert len(shown) > 3
        assert "".join(shown) == "Hello there, friend."

    def test_a_stream_that_breaks_off_is_an_error(self, server, lm):
        server.cut_stream = True
        stream = lm.stream("hello", config=GenerationConfig(), seed=0)
        assert next(stream)
        with pytest.raises(EndpointError, match="ended its stream before the reply was complete") as caught:
            list(stream)
        assert caught.value.url == f"{server.url}/completions"


class TestLikelihood:
    def test_the_responses_tokens_are_summed(self, server, lm):
        prompts = ["User: hello\nBob:", "User: hello\nBob:"]
        scores = lm.log_likelihood(prompts, [" Hello there.", " No."])
        assert [likelihood.num_tokens for likelihood in scores] == [3, 2]
        assert scores[0].sum_logprob == pytest.approx(score(" Hello") + score(" there") + score("."))
        assert scores[1].logprob == pytest.approx((score(" No") + score(".")) / 2)
        bodies = {body["prompt"]: body for _, body, _ in server.requests}
        body = bodies["User: hello\nBob: No."]
        assert (body["max_tokens"], body["echo"], body["logprobs"]) == (0, True, 1)

    def test_a_token_across_the_boundary_belongs_to_the_response(self, lm):
        (likelihood,) = lm.log_likelihood(["hel"], ["lo you"])
        assert likelihood.num_tokens == 2
        assert likelihood.sum_logprob == pytest.approx(score("hello") + score(" you"))

    def test_servers_that_do_not_echo(self, server, lm):
        server.echoes = False
        with pytest.raises(NotImplementedError, match=r"/v1/completions does not score given text .*400"):
            lm.log_likelihood(["hello"], [" you"])
        choice = {"text": "Something else", "finish_reason": "stop", "logprobs": None}
        server.body = {"choices": [choice]}
        with pytest.raises(NotImplementedError, match="does not score given text"):
            lm.log_likelihood(["hello"], [" you"])

    def test_messages_cannot_be_scored(self, lm):
        with pytest.raises(NotImplementedError, match="plain prompts only"):
            lm.log_likelihood([MESSAGES], [" you"])

    def test_wrong_input(self, lm):
        with pytest.raises(ValueError, match="responses must not be empty"):
            lm.log_likelihood(["hello"], [""])
        with pytest.raises(ValueError, match="as many, got 1 and 2"):
            lm.log_likelihood(["hello"], ["a", "b"])
        with pytest.raises(TypeError, match="single string"):
            lm.log_likelihood("hello", "you")


class TestErrors:
    CONFIG = GenerationConfig(num_candidates=1)

    @pytest.mark.parametrize(
        ("status", "message"), [(400, "unknown field top_k"), (404, "no model"), (500, "x")]
    )
    def test_refused_requests_name_address_status_and_reason(self, server, lm, status, message):
        server.failures = [(status, message)]
        with pytest.raises(EndpointError) as caught:
            lm.generate(["hello"], config=self.CONFIG)
        assert str(caught.value).startswith(f"{server.url}/completions answered {status}")
        assert message in str(caught.value)
        assert (caught.value.status, caught.value.url) == (status, f"{server.url}/completions")
        server.failures = [(status, message)]
        with pytest.raises(EndpointError, match=f"chat/completions answered {status}"):
            list(lm.stream(MESSAGES, config=self.CONFIG))

    def test_passing_failures_are_tried_again(self, server):
        server.failures = [(503, "loading"), (429, "busy")]
        lm = EndpointLM(server.url, "tiny", max_retries=2)
        assert lm.generate(["hello"], config=self.CONFIG, seed=2)[0][0].text == "No."
        assert len(server.requests) == 3

    def test_time_runs_out(self, server):
        server.delay = 0.5
        lm = EndpointLM(server.url, "tiny", timeout=0.1, max_retries=0)
        with pytest.raises(EndpointError, match=r"/completions did not answer within 0\.1 s"):
            lm.generate(["hello"], config=self.CONFIG)

    def test_nobody_listens(self, server):
        server.server_close()
        lm = EndpointLM(server.url, "tiny", max_retries=0)
        with pytest.raises(EndpointError, match="/completions cannot be reached") as caught:
            lm.generate(["hello", "you"], config=self.CONFIG)
        assert caught.value.status is None

    @pytest.mark.parametrize("body", [{"choices": []}, {"hello": 1}, b"<html>", b"[]"])
    def test_answers_that_are_no_completions(self, server, lm, body):
        server.body = body
        with pytest.raises(EndpointError, match=r"/completions answered with"):
            lm.generate(["hello"], config=self.CONFIG)
