"""One public data set, in each layout in which it comes, becomes the same items; anything else is one sentence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rambla_ray.config.dataset import FIELDS, DatasetConfig
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import UserError
from rambla_ray.schema import Item

Record = dict[str, Any]


def load(path: Path | str, *, demo: bool = False, **options: Any) -> list[Item]:
    config = DatasetConfig(format="pubmedqa", path=str(path), demo="pubmedqa.json", **options)
    return load_dataset(config, "under_test", demo=demo).items


def github(number: int, answer: str = "yes") -> Record:
    return {
        "QUESTION": f"Is {number} more?",
        "CONTEXTS": [f"Background {number}.", "Result\u2028with a line separator, a µ and a {brace}."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "MESHES": ["Humans", "Child"],
        "YEAR": "2019",
        "reasoning_required_pred": "yes",
        "final_decision": answer,
        "LONG_ANSWER": f"It is {number}.",
    }


def hub(number: int, answer: str = "yes") -> Record:
    record = github(number, answer)
    return {
        "pubid": number,
        "question": record["QUESTION"],
        "context": {"contexts": record["CONTEXTS"], "labels": record["LABELS"], "meshes": record["MESHES"]},
        "long_answer": record["LONG_ANSWER"],
        "final_decision": answer,
    }


ANSWERS = ["yes", "no", "maybe", "yes", "no", "yes"]
HUB = [hub(number, answer) for number, answer in enumerate(ANSWERS)]


@pytest.fixture
def github_file(tmp_path: Path) -> Path:
    path = tmp_path / "github.json"
    path.write_text(json.dumps({str(number): github(number, answer) for number, answer in enumerate(ANSWERS)}))
    return path


def write_list(folder: Path) -> Path:
    path = folder / "hub.json"
    path.write_text(json.dumps(HUB, ensure_ascii=False))
    return path


def write_lines(folder: Path) -> Path:
    path = folder / "hub.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in HUB))
    return path


def write_lines_in_unicode(folder: Path) -> Path:
    path = folder / "unicode.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in HUB))
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "hub.parquet"
    pq.write_table(pa.Table.from_pylist(HUB), path)
    return path


def write_folder(folder: Path) -> Path:
    (folder / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(HUB), folder / "hub" / "train.parquet")
    return folder / "hub"


@pytest.mark.parametrize("write", [write_list, write_lines, write_lines_in_unicode, write_parquet, write_folder])
def test_the_hubs_layout_gives_the_items_of_the_github_release(write: Any, tmp_path: Path, github_file: Path) -> None:
    assert load(write(tmp_path)) == load(github_file)


def test_an_item_has_rambla_s_fields_and_joins(github_file: Path) -> None:
    first = load(github_file)[0]
    assert first.root_id == "0"
    assert first.fields == {
        "question": "Is 0 more?",
        "long_answer": "It is 0.",
        "final_decision": "yes",
        "context": "Background 0.\n\nResult\u2028with a line separator, a µ and a {brace}.",
        "labels": "BACKGROUND, RESULTS",
        "meshes": "Humans, Child",
        "pmid": "0",
    }
    assert set(first.fields) == FIELDS["pubmedqa"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, "0 1 2 3 4 5", id="file order"),
        pytest.param({"keep": {"final_decision": ["yes", "no"]}}, "0 1 3 4 5", id="keep"),
        pytest.param({"keep": {"final_decision": ["yes"], "pmid": ["0", "1", "5"]}}, "0 5", id="keep by two columns"),
        pytest.param({"limit": 3}, "0 1 2", id="limit"),
        pytest.param({"limit": 99}, "0 1 2 3 4 5", id="limit above all"),
        pytest.param({"limit": 3, "keep": {"final_decision": ["no", "maybe"]}}, "1 2 4", id="keep before limit"),
        pytest.param({"seed": 3}, "3 5 4 1 0 2", id="seed"),
        pytest.param({"seed": 3, "limit": 2}, "3 5", id="seed before limit"),
    ],
)
def test_keep_seed_and_limit_choose_the_items(options: Record, expected: str, github_file: Path) -> None:
    assert [item.root_id for item in load(github_file, **options)] == expected.split()


@pytest.mark.parametrize(
    ("options", "same"),
    [
        pytest.param({"seed": 3, "limit": 2}, True, id="a seed draws the same items"),
        pytest.param({"seed": 3}, True, id="a seed gives the same order"),
        pytest.param({"keep": {"final_decision": ["yes", "no"]}, "seed": 3}, True, id="a seed after keep"),
        pytest.param({"limit": 2}, False, id="limit takes the first of the file"),
        pytest.param(
            {"keep": {"final_decision": ["yes", "no"]}, "balance": "final_decision"},
            False,
            id="balance takes the first of the file",
        ),
    ],
)
def test_the_order_of_the_file_decides_nothing_but_who_is_first(
    options: Record, same: bool, tmp_path: Path, github_file: Path
) -> None:
    path = tmp_path / "reversed.json"
    path.write_text(json.dumps(dict(reversed(json.loads(github_file.read_text()).items()))))
    assert (load(path, **options) == load(github_file, **options)) is same


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_refuses_is_refused_with_the_config(seed: int, github_file: Path) -> None:
    with pytest.raises((UserError, ValueError), match="seed"):
        DatasetConfig(format="pubmedqa", path=str(github_file), demo="pubmedqa.json", seed=seed)


def lacking(record: Record, key: str) -> Record:
    return {name: value for name, value in record.items() if name != key}


BAD_FILES = {
    "empty.json": ("", "cannot be read"),
    "cut.json": ('{"1": {"QUES', "cannot be read"),
    "number.json": (3, "expected a list of objects"),
    "null.json": (None, "expected a list of objects"),
    "numbers.json": ({"1": 3}, "expected a list of objects"),
    "no_items.json": ([], "it is empty"),
    "texts.json": (["QUESTION"], "not in the layout"),
    "one_number.json": ([HUB[0], 3], "not in the layout"),
    "nulls.json": ([None], "not in the layout"),
    "lacks_labels.json": ({"1": github(1), "2": lacking(github(2), "LABELS")}, "lacks 'LABELS'"),
    "lacks_id.json": ([lacking(HUB[0], "pubid")], "lacks 'pubid'"),
    "lacks_answer.json": ([HUB[0], lacking(HUB[1], "final_decision")], "lacks 'final_decision'"),
    "lacks_contexts.json": ([{**HUB[0], "context": {}}], "lacks 'contexts'"),
    "flat_context.json": ([{**HUB[0], "context": "text"}], "not in the layout"),
    "null_context.json": ([{**HUB[0], "context": None}], "not in the layout"),
    "null_contexts.json": ({"1": {**github(1), "CONTEXTS": None}}, "not in the layout"),
    "null_paragraph.json": ({"1": {**github(1), "CONTEXTS": ["a", None]}}, "not in the layout"),
    "text_contexts.json": ({"1": {**github(1), "CONTEXTS": "not a list"}}, "not in the layout"),
    "text_meshes.json": ({"1": {**github(1), "MESHES": "Humans"}}, "not in the layout"),
    "twice.json": ([HUB[0], HUB[1], HUB[0]], "'0'; ids must be unique"),
    "number_and_text.json": ([HUB[1], {**HUB[1], "pubid": "1"}], "'1'; ids must be unique"),
    "key_twice.json": ('{"1": {}, "1": {}}', "ids must be unique"),
    "latin1.json": (b'{"1": "\xe9"}', "cannot be read"),
    "cut.jsonl": (json.dumps(HUB[0]) + '\n{"pub', "cannot be read"),
    "blank.jsonl": ("\n\n", "it is empty"),
    "empty.parquet": ("", "cannot be read"),
    "text.parquet": ("PAR1 is not enough", "cannot be read"),
    "empty.csv": ("", "cannot be read"),
    "ragged.csv": ("pubid,question\n1\n", "cannot be read"),
    "other.csv": ("pubid,question\n1,why\n", "lacks 'long_answer'"),
    "text.txt": ("x", ".json, .jsonl, .csv, .parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    content, reason = BAD_FILES[name]
    raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
    (tmp_path / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(UserError) as refused:
        load(tmp_path / name)
    message = str(refused.value)
    assert message.startswith(f"dataset under_test ({tmp_path / name})")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        pytest.param("missing.json", "No such file", id="no file"),
        pytest.param("missing/folder", "no such file", id="no folder"),
        pytest.param("folder.json", "is a directory", id="a folder with a file's name"),
        pytest.param("folder", "load_dataset failed", id="an empty folder"),
    ],
)
def test_a_path_with_no_data_is_one_sentence(path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=reason) as refused:
        load(tmp_path / path)
    assert "\n" not in str(refused.value)


def test_an_unknown_file_system_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load("nowhere://bucket/x.json")


@pytest.mark.parametrize(
    "keep", [{"final_decision": ["perhaps"]}, {"decision": ["yes"]}], ids=["unknown value", "unknown column"]
)
def test_nothing_left_to_ask_is_refused(keep: Record, github_file: Path) -> None:
    with pytest.raises(UserError, match=r"no items to ask \(6 before `keep`\)"):
        load(github_file, keep=keep)


def test_the_demo_set_is_whole() -> None:
    items = load("unused/path", demo=True)
    assert len({item.root_id for item in items}) == len(items) == 64
    assert Counter(item.fields["final_decision"] for item in items) == {"yes": 35, "no": 22, "maybe": 7}
    assert len(load("unused/path", demo=True, keep={"final_decision": ["yes", "no"]})) == 57
    assert min(len(item.fields["context"].split()) for item in items) >= 55
    assert all(value.strip() for item in items for value in item.fields.values())
    assert all(item.root_id.startswith("synthetic-") for item in items)


def test_pubmedqa_is_read_whole(test_data: Path) -> None:
    path = test_data / "pubmedqa/ori_pqal.json"
    assert len(load(path)) == 1000
    kept = load(path, keep={"final_decision": ["yes", "no"]})
    assert Counter(item.fields["final_decision"] for item in kept) == {"yes": 552, "no": 338}
    assert Counter(item.fields["final_decision"] for item in kept[:52]) == {"yes": 34, "no": 18}
    raw = json.loads(path.read_text())
    assert [item.root_id for item in kept] == [i for i, r in raw.items() if r["final_decision"] in ("yes", "no")]
    assert kept[0].fields["context"] == "\n\n".join(raw[kept[0].root_id]["CONTEXTS"])
