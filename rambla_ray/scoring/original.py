"""RAmBLA's own numbers of a cell: which samples they hold, what its reader read, what scores are measured against.

They do not depend on the robust reader. Whether a sample counts follows from what the original does with the same
replies: it reads the text that it got; a call that it skips (a prompt too long or refused) leaves "-1", from which it
reads nothing; any other failure ends its run, so that such a sample has no counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.errors import ErrorKind
from rambla_ray.schema import NULL, Outcome
from rambla_ray.scoring.cells import Cell, Mask, as_mask
from rambla_ray.scoring.rambla import continuous_metrics, fewshot_bias, rambla_metrics, relative_change, scale

COMPARES = "compare"  # The kind of stage by which the judge of a similarity task answers.

# Metrics of a model that gives scores.
CONTINUOUS: tuple[str, ...] = ("mse", "mae", "r_squared", "stats_pearsonr", "stats_spearmanr")

_READ = (Outcome.SCORED, Outcome.UNPARSED, Outcome.EMPTY, Outcome.TRUNCATED)
_SKIPPED = (Outcome.REFUSED, Outcome.TOO_LONG)


def counted_samples(cell: Cell, judge: str) -> Mask:
    """Which samples RAmBLA's numbers hold; docs/run_directory.md has the rule as a table.

    The target's skipped calls count, and nothing is read from them, but in a similarity task the original drops them.
    A judge's answer counts whether or not it can be read. Its skipped calls count in conclusion generation; in a
    similarity task they end the original's run.

    Args:
        cell: the samples.
        judge: the kind of stage by which a judge answers; empty where none does.
    """
    kept = _READ if judge == COMPARES else (*_READ, *_SKIPPED)
    read_of_judge = ("",) if judge == COMPARES else ("", ErrorKind.TOO_LONG, ErrorKind.REFUSED)
    judged = _is_in(cell["outcome"], [Outcome.JUDGE_FAILED]) & _is_in(cell["error_kind"].fill_null(""), read_of_judge)
    return _is_in(cell["outcome"], kept) | judged


def _is_in(values: pa.Array, some: Sequence[str]) -> Mask:
    return as_mask(pc.is_in(values, value_set=pa.array([str(value) for value in some], pa.string())))


def classification(cell: Cell, labels: Sequence[str], judge: str) -> dict[str, Any]:
    """Metrics of answers against the dataset's labels, as RAmBLA's reader reads them; empty without a sample.

    Args:
        cell: the samples.
        labels: the possible answers.
        judge: as `counted_samples` takes it.
    """
    is_counted = pa.array(counted_samples(cell, judge))
    targets = cell["label"].filter(is_counted).to_pylist()
    predictions = [answer or NULL for answer in cell["rambla_answer"].filter(is_counted).to_pylist()]
    numbers = rambla_metrics(targets, predictions, [*labels, NULL])
    if not numbers:
        return {}
    if judge == COMPARES:  # The original has it in its similarity tasks alone; it equals the weighted recall.
        numbers["accuracy"] = sum(map(str.__eq__, targets, predictions)) / len(targets)
    return {**numbers, **fewshot_bias(targets, predictions, [*labels, NULL])}


def scores(cell: Cell) -> dict[str, Any]:
    """Metrics of scores; empty with fewer than two, or where what they are measured against is all alike and scaled.

    Where the task names a number to measure scores against, that number counts, mapped to 0 to 1 over all samples of
    the cell, as the original does with SICK's relatedness. Else the label counts, which is 0 or 1, and the area under
    the ROC curve is there, too, as the original has it for MRPC; not where all labels are alike.
    """
    rows, names = cell.scored, CONTINUOUS
    right = _scaled(cell["scores_against"].fill_null("").to_pylist())
    if right is None:
        right = cell["label"].cast(pa.float64()).to_numpy()
        names += ("sklearn_roc_auc_score",) if len(set(right[rows].tolist())) > 1 else ()
    rows = rows & np.isfinite(right)
    values = cell["answer"].filter(pa.array(rows)).cast(pa.float64()).to_numpy()
    return continuous_metrics(values.tolist(), right[rows].tolist(), names) if len(values) > 1 else {}


def _scaled(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Numbers mapped to 0 to 1; NaN for a text that is none, and for all where all are alike. None without any."""
    is_number = np.array([_is_number(text) for text in texts], dtype=bool)
    if not is_number.any():
        return None
    scaled = np.full(len(texts), math.nan)
    scaled[is_number] = scale([text for text in texts if _is_number(text)], 0, 1)
    return scaled


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def changes(series: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """How each of RAmBLA's numbers changes against the first cell's, relative to it (spelling robustness).

    Args:
        series: RAmBLA's numbers of each variant, None standing for NaN. What one of them lacks is left out.
    """
    names = [name for name in (series[0] if series else ()) if all(name in numbers for numbers in series)]
    return relative_change(
        {name: [math.nan if numbers[name] is None else numbers[name] for numbers in series] for name in names}
    )
