"""Layouts: which format a file of items is in, seen from the names of its columns, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rambla_ray.errors import UserError
from rambla_ray.inputs import open_input, reason_of

FILE_FORMATS = (".json", ".jsonl", ".csv", ".parquet")
TAB_SEPARATED = (".tsv", ".txt")  # SICK and MRPC are published in files that end so.
HEAD = 2**20  # So many bytes of a file are looked at.

# Per format, the columns by which its releases are known: those of either set.
_COLUMNS: Mapping[str, tuple[frozenset[str], ...]] = {
    "pubmedqa": (frozenset({"QUESTION", "CONTEXTS"}), frozenset({"question", "context", "long_answer"})),
    "bioasq": (frozenset({"body"}),),
    "sick": (frozenset({"sentence_A", "sentence_B"}),),
    "mrpc": (frozenset({"#1 String", "#2 String"}), frozenset({"sentence1", "sentence2"})),
}
_JSON_KEY = re.compile(r'"([^"\\]+)"\s*:')


def choose_paths(
    datasets: Mapping[str, Mapping[str, Any]], words: Sequence[tuple[str, str]], by_task: Mapping[str, str]
) -> dict[str, str]:
    """Which dataset gets which of the words `task.dataset.path=`, by the dataset's name; the last that fits counts.

    Where all datasets are of one format, all get it, whatever the file holds. Where they are not, only those whose
    format the file is in get it, and the others keep their own path.

    Args:
        datasets: the datasets of the run as their YAML has them.
        words: those words in order, each with the path that it stands for.
        by_task: each task's dataset.

    Raises:
        UserError: the formats differ, and the file cannot be looked into, or is in none of them.
    """
    formats = sorted({str(config.get("format")) for config in datasets.values()})
    chosen: dict[str, str] = {}
    for word, path in words:
        fitting = list(datasets) if len(formats) == 1 else _fitting(datasets, path, formats, by_task)
        chosen |= dict.fromkeys(fitting, word)
    return chosen


def _fitting(
    datasets: Mapping[str, Mapping[str, Any]], path: str, formats: list[str], by_task: Mapping[str, str]
) -> list[str]:
    """The datasets whose format a file is in."""
    try:
        columns = column_names(path)
        fitting = [name for name, config in datasets.items() if _fits(columns, config)]
        reason = f"it has the columns {', '.join(sorted(columns)[:8]) or '(none)'}"
    except OSError as error:
        fitting, reason = [], reason_of(error)
    except ValueError as error:
        fitting, reason = [], str(error)
    if not fitting:
        tasks = {
            form: ",".join(task for task, name in by_task.items() if str(datasets[name].get("format")) == form)
            for form in formats
        }
        raise UserError(
            f"task.dataset.path={path} is not seen to be in one of the formats of these tasks: {reason}; give a file "
            f"in one, or name the tasks of one: {'; '.join(f'{form}: task={tasks[form]}' for form in formats)}"
        )
    return fitting


def _fits(columns: frozenset[str], config: Mapping[str, Any]) -> bool:
    """Whether a file with these columns can be what a dataset reads."""
    of_table = frozenset(map(str, [config.get("id_column") or "id", *(config.get("fields") or ())]))
    return any(known <= columns for known in _COLUMNS.get(str(config.get("format")), (of_table,)))


def column_names(path: str) -> frozenset[str]:
    """The columns of a local file or one in a bucket; of JSON, the keys near its beginning.

    Raises:
        ValueError: there is no file of a known ending; it may be a folder, or a data set on the hub.
        OSError: the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FILE_FORMATS + TAB_SEPARATED:
        raise ValueError("it is no file of a known ending")
    with open_input(path) as stream:
        if suffix == ".parquet":
            from pyarrow import parquet

            return frozenset(parquet.read_schema(stream).names)
        head = stream.read(HEAD).decode("utf-8-sig", "replace")
    if suffix in (".json", ".jsonl"):
        return frozenset(_JSON_KEY.findall(head))
    header, _, _ = head.partition("\n")
    return frozenset(name.strip().strip('"') for name in header.split("\t" if suffix in TAB_SEPARATED else ","))
