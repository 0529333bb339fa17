"""Configuration: YAML files and `key=value` words to one checked, frozen `RunConfig`.

Everything a user can get wrong is a `UserError` of one line that names the file or word, the key, and what exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ValidationError,
)

from rambla_ray.config import secrets
from rambla_ray.config.dataset import DatasetConfig, fields_of
from rambla_ray.config.explain import explain
from rambla_ray.config.folder import ConfigFolder, package_dir
from rambla_ray.config.model import ModelConfig, RoleModel
from rambla_ray.config.run import (
    OF_MODELS,
    RunConfig,
    RunOptions,
    ServeConfig,
    ServeOptions,
    key_variables,
)
from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import Role

T = TypeVar("T", bound=BaseModel)
OmegaConf.register_resolver("package_dir", package_dir, replace=True)
OmegaConf.register_resolver("oc.env", secrets.variable, replace=True)


def _override(config: dict[str, Any], words: Iterable[tuple[str, str]], where: str) -> dict[str, Any]:
    """`config` with dotted `key=value` words laid over it and interpolations resolved."""
    try:
        merged = OmegaConf.create(config)
        for key, value in words:
            OmegaConf.update(merged, key, _value(key, value), merge=False, force_add=True)
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
        missing = re.search(r"Environment variable '(\w+)' not found", reason)
        if missing:
            reason = f"needs the environment variable {missing[1]}, which is not set"
        place = getattr(error, "full_key", None)
        raise UserError(f"{where}: {f'{place}: ' if place else ''}{reason}") from None


def _value(key: str, word: str) -> Any:
    """The right side of a `key=value` word, read as YAML."""
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {word}"), resolve=False)
        return parsed["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"command line: {key}={word[:60]}: cannot be read as a value: {reason}") from None


def _checked(model: type[T], value: Any, where: str) -> T:
    """`value` as `model`, or a UserError that names the key and the nearest match."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}") from None
    except UserError as error:  # of a model's params
        raise UserError(f"{where}: {error}") from None


def _split(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"'{word}' is not key=value; see --help")
        pairs.append((key, value))
    return pairs


def load(words: Sequence[str]) -> RunConfig:
    """The configuration of a run from its command-line words.

    Raises:
        UserError: anything a user can get wrong; nothing has been asked or written.
    """
    pairs = _split(words)
    conf_dir = next((value for key, value in reversed(pairs) if key == "conf_dir"), None)
    folder = ConfigFolder(conf_dir)
    own: dict[str, list[tuple[str, str]]] = {"root": [], "model": [], "task": [], "dataset": []}
    for key, value in pairs:
        head, _, rest = key.partition(".")
        if key == "conf_dir":
            continue
        if key.startswith("task.dataset."):
            own["dataset"].append((key.removeprefix("task.dataset."), value))
        elif head in ("model", "task") and rest:
            own[head].append((rest, value))
        elif head in ("pool", "rate"):
            own["model"].append((key, value))
        elif head in RunOptions.model_fields:
            own["root"].append((key, value))
        else:
            known = [*RunOptions.model_fields, *OF_MODELS]
            raise UserError(f"no key '{key}'; {choose_from(head, known)}")
    options = _checked(RunOptions, _override(folder.root(), own["root"], "command line"), "command line")
    targets = {name: _load_model(folder, name, own["model"]) for name in options.model}
    names = [*(folder.names("task") if "all" in options.task else ()), *options.task]
    tasks = {name: _load_task(folder, name, own["task"]) for name in dict.fromkeys(names) if name != "all"}
    found = {
        task.dataset: _load_dataset(folder, task.dataset, own["dataset"], options.limit) for task in tasks.values()
    }
    for name, task in tasks.items():
        try:
            task.check(fields_of(found[task.dataset]))
        except ValueError as error:
            raise UserError(f"task {name}: {error}") from None
    roles = {}
    for role in dict.fromkeys(stage.role for task in tasks.values() for stage in task.generates):
        if role == Role.TARGET:
            continue
        if role not in options.roles:
            raise UserError(f"nobody plays the {role}; choose one with roles.{role}=<model>")
        config_name = options.roles[role]
        roles[role] = RoleModel(config_name=config_name, config=_load_model(folder, config_name, []))
    config = RunConfig(
        options=options,
        targets=targets,
        roles=roles,
        tasks=tasks,
        datasets=found,
        own_data=any(key == "path" for key, _ in own["dataset"]),
    )
    secrets.refuse({"command line": list(words), **config.model_dump(mode="json")}, config.key_variables)
    return config


def load_served(words: Sequence[str]) -> ServeConfig:
    """What to serve, from the command line of `jobs/serve.py`. Raises UserError."""
    pairs = _split(words)
    folder = ConfigFolder(next((value for key, value in reversed(pairs) if key == "conf_dir"), None))
    root, models = [], []
    for key, value in pairs:
        head, _, rest = key.partition(".")
        if head == "model" and rest:
            models.append((rest, value))
        elif head in ("pool", "rate"):
            models.append((key, value))
        elif head in ServeOptions.model_fields:
            root.append((key, value))
        elif key != "conf_dir":
            raise UserError(f"no key '{key}'; {choose_from(head, [*ServeOptions.model_fields, *OF_MODELS])}")
    default = {"model": folder.root()["model"]}
    options = _checked(ServeOptions, _override(default, root, "command line"), "command line")
    config = ServeConfig(options=options, models={name: _load_model(folder, name, models) for name in options.model})
    variables = key_variables(config.models.values())
    secrets.refuse({"command line": list(words), **config.model_dump(mode="json")}, variables)
    return config


def _load_model(folder: ConfigFolder, name: str, overrides: list[tuple[str, str]]) -> ModelConfig:
    value, path = folder.load("model", name)
    where = f"model {name} ({path.name})"
    return _checked(ModelConfig, _override(value, overrides, where), where)


def _load_task(folder: ConfigFolder, name: str, overrides: list[tuple[str, str]]) -> TaskConfig:
    value, path = folder.load("task", name)
    where = f"task {name} ({path.name})"
    merged = _override(value, overrides, where)
    stages = merged.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        body = next(iter(stage.values()), None) if isinstance(stage, Mapping) else None
        if isinstance(body, dict) and "template_file" in body:
            file = Path(os.path.abspath(path.parent / str(body.pop("template_file"))))
            conf = os.path.abspath(path.parent.parent)
            if not file.is_relative_to(conf):
                raise UserError(f"{where}: template_file {file} is outside of {conf}; copy it there")
            try:
                body["template"] = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"{where}: template_file {file}: {reason}") from None
    return _checked(TaskConfig, merged, where)


def _load_dataset(
    folder: ConfigFolder, name: str, overrides: list[tuple[str, str]], limit: int | None
) -> DatasetConfig:
    value, path = folder.load("dataset", name)
    where = f"dataset {name} ({path.name})"
    merged = _override(value, overrides, where)
    if limit is not None:
        merged["limit"] = limit
    return _checked(DatasetConfig, merged, where)
