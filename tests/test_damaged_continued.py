"""The command that continues a damaged run: what it writes anyway is mended, anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bench as bench_job
import pytest
import report as report_job
from omegaconf import OmegaConf
from test_damaged_runs import ANY_DOCUMENT, ANY_FILE, DOCUMENTS, REMEDIES, SAMPLES, make_folder, run, with_other

__all__ = ["run"]  # a fixture
EVERYTHING = (*DOCUMENTS, *SAMPLES, "summary.md", "report.html")
REWRITTEN = ("env.json", "plan.json", "metrics.json", *SAMPLES)
NOTHING_TO_GO_ON_WITH = [
    *((name, damage) for name in ("config.yaml", "calls.json") for damage in ANY_DOCUMENT.values()),
    with_other("calls.json", "invocations", value=[]),
    with_other("calls.json", "models", 0, "calls", value=None),
    with_other("config.yaml", "question", value=[1]),
]
NOTHING_TO_GO_ON_WITH.remove(("config.yaml", ANY_DOCUMENT["NaN"]))  # In YAML that is a text.


def command_of(run: Path) -> list[str]:
    """The words that continue a recorded run, to be read before it is damaged."""
    document = OmegaConf.load(run / "config.yaml")
    return [*document.command, f"runs_dir={run.parent}"]


@pytest.mark.parametrize(("name", "damage"), NOTHING_TO_GO_ON_WITH)
def test_what_cannot_be_written_anew_is_refused_before_any_call(
    run: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    words = command_of(run)
    damage(run / name)
    assert bench_job.main(words) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert line.startswith(f"error: {run}/{name} ")
    assert line.endswith((*REMEDIES[1:], "; put that right, and run the same command again"))


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_folder_where_a_file_belongs_is_refused_before_any_call(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command_of(run)
    make_folder(run / name)
    assert bench_job.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    is_read_first = name in ("config.yaml", "calls.json")
    refusal = " cannot be read: " if is_read_first else " is a folder, where the run keeps a file: move it away, and"
    assert line.startswith(f"error: {run}/{name}{refusal}")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["torn", "binary"])
def test_what_a_run_writes_anyway_is_mended_without_a_call(
    run: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command_of(run), "chaos.http500=0"]
    earlier = json.loads((run / "calls.json").read_bytes())
    for name in EVERYTHING:
        if name not in ("config.yaml", "calls.json"):
            ANY_FILE[kind](run / name)
    assert bench_job.main(words) == 2  # Those that failed fail again.
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: /")]
    named = [name for name in REWRITTEN if any(note.startswith(f"note: {run}/{name} ") for note in notes)]
    assert (named, len(notes)) == ([*REWRITTEN], len(REWRITTEN))
    assert all(note.endswith("; it is written anew") for note in notes)
    assert report_job.main([str(run), "--audit", "--recompute"]) == 0
    assert capsys.readouterr().err == ""
    calls = json.loads((run / "calls.json").read_bytes())
    assert calls["invocations"][:-1] == earlier["invocations"]
