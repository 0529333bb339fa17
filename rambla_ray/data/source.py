"""Datasets: from a hub id, a local file or a bucket to records, which an adapter turns into items."""

from __future__ import annotations

import csv
import io
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rambla_ray.config.dataset import DatasetConfig, Selection
from rambla_ray.config.layout import FILE_FORMATS, TAB_SEPARATED
from rambla_ray.data.adapters import ID_COLUMNS, OTHER_FILE, adapt
from rambla_ray.display import folded
from rambla_ray.errors import UserError
from rambla_ray.inputs import decoded, expanded, first_special, open_input, reason_of

DEMO_DIR = Path(__file__).parent / "demo"


def load_dataset(config: DatasetConfig, name: str, *, demo: bool) -> Selection:
    """The items of a dataset, in order, and how many of them `keep` left out.

    Args:
        config: what to read.
        name: the dataset's name, for messages.
        demo: read the shipped demo file instead of `config.path`.

    Raises:
        UserError: the data cannot be reached or read, lacks a column, has a row without an id or with a label that
            is not of its layout, holds an id twice, or nothing is left to ask.
    """
    path = str(DEMO_DIR / config.demo) if demo else config.path
    where = f"dataset {name} ({path})"
    records = _all(_read(path, config), where)
    items = adapt(records, config, where)
    twice = [root_id for root_id, count in Counter(item.root_id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{where} holds {len(twice)} ids more than once, for example '{twice[0]}'; ids must be unique")
    if items and all(item.fault for item in items):
        raise UserError(f"{where} has no item that can be asked: {items[0].fault}, in all {len(items)}; {OTHER_FILE}")
    try:
        return config.select(items)
    except ValueError as error:
        raise UserError(f"{where} {error}") from None


def read_table(path: str, where: str) -> list[Any]:
    """The records of a file of one of `FILE_FORMATS`.

    Args:
        path: local, or in a bucket.
        where: what the file is, for messages.

    Raises:
        UserError: it cannot be read.
    """
    return _all(_read_file(path, "id"), where)


def _all(records: Iterator[Any], where: str) -> list[Any]:
    """All records. Raises UserError where they cannot be read."""
    try:
        return list(records)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {reason_of(error)}; {OTHER_FILE}") from None
    except RecursionError:
        raise UserError(f"{where} cannot be read: its values are nested too deeply; {OTHER_FILE}") from None
    except (ValueError, csv.Error, NotImplementedError, ImportError) as error:
        raise UserError(f"{where} cannot be read: {folded(str(error), 300)}") from None


def _read(path: str, config: DatasetConfig) -> Iterator[Any]:
    """Raw records, one per item."""
    suffix = Path(path).suffix.lower()
    endings = FILE_FORMATS + (TAB_SEPARATED if config.format in ("sick", "mrpc") else ())
    if suffix not in endings and not _is_local(path) and "://" not in path:
        yield from _read_hub(path, config)
        return
    if suffix not in endings:
        local = expanded(path)
        if os.path.isdir(local):
            if reason := first_special(local.rglob("*")):
                raise ValueError(f"{reason}; {OTHER_FILE}")
            yield from _read_hub(str(local), config)
            return
        hint = f"a file needs one of the endings {', '.join(endings)}" if os.path.exists(local) else "no such file"
        raise ValueError(f"{hint}; {OTHER_FILE}")
    yield from _read_file(path, config.id_column or ID_COLUMNS.get(config.format, "id"))


def _read_file(path: str, id_column: str) -> Iterator[Any]:
    """Records of a file, whose ending says what it holds; `id_column` gets the keys of an object of objects."""
    suffix = Path(path).suffix.lower()
    with open_input(path) as stream:
        _refuse_larger_than_memory(stream.size())
        if suffix == ".parquet":
            from pyarrow import parquet

            groups = parquet.read_metadata(stream)
            _refuse_larger_than_memory(sum(groups.row_group(n).total_byte_size for n in range(groups.num_row_groups)))
            table = parquet.read_table(stream)
            opaque = [field.name for field in table.schema if _holds_objects(field.type)]
            if opaque:
                raise ValueError(f"column '{opaque[0]}' holds Python objects, which are not read; {OTHER_FILE}")
            single = [field.name for field in table.schema if pa.types.is_float32(field.type)]
            yield from _as_written(table.to_pylist(), single)
            return
        text = decoded(stream.read())
    if suffix == ".jsonl":
        yield from _json_lines(text)
    elif suffix == ".json":
        value = json.loads(text, object_pairs_hook=_unique_keys)
        yield from _json_records(value, id_column)
    else:
        yield from _separated(text, tabs=suffix in TAB_SEPARATED)


def _refuse_larger_than_memory(size: int) -> None:
    """Raise a ValueError for items that take more bytes than this machine has memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(
            f"it holds {size / 2**30:,.1f} GiB, and this machine has {memory / 2**30:.1f} GiB of memory; {OTHER_FILE}"
        )


def _holds_objects(kind: pa.DataType) -> bool:
    """Whether an Arrow type is, or nests, an extension type: Ray's own unpickles what it reads, which runs code."""
    if isinstance(kind, pa.ExtensionType):
        return True
    inner = [kind.value_type] if pa.types.is_dictionary(kind) else [kind.field(n).type for n in range(kind.num_fields)]
    return any(map(_holds_objects, inner))


def _as_written(rows: Iterable[dict[str, Any]], single: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with the fewest digits in their columns of single precision: 0.1, and not 0.10000000149011612."""
    for row in rows:
        numbers = {name: row[name] for name in single if row[name] is not None}
        yield row | {name: float(str(np.float32(number))) for name, number in numbers.items()}


def _separated(text: str, *, tabs: bool) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, or of a tab-separated one, in which a quote is a character like any other."""
    csv.field_size_limit(2**31 - 1)  # The default is 128 KiB, and a context can be longer.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    rows = (row for row in reader if row)
    header = next(rows, [])
    if not header or len(set(header)) < len(header):
        raise ValueError(f"its first line must name the columns, each once; {OTHER_FILE}")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {reader.line_num} has {len(row)} columns, the first line {len(header)}")
        yield dict(zip(header, row, strict=True))


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028.
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_unique_keys)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; json would silently keep the last of two."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"'{twice}' stands twice in one JSON object; ids must be unique")
    return unique


def _json_records(value: Any, id_column: str) -> Iterator[Any]:
    """Records of a JSON file: a list of objects, BioASQ's `questions`, or PubMedQA's object of objects keyed by id."""
    if isinstance(value, dict) and isinstance(value.get("questions"), list):
        value = value["questions"]
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict) and all(isinstance(record, dict) for record in value.values()):
        yield from ({id_column: key, **record} for key, record in value.items())
    else:
        raise ValueError("expected a list of objects, or an object of objects keyed by id")


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or os.path.exists(path)


def _read_hub(path: str, config: DatasetConfig) -> Iterator[dict[str, Any]]:
    """Records of a hub dataset, or of a local folder in the hub's layout."""
    if not os.path.isdir(path) and not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # A copy in the cache still loads, and nothing waits for the network.
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(path, config.subset, split=config.split)
        single = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") == "float32"]
        yield from _as_written(rows, single)
    except Exception as error:  # noqa: BLE001 - The library raises a dozen kinds: offline, not found, gated, ...
        reason = folded(str(error), 160)
        raise ValueError(
            f"load_dataset failed ({type(error).__name__}: {reason}); give a local copy with "
            "task.dataset.path=<file>, or run on the demo set with data=demo"
        ) from None


def _hub_answers() -> bool:
    """Whether the hub can be reached. Where it cannot, its client would retry for minutes."""
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(url, timeout=3.0).close()  # noqa: S310 - the user's own endpoint
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
