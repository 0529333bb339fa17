"""A run against endpoints that think: what stands in the samples of what they thought, and of who answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Bench
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

COLUMNS = (
    *("text", "finish_reason", "reasoning", "reasoning_tokens", "served_model", "system_fingerprint"),
    *("cached_tokens", "cache_write_tokens", "provider"),
)
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 40},
}


def reply(match: str, message: dict[str, Any], reason: str = "stop", **more: Any) -> Fault:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}
    return Fault("reply", match, times=-1, body=json.dumps({"choices": [choice], "usage": USAGE, **more}).encode())


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    """The columns of the one step of each sample, by its number."""
    (file,) = (run / "samples").glob("*.parquet")
    rows = sorted(pq.read_table(file).to_pylist(), key=lambda row: int(row["root_id"]))
    return [tuple(step[name] for name in COLUMNS) for row in rows for step in row["steps"]]


def test_what_was_thought_and_who_answered_stand_in_the_samples(
    bench: Callable[[Sequence[str]], Bench], tmp_path: Path
) -> None:
    faults = [
        reply("number 0?", {"content": "Yes.", "reasoning_content": "No?"}, model="m-1", system_fingerprint="fp_1"),
        reply("number 1?", {"content": "<think>No?</think>Yes."}, model="m-1", system_fingerprint="fp_2"),
        reply("number 2?", {"content": "<think>Yes, since"}, "length", model="m-2", provider="Elsewhere"),
    ]
    items = write_items(tmp_path, {str(number): item(f"Is it so, number {number}?") for number in range(4)})
    with OpenAIServer(answer=lambda prompt: "Yes.", faults=faults) as server:
        model = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        runs = [bench([*model, items, f"run_id={name}"]) for name in ("asked", "from_the_ledger")]
        assert len(server.requests) == 4
    for done, name in zip(runs, ("asked", "from_the_ledger"), strict=True):
        assert done.status == 0, done.err
        run = done.runs_dir / name
        (cell,) = json.loads((run / "metrics.json").read_text())["cells"]
        assert {name: count for name, count in cell["outcomes"].items() if count} == {"scored": 3, "truncated": 1}
        assert steps_of(run) == [
            ("Yes.", "stop", "No?", 40, "m-1", "fp_1", 64, 0, ""),
            ("Yes.", "stop", "No?", 40, "m-1", "fp_2", 64, 0, ""),
            ("", "length", "Yes, since", 40, "m-2", "", 64, 0, "Elsewhere"),
            ("Yes.", "stop", "", 0, "gpt-4-32k", "", 0, 0, ""),
        ]
