"""Values that no request could be made with: URLs, names of engines, keys. They are refused before Ray starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import config_files
import pytest
from config_files import OPENAI, refusal

from rambla_ray.actors.api.base_url import fault_of
from rambla_ray.config.load import load
from rambla_ray.config.model import ModelConfig
from rambla_ray.errors import CallError, UserError
from rambla_ray.run.plan import Plan

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

REPO = Path(__file__).resolve().parent.parent
GPT = ["model=openai_chat", "task=mcqabaseline", "limit=2"]

BROKEN = {
    "http://host:99999/v1": "a host and its port are written host:8000",
    "http://host:-1/v1": "a host and its port",
    "http://host:port/v1": "a host and its port",
    "http://host:80garbage/v1": "a host and its port",
    "http://host:80:80/v1": "a host and its port",
    "http://host:0/v1": "its port is a number from 1 to 65535",
    "http://host:/v1": "its port is a number",
    "http://https://host/v1": "its port is a number",
    "http://::1/v1": "an IPv6 address in brackets",
    "http://::1:8000/v1": "an IPv6 address in brackets",
    "http://[::1/v1": "an IPv6 address in brackets",
    "http://[zz]/v1": "an IPv6 address in brackets",
    "http:/host": "it names no host",
    "http://": "it names no host",
    "https:///v1": "it names no host",
    "http://.": "it names no host",
    "http://a..b/v1": "it names no host",
    "http://-a/v1": "it names no host",
    "http://a,b/v1": "it names no host",
    "http://*/v1": "it names no host",
    "http://a%20b/v1": "it names no host",
    "http://256.1.1.1/v1": "it names no host",
    "http://1.2.3/v1": "it names no host",
    f"http://{'a' * 64}.example/v1": "it names no host",
    "http://" + "a." * 200 + "example/v1": "it names no host",
    "ftp://host/v1": "it begins with https://",
    "file:///etc/passwd": "it begins with https://",
    "host/v1": "it begins with https://",
    "host:8000/v1": "it begins with https://",
    "localhost": "it begins with https://",
    "": "it begins with https://",
    "http://a b/v1": "a space",
    "http://host/v1 ": "a space",
    " http://host/v1": "a space",
    "http://host/v1 and more": "a space",
    "http://host/v1\n": "a space, or another character",
    "http://host\x00/v1": "another character",
    "http://host/\x1b[31m": "another character",
    "http://host/v1\u202e": "another character",
    "http://host/v1>": "another character",
    'http://host/v1"': "another character",
    "http://host\\v1": "another character",
    "http://host/v1#part": "has a fragment",
}
FINE = [
    "https://api.openai.com/v1",
    "https://my-resource.openai.azure.com/",
    "http://127.0.0.1:8000/v1",
    "http://localhost:11434/v1/",
    "http://[::1]:8000/v1",
    "http://[fe80::1%25eth0]:8000/v1",
    "HTTP://HOST:80/v1",
    "http://my_service.ns.svc.cluster.local:8080/v1",
    "http://host./v1",
    "http://host:65535/v1",
    "https://gateway.example/a%20b/~me/v1?tenant=1&sig=a%2Bb%3D",
    "https://münchen.example/v1",
    "https://proxy.example/https://api.openai.com/v1",
]


@pytest.mark.parametrize("base_url", BROKEN, ids=ascii)
def test_a_broken_url_is_refused_in_one_harmless_line(base_url: str, conf: Path) -> None:
    word = f"model.params.base_url='{base_url}'" if not base_url else f"model.params.base_url={base_url}"
    message = refusal(f"conf_dir={conf}", "model=gpt", word)
    assert message.isprintable()
    assert "base_url" in message
    assert BROKEN[base_url] in message
    assert len(message) < 400


@pytest.mark.parametrize("base_url", [url for url in BROKEN if url and "\x00" not in url], ids=ascii)
def test_the_same_from_the_environment(base_url: str, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", base_url)
    message = refusal(f"conf_dir={conf}", "model=gpt")
    assert "OPENAI_API_BASE " in message or "base_url of " in message
    assert message.isprintable()


@pytest.mark.parametrize("base_url", FINE)
def test_a_url_that_people_use_is_taken(base_url: str) -> None:
    assert fault_of(base_url) == ""


@pytest.mark.parametrize(
    "url", ["http://me:pa55word@host:x/v1", "http://pa55word@ho st/v1", "http://h:x/?key=pa55word"]
)
def test_what_may_be_a_secret_in_a_broken_url_is_not_shown(url: str, conf: Path) -> None:
    (conf / "model" / "broken.yaml").write_text(OPENAI + f"  base_url: {url}\n")
    assert "pa55word" not in refusal(f"conf_dir={conf}", "model=broken")


def test_a_key_in_the_place_of_the_url_is_not_shown(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", "sk-pa55word")
    assert refusal(f"conf_dir={conf}", "model=gpt").endswith(
        "OPENAI_API_BASE is no URL; it begins with https:// or http://"
    )


@pytest.mark.parametrize("api_type", ["openai", "azure"])
def test_a_version_without_the_api_that_has_one_is_refused(api_type: str, conf: Path) -> None:
    (conf / "model" / "two.yaml").write_text(f"{OPENAI}  api_type: {api_type}\n  api_version: '2024-02-01'\n")
    reason = {"openai": "api_version is for api_type azure", "azure": "Azure needs an endpoint"}[api_type]
    assert reason in refusal(f"conf_dir={conf}", "model=two")


@pytest.mark.parametrize("engine", ["", " ", "\t", "gpt\n4", "gpt\r", "gpt\x00", "gpt\x1b[31m", "g" * 1001, "\u2028"])
@pytest.mark.parametrize("key", ["engine", "api_version"])
def test_a_name_that_is_none_is_refused(key: str, engine: str) -> None:
    given = {"engine": "gpt", "temperature": 0, key: engine}
    with pytest.raises(UserError, match=f"params.{key}: ") as refused:
        ModelConfig.model_validate({"name": "openai_chat", "params": given})
    assert "\n" not in str(refused.value)


def test_an_engine_that_the_command_line_leaves_empty_is_refused(conf: Path) -> None:
    assert "params.engine" in refusal(f"conf_dir={conf}", "model=gpt", "model.params.engine=''")
    assert "params.engine" in refusal(f"conf_dir={conf}", "model=gpt", "model.params.engine=")


@pytest.mark.parametrize("name", ["sk-123", "openai_api_key", "A B", "", "1A", "A=B", "A\nB", "${A}"])
def test_the_name_of_a_variable_is_one(name: str, conf: Path) -> None:
    message = refusal(f"conf_dir={conf}", "model=gpt", f"model.params.api_key_var='{name}'")
    assert "\n" not in message
    assert not name.startswith("sk-") or name not in message


KEYS = {
    "sk-one\nsk-two": "holds line breaks",
    "sk-one\r\nX-Evil: 1": "holds line breaks",
    "sk-\x1b[31m": "holds line breaks or other characters",
    "sk-\x7f": "holds line breaks or other characters",
    "sk-кey": "holds line breaks or other characters",
    "sk-é": "holds line breaks or other characters",
    "sk-\u200b": "holds line breaks or other characters",
    "": "which is empty",
    " \n": "which is empty",
}


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    config = load(GPT)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        Plan(config).preflight(same_machine=True)
    message = str(refused.value)
    assert KEYS[key] in message
    assert "sk-" not in message
    assert message.isprintable()
    with pytest.raises(CallError, match="OPENAI_API_KEY"):
        config.targets["openai_chat"].params.read_key()  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["sk-fine", "sk-fine\n", "  sk-fine\r\n", "\tsk-fine"], ids=ascii)
def test_white_space_around_a_key_is_none_of_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    config = load(GPT)
    Plan(config).preflight(same_machine=True)
    assert config.targets["openai_chat"].params.read_key() == "sk-fine"  # type: ignore[attr-defined]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "environment", "fragment"),
    [
        (["model=openai_chat"], {"OPENAI_API_KEY": "sk-one\nsk-two"}, "holds line breaks"),
        (["model=openai_chat"], {"OPENAI_API_BASE": "http://host:99999"}, "is no URL"),
        (["model=openai_chat", "model.params.engine= "], {}, "params.engine"),
        (["model=mock", "limit=1e30"], {}, "limit: "),
        (["model=mock", "task.dataset.path=/dev/zero"], {}, "a file needs one of the endings"),
        (["model=mock", "task.pair_with=nowhere"], {}, "names no task"),
    ],
)
def test_the_command_refuses_it_in_one_line_and_leaves_nothing_behind(
    words: list[str], environment: dict[str, str], fragment: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(REPO / "jobs/bench.py"), "task=mcqabaseline", *words, f"runs_dir={tmp_path}/runs"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={"PATH": "/usr/bin:/bin", **environment}, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert fragment in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()
