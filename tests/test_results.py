"""The run directory: samples/ holds what was added, runs that were stopped are partial, errors.jsonl says why."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_samples import TASKS, blocks, many, planned, sample, spec, store, task_spec

from rambla_ray.errors import UserError
from rambla_ray.results.directory import RunDirectory, to_json
from rambla_ray.schema import SAMPLE_SCHEMA, Step, from_table, to_table
from rambla_ray.storage import Folder


@pytest.mark.parametrize("block", [1, 7, 5000])
def test_what_was_added_is_stored_by_task_and_counted(tmp_path: Path, block: int) -> None:
    samples = many(TASKS, 60)
    random.Random(1).shuffle(samples)
    judged = Step("generate:verdict", "judge", "j", "1", "?", "Yes")
    for one in samples[::3]:
        one.steps.append(judged)
    directory = RunDirectory(Folder(str(tmp_path)))
    writer = directory.sample_writer("m", planned(60))
    for some in blocks(samples, block):
        writer.add(to_table(some))
    writer.close()
    assert writer.outcomes == Counter(one.outcome for one in samples)
    assert writer.answered == Counter(
        (step.model, step.role) for one in samples for step in one.steps if not step.failed
    )
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"m--{task}.parquet" for task in TASKS}
    for task in TASKS:
        table = pq.read_table(tmp_path / f"samples/m--{task}.parquet")
        assert table.schema.equals(SAMPLE_SCHEMA)
        assert list(from_table(table)) == [one for one in samples if one.task == task]


def test_row_groups_are_short_and_shorter_where_texts_are_long(tmp_path: Path) -> None:
    how = spec({"long": task_spec({"": 80}), "short": task_spec({"": 5000})})
    long = (sample(str(number), task="long", text="Yes " * 2**18) for number in range(80))  # 1 MB each
    short = (sample(str(number), task="short") for number in range(5000))
    store(tmp_path, how, (one for group in (long, short) for one in group), block=10)
    file = pq.ParquetFile(tmp_path / "samples/m--long.parquet")
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [70, 10]
    file = pq.ParquetFile(tmp_path / "samples/m--short.parquet")
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    assert max(group.num_rows for group in groups) <= 2048
    assert sum(group.num_rows for group in groups) == 5000


def test_nothing_is_in_place_until_the_writer_is_closed(tmp_path: Path) -> None:
    directory = RunDirectory(Folder(str(tmp_path)))
    writer = directory.sample_writer("m", planned(4000))
    writer.add(to_table(many(TASKS, 4000)))
    with pytest.raises(UserError, match="there are no samples"):
        directory.score()
    writer.close()
    assert sum(cell["n"] for cell in directory.score()["cells"]) == 20_000


def test_a_later_invocation_replaces_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    how = planned(10)
    store(tmp_path, how, [sample(str(number), task="clean", outcome="failed") for number in range(10)])
    (tmp_path / "samples/m--clean.parquet.draft").write_bytes(b"of a process that was killed")
    directory = store(tmp_path, how, [sample(str(number), task="clean") for number in range(10)])
    (cell,) = directory.score()["cells"]
    assert cell["outcomes"]["scored"] == cell["n"] == 10
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".parquet"}


def test_an_invocation_that_was_stopped_leaves_what_holds_more(tmp_path: Path) -> None:
    how = planned(10)
    whole = [sample(str(number), task="clean") for number in range(10)]
    store(tmp_path, how, whole)
    directory = store(tmp_path, how, [sample("0", task="wrong-way")])
    assert {cell["task"]: cell["n"] for cell in directory.score()["cells"]} == {"clean": 10, "wrong-way": 1}
    other = planned(11)
    directory = store(tmp_path, other, [sample("0", task="clean")])
    assert {cell["task"]: cell["n"] for cell in directory.score()["cells"]} == {"clean": 1}


# --- runs that were stopped ------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_partial_and_does_not_remember_that_it_was(tmp_path: Path) -> None:
    samples, how = many(TASKS, 40), planned(40)
    whole = to_json(store(tmp_path / "whole", how, samples).score())
    assert json.loads(whole)["partial"] is None
    stopped = store(tmp_path / "stopped", how, samples[:37])
    assert stopped.score()["partial"] == {"samples": 37, "expected": 200}
    assert to_json(store(tmp_path / "stopped", how, samples).score()) == whole


def test_cells_without_samples_are_left_out_and_what_needs_them_says_why(tmp_path: Path) -> None:
    samples = [one for one in many(TASKS, 10) if one.task != "clean" and one.variant != "n=0"]
    scores = store(tmp_path, planned(10), samples).score()
    assert [(cell["task"], cell["variant"]) for cell in scores["cells"]] == [
        ("spelling", "n=3"),
        ("spelling", "n=10"),
        ("wrong-way", ""),
    ]
    assert scores["effects"] == []
    assert [cell["null_reasons"]["paired"] for cell in scores["cells"]] == [
        "task spelling/n=0 has no samples yet",
        "task spelling/n=0 has no samples yet",
        "task clean has no samples yet",
    ]
    assert scores["partial"] == {"samples": 30, "expected": 50}


def test_a_pair_that_was_never_asked_for_is_not_in_the_run(tmp_path: Path) -> None:
    how = spec({"t": task_spec({"": 1}, "elsewhere"), "u": task_spec({"": 1}, "t/n=7")})
    cells = store(tmp_path, how, [sample("1"), sample("1", task="u")]).score()["cells"]
    assert [cell["null_reasons"]["paired"] for cell in cells] == [
        "task elsewhere is not in this run",
        "task t/n=7 is not in this run",
    ]


def test_targets_that_were_not_begun_are_missing(tmp_path: Path) -> None:
    how = spec({"t": task_spec({"": 3})}, models=["m", "later"])
    directory = store(tmp_path, how, [sample(str(number)) for number in range(3)])
    scores = directory.score()
    assert [cell["model"] for cell in scores["cells"]] == ["m"]
    assert scores["partial"] == {"samples": 3, "expected": 6}


def test_a_run_without_a_sample_has_no_cells(tmp_path: Path) -> None:
    directory = store(tmp_path, planned(10), [])
    scores = directory.write_metrics()
    assert (scores["cells"], scores["effects"], scores["partial"]) == ([], [], {"samples": 0, "expected": 50})
    directory.write_errors()
    assert (tmp_path / "errors.jsonl").read_bytes() == b""


def test_a_run_may_be_kept_where_there_is_no_local_disk(tmp_path: Path) -> None:
    samples, how = many(TASKS, 40), planned(40)
    here = store(tmp_path / "here", how, samples)
    (tmp_path / "there").mkdir()
    there = store(f"file://{tmp_path}/there", how, samples)
    for directory in (here, there):
        directory.write_metrics()
        directory.write_errors()
    for name in ("metrics.json", "errors.jsonl"):
        assert there.folder.read(name) == here.folder.read(name)


# --- errors.jsonl ----------------------------------------------------------------------------------------------------


def test_every_sample_that_was_not_scored_has_a_line(tmp_path: Path) -> None:
    samples = many(TASKS, 3000)
    directory = store(tmp_path, planned(3000), samples, block=500)
    directory.write_errors()
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [(line["sample_id"], line["outcome"]) for line in lines] == [
        (one.sample_id, one.outcome) for one in samples if one.outcome != "scored"
    ]


def test_a_line_says_what_the_last_step_said(tmp_path: Path) -> None:
    samples = [
        sample("1", outcome="failed", error="the server said no"),
        sample("2", outcome="unparsed", text="Who knows?"),
    ]
    how = spec({"t": task_spec({"": 2})})
    store(tmp_path, how, samples).write_errors()
    first, second = map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines())
    assert first == {
        "sample_id": "m/t/-/1",
        "outcome": "failed",
        "stage": "generate:response",
        "role": "target",
        "error_kind": "server",
        "error": "the server said no",
    }
    assert second["error"] == "no answer read from: 'Who knows?'"
