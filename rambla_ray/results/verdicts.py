"""Which of a run's models is better, as people read it: the rows of a table, and a verdict for each two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from rambla_ray.display import counted
from rambla_ray.results.tables import add_row, plain_table

COLUMNS = (
    *("model", "against", "task", "n", "change, points", "95 % interval"),
    *("right alone", "p (Holm)", "n can show"),
)
RANKING_COLUMNS = ("rank", "model", "n", "accuracy", "95 % interval")
SUITE = "all tasks"
SURE = 0.05  # A difference is called one where the adjusted p is below.
COVERAGE_GAP = 0.02  # Models that were scored on shares of the samples that differ by more get a warning.


def rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """A row for each cell of each two models, and one for all their tasks where there are several cells."""
    return [_row(pair, name, one) for pair in _pairs(scores) for name, one in _named(pair) if one["difference"]]


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
        model, baseline, points = pair["model"], pair["baseline"], 100 * one["difference"]["value"]
        low, high = (100 * bound for bound in one["difference"]["ci95"])
        where = "" if name == SUITE else f" in {name}"
        seen = (
            f"{points:+.1f} points ({low:+.1f} to {high:+.1f}), p {one['p_holm']:.2g}, {counted(one['n'], 'sample')}"
        )
        if one["p_holm"] < SURE:
            better, worse = (model, baseline) if points > 0 else (baseline, model)
            yield f"{better} is better than {worse}{where}: {model} has {seen}"
        else:
            shows = f"; so many show {100 * one['detectable']:.1f} points" if one["detectable"] else ""
            yield f"no difference is shown between {baseline} and {model}{where}: {model} has {seen}{shows}"


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
            f"{pair['model']} and {pair['baseline']} were not scored on the same samples of {name}{others}: "
            f"{alone['model']} of {pair['model']} alone, {alone['baseline']} of {pair['baseline']} alone; whatever "
            f"the rest would have been, the change is {low:+.1f} to {high:+.1f} points"
        )


def _pairs(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(scores.get("comparisons", ()))  # Earlier versions had none.


def _named(pair: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The comparisons of two models, each with what it is called; that of all tasks is the last."""
    cells = [(f"{cell['task']} {cell['variant']}".rstrip(), cell) for cell in pair["cells"]]
    return cells if len(cells) == 1 else [*cells, (SUITE, pair["suite"])]


def _row(pair: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> list[str]:
    low, high = one["difference"]["ci95"]
    alone = one["right_alone"]
    return [
        pair["model"],
        pair["baseline"],
        name,
        str(one["n"]),
        f"{100 * one['difference']['value']:+.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{alone['model']} : {alone['baseline']}",
        f"{one['p_holm']:.3g}",
        f"{100 * one['detectable']:.1f}" if one["detectable"] else "—",
    ]


def _gap(one: Mapping[str, Any]) -> float:
    """How much more of the samples were scored of one model than of the other, as a share of all."""
    alone = one["scored_alone"]
    return float(abs(alone["model"] - alone["baseline"]) / (one["n"] + sum(alone.values())))


def _is_unequal(one: Mapping[str, Any]) -> bool:
    """Whether the models were scored on samples that differ so much that it may matter."""
    (low, high), alone = one["bounds"], one["scored_alone"]
    is_open = one["p_holm"] is not None and one["p_holm"] < SURE and low <= 0 <= high
    return (is_open and alone["model"] + alone["baseline"] > 0) or _gap(one) > COVERAGE_GAP
