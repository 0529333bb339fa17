"""What a config takes from the environment: `${oc.env:NAME}` is stored by the variable's name, not by its value.

No list of the names that secrets have is complete, so the keys decide. The keys in `BY_VALUE` hold paths and URLs,
those in `CONFIG_NAMES` names of configs; without them a run would not say where it was, so they are stored as they
are. A number, a boolean, one of a key's few choices, and what is sent to the endpoint alone (`BY_NAME`, `EXTRAS`) are
used, and stored by name beside a digest of the value, so that another value is another run. Any other text is refused:
it would travel on, into samples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

from rambla_ray.errors import UserError, choose_from
from rambla_ray.redaction import Masks, is_secret
from rambla_ray.schema import canonical_json

# Keys, as they stand in the files of conf/ without the numbers of lists. docs/run_directory.md lists them, too.
BY_VALUE = frozenset(
    {
        *("runs_dir", "ledger", "address", "host", "path", "stages.generate.template_file", "params.base_url"),
        "judge_calibration",
        *("params.model_name", "params.tokenizer_name", "params.loading_params.gguf_file"),
        *("params.loading_params.cache_dir", "params.adapter"),
    }
)
CONFIG_NAMES = frozenset(
    {"model", "task", "roles.rephraser", "roles.judge", "roles.reader"}
)  # if there is such a config
# Azure's deployment and version, which nobody but the endpoint is sent.
BY_NAME = frozenset({"params.engine", "params.api_version"})
ADAPTERS = ("params", "adapters")  # All that is in it is a path or hub id.
TEMPLATE_FILES = "stages.generate.template_files."  # What is in it is a path, whatever it is called.
# All that is in these is sent to the endpoint alone, too, whatever it is called.
EXTRAS = (("params", "extra_headers"), ("params", "extra_body"))

Place = tuple[str | int, ...]  # The keys and list indices that lead to a value.


class Borrowed(NamedTuple):
    """A value of a config that comes from the environment."""

    written: str  # what stands for it where the config is stored: `${oc.env:NAME}`
    value: Any

    @property
    def digest(self) -> str:
        """What tells two values apart, and does not show them."""
        return hashlib.sha256(canonical_json(self.value).encode()).hexdigest()[:16]


Borrowings = Mapping[Place, Borrowed]


class Reading:
    """The variables that were read while configs were loaded; their values are in no message about these."""

    def __init__(self) -> None:
        self.names: list[str] = []  # in the order in which they were read
        self.used: set[str] = set()  # those whose key is known
        self.hidden: set[str] = set()  # those of them that are used for more than paths and URLs

    def by_name(self, message: str) -> str:
        unshown = [name for name in self.names if name in self.hidden or name not in self.used]
        return Masks({os.environ[name].strip(): f"${{oc.env:{name}}}" for name in unshown}).apply(message)


_reading: ContextVar[Reading | None] = ContextVar("_reading", default=None)


@contextmanager
def quoting_names() -> Iterator[Reading]:
    """While inside, a UserError quotes the names of the variables that configs take, and not their values."""
    if (outer := _reading.get()) is not None:
        yield outer
        return
    reading = Reading()
    token = _reading.set(reading)
    try:
        yield reading
    except UserError as error:
        raise UserError(reading.by_name(str(error))) from None
    finally:
        _reading.reset(token)


def variable(name: str, *default: object) -> str | None:
    """Resolver `${oc.env:NAME}`, `${oc.env:NAME,DEFAULT}`. Raises ValueError for a secret, KeyError when not set."""
    if is_secret(name):
        raise ValueError(f"{name} holds a secret, which a config would give away; name the variable in api_key_var")
    if name in os.environ:
        if (reading := _reading.get()) is not None:
            reading.names.append(name)
        return os.environ[name]
    if default:
        return None if default[0] is None else str(default[0])
    raise KeyError(f"Environment variable '{name}' not found")


def key_of(place: Place) -> str:
    """A place as the files of conf/ write it, without the numbers of lists."""
    return ".".join(key for key in place if isinstance(key, str))


def is_by_value(place: Place) -> bool:
    """Whether what stands at a place is used, and stored as it is."""
    key = key_of(place)
    return key in BY_VALUE or key.startswith(TEMPLATE_FILES) or place[:2] == ADAPTERS


def is_by_name(place: Place) -> bool:
    """Whether a text at a place is used, and stored by its variable's name."""
    return key_of(place) in BY_NAME or place[:2] in EXTRAS


def without_config_names(
    borrowed: Borrowings, known: Callable[[Literal["model", "task"]], Sequence[str]]
) -> dict[Place, Borrowed]:
    """What comes from the environment but for names of configs. Raises UserError for a config that there is not.

    Args:
        borrowed: what comes from the environment.
        known: the names of the configs of a group.
    """
    for place, (written, value) in borrowed.items():
        group: Literal["model", "task"] = "task" if key_of(place) == "task" else "model"
        if key_of(place) in CONFIG_NAMES and not {*str(value).replace(" ", "").split(",")} <= {*known(group), "all"}:
            raise UserError(f"no {group} has the name in {written}; {choose_from('', known(group))}")
    return {place: one for place, one in borrowed.items() if key_of(place) not in CONFIG_NAMES}


def refuse_texts(borrowed: Borrowings, checked: Mapping[str, Any], takes_text: Callable[[Place], bool]) -> None:
    """Raise a UserError when a text comes from the environment at a key that takes any text.

    Args:
        borrowed: what comes from the environment.
        checked: the config as it is stored, in which numbers are no texts any more.
        takes_text: whether the values at a place are other texts than the choices of its key.
    """
    for place, (written, value) in borrowed.items():
        stored = value_at(checked, place, value)
        if isinstance(stored, str) and not is_by_name(place) and takes_text(place):
            raise UserError(
                f"{dotted(place)}: {written} is a text, which would be stored with the run: write it into the config; "
                "a key stays in the environment, by its name in api_key_var"
            )


def texts_by_name(borrowed: Borrowings) -> list[tuple[str, str]]:
    """What is used as a text without being stored: what stands for it, and the text."""
    named = [one for place, one in borrowed.items() if is_by_name(place)]
    return [(one.written, one.value) for one in named if isinstance(one.value, str)]


def value_at(document: Any, place: Place, missing: Any = None) -> Any:
    """What stands at a place in nested plain values; `missing` where nothing does."""
    for key in place:
        is_index = isinstance(document, list | tuple) and isinstance(key, int) and key < len(document)
        if not is_index and not (isinstance(document, Mapping) and key in document):
            return missing
        document = document[key]
    return document


def by_name(document: Any, borrowed: Borrowings) -> Any:
    """Nested plain values with the names of variables in the place of what comes from them."""
    for place, (written, _) in borrowed.items():
        document = _replaced(document, place, written)
    return document


def _replaced(document: Any, place: Place, written: str) -> Any:
    if not place:
        return written
    first, *rest = place
    if isinstance(document, Mapping) and first in document:
        return {**document, first: _replaced(document[first], tuple(rest), written)}
    if isinstance(document, list) and isinstance(first, int) and first < len(document):
        return [*document[:first], _replaced(document[first], tuple(rest), written), *document[first + 1 :]]
    return document


def inside(borrowed: Borrowings, *outer: str) -> dict[Place, Borrowed]:
    """The part that stands in a section of a config, by its places there."""
    return {place[len(outer) :]: one for place, one in borrowed.items() if place[: len(outer)] == outer}


def under(borrowed: Borrowings, *outer: str | int) -> dict[Place, Borrowed]:
    """The same values by their places in a config that holds theirs at `outer`."""
    return {(*outer, *place): one for place, one in borrowed.items()}


def digests(borrowed: Borrowings) -> dict[str, str]:
    """By dotted place, what tells the values apart."""
    return {dotted(place): one.digest for place, one in sorted(borrowed.items(), key=lambda item: dotted(item[0]))}


def dotted(place: Place) -> str:
    """A place as messages write it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
