"""The vocabulary: what a sample is, what is sent to a model, what comes back, and how a sample can end.

Samples stream through Ray Data, and stand in `samples/*.parquet`, as Arrow tables of one declared schema, because
Arrow's type inference on mixed or missing values loses data.

It is longer than other files so that every word that all rooms share stands on one page.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, chain
from typing import Any, NamedTuple

import pyarrow as pa

IDENTITY_VERSION = 1  # The number of the way in which request_ids are made; a new one makes every request a new one.
NULL = "null"  # RAmBLA's word for an answer that it could not read.
SCORE = "score"  # The finish reason of a step whose text is a number or label from a model that compares texts.


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
    """Who answers, in the order in which the stream passes them."""

    REPHRASER = "rephraser"
    TARGET = "target"
    JUDGE = "judge"
    READER = "reader"  # It reads answers that the rules cannot read; no stage of a task asks it.


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # system | user | assistant
    content: str


class GenerationOptions(NamedTuple):
    """What one request asks for in place of the model config's own options; None and empty leave those as they are."""

    max_tokens: int | None = None
    temperature: float | None = None  # 0 is greedy decoding
    top_p: float | None = None
    seed: int | None = None  # of the draws, where any are made
    stop: tuple[str, ...] = ()  # the answer ends before the first of these

    def overrides(self) -> dict[str, Any]:
        """Those that are asked for."""
        return {name: value for name, value in self._asdict().items() if value not in (None, ())}


NO_OPTIONS = GenerationOptions()


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a model: a prompt, or with `pair` the first of two texts to compare.

    `system` is the system prompt that the task's stage asks for, in place of the model config's own.
    The pipeline sends prompts; whoever serves a model sends `messages`, the whole conversation, beside an empty
    prompt, or a prompt that is `verbatim`: to be continued as it stands, without a chat template.
    `continuations` ask for no text, but for how likely each of them is behind the prompt.
    Each `epoch` of a request is another draw of its answer; the first is 0.
    `sample_id`, that of epoch 0, `target` and `choices` are for the mock alone; no real model reads them.
    """

    prompt: str
    pair: str | None = None
    system: str = ""
    continuations: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    verbatim: bool = False
    options: GenerationOptions = NO_OPTIONS
    epoch: int = 0
    sample_id: str = ""
    target: str = ""
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt, or the texts of all turns of the conversation; the system prompt of a stage before it."""
        text = self.prompt or "\n".join(message.content for message in self.messages)
        return f"{self.system}\n{text}" if self.system else text

    def identity_fields(self) -> dict[str, object]:
        """What a real model is sent, as JSON values: everything of the request that may change its answer."""
        own: dict[str, object] = {"prompt": self.prompt}
        if self.pair is not None:
            own["pair"] = self.pair
        if self.system:
            own["system"] = self.system
        if self.continuations:
            own["continuations"] = self.continuations
        if self.messages:
            own["messages"] = self.messages
        if self.verbatim:
            own["verbatim"] = True
        if self.epoch:
            own["epoch"] = self.epoch
        options = self.options.overrides()
        return {**own, "options": options} if options else own


class Try(NamedTuple):
    """One attempt at a request."""

    at: float  # Unix time of its start, in seconds
    took_s: float
    reason: str = ""  # why it gave no answer; empty for the one that did


@dataclass(frozen=True, slots=True)
class CallTrace:
    """How the calls of one request went. Times are seconds."""

    waited_s: float = 0.0  # for the rate limit and between attempts
    attempts: int = 0
    hedged: int = 0  # of the attempts, second calls that raced a slow first one; the loser is charged like the answer
    tries: tuple[Try, ...] = ()
    failed_prompt_tokens: int = 0  # charged for attempts that gave no answer, as far as their replies say
    failed_completion_tokens: int = 0


TRACE_FIELDS = tuple(CallTrace.__annotations__)
NO_CALL, ONE_CALL = CallTrace(), CallTrace(attempts=1)


@dataclass(frozen=True, slots=True)
class ReplyDetails:
    """What an endpoint sent beside the text of an answer; empty, and 0, what it did not."""

    reasoning: str = ""  # What the model thought, never read for an answer.
    reasoning_tokens: int = 0  # Of those of the answer.
    cached_tokens: int = 0  # Of those of the prompt: read from the endpoint's cache.
    cache_write_tokens: int = 0  # Of those of the prompt: written to the endpoint's cache.
    served_model: str = ""  # What answered, as the reply names it.
    system_fingerprint: str = ""
    provider: str = ""  # Who answered, behind an endpoint that passes calls on.
    batch: str = ""  # The provider's batch in which the call was made.
    choice_logprobs: tuple[float, ...] = ()  # The log-probability of each continuation that was asked for, finite.

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ReplyDetails:
        """The details of fields as they are stored, of which some may be left out."""
        if not any(fields.values()):
            return NO_DETAILS
        return cls(**{**fields, "choice_logprobs": tuple(fields.get("choice_logprobs") or ())})


DETAIL_FIELDS = tuple(ReplyDetails.__annotations__)
NO_DETAILS = ReplyDetails()


class Tokens(NamedTuple):
    """Tokens that are paid for, of one call or of many."""

    prompt: int = 0  # Also those that the endpoint read from its cache, or wrote to it.
    completion: int = 0  # Also those of reasoning.
    cached: int = 0  # Of the prompt: read from the endpoint's cache.
    cache_write: int = 0  # Of the prompt: written to it.

    @property
    def total(self) -> int:
        """All of them, each once."""
        return self.prompt + self.completion

    def plus(self, other: Tokens, times: int = 1) -> Tokens:
        """These, and others so many times."""
        return Tokens(
            self.prompt + times * other.prompt,
            self.completion + times * other.completion,
            self.cached + times * other.cached,
            self.cache_write + times * other.cache_write,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: an answer. Times are seconds; `latency_s` is that of the attempt that answered."""

    text: str
    finish_reason: str = "stop"  # stop | length | content_filter, as the OpenAI API names them
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    trace: CallTrace = ONE_CALL
    details: ReplyDetails = NO_DETAILS

    @property
    def tokens(self) -> Tokens:
        """What the call that answered is charged for."""
        cached, written = self.details.cached_tokens, self.details.cache_write_tokens
        return Tokens(self.prompt_tokens, self.completion_tokens, cached, written)


@dataclass(frozen=True, slots=True)
class Step:
    """What one generate stage sent and got. Without an answer, `error_kind` and `error` say why.

    Where likelihoods were asked for, `choice_probabilities` are those of the choices if one of them is the answer: as
    many numbers as `details.choice_logprobs`, which add up to 1. Of a judge who is one of several, `vote` is the label
    that was read from its answer, once the sample has ended; empty where none was.
    """

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
    trace: CallTrace = NO_CALL
    error_kind: str = ""
    error: str = ""
    details: ReplyDetails = NO_DETAILS
    choice_probabilities: tuple[float, ...] = ()
    vote: str = ""

    @property
    def failed(self) -> bool:
        """Whether this step ended without an answer."""
        return bool(self.error_kind)


@dataclass(slots=True)
class Sample:
    """One dataset item under one variant of one task for one target model: a row of the pipeline.

    `target` is the right answer in this task, `label` the dataset's own; `fields` are the item's columns and what the
    stages wrote; `answer` is what was read from the last text (empty when nothing could be), `rambla_answer` what
    RAmBLA would have read; `outcome` is empty until the sample has ended; `epoch` counts the draws of an item from 0.
    """

    sample_id: str
    root_id: str
    model: str
    task: str
    variant: str
    target: str
    label: str
    fields: dict[str, str]
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    rambla_answer: str = ""
    outcome: str = ""
    epoch: int = 0

    @property
    def stage_steps(self) -> list[Step]:
        """The steps of the task's own stages: all but the reader's."""
        return [step for step in self.steps if step.role != Role.READER]


_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "dict[str, str]": pa.string(),  # a JSON string
    "tuple[float, ...]": pa.list_(pa.float64()),
    "tuple[Try, ...]": pa.list_(pa.struct([("at", pa.float64()), ("took_s", pa.float64()), ("reason", pa.string())])),
}


_INLINED: Mapping[str, type] = {kind.__name__: kind for kind in (CallTrace, ReplyDetails)}


def _arrow_fields(kind: type) -> list[pa.Field]:
    """The columns of a dataclass; those of a trace, and of a reply's details, stand among those of their step."""
    fields: list[pa.Field] = []
    for name, annotation in kind.__annotations__.items():
        if annotation in _INLINED:
            fields += _arrow_fields(_INLINED[annotation])
        else:
            fields.append(pa.field(name, _ARROW_TYPES[annotation], nullable=False))
    return fields


STEP_TYPE = pa.struct(_arrow_fields(Step))
_ARROW_TYPES["list[Step]"] = pa.list_(STEP_TYPE)
SAMPLE_SCHEMA = pa.schema(_arrow_fields(Sample))


def to_table(samples: Sequence[Sample]) -> pa.Table:
    """Samples as a table of `SAMPLE_SCHEMA`, shape (samples, columns): column by column, which is much the fastest."""
    columns = []
    for column in SAMPLE_SCHEMA:
        if column.name == "steps":
            columns.append(_steps_array([sample.steps for sample in samples]))
        elif column.name == "fields":
            columns.append(pa.array([json.dumps(sample.fields) for sample in samples], column.type))
        elif column.name == "epoch":
            columns.append(pa.array([sample.epoch for sample in samples], column.type))
        else:
            columns.append(_text_array([getattr(sample, column.name) for sample in samples]))
    return pa.Table.from_arrays(columns, schema=SAMPLE_SCHEMA)


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[Sample]:
    """The inverse of `to_table`; lone surrogates have become U+FFFD."""
    for row in table.to_pylist():
        row["fields"] = json.loads(row["fields"])
        row["steps"] = [_step(step) for step in row["steps"]]
        yield Sample(**row)


def _step(row: dict[str, Any]) -> Step:
    trace = {name: row.pop(name) for name in TRACE_FIELDS}
    trace["tries"] = tuple(Try(**attempt) for attempt in trace["tries"])
    details = {name: row.pop(name) for name in DETAIL_FIELDS}
    row["choice_probabilities"] = tuple(row["choice_probabilities"])
    return Step(**row, trace=CallTrace(**trace), details=ReplyDetails.of(details))


def _steps_array(steps: Sequence[Sequence[Step]]) -> pa.Array:
    flat = list(chain.from_iterable(steps))
    traces, details = [step.trace for step in flat], [step.details for step in flat]
    holders: dict[str, list[Any]] = {**dict.fromkeys(TRACE_FIELDS, traces), **dict.fromkeys(DETAIL_FIELDS, details)}
    arrays = []
    for column in STEP_TYPE:
        values: list[Any] = [getattr(holder, column.name) for holder in holders.get(column.name, flat)]
        if column.name == "tries":
            arrays.append(_tries_array(values, column.type))
        else:
            arrays.append(_text_array(values) if column.type == pa.string() else pa.array(values, column.type))
    struct = pa.StructArray.from_arrays(arrays, fields=list(STEP_TYPE))
    return pa.ListArray.from_arrays(_offsets(steps), struct, type=pa.list_(STEP_TYPE))


def _tries_array(tries: Sequence[Sequence[Try]], kind: pa.DataType) -> pa.Array:
    flat = list(chain.from_iterable(tries))
    at, took_s, reason = zip(*flat, strict=True) if flat else ((), (), ())
    columns = [pa.array(at, pa.float64()), pa.array(took_s, pa.float64()), _text_array(reason)]
    struct = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(_offsets(tries), struct, type=kind)


def _offsets(lists: Sequence[Sequence[object]]) -> pa.Array:
    return pa.array([0, *accumulate(map(len, lists))], pa.int32())


def _text_array(texts: Sequence[str]) -> pa.Array:
    """Texts as an Arrow column: UTF-8, in which lone surrogates are replaced."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([well_formed(text) for text in texts], pa.string())


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII. Raises ValueError on NaN and infinity."""
    return _CANONICAL.encode(value)


class Identity:
    """Makes the request_ids of one model: sha256, as 64 hex digits, over everything that may change an answer.

    What is hashed is the canonical JSON of one object, which holds `IDENTITY_VERSION`, the fields of the model and the
    fields of the request. API keys, concurrency, timeouts and paths do not belong in it.

    Args:
        model_fields: what the requests share: class, weights or engine, endpoint, generation parameters, template.
    """

    def __init__(self, model_fields: Mapping[str, object]) -> None:
        # Encoded once for all requests.
        self._members = _members({"identity_version": IDENTITY_VERSION, **model_fields})

    def request_id(self, request_fields: Mapping[str, object]) -> str:
        """The request_id of a request, whose fields are its rendered text and what else is its own."""
        members = sorted({**self._members, **_members(request_fields)}.items())
        return hashlib.sha256(f"{{{','.join(member for _, member in members)}}}".encode()).hexdigest()


def _members(value: Mapping[str, object]) -> dict[str, str]:
    """By key, the members of an object as canonical JSON has them."""
    return {key: f"{canonical_json(key)}:{canonical_json(inner)}" for key, inner in value.items()}


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def draw_name(root_id: str, epoch: int) -> str:
    """What a draw of an item is called: the first as the item, the second `ITEM#2`."""
    return f"{root_id}#{epoch + 1}" if epoch else root_id


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One dataset item: its id, the same in every task, and its columns as text."""

    root_id: str
    fields: dict[str, str]
    fault: str = ""  # why this item cannot be asked, if a stage could not do its work on it

    def with_field(self, name: str, value: str) -> Item:
        """A copy with `name` set; see `overwrite`."""
        fields = dict(self.fields)
        overwrite(fields, name, value)
        return dataclasses.replace(self, fields=fields)


def overwrite(fields: dict[str, str], name: str, value: str) -> None:
    """Set `fields[name]`; what stood there first is kept as `original_<name>`."""
    if name in fields:
        fields.setdefault(f"original_{name}", fields[name])
    fields[name] = value
