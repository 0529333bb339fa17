"""Reading the documents of a run directory, and what to do about one that is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from rambla_ray.config.explain import explain
from rambla_ray.config.parsing import parse_resolved
from rambla_ray.display import one_line
from rambla_ray.errors import UserError
from rambla_ray.inputs import parse_json, reason_of
from rambla_ray.results.shape import Shape
from rambla_ray.results.shapes import Calls, Environment, Metrics, PlanNotes
from rambla_ray.results.stored_shapes import StoredConfig
from rambla_ray.storage import Folder, name_of

# What to do about a file that cannot be read; all others are written anew by the command that continues the run.
_PUT_BACK = {
    "config.yaml": "it says what the run asks: put it back, or delete it, and the same bench command writes it anew",
    "calls.json": "it counts the earlier invocations of the run: put it back, or delete it to go on without them",
}
WRITE_ANEW = "the same bench command writes it anew, and asks nothing that the ledger holds"


_OF_YAML_TAGS = (TypeError, AttributeError, LookupError)  # PyYAML raises these where a tag belies its value.
SHAPES: Mapping[str, type[Shape]] = {
    "config.yaml": StoredConfig,
    "plan.json": PlanNotes,
    "env.json": Environment,
    "metrics.json": Metrics,
    "calls.json": Calls,
}


class Damaged(UserError):
    """A file of a run directory that does not hold what it should.

    Args:
        location: the file.
        reason: what is wrong with it.

    `what` says both in a line, without what to do.
    """

    def __init__(self, location: str, reason: object) -> None:
        self.what = f"{location} is damaged: {one_line(str(reason).partition(chr(10))[0])}"
        super().__init__(f"{self.what}; {_PUT_BACK.get(name_of(location), WRITE_ANEW)}")


class Unreadable(Damaged):
    """A file of a run directory that cannot be read: what it holds is not known, and may be as it should."""

    def __init__(self, location: str, error: OSError) -> None:
        self.what = f"{location} cannot be read: {reason_of(error)}"
        UserError.__init__(self, f"{self.what}; put that right, and run the same command again")


def read_plain(folder: Folder, name: str) -> dict[str, Any] | None:
    """The keys and values that a document holds, whatever they are; None when there is no such file.

    Raises:
        UserError: it cannot be read, or is no document.
    """
    location = folder.child(name)
    try:
        data = folder.read(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(location, error) from None
    try:
        value = parse_resolved(data) if name.endswith(".yaml") else parse_json(data, allow_nan=False)
    except (ValueError, yaml.YAMLError, *_OF_YAML_TAGS) as error:
        raise Damaged(location, error) from None
    if not isinstance(value, dict):
        raise Damaged(location, "it holds no keys and values" if data.strip() else "it is empty")
    return {str(key): inner for key, inner in value.items()}


def check_shape(value: object, shape: type[Shape], location: str, inside: str = "") -> None:
    """Raise a UserError when a document, which stands in that part of a file, does not hold what is read of it."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        raise Damaged(location, inside + explain(error, shape)) from None
