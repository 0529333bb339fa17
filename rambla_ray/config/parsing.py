"""YAML to plain values, within bounds: what nobody writes, and what would crash, hang or fill a parser, is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import OmegaConf

from rambla_ray.inputs import decoded

DEEPEST = 50  # So many mappings and lists may stand inside each other.
MOST_VALUES = 10_000  # A config may hold so many values, where an alias counts as all that it stands for.
MOST_WRITTEN_VALUES = 1_000_000  # The same, of what a program wrote: a run directory holds the configs of a whole run.
LONGEST_INTERPOLATION = 1000  # Characters: the time to resolve one grows with the square of its length.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Where PyYAML was built without libyaml, it has no fast one.
_BRACE = re.compile(r"(\\*)(\$?\{|\})")


def parse_yaml(text: bytes | str) -> Any:
    """YAML as plain values, its interpolations as they are written.

    Raises:
        ValueError: bytes that are not UTF-8, a value that stands alone, or more than a config may hold.
        yaml.YAMLError, OmegaConfBaseException: it is not valid YAML, or the grammar of an interpolation is not.
    """
    text = text if isinstance(text, str) else decoded(text)
    for scalar in _scalars(text, MOST_VALUES):
        refuse_long_interpolations(scalar)
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except OSError:  # OmegaConf's own, for a value that stands alone.
        raise ValueError("expected keys and values") from None
    except RecursionError:
        raise ValueError("an interpolation is nested too deeply") from None


def parse_resolved(data: bytes) -> Any:
    """YAML that was written by a program, and holds no interpolations but texts that may look so.

    Raises:
        ValueError, yaml.YAMLError: as `parse_yaml`.
    """
    text = decoded(data)
    for _ in _scalars(text, MOST_WRITTEN_VALUES):
        pass  # It raises what is to be refused.
    return yaml.load(text, Loader=_PARSER)  # noqa: S506 - it is a safe one


def parse_quoted(word: str) -> str | None:
    """The text that a word in quotes stands for; None where the quotes are no pair. Raises yaml.YAMLError."""
    events = []
    for event in yaml.parse(word, Loader=_PARSER):
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            return None
    texts = [event.value for event in events if isinstance(event, yaml.ScalarEvent)]
    return texts[0] if len(texts) == 1 else None


def refuse_long_interpolations(text: str) -> None:
    """Raise a ValueError where a `${...}` in a text is too long; `\\${` begins none."""
    if any(end - start > LONGEST_INTERPOLATION for start, end in _interpolations(text)):
        raise ValueError(f"an interpolation is nested too deeply, or longer than {LONGEST_INTERPOLATION} characters")


def _interpolations(text: str) -> Iterator[tuple[int, int]]:
    """Where each interpolation begins and ends, those inside of it being parts of it; the last may be open."""
    depth = start = 0
    for brace in _BRACE.finditer(text):
        is_escaped = len(brace[1]) % 2 == 1
        if brace[2] == "}":
            depth -= depth > 0
            if not depth:
                yield start, brace.end()
            start = start if depth else brace.end()
        elif depth or (brace[2] == "${" and not is_escaped):
            start = start if depth else brace.start()
            depth += 1
    if depth:
        yield start, len(text)


def _scalars(text: str, most: int) -> Iterator[str]:
    """The scalars of a YAML text. Raises ValueError where it nests too deeply, or holds more than `most` values."""
    values: dict[str, int] = {}  # By anchor, how many values an alias of it stands for.
    sizes, anchors = [0], [""]  # Of the collections that are open: how many values they hold so far, and their names.
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(0)
            anchors.append(event.anchor or "")
        elif isinstance(event, yaml.CollectionEndEvent):
            size = sizes.pop() + 1
            sizes[-1] += size
            values[anchors.pop()] = size
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
            yield event.value
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ValueError(f"alias *{event.anchor} stands inside of what it stands for")
            sizes[-1] += values.get(event.anchor, 1)
        if len(sizes) > DEEPEST + 1:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        if sizes[-1] > most:
            raise ValueError(f"it holds more than {most} values, where an alias counts as all that it stands for")
