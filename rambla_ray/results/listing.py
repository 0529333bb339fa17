"""The runs in a folder: what each asked of whom, when, and whether it has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pyarrow import fs
from rich.table import Table

from rambla_ray.errors import UserError
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.lease import LEASE
from rambla_ray.results.tables import add_row, plain_table
from rambla_ray.storage import Folder

COLUMNS = ("run", "begun (UTC)", "models", "tasks", "state")
MOST_NAMED = 3  # So many tasks are named.
# What of a model's params says which it is: the first of these that it has, and how it samples.
_IDENTIFYING = ("engine", "model_name")


def runs_in(folder: Folder) -> list[RunDirectory]:
    """The run directories that lie directly in a folder, by name; none where it cannot be looked into."""
    selector = fs.FileSelector(folder.root, allow_not_found=True)
    try:
        entries = folder.filesystem.get_file_info(selector)
    except OSError:
        return []
    names = sorted(info.base_name for info in entries if info.type == fs.FileType.Directory)
    inside = [Folder(folder.child(name)) for name in names]
    return [RunDirectory(each) for each in inside if each.has("config.yaml") and each.has("plan.json")]


def table_of(runs: list[RunDirectory]) -> Table:
    """A row for each run, those begun first at the top; of one that cannot be read, that it is so."""
    table = plain_table(COLUMNS)
    for _, row in sorted(map(_row, runs)):
        add_row(table, row)
    return table


def _row(run: RunDirectory) -> tuple[float, list[str]]:
    """When a run was begun, and its row."""
    name = run.folder.name
    try:
        config = run.read_config() or {}
        calls = run.read_calls()
    except UserError:
        return 0.0, [name, "—", "—", "—", "cannot be read: its own report says why"]
    began = calls["invocations"][0]["started"] if calls else 0.0
    shown = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M") if began else "—"
    question, labels = config.get("question", {}), config.get("model_labels", {})
    models = ", ".join(
        _model(labels.get(target, target), model) for target, model in question.get("targets", {}).items()
    )
    return began, [name, shown, models, _tasks(list(question.get("tasks", {}))), _state(run, calls)]


def _model(label: str, config: Mapping[str, Any]) -> str:
    """A model as `label (engine, temperature)`."""
    params = config.get("params") or {}
    sampling = params.get("generation_config") or params
    parts = [str(params[key]) for key in _IDENTIFYING if params.get(key)][:1]
    if sampling.get("temperature") is not None:
        parts.append(f"temperature {sampling['temperature']}")
    return f"{label} ({', '.join(parts)})" if parts else label


def _tasks(names: list[str]) -> str:
    others = len(names) - MOST_NAMED
    return ", ".join([*names[:MOST_NAMED], *([f"{others} more"] if others > 0 else [])])


def _state(run: RunDirectory, calls: Mapping[str, Any] | None) -> str:
    return next(_states(run, calls))


def _states(run: RunDirectory, calls: Mapping[str, Any] | None) -> Iterator[str]:
    if run.folder.has(LEASE):
        yield "going on, or killed"
    if calls is None:
        yield "never ended"
    elif not calls["invocations"][-1]["finished"]:
        yield "stopped; the same command continues it"
    yield f"finished{_ended_early(run) if 'until' in (calls or {}) else ''}"


def _ended_early(run: RunDirectory) -> str:
    """Behind the state of a run, that it ended before all items were asked; empty where it did not, or is damaged."""
    try:
        until = run.read_metrics().get("until")
    except UserError:
        return ""
    return f", settled after {until['items']} of {until['of']}" if until and until["items"] < until["of"] else ""
