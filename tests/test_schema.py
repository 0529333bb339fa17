"""The vocabulary: rows survive the stream and the file, and a request's name holds all that may change its answer."""

from __future__ import annotations

import io
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rambla_ray.schema import SAMPLE_SCHEMA, STREAM_SCHEMA, Sample, Step, canonical_json, request_id, well_formed

EXAMPLES = settings(max_examples=60, deadline=None)
PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # JSON knows such a pair as one character only
PLAIN = st.text(max_size=8)
TEXT = st.text(st.characters(exclude_categories=()), max_size=20).filter(lambda text: not PAIR.search(text))
COUNT = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)
STEPS = st.builds(
    Step,
    stage=TEXT,
    role=PLAIN,
    model=PLAIN,
    request_id=PLAIN,
    prompt=TEXT,
    text=TEXT,
    finish_reason=PLAIN,
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    latency_s=SECONDS,
    waited_s=SECONDS,
    attempts=COUNT,
    error_kind=PLAIN,
    error=TEXT,
)
SAMPLES = st.builds(
    Sample,
    sample_id=PLAIN,
    root_id=PLAIN,
    model=PLAIN,
    task=PLAIN,
    variant=PLAIN,
    target=PLAIN,
    fields=st.dictionaries(TEXT, TEXT, max_size=4),
    steps=st.lists(STEPS, max_size=3),
    answer=PLAIN,
    rambla_answer=PLAIN,
    outcome=PLAIN,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
IDENTITIES = st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=4)


@EXAMPLES
@given(SAMPLES)
def test_a_sample_survives_its_row(sample: Sample) -> None:
    assert Sample.from_row(sample.to_row()) == sample


@EXAMPLES
@given(SAMPLES)
def test_a_row_is_strings_that_arrow_holds_unchanged(sample: Sample) -> None:
    row = sample.to_row()
    assert {type(value) for value in row.values()} == {str}
    table = pa.Table.from_pylist([row], schema=STREAM_SCHEMA)
    table.validate(full=True)
    assert table.to_pylist() == [row]


@EXAMPLES
@given(SAMPLES)
def test_a_record_survives_parquet(sample: Sample) -> None:
    record = sample.to_record()
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([record], schema=SAMPLE_SCHEMA), file)
    assert pq.read_table(file).to_pylist() == [record]


def test_a_record_keeps_what_was_sent_and_got() -> None:
    step = Step("generate:response", "target", "m", "id", "prompt", text="Yes\ud800", prompt_tokens=3, latency_s=0.5)
    sample = Sample("m/t/-/1", "1", "m", "t", "", "yes", {"question": "q"}, [step], "yes", "yes", "scored")
    record = sample.to_record()
    assert record["fields"] == '{"question": "q"}'
    (stored,) = record["steps"]
    assert stored["text"] == "Yes\ufffd"
    assert (stored["prompt"], stored["prompt_tokens"], stored["latency_s"]) == ("prompt", 3, 0.5)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(inner) for inner in value] if isinstance(value, list) else value


@EXAMPLES
@given(IDENTITIES)
def test_a_request_id_does_not_depend_on_the_order_of_keys(identity: dict[str, Any]) -> None:
    assert request_id(identity) == request_id(reversed_keys(identity))
    assert re.fullmatch("[0-9a-f]{64}", request_id(identity))


@EXAMPLES
@given(IDENTITIES, st.text(min_size=1, max_size=5), JSON)
def test_a_request_id_differs_on_any_change(identity: dict[str, Any], key: str, value: Any) -> None:
    changed = {**identity, key: value}
    assert (request_id(identity) == request_id(changed)) == (canonical_json(identity) == canonical_json(changed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"a": 1}, {"a": 2}, id="value"),
        pytest.param({"a": 1}, {"b": 1}, id="key"),
        pytest.param({"a": 1}, {"a": "1"}, id="number and text"),
        pytest.param({"a": 1}, {"a": True}, id="number and truth"),
        pytest.param({"a": None}, {}, id="null and missing"),
        pytest.param({"a": ["x", "y"]}, {"a": ["y", "x"]}, id="order of a list"),
        pytest.param({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}, id="deep"),
        pytest.param({"a": "x"}, {"a": "x "}, id="white space"),
        pytest.param({"a": "é"}, {"a": "e\u0301"}, id="composed and not"),
        pytest.param({"a": "b", "c": "d"}, {"a": 'b","c":"d'}, id="punctuation in a value"),
        pytest.param({"a": "\ud800"}, {"a": "\ufffd"}, id="lone surrogate"),
    ],
)
def test_two_identities_have_two_request_ids(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert request_id(one) != request_id(other)


def test_request_ids_of_stored_answers_stay_what_they_are() -> None:
    assert request_id({"prompt": "x"}) == "7055ce7ee156a290153df9c177133c8cbbc1ddf7da13086a79a7b59af9428568"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()], ids=["nan", "inf", "object"])
def test_what_json_does_not_hold_is_no_identity(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        request_id({"a": value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain é 是 😀", "plain é 是 😀"),
        ("\ud800", "\ufffd"),
        ("a\udc00b", "a\ufffdb"),
        ("\ud800\ud83d\ude00", "\ufffd😀"),
        ("a\ud800", "a\ufffd"),
        ("\ufeff\ud800x", "\ufeff\ufffdx"),
    ],
    ids=ascii,
)
def test_lone_surrogates_become_replacement_characters(text: str, expected: str) -> None:
    assert well_formed(text) == expected


@EXAMPLES
@given(TEXT)
def test_well_formed_text_is_utf8_and_as_long_as_before(text: str) -> None:
    assert len(well_formed(text).encode().decode()) == len(text)
