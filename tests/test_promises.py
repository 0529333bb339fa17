"""The calls that a plan promises are the calls that are made, whatever is asked of whom: whole runs, counted twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, Script
from conftest import Bench
from made_items import item, write_items
from openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

Run = Callable[[Sequence[str]], Bench]
ROLES = ("roles.rephraser=mock", "roles.judge=mock")
SAME = "name: mock\nparams: {behaviour: constant, answer: 'yes'}\n"
TASK = """dataset: pubmedqa_yesno
stages: [generate: {role: target, template: "Yes or no: {question}", SYSTEM}]
answer: {choices: ["yes", "no"], target: final_decision}
"""
JUDGED = """dataset: pubmedqa_yesno
stages:
  - generate: {role: target, writes: first, template: "Yes or no: {question}"}
  - generate: {role: judge, template: "Yes or no: {question}"}
answer: {choices: ["yes", "no"], target: final_decision}
"""
# The same question is put twice, and two items cannot be asked: one has no question, one a context that is too short.
ITEMS = {
    "a": item("Is it so?"),
    "twin": item("Is it so?"),
    "other answer": item("Is it so?", "no"),
    "d": item("Is it?"),
    "empty": item(" "),
    "surrogate": item("Is \ud800 it?"),
}


@pytest.fixture
def conf(tmp_path: Path) -> str:
    """A folder with models and tasks that have requests in common, as the word that names it."""
    models = {
        "yes": SAME,
        "yes_too": SAME.replace("}", ", latency_s: 0.001}"),
        "oracle": "name: mock\nparams: {behaviour: oracle}\n",
        "vague": SAME.replace("'yes'", "'It is open.'"),
    }
    tasks = {
        "plain": TASK.replace(", SYSTEM", ""),
        "brief": TASK.replace("SYSTEM", "system: Be brief."),
        "kind": TASK.replace("SYSTEM", "system: Be kind."),
        "judged": JUDGED,
    }
    for kind, texts in {"model": models, "task": tasks}.items():
        (tmp_path / "conf" / kind).mkdir(parents=True)
        for name, text in texts.items():
            (tmp_path / "conf" / kind / f"{name}.yaml").write_text(text)
    return f"conf_dir={tmp_path / 'conf'}"


def pools_of(done: Bench) -> list[dict[str, Any]]:
    streams = json.loads(done.read("plan.json"))["streams"]
    return [pool for pools in streams.values() for pool in pools]


def promised_and_made(done: Bench) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """By model and roles, the calls that are certain, those that were made, and those possible at most.

    Calls that are made again for one request are counted apart, and so they are here.
    """
    roles: dict[str, list[frozenset[str]]] = {}  # Those that one model plays in one pool, or in pools that overlap.
    for pool in pools_of(done):
        own = frozenset(pool["roles"])
        others = [each for each in roles.get(pool["model"], []) if not each & own]
        met = [each for each in roles.get(pool["model"], []) if each & own]
        roles[pool["model"]] = [*others, own.union(*met)]
    entries = json.loads(done.read("calls.json"))["models"]
    counts = {}
    for model, groups in roles.items():
        for group in groups:
            pools = [pool for pool in pools_of(done) if pool["model"] == model and group & {*pool["roles"]}]
            certain = sum(pool["unique_calls"] - pool.get("repeated_calls", 0) for pool in pools)
            made = sum(
                entry["calls"] - entry["retried"] - entry["hedged"]
                for entry in entries
                if entry["model"] == model and entry["role"] in group
            )
            most = certain + sum(pool["later_calls_at_most"] for pool in pools)
            counts[(model, *sorted(group))] = certain, made, most
    return counts


def check(done: Bench) -> dict[tuple[str, ...], tuple[int, int, int]]:
    assert done.status in (0, 2), done.err
    counts = promised_and_made(done)
    for key, (certain, made, most) in counts.items():
        assert certain <= made <= most, (key, counts)
    whole = json.loads(done.read("plan.json"))["total"]
    calls = sum(made for _, made, _ in counts.values())
    assert whole["unique_calls"] <= calls <= whole["calls_at_most"]
    return counts


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("model=yes task=plain,brief,kind,judged roles.judge=yes", id="system prompts, and its own judge"),
        pytest.param("model=yes,yes_too,oracle,mock task=plain,mcqabaseline limit=7", id="two names of one model"),
        pytest.param("model=yes,mock task=paraphrase limit=5 roles.rephraser=mock", id="one rephraser of two targets"),
        pytest.param(
            "model=mock task=paraphrase,negation epochs=3 limit=4 roles.rephraser=oracle", id="draws, paraphrased once"
        ),
        pytest.param("model=yes,bleu task=similarity_sick,similarity_mrpc epochs=3 limit=8", id="scores are no draws"),
        pytest.param("model=mock task=plain,mcqabaseline task.answer.by=likelihood limit=6", id="likelihoods"),
        pytest.param(
            "model=mock,yes task=similarity_long_form_qa_bioasq,conclusion_generation roles.judge=yes,oracle,mock "
            "epochs=2 limit=4",
            id="a panel of judges",
        ),
        pytest.param(
            "model=mock task=similarity_long_form_qa_bioasq roles.judge=bleu limit=6", id="a judge that scores"
        ),
        pytest.param("model=vague,yes task=plain,mcqabaseline roles.reader=yes limit=5", id="a reader"),
    ],
)
def test_as_many_calls_are_made_as_the_plan_says(bench: Run, conf: str, words: str) -> None:
    check(bench([*words.split(), conf]))


def test_items_that_are_alike_or_cannot_be_asked_are_no_calls(bench: Run, conf: str, tmp_path: Path) -> None:
    own = write_items(tmp_path, ITEMS)
    alike = check(
        bench(["model=yes", "task=plain,judged", "roles.judge=mock", own, conf, "runs_dir=" + str(tmp_path / "1")])
    )
    assert alike == {("yes", "target"): (4, 4, 4), ("mock", "judge"): (0, 4, 4)}
    drawn = check(bench(["model=mock", "task=plain", own, conf, "runs_dir=" + str(tmp_path / "2")]))
    assert drawn == {("mock", "target"): (4, 4, 4)}


@pytest.mark.parametrize("seed", range(2))
def test_so_it_is_with_tasks_and_models_drawn_at_random(bench: Run, conf: str, seed: int) -> None:
    draw = random.Random(seed)
    names = sorted(path.stem for path in (Path(__file__).parent.parent / "conf/task").glob("*.yaml"))
    tasks = draw.sample([*names, "plain", "brief", "kind", "judged"], 3)
    models = draw.sample(["mock", "yes", "yes_too", "oracle", "vague"], 2)
    roles = [f"roles.{role}={draw.choice(['mock', 'yes', models[0]])}" for role in ("rephraser", "judge")]
    words = [f"model={','.join(models)}", f"task={','.join(tasks)}", *roles, f"limit={draw.randint(12, 15)}"]
    check(bench([*words, f"epochs={draw.randint(1, 2)}", conf]))


def test_so_it_is_at_an_endpoint_and_what_it_answered_is_asked_no_more(bench: Run, conf: str) -> None:
    with OpenAIServer() as server:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        words += ["model.price={input_per_million: 1, output_per_million: 2}", conf, "roles.judge=mock"]
        first = bench([*words, "limit=6", "task=plain,brief,mcqabaseline", "run_id=first"])
        (pool,) = pools_of(first)
        assert check(first)["openai_chat", "target"] == (18, 18, 18)
        assert (pool["in_ledger"], pool["calls_expected"], pool["lengths_from"]) == (0, 18, "usual")
        assert 0 < pool["cost_usd_expected"] < pool["cost_usd_at_most"]
        planned = bench([*words, "task=all", "roles.rephraser=mock", "dry_run=true"])
        assert "    18 of " in planned.out
        assert "as in the ledger" in planned.out


def test_what_follows_from_answers_in_the_ledger_is_known_too(bench: Run, conf: str) -> None:
    words = ["model=vague", "task=all", "limit=12", *ROLES, "roles.reader=yes", conf]
    done = bench(words)
    check(done)
    again = bench([*words, "dry_run=true"])
    most = json.loads(done.read("plan.json"))["total"]["calls_at_most"]
    made = sum(entry["calls"] for entry in json.loads(done.read("calls.json"))["models"])
    assert f"in all 0 calls, at most {most}" in again.out.replace("about ", "")
    assert made <= most


def test_so_it_is_with_batches_of_the_provider(bench: Run) -> None:
    with BatchServer(Script()) as server:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        words += ["model.batch={max_wait_s: 60, poll_s: 0.05}", "task=mcqabaseline,irrelevant_context", "limit=6"]
        done = bench(words)
        assert check(done) == {("openai_chat", "target"): (12, 12, 12)}
        (pool,) = pools_of(done)
        assert pool["seconds_at_most"] == 60
