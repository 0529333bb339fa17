"""A run whose endpoint goes away, for a while or for good; and what a run says when samples failed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import report
from faults import Fault
from openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

DEMO_YES_NO = 57
DEADLINE_S = 120.0


def words(server: OpenAIServer, *more: str) -> list[str]:
    return [
        *("model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"),
        *("pool.max_concurrency=4", "run_id=r", *more),
    ]


def outcomes(done: Any) -> dict[str, int]:
    (cell,) = json.loads(done.read("metrics.json"))["cells"]
    return {name: count for name, count in cell["outcomes"].items() if count}


class Restarting(OpenAIServer):
    """A server whose listening socket can be closed and opened again."""

    def close(self) -> None:
        self.port = int(self.azure_base.rpartition(":")[2])
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result()

    def open(self) -> None:
        asyncio.run_coroutine_threadsafe(self.start(self.port), self._loop).result()

    @contextmanager
    def closing_after(self, requests: int, for_s: float | None) -> Iterator[None]:
        """Close when so many requests have come, and open again after a while, or at the end."""
        ended = threading.Event()

        def close_and_open() -> None:
            deadline = time.monotonic() + DEADLINE_S
            while len(self.requests) < requests and time.monotonic() < deadline:
                ended.wait(0.01)
            self.close()
            ended.wait(for_s)
            self.open()

        thread = threading.Thread(target=close_and_open)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def test_an_endpoint_that_goes_away_in_mid_run_and_comes_back_costs_no_sample(
    bench: Callable[[Sequence[str]], Any],
) -> None:
    with Restarting(latency=0.2, answer=lambda prompt: "Yes") as server:
        with server.closing_after(20, for_s=6.0):
            done = bench(words(server))
        asked = len(server.requests)
    assert done.status == 0, done.err
    assert outcomes(done) == {"scored": DEMO_YES_NO}
    notes = "\n".join(line for line in done.err.splitlines() if line.startswith("note: model openai_chat"))
    assert f": {server.base_url} lets nobody through (connection failed: " in notes
    assert f": {server.base_url} answers again, after " in notes
    assert asked <= DEMO_YES_NO + 4  # those that were in flight are asked again


def test_an_endpoint_that_stays_away_stops_the_run_which_the_same_command_completes(
    bench: Callable[[Sequence[str]], Any],
) -> None:
    with Restarting(latency=0.2, answer=lambda prompt: "Yes") as server:
        with server.closing_after(20, for_s=None):
            first = bench(words(server, "rate.give_up_after_s=3"))
        assert first.status == 4, first.err
        (reason,) = [line for line in first.err.splitlines() if line.startswith("stopped: ")]
        assert reason.startswith("stopped: model openai_chat")
        assert (
            f" (target) cannot go on: {server.base_url} has let nobody through for 3 s (rate.give_up_after_s): "
            "connection failed: "
        ) in reason
        assert "Continue with: python jobs/bench.py model=openai_chat" in first.err
        answered = sum(record.status == 200 for record in server.requests)
        second = bench(words(server, "rate.give_up_after_s=3"))
        assert second.status == 0, second.err
        assert outcomes(second) == {"scored": DEMO_YES_NO}
        assert sum(record.status == 200 for record in server.requests) <= DEMO_YES_NO + 4
        assert answered >= 10


def test_an_endpoint_that_was_never_there_stops_the_run_with_the_calls_that_were_tried(
    bench: Callable[[Sequence[str]], Any],
) -> None:
    with Restarting() as server:
        server.close()
        done = bench(words(server, "rate.give_up_after_s=2"))
        server.open()
        assert server.requests == []
    assert done.status == 4, done.err
    assert f"{server.base_url} has let nobody through for 2 s" in done.err
    (took,) = json.loads(done.read("calls.json"))["models"]
    assert (took["answered"], took["calls"] > 0) == (0, True)


def test_a_run_of_which_many_samples_failed_says_why_and_exits_with_2(
    bench: Callable[[Sequence[str]], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = [Fault("reply", times=-1, status=400, body=b'{"error": "not so"}')]
    with OpenAIServer(faults=refusing) as server:
        done = bench(words(server))
        tolerant = bench(words(server, "fail_if.failed_above=1"))
    why = f"{DEMO_YES_NO} of {DEMO_YES_NO} samples failed: {DEMO_YES_NO} × openai_chat bad_request (HTTP 400: not so)"
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(f"failed: {why}")
    assert tolerant.status == 2  # No sample at all was scored.
    assert "no sample was scored in 1 cell" in tolerant.err.splitlines()[-1]
    assert report.main([str(done.run)]) == 0
    assert f"warning: {why}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "status"), [((), 2), (("fail_if.failed_above=0.5",), 0), (("fail_if.coverage_below=0.9",), 2)]
)
def test_the_share_of_failed_samples_that_is_borne_is_given(
    bench: Callable[[Sequence[str]], Any], given: tuple[str, ...], status: int
) -> None:
    done = bench(["model=mock", "model.params.error_rate=0.2", *given])
    assert done.status == status, done.err
    assert "samples failed: " in done.out
    assert ("failed: " in done.err) == bool(status)
