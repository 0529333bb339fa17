"""Who is let in to what is served: with a key whoever has it, without one this machine's programs and no web page."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import openai
import pytest
from gateway_server import BEARER, HELLO, KEY, Door, opened, post, request

from rambla_ray.errors import UserError
from rambla_ray.serving import gateway
from rambla_ray.serving.access import is_loopback


@pytest.fixture(scope="module")
def guarded() -> Iterator[Door]:
    with opened() as door:
        yield door


@pytest.fixture(scope="module")
def keyless() -> Iterator[Door]:
    with opened(key=None) as door:
        yield door


@pytest.mark.parametrize(
    "headers",
    [
        (BEARER,),
        (f"authorization: bearer {KEY}",),
        (f"AUTHORIZATION: BEARER    {KEY}  ",),
        (f"Authorization:\tBeArEr {KEY}\t",),
        (BEARER, "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"),  # No page knows the key.
    ],
)
def test_the_key_lets_in_however_its_scheme_is_written(guarded: Door, headers: tuple[str, ...]) -> None:
    assert guarded.reply(post(HELLO, *headers, host="evil.example")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Authorization:",),
        ("Authorization: Bearer",),
        (f"Authorization: {KEY}",),
        (f"Authorization: Basic {KEY}",),
        (f"Authorization: Bearer {KEY}x",),
        (f"Authorization: Bearer {KEY[:-1]}",),
        (f"Authorization: Bearer {KEY.upper()}",),
        (f"Authorization: Bearer {KEY} {KEY}",),
        (f"Authorization: Bearer, {KEY}",),
        ("Authorization: Bearer \xfc\xff",),
        (BEARER, BEARER),
        (BEARER, "Authorization: Bearer other"),
        (f"Proxy-Authorization: Bearer {KEY}",),
        (f"X-Api-Key: {KEY}",),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/nowhere", "/%2e%2e/v1/models"])
def test_whoever_has_not_the_key_learns_nothing(guarded: Door, path: str, headers: tuple[str, ...]) -> None:
    reply = guarded.reply(post(HELLO, *headers, path=path))
    assert (reply.status, reply.error["code"], reply.closed) == (401, "invalid_api_key", True)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert KEY.encode() not in reply.body
    assert "server" not in reply.headers


def test_the_key_is_asked_for_before_the_body_is_waited_for(guarded: Door) -> None:
    reply = guarded.reply(request("POST /v1/completions HTTP/1.1", "Host: a", "Content-Length: 1000", body=b"{"))
    assert (reply.status, reply.closed) == (401, True)
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: YQ==")
    assert guarded.reply(request("GET /v1/models HTTP/1.1", "Host: a", *upgrade)).status == 401


def test_a_key_may_have_any_letters() -> None:
    with opened(key="schlüssel wort") as door:
        header = "Authorization: Bearer schlüssel wort".encode().decode("latin-1")
        assert door.reply(post(HELLO, header)).status == 200
        assert door.ask("schlussel wort") == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:80", 200),
        ("localhost.", 200),
        ("localhost:", 200),
        ("127.0.0.1:65535", 200),
        ("127.8.9.10", 200),
        ("[::1]:8000", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("evil.example:127.0.0.1", 403),
        ("localhost:80:80", 403),
        ("10.0.0.1", 403),
        ("0.0.0.0:8000", 403),
        ("128.0.0.1", 403),
        ("[::]:8000", 403),
        ("[::1", 403),
        ("::1", 403),
        ("[", 403),
        ("lo\xe7alhost", 403),
        ("", 403),
    ],
)
def test_without_a_key_the_host_must_be_this_machine(keyless: Door, host: str, status: int) -> None:
    asked = len(keyless.model.asked)
    assert keyless.reply(post(HELLO, host=host)).status == status
    assert keyless.reply(request("GET /v1/models HTTP/1.1", f"Host: {host}")).status == status
    assert len(keyless.model.asked) == asked + (status == 200)


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /v1/models HTTP/1.1", (), 400),
        ("GET /v1/models HTTP/1.0", (), 400),
        ("GET /v1/models HTTP/1.0", ("Host: localhost",), 200),
        ("GET /v1/models HTTP/1.1", ("Host: localhost", "Host: localhost"), 400),
        ("GET /v1/models HTTP/1.1", ("Host: localhost", "Host: evil.example"), 400),
        ("GET http://127.0.0.1:80/v1/models HTTP/1.1", ("Host: evil.example",), 200),  # The target is what counts.
        ("GET http://evil.example/v1/models HTTP/1.1", ("Host: localhost",), 403),
        ("GET http://evil.example HTTP/1.1", ("Host: localhost",), 403),
        ("GET http:///v1/models HTTP/1.1", ("Host: localhost",), 403),
        ("GET http://[/v1/models HTTP/1.1", ("Host: localhost",), 403),
    ],
)
def test_without_a_key_one_host_must_be_named(
    keyless: Door, request_line: str, headers: tuple[str, ...], status: int
) -> None:
    assert keyless.reply(request(request_line, *headers)).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Origin: http://localhost",), 200),
        (("Origin: HTTP://LocalHost",), 200),
        (("Sec-Fetch-Site: same-origin",), 200),
        (("Sec-Fetch-Site: none",), 200),
        (("Sec-Fetch-Mode: cors", "User-Agent: node"), 200),
        (("Origin: null",), 403),
        (("Origin:",), 403),
        (("Origin: https://evil.example",), 403),
        (("Origin: http://localhost:3000",), 403),
        (("Origin: https://localhost",), 403),
        (("Origin: http://localhost.evil.example",), 403),
        (("Origin: http://localhost", "Origin: https://evil.example"), 403),
        (("Sec-Fetch-Site: cross-site",), 403),
        (("Sec-Fetch-Site: Same-Site",), 403),
    ],
)
def test_without_a_key_no_web_page_is_answered(keyless: Door, headers: tuple[str, ...], status: int) -> None:
    for sent in (post(HELLO, *headers), request("GET /v1/models HTTP/1.1", "Host: localhost", *headers)):
        reply = keyless.reply(sent)
        assert (reply.status, reply.closed) == (status, status != 200)
        assert not [name for name in reply.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Content-Type: application/json",), 200),
        (("Content-Type: Application/JSON; charset=utf-8",), 200),
        (("content-type:application/json ;charset=utf-8",), 200),
        ((), 415),
        (("Content-Type:",), 415),
        (("Content-Type: text/plain",), 415),
        (("Content-Type: text/plain; application/json",), 415),
        (("Content-Type: text/plain, application/json",), 415),
        (("Content-Type: application/x-www-form-urlencoded",), 415),  # That of `curl --data`.
        (("Content-Type: multipart/form-data; boundary=application/json",), 415),
        (("Content-Type: application/json", "Content-Type: text/plain"), 415),
    ],
)
def test_without_a_key_a_request_says_that_it_is_json(keyless: Door, headers: tuple[str, ...], status: int) -> None:
    body = b'{"model": "echo", "prompt": "hello"}'
    line = "POST /v1/completions HTTP/1.1"
    reply = keyless.reply(request(line, "Host: localhost", f"Content-Length: {len(body)}", *headers, body=body))
    assert reply.status == status
    if status == 415:
        assert "Content-Type: application/json" in reply.error["message"]


def test_a_preflight_gets_no_permission(guarded: Door, keyless: Door) -> None:
    asks = ("Origin: https://evil.example", "Access-Control-Request-Method: POST", "Host: localhost")
    for door, status in ((guarded, 401), (keyless, 403)):
        reply = door.reply(request("OPTIONS /v1/completions HTTP/1.1", *asks))
        assert reply.status == status
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_the_official_client_is_let_in(guarded: Door, keyless: Door) -> None:
    for door, key, host in ((guarded, KEY, "127.0.0.1"), (keyless, "any", "127.0.0.1"), (keyless, "any", "localhost")):
        with openai.OpenAI(base_url=f"http://{host}:{door.port}/v1", api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["echo"]
            assert client.completions.create(model="echo", prompt="a").choices[0].text == "a"
            pieces = [
                chunk.choices[0].text for chunk in client.completions.create(model="echo", prompt="b", stream=True)
            ]
            assert "".join(pieces) == "b"


def test_a_wrong_method_is_told_the_right_ones(guarded: Door) -> None:
    reply = guarded.reply(request("DELETE /v1/completions HTTP/1.1", "Host: a", BEARER))
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path", ["/v1/completions/", "//evil.example/", "/v1//models", "/" + "a" * 5000, "/%00%0d%0a"]
)
def test_a_wrong_path_leads_nowhere(guarded: Door, path: str) -> None:
    reply = guarded.reply(request(f"GET {path} HTTP/1.1", "Host: [", BEARER))
    assert reply.status == 404
    assert len(reply.body) < 1000
    assert "location" not in reply.headers


@pytest.mark.parametrize("host", ["", "..", "a" * 70, "no.such.host.invalid", "nul\x00", "192.0.2.1"])
def test_an_address_that_cannot_be_had_is_told_in_a_line(host: str) -> None:
    with pytest.raises(UserError, match="choose another") as raised:
        gateway.bind(host, 0)
    assert "\x00" not in str(raised.value)


def test_a_port_that_is_taken_is_told_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another port"):
        gateway.bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(number: str, loopback: bool) -> None:
    assert is_loopback(number) is loopback
