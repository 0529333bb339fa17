"""samples/: what every sample was asked and answered, one Parquet file for each task of a target.

Nothing here is held for longer than one task of one target, and rows stay in Arrow's columns, so that a million
samples take no more memory than ten thousand, and microseconds each.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rambla_ray.display import one_line
from rambla_ray.errors import UserError
from rambla_ray.schema import SAMPLE_SCHEMA, Outcome
from rambla_ray.storage import Folder

SPEC_KEY = b"rambla_ray"  # Parquet metadata: how the samples are scored, so that they can be on their own
ROWS_PER_GROUP = 2048
PENDING_BYTES = 64 * 2**20  # rows that wait for their row group to fill, over all tasks
ERROR_CHARS = 500  # of a sample's id and of its error, in errors.jsonl

# Texts rarely repeat, so that a dictionary of them is only work.
_FEW_VALUES = [
    *("model", "task", "variant", "target", "label", "answer", "rambla_answer", "outcome"),
    *(f"steps.list.element.{name}" for name in ("stage", "role", "model", "finish_reason", "error_kind", "error")),
]

_TEXT_COLUMNS = ["steps.list.element.text"]
_ERROR_STEP = ("stage", "role", "error_kind", "error", "text")
_ERROR_COLUMNS = ["sample_id", "outcome", *(f"steps.list.element.{name}" for name in _ERROR_STEP)]


def file_name(target: str, task: str) -> str:
    """The file of one task of a target."""
    return f"{target}--{task}.parquet"


class SampleWriter:
    """Streams the ended samples of one target to its files, which take the place of earlier ones when it is closed.

    An invocation that was stopped early leaves an earlier file of the same run that holds more in its place.

    Args:
        folder: samples/.
        target: the model under test.
        spec: `results.scoring_spec`; every task in it gets a file, if only an empty one.

    `outcomes` counts the samples by how they ended; `answered` counts, per (model, role), the steps with an answer.
    """

    def __init__(self, folder: Folder, target: str, spec: Mapping[str, Any]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        schema = SAMPLE_SCHEMA.with_metadata({SPEC_KEY: json.dumps(spec, sort_keys=True).encode()})
        self._files = {
            task: _TaskFile(folder, file_name(target, task), schema, sum(how["expected"].values()))
            for task, how in spec["tasks"].items()
        }

    def add(self, table: pa.Table) -> None:
        """Take ended samples.

        Args:
            table: `SAMPLE_SCHEMA`, shape (samples, columns), in any order, of any of the target's tasks.
        """
        if not table.num_rows:
            return
        self.outcomes.update(_counted(table["outcome"].combine_chunks()))
        self.answered.update(_answered(table))
        tasks = table["task"].unique().to_pylist()
        for task in tasks:
            self._files[task].add(table if len(tasks) == 1 else table.filter(pc.equal(table["task"], task)))
        while sum(file.pending_bytes for file in self._files.values()) > PENDING_BYTES:
            max(self._files.values(), key=lambda file: file.pending_bytes).flush()

    def close(self) -> None:
        """Finish the files and put them in their places."""
        for file in self._files.values():
            file.publish()


def read_spec(folder: Folder) -> dict[str, Any]:
    """How the samples of a run are scored, as its files say. Raises UserError when there are none."""
    for name in folder.names(".parquet"):
        with folder.filesystem.open_input_file(folder.path(name)) as stream:
            spec: dict[str, Any] = json.loads(pq.ParquetFile(stream).schema_arrow.metadata[SPEC_KEY])
            return spec
    raise UserError(f"{folder.location}: there are no samples; is it a run directory that was finished?")


class StoredTask:
    """The stored samples of one task of a target: none when there is no file."""

    def __init__(self, folder: Folder, target: str, task: str) -> None:
        self._folder, self._name = folder, file_name(target, task)

    def read(self, columns: Sequence[str]) -> pa.Table | None:
        """Some columns of all samples; nested ones by their path, `steps.list.element.text`."""
        with self._open() as file:
            return file.read(columns=list(columns)) if file else None

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all samples, in row groups; nested ones by their path, `steps.list.element.text`."""
        with self._open() as file:
            if file:
                yield from file.iter_batches(ROWS_PER_GROUP, columns=list(columns))

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The last texts of samples, by their row in the file."""
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begins = list(accumulate(sizes, initial=0))
            groups = [bisect_right(begins, row) - 1 for row in rows]
            read = {group: file.read_row_group(group, columns=_TEXT_COLUMNS)["steps"] for group in set(groups)}
            steps = (read[group][row - begins[group]].as_py() for group, row in zip(groups, rows, strict=True))
            return [of_sample[-1]["text"] if of_sample else "" for of_sample in steps]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            stream = self._folder.filesystem.open_input_file(self._folder.path(self._name))
        except FileNotFoundError:
            yield None
            return
        with stream:
            yield pq.ParquetFile(stream, pre_buffer=True)  # one request to a bucket for columns side by side


def error_lines(folder: Folder) -> Iterator[bytes]:
    """A line of JSON for each sample that was not scored: which, how it ended, and what its last step said.

    They come by target and task, and of one task in the order in which they ended. A line is ASCII and bounded in
    length, whatever the sample holds.
    """
    for name in folder.names(".parquet"):
        with folder.filesystem.open_input_file(folder.path(name)) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                lost = pc.not_equal(file.read_row_group(group, columns=["outcome"])["outcome"], Outcome.SCORED.value)
                if pc.any(lost).as_py():
                    rows = file.read_row_group(group, columns=_ERROR_COLUMNS).filter(lost)
                    yield from map(_error_line, rows.to_pylist())


def _error_line(row: Mapping[str, Any]) -> bytes:
    last = row["steps"][-1] if row["steps"] else dict.fromkeys(_ERROR_STEP, "")
    line = {
        "sample_id": one_line(row["sample_id"], ERROR_CHARS),
        "outcome": row["outcome"],
        "stage": one_line(last["stage"]),
        "role": last["role"],
        "error_kind": last["error_kind"],
        "error": one_line(last["error"], ERROR_CHARS) or f"no answer read from: '{one_line(last['text'])}'",
    }
    return json.dumps(line).encode() + b"\n"


class _TaskFile:
    """One Parquet file in the making, opened when it is first needed."""

    def __init__(self, folder: Folder, name: str, schema: pa.Schema, expected: int) -> None:
        self._folder, self._name, self._draft, self._schema = folder, name, f"{name}.draft", schema
        self._expected, self._rows = expected, 0
        self._stream: Any = None
        self._parquet: Any = None
        self._pending: list[pa.Table] = []
        self._pending_rows = self.pending_bytes = 0

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self.pending_bytes += table.nbytes
        if self._pending_rows >= ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        self._open()
        if self._pending:
            whole = pa.concat_tables(self._pending).combine_chunks()
            self._parquet.write_table(whole, row_group_size=ROWS_PER_GROUP)
            self._rows += whole.num_rows
        self._pending = []
        self._pending_rows = self.pending_bytes = 0

    def publish(self) -> None:
        self.flush()
        self._parquet.close()
        self._stream.close()
        if self._rows >= min(self._expected, self._rows_in_place()):
            self._folder.publish(self._draft, self._name)
        else:
            self._folder.filesystem.delete_file(self._folder.path(self._draft))

    def _rows_in_place(self) -> int:
        """How many samples of the same run the file that would be replaced holds."""
        try:
            with self._folder.filesystem.open_input_file(self._folder.path(self._name)) as stream:
                there = pq.ParquetFile(stream)
                same = there.schema_arrow.metadata[SPEC_KEY] == self._schema.metadata[SPEC_KEY]
                return int(there.metadata.num_rows) if same else 0
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError):  # none, or not one of ours
            return 0

    def _open(self) -> None:
        if self._parquet is None:
            self._stream = self._folder.filesystem.open_output_stream(self._folder.path(self._draft))
            self._parquet = pq.ParquetWriter(
                self._stream, self._schema, compression="snappy", use_dictionary=_FEW_VALUES, write_statistics=False
            )


def _counted(values: pa.Array) -> dict[Any, int]:
    """How often each value is there."""
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}


def _answered(table: pa.Table) -> dict[tuple[str, str], int]:
    """Per (model, role), the steps with an answer."""
    steps = table["steps"].combine_chunks().flatten()
    model, role, error = (steps.field(name) for name in ("model", "role", "error_kind"))
    who = pc.binary_join_element_wise(model, role, "\n").filter(pc.equal(error, ""))
    counts = {}
    for key, count in _counted(who).items():
        name, _, played = key.rpartition("\n")
        counts[name, played] = count
    return counts
