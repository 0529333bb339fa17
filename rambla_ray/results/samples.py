"""samples/: what every sample was asked and answered, one Parquet file for each task of a target.

Nothing here is held for longer than one task of one target, and rows stay in Arrow's columns, so that a million
samples take no more memory than ten thousand, and microseconds each.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.schema import SAMPLE_SCHEMA, Role
from rambla_ray.storage import Folder

SAMPLES_FORMAT = 1  # A change to the columns that an older reader would misread raises it; a new column does not.
SPEC_KEY = b"rambla_ray"  # The Parquet metadata with the scoring spec, so that samples can be scored on their own.
FORMAT_KEY = b"rambla_ray.format"  # The Parquet metadata with SAMPLES_FORMAT; files without it are of format 1.
ROWS_PER_GROUP = 2048
PENDING_BYTES = 64 * 2**20  # So much may wait for row groups to fill, over all tasks, before some of it is written.

# These columns are stored with a dictionary. Texts rarely repeat: a dictionary of them would only cost time.
_FEW_VALUES = [
    *("model", "task", "variant", "target", "label", "answer", "rambla_answer", "outcome"),
    *(f"steps.list.element.{name}" for name in ("stage", "role", "model", "finish_reason", "error_kind", "error")),
]

_TEXT_COLUMNS = ["steps.list.element.role", "steps.list.element.text"]


def file_name(target: str, task: str) -> str:
    """The file of one task of a target."""
    return f"{target}--{task}.parquet"


def refuse_newer(what: str, written: object, known: int, location: str) -> None:
    """Raise a UserError when `what`, found at `location`, has a format number above the newest that is `known`."""
    if not isinstance(written, int) or written > known:
        raise UserError(
            f"{location} was written by a newer rambla_ray ({what} format {written}, this one reads up to {known}); "
            "install that version"
        )


class SampleWriter:
    """Streams the ended samples of one target to its files, which replace those of earlier invocations on closing.

    An earlier file of the same run that holds more samples stays: this invocation was then stopped early.

    Args:
        folder: samples/.
        target: the model under test.
        spec: what `results.directory.scoring_spec` gives; every task in it gets a file, if only an empty one.

    `outcomes` counts the samples by how they ended; `answered` counts, per (model, role), the steps with an answer.
    """

    def __init__(self, folder: Folder, target: str, spec: Mapping[str, Any]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self._unwritten: NotWritten | None = None
        schema = SAMPLE_SCHEMA.with_metadata(
            {SPEC_KEY: json.dumps(spec, sort_keys=True).encode(), FORMAT_KEY: str(SAMPLES_FORMAT).encode()}
        )
        self._files = {
            task: _TaskFile(folder, file_name(target, task), schema, sum(task_spec["expected"].values()))
            for task, task_spec in spec["tasks"].items()
        }

    def add(self, table: pa.Table) -> None:
        """Add ended samples.

        Args:
            table: `SAMPLE_SCHEMA`, shape (samples, columns), in any order, of any of the target's tasks.

        Raises:
            NotWritten: no more can be added.
        """
        if not table.num_rows:
            return
        try:
            self._add(table)
        except NotWritten as error:
            self._unwritten = error
            raise

    def _add(self, table: pa.Table) -> None:
        self.outcomes.update(_value_counts(table["outcome"].combine_chunks()))
        self.answered.update(_answered_steps(table))
        tasks = table["task"].unique().to_pylist()
        for task in tasks:
            self._files[task].add(table if len(tasks) == 1 else table.filter(pc.equal(table["task"], task)))
        while sum(file.pending_bytes for file in self._files.values()) > PENDING_BYTES:
            max(self._files.values(), key=lambda file: file.pending_bytes).flush()

    def close(self) -> None:
        """Finish the files and give them their names. Raises NotWritten, also where `add` did: they are dropped."""
        try:
            if self._unwritten is not None:
                raise self._unwritten
            for file in self._files.values():
                file.publish()
        finally:
            for file in self._files.values():
                file.discard()


def read_spec(folder: Folder) -> dict[str, Any]:
    """How the samples of a run are scored, as its files say. Raises UserError when there are none."""
    for name in folder.names(".parquet"):
        with open_file(folder, name) as file:
            spec: dict[str, Any] = json.loads(file.schema_arrow.metadata[SPEC_KEY])
            return spec
    raise UserError(f"{folder.location}: there are no samples; is it a run directory that was finished?")


@contextmanager
def open_file(folder: Folder, name: str, **options: Any) -> Iterator[Any]:
    """A file of samples as a `ParquetFile`.

    Raises:
        FileNotFoundError: there is none.
        UserError: its format is newer than what is known here.
    """
    with folder.filesystem.open_input_file(folder.path(name)) as stream:
        file = pq.ParquetFile(stream, **options)
        written = (file.schema_arrow.metadata or {}).get(FORMAT_KEY, b"1").decode()
        refuse_newer("samples", int(written) if written.isdigit() else written, SAMPLES_FORMAT, folder.path(name))
        yield file


def last_of_stages(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last of a stored sample's steps that is one of its task's own stages, and not the reader's; None without."""
    return next((step for step in reversed(steps) if step["role"] != Role.READER), None)


class StoredTask:
    """The stored samples of one task of a target; there need not be any.

    Raises:
        UserError: on reading, when their format is newer than what is known here.
    """

    def __init__(self, folder: Folder, target: str, task: str) -> None:
        self._folder, self._name = folder, file_name(target, task)

    def read(self, columns: Sequence[str]) -> pa.Table | None:
        """Some columns of all samples; nested ones by their path, `steps.list.element.text`. None without a file."""
        with self._open() as file:
            return file.read(columns=list(columns)) if file else None

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all samples, in row groups; nested ones by their path, `steps.list.element.text`."""
        with self._open() as file:
            if file:
                yield from file.iter_batches(ROWS_PER_GROUP, columns=list(columns))

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The last texts of samples, the reader's aside, by their row in the file."""
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begins = list(accumulate(sizes, initial=0))
            groups = [bisect_right(begins, row) - 1 for row in rows]
            read = {group: file.read_row_group(group, columns=_TEXT_COLUMNS)["steps"] for group in set(groups)}
            steps = (read[group][row - begins[group]].as_py() for group, row in zip(groups, rows, strict=True))
            lasts = (last_of_stages(sample_steps) for sample_steps in steps)
            return [last["text"] if last else "" for last in lasts]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The file, None when there is none; with `pre_buffer` a bucket is asked once for columns side by side."""
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_file(self._folder, self._name, pre_buffer=True))
            except FileNotFoundError:
                file = None
            yield file


class _TaskFile:
    """One Parquet file that is being written under another name, from the first row group on."""

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
        with self._folder.writing():
            self._open()
            if self._pending:
                whole = pa.concat_tables(self._pending).combine_chunks()
                self._parquet.write_table(whole, row_group_size=ROWS_PER_GROUP)
                self._rows += whole.num_rows
        self._pending = []
        self._pending_rows = self.pending_bytes = 0

    def publish(self) -> None:
        """Finish the file and give it its name; one of an earlier invocation that holds more stays."""
        self.flush()
        with self._folder.writing():
            self._parquet.close()
            self._stream.close()
            if self._rows >= min(self._expected, self._rows_in_earlier_file()):
                self._folder.publish(self._draft, self._name)
                self._stream = None

    def discard(self) -> None:
        """Drop what was written and not published."""
        if self._stream is None:
            return
        with contextlib.suppress(OSError):
            if self._parquet is not None:
                self._parquet.close()
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._folder.filesystem.delete_file(self._folder.path(self._draft))
        self._stream = None

    def _rows_in_earlier_file(self) -> int:
        """How many samples of the same run the file that would be replaced holds."""
        try:
            with self._folder.filesystem.open_input_file(self._folder.path(self._name)) as stream:
                earlier = pq.ParquetFile(stream)
                same = earlier.schema_arrow.metadata[SPEC_KEY] == self._schema.metadata[SPEC_KEY]
                return int(earlier.metadata.num_rows) if same else 0
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError):  # There is none, or it has no samples.
            return 0

    def _open(self) -> None:
        if self._parquet is None:
            self._stream = self._folder.open_stream(self._draft)
            self._parquet = pq.ParquetWriter(
                self._stream, self._schema, compression="snappy", use_dictionary=_FEW_VALUES, write_statistics=False
            )


def _value_counts(values: pa.Array) -> dict[Any, int]:
    """How often each value occurs."""
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}


def _answered_steps(table: pa.Table) -> dict[tuple[str, str], int]:
    """Per (model, role), the number of steps with an answer."""
    steps = table["steps"].combine_chunks().flatten()
    model, role, error = (steps.field(name) for name in ("model", "role", "error_kind"))
    pairs = pc.binary_join_element_wise(model, role, "\n").filter(pc.equal(error, ""))
    counts = {}
    for pair, count in _value_counts(pairs).items():
        name, _, played = pair.rpartition("\n")
        counts[name, played] = count
    return counts
