"""The vocabulary: rows survive the stream and the file, and a request's name holds all that may change its answer."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import COUNT, SECONDS, TEXT, WHOLE, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from rambla_ray.schema import (
    NO_DETAILS,
    SAMPLE_SCHEMA,
    Identity,
    ReplyDetails,
    Sample,
    Step,
    canonical_json,
    from_table,
    to_table,
    well_formed,
)

EXAMPLES = settings(max_examples=60, deadline=None)
PLAIN = st.text(max_size=8)
LOGPROBS = st.lists(st.floats(-1e3, 0), max_size=3).map(tuple)


def samples_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[Sample]:
    """Samples whose texts are drawn from `text`; their fields may hold anything, for they are JSON."""
    step = st.builds(
        Step,
        stage=text,
        role=text,
        model=text,
        request_id=text,
        prompt=text,
        text=text,
        finish_reason=text,
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        latency_s=SECONDS,
        trace=traces(WHOLE),
        details=st.just(NO_DETAILS) | st.builds(ReplyDetails, reasoning=text, choice_logprobs=LOGPROBS),
        error_kind=text,
        error=text,
    )
    return st.builds(
        Sample,
        sample_id=text,
        root_id=text,
        model=text,
        task=text,
        variant=text,
        target=text,
        label=text,
        fields=st.dictionaries(TEXT, TEXT, max_size=4),
        steps=st.lists(step, max_size=3),
        answer=text,
        rambla_answer=text,
        outcome=text,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
IDENTITIES = st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=4)


def through_parquet(table: pa.Table) -> pa.Table:
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.read_table(file)


@EXAMPLES
@given(st.lists(samples_of(WHOLE), max_size=4))
def test_samples_survive_the_table_and_the_file(samples: list[Sample]) -> None:
    table = to_table(samples)
    table.validate(full=True)
    assert table.schema.equals(SAMPLE_SCHEMA)
    assert list(from_table(table)) == samples
    stored = through_parquet(table)
    assert stored.schema.equals(SAMPLE_SCHEMA)
    assert list(from_table(stored)) == samples


@EXAMPLES
@given(st.lists(samples_of(WHOLE), min_size=1, max_size=5), st.data())
def test_a_slice_of_a_table_holds_its_own_samples(samples: list[Sample], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(samples)))
    length = data.draw(st.integers(0, len(samples)))
    part = to_table(samples).slice(start, length)
    assert list(from_table(part)) == samples[start : start + length]
    assert [list(from_table(batch)) for batch in part.to_batches()] in ([], [samples[start : start + length]])


@EXAMPLES
@given(samples_of(TEXT))
def test_lone_surrogates_are_all_that_a_table_changes(sample: Sample) -> None:
    (stored,) = from_table(to_table([sample]))
    assert stored.fields == sample.fields
    assert stored.answer == well_formed(sample.answer)
    for step, before in zip(stored.steps, sample.steps, strict=True):
        assert (step.prompt, step.text, step.error) == tuple(
            map(well_formed, (before.prompt, before.text, before.error))
        )
        assert (step.trace.attempts, step.trace.tries) == (before.trace.attempts, before.trace.tries)


def test_a_table_has_the_names_and_types_that_files_are_read_by() -> None:
    step = Step("generate:response", "target", "m", "id", "prompt", text="Yes\ud800", prompt_tokens=3, latency_s=0.5)
    sample = Sample("m/t/-/1", "1", "m", "t", "", "yes", "no", {"question": "q"}, [step], "yes", "yes", "scored")
    (record,) = to_table([sample]).to_pylist()
    assert json.loads(record["fields"]) == {"question": "q"}
    assert (record["target"], record["label"]) == ("yes", "no")
    (stored,) = record["steps"]
    assert stored["text"] == "Yes\ufffd"
    assert (stored["prompt"], stored["prompt_tokens"], stored["latency_s"]) == ("prompt", 3, 0.5)
    assert stored["tries"] == []


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(inner) for inner in value] if isinstance(value, list) else value


def request_id_of(identity: dict[str, Any]) -> str:
    """The request_id of an identity, half of which is the model's."""
    keys = list(identity)
    model_fields = {key: identity[key] for key in keys[::2]}
    return Identity(model_fields).request_id({key: identity[key] for key in keys[1::2]})


@EXAMPLES
@given(IDENTITIES)
def test_a_request_id_does_not_depend_on_the_order_of_keys(identity: dict[str, Any]) -> None:
    assert request_id_of(identity) == request_id_of(reversed_keys(identity))
    whole = canonical_json({"identity_version": 1, **identity})
    assert request_id_of(identity) == hashlib.sha256(whole.encode()).hexdigest()


@EXAMPLES
@given(IDENTITIES, st.text(min_size=1, max_size=5), JSON)
def test_a_request_id_differs_on_any_change(identity: dict[str, Any], key: str, value: Any) -> None:
    changed = {**identity, key: value}
    assert (request_id_of(identity) == request_id_of(changed)) == (canonical_json(identity) == canonical_json(changed))


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
    assert request_id_of(one) != request_id_of(other)


def test_request_ids_of_stored_answers_stay_what_they_are() -> None:
    assert request_id_of({"prompt": "x"}) == "7055ce7ee156a290153df9c177133c8cbbc1ddf7da13086a79a7b59af9428568"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()], ids=["nan", "inf", "object"])
def test_what_json_does_not_hold_is_no_identity(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        request_id_of({"a": value})


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
