"""Folders on a local disk or in a bucket, and files that are opened to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.inputs import open_input, parse_json
from rambla_ray.results.directory import RunDirectory
from rambla_ray.storage import Folder, joined, name_of, removed_if_empty


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


@pytest.mark.parametrize(
    ("location", "inside", "path"),
    [
        ("runs", "runs/x", None),
        ("runs/", "runs/x", None),
        ("/", "/x", "/x"),
        ("/data/runs?2 #3", "/data/runs?2 #3/x", "/data/runs?2 #3/x"),
        ("gs://bucket/runs", "gs://bucket/runs/x", "bucket/runs/x"),
        ("s3://bucket/runs?region=eu-west-1", "s3://bucket/runs/x?region=eu-west-1", "bucket/runs/x"),
        ("s3://bucket/runs/?region=eu-west-1", "s3://bucket/runs/x?region=eu-west-1", "bucket/runs/x"),
        ("s3://bucket?region=eu-west-1", "s3://bucket/x?region=eu-west-1", "bucket/x"),
        (
            "s3://bucket/a%20b?endpoint_override=localhost:9000&scheme=http&region=x",
            "s3://bucket/a%20b/x?endpoint_override=localhost:9000&scheme=http&region=x",
            "bucket/a b/x",
        ),
        ("file:///data/a%20%23b/", "file:///data/a%20%23b/x", "/data/a #b/x"),
    ],
)
def test_what_lies_in_a_folder_has_its_query_behind_its_own_name(location: str, inside: str, path: str | None) -> None:
    assert joined(location, "x") == inside
    assert name_of(inside) == "x"
    folder = Folder(inside)
    assert folder.name == "x"
    assert folder.child("samples") == joined(inside, "samples")
    assert path in (None, folder.root)


def test_a_run_in_a_bucket_has_its_folders_there() -> None:
    config = load(["model=mock", "task=mcqabaseline", "runs_dir=s3://bucket/runs?region=eu-west-1", "run_id=one"])
    assert config.ledger == "s3://bucket/runs/ledger?region=eu-west-1"
    assert Folder(config.ledger).root == "bucket/runs/ledger"
    assert config.directory == "s3://bucket/runs/one?region=eu-west-1"
    run = RunDirectory(Folder(config.directory))
    assert run.samples.location == "s3://bucket/runs/one/samples?region=eu-west-1"
    assert run.samples.root == "bucket/runs/one/samples"


def test_a_run_is_found_again_where_a_uri_names_it(tmp_path: Path) -> None:
    config = load(["model=mock", "task=mcqabaseline", f"runs_dir=file://{tmp_path}/my%20runs/", "run_id=one"])
    run = RunDirectory.create(config)
    run.begin(config, {}, [])
    assert (tmp_path / "my runs" / "one" / "config.yaml").is_file()
    assert RunDirectory.create(config).read_config()


@pytest.mark.parametrize(
    ("place", "reason"),
    [("~nouser/runs", "there is no home folder ~nouser"), ("a\0b", r"'a\\x00b': a path has no NUL")],
)
def test_a_path_that_is_none_is_one_line(place: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Folder(place)


def test_where_the_working_folder_is_gone_a_relative_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for open_place in (Folder, open_input):
        with pytest.raises(UserError, match=r"x\.csv is relative, and the folder that this was started in is gone"):
            open_place("x.csv")
    Folder(str(tmp_path / "x")).make_writable("ledger")


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("ending", [UserError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("place", "stay"), [("new/b", ["there"]), ("full/d", ["full", "full/of", "there"]), ("there", ["there"])]
)
def test_what_was_made_for_a_run_that_is_not_begun_goes_if_it_is_empty(
    place: str, stay: list[str], ending: type[BaseException], scheme: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    folder = Folder(f"{scheme}{tmp_path / place}")

    def begin() -> None:
        folder.make_writable("runs_dir")
        if place.startswith("full"):
            (tmp_path / "full/of").mkdir()
        raise ending("no")

    with pytest.raises(ending), removed_if_empty(folder):
        begin()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == stay


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"[" * 100_000])
def test_json_that_is_nested_too_deeply_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)
    assert parse_json('{"a": [1]}') == {"a": [1]}
