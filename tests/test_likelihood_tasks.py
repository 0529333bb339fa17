"""Tasks that are answered by likelihood: who can be asked, what is stored, and that other tasks stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import config_files
import pyarrow.parquet as pq
import pytest
from conftest import Bench
from sklearn.metrics import brier_score_loss

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.results.score import score
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.storage import Folder

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

BY_LIKELIHOOD = "task.answer.by=likelihood"
TASK = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: ROLE, template: "{question}"}
answer: {choices: ["yes", "no"], target: final_decision, by: likelihood}
"""
MODELS = {
    "completion": "name: openai_completion\nprice: {input_per_million: 2, output_per_million: 8}\n",
    "batched": "name: openai_completion\nparams: {base_url: 'http://localhost:1/v1'}\nbatch: {}\n",
    "claude": "name: anthropic_messages\nparams: {engine: claude-x, max_tokens: 60}\n",
    "local": "name: huggingface_llm\nparams: {model_name: nobody/nothing}\n",
    "paged": "name: huggingface_llm\nparams: {model_name: nobody/nothing, backend: transformers_continuous}\n",
    "beams": "name: huggingface_llm\nparams: {model_name: nobody/nothing, generation_config: {num_beams: 2}}\n",
    "nli": "name: huggingface_nli\nparams: {model_name: nobody/nothing, answer: strict}\n",
}


def write(conf: Path, role: str = "target") -> list[str]:
    (conf / "task" / "likely.yaml").write_text(TASK.replace("ROLE", role))
    for name, text in MODELS.items():
        (conf / "model" / f"{name}.yaml").write_text(text)
    return [f"conf_dir={conf}", "task=likely", "limit=4"]


def test_an_answer_from_a_text_is_stored_as_before_and_its_run_has_the_same_name() -> None:
    config = load(["model=mock", "task=all"])
    assert not any("by" in task["answer"] for task in config.stored()["tasks"].values())
    assert config.run_id == "mock-13tasks-9510c56f"
    assert (
        load(["model=mock", "task=mcqabaseline", "task.answer.by=text"]).stored()["tasks"]
        == (load(["model=mock", "task=mcqabaseline"]).stored()["tasks"])
    )


def test_likelihood_is_part_of_what_a_run_asks() -> None:
    by_text, by_likelihood = (load(["model=mock", "task=mcqabaseline", *more]) for more in ([], [BY_LIKELIHOOD]))
    assert by_likelihood.stored()["tasks"]["mcqabaseline"]["answer"]["by"] == "likelihood"
    assert by_likelihood.run_id != by_text.run_id


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("gpt", r"gpt \(openai_chat\) gives no likelihoods of texts that it is given"),
        ("claude", r"claude \(anthropic_messages\) gives no likelihoods of texts that it is given"),
        (
            "batched",
            r"batched \(openai_completion\) is asked in batches of its provider, which give none; leave batch out",
        ),
        ("paged", r"paged \(huggingface_llm\) runs with backend transformers_continuous.*backend: transformers does"),
        ("beams", r"beams \(huggingface_llm\) searches beams.*leave generation_config.num_beams out"),
    ],
)
def test_a_model_that_gives_no_likelihood_is_refused_in_one_line(conf: Path, model: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^task likely is answered by likelihood .*model {reason}$") as refused:
        load([f"model={model}", *write(conf)])
    assert "\n" not in str(refused.value)


def test_a_local_model_answers_them_with_the_engine_that_can(conf: Path) -> None:
    config = load(["model=local", *write(conf)])
    assert config.stored()["targets"]["local"]["params"]["backend"] == "transformers"
    assert load(["model=local", f"conf_dir={conf}", "task=mcqabaseline"]).targets["local"].params.backend == "auto"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("similarity_sick", "here the target is asked last, by compare"),
        ("conclusion_generation", "here the judge is asked last, by generate"),
    ],
)
def test_a_task_whose_last_stage_is_no_question_to_the_target_is_refused(task: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^task {task}: answer.by is likelihood, .*; {reason}$"):
        load(["model=mock", f"task={task}", BY_LIKELIHOOD])


def test_an_unknown_way_to_answer_is_one_line() -> None:
    with pytest.raises(UserError, match="'text' or 'likelihood'"):
        load(["model=mock", "task=mcqabaseline", "task.answer.by=logits"])


def test_a_plan_counts_a_prompt_once_for_each_choice_where_tokens_cost_money(conf: Path) -> None:
    (asked,) = Plan(load(["model=completion", *write(conf)])).describe()["streams"]["completion"]
    (local,) = Plan(load(["model=mock", *write(conf)])).describe()["streams"]["mock"]
    assert (asked["unique_calls"], local["unique_calls"]) == (4, 4)
    assert asked["prompt_tokens"] == 2 * local["prompt_tokens"]


def test_no_reader_reads_likelihoods(conf: Path) -> None:
    plan = Plan(load(["model=mock", "roles.reader=mock", *write(conf)]))
    assert not any("reader reads" in line for line in plan_lines(plan.describe()))


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_has_probabilities_and_their_calibration(bench: Callable[[Sequence[str]], Bench]) -> None:
    run = bench(["model=mock", "task=mcqabaseline,paraphrase", "roles.rephraser=mock", BY_LIKELIHOOD, "limit=30"])
    assert run.status == 0, run.err
    cells: list[dict[str, Any]] = json.loads(run.read("metrics.json"))["cells"]
    for cell in cells:
        samples = pq.read_table(run.run / "samples" / f"mock--{cell['task']}.parquet").to_pylist()
        lasts = [sample["steps"][-1] for sample in samples]
        rows = [step["choice_probabilities"] for step in lasts]
        assert [step["text"] for step in lasts] == [("yes", "no")[row.index(max(row))] for row in rows]
        assert {(sample["outcome"], sample["answer"] == sample["rambla_answer"]) for sample in samples} == {
            ("scored", True)
        }
        theirs = brier_score_loss([sample["target"] == "yes" for sample in samples], [row[0] for row in rows])
        assert cell["calibration"]["brier"]["value"] == pytest.approx(2 * theirs)
        assert sum(one["count"] for one in cell["calibration"]["ece"]["bins"]) == 30
        assert f"mock {cell['task']}: Brier {2 * theirs:.3f} (" in run.read("summary.md")
    assert score(Folder(str(run.run / "samples")))["cells"] == cells
