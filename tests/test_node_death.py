"""A machine dies under a run, and the process of a local model: nothing is lost, and little is asked twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import report
import tiny_llama
from openai_server import OpenAIServer
from ray.job_submission import JobStatus
from ray_head import Head, Worker
from waiting import wait_until

AT_ONCE = 4  # calls an actor has in flight
TASKS = "task=mcqabaseline,spelling_robustness"
DISTINCT = 342  # prompts of these tasks, which share those without a mistake
pytestmark = pytest.mark.processes


def run_directory(runs_dir: Path) -> Path:
    (path,) = runs_dir.glob("*/metrics.json")
    return path.parent


def add_up(one: Path, other: Path) -> bool:
    """Whether a run that was disturbed comes to the bytes of one that was not, and its audit holds."""
    same = (run_directory(one) / "metrics.json").read_bytes() == (run_directory(other) / "metrics.json").read_bytes()
    return same and report.main([str(run_directory(one)), "--audit"]) == 0


def ended_well(head: Head, job: str) -> str:
    status, log = head.ended(job)
    assert status == JobStatus.SUCCEEDED, log
    return log


def wait_for(head: Head, job: str, true: Callable[[], bool], what: str) -> None:
    """Wait until something is true of a job that goes on."""
    wait_until(lambda: true() or head.client.get_job_status(job).is_terminal(), what)
    assert not head.client.get_job_status(job).is_terminal(), head.client.get_job_logs(job)


def test_a_node_that_dies_takes_what_was_in_flight_on_it_and_no_more(head, checkout, canary, tmp_path):
    with OpenAIServer(key=canary) as server, Worker(head) as one, Worker(head) as other:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        ended_well(head, head.submit(checkout, *words, TASKS, f"runs_dir={tmp_path}/whole"))
        server.reset()
        server.latency = 0.2
        words += [TASKS, f"pool.max_concurrency={AT_ONCE}", "pool.num_cpus=1", "pool.min_size=3"]
        job = head.submit(checkout, *words, f"runs_dir={tmp_path}/disturbed")
        wait_for(head, job, lambda: len(server.requests) >= DISTINCT // 2, "half of the requests")
        next(worker for worker in (one, other) if worker.runs("PoolActor")).kill()
        log = ended_well(head, job)
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert "an actor died; what it was asking is asked again" in log
    assert distinct == DISTINCT
    assert asked - distinct <= 2 * AT_ONCE  # in flight, or answered in the moment before
    assert add_up(tmp_path / "disturbed", tmp_path / "whole")


def test_a_local_model_whose_process_dies_is_loaded_again(head, checkout, tmp_path):
    checkpoint = tiny_llama.build(tmp_path / "llama", max_position_embeddings=4096)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/tiny.yaml").write_text(
        f"name: huggingface_llm\nparams:\n  model_name: {checkpoint}\n  loading_params: {{dtype: float32}}\n"
        "  generation_config: {max_new_tokens: 8}\n  is_finetuned: true\n"
    )
    words = ["model=tiny", f"conf_dir={tmp_path}/conf", "limit=40"]

    def answers() -> int:
        lines = [line for file in tmp_path.glob("disturbed/ledger/*") for line in file.read_bytes().splitlines()]
        return sum(line[9:10] == b"a" for line in lines)

    whole = head.submit(checkout, *words, f"runs_dir={tmp_path}/whole")
    _, log = head.ended(whole)
    assert head.client.get_job_info(whole).driver_exit_code in (0, 2), log  # a random model need not say yes or no
    job = head.submit(checkout, *words, f"runs_dir={tmp_path}/disturbed")
    wait_for(head, job, lambda: answers() > 0, "an answer")
    (actor,) = head.runs("PoolActor")
    actor.kill()
    _, log = head.ended(job)
    assert "an actor died; what it was asking is asked again" in log
    assert head.client.get_job_info(job).driver_exit_code == head.client.get_job_info(whole).driver_exit_code
    assert answers() == 40
    assert add_up(tmp_path / "disturbed", tmp_path / "whole")
