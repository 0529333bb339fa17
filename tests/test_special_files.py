"""What is no regular file is refused before it is opened: a pipe would be waited for, and a device never ends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import config_files
import huggingface_models
import pytest
from config_files import TASK, refusal
from dataset_records import items_of

from rambla_ray.errors import CallError, UserError
from rambla_ray.inputs import open_input, open_regular, read_whole
from rambla_ray.results.directory import RunDirectory
from rambla_ray.storage import Folder

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.
tiny = huggingface_models.tiny
copy = huggingface_models.copy

HANGS_AFTER_S = 300


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends the tests, with a traceback of where they are, when one of them waits for a pipe."""
    import faulthandler

    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def loop(path: Path) -> None:
    path.symlink_to(path)


def own_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        before = os.getcwd()
        os.chdir(path.parent)  # The path of a socket is short.
        listener.bind(path.name)
        os.chdir(before)


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "it is a pipe, not a file"),
    "link to a pipe": (lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")), "it is a pipe"),
    "socket": (own_socket, "it is a socket, not a file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "empty device": (lambda path: path.symlink_to("/dev/null"), "it is a device, not a file"),
    "what the kernel shows": (lambda path: path.symlink_to("/proc/self/environ"), "a view into the running system"),
    "directory": (os.mkdir, "directory"),
    "link to itself": (loop, "Too many levels of symbolic links"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "No such file"),
}
special = pytest.mark.parametrize(("make", "reason"), SPECIAL.values(), ids=SPECIAL)


@special
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_dataset_is_a_file(make: Callable[[Path], Any], reason: str, suffix: str, tmp_path: Path) -> None:
    make(tmp_path / f"items{suffix}")
    for path in (str(tmp_path / f"items{suffix}"), f"file://{tmp_path}/items{suffix}"):
        with pytest.raises(UserError, match=reason) as refused:
            items_of("table", path)  # type: ignore[arg-type]
        message = str(refused.value)
        assert path in message
        assert "task.dataset.path=<file>" in message
        assert "\n" not in message


@special
def test_a_dataset_whose_format_is_looked_for_is_a_file(
    make: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "items.json")
    words = ["task=mcqabaseline,similarity_sick", f"task.dataset.path={tmp_path}/items.json"]
    assert reason in refusal(*words)


@special
@pytest.mark.parametrize("group", ["model", "task", "dataset"])
def test_a_config_is_a_file(make: Callable[[Path], Any], reason: str, group: str, conf: Path) -> None:
    make(conf / group / "special.yaml")
    words = ["task=short", "task.dataset=special"] if group == "dataset" else [f"{group}=special"]
    message = refusal(f"conf_dir={conf}", *words)
    assert f"{conf}/{group}/special.yaml: cannot be read: " in message
    assert reason in message


@special
def test_the_defaults_are_a_file(make: Callable[[Path], Any], reason: str, conf: Path) -> None:
    make(conf / "config.yaml")
    assert reason in refusal(f"conf_dir={conf}")


@special
def test_a_template_file_is_a_file(make: Callable[[Path], Any], reason: str, conf: Path) -> None:
    make(conf / "task" / "ask.txt")
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: ask.txt"))
    message = refusal(f"conf_dir={conf}", "task=filed")
    assert "template_file" in message
    assert reason in message


@pytest.mark.parametrize("name", ["config.yaml", "calls.json", "metrics.json"])
def test_a_pipe_in_a_run_directory_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    run = RunDirectory(Folder(str(tmp_path)))
    with pytest.raises(UserError, match=f"{name} cannot be read: it is a pipe, not a file"):
        run.read_json(name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_checkpoint_with_a_pipe_in_it_is_refused_here_and_where_it_is_loaded(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert f"{copy / name} is a pipe, not a file" in huggingface_models.refused(copy)
    with pytest.raises(CallError, match=f"cannot be loaded: .*{name} is a pipe, not a file"):
        huggingface_models.load(copy)


def test_a_folder_in_the_hubs_layout_holds_files_alone(tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    os.mkfifo(tmp_path / "set" / "data" / "train.csv")
    with pytest.raises(UserError, match=r"train\.csv is a pipe, not a file"):
        items_of("table", tmp_path / "set")


def test_a_dataset_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "items.json").open("wb") as file:
        file.truncate(2**43)  # It takes no room on the disk.
    with pytest.raises(UserError, match=r"it holds 8,192\.0 GiB, and this machine has \d+\.\d GiB of memory"):
        items_of("table", tmp_path / "items.json")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_an_empty_dataset_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"items{suffix}").touch()
    with pytest.raises(UserError, match="items") as refused:
        items_of("table", tmp_path / f"items{suffix}")
    assert "\n" not in str(refused.value)


def test_a_file_that_turns_into_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Between the look at its kind and its opening; one of the two finds it out."""
    path, stop = tmp_path / "items.csv", threading.Event()

    def swap() -> None:
        while not stop.is_set():
            path.unlink(missing_ok=True)
            os.mkfifo(path)
            path.unlink()
            path.write_bytes(b"id\n")

    swapping = threading.Thread(target=swap)
    swapping.start()
    kinds = set()
    try:
        while len(kinds) < 2:
            try:
                with open_regular(path) as file:
                    assert file.read() in (b"", b"id\n")
                kinds.add("file")
            except FileNotFoundError:
                continue
            except OSError as error:
                kinds.add(str(error))
    finally:
        stop.set()
        swapping.join()
    assert kinds == {"file", "it is a pipe, not a file"}


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_whole(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="it is larger than 4 bytes"):
        read_whole(tmp_path / "x", 4)
    with open_input(str(tmp_path / "x")) as stream:
        assert (stream.size(), stream.read()) == (5, b"12345")
