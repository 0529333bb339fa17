"""Writing samples/: the ended samples of a target as they come, each task to a file of its own.

Nothing here is held for longer than a row group takes to fill, and rows stay in Arrow's columns, so that a million
samples take no more memory than ten thousand, and microseconds each.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.results.samples import FORMAT_KEY, ROWS_PER_GROUP, SAMPLES_FORMAT, SPEC_KEY, file_name, open_file
from rambla_ray.results.served import NAMED, Served, count_answers
from rambla_ray.schema import SAMPLE_SCHEMA
from rambla_ray.storage import Folder

DRAFT = ".draft"  # What a file's name ends in until it is complete.
PENDING_BYTES = 64 * 2**20  # So much may wait for row groups to fill, over all tasks, before some of it is written.

# These columns are stored with a dictionary. Texts rarely repeat: a dictionary of them would only cost time.
_FEW_VALUES = [
    *("model", "task", "variant", "target", "label", "answer", "rambla_answer", "outcome"),
    *(f"steps.list.element.{name}" for name in ("stage", "role", "model", "finish_reason", "error_kind", "error")),
    *(f"steps.list.element.{name}" for name in (*NAMED, "batch")),
]


class Kept(NamedTuple):
    """What a run is about that has ended before all items were asked.

    Args:
        spec: how its samples are scored.
        root_ids: its items.
    """

    spec: Mapping[str, Any]
    root_ids: Collection[str]


class SampleWriter:
    """Streams the ended samples of one target to its files, which replace those of earlier invocations on closing.

    An earlier file of the same run that holds more samples stays: this invocation was then stopped early.

    Args:
        folder: samples/.
        target: the model under test.
        spec: what `results.directory.scoring_spec` gives; every task in it gets a file, if only an empty one.

    `outcomes` counts the samples by how they ended; `answered` counts, per (model, role), the steps with an answer,
    and `served` those of them whose reply named who served it.
    """

    def __init__(self, folder: Folder, target: str, spec: Mapping[str, Any]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.served: Counter[Served] = Counter()
        self._unwritten: NotWritten | None = None
        schema = _schema_of(spec)
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
        for served, count in count_answers(table["steps"].combine_chunks().flatten()).items():
            self.answered[served.config, served.role] += count
            if any(served.names):
                self.served[served] += count
        tasks = table["task"].unique().to_pylist()
        for task in tasks:
            self._files[task].add(table if len(tasks) == 1 else table.filter(pc.equal(table["task"], task)))
        while sum(file.pending_bytes for file in self._files.values()) > PENDING_BYTES:
            max(self._files.values(), key=lambda file: file.pending_bytes).flush()

    def close(self, kept: Kept | None = None) -> None:
        """Finish the files and give them their names. Raises NotWritten, also where `add` did: they are dropped.

        Args:
            kept: of a run that has ended early, what of the samples it is about.
        """
        try:
            if self._unwritten is not None:
                raise self._unwritten
            for file in self._files.values():
                file.publish(kept)
        finally:
            for file in self._files.values():
                file.discard()


class _TaskFile:
    """One Parquet file that is being written under another name, from the first row group on."""

    def __init__(self, folder: Folder, name: str, schema: pa.Schema, expected: int) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._draft = f"{name}.{uuid.uuid4().hex[:8]}{DRAFT}"  # A writer that lost its lease may still write its own.
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

    def publish(self, kept: Kept | None = None) -> None:
        """Finish the file and give it its name; one of an earlier invocation that holds more stays.

        Of a run that has ended early, the file holds what is kept, whatever an earlier one held.
        """
        self.flush()
        with self._folder.writing():
            self._finish()
            if kept is not None:
                self._keep(kept)
            if kept is not None or self._rows >= min(self._expected, self._rows_in_earlier_file()):
                self._folder.publish(self._draft, self._name)
                self._stream = None

    def _finish(self) -> None:
        self._parquet.close()
        self._stream.close()

    def _keep(self, kept: Kept) -> None:
        """Write the draft anew, with what is kept of it."""
        whole, self._draft = self._draft, f"{self._draft.removesuffix(DRAFT)}.kept{DRAFT}"
        self._schema, self._parquet = _schema_of(kept.spec), None
        root_ids = pa.array(kept.root_ids, pa.string())
        self._open()
        with open_file(self._folder, whole) as file:
            for batch in file.iter_batches(SAMPLE_SCHEMA.names):
                rows = pa.Table.from_batches([batch])
                self._parquet.write_table(rows.filter(pc.is_in(rows["root_id"], value_set=root_ids)))
        self._finish()
        self._folder.filesystem.delete_file(self._folder.path(whole))

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
        """How many samples of the same run the file that would be replaced holds; none where it is damaged."""
        try:
            with open_file(self._folder, self._name) as earlier:
                specs = [schema.metadata[SPEC_KEY] for schema in (earlier.schema_arrow, self._schema)]
                if specs[0] == specs[1]:
                    return int(earlier.metadata.num_rows)
                return self._expected if _has_ended_early(*map(json.loads, specs)) else 0
        except (FileNotFoundError, UserError, KeyError, TypeError):  # There is none, or it has no samples.
            return 0

    def _open(self) -> None:
        if self._parquet is None:
            self._stream = self._folder.open_stream(self._draft)
            self._parquet = pq.ParquetWriter(
                self._stream,
                self._schema,
                compression="snappy",
                use_dictionary=_FEW_VALUES,
                write_statistics=False,
                write_page_checksum=True,
            )


def _schema_of(spec: Mapping[str, Any]) -> pa.Schema:
    """The columns of samples, with how they are scored."""
    return SAMPLE_SCHEMA.with_metadata(
        {SPEC_KEY: json.dumps(spec, sort_keys=True).encode(), FORMAT_KEY: str(SAMPLES_FORMAT).encode()}
    )


def _has_ended_early(earlier: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether an earlier invocation of a run ended before all items were asked, and so lacks none."""
    until = earlier.get("until")
    if not until or until["items"] == until["of"]:
        return False
    return {**until, "items": until["of"]} == spec.get("until")


def _value_counts(values: pa.Array) -> dict[Any, int]:
    """How often each value occurs."""
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}
