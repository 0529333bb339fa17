"""Ledgers that earlier versions wrote: every answer in them is served, word for word, and counted as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ledger_lines import rid
from recorded_runs import lasting

from rambla_ray.ledger.record import Record
from rambla_ray.ledger.spent import Spent
from rambla_ray.ledger.store import Ledger
from rambla_ray.schema import CallTrace, Response, Try
from rambla_ray.storage import Folder

FOLDER = Path(__file__).parent / "data" / "recorded" / "2026-11"
RUN_ID = "mock-2tasks-580dd227"
COMMAND = [
    *("model=mock", "task=paraphrase,spelling_robustness", "limit=4", "roles.rephraser=mock"),
    *("model.params.behaviour=format", "model.params.error_rate=0.2", "chaos.http500=0.2"),
]


def bodies(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The lines of a kind as the files have them, read without the package: request_id → JSON body."""
    lines = [line.split(" ", 4) for path in folder.glob("*.ledger") for line in path.read_text().splitlines()]
    return {request_id: json.loads(body) for _, its_kind, request_id, _, body in lines if its_kind == kind}


def test_every_recorded_answer_is_served() -> None:
    ledger = Ledger(Folder(str(FOLDER / "ledger")), "a new run")
    recorded = bodies(FOLDER / "ledger", "a")
    assert (len(ledger), ledger.damaged, ledger.newer, len(recorded)) == (27, 0, {}, 27)
    for request_id, body in recorded.items():
        response = ledger.get(request_id)
        assert response == Response(
            body["text"],
            body["finish_reason"],
            body["prompt_tokens"],
            body["completion_tokens"],
            body["latency_s"],
            CallTrace(body["waited_s"], body["attempts"], body["hedged"], tuple(Try(*row) for row in body["tries"])),
        )
    assert all(ledger.get(request_id) is None for request_id in bodies(FOLDER / "ledger", "f"))


def test_what_the_recorded_run_spent_is_counted_as_it_was() -> None:
    spent = Ledger(Folder(str(FOLDER / "ledger")), RUN_ID).spent
    for entry in json.loads((FOLDER / RUN_ID / "calls.json").read_text())["models"]:
        counted = asdict(spent[entry["model"], entry["role"]])
        assert counted == {name: entry.get(name, 0) for name in counted}  # What is counted since then is 0.


def test_recorded_lines_are_still_written_as_they_were() -> None:
    (segment,) = (FOLDER / "ledger").glob("*.ledger")
    records = [line for line in segment.read_bytes().splitlines(keepends=True) if line[9:10] in b"af"]
    assert [Record.from_line(line).to_line() for line in records] == records


def test_every_kind_of_recorded_line_is_read() -> None:
    ledger = Ledger(Folder(str(FOLDER / "every_kind")), "recorded")
    assert (len(ledger), ledger.damaged, ledger.newer) == (5, 0, {})
    texts = {
        name: response and response.text
        for name in ("hedged", "strange", "judged", "elsewhere", "failed")
        for response in [ledger.get(rid(name))]
    }
    assert texts == {
        "hedged": "No",
        "strange": "\ud800\x00\u2028\né😀",
        "judged": "0.5",
        "elsewhere": "of another run",
        "failed": None,
    }
    tries = (Try(1795780000.0, 0.75, "server: HTTP 500"), Try(1795780001.0, 0.5))
    assert ledger.get(rid("answered")) == Response("Yes.", "stop", 120, 3, 0.5, CallTrace(0.25, 2, 0, tries))
    assert ledger.spent == {
        ("m", "target"): Spent(
            8, 3, 3, 1, 1, 3, prompt_tokens=321, completion_tokens=8, calling_s=93.25, waited_s=4.25
        ),
        ("m", "judge"): Spent(calls=1, answered=1, prompt_tokens=10),
    }
    assert ledger.deaths == {rid("died"): 2}


def test_the_recorded_run_again_asks_only_what_failed_and_scores_the_same(
    bench: Callable[[Sequence[str]], Any], ray_cluster: None, tmp_path: Path
) -> None:
    shutil.copytree(FOLDER / "ledger", tmp_path / "ledger")
    done = bench([*COMMAND, "fail_if.failed_above=1", f"ledger={tmp_path / 'ledger'}"])
    assert (done.status, done.run.name) == (0, RUN_ID), done.err
    recorded = json.loads((FOLDER / RUN_ID / "metrics.json").read_text())
    assert lasting(json.loads(done.read("metrics.json"))) == lasting(recorded)
    errors = (FOLDER / RUN_ID / "errors.jsonl").read_text()
    assert sorted(done.read("errors.jsonl").splitlines()) == sorted(errors.splitlines())
    before = {entry["role"]: entry for entry in json.loads((FOLDER / RUN_ID / "calls.json").read_text())["models"]}
    calls = json.loads(done.read("calls.json"))
    for entry in calls["models"]:
        assert entry["answered"] == before[entry["role"]]["answered"]
    assert calls["invocations"][-1]["calls"] == sum(entry["failed"] for entry in before.values()) == 5
    for kind in "af":
        assert bodies(tmp_path / "ledger", kind).keys() == bodies(FOLDER / "ledger", kind).keys()
