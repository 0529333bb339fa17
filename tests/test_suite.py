"""All tasks of the suite, together, on a real local cluster: one stream, one load, the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_items import item, write_items
from openai_server import OpenAIServer

from rambla_ray.config import load as config
from rambla_ray.results.directory import RunDirectory
from rambla_ray.run import cluster, pipeline
from rambla_ray.run.placement import Level
from rambla_ray.run.plan import Plan

pytestmark = pytest.mark.usefixtures("ray_cluster")

TASKS = {
    "conclusion_generation",
    "distracting_context",
    "fewshot_examples_with_context",
    "irrelevant_context",
    "mcqabaseline",
    "negation",
    "paraphrase",
    "parent_fewshot_examples_with_context",
    "question_formation",
    "similarity_long_form_qa_bioasq",
    "similarity_mrpc",
    "similarity_sick",
    "spelling_robustness",
}
ROLES = ["roles.judge=mock", "roles.rephraser=mock"]


def metrics(done) -> dict:
    return json.loads(done.read("metrics.json"))


def by_task(done) -> dict[str, list[dict]]:
    cells: dict[str, list[dict]] = {}
    for cell in metrics(done)["cells"]:
        cells.setdefault(cell["task"], []).append(cell)
    return cells


def test_an_oracle_is_right_in_every_task_and_nothing_changes(bench):
    done = bench(
        ["model=mock", "model.params.behaviour=oracle", "task=all", "roles.judge=oracle", "roles.rephraser=oracle"]
    )
    assert done.status == 1  # there is no config of that name
    done = bench(["model=mock", "model.params.behaviour=oracle", "task=all", *ROLES])
    cells = by_task(done)
    assert set(cells) == TASKS
    judged = {"conclusion_generation", "question_formation", "similarity_long_form_qa_bioasq"}
    for task, of_task in cells.items():
        for cell in of_task:
            assert sum(cell["outcomes"].values()) == cell["n"]
            if task not in judged:  # their last answer is the judge's, which flips some
                assert cell["accuracy"]["value"] == 1.0, task
    for effect in metrics(done)["effects"]:
        assert all(row["difference"]["value"] == 0.0 for row in effect["variants"][1:])


def test_the_plan_counts_the_calls_that_the_server_sees(bench):
    with OpenAIServer() as server:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        done = bench([*words, "task=all", *ROLES])
        seen = server.snapshot()
    (target,) = [
        pool for pool in json.loads(done.read("plan.json"))["streams"]["openai_chat"] if "target" in pool["roles"]
    ]
    assert done.status == 0
    asked = len(seen["requests"])
    assert asked == len(seen["per_prompt"])
    assert target["unique_calls"] <= asked <= target["unique_calls"] + target["later_calls_at_most"]
    assert len(json.loads(done.read("env.json"))["models"]["openai_chat"]["actors"]) == 1


def test_without_later_stages_the_planned_calls_are_exact(bench):
    tasks = "mcqabaseline,spelling_robustness,parent_fewshot_examples_with_context,fewshot_examples_with_context"
    with OpenAIServer() as server:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        done = bench([*words, f"task={tasks}"])
        seen = server.snapshot()
    (target,) = json.loads(done.read("plan.json"))["streams"]["openai_chat"]
    assert target["later_calls_at_most"] == 0
    assert target["unique_calls"] == len(seen["requests"]) == len(seen["per_prompt"])
    cells = by_task(done)
    clean = {cell["variant"]: cell for cell in cells["spelling_robustness"]}["n=0"]
    assert clean["accuracy"] == cells["mcqabaseline"][0]["accuracy"]


class Rearranged(Plan):
    """A plan whose samples come in another order and in blocks of another size."""

    rows = 1
    shuffle: int | None = None

    def blocks(self, levels: Sequence[Level]) -> list[dict[str, Any]]:
        blocks = [
            {"task": name, "variant": variant, "first": start, "count": min(self.rows, count - start)}
            for (name, variant), count in self.expected.items()
            for start in range(0, count, self.rows)
        ]
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(blocks)
        return blocks


def test_metrics_are_the_same_bytes_whatever_the_actors_blocks_and_order(tmp_path):
    words = ["model=mock", "task=mcqabaseline,spelling_robustness,distracting_context,conclusion_generation", *ROLES]
    words += ["model.params.behaviour=format"]
    written = set()
    arrangements = [(1, 64, None), (2, 8, None), (4, 1, None), (2, 8, 7), (1, 3, 8)]
    for place, (actors, rows, shuffle) in enumerate(arrangements):
        runs_dir = tmp_path / str(place)
        loaded = config.load([*words, f"pool.min_size={actors}", f"runs_dir={runs_dir}", "limit=24"])
        plan = Rearranged(loaded)
        plan.rows, plan.shuffle = rows, shuffle
        cluster.connect(None, verbose=False)
        directory = RunDirectory.create(loaded)
        Path(loaded.ledger).mkdir(parents=True)
        pipeline.Run.start(plan, directory, words)()
        written.add(directory.folder.read("metrics.json"))
    assert len(written) == 1


def test_a_row_too_short_to_mutate_is_an_outcome_and_the_run_goes_on(bench, tmp_path):
    contexts = {"short": "four words are here", "long": "word " * 60}
    items = {name: item(f"Is {name} so?", context=context) for name, context in contexts.items()}
    done = bench(["model=mock", "task=spelling_robustness", write_items(tmp_path, items)])
    cells = {cell["variant"]: cell["outcomes"] for cell in by_task(done)["spelling_robustness"]}
    assert {variant: outcomes["failed"] for variant, outcomes in cells.items()} == {
        "n=0": 0,
        "n=1": 0,
        "n=3": 0,
        "n=10": 1,
        "n=20": 1,
        "n=50": 1,
    }
    assert "4 words can be changed, 10 were asked for" in done.read("errors.jsonl")


@pytest.mark.parametrize(("model", "area"), [("rouge1", 0.5), ("bleu", 0.4)])  # BLEU of a short sentence is often 0
def test_a_model_that_compares_texts_is_scored_by_how_well_it_tells_labels_apart(bench, model, area):
    done = bench([f"model={model}", "task=similarity_sick,similarity_mrpc"])
    assert done.status == 0
    for cells in by_task(done).values():
        (cell,) = cells
        assert cell["coverage"] == 1.0
        assert area < cell["score"]["roc_auc"]["value"] <= 1.0
        assert cell["null_reasons"]["accuracy.value"] == "the model gives scores, not answers"
    assert "AUC" in done.out


def test_a_model_that_compares_texts_is_refused_where_an_answer_is_asked(bench):
    done = bench(["model=rouge1", "task=mcqabaseline"])
    assert done.status == 1
    assert "compares two texts" in done.err


def test_a_judge_that_is_also_the_target_is_warned_about(bench):
    done = bench(["model=mock", "task=conclusion_generation", "roles.judge=mock", "limit=5"])
    assert "warning: the judge, mock, is also a model under test" in done.out


def test_a_dry_run_prints_the_plan_and_asks_nothing(bench, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/paid.yaml").write_text(
        "name: openai_chat\nparams: {engine: e, temperature: 0, max_tokens: 10}\n"
        "price: {input_per_million: 1.0, output_per_million: 2.0}\n"
    )
    done = bench(["model=paid", f"conf_dir={tmp_path / 'conf'}", "task=all", "dry_run=true", "data=demo"])
    assert done.status == 0
    assert all(f"{task}: " in done.out for task in TASKS)
    assert "at most $" in done.out
    assert not done.runs_dir.exists()
