"""What replies mean for a whole run: what was charged is counted, and what ends a run ends it so that it can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer
from test_forbidden import PAGE, PLAIN, REASONS

pytestmark = pytest.mark.usefixtures("ray_cluster")

Run = Callable[[Sequence[str]], Bench]
COST = 900  # What each of these replies cost.
COUNT = 40


def reply(message: dict[str, Any] | None, reason: str) -> Fault:
    usage = {"prompt_tokens": 100, "completion_tokens": COST - 100}
    body = {"choices": [{"index": 0, "finish_reason": reason, "message": message}], "usage": usage}
    return Fault("reply", body=json.dumps(body).encode(), times=-1)


THOUGHT = reply({"role": "assistant", "content": None, "reasoning_content": "Let me see."}, "length")
FILTERED = reply(None, "content_filter")


@pytest.fixture
def items(tmp_path: Path) -> str:
    """Questions that differ in a number, the first of which speaks of something bad."""
    questions = [f"Is it {'bad' if number == 7 else 'so'}, number {number}?" for number in range(COUNT)]
    return write_items(tmp_path, {str(number): item(question) for number, question in enumerate(questions)})


def words(server: OpenAIServer, items: str, *more: str) -> list[str]:
    model = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
    return [*model, items, "run_id=r", *more]


def spent(done: Bench) -> dict[str, Any]:
    (entry,) = json.loads(done.read("calls.json"))["models"]
    return dict(entry)


def outcomes(done: Bench) -> dict[str, int]:
    (cell,) = json.loads(done.read("metrics.json"))["cells"]
    return {name: count for name, count in cell["outcomes"].items() if count}


@pytest.mark.parametrize(
    ("fault", "outcome", "ended"), [(THOUGHT, "truncated", "answered"), (FILTERED, "refused", "failed")]
)
def test_a_budget_holds_though_no_reply_has_a_text(
    bench: Run, items: str, fault: Fault, outcome: str, ended: str
) -> None:
    at_once, most = 4, 10 * COST
    with OpenAIServer(faults=[fault]) as server:
        done = bench(words(server, items, f"pool.max_concurrency={at_once}", f"budget.tokens={most}"))
        asked = len(server.requests)
    assert done.status == 4, done.err
    assert "the budget of 9000 tokens is spent (9000)" in done.err
    took = spent(done)
    assert (asked, took["calls"], took[ended], took["retried"]) == (10, 10, 10, 0)
    assert (took["prompt_tokens"], took["completion_tokens"]) == (10 * 100, 10 * (COST - 100))
    assert outcomes(done) == {outcome: 10}


def test_calls_json_has_the_tokens_of_attempts_that_gave_no_answer(bench: Run, items: str) -> None:
    broken = reply({"content": "Yes, bec"}, "abort")
    passing = Fault("reply", match="number 1?", body=broken.body, times=2)
    lasting = Fault("reply", match="number 2?", body=broken.body, times=-1)
    with OpenAIServer(answer=lambda prompt: "Yes", faults=[passing, lasting]) as server:
        price = "model.price={input_per_million: 1000000, output_per_million: 0}"
        done = bench(words(server, items, "limit=5", price, "fail_if.failed_above=1"))
    assert (done.status, outcomes(done)) == (0, {"scored": 4, "failed": 1}), done.err
    took = spent(done)
    assert (took["calls"], took["answered"], took["failed"], took["retried"]) == (11, 4, 1, 6)
    assert took["completion_tokens"] == 7 * (COST - 100) + 4
    assert took["cost_usd"] == took["prompt_tokens"] > 7 * 100


def test_answers_that_the_limit_cut_are_counted_and_the_key_to_raise_is_named(bench: Run, items: str) -> None:
    cut = dataclasses.replace(reply({"content": "Yes. It is so, as"}, "length"), match="number 3")
    thought = dataclasses.replace(THOUGHT, match="bad")
    with OpenAIServer(answer=lambda prompt: "Yes", faults=[cut, thought]) as server:
        done = bench(words(server, items, "model.params.max_tokens=50"))
        assert len(server.requests) == COUNT
    assert (done.status, outcomes(done)) == (0, {"scored": COUNT - 1, "truncated": 1}), done.err
    (cell,) = json.loads(done.read("metrics.json"))["cells"]
    assert cell["cut"] == {"count": 12, "share": 12 / COUNT}  # 3, 30 to 39, and the one that was thought about.
    assert f"raise max_tokens: 12 of {COUNT} answers were cut at 50 tokens" in done.out.replace("\n", " ")


@pytest.mark.parametrize(
    ("body", "pool"),
    [(REASONS, "pool.max_concurrency=64"), (PAGE, "pool.min_size=2"), (PLAIN, "pool.max_concurrency=1")],
    ids=["reasons", "page, two actors", "plain, one call at a time"],
)
def test_one_moderated_prompt_is_refused_and_the_run_ends_also_when_only_that_is_left(
    bench: Run, items: str, body: bytes, pool: str
) -> None:
    with OpenAIServer(answer=lambda prompt: "Yes") as server:
        server.faults = [Fault("reply", match="bad", status=403, body=body, times=-1)]
        first = bench(words(server, items, pool))
        assert (first.status, outcomes(first)) == (0, {"scored": COUNT - 1, "refused": 1}), first.err
        server.reset()
        again = bench(words(server, items, pool))
        assert (again.status, outcomes(again)) == (0, {"scored": COUNT - 1, "refused": 1}), again.err
        assert len(server.requests) == 1


def test_a_403_for_every_prompt_stops_the_run_which_goes_on_with_a_good_key(bench: Run, items: str) -> None:
    with OpenAIServer(answer=lambda prompt: "Yes") as server:
        for body in (REASONS, PLAIN):
            server.faults = [Fault("reply", status=403, body=body, times=-1)]
            stopped = bench(words(server, items))
            assert stopped.status == 4, stopped.err
            (line,) = [line for line in stopped.err.splitlines() if line.startswith("stopped: ")]
            assert "(target) cannot go on: HTTP 403: " in line
        server.faults = []
        done = bench(words(server, items))
        assert (done.status, outcomes(done)) == (0, {"scored": COUNT}), done.err


def test_credit_that_is_used_up_stops_the_run_in_one_line_as_often_as_it_is(bench: Run, items: str) -> None:
    body = json.dumps({"error": {"message": "Pay first.", "code": 402}}).encode()
    shown = {402: "HTTP 402: Pay first.", 400: "HTTP 400 402: Pay first.", 200: "HTTP 200 402: Pay first."}
    with OpenAIServer(answer=lambda prompt: "Yes") as server:
        for status, reason in shown.items():
            server.faults = [Fault("reply", match="bad", status=status, body=body, times=-1)]
            stopped = bench(words(server, items, "pool.max_concurrency=1"))
            assert stopped.status == 4, stopped.err
            assert f"cannot go on: {reason}" in stopped.err
            assert "Continue with: " in stopped.err
        server.faults = []
        done = bench(words(server, items, "pool.max_concurrency=1"))
        assert (done.status, outcomes(done)) == (0, {"scored": COUNT}), done.err
