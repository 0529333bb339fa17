"""Under faults and under a budget: nothing is lost, the numbers are those of a quiet run, and the audit says so."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
import report
from made_items import item, write_items
from openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

# A request gives up after five faults that are no 429, which these shares make as rare as one in 170,000.
CHAOS = "chaos={http429: 0.1, http500: 0.03, reset: 0.03, garbage: 0.03, kill_actor_every: 30}"
PRICED = "{input_per_million: 1000000, output_per_million: 0}"  # a dollar a token


def openai_words(server: OpenAIServer) -> list[str]:
    return ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]


def spent(done) -> dict[str, int]:
    (entry,) = json.loads(done.read("calls.json"))["models"]
    return entry


def prompts_of(done) -> list[str]:
    (file,) = (done.run / "samples").iterdir()
    return [row["steps"][-1]["prompt"] for row in pq.read_table(file).to_pylist()]


def audit(done, capsys) -> str:
    assert report.main([str(done.run), "--audit"]) == 0
    printed = capsys.readouterr().out
    assert "✗" not in printed
    return printed


@pytest.mark.parametrize("model", ["mock", "openai_chat"])
def test_chaos_loses_nothing_and_changes_no_number(bench, tmp_path, capsys, model):
    with OpenAIServer() as server:
        words = openai_words(server) if model == "openai_chat" else ["model=mock"]
        words += ["pool.max_concurrency=8", "task=mcqabaseline,irrelevant_context"]
        quiet = bench([*words, f"runs_dir={tmp_path / 'quiet'}"])
        server.reset()
        stormy = bench([*words, f"runs_dir={tmp_path / 'stormy'}", CHAOS])
        asked = len(server.requests)
    assert (quiet.status, stormy.status) == (0, 0), stormy.err
    assert stormy.read("metrics.json") == quiet.read("metrics.json")
    took = spent(stormy)
    assert (took["answered"], took["failed"]) == (spent(quiet)["answered"], 0)
    assert took["retried"] > 0
    assert took["repeated"] > 0
    assert "an actor died" in stormy.err
    made, repeated = re.search(r"calls made (\d+) = .* at most (\d+)", audit(stormy, capsys)).groups()
    if model == "openai_chat":  # faults are injected before a request leaves
        assert took["answered"] <= asked <= int(made) + int(repeated)


def test_a_budget_stops_new_calls_and_a_larger_one_goes_on(bench, capsys):
    with OpenAIServer() as server:
        words = [*openai_words(server), "pool.max_concurrency=4", "run_id=r", f"model.price={PRICED}"]
        unasked = bench([*words, "budget.usd=1"])
        assert (unasked.status, len(server.requests)) == (1, 0)
        assert "error: the budget of $1 does not bear a single call: " in unasked.err
        first = bench([*words, "budget.usd=2000"])
        assert first.status == 4
        assert "stopped: the budget of $2000 is spent" in first.err
        assert "Continue with: python jobs/bench.py model=openai_chat" in first.err
        assert "PARTIAL" in first.out
        took = spent(first)
        dearest = max(len(prompt.split()) for prompt in prompts_of(first))
        assert 2000 - dearest <= took["cost_usd"] <= 2000 + dearest
        again = bench([*words, "budget.usd=2000"])
        assert (again.status, spent(again)["calls"]) == (1, took["calls"])
        larger = bench([*words, "budget.usd=1000000"])
        assert larger.status == 0
        assert len(server.requests) == len(server.snapshot()["per_prompt"]) == spent(larger)["calls"] == 57
    assert json.loads(larger.read("metrics.json"))["partial"] is None


def test_a_budget_in_dollars_needs_prices(bench):
    with OpenAIServer() as server:
        charged = bench([*openai_words(server), "budget.usd=5"])
    free = bench(["model=mock", "budget.usd=5"])
    for done, model in ((charged, "openai_chat"), (free, "mock")):
        assert done.status == 1
        assert done.err.splitlines() == [
            f"error: budget.usd needs to know what model {model} charges: give it a price "
            "(price: {input_per_million: ..., output_per_million: ...}), or use budget.tokens"
        ]


def test_hostile_texts_are_stored_counted_and_harmless(bench, tmp_path, capsys):
    hostile = {
        "surrogate": "Yes \ud800",
        "nul": "Yes\x00",
        "terminal": "\x1b]0;owned\x07\x1b[31mYes\x1b[0m",
        "html": "<script>alert(1)</script>",
        "markup": "[bold red]Yes[/] [/nothing",
        "bidi": "\u202eseY",
        "long": "no way " * 400_000,
    }
    items = {name: item(f"Is it {name}?" + (" why" * 300_000 if name == "nul" else "")) for name in hostile}
    data = write_items(tmp_path, items)

    def answer(prompt: str) -> str:
        return next(text for name, text in hostile.items() if f"Is it {name}?" in prompt)

    with OpenAIServer(answer=answer) as server:
        words = [*openai_words(server), "model.params.max_tokens=10000000"]
        done = bench([*words, data])
    assert done.status == 0, done.err
    (cell,) = json.loads(done.read("metrics.json"))["cells"]
    assert cell["n"] == len(hostile) == sum(cell["outcomes"].values())
    (file,) = (done.run / "samples").iterdir()
    texts = {row["root_id"]: row["steps"][-1]["text"] for row in pq.read_table(file).to_pylist()}
    assert texts["surrogate"] == "Yes \ufffd"
    assert {name: texts[name] for name in ("nul", "terminal", "html", "markup", "bidi")} == {
        name: hostile[name] for name in ("nul", "terminal", "html", "markup", "bidi")
    }
    assert texts["long"] == hostile["long"][:1_000_000]
    audit(done, capsys)
    seen = done.out + done.err + done.read("errors.jsonl") + done.read("summary.md") + done.read("report.html")
    assert not set(seen) & {"\x00", "\x1b", "\x07", "\u202e"}
    assert "<script>" not in done.read("summary.md") + done.read("report.html")
    assert max(map(len, done.read("errors.jsonl").splitlines())) < 5000
