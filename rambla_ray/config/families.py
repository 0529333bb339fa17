"""Families: the targets that one model config with several adapters is, each with rows and files of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from rambla_ray.config.labels import Changes
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Name
from rambla_ray.errors import UserError

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class Kin(NamedTuple):
    """Where a target comes from that is one adapter of a config."""

    config_name: str
    adapter: str


Families = Mapping[str, Kin]  # By target, of those that are one adapter of several.


def split(models: Mapping[str, ModelConfig], known: Collection[str]) -> tuple[dict[str, ModelConfig], dict[str, Kin]]:
    """Each config as the targets that it is: `llama_ft` with the adapters a and b is `llama_ft-a` and `llama_ft-b`.

    Args:
        models: configs by name.
        known: the names of all configs.

    Raises:
        UserError: a target would have the name of another config or target, or one that is too long.
    """
    targets: dict[str, ModelConfig] = {}
    families: dict[str, Kin] = {}
    for name, model in models.items():
        if not model.params.variants:
            targets[name] = model
        for adapter, params in model.params.variants.items():
            target = f"{name}-{adapter}"
            _check(target, name, adapter, {*known, *models, *targets})
            targets[target] = model.with_params(params)
            families[target] = Kin(name, adapter)
    return targets, families


def _check(target: str, name: str, adapter: str, taken: Collection[str]) -> None:
    where = f"model {name}: params.adapters.{adapter} would be the target {target}"
    if target in taken:
        raise UserError(f"{where}, and another model has that name; give the adapter another name")
    try:
        _NAME.validate_python(target)
    except ValidationError:
        raise UserError(f"{where}, which is too long for a name; give the adapter a shorter one") from None


def refuse(model: ModelConfig, name: str, role: str) -> None:
    """Raise a UserError where a model that plays a role has several adapters: which of them would play it?"""
    if model.params.variants:
        raise UserError(
            f"model {name} has several adapters, and a {role} is one model; choose a config with params.adapter"
        )


def by_config(targets: Collection[str], families: Families) -> dict[str, tuple[str, ...]]:
    """The targets by the config that they are, whose actors answer for all of them."""
    groups: dict[str, list[str]] = {}
    for target in targets:
        groups.setdefault(families[target].config_name if target in families else target, []).append(target)
    return {name: tuple(group) for name, group in groups.items()}


def changes_of_one(changes: Changes, adapter: str) -> dict[str, Any]:
    """What the command line changed of one target of a family: of the adapters, its own alone."""
    others = {key: value for key, value in changes.items() if not key.startswith("adapters.")}
    own = f"adapters.{adapter}"
    return {**others, **({"adapter": changes[own]} if own in changes else {})}
