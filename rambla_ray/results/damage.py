"""What is damaged in a run directory, file by file; nobody reads summary.md and report.html but people."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pyarrow import fs

from rambla_ray.errors import UserError
from rambla_ray.inputs import parse_json
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.documents import SHAPES, Damaged, Unreadable
from rambla_ray.results.lease import LEASE
from rambla_ray.results.samples import LATER, file_name, open_file, read_spec, sample_names, spec_of
from rambla_ray.schema import SAMPLE_SCHEMA, Outcome
from rambla_ray.storage import Folder

ERRORS = "errors.jsonl"
WRITTEN = (*SHAPES, ERRORS, "summary.md", "report.html")
REWRITTEN = ("plan.json", "env.json", "metrics.json")  # by each invocation, whatever they hold


def refuse_what_cannot_be_replaced(directory: RunDirectory) -> None:
    """Raise a UserError where a run that is continued would find after its calls that it cannot write a file."""
    folder, samples = directory.folder, directory.samples
    for info in _entries(folder):
        if info.base_name in WRITTEN and info.type == fs.FileType.Directory:
            raise _out_of_place(folder, info.base_name, "a folder, where the run keeps a file")
        if info.base_name == "samples" and info.is_file:
            raise _out_of_place(folder, info.base_name, "a file, where the run keeps a folder")
    for info in _entries(samples):
        if info.base_name.endswith(".parquet") and info.type == fs.FileType.Directory:
            raise _out_of_place(samples, info.base_name, "a folder, where the run keeps a file")


def _out_of_place(folder: Folder, name: str, what: str) -> UserError:
    return UserError(f"{folder.child(name)} is {what}: move it away, and run the same command again")


def _entries(folder: Folder) -> list[fs.FileInfo]:
    try:
        found: list[fs.FileInfo] = folder.filesystem.get_file_info(fs.FileSelector(folder.root, allow_not_found=True))
        return found
    except OSError as error:
        raise Unreadable(folder.location, error) from None


def rewritten(directory: RunDirectory) -> Iterator[str]:
    """What is damaged, and written anew by the invocation that begins: one line for each file."""
    for name in REWRITTEN:
        try:
            directory.read_json(name)
        except Damaged as fault:
            yield fault.what
    for name in sample_names(directory.samples):
        try:
            _check_samples(directory.samples, name)
        except Damaged as fault:
            yield fault.what


def missing(directory: RunDirectory) -> list[str]:
    """What a run that has ended should have beside samples/ and metrics.json, and its directory has not: by name."""
    folder, scores = directory.folder, directory.read_metrics()
    names = [name for name in (*SHAPES, ERRORS) if name != "calls.json" or not scores["partial"]]
    return [name for name in names if not _is_there(folder, name)]


def _is_there(folder: Folder, name: str) -> bool:
    """Whether there is something of a name, which need not be a file that can be read: it is not opened."""
    if folder.is_local:
        return os.path.lexists(folder.local_path(name))  # pyarrow finds nothing where a link leads nowhere.
    try:
        return bool(folder.filesystem.get_file_info(folder.path(name)).type != fs.FileType.NotFound)
    except OSError:
        return True


def faults(directory: RunDirectory) -> Iterator[str]:
    """What is damaged in the directory of a run that has ended: one line for each file, and for samples that lack.

    Pages of samples are not read; what reads them finds out whether they are damaged.
    """
    scores = directory.read_metrics()
    for name in SHAPES:
        try:
            document = directory.read_document(name)
            if name == "config.yaml" and document is not None and "question" not in document:
                raise Damaged(directory.folder.child(name), "it does not say what the run asks")
        except UserError as fault:
            yield str(fault)
    unscored = sum(cell["n"] - cell["outcomes"][Outcome.SCORED] for cell in scores["cells"])
    try:  # While a run goes on, one file may be newer than another.
        _check_errors(directory.folder, None if directory.folder.has(LEASE) else unscored)
    except UserError as fault:
        yield str(fault)
    yield from _sample_faults(directory.samples, is_partial=bool(scores["partial"]))


def _sample_faults(folder: Folder, *, is_partial: bool) -> Iterator[str]:
    names = sample_names(folder)
    damaged = []
    for name in names:
        try:
            _check_samples(folder, name)
        except UserError as fault:
            damaged.append(str(fault))
    yield from damaged
    if not damaged and not is_partial:
        spec = read_spec(folder)
        planned = {file_name(model, task) for model in spec["models"] for task in spec["tasks"]}
        for name in sorted(planned.difference(names)):
            yield str(Damaged(folder.child(name), "it is missing"))


def _check_samples(folder: Folder, name: str) -> None:
    """Raise a UserError where a file of samples is none, as far as its metadata say."""
    with open_file(folder, name) as file:
        if lacking := sorted(set(SAMPLE_SCHEMA.names) - LATER - set(file.schema_arrow.names)):
            raise ValueError(f"it has no column {lacking[0]} of samples")
        spec_of(file.schema_arrow, folder, name)


def _check_errors(folder: Folder, unscored: int | None) -> None:
    """Raise a UserError where errors.jsonl has not a line of JSON for each sample that was not scored.

    Args:
        folder: the run directory.
        unscored: how many samples were not; None where that is not known.
    """
    location = folder.child(ERRORS)
    try:
        lines = folder.read(ERRORS).splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unreadable(location, error) from None
    for number, line in enumerate(lines, 1):
        try:
            parse_json(line, allow_nan=False)
        except ValueError:
            raise Damaged(location, f"line {number} is no JSON") from None
    if unscored is not None and len(lines) != unscored:
        raise Damaged(location, f"it has {len(lines)} lines, and {unscored} samples were not scored")
