"""Why samples ended `failed`, counted from samples/ alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rambla_ray.display import one_line
from rambla_ray.errors import ErrorKind
from rambla_ray.results.samples import unscored
from rambla_ray.schema import Outcome
from rambla_ray.storage import Folder

MOST_REASONS = 3  # So many reasons are named, the commonest first.
REASON_CHARS = 160  # Each is cut to so many characters.
_STEP = ("model", "error_kind", "error")
_COLUMNS = [f"steps.list.element.{name}" for name in _STEP]
_OWN = re.compile(r"\b(?=[\w-]*\d)[\w-]{5,}")  # Long numbers and ids, in which messages of one reason differ.


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
    for table in unscored(folder, _COLUMNS, Outcome.FAILED):
        for row in table.to_pylist():
            last = row["steps"][-1] if row["steps"] else dict.fromkeys(_STEP, "")
            if last["error_kind"] != ErrorKind.BAD_ITEM:
                error = one_line(last["error"], REASON_CHARS) or "it has no answer"
                yield f"{last['model']} {last['error_kind']} ({error})"
