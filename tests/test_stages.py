"""Transforms draw as RAmBLA draws; stages that do not fit together are refused."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rambla_cases import recorded

from rambla_ray.errors import UserError
from rambla_ray.schema import Item
from rambla_ray.tasks.stages import AddDistractors, Generate, ShuffleContext, check_order, parse_stage
from rambla_ray.tasks.transforms import Transform

DRAWN_IN_RAMBLA = 1234


def items_of(values: list[str]) -> list[Item]:
    return [Item(f"id{row}", {"context": value, "question": f"q{row}"}) for row, value in enumerate(values)]


def applied(stage: Transform, items: list[Item], seed: int) -> list[Item]:
    """The items after a stage, in its first variant."""
    return stage.apply(items, seed, stage.variants()[0])


def contexts(items: list[Item]) -> list[str]:
    return [item.fields["context"] for item in items]


def shifts_of(count: int, n_contexts: int) -> list[int]:
    """How far each of the joined texts stands before its own row."""
    stage = AddDistractors(n_contexts=n_contexts, positions=(0,), separator="|")
    first = contexts(applied(stage, items_of([str(row) for row in range(count)]), DRAWN_IN_RAMBLA))[0]
    return [-int(row) % count for row in first.split("|")]


def test_the_shuffle_is_that_of_rambla() -> None:
    cases = recorded("shuffle_column_seed_1234")
    got = {
        count: [
            int(row) for row in contexts(applied(ShuffleContext(), items_of(list(map(str, range(int(count))))), 1234))
        ]
        for count in cases
    }
    assert set(cases) == {"5", "10", "52"}
    assert got == cases


def test_the_shifts_are_those_of_rambla() -> None:
    cases = recorded("distracting_shift_draws_seed_1234_k3")
    assert set(cases) == {"5", "10", "52", "890"}
    # the draw for the right text's place, here the first, is made and not used
    assert {count: shifts_of(int(count), 3) for count in cases} == {n: [0, *draw[1:]] for n, draw in cases.items()}


def test_the_distracting_texts_are_those_of_rambla() -> None:
    expected = recorded("distracting_example_10_rows")
    assert (
        contexts(applied(AddDistractors(separator="|", positions=(1,)), items_of(list("abcdefghij")), 1234))
        == expected
    )


@pytest.mark.parametrize(
    ("stage", "seed", "expected"),
    [
        pytest.param(ShuffleContext(), 1234, "e a b c d", id="shuffle"),
        pytest.param(ShuffleContext(seed=1234), 7, "e a b c d", id="shuffle, the stage's own seed"),
        pytest.param(AddDistractors(separator="", positions=(1,)), 1234, "eac abd bce cda deb", id="distract"),
        pytest.param(
            AddDistractors(separator="", positions=(1,), seed=1234), 7, "eac abd bce cda deb", id="distract, own seed"
        ),
        pytest.param(AddDistractors(separator="", positions=(0,)), 1234, "adc bed cae dba ecb", id="distract, first"),
        pytest.param(AddDistractors(separator="", positions=(2,)), 1234, "eda aeb bac cbd dce", id="distract, last"),
    ],
)
def test_five_items_are_drawn(stage: ShuffleContext | AddDistractors, seed: int, expected: str) -> None:
    assert contexts(applied(stage, items_of(list("abcde")), seed)) == expected.split()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_a_shuffle_keeps_items_and_texts_and_repeats(seed: int, count: int) -> None:
    items = items_of([f"c{row}" for row in range(count)])
    shuffled = applied(ShuffleContext(), items, seed)
    assert sorted(contexts(shuffled)) == sorted(contexts(items))
    assert [item.root_id for item in shuffled] == [item.root_id for item in items]
    assert [item.fields["question"] for item in shuffled] == [item.fields["question"] for item in items]
    assert [item.fields["original_context"] for item in shuffled] == contexts(items)
    assert applied(ShuffleContext(), items, seed) == shuffled
    assert "original_context" not in items[0].fields


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.data())
def test_the_right_text_stands_at_its_position_among_others(seed: int, n_contexts: int, data: Any) -> None:
    position = data.draw(st.integers(0, n_contexts - 1))
    items = items_of([f"c{row}" for row in range(data.draw(st.integers(n_contexts + 1, 20)))])
    stage = AddDistractors(n_contexts=n_contexts, positions=(position,), separator="|")
    for before, after in zip(items, applied(stage, items, seed), strict=True):
        joined = after.fields["context"].split("|")
        assert joined[position] == before.fields["context"]
        assert len(set(joined)) == n_contexts


@pytest.mark.parametrize("stage", [ShuffleContext(), AddDistractors()], ids=lambda stage: stage.kind)
def test_numpys_global_generator_is_left_alone(stage: ShuffleContext | AddDistractors) -> None:
    np.random.seed(5)
    expected = np.random.random(3).tolist()
    np.random.seed(5)
    applied(stage, items_of(list(string.ascii_lowercase)), 1234)
    assert np.random.random(3).tolist() == expected


@pytest.mark.parametrize(("count", "n_contexts"), [(1, 2), (2, 2), (3, 3), (0, 3)])
def test_too_few_items_are_refused(count: int, n_contexts: int) -> None:
    with pytest.raises(UserError, match=f"at least {n_contexts + 1} items, there are {count}"):
        applied(AddDistractors(n_contexts=n_contexts, positions=(0,)), items_of(["x"] * count), 1234)


def test_the_first_value_of_an_overwritten_field_is_kept() -> None:
    item = Item("1", {"context": "a"}).with_field("context", "b").with_field("context", "c").with_field("new", "d")
    assert item.fields == {"context": "c", "original_context": "a", "new": "d"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("shuffle_context", ShuffleContext()),
        ({"shuffle_context": {}}, ShuffleContext()),
        ({"shuffle_context": None}, ShuffleContext()),
        ({"add_distractors": {"n_contexts": 4, "positions": [0]}}, AddDistractors(n_contexts=4, positions=(0,))),
        (ShuffleContext(seed=3), ShuffleContext(seed=3)),
    ],
    ids=str,
)
def test_a_stage_is_read_from_its_yaml_form(written: Any, expected: Any) -> None:
    assert parse_stage(written) == expected


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        pytest.param("shuffel_context", "did you mean 'shuffle_context'", id="unknown kind"),
        pytest.param({"shuffle_context": {}, "generate": {}}, "a stage is written as", id="two kinds"),
        pytest.param({}, "a stage is written as", id="none"),
        pytest.param(3, "a stage is written as", id="number"),
        pytest.param({"shuffle_context": {"sed": 3}}, "sed", id="unknown key"),
        pytest.param({"shuffle_context": {"seed": -1}}, "seed", id="seed that numpy refuses"),
        pytest.param({"shuffle_context": {"seed": 2**32}}, "seed", id="seed that numpy refuses, too large"),
        pytest.param({"add_distractors": {"positions": [3]}}, "position 3 is not among 0 to 2", id="position outside"),
        pytest.param({"add_distractors": {"n_contexts": 1}}, "n_contexts", id="nothing to distract"),
        pytest.param({"add_distractors": {"seed": -1}}, "seed", id="seed of distractors"),
        pytest.param({"generate": {"role": "target"}}, "template", id="no template"),
        pytest.param({"generate": {"role": "target", "template": "none"}}, "at least one", id="no placeholder"),
        pytest.param({"generate": {"role": "tutor", "template": "{q}"}}, "role", id="unknown role"),
    ],
)
def test_a_stage_that_is_none_is_refused(written: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_stage(written)


def ask(role: str, template: str, writes: str = "response") -> Generate:
    return Generate.model_validate({"role": role, "template": template, "writes": writes})


FIELDS = frozenset({"question", "context"})


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        pytest.param([], "nobody is asked", id="no stage"),
        pytest.param([ShuffleContext()], "nobody is asked", id="no generate"),
        pytest.param([ask("target", "{contxt}")], "did you mean 'context'", id="unknown placeholder"),
        pytest.param([ShuffleContext(field="summary")], r"stage 1 \(shuffle_context\) reads 'summary'", id="no field"),
        pytest.param([ask("judge", "{response}"), ask("judge", "{question}")], "reads 'response'", id="read too soon"),
        pytest.param([ask("target", "{original_context}")], "reads 'original_context'", id="nothing overwritten"),
        pytest.param([ask("target", "{question}"), ShuffleContext()], "transforms come first", id="transform late"),
        pytest.param(
            [ask("judge", "{question}"), ask("target", "{question}")], "asks the target after the judge", id="roles"
        ),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(stages: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_order(stages, FIELDS)


def test_stages_tell_which_fields_there_are_in_the_end() -> None:
    stages = [
        ShuffleContext(),
        ask("rephraser", "{question}", "question"),
        ask("target", "{question} {original_question} {original_context}", "conclusion"),
        ask("judge", "{conclusion}"),
    ]
    written = {"original_context", "original_question", "conclusion", "response"}
    assert check_order(stages, FIELDS) == FIELDS | written
