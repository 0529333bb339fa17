"""One's own data: `task.dataset.path` goes to the datasets whose format the file is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_records import BIOASQ, MRPC, MRPC_RELEASE, SICK_RELEASE
from dataset_records import HUB as OTHERS

from rambla_ray.config.load import load
from rambla_ray.data.source import DEMO_DIR
from rambla_ray.errors import UserError
from rambla_ray.run.plan import Plan

WORDS = ["model=mock", "task=all", "roles.judge=mock", "roles.rephraser=mock"]
PUBMEDQA = {"pubmedqa_yesno", "pubmedqa_balanced"}
SHIPPED = {name: config.path for name, config in load(WORDS).datasets.items()}

GITHUB = {"7": {"QUESTION": 'Has it a "body": or not?', "CONTEXTS": ["c"], "LONG_ANSWER": "l"}}
HUB = [{"pubid": 7, "question": "q", "context": {"contexts": ["c"]}, "long_answer": "l", "final_decision": "yes"}]


def with_paths(*paths: object) -> dict[str, str]:
    """The datasets that get another path than their own."""
    datasets = load([*WORDS, *(f"task.dataset.path={path}" for path in paths)]).datasets
    return {name: config.path for name, config in datasets.items() if config.path != SHIPPED[name]}


def written(folder: Path, name: str, content: Any) -> Path:
    """A file, of JSON where the content is no text or table."""
    path = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "datasets"),
    [
        pytest.param("ori_pqal.json", GITHUB, PUBMEDQA, id="PubMedQA's release"),
        pytest.param("hub.json", HUB, PUBMEDQA, id="PubMedQA as the hub has it"),
        pytest.param("hub.jsonl", json.dumps(HUB[0]), PUBMEDQA, id="PubMedQA, a line each"),
        pytest.param("hub.parquet", pa.Table.from_pylist(HUB), PUBMEDQA, id="PubMedQA in Parquet"),
        pytest.param("11b.json", {"questions": BIOASQ}, {"bioasq"}, id="BioASQ's release"),
        pytest.param("SICK_trial.txt", SICK_RELEASE, {"sick"}, id="SICK's release"),
        pytest.param("sick.jsonl", json.dumps(OTHERS["sick"][0]), {"sick"}, id="SICK as the hub has it"),
        pytest.param("msr.txt", MRPC_RELEASE, {"mrpc"}, id="MRPC's release"),
        pytest.param("mrpc.csv", ",".join(f'"{column}"' for column in MRPC[0]), {"mrpc"}, id="MRPC, separated"),
    ],
)
def test_a_file_is_read_for_the_tasks_of_its_format(
    name: str, content: Any, datasets: set[str], tmp_path: Path
) -> None:
    path = written(tmp_path, name, content)
    assert with_paths(path) == dict.fromkeys(datasets, str(path))


def test_the_word_may_come_once_for_each_format_and_the_last_of_a_format_counts(tmp_path: Path) -> None:
    first, last = written(tmp_path, "first.json", GITHUB), written(tmp_path, "last.json", HUB)
    sick = written(tmp_path, "sick.txt", SICK_RELEASE)
    expected = {**dict.fromkeys(PUBMEDQA, str(last)), "sick": str(sick)}
    assert with_paths(first, sick, last) == expected
    assert with_paths(last, sick, first) == {**expected, **dict.fromkeys(PUBMEDQA, str(first))}
    assert with_paths(first, last, first) == dict.fromkeys(PUBMEDQA, str(first))


def test_all_tasks_run_on_a_file_for_each_format() -> None:
    files = [DEMO_DIR / name for name in ("pubmedqa.json", "bioasq.json", "sick.txt", "mrpc.tsv")]
    config = load([*WORDS, *(f"task.dataset.path={path}" for path in files)])
    assert not config.synthetic
    assert Plan(config).expected == Plan(load(WORDS)).expected


@pytest.mark.parametrize("path", ["owner/name", "/no/such/file.json"])
def test_where_all_tasks_have_one_format_the_path_is_theirs_whatever_it_is(path: str) -> None:
    config = load(["model=mock", "task=mcqabaseline,fewshot_examples_with_context", f"task.dataset.path={path}"])
    assert {dataset.path for dataset in config.datasets.values()} == {path}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        pytest.param("other.json", [{"id": 1, "text": "t"}], "it has the columns id, text", id="another layout"),
        pytest.param("empty.json", "", r"it has the columns \(none\)", id="empty"),
        pytest.param("none.json", None, "No such file or directory", id="no file"),
        pytest.param("broken.parquet", "no table", "magic bytes", id="damaged"),
        pytest.param("folder", None, "it is no file of a known ending", id="a folder, or a data set on the hub"),
    ],
)
def test_a_file_that_fits_no_task_is_refused_with_the_tasks_of_each_format(
    name: str, content: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(UserError, match=reason) as raised:
        load([*WORDS, f"task.dataset.path={path}"])
    assert "\n" not in str(raised.value)
    assert "pubmedqa: task=conclusion_generation,distracting_context" in str(raised.value)
    assert "sick: task=similarity_sick" in str(raised.value)


def test_data_that_cannot_be_read_leave_the_tasks_that_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET_STORAGE_PATH", str(tmp_path))
    words = ["model=mock", "task=question_formation,mcqabaseline", "roles.judge=mock"]
    config = load([*words, f"task.dataset.path={DEMO_DIR / 'pubmedqa.json'}"])
    with pytest.raises(UserError, match=r"dataset bioasq .* the data of these can be read: task=mcqabaseline$"):
        Plan(config)


def test_a_table_of_ones_own_is_known_by_its_declared_columns(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "task").mkdir()
    written(
        tmp_path / "dataset",
        "mine.yaml",
        "format: table\npath: nowhere.csv\ndemo: mrpc.tsv\nid_column: code\nfields: [claim, verdict]\n",
    )
    written(
        tmp_path / "task",
        "claims.yaml",
        "dataset: mine\nstages: [{generate: {role: target, template: '{claim}'}}]\n"
        "answer: {choices: ['true', 'false'], target: verdict}\n",
    )
    path = written(tmp_path, "mine.csv", "code,claim,verdict,more\n1,c,true,m\n")
    words = ["model=mock", "task=claims,mcqabaseline", f"conf_dir={tmp_path}", f"task.dataset.path={path}"]
    datasets = load(words).datasets
    assert (datasets["mine"].path, datasets["pubmedqa_yesno"].path) == (str(path), SHIPPED["pubmedqa_yesno"])
