"""What models behind an OpenAI-compatible endpoint send: prompts, options, the key; and which model they are."""

from __future__ import annotations

import json
import struct
from typing import Any

import openai_models
import pytest
from openai_models import AZURE, KEY, Chat, Completion, Embeddings, answer, ask, build, endpoint, error, params
from openai_server import OpenAIServer, default_answer, embedding, prompt_sha

from rambla_ray.actors.api.adaptive import START
from rambla_ray.actors.api.openai_package import written_request
from rambla_ray.actors.api.openai_params import PLAIN_URL
from rambla_ray.actors.openai import OpenAIChat, OpenAICompletion, OpenAIModel
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.schema import canonical_json

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.


@pytest.mark.parametrize("where", [{}, AZURE], ids=["plain", "azure"])
@pytest.mark.parametrize("kind", [Chat, Completion])
def test_text_models_answer_with_the_engine_and_temperature_they_were_given(
    kind: type[OpenAIModel], where: dict[str, str]
) -> None:
    with OpenAIServer() as server:
        response = answer(build(server, kind, engine="gpt-x", temperature=0.3, **where), "Is this so?\nSay it.")
        assert response.text == default_answer("Is this so?\nSay it.", "gpt-x", 0.3)
        assert (response.finish_reason, response.trace.attempts) == ("stop", 1)
        assert (response.prompt_tokens, response.completion_tokens) == (5, len(response.text.split()))
        assert [record.model for record in server.requests] == ["gpt-x"]


@pytest.mark.parametrize("where", [{}, AZURE], ids=["plain", "azure"])
def test_embeddings_answer_with_the_vector_of_the_text_on_one_line(where: dict[str, str]) -> None:
    with OpenAIServer() as server:
        response = answer(build(server, Embeddings, **where), "two\nlines here")
        assert json.loads(response.text) == list(struct.unpack("<16f", embedding("two lines here")))
        assert (response.prompt_tokens, response.completion_tokens) == (3, 0)
        assert list(server.per_prompt) == [prompt_sha("two lines here")]


OPTIONS = {"temperature": 0.2, "max_tokens": 7, "top_p": 0.5}
DEFAULTS = {"temperature": 0, "max_tokens": 800, "top_p": 0.95}
MESSAGES = [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("kind", "given", "body"),
    [
        (Chat, OPTIONS, {**OPTIONS, "messages": MESSAGES}),
        (Chat, {}, {**DEFAULTS, "messages": MESSAGES}),
        (Completion, OPTIONS, {**OPTIONS, "prompt": "a\nb"}),
        (Embeddings, {}, {"input": "a b", "encoding_format": "base64"}),
    ],
)
def test_a_body_holds_the_prompt_and_the_parameters_and_nothing_else(
    kind: type[OpenAIModel], given: dict[str, Any], body: dict[str, Any]
) -> None:
    with endpoint(400) as (url, bodies):
        assert error(build(url, kind, **given), "a\nb").kind == ErrorKind.BAD_REQUEST
    assert bodies == [{"model": "gpt-4", **body}]


def test_an_answer_cut_by_max_tokens_says_so() -> None:
    with OpenAIServer(answer=lambda prompt: "The answer is yes.") as server:
        response = answer(build(server, max_tokens=2), "hello")
    assert (response.text, response.finish_reason, response.completion_tokens) == ("The answer", "length", 2)


@pytest.mark.parametrize("at_once", [3, START])
def test_concurrent_prompts_get_their_own_answers_within_max_concurrency(at_once: int) -> None:
    prompts = [f"prompt {number}" for number in range(4 * at_once)]
    with OpenAIServer(answer=str.upper, latency=0.05, together=at_once) as server:
        responses = ask(build(server, at_once=at_once), *prompts)
        assert server.max_in_flight == at_once
    assert [response.text for response in responses] == [prompt.upper() for prompt in prompts]


@pytest.mark.parametrize("key", ["sk\n-test", "sk-t\u00e9st"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(CallError, match="OPENAI_API_KEY") as caught:
        build("http://127.0.0.1:1/v1")
    assert caught.value.kind == ErrorKind.AUTH
    assert "sk" not in str(caught.value)


def test_a_key_with_spaces_around_it_is_used_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with OpenAIServer(answer=str.upper) as server:
        assert answer(build(server), "hello").text == "HELLO"


def test_no_text_about_a_model_holds_the_key() -> None:
    model = build("http://127.0.0.1:1/v1")
    assert KEY not in repr([model, model.params, model.identity(), model.scope(), vars(model.pool)])


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_refused_on_the_driver_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    given = params(api_key_var="MY_KEY")
    with pytest.raises(UserError, match="MY_KEY"):
        given.preflight(same_machine=True)
    given.preflight(same_machine=False)  # the key is needed where the calls are made
    with pytest.raises(CallError, match="MY_KEY") as caught:
        Chat(given, Pool(), None)
    assert caught.value.kind == ErrorKind.AUTH


def test_an_endpoint_without_a_key_needs_no_variable_and_gets_no_key_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-of-an-administrator")
    with OpenAIServer(answer=str.upper, key="none") as server:
        model = build(server, api_key_var=None)
        model.params.preflight(same_machine=True)
        assert answer(model, "hello").text == "HELLO"
        assert model.params.ping().startswith("answers, and takes requests without a key")
    assert model.params.key_variable is None
    with OpenAIServer() as server, pytest.raises(UserError, match="turns requests without a key away"):
        params(base_url=server.base_url, api_key_var=None).ping()


def test_async_calls_false_is_accepted_with_a_note() -> None:
    given = params(async_calls=False)
    given.preflight(same_machine=True)
    assert given.remarks == ("engine gpt-4: async_calls has no effect, calls are concurrent",)
    assert not params().remarks


# Identity and settings


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"engine": "gpt-5"}, True),
        ({"temperature": 0.1}, True),
        ({"max_tokens": 9}, True),
        ({"top_p": 0.5}, True),
        ({"base_url": "https://elsewhere.example"}, True),
        ({"api_version": "2025-01-01"}, True),
        ({"api_key_var": "MY_KEY"}, False),
        ({"async_calls": False}, False),
    ],
)
def test_identity_changes_with_what_may_change_an_answer_only(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], differs: bool
) -> None:
    monkeypatch.setenv("MY_KEY", "another key")
    given = {"base_url": "https://here.example", **AZURE}
    one, other = (Chat(params(**it), Pool(), None).identity() for it in (given, {**given, **change}))
    assert (canonical_json(one) != canonical_json(other)) == differs


def test_chat_and_completion_of_one_engine_are_different_models() -> None:
    one, other = (build("https://here.example", kind).identity() for kind in (OpenAIChat, OpenAICompletion))
    assert one != other


BASE, VERSION = "https://here.example", "2024-02-01"


@pytest.mark.parametrize(
    ("environment", "given", "settled"),
    [
        ({}, {}, ("openai", PLAIN_URL, None)),
        ({"BASE": f"{BASE}/v1/"}, {}, ("openai", f"{BASE}/v1", None)),
        ({"BASE": f"{BASE}/", "VERSION": VERSION}, {}, ("azure", BASE, VERSION)),
        ({"BASE": BASE, "VERSION": VERSION}, {"api_type": "openai"}, ("openai", BASE, None)),
        ({"BASE": BASE, "VERSION": VERSION}, {"api_version": "v2"}, ("azure", BASE, "v2")),
        ({"BASE": "https://other.example"}, {"base_url": BASE}, ("openai", BASE, None)),
        ({}, {**AZURE, "base_url": BASE}, ("azure", BASE, VERSION)),
    ],
)
def test_the_endpoint_comes_from_the_config_then_the_environment_then_the_default(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], given: dict[str, str], settled: tuple[str, ...]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    once = params(**given)
    assert (once.api_type, once.base_url, once.api_version) == settled
    assert Chat.Params.model_validate(once.model_dump(mode="json")).resolved() == once


@pytest.mark.parametrize(
    ("environment", "given", "names"),
    [
        ({"VERSION": VERSION}, {}, "OPENAI_API_BASE"),
        ({}, AZURE, "OPENAI_API_BASE"),
        ({"BASE": BASE}, {"api_type": "azure"}, "OPENAI_API_VERSION"),
    ],
)
def test_azure_without_an_endpoint_or_a_version_is_refused_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], given: dict[str, str], names: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    with pytest.raises(UserError, match=names):
        params(**given)


QUERY = "api-version=2024-05-01&sig=a%2Bb%3D&empty="


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"base_url": f"{BASE}/v1?{QUERY}"}, f"{BASE}/v1/chat/completions?{QUERY}"),
        ({"base_url": f"{BASE}/v1/?{QUERY}"}, f"{BASE}/v1/chat/completions?{QUERY}"),
        ({"base_url": f"{BASE}?a=1"}, f"{BASE}/chat/completions?a=1"),
        ({"base_url": f"{BASE}/v1?"}, f"{BASE}/v1/chat/completions"),
        (
            {"base_url": f"{BASE}?tenant=1", **AZURE},
            f"{BASE}/openai/deployments/gpt-4/chat/completions?tenant=1&api-version=2024-02-01",
        ),
    ],
)
def test_a_query_of_the_endpoint_stands_in_the_url_of_every_request(given: dict[str, str], url: str) -> None:
    form = written_request(params(**given).endpoint, KEY, params(**given).azure_version, build(BASE).write)
    assert str(form.url) == url


def test_an_endpoint_with_a_query_is_asked_with_it_and_named_without() -> None:
    with OpenAIServer() as server:
        assert answer(build(server.azure_base + "?x=1", **AZURE), "hello").text == default_answer(
            "hello", "gpt-4", 0.0
        )
        failed = error(build(f"{server.base_url}?secret=1", rate=Rate(timeout_s=1e-9)))
    assert failed.message == f"no reply from {server.base_url} within 1e-09 s"


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        ("https://here.example/v1#part", "has a fragment"),
        ("https://here.example/v1?a=1#part", "has a fragment"),
        (f"https://{KEY}@here.example/v1", "of here.example holds a user name"),
        ("https://", "is no URL"),
        ("https:///v1", "is no URL"),
        ("https://here.example:port/v1", "is no URL"),
        ("https://here.example:99999/v1", "is no URL"),
        ("https://here.example/v 1", "is no URL"),
        ("ftp://here.example/v1", "is no URL"),
        ("here.example/v1", "is no URL"),
    ],
)
def test_a_url_that_no_request_could_be_sent_to_is_one_line(base_url: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^engine gpt-4: base_url .*{reason}") as caught:
        params(base_url=base_url)
    assert KEY not in str(caught.value)
