"""Stages that multiply a task: few-shot orders, misspelt words, positions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rambla_ray.errors import UserError
from rambla_ray.schema import Item
from rambla_ray.tasks.stages import FewShot, Mutate

ORDERS = (("yes", "yes"), ("no", "no"), ("yes", "no"), ("no", "yes"))


def items(count: int) -> list[Item]:
    return [
        Item(str(row), {"question": f"Q{row}?", "final_decision": ("yes", "no")[row % 2], "context": "word " * 60})
        for row in range(count)
    ]


def few_shot(**changes: object) -> FewShot:
    template = "{question}={final_decision}"
    return FewShot.model_validate({"orders": ORDERS, "template": template, "separator": ";", **changes})


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_examples_have_the_labels_in_order_and_never_the_items_own_question(order):
    for item in few_shot().apply(items(12), 1234, f"order={'-'.join(order)}"):
        examples = item.fields["examples"].split(";")
        assert [example.partition("=")[2] for example in examples] == list(order)
        assert len(set(examples)) == len(examples)
        assert all(not example.startswith(f"{item.fields['question']}=") for example in examples)


STAGES = {
    "few_shot order=yes-no": few_shot(),
    "few_shot order=yes-yes": few_shot(),
    "mutate n=10": Mutate(),
}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.sampled_from(sorted(STAGES)))
def test_draws_that_are_not_the_originals_do_not_depend_on_the_order_of_the_items(order, name):
    stage, (given, variant) = STAGES[name], (items(12), name.split()[1])
    drawn = {item.root_id: item.fields for item in stage.apply(given, 1234, variant)}
    assert {i.root_id: i.fields for i in stage.apply([given[row] for row in order], 1234, variant)} == drawn
    assert {i.root_id: i.fields for i in stage.apply(given, 1235, variant)} != drawn


def test_examples_are_spread_over_the_items():
    drawn = Counter(item.fields["examples"] for item in few_shot().apply(items(40), 1234, "order=yes-no"))
    assert len(drawn) > 30


def test_too_few_items_of_a_label_are_refused_with_the_numbers():
    with pytest.raises(UserError, match="order yes-yes needs more than 2 items labelled 'yes', there are 2"):
        few_shot().apply(items(4), 1234, "order=yes-yes")


def test_a_mutated_item_keeps_its_words_but_for_so_many():
    for item in Mutate().apply(items(3), 1234, "n=10"):
        before, after = item.fields["original_context"].split(), item.fields["context"].split()
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 10


def test_no_mutation_leaves_the_item_as_it_is():
    given = items(3)
    assert Mutate().apply(given, 1234, "n=0") == given


def test_a_mutation_depends_on_the_item_and_not_on_the_others():
    alone = Mutate().apply(items(5)[3:4], 1234, "n=3")[0]
    assert Mutate().apply(items(5), 1234, "n=3")[3] == alone


def test_an_item_with_too_few_words_carries_its_fault():
    (item,) = Mutate().apply([Item("1", {"context": "only three words"})], 1234, "n=10")
    assert item.fault == "context: 3 words can be changed, 10 were asked for"
