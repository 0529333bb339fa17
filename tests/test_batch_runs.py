"""Runs whose requests go to the provider in batches, at the real command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import report
from batch_server import BatchServer, Script
from conftest import KEY, Bench
from faults import Fault
from openai_server import OpenAIServer

Run = Callable[[Sequence[str]], Bench]


def words(server: OpenAIServer, *more: str, batch: str = "{max_wait_s: 60, poll_s: 0.05}") -> list[str]:
    model = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
    return [*model, *([f"model.batch={batch}"] if batch else []), "task=mcqabaseline,irrelevant_context", *more]


def calls(done: Bench) -> dict[str, Any]:
    (entry,) = json.loads(done.read("calls.json"))["models"]
    return dict(entry)


def steps(done: Bench) -> list[dict[str, Any]]:
    files = (done.run / "samples").rglob("*.parquet")
    return [row["steps"][-1] for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_a_batch_gives_the_same_bytes_as_the_live_run(
    bench: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(Script(takes_s=0.5, is_messy=True)) as server:
        live = bench(words(server, f"runs_dir={tmp_path / 'live'}", batch=""))
        asked = server.live_calls
        done = bench(words(server, f"runs_dir={tmp_path / 'batch'}"))
    assert (live.status, done.status) == (0, 0), done.err
    assert done.read("metrics.json") == live.read("metrics.json")
    assert (server.live_calls, len(server.batches)) == (asked, 1)
    assert done.run.name == live.run.name
    assert "\n    batch:" not in live.read("config.yaml")
    assert {step["batch"] for step in steps(done)} == {"batch_0"}
    assert "batch batch_0 of 114 requests was sent" in done.err
    took = calls(done)
    assert (took["calls"], took["answered"], took["repeated"]) == (114, 114, 0)
    assert report.main([str(done.run), "--audit"]) == 0
    assert set(server.deleted) >= {"file-0"}


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_batch_does_not_answer_fails_or_is_asked_live(bench: Run) -> None:
    """Prompts about strokes and diabetes are not asked in any batch, those about trials fail once each."""
    with BatchServer(Script(expires=("stroke", "diabet")), faults=[Fault("500", match="trial", times=1)]) as server:
        failing = bench(words(server, "run_id=r", batch="{max_wait_s: 60, then: fail, poll_s: 0.05}"))
        ends, failed = Counter(step["error_kind"] for step in steps(failing)), calls(failing)["failed"]
        assert (failing.status, server.live_calls) == (2, 0), failing.err
        done = bench(words(server, "run_id=r"))
    assert ends["server"] == failed > 0 < ends["timeout"] == 114 - ends["server"] - ends[""]
    assert done.status == 0, done.err
    assert not any(step["error_kind"] for step in steps(done))
    assert (len(server.batches), server.live_calls) == (2, ends["timeout"])


@pytest.mark.parametrize("status", [404, 501])
def test_an_endpoint_without_batches_is_refused_before_anything_is_asked(
    bench: Run, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with BatchServer(Script(status=status)) as server:
        done = bench(words(server, "address=local"))
        host = server.base_url
    assert done.status == 1
    reason = f"has no batch API (HTTP {status} to a question for its batches); leave batch out"
    assert done.err == f"error: model openai_chat: {host} {reason}\n"
    assert (server.live_calls, server.files) == (0, {})


REFUSED = {
    "model.batch={max_wait: 3}": "max_wait",
    "model.batch={max_wait_s: 0}": "max_wait_s",
    "model.batch={then: later}": "then",
    "model.batch=yes": "batch",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_section_that_cannot_be_is_one_line(bench: Run, word: str) -> None:
    done = bench(["model=openai_chat", "model.params.api_type=openai", word, "dry_run=true"])
    assert (done.status, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert REFUSED[word] in line


def test_a_model_without_a_batch_api_and_azure_by_deployment_are_refused_in_one_line(bench: Run) -> None:
    for model, words_of in (("mock", "has no batch API"), ("openai_chat", "asks Azure by deployment")):
        azure = ["model.params.api_type=azure", "model.params.base_url=https://a.b", "model.params.api_version=1"]
        done = bench([f"model={model}", *(azure if model != "mock" else []), "model.batch={}", "dry_run=true"])
        assert done.status == 1
        (line,) = done.err.splitlines()
        assert words_of in line
