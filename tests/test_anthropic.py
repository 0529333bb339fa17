"""What a model behind Anthropic's Messages API sends: prompts, params, conversations; and which model it is."""

from __future__ import annotations

from typing import Any

import anthropic_models
import pytest
from anthropic_models import KEY, Claude, ask, build, claude_params, error
from anthropic_server import THOUGHT, AnthropicServer
from pydantic import ValidationError

from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Pool
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.schema import GenerationOptions, Message, Request, canonical_json

keys = anthropic_models.keys  # It runs by itself before each test of this file.

PLAIN = {"model": "claude-x", "max_tokens": 4096, "messages": [{"role": "user", "content": "Is it so?"}]}


def sent(request: Request | str = "Is it so?", **given: Any) -> dict[str, Any]:
    """The body that is sent for a request, which an older engine answers."""
    with AnthropicServer() as server:
        ask(build(server, **given), request)
    (body,) = server.bodies
    return body


@pytest.mark.parametrize(
    ("given", "members"),
    [
        ({}, {}),
        ({"temperature": None, "top_p": None, "system": None, "stop": None, "extra_body": None}, {}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3}, {"temperature": 0.0, "top_p": 0.5, "top_k": 3}),
        ({"system": "Be brief."}, {"system": "Be brief."}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["END", "STOP"]}, {"stop_sequences": ["END", "STOP"]}),
        ({"thinking_budget": 1024}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ({"thinking": "disabled"}, {"thinking": {"type": "disabled"}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, {"thinking": {"type": "enabled", "budget_tokens": 1}}),
        ({"effort": "low", "service_tier": "auto"}, {"output_config": {"effort": "low"}, "service_tier": "auto"}),
        (
            {"temperature": 0.5, "extra_body": {"temperature": 0.1, "metadata": {"user_id": "a"}}},
            {"temperature": 0.1, "metadata": {"user_id": "a"}},
        ),
    ],
)
def test_a_body_holds_the_prompt_and_the_params_that_are_given_and_nothing_else(
    given: dict[str, Any], members: dict[str, Any]
) -> None:
    assert sent(**given) == {**PLAIN, **members}


def test_a_request_bears_the_key_the_version_and_the_headers_of_the_config() -> None:
    with AnthropicServer() as server:
        ask(build(server, extra_headers={"anthropic-beta": "context-1m-2025-08-07"}))
    (headers,) = server.headers
    named = {name.lower(): value for name, value in headers.items()}
    assert (named["x-api-key"], named["anthropic-version"]) == (KEY, "2023-06-01")
    assert (named["content-type"], named["anthropic-beta"]) == ("application/json", "context-1m-2025-08-07")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_endpoint_is_known_with_its_version_and_without(end: str) -> None:
    with AnthropicServer() as server:
        model = Claude(claude_params(base_url=f"{server.base_url}{end}?a=b"), Pool(), None)
        assert ask(model).text
        assert [record.path for record in server.requests] == ["/v1/messages"]
    assert model.identity() == Claude(claude_params(base_url=f"{server.base_url}?a=b"), Pool(), None).identity()


SYSTEM, ASKED = Message("system", "Be kind."), Message("user", "Is it so?")


@pytest.mark.parametrize(
    ("request_", "members"),
    [
        (Request("Is it so?", system="Be brief."), {"system": "Be brief."}),
        (Request("", messages=(ASKED,)), {"system": "Be exact."}),
        (Request("", messages=(Message("system", ""), ASKED)), {"system": "Be exact."}),
        (Request("", messages=(SYSTEM, ASKED)), {"system": "Be kind."}),
        (Request("", messages=(SYSTEM, SYSTEM, ASKED)), {"system": "Be kind.\n\nBe kind."}),
        (
            Request("", messages=(ASKED, Message("user", "Well?"), Message("assistant", "No."), ASKED)),
            {
                "system": "Be exact.",
                "messages": [
                    {"role": "user", "content": "Is it so?\n\nWell?"},
                    {"role": "assistant", "content": "No."},
                    {"role": "user", "content": "Is it so?"},
                ],
            },
        ),
        (
            Request("Is it so?", options=GenerationOptions(7, 0.0, 0.5, None, ("END",))),
            {"system": "Be exact.", "max_tokens": 7, "temperature": 0.0, "top_p": 0.5, "stop_sequences": ["END"]},
        ),
    ],
)
def test_a_request_may_have_a_system_prompt_a_conversation_and_options_of_its_own(
    request_: Request, members: dict[str, Any]
) -> None:
    assert sent(request_, system="Be exact.") == {**PLAIN, **members}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("Go on", verbatim=True), "continues no bare text"),
        (Request("Go on", options=GenerationOptions(seed=1)), "takes no seed"),
        (Request("", messages=(SYSTEM,)), "needs a turn of the user's"),
        (Request("", messages=(Message("assistant", "Yes."), ASKED)), "begin with the user's turn"),
    ],
)
def test_what_the_api_cannot_do_is_refused_before_it_is_asked(request_: Request, words: str) -> None:
    with AnthropicServer() as server:
        failed = error(build(server), request_)
        assert (failed.kind, server.requests) == (ErrorKind.BAD_REQUEST, [])
    assert words in failed.message


def test_the_longest_answer_is_what_a_budget_reserves() -> None:
    model = Claude(claude_params(max_tokens=77), Pool(), None)
    assert (model.max_answer_tokens(Request("a")), model.params.longest_answer) == (77, 77)
    assert model.max_answer_tokens(Request("a", options=GenerationOptions(max_tokens=5))) == 5


# Params


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"base_url": "api.anthropic.com"}, "begins with https://"),
        ({"base_url": ""}, "no URL"),
        ({"thinking_budget": 4096}, "raise max_tokens (4096)"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, "raise max_tokens (4096)"),
        ({"thinking_budget": 1, "thinking": "adaptive"}, "not both"),
    ],
)
def test_params_that_cannot_be_are_one_line_that_names_the_engine(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        claude_params(**given)
    line = str(caught.value)
    assert line.startswith("engine claude-x: ")
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "given",
    [
        *({"temperature": 1.5}, {"max_tokens": None}, {"max_tokens": 0}, {"seed": 1}, {"system": ""}, {"stop": []}),
        *({"extra_body": {name: 1}} for name in ("messages", "model", "stream", "system")),
        *({"extra_headers": {name: "a"}} for name in ("X-Api-Key", "Authorization", "Content-Type", "a b")),
    ],
)
def test_params_that_the_api_does_not_have_or_that_are_set_elsewhere_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        claude_params(**given)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        *(
            (change, True)
            for change in ({"engine": "claude-y"}, {"max_tokens": 9}, {"system": "Hi"}, {"effort": "low"})
        ),
        *((change, True) for change in ({"thinking": "adaptive"}, {"temperature": 0.0}, {"extra_body": {"a": 1}})),
        ({"api_version": "2023-01-01"}, True),
        ({"api_key_var": "OPENAI_API_KEY"}, False),
        ({"extra_headers": {"a": "b"}}, False),
        ({"temperature": None, "thinking": None}, False),
    ],
)
def test_identity_changes_with_what_may_change_an_answer_only(change: dict[str, Any], differs: bool) -> None:
    one, other = (canonical_json(Claude(claude_params(**given), Pool(), None).identity()) for given in ({}, change))
    assert (one != other) == differs
    assert KEY not in other


def test_what_is_stored_of_params_holds_what_is_sent_and_means_the_same_when_it_is_read_again() -> None:
    params = claude_params(thinking="adaptive", stop=["END"])
    stored = params.model_dump(mode="json")
    assert set(stored) == {"engine", "base_url", "api_key_var", "api_version", "max_tokens", "thinking", "stop"}
    assert Claude.Params.model_validate(stored).resolved() == params


def test_the_shipped_config_is_one_of_a_model_that_thinks() -> None:
    import yaml

    from rambla_ray.shipped import SHIPPED_CONF

    config = ModelConfig.model_validate(yaml.safe_load((SHIPPED_CONF / "model/claude.yaml").read_text("utf-8")))
    with AnthropicServer(modern=True) as server:
        given = config.params.model_dump(exclude={"base_url"})
        response = ask(build(server, **given))
    assert response.details.reasoning == THOUGHT


# A sign of life


@pytest.mark.parametrize(
    ("key", "words"), [(KEY, "answers, and takes the key in ANTHROPIC_API_KEY"), ("sk-other", "turns the key in ")]
)
def test_the_doctor_asks_for_the_list_of_models(key: str, words: str) -> None:
    with AnthropicServer(key=key) as server:
        params = claude_params(base_url=server.base_url)
        params.preflight(same_machine=True)
        try:
            said = params.ping()
        except UserError as refused:
            said = str(refused)
        assert [record.path for record in server.requests] == ["/v1/models"]
    assert said.startswith(words)


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be reached: check params\.base_url"):
        claude_params(base_url="http://127.0.0.1:1").ping()


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        claude_params().preflight(same_machine=True)
