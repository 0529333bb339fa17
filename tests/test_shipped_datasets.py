"""The dataset configs and demo sets that are shipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_records import items_of

from rambla_ray.config.dataset import FIELDS, DatasetConfig, fields_of
from rambla_ray.config.load import load
from rambla_ray.data.source import DEMO_DIR, load_dataset
from rambla_ray.shipped import SHIPPED_CONF

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
    found = load_dataset(dataset, name, demo=True).items
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
