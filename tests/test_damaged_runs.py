"""A damaged run directory: each file of it, damaged in each way, is named in one line that says what to do."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report as job
from made_samples import TASKS, many, planned, store
from omegaconf import OmegaConf

from rambla_ray.errors import UserError
from rambla_ray.results.directory import to_json
from rambla_ray.results.documents import Damaged
from rambla_ray.results.samples import SPEC_KEY
from rambla_ray.results.score import SCORING

RECORDED = Path(__file__).resolve().parent / "data/recorded/2026-11"
NAME = "mock-2tasks-580dd227"
DOCUMENTS = ("config.yaml", "env.json", "plan.json", "metrics.json", "calls.json", "errors.jsonl")
SAMPLES = ("samples/mock--paraphrase.parquet", "samples/mock--spelling_robustness.parquet")
REPORTS = ([], ["--audit"], ["--recompute"], ["--recompute", "--audit"])
REMEDIES = (
    "; the same bench command writes it anew, and asks nothing that the ledger holds",
    "; it says what the run asks: put it back, or delete it, and the same bench command writes it anew",
    "; it counts the earlier invocations of the run: put it back, or delete it to go on without them",
)
DEEP = 100_000


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a run, with its ledger beside it."""
    shutil.copytree(RECORDED, tmp_path / "runs")
    return tmp_path / "runs" / NAME


def replaced_by(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_loop(path: Path) -> None:
    """What nobody can open, whoever they are."""
    path.unlink()
    path.symlink_to(path)


def make_pipe(path: Path) -> None:
    """What nobody writes to, and keeps waiting whoever opens it."""
    path.unlink()
    os.mkfifo(path)


ANY_FILE: dict[str, Callable[[Path], object]] = {
    "torn": tear,
    "empty": replaced_by(b""),
    "binary": replaced_by(b"\xff\xfe\x00\x01" * 100),
    "a folder": make_folder,
    "unreadable": make_loop,
}
ANY_DOCUMENT = {
    **ANY_FILE,
    "a pipe": make_pipe,
    "a list": replaced_by(b"[1, 2]"),
    "a scalar": replaced_by(b"7"),
    "a text": replaced_by(b'"yes"'),
    "null": replaced_by(b"null"),
    "white space": replaced_by(b"\n \n"),
    "deep lists": replaced_by(b"[" * DEEP),
    "deep mappings": replaced_by(b'{"a":' * DEEP),
    "NaN": replaced_by(b'{"a": NaN}'),
    "a huge number": replaced_by(b'{"a": ' + b"9" * 10_000 + b"}"),
    "NUL": replaced_by(b"\0" * 4096),
}


def with_other(name: str, *keys: str | int, value: object) -> tuple[str, Callable[[Path], object]]:
    """A document in which something has another value; it is left out where that is ..."""

    def change(path: Path) -> None:
        document = (
            OmegaConf.to_container(OmegaConf.load(path)) if path.suffix == ".yaml" else json.loads(path.read_text())
        )
        place = document
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        path.write_text(json.dumps(document))  # which is YAML, too

    return name, change


OTHER_INSIDE = [
    with_other("metrics.json", "cells", value=None),
    with_other("metrics.json", "cells", value={"a": 1}),
    with_other("metrics.json", "cells", 0, value="cell"),
    with_other("metrics.json", "cells", 0, "n", value="4"),
    with_other("metrics.json", "cells", 0, "n", value=...),
    with_other("metrics.json", "cells", 0, "outcomes", value={"scored": 1}),
    with_other("metrics.json", "cells", 0, "accuracy", value=0.5),
    with_other("metrics.json", "cells", 0, "accuracy", "ci95", value=[1.0]),
    with_other("metrics.json", "cells", 0, "model", value=["mock"]),
    with_other("metrics.json", "cells", 1, "readers", "examples", value=[{"text": 1}]),
    with_other("metrics.json", "cells", 1, "paired", value={"n": 4}),
    with_other("metrics.json", "comparisons", value={}),
    with_other("metrics.json", "comparisons", value=[{"a": "mock", "b": "other"}]),
    with_other("metrics.json", "effects", value=...),
    with_other("metrics.json", "effects", 0, "slope", value={"value": None}),
    with_other("metrics.json", "partial", value=True),
    with_other("metrics.json", "roles", value=[]),
    with_other("metrics.json", "synthetic", value=...),
    with_other("metrics.json", "scoring", value="two"),
    with_other("calls.json", "models", value={}),
    with_other("calls.json", "models", 0, "calls", value="41"),
    with_other("calls.json", "models", 0, "role", value=...),
    with_other("calls.json", "models", 0, "waited_s", value=None),
    with_other("calls.json", "invocations", value=[]),
    with_other("calls.json", "invocations", value=...),
    with_other("calls.json", "invocations", 0, "wall_s", value="1"),
    with_other("calls.json", "wall_s", value=[1]),
    with_other("plan.json", "notes", value=3),
    with_other("plan.json", "notes", value=[3]),
    with_other("env.json", "packages", value=[]),
    with_other("env.json", "models", value=...),
    with_other("config.yaml", "question", value=[1]),
    with_other("config.yaml", "question", "tasks", value=7),
    with_other("config.yaml", "question", "tasks", "paraphrase", value="task"),
    with_other("config.yaml", "question", "tasks", "paraphrase", "stages", value=[{"generate": {}, "mutate": {}}]),
    with_other("config.yaml", "question", "tasks", "paraphrase", "stages", value=["generate"]),
    with_other("config.yaml", "question", "tasks", "paraphrase", "answer", value=None),
    with_other("config.yaml", "model_labels", value=[1]),
    ("config.yaml", replaced_by(b"a: !!timestamp no")),
    ("config.yaml", replaced_by(b"a: !!int ''")),
    ("config.yaml", replaced_by(b"? [a]\n: b")),
    ("config.yaml", replaced_by(b"a: &a [*a]\n- b")),
    ("errors.jsonl", lambda path: path.write_bytes(path.read_bytes() + b"{torn")),
    ("errors.jsonl", lambda path: path.write_bytes(path.read_bytes() * 2)),
]


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def with_spec(spec: bytes | None) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({SPEC_KEY: spec} if spec is not None else None)


ANY_SAMPLES = {
    **ANY_FILE,
    "a list": replaced_by(b"[1, 2]"),
    "another schema": lambda path: pq.write_table(pa.table({"a": [1]}), path),
    "without metadata": rewrite(with_spec(None)),
    "a torn spec": rewrite(with_spec(b'{"models": [')),
    "a spec that is a list": rewrite(with_spec(b"[]")),
    "a spec without models": rewrite(with_spec(b'{"synthetic": true, "roles": {}, "tasks": {}}')),
    "a deep spec": rewrite(with_spec(b"[" * DEEP)),
    "without a column": rewrite(lambda table: table.drop_columns(["outcome"])),
}

# What shows only where samples are read.
PAGES = {
    "a column of another type": rewrite(
        lambda table: table.set_column(table.schema.get_field_index("outcome"), "outcome", pa.array(range(len(table))))
    ),
    "empty cells": rewrite(
        lambda table: table.set_column(
            table.schema.get_field_index("outcome"), "outcome", pa.nulls(len(table), pa.string())
        )
    ),
    "texts that are not UTF-8": rewrite(
        lambda table: table.set_column(
            table.schema.get_field_index("answer"),
            "answer",
            pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string()),
        )
    ),
    "steps that are texts": rewrite(
        lambda table: table.set_column(table.schema.get_field_index("steps"), "steps", pa.array(["?"] * len(table)))
    ),
    "steps that are no steps": rewrite(
        lambda table: table.set_column(table.schema.get_field_index("steps"), "steps", pa.array([[1]] * len(table)))
    ),
}


def says_what_is_damaged(words: Sequence[str], location: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report with these flags ends with 1, and a line that names the file and says what to do."""
    assert job.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    is_damaged = line.startswith(f"error: {location} is damaged: ")
    assert is_damaged or line.startswith(f"error: {location} cannot be read: ")
    assert line.endswith(REMEDIES if is_damaged else "; put that right, and run the same command again")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, id=f"{name}-{kind}")
        for names, damages in ((DOCUMENTS, ANY_DOCUMENT), (SAMPLES, ANY_SAMPLES))
        for name, (kind, damage) in itertools.product(names, damages.items())
        if (name, kind) != ("config.yaml", "NaN")  # In YAML that is a text.
    ],
)
def test_every_file_in_every_way(
    run: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    for flags in REPORTS:
        says_what_is_damaged([str(run), *flags], run / name, capsys)


@pytest.mark.parametrize(("name", "damage"), OTHER_INSIDE, ids=itertools.count())
def test_other_keys_and_types_inside(
    run: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    for flags in REPORTS:
        says_what_is_damaged([str(run), *flags], run / name, capsys)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("damage", PAGES.values(), ids=PAGES)
def test_samples_that_cannot_be_read(
    run: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    for flags in ["--audit"], ["--recompute"]:
        says_what_is_damaged([str(run), *flags], run / name, capsys)


@pytest.mark.parametrize(("flags", "status"), [([], 1), (["--audit"], 2), (["--recompute"], 2)])
def test_samples_of_a_task_that_are_missing(
    run: Path, flags: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = json.loads((run / "metrics.json").read_bytes())
    (run / "metrics.json").write_text(json.dumps({**scores, "scoring": SCORING}))
    (run / SAMPLES[1]).unlink()
    assert job.main([str(run), *flags]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {run / SAMPLES[1]} is damaged: it is missing{REMEDIES[0]}"


@pytest.mark.parametrize("flags", REPORTS, ids=" ".join)
def test_samples_that_are_all_missing(run: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "samples")
    assert job.main([str(run), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {run}/samples: there are no samples; is it a run directory that was finished?"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "metrics.json"])
def test_a_document_that_is_missing_is_noted(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    assert job.main([str(run)]) == 0
    assert capsys.readouterr().err == f"note: {run} has no {name}\n"


def test_a_bit_that_flips_in_a_page_is_found(tmp_path: Path) -> None:
    directory = store(tmp_path, planned(60), many(TASKS, 60))
    path = tmp_path / "samples/m--clean.parquet"
    whole, metadata = path.read_bytes(), pq.read_metadata(path)
    scores = to_json(directory.score())
    columns = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
    pages = [column for column in columns if column.path_in_schema in ("answer", "outcome", "target")]
    for page in pages:
        last = page.dictionary_page_offset + page.total_compressed_size - 1  # Before it may stand a page's header.
        path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
        with pytest.raises(UserError, match=r"m--clean.parquet is damaged: "):
            directory.score()
    path.write_bytes(whole)
    assert to_json(directory.score()) == scores


@pytest.mark.parametrize("location", ["runs?1/r/calls.json", "s3://bucket/r/calls.json?region=eu-west-1"])
def test_what_counts_earlier_invocations_is_to_be_put_back_wherever_it_is(location: str) -> None:
    assert "put it back" in str(Damaged(location, "it is empty"))
