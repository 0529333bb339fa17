"""Whole runs with a model behind the Messages API and one behind the Responses API: what is stored, and paid once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from anthropic_server import THOUGHT, AnthropicServer
from conftest import KEY, Bench
from responses_server import SUMMARY, ResponsesServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

Run = Callable[[Sequence[str]], Bench]
COUNT = 12
CLAUDE = """
name: anthropic_messages
params:
  engine: claude-x
  base_url: {base_url}
  api_key_var: OPENAI_API_KEY
  max_tokens: 60
  thinking: adaptive
  effort: low
  system: Answer with yes or no.
"""
GPT = """
name: openai_responses
params:
  engine: gpt-x
  api_type: openai
  base_url: {base_url}
  max_output_tokens: 60
  reasoning_effort: low
  reasoning_summary: auto
  system: Answer with yes or no.
"""


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The steps of all samples of a run."""
    samples = pq.read_table(run / "samples").to_pylist()
    return [step for sample in samples for step in sample["steps"]]


@pytest.mark.parametrize(
    ("server", "config", "reasoning", "served"),
    [
        (AnthropicServer(key=KEY, modern=True, answer=lambda prompt: "Yes."), CLAUDE, THOUGHT, "claude-x-20260101"),
        (ResponsesServer(key=KEY, modern=True, answer=lambda prompt: "Yes."), GPT, SUMMARY, "gpt-x-2026-01-01"),
    ],
    ids=["anthropic_messages", "openai_responses"],
)
def test_a_run_stores_what_came_and_another_with_its_ledger_asks_nothing(
    bench: Run, tmp_path: Path, server: Any, config: str, reasoning: str, served: str
) -> None:
    with server:
        (tmp_path / "conf/model").mkdir(parents=True)
        (tmp_path / "conf/model/own.yaml").write_text(config.format(base_url=server.base_url))
        words = ["model=own", f"conf_dir={tmp_path / 'conf'}", f"limit={COUNT}", f"ledger={tmp_path / 'ledger'}"]
        first = bench([*words, f"runs_dir={tmp_path / 'first'}"])
        asked = len(server.requests)
        again = bench([*words, f"runs_dir={tmp_path / 'again'}"])
        assert (first.status, again.status, asked, len(server.requests)) == (0, 0, COUNT, COUNT), first.err + again.err
    assert first.read("metrics.json") == again.read("metrics.json")
    (cell,) = json.loads(first.read("metrics.json"))["cells"]
    assert cell["outcomes"]["scored"] == COUNT
    for run in (first.run, again.run):
        steps = steps_of(run)
        assert {step["reasoning"] for step in steps} == {reasoning}
        assert {step["served_model"] for step in steps} == {served}
        assert {(step["text"], step["finish_reason"], step["cached_tokens"]) for step in steps} == {
            ("Yes.", "stop", 5)
        }
        assert all(step["prompt_tokens"] > 5 and step["reasoning_tokens"] > 5 for step in steps)
    assert KEY not in "".join(path.read_text(errors="replace") for path in first.run.rglob("*") if path.is_file())


def test_a_temperature_that_the_engine_refuses_stops_the_run_after_one_call(bench: Run, tmp_path: Path) -> None:
    with AnthropicServer(key=KEY, modern=True) as server:
        (tmp_path / "conf/model").mkdir(parents=True)
        (tmp_path / "conf/model/own.yaml").write_text(CLAUDE.format(base_url=server.base_url))
        done = bench(["model=own", f"conf_dir={tmp_path / 'conf'}", f"limit={COUNT}", "model.params.temperature=0"])
        assert (done.status, len(server.requests)) == (4, 1), done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("stopped: ")]
    assert "engine claude-x does not take temperature: set params.temperature: null" in line
