"""The vocabulary: what a sample is, what is sent to a model, what comes back, and how a sample can end.

Rows stream through Ray Data as strings only (nested values as JSON), because Arrow's type inference on mixed or
missing values loses data. `SAMPLE_SCHEMA` is the typed form of the same rows, as they stand in `samples/*.parquet`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

import pyarrow as pa

IDENTITY_VERSION = 1
SCORE = "score"  # the finish reason of a step whose text is a number or label of a model that compares texts


class Outcome(StrEnum):
    """How a sample ends. Every sample has exactly one; only `SCORED` counts towards a score."""

    SCORED = "scored"  # an answer was read and compared with the target
    UNPARSED = "unparsed"  # there is text, but no answer can be read from it
    EMPTY = "empty"  # the model answered nothing
    TRUNCATED = "truncated"  # cut off by max_tokens before an answer could be read
    REFUSED = "refused"  # the model or its content filter declined
    TOO_LONG = "too_long"  # the prompt does not fit the model's context
    FAILED = "failed"  # no answer: errors, timeouts, an item that cannot be asked
    JUDGE_FAILED = "judge_failed"  # the target answered, but the judge did not, or cannot be read


class Role(StrEnum):
    """Who answers a generate stage, in the order in which the stream passes them."""

    REPHRASER = "rephraser"
    TARGET = "target"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a model: a prompt, or with `pair` the first of two texts to compare.

    `sample_id`, `target` and `choices` are there for the mock alone; no real model reads them.
    """

    prompt: str
    pair: str | None = None
    sample_id: str = ""
    target: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: an answer. Times are seconds; `latency_s` is that of the attempt that answered."""

    text: str
    finish_reason: str = "stop"  # stop | length | content_filter, as the OpenAI API names them
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    waited_s: float = 0.0  # for the rate limit and between attempts
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """What one generate stage sent and got. Without an answer, `error_kind` and `error` say why."""

    stage: str
    role: str
    model: str
    request_id: str
    prompt: str
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    waited_s: float = 0.0
    attempts: int = 0
    error_kind: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether this step ended without an answer."""
        return bool(self.error_kind)


@dataclass(slots=True)
class Sample:
    """One dataset item under one variant of one task for one target model: a row of the pipeline.

    `target` is the right answer; `fields` are the item's columns and what the stages wrote; `answer` is what was
    read from the last text (empty when nothing was), `rambla_answer` what RAmBLA would have read.
    """

    sample_id: str
    root_id: str
    model: str
    task: str
    variant: str
    target: str
    fields: dict[str, str]
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    rambla_answer: str = ""
    outcome: str = ""

    def to_row(self) -> dict[str, str]:
        """The streaming form: a flat dict of strings, `fields` and `steps` as ASCII JSON."""
        row = {name: getattr(self, name) for name in STREAM_SCHEMA.names}
        row["fields"] = json.dumps(self.fields)
        row["steps"] = json.dumps([asdict(step) for step in self.steps])
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The inverse of `to_row`."""
        values = dict(row)
        values["fields"] = json.loads(values["fields"])
        values["steps"] = [Step(**step) for step in json.loads(values["steps"])]
        return cls(**values)

    def to_record(self) -> dict[str, Any]:
        """The stored form, for `SAMPLE_SCHEMA`: steps as typed values, text that Parquet can hold."""
        record: dict[str, Any] = {name: getattr(self, name) for name in SAMPLE_SCHEMA.names}
        record["fields"] = json.dumps(self.fields)
        record["steps"] = [
            {key: well_formed(value) if isinstance(value, str) else value for key, value in asdict(step).items()}
            for step in self.steps
        ]
        return record


STREAM_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in (
            "sample_id",
            "root_id",
            "model",
            "task",
            "variant",
            "target",
            "fields",
            "steps",
            "answer",
            "rambla_answer",
            "outcome",
        )
    ]
)

_STEP_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
STEP_TYPE = pa.struct(
    [pa.field(name, _STEP_TYPES[str(annotation)], nullable=False) for name, annotation in Step.__annotations__.items()]
)
SAMPLE_SCHEMA = pa.schema(
    [pa.field(f.name, pa.list_(STEP_TYPE), nullable=False) if f.name == "steps" else f for f in STREAM_SCHEMA]
)


def canonical_json(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII. Raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def request_id(identity: Mapping[str, object]) -> str:
    """sha256 over everything that may change an answer, as 64 hex digits.

    Args:
        identity: the model's own identity (class, weights or engine, endpoint, generation parameters, template)
            and the rendered text. Keys, concurrency, timeouts and paths do not belong in it.
    """
    return hashlib.sha256(canonical_json({"identity_version": IDENTITY_VERSION, **identity}).encode()).hexdigest()


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
