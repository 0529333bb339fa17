"""The report of a run: harmless whatever samples hold, and plain about what is missing."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import report as job
from made_samples import many, sample, spec, store, task_spec
from markdown_it import MarkdownIt
from rich.console import Console
from shown_page import Shown

from rambla_ray.results import report
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, to_json

# What an answer, an error or a name may hold to deceive or disturb whoever looks at it.
HOSTILE = {
    "terminal escapes": "\x1b[2J\x1b]0;owned\x07\x1b[31mYes",
    "NUL and C0": "Y\x00e\x08\x08s\r\x7f",
    "C1 controls": "\x9b31m\x85Yes\x9d",
    "bidi overrides": "\u202eseY\u202c \u2066no\u2069\u200f",
    "markup": "[bold red]Yes[/bold red] [link=https://e.example]no[/link] :warning: [/]",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;b&gt;",
    "Markdown": "| a | b |\n# Yes\n- [x](javascript:alert(1)) ![i](https://e.example/i.png) **b** `c` ~~d~~ \\| \\",
    "line breaks": "Yes\n\n| no |\r\n\u2028\u2029\x0b\x0cmaybe",
    "a lone surrogate": "Yes \ud800",
    "length": "Yes <b>| " * 120_000,
}
NOT_SHOWN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def no_calls(directory: RunDirectory, **entry: object) -> RunDirectory:
    """The run directory with a calls.json of one model that was asked nothing, but for what is given."""
    counts = dict.fromkeys((*report.CALL_COUNTS, "prompt_tokens", "completion_tokens", "waited_s"), 0)
    models = [{"model": "m", "role": "target", "cost_usd": None, **counts, **entry}]
    calls = {"models": models, "invocations": [invocation(0.0, 0, {}, finished=True)], "wall_s": 0.0}
    directory.folder.write("calls.json", to_json(calls))
    return directory


def printed(directory: RunDirectory, *, width: int = 150) -> str:
    """What a terminal is sent, colours and all."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, legacy_windows=False)
    report.print_run(directory, console, details=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_why_samples_failed_is_counted_by_reason_the_commonest_first(tmp_path: Path) -> None:
    errors = [f"HTTP 500: request req-{number:08d} died" for number in range(5)]
    errors += ["no reply"] * 3 + ["reset"] * 2 + ["one", "two"]
    failed = [sample(str(number), outcome="failed", error=error) for number, error in enumerate(errors)]
    failed[-1].steps[-1] = dataclasses.replace(failed[-1].steps[-1], error_kind="bad_item")
    scored = [sample(f"scored {number}") for number in range(8)]
    directory = no_calls(store(tmp_path, spec({"t": task_spec({"": 20})}), [*failed, *scored]))
    directory.write_metrics()
    line = (
        "11 of 20 samples failed: 5 × m server (HTTP 500: request req-00000000 died); 3 × m server (no reply); "
        "2 × m server (reset); 1 × other reasons"
    )
    assert f"warning: {line}" in printed(directory, width=400)
    report.write_summary(directory)
    assert "11 of 20 samples failed: 5 × m server" in directory.folder.read("summary.md").decode()


# --- hostile content -------------------------------------------------------------------------------------------------


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    """A run of samples in which everything that others write is hostile."""
    text: str = request.param
    samples = [sample(f"{text}{number}", text=text, rambla_answer="") for number in range(4)]
    samples += [sample(f"x{text}{number}", outcome="failed", error=text) for number in range(2)]
    samples += [sample(f"y{text}", outcome="unparsed", text=text)]
    directory = no_calls(store(tmp_path, spec({"t": task_spec({"": 9})}), samples))
    directory.write_metrics()
    directory.write_errors()
    report.write_summary(directory)
    return directory


def test_hostile_content_is_harmless_on_a_terminal(hostile: RunDirectory) -> None:
    out = printed(hostile)
    assert NOT_SHOWN.findall(re.sub(r"\x1b\[[0-9;]*m", "", out)) == []
    assert "the readers differ on 4 of 7" in out
    assert len(out) < 40_000


def test_hostile_content_is_harmless_in_markdown(hostile: RunDirectory) -> None:
    text = hostile.folder.read("summary.md").decode()
    assert NOT_SHOWN.findall(text) == []
    page = Shown()
    page.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    assert set(page.tags) <= {"h1", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.tags.count("td") == len(report.COLUMNS)
    assert page.tags.count("h1") == 1
    assert page.addresses == []
    assert len(text) < 20_000


def test_hostile_content_is_harmless_in_html(hostile: RunDirectory) -> None:
    text = hostile.folder.read("report.html").decode()
    assert NOT_SHOWN.findall(text) == []
    page = Shown()
    page.feed(text)
    assert set(page.tags) <= {"html", "head", "meta", "style", "body", "pre", "code", "span"}
    assert page.addresses == []
    assert len(text) < 60_000


def test_hostile_content_is_harmless_in_errors(hostile: RunDirectory) -> None:
    lines = hostile.folder.read("errors.jsonl").splitlines(keepends=True)
    assert len(lines) == 3
    for line in lines:
        assert line.isascii()
        assert NOT_SHOWN.findall(line.decode()) == []
        assert len(line) < 15_000
        assert all(value.isprintable() for value in json.loads(line).values())


def test_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    """No config lets such a name through; a table of them would be harmless all the same."""
    variant = "[bold red]v[/bold red] :warning: <b>|"
    how = spec({"t": task_spec({variant: 2}, "u"), "u": task_spec({"": 2})})
    samples = [sample(root, task="t", variant=variant) for root in "12"] + [sample(root, task="u") for root in "12"]
    directory = no_calls(store(tmp_path, how, samples))
    directory.write_metrics()
    report.write_summary(directory)
    assert printed(directory, width=250).count(variant) == 2  # among the scores and among the pairs
    assert (
        MarkdownIt("commonmark")
        .enable("table")
        .render(directory.folder.read("summary.md").decode())
        .count("<td>t [bold red]v[/bold red] :warning: &lt;b&gt;|</td>")
    )


# --- what a run came to ----------------------------------------------------------------------------------------------


def stored_run(tmp_path: Path, done: int) -> RunDirectory:
    """A run of 200 samples, of which so many are there, with all its files."""
    tasks = {"clean": ("",), "spelling": ("n=0", "n=3", "n=10"), "wrong-way": ("",)}
    how = spec(
        {
            "clean": task_spec({"": 40}),
            "spelling": task_spec(dict.fromkeys(tasks["spelling"], 40), "spelling/n=0"),
            "wrong-way": task_spec({"": 40}, "clean"),
        }
    )
    paid = {"calls": 211, "answered": 190, "failed": 10, "retried": 8, "hedged": 3, "repeated": 2, "reused": 7}
    directory = store(tmp_path, how, many(tasks, 40)[:done])
    no_calls(directory, **paid, prompt_tokens=54321, completion_tokens=999, cost_usd=0.125, waited_s=61.5)
    directory.write_metrics()
    directory.write_errors()
    report.write_summary(directory)
    return directory


@pytest.mark.parametrize("done", [0, 37, 150])
def test_a_partial_run_says_so_first_and_in_every_form(tmp_path: Path, done: int) -> None:
    directory = stored_run(tmp_path, done)
    words = f"PARTIAL: {done} of 200 samples"
    assert printed(directory).splitlines()[0].startswith(words)
    assert f"warning: {words}" in printed(directory)
    assert directory.folder.read("summary.md").decode().splitlines()[2].startswith(f"**{words}")
    assert words in directory.folder.read("report.html").decode()


def test_a_whole_run_does_not(tmp_path: Path) -> None:
    directory = stored_run(tmp_path, 200)
    for text in (
        printed(directory),
        *(directory.folder.read(name).decode() for name in ("summary.md", "report.html")),
    ):
        assert "PARTIAL" not in text
        assert "spelling n=10" in text


def test_the_table_of_calls_has_all_that_was_counted(tmp_path: Path) -> None:
    out = printed(stored_run(tmp_path, 200))
    head, row = (next(line for line in out.splitlines() if word in line) for word in ("tokens in", "54321"))
    found = [cell.strip() for cell in row.split("│")][1:-1]
    assert [cell.strip() for cell in head.split("┃")][1:-1] == list(report.CALL_COLUMNS)
    assert found == ["m", "target", "211", "190", "7", "8", "3", "2", "10", "54321", "999", "$0.1250", "61.5 s"]


def test_a_run_whose_calls_nobody_could_write_is_shown_all_the_same(tmp_path: Path) -> None:
    directory = stored_run(tmp_path, 200)
    (tmp_path / "calls.json").unlink()
    report.write_summary(directory)
    assert "what the run asked is not known" in printed(directory)


def test_recomputing_says_whether_the_numbers_are_those_of_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = stored_run(tmp_path, 200)
    assert job.main([str(tmp_path), "--recompute"]) == 0
    assert "metrics.json equals what samples/ give" in capsys.readouterr().out
    scores = directory.read_metrics()
    scores["cells"][0]["accuracy"]["value"] += 1e-9
    directory.folder.write("metrics.json", to_json(scores))
    assert job.main([str(tmp_path), "--recompute"]) == 2
    assert "metrics.json DIFFERS FROM what samples/ give" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "--auditt"]])
def test_a_command_line_that_is_not_understood_prints_the_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(words) == 1
    printed = capsys.readouterr()
    assert "--audit" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("read_by", "differ"),
    [
        ({}, "the readers differ on 3 of 10 answers: "),
        ({"read_by": {"rules": 10, "reader": 0}}, "the readers differ on 3 of 10 answers: "),
        (
            {"read_by": {"rules": 8, "reader": 2}},
            "the readers differ on 3 of 10 answers (2 were read by helper, no rules): ",
        ),
    ],
)
def test_where_readers_differ_it_says_how_much_a_model_has_read(read_by: dict[str, Any], differ: str) -> None:
    readers = {"differ": 3, "examples": [{"text": "Y.e.s", "robust": "no", "rambla": "yes"}]}
    cell = {"model": "m", "task": "t", "variant": "", "n": 10, "readers": readers, **read_by}
    (line,) = report.warnings({"partial": None, "roles": {"reader": "helper"}, "cells": [cell]})
    assert line == f"m t: {differ}'Y.e.s' is no, RAmBLA's reader has yes"


@pytest.mark.parametrize(
    ("calls", "finished", "begin"),
    [
        (3, True, "3 calls in "),
        (3, False, "3 calls in "),
        (0, True, "no calls, every answer came from the ledger ("),
        (0, False, "no calls ended ("),
    ],
)
def test_the_calls_of_an_invocation_are_told_as_what_they_were(calls: int, finished: bool, begin: str) -> None:
    entry = invocation(0.0, calls, {}, finished=finished)
    assert report.calls_line({"models": [], "invocations": [entry], "wall_s": 0.0}).startswith(begin)
