"""Runs that end when it is settled, at the real command: what is asked, stored, scored, shown and asked again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compare as compare_job
import pyarrow.parquet as pq
import pytest
import report as report_job
import yaml
from conftest import Bench
from driver import Driver, wait_for_distinct
from openai_server import OpenAIServer

from rambla_ray.results.audit import audit, recompute
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.documents import check_shape
from rambla_ray.results.samples import read_spec
from rambla_ray.results.shapes import Calls, Metrics
from rambla_ray.schema import draw_name
from rambla_ray.scoring.order import in_order
from rambla_ray.storage import Folder

ITEMS = 900
DECIDED = "until={decided: 0.05}"
Benches = Callable[[Sequence[str]], Bench]


@pytest.fixture
def facts(tmp_path: Path) -> list[str]:
    """Words for 900 items of a table, and two mocks of which one is right far more often than the other."""
    table = "".join(f"f{n},Is fact {n} so?,{'no' if n % 3 else 'yes'}\n" for n in range(ITEMS))
    (tmp_path / "facts.csv").write_text(f"id,question,answer\n{table}")
    files: dict[str, Any] = {
        "model/good.yaml": {"name": "mock", "params": {"flip": 0.1}},
        "model/bad.yaml": {"name": "mock", "params": {"flip": 0.4, "seed": 5}},
        "model/alike.yaml": {"name": "mock", "params": {"flip": 0.1}},
        "dataset/facts.yaml": {
            "format": "table",
            "path": str(tmp_path / "facts.csv"),
            "demo": "facts.csv",
            "fields": ["question", "answer"],
        },
        "task/facts.yaml": {
            "dataset": "facts",
            "stages": [{"generate": {"role": "target", "template": "{question} Yes or no?"}}],
            "answer": {"choices": ["yes", "no"], "target": "answer"},
        },
    }
    for name, document in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(document))
    return [f"conf_dir={tmp_path / 'conf'}", "task=facts", "data=full"]


def directory_of(found: Bench) -> RunDirectory:
    return RunDirectory(Folder(str(found.run)))


def items_in(found: Bench, target: str) -> list[str]:
    rows = pq.read_table(found.run / "samples" / f"{target}--facts.parquet", columns=["root_id", "epoch"]).to_pylist()
    return sorted(draw_name(row["root_id"], row["epoch"]) for row in rows)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_ends_at_the_first_look_that_decides_whatever_it_asked_beyond(
    facts: list[str], bench: Benches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*facts, "model=good,bad", DECIDED]
    run = bench([*words, "pool.max_concurrency=8", f"runs_dir={tmp_path / 'eight'}"])
    assert run.status == 0, run.err
    metrics, calls = json.loads(run.read("metrics.json")), json.loads(run.read("calls.json"))
    check_shape(metrics, Metrics, "metrics.json")
    check_shape(calls, Calls, "calls.json")
    until = metrics["until"]
    asked = until["items"]
    assert (until["settled"], until["of"], metrics["partial"]) == (True, ITEMS, None)
    assert 0 < asked < ITEMS / 2
    (verdict,) = until["verdicts"]
    assert (verdict["a"], verdict["b"], verdict["verdict"]) == ("good", "bad", "better")
    assert [cell["n"] for cell in metrics["cells"]] == [asked, asked]
    assert all(cell["accuracy"]["interval"] == "anytime" for cell in metrics["cells"])
    assert all(entry["difference"]["interval"] == "anytime" for entry in metrics["comparisons"])
    prefix = sorted(in_order([f"f{n}" for n in range(ITEMS)], 1234)[:asked])
    assert items_in(run, "good") == items_in(run, "bad") == prefix
    made = sum(model["calls"] for model in calls["models"])
    assert calls["until"] == {"calls_at_most": 2 * ITEMS, "beyond": calls["until"]["beyond"]}
    assert 2 * asked <= made <= 2 * (asked + 2 * 8 + 32), "it asks no further than it needs"
    told = " ".join(run.out.split())
    assert f"settled after {asked} of {ITEMS} items: {made} calls instead of {2 * ITEMS:,}" in told
    assert f"settled after {asked} of {ITEMS} items" in run.read("summary.md")
    assert "good is better than bad" in told
    assert all(check.holds for check in audit(directory_of(run)))
    assert recompute(directory_of(run)).holds

    full = tmp_path / "full"
    everything = bench([*facts, "model=good,bad", f"runs_dir={full}"])
    assert everything.status == 0
    assert "until" not in json.loads(everything.read("metrics.json"))
    again = bench([*words, "pool.max_concurrency=64", f"ledger={full / 'ledger'}", f"runs_dir={tmp_path / 'again'}"])
    assert again.read("metrics.json") == run.read("metrics.json"), "neither what is known nor how many are asked"
    assert sum(model["calls"] for model in json.loads(again.read("calls.json"))["models"]) == 0

    assert report_job.main([str(tmp_path / "eight")]) == 0
    assert f"settled after {asked} of {ITEMS}" in " ".join(capsys.readouterr().out.split())
    assert compare_job.main([str(run.run), str(everything.run)]) == 0
    assert f"ended when it was settled, after {asked} of {ITEMS} items" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("ray_cluster")
def test_actors_that_die_and_several_draws_change_nothing(facts: list[str], bench: Benches, tmp_path: Path) -> None:
    words = [*facts, "model=good", "until={ci_width: 0.25}", "epochs=2"]
    quiet = bench([*words, f"runs_dir={tmp_path / 'quiet'}"])
    assert (quiet.status, quiet.err.count("Error")) == (0, 0)
    metrics = json.loads(quiet.read("metrics.json"))
    asked = metrics["until"]["items"]
    low, high = metrics["cells"][0]["accuracy"]["ci95"]
    assert high - low <= 0.25
    assert metrics["until"]["wide"] == []
    assert 0 < asked < ITEMS
    assert metrics["cells"][0]["n"] == 2 * asked
    killed = bench([*words, "pool.max_concurrency=4", "chaos.kill_actor_every=60", f"runs_dir={tmp_path / 'killed'}"])
    assert killed.status == 0
    assert killed.read("metrics.json") == quiet.read("metrics.json")


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_not_settled_asks_all_and_says_so(facts: list[str], bench: Benches) -> None:
    run = bench([*facts, "model=good,alike", "limit=60", "until={decided: 0.05, equivalent: 0.01}"])
    until = json.loads(run.read("metrics.json"))["until"]
    assert (until["settled"], until["items"], until["of"]) == (False, 60, 60)
    assert [verdict["verdict"] for verdict in until["verdicts"]] == ["open"]
    assert "not settled by 60 items, which is all there are: until={decided: 0.05, equivalent: 0.01}" in " ".join(
        run.out.split()
    )
    assert all(check.holds for check in audit(directory_of(run)))
    equivalent = bench(
        [*facts, "model=good,alike", "until={decided: 0.05, equivalent: 0.1}", f"runs_dir={run.runs_dir / 'other'}"]
    )
    until = json.loads(equivalent.read("metrics.json"))["until"]
    assert (until["settled"], until["verdicts"][0]["verdict"]) == (True, "equivalent")
    assert "good and alike differ by no more than 10.0 points" in " ".join(equivalent.out.split())


@pytest.mark.usefixtures("ray_cluster")
def test_a_target_does_not_run_ahead_of_a_slow_judge(facts: list[str], bench: Benches, tmp_path: Path) -> None:
    judge = {"name": "mock", "params": {"flip": 0.1, "latency_s": 0.05}, "pool": {"max_concurrency": 4}}
    (tmp_path / "conf/model/judge.yaml").write_text(yaml.safe_dump(judge))
    task = yaml.safe_load((tmp_path / "conf/task/facts.yaml").read_text())
    task["stages"].append({"generate": {"role": "judge", "template": "Right? {response}", "writes": "verdict"}})
    task["answer"]["reads"] = "verdict"
    (tmp_path / "conf/task/facts.yaml").write_text(yaml.safe_dump(task))
    words = [*facts, "model=good", "roles.judge=judge", "pool.max_concurrency=16", "until={ci_width: 0.35}"]
    run = bench(words)
    assert run.status == 0, run.err
    asked = json.loads(run.read("metrics.json"))["until"]["items"]
    calls = {model["role"]: model["calls"] for model in json.loads(run.read("calls.json"))["models"]}
    assert asked <= calls["judge"] <= calls["target"] <= asked + 2 * (16 + 4) + 32
    assert all(check.holds for check in audit(directory_of(run)))
    before = run.read("metrics.json")
    again = bench(words)
    assert "no calls, every answer came from the ledger" in again.out
    assert again.read("metrics.json") == before


@pytest.mark.usefixtures("ray_cluster")
def test_targets_that_come_one_after_another_are_looked_at_together(
    facts: list[str], bench: Benches, tmp_path: Path
) -> None:
    side_by_side = bench([*facts, "model=good,bad", DECIDED, f"runs_dir={tmp_path / 'beside'}"])
    after = bench([*facts, "model=good,bad", DECIDED, "pool.num_cpus=2", f"runs_dir={tmp_path / 'after'}"])
    assert after.status == 0, after.err
    assert "until is looked at while the last targets answer: good come before" in after.err
    assert after.read("metrics.json") == side_by_side.read("metrics.json")
    calls = {model["model"]: model["calls"] for model in json.loads(after.read("calls.json"))["models"]}
    assert calls["good"] == ITEMS
    assert calls["bad"] < ITEMS
    assert items_in(after, "good") == items_in(side_by_side, "good")


@pytest.mark.processes
def test_a_run_that_was_killed_ends_where_it_would_have(tmp_path: Path) -> None:
    """The mock endpoint says yes to everything."""
    until = ["task=mcqabaseline", "until={ci_width: 0.55}"]
    with OpenAIServer() as server:
        whole = Driver(server, tmp_path / "whole", *until)
        status, out, err = whole.finish()
        assert status == 0, err
        assert "settled after" in out
        killed = Driver(server, tmp_path / "killed", *until)
        wait_for_distinct(server, 4)
        killed.process.send_signal(signal.SIGKILL)
        killed.finish()
        resumed = Driver(server, tmp_path / "killed", *until)
        status, out, err = resumed.finish()
        assert status == 0, err
    (one,), (other,) = ((tmp_path / name).glob("*/metrics.json") for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert read_spec(Folder(str(one.parent / "samples")))["until"]["items"] < 57
