"""The how-tos in docs/, done as they say on a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_llama

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.processes
HEAD = "MODEL_MAP: Mapping[str, str] = {\n"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page of docs/, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (REPO / "docs" / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a user edits."""
    for folder in ("rambla_ray", "conf", "jobs"):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def bench(
    folder: Path, *words: str, program: Sequence[str] = ("jobs/bench.py",), paths: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """A bench run in a folder that holds the package, or beside the `paths` that modules are looked for in."""
    return subprocess.run(
        [sys.executable, *program, "address=local", "limit=6", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths or [folder]))},
        capture_output=True,
        text=True,
        check=False,
    )


def cells_of(folder: Path) -> dict[str, dict]:
    """The cells, by task, of the one run in a folder."""
    (metrics,) = folder.glob("runs/*/metrics.json")
    return {cell["task"]: cell for cell in json.loads(metrics.read_text())["cells"]}


def run(checkout: Path, *words: str) -> dict[str, dict]:
    """The cells, by task, of a bench run in the copy."""
    done = bench(checkout, *words)
    assert done.returncode in (0, 2), done.stderr
    return cells_of(checkout)


KEY = "echo-key-of-the-test"


FAULTS: list[tuple[int, dict[str, str], bytes]] = [
    (503, {}, b"<html>busy</html>"),
    (429, {"Retry-After": "0"}, b"slow down"),
    (200, {}, b"not JSON"),
]


class Echo(BaseHTTPRequestHandler):
    """Sends the prompt back to whoever has the key, and fails every first time, each time in another way."""

    seen: set[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reply = json.dumps({"text": "Yes. " + json.loads(body)["prompt"]}).encode()
        status, headers = 200, {}
        if self.headers["Authorization"] != f"Bearer {KEY}":
            status, reply = 401, f"no such key: {self.headers['Authorization']}".encode()
        elif body not in self.seen:
            status, headers, reply = FAULTS[len(self.seen) % len(FAULTS)]
            self.seen.add(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def echo_url() -> Iterator[str]:
    Echo.seen = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def echo_config(url: str) -> str:
    """The how-to's YAML, for an endpoint at this address."""
    (config,) = blocks("add_an_api_model.md", "yaml")
    return re.sub(r"http://[^\"]*", url, config)


def test_an_api_model_is_a_class_a_key_and_a_yaml(checkout, echo_url, monkeypatch):
    monkeypatch.setenv("ECHO_API_KEY", KEY)
    code, key = blocks("add_an_api_model.md", "python")
    (checkout / "rambla_ray/actors/echo.py").write_text(code)
    registry = checkout / "rambla_ray/registry.py"
    registry.write_text(registry.read_text().replace(HEAD, HEAD + key))
    (checkout / "conf/model/echo.yaml").write_text(re.sub(r"name: \S+", "name: echo", echo_config(echo_url)))
    cells = run(checkout, "model=echo")
    assert cells["mcqabaseline"]["outcomes"]["scored"] == 6
    (calls,) = checkout.glob("runs/*/calls.json")
    assert json.loads(calls.read_text())["models"][0]["retried"] == 6


@pytest.fixture
def mine(tmp_path: Path, echo_url: str) -> Path:
    """A folder outside the repository, with the how-to's class and YAML."""
    for folder in ("my_models", "conf/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my_models/echo.py").write_text(blocks("add_an_api_model.md", "python")[0])
    (tmp_path / "conf/model/echo.yaml").write_text(echo_config(echo_url))
    return tmp_path


def own_model(mine: Path) -> subprocess.CompletedProcess[str]:
    """A bench run of the model in that folder."""
    words = ("model=echo", "conf_dir=conf")
    return bench(mine, *words, program=("-m", "rambla_ray", "bench"), paths=[mine, REPO])


def test_an_api_model_can_be_outside_the_repository(mine, monkeypatch):
    monkeypatch.setenv("ECHO_API_KEY", KEY)
    done = own_model(mine)
    assert done.returncode == 0, done.stderr
    assert cells_of(mine)["mcqabaseline"]["outcomes"]["scored"] == 6
    (calls,) = mine.glob("runs/*/calls.json")
    assert json.loads(calls.read_text())["models"][0]["retried"] == 6


def test_the_key_of_an_api_model_is_looked_for_and_never_shown(mine, monkeypatch):
    monkeypatch.delenv("ECHO_API_KEY", raising=False)
    missing = own_model(mine)
    assert missing.returncode == 1
    assert "needs a key in the environment variable ECHO_API_KEY, which is not set" in missing.stderr
    monkeypatch.setenv("ECHO_API_KEY", "echo-another-key")
    rejected = own_model(mine)
    assert rejected.returncode == 4
    assert "cannot go on: HTTP 401: no such key: Bearer ***" in rejected.stderr
    assert not [path for path in mine.rglob("*") if path.is_file() and b"echo-another-key" in path.read_bytes()]


def test_a_local_model_is_a_yaml(checkout, tmp_path):
    config = blocks("add_a_local_model.md", "yaml")[0]
    folder = tiny_llama.build(tmp_path / "checkpoint")
    (checkout / "conf/model/my_model.yaml").write_text(re.sub(r"model_name: \S+", f"model_name: {folder}", config))
    assert run(checkout, "model=my_model")["mcqabaseline"]["n"] == 6


def test_a_task_is_a_yaml(checkout):
    (config,) = blocks("add_a_task.md", "yaml")
    (checkout / "conf/task/closed_book.yaml").write_text(config)
    cells = run(checkout, "model=mock", "task=mcqabaseline,closed_book")
    assert cells["closed_book"]["paired"]["n"] == 6
