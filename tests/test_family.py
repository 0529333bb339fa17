"""Which comparisons of a run are adjusted together: those of all its targets that test the same, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample, spec, store, task_spec

from rambla_ray.config.load import load
from rambla_ray.config.task import sample_of
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.schema import Item, Sample
from rambla_ray.scoring.significance import holm, mcnemar_exact

NAMES = [f"item-{number}" for number in range(12)]
TASKS = {name: task_spec({"": len(NAMES)}, None if name == "clean" else "clean") for name in ("clean", "a", "b")}


def answers(model: str, task: str, wrong: int, target: str = "yes") -> list[Sample]:
    """Samples of a task, so many of which are wrong."""
    return [
        sample(name, "no" if number < wrong else target, target, model=model, task=task)
        for number, name in enumerate(NAMES)
    ]


def scored(location: Path, how: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The comparisons of a run by model and task, with their reasons."""
    for model in how["models"]:
        directory: RunDirectory = store(location, how, [one for one in samples if one.model == model], model=model)
    return {
        f"{cell['model']} {cell['task']} {cell['variant']}".rstrip(): {
            **cell["paired"],
            "reason": cell["null_reasons"].get("paired.mcnemar_p_holm"),
        }
        for cell in directory.score()["cells"]
        if cell["paired"]
    }


def test_the_family_is_the_runs_whatever_the_model(tmp_path: Path) -> None:
    wrong = {("m", "a"): 6, ("m", "b"): 8, ("n", "a"): 7, ("n", "b"): 0}
    samples = [one for (model, task), count in wrong.items() for one in answers(model, task, count)]
    samples += [*answers("m", "clean", 0), *answers("n", "clean", 0)]
    found = scored(tmp_path, spec(TASKS, models=["m", "n"]), samples)
    expected = holm({f"{model} {task}": mcnemar_exact(count, 0) for (model, task), count in wrong.items()})
    assert {where: paired["mcnemar_p_holm"] for where, paired in found.items()} == pytest.approx(expected)
    assert expected["m b"] == pytest.approx(4 * 2 / 2**8)  # the least of four


def test_a_stopped_run_has_the_family_of_what_is_there(tmp_path: Path) -> None:
    samples = [*answers("m", "clean", 0), *answers("m", "a", 6)]
    found = scored(tmp_path, spec(TASKS, models=["m"]), samples)
    assert found["m a"]["mcnemar_p_holm"] == found["m a"]["mcnemar_p"] == pytest.approx(2 / 2**6)


def test_another_right_answer_is_another_question(tmp_path: Path) -> None:
    """One item is enough: its flips would count as what the others test."""
    other = answers("m", "b", 8)
    other[-1].target = other[-1].answer = "no"
    samples = [*answers("m", "clean", 0), *answers("m", "a", 6), *other]
    found = scored(tmp_path, spec(TASKS, models=["m"]), samples)
    assert found["m a"]["mcnemar_p_holm"] == pytest.approx(2 / 2**6)
    assert found["m b"]["mcnemar_p"] == pytest.approx(2 / 2**8)
    assert found["m b"]["mcnemar_p_holm"] is None
    assert "right answers" in found["m b"]["reason"]


@pytest.mark.parametrize(("judges", "is_in"), [(("", "generate"), False), (("generate", "generate"), True)])
def test_what_a_judge_answers_is_compared_with_what_a_judge_answers(
    judges: tuple[str, str], is_in: bool, tmp_path: Path
) -> None:
    tasks = {
        name: {**how, **({"judge": judge} if judge else {})}
        for (name, how), judge in zip(TASKS.items(), (*judges, ""), strict=True)
    }
    found = scored(tmp_path, spec(tasks, models=["m"]), [*answers("m", "clean", 0), *answers("m", "a", 6)])
    assert (found["m a"]["mcnemar_p_holm"] is not None) == is_in
    assert is_in or "judge" in found["m a"]["reason"]


def test_of_the_shipped_tasks_two_ask_another_question(tmp_path: Path) -> None:
    config = load(["model=mock", "task=all", "roles.judge=mock", "roles.rephraser=mock"])
    how = scoring_spec(config, {})
    samples = []
    for name, task in config.tasks.items():
        for variant in task.variants if task.pair_with or name == "mcqabaseline" else ():
            for number in range(6):
                item = Item(str(number), {"final_decision": "yes" if number % 2 else "no"})
                one = sample_of("mock", name, task, variant, item)
                one.answer = one.rambla_answer = one.target
                one.outcome = "scored"
                samples.append(one)
    found = scored(tmp_path, how, samples)
    assert len(found) == 6 - 1 + 4 + 3 + 4  # mutations but for none, orders, positions, and four of one variant
    outside = {where for where, paired in found.items() if paired["mcnemar_p_holm"] is None}
    assert outside == {"mock irrelevant_context", "mock conclusion_generation"}
