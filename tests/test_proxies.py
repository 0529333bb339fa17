"""The way to an endpoint: through the proxy that the environment names, or past it; or one line why there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import openai_models
import pytest
from openai_models import KEY, answer, build, error, params
from proxy_server import CERTIFICATE, proxy
from yarl import URL

from rambla_ray.actors.api.proxy import proxy_of
from rambla_ray.config.sections import Rate
from rambla_ray.errors import ErrorKind, UserError

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


PLAIN, SECURE = "http://models.example/v1", "https://models.example/v1"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/"])
def test_a_plain_request_is_sent_to_the_proxy_whole(monkeypatch: pytest.MonkeyPatch, variable: str, form: str) -> None:
    with proxy() as server:
        monkeypatch.setenv(variable, form.format(f"127.0.0.1:{server.server_port}"))
        assert answer(build(PLAIN), "hello").text == "Yes"
        assert server.lines == [f"POST {PLAIN}/chat/completions"]


def test_a_sign_of_life_is_asked_for_on_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy() as server:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.server_port}")
        assert params(base_url=f"{PLAIN}?a=1").ping().startswith("answers")
        assert server.lines == [f"GET {PLAIN}/models?a=1"]


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_secure_request_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with proxy() as server:
        monkeypatch.setenv(variable, f"http://somebody:pass%20word@127.0.0.1:{server.server_port}")
        assert answer(build(SECURE), "hello").text == "Yes"
        assert server.lines == ["CONNECT models.example:443", "POST /v1/chat/completions"]
        assert server.credentials == ["Basic c29tZWJvZHk6cGFzcyB3b3Jk", None]


def test_a_certificate_that_is_not_trusted_stops_at_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy() as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
        failed = error(build(SECURE))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.UNAVAILABLE, 1)
    assert failed.message.startswith("the certificate of models.example is not trusted: ")


@pytest.mark.parametrize("status", [407, 511])
def test_a_proxy_that_passes_no_plain_request_on_stops_at_once(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with proxy(status=status) as server:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.server_port}")
        failed = error(build(PLAIN))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.UNAVAILABLE, 1)
    assert failed.message == f"the proxy or network does not let calls through: HTTP {status}"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (407, "the proxy does not let calls through: HTTP 407 Proxy Authentication Required"),
        (403, "the proxy does not let calls through: HTTP 403 Forbidden"),
        (502, "{} has let nobody through for 0.2 s (rate.give_up_after_s): the proxy finds no way through: HTTP 502"),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_no_reply_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    with proxy(status) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
        failed = error(build(SECURE, rate=Rate(give_up_after_s=0.2)))
    assert (failed.kind, failed.message) == (ErrorKind.UNAVAILABLE, message.format(SECURE))


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("models.example", "https://models.example/v1", True),
        ("models.example", "https://eu.models.example/v1", True),
        (".models.example", "https://eu.models.example/v1", True),
        ("*.models.example", "https://eu.models.example/v1", True),
        ("MODELS.example", "https://models.EXAMPLE/v1", True),
        ("odels.example", "https://models.example/v1", False),
        ("models.example:443", "https://models.example/v1", True),
        ("models.example:8080", "https://models.example/v1", False),
        ("models.example:8080", "https://models.example:8080/v1", True),
        ("localhost, models.example", "https://models.example/v1", True),
        ("localhost models.example", "https://models.example/v1", True),
        ("*", "https://models.example/v1", True),
        ("localhost,*", "https://models.example/v1", True),
        ("", "https://models.example/v1", False),
        (",:,", "https://models.example/v1", False),
        ("10.1.2.3", "https://10.1.2.3/v1", True),
        ("10.1.2.3:8080", "https://10.1.2.3:8080/v1", True),
        ("10.1.2.3:8081", "https://10.1.2.3:8080/v1", False),
        ("10.0.0.0/8", "https://10.1.2.3:8080/v1", True),
        ("10.0.0.0/8:8080", "https://10.1.2.3:8080/v1", True),
        ("10.0.0.0/99", "https://10.1.2.3/v1", False),
        ("192.168.0.0/16", "https://10.1.2.3/v1", False),
        ("fd00::/8", "https://[fd00::1]:8080/v1", True),
        ("fd00:0:0::1", "https://[fd00::1]/v1", True),
        ("[fd00::1]:8080", "https://[fd00::1]:8080/v1", True),
        ("[fd00::1]:8081", "https://[fd00::1]:8080/v1", False),
    ],
)
def test_no_proxy_excepts_names_addresses_networks_and_ports(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, is_direct: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_of(URL(url)) == (None if is_direct else URL("http://proxy.example:3128"))


def test_the_proxy_of_the_scheme_comes_before_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "every.example:1")
    monkeypatch.setenv("https_proxy", "secure.example:2")
    assert [proxy_of(URL(url)) for url in (PLAIN, SECURE)] == [
        URL("http://every.example:1"),
        URL("http://secure.example:2"),
    ]
    monkeypatch.setenv("https_proxy", "")
    assert proxy_of(URL(SECURE)) == URL("http://every.example:1")


@pytest.mark.parametrize(
    ("value", "reason"),
    [(f"{scheme}://u:{KEY}@proxy.example:1", "a SOCKS proxy") for scheme in ("socks5", "socks5h", "socks4", "SOCKS")]
    + [
        (value, "is no URL of a proxy")
        for value in (
            "http://:3128",
            "proxy:port",
            "proxy:99999",
            "ftp://proxy",
            "http//proxy:1",
            "pro xy:1",
            "http://",
        )
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_one_line_before_any_call(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    given = params(base_url=SECURE)
    for check in (lambda: given.preflight(same_machine=True), given.ping):
        with pytest.raises(UserError, match=reason) as caught:
            check()
        assert str(caught.value).startswith(variable)
        assert KEY not in str(caught.value)
    given.preflight(same_machine=False)  # Calls are made elsewhere, where it may be otherwise.
    failed = error(build(SECURE))
    assert (failed.kind, failed.message.startswith(variable)) == (ErrorKind.LOAD, True)
    monkeypatch.setenv("no_proxy", "models.example")
    given.preflight(same_machine=True)


def test_a_run_is_refused_in_one_line(bench: Callable[[Sequence[str]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    done = bench(["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={SECURE}"])
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert "https_proxy names a SOCKS proxy" in line
