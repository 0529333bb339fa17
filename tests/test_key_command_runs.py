"""Whole runs with keys that die after seconds: they go on, and no token is in anything that they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import AT_ONCE, DEMO_YES_NO, REPO, Driver, calls_of, wait_for_requests
from faults import Fault
from test_secrets import files_in, places_with
from token_server import TokenServer

from rambla_ray.config.key_command import ALLOWED

ECHO = b'{"error": {"message": "wrong {key} for {prompt}", "code": "{key}", "type": null}}'


@pytest.fixture
def session() -> Iterator[Path]:
    """Where Ray writes, in a path that is short enough for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="keys-"))
    yield folder
    shutil.rmtree(folder)


def driver(server: TokenServer, runs_dir: Path, session: Path, *words: str, **environment: str) -> Driver:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    base = {**others, "PYTHONPATH": str(REPO), "RAY_TMPDIR": str(session), ALLOWED: "1"}
    return Driver(server, runs_dir, server.words()[-1], "run_id=keyless", *words, environment={**base, **environment})


@pytest.mark.processes
def test_tokens_die_during_a_run_and_are_nowhere_in_what_it_leaves_behind(tmp_path: Path, session: Path) -> None:
    faults = [Fault("reply", status=500, body=ECHO, every=7), Fault("reply", status=400, body=ECHO, match="diabet")]
    with TokenServer(tmp_path, latency=0.4, faults=faults) as server:
        status, out, err = driver(server, tmp_path / "runs", session, "fail_if.failed_above=1").finish()
        issued = server.issued
    assert status == 0, err
    assert len(issued) >= 3  # one before Ray starts, and the others in the actor, where they die
    assert server.answered >= DEMO_YES_NO / 2
    calls = calls_of(tmp_path / "runs")
    assert calls["retried"] > 0 < calls["failed"]
    config = (tmp_path / "runs/keyless/config.yaml").read_text()
    assert "api_key_command" in config
    for what, marker, places in [
        ("the run directory", "openai_chat", list(files_in(tmp_path / "runs" / "keyless"))),
        ("the ledger", "wrong ***", list(files_in(tmp_path / "runs" / "ledger"))),
        ("Ray's session", "raylet", list(files_in(session))),
        ("what was printed", "openai_chat", [("out", out.encode()), ("err", err.encode())]),
    ]:
        assert places_with(marker, places), f"{what} was not searched"
        assert [places_with(token, places) for token in issued] == [[]] * len(issued), what


@pytest.mark.processes
def test_a_run_stops_when_its_tokens_end_and_goes_on_when_they_come_again(tmp_path: Path, session: Path) -> None:
    with TokenServer(tmp_path, latency=0.4) as server:
        shown = server.command()
        gate = "import os, sys; a = sys.argv; os.path.exists(a[1]) or sys.exit('run az login'); os.execv(a[2], a[2:])"
        (tmp_path / "logged-in").touch()
        words = json.dumps([*shown[:4], gate, str(tmp_path / "logged-in"), *shown])
        run = driver(server, tmp_path / "runs", session, f"model.params.api_key_command={words}")
        wait_for_requests(server, AT_ONCE)
        (tmp_path / "logged-in").unlink()
        status, _, err = run.finish()
        assert status == 4, err
        assert "ended with status 1: run az login; the token before it has expired" in err
        answered = server.answered
        (tmp_path / "logged-in").touch()
        status, _, err = driver(server, tmp_path / "runs", session, f"model.params.api_key_command={words}").finish()
        assert status == 0, err
    assert 0 < answered < server.answered
    assert server.answered == DEMO_YES_NO
