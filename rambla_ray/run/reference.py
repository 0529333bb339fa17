"""The reference of model configs in docs/models.md: every key of every kind, from the descriptions in the code."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rambla_ray.actors.local.backends import BOUNDS, HONOURED_OPTIONS, REFUSED_OPTIONS, TRUTHS
from rambla_ray.actors.local.checkpoint_params import CODE_RUNNING_PARAMS, DTYPES
from rambla_ray.actors.local.params import VLLM_LOADING_PARAMS
from rambla_ray.config.model import ModelConfig
from rambla_ray.registry import MODEL_MAP, model_class
from rambla_ray.tasks.closed import options_of

# What a key takes whose type does not say it: a link, or words.
TAKEN = {
    "params": "section of its kind",
    "loading_params": "[keys and values](#loading_params)",
    "generation_config": "[keys and values](#generation_config)",
}
MARK = "<!-- What stands below is made from the code: python jobs/reference.py -->"
WIDTH = 120  # Of the lines of a page, but for tables.

Row = tuple[str, ...]
Sections = dict[str, type[BaseModel]]  # by the key that holds them


def renewed(page: str) -> str:
    """The page with its reference made anew; what stands above `MARK` is written by hand."""
    by_hand = page.partition(MARK)[0]
    return f"{by_hand}{MARK}\n\n{reference()}"


def reference() -> str:
    """Every key that a model config may have, in Markdown."""
    sections = _sections_of(ModelConfig)
    parts = ["## A model config", _about(ModelConfig), keys_of(ModelConfig)]
    for names, kind in _kinds():
        parts += [f"## {', '.join(f'`{name}`' for name in names)}", _about(kind), keys_of(kind.Params)]
        sections |= _sections_of(kind.Params)
    for key, section in sections.items():
        parts += [f"## {key}", _about(section), keys_of(section)]
    parts += ["## loading_params", _LOADING, _table(("key", "value", "what it is"), _loading_params())]
    parts += ["## generation_config", _GENERATING, _table(("key", "value", "honoured by"), _generation_options())]
    return "\n\n".join(parts) + "\n"


_LOADING = "What goes to `from_pretrained` of a local model, as it is but for these:"
_GENERATING = textwrap.fill(
    "What goes to `transformers.GenerationConfig` of a local model, which knows more keys than these. These have "
    "bounds, or are not honoured by every `backend`; what a backend does not honour is refused before any call, as is "
    "a key that GenerationConfig does not know.",
    WIDTH,
)


def _kinds() -> Iterator[tuple[list[str], type[Any]]]:
    """The classes of MODEL_MAP, each with all its names."""
    names: dict[str, list[str]] = {}
    for name, path in MODEL_MAP.items():
        names.setdefault(path, []).append(name)
    return ((of_class, model_class(of_class[0])) for of_class in names.values())


def _about(kind: type[Any]) -> str:
    """What a class says of itself, in lines of a page."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(textwrap.fill(paragraph, WIDTH) for paragraph in paragraphs)


def _sections_of(section: type[BaseModel]) -> Sections:
    """The sections that keys of a section hold, and those inside them."""
    found: Sections = {}
    for key, field in section.model_fields.items():
        for option in options_of(field.annotation):
            if _has_its_own_table(option):
                found |= {key: option} | _sections_of(option)
    return found


def _has_its_own_table(option: Any) -> bool:
    """Whether a type is a section with keys. The params of a model are, but depend on its name."""
    return inspect.isclass(option) and issubclass(option, BaseModel) and bool(option.model_fields)


def keys_of(section: type[BaseModel]) -> str:
    """The table of a section's keys in Markdown; a sentence where it has none."""
    schema = section.model_json_schema()
    properties = _resolved(schema.get("properties", {}), schema.get("$defs", {}))
    rows = [
        (f"`{key}`", _value(key, properties[key], field), _default(field), _cell(field.description or ""))
        for key, field in section.model_fields.items()
    ]
    return _table(("key", "value", "default", "what it is"), rows) if rows else "It has no keys."


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with what it refers to in the place of each reference."""
    if isinstance(schema, list):
        return [_resolved(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _resolved(part, definitions) for key, part in schema.items()}


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text that Markdown shows as it is inside a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return ""  # Its own table says what it is when not given.
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(_whole(value))}`"


def _whole(value: Any) -> Any:
    """A number as a person writes it: 180, and not 180.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(key: str, schema: Mapping[str, Any], field: FieldInfo) -> str:
    """What a key takes, in words. That it takes null is said where its default does not."""
    if key in TAKEN:
        return TAKEN[key]
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    takes_null = len(options) < len(schema.get("anyOf", [schema])) and field.get_default() is not None
    return _or([*(_words(key, option) for option in options), *(["`null`"] if takes_null else [])])


def _or(words: Iterable[str]) -> str:
    """Alternatives as one text; a comma keeps those apart that have commas of their own."""
    words = list(dict.fromkeys(words))
    return (", or " if any("," in word for word in words) else " or ").join(words)


def _words(key: str, schema: Mapping[str, Any]) -> str:
    """A type in a JSON schema, in plain words."""
    match schema:
        case {"properties": dict()}:
            return f"[section](#{key})"
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"anyOf": options}:
            return _or(_words(key, option) for option in options)
        case {"type": "integer" | "number" as kind}:
            return ", ".join(filter(None, ("whole number" if kind == "integer" else "number", _bounds(schema))))
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "string"}:
            return _text(schema)
        case {"type": "array"}:
            return f"list of {_words(key, schema.get('items', {}))}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"keys and values, each {_words(key, values)}"
        case {"type": "object"}:
            return "keys and values"
        case {"type": "null"}:
            return "`null`"
    return "any value"


def _text(schema: Mapping[str, Any]) -> str:
    length = f"up to {_number(schema['maxLength'])} characters" if "maxLength" in schema else ""
    shape = f"of the form `{_cell(schema['pattern'].strip('^$'))}`" if "pattern" in schema else ""
    return ", ".join(filter(None, ("text", length, shape)))


def _bounds(schema: Mapping[str, Any]) -> str:
    """From where to where a number may be."""
    bounds = dict(schema)
    if schema["type"] == "integer" and "exclusiveMinimum" in schema:
        bounds["minimum"] = bounds.pop("exclusiveMinimum") + 1
    if {"minimum", "maximum"} <= bounds.keys():
        return f"{_number(bounds['minimum'])} to {_number(bounds['maximum'])}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {_number(bounds[key])}" for key, word in words.items() if key in bounds)


def _number(value: float) -> str:
    """A number for people: 1,000,000 or 0.001; a power of two as one where it is long."""
    whole = _whole(value)
    if not isinstance(whole, int):
        return f"{Decimal(str(value)):f}"
    size = abs(whole)
    if size > 10**6 and size & (size - 1) == 0:
        return f"{'-' if whole < 0 else ''}2^{size.bit_length() - 1}"
    return f"{whole:,}"


def _loading_params() -> list[Row]:
    dtypes = ", ".join(f"`{name}`" for name in DTYPES)
    running = ", ".join(f"`{name}`" for name in CODE_RUNNING_PARAMS)
    taken = ", ".join(f"`{name}`" for name in VLLM_LOADING_PARAMS)
    return [
        ("`torch_dtype` or `dtype`", f"one of {dtypes}", "two names of one key"),
        ("`gguf_file`", "text", "the file in the checkpoint's folder, of a checkpoint in GGUF"),
        (running, "any value", "can run code of others; needs `trust_remote_code: true`"),
        ("`attn_implementation`", "text", "one with a slash is a repository of kernels; needs the same"),
        ("other keys", "any value", f"as transformers documents them; `backend: vllm` takes no keys but {taken}"),
    ]


def _generation_options() -> list[Row]:
    named = set().union(*(options for options in HONOURED_OPTIONS.values() if options))
    options = sorted(BOUNDS.keys() | TRUTHS | REFUSED_OPTIONS.keys() | named)
    return [(f"`{option}`", _option_value(option), _honoured_by(option)) for option in options]


def _option_value(option: str) -> str:
    if option in TRUTHS:
        return "`true` or `false`"
    if option not in BOUNDS:
        return "as transformers takes it"
    least, most = BOUNDS[option]
    kind = "whole number" if isinstance(most, int) else "number"
    return f"{kind}, {_number(least)} to {_number(most)}"


def _honoured_by(option: str) -> str:
    if option in REFUSED_OPTIONS:
        return f"none: {REFUSED_OPTIONS[option]}"
    able: Sequence[str] = [name for name, options in HONOURED_OPTIONS.items() if not options or option in options]
    return "all" if len(able) == len(HONOURED_OPTIONS) else ", ".join(f"`{name}`" for name in able)
