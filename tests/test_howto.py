"""The how-tos in docs/, done as they say on a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
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


def bench(
    folder: Path,
    *words: str,
    environment: Mapping[str, str],
    program: Sequence[str] = ("jobs/bench.py",),
    paths: Sequence[Path] = (),
) -> subprocess.CompletedProcess[str]:
    """A bench run in a folder that holds the package, or beside the `paths` that modules are looked for in."""
    without_key = {name: value for name, value in os.environ.items() if name != "ECHO_API_KEY"}
    return subprocess.run(
        [sys.executable, *program, "address=local", "limit=6", *words],
        cwd=folder,
        env=without_key | dict(environment) | {"PYTHONPATH": os.pathsep.join(map(str, paths or [folder]))},
        capture_output=True,
        text=True,
        check=False,
    )


def cells_of(folder: Path) -> dict[tuple[str, str], dict]:
    """The cells, by model and task, of the one run in a folder."""
    (metrics,) = folder.glob("runs/*/metrics.json")
    return {(cell["model"], cell["task"]): cell for cell in json.loads(metrics.read_text())["cells"]}


def retries_of(folder: Path, model: str) -> int:
    """How many calls of a model were tried again in the one run in a folder."""
    (calls,) = folder.glob("runs/*/calls.json")
    (entry,) = (entry for entry in json.loads(calls.read_text())["models"] if entry["model"] == model)
    return entry["retried"]


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


@pytest.fixture(scope="module")
def echo_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def echo_config(url: str) -> str:
    """The how-to's YAML, for an endpoint at this address."""
    (config,) = blocks("add_an_api_model.md", "yaml")
    return re.sub(r"http://[^\"]*", url, config)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, echo_url: str) -> Path:
    """A copy of what a user edits, in which each how-to was followed, and what they add was run in one go."""
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in ("rambla_ray", "conf", "jobs"):
        shutil.copytree(REPO / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    code, key = blocks("add_an_api_model.md", "python")
    (checkout / "rambla_ray/actors/echo.py").write_text(code)
    registry = checkout / "rambla_ray/registry.py"
    registry.write_text(registry.read_text().replace(HEAD, HEAD + key))
    (checkout / "conf/model/echo.yaml").write_text(re.sub(r"name: \S+", "name: echo", echo_config(echo_url)))
    (local, *_), (task,) = blocks("add_a_local_model.md", "yaml"), blocks("add_a_task.md", "yaml")
    checkpoint = tiny_llama.build(checkout / "checkpoint")
    (checkout / "conf/model/my_model.yaml").write_text(re.sub(r"model_name: \S+", f"model_name: {checkpoint}", local))
    (checkout / "conf/task/closed_book.yaml").write_text(task)
    Echo.seen = set()
    words = ("model=echo,my_model", "task=mcqabaseline,closed_book")
    done = bench(checkout, *words, environment={"ECHO_API_KEY": KEY})
    assert done.returncode in (0, 2), done.stderr  # A random model need not say yes or no.
    return checkout


def test_an_api_model_is_a_class_a_key_and_a_yaml(followed):
    cells = cells_of(followed)
    assert [cells["echo", task]["outcomes"]["scored"] for task in ("mcqabaseline", "closed_book")] == [6, 6]
    assert retries_of(followed, "echo") == 2 * 6


def test_a_local_model_is_a_yaml(followed):
    assert cells_of(followed)["my_model", "mcqabaseline"]["n"] == 6


def test_a_task_is_a_yaml(followed):
    assert cells_of(followed)["echo", "closed_book"]["paired"]["n"] == 6


@pytest.fixture
def mine(tmp_path: Path, echo_url: str) -> Path:
    """A folder outside the repository, with the how-to's class and YAML."""
    Echo.seen = set()
    for folder in ("my_models", "conf/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my_models/echo.py").write_text(blocks("add_an_api_model.md", "python")[0])
    (tmp_path / "conf/model/echo.yaml").write_text(echo_config(echo_url))
    return tmp_path


def own_model(mine: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A bench run of the model in that folder."""
    words = ("model=echo", "conf_dir=conf")
    program = ("-m", "rambla_ray", "bench")
    return bench(mine, *words, environment=environment, program=program, paths=[mine, REPO])


def test_an_api_model_outside_the_repository_needs_its_key_which_is_never_shown(mine):
    missing = own_model(mine, {})
    assert missing.returncode == 1
    assert "needs a key in the environment variable ECHO_API_KEY, which is not set" in missing.stderr
    rejected = own_model(mine, {"ECHO_API_KEY": "echo-another-key"})
    assert rejected.returncode == 4
    assert "cannot go on: HTTP 401: no such key: Bearer ***" in rejected.stderr
    assert not [path for path in mine.rglob("*") if path.is_file() and b"echo-another-key" in path.read_bytes()]
    done = own_model(mine, {"ECHO_API_KEY": KEY})
    assert done.returncode == 0, done.stderr
    assert cells_of(mine)["echo", "mcqabaseline"]["outcomes"]["scored"] == 6
    assert retries_of(mine, "echo") == 6
