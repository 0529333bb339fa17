"""Cautions of a run's table: which limit to raise, and where more than one served the answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample
from omegaconf import OmegaConf
from rich.console import Console

from rambla_ray.config.load import load
from rambla_ray.results import report
from rambla_ray.results.calls import invocation
from rambla_ray.results.cautions import Place, cut_lines, limits_of, served_lines
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.schema import ReplyDetails, Sample, to_table
from rambla_ray.storage import Folder

TARGET = Place("target", "m")


def cell(task: str, n: int = 100, cut: int = 0, model: str = "m", **more: Any) -> dict[str, Any]:
    """What metrics.json holds of a cell, as far as cautions look at it."""
    return {"model": model, "task": task, "variant": "", "n": n, "cut": {"count": cut, "share": cut / n}, **more}


def scores(*cells: dict[str, Any], **roles: str) -> dict[str, Any]:
    return {"roles": roles, "cells": list(cells)}


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"max_tokens": 800, "top_p": 0.95}, "raise max_tokens: 37 of 100 answers were cut at 800 tokens (t)"),
        (
            {"max_completion_tokens": 4000, "max_tokens": 800},
            "raise max_completion_tokens: 37 of 100 answers were cut at 4000 tokens (t)",
        ),
        (
            {"max_completion_tokens": 4000, "max_tokens": None},
            "raise max_completion_tokens: 37 of 100 answers were cut at 4000 tokens (t)",
        ),
        ({"max_output_tokens": 5}, "raise max_output_tokens: 37 of 100 answers were cut at 5 tokens (t)"),
        (
            {"generation_config": {"max_new_tokens": 200}},
            "raise generation_config.max_new_tokens: 37 of 100 answers were cut at 200 tokens (t)",
        ),
        (
            {"generation_config": {}},
            "raise generation_config.max_new_tokens: 37 of 100 answers were cut (t)",
        ),
        ({"max_tokens": None}, "let it answer at greater length: 37 of 100 answers were cut (t)"),
        ({}, "let it answer at greater length: 37 of 100 answers were cut (t)"),
    ],
)
def test_the_key_to_raise_is_the_one_that_the_models_config_has(params: dict[str, Any], advice: str) -> None:
    limits = limits_of({"targets": {"m": {"params": params}}})
    assert list(cut_lines(scores(cell("t", cut=37)), limits)) == [f"m: {advice}"]


def test_a_model_has_one_line_for_all_its_cells_and_one_for_each_role() -> None:
    question = {
        "targets": {"m": {"params": {"max_tokens": 8}}, "n": {"params": {"max_tokens": 9}}},
        "roles": {"judge": {"config_name": "m", "config": {"params": {"max_tokens": 7}}}},
    }
    cells = [
        cell("a", cut=1),
        cell("b", cut=40),
        cell("c", cut=5),
        cell("d", cut=3),
        cell("e", n=50, cut=2, cut_by_role={"judge": 2, "target": 1}),
        cell("f"),
        cell("b", cut=1, model="n"),
    ]
    assert list(cut_lines(scores(*cells, judge="m"), limits_of(question))) == [
        "m: raise max_tokens: 50 of 450 answers were cut at 8 tokens (b, c, d, 2 more)",
        "the judge, m: raise max_tokens: 2 of 50 answers were cut at 7 tokens (e)",
        "n: raise max_tokens: 1 of 100 answers were cut at 9 tokens (b)",
    ]


def test_metrics_of_an_earlier_version_have_no_cautions() -> None:
    without = {name: value for name, value in cell("t").items() if name != "cut"}
    assert list(cut_lines(scores(without), {})) == list(served_lines(scores(without))) == []


def by(
    model: str, fingerprint: str = "", provider: str = "", answers: int = 1, role: str = "target"
) -> dict[str, Any]:
    names = {"model": model, "system_fingerprint": fingerprint, "provider": provider}
    return {"role": role, **names, "answers": answers}


@pytest.mark.parametrize(
    ("served", "line"),
    [
        ([by("gpt-1", "fp_a", answers=100)], None),
        ([by("", answers=3), by("gpt-1", answers=97)], None),  # Replies without a name may be of the same.
        ([by("gpt-1", "", answers=3), by("gpt-1", "fp_a", answers=97)], None),
        ([by("gpt-1"), by("gpt-2", role="judge")], None),
        ([by("gpt-1", answers=40), by("gpt-2", answers=60)], "gpt-2 (60), gpt-1 (40)"),
        ([by("gpt-1", "fp_a"), by("gpt-1", "fp_b")], "gpt-1 fp_a (1), gpt-1 fp_b (1)"),
        (
            [by("llama", "", "Far", 2), by("llama", "", "Near", 3), by("", answers=1)],
            "llama Near (3), llama Far (2), nobody named (1)",
        ),
        ([by("g\x1b[2J", "x" * 99), by("h", "y")], f"g\\x1b[2J {'x' * 60}… (99 characters) (1), h y (1)"),
    ],
)
def test_more_than_one_that_served_a_cell_is_said(served: list[dict[str, Any]], line: str | None) -> None:
    expected = [] if line is None else [f"m: its answers came from more than one: {line} (in t)"]
    assert list(served_lines(scores(cell("t", served_by=served), judge="j"))) == expected


def test_who_served_is_said_once_for_all_cells_of_a_model_and_a_few_are_named() -> None:
    many = [by(f"gpt-{number}", answers=10 - number) for number in range(7)]
    cells = [
        cell("a", served_by=many),
        cell("b", served_by=many[:2]),
        cell("c", served_by=[by("gpt-9", role="judge")]),
    ]
    (line,) = served_lines(scores(*cells, judge="j"))
    assert line == (
        "m: its answers came from more than one: gpt-0 (20), gpt-1 (18), gpt-2 (8), gpt-3 (7), gpt-4 (6), 2 more "
        "(in a, b)"
    )


# --- in what a person sees -------------------------------------------------------------------------------------------


def written(tmp_path: Path, samples: list[Sample], spent: dict[str, Any]) -> RunDirectory:
    """The whole directory of a run of openai_chat on mcqabaseline."""
    words = ["model=openai_chat", "task=mcqabaseline", "model.params.api_type=openai", "model.params.max_tokens=9"]
    config = load([*words, f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(config)
    directory.begin(config, {}, words)
    writer = directory.sample_writer("openai_chat", scoring_spec(config, {("mcqabaseline", ""): len(samples)}))
    writer.add(to_table(samples))
    writer.close()
    entry = {"model": "openai_chat", "role": "target", **spent}
    directory.write_calls(config, [entry], writer.answered, invocation(0.0, 0, {}, finished=True), writer.served)
    directory.write_metrics()
    report.write_summary(directory)
    return RunDirectory(Folder(directory.folder.location))


def shown(directory: RunDirectory) -> list[str]:
    """The terminal's text, the summary and the HTML report."""
    console = Console(file=io.StringIO(), width=250)
    report.print_run(directory, console, details=True)
    assert isinstance(console.file, io.StringIO)
    return [console.file.getvalue(), *(directory.folder.read(name).decode() for name in ("summary.md", "report.html"))]


def asked(root: str, reason: str, details: ReplyDetails) -> Sample:
    return sample(root, model="openai_chat", task="mcqabaseline", finish_reason=reason, details=details)


def test_the_table_has_the_share_of_cut_answers_and_every_form_the_cautions(tmp_path: Path) -> None:
    details = [ReplyDetails(served_model="gpt-a"), ReplyDetails(served_model="gpt-b")]
    samples = [asked(str(number), "length" if number < 3 else "stop", details[number % 2]) for number in range(8)]
    directory = written(tmp_path, samples, {"calls": 8, "answered": 8})
    calls = directory.read_calls()
    assert calls is not None
    assert [one["answers"] for one in calls["models"][0]["served"]] == [4, 4]
    terminal, summary, page = shown(directory)
    row = next(line for line in terminal.splitlines() if "│ openai_chat" in line and "scored" in line)
    cells = dict(zip(report.COLUMNS, [text.strip() for text in row.split("│")[1:-1]], strict=True))
    assert (cells["cut"], cells["n"], cells["outcomes"]) == ("37.5 %", "8", "8 scored")
    for text in (terminal, summary, page):
        assert "raise max_tokens: 3 of 8 answers were cut at 9 tokens" in text.replace("\\", "").replace("\n", " ")
        assert "its answers came from more than one: gpt-a (4), gpt-b (4)" in text.replace("\\", "").replace("\n", " ")


@pytest.mark.parametrize(
    ("spent", "columns"),
    [
        ({}, []),
        ({"prompt_tokens": 9, "cached_tokens": 4}, ["cached"]),
        ({"cached_tokens": 4, "reasoning_tokens": 5}, ["cached", "reasoning"]),
        ({"reasoning_tokens": 5}, ["reasoning"]),
    ],
)
def test_the_table_of_calls_has_columns_for_cached_and_reasoning_tokens_where_there_are_any(
    tmp_path: Path, spent: dict[str, Any], columns: list[str]
) -> None:
    terminal, *_ = shown(written(tmp_path, [asked("a", "stop", ReplyDetails())], {"answered": 1, **spent}))
    head = next(line for line in terminal.splitlines() if "tokens in" in line)
    row = next(line for line in terminal.splitlines() if "│ target" in line)
    names = [text.strip() for text in head.split("┃")[1:-1]]
    assert [name for name in names if name not in report.CALL_COLUMNS] == columns
    values = dict(zip(names, [text.strip() for text in row.split("│")[1:-1]], strict=True))
    assert [values[name] for name in columns] == [str(spent[f"{name}_tokens"]) for name in columns]


def test_a_config_that_is_gone_or_of_another_shape_takes_only_the_key_away(tmp_path: Path) -> None:
    directory = written(tmp_path, [asked("a", "length", ReplyDetails())], {"answered": 1})
    path = Path(directory.folder.location) / "config.yaml"
    document = OmegaConf.load(path)
    del document.question["targets"]
    OmegaConf.save(document, path)
    assert "let it answer at greater length: 1 of 1 answers were cut" in shown(directory)[0]
