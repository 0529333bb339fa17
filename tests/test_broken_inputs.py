"""A broken input of any kind is refused in one harmless line, within seconds, before anybody is asked anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
import yaml
from broken_input import BrokenInput
from broken_inputs import MAKERS, broken_inputs
from broken_keys import FILES, broken_files, broken_values, sections
from fork_server import STARTED_A_PROCESS, Ended, ForkServer
from openai_server import OpenAIServer

from rambla_ray.config.load import load
from rambla_ray.display import LONGEST_ERROR

REPO = Path(__file__).resolve().parent.parent
RECORDED = REPO / "tests/data/recorded/2026-11/mock-2tasks-580dd227"
LEAST = 450
SECONDS = 5.0
SERVERS = 2
SAMPLE = 40  # So many go through the real command, with an interpreter of its own.
SAMPLE_SECONDS = 30.0  # That interpreter starts beside those of other tests.
LONGEST_WORD = 2**17  # Linux takes no longer one.


@dataclass(frozen=True)
class Endpoint:
    """What counts the calls, and the environment in which commands know it."""

    server: OpenAIServer
    environment: dict[str, str]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    kept = ("PATH", "RAMBLA_TEST_DATA", "PYTHONPATH", "VIRTUAL_ENV")
    with OpenAIServer() as server:
        yield Endpoint(
            server,
            {
                **{name: os.environ[name] for name in kept if name in os.environ},
                "PYTHONPATH": os.environ.get("PYTHONPATH", str(REPO)),
                "HOME": str(tmp_path_factory.mktemp("home")),
                "LANG": "C.UTF-8",
                "OPENAI_API_KEY": server.key,
                "TEST_ENDPOINT": server.base_url,
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "HF_HUB_OFFLINE": "1",
                "RES_OPTIONS": "timeout:1 attempts:1",  # A name server that loses a packet is asked again after 5 s.
            },
        )


@pytest.fixture(scope="module")
def servers(endpoint: Endpoint) -> Iterator[SimpleQueue[ForkServer]]:
    free: SimpleQueue[ForkServer] = SimpleQueue()
    with ForkServer(endpoint.environment, SECONDS) as one, ForkServer(endpoint.environment, SECONDS) as other:
        free.put(one)
        free.put(other)
        yield free


def faults_of(ended: Ended) -> list[str]:
    """What is not as it must be when a broken input was refused."""
    text = ended.err.decode("utf-8", "backslashreplace")
    line = text.removesuffix("\n")
    checks = {
        f"it started a process: {text[-300:]}": ended.status == STARTED_A_PROCESS,
        f"its status is {ended.status}, after {ended.seconds:.1f} s": ended.status != 1,
        f"it took {ended.seconds:.1f} s": ended.seconds >= SECONDS,
        "it left processes": ended.left_processes,
        f"its stderr is no one line: {text[-500:]!r}": not (line.isprintable() and text == f"{line}\n"),
        f"its line does not begin with 'error: ': {line[:80]!r}": not line.startswith("error: "),
        f"its line has {len(line)} characters": len(line) > LONGEST_ERROR,
    }
    return [fault for fault, is_there in checks.items() if is_there]


@pytest.mark.processes
@pytest.mark.parametrize("kind", MAKERS)
def test_broken_inputs_of_a_kind_are_refused_in_one_line(
    kind: str,
    endpoint: Endpoint,
    servers: SimpleQueue[ForkServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def verdict(numbered: tuple[int, BrokenInput]) -> str:
        number, broken = numbered
        folder = tmp_path / str(number)
        folder.mkdir()
        words = broken.prepare(folder)
        server = servers.get()
        try:
            ended = server.run(broken.command, words, folder, broken.environment)
        finally:
            servers.put(server)
        return verdict_on(broken, folder, ended)

    with ThreadPoolExecutor(SERVERS) as pool:
        verdicts = list(pool.map(verdict, enumerate(MAKERS[kind]())))
    failed = list(filter(None, verdicts))
    with capsys.disabled():
        print(f"\n{kind:<30} tried {len(verdicts):>4}, met {len(verdicts) - len(failed):>4} ", end="")
    assert not failed, "\n".join(failed)
    assert not endpoint.server.requests


def verdict_on(broken: BrokenInput, folder: Path, ended: Ended) -> str:
    """What is wrong with how a command ended, after its name; empty where nothing is."""
    faults = faults_of(ended) + [f"it left {name}" for name in broken.left_behind(folder)]
    shutil.rmtree(folder)
    return f"{broken.id}: {'; '.join(faults)}" if faults else ""


@pytest.mark.processes
def test_a_sample_of_them_is_refused_by_the_real_command(endpoint: Endpoint, tmp_path: Path) -> None:
    def verdict(numbered: tuple[int, BrokenInput]) -> str:
        number, broken = numbered
        folder = tmp_path / str(number)
        folder.mkdir()
        words = broken.prepare(folder)
        program = [str(REPO / f"jobs/{broken.command}.py")] if number % 2 else ["-m", "rambla_ray", broken.command]
        with (folder / "stderr").open("wb") as err, (folder / "stdout").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=folder,
                env={**endpoint.environment, **broken.environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            status = process.wait(SAMPLE_SECONDS)
        left = any(session_of(one) == process.pid for one in psutil.pids())
        return verdict_on(broken, folder, Ended(status, (folder / "stderr").read_bytes(), 0.0, left))

    typed = list(filter(can_be_typed, broken_inputs()))
    with ThreadPoolExecutor(SERVERS) as pool:
        failed = list(filter(None, pool.map(verdict, enumerate(typed[:: len(typed) // SAMPLE]))))
    assert not failed, "\n".join(failed)
    assert not endpoint.server.requests


def can_be_typed(broken: BrokenInput) -> bool:
    """Whether the words can be those of a process."""
    try:
        return all(len(os.fsencode(word)) < LONGEST_WORD and "\0" not in word for word in broken.words)
    except UnicodeEncodeError:
        return False


def session_of(process: int) -> int:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return 0


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "words"),
    [("bench", ["conf_dir=conf", "dry_run=true"]), ("report", [str(RECORDED)])],
)
def test_what_they_are_broken_from_is_whole(
    command: str, words: list[str], servers: SimpleQueue[ForkServer], tmp_path: Path
) -> None:
    BrokenInput("none", "none").prepare(tmp_path)
    server = servers.get()
    ended = server.run(command, words, tmp_path, {})
    servers.put(server)
    assert (ended.status, ended.err) == (0, b"")


def test_every_file_that_a_key_is_broken_in_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_ENDPOINT", "http://127.0.0.1:9/v1")
    for section in sections():
        whole = BrokenInput("none", "none", files={f"conf/{section.file}": yaml.safe_dump(section.document)})
        assert load(whole.prepare(tmp_path)).targets, section.label


def test_every_key_of_every_file_is_broken() -> None:
    broken = {one.label.rpartition(".")[2] for file in FILES for one in broken_files(file)}
    for section in sections():
        for name, field in section.model.model_fields.items():
            assert (field.alias or name) in broken or not any(broken_values(field)), f"{section.label}.{name}"


def test_there_are_enough_of_them_and_each_has_a_name() -> None:
    ids = [broken.id for broken in broken_inputs()]
    assert len(ids) >= LEAST
    assert len(set(ids)) == len(ids)
