"""The how-tos in docs/, done as they say on a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
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


def run(checkout: Path, *words: str) -> dict[str, dict]:
    """The cells, by task, of a bench run in the copy."""
    done = subprocess.run(
        [sys.executable, "jobs/bench.py", "address=local", "limit=6", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    (metrics,) = checkout.glob("runs/*/metrics.json")
    return {cell["task"]: cell for cell in json.loads(metrics.read_text())["cells"]}


class Echo(BaseHTTPRequestHandler):
    """Sends the prompt back, and fails every first time."""

    seen: set[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 200 if body in self.seen else 503
        self.seen.add(body)
        reply = json.dumps({"text": "Yes. " + json.loads(body)["prompt"]}).encode()
        self.send_response(status)
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


def test_an_api_model_is_a_class_a_key_and_a_yaml(checkout, echo_url):
    code, key = blocks("add_an_api_model.md", "python")
    (config,) = blocks("add_an_api_model.md", "yaml")
    (checkout / "rambla_ray/actors/echo.py").write_text(code)
    registry = checkout / "rambla_ray/registry.py"
    registry.write_text(registry.read_text().replace(HEAD, HEAD + key))
    (checkout / "conf/model/echo.yaml").write_text(re.sub(r"http://[^\"]*", echo_url, config))
    cells = run(checkout, "model=echo")
    assert cells["mcqabaseline"]["outcomes"]["scored"] == 6
    (calls,) = checkout.glob("runs/*/calls.json")
    assert json.loads(calls.read_text())["models"][0]["retried"] == 6


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
