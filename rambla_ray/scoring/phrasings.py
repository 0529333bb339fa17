"""Several phrasings of the same prompt: how often the answers are right on average, and how much that varies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.scoring.cells import Cell, Rows, as_mask
from rambla_ray.scoring.stats import mean
from rambla_ray.scoring.undefined import Undefined

NO_COMMON = Undefined("no sample was scored under all phrasings")


def phrasings(cells: Mapping[str, Cell]) -> dict[str, Any]:
    """What metrics.json holds of a task's phrasings, on the draws of items that were scored under all of them.

    `accuracy` is the mean over phrasings, each counting alike; its interval is the score interval of `stats.mean` over
    items, of each of which the mean over phrasings and draws is taken: it says how sure the number is for these
    phrasings, not for others. `sd` is the standard deviation of the accuracies of m phrasings, over m - 1.
    `same_answer` is how often the answer is the same under all phrasings, right or wrong.

    Args:
        cells: of at least two phrasings, in the plan's order.
    """
    rows = _common(list(cells.values()))
    first = next(iter(cells.values()))
    items = first["root_id"].take(pa.array(rows[0])).dictionary_encode().indices.to_numpy()
    if not len(items):
        undefined = dict.fromkeys(("accuracy", "lowest", "highest", "sd", "same_answer"), NO_COMMON)
        return {"of": len(cells), "n": 0, **undefined}
    right = np.stack([cell.correct[chosen] for cell, chosen in zip(cells.values(), rows, strict=True)])
    answers = [cell["answer"].take(pa.array(chosen)) for cell, chosen in zip(cells.values(), rows, strict=True)]
    same = np.logical_and.reduce([as_mask(pc.equal(answers[0], other)) for other in answers[1:]])
    shares = dict(zip(cells, right.mean(axis=1).tolist(), strict=True))
    lowest, highest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return {
        "of": len(cells),
        "n": len(items),
        "accuracy": _over_items(right.mean(axis=0), items),
        "lowest": {"variant": lowest, "value": shares[lowest]},
        "highest": {"variant": highest, "value": shares[highest]},
        "sd": float(np.std(list(shares.values()), ddof=1)),
        "same_answer": _over_items(same, items),
    }


def _common(cells: list[Cell]) -> list[Rows]:
    """Of each cell, the rows of those draws that were scored in all, in the same order."""
    scored = [np.flatnonzero(cell.scored) for cell in cells]
    draws = [cell.draws.take(rows) for cell, rows in zip(cells, scored, strict=True)]
    places = [draws[0].places_in(others) for others in draws]
    is_common = reduce(pc.and_, (place.is_valid() for place in places))
    return [rows[place.filter(is_common).to_numpy()] for rows, place in zip(scored, places, strict=True)]


def _over_items(values: Any, items: Rows) -> dict[str, Any] | Undefined:
    estimate = mean(values, items)
    return {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else NO_COMMON
