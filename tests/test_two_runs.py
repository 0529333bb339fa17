"""Two runs on one ledger at the same time: what they have in common is asked once, and each accounts for its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report
from driver import AT_ONCE, Driver, calls_of, metrics_of, repeats, wait_for_distinct
from openai_server import OpenAIServer
from waiting import wait_until

SHARED = 57  # The demo's questions with yes or no, which both runs ask.
pytestmark = pytest.mark.processes


def start(server: OpenAIServer, folder: Path, name: str, task: str) -> Driver:
    return Driver(server, folder / name, f"task={task}", f"ledger={folder / 'ledger'}")


def wait_for_writers(folder: Path, count: int) -> None:
    """Wait until so many runs have claimed something."""
    register = folder / "ledger" / "writers.lock"
    wait_until(lambda: register.exists() and len(register.read_text().splitlines()) >= count, f"{count} runs")


def audited(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A run's entry in calls.json; its audit holds."""
    (run,) = (path.parent for path in (folder / name).glob("*/calls.json"))
    capsys.readouterr()
    assert report.main([str(run), "--audit"]) == 0, capsys.readouterr().out
    assert report.main([str(run), "--recompute"]) == 0
    return calls_of(folder / name)


def samples_of(folder: Path, name: str) -> int:
    return int(sum(cell["n"] for cell in json.loads(metrics_of(folder / name))["cells"]))


def test_two_runs_ask_what_they_have_in_common_once_and_both_account_for_it(tmp_path, capsys):
    with OpenAIServer(latency=3.0) as server:
        runs = {
            "one": start(server, tmp_path, "one", "mcqabaseline"),
            "other": start(server, tmp_path, "other", "mcqabaseline,irrelevant_context"),
        }
        wait_for_writers(tmp_path, 2)
        server.latency = 0.1
        for driver in runs.values():
            status, _, err = driver.finish()
            assert status == 0, err
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert asked == distinct > SHARED
    one, other = (audited(tmp_path, name, capsys) for name in runs)
    assert one["calls"] + other["calls"] == asked
    for name, entry in (("one", one), ("other", other)):
        assert entry["calls"] == entry["answered"]
        assert entry["answered"] + entry["reused"] == samples_of(tmp_path, name)
        assert (entry["repeated"], entry["prompt_tokens"] > 0) == (0, entry["answered"] > 0)
    assert one["reused"] + other["reused"] == SHARED


def test_a_run_takes_over_what_one_that_is_killed_was_asking(tmp_path, capsys):
    with OpenAIServer(latency=3.0) as server:
        killed = start(server, tmp_path, "killed", "mcqabaseline")
        wait_for_distinct(server, 1)  # It has claimed its first questions.
        other = start(server, tmp_path, "other", "mcqabaseline,irrelevant_context")
        wait_for_writers(tmp_path, 2)
        killed.process.kill()
        killed.finish()
        server.latency = 0.1
        status, _, err = other.finish()
        assert status == 0, err
        assert repeats(server) <= 2 * AT_ONCE  # those in flight, and those whose answers were not durable yet
        asked = len(server.requests)
        status, _, err = start(server, tmp_path, "killed", "mcqabaseline").finish()
        assert (status, len(server.requests)) == (0, asked), err
    took, again = audited(tmp_path, "other", capsys), audited(tmp_path, "killed", capsys)
    assert (again["answered"] + again["reused"], again["answered"] < SHARED) == (SHARED, True)
    assert took["answered"] + took["reused"] == samples_of(tmp_path, "other")
    paid = again["calls"] + took["calls"]
    assert paid <= asked <= paid + again["repeated"]
