"""The audit of a run: every sample is stored once, every answer is what its text says, every call is accounted for.

It reads the run directory alone, offline. docs/run_directory.md defines the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from rambla_ray.config.explain import explain
from rambla_ray.config.task import Answer, TaskConfig
from rambla_ray.display import Check
from rambla_ray.errors import UserError
from rambla_ray.results.directory import RunDirectory, to_json
from rambla_ray.results.documents import Damaged
from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.schema import Role, Sample, Step
from rambla_ray.scoring.outcomes import finish
from rambla_ray.tasks.stages import STAGES

_READ = ("answer", "rambla_answer", "outcome")
_READ_COLUMNS = [
    *_READ,
    *(f"steps.list.element.{name}" for name in ("role", "text", "finish_reason", "error_kind", "vote")),
]


def audit(directory: RunDirectory) -> list[Check]:
    """Every check of a run. Raises UserError when there is nothing to check."""
    calls = directory.read_calls()
    finished = calls is not None and bool(calls["invocations"][-1]["finished"])
    checks = [_samples(directory, finished=finished), _answers(directory)]
    if finished and "until" in read_spec(directory.samples):
        checks.append(check_ending(directory))
    if calls:
        checks.append(_calls(calls))
    return checks


def recompute(directory: RunDirectory) -> Check:
    """Whether metrics.json holds what samples/ give; not checked where another version of scoring wrote it."""
    scores, stored = directory.score(), directory.read_metrics()
    written = stored.get("scoring", 1)
    if written != scores["scoring"]:
        return Check(
            f"metrics.json is of scoring {written}, and this version scores as {scores['scoring']} does", True
        )
    same = to_json(scores) == directory.folder.read("metrics.json")
    return Check(f"metrics.json {'equals' if same else 'DIFFERS FROM'} what samples/ give", same)


def _samples(directory: RunDirectory, *, finished: bool) -> Check:
    """Samples expected and stored. What is missing in a run that was stopped is still to come, and not lost."""
    spec = read_spec(directory.samples)
    expected = stored = duplicate = missing = surplus = 0
    for target in spec["models"]:
        for task, task_spec in spec["tasks"].items():
            rows, distinct = _ids(StoredTask(directory.samples, target, task))
            wanted: Mapping[str, int] = task_spec["expected"]
            expected += sum(wanted.values())
            stored += sum(distinct.values())
            duplicate += rows - sum(distinct.values())
            missing += sum(max(0, count - distinct.get(variant, 0)) for variant, count in wanted.items())
            surplus += sum(max(0, count - wanted.get(variant, 0)) for variant, count in distinct.items())
    lost, to_come = (missing, 0) if finished else (0, missing)
    line = f"samples: expected {expected}, stored {stored}, duplicate {duplicate}, lost {lost}"
    line += f", still to come {to_come}" if to_come else ""
    line += f", not in the plan {surplus}" if surplus else ""
    return Check(line, not (lost or duplicate or surplus))


def check_ending(directory: RunDirectory) -> Check:
    """Whether a run that could end early did so at the first look that settles it."""
    from rambla_ray.results.score import ScoredTask  # It loads scipy and scikit-learn, which takes a second.
    from rambla_ray.results.settled import is_first

    spec = read_spec(directory.samples)
    first = is_first(spec, lambda model, task: ScoredTask(directory.samples, model, task, None).cells)
    ended = f"until: ended after {spec['until']['items']} of {spec['until']['of']} items"
    return Check(
        f"{ended}, {'the first look that settles it, or all' if first else 'and NOT where it settles'}", first
    )


def _answers(directory: RunDirectory) -> Check:
    """Every stored text read again, as the run's own config says."""
    spec = read_spec(directory.samples)
    config = directory.read_config()
    if config is None:
        raise UserError(f"{directory.folder.location} has no config.yaml; is it a run directory?")
    question, where = config.get("question", {}), directory.folder.child("config.yaml")
    tasks, judges = question.get("tasks", {}), _number_of_judges(question)
    checked = differ = by_reader = 0
    for task in spec["tasks"]:
        if task not in tasks:
            raise Damaged(where, f"it has no task {task}, of which there are samples")
        task_config = stored_task(tasks[task], f"{where}: task {task}").with_judges(judges)
        for target in spec["models"]:
            for row in _rows(StoredTask(directory.samples, target, task)):
                checked += 1
                differ += not _reads_the_same(row, task_config)
                by_reader += bool(row["answer"] and row["steps"]) and row["steps"][-1]["role"] == Role.READER
    line = f"answers: checked {checked}, of which {differ} read otherwise"
    line += f"; {by_reader} from what the reader replied" if Role.READER in spec["roles"] else ""
    return Check(line, not differ)


def _number_of_judges(question: Mapping[str, Any]) -> int:
    """How many judges a run has, from the question in its config.yaml."""
    return 1 + len(question.get("roles", {}).get(Role.JUDGE, {}).get("others", ()))


def stored_task(stored: Mapping[str, Any], where: str) -> TaskConfig:
    """A task as config.yaml holds it. Keys that are not known here are left out: they do not change what is read."""
    stages = []
    for stage in stored["stages"]:
        ((kind, body),) = stage.items()
        fields = STAGES[kind].model_fields if kind in STAGES else {}
        names = {field.alias or name for name, field in fields.items()}
        stages.append({kind: {name: value for name, value in body.items() if name in names}})
    answer = {name: value for name, value in stored["answer"].items() if name in Answer.model_fields}
    known = {name: value for name, value in stored.items() if name in TaskConfig.model_fields}
    try:
        return TaskConfig.model_validate({**known, "stages": stages, "answer": answer})
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, TaskConfig)}") from None


def _ids(stored: StoredTask) -> tuple[int, Counter[str]]:
    """The number of rows, and of each variant the number of distinct samples."""
    ids = list(stored.batches(["sample_id", "variant"]))
    table = pa.Table.from_batches(ids, ids[0].schema) if ids else pa.table({"sample_id": [], "variant": []})
    return table.num_rows, Counter(table.group_by(["sample_id", "variant"]).aggregate([])["variant"].to_pylist())


def _rows(stored: StoredTask) -> Iterator[dict[str, Any]]:
    for batch in stored.batches(_READ_COLUMNS):
        yield from batch.to_pylist()


def _reads_the_same(row: Mapping[str, Any], task: TaskConfig) -> bool:
    """Whether a stored sample's last text, or those of its judges, give the stored answers, outcome and votes."""
    steps = [Step(stage="", model="", request_id="", prompt="", **step) for step in row["steps"]]
    sample = Sample("", "", "", "", "", "", "", {}, list(steps))
    finish(sample, task)
    answers_match = (sample.answer, sample.rambla_answer, sample.outcome) == tuple(row[name] for name in _READ)
    return answers_match and [step.vote for step in sample.steps] == [step.vote for step in steps]


def _calls(calls: Mapping[str, Any]) -> Check:
    """The equation of the run's calls, which must hold for each model and role."""
    names = ("calls", "answered", "failed", "retried", "hedged", "repeated")
    made, *ends, repeated = (sum(entry[name] for entry in calls["models"]) for name in names)
    parts = " + ".join(f"{name} {count}" for name, count in zip(names[1:5], ends, strict=True))
    wrong = [
        f"{entry['model']} as {entry['role']}"
        for entry in calls["models"]
        if entry["calls"] != sum(entry[name] for name in names[1:5])
    ]
    line = f"calls made {made} = {parts} + repeated after a kill at most {repeated}"
    line += f" (so that up to {made + repeated} were paid)" if repeated else ""
    return Check(line + (f"; does not add up for {', '.join(wrong)}" if wrong else ""), not wrong)
