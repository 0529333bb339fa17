"""What a run creates is its owner's alone, whatever the umask is, unless `files_mode` says otherwise."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_samples import sample, spec, task_spec

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.file_modes import Modes
from rambla_ray.ledger.record import Record
from rambla_ray.ledger.store import Ledger
from rambla_ray.results.directory import RunDirectory
from rambla_ray.schema import Response, to_table
from rambla_ray.storage import Folder

REPO = Path(__file__).resolve().parent.parent
PRIVATE, GROUP, ALL = (0o600, 0o700), (0o640, 0o750), (0o644, 0o755)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


def modes_in(folder: Path) -> dict[str, int]:
    """The mode of everything in a folder, and its own."""
    return {
        str(path.relative_to(folder.parent)): stat.S_IMODE(path.lstat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def wrong_modes(folder: Path, files: int, folders: int) -> dict[str, str]:
    """What has another mode than it should have."""
    modes = modes_in(folder)
    assert len(modes) > 1
    return {
        name: oct(mode)
        for name, mode in modes.items()
        if mode != (folders if (folder.parent / name).is_dir() else files)
    }


def write_a_run(location: str, modes: Modes) -> None:
    """Everything that is written for a run, without one."""
    folder = Folder(f"{location}/deep/runs/one", modes)
    folder.make_writable("runs_dir")
    folder.write("x.json", b"old")
    folder.write("x.json", b"new")
    directory = RunDirectory(folder)
    described = spec({"task": task_spec({"": 1})})
    for _ in range(2):  # The second time the file is there already.
        writer = directory.sample_writer("model", described)
        writer.add(to_table([sample("a", task="task")]))
        writer.close()
    directory.write_errors()
    ledger = Folder(f"{location}/deep/ledger", modes)
    ledger.make_writable("ledger")
    for request_id in ("aa", "bb"):
        stored = Ledger(ledger, "run")
        stored.add([Record(request_id * 32, "run", "m", "target", Response("yes")).to_line()])
        stored.commit()


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("files_mode", "expected"),
    [
        ("private", PRIVATE),
        ("group", GROUP),
        ("0644", ALL),
        ("640", GROUP),
        ("0o600", PRIVATE),
        ("0660", (0o660, 0o770)),
        ("022", ALL),
        ("027", GROUP),
        ("0077", PRIVATE),
    ],
)
def test_files_and_folders_have_the_mode_that_was_asked_for(
    files_mode: str, expected: tuple[int, int], scheme: str, umask: int, tmp_path: Path
) -> None:
    write_a_run(f"{scheme}{tmp_path}", Modes.parse(files_mode))
    assert wrong_modes(tmp_path / "deep", *expected) == {}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], indirect=True)
def test_the_umask_decides_where_it_is_asked_to(umask: int, tmp_path: Path) -> None:
    write_a_run(str(tmp_path), Modes.parse("umask"))
    assert wrong_modes(tmp_path / "deep", 0o666 & ~umask, 0o777 & ~umask) == {}


def test_a_file_is_its_owners_before_there_is_anything_in_it(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    folder.create()
    with folder.open_stream("draft") as stream:
        stream.write(b"secret")
        assert wrong_modes(tmp_path / "run", *PRIVATE) == {}
    with folder.open_new("segment") as segment:
        assert stat.S_IMODE(os.fstat(segment.fileno()).st_mode) == PRIVATE[0]


def test_a_draft_that_somebody_else_put_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "draft").symlink_to(tmp_path / "theirs")
    folder = Folder(str(tmp_path))
    with folder.open_stream("draft") as stream:
        stream.write(b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "draft").is_symlink()
    assert folder.read("draft") == b"ours"


def test_what_is_there_already_keeps_its_mode(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "one" / "samples").mkdir(parents=True)
    (runs / "one" / "notes.txt").write_text("mine")
    (runs / "one" / "x.json").write_text("old")
    for path, mode in (
        (runs, 0o755),
        (runs / "one", 0o775),
        (runs / "one/notes.txt", 0o644),
        (runs / "one/x.json", 0o644),
    ):
        path.chmod(mode)
    Folder(str(runs / "one")).make_writable("runs_dir")
    Folder(str(runs / "one")).write("x.json", b"new")
    modes = modes_in(runs)
    assert modes["runs"] == 0o755
    assert modes["runs/one"] == 0o775
    assert modes["runs/one/notes.txt"] == 0o644
    assert modes["runs/one/x.json"] == 0o600  # It was written anew.


def test_a_folder_that_is_its_groups_hands_its_group_on(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    Folder(str(tmp_path / "shared/runs/one"), Modes.parse("group")).create()
    assert modes_in(tmp_path / "shared")["shared/runs/one"] == 0o2750


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("0755", "files need 6 for their owner, and are never executable"),
        ("0222", "files need 6 for their owner"),
        ("0440", "files need 6 for their owner"),
        ("0o888", "give private, group, umask, or the octal mode of files, such as 0640"),
        ("everybody", "give private, group, umask, or the octal mode"),
        ("1777", "give private, group, umask, or the octal mode"),
        ("-rw-r--r--", "give private, group, umask, or the octal mode"),
        ("{a: 1}", "give private, group, umask, or the octal mode"),
        ("null", "should be a valid string"),
    ],
)
def test_another_mode_is_refused(word: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"files_mode: .*{reason}"):
        load(["model=mock", f"files_mode={word}"])


def test_a_mode_in_a_file_stands_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("files_mode: 0640\n")
    with pytest.raises(UserError, match="files_mode: put the mode in quotes, as in '0640': YAML reads another number"):
        load(["model=mock", f"conf_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text("files_mode: '0640'\n")
    assert load(["model=mock", f"conf_dir={tmp_path}"]).options.modes.files == 0o640


def test_the_mode_is_no_part_of_the_question() -> None:
    assert load(["model=mock", "files_mode=group"]).run_id == load(["model=mock"]).run_id


CREATING = {"open_output_stream", "create_dir", "mkdir", "makedirs", "write_text", "write_bytes", "touch", "O_CREAT"}
# Two of them open /dev/null, and the others create what is their owner's alone: a token, a cache, an engine's files.
CREATE_FILES = {
    *("storage.py", "file_modes.py", "display.py", "run/cluster.py", "run/token.py"),
    *("actors/local/disk_cache.py", "actors/local/vllm_host.py"),
}


def creates_files(node: ast.AST) -> bool:
    """Whether a node names what creates files and folders, or opens one to be written."""
    if isinstance(node, ast.Attribute):
        return node.attr in CREATING
    is_open = isinstance(node, ast.Call) and "open" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
    arguments = [getattr(arg, "value", None) for arg in node.args] if isinstance(node, ast.Call) and is_open else []
    return any(isinstance(arg, str) and re.fullmatch(r"[rwaxbt+]{1,3}", arg) and arg.strip("rbt") for arg in arguments)


def test_nothing_is_created_but_through_a_folder() -> None:
    """Whatever else created files would forget their mode."""
    package = REPO / "rambla_ray"
    trees = {str(path.relative_to(package)): ast.parse(path.read_text()) for path in package.rglob("*.py")}
    assert {name for name, tree in trees.items() if any(map(creates_files, ast.walk(tree)))} <= CREATE_FILES
    assert creates_files(ast.parse("open(place, 'a+b', buffering=0)", mode="eval").body)
    assert not creates_files(ast.parse("open(place, 'rb')", mode="eval").body)


# Runs in one process, on its one cluster, whose umask is the process's; an argument has the words of a run.
RUNS = """
import sys, bench, ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
sys.exit(max(bench.main(["model=mock", "limit=4", *words.split()]) for words in sys.argv[1:]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("umask", "runs"),
    [
        (0o000, [("", PRIVATE), ("", PRIVATE)]),  # The second time everything is there already.
        (0o022, [("", PRIVATE), ("files_mode=umask", ALL)]),
        (0o077, [("files_mode=group", GROUP), ("files_mode=group", GROUP)]),
    ],
)
def test_a_whole_run_is_its_owners(umask: int, runs: list[tuple[str, tuple[int, int]]], tmp_path: Path) -> None:
    folders = [tmp_path / (word.partition("=")[2] or "private") for word, _ in runs]
    lines = [f"runs_dir={folder}/deep/runs {word}" for folder, (word, _) in zip(folders, runs, strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, *lines],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPO), str(REPO / "jobs")))},
        capture_output=True, text=True, umask=umask, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for folder, (_, modes) in zip(folders, runs, strict=True):
        names = modes_in(folder / "deep")
        assert {Path(name).name for name in names} >= {
            "config.yaml",
            "metrics.json",
            "summary.md",
            "errors.jsonl",
            "samples",
        }
        assert any(name.endswith(".ledger") for name in names)
        assert wrong_modes(folder / "deep", *modes) == {}
