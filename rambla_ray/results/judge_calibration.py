"""How often a run's judge errs, from texts whose truth is known: a run in which it was the model, or a table.

What is read here is stored with the samples, so that they are scored the same without the file that it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rambla_ray.config.layout import FILE_FORMATS
from rambla_ray.config.run import RunConfig
from rambla_ray.config.task import Answer, TaskConfig
from rambla_ray.data import cells
from rambla_ray.data.source import read_table
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError
from rambla_ray.inputs import open_input
from rambla_ray.results.audit import stored_task
from rambla_ray.results.directory import RunDirectory, differences
from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.schema import SCORE, Outcome, Role
from rambla_ray.scoring.correction import stored, tallies
from rambla_ray.scoring.votes import majority_of
from rambla_ray.storage import Folder
from rambla_ray.tasks.stages import Compare, Generate

VERDICT, LABEL, ITEM = "verdict", "label", "root_id"  # The columns of a table; the last may be missing.
_COLUMNS = ("root_id", "epoch", "variant", "target", "answer", "outcome")


class Row(NamedTuple):
    """What a judge said of one pair of texts."""

    label: str
    verdict: str
    item: str


def read_calibration(config: RunConfig, path: str) -> dict[str, Any]:
    """How often the judge of a run, or the majority of its judges, is right, as the scoring spec holds it.

    Args:
        config: the run.
        path: a run directory, or a file with one of the endings of `FILE_FORMATS`.

    Raises:
        UserError: there is no such run or table, it is of another judge, it lacks a column, or texts of one label.
    """
    where = f"judge_calibration ({path})"
    judged = {
        name: task for name, task in config.tasks.items() if task.judge and len(set(task.answer.label_names)) == 2
    }
    if not judged:
        raise UserError(f"{where}: no task of the run has a judge that answers with one of two labels; leave it out")
    answer = next(iter(judged.values())).answer
    if Path(path).suffix.lower() in FILE_FORMATS:
        source, rows = _source_of_table(path, where), list(_of_table(path, answer, where))
        more: dict[str, Any] = {}
    else:
        source, rows, more = _of_run(config, judged, path, where)
    found = tallies(*zip(*rows, strict=True)) if rows else {}
    labels = sorted(set(answer.label_names))
    if missing := [label for label in labels if label not in found]:
        raise UserError(
            f"{where}: it has {len(rows)} verdicts, and none on a text whose label is {' or '.join(missing)}; both "
            f"labels are needed ({', '.join(labels)})"
        )
    judge = ",".join(member.config_name for member in config.roles[Role.JUDGE].members)
    return {"source": source, "judge": judge, "labels": stored(found), **more}


def _source_of_table(path: str, where: str) -> str:
    """A table's name, and what tells its content from another."""
    try:
        with open_input(path) as stream:
            return f"{Path(path).name}, sha256 {hashlib.sha256(stream.read()).hexdigest()[:16]}"
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {one_line(str(error))}") from None


def _of_table(path: str, answer: Answer, where: str) -> Iterator[Row]:
    """The rows of a table in which there is a verdict."""
    for number, record in enumerate(read_table(path, where), start=1):
        columns = list(record) if isinstance(record, dict) else []
        for column in (VERDICT, LABEL):
            if column not in columns:
                raise UserError(
                    f"{where}: row {number} has no column '{column}'; it needs {VERDICT} (what the judge said) and "
                    f"{LABEL} (what is right), and may have {ITEM}; it has {', '.join(map(str, columns)) or 'none'}"
                )
        label, verdict = (_label(record[column], answer) for column in (LABEL, VERDICT))
        for column, read in ((LABEL, label), (VERDICT, verdict)):
            if read is None or (column == LABEL and not read):
                shown = one_line(str(record[column]), SHOWN_CHARACTERS)
                raise UserError(
                    f"{where}: row {number}: {column} is '{shown}', which is none of {', '.join(answer.label_names)}"
                )
        if label and verdict:
            yield Row(label, verdict, str(record.get(ITEM) or number))


def _label(value: Any, answer: Answer) -> str | None:
    """The label that a cell holds, or stands for as a choice; empty for an empty cell, None for another value."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    try:
        text = cells.text(value).strip()
    except cells.NotText:
        return None
    if not text or text in answer.label_names:
        return text
    return answer.label_of(text.lower()) if text.lower() in answer.choices else None


def _of_run(
    config: RunConfig, judged: Mapping[str, TaskConfig], path: str, where: str
) -> tuple[str, list[Row], dict[str, Any]]:
    """Where the rows come from, the rows, and what else the spec holds of a run whose models are the judges."""
    directory = RunDirectory(Folder(path))
    try:
        document = directory.read_config()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {one_line(str(error))}") from None
    if document is None:
        raise UserError(f"{where} is no run directory, and no table ({', '.join(FILE_FORMATS)})")
    spec, question = read_spec(directory.samples), document["question"]
    name, task = _calibrating(question, spec["tasks"], where)
    models = [_same_model(member, question["targets"], where) for member in _stored_judges(config)]
    rows = _rows([StoredTask(directory.samples, model, name) for model in models], task, where)
    asks = _asks(task.generates[-1])
    reads_prompts = any(member.config.params.produces != SCORE for member in config.roles[Role.JUDGE].members)
    other = [one for one, its in judged.items() if reads_prompts and _asks(its.generates[-1]) != asks]
    more = {**({"other_prompt": other} if other else {}), **({"synthetic": True} if spec["synthetic"] else {})}
    return f"task {name} of run {document.get('run_id', directory.folder.name)}", rows, more


def _calibrating(question: Mapping[str, Any], stored_with: Mapping[str, Any], where: str) -> tuple[str, TaskConfig]:
    """The one task of a run in which the target compares two texts. Raises UserError."""
    tasks = {
        name: stored_task(task, f"{where}: task {name}")
        for name, task in question["tasks"].items()
        if name in stored_with
    }
    comparing = [
        name
        for name, task in tasks.items()
        if isinstance(last := task.generates[-1], Compare) and last.role == Role.TARGET
    ]
    if len(comparing) != 1:
        raise UserError(
            f"{where}: it needs one task in which the model compares two texts, such as similarity_sick, and has "
            f"{', '.join(comparing) or 'none'}"
        )
    return comparing[0], tasks[comparing[0]]


def _stored_judges(config: RunConfig) -> Sequence[Mapping[str, Any]]:
    """The judges of a run as its config.yaml holds them."""
    first = config.stored()["roles"][Role.JUDGE]
    return [first, *first.get("others", ())]


def _same_model(judge: Mapping[str, Any], targets: Mapping[str, Any], where: str) -> str:
    """The model of a run that is a judge: of the same class with the same params. Raises UserError."""
    own, name = _identity(judge["config"]), judge["config_name"]
    for target in [*([name] if name in targets else []), *targets]:
        if _identity(targets[target]) == own:
            return str(target)
    reason = f"it tested {', '.join(targets)}"
    if name in targets:
        reason = f"there these keys of {name} differ: {', '.join(differences(_identity(targets[name]), own)[:8])}"
    raise UserError(f"{where} is not of the judge {name}: {reason}")


def _identity(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": model["name"], "params": model["params"]}


def _rows(tasks: Sequence[StoredTask], task: TaskConfig, where: str) -> list[Row]:
    """What the judges, or the majority of several, said of the samples of a task."""
    labels: dict[tuple[str, str, int], str] = {}
    votes: dict[tuple[str, str, int], list[str]] = {}
    for row in _samples(tasks):
        key = (row["root_id"], row["variant"], row["epoch"])
        labels[key] = row["target"]
        is_scored = row["outcome"] == Outcome.SCORED
        if is_scored and row["answer"] not in task.answer.label_names:
            raise UserError(f"{where}: the judge gives numbers there, not one of {', '.join(task.answer.label_names)}")
        votes.setdefault(key, []).append(row["answer"] if is_scored else "")
    verdicts = {key: majority_of(votes[key]) for key in sorted(votes)}
    return [Row(labels[key], verdict, key[0]) for key, verdict in verdicts.items() if verdict]


def _samples(tasks: Iterable[StoredTask]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        for batch in task.batches(_COLUMNS):
            yield from batch.to_pylist()


def _asks(stage: Generate) -> list[tuple[str, str]]:
    """What a stage asks, in each of its phrasings, whatever the fields are called that its texts stand in."""
    templates = [phrased.template or "" for phrased in stage.phrasings.values() or [stage]]
    if isinstance(stage, Compare):
        templates = [
            template.replace(f"{{{stage.left}}}", "{1}").replace(f"{{{stage.right}}}", "{2}") for template in templates
        ]
    return [(stage.system or "", template) for template in templates]
