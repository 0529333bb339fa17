"""Submitted jobs, on a real cluster through Ray's own client: what they print, how they stop, go on, and end."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench
import pytest
from faults import Fault
from openai_server import OpenAIServer
from ray.job_submission import JobStatus
from ray_head import Head
from waiting import wait_until

from rambla_ray.errors import UserError
from rambla_ray.run import job as jobs
from rambla_ray.run.job import ENOUGH_S, STOP_WAIT, SubmittedJob
from rambla_ray.run.pipeline import DRAIN_S

REPO = Path(__file__).resolve().parent.parent
DEMO_YES_NO = 57
AT_ONCE = 4
MOCK = ("model=mock", "task=all", "roles.rephraser=mock", "roles.judge=mock")


def submitted(monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any]) -> SubmittedJob:
    """This process as the driver of a job."""
    monkeypatch.setenv(jobs.CONFIG, json.dumps({"runtime_env": runtime_env, "metadata": {}}))
    monkeypatch.delenv(STOP_WAIT, raising=False)
    for name, value in runtime_env.get("env_vars", {}).items():
        monkeypatch.setenv(name, value)
    job = SubmittedJob.current()
    assert job is not None
    return job


def test_outside_of_a_job_there_is_none(monkeypatch):
    monkeypatch.delenv(jobs.CONFIG, raising=False)
    assert SubmittedJob.current() is None


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "1", '{"runtime_env": 1}', '{"runtime_env": {"env_vars": 1}}', "[" * 100_000]
)
def test_what_is_no_description_of_a_job_is_refused(monkeypatch, value):
    monkeypatch.setenv(jobs.CONFIG, value)
    with pytest.raises(UserError, match=f"{jobs.CONFIG} in the environment is not what Ray puts there"):
        SubmittedJob.current()


@pytest.mark.parametrize(("given", "wait_s"), [({}, 3), ({STOP_WAIT: "90"}, 90), ({STOP_WAIT: "soon"}, 3)])
def test_a_job_knows_how_long_it_has_to_stop(monkeypatch, capsys, given, wait_s):
    job = submitted(monkeypatch, {"env_vars": given})
    assert job.stop_wait_s == wait_s
    job.warn()
    printed = capsys.readouterr().err
    assert (f"kills this job after {wait_s} s" in printed) == (wait_s < ENOUGH_S)
    assert DRAIN_S < ENOUGH_S


@pytest.mark.parametrize(
    ("runtime_env", "words", "command"),
    [
        (
            {"working_dir": "gcs://_ray_pkg_0.zip", "env_vars": {STOP_WAIT: "60"}},
            ["python", "jobs/bench.py", "model=mock", "chaos={reset: 0.1}"],
            "ray job submit --address http://10.0.0.1:8265 --working-dir . --runtime-env-json "
            """'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' -- """
            "python jobs/bench.py model=mock 'chaos={reset: 0.1}'",
        ),
        (
            {"working_dir": "s3://bucket/code.zip", "pip": ["x"], "env_vars": {"LLAMA_FT_PATH": "/it's"}},
            ["python", "jobs/bench.py"],
            "ray job submit --address http://10.0.0.1:8265 --working-dir s3://bucket/code.zip --runtime-env-json "
            """'{"pip": ["x"], "env_vars": {"LLAMA_FT_PATH": "/it'"'"'s", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}' -- """
            "python jobs/bench.py",
        ),
        (
            {"env_vars": {STOP_WAIT: "60"}},
            ["python", "/opt/jobs/bench.py", "model=mock"],
            "ray job submit --address http://10.0.0.1:8265 --runtime-env-json "
            """'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' -- python /opt/jobs/bench.py model=mock""",
        ),
    ],
)
def test_the_command_that_continues_says_all_that_was_submitted(monkeypatch, runtime_env, words, command):
    assert submitted(monkeypatch, runtime_env).command(words, "10.0.0.1:8265") == command


def test_where_ray_gives_every_job_enough_time_the_command_is_short(monkeypatch):
    job = submitted(monkeypatch, {"working_dir": "gcs://_ray_pkg_0.zip"})
    assert "--runtime-env-json" in job.command(["python", "b.py"], "h:1")
    monkeypatch.setenv(STOP_WAIT, "60")
    job = SubmittedJob.current()
    assert job is not None
    assert (
        job.command(["python", "b.py"], "h:1") == "ray job submit --address http://h:1 --working-dir . -- python b.py"
    )
    assert job.command(["python", "b.py"], "") == "ray job submit --working-dir . -- python b.py"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_ENDPOINT", "HF_TOKEN", "RAY_AUTH_TOKEN"])
def test_a_key_that_came_with_the_job_is_refused_without_being_shown(monkeypatch, name):
    job = submitted(monkeypatch, {"env_vars": {"LLAMA_FT_PATH": "/x", name: "sk-shown-to-everybody"}})
    with pytest.raises(UserError, match=f"^{name} came in the job's runtime_env") as refused:
        job.refuse_secrets({"MY_ENDPOINT"})
    assert "sk-shown" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["runs_dir=runs"], {jobs.CONFIG: "{}"}, "runs_dir=runs is relative, and a job's working directory is a copy"),
        (["runs_dir=/r", "ledger=l"], {jobs.CONFIG: "{}"}, "ledger=l is relative, and a job's working directory"),
        ([], {jobs.CONFIG: "{}"}, "give a bucket or an absolute path: runs_dir=s3://BUCKET/runs"),
        (["runs_dir=r", "address=127.0.0.1:1"], {}, f"runs_dir={Path('r').absolute()}"),
        (["address=auto"], {}, "a cluster that is already running has another working directory"),
        ([], {"RAY_ADDRESS": "127.0.0.1:1"}, "runs_dir=runs is relative"),
        (
            ["runs_dir=./r", "address=local"],
            {"RAY_ADDRESS": "127.0.0.1:1", jobs.CONFIG: "{}"},
            "runs_dir=./r is relative",
        ),
    ],
)
def test_a_relative_place_is_refused_on_a_cluster(monkeypatch, capsys, words, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bench.main(["model=mock", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_plan_needs_no_place(monkeypatch, capsys):
    monkeypatch.setenv(jobs.CONFIG, "{}")
    assert bench.main(["model=mock", "dry_run=true"]) == 0
    assert "samples" in capsys.readouterr().out


@pytest.mark.processes
def test_a_python_without_the_packages_is_named(tmp_path):
    words = [sys.executable, "-I", "-S", str(REPO / "jobs/bench.py"), "model=mock"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: \S+ has no module \w+; activate the environment that has it", line)


def submit_words(server: OpenAIServer, runs_dir: Path | str) -> list[str]:
    return [
        *("model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"),
        *(f"runs_dir={runs_dir}", f"pool.max_concurrency={AT_ONCE}"),
    ]


def metrics_of(runs_dir: Path) -> bytes:
    (path,) = runs_dir.glob("*/metrics.json")
    return path.read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(head: Head, checkout: Path, canary: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """metrics.json of a job that nobody stopped, and whose results went to a filesystem by its URI."""
    runs_dir = tmp_path_factory.mktemp("whole")
    with OpenAIServer(key=canary) as server:
        status, log = head.ended(head.submit(checkout, *submit_words(server, f"file://{runs_dir}/runs")))
    assert status == JobStatus.SUCCEEDED, log
    assert "\x1b" not in log
    assert f"run: file://{runs_dir}/runs/openai_chat-" in log
    return metrics_of(runs_dir / "runs")


def continue_command(log: str) -> str:
    """The command at the end of the log of a job that was stopped."""
    last = log.splitlines()[-1]
    assert "what was answered is kept. Continue with: ray job submit" in last
    return last.partition("Continue with: ")[2]


@pytest.mark.processes
def test_a_stopped_job_drains_and_goes_on_to_the_same_bytes(head, checkout, canary, tmp_path, uninterrupted):
    with OpenAIServer(key=canary, latency=0.2) as server:
        job = head.submit(checkout, *submit_words(server, tmp_path), **{STOP_WAIT: "60"})
        wait_until(lambda: len(server.requests) >= 20, "20 requests")
        head.client.stop_job(job)
        status, log = head.ended(job)
        assert status == JobStatus.STOPPED
        assert "PARTIAL" in log
        partial = json.loads(metrics_of(tmp_path))["partial"]
        assert 0 < partial["samples"] < partial["expected"] == DEMO_YES_NO
        assert len(server.requests) == partial["samples"]  # what was in flight was kept
        done = head.run(continue_command(log), checkout)
        assert done.returncode == 0, done.stdout + done.stderr
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    assert asked == distinct == DEMO_YES_NO


@pytest.mark.processes
def test_a_call_that_does_not_end_is_given_up_before_ray_kills_the_job(
    head, checkout, canary, tmp_path, uninterrupted
):
    with OpenAIServer(key=canary, faults=[Fault("hang", every=20)]) as server:
        job = head.submit(checkout, *submit_words(server, tmp_path), **{STOP_WAIT: "20"})
        wait_until(lambda: len(server.requests) >= 40, "40 requests")
        head.client.stop_job(job)
        status, log = head.ended(job)
        assert status == JobStatus.STOPPED
        assert "ray job stop kills this job after 20 s" in log
        command = continue_command(log)
        assert json.dumps({"env_vars": {STOP_WAIT: str(ENOUGH_S)}}) in shlex.split(command)
        server.faults = []
        done = head.run(command, checkout)
        assert done.returncode == 0, done.stdout + done.stderr
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    assert 0 < asked - distinct <= AT_ONCE


@pytest.mark.processes
def test_a_job_that_is_killed_outright_repeats_at_most_what_was_in_flight_or_not_durable(
    head, checkout, canary, tmp_path, uninterrupted
):
    with OpenAIServer(key=canary, latency=0.2) as server:
        words = submit_words(server, tmp_path)
        job = head.submit(checkout, *words, **{STOP_WAIT: "0"})
        wait_until(lambda: len(server.requests) >= 20, "20 requests")
        head.client.stop_job(job)
        assert head.ended(job)[0] == JobStatus.STOPPED
        status, log = head.ended(head.submit(checkout, *words))
        assert status == JobStatus.SUCCEEDED, log
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    assert asked - distinct <= 2 * AT_ONCE  # those in flight, and those before them whose answers nobody kept


@pytest.mark.processes
def test_the_status_of_a_run_is_the_jobs(head, checkout, tmp_path):
    words = ["model=mock", f"runs_dir={tmp_path}", "model.params={behaviour: constant, answer: banana}"]
    done = head.run(
        f"ray job submit --address {head.url} --working-dir . -- python jobs/bench.py {shlex.join(words)}", checkout
    )
    assert done.returncode == 1
    label = "mock[answer=banana, behaviour=constant]"
    assert f"failed: no sample was scored in 1 cell, for example {label} mcqabaseline" in done.stdout
    (job,) = (one for one in head.client.list_jobs() if str(tmp_path) in one.entrypoint)
    assert (job.status, job.driver_exit_code) == (JobStatus.FAILED, 2)
    assert job.message is not None
    assert "failed with exit code 2" in job.message


@pytest.mark.processes
def test_a_relative_runs_dir_is_refused_in_the_jobs_log(head, checkout):
    job = head.submit(checkout, "model=mock")
    status, log = head.ended(job)
    assert status == JobStatus.FAILED
    assert head.client.get_job_info(job).driver_exit_code == 1
    assert log.splitlines()[-1].startswith("error: runs_dir=runs is relative, and a job's working directory is a copy")


@pytest.mark.processes
def test_what_is_uploaded_is_the_code_and_the_configs(head, checkout, tmp_path):
    job = head.submit(checkout, "model=mock", "dry_run=true")
    assert head.ended(job)[0] == JobStatus.SUCCEEDED
    package = Path(head.client.get_job_info(job).runtime_env["working_dir"]).stem
    folder = head.session / "runtime_resources/working_dir_files" / package
    uploaded = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert {"jobs", "conf", "rambla_ray", "pyproject.toml"} <= uploaded
    assert not uploaded & {"tests", "benchmarks", "runs", "llama", ".env", ".venv", ".git"}
    assert not [path for path in folder.rglob("*") if path.suffix in (".env", ".safetensors")]


@pytest.mark.processes
def test_results_can_go_to_a_filesystem_by_its_uri(uninterrupted):
    assert json.loads(uninterrupted)["partial"] is None


@pytest.mark.processes
def test_without_authentication_the_same_command_works(checkout, tmp_path):
    with Head(token=False, environment={}) as open_head:
        words = " ".join([*MOCK, "limit=12", f"runs_dir={tmp_path}"])
        done = open_head.run(
            f"ray job submit --address {open_head.url} --working-dir . -- python jobs/bench.py {words}", checkout
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(metrics_of(tmp_path))["partial"] is None
