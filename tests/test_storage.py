"""Folders on a local disk or in a bucket, and files that are opened to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rambla_ray.errors import UserError
from rambla_ray.storage import Folder, open_input


def test_a_place_that_cannot_be_opened_or_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        Folder("nowhere://bucket")
    with pytest.raises(UserError, match=r"ledger '.*' cannot be written"):
        Folder(str(tmp_path / "file")).make_writable("ledger")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "deep" / "run"))
    folder.make_writable("runs_dir")
    folder.write("x.json", b"old")
    folder.write("draft", b"new")
    folder.publish("draft", "x.json")
    assert folder.read("x.json") == b"new"
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["x.json"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_read_from_a_path_and_from_a_uri(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "items #1.csv").write_bytes(b"id\n1\n")
    with open_input(scheme + str(tmp_path / "items #1.csv").replace(" #", "%20%23" if scheme else " #")) as stream:
        assert stream.read() == b"id\n1\n"


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "items.csv").write_bytes(b"id\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_input("~/items.csv") as stream:
        assert stream.read() == b"id\n"
