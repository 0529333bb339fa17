"""BioASQ, SICK, MRPC and any table: each public layout becomes the same items."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_records import (
    BIOASQ,
    HUB,
    MRPC,
    MRPC_RELEASE,
    ROWS,
    SICK_RELEASE,
    TABLE,
    as_json,
    config,
    items_of,
    question,
    write,
)

from rambla_ray.config.dataset import fields_of
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import UserError
from rambla_ray.schema import Item

EXPECTED = {
    "bioasq": [
        Item(
            "a1",
            {
                "question": "What is \u2028 a {µ}?",
                "answer": "It is a letter.",
                "context": "One\nline.\n\nTwo.",
                "label": "1",
                "id": "a1",
            },
        ),
        Item("a2", {"question": "Why?", "answer": "Because.", "context": "", "label": "1", "id": "a2"}),
    ],
    "sick": [
        Item(
            pair_id,
            {
                "text_1": text_1,
                "text_2": text_2,
                "label": label,
                "relatedness_score": score,
                "entailment": entailment,
            },
        )
        for pair_id, text_1, text_2, label, score, entailment in [
            ("7", 'A "dog" runs', "A dog moves", "1", "4.6", "entailment"),
            ("8", "A cat, asleep", "", "0", "3.165", "neutral"),
            ("12", "It rains", "It is dry", "0", "4", "contradiction"),
        ]
    ],
    "mrpc": [
        Item("0", {"text_1": '"It is," he said.', "text_2": "He said so.", "label": "1", "idx": "0"}),
        Item("1", {"text_1": 'A 5" pipe, new', "text_2": "A pipe's end", "label": "0", "idx": "1"}),
    ],
    "table": [
        Item("007", {"text": 'Yes, "no"\nand µ', "score": "1.50", "note": "NA"}),
        Item("8", {"text": "", "score": "2", "note": ""}),
    ],
}


def table_of(kind: str) -> pa.Table:
    """The records with the hub's types: SICK's score has single precision there."""
    table = pa.Table.from_pylist(HUB[kind])
    if kind == "sick":
        column = table.column_names.index("relatedness_score")
        table = table.set_column(column, "relatedness_score", table["relatedness_score"].cast(pa.float32()))
    return table


def as_jsonl(kind: str, folder: Path) -> Path:
    path = folder / "hub.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(record, ensure_ascii=False) for record in HUB[kind]))
    return path


def as_parquet(kind: str, folder: Path) -> Path:
    path = folder / "hub.parquet"
    pq.write_table(table_of(kind), path)
    return path


def as_csv(kind: str, folder: Path) -> Path:
    lines = [list(HUB[kind][0]), *(record.values() for record in HUB[kind])]
    quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in lines]
    path = folder / "hub.csv"
    path.write_bytes("\r\n".join(quoted).encode())
    return path


def as_folder(kind: str, folder: Path) -> Path:
    pq.write_table(table_of(kind), folder / "train.parquet")
    return folder


WRITERS: list[tuple[Callable[[str, Path], Path], list[str]]] = [
    (as_json, list(HUB)),
    (as_jsonl, list(HUB)),
    (as_parquet, list(HUB)),
    (as_folder, list(HUB)),
    (as_csv, ["sick", "mrpc", "table"]),
]


@pytest.mark.parametrize(("write", "kind"), [(write, kind) for write, kinds in WRITERS for kind in kinds])
def test_the_hubs_layout_in_each_kind_of_file_gives_the_same_items(
    write: Callable[[str, Path], Path], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    found = items_of(kind, write(kind, tmp_path / "data"))
    assert found == EXPECTED[kind]
    assert {frozenset(item.fields) for item in found} == {
        fields_of(config(kind, **(TABLE if kind == "table" else {})))
    }


def test_a_hub_folder_with_configurations_is_read_by_subset_and_split(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: cola\n  data_files:\n  - {split: validation, path: cola.parquet}\n"
        "- config_name: mrpc\n  data_files:\n  - {split: test, path: none.parquet}\n"
        "  - {split: validation, path: mrpc.parquet}\n---\n"
    )
    for name, records in {"cola": MRPC[1:], "none": MRPC[:1], "mrpc": MRPC}.items():
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{name}.parquet")
    assert items_of("mrpc", tmp_path, subset="mrpc", split="validation") == EXPECTED["mrpc"]


SICK_WHOLE = (
    "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tentailment_AB\n"
    '7\tA "dog" runs\tA dog moves\tENTAILMENT\t4.6\tA_entails_B\n'
    "8\tA cat, asleep\t\tNEUTRAL\t3.165\tA_neutral_B\n"
    "12\tIt rains\tIt is dry\tCONTRADICTION\t4.0\tA_contradicts_B\n"
)
BIOASQ_RELEASE = {"questions": [{**BIOASQ[0], "documents": []}, {**BIOASQ[1], "ideal_answer": "Because."}]}


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        pytest.param("sick", "SICK_trial.txt", SICK_RELEASE, id="sick"),
        pytest.param("sick", "SICK.TSV", SICK_WHOLE, id="sick whole"),
        pytest.param("mrpc", "msr_paraphrase_train.txt", MRPC_RELEASE, id="mrpc"),
        pytest.param("bioasq", "training11b.json", json.dumps(BIOASQ_RELEASE), id="bioasq"),
        pytest.param(
            "bioasq",
            "nested.jsonl",
            "\n".join(
                json.dumps({**record, "snippets": {"text": [snippet["text"] for snippet in record["snippets"]]}})
                for record in BIOASQ
            ),
            id="bioasq with a list of objects turned inside out",
        ),
        pytest.param(
            "table",
            "by_id.json",
            json.dumps({row["code"]: {key: row[key] for key in ("text", "score", "note")} for row in ROWS}),
            id="table keyed by id",
        ),
        pytest.param(
            "mrpc",
            "named.jsonl",
            "\n".join(json.dumps({**row, "label": ["not_equivalent", "equivalent"][row["label"]]}) for row in MRPC),
            id="mrpc with named labels",
        ),
    ],
)
def test_the_release_gives_the_items_of_the_hubs_layout(kind: str, name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert items_of(kind, tmp_path / name) == EXPECTED[kind]


def test_sick_s_trial_file_is_read_whole(test_data: Path) -> None:
    path = test_data / "sick" / "SICK_trial.txt"
    found = items_of("sick", path)
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    assert len(found) == 500
    assert Counter(item.fields["entailment"] for item in found) == {
        "neutral": 282,
        "entailment": 144,
        "contradiction": 74,
    }
    assert Counter(item.fields["label"] for item in found) == {"1": 144, "0": 356}
    assert [
        [item.root_id, *(item.fields[name] for name in ("text_1", "text_2", "relatedness_score"))] for item in found
    ] == [line[:4] for line in lines]


@pytest.mark.parametrize("ideal", [..., None, [], "", [" "]], ids=["no key", "null", "no list", "empty", "blank"])
def test_a_question_without_an_ideal_answer_is_an_item_that_is_not_asked(ideal: Any, tmp_path: Path) -> None:
    value = {"questions": [question(id="a"), question(id="b", ideal_answer=ideal)]}
    asked, not_asked = items_of("bioasq", write(tmp_path, "test.json", value))
    assert (asked.fault, not_asked.root_id) == ("", "b")
    assert "ideal_answer" in not_asked.fault


def test_a_file_without_any_ideal_answer_is_refused(tmp_path: Path) -> None:
    value = {"questions": [question(id="a", ideal_answer=...), question(id="b", ideal_answer=...)]}
    with pytest.raises(UserError, match=r"no item that can be asked: ideal_answer.* in all 2; give another file"):
        items_of("bioasq", write(tmp_path, "test.json", value))


def test_a_question_without_an_id_gets_one_from_its_text(tmp_path: Path) -> None:
    value = [question(id=...), question(id=None, body="And \ud800?"), question(snippets=...)]
    first, second, third = items_of("bioasq", write(tmp_path, "test.json", value))
    (again,) = items_of("bioasq", write(tmp_path, "again.json", [question(id=..., ideal_answer="Other.")]))
    assert first.root_id == again.root_id == first.fields["id"]
    assert len({first.root_id, second.root_id, third.root_id}) == 3
    assert third.fields["context"] == ""


# A table's cells.


def test_a_cell_that_is_missing_is_empty_and_one_that_is_no_text_is_json(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(
        '{"code": 1, "text": null, "score": NaN, "note": ["µ", 1]}\n'
        '{"code": 2.0, "text": true, "score": 1.5}\n'
        '{"code": "a b", "text": "x", "score": 10, "note": {"k": null}}\n'
    )
    assert [(item.root_id, *item.fields.values()) for item in items_of("table", path)] == [
        ("1", "", "", '["µ", 1]'),
        ("2", "true", "1.5", ""),
        ("a b", "x", "10", '{"k": null}'),
    ]


def test_a_table_s_id_column_is_id_and_may_be_a_field(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "id,text\n1,a\n\n2,b\n")
    found = load_dataset(
        config("table", path, fields=["text", "id"], keep={"text": ["b"]}), "under_test", demo=False
    ).items
    assert found == [Item("2", {"text": "b", "id": "2"})]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", f"code,text,score,note\n1,{'word ' * 60_000},2,3\n")
    assert len(items_of("table", path)[0].fields["text"]) == 300_000
