"""Records of public datasets in the hub's layout and as released, and the items that are read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.data.source import load_dataset
from rambla_ray.schema import Item

Record = dict[str, Any]
TABLE: Record = {"id_column": "code", "fields": ["text", "score", "note"]}


def config(kind: str, path: Path | str = "unused/path", **options: Any) -> DatasetConfig:
    return DatasetConfig(format=kind, path=str(path), **{"demo": "unused", **options})  # type: ignore[arg-type]


def items_of(kind: str, path: Path | str, **options: Any) -> list[Item]:
    if kind == "table":
        options = {**TABLE, **options}
    return load_dataset(config(kind, path, **options), "under_test", demo=False).items


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


def as_json(kind: str, folder: Path) -> Path:
    path = folder / "hub.json"
    path.write_text(json.dumps(HUB[kind]))
    return path


SICK_RELEASE = (
    "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    '7\tA "dog" runs\tA dog moves\t4.6\tENTAILMENT\n'
    "8\tA cat, asleep\t\t3.165\tNEUTRAL\n"
    "12\tIt rains\tIt is dry\t4\tCONTRADICTION\n"
)
MRPC_RELEASE = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    '1\t702876\t702977\t"It is," he said.\tHe said so.\r\n'
    "0\t2108705\t2108831\tA 5\" pipe, new\tA pipe's end\r\n"
)


# BioASQ's gaps.


def write(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def question(**changed: Any) -> Record:
    return {key: value for key, value in {**BIOASQ[1], **changed}.items() if value is not ...}
