"""Params that no request can have: one line before any call, which names the key and shows no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import config_files
import pytest
import yaml
from config_files import loaded, refusal

from rambla_ray import redaction
from rambla_ray.config.load import load_served
from rambla_ray.errors import UserError

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

CANARY = "zqcanary-headers-8841"


def write(conf: Path, **given: Any) -> list[str]:
    """The words for a model with these params."""
    params = {"engine": "gpt-x", "temperature": 0.0, **given}
    (conf / "model" / "mine.yaml").write_text(yaml.safe_dump({"name": "openai_chat", "params": params}))
    (conf / "task" / "mcqabaseline.yaml").write_text(config_files.TASK)
    return [f"conf_dir={conf}", "model=mine"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        *(({"extra_body": {key: 1}}, f"params.extra_body: it cannot hold '{key}'") for key in (
            "messages", "model", "prompt", "input", "instructions", "system")),
        ({"extra_body": {"stream": True}}, "params.extra_body: 'stream' is false here"),
        ({"extra_body": {"stream": 0}}, "params.extra_body: 'stream' is false here"),
        ({"extra_body": {"n": 2}}, "params.extra_body: 'n' is 1 here"),
        ({"extra_body": {"n": True}}, "params.extra_body: 'n' is 1 here"),
        ({"extra_body": {1: 2}}, "params.extra_body"),
        ({"extra_body": {"a": {1: 2}}}, "is no JSON"),
        ({"extra_body": {"a": float("inf")}}, "finite number"),
        ({"extra_body": {"a": "x" * 1_000_001}}, "longer than 1,000,000 characters"),
        ({"extra_body": "top_k: 5"}, "params.extra_body: Input should be a valid dictionary"),
        ({"extra_body": [1]}, "params.extra_body: Input should be a valid dictionary"),
        ({"response_format": "json"}, "params.response_format: Input should be a valid dictionary"),
        ({"service_tier": 3}, "params.service_tier: Input should be a valid string"),
        ({"service_tier": True}, "params.service_tier: put it in quotes"),
        ({"service_tier": ["flex"]}, "params.service_tier: Input should be a valid string"),
        ({"reasoning_effort": False}, "params.reasoning_effort: put it in quotes"),
        ({"reasoning_effort": ""}, "params.reasoning_effort: Input should be a name"),
        ({"verbosity": "low\nhigh"}, "params.verbosity: Input should be a name"),
        ({"max_completion_tokens": 0}, "params.max_completion_tokens: Input should be greater than 0"),
        ({"max_completion_tokens": 1.5}, "params.max_completion_tokens: Input should be a valid integer"),
        ({"temperature": 2.1}, "params.temperature: Input should be less than or equal to 2"),
        ({"seed": 2**63}, "params.seed: Input should be less than"),
        ({"frequency_penalty": 3}, "params.frequency_penalty: Input should be less than or equal to 2"),
        ({"presence_penalty": "much"}, "params.presence_penalty: Input should be a valid number"),
        ({"stop": ""}, "params.stop: "),
        ({"stop": []}, "params.stop: "),
        ({"stop": ["a", ""]}, "params.stop: "),
        ({"stop": [1]}, "params.stop: "),
        ({"system": " \n"}, "params.system: a system prompt is not empty"),
        ({"system": ["Be brief."]}, "params.system: Input should be a valid string"),
        ({"extra_headers": {"X-A": 5}}, "params.extra_headers.X-A: Input should be a valid string"),
        ({"extra_headers": ["X-A"]}, "params.extra_headers: Input should be a valid dictionary"),
        ({"extra_headers": {"X A": "b"}}, "'X A' is no name of a header"),
        ({"extra_headers": {"": "b"}}, "'' is no name of a header"),
        ({"extra_headers": {"X-Ä": "b"}}, "is no name of a header"),
        ({"extra_headers": {"X-A": "b", "x-a": "c"}}, "'X-A' is there twice"),
        ({"extra_headers": {f"X-{number}": "" for number in range(65)}}, "64 more headers at most"),
    ],
)  # fmt: skip
def test_a_broken_param_is_one_line(conf: Path, given: dict[str, Any], line: str) -> None:
    message = refusal(*write(conf, **given))
    assert message.startswith("model mine (mine.yaml): params.")
    assert line in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "authorization", "API-Key", "x-api-key", "X-API-KEY", "Proxy-Authorization", "Cookie"),
        *("Set-Cookie", "X-Auth-Token", "Ocp-Apim-Subscription-Key", "x-goog-api-key"),
        *("Host", "content-length", "Content-Type", "Transfer-Encoding", "Connection", "TE", "Accept-Encoding"),
    ],
)
def test_a_header_that_holds_a_key_or_is_set_by_each_request_is_refused(conf: Path, name: str) -> None:
    message = refusal(*write(conf, extra_headers={"X-Fine": "1", name: CANARY}))
    assert f"params.extra_headers: '{name}' " in message
    assert CANARY not in message


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "ключ", "é", "a\tb", " a", "x" * 4001, "\x00"])
def test_a_header_that_cannot_be_sent_is_refused_without_showing_it(conf: Path, value: str) -> None:
    message = refusal(*write(conf, extra_headers={"X-Fine": value + CANARY}))
    assert "params.extra_headers: the value of 'X-Fine'" in message
    assert CANARY not in message


@pytest.mark.parametrize(
    "value", ["sk-proj-abcdefgh12345678", "Bearer abcdef", "basic dXNlcjpwYXNz", "hf_ABCDEFGHIJ1234567890"]
)
@pytest.mark.parametrize("serves", [False, True])
def test_a_header_whose_value_looks_like_a_key_is_refused(conf: Path, value: str, serves: bool) -> None:
    words = write(conf, extra_headers={"X-Team": value})
    with pytest.raises(UserError) as refused:
        load_served(words) if serves else loaded(*words)
    assert "X-Team" in str(refused.value)
    assert value not in str(refused.value)


@pytest.mark.parametrize("key", ["extra_body", "system", "stop"])
def test_a_key_in_another_param_is_refused(conf: Path, key: str) -> None:
    value = "sk-proj-abcdefgh12345678"
    message = refusal(*write(conf, **{key: {"deep": [value]} if key == "extra_body" else value}))
    assert "looks like a key" in message
    assert value not in message


# From the environment


@pytest.mark.parametrize("name", ["X-Team", "x.team", "MODEL", "x_team|1"])
def test_a_header_from_the_environment_is_stored_and_shown_by_name(
    conf: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MY_TEAM", CANARY)
    config = loaded(*write(conf, extra_headers={name: "${oc.env:MY_TEAM}"}, extra_body={"user": "${oc.env:MY_TEAM}"}))
    params = config.targets["mine"].params
    assert params.model_dump()["extra_headers"] == {name: CANARY}
    stored = config.stored()
    assert stored["targets"]["mine"]["params"]["extra_headers"] == {name: "${oc.env:MY_TEAM}"}
    assert CANARY not in repr(stored)
    assert CANARY not in repr(config.question())
    assert redaction.redacted(f"no {CANARY} here") == "no ${oc.env:MY_TEAM} here"
    another = config.run_id
    monkeypatch.setenv("MY_TEAM", "another-team-altogether")
    assert loaded(f"conf_dir={conf}", "model=mine").run_id != another


def test_a_header_from_the_environment_that_cannot_be_sent_is_refused_by_name(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TEAM", f"{CANARY}\r\nX-Evil: 1")
    message = refusal(*write(conf, extra_headers={"X-Team": "${oc.env:MY_TEAM}"}))
    assert "the value of 'X-Team'" in message
    assert CANARY not in message


@pytest.mark.parametrize("key", ["system", "stop", "reasoning_effort"])
def test_another_text_from_the_environment_is_refused(conf: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MY_TEAM", CANARY)
    message = refusal(*write(conf, **{key: "${oc.env:MY_TEAM}"}))
    assert f"params.{key}: ${{oc.env:MY_TEAM}} is a text" in message
    assert CANARY not in message


def test_words_of_the_command_line_set_the_params(conf: Path) -> None:
    words = ["temperature=null", "reasoning_effort=low", "stop=[a, b]", "extra_body={top_k: 5}", "system=Be brief."]
    given = loaded(*write(conf), *(f"model.params.{word}" for word in words)).targets["mine"].params.model_dump()
    assert {name: given[name] for name in ("temperature", "top_p", "max_tokens")} == {
        "temperature": None,
        "top_p": None,
        "max_tokens": None,
    }
    assert (given["reasoning_effort"], given["stop"]) == ("low", ("a", "b"))
    assert (given["extra_body"], given["system"]) == ({"top_k": 5}, "Be brief.")
