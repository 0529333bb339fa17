"""Cells of every type that a file can give them: the text that is asked, or one line that names the column."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_records import items_of

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import UserError
from rambla_ray.run.plan import Plan

NOON = datetime.datetime(2024, 2, 29, 12, 0)
TEXT = ["Is µ more?", "b", None]


def asked(folder: Path, column: pa.Array | pa.ChunkedArray, name: str = "text") -> list[str]:
    """What a table's task would ask of a Parquet column of three rows."""
    path = folder / "t.parquet"
    pq.write_table(pa.table({"code": ["1", "2", "3"], name: column}), path)
    return [item.fields[name] for item in items_of("table", path, fields=[name])]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.binary()),
    ],
    ids=str,
)
def test_text_of_any_arrow_type_is_that_text(kind: pa.DataType, tmp_path: Path) -> None:
    values = [value.encode() if value and "binary" in str(kind) else value for value in TEXT]
    if pa.types.is_dictionary(kind):
        column = pa.array(values).dictionary_encode().cast(kind)
    else:
        column = pa.array(values, kind)
    assert asked(tmp_path, column) == ["Is µ more?", "b", ""]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([b"abc", b"def", None], pa.binary(3)), ["abc", "def", ""]),
        (pa.array([datetime.date(2024, 2, 29)] * 3), ["2024-02-29"] * 3),
        (pa.array([NOON, None, NOON]), ["2024-02-29 12:00:00", "", "2024-02-29 12:00:00"]),
        (pa.array([datetime.time(9, 30)] * 3), ["09:30:00"] * 3),
        (pa.array([Decimal("1.50"), Decimal("-0.01"), None]), ["1.50", "-0.01", ""]),
        (pa.array([Decimal("1E+3"), Decimal(0), None], pa.decimal128(10, 0)), ["1000", "0", ""]),
        (pa.array([1, None, 3]), ["1", "", "3"]),
        (pa.array([1.0, None, 3.0]), ["1", "", "3"]),  # what pandas makes of it
        (pa.array([1.0, float("nan"), 3.0]), ["1", "", "3"]),
        (pa.array([1.0, None, 2.5]), ["1.0", "", "2.5"]),
        (pa.array([1.0, 2.0, 3.0]), ["1.0", "2.0", "3.0"]),
        (pa.array([0.1, 2.5, None], pa.float32()), ["0.1", "2.5", ""]),
        (pa.array([True, False, None]), ["true", "false", ""]),
        (pa.array([["a", "µ"], [], None]), ['["a", "µ"]', "[]", ""]),
        (pa.array([[b"a", "µ".encode()], [], None]), ['["a", "µ"]', "[]", ""]),
        (pa.array([{"a": b"x", "b": [1]}, {"a": None, "b": None}, None]), ['{"a": "x", "b": [1]}', *2 * [None]]),
        (pa.nulls(3), ["", "", ""]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_cell_is_asked_as_a_reader_would_write_it(column: pa.Array, texts: list[str | None], tmp_path: Path) -> None:
    found = asked(tmp_path, column)
    assert [text for text, expected in zip(found, texts, strict=True) if expected is not None] == [
        text for text in texts if text is not None
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"fine", b"caf\xe9", None]),
        pa.array([b"fine", b"\x89PNG\r\n", None], pa.large_binary()),
        pa.array([[b"fine"], [b"\xff"], None]),
        pa.array([{"inner": b"fine"}, {"inner": b"\xff"}, None]),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_that_are_no_text_are_refused_with_their_column(column: pa.Array, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 2: column 'text' holds bytes that are not UTF-8 text") as refused:
        asked(tmp_path, column)
    assert "\n" not in str(refused.value)


def test_bytes_in_a_column_that_nothing_asks_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"code": ["1"], "image": [b"\xff"], "text": [b"a"]}), path)
    assert [item.fields for item in items_of("table", path, fields=["text"])] == [{"text": "a"}]


ROW = {
    "pubid": b"12",
    "question": b"Is it?",
    "long_answer": b"Yes, it is.",
    "final_decision": b"yes",
    "context": {"contexts": [b"One.", b"Two."], "labels": [b"A"], "meshes": [b"M"]},
}
PAIRS: dict[str, dict[str, Any]] = {
    "pubmedqa": ROW,
    "bioasq": {"id": b"1", "body": b"Why?", "ideal_answer": [b"So."], "snippets": [{"text": b"S."}]},
    "sick": {"id": b"7", "sentence_A": b"a", "sentence_B": b"b", "label": b"NEUTRAL", "relatedness_score": b"4.60"},
    "mrpc": {"idx": np.int64(3), "sentence1": b"a", "sentence2": b"b", "label": b"equivalent"},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_each_layout_reads_binary_parquet_as_it_reads_text(kind: str, tmp_path: Path) -> None:
    plain = json.loads(
        json.dumps(PAIRS[kind], default=lambda value: value.decode() if isinstance(value, bytes) else 3)
    )
    pq.write_table(pa.Table.from_pylist([PAIRS[kind]]), tmp_path / "b.parquet")
    (tmp_path / "t.json").write_text(json.dumps([plain]))
    assert items_of(kind, tmp_path / "b.parquet") == items_of(kind, tmp_path / "t.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", '[{"id": 1, "n": 1.0}, {"id": 2, "n": null}, {"id": 3, "n": 3.0}]'),
        ("t.jsonl", '{"id": 1, "n": 1.0}\n{"id": 2}\n{"id": 3, "n": NaN}\n'),
        ("t.csv", "id,n\n1,1\n2,\n"),
        ("hub", "id,n\n1,1\n2,\n3,5\n"),
    ],
)
def test_an_integer_beside_a_gap_stays_one_in_every_kind_of_file(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "hub":
        path.mkdir()
    (path / "train.csv" if name == "hub" else path).write_text(content)
    items = load_dataset(DatasetConfig(format="table", path=str(path), demo="x", fields=("n",)), "t", demo=False).items
    assert [item.fields["n"] for item in items][:2] == ["1", ""]


def test_a_folder_in_the_hub_s_layout_is_read_as_its_file_is(tmp_path: Path) -> None:
    cells = {"b": [b"\xc2\xb5", None], "f": pa.array([0.1, None], pa.float32()), "m": [Decimal("1.50"), None]}
    pq.write_table(pa.table({"id": [1, 2], **cells}), tmp_path / "train.parquet")
    for path in (tmp_path, tmp_path / "train.parquet"):
        read = load_dataset(
            DatasetConfig(format="table", path=str(path), demo="x", fields=("b", "f", "m")), "t", demo=False
        ).items
        assert [list(item.fields.values()) for item in read] == [["µ", "0.1", "1.50"], ["", "", ""]]


# `keep`


def labelled(folder: Path, *labels: str, **options: Any) -> DatasetConfig:
    rows = [{"id": number, "label": label} for number, label in enumerate(labels)]
    (folder / "t.json").write_text(json.dumps(rows))
    return DatasetConfig(
        format="table", path=str(folder / "t.json"), demo="x", fields=("label",), **{"keep": {}, **options}
    )


LABELS = ("yes", "Yes", "yes ", "\tYES\n", "no", "maybe", "Maybe", "")


def test_keep_compares_labels_without_case_and_blanks_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    selection = load_dataset(labelled(tmp_path, *LABELS, keep={"label": [" Yes"]}), "t", demo=False)
    assert [item.fields["label"] for item in selection.items] == ["yes", "Yes", "yes ", "\tYES\n"]
    assert (selection.read, selection.left_out) == (8, {"label": {"no": 1, "maybe": 1, "Maybe": 1, "": 1}})
    assert selection.describe().startswith("`keep` leaves out 4 of 8 items: label is 'no' in 1, 'maybe' in 1")
    assert load_dataset(labelled(tmp_path, *LABELS), "t", demo=False).describe() == ""


def test_balance_counts_the_same_values(tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": {"label": ["yes", "Maybe"]}, "balance": "label"}
    balanced = load_dataset(labelled(tmp_path, *LABELS, **options), "t", demo=False).items
    assert [item.root_id for item in balanced] == ["0", "1", "5", "6"]
    shared = load_dataset(labelled(tmp_path, *LABELS, **options, limit=2), "t", demo=False).items
    assert [item.root_id for item in shared] == ["0", "5"]


def test_a_keep_that_keeps_nothing_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_dataset(labelled(tmp_path, "yes", "yes", "no", keep={"label": ["ja"]}), "t", demo=False)
    assert str(refused.value).endswith("no items to ask (3 before `keep`); label is 'yes' in 2, 'no' in 1")


def test_a_right_answer_is_the_label_that_it_names_whatever_its_case(tmp_path: Path) -> None:
    from config_files import loaded

    records = [{**ROW, "pubid": str(n), "final_decision": label} for n, label in enumerate(("Yes ", "no", "MAYBE"))]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(records, default=bytes.decode))
    plan = Plan(loaded(f"task.dataset.path={path}"))
    assert [sample.target for sample in plan.samples("mock")] == ["yes", "no"]
    described = plan.describe()
    assert described["datasets"] == {
        "pubmedqa_yesno": {"read": 3, "items": 2, "left_out": {"final_decision": {"MAYBE": 1}}}
    }
    assert described["tasks"]["mcqabaseline"]["labels"] == {"yes": 1, "no": 1}
