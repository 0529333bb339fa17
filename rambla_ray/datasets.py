"""Datasets: from a hub id, a local file or a bucket to a list of items.

An adapter turns the records of one public layout into items with the fields, joins and order that RAmBLA uses.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import well_formed
from rambla_ray.stages import Item

DEMO_DIR = Path(__file__).parent / "demo"
FILE_FORMATS = (".json", ".jsonl", ".csv", ".parquet")
TAB_SEPARATED = (".tsv", ".txt")  # the public form of SICK and MRPC

Record = Mapping[str, Any]


class DatasetConfig(BaseModel):
    """`conf/dataset/<name>.yaml`: where items come from and which are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["pubmedqa", "bioasq", "sick", "mrpc", "table"] = Field(description="the adapter that reads it")
    path: str = Field(description="a hub id (owner/name), or a local, s3:// or gs:// file")
    subset: str | None = Field(None, description="configuration name on the hub")
    split: str = Field("train", description="split on the hub")
    demo: str = Field(pattern=r"^\w[\w.-]*$", description="file of the same layout shipped in rambla_ray/demo")
    id_column: str | None = Field(None, description="of a table: the column with each row's id; `id` when not given")
    fields: tuple[str, ...] = Field((), description="of a table: the columns that a task may read")
    keep: dict[str, list[str]] = Field(
        default_factory=dict, description="keep only items whose field has one of these values"
    )
    balance: str | None = Field(
        None,
        description="a field of `keep`: take as many items of each of its values as the rarest has, the first ones, "
        "value after value in keep's order (RAmBLA's balanced PubMedQA); `limit` then takes equal shares",
    )
    limit: int | None = Field(None, gt=0, description="keep the first N items, after `keep` and `balance`")
    seed: int | None = Field(None, ge=0, lt=2**32, description="shuffle before `limit`; file order when not given")

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if self.format == "table" and not self.fields:
            raise ValueError("format table needs `fields`: the columns that a task may read")
        if self.format != "table" and (self.fields or self.id_column is not None):
            raise ValueError(f"`fields` and `id_column` are for format table; {self.format} has fields of its own")
        if self.balance is not None and not self.keep.get(self.balance):
            raise ValueError(f"`balance: {self.balance}` needs `keep: {{{self.balance}: [...]}}` with the values")
        if self.limit is not None and self.limit < len(self._balanced_values):
            raise ValueError(
                f"limit {self.limit} is too small for `balance`: {len(self._balanced_values)} values of "
                f"{self.balance} get equal shares"
            )
        return self

    @property
    def _balanced_values(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.keep[self.balance])) if self.balance else ()

    def select(self, items: Sequence[Item]) -> list[Item]:
        """The items that this config chooses: `keep`, then `balance`, then `seed`, then `limit`.

        Raises:
            ValueError: nothing is left, or a value to balance has no items.
        """
        total = len(items)
        for column, values in self.keep.items():
            items = [item for item in items if item.fields.get(column) in values]
            if not items and total:
                known = fields_of(self)
                hint = "" if column in known else f"; no field '{column}', {choose_from(column, known)}"
                raise ValueError(f"has no items to ask ({total} before `keep`){hint}")
        if not items:
            raise ValueError("has no items to ask: it is empty")
        if self.balance is not None:
            items = _balanced(items, self.balance, self._balanced_values)
        if self.seed is not None:
            items = [items[row] for row in np.random.RandomState(self.seed).permutation(len(items))]
        if self.limit is None:
            return list(items)
        if self.balance is None:
            return list(items[: self.limit])
        return list(_shares(items, self.balance, self.limit // len(self._balanced_values)))


def _balanced(items: Sequence[Item], column: str, values: Sequence[str]) -> list[Item]:
    """Blocks of equal size, one per value in their order: the first items that have it."""
    blocks = {value: [item for item in items if item.fields[column] == value] for value in values}
    empty = [value for value, block in blocks.items() if not block]
    if empty:
        raise ValueError(f"has no item whose {column} is '{empty[0]}', so that `balance` would leave none")
    size = min(len(block) for block in blocks.values())
    return [item for block in blocks.values() for item in block[:size]]


def _shares(items: Sequence[Item], column: str, share: int) -> Iterator[Item]:
    """The first `share` items of each value, in the order in which they stand."""
    taken: Counter[str] = Counter()
    for item in items:
        taken[item.fields[column]] += 1
        if taken[item.fields[column]] <= share:
            yield item


def load_items(config: DatasetConfig, name: str, *, demo: bool) -> list[Item]:
    """The items of a dataset, in order.

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
    try:
        records = list(_read(path, config))
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{where} cannot be read: {reason}; {_OTHER_FILE}") from None
    except (ValueError, csv.Error, NotImplementedError, ImportError) as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from None
    items = _adapted(records, config, where)
    twice = [root_id for root_id, count in Counter(item.root_id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{where} holds {len(twice)} ids more than once, for example '{twice[0]}'; ids must be unique")
    if items and all(item.fault for item in items):
        raise UserError(f"{where} has no item that can be asked: {items[0].fault}, in all {len(items)}; {_OTHER_FILE}")
    try:
        return config.select(items)
    except ValueError as error:
        raise UserError(f"{where} {error}") from None


_OTHER_FILE = "give another file with task.dataset.path=<file>"


def _adapted(records: Sequence[Any], config: DatasetConfig, where: str) -> list[Item]:
    """One item per record. Raises UserError, naming the row (counted from 1), for one that is not of the layout."""
    adapter = _ADAPTERS.get(config.format) or partial(
        _table, id_column=config.id_column or "id", fields=config.fields, columns=_columns(records)
    )
    items = []
    for row, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise TypeError("it is not an object with keys and values")
            items.append(adapter(record, row))
        except KeyError as error:
            key = str(error.args[0])
            raise UserError(
                f"{where} lacks '{key}' in row {row + 1}, which format {config.format} needs; "
                f"{choose_from(key, map(str, record))}"
            ) from None
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is not in the layout that format {config.format} reads: row {row + 1}: {error}"
            ) from None
        except ValueError as error:
            raise UserError(f"{where} row {row + 1}: {error}; correct the file, or leave the row out") from None
    return items


def _read(path: str, config: DatasetConfig) -> Iterator[Any]:
    """Raw records, one per item."""
    suffix = Path(path).suffix.lower()
    endings = FILE_FORMATS + (TAB_SEPARATED if config.format in ("sick", "mrpc") else ())
    if suffix not in endings and not _is_local(path) and "://" not in path:
        yield from _read_hub(path, config)
        return
    if suffix not in endings:
        local = Path(path).expanduser()
        if local.is_dir():
            yield from _read_hub(str(local), config)
            return
        hint = f"a file needs one of the endings {', '.join(endings)}" if local.exists() else "no such file"
        raise ValueError(f"{hint}; {_OTHER_FILE}")
    from pyarrow import fs

    source = path if "://" in path else str(Path(path).expanduser().absolute())
    filesystem, inner = fs.FileSystem.from_uri(source) if "://" in path else (fs.LocalFileSystem(), source)
    with filesystem.open_input_file(inner) as stream:
        if suffix == ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(stream)
            opaque = [field.name for field in table.schema if _holds_objects(field.type)]
            if opaque:
                raise ValueError(f"column '{opaque[0]}' holds Python objects, which are not read; {_OTHER_FILE}")
            yield from table.to_pylist()
            return
        text = stream.read().decode("utf-8-sig")
    if suffix == ".jsonl":
        yield from _json_lines(text)
    elif suffix == ".json":
        value = json.loads(text, object_pairs_hook=_unique_keys)
        yield from _json_records(value, config.id_column or _ID_COLUMNS.get(config.format, "id"))
    else:
        yield from _separated(text, tabs=suffix in TAB_SEPARATED)


def _holds_objects(kind: pa.DataType) -> bool:
    """Whether an Arrow type is, or nests, one that Python code has registered: Ray's own unpickles what it reads."""
    if isinstance(kind, pa.ExtensionType):
        return True
    inner = [kind.value_type] if pa.types.is_dictionary(kind) else [kind.field(n).type for n in range(kind.num_fields)]
    return any(map(_holds_objects, inner))


def _separated(text: str, *, tabs: bool) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, or of a tab-separated one, in which a quote is a character like any other."""
    csv.field_size_limit(2**31 - 1)  # 128 KiB unless told, and a context can be longer
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    rows = (row for row in reader if row)
    header = next(rows, [])
    if not header or len(set(header)) < len(header):
        raise ValueError(f"its first line must name the columns, each once; {_OTHER_FILE}")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {reader.line_num} has {len(row)} columns, the first line {len(header)}")
        yield dict(zip(header, row, strict=True))


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028 in a text
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
    return path.startswith(("/", "./", "../", "~")) or Path(path).exists()


def _read_hub(path: str, config: DatasetConfig) -> Iterator[dict[str, Any]]:
    """Records of a hub dataset, or of a local folder in the hub's layout."""
    if not Path(path).is_dir() and not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # a copy in the cache still loads; nothing waits for the network
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(path, config.subset, split=config.split)
    except Exception as error:  # noqa: BLE001 - the library raises a dozen kinds: offline, not found, gated, bad layout
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"load_dataset failed ({type(error).__name__}: {reason}); give a local copy with "
            "task.dataset.path=<file>, or run on the demo set with data=demo"
        ) from None


def _hub_answers() -> bool:
    """Whether the hub can be reached, so that its client's minutes of retries can be spared."""
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(url, timeout=3.0).close()  # noqa: S310 - the user's own endpoint
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """A cell as text: nothing for a missing one (None, NaN), JSON for what is neither text nor number."""
    if isinstance(value, str):
        return value
    if _missing(value):
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _texts(value: Any) -> list[str]:
    """A list of texts. Raises TypeError for anything else: a lone text would be taken for its characters."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"expected a list of texts, not {str(value)[:60]!r}")
    return value


def _whole(value: Any) -> str:
    """A number that pandas made a float because another row lacks it, and any other value, as text."""
    return _text(int(value) if isinstance(value, float) and value.is_integer() else value)


def _id(value: Any, column: str) -> str:
    text = well_formed(_whole(value))
    if not text.strip():
        raise ValueError(f"its id ('{column}') is missing")
    return text


def _one_of(value: Any, column: str, words: Mapping[str, str]) -> str:
    """The word that stands for a label, which may be its number, its name or the word."""
    try:
        return words[_whole(value).strip().lower()]
    except KeyError:
        known = ", ".join(words)
        raise ValueError(f"its {column} is {_whole(value)[:60]!r}, and not one of {known}") from None


def _first(record: Record, columns: Sequence[str]) -> tuple[str, Any]:
    """The first of several names that a column has in the releases, and its value."""
    column = next((column for column in columns if column in record), None)
    if column is None:
        raise KeyError("' or '".join(columns))
    return column, record[column]


def _pubmedqa(record: Record, row: int) -> Item:
    """PubMedQA, from the GitHub release (upper-case keys) or the hub (nested `context`).

    Source: Jin et al. 2019, https://github.com/pubmedqa/pubmedqa.
    """
    if "QUESTION" in record:
        question, answer = record["QUESTION"], record["LONG_ANSWER"]
        contexts, labels, meshes = record["CONTEXTS"], record["LABELS"], record["MESHES"]
    else:
        question, answer, nested = record["question"], record["long_answer"], record["context"]
        contexts, labels, meshes = nested["contexts"], nested["labels"], nested["meshes"]
    pmid = _id(record["pubid"], "pubid")
    return Item(
        root_id=pmid,
        fields={
            "question": _text(question),
            "long_answer": _text(answer),
            "final_decision": _text(record["final_decision"]),
            "context": "\n\n".join(_texts(contexts)),
            "labels": ", ".join(_texts(labels)),
            "meshes": ", ".join(_texts(meshes)),
            "pmid": pmid,
        },
    )


def _bioasq(record: Record, row: int) -> Item:
    """BioASQ task B, from the training files of any year, or the test files with their golden answers.

    The answer is the first ideal answer. The context is all snippets, with a blank line between two, where RAmBLA
    put nothing: its last word of one and first word of the next ran together. A question without an ideal answer
    cannot be asked: its item has a fault. A question without an id gets one from its text.

    Source: Tsatsaronis et al. 2015, http://participants-area.bioasq.org/general_information/Task11b/.
    """
    question, ideal, snippets = _text(record["body"]), record.get("ideal_answer"), record.get("snippets")
    answers = [] if _missing(ideal) else [ideal] if isinstance(ideal, str) else _texts(ideal)
    if snippets is None:
        texts = []
    elif isinstance(snippets, Mapping):  # how the hub's library holds a list of objects, in some versions
        texts = _texts(snippets["text"])
    else:
        texts = [_text(snippet["text"]) for snippet in snippets]
    given = record.get("id")
    if _missing(given) and not question.strip():
        raise ValueError("it has neither an id nor a body")
    root_id = hashlib.sha256(well_formed(question).encode()).hexdigest()[:24] if _missing(given) else _id(given, "id")
    answer = answers[0] if answers else ""
    return Item(
        root_id=root_id,
        fields={
            "question": question,
            "answer": answer,
            "context": "\n\n".join(text for text in texts if text),
            "label": "1",
            "id": root_id,
        },
        fault="" if answer.strip() else "ideal_answer: there is none to compare with",
    )


_ENTAILMENT = {word: word for word in ("entailment", "neutral", "contradiction")}
_ENTAILMENT |= dict(zip("012", tuple(_ENTAILMENT), strict=True))


def _sick(record: Record, row: int) -> Item:
    """SICK, from the release (SemEval's three files, or the whole in one) or the hub.

    The label is "1" for entailment, else "0". The score (1 to 5) is written with at most six digits, so that the hub's
    single precision gives what the release says.

    Source: Marelli et al. 2014, https://aclanthology.org/L14-1314/.
    """
    column, judged = _first(record, ("entailment_judgment", "entailment_label", "label"))
    entailment = _one_of(judged, column, _ENTAILMENT)
    score = _text(record["relatedness_score"])
    try:
        score = f"{float(score):.6g}" if score.strip() else ""
    except ValueError:
        raise ValueError(f"its relatedness_score is {score[:60]!r}, and not a number") from None
    column, pair_id = _first(record, ("pair_ID", "id"))
    return Item(
        root_id=_id(pair_id, column),
        fields={
            "text_1": _text(record["sentence_A"]),
            "text_2": _text(record["sentence_B"]),
            "label": "1" if entailment == "entailment" else "0",
            "relatedness_score": score,
            "entailment": entailment,
        },
    )


_PARAPHRASE = {"0": "0", "1": "1", "not_equivalent": "0", "equivalent": "1"}


def _mrpc(record: Record, row: int) -> Item:
    """MRPC, from the hub's GLUE, or the MSR release, where the row's number (from 0) is what GLUE calls idx.

    Source: Dolan and Brockett 2005, https://aclanthology.org/I05-5002/.
    """
    if "#1 String" in record:
        idx, text_1, text_2 = str(row), record["#1 String"], record["#2 String"]
        label = _one_of(record["Quality"], "Quality", _PARAPHRASE)
    else:
        idx, text_1, text_2 = _id(record["idx"], "idx"), record["sentence1"], record["sentence2"]
        label = _one_of(record["label"], "label", _PARAPHRASE)
    return Item(root_id=idx, fields={"text_1": _text(text_1), "text_2": _text(text_2), "label": label, "idx": idx})


def _columns(records: Sequence[Any]) -> frozenset[str]:
    return frozenset(column for record in records if isinstance(record, Mapping) for column in record)


def _table(record: Record, row: int, *, id_column: str, fields: Sequence[str], columns: frozenset[str]) -> Item:
    """Any table: the declared columns as they are; a cell that its row lacks is empty.

    Raises:
        KeyError: a column that no row has.
    """
    for column in (id_column, *fields):
        if column not in columns:
            raise KeyError(column)
    return Item(
        root_id=_id(record.get(id_column), id_column), fields={name: _text(record.get(name)) for name in fields}
    )


_ADAPTERS: Mapping[str, Callable[[Record, int], Item]] = {
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
    "sick": _sick,
    "mrpc": _mrpc,
}
_ID_COLUMNS: Mapping[str, str] = {"pubmedqa": "pubid", "mrpc": "idx"}  # where it is not `id`
FIELDS: Mapping[str, frozenset[str]] = {
    "pubmedqa": frozenset({"question", "long_answer", "final_decision", "context", "labels", "meshes", "pmid"}),
    "bioasq": frozenset({"question", "answer", "context", "label", "id"}),
    "sick": frozenset({"text_1", "text_2", "label", "relatedness_score", "entailment"}),
    "mrpc": frozenset({"text_1", "text_2", "label", "idx"}),
}


def fields_of(config: DatasetConfig) -> frozenset[str]:
    """The fields of a dataset's items, known before it is read."""
    return FIELDS.get(config.format, frozenset(config.fields))
