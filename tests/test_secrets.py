"""Only the names of keys travel: what is in them is in no config, file, log, answer of Ray's API, or printed line."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from faults import Fault
from openai_server import OpenAIServer
from ray.job_submission import JobStatus
from ray_head import Head
from waiting import wait_until

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.run.job import STOP_WAIT

SECRET = "sk-0123456789abcdef"
DEMO_YES_NO = 57
MODEL = 'name: openai_chat\nparams: {engine: "ENGINE", temperature: 0.0}\n'
TASK = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: target, template: "{question} TEXT"}
answer: {choices: ["yes", "no"], target: final_decision}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("MY_ENDPOINT", f"{SECRET}-2")


def refusal(*words: str) -> str:
    """What is said about `words`: one line, without a secret."""
    with pytest.raises(UserError) as refused:
        load(["model=mock", *words])
    message = str(refused.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


@pytest.mark.parametrize(
    "word",
    [
        "model.params.answer=${oc.env:OPENAI_API_KEY}",
        "model.params.answer=is ${oc.env:OPENAI_API_KEY} a key",
        "model.params.answer=${oc.env:OPENAI_${oc.env:HALF}}",
        "model.params.answer=${oc.decode:${oc.env:OPENAI_API_KEY}}",
        "model.params.answer=${oc.env:NEVER_SET_API_KEY,none}",
        "runs_dir=/tmp/${oc.env:OPENAI_API_KEY}",
        "task.dataset.path=https://x.example/${oc.env:OPENAI_API_KEY}.json",
        "task.answer.expect=${oc.env:OPENAI_API_KEY}",
    ],
)
def test_a_key_cannot_be_interpolated(monkeypatch, word):
    monkeypatch.setenv("HALF", "API_KEY")
    assert "API_KEY holds a secret, which a config would give away" in refusal(word)


@pytest.mark.parametrize("group", ["model", "task"])
def test_nor_in_a_file(tmp_path, group):
    (tmp_path / group).mkdir()
    text = {"model": MODEL.replace("ENGINE", "${oc.env:OPENAI_API_KEY}")}
    text["task"] = TASK.replace("TEXT", "${oc.env:OPENAI_API_KEY}")
    (tmp_path / group / "mine.yaml").write_text(text[group])
    assert f"{group} mine (mine.yaml)" in refusal(f"conf_dir={tmp_path}", f"{group}=mine")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ([f"model.params.answer={SECRET}"], "command line[1]"),
        ([f"run_id={SECRET}"], "command line[1]"),
        (["model=openai_chat", f"model.params.engine=x-{SECRET}-y"], "command line[2]"),
        (["task=mine"], "tasks.mine.stages[0].generate.template"),
    ],
)
def test_a_key_that_was_pasted_is_found(tmp_path, words, place):
    (tmp_path / "task").mkdir()
    (tmp_path / "task/mine.yaml").write_text(TASK.replace("TEXT", SECRET))
    assert f"{place} holds what is in OPENAI_API_KEY" in refusal(*words, f"conf_dir={tmp_path}")


def test_a_variable_is_a_secret_when_a_model_says_so():
    words = ["model=openai_chat", "model.params.engine=${oc.env:MY_ENDPOINT}"]
    monkeyed = [*words, "model.params.api_key_var=MY_ENDPOINT"]
    assert "targets.openai_chat.params.engine holds what is in MY_ENDPOINT" in refusal(*monkeyed)


@pytest.mark.parametrize("key", ["sk-live-0123456789", "0123456789abcdef0123456789abcdef", "abcdef0123456789"])
def test_a_key_in_the_place_of_its_name_is_refused_and_not_shown(key):
    message = refusal("model=openai_chat", f"model.params.api_key_var={key}")
    assert "params.api_key_var" in message
    assert key not in message


@pytest.mark.parametrize(
    "word",
    [
        "runs_dir=s3://AKIA123:hidden@bucket/runs",
        "ledger=s3://AKIA123:hidden@bucket/ledger",
        "task.dataset.path=https://me:hidden@x.example/data.json",
        "model.params.base_url=https://me:hidden@x.example/v1",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_shown(word):
    message = refusal("model=openai_chat", word)
    assert "is a URL with a password in it" in message
    assert "hidden" not in message


def test_a_password_in_the_endpoint_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", "https://me:hidden@x.example/v1")
    message = refusal("model=openai_chat")
    assert "targets.openai_chat.params.base_url is a URL with a password" in message
    assert "hidden" not in message


URLS = (
    *("http://tok3n@h.example/x", "http://me:pa55@h.example/x", "HTTPS://ME:pa55@H.example/x", " https://me:pa55@h/x"),
    *(
        "//me:pa55@h.example/x",
        "git+https://tok3n@h.example/x",
        "https%3A%2F%2Fme%3Apa55%40h.example/x",
        "me:pa55@h:80",
    ),
    *("https://h.example/x?api-key=pa55", "https://h.example/x?sig=pa55&sv=1", "https://h.example/x?code=pa55"),
    *("https://h.example/x?token=pa55", "https://h.example/x#access_token=pa55", "s3://b/x?secret_key=pa55"),
    *("s3://AKIA:pa55@b/x", "http://me:pa/55@h.example/x", "gs://b/x?X-Goog-Signature=pa55", "ray://me:pa55@h:10001"),
)
WHERE_URLS_ARE = (
    *("runs_dir={}", "ledger={}", "address={}", "conf_dir={}", "task.dataset.path={}", "model.params.base_url={}"),
    *("model.params.engine={}", "{}", "{}=1", "model={}", "nothing={}", "limit={}", "budget.usd=[{}", "pool={}"),
    *("model.params={{engine: '{}'}}", "run_id={}", "files_mode={}"),
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("word", WHERE_URLS_ARE)
def test_a_url_with_credentials_is_refused_wherever_it_is_typed_and_shown_nowhere(word, url, bench):
    places = [word] if word.startswith("runs_dir") else [word, "runs_dir=/nowhere/runs"]
    done = bench(["model=openai_chat", *(place.format(url) for place in places)])
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert not re.search(r"pa/?55|tok3n", done.err), done.err


@pytest.mark.parametrize("url", URLS)
def test_so_is_one_in_the_endpoint_of_the_environment(url, bench, monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", url)
    done = bench(["model=openai_chat"])
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert not re.search(r"pa/?55|tok3n", done.err), done.err


@pytest.mark.parametrize("url", [url for url in URLS if "://" in url])
def test_so_is_one_whose_report_is_asked_for(url, capsys):
    import report

    assert report.main([url]) == 1
    printed = "".join(capsys.readouterr())
    assert printed.count("\n") == 1
    assert not re.search(r"pa/?55|tok3n", printed), printed


def test_what_a_bucket_needs_beside_a_key_is_no_credential():
    place = "s3://bucket/runs?region=eu-west-1&scheme=http&endpoint_override=h:9000"
    config = load(["model=mock", f"runs_dir={place}", "task.dataset.path=gs://anonymous@bucket/x.json"])
    assert config.options.runs_dir == place


@pytest.mark.parametrize("held", ["{}", "{}\n", "{}\r\n", "  {} ", "\t{}"])
@pytest.mark.parametrize("typed", ["{}", " {} ", "{}\n", "\n  {}\r\n", "is {}?", "x{}y"])
@pytest.mark.parametrize("key", ["/k3Jd9+abc/defGHI=", "sk-zq0123456789", "~p4ssw0rd", "-+=#key:{1}", "ключ-пароль"])
def test_a_key_is_found_with_any_first_character_and_white_space_around_it(monkeypatch, held, typed, key):
    monkeypatch.setenv("DB_PASS", held.format(key))
    with pytest.raises(UserError, match="holds what is in DB_PASS") as refused:
        load(["model=mock", f"model.params.answer='{typed.format(key)}'"])
    assert key not in str(refused.value)


@pytest.mark.parametrize("spelt", [quote("p4ss/w0rd%zq", safe=""), base64.b64encode(b"x:p4ss/w0rd%zq,").decode()])
def test_a_copy_in_a_url_or_in_base64_is_found_too(monkeypatch, spelt):
    monkeypatch.setenv("DB_PASS", "p4ss/w0rd%zq")
    assert "holds what is in DB_PASS" in refusal(f"model.params.answer=a {spelt} b")


def test_a_key_that_was_folded_in_yaml_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("DB_PASS", "abcdefgh01234567")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("name: mock\nparams:\n  answer: >\n    abcdefgh\n    01234567\n")
    assert "targets.mine.params.answer holds what is in DB_PASS" in refusal(f"conf_dir={tmp_path}", "model=mine")


@pytest.mark.parametrize("name", ["GITHUB_PAT", "DB_PASS", "OPENAI_API_KEY_PROD", "AUTH", "SESSION_COOKIE", "MY_PWD"])
@pytest.mark.parametrize("key", ["model.params.answer", "model.params.flip", "runs_dir", "model", "task.dataset.path"])
def test_no_key_takes_what_a_secrets_name_holds(monkeypatch, name, key):
    monkeypatch.setenv(name, f"{SECRET}-3")
    assert f"{name} holds a secret" in refusal(f"{key}=${{oc.env:{name}}}")


@pytest.mark.parametrize("key", ["sk-zq0123456789abcdef", "ghp_0123456789abcdefABCD", "Bearer abc.0123456789abcdef"])
def test_what_looks_like_a_key_is_refused_although_no_variable_holds_it(key):
    message = refusal(f"model.params.answer={key}")
    assert message.endswith("looks like a key; put it into the environment, and its variable in api_key_var")
    assert key not in message


def test_a_text_whose_key_says_that_it_is_one_is_refused():
    message = refusal("model=smollm2", "model.params.loading_params.token=abcdefghij")
    assert "targets.smollm2.params.loading_params.token looks like a key" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("SSH_KEY_PATH", "/home/me"), ("PASSWORD_STORE_DIR", "/home/me"), ("SSH_KEY", "/tmp"), ("MY_KEY", "~/data")],
)
def test_a_variable_with_the_path_of_a_secret_refuses_no_path(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    config = load(["model=mock", f"task.dataset.path={value}/data.json", f"runs_dir={value}"])
    assert config.options.runs_dir == value


def test_what_is_no_secret_goes(monkeypatch):
    for name, value in (("SSH_KEY", "/tmp"), ("SHORT_KEY", "maybe"), ("LLAMA_PATH", "/llama"), ("KEY_FILE", "/k")):
        monkeypatch.setenv(name, value)
    words = ["model=mock", "runs_dir=/tmp/runs", "ledger=s3://bucket@eu/ledger", "model.params.answer=maybe"]
    config = load([*words, "task.dataset.path=${oc.env:LLAMA_PATH}/${oc.env:KEY_FILE}"])
    assert [dataset.path for dataset in config.datasets.values()] == ["/llama//k"]
    assert load([*words[:-1], "model.params.answer=${oc.env:NOT_SET,none}"]).targets["mock"].params.answer == "none"


# A whole run, and everything it leaves behind


def spellings(text: str) -> list[bytes]:
    """A text as itself, in UTF-16, and as it stands in base64, wherever it begins there."""
    plain = text.encode()
    encoded = [base64.b64encode(b"\0" * shift + plain)[(0, 2, 3)[shift] : -4] for shift in range(3)]
    return [plain, text.encode("utf-16-le"), *encoded]


def opened(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as bytes in which a text can be seen: unpacked, decompressed, and of Parquet all values."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                yield from opened(f"{name}!{inner}", archive.read(inner))
    elif data.startswith(b"\x1f\x8b"):
        yield from opened(f"{name}!", gzip.decompress(data))
    elif data.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        yield name, repr([table.schema.metadata, table.to_pylist()]).encode()


def files_in(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with suppress(FileNotFoundError):  # Ray still runs
                    yield from opened(str(path), path.read_bytes())


def places_with(text: str, places: Iterable[tuple[str, bytes]]) -> list[str]:
    """The names of the places where a text stands, however it is spelt."""
    wanted = spellings(text)
    return [name for name, data in places if any(one in data for one in wanted)]


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_the_search_finds_a_key_wherever_it_hides(tmp_path, canary, before):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = f"{before}{canary} and more"
    (tmp_path / "plain").write_text(text)
    (tmp_path / "base64").write_bytes(base64.b64encode(text.encode()))
    (tmp_path / "gzip").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table({"step": [{"tries": [text]}]}), tmp_path / "parquet", compression="zstd")
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", text)
    found = places_with(canary, files_in(tmp_path))
    assert {Path(name.partition("!")[0]).name for name in found} == {"plain", "base64", "gzip", "parquet", "zip"}
    assert places_with(canary, [("nothing", b"sk-canary-")]) == []


ENDPOINTS = (
    *("/api/jobs/", "/api/v0/jobs", "/api/v0/actors?detail=1", "/api/v0/nodes?detail=1", "/api/v0/workers?detail=1"),
    *("/api/v0/tasks?detail=1", "/api/v0/objects?detail=1", "/api/v0/runtime_envs?detail=1"),
    *("/api/v0/placement_groups", "/api/v0/tasks/timeline", "/api/v0/tasks/summarize", "/api/v0/actors/summarize"),
    *("/api/v0/cluster_metadata", "/logical/actors", "/nodes?view=summary", "/nodes?view=hostNameList", "/events"),
    *("/api/cluster_status", "/api/component_activities", "/api/version", "/api/serve/applications/", "/cluster_id"),
)


def api_answers(head: Head) -> Iterator[tuple[str, bytes]]:
    """Everything that the dashboard tells about jobs, actors, nodes and logs."""

    def get(path: str) -> requests.Response:
        answer = requests.get(head.url + path, headers={"Authorization": f"Bearer {head.token}"}, timeout=60)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer

    for path in ENDPOINTS:
        yield path, get(path).content
    for job in get("/api/jobs/").json():
        for path in (f"/api/jobs/{job['submission_id']}", f"/api/jobs/{job['submission_id']}/logs"):
            yield path, get(path).content
        if job["job_id"]:
            yield "datasets", get(f"/api/data/datasets/{job['job_id']}").content
    nodes = get("/api/v0/nodes?detail=1").json()["data"]["result"]["result"]  # others may have come and gone
    (node,) = (node for node in nodes if node["is_head_node"])
    yield "node", get(f"/nodes/{node['node_id']}").content
    logs = get(f"/api/v0/logs?node_id={node['node_id']}").json()["data"]["result"]
    for name in (name for names in logs.values() for name in names if not name.endswith("/")):
        path = f"/api/v0/logs/file?node_id={node['node_id']}&filename={name}&lines=-1"
        yield path, get(path).content


@pytest.mark.processes
def test_a_key_is_in_nothing_that_a_run_leaves_behind(head, checkout, canary, deployment, tmp_path):
    """Refused, failing, killed, stopped and continued: and the endpoint says the key and the engine in its errors."""
    marker = "marked-" + tmp_path.name.replace("_", "-")
    echo: Any = b'{"error": {"message": "wrong key {key} of ENGINE for {prompt}", "code": "{key}", "type": null}}'
    echo = echo.replace(b"ENGINE", deployment.encode())
    faults = [
        Fault("reply", status=500, body=echo, times=1),
        Fault("reply", status=400, body=echo, match="diabet", times=-1),
        Fault("reset", every=17),
        Fault("garbage", every=13),
        Fault("429", every=11, retry_after=0.1),
    ]
    printed: list[tuple[str, bytes]] = []
    with OpenAIServer(key=canary, latency=0.1, faults=faults) as server:
        words = [
            *("model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"),
            *(f"run_id={marker}", f"runs_dir={tmp_path}", "pool.max_concurrency=4", "chaos.kill_actor_every=25"),
            *("fail_if.failed_above=1", "'model.params.engine=${oc.env:DEPLOYMENT}'"),
        ]
        job = head.submit(checkout, *words, **{STOP_WAIT: "60"})
        wait_until(lambda: server.answered >= 15, "15 answers")
        head.client.stop_job(job)
        status, log = head.ended(job)
        assert status == JobStatus.STOPPED
        printed.append((f"log {marker}", log.encode()))
        done = head.run(log.splitlines()[-1].partition("Continue with: ")[2], checkout)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append((f"ray job submit {marker}", (done.stdout + done.stderr).encode()))
        assert server.answered >= DEMO_YES_NO / 2  # which it does for nobody without the key
        assert {request.model for request in server.requests if request.prompt_sha} == {deployment}
    with OpenAIServer(key=f"another-{canary}", faults=[Fault("reply", status=401, body=echo, times=-1)]) as refusing:
        words = [*words[:2], f"model.params.base_url={refusing.base_url}", *words[4:], f"run_id={marker}-refused"]
        status, log = head.ended(head.submit(checkout, *words))
        assert status == JobStatus.FAILED
        assert "cannot go on" in log
        printed.append((f"log {marker}", log.encode()))

    notes = json.loads((tmp_path / marker / "calls.json").read_text())["models"][0]
    assert notes["failed"] > 0 < notes["retried"]
    assert "an actor died" in printed[0][1].decode() + printed[1][1].decode()
    for what, places in {
        "the run directory": list(files_in(tmp_path / marker)),
        "the ledger": list(files_in(tmp_path / "ledger")),
        "Ray's session": list(files_in(head.session)),
        "Ray's API": list(api_answers(head)),
        "what was printed": [*printed, ("ray start", head.log.read_bytes())],
    }.items():
        assert places_with(marker, places), f"{what} was not searched"
        assert places_with(canary, places) == [], what
        assert places_with(deployment, places) == [], what
