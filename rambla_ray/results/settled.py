"""Runs that may end before all items are asked: how they are stored, scored, and told to people.

The interval of a fixed number of items holds too rarely where it was looked at again and again until it was narrow. So
in such a run the accuracy of each cell, and each comparison of two models, has an interval and a p that hold at any
time. All else in metrics.json is as for a fixed number of items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from rambla_ray.config.sections import ALL_TASKS
from rambla_ray.config.until import Until
from rambla_ray.display import counted
from rambla_ray.scoring import comparison, sequential
from rambla_ray.scoring.cells import Cell
from rambla_ray.scoring.order import Cells
from rambla_ray.scoring.settling import LEVEL, MOST, Settling, Verdict, accuracy_interval
from rambla_ray.scoring.undefined import Undefined, explained

ANYTIME = "anytime"  # What `interval` says beside an interval that holds at any time.
NOT_ASKED = Undefined("the run ended when it was settled, which a number of items that is fixed beforehand does not")
NO_SAMPLE = Undefined("no sample was scored")

CellsOf = Callable[[str, str], Mapping[str, Cell]]  # By a model and a task, its cells by variant.


def until_spec(rule: Until, seed: int, items: Mapping[tuple[str, str], int], asked: int, of: int) -> dict[str, Any]:
    """What the scoring of a run's samples needs to know of its end.

    Args:
        rule: when it ends.
        seed: of the order of its items.
        items: per (task, variant), how many there are in all.
        asked: the items of the order that the run is about.
        of: how many there are.
    """
    planned: dict[str, dict[str, int]] = {}
    for (task, variant), count in items.items():
        planned.setdefault(task, {})[variant] = count
    return {"rule": rule.model_dump(mode="json"), "seed": seed, "items": asked, "of": of, "planned": planned}


def settling_of(spec: Mapping[str, Any], cells_of: CellsOf) -> Settling:
    """The samples of a run in their order, as its state machine had them at its end.

    Args:
        spec: how the run is scored, with `until`.
        cells_of: its cells.
    """
    until, tasks = spec["until"], spec["tasks"]
    found = {(model, task): cells_of(model, task) for task in tasks for model in spec["models"]}
    items: dict[tuple[str, str], list[str]] = {}
    for task, how in tasks.items():
        for variant in how["variants"]:
            of_models = [found[model, task].get(variant) for model in spec["models"]]
            columns = [cell["root_id"] for cell in of_models if cell is not None]
            items[task, variant] = pa.chunked_array(columns, pa.string()).unique().to_pylist()
    cells = Cells(
        items,
        {task: how.get("epochs", 1) for task, how in tasks.items()},
        {task: how["labels"] for task, how in tasks.items()},
        {(task, variant): n for task, variants in until["planned"].items() for variant, n in variants.items()},
    )
    rule = Until.model_validate(until["rule"])
    settling = Settling(rule, until["seed"], spec["models"], spec.get("baseline"), cells)
    for (model, task), variants in found.items():
        for variant, cell in variants.items():
            settling.add_cell(model, (task, variant), cell)
    return settling


def settle(scores: dict[str, Any], spec: Mapping[str, Any], cells_of: CellsOf) -> None:
    """Give what metrics.json holds the intervals that hold at any time, and `until`, which says how the run ended.

    Args:
        scores: as for a fixed number of items; it is changed.
        spec: how the run is scored, with `until`.
        cells_of: its cells.
    """
    settling = settling_of(spec, cells_of)
    for cell in scores["cells"]:
        if cell["accuracy"]["value"] is not None:
            shares = settling.shares(cell["model"], (cell["task"], cell["variant"]))
            interval = list(accuracy_interval(shares))
            cell["accuracy"] |= {"value": float(shares.mean()), "ci95": interval, "interval": ANYTIME}
    for entry in scores["comparisons"]:
        _compare_anew(entry, settling)
    comparison.adjusted(scores["comparisons"])
    scores["until"] = _ending(settling, spec["until"], is_partial=scores["partial"] is not None)


def _compare_anew(entry: dict[str, Any], settling: Settling) -> None:
    if entry["difference"] is None:
        return
    cell = None if entry["task"] == ALL_TASKS else (entry["task"], entry["variant"])
    differences = settling.differences(entry["a"], entry["b"], cell)
    p = sequential.no_difference_p(differences, MOST)
    interval = list(sequential.difference_interval(differences, LEVEL, MOST))
    entry["difference"] = {"value": float(differences.mean()), "ci95": interval, "interval": ANYTIME}
    entry |= {"mcnemar_p": p, "holm_p": p, "detectable": None}
    entry.setdefault("null_reasons", {})["detectable"] = NOT_ASKED.reason


def _ending(settling: Settling, until: Mapping[str, Any], *, is_partial: bool) -> dict[str, Any]:
    """How a run ended: what its rule says of the items that were asked."""
    is_settled = not is_partial and settling.look() and settling.settled == until["items"]
    ending: dict[str, Any] = {key: until[key] for key in ("rule", "seed", "items", "of")}
    ending |= {"settled": is_settled, "looks": len([end for end in settling.ends if end <= settling.looked])}
    if until["rule"].get("ci_width") is not None:
        ending["wide"] = [
            {"model": model, "task": task, "variant": variant, "width": width}
            for model, (task, variant), width in settling.wide()
        ]
    if settling.rivals:
        ending["verdicts"] = [_verdict(settling, *pair) for pair in settling.rivals]
    return ending


def _verdict(settling: Settling, a: str, b: str) -> dict[str, Any]:
    found = settling.verdict(a, b)
    mean = Undefined("no item was scored of both") if found.mean is None else found.mean
    return explained(
        {
            "a": a,
            "b": b,
            "items": found.items,
            "difference": mean,
            "p": found.p,
            "level": found.level,
            "interval": list(found.interval),
            "verdict": str(found.verdict),
        }
    )


def is_first(spec: Mapping[str, Any], cells_of: CellsOf) -> bool:
    """Whether the samples of a run that has ended are those of the first look that settles it, or of all items."""
    settling = settling_of(spec, cells_of)
    settling.look()
    return spec["until"]["items"] in (settling.settled, spec["until"]["of"])


def ending_lines(scores: Mapping[str, Any], calls: Mapping[str, Any] | None) -> Iterator[str]:
    """How a run that could end early ended, and what that saved, as lines; none of another run."""
    until = scores.get("until")
    if not until or scores["partial"]:
        return
    items = f"{until['items']} of {counted(until['of'], 'item')}"
    if until["settled"]:
        yield f"settled after {items}{_saved(calls)}; the intervals of accuracy and of comparisons hold at any time"
    else:
        yield f"not settled by {until['of']} items, which is all there are: {_rule(until['rule'])}"
    if until["settled"] and (wide := until.get("wide")):
        first = wide[0]
        where = f"{first['model']} {first['task']} {first['variant']}".rstrip()
        yield (
            f"{counted(len(wide), 'cell')} had no more items to ask and stayed wider, such as {where} with "
            f"{100 * first['width']:.1f} points"
        )
    for one in until.get("verdicts", ()):
        if one["verdict"] == Verdict.EQUIVALENT:
            low, high = (100 * bound for bound in one["interval"])
            yield (
                f"{one['a']} and {one['b']} differ by no more than "
                f"{100 * until['rule']['equivalent']:.1f} points ({low:+.1f} to {high:+.1f})"
            )


def ending_notes(specs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """For each run that ended early, what that means where it is compared with others, as a line.

    Args:
        specs: by a run's name, how it is scored.
    """
    for name, spec in specs.items():
        until = spec.get("until")
        if until and until["items"] < until["of"]:
            yield (
                f"{name} ended when it was settled, after {until['items']} of {until['of']} items: what is said here "
                "is as if they had been that many from the start, and its own report has what holds at any time"
            )


def _rule(rule: Mapping[str, Any]) -> str:
    """A rule as it is written."""
    return "until={" + ", ".join(f"{key}: {value:g}" for key, value in rule.items()) + "}"


def _saved(calls: Mapping[str, Any] | None) -> str:
    """What a run took in the place of what it could have taken, from calls.json."""
    until = (calls or {}).get("until")
    if calls is None or not until:
        return ""
    made = sum(model["calls"] for model in calls["models"])
    reused = sum(model["reused"] for model in calls["models"])
    of_ledger = f" and {reused:,} answers from the ledger" if reused else ""
    beyond = f", {counted(until['beyond'], 'sample')} beyond stay in the ledger" if until["beyond"] else ""
    return f": {made:,} calls{of_ledger} instead of {until['calls_at_most']:,}{beyond}"
