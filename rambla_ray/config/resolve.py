"""A config with the words of the command line in it: interpolations resolved, and checked by its pydantic model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from rambla_ray.config import environment
from rambla_ray.config.environment import Borrowed, Borrowings, Place, Reading, is_by_value, key_of, quoting_names
from rambla_ray.config.explain import explain
from rambla_ray.config.folder import package_dir
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.words import read_value, takes_text, type_at
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError
from rambla_ray.registry import model_class

COMMAND_LINE = "command line"  # The place that messages name for what was typed.

Overrides = Sequence[tuple[str, str]]  # dotted keys inside a config, and their values as words
T = TypeVar("T", bound=BaseModel)

OmegaConf.register_resolver("package_dir", package_dir, replace=True)
OmegaConf.register_resolver("oc.env", environment.variable, replace=True)


class Resolved(NamedTuple):
    """A config before it is checked."""

    values: dict[str, Any]
    borrowed: Borrowings  # what of it comes from the environment


def override(config: Mapping[str, Any], overrides: Overrides, where: str, model: type[BaseModel]) -> Resolved:
    """`config` with values of the command line in the place of its own, and interpolations resolved.

    Args:
        config: plain values, as a file has them.
        overrides: words of the command line.
        where: the config's name and file, as messages name it.
        model: what the config is going to be.

    Raises:
        UserError: a word or an interpolation cannot be read.
    """
    try:
        merged = OmegaConf.create(dict(config))
        for key, word in overrides:
            value = _value(key, word, _declared_type(key.split("."), model, merged))
            OmegaConf.update(merged, key, value, merge=False, force_add=True)
        return _plain(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
        missing = re.search(r"Environment variable '(\w+)' not found", reason)
        if missing:
            reason = f"needs the environment variable {missing[1][:SHOWN_CHARACTERS]}, which is not set"
        place = getattr(error, "full_key", None)
        raise UserError(f"{where}: {f'{place}: ' if place else ''}{one_line(reason, 300)}") from None
    except RecursionError:
        raise UserError(f"{where}: an interpolation is nested too deeply") from None
    except (TypeError, ValueError) as error:  # OmegaConf raises them for a key, where a list takes a number.
        raise UserError(f"{where}: {error}") from None


def _plain(config: DictConfig) -> Resolved:
    """A config as plain values; what is stored by value counts as its own. Raises OmegaConfBaseException."""
    with quoting_names() as reading:
        resolver = _Resolver(reading)
        return Resolved(resolver.plain(config, (), ()), resolver.borrowed)


class _Resolver:
    """Makes plain values of a config, one after the other, and sees which variables each of them reads."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.borrowed: dict[Place, Borrowed] = {}

    def plain(self, node: Any, place: Place, names: tuple[str, ...]) -> Any:
        """The plain value of a node; `names` are the variables that led to it."""
        if isinstance(node, DictConfig):
            return {key: self._inner(node, key, (*place, str(key)), names) for key in node}
        if isinstance(node, ListConfig):
            return [self._inner(node, number, (*place, number), names) for number in range(len(node))]
        if not is_by_value(place) or (key_of(place) == "params.base_url" and "://" not in str(node)):
            self._reading.hidden.update(names)
        self._reading.used.update(names)
        if names and not is_by_value(place):
            self.borrowed[place] = Borrowed(", ".join(f"${{oc.env:{name}}}" for name in names), node)
        return node

    def _inner(self, node: Any, key: Any, place: Place, names: tuple[str, ...]) -> Any:
        if OmegaConf.is_missing(node, key):
            return "???"
        before = len(self._reading.names)
        inner = node[key]
        return self.plain(inner, place, tuple(dict.fromkeys((*names, *self._reading.names[before:]))))


def _declared_type(keys: Sequence[str], model: type[BaseModel], config: Mapping[str, Any] | DictConfig) -> Any:
    """The type of the values at a key; inside a model's `params` its own class says it."""
    if model is ModelConfig and keys[0] == "params":
        try:
            model, keys = model_class(str(config.get("name"))).Params, keys[1:]
        except UserError:  # It is raised again where the whole config is checked.
            return None
    return type_at(model, keys)


def _value(key: str, word: str, kind: Any) -> Any:
    """The right side of a `key=value` word. Raises UserError."""
    try:
        return read_value(word, kind)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(
            f"{COMMAND_LINE}: {key}={one_line(word, SHOWN_CHARACTERS)}: cannot be read as a value: {reason}"
        ) from None


def checked(model: type[T], config: Resolved, where: str) -> T:
    """A config as `model`, or a UserError that names the key and the nearest match."""
    try:
        valid = model.model_validate(config.values)
        if config.borrowed:
            _refuse_texts(model, valid, config)
        return valid
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}") from None
    except UserError as error:  # The params of a model raise it.
        raise UserError(f"{where}: {error}") from None


def _refuse_texts(model: type[BaseModel], valid: BaseModel, config: Resolved) -> None:
    def is_free(place: Place) -> bool:
        kind = _declared_type([str(key) for key in place], model, config.values)
        return kind is None or takes_text(kind)

    environment.refuse_texts(config.borrowed, valid.model_dump(mode="json"), is_free)
