"""Serving: the official client against models on Ray Serve, clients that go away, a benchmark of what is served."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import KEY
from faults import Fault
from openai_server import OpenAIServer
from waiting import wait_until

from rambla_ray.config.load import load_served
from rambla_ray.errors import UserError
from rambla_ray.run.placement import Cluster, NodeResources
from rambla_ray.serving import gateway
from rambla_ray.serving.limits import Limits

REPO = Path(__file__).resolve().parent.parent
SERVE_KEY = KEY  # as the workers of the cluster know it, which ask what is served
HELLO: list[Any] = [{"role": "user", "content": "one two three"}]
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """What is served, and the endpoint that one of its models is behind."""

    url: str
    upstream: OpenAIServer

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=SERVE_KEY, max_retries=0)

    def raw(self, method: str, path: str, body: bytes = b"", key: str = SERVE_KEY) -> tuple[int, Any]:
        """Status and error of a request that no client would send."""
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read()).get("error")
        finally:
            connection.close()


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Three models behind one gateway: a mock that says yes, and a chat and an embeddings API behind it."""
    from rambla_ray.serving import deployment as serving

    folder = tmp_path_factory.mktemp("served")
    (folder / "model").mkdir()
    with OpenAIServer(answer=lambda prompt: f"heard: {prompt}") as upstream:
        api = {"api_type": "openai", "base_url": upstream.base_url, "engine": "fake"}
        pool, rate = {"max_concurrency": 1}, {"give_up_after_s": 0.2}
        models = {
            "parrot": {"name": "mock", "params": {"context_tokens": 1000, "behaviour": "constant"}},
            "relay": {"name": "openai_chat", "params": {**api, "temperature": 0}, "pool": pool, "rate": rate},
            "vectors": {"name": "openai_embeddings", "params": api},
        }
        for name, model in models.items():
            (folder / "model" / f"{name}.yaml").write_text(json.dumps(model))
        config = load_served([f"model={','.join(models)}", f"conf_dir={folder}"])
        with gateway.bind("127.0.0.1", 0) as bound:
            port = bound.getsockname()[1]
            with serving.deployed(config, port, print) as served:
                server = gateway.server(gateway.Gateway(served, SERVE_KEY).app, bound)
                thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
                thread.start()
                yield Endpoint(f"http://127.0.0.1:{port}/v1", upstream)
                server.should_exit = True
                thread.join()


def test_the_models_are_listed(endpoint):
    assert [model.id for model in endpoint.client.models.list()] == ["parrot", "relay", "vectors"]
    assert endpoint.client.models.retrieve("relay").id == "relay"


def test_a_chat_is_answered(endpoint):
    completion = endpoint.client.chat.completions.create(model="parrot", messages=HELLO)
    choice, usage = completion.choices[0], completion.usage
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "yes", "stop")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


def test_a_chat_comes_as_a_stream(endpoint):
    stream = endpoint.client.chat.completions.create(
        model="relay", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "heard: one two three"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


def test_a_prompt_is_continued_piece_by_piece(endpoint):
    request: dict[str, Any] = {"model": "parrot", "prompt": "one two three four", "max_tokens": 3}
    whole = endpoint.client.completions.create(**request)
    pieces = [chunk.choices[0] for chunk in endpoint.client.completions.create(**request, stream=True)]
    assert whole.choices[0].text == "one two thr" == "".join(piece.text for piece in pieces)
    assert whole.choices[0].finish_reason == "length" == pieces[-1].finish_reason
    assert len(pieces) == 4


def test_many_clients_at_once_get_their_own_answers(endpoint):
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=SERVE_KEY, max_retries=0) as client:
            prompts = [f"number {number}" for number in range(40)]
            calls = [client.completions.create(model="parrot", prompt=prompt) for prompt in prompts]
            return [completion.choices[0].text for completion in await asyncio.gather(*calls)]

    assert asyncio.run(all_of_them()) == [f"number {number}" for number in range(40)]


def test_the_field_model_picks_and_options_go_through(endpoint):
    endpoint.upstream.reset()
    turns: list[Any] = [{"role": "system", "content": "Be brief."}, *HELLO]
    completion = endpoint.client.chat.completions.create(model="relay", messages=turns, max_tokens=3)
    assert completion.choices[0].message.content == "heard: Be brief."
    assert completion.choices[0].finish_reason == "length"
    assert [record.model for record in endpoint.upstream.requests] == ["fake"]


def test_embeddings_are_those_of_the_model(endpoint):
    direct = openai.OpenAI(base_url=endpoint.upstream.base_url, api_key=endpoint.upstream.key)
    texts = ["a", "b c"]
    expected = direct.embeddings.create(model="fake", input=texts)
    made = endpoint.client.embeddings.create(model="vectors", input=texts)  # packed, which is the client's default
    assert [item.embedding for item in made.data] == [item.embedding for item in expected.data]
    assert made.usage.prompt_tokens == expected.usage.prompt_tokens


@pytest.mark.parametrize(
    ("ask", "error", "code", "param"),
    [
        (lambda c: c.chat.completions.create(model="other", messages=HELLO), 404, "model_not_found", "model"),
        (lambda c: c.models.retrieve("other"), 404, "model_not_found", "model"),
        (lambda c: c.embeddings.create(model="parrot", input="a"), 404, None, "model"),
        (lambda c: c.chat.completions.create(model="vectors", messages=HELLO), 404, None, "model"),
        (lambda c: c.completions.create(model="relay", prompt="a"), 400, None, None),
        (lambda c: c.chat.completions.create(model="parrot", messages=HELLO, n=2), 400, None, "n"),
        (lambda c: c.completions.create(model="parrot", prompt="a " * 3000), 400, "context_length_exceeded", None),
        (
            lambda c: c.completions.create(model="parrot", prompt="a " * 3000, stream=True),
            400,
            "context_length_exceeded",
            None,
        ),
        (lambda c: c.audio.speech.create(model="parrot", voice="x", input="a"), 404, None, None),
    ],
)
def test_errors_have_the_shape_of_the_api(endpoint, ask, error, code, param):
    with pytest.raises(openai.APIStatusError) as raised:
        ask(endpoint.client)
    assert (raised.value.status_code, raised.value.code, raised.value.param) == (error, code, param)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault("429", match="fault", times=-1, retry_after=1), 429, "rate_limit_exceeded"),
        (Fault("500", match="fault", times=-1), 502, "bad_gateway"),
        (Fault("content_filter", match="fault"), 400, "content_filter"),
        (Fault("quota", match="fault"), 429, "insufficient_quota"),
        (Fault("reply", match="fault", status=403), 400, "content_filter"),
        (Fault("null_content", match="fault", times=-1), 502, "bad_gateway"),
    ],
)
def test_what_fails_behind_a_model_is_told_and_others_are_answered(endpoint, fault, status, code):
    assert heard(endpoint) == "heard: one two three"
    endpoint.upstream.faults = [fault]
    with pytest.raises(openai.APIStatusError) as raised:
        endpoint.client.chat.completions.create(model="relay", messages=[{"role": "user", "content": f"fault {code}"}])
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert raised.value.response.headers.get("retry-after") == ("1" if status == 429 else None)
    assert endpoint.upstream.key not in str(raised.value.body)
    assert heard(endpoint) == "heard: one two three"


def heard(endpoint: Endpoint) -> str | None:
    """What the API behind the relay answers to a client that comes again when it is told to."""
    client = endpoint.client.with_options(max_retries=openai.DEFAULT_MAX_RETRIES)
    return client.chat.completions.create(model="relay", messages=HELLO).choices[0].message.content


def test_the_key_is_asked_for_everywhere(endpoint):
    for key in ("sk-wrong", "", f"{SERVE_KEY}2", "ü"):
        for path in ("/v1/models", "/v1/chat/completions", "/nowhere"):
            status, error = endpoint.raw("POST", path, b"{}", key=key)
            assert (status, error["code"]) == (401, "invalid_api_key")
            assert SERVE_KEY not in json.dumps(error)
    with pytest.raises(openai.AuthenticationError):
        endpoint.client.with_options(api_key="sk-wrong").models.list()


def test_bodies_that_are_no_requests_are_refused(endpoint):
    assert endpoint.raw("POST", "/v1/chat/completions", b'{"model":')[0] == 400
    assert endpoint.raw("GET", "/v1/chat/completions")[0] == 405
    status, error = endpoint.raw("POST", "/v1/chat/completions", b" " * (Limits().body_bytes + 1))
    assert (status, error["type"]) == (413, "invalid_request_error")


def test_a_body_of_unknown_length_is_not_read_beyond_the_limit(endpoint):
    host, port = endpoint.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n"
            b"authorization: Bearer " + SERVE_KEY.encode() + b"\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
        for _ in range(Limits().body_bytes // 2**20 + 1):
            connection.sendall(chunk)
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot(endpoint, stream):
    upstream = endpoint.upstream
    upstream.faults = [Fault("hang", match="hang", times=-1)]
    host, port = endpoint.url.split("/")[2].split(":")
    messages = [{"role": "user", "content": "hang"}]
    body = json.dumps({"model": "relay", "messages": messages, "stream": stream}).encode()
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (SERVE_KEY.encode(), len(body), body)
        )
        wait_until(lambda: upstream.in_flight == 1)  # in the only slot that relay has
    wait_until(lambda: upstream.in_flight == 0)
    client = endpoint.client.with_options(timeout=PATIENCE_S)
    completion = client.chat.completions.create(model="relay", messages=HELLO)
    assert completion.choices[0].message.content == "heard: one two three"


def test_a_stream_that_nobody_reads_any_more_is_ended(endpoint):
    stream = endpoint.client.completions.create(model="parrot", prompt="word " * 40, stream=True)
    next(iter(stream))
    stream.close()
    assert endpoint.client.completions.create(model="parrot", prompt="hello").choices[0].text == "hello"


def test_one_served_model_is_target_and_judge_of_a_run(endpoint, bench, tmp_path):
    params = {"api_type": "openai", "base_url": endpoint.url, "engine": "parrot", "temperature": 0}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "served.yaml").write_text(json.dumps({"name": "openai_chat", "params": params}))
    words = ["model=served", "roles.judge=served", "task=conclusion_generation", "limit=6", f"conf_dir={tmp_path}"]
    done = bench(words)
    assert done.status == 0, done.err
    (cell,) = json.loads(done.read("metrics.json"))["cells"]
    assert (cell["n"], cell["outcomes"]["scored"]) == (6, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=mok"], "no model 'mok'; did you mean 'mock'?"),
        (["prot=1"], "no key 'prot'; did you mean 'port'?"),
        (["model=mock", "port=99999"], "port: Input should be less than 65536"),
        (["model=mock", "request_timeout_s=0"], "request_timeout_s: Input should be greater than 0"),
        (["model=mock", "request_timeout_s=inf"], "request_timeout_s: Input should be a finite number"),
        (["model=mock", "model.params.answr=x"], "no key 'params.answr'; did you mean 'answer'?"),
        (["model=mock", "model.params.answer=https://me:secret@host"], "a URL with a password in it"),
    ],
)
def test_wrong_words_are_told_in_a_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_served(words)


def settled(cluster: Cluster, *words: str) -> list[tuple[float | None, float | None]]:
    """CPUs and GPUs of each model's replicas."""
    from rambla_ray.serving import deployment as serving

    models = serving.settle_together(load_served(words).models, cluster)
    return [(model.pool.num_cpus, model.pool.num_gpus) for model in models]


def test_models_that_do_not_fit_together_share_the_cpus():
    two = Cluster((NodeResources(2.0, 0.0),))
    assert settled(two, "model=smollm2") == [(2.0, 0.0)]
    assert settled(two, "model=smollm2,minilm,mock") == [(1.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
    assert settled(Cluster((NodeResources(2.0, 2.0),)), "model=smollm2,minilm") == [(0.0, 1.0), (0.0, 1.0)]
    with pytest.raises(UserError, match=r"smollm2 1 × 2 CPUs, minilm 1 × 2 CPUs; it has 2 CPUs and 0 GPUs"):
        settled(two, "model=smollm2,minilm", "pool.num_cpus=2")


def serve(*words: str, **environment: str) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, REPO / "jobs/serve.py", "port=0", "address=local", *words],
        env={**os.environ, "PYTHONPATH": str(REPO), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["model=mock", "host=0.0.0.0"], {}, "set SERVE_API_KEY, or leave host out"),
        (["model=mock", "host=::"], {}, "set SERVE_API_KEY, or leave host out"),
        (["model=mock", "host=0"], {}, "set SERVE_API_KEY, or leave host out"),
        (["model=mock", "host=no.such.host.invalid"], {}, "choose another host"),
        (
            ["model=mock"],
            {"SERVE_API_KEY": "a\nb"},
            "SERVE_API_KEY has characters that no client can send in a header",
        ),
        (["model=mock"], {"SERVE_API_KEY": " "}, "SERVE_API_KEY is set and empty"),
        (["model=bleu"], {}, "model bleu compares two texts"),
        (["model=openai_chat", "model.params.api_key_command=[az]"], {}, "a program that a config alone may not run"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(words, environment, message):
    process = serve(*words, **environment)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.processes
def test_a_model_that_cannot_be_loaded_ends_it_with_a_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    process = serve("model=llama_ft", LLAMA_FT_PATH=str(tmp_path))
    out, err = process.communicate(timeout=4 * PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: model llama_ft cannot be loaded: ")
    assert err.count("\n") == 1


@pytest.mark.processes
def test_the_command_serves_until_it_is_interrupted():
    process = serve("model=mock", "request_timeout_s=0.5", SERVE_API_KEY=SERVE_KEY)
    try:
        line = process.stdout.readline()
        assert SERVE_KEY not in line
        url = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        assert url, process.stderr.read()
        client = openai.OpenAI(base_url=url[0], api_key=SERVE_KEY, max_retries=0)
        assert client.completions.create(model="mock", prompt="hello").choices[0].text == "hello"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-wrong").models.list()
        address = ("127.0.0.1", int(url[1]))
        with socket.create_connection(address, PATIENCE_S) as slow, socket.create_connection(address) as idle:
            slow.sendall(b"POST / HTTP/1.1\r\nhost: a\r\nauthorization: bearer %b\r\n" % SERVE_KEY.encode())
            slow.sendall(b"content-length: 9\r\n\r\n{")
            assert slow.recv(12) == b"HTTP/1.1 408"
            idle.sendall(b"POST")
            process.send_signal(signal.SIGINT)
            assert idle.recv(1) == b""
        out, err = process.communicate(timeout=2 * PATIENCE_S)
        assert (process.returncode, out, err) == (0, "ended\n", "")
    finally:
        process.kill()
