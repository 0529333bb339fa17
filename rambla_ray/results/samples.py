"""samples/: what every sample was asked and answered, one Parquet file for each task of a target, read.

Nothing here is held for longer than one task of one target, and rows stay in Arrow's columns, so that a million
samples take no more memory than ten thousand, and microseconds each. `sample_writer` writes them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rambla_ray.errors import UserError
from rambla_ray.inputs import parse_json
from rambla_ray.results.documents import Damaged, Unreadable, check_shape
from rambla_ray.results.stored_shapes import ScoringSpec
from rambla_ray.schema import DETAIL_FIELDS, SAMPLE_SCHEMA, STEP_TYPE, Role
from rambla_ray.storage import Folder

SAMPLES_FORMAT = 1  # A change to the columns that an older reader would misread raises it; a new column does not.
SPEC_KEY = b"rambla_ray"  # The Parquet metadata with the scoring spec, so that samples can be scored on their own.
FORMAT_KEY = b"rambla_ray.format"  # The Parquet metadata with SAMPLES_FORMAT; files without it are of format 1.
ROWS_PER_GROUP = 2048

_TEXT_COLUMNS = [f"steps.list.element.{name}" for name in ("role", "model", "text")]
_OF_STEP = "steps.list.element."
# A file of an earlier version is without these.
LATER = {"epoch", *(f"{_OF_STEP}{name}" for name in (*DETAIL_FIELDS, "choice_probabilities", "vote"))}


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


def read_spec(folder: Folder) -> dict[str, Any]:
    """How the samples of a run are scored, as its files say. Raises UserError when there are none."""
    for name in sample_names(folder):
        with open_file(folder, name) as file:
            return spec_of(file.schema_arrow, folder, name)
    raise UserError(f"{folder.location}: there are no samples; is it a run directory that was finished?")


def spec_of(schema: pa.Schema, folder: Folder, name: str) -> dict[str, Any]:
    """How the samples of a file are scored, as its schema says. Raises UserError when that is damaged."""
    try:
        spec = parse_json((schema.metadata or {}).get(SPEC_KEY, b""), allow_nan=False)
    except ValueError:
        raise Damaged(folder.child(name), "its metadata does not say how it is scored") from None
    check_shape(spec, ScoringSpec, folder.child(name), "metadata: ")
    return dict(spec)


def sample_names(folder: Folder) -> list[str]:
    """The files of samples, sorted. Raises UserError."""
    try:
        return folder.names(".parquet")
    except OSError as error:
        raise Unreadable(folder.location, error) from None


@contextmanager
def open_file(folder: Folder, name: str, **options: Any) -> Iterator[StoredFile]:
    """A file of samples.

    Raises:
        FileNotFoundError: there is none.
        UserError: its format is newer than what is known here, or it is damaged, as far as it is read while inside.
    """
    location = folder.child(name)
    try:
        with folder.filesystem.open_input_file(folder.path(name)) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True, **options)
            written = (file.schema_arrow.metadata or {}).get(FORMAT_KEY, b"1").decode()
            refuse_newer("samples", int(written) if written.isdigit() else written, SAMPLES_FORMAT, folder.path(name))
            yield StoredFile(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise Unreadable(location, error) from None
        raise Damaged(location, error) from None  # Of what is no Parquet, Arrow, too, says OSError.


class StoredFile:
    """A Parquet file of samples that is open. What is read of it is valid, or an error of `open_file`.

    Columns that an earlier version did not write are read as 0 or empty.
    """

    def __init__(self, file: pq.ParquetFile) -> None:
        self.schema_arrow, self.metadata = file.schema_arrow, file.metadata
        self.num_row_groups = file.num_row_groups
        self._file = file

    def read(self, columns: Sequence[str]) -> pa.Table:
        return self._whole(self._file.read(columns=self._known(columns)), columns)

    def read_row_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        return self._whole(self._file.read_row_group(group, columns=self._known(columns)), columns)

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._file.iter_batches(ROWS_PER_GROUP, columns=self._known(columns)):
            yield self._whole(batch, columns)

    def _known(self, columns: Sequence[str]) -> list[str]:
        """The columns that the file has. Raises ValueError where another is missing, or is of another type."""
        known = [column for column in columns if not self._is_earlier_than(column)]
        for column in known:
            if _type_at(self.schema_arrow, column) != _type_at(SAMPLE_SCHEMA, column):
                raise ValueError(f"it has no column {column} of samples")
        return known

    def _is_earlier_than(self, column: str) -> bool:
        return column in LATER and _type_at(self.schema_arrow, column) is None

    def _whole(self, rows: Any, columns: Sequence[str]) -> Any:
        """The rows with all columns. Raises ValueError, ArrowException."""
        rows = _valid(rows, self._known(columns))
        absent = [column for column in columns if self._is_earlier_than(column)]
        of_steps = [field for field in STEP_TYPE if f"{_OF_STEP}{field.name}" in absent]
        rows = _with_empty(rows, of_steps) if of_steps else rows
        for field in (field for field in SAMPLE_SCHEMA if field.name in absent):
            rows = rows.append_column(field, pa.repeat(_empty(field.type), rows.num_rows))
        return rows


def _type_at(schema: pa.Schema, column: str) -> pa.DataType | None:
    """The type of a column, or of what is in it (`steps.list.element.text`); None where there is none."""
    name, _, inner = column.partition(".list.element.")
    fields = {field.name: field.type for field in schema}
    if not inner or name not in fields:
        return fields.get(name)
    inside = fields[name].value_type if pa.types.is_list(fields[name]) else pa.null()
    return {field.name: field.type for field in inside}.get(inner) if pa.types.is_struct(inside) else None


def _valid(rows: Any, columns: Sequence[str]) -> Any:
    """The rows, if they have all columns, no empty cells, and texts in UTF-8. Raises ValueError, ArrowException."""
    rows.validate(full=True)
    if {column.partition(".")[0] for column in columns} != set(rows.schema.names):
        raise ValueError("its columns are not those that its metadata name")
    if missing := [name for name in rows.schema.names if rows.column(name).null_count]:
        raise ValueError(f"column {missing[0]} has empty cells")
    return rows


def _with_empty(rows: Any, fields: Sequence[pa.Field]) -> Any:
    """The rows, in whose steps further columns are 0 or empty."""
    number = rows.schema.get_field_index("steps")
    steps = rows.column(number)
    steps = steps.combine_chunks() if isinstance(steps, pa.ChunkedArray) else steps
    flat = steps.flatten()
    empty = [pa.repeat(_empty(field.type), len(flat)) for field in fields]
    struct = pa.StructArray.from_arrays([*flat.flatten(), *empty], fields=[*flat.type, *fields])
    offsets = pa.array(accumulate(pc.list_value_length(steps).to_pylist(), initial=0), pa.int32())
    return rows.set_column(number, "steps", pa.ListArray.from_arrays(offsets, struct))


def _empty(kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_list(kind):
        return pa.scalar([], kind)
    return pa.scalar("" if kind == pa.string() else 0, kind)


def last_of_stages(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last of a stored sample's steps that is one of its task's own stages, and not the reader's; None without."""
    return next((step for step in reversed(steps) if step["role"] != Role.READER), None)


def votes_of(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a stored sample in which several judges answered; none where no judge did, or one alone."""
    judges = [step for step in steps if step["role"] == Role.JUDGE]
    return judges if 1 < len(judges) == len({step["model"] for step in judges}) else []


def _text_that_was_read(steps: Sequence[dict[str, Any]]) -> str:
    """The last text of a stored sample, or those of all its judges."""
    if panel := votes_of(steps):
        return " | ".join(step["text"] for step in panel)
    last = last_of_stages(steps)
    return last["text"] if last else ""


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
            return file.read(columns) if file else None

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all samples, in row groups; nested ones by their path, `steps.list.element.text`."""
        with self._open() as file:
            if file:
                yield from file.iter_batches(columns)

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The last texts of samples, the reader's aside, by their row in the file; of several judges those of all."""
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begins = list(accumulate(sizes, initial=0))
            groups = [bisect_right(begins, row) - 1 for row in rows]
            read = {group: file.read_row_group(group, columns=_TEXT_COLUMNS)["steps"] for group in set(groups)}
            steps = (read[group][row - begins[group]].as_py() for group, row in zip(groups, rows, strict=True))
            return [_text_that_was_read(sample_steps) for sample_steps in steps]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The file, None when there is none; with `pre_buffer` a bucket is asked once for columns side by side."""
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_file(self._folder, self._name, pre_buffer=True))
            except FileNotFoundError:
                file = None
            yield file
