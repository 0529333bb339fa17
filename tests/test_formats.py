"""Formats outlive releases: recorded runs are read, unknown fields are passed over, newer formats are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report as job
from made_samples import sample, spec, store, task_spec
from omegaconf import OmegaConf
from recorded_runs import lasting

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.results.directory import RUN_FORMAT, RunDirectory
from rambla_ray.results.samples import FORMAT_KEY, SAMPLES_FORMAT, SPEC_KEY
from rambla_ray.results.score import SCORING
from rambla_ray.storage import Folder

RECORDED = Path(__file__).resolve().parent / "data/recorded"
RUNS = sorted(path.parent.relative_to(RECORDED) for path in RECORDED.glob("*/*/config.yaml"))


@pytest.fixture(params=RUNS, ids=str)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run directory that an earlier version wrote."""
    copy = tmp_path / request.param.name
    shutil.copytree(RECORDED / request.param, copy)
    return copy


def edit_json(run: Path, name: str, edit: Callable[[Any], None]) -> None:
    """Change what a JSON file of a run holds."""
    document = json.loads((run / name).read_text())
    edit(document)
    (run / name).write_text(json.dumps(document))


def edit_config(run: Path, edit: Callable[[Any], None]) -> None:
    """Change what a run's config.yaml holds."""
    document = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    edit(document)
    OmegaConf.save(OmegaConf.create(document), run / "config.yaml")


def edit_samples(run: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Change every file of samples of a run."""
    for path in (run / "samples").glob("*.parquet"):
        table = edit(pq.read_table(path))
        pq.write_table(table, path)


# --- recorded runs ---------------------------------------------------------------------------------------------------


def test_there_are_recorded_runs() -> None:
    assert RUNS


def test_a_recorded_run_is_shown_recomputed_and_audited(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(run), "--recompute", "--audit"]) == 0
    out = capsys.readouterr().out
    stored = json.loads((run / "metrics.json").read_text())
    assert f"metrics.json is of scoring {stored.get('scoring', 1)}, and this version scores as {SCORING} does" in out
    assert out.count("✓") == 3
    for cell in stored["cells"]:
        assert f"{cell['task']} {cell['variant']}".rstrip() in out


def test_the_same_command_continues_a_recorded_run(run: Path) -> None:
    words = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))["command"]  # type: ignore[index, call-overload]
    config = load([*words, f"runs_dir={run.parent}"])
    assert config.run_id == run.name
    directory = RunDirectory.create(config)
    directory.begin(config, {}, words)
    assert lasting(directory.score()) == lasting(json.loads((run / "metrics.json").read_text()))
    RunDirectory.create(config)  # now with a format number


# --- unknown fields --------------------------------------------------------------------------------------------------


def with_unknown_columns(table: pa.Table) -> pa.Table:
    """Samples with a column that nobody knows yet, and steps with another."""
    steps = table["steps"].combine_chunks()
    flat = steps.flatten()
    fields = [*flat.type, pa.field("thoughts", pa.string())]
    struct = pa.StructArray.from_arrays([*flat.flatten(), pa.array(["?"] * len(flat))], fields=fields)
    lists = pa.ListArray.from_arrays(steps.offsets, struct)
    metadata = table.schema.metadata
    table = table.set_column(table.schema.get_field_index("steps"), "steps", lists)
    return table.append_column("weight", pa.array([1] * len(table))).replace_schema_metadata(metadata)


def with_unknown_spec(table: pa.Table) -> pa.Table:
    """Samples whose scoring says more than is known."""
    metadata = dict(table.schema.metadata)
    how = json.loads(metadata[SPEC_KEY])
    how["weights"] = None
    for task in how["tasks"].values():
        task["rubric"] = "?"
    return table.replace_schema_metadata({**metadata, SPEC_KEY: json.dumps(how).encode(), b"more": b"?"})


@pytest.mark.parametrize("edit", [with_unknown_columns, with_unknown_spec])
def test_unknown_columns_of_samples_change_nothing(
    run: Path, edit: Callable[[pa.Table], pa.Table], capsys: pytest.CaptureFixture[str]
) -> None:
    errors = (run / "errors.jsonl").read_bytes()
    RunDirectory(Folder(str(run))).write_metrics()
    edit_samples(run, edit)
    assert job.main([str(run), "--recompute", "--audit"]) == 0
    assert "metrics.json equals what samples/ give" in capsys.readouterr().out
    RunDirectory(Folder(str(run))).write_errors()
    assert (run / "errors.jsonl").read_bytes() == errors


def add_to_calls(calls: Any) -> None:
    calls["carbon_g"] = 1.0
    for entry in (*calls["models"], *calls["invocations"]):
        entry["water_l"] = 3


def add_to_metrics(metrics: Any) -> None:
    metrics["comparisons"] = []
    for cell in metrics["cells"]:
        cell["brier"] = {"value": 0.1}
        cell["outcomes"]["withdrawn"] = 0


@pytest.mark.parametrize(("name", "edit"), [("calls.json", add_to_calls), ("metrics.json", add_to_metrics)])
def test_unknown_keys_of_json_files_are_passed_over(
    run: Path, name: str, edit: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    job.main([str(run), "--audit"])
    before = capsys.readouterr().out
    edit_json(run, name, edit)
    assert job.main([str(run), "--audit"]) == 0
    assert capsys.readouterr().out == before


# As scoring 4 had it for each two models, before `comparisons` was one flat list.
COMPARED: dict[str, Any] = {
    "n": 4,
    "scored_alone": {"baseline": 0, "model": 0, "neither": 0},
    "difference": {"value": -0.25, "ci95": [-0.7, 0.3]},
    "bounds": [-0.25, -0.25],
    "won": {"baseline": ["3"], "model": []},
    "right_alone": {"baseline": 1, "model": 0},
    "p": 1.0,
    "detectable": None,
    "p_holm": 1.0,
}
NESTED: dict[str, Any] = {
    "baseline": "mock",
    "model": "other",
    "cells": [{"task": "paraphrase", "variant": "", **COMPARED}],
    "suite": {name: value for name, value in COMPARED.items() if name != "won"},
    "null_reasons": {"cells[0].detectable": "so few samples show no difference"},
}


def test_comparisons_in_an_earlier_form_are_left_out_with_a_note(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(run, "metrics.json", lambda metrics: metrics.update(comparisons=[NESTED]))
    assert job.main([str(run), "--recompute"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "note: how its models compare stands there as an earlier version wrote it, and is not shown" in out
    assert "Models on the same samples" not in out
    assert f"this version scores as {SCORING} does" in out


def add_to_config(config: Any) -> None:
    config["host"] = "?"
    config["options"]["epochs"] = 1
    for task in config["question"]["tasks"].values():
        task["epochs"] = 1
        task["answer"]["rubric"] = None
        for stage in task["stages"]:
            for body in stage.values():
                body["cache"] = True


def test_unknown_keys_of_a_config_are_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(run, add_to_config)
    assert job.main([str(run), "--audit", "--recompute"]) == 0
    assert capsys.readouterr().out.count("✓") == 3


def test_a_stage_that_is_not_known_is_said_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(run, lambda config: config["question"]["tasks"]["paraphrase"]["stages"].append({"vote": {"of": 3}}))
    assert job.main([str(run), "--audit"]) == 1
    assert capsys.readouterr().err.endswith(
        "config.yaml: task paraphrase: stages: no stage kind 'vote'; there are: add_distractors, compare, few_shot, "
        "generate, mutate, shuffle_context\n"
    )


# --- format numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [RUN_FORMAT + 1, 99, "2b"])
def test_a_newer_run_directory_is_refused_in_one_line(
    run: Path, number: object, capsys: pytest.CaptureFixture[str]
) -> None:
    def renumber(config: Any) -> None:
        config["format"] = number

    edit_config(run, renumber)
    line = (
        f"{run} was written by a newer rambla_ray (run directory format {number}, this one reads up to {RUN_FORMAT}); "
        "install that version"
    )
    for words in ([], ["--recompute"], ["--audit"]):
        assert job.main([str(run), *words]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"error: {line}\n")
    words = ["model=mock", "task=mcqabaseline", f"run_id={run.name}", f"runs_dir={run.parent}"]
    with pytest.raises(UserError) as refused:
        RunDirectory.create(load(words))
    assert str(refused.value) == line


@pytest.mark.parametrize("read", ["score", "write_errors"])
def test_newer_samples_are_refused_in_one_line(tmp_path: Path, read: str) -> None:
    directory = store(tmp_path, spec({"t": task_spec({"": 1})}), [sample("1")])
    newer = str(SAMPLES_FORMAT + 1).encode()
    edit_samples(tmp_path, lambda table: table.replace_schema_metadata({**table.schema.metadata, FORMAT_KEY: newer}))
    with pytest.raises(UserError) as refused:
        getattr(directory, read)()
    assert str(refused.value) == (
        f"{tmp_path}/samples/m--t.parquet was written by a newer rambla_ray (samples format {newer.decode()}, this "
        f"one reads up to {SAMPLES_FORMAT}); install that version"
    )


def test_what_is_written_has_its_numbers(tmp_path: Path) -> None:
    config = load(["model=mock", "task=mcqabaseline", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(config)
    directory.begin(config, {}, [])
    document = directory.read_config()
    assert document is not None
    assert document["format"] == RUN_FORMAT
    assert "format" not in document["question"]
    store(directory.folder.location, spec({"t": task_spec({"": 1})}), [sample("1")])
    (path,) = Path(directory.samples.root).glob("*.parquet")
    assert pq.read_schema(path).metadata[FORMAT_KEY] == str(SAMPLES_FORMAT).encode()


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "calls.json"])
@pytest.mark.parametrize("content", [b"{torn: [1,", b"\xff\xfe\x00", b"a: b: c"], ids=["torn", "binary", "no syntax"])
def test_a_damaged_file_is_one_line_of_the_report(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (run / name).write_bytes(content)
    assert job.main([str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}/{name} is damaged: ")
