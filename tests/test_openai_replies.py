"""What is read from an endpoint's replies: answers of every shape, and errors that show neither key nor prompt."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
import traceback
from http.client import parse_headers
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import Chat, TriesOnce, answer, ask, ask_in_turn, build, endpoint, error
from openai_server import OpenAIServer

from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import Request, Response

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.


SAID = b'{"choices": [%b], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
YES = b'{"message": {"content": "Yes"}, "finish_reason": "stop"}'


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"null", b"[]", b'"text"', b"{}", b'{"choices": null}', b'{"choices": {}}', b"\xff\xfe"]
    + [SAID % said for said in (b"null", b"{}", b'{"message": null}', b'{"message": {"content": ["a"]}}')]
    + [b"[" * 100_000, b'{"choices": ' * 100_000, b'{"choices": [' + b"9" * 5000 + b"]}"],
)
def test_a_reply_that_is_not_what_the_api_promises_is_garbage(body: bytes) -> None:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        failed = error(build(server, TriesOnce))
        assert (failed.kind, failed.trace.attempts) == (ErrorKind.GARBAGE, 1)


def replied(body: bytes, kind: type[OpenAIModel] = Chat, **reply: Any) -> Response:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1, **reply)]) as server:
        return answer(build(server, kind), "hello")


def test_of_ten_choices_the_first_is_the_answer() -> None:
    choices = b", ".join([YES, *[YES.replace(b"Yes", b"No")] * 9])
    assert replied(SAID % choices).text == "Yes"


def test_an_answer_may_hold_any_character_but_no_lone_surrogate() -> None:
    said = replied(SAID % YES.replace(b"Yes", rb"\u0000 \u001b[31m \ud800 \u2028"))
    assert said.text == "\x00 \x1b[31m \ufffd \u2028"


def test_a_model_that_declines_has_refused() -> None:
    declined = b'{"message": {"content": null, "refusal": "I cannot."}}'
    with OpenAIServer(faults=[Fault("reply", body=SAID % declined)]) as server:
        assert error(build(server)).kind == ErrorKind.REFUSED


@pytest.mark.parametrize("usage", ["null", "[]", "{}", '{"prompt_tokens": "3", "completion_tokens": -1}', "1e999"])
def test_a_usage_that_is_none_counts_no_tokens(usage: str) -> None:
    said = replied(f'{{"choices": [{YES.decode()}], "usage": {usage}}}'.encode())
    assert (said.text, said.prompt_tokens, said.completion_tokens) == ("Yes", 0, 0)


@pytest.mark.parametrize("reason", [b"null", b"7", b'{"a": 1}', b'""'])
def test_a_finish_reason_that_is_none_is_stop(reason: bytes) -> None:
    assert replied(SAID % YES.replace(b'"stop"', reason)).finish_reason == "stop"


def test_an_answer_of_50_megabytes_is_cut() -> None:
    body = SAID % YES.replace(b"Yes", b"word " * 10_000_000)
    said = replied(body)
    assert (said.text, said.finish_reason) == ("word " * 200_000, "length")


@pytest.mark.parametrize("fault", [Fault("endless", "hello"), Fault("reply", "hello", body=b" " * (64 * 2**20 + 1))])
def test_a_reply_beyond_64_mebibytes_is_dropped_and_not_asked_again(fault: Fault) -> None:
    with OpenAIServer(answer=str.upper, faults=[fault]) as server:
        failed, after = ask_in_turn(build(server), "hello", "and after")
        assert (failed.kind, failed.trace.attempts, after.text) == (ErrorKind.OVERSIZED, 1, "AND AFTER")
        assert "64 MiB" in failed.message
        assert server.sent_bytes < 128 * 2**20


def test_a_reply_whose_values_would_fill_the_memory_is_not_parsed() -> None:
    bomb = b'{"choices": [' + b"[]," * 1_500_000 + b"[]]}"
    with OpenAIServer(faults=[Fault("reply", body=bomb)]) as server:
        failed = error(build(server))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.OVERSIZED, 1)


class Raw(StreamRequestHandler):
    """Reads a request and sends bytes that are no reply, or half of one."""

    says: bytes

    def handle(self) -> None:
        self.rfile.readline()
        headers = parse_headers(self.rfile)
        self.rfile.read(int(headers["Content-Length"]))
        self.wfile.write(self.says)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (b"", ErrorKind.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", ErrorKind.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", ErrorKind.CONNECTION),
        (b"no HTTP at all\r\n\r\n", ErrorKind.GARBAGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", ErrorKind.GARBAGE),
    ],
    ids=["nothing", "half a body", "broken compression", "no HTTP", "an endless header"],
)
def test_half_a_reply_or_none_is_an_error_of_its_kind(says: bytes, kind: ErrorKind) -> None:
    handler = type("Handler", (Raw,), {"says": says})
    with ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        failed = error(build(f"http://127.0.0.1:{server.server_address[1]}/v1", TriesOnce))
        server.shutdown()
        thread.join()
    assert (failed.kind, failed.trace.attempts) == (kind, 1), failed


def test_a_model_that_is_dropped_closes_its_connections(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async def asked_and_dropped(server: OpenAIServer) -> None:
        await build(server).generate(Request("hello"))
        gc.collect()

    gc.collect()  # What earlier tests have left is not this test's.
    caplog.clear()
    recwarn.clear()
    with OpenAIServer() as server:
        asyncio.run(asked_and_dropped(server))
        answer(build(server), "hello")  # dropped when the loop has gone
        gc.collect()
    assert caplog.records == []
    assert [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)] == []


def test_large_replies_are_all_read() -> None:
    with OpenAIServer(answer=lambda prompt: prompt * 300_000) as server:
        responses = ask(build(server), *"abcdefgh")
    assert [response.text for response in responses] == [letter * 300_000 for letter in "abcdefgh"]


def test_a_compressed_reply_is_read() -> None:
    assert replied(gzip.compress(SAID % YES), headers=(("Content-Encoding", "gzip"),)).text == "Yes"


def test_a_prompt_of_a_million_characters_is_answered() -> None:
    with OpenAIServer(answer=lambda prompt: str(len(prompt))) as server:
        assert answer(build(server), "\u00b5" * 1_000_000).text == "1000000"


def test_a_redirect_is_not_followed() -> None:
    with OpenAIServer() as other:
        away = Fault("reply", status=307, headers=(("Location", f"{other.base_url}/chat/completions"),))
        with OpenAIServer(faults=[away]) as server:
            failed = error(build(server))
        assert (failed.kind, other.requests) == (ErrorKind.NOT_FOUND, [])
        assert other.base_url in failed.message


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer(answer=str.upper) as proxy:
        monkeypatch.setenv("http_proxy", proxy.azure_base)
        monkeypatch.setenv("no_proxy", "")
        assert answer(build("http://elsewhere.example/v1"), "hello").text == "HELLO"


@pytest.mark.parametrize(
    "error_body",
    [
        b'{"error": {"message": "This model\'s maximum context length is 4096 tokens.", "code": 400}}',
        b'{"error": {"message": "the request exceeds the available context size", "type": "x"}}',
    ],
    ids=["vllm", "llama.cpp"],
)
def test_other_servers_words_for_too_long_are_understood(error_body: bytes) -> None:
    with OpenAIServer(faults=[Fault("reply", status=400, body=error_body)]) as server:
        assert error(build(server)).kind == ErrorKind.TOO_LONG


# Errors show neither key nor prompt


@pytest.mark.parametrize("padding", [0, 445, 600], ids=["at the start", "where the message is cut", "after the cut"])
def test_an_endpoint_that_echoes_the_key_does_not_put_it_into_the_error(
    monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789-0123456789")
    with endpoint(401, "x" * padding + " Incorrect key {key}.") as (url, _):
        failed = error(build(url))
    assert failed.message.startswith("HTTP 401 invalid: ")
    assert "sk-secret" not in "".join([repr(failed), *traceback.format_exception(failed)])


PROMPT = "Is it so that the quick brown fox jumps\nover  the lazy dog, and if it is, why does it do so at all?"


@pytest.mark.parametrize("around", ["{prompt}", "{prompt}{prompt}", "x{prompt}", "{key}{prompt}{key}"])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 10_000, "a" * 1000])
def test_an_endpoint_that_echoes_the_prompt_does_not_put_it_into_the_error(
    monkeypatch: pytest.MonkeyPatch, around: str, prompt: str
) -> None:
    body = json.dumps({"error": {"message": f"Not: {around} !", "code": "bad"}}).encode()
    with OpenAIServer(key="sk-secret-0123456789", faults=[Fault("reply", status=400, body=body)]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        failed = error(build(server), prompt)
    shown = failed.message
    assert shown.startswith("HTTP 400 bad: Not: ")
    assert "sk-secret" not in shown
    line = " ".join(prompt.split())
    assert not [start for start in range(len(shown) - 39) if shown[start : start + 40] in line]


def test_what_follows_an_echo_is_shown() -> None:
    body = json.dumps({"error": {"message": "The prompt '{prompt}' is not allowed.", "code": "bad"}}).encode()
    with OpenAIServer(faults=[Fault("reply", status=400, body=body)]) as server:
        failed = error(build(server), PROMPT)
    assert failed.message == "HTTP 400 bad: The prompt '[prompt]' is not allowed."


def test_control_characters_of_an_endpoint_s_words_are_shown_as_escapes() -> None:
    body = rb'{"error": {"message": "a\u001b[31mred\u0000\u202e\n\ud800", "code": "\u0007"}}'
    with OpenAIServer(faults=[Fault("reply", status=400, body=body)]) as server:
        failed = error(build(server))
    assert failed.message == r"HTTP 400 \x07: a\x1b[31mred\x00\u202e \ud800"
