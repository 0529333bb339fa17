"""The state machine of runs that may end early: the first prefix that settles, whatever order the answers come in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_samples import sample

from rambla_ray.config.until import Until
from rambla_ray.schema import Sample, to_table
from rambla_ray.scoring.order import BLOCK, GROWTH, Cells, ends, in_order
from rambla_ray.scoring.settling import Settling, Verdict, accuracy_interval, duel

LABELS = {"t": ("yes", "no"), "u": ("yes", "no")}


def answers(models: dict[str, float], items: int, *, task: str = "t", epochs: int = 1, seed: int = 1) -> list[Sample]:
    """Samples of models that are right so often, a tenth of which are not scored."""
    made = []
    for model, share in models.items():
        draw = random.Random(f"{seed} {model}")
        for item in range(items):
            for epoch in range(epochs):
                outcome = "failed" if draw.random() < 0.1 else "scored"
                right = draw.random() < share
                made.append(
                    sample(f"i{item}", "yes" if right else "no", model=model, task=task, outcome=outcome, epoch=epoch)
                )
    return made


def machine(rule: Until, models: Sequence[str], items: int, *, epochs: int = 1, **others: Any) -> Settling:
    cells = Cells({("t", ""): [f"i{item}" for item in range(items)]}, {"t": epochs}, LABELS)
    return Settling(rule, others.get("seed", 7), list(models), others.get("baseline"), cells)


def settled_after(rule: Until, made: Sequence[Sample], models: Sequence[str], items: int, **others: Any) -> int | None:
    settling = machine(rule, models, items, **others)
    settling.add(to_table(made))
    settling.look()
    return settling.settled


def test_the_order_depends_on_the_seed_and_on_no_other_item() -> None:
    names = [f"i{number}" for number in range(500)]
    order = in_order(names, 1)
    assert sorted(order) == sorted(names)
    assert order != in_order(names, 2)
    assert in_order(reversed(names), 1) == order
    assert in_order(names[::3], 1) == [name for name in order if name in names[::3]]


@pytest.mark.parametrize("items", [1, BLOCK - 1, BLOCK, 100, 890, 20_000])
def test_blocks_are_whole_and_the_last_look_is_at_all(items: int) -> None:
    found = ends(items)
    sizes = np.diff([0, *found])
    assert found[-1] == items
    assert all(size >= BLOCK for size in sizes[:-1])
    assert all(size <= max(BLOCK, end // GROWTH) for size, end in zip(sizes, [0, *found], strict=False))
    assert set(found[:-1]) <= set(ends(2 * items)), "a longer run is looked at in the same places"


RULES = [
    Until(ci_width=0.2),
    Until(decided=0.05),
    Until(decided=0.1, equivalent=0.2),
    Until(ci_width=0.2, decided=0.2),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("gap", "arrival", "at_once"), [(0.0, 1, 90), (0.3, 2, 7), (0.3, 3, 40), (0.3, 4, 400)])
def test_the_prefix_is_the_same_whatever_comes_first(rule: Until, gap: float, arrival: int, at_once: int) -> None:
    models = {"a": 0.6 + gap, "b": 0.6}
    made = answers(models, 400, epochs=2)
    in_one_go = settled_after(rule, made, list(models), 400, epochs=2)
    random.Random(arrival).shuffle(made)
    settling = machine(rule, list(models), 400, epochs=2)
    known = 0
    while known < len(made) and not settling.look():
        settling.add(to_table(made[known : known + at_once]))
        known += at_once
    settling.look()
    assert settling.settled == in_one_go


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_comes_beyond_the_prefix_changes_nothing(rule: Until) -> None:
    models = {"a": 0.95, "b": 0.55}
    made = answers(models, 400)
    settling = machine(rule, list(models), 400)
    settling.add(to_table(made))
    assert settling.look()
    prefix = settling.prefix()
    assert settling.settled == len(prefix) < 400
    inside = [one for one in made if one.root_id in prefix]
    alone = machine(rule, list(models), 400)
    alone.add(to_table(inside))
    assert alone.look()
    assert alone.settled == settling.settled
    without_last = [one for one in inside if one.root_id != settling.order[settling.settled - 1]]
    short = machine(rule, list(models), 400)
    short.add(to_table(without_last))
    assert not short.look(), "a block is looked at as a whole"


def test_the_first_look_that_decides_is_what_a_table_says() -> None:
    """Each end is tried by hand."""
    models = {"a": 0.85, "b": 0.6}
    made = {(one.model, one.root_id): one for one in answers(models, 600)}
    order = in_order({root_id for _, root_id in made}, 7)

    def difference(item: str) -> int | None:
        a, b = made["a", item], made["b", item]
        if "failed" in (a.outcome, b.outcome):
            return None
        return (a.answer == a.target) - (b.answer == b.target)

    def decides(end: int) -> bool:
        found = [change for item in order[:end] if (change := difference(item)) is not None]
        return duel(np.array(found, np.float64), 0.05, None).verdict is Verdict.BETTER

    first = next(end for end in ends(600) if decides(end))
    assert settled_after(Until(decided=0.05), list(made.values()), list(models), 600) == first


@pytest.mark.parametrize(
    ("shares", "rule", "verdict"),
    [
        ({"a": 0.9, "b": 0.5}, Until(decided=0.05), Verdict.BETTER),
        ({"a": 0.5, "b": 0.9}, Until(decided=0.05), Verdict.WORSE),
        ({"a": 0.5, "b": 0.9}, Until(decided=0.05, equivalent=0.2), Verdict.WORSE),
        ({"a": 1.0, "b": 1.0}, Until(decided=0.05, equivalent=0.1), Verdict.EQUIVALENT),
        ({"a": 1.0, "b": 1.0}, Until(decided=0.05), Verdict.OPEN),
        ({"a": 0.8, "b": 0.8}, Until(decided=0.05, equivalent=0.01), Verdict.OPEN),
    ],
)
def test_a_verdict(shares: dict[str, float], rule: Until, verdict: Verdict) -> None:
    settling = machine(rule, list(shares), 900)
    settling.add(to_table(answers(shares, 900)))
    assert settling.look() == (verdict is not Verdict.OPEN)
    assert settling.verdict("a", "b", settling.settled).verdict is verdict


def test_pairs_share_the_error_and_a_baseline_has_fewer() -> None:
    models = {"a": 0.5, "b": 0.75, "c": 0.99}
    made = answers(models, 800)
    of_all = machine(Until(decided=0.06), list(models), 800)
    of_one = machine(Until(decided=0.06), list(models), 800, baseline="c")
    for settling, pairs in ((of_all, 3), (of_one, 2)):
        settling.add(to_table(made))
        assert len(settling.rivals) == pairs
        assert settling.verdict(*settling.rivals[0]).level == 0.06 / pairs
        assert settling.look()
    assert of_one.settled is not None
    assert of_all.settled is not None
    assert of_one.settled <= of_all.settled


def test_what_is_not_scored_says_nothing_and_holds_up_nothing() -> None:
    made = answers({"a": 0.9}, 400)
    scored = [one for one in made if one.outcome == "scored"]
    settling = machine(Until(ci_width=0.2), ["a"], 400)
    settling.add(to_table(made))
    shares = settling.shares("a", ("t", ""))
    assert len(shares) == len(scored)
    assert settling.look()
    nothing = machine(Until(ci_width=0.2), ["a"], 400)
    nothing.add(to_table([sample(f"i{item}", model="a", outcome="unparsed") for item in range(400)]))
    assert not nothing.look()
    assert nothing.looked == 400


def test_a_score_is_no_answer() -> None:
    settling = machine(Until(ci_width=0.2), ["a"], 400)
    settling.add(to_table([sample(f"i{item}", "0.71", model="a") for item in range(400)]))
    assert not len(settling.shares("a", ("t", "")))
    assert not settling.look()


def test_an_item_counts_once_however_often_it_is_drawn_and_in_however_many_cells() -> None:
    cells = Cells({("t", ""): ["i0", "i1"], ("u", ""): ["i0"]}, {"t": 2, "u": 1}, LABELS)
    settling = Settling(Until(decided=0.05), 1, ["a", "b"], None, cells)
    table = [
        # model, task, item, epoch, answer
        *(("a", "t", "i0", 0, "yes"), ("a", "t", "i0", 1, "no"), ("a", "u", "i0", 0, "no")),
        *(("b", "t", "i0", 0, "yes"), ("b", "t", "i0", 1, "yes"), ("b", "u", "i0", 0, "yes")),
        *(("a", "t", "i1", 0, "yes"), ("a", "t", "i1", 1, "yes")),
        *(("b", "t", "i1", 0, "no"), ("b", "t", "i1", 1, None)),
    ]
    settling.add(
        to_table(
            [
                sample(
                    item, answer or "", model=model, task=task, epoch=epoch, outcome="scored" if answer else "empty"
                )
                for model, task, item, epoch, answer in table
            ]
        )
    )
    of_item = {"i0": -2 / 3, "i1": 1.0}
    assert settling.differences("a", "b").tolist() == pytest.approx([of_item[item] for item in settling.order])
    assert sorted(settling.shares("a", ("t", ""))) == [0.5, 1]
    assert settling.differences("a", "b", ("u", "")).tolist() == [-1]


def test_a_cell_that_has_no_more_items_does_not_hold_up_the_others() -> None:
    small, large = [f"s{item}" for item in range(20)], [f"l{item}" for item in range(2000)]
    cells = Cells({("t", ""): large, ("u", ""): small}, {"t": 1, "u": 1}, LABELS)
    settling = Settling(Until(ci_width=0.2), 1, ["a"], None, cells)
    settling.add(to_table([sample(item, model="a", task="t") for item in large]))
    settling.add(to_table([sample(item, model="a", task="u") for item in small]))
    assert settling.look()
    assert settling.settled is not None
    last_small = max(settling.order.index(item) for item in small)
    assert last_small < settling.settled < 2020
    assert [cell for _, cell, _ in settling.wide(settling.settled)] == [("u", "")]
    alone = Settling(Until(ci_width=0.2), 1, ["a"], None, Cells({("u", ""): small}, {"u": 1}, LABELS))
    alone.add(to_table([sample(item, model="a", task="u") for item in small]))
    assert not alone.look()


def test_without_values_nothing_is_known() -> None:
    assert accuracy_interval(np.zeros(0)) == (0, 1)
    assert duel(np.zeros(0), 0.05, 0.5).verdict is Verdict.OPEN
