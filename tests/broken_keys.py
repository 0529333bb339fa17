"""Broken values for every key that a config has, derived from the models of the configs themselves.

A key that is added to a config is broken here by itself. What is broken about a value follows from the type that the
key declares, not from what its model refuses: a value that is accepted all the same is a fault of the model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.run import RunOptions
from rambla_ray.config.task import TaskConfig
from rambla_ray.registry import MODEL_MAP, model_class
from rambla_ray.tasks.stages import STAGES

ENDPOINT = "${oc.env:TEST_ENDPOINT}"
MODEL: dict[str, Any] = {
    "name": "openai_chat",
    "params": {"temperature": 0.0, "engine": "gpt-test", "api_type": "openai", "base_url": ENDPOINT},
    "price": {"input_per_million": 1.0, "output_per_million": 1.0},
}
STAGE: dict[str, Any] = {"role": "target", "template": "{question}"}
TASK: dict[str, Any] = {
    "dataset": "own",
    "stages": [{"generate": STAGE}],
    "answer": {"choices": ["yes", "no"], "target": "answer"},
}
DATASET: dict[str, Any] = {
    "format": "table",
    "path": "items.csv",
    "demo": "pubmedqa.json",
    "fields": ["question", "answer", "other"],
}
ROOT: dict[str, Any] = {"model": "own", "task": "own", "data": "full", "runs_dir": "runs"}
FILES: Mapping[str, dict[str, Any]] = {
    "config.yaml": ROOT,
    "model/own.yaml": MODEL,
    "task/own.yaml": TASK,
    "dataset/own.yaml": DATASET,
}

# By the kind of model, params of which each can stand in a config without a checkpoint.
_PARAMS: Mapping[str, dict[str, Any]] = {
    "openai_embeddings": {"engine": "embedding-test", "api_type": "openai", "base_url": ENDPOINT},
    "openai_responses": {"engine": "gpt-test", "api_type": "openai", "base_url": ENDPOINT},
    "anthropic_messages": {"engine": "claude-test", "base_url": ENDPOINT, "api_key_var": "OPENAI_API_KEY"},
    "huggingface_llm": {"model_name": "checkpoint"},
    "huggingface_nli": {"model_name": "checkpoint"},
    "huggingface_embeddings": {"model_name": "checkpoint"},
    "text_overlap": {"metric": "bleu"},
    "mock": {},
}
_STAGES: Mapping[str, dict[str, Any]] = {
    "add_distractors": {"field": "other", "positions": [0], "n_contexts": 2},
    "mutate": {"field": "other", "schedule": [0]},
    "shuffle_context": {"field": "other"},
    "few_shot": {"field": "answer", "orders": [["yes", "no"]], "template": "{question}", "differ_in": "question"},
    "compare": {**STAGE, "left": "question", "right": "other"},
}


class Section(NamedTuple):
    """A mapping in a file, and the model of what stands in it."""

    file: str
    document: dict[str, Any]
    place: tuple[str | int, ...]
    model: type[BaseModel]

    @property
    def label(self) -> str:
        whole = self.document.get("name", self.file.partition("/")[0].removesuffix(".yaml"))
        return ".".join(map(str, (whole, *self.place)))


class Broken(NamedTuple):
    """A file with one key in it that is broken."""

    label: str
    fault: str
    text: str


def sections() -> Iterator[Section]:
    """Every section of every file."""
    yield from _with_inner(Section("config.yaml", ROOT, (), RunOptions))
    yield from _with_inner(Section("model/own.yaml", MODEL, (), ModelConfig))
    for name in MODEL_MAP:
        document = {"name": name, "params": _PARAMS.get(name, MODEL["params"])}
        yield Section("model/own.yaml", document, ("params",), model_class(name).Params)
    yield from _with_inner(Section("task/own.yaml", TASK, (), TaskConfig))
    for kind, stage in STAGES.items():
        stages = [{"generate": STAGE}] if kind == "generate" else [{kind: _STAGES[kind]}, {"generate": STAGE}]
        document = {**TASK, "stages": stages[:1] if kind in ("generate", "compare") else stages}
        yield Section("task/own.yaml", document, ("stages", 0, kind), stage)
    yield Section("dataset/own.yaml", DATASET, (), DatasetConfig)


def _with_inner(section: Section) -> Iterator[Section]:
    """A section and those inside it."""
    yield section
    for key, field in section.model.model_fields.items():
        for option in _options(field.annotation):
            if inspect.isclass(option) and issubclass(option, BaseModel) and option.model_fields:
                yield from _with_inner(section._replace(place=(*section.place, key), model=option))


def broken_files(file: str) -> Iterator[Broken]:
    """A file with every key in it broken in every way that fits the key's type.

    A key that two kinds of models have is broken in one of them.
    """
    seen = set()
    for section in sections():
        if section.file != file:
            continue
        yield Broken(f"{section.label}.nonsense", "unknown", _with_key(section, "nonsense", "1"))
        for name, field in section.model.model_fields.items():
            key = field.alias or name
            is_new = (section.place, key, repr(field)) not in seen
            seen.add((section.place, key, repr(field)))
            for fault, value in broken_values(field) if is_new else ():
                yield Broken(f"{section.label}.{key}", fault, _with_key(section, key, value))


def _with_key(section: Section, key: str, value: str) -> str:
    """The text of a section's file with a value in the place of a key's own."""
    document = copy.deepcopy(section.document)
    inner = document
    for part in section.place:
        if isinstance(inner, dict) and not isinstance(inner.get(part), dict | list):
            inner[part] = {}
        inner = inner[part]
    inner[key] = "@BROKEN@"
    return yaml.safe_dump(document, sort_keys=False).replace("'@BROKEN@'", value).replace("@BROKEN@", value)


ABSURD = "9" * 400
_MAPPING, _LIST, _TEXT = "{a: {b: c}}", "[[x], [y]]", "no-such-word"
_FAULTS: Mapping[str, Mapping[str, str]] = {
    "int": {"text": _TEXT, "list": _LIST, "mapping": _MAPPING, "nan": ".nan", "infinite": ".inf", "fraction": "1.5"},
    "float": {"text": _TEXT, "list": _LIST, "mapping": _MAPPING, "nan": ".nan", "infinite": ".inf"},
    "bool": {"text": _TEXT, "list": _LIST, "mapping": _MAPPING, "number": "7"},
    "str": {"number": "7", "list": _LIST, "truth": "true"},
    "word": {"text": _TEXT, "list": _LIST, "mapping": _MAPPING, "number": "7", "empty": "''"},
    "list": {"mapping": _MAPPING, "number": "7", "truth": "true", "text": "'a\\nb\\x1b[2J'", "nulls": "[null]"},
    "dict": {"list": _LIST, "text": _TEXT, "number": "7"},
    "section": {"list": _LIST, "text": _TEXT, "number": "7", "unknown": "{nonsense: 1}"},
}


def broken_values(field: FieldInfo) -> Iterator[tuple[str, str]]:
    """Values that are not of a key's type, as YAML, each with what is wrong about it."""
    options = list(_options(field.annotation))
    kinds = {_kind(option) for option in options if option is not NoneType} - {""}
    faults = [set(_FAULTS[kind].items()) for kind in sorted(kinds)]
    if faults and Any not in options:
        common = set.intersection(*faults)
        if kinds == {"dict", "str"}:
            common |= {("number", "7")}
        yield from sorted(common)
    if NoneType not in options and Any not in options:
        yield "null", "null"
    if kinds & {"int", "float"} and not kinds & {"str"}:
        yield from _out_of_bounds(field)


def _out_of_bounds(field: FieldInfo) -> Iterator[tuple[str, str]]:
    bounds = {name: value for part in field.metadata for name, value in _bounds(part).items()}
    yield "truth", "true"
    if "ge" in bounds or "gt" in bounds:
        yield "below", str(bounds["ge"] - 1 if "ge" in bounds else bounds["gt"])
        yield "absurd", ABSURD
    if "le" in bounds or "lt" in bounds:
        yield "above", str(bounds["le"] + 1 if "le" in bounds else bounds["lt"])


def _bounds(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}


def _kind(option: Any) -> str:
    origin = get_origin(option)
    if origin is Literal:
        return "word"
    if origin in (dict, Mapping) or option is dict:
        return "dict"
    if origin in (tuple, list):
        return "list"
    if not inspect.isclass(option):
        return ""
    if issubclass(option, BaseModel):
        return "section"
    return next((kind.__name__ for kind in (bool, int, float, str) if issubclass(option, kind)), "")


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the one type, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _options(member)
    else:
        yield annotation
