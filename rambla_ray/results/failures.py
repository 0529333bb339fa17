"""The samples that were not scored, from samples/ alone: the lines of errors.jsonl, and why some ended `failed`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.display import one_line
from rambla_ray.errors import ErrorKind
from rambla_ray.results.samples import last_of_stages, open_file, sample_names, votes_of
from rambla_ray.schema import Outcome, Role
from rambla_ray.storage import Folder

ERROR_CHARS = 500  # A sample's id and its error are cut to so many in errors.jsonl.
MOST_REASONS = 3  # So many reasons are named, the commonest first.
REASON_CHARS = 160  # Each is cut to so many characters.
_LINE_STEP = ("stage", "role", "model", "error_kind", "error", "text", "vote")
_LINE_COLUMNS = ["sample_id", "outcome", *(f"steps.list.element.{name}" for name in _LINE_STEP)]
_REASON_STEP = ("role", "model", "error_kind", "error")
_REASON_COLUMNS = [f"steps.list.element.{name}" for name in _REASON_STEP]
_OWN = re.compile(r"\b(?=[\w-]*\d)[\w-]{5,}")  # Long numbers and ids, in which messages of one reason differ.


def error_lines(folder: Folder) -> Iterator[bytes]:
    """A line of JSON for each sample that was not scored: its id, how it ended, and the error of its last step.

    They come by target and task, and of one task in the order in which they ended. A line is ASCII and bounded in
    length, whatever the sample holds.
    """
    for table in _unscored(folder, _LINE_COLUMNS):
        yield from map(_error_line, table.to_pylist())


def _error_line(row: Mapping[str, Any]) -> bytes:
    last = last_of_stages(row["steps"]) or dict.fromkeys(_LINE_STEP, "")
    line = {
        "sample_id": one_line(row["sample_id"], ERROR_CHARS),
        "outcome": row["outcome"],
        "stage": one_line(last["stage"]),
        "role": last["role"],
        "error_kind": last["error_kind"],
        "error": one_line(last["error"], ERROR_CHARS) or f"no answer read from: '{one_line(last['text'])}'",
    }
    if panel := votes_of(row["steps"]):
        line["error"] = one_line(f"no majority: {'; '.join(map(_ballot, panel))}", ERROR_CHARS)
    if row["steps"] and row["steps"][-1]["role"] == Role.READER:
        reader = row["steps"][-1]
        line["reader"] = one_line(reader["error"], ERROR_CHARS) or f"replied: '{one_line(reader['text'])}'"
    return json.dumps(line).encode() + b"\n"


def _ballot(step: Mapping[str, Any]) -> str:
    """What one of several judges said."""
    return f"{step['model']}: {step['vote'] or step['error'] or repr(step['text'])}"


@dataclass(frozen=True, slots=True)
class Failures:
    """The failed samples of a run.

    Args:
        samples: all that have ended, however they did.
        failed: those without an answer, for a reason that is not the item's own.
        reasons: the commonest reasons in words, with counts.
    """

    samples: int
    failed: int
    reasons: str

    @property
    def share(self) -> float:
        """Failed samples as a share of all that have ended; 0 without any."""
        return self.failed / self.samples if self.samples else 0.0

    def __str__(self) -> str:
        return f"{self.failed} of {self.samples} samples failed: {self.reasons}"


def count_failures(folder: Folder, scores: Mapping[str, Any]) -> Failures:
    """Count the failed samples of a run and their reasons.

    An item that cannot be asked fails in every run alike, and is left out.

    Args:
        folder: samples/.
        scores: what metrics.json holds.
    """
    cells = scores["cells"]
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    if any(cell["outcomes"][Outcome.FAILED] for cell in cells):
        for reason in _reasons(folder):
            alike = _OWN.sub("#", reason)
            counts[alike] += 1
            words.setdefault(alike, reason)
    named = [f"{count} × {words[alike]}" for alike, count in counts.most_common(MOST_REASONS)]
    others = counts.total() - sum(count for _, count in counts.most_common(MOST_REASONS))
    return Failures(
        sum(cell["n"] for cell in cells),
        counts.total(),
        "; ".join([*named, *([f"{others} × other reasons"] if others else [])]),
    )


def _reasons(folder: Folder) -> Iterator[str]:
    """The reason of each failed sample, in words."""
    for table in _unscored(folder, _REASON_COLUMNS, Outcome.FAILED):
        for row in table.to_pylist():
            last = last_of_stages(row["steps"]) or dict.fromkeys(_REASON_STEP, "")
            if last["error_kind"] != ErrorKind.BAD_ITEM:
                error = one_line(last["error"], REASON_CHARS) or "it has no answer"
                yield f"{last['model']} {last['error_kind']} ({error})"


def _unscored(folder: Folder, columns: Sequence[str], outcome: Outcome | None = None) -> Iterator[pa.Table]:
    """Some columns of the samples that were not scored, or that ended in one outcome, some rows at a time."""
    for name in sample_names(folder):
        with open_file(folder, name) as file:
            for group in range(file.num_row_groups):
                ended = file.read_row_group(group, ["outcome"])["outcome"]
                wanted = pc.equal(ended, outcome.value) if outcome else pc.not_equal(ended, Outcome.SCORED.value)
                if pc.any(wanted).as_py():
                    yield file.read_row_group(group, columns).filter(wanted)
