"""What samples say beside their answers: what the limit cut, who served, what reasoning took."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_samples import blocks, many, planned, sample, spec, store, task_spec

from rambla_ray.config.load import load
from rambla_ray.results.calls import calls_document
from rambla_ray.results.directory import RunDirectory, to_json
from rambla_ray.results.samples import open_file
from rambla_ray.results.served import Served
from rambla_ray.schema import DETAIL_FIELDS, NO_DETAILS, ReplyDetails, Sample, Step, to_table
from rambla_ray.storage import Folder

OLD, NEW = ReplyDetails(served_model="gpt-1", system_fingerprint="fp_a"), ReplyDetails(served_model="gpt-2")
ELSEWHERE = ReplyDetails(served_model="gpt-1", system_fingerprint="fp_a", provider="Far")


def scored(tmp_path: Path, samples: list[Sample], variants: tuple[str, ...] = ("",)) -> list[dict[str, Any]]:
    """The cells of a task with these samples."""
    how = spec({"t": task_spec(dict.fromkeys(variants, len(samples)))})
    cells: list[dict[str, Any]] = store(tmp_path, how, samples).score()["cells"]
    return cells


def with_step(one: Sample, role: str, reason: str, details: ReplyDetails = NO_DETAILS, *, last: bool = True) -> Sample:
    """A sample with a further step of another role."""
    step = Step("generate:verdict", role, "j", "1", "?", "Yes", reason, details=details)
    one.steps.insert(len(one.steps) if last else 0, step)
    return one


@pytest.mark.parametrize(
    ("samples", "cut", "by_role"),
    [
        ([sample("a"), sample("b")], (0, 0.0), None),
        ([sample("a", finish_reason="length"), sample("b"), sample("c"), sample("d")], (1, 0.25), None),
        # Whatever was read of it; without a text, thinking has taken all the tokens.
        ([sample("a", finish_reason="length", outcome="truncated", text=""), sample("b")], (1, 0.5), None),
        ([sample("a", finish_reason="content_filter"), sample("b", outcome="failed")], (0, 0.0), None),
        ([with_step(sample("a"), "judge", "length"), sample("b")], (1, 0.5), {"judge": 1}),
        (
            [with_step(sample("a", finish_reason="length"), "judge", "length"), sample("b", finish_reason="length")],
            (2, 1.0),
            {"judge": 1, "target": 2},
        ),
        ([with_step(sample("a"), "rephraser", "length", last=False), sample("b")], (1, 0.5), {"rephraser": 1}),
        ([with_step(sample("a"), "reader", "length"), sample("b")], (0, 0.0), None),  # It is no stage of the task.
        ([sample("a", finish_reason="score"), sample("b", finish_reason="score")], (0, 0.0), None),
    ],
)
def test_answers_that_the_limit_cut_are_counted_beside_the_score(
    tmp_path: Path, samples: list[Sample], cut: tuple[int, float], by_role: dict[str, int] | None
) -> None:
    (cell,) = scored(tmp_path, samples)
    assert cell["cut"] == {"count": cut[0], "share": cut[1]}
    assert cell.get("cut_by_role") == by_role


def test_each_variant_has_its_own(tmp_path: Path) -> None:
    samples = [sample(root, variant="x", finish_reason="length", details=OLD) for root in "abc"]
    samples += [sample(root, variant="y") for root in "abc"]
    x, y = scored(tmp_path, samples, ("x", "y"))
    assert (x["cut"], y["cut"]) == ({"count": 3, "share": 1.0}, {"count": 0, "share": 0.0})
    assert [entry["answers"] for entry in x["served_by"]] == [3]
    assert "served_by" not in y


def entry(role: str, model: str, fingerprint: str, provider: str, answers: int) -> dict[str, Any]:
    names = {"model": model, "system_fingerprint": fingerprint, "provider": provider}
    return {"role": role, **names, "answers": answers}


def test_who_served_is_listed_by_role_where_replies_name_it(tmp_path: Path) -> None:
    samples = [sample(f"old {number}", details=OLD) for number in range(3)]
    samples += [sample("new", details=NEW), sample("far", details=ELSEWHERE), sample("nobody")]
    samples += [sample("failed", outcome="failed"), with_step(sample("judged", details=OLD), "judge", "stop", NEW)]
    (cell,) = scored(tmp_path, samples)
    assert cell["served_by"] == [
        entry("judge", "gpt-2", "", "", 1),
        entry("target", "", "", "", 1),
        entry("target", "gpt-1", "fp_a", "", 4),
        entry("target", "gpt-1", "fp_a", "Far", 1),
        entry("target", "gpt-2", "", "", 1),
    ]


def test_reasoning_counts_among_a_cells_tokens_where_there_is_any(tmp_path: Path) -> None:
    thinks = ReplyDetails(reasoning="Hm.", reasoning_tokens=5, cached_tokens=3)
    samples = [sample("a", details=thinks, tokens=(7, 9)), sample("b", details=thinks), sample("c")]
    samples.append(with_step(sample("d"), "judge", "stop", thinks))
    (cell,) = scored(tmp_path, samples)
    assert cell["tokens"] == {"prompt": 28, "completion": 15, "reasoning": 10}


def test_neither_order_nor_blocks_change_a_byte(tmp_path: Path) -> None:
    samples = many({"clean": ("",), "spelling": ("n=0", "n=3", "n=10"), "wrong-way": ("",)}, 30)
    draw = random.Random(5)
    for one in samples:
        details = draw.choice([OLD, NEW, ELSEWHERE, NO_DETAILS])
        reason = draw.choice(["stop", "length"])
        one.steps[0] = dataclasses.replace(one.steps[0], finish_reason=reason, details=details)
    found = set()
    for number, block in enumerate((1, 7, 1000)):
        draw.shuffle(samples)
        found.add(to_json(store(tmp_path / str(number), planned(30), samples, block=block).score()))
    assert len(found) == 1


# --- calls.json ------------------------------------------------------------------------------------------------------


def test_calls_say_who_served_the_answers_that_the_samples_have(tmp_path: Path) -> None:
    samples = [sample("a", details=NEW), sample("b", details=OLD), sample("c", details=OLD), sample("d")]
    samples += [sample("e", outcome="failed"), with_step(sample("f", details=OLD), "judge", "stop")]
    writer = RunDirectory(Folder(str(tmp_path))).sample_writer("m", spec({"t": task_spec({"": 6})}))
    for some in blocks(samples, 2):
        writer.add(to_table(some))
    writer.close()
    assert writer.answered == {("m", "target"): 5, ("j", "judge"): 1}
    assert writer.served == {
        Served("m", "target", "gpt-2", "", ""): 1,
        Served("m", "target", "gpt-1", "fp_a", ""): 3,
    }


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ({}, []),
        ({("gpt-1", "fp_a", ""): 5}, [("gpt-1", "fp_a", "", 5)]),
        (
            {("gpt-2", "", ""): 1, ("gpt-1", "fp_a", "Far"): 1, ("gpt-1", "fp_a", ""): 2},
            [("", "", "", 1), ("gpt-1", "fp_a", "", 2), ("gpt-1", "fp_a", "Far", 1), ("gpt-2", "", "", 1)],
        ),
    ],
    ids=["nobody named", "one", "several, and one answer without a name"],
)
def test_an_entry_of_calls_lists_them_in_an_order_of_their_own(
    served: dict[tuple[str, str, str], int], expected: list[tuple[Any, ...]]
) -> None:
    config = load(["model=mock", "task=mcqabaseline"])
    counts = {Served("mock", "target", *names): count for names, count in served.items()}
    (found,) = calls_document(config, [], {("mock", "target"): 5}, [], counts)["models"]
    keys = ("model", "system_fingerprint", "provider", "answers")
    assert [tuple(one[key] for key in keys) for one in found["served"]] == expected


# --- files of earlier versions ---------------------------------------------------------------------------------------


def without_details(path: Path) -> None:
    """Take the columns away that an earlier version did not write."""
    table = pq.read_table(path)
    steps = table["steps"].combine_chunks()
    kept = [field for field in steps.type.value_type if field.name not in DETAIL_FIELDS]
    flat = pa.StructArray.from_arrays([steps.flatten().field(field.name) for field in kept], fields=kept)
    number = table.schema.get_field_index("steps")
    table = table.set_column(number, "steps", pa.ListArray.from_arrays(steps.offsets, flat))
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path, row_group_size=7)


def test_samples_of_an_earlier_version_are_scored_like_those_that_name_nobody(tmp_path: Path) -> None:
    samples = many({"clean": ("",), "spelling": ("n=0", "n=3", "n=10"), "wrong-way": ("",)}, 30)
    directory = store(tmp_path, planned(30), samples)
    before = directory.score()
    for path in (tmp_path / "samples").glob("*.parquet"):
        without_details(path)
    assert to_json(directory.score()) == to_json(before)
    assert all(cell["cut"] == {"count": 0, "share": 0.0} for cell in before["cells"])


def test_what_an_earlier_version_did_not_write_is_read_as_empty(tmp_path: Path) -> None:
    samples = [with_step(sample(str(number), details=OLD), "judge", "stop") for number in range(20)]
    directory = store(tmp_path, spec({"t": task_spec({"": 20})}), samples)
    without_details(tmp_path / "samples/m--t.parquet")
    columns = ["root_id", *(f"steps.list.element.{name}" for name in ("role", "served_model", "cached_tokens"))]
    steps = [{"role": role, "served_model": "", "cached_tokens": 0} for role in ("target", "judge")]
    rows = [{"root_id": str(number), "steps": steps} for number in range(20)]
    with open_file(directory.samples, "m--t.parquet") as file:
        assert file.read(columns).to_pylist() == rows
        assert file.read_row_group(1, columns).to_pylist() == rows[7:14]
        assert [row for batch in file.iter_batches(columns) for row in batch.to_pylist()] == rows


def test_a_run_may_have_files_of_both_versions(tmp_path: Path) -> None:
    how = spec({"t": task_spec({"": 2}), "u": task_spec({"": 2})})
    samples = [sample(root, task=task, details=OLD) for task in "tu" for root in "ab"]
    directory = store(tmp_path, how, samples)
    without_details(tmp_path / "samples/m--t.parquet")
    old, new = directory.score()["cells"]
    assert "served_by" not in old
    assert json.loads(json.dumps(new["served_by"])) == [entry("target", "gpt-1", "fp_a", "", 2)]
