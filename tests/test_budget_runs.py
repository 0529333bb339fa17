"""A run's budget holds at the real command: what the endpoint charges in all stays within it and one call's miss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Bench
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer

Run = Callable[[Sequence[str]], Bench]
LONGEST = 40  # Tokens of an answer at most.
USAGE = {"prompt_tokens": 60, "completion_tokens": LONGEST}
BROKEN = json.dumps({"choices": [{"finish_reason": "abort", "message": {"content": "Yes, bec"}}], "usage": USAGE})


class Meter(OpenAIServer):
    """An endpoint that adds up what it charges: a word is a token."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        super().__init__(answer=lambda prompt: "Yes", faults=faults)
        self.charged: list[tuple[int, int]] = []

    async def _reply(
        self, request: web.Request, fault: Fault | None, payload: dict[str, Any], prompt: str
    ) -> web.StreamResponse:
        usage = payload["usage"] if fault is None else json.loads(fault.body)["usage"]
        self.charged.append((usage["prompt_tokens"], usage["completion_tokens"]))
        return await super()._reply(request, fault, payload, prompt)

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.charged))

    @property
    def dearest(self) -> int:
        return max(map(sum, self.charged), default=0)


@pytest.fixture
def items(tmp_path: Path) -> str:
    context = "A finding, and what it means. " * 5
    rows = {str(number): item(f"Is it so, number {number}?", context=context) for number in range(120)}
    return write_items(tmp_path, rows)


def words(server: OpenAIServer, items: str, *more: str) -> list[str]:
    model = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
    return [*model, items, f"model.params.max_tokens={LONGEST}", "pool.max_concurrency=64", "run_id=r", *more]


BUDGETS = [("tokens=100", {1, 4}), ("tokens=700", {4}), ("tokens=5000", {4}), ("usd=5000", {4})]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("budget", "statuses", "fails"),
    [
        ("tokens=1", {1}, False),  # Nothing is sent that could fail.
        *((*row, fails) for row in BUDGETS for fails in (False, True)),
    ],
)
def test_what_an_endpoint_charges_stays_within_the_budget_and_one_call(
    bench: Run, items: str, budget: str, statuses: set[int], fails: bool
) -> None:
    faults = [Fault("reply", match="3?", body=BROKEN.encode(), times=2)] if fails else []
    price = "model.price={input_per_million: 1000000, output_per_million: 1000000}"  # A token is a dollar.
    with Meter(faults) as server:
        done = bench(words(server, items, f"budget.{budget}", price))
        most = int(budget.partition("=")[2])
        assert done.status in statuses, done.err
        assert server.tokens <= most + server.dearest
        assert done.status == 1 or server.tokens > most - 2 * server.dearest  # It was used.
        assert server.tokens == paid(done)
        if fails:  # The same command again asks nothing, which is the harder after failures.
            again = bench(words(server, items, f"budget.{budget}", price))
            assert (again.status, server.tokens) == (1, paid(done)), again.err


def paid(done: Bench) -> int:
    models = json.loads(done.read("calls.json"))["models"]
    return sum(entry["prompt_tokens"] + entry["completion_tokens"] for entry in models)


@pytest.mark.usefixtures("ray_cluster")
def test_two_targets_and_a_rephraser_of_another_price_share_a_budget(bench: Run, items: str, tmp_path: Path) -> None:
    with Meter() as server:
        (tmp_path / "conf" / "model").mkdir(parents=True)
        for name, price in (("one", 1e6), ("two", 2e6), ("writer", 5e6)):
            config = {
                "name": "openai_chat",
                "params": {"engine": name, "base_url": server.base_url, "temperature": 0, "max_tokens": LONGEST},
                "price": {"input_per_million": price, "output_per_million": price},
            }
            (tmp_path / "conf" / "model" / f"{name}.yaml").write_text(json.dumps(config))
        common = [f"conf_dir={tmp_path / 'conf'}", "model=one,two", "roles.rephraser=writer", items, "run_id=r"]
        done = bench([*common, "task=mcqabaseline,paraphrase", "pool.max_concurrency=64", "budget.usd=20000"])
        assert done.status == 4, done.err
        cost = sum(entry["cost_usd"] for entry in json.loads(done.read("calls.json"))["models"])
        assert 20_000 - 10 * server.dearest < cost <= 20_000 + 5 * server.dearest
        assert server.tokens == paid(done)


@pytest.mark.usefixtures("ray_cluster")
def test_a_budget_that_is_used_up_by_the_last_call_has_not_stopped_the_run(
    bench: Run, items: str, tmp_path: Path
) -> None:
    with Meter() as server:
        whole = bench(words(server, items, "limit=5"))
        assert whole.status == 0, whole.err
        cost = server.tokens
        again = bench(words(server, items, "limit=5", f"budget.tokens={cost}", f"runs_dir={tmp_path / 'other'}"))
        assert (again.status, server.tokens) == (0, 2 * cost), again.err
        assert bench(words(server, items, "limit=5", "budget.tokens=1")).status == 0  # Nothing is left to be asked.


@pytest.mark.parametrize("key", ["usd", "tokens"])
@pytest.mark.parametrize("value", ["0", "-1", ".inf", ".nan", "-.inf"])
def test_a_budget_that_can_hold_nothing_or_binds_nothing_is_refused(bench: Run, key: str, value: str) -> None:
    done = bench(["model=mock", f"budget.{key}={value}"])
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert f"budget.{key}" in line
