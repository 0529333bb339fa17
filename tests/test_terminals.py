"""Terminals and pipes of every kind: what is printed is escaped or dropped, and never ends a command."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rambla_ray.display import as_typed_in_a_shell, unfailing_output

REPO = Path(__file__).resolve().parent.parent
RECORDED = REPO / "tests/data/recorded/2026-11/mock-2tasks-580dd227"
BEYOND_ASCII = "é → — ✓ 答\udce9\n"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", rb"\xe9 \u2192 \u2014 \u2713 \u7b54\udce9"),
        ("iso-8859-1", b"\xe9 " + rb"\u2192 \u2014 \u2713 \u7b54\udce9"),
        ("cp1252", b"\xe9 " + rb"\u2192" + b" \x97 " + rb"\u2713 \u7b54\udce9"),
        ("utf-8", "é → — ✓ 答".encode() + rb"\udce9"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "backslashreplace"])
def test_what_a_terminal_lacks_is_escaped(
    encoding: str, printed: bytes, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink, encoding, errors=errors))
    with unfailing_output():
        print(BEYOND_ASCII, end="")
    assert sink.getvalue() == printed + b"\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["closed", "full"])
def test_what_nobody_can_take_is_dropped(name: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if end == "full":
        file = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, file = os.pipe()
        os.close(reader)
    with open(file, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, name, stream)
        with unfailing_output():
            for _ in range(3):
                print("x" * 100_000, file=getattr(sys, name), flush=True)
            assert getattr(sys, name).fileno() == file
        assert getattr(sys, name) is stream


def test_a_pipe_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, file = os.pipe()
    os.set_blocking(file, False)
    with ThreadPoolExecutor() as pool, open(reader, "rb") as source:
        read = pool.submit(source.read)
        with open(file, "w", encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            with unfailing_output():
                for number in range(20):
                    print(str(number % 10) * 50_000)
        assert read.result() == b"".join(b"%d" % (number % 10) * 50_000 + b"\n" for number in range(20))


def test_output_that_is_no_stream_of_bytes_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    with unfailing_output(), unfailing_output():
        print("✓")
    assert text.getvalue() == "✓\n"


ASCII = {"PYTHONIOENCODING": "ascii"}
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
REPORT = f"jobs/report.py {RECORDED} --audit"
PLAN = "jobs/bench.py model=mock task=all roles.rephraser=mock roles.judge=mock dry_run=true"
REFUSED = "jobs/bench.py model=mock conf_dir=答"
RUN = "jobs/bench.py model=mock limit=3 address=local runs_dir=$RUNS"


@pytest.mark.processes
@pytest.mark.parametrize("command", [REPORT, PLAN, "jobs/serve.py --help", "-m rambla_ray --help", RUN])
@pytest.mark.parametrize("redirection", ["| true", "2>&1 | head -1", ">&-", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_command_does_its_work_whoever_reads_it(command: str, redirection: str, tmp_path: Path) -> None:
    done = shell(f"python {command} {redirection}; exit ${{PIPESTATUS[0]}}", RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "Traceback" in line or "Error" in line] == []
    if command == RUN:
        (metrics,) = tmp_path.glob("runs/*/metrics.json")
        assert (metrics.parent / "report.html").is_file()


@pytest.mark.processes
def test_a_run_has_the_name_that_was_typed_in_every_locale(tmp_path: Path) -> None:
    words = f"model=mock runs_dir={tmp_path}/é ledger={tmp_path}/µ"
    code = (
        "import sys; from rambla_ray.config.load import load; from rambla_ray.storage import Folder;"
        "config = load(sys.argv[1:]); folder = Folder(config.ledger); folder.make_writable('ledger');"
        "name = '\\u7b54'; folder.write(name, b'x'); print(ascii(config.options.runs_dir), folder.names('') == [name])"
    )
    done = shell(f"python -c {shlex.quote(code)} {words}", **PLAIN_C)
    assert (done.stdout, done.stderr) == (f"'{tmp_path}/\\xe9' True\n", "")
    assert [path.name for path in tmp_path.glob("µ/*")] == ["答"]


@pytest.mark.processes
@pytest.mark.parametrize("environment", [ASCII, PLAIN_C], ids=["ascii", "C"])
@pytest.mark.parametrize(
    ("command", "status", "shown"),
    [
        (REPORT, 0, r"\u2713 samples: expected"),
        (PLAN, 0, r"one stream of"),
        (REFUSED, 1, "error: "),
        ("-m rambla_ray 答", 1, "error: no command"),
        ("jobs/report.py 答", 1, r"error: \u7b54"),
        (r"jobs/report.py $'r\xff'", 1, r"\udcff': the bytes of this name are not UTF-8"),
    ],
    ids=["report", "plan", "refused", "no command", "no run", "no text"],
)
def test_a_command_ends_as_it_would_on_any_terminal(
    command: str, status: int, shown: str, environment: dict[str, str]
) -> None:
    done = shell(f"python {command}", **environment)
    assert done.returncode == status
    assert shown in done.stdout + done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "Traceback" not in done.stderr


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[Any]:
    """A command line as a shell runs it, with this interpreter as `python`."""
    line = f'python() {{ "{sys.executable}" "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line],
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.processes
def test_a_command_that_is_copied_into_a_shell_has_the_same_words() -> None:
    words = ["plain", "it's", "a\x1b[2J\nb", "\\n", "'\\\x07", "é\u202e答", "a\udcff1", "$HOME `x` ${y}\t!"]
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {as_typed_in_a_shell(words)}"], capture_output=True, check=True
    ).stdout
    assert [os.fsdecode(word) for word in printed.split(b"\0")[:-1]] == words
