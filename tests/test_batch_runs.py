"""Runs whose requests go to the provider in batches, at the real command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import report
from batch_server import BatchServer, Script
from conftest import Bench
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
    assert "batch" not in live.read("config.yaml")
    assert {step["batch"] for step in steps(done)} == {"batch_0"}
    assert "batch batch_0 of 114 requests was sent" in done.err
    took = calls(done)
    assert (took["calls"], took["answered"], took["repeated"]) == (114, 114, 0)
    assert report.main([str(done.run), "--audit"]) == 0
    assert set(server.deleted) >= {"file-0"}


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_batch_does_not_answer_is_asked_live(bench: Run) -> None:
    faults = [Fault("500", match="one", times=1)]
    with BatchServer(Script(expires=("two",)), faults=faults) as server:
        done = bench(words(server))
    assert done.status == 0, done.err
