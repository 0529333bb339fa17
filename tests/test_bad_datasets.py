"""Datasets that are refused: one line that names the dataset, the file and the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dataset_records import (
    BIOASQ,
    HUB,
    MRPC,
    MRPC_RELEASE,
    ROWS,
    SICK,
    SICK_RELEASE,
    Record,
    as_json,
    config,
    items_of,
    question,
    write,
)
from pydantic import ValidationError

from rambla_ray.errors import UserError

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
