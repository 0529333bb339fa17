"""BioASQ, SICK, MRPC and any table: each public layout becomes the same items; balance; what is refused, and how."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rambla_ray.config.dataset import FIELDS, DatasetConfig, fields_of
from rambla_ray.config.folder import SHIPPED_CONF
from rambla_ray.config.load import load
from rambla_ray.data.source import DEMO_DIR, load_items
from rambla_ray.errors import UserError
from rambla_ray.schema import Item

Record = dict[str, Any]
TABLE: Record = {"id_column": "code", "fields": ["text", "score", "note"]}


def config(kind: str, path: Path | str = "unused/path", **options: Any) -> DatasetConfig:
    return DatasetConfig(format=kind, path=str(path), **{"demo": "unused", **options})  # type: ignore[arg-type]


def items_of(kind: str, path: Path | str, **options: Any) -> list[Item]:
    if kind == "table":
        options = {**TABLE, **options}
    return load_items(config(kind, path, **options), "under_test", demo=False)


def ids(items: list[Item]) -> str:
    return " ".join(item.root_id for item in items)


# Records in the hub's layout, and the items that they are.

BIOASQ: list[Record] = [
    {
        "id": "a1",
        "type": "summary",
        "body": "What is \u2028 a {µ}?",
        "ideal_answer": ["It is a letter.", "Another way to say it."],
        "snippets": [{"text": "One\nline.", "document": "d1"}, {"text": "", "document": "d2"}, {"text": "Two."}],
    },
    {"id": "a2", "body": "Why?", "ideal_answer": ["Because."], "snippets": []},
]
SICK: list[Record] = [
    {"id": "7", "sentence_A": 'A "dog" runs', "sentence_B": "A dog moves", "label": 0, "relatedness_score": 4.6},
    {"id": "8", "sentence_A": "A cat, asleep", "sentence_B": "", "label": 1, "relatedness_score": 3.165},
    {"id": "12", "sentence_A": "It rains", "sentence_B": "It is dry", "label": 2, "relatedness_score": 4.0},
]
MRPC: list[Record] = [
    {"sentence1": '"It is," he said.', "sentence2": "He said so.", "label": 1, "idx": 0},
    {"sentence1": 'A 5" pipe, new', "sentence2": "A pipe's end", "label": 0, "idx": 1},
]
ROWS: list[Record] = [
    {"code": "007", "text": 'Yes, "no"\nand µ', "score": "1.50", "note": "NA", "unused": "x"},
    {"code": "8", "text": "", "score": "2", "note": "", "unused": "y"},
]
HUB = {"bioasq": BIOASQ, "sick": SICK, "mrpc": MRPC, "table": ROWS}

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


def as_json(kind: str, folder: Path) -> Path:
    path = folder / "hub.json"
    path.write_text(json.dumps(HUB[kind]))
    return path


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


SICK_RELEASE = (
    "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    '7\tA "dog" runs\tA dog moves\t4.6\tENTAILMENT\n'
    "8\tA cat, asleep\t\t3.165\tNEUTRAL\n"
    "12\tIt rains\tIt is dry\t4\tCONTRADICTION\n"
)
SICK_WHOLE = (
    "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tentailment_AB\n"
    '7\tA "dog" runs\tA dog moves\tENTAILMENT\t4.6\tA_entails_B\n'
    "8\tA cat, asleep\t\tNEUTRAL\t3.165\tA_neutral_B\n"
    "12\tIt rains\tIt is dry\tCONTRADICTION\t4.0\tA_contradicts_B\n"
)
MRPC_RELEASE = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    '1\t702876\t702977\t"It is," he said.\tHe said so.\r\n'
    "0\t2108705\t2108831\tA 5\" pipe, new\tA pipe's end\r\n"
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


# BioASQ's gaps.


def write(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def question(**changed: Any) -> Record:
    return {key: value for key, value in {**BIOASQ[1], **changed}.items() if value is not ...}


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
    found = load_items(config("table", path, fields=["text", "id"], keep={"text": ["b"]}), "under_test", demo=False)
    assert found == [Item("2", {"text": "b", "id": "2"})]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", f"code,text,score,note\n1,{'word ' * 60_000},2,3\n")
    assert len(items_of("table", path)[0].fields["text"]) == 300_000


# What is refused.

SICK_HEAD = SICK_RELEASE.splitlines()[0]
MRPC_HEAD = MRPC_RELEASE.splitlines()[0]
BAD: list[tuple[str, str, Any, str]] = [
    ("bioasq", "no_id.json", [question(id="")], "row 1: its id ('id') is missing; correct"),
    ("bioasq", "nothing.json", [BIOASQ[0], question(id=..., body=" ")], "row 2: it has neither an id nor a body"),
    ("bioasq", "no_body.json", [BIOASQ[0], question(body=...)], "lacks 'body' in row 2"),
    ("bioasq", "number.json", [question(ideal_answer=3)], "row 1: expected a list of texts, not '3'"),
    ("bioasq", "nested.json", [question(ideal_answer=[["a"]])], "expected a list of texts"),
    ("bioasq", "text_snippets.json", [question(snippets=["a"])], "not in the layout that format bioasq reads: row 1"),
    ("bioasq", "no_text.json", [question(snippets=[{"document": "d"}])], "lacks 'text' in row 1"),
    ("bioasq", "twice.json", {"questions": [BIOASQ[0], BIOASQ[0]]}, "'a1'; ids must be unique"),
    ("bioasq", "same_text.json", [question(id=...), question(id=None)], "ids must be unique"),
    ("bioasq", "empty.json", {"questions": []}, "it is empty"),
    ("bioasq", "null.json", {"questions": None}, "expected a list of objects"),
    ("bioasq", "test.txt", "x", "a file needs one of the endings .json, .jsonl, .csv, .parquet;"),
    ("sick", "no_label.jsonl", {**SICK[0], "label": None}, "row 1: its label is '', and not one of entailment"),
    ("sick", "label.jsonl", {**SICK[0], "label": 3}, "row 1: its label is '3'"),
    ("sick", "score.jsonl", {**SICK[0], "relatedness_score": "high"}, "relatedness_score is 'high', and not a number"),
    ("sick", "no_id.jsonl", {**SICK[0], "id": None}, "row 1: its id ('id') is missing"),
    ("sick", "nan_id.jsonl", {**SICK[0], "id": float("nan")}, "row 1: its id ('id') is missing"),
    ("sick", "no_pair_id.txt", f"{SICK_HEAD}\n \ta\tb\t1\tNEUTRAL\n", "row 1: its id ('pair_ID') is missing"),
    ("sick", "word.txt", f"{SICK_HEAD}\n1\ta\tb\t1\tMAYBE\n", "row 1: its entailment_judgment is 'MAYBE'"),
    ("sick", "cut.txt", f"{SICK_HEAD}\n1\ta\tb\n", "line 2 has 3 columns, the first line 5"),
    ("sick", "unlabelled.txt", "pair_ID\tsentence_A\tsentence_B\n1\ta\tb\n", "lacks 'entailment_judgment' or '"),
    ("sick", "no_pair.txt", "sentence_A\tlabel\trelatedness_score\na\t1\t2\n", "lacks 'pair_ID' or 'id' in row 1"),
    ("sick", "empty.txt", "", "its first line must name the columns"),
    ("sick", "head.txt", SICK_HEAD, "it is empty"),
    ("sick", "twice.txt", "a\ta\n1\t2\n", "its first line must name the columns, each once; give another file"),
    ("mrpc", "hidden.jsonl", {**MRPC[0], "label": -1}, "row 1: its label is '-1', and not one of 0, 1"),
    ("mrpc", "no_idx.jsonl", {"sentence1": "a", "sentence2": "b", "label": 1}, "lacks 'idx' in row 1"),
    ("mrpc", "nan_idx.jsonl", {**MRPC[0], "idx": float("nan")}, "row 1: its id ('idx') is missing"),
    ("mrpc", "quality.tsv", f"{MRPC_HEAD}\n\t1\t2\ta\tb\n", "row 1: its Quality is ''"),
    ("mrpc", "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n", "lacks 'Quality' in row 1"),
    ("mrpc", "pairs.json", [1], "row 1: it is not an object"),
    ("table", "no_id.csv", "code,text,score,note\n1,a,b,c\n,a,b,c\n", "row 2: its id ('code') is missing"),
    ("table", "null.jsonl", {**ROWS[0], "code": None}, "row 1: its id ('code') is missing"),
    (
        "table",
        "column.csv",
        "code,text,scores,note\n1,a,b,c\n",
        "lacks 'score' in row 1, which format table needs; did",
    ),
    ("table", "id.csv", "id,text,score,note\n1,a,b,c\n", "lacks 'code'"),
    ("table", "twice.csv", "code,text,score,note\n1,a,b,c\n1,d,e,f\n", "'1'; ids must be unique"),
    ("table", "quote.csv", 'code,text,score,note\n1,"a\n', "cannot be read"),
    ("table", "wide.csv", "code,text,score,note\n1,a,b,c,d\n", "line 2 has 5 columns"),
    ("table", "cut.jsonl", json.dumps(ROWS[0]) + '\n{"co', "line 2:"),
    ("table", "tabs.tsv", "code\ttext\n1\ta\n", "a file needs one of the endings"),
]


@pytest.mark.parametrize(("kind", "name", "content", "reason"), BAD, ids=[f"{kind} {name}" for kind, name, *_ in BAD])
def test_a_bad_file_is_one_line_that_names_dataset_path_and_row(
    kind: str, name: str, content: Any, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as refused:
        items_of(kind, path)
    message = str(refused.value)
    assert message.startswith(f"dataset under_test ({path})")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", HUB)
def test_a_file_that_is_not_there_is_one_line_with_what_to_do(kind: str, tmp_path: Path) -> None:
    name = "missing.txt" if kind in ("sick", "mrpc") else "missing.json"
    with pytest.raises(UserError, match=r"No such file.*task\.dataset\.path=<file>") as refused:
        items_of(kind, tmp_path / name)
    assert "\n" not in str(refused.value)


def test_keep_by_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no items to ask \(2 before `keep`\); no field 'labels', did you mean 'label'"
    ):
        items_of("mrpc", as_json("mrpc", tmp_path), keep={"labels": ["1"]})


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        pytest.param("table", {}, "format table needs `fields`", id="table without fields"),
        pytest.param("sick", {"fields": ["a"]}, "are for format table", id="fields of another format"),
        pytest.param("sick", {"id_column": "id"}, "are for format table", id="id_column of another format"),
        pytest.param("pubmedqa", {"balance": "final_decision"}, "needs `keep", id="balance without keep"),
        pytest.param("mrpc", {"balance": "label", "keep": {"label": []}}, "needs `keep", id="balance of no values"),
        pytest.param(
            "mrpc", {"balance": "label", "keep": {"label": ["0", "1"]}, "limit": 1}, "too small", id="no equal shares"
        ),
        pytest.param("csv", {}, "'pubmedqa', 'bioasq', 'sick', 'mrpc' or 'table'", id="no such format"),
    ],
)
def test_keys_that_do_not_fit_are_refused_with_the_config(kind: str, options: Record, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(kind, **options)


# Balance.

DECISIONS = ["yes", "no", "maybe", "yes", "yes", "no", "maybe", "yes", "no", "yes"]  # items 0 to 9
YES_NO = {"keep": {"final_decision": ["yes", "no"]}, "balance": "final_decision"}


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    record = {"QUESTION": "q", "CONTEXTS": [], "LABELS": [], "MESHES": [], "LONG_ANSWER": "a"}
    value = {str(row): {**record, "final_decision": answer} for row, answer in enumerate(DECISIONS)}
    return write(tmp_path, "decided.json", value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, "0 3 4 1 5 8", id="the first of each value, block after block"),
        pytest.param({"keep": {"final_decision": ["no", "yes"]}}, "1 5 8 0 3 4", id="in keep's order"),
        pytest.param({"keep": {"final_decision": ["maybe", "yes", "maybe"]}}, "2 6 0 3", id="a value named twice"),
        pytest.param({"limit": 4}, "0 3 1 5", id="limit takes equal shares"),
        pytest.param({"limit": 5}, "0 3 1 5", id="an odd limit is not reached"),
        pytest.param({"limit": 99}, "0 3 4 1 5 8", id="limit above all"),
        pytest.param({"seed": 3}, "1 8 5 3 0 4", id="seed mixes the blocks"),
        pytest.param({"seed": 3, "limit": 2}, "1 3", id="seed before limit, in equal shares"),
    ],
)
def test_balance_takes_as_many_of_each_value(options: Record, expected: str, decided: Path) -> None:
    assert ids(items_of("pubmedqa", decided, **{**YES_NO, **options})) == expected


def test_a_value_without_items_cannot_be_balanced(decided: Path) -> None:
    options = {**YES_NO, "keep": {"final_decision": ["yes", "perhaps"]}}
    with pytest.raises(UserError, match="no item whose final_decision is 'perhaps'"):
        items_of("pubmedqa", decided, **options)


def test_pubmedqa_balanced_is_rambla_s(test_data: Path) -> None:
    path = test_data / "pubmedqa" / "ori_pqal.json"
    found = items_of("pubmedqa", path, **YES_NO)
    decisions = [item.fields["final_decision"] for item in found]
    assert decisions == ["yes"] * 338 + ["no"] * 338
    everything = items_of("pubmedqa", path)
    for value, block in (("yes", found[:338]), ("no", found[338:])):
        assert block == [item for item in everything if item.fields["final_decision"] == value][:338]


# What is shipped.

SHIPPED = {
    "bioasq": (30, {"1": 30}, "label"),
    "mrpc": (60, {"1": 40, "0": 20}, "label"),
    "mrpc_test": (60, {"1": 40, "0": 20}, "label"),
    "pubmedqa": (64, {"yes": 35, "no": 22, "maybe": 7}, "final_decision"),
    "pubmedqa_balanced": (44, {"yes": 22, "no": 22}, "final_decision"),
    "pubmedqa_yesno": (57, {"yes": 35, "no": 22}, "final_decision"),
    "sick": (60, {"entailment": 17, "neutral": 33, "contradiction": 10}, "entailment"),
    "sick_test": (60, {"entailment": 17, "neutral": 33, "contradiction": 10}, "entailment"),
}


@pytest.fixture
def shipped(tmp_path: Path) -> Callable[[str], DatasetConfig]:
    """A shipped dataset config, read by way of a task of its own."""

    def read(name: str) -> DatasetConfig:
        (tmp_path / "task").mkdir(exist_ok=True)
        field = sorted(FIELDS[name.split("_")[0]])[0]
        generate = {"role": "target", "template": f"{{{field}}}"}
        task = {
            "dataset": name,
            "stages": [{"generate": generate}],
            "answer": {"choices": ["a", "b"], "target": field},
        }
        (tmp_path / "task" / "own.yaml").write_text(json.dumps(task))
        return load(["model=mock", "task=own", f"conf_dir={tmp_path}"]).datasets[name]

    return read


def test_every_shipped_config_is_listed_here() -> None:
    assert {path.stem for path in (SHIPPED_CONF / "dataset").glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_reads_its_demo_set(name: str, shipped: Callable[[str], DatasetConfig]) -> None:
    dataset = shipped(name)
    found = load_items(dataset, name, demo=True)
    count, labels, field = SHIPPED[name]
    assert len(found) == count
    assert Counter(item.fields[field] for item in found) == labels
    assert {frozenset(item.fields) for item in found} == {fields_of(dataset)} == {FIELDS[dataset.format]}
    assert all(value.strip() for item in found for key, value in item.fields.items() if key != "meshes")


def test_bioasq_lies_in_the_folder_that_the_environment_names(
    shipped: Callable[[str], DatasetConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET_STORAGE_PATH", "/some/folder")
    assert shipped("bioasq").path == "/some/folder/bioasq_training11b.json"
    monkeypatch.delenv("DATASET_STORAGE_PATH")
    assert shipped("bioasq").path == "./bioasq_training11b.json"


def test_the_demo_sets_are_marked_and_of_their_size() -> None:
    questions = json.loads((DEMO_DIR / "bioasq.json").read_text())["questions"]
    assert {len(record["snippets"]) for record in questions} == {2, 3}
    marks = [record["id"] for record in questions]
    marks += [line.split("\t")[0] for line in (DEMO_DIR / "sick.txt").read_text().splitlines()[1:]]
    marks += [line.split("\t")[1] for line in (DEMO_DIR / "mrpc.tsv").read_text().splitlines()[1:]]
    assert len(marks) == 150
    assert all(mark.startswith("synthetic-") for mark in marks)
    scores = [float(item.fields["relatedness_score"]) for item in items_of("sick", DEMO_DIR / "sick.txt")]
    assert min(scores) >= 1
    assert max(scores) <= 5
