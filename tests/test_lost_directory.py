"""A run directory that cannot be written or read any more, at any moment of a run: one line, and nothing is lost."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample
from openai_server import OpenAIServer
from rich.console import Console
from test_full_disk import DEMO_YES_NO, no_file_larger_than, words

import rambla_ray.results.score  # noqa: F401 - before there is no room for what it loads
from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import NotWritten, UserError
from rambla_ray.results import report
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.schema import to_table

Step = tuple[str, Callable[[], object]]


@contextlib.contextmanager
def no_more_open_files(run: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def removed(run: Path) -> Iterator[None]:
    shutil.rmtree(run)
    yield


@contextlib.contextmanager
def replaced_by_a_file(run: Path) -> Iterator[None]:
    shutil.rmtree(run)
    run.write_bytes(b"")
    yield


@contextlib.contextmanager
def samples_removed(run: Path) -> Iterator[None]:
    shutil.rmtree(run / "samples", ignore_errors=True)
    yield


@contextlib.contextmanager
def samples_replaced_by_a_file(run: Path) -> Iterator[None]:
    shutil.rmtree(run / "samples", ignore_errors=True)
    (run / "samples").write_bytes(b"")
    yield


FAULTS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "no room at all": lambda run: no_file_larger_than(0),
    "little room": lambda run: no_file_larger_than(1000),
    "no more open files": no_more_open_files,
    "removed": removed,
    "replaced by a file": replaced_by_a_file,
    "samples removed": samples_removed,
    "samples replaced by a file": samples_replaced_by_a_file,
}


def steps_of(config: RunConfig, directory: RunDirectory) -> Iterator[Step]:
    """All that a run does with its directory, in turn."""
    expected = {("mcqabaseline", ""): 10}
    rows = [
        sample(str(row), model="mock", task="mcqabaseline", outcome="failed" if row % 2 else "scored")
        for row in range(10)
    ]
    yield "begin", lambda: directory.begin(config, {"notes": ["long " * 400]}, [])
    writers: list[Any] = []
    yield "open", lambda: writers.append(directory.sample_writer("mock", scoring_spec(config, expected)))
    writer = writers[0]
    yield "add", lambda: writer.add(to_table(rows))
    yield "close", writer.close
    ended = invocation(0.0, 10, {}, finished=True)
    yield "calls", lambda: directory.write_calls(config, [], writer.answered, ended)
    yield "env", lambda: directory.write_env({})
    yield "errors", directory.write_errors
    yield "metrics", directory.write_metrics
    yield "summary", lambda: report.write_summary(directory)
    yield "table", lambda: report.print_run(directory, Console(file=io.StringIO()))


STEPS = ("begin", "open", "add", "close", "calls", "env", "errors", "metrics", "summary", "table")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("at", STEPS)
def test_what_fails_is_said_in_a_line_that_names_the_directory(
    tmp_path: Path, at: str, fault: Callable[[Path], AbstractContextManager[None]]
) -> None:
    config = load(["model=mock", "task=mcqabaseline", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(config)
    for name, step in steps_of(config, directory):
        if name == at:
            with fault(Path(directory.folder.root)):
                try:
                    step()
                except (NotWritten, UserError) as error:
                    line = str(error)
                else:
                    return  # It needed nothing of what is missing.
            assert directory.folder.location in line
            assert "\n" not in line
            assert line.endswith(("and run the same command again", "is it a run directory that was finished?"))
            return
        step()


def test_the_faults_are_faults(tmp_path: Path) -> None:
    config = load(["model=mock", "task=mcqabaseline", f"runs_dir={tmp_path}"])
    for fault in ("no room at all", "removed", "no more open files"):
        directory = RunDirectory.create(config)
        with FAULTS[fault](Path(directory.folder.root)), pytest.raises(NotWritten, match="cannot be written"):
            directory.begin(config, {}, [])


@pytest.mark.parametrize("key", ["runs_dir", "ledger"])
@pytest.mark.parametrize("place", ["{file}", "{file}/deeper", "{loop}"])
def test_a_place_that_is_no_folder_is_refused_before_any_call(bench, tmp_path: Path, key: str, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = place.format(file=tmp_path / "file", loop=tmp_path / "loop")
    refused = bench(["model=mock", "task=mcqabaseline", "model.params.latency_s=0.01", f"{key}={place}"])
    (line,) = refused.err.splitlines()
    assert refused.status == 1
    assert line.startswith(f"error: {key} '{place}")
    assert " cannot be written: " in line


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "fault", [removed, replaced_by_a_file, samples_replaced_by_a_file], ids=lambda fault: fault.__name__
)
def test_a_run_that_loses_its_directory_stops_with_4_and_has_every_answer(
    bench, tmp_path: Path, fault: Callable[[Path], AbstractContextManager[None]]
) -> None:
    runs, lost = tmp_path / "runs", []

    def answer(prompt: str) -> str:
        if len(server.requests) == 10:
            (config,) = runs.glob("*/config.yaml")
            lost.append(config.parent)
            with fault(config.parent):
                pass
        return "yes"

    with OpenAIServer(answer=answer) as server:
        stopped = bench(words(server, runs))
        (run,) = lost
        assert stopped.status == 4
        first, second = stopped.err.splitlines()[-2:]
        assert first.startswith("stopped: ")
        assert str(run) in first
        assert second.startswith(f"{DEMO_YES_NO} calls were made; what was answered is kept. Continue with: python")
        if run.is_file():
            run.unlink()
        elif (run / "samples").is_file():
            refused = bench(words(server, runs))
            assert refused.status == 1
            line = f"error: {run}/samples is a file, where the run keeps a folder: move it away, and run the same comm"
            assert refused.err.startswith(line)
            (run / "samples").unlink()
        done = bench(words(server, runs))
        assert (done.status, len(server.requests)) == (0, DEMO_YES_NO)
    assert json.loads(done.read("metrics.json"))["partial"] is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_disk_that_is_full_before_the_first_call_ends_with_1(bench, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        with no_file_larger_than(4096):
            tasks = "mcqabaseline,fewshot_examples_with_context,irrelevant_context,spelling_robustness"
            refused = bench([*words(server, tmp_path / "runs"), f"task={tasks}"])  # Its config.yaml is larger.
        assert (refused.status, len(server.requests)) == (1, 0)
    (line,) = refused.err.splitlines()
    assert line.startswith(f"error: '{tmp_path}/runs/")
    assert line.endswith("' cannot be written: File too large; make room there, and run the same command again")
