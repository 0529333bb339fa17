"""Few open files: a command works, or is refused in one line before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.processes


def limited(limit: int, job: str, *words: str) -> tuple[int, str]:
    """The status and stderr of a command that may have so many files open."""
    command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, f"jobs/{job}.py", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("limit", "job", "words", "way_out"),
    [
        (64, "bench", (), "128: raise it, with ulimit -n 4096"),
        (
            200,
            "bench",
            ("pool.max_concurrency=1000",),
            "1064: raise it, with ulimit -n 4096, or set pool.max_concurrency to 136 at most",
        ),
        (64, "serve", ("port=0",), "128: raise it, with ulimit -n 4096"),
    ],
)
def test_with_too_few_open_files_nothing_starts(limit, job, words, way_out, tmp_path):
    own = [f"runs_dir={tmp_path}"] if job == "bench" else []
    status, err = limited(limit, job, "model=mock", "address=local", *own, *words)
    assert (status, err) == (
        1,
        f"error: a process may have {limit} files open here (ulimit -n), and a local run needs {way_out}\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_works_with_few_open_files(tmp_path):
    words = ("model=mock", "address=local", "limit=4", f"runs_dir={tmp_path}", "task=mcqabaseline")
    status, err = limited(256, "bench", *words)
    assert status == 0, err
    assert list(tmp_path.glob("*/metrics.json"))
