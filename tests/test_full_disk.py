"""A disk that is full: the run stops in one line that names the folder, keeps what was stored, and can go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ledger_lines import answered, rid
from made_samples import sample, spec, task_spec
from openai_server import OpenAIServer

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.config.sections import Budget
from rambla_ray.errors import NotStored, NotWritten, UserError
from rambla_ray.ledger.claims import Claim
from rambla_ray.ledger.store import Ledger
from rambla_ray.results.sample_writer import SampleWriter
from rambla_ray.schema import to_table
from rambla_ray.storage import Folder

RUN = "run"
DEMO_YES_NO = 57


@contextlib.contextmanager
def no_file_larger_than(size: int, pid: int = 0) -> Iterator[None]:
    """While inside, the kernel refuses a process every byte of a file beyond a size, as it does on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # It has ended.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path) -> None:
    ledger = Ledger(Folder(str(tmp_path)), RUN)
    ledger.add([answered("a", RUN)])
    kept = size_of(tmp_path)
    with no_file_larger_than(kept + 40), pytest.raises(OSError, match="File too large"):
        ledger.add([answered("b", RUN), answered("c", RUN)])
    assert (size_of(tmp_path), len(ledger)) == (kept, 1)
    ledger.add([answered("d", RUN, "no")])
    again = Ledger(Folder(str(tmp_path)), RUN)
    assert (len(again), again.damaged, again.get(rid("d"))) == (2, 0, ledger.get(rid("d")))


def test_a_folder_that_takes_empty_files_alone_is_refused(tmp_path: Path) -> None:
    with no_file_larger_than(0), pytest.raises(UserError, match=r"ledger '.*' cannot be written: File too large"):
        Folder(str(tmp_path)).make_writable("ledger")
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_cannot_write_grants_nothing_more_and_names_what_it_lost(tmp_path: Path) -> None:
    async def body() -> None:
        service = LedgerService(str(tmp_path), RUN, Budget(), {})
        wanted = [(rid(name), "target") for name in "abc"]
        assert await service.claim("one", "m", wanted) == [Claim.GRANTED] * 3
        assert await service.store("one", [answered("a", RUN)]) is False
        with no_file_larger_than(size_of(tmp_path)):
            with pytest.raises(NotStored):
                await service.store("one", [answered("b", RUN)])
            assert await service.claim("two", "m", [(rid("a"), "target"), (rid("d"), "target")]) == [
                answered("a", RUN),
                Claim.DRAINING,
            ]
            with pytest.raises(NotStored):
                await service.store("one", [answered("c", RUN)])
            await service.release("one", [rid("c")])
        progress = await service.progress()
        assert progress["stopped"] == (
            "ledger",
            f"the ledger '{tmp_path}' cannot be written: File too large; make room there, and run the same command "
            "again; what came of 2 requests to m (target) is lost, and asked again",
        )
        assert [entry["request_id"] for entry in progress["lost"]] == [rid("b"), rid("c")]
        assert (progress["calls"], progress["in_flight"], progress["spent"][0]["repeated"]) == (3, 0, 2)
        later = await LedgerService(str(tmp_path), RUN, Budget(), {}).claim("one", "m", wanted)
        assert later == [answered("a", RUN), Claim.GRANTED, Claim.GRANTED]

    asyncio.run(body())


def test_a_service_that_cannot_even_claim_grants_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        service = LedgerService(str(tmp_path), RUN, Budget(), {})
        with no_file_larger_than(0):
            assert await service.claim("one", "m", [(rid("a"), "target")]) == [Claim.DRAINING]
        progress = await service.progress()
        assert (progress["calls"], progress["in_flight"], progress["lost"]) == (0, 0, [])
        assert progress["stopped"][1].endswith("make room there, and run the same command again")

    asyncio.run(body())


def test_samples_that_do_not_fit_leave_the_earlier_ones_as_they_were(tmp_path: Path) -> None:
    described = spec({"t": task_spec({"": 2})})
    table = to_table([sample("1"), sample("2")])
    folder = Folder(str(tmp_path))

    def write() -> None:
        writer = SampleWriter(folder, "m", described)
        writer.add(table)
        writer.close()

    write()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for size in (0, 100):
        with (
            no_file_larger_than(size),
            pytest.raises(NotWritten, match=f"'{tmp_path}' cannot be written: File too lar"),
        ):
            write()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def words(server: OpenAIServer, runs_dir: Path) -> list[str]:
    return [
        *("model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"),
        *("pool.max_concurrency=4", f"runs_dir={runs_dir}"),
    ]


def process_that_writes(folder: Path) -> int:
    """The one process of this cluster, in which runs before may have left theirs, that has a file there open."""
    (writer,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if any(Path(file.path).is_relative_to(folder) for file in child.open_files())
    )
    return writer.pid


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_whose_ledger_is_full_stops_with_4_and_goes_on_where_there_is_room(bench, tmp_path: Path) -> None:
    room, ledger = contextlib.ExitStack(), tmp_path / "runs/ledger"
    is_full: list[bool] = []

    def answer(prompt: str) -> str:
        if not is_full and len(Ledger(Folder(str(ledger)), "another")) >= 5:  # So many answers are kept.
            is_full.append(True)
            room.enter_context(no_file_larger_than(size_of(ledger), process_that_writes(ledger)))
        return "yes"

    with OpenAIServer(answer=answer) as server, room:
        stopped = bench(words(server, tmp_path / "runs"))
        asked = len(server.requests)
        assert (stopped.status, stopped.err.count("stopped: ")) == (4, 1)
        assert f"the ledger '{tmp_path}/runs/ledger' cannot be written: File too large; make room" in stopped.err
        assert "what came of" in stopped.err
        assert "PARTIAL" in stopped.out
        last = json.loads(stopped.read("calls.json"))["invocations"][-1]
        assert (last["calls"], last["finished"]) == (asked, False)
        kept = asked - len(last["lost"])
        assert 0 < kept < asked < DEMO_YES_NO
        done = bench(words(server, tmp_path / "runs"))  # a service of its own, with no limit
    assert done.status == 0
    assert json.loads(done.read("calls.json"))["invocations"][-1]["calls"] == DEMO_YES_NO - kept


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_whose_results_do_not_fit_stops_with_4_and_asks_nothing_again(bench, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        with no_file_larger_than(4096):
            stopped = bench(words(server, tmp_path / "runs"))
        assert stopped.status == 4
        assert f"{tmp_path}/runs/" in stopped.err
        assert "/samples' cannot be written: File too large; make room there" in stopped.err
        assert "57 calls were made; what was answered is kept. Continue with: python" in stopped.err
        done = bench(words(server, tmp_path / "runs"))
        assert (done.status, len(server.requests)) == (0, DEMO_YES_NO)
    assert "no calls, every answer came from the ledger" in done.out
