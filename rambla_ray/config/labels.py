"""What people call a model of a run: its config's name, and what the command line changed of its params.

Labels stand in tables, notes and the names of runs. In stored data a model has its config's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rambla_ray.redaction import is_secret
from rambla_ray.schema import canonical_json

MOST_CHANGES = 3  # A label names so many changes; a checksum stands for the others.
LONGEST_VALUE = 32  # A value of more characters is shown as a checksum.
LONGEST_PART = 60  # The changes take so many characters in the name of a run.
_PLAIN = re.compile(r"[\w.:+-]+(/[\w.:+-]+)?")  # A word, or a hub id.
_PATH = re.compile(r"[~.]{0,2}/|[^/]*/[^/]*/|.*\\")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)\}")  # What stands for a value that comes from the environment.
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class ModelNames(NamedTuple):
    """The names of a model in a run."""

    name: str  # The name of its config, which stands in stored answers and samples.
    label: str  # What people are shown.
    key: str  # The key in env.json and calls.json, where no two models have the same.


Changes = Mapping[str, Any]  # By dotted key, the values that the command line has put in the place of others.


def changes(keys: Iterable[str], own: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """What overrides have changed.

    Args:
        keys: the dotted keys that were given on the command line.
        own: the model config as its file has it.
        used: the model config with the overrides in it.

    Returns:
        By dotted key, sorted, the values used where they differ; without the `params.` that each would begin with.
    """
    differing: dict[str, Any] = {}
    for key in keys:
        place = key if _has(used, key) else ".".join(key.split(".")[:2])  # It is stored under another name.
        before, after = (_leaves(place, _at(config, place)) for config in (own, used))
        differing |= {leaf: after.get(leaf) for leaf in {*before, *after} if before.get(leaf) != after.get(leaf)}
    return {key.removeprefix("params."): differing[key] for key in sorted(differing)}


def label(name: str, changed: Changes) -> str:
    """The name of a model config and what was changed of it, as in `openai_chat[temperature=0.2]`."""
    shown = _shown(changed)
    if len(shown) > MOST_CHANGES:
        shown = [*shown[:MOST_CHANGES], f"~{_checksum(dict(changed))}"]
    return f"{name}[{', '.join(shown)}]" if shown else name


def file_name_part(name: str, changed: Changes) -> str:
    """The same for the name of a run, which is a folder's: `openai_chat-temperature_0.2`."""
    part = _NOT_IN_FILE_NAMES.sub("_", "-".join(_shown(changed)))[:LONGEST_PART]
    return f"{name}-{part}" if part else name


def _shown(changed: Changes) -> list[str]:
    """Each change as `key=value`; the key without what it stands in, where that is no other's, too."""
    last = [key.rpartition(".")[2] for key in changed]
    keys = [short if last.count(short) == 1 else key for short, key in zip(last, changed, strict=True)]
    return [f"{key}={_value(key, value)}" for key, value in zip(keys, changed.values(), strict=True)]


def _value(key: str, value: Any) -> str:
    """A value in a word that holds no secret, no password of a URL, and no folder of this machine."""
    if not isinstance(value, str):
        word = canonical_json(value)
        return word if isinstance(value, bool | int | float | None) else f"~{_checksum(value)}"
    if is_secret(key):
        return "…"
    if variable := _VARIABLE.fullmatch(value):
        return f"${variable[1]}"
    if "://" in value:
        return urlsplit(value).netloc.rpartition("@")[2] or f"~{_checksum(value)}"
    if _PATH.match(value):
        name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        return f"{name[-LONGEST_VALUE:]}~{_checksum(value)}"
    return value if len(value) <= LONGEST_VALUE and _PLAIN.fullmatch(value) else f"~{_checksum(value)}"


def _checksum(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:6]


def _at(config: Any, place: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for key in place.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _has(config: Any, place: str) -> bool:
    outer, _, key = place.rpartition(".")
    inner = _at(config, outer) if outer else config
    return isinstance(inner, Mapping) and key in inner


def _leaves(place: str, value: Any) -> dict[str, Any]:
    """By dotted key, the values in nested mappings."""
    if not isinstance(value, Mapping):
        return {place: value}
    return {leaf: inner for key, item in value.items() for leaf, inner in _leaves(f"{place}.{key}", item).items()}
