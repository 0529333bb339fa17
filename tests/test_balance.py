"""As many items of each value of a field."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_records import Record, ids, items_of, write

from rambla_ray.errors import UserError

DECISIONS = ["yes", "no", "maybe", "yes", "yes", "no", "maybe", "yes", "no", "yes"]  # items 0 to 9
YES_NO = {"keep": {"final_decision": ["yes", "no"]}, "balance": "final_decision"}


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    record = {"QUESTION": "q", "CONTEXTS": [], "LABELS": [], "MESHES": [], "LONG_ANSWER": "a"}
    value = {str(row): {**record, "final_decision": answer} for row, answer in enumerate(DECISIONS)}
    return write(tmp_path, "decided.json", value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, "0 3 4 1 5 8", id="the first of each value, block after block"),
        pytest.param({"keep": {"final_decision": ["no", "yes"]}}, "1 5 8 0 3 4", id="in keep's order"),
        pytest.param({"keep": {"final_decision": ["maybe", "yes", "maybe"]}}, "2 6 0 3", id="a value named twice"),
        pytest.param({"limit": 4}, "0 3 1 5", id="limit takes equal shares"),
        pytest.param({"limit": 5}, "0 3 1 5", id="an odd limit is not reached"),
        pytest.param({"limit": 99}, "0 3 4 1 5 8", id="limit above all"),
        pytest.param({"seed": 3}, "4 8 5 1 0 3", id="seed mixes the blocks"),
        pytest.param({"seed": 3, "limit": 2}, "4 8", id="seed before limit, in equal shares"),
    ],
)
def test_balance_takes_as_many_of_each_value(options: Record, expected: str, decided: Path) -> None:
    assert ids(items_of("pubmedqa", decided, **{**YES_NO, **options})) == expected


def test_a_value_without_items_cannot_be_balanced(decided: Path) -> None:
    options = {**YES_NO, "keep": {"final_decision": ["yes", "perhaps"]}}
    with pytest.raises(UserError, match="no item whose final_decision is 'perhaps'"):
        items_of("pubmedqa", decided, **options)


def test_pubmedqa_balanced_is_rambla_s(test_data: Path) -> None:
    path = test_data / "pubmedqa" / "ori_pqal.json"
    found = items_of("pubmedqa", path, **YES_NO)
    decisions = [item.fields["final_decision"] for item in found]
    assert decisions == ["yes"] * 338 + ["no"] * 338
    everything = items_of("pubmedqa", path)
    for value, block in (("yes", found[:338]), ("no", found[338:])):
        assert block == [item for item in everything if item.fields["final_decision"] == value][:338]
