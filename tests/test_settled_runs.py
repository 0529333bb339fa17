"""What is stored of a run that ended early, and what is scored of it, from samples alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample, spec, task_spec

from rambla_ray.config.until import Until
from rambla_ray.results.audit import check_ending
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.sample_writer import Kept
from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.results.settled import ending_lines, until_spec
from rambla_ray.schema import Sample, to_table
from rambla_ray.scoring.order import ends, in_order
from rambla_ray.storage import Folder

ITEMS = [f"i{number}" for number in range(400)]
ORDER = in_order(ITEMS, 7)
MODELS = {"a": 0.9, "b": 0.5}
RULE = Until(decided=0.05)


def how(asked: int) -> dict[str, Any]:
    """How a run that asked so many items is scored."""
    until = until_spec(RULE, 7, {("t", ""): len(ITEMS)}, asked, len(ITEMS))
    return {**spec({"t": task_spec({"": asked})}, list(MODELS)), "until": until}


def answered(model: str) -> list[Sample]:
    draw = random.Random(model)
    return [sample(item, "yes" if draw.random() < MODELS[model] else "no", model=model) for item in ITEMS]


def write(folder: Path, count: int, kept: int | None = None) -> RunDirectory:
    """An invocation that had answers to so many items of the order, and kept so many of them when it was settled."""
    directory = RunDirectory(Folder(str(folder)))
    for model in MODELS:
        writer = directory.sample_writer(model, how(len(ITEMS)))
        items = set(ORDER[:count])
        writer.add(to_table([one for one in answered(model) if one.root_id in items]))
        writer.close(None if kept is None else Kept(how(kept), ORDER[:kept]))
    return directory


def stored(directory: RunDirectory, model: str = "a") -> list[str]:
    table = StoredTask(directory.samples, model, "t").read(["root_id"])
    assert table is not None
    return sorted(table["root_id"].to_pylist())


def first_settled(folder: Path) -> int:
    """After how many items the run is settled, found by trying each."""
    for end in ends(len(ITEMS)):
        until = write(folder / str(end), end, end).score()["until"]
        if until["settled"]:
            return end
    raise AssertionError("it is never settled")


def test_what_is_kept_is_the_prefix_whatever_stood_there(tmp_path: Path) -> None:
    write(tmp_path, 300)
    directory = write(tmp_path, 200, 64)
    assert stored(directory) == stored(directory, "b") == sorted(ORDER[:64])
    assert read_spec(directory.samples)["tasks"]["t"]["expected"] == {"": 64}
    assert not directory.samples.names(".draft")


@pytest.mark.parametrize(("count", "left"), [(100, 64), (400, 400)])
def test_an_invocation_that_was_stopped_leaves_what_had_settled(count: int, left: int, tmp_path: Path) -> None:
    write(tmp_path, 200, 64)
    assert len(stored(write(tmp_path, count))) == left


def test_the_audit_looks_again(tmp_path: Path) -> None:
    first = first_settled(tmp_path)
    assert check_ending(write(tmp_path / "first", first, first)).holds
    later = next(end for end in ends(len(ITEMS)) if end > first)
    check = check_ending(write(tmp_path / "later", later, later))
    assert not check.holds
    assert f"until: ended after {later} of 400 items, and NOT where it settles" in check.line


def test_scores_say_how_it_ended(tmp_path: Path) -> None:
    first = first_settled(tmp_path)
    scores = write(tmp_path / "run", first, first).score()
    cell, (of_cell, whole) = scores["cells"][0], scores["comparisons"]
    assert (cell["n"], cell["accuracy"]["interval"], scores["partial"]) == (first, "anytime", None)
    assert (of_cell["task"], whole["task"]) == ("t", "all")
    for entry in (of_cell, whole):
        assert entry["detectable"] is None
        assert entry["mcnemar_p"] <= 0.05
        assert entry["holm_p"] == entry["mcnemar_p"] == scores["until"]["verdicts"][0]["p"]
    fixed = {**how(first)}
    del fixed["until"]
    plain = RunDirectory(Folder(str(tmp_path / "plain")))
    for model in MODELS:
        writer = plain.sample_writer(model, fixed)
        writer.add(to_table([one for one in answered(model) if one.root_id in set(ORDER[:first])]))
        writer.close()
    others = plain.score()
    assert "until" not in others
    narrow, wide = (one["cells"][0]["accuracy"] for one in (others, scores))
    assert narrow["value"] == wide["value"]
    assert wide["ci95"][0] < narrow["ci95"][0] < narrow["ci95"][1] < wide["ci95"][1], "what holds at any time is wider"


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ([{"calls": 1204, "reused": 0}], ": 1,204 calls instead of 3,560, 3 samples beyond stay in the ledger;"),
        ([{"calls": 0, "reused": 7}], ": 0 calls and 7 answers from the ledger instead of 3,560"),
    ],
)
def test_the_line_says_what_was_saved(models: list[dict[str, int]], line: str) -> None:
    until = {"rule": {"ci_width": 0.1}, "items": 288, "of": 890, "settled": True, "wide": []}
    calls = {"models": models, "until": {"calls_at_most": 3560, "beyond": 3}}
    (told,) = ending_lines({"until": until, "partial": None}, calls)
    assert told.startswith("settled after 288 of 890 items")
    assert line in told
