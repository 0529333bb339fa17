"""The progress of a run while it lasts: lines, notes and the live table."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from rambla_ray.results import progress


class Counts:
    """The ledger service's counts, the same each time, and an event once they were asked for so often."""

    def __init__(self, enough: int = 0, **changes: object) -> None:
        self.left, self.enough = enough, threading.Event()
        self.counts = {
            "calls": 3,
            "in_flight": 2,
            "spent": [],
            "models": {"m": {}},
            "notes": [],
            "budget": "",
            "work": {},
            "batches": {},
        }
        self.counts |= changes

    def __call__(self) -> Mapping[str, Any]:
        self.left -= 1
        if self.left <= 0:
            self.enough.set()
        return self.counts


def test_each_note_is_told_once_even_in_the_last_moment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    notes = ["slow \x1b[31m[bold]host[/bold]", "second"]
    counts = Counts(5, notes=notes)
    with progress.Progress({"m": 10}, ["m"], counts):
        assert counts.enough.wait(20)
        notes.append("last")
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        r"note: slow \x1b[31m[bold]host[/bold]",
        "note: second",
        "note: last",
    ]


def test_a_line_of_progress_has_samples_calls_and_the_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    counts = Counts(5, budget="$0.10 of $1")
    with progress.Progress({"m": 10}, ["m"], counts) as shown:
        shown.add("m", "scored", 3)
        shown.add("m", "failed")
        assert counts.enough.wait(20)
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"\d+ s: 4/10 samples \(1 failed, 3 scored\), 3 calls, 2 in flight, [\d.]+ samples/s, budget \$0\.10 of \$1",
        line,
    )


def test_a_line_of_progress_says_how_far_each_of_several_targets_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    counts = Counts(5)
    with progress.Progress({"m": 10, "n": 10}, ["m", "n"], counts, {"n": "n[seed=1]"}) as shown:
        shown.add("n", "scored", 3)
        assert counts.enough.wait(20)
    line = capsys.readouterr().err.splitlines()[-1]
    assert ": 3/20 samples (3 scored), of each 10: m 0, n[seed=1] 3, 3 calls" in line


def test_a_line_of_progress_says_how_far_batches_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    counts = Counts(5, batches={"gpt": (2, 3400, 10_000), "m": (1, 0, 5)})
    with progress.Progress({"m": 10}, ["m"], counts):
        assert counts.enough.wait(20)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("samples/s; gpt 2 batches, 3,400 of 10,000 done; m 1 batch, 0 of 5 done")


def test_counts_that_cannot_be_had_are_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    asked = threading.Semaphore(0)

    def gone() -> Mapping[str, Any]:
        asked.release()
        raise ConnectionError("the ledger service is gone")

    with progress.Progress({"m": 10}, ["m"], gone):
        for _ in range(3):
            assert asked.acquire(timeout=20)
    assert capsys.readouterr().err == ""


def test_the_live_table_has_a_row_per_model_and_role_with_the_samples_of_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    entry = {"model": "m", "role": "judge", "answered": 11, "retried": 5, "failed": 1}
    counts = Counts(2, notes=["look"], spent=[{**entry, "prompt_tokens": 1234, "completion_tokens": 77}])
    with progress.Progress({"t": 10, "u": 10}, ["m"], counts) as shown:
        shown.add("u", "scored", 7)
        assert counts.enough.wait(20)
    out = terminal.getvalue()
    assert all(word in out for word in ("note: look", "7/20 samples", "judge", "11", "1234", "77"))
    assert re.search(r"t[ │]+target[ │]+0/10 .*u[ │]+target[ │]+7/10 ", out, re.DOTALL), "a row for each target"
