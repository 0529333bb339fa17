"""A parameter that the engine refuses: one call, and one line with the YAML to write."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import openai_models
import pytest
import yaml
from conftest import Bench
from faults import Fault
from openai_models import Completion, Embeddings, ask, build, error
from openai_server import OpenAIServer
from picky_server import PickyServer, google, gpt5, mistral, openai_error, opus, vllm

from rambla_ray.actors.model import RunContext
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Message, Request

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

UNSUPPORTED, BAD_REQUEST = ErrorKind.UNSUPPORTED, ErrorKind.BAD_REQUEST
BLAND: dict[str, Any] = {"temperature": None, "top_p": None, "max_tokens": None}


@pytest.mark.parametrize(
    ("refuse", "given", "line"),
    [
        (gpt5, {}, "max_tokens: set params.max_completion_tokens: 800"),
        (gpt5, {"max_tokens": 37}, "max_tokens: set params.max_completion_tokens: 37"),
        (gpt5, {"max_completion_tokens": 9}, "temperature: set params.temperature: null"),
        (gpt5, {**BLAND, "top_p": 0.5}, "top_p: set params.top_p: null"),
        (opus, {}, "temperature: set params.temperature: null"),
        (opus, {"temperature": None}, "top_p: set params.top_p: null"),
        (vllm, {"verbosity": "low"}, "verbosity: set params.verbosity: null"),
        (vllm, {"extra_body": {"top_k": 5}}, "top_k: remove top_k from params.extra_body"),
        (mistral, {"reasoning_effort": "low"}, "reasoning_effort: set params.reasoning_effort: null"),
        (mistral, {"extra_body": {"top_k": 5}}, "top_k: remove top_k from params.extra_body"),
        (google, {"frequency_penalty": 0.5}, "frequency_penalty: set params.frequency_penalty: null"),
        (google, {"extra_body": {"seed": 1, "google": {"a": 1}}}, "google: remove google from params.extra_body"),
    ],
)
def test_a_refused_parameter_is_one_line_with_the_yaml_to_write(refuse: Any, given: dict[str, Any], line: str) -> None:
    with PickyServer(refuse) as server:
        end = error(build(server, engine="gpt-5.6", **given))
        assert (end.kind, len(server.bodies)) == (UNSUPPORTED, 1)
    assert end.message.startswith(f"engine gpt-5.6 does not take {line} (HTTP 4")
    assert "\n" not in end.message


@pytest.mark.parametrize(("refuse", "steps"), [(gpt5, 2), (opus, 2)])
def test_who_writes_what_the_lines_say_is_answered_in_the_end(refuse: Any, steps: int) -> None:
    given: dict[str, Any] = {}
    with PickyServer(refuse, answer=str.upper) as server:
        for _ in range(steps):
            advice = re.search(r"set params\.(\w+: \w+)", error(build(server, **given)).message)
            assert advice is not None
            given |= yaml.safe_load(advice[1])
        assert ask(build(server, **given), "hello")[0].text == "HELLO"


# What endpoints say of `temperature`, which every request of the model has.
SAID: list[tuple[int, Any]] = [
    (400, openai_error(None, "temperature", "Unrecognized request argument supplied: temperature")),
    (400, openai_error(None, None, "Unrecognized request arguments supplied: temperature, top_p")),
    (400, openai_error("unknown_parameter", "temperature", "Unknown parameter: 'temperature'.")),
    (400, openai_error(None, None, "Unsupported value: 'temperature' does not support 0 with this model.")),
    (400, openai_error(None, None, "temperature is not supported with this model. Use another instead")),
    (400, openai_error(None, None, "`temperature` may only be set to 1 when thinking is enabled.")),
    (400, openai_error(None, None, "`temperature` must be greater than or equal to 0.95 or unset when thinking.")),
    (400, openai_error(None, None, "`top_k` and `temperature` cannot both be specified for this model.")),
    (400, openai_error(None, None, "temperature: Extra inputs are not permitted")),
    (400, openai_error(None, None, "Model grok does not support parameter temperature.")),
    (400, openai_error(None, None, "Argument not supported on this model: temperature")),
    (400, openai_error(None, None, "litellm: openai does not support parameters: ['temperature'], for model=x")),
    (400, openai_error(None, None, "extraneous key [temperature] is not permitted, please reformat your input")),
    (400, {"message": "Completions.create() got an unexpected keyword argument 'temperature'"}),
    (400, [{"error": {"code": 400, "message": 'Invalid JSON payload. Unknown name "temperature": Cannot find'}}]),
    (422, {"detail": [{"loc": ["body", "temperature"], "msg": "extra fields not permitted"}]}),
    (400, {"message": "1 validation error for R\ntemperature\n  extra fields not permitted (type=x)"}),
    (400, {"message": "1 validation error for Request\nbody -> temperature\n  extra fields not permitted (type=x)"}),
    (400, {"message": "1 validation error for R\ntemperature\n  Extra inputs are not permitted [type=x]"}),
    (422, {"message": {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]}}),
    (422, {"detail": [{"type": "less_than_equal", "loc": ["body", "temperature"], "msg": "at most 1.5"}]}),
    (400, {"error": {"message": "Provider returned error", "metadata": {
        "raw": json.dumps(openai_error(None, None, "Unsupported parameter: 'temperature'"))}}}),
    (200, {"error": {"code": 400, "message": "Unsupported value: 'temperature' does not support 0."}}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), SAID)
def test_a_parameter_is_refused_in_the_words_of_many_endpoints(status: int, body: Any) -> None:
    with OpenAIServer(faults=[Fault("reply", status=status, body=json.dumps(body).encode(), times=-1)]) as server:
        end = error(build(server))
        assert len(server.requests) == 1
    assert end.kind == UNSUPPORTED, end
    assert "engine gpt-4 does not take temperature: set params.temperature: null" in end.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, openai_error("unsupported_value", "messages[0].role", "Unsupported value: 'messages[0].role'")),
        (400, openai_error("unsupported_parameter", "top_k", "Unsupported parameter: 'top_k'")),  # It is not sent.
        (400, openai_error("unsupported_parameter", "model", "Unsupported parameter: 'model'")),
        (400, openai_error("x", "temperature", "The prompt has no temperature in it.")),
        (400, openai_error("unsupported_parameter", {"a": 1}, "What?")),  # type: ignore[arg-type]
        (400, openai_error(["unsupported_parameter"], "temperature", "What?")),  # type: ignore[arg-type]
        (400, openai_error("integer_above_max_value", "max_tokens", "max_tokens is too large: 800.")),
        (422, {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": "Input should be a valid string"}]}),
        (422, {"detail": [{"loc": [], "msg": "Extra inputs are not permitted"}]}),
    ],
)
def test_what_is_not_about_a_parameter_of_the_config_stays_a_bad_request(status: int, body: Any) -> None:
    with OpenAIServer(faults=[Fault("reply", status=status, body=json.dumps(body).encode(), times=-1)]) as server:
        assert error(build(server)).kind == BAD_REQUEST


@pytest.mark.parametrize(
    "quoted",
    [
        "Unknown parameter: 'temperature'",
        "`top_p`\nis deprecated  for this model.",
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is.",
        "{'loc': ('body', 'max_tokens'), 'msg': 'Extra inputs are not permitted'}",
        "1 validation error for R\ntemperature\n  extra fields not permitted",
    ],
)
def test_a_prompt_that_quotes_such_words_decides_nothing(quoted: str) -> None:
    body = b'{"error": {"message": "I will not answer {prompt} today.", "code": "invalid_prompt"}}'
    with OpenAIServer(faults=[Fault("reply", status=400, body=body, times=-1)]) as server:
        assert error(build(server), f"Explain this: {quoted}").kind == BAD_REQUEST
        assert error(build(server, system=f"Know this: {quoted}"), quoted[::-1]).kind == BAD_REQUEST


@pytest.mark.parametrize("echo", [str.upper, json.dumps, "{} ...".format, "It says: {}.".format])
def test_an_endpoint_that_repeats_a_short_prompt_in_its_own_way_decides_nothing(echo: Callable[[str], str]) -> None:
    def refuse(body: dict[str, Any]) -> Any:
        return 400, openai_error("invalid_prompt", None, echo(body["messages"][-1]["content"]))

    with PickyServer(refuse) as server:
        for prompt in (
            "does not support temperature",
            "`temperature` is deprecated",
            "top_p: extra fields not permitted",
        ):
            assert error(build(server), prompt).kind == BAD_REQUEST


def test_an_option_of_one_request_is_that_requests_own_fault() -> None:
    def refuse_heat(body: dict[str, Any]) -> Any:
        return gpt5({"temperature": body["temperature"]}) if body.get("temperature") else None

    options = GenerationOptions(temperature=0.5)
    with PickyServer(refuse_heat, answer=str.upper) as server:
        model = build(server, temperature=None)
        request = Request("", messages=(Message("user", "hello"),), options=options)
        with pytest.raises(CallError) as caught:
            asyncio.run(model.generate(request))
        assert caught.value.kind == BAD_REQUEST
        assert ask(model, "hello")[0].text == "HELLO"


@pytest.mark.parametrize(("kind", "given"), [(Completion, {"seed": 3}), (Embeddings, {"extra_body": {"seed": 3}})])
def test_other_kinds_say_what_to_write_as_well(kind: type[OpenAIModel], given: dict[str, Any]) -> None:
    body = json.dumps(openai_error("unknown_parameter", "seed", "Unknown parameter: 'seed'")).encode()
    with OpenAIServer(faults=[Fault("reply", status=400, body=body, times=-1)]) as server:
        end = error(build(server, kind, **given))
    way_out = "set params.seed: null" if kind is Completion else "remove seed from params.extra_body"
    assert (end.kind, end.message.partition(" (")[0]) == (UNSUPPORTED, f"engine gpt-4 does not take seed: {way_out}")


# What it costs


@pytest.mark.parametrize("fault", ["param", "key", "engine"])
def test_what_is_wrong_with_every_call_costs_a_run_one(fault: str) -> None:
    refuse = gpt5 if fault == "param" else lambda body: None
    options: dict[str, Any] = {"faults": [Fault("401", times=-1)]} if fault == "key" else {}
    options |= {"models": ["another"]} if fault == "engine" else {}
    with PickyServer(refuse, **options) as server:
        model = build(server, at_once=64)
        model.attach(RunContext())
        ends = ask(model, *(f"prompt {number}" for number in range(64)))
        assert len(server.requests) == 1
    assert len({(end.kind, end.message) for end in ends}) == 1


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("refuse", "way_out"), [(gpt5, "max_completion_tokens: 800"), (opus, "temperature: null")])
def test_a_run_stops_after_one_call_with_the_line(
    bench: Callable[[Sequence[str]], Bench], refuse: Any, way_out: str
) -> None:
    with PickyServer(refuse) as server:
        where = ["model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        done = bench(["model=openai_chat", *where, "limit=40"])
        assert len(server.bodies) == 1
    assert done.status == 4, done.err
    assert f"set params.{way_out}" in done.err
    assert done.err.count("does not take") == 1
