"""A key that a command gives: what is run, where, within which bounds, and what a run says of one that fails."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai_models
import psutil
import pytest
from config_files import OPENAI, refusal
from conftest import REPO, Bench
from faults import Fault
from openai_models import AZURE, KINDS, Chat, ask, in_turn, params
from token_server import PREFIX, TokenServer, python
from waiting import wait_until

from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.config.key_command import ALLOWED, read_token
from rambla_ray.config.keyed_params import KeyedParams
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.redaction import redacted
from rambla_ray.run.job import SubmittedJob

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

SECRET = "zq7-very-hidden-0123456789"


@pytest.fixture(autouse=True)
def _allowed(only_a_key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, "1")
    monkeypatch.delenv("OPENAI_API_KEY")


def build(server: TokenServer, kind: type[OpenAIModel] = Chat, says_s: float | None = None, **given: Any) -> Any:
    url = server.azure_base if "api_version" in given else server.base_url
    return kind(params(kind, base_url=url, api_key_command=server.command(says_s), **given), Pool(), None)


# What a config may say


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("  api_key_command: az account get-access-token\n", "a list of arguments is needed"),
        (f"  api_key_command: {SECRET}\n", "a list of arguments is needed"),
        ("  api_key_command: []\n", "params.api_key_command"),
        ('  api_key_command: [az, ""]\n', "an argument is a text that is not empty"),
        ('  api_key_command: [az, "a\\0b"]\n', "an argument is a text that is not empty and holds no NUL"),
        ("  api_key_command: [az, 5]\n", "params.api_key_command.1"),
        ("  api_key_command: [az, [b]]\n", "params.api_key_command.1"),
        ("  api_key_command: {az: b}\n", "params.api_key_command"),
        (f"  api_key_command: {json.dumps(['az'] * 101)}\n", "params.api_key_command"),
        (f"  api_key_command: [az, {'x' * 10_001}]\n", "params.api_key_command.1"),
        ("  api_key_ttl_s: 60\n", "api_key_ttl_s is for the tokens of api_key_command"),
        ("  api_key_command: [az]\n  api_key_ttl_s: 0\n", "params.api_key_ttl_s"),
        ("  api_key_command: [az]\n  api_key_ttl_s: 1e300\n", "params.api_key_ttl_s"),
        ("  api_key_command: [az]\n  api_key_ttl_s: true\n", "params.api_key_ttl_s"),
        ("  api_key_command: [az, --key, sk-0123456789abcdef]\n", "api_key_command[2] looks like a key"),
        (f"  api_key_command: [curl, {SECRET}]\n", "api_key_command[1] holds what is in MY_TOKEN"),
        ("  api_key_command: [curl, 'https://me:pa55word@h.example/']\n", "is a URL with a password in it"),
        ("  api_key_command: [curl, 'me:pa55word@h.example']\n", "is a URL with a password in it"),
        ("  api_key_command: [az, '${oc.env:TENANT}']\n", "${oc.env:TENANT} is a text, which would be stored"),
        ("  api_key_command: [az, '${oc.env:MY_TOKEN}']\n", "MY_TOKEN holds a secret"),
    ],
)
def test_a_config_that_is_refused(lines: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("TENANT", "contoso")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt.yaml").write_text(OPENAI + lines)
    message = refusal(f"conf_dir={tmp_path}", "model=gpt")
    assert reason in message
    assert SECRET not in message
    assert "pa55word" not in message


def test_it_changes_no_answer_and_nothing_of_a_config_without_it() -> None:
    plain, keyless = params(), params(api_key_command=["az"], api_key_ttl_s=60)
    assert keyless.identity() == plain.identity()
    assert "api_key_command" not in plain.model_dump()
    assert "api_key_ttl_s" not in plain.model_dump(mode="json")
    assert keyless.model_dump(mode="json")["api_key_command"] == ["az"]
    assert keyless.key_variable is None


def test_those_with_one_command_share_the_limits() -> None:
    names = [params(api_key_command=command).key_name for command in (["az", "a"], ["az", "a"], ["az", "b"], None)]
    assert names[0] == names[1] != names[2]
    assert names[3] == "OPENAI_API_KEY"
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)


def test_code_in_an_argument_is_no_url() -> None:
    command = ["python", "-c", "import sys;token=open(sys.argv[1]).read();print(token)"]
    words = ["model=openai_chat", f"model.params.api_key_command={json.dumps(command)}"]
    assert load(words).targets["openai_chat"].params.api_key_command == tuple(command)  # type: ignore[attr-defined]


def test_the_variable_that_allows_it_may_come_with_a_job() -> None:
    SubmittedJob({"env_vars": {ALLOWED: "1"}}, 60).refuse_secrets(set())


# What is run, and within which bounds


@pytest.mark.parametrize("value", [None, "", "0", "true", " 1"])
def test_no_config_runs_anything_by_itself(value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ALLOWED) if value is None else monkeypatch.setenv(ALLOWED, value)
    given = params(api_key_command=["touch", str(tmp_path / "ran")])
    with pytest.raises(UserError, match=f"touch is a program that a config alone may not run.*set {ALLOWED}=1"):
        given.preflight(same_machine=True)
    given.preflight(same_machine=False)  # It is to be allowed where the calls are made.
    for read in (given.read_key, lambda: Chat(given, Pool(), None)):
        with pytest.raises(CallError, match=ALLOWED) as caught:
            read()
        assert caught.value.kind == ErrorKind.AUTH
    assert not (tmp_path / "ran").exists()


def test_a_plan_that_is_only_shown_runs_nothing(bench: Callable[[list[str]], Bench], tmp_path: Path) -> None:
    command = json.dumps(["touch", str(tmp_path / "ran")])
    done = bench(["model=openai_chat", f"model.params.api_key_command={command}", "dry_run=true"])
    assert done.status == 0
    assert not (tmp_path / "ran").exists()


FAILING = [
    pytest.param(["no-such-program"], "there is no program 'no-such-program' here", id="missing"),
    pytest.param(["az account show"], "each argument is an item of its own", id="not taken apart"),
    pytest.param(["/"], "/ cannot be run: Permission denied", id="no program"),
    pytest.param(python("raise SystemExit(3)"), "ended with status 3", id="status"),
    pytest.param(
        python(f"import sys; print('{SECRET}'); sys.exit('\\nERROR: {SECRET} is wrong, run az login\\nmore')"),
        "ended with status 1: ERROR: *** is wrong, run az login",
        id="its first line, without what it printed",
    ),
    pytest.param(
        python(f"import sys; sys.exit('bad token {SECRET.replace('-', '')} of x')"),
        "ended with status 1: bad token *** of x",
        id="without what may be a token",
    ),
    pytest.param(python("import os; os.kill(os.getpid(), 9)"), "was ended by signal 9", id="signal"),
    pytest.param(python("pass"), "printed nothing", id="nothing"),
    pytest.param(python("print('  \\n')"), "printed nothing", id="white space"),
    pytest.param(python(f"print('{SECRET}\\n{SECRET}')"), "printed 2 lines", id="lines"),
    pytest.param(python(f'print(\'{{"a": "{SECRET}"}}\')'), "printed JSON with 1 key", id="JSON without a token"),
    pytest.param(python("print('\\u00e9')"), "no header of a request can", id="not sendable"),
    pytest.param(python("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')"), "printed what is no text", id="bytes"),
    pytest.param(python("while True: print('x' * 9999)"), "printed more than 64 KiB", id="endless"),
    pytest.param(python(f'print(\'{{"token": "{SECRET}", "expires_in": -5}}\')'), "has already expired", id="expired"),
]


@pytest.mark.processes
@pytest.mark.parametrize(("command", "reason"), FAILING)
def test_a_command_that_fails_is_one_line_before_anything_is_asked(
    command: list[str], reason: str, bench: Callable[[list[str]], Bench], tmp_path: Path
) -> None:
    with TokenServer(tmp_path) as server:
        words = [*server.words()[:-1], f"model.params.api_key_command={json.dumps(command)}", "address=local"]
        done = bench([*words, "task=mcqabaseline"])
    assert done.status == 1
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: model openai_chat: params.api_key_command: ")
    assert reason in line
    assert SECRET not in line
    assert not server.requests
    assert not list(done.runs_dir.glob("*"))


@pytest.mark.processes
def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    code = "import subprocess, sys, time; c = subprocess.Popen(sys.argv[2:]); open(sys.argv[1], 'w').write(str(c.pid))"
    command = python(f"{code}; time.sleep(600)", str(tmp_path / "child"), *python(child))
    began = time.monotonic()
    with pytest.raises(CallError, match="took more than 2 s, and was killed"):
        read_token(command, None, longest_s=2)
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "child").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "its end")


@pytest.mark.processes
def test_what_a_command_leaves_behind_is_not_waited_for() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)']); print('t')"
    began = time.monotonic()
    assert read_token(python(code), 60).text == "t"
    assert time.monotonic() - began < 5


@pytest.mark.processes
def test_nobody_is_asked_anything_and_no_shell_reads_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY", "thing")
    assert read_token(["echo", "$ANY;`id`"], None).text == "$ANY;`id`"
    assert read_token(python("import sys; print(len(sys.stdin.read()) or 'nothing')"), None).text == "nothing"
    assert read_token(python("import os; print(os.environ['ANY'])"), None).text == "thing"


@pytest.mark.processes
@pytest.mark.parametrize(("printed", "expected_s"), [("{}", 60), ('{"expires_in": 9}', 9), ('{"expires_in": 99}', 60)])
def test_a_token_holds_for_the_shorter_of_both_times(printed: str, expected_s: float) -> None:
    command = ["echo", json.dumps({"token": "t0ken"} | json.loads(printed))]
    assert read_token(command, 60).expires_at == pytest.approx(time.time() + expected_s, abs=2)


@pytest.mark.processes
def test_a_token_is_shown_nowhere_from_then_on() -> None:
    old, new = (read_token(["echo", f"tok-{number}{os.urandom(8).hex()}"], None).text for number in range(2))
    error = CallError(ErrorKind.SERVER, f"is {old}, was {new}, or {new[:14]}")
    assert str(error) == "server: is ***, was ***, or ***"
    assert redacted(json.dumps({"a": old})) == '{"a": "***"}'


@pytest.mark.processes
def test_a_class_of_others_takes_its_key_in_the_same_way() -> None:
    assert KeyedParams(api_key_var="X", api_key_command=["echo", "t0ken"]).read_key() == "t0ken"


# Calls with tokens that die


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, AZURE], ids=["plain", "Azure with Entra ID"])
def test_every_kind_bears_the_token(kind: type[OpenAIModel], given: dict[str, Any], tmp_path: Path) -> None:
    with TokenServer(tmp_path, lasts_s=60) as server:
        answers = ask(build(server, kind, **given), *map(str, range(64)))
    assert all(answer.text for answer in answers)
    assert server.azure_keys == {None}
    assert len(server.issued) == 1


@pytest.mark.processes
def test_tokens_are_replaced_before_they_expire(tmp_path: Path) -> None:
    async def ask_until(model: Any, deadline: float) -> list[Any]:
        answers: list[Any] = []
        while time.monotonic() < deadline:
            answers += await in_turn(model, f"prompt {len(answers)}")
        return answers

    with TokenServer(tmp_path, lasts_s=20) as server:
        model = build(server, says_s=3)  # It is taken for longer, so that no command has to be quick.
        answers = asyncio.run(ask_until(model, time.monotonic() + 5))
    assert all(answer.text for answer in answers)
    assert server.unauthorized == 0
    assert 2 <= len(server.issued) <= 4  # One every two seconds, or later on a busy machine.


@pytest.mark.processes
def test_a_token_that_is_refused_is_replaced_once_for_all_calls(tmp_path: Path) -> None:
    with TokenServer(tmp_path, lasts_s=60, revoked=1, together=1) as server:
        answers = ask(build(server, says_s=0), *map(str, range(64)))
    assert all(answer.text and answer.trace.attempts == 1 for answer in answers)
    assert 1 <= server.unauthorized <= 64
    assert len(server.issued) == 2


@pytest.mark.processes
def test_a_fresh_token_that_is_refused_ends_it(tmp_path: Path) -> None:
    with TokenServer(tmp_path, lasts_s=60, revoked=99) as server:
        model = build(server, says_s=0)
        first = ask(model, "hello")[0]
        later = ask(model, *map(str, range(9)))
    assert first.kind == ErrorKind.AUTH
    assert "HTTP 401" in first.message
    assert {error.kind for error in later} == {ErrorKind.AUTH}
    assert len(server.requests) == 2
    assert len(server.issued) == 2


@pytest.mark.processes
def test_what_the_endpoint_repeats_of_old_and_new_tokens_is_masked(tmp_path: Path) -> None:
    echo = b'{"error": {"message": "wrong {key}", "code": "{key}"}}'
    with TokenServer(tmp_path, lasts_s=60, revoked=1, faults=[Fault("reply", status=400, body=echo)]) as server:
        error = ask(build(server, says_s=0), "hello")[0]
        old, new = server.issued
        server.key = old
    assert error.kind == ErrorKind.BAD_REQUEST
    assert "***" in error.message
    assert PREFIX not in error.message
    assert redacted(f"{old} {new}") == "*** ***"


@pytest.mark.processes
def test_the_doctors_question_bears_the_token(tmp_path: Path) -> None:
    with TokenServer(tmp_path, lasts_s=60) as server:
        assert "takes the token of api_key_command" in build(server).params.ping()
        assert build(server, **AZURE).params.ping().startswith("answers")
        server.revoked = 99
        with pytest.raises(UserError, match="turns the token of api_key_command away"):
            build(server).params.ping()
    assert server.azure_keys == {None}


# The page about it


def test_the_configs_of_the_page_load(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(name: .*?)```", (REPO / "docs/keys.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "model").mkdir()
    commands = []
    for number, block in enumerate(blocks):
        (tmp_path / "model" / f"m{number}.yaml").write_text(block)
        (model,) = load([f"conf_dir={tmp_path}", f"model=m{number}", "task=mcqabaseline"]).targets.values()
        assert isinstance(model.params, KeyedParams)
        assert model.params.api_key_command
        commands.append(model.params.api_key_command[0])
    assert commands == ["az", "gcloud", "python", "vault"]
