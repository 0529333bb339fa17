"""Panels of judges at the real command: more is right than by one judge, and a kill changes no byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import report
from conftest import Bench
from panel_models import FLIPS, judges

pytestmark = pytest.mark.usefixtures("ray_cluster")

Command = Callable[[Sequence[str]], Bench]
TASKS = "task=conclusion_generation,question_formation,mcqabaseline"


def cell_of(done: Bench, task: str) -> dict[str, Any]:
    (cell,) = [cell for cell in json.loads(done.read("metrics.json"))["cells"] if cell["task"] == task]
    return dict(cell)


def test_the_majority_is_right_more_often_than_one_and_a_task_without_judge_is_as_it_was(
    bench: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=mock", TASKS, judges(tmp_path), f"ledger={tmp_path / 'ledger'}"]
    alone = bench([*words, "roles.judge=ja", f"runs_dir={tmp_path / 'alone'}"])
    table = tmp_path / "truth.csv"
    table.write_text("label,verdict\n" + 9 * "1,1\n0,0\n" + "1,0\n0,1\n")
    words += ["roles.judge=ja,jb,jc", f"judge_calibration={table}", f"runs_dir={tmp_path / 'panel'}"]
    panel = bench(words)
    assert (alone.status, panel.status) == (0, 0), panel.err
    for task in ("conclusion_generation", "question_formation"):
        one, three = cell_of(alone, task), cell_of(panel, task)
        assert three["accuracy"]["value"] > one["accuracy"]["value"]
        assert [judge["votes"] for judge in three["panel"]["judges"]] == [three["n"]] * 3
        assert "panel" not in one
    assert cell_of(panel, "mcqabaseline") == cell_of(alone, "mcqabaseline")
    assert cell_of(panel, "question_formation")["corrected"]["value"] is not None
    calls = {entry["model"]: entry["calls"] for entry in json.loads(panel.read("calls.json"))["models"]}
    assert {name: calls[name] for name in FLIPS} == {"ja": 0, "jb": 87, "jc": 87}  # The first answered alone before.
    rows = pq.read_table(panel.run / "samples/mock--question_formation.parquet").to_pylist()
    assert all(len(row["steps"]) == 4 and "verdict" not in json.loads(row["fields"]) for row in rows)
    shown = " ".join(panel.out.split())
    assert "mock question_formation: Krippendorff's alpha " in shown
    assert "mock question_formation: corrected for the judge's errors " in shown
    assert report.main([str(panel.run), "--recompute", "--audit"]) == 0
    assert "metrics.json equals what samples/ give" in capsys.readouterr().out


def test_a_run_that_is_stopped_between_judges_goes_on_to_the_same_bytes(bench: Command, tmp_path: Path) -> None:
    price = "price: {input_per_million: 1000000, output_per_million: 0}\n"  # A dollar for a token of a prompt.
    slow = "name: mock\nparams: {flip: 0.2, seed: 3}\npool: {max_concurrency: 2}\n" + price
    conf = judges(tmp_path, {"ja": 0.3, "jb": 0.25}, jc=slow)
    words = ["model=mock", "task=question_formation", "roles.judge=ja,jb,jc", conf]
    quiet = bench([*words, f"runs_dir={tmp_path / 'quiet'}"])
    paid = sum(entry["cost_usd"] or 0 for entry in json.loads(quiet.read("calls.json"))["models"])
    stopped = bench([*words, f"budget.usd={0.5 * paid}"])
    assert stopped.status == 4
    partial = json.loads(stopped.read("metrics.json"))["partial"]
    assert partial["samples"] < partial["expected"] == 30
    done = bench(words)
    assert done.status == 0
    assert done.read("metrics.json") == quiet.read("metrics.json")
