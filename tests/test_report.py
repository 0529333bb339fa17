"""What a person sees of a run: harmless whatever samples hold, plain about what is missing, and audited."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report as job
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import many, sample, spec, store, task_spec
from markdown_it import MarkdownIt
from rich.console import Console

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.display import in_markdown, one_line
from rambla_ray.results import progress, report
from rambla_ray.results.audit import audit
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec, to_json
from rambla_ray.schema import Sample, to_table

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


# --- one line --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=())), st.integers(0, 50))
def test_one_line_is_printable_and_bounded(text: str, longest: int) -> None:
    line = one_line(text, longest)
    assert line.isprintable()
    assert len(line) <= 10 * longest + 40
    assert one_line(line, len(line)) == line
    assert one_line(text, len(text)) == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 是 😀 'q' [b] <i>", "plain é 是 😀 'q' [b] <i>"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eab", r"\u202eab"),
        ("\ud800", r"\ud800"),
        ("abcdef", "abcde… (6 characters)"),
        ("\x00bcdef", r"\x00bcde… (6 characters)"),
    ],
)
def test_one_line_says_what_it_cannot_show(text: str, shown: str) -> None:
    assert one_line(text, 5 if "bcdef" in text else 200) == shown


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("<>&|\\`*_[]()!~$#-+.:/ ab1"), max_size=30) | st.text(max_size=30))
def test_markdown_of_a_line_shows_the_line(text: str) -> None:
    line = f"x{one_line(text)}x"
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(in_markdown(line))
    shown = Shown()
    shown.feed(rendered)
    assert "".join(shown.text).strip() == line
    assert shown.tags == ["p"]


class Shown(HTMLParser):
    """The tags and the text of a page, and the addresses it points to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


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


# --- progress --------------------------------------------------------------------------------------------------------


class Counts:
    """The ledger service's counts, the same each time, and an event once they were asked for so often."""

    def __init__(self, enough: int = 0, **changes: object) -> None:
        self.left, self.enough = enough, threading.Event()
        self.counts = {
            "calls": 3,
            "in_flight": 2,
            "spent": [],
            "models": {"m": {}},
            "notes": [],
            "budget": "",
            "work": {},
        }
        self.counts |= changes

    def __call__(self) -> Mapping[str, Any]:
        self.left -= 1
        if self.left <= 0:
            self.enough.set()
        return self.counts


def test_each_note_is_told_once_even_in_the_last_moment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    notes = ["slow \x1b[31m[bold]host[/bold]", "second"]
    counts = Counts(5, notes=notes)
    with progress.Progress(10, ["m"], counts):
        assert counts.enough.wait(20)
        notes.append("last")
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        r"note: slow \x1b[31m[bold]host[/bold]",
        "note: second",
        "note: last",
    ]


def test_a_line_of_progress_has_samples_calls_and_the_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    counts = Counts(5, budget="$0.10 of $1")
    with progress.Progress(10, ["m"], counts) as shown:
        shown.add("scored", 3)
        shown.add("failed")
        assert counts.enough.wait(20)
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"\d+ s: 4/10 samples \(1 failed, 3 scored\), 3 calls, 2 in flight, [\d.]+ samples/s, budget \$0\.10 of \$1",
        line,
    )


def test_counts_that_cannot_be_had_are_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.001)
    asked = threading.Semaphore(0)

    def gone() -> Mapping[str, Any]:
        asked.release()
        raise ConnectionError("the ledger service is gone")

    with progress.Progress(10, ["m"], gone):
        for _ in range(3):
            assert asked.acquire(timeout=20)
    assert capsys.readouterr().err == ""


def test_the_live_table_has_a_row_per_model_and_role(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    entry = {"model": "m", "role": "judge", "answered": 11, "retried": 5, "failed": 1}
    counts = Counts(2, notes=["look"], spent=[{**entry, "prompt_tokens": 1234, "completion_tokens": 77}])
    with progress.Progress(10, ["m"], counts):
        assert counts.enough.wait(20)
    out = terminal.getvalue()
    assert all(word in out for word in ("note: look", "0/10 samples", "judge", "11", "1234", "77"))


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
    scores = directory.read_json("metrics.json")
    scores["cells"][0]["accuracy"]["value"] += 1e-9
    directory.folder.write("metrics.json", to_json(scores))
    assert job.main([str(tmp_path), "--recompute"]) == 2
    assert "metrics.json DIFFERS FROM what samples/ give" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "--auditt"]])
def test_a_command_line_that_is_not_understood_prints_the_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(words) == 1
    assert "--audit" in capsys.readouterr().out


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# --- the audit -------------------------------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path: Path) -> tuple[RunConfig, RunDirectory]:
    """A run of mcqabaseline that expects ten samples, with no samples yet."""
    loaded = load(["model=mock", "task=mcqabaseline", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    return loaded, directory


def asked(count: int) -> list[Sample]:
    answers = ["yes", "no"] * count
    return [
        sample(str(number), answers[number], model="mock", task="mcqabaseline", text=answers[number])
        for number in range(count)
    ]


def finish_run(
    audited: tuple[RunConfig, RunDirectory],
    samples: list[Sample],
    *,
    finished: bool = True,
    **counts: int,
) -> list[str]:
    """The audit's lines of a run that has ended with these samples and calls."""
    loaded, directory = audited
    writer = directory.sample_writer("mock", scoring_spec(loaded, {("mcqabaseline", ""): 10}))
    writer.add(to_table(samples))
    writer.close()
    entry = dict.fromkeys(("calls", "answered", "failed", "retried", "hedged", "repeated"), 0) | counts
    spent = [{"model": "mock", "role": "target", "prompt_tokens": 0, "completion_tokens": 0, **entry}]
    directory.write_calls(loaded, spent, writer.answered, invocation(0.0, 0, {}, finished=finished))
    return [str(check) for check in audit(directory)]


def test_a_sound_run_passes_the_audit(
    audited: tuple[RunConfig, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish_run(audited, asked(10), calls=16, answered=9, failed=1, retried=4, hedged=2, repeated=3) == [
        "✓ samples: expected 10, stored 10, duplicate 0, lost 0",
        "✓ answers: checked 10, of which 0 read otherwise",
        "✓ calls made 16 = answered 9 + failed 1 + retried 4 + hedged 2 + repeated after a kill at most 3 "
        "(so that up to 19 were paid)",
    ]
    directory = audited[1]
    directory.write_metrics()
    assert job.main([directory.folder.location, "--audit", "--recompute"]) == 0
    assert "✓ samples: expected 10" in capsys.readouterr().out


def test_lost_and_duplicate_samples_fail_the_audit(
    audited: tuple[RunConfig, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    samples = asked(10)
    lines = finish_run(audited, [*samples[:8], samples[3], samples[3]])
    assert lines[0] == "✗ samples: expected 10, stored 8, duplicate 2, lost 2"
    directory = audited[1]
    directory.write_metrics()
    assert job.main([directory.folder.location, "--audit"]) == 2
    assert lines[0] in capsys.readouterr().out


def test_samples_that_are_not_in_the_plan_fail_the_audit(audited: tuple[RunConfig, RunDirectory]) -> None:
    samples = asked(10)
    samples[0].variant, samples[0].sample_id = "n=7", "mock/mcqabaseline/n=7/0"
    assert finish_run(audited, samples)[0] == (
        "✗ samples: expected 10, stored 10, duplicate 0, lost 1, not in the plan 1"
    )


def test_one_too_many_in_a_variant_does_not_hide_one_lost_in_another(tmp_path: Path) -> None:
    loaded = load(["model=mock", "task=spelling_robustness", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    expected = {("spelling_robustness", "n=0"): 2, ("spelling_robustness", "n=1"): 2}
    samples = [
        sample(root, model="mock", task="spelling_robustness", variant=variant)
        for root, variant in (("1", "n=0"), ("2", "n=0"), ("3", "n=0"), ("1", "n=1"))
    ]
    store(directory.folder.location, scoring_spec(loaded, expected), samples, model="mock")
    directory.write_calls(loaded, [], {}, invocation(0.0, 0, {}, finished=True))
    assert str(audit(directory)[0]) == ("✗ samples: expected 4, stored 4, duplicate 0, lost 1, not in the plan 1")


def test_what_a_stopped_run_has_not_asked_is_not_lost(audited: tuple[RunConfig, RunDirectory]) -> None:
    line = finish_run(audited, asked(4), finished=False)[0]
    assert line == "✓ samples: expected 10, stored 4, duplicate 0, lost 0, still to come 6"


def test_an_answer_that_its_text_does_not_give_fails_the_audit(
    audited: tuple[RunConfig, RunDirectory],
) -> None:
    samples = asked(10)
    samples[2].answer = "no"
    samples[5].outcome = "refused"
    assert finish_run(audited, samples)[1] == "✗ answers: checked 10, of which 2 read otherwise"


def test_calls_that_do_not_add_up_fail_the_audit(audited: tuple[RunConfig, RunDirectory]) -> None:
    line = finish_run(audited, asked(10), calls=11, answered=10)[2]
    assert line == (
        "✗ calls made 11 = answered 10 + failed 0 + retried 0 + hedged 0 + repeated after a kill at most 0; "
        "does not add up for mock as target"
    )
