"""Which of a run's models is better, as people read it: the rows of a table, and a verdict for each two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from rambla_ray.config.sections import ALL_TASKS
from rambla_ray.display import counted
from rambla_ray.results import shapes
from rambla_ray.results.documents import WRITE_ANEW
from rambla_ray.results.tables import add_row, plain_table

COLUMNS = (
    *("model", "against", "task", "n", "difference, points", "95 % interval"),
    *("right alone", "p (Holm)", "n can show"),
)
RANKING_COLUMNS = ("rank", "model", "n", "accuracy", "95 % interval")
SUITE = "all tasks"
SURE = 0.05  # A difference is called one where the adjusted p is below.
COVERAGE_GAP = 0.02  # Models that were scored on shares of the samples that differ by more get a warning.


def leave_out_earlier(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons of a run, from which those in the form of an earlier version are taken out; see `notes`."""
    found = scores.get("comparisons", [])
    scores["comparisons"] = shapes.of_this_form(found)
    scores["has_earlier_comparisons"] = len(scores["comparisons"]) < len(found)
    return list(scores["comparisons"])


def notes(scores: Mapping[str, Any]) -> Iterator[str]:
    """A line where comparisons are not shown, because an earlier version wrote them in another form."""
    if scores["has_earlier_comparisons"]:
        yield f"how its models compare stands there as an earlier version wrote it, and is not shown; {WRITE_ANEW}"


def rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """A row for each cell of each two models, and one for all their tasks where there are several cells."""
    return [_row(name, one) for pair in _pairs(scores) for name, one in _named(pair) if one["difference"]]


def ranking_table(ranking: Sequence[Mapping[str, Any]]) -> Table:
    """Models by their accuracy on the samples that all of them have, the best first."""
    table = plain_table(RANKING_COLUMNS, title=f"Ranking on the {ranking[0]['of']} samples that all of them have")
    for place, row in enumerate(ranking, start=1):
        shown = ("—", "—", "—")
        if accuracy := row["accuracy"]:
            low, high = accuracy["ci95"]
            shown = (str(place), f"{100 * accuracy['value']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}")
        add_row(table, [shown[0], row["model"], str(row["n"]), *shown[1:]])
    return table


def comparisons_table(scores: Mapping[str, Any]) -> Table | None:
    """Each two models on the samples that were scored of both; None where there are no two."""
    found = rows(scores)
    table = plain_table(COLUMNS, title="Models on the same samples")
    for row in found:
        add_row(table, row)
    return table if found else None


def lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """A verdict for each two models: over all tasks, or of their one cell."""
    for pair in _pairs(scores):
        name, one = _named(pair)[-1]
        if not one["difference"]:
            continue
        a, b, points = one["a"], one["b"], 100 * one["difference"]["value"]
        low, high = (100 * bound for bound in one["difference"]["ci95"])
        where = "" if name == SUITE else f" in {name}"
        seen = (
            f"{points:+.1f} points ({low:+.1f} to {high:+.1f}), p {one['holm_p']:.2g}, {counted(one['n'], 'sample')}"
        )
        if one["holm_p"] < SURE:
            better, worse = (a, b) if points > 0 else (b, a)
            yield f"{better} is better than {worse}{where}: {a} has {seen}"
        else:
            shows = f"; so many show {100 * one['detectable']:.1f} points" if one["detectable"] else ""
            yield f"no difference is shown between {a} and {b}{where}: {a} has {seen}{shows}"


def warnings(scores: Mapping[str, Any]) -> Iterator[str]:
    """For each two models of which not the same samples were scored, how many, and what that leaves open."""
    for pair in _pairs(scores):
        found = [(name, one) for name, one in _named(pair) if one["bounds"] and _is_unequal(one)]
        if not found:
            continue
        name, one = max(found, key=lambda each: _gap(each[1]))
        alone, (low, high) = one["scored_alone"], (100 * bound for bound in one["bounds"])
        others = f", and {counted(len(found) - 1, 'row')} more" if len(found) > 1 else ""
        yield (
            f"{one['a']} and {one['b']} were not scored on the same samples of {name}{others}: {alone['a']} of "
            f"{one['a']} alone, {alone['b']} of {one['b']} alone; whatever the rest would have been, the difference "
            f"is {low:+.1f} to {high:+.1f} points"
        )


def _pairs(scores: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The comparisons of each two models; the first versions had none."""
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in scores.get("comparisons", ()):
        pairs.setdefault((one["a"], one["b"]), []).append(one)
    return list(pairs.values())


def _named(pair: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The comparisons of two models, each with what it is called; that of all tasks is the last, of several cells."""
    cells = [(f"{one['task']} {one['variant']}".rstrip(), one) for one in pair if one["task"] != ALL_TASKS]
    return cells if len(cells) == 1 else [*cells, *((SUITE, one) for one in pair if one["task"] == ALL_TASKS)]


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    low, high = one["difference"]["ci95"]
    return [
        one["a"],
        one["b"],
        name,
        str(one["n"]),
        f"{100 * one['difference']['value']:+.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{one['a_only']} : {one['b_only']}",
        f"{one['holm_p']:.3g}",
        f"{100 * one['detectable']:.1f}" if one["detectable"] else "—",
    ]


def _gap(one: Mapping[str, Any]) -> float:
    """How much more of the samples were scored of one model than of the other, as a share of all."""
    alone = one["scored_alone"]
    return float(abs(alone["a"] - alone["b"]) / (one["n"] + sum(alone.values())))


def _is_unequal(one: Mapping[str, Any]) -> bool:
    """Whether the models were scored on samples that differ so much that it may matter."""
    (low, high), alone = one["bounds"], one["scored_alone"]
    is_open = one["holm_p"] is not None and one["holm_p"] < SURE and low <= 0 <= high
    return (is_open and alone["a"] + alone["b"] > 0) or _gap(one) > COVERAGE_GAP
