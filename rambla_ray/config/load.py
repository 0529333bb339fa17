"""Configuration: YAML files and `key=value` words to one checked, frozen `RunConfig` or `ServeConfig`.

Everything a user can get wrong is a `UserError` of one line that names the file or word, the key, and what exists.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from rambla_ray.config import labels, secrets
from rambla_ray.config.dataset import DatasetConfig, fields_of
from rambla_ray.config.explain import explain
from rambla_ray.config.folder import ConfigFolder, package_dir
from rambla_ray.config.layout import choose_paths
from rambla_ray.config.model import ModelConfig, RoleModel
from rambla_ray.config.run import MODEL_KEYS, RunConfig, RunOptions, ServeConfig, ServeOptions
from rambla_ray.config.task import TaskConfig
from rambla_ray.config.words import as_typed, read_value, type_at
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.registry import model_class
from rambla_ray.schema import Role, well_formed
from rambla_ray.storage import Folder, decoded, reason_of

COMMAND_LINE = "command line"  # The place that messages name for what was typed.
DATASET_KEYS = "task.dataset."  # What overrides a key of the tasks' datasets begins so.

Overrides = list[tuple[str, str]]  # dotted keys inside a config, and their values as words
T = TypeVar("T", bound=BaseModel)
Options = TypeVar("Options", RunOptions, ServeOptions)

OmegaConf.register_resolver("package_dir", package_dir, replace=True)
OmegaConf.register_resolver("oc.env", secrets.variable, replace=True)


def load(words: Sequence[str]) -> RunConfig:
    """The configuration of a run from its command-line words.

    Raises:
        UserError: anything a user can get wrong; nothing has been asked or written.
    """
    line = _read_words(words, RunOptions)
    options = line.options
    names = [*(line.folder.names("task") if "all" in options.task else ()), *options.task]
    tasks = {name: _load_task(line, name) for name in dict.fromkeys(names) if name != "all"}
    datasets = _load_datasets(line, {name: task.dataset for name, task in tasks.items()})
    config = RunConfig(
        options=options,
        targets=line.targets,
        roles=_load_roles(line, tasks.values()),
        tasks=tasks,
        datasets=datasets,
        own_data=any(key == "path" for key, _ in line.overrides["dataset"]),
        changes=line.changes(),
    )
    _refuse_secrets(words, config)
    for name, task in tasks.items():
        try:
            task.check(fields_of(datasets[task.dataset]))
        except ValueError as error:
            raise UserError(f"task {name}: {error}") from None
    return config.under_its_earlier_name() if _has_earlier_directory(config) else config


def _has_earlier_directory(config: RunConfig) -> bool:
    """Whether an earlier version has begun the run under another name."""
    if not config.has_earlier_name:
        return False
    return Folder(f"{config.options.runs_dir.rstrip('/')}/{config.earlier_run_id}").has("config.yaml")


def load_served(words: Sequence[str]) -> ServeConfig:
    """The configuration of what is served, from the words of `jobs/serve.py`. Raises UserError."""
    line = _read_words(words, ServeOptions)
    config = ServeConfig(options=line.options, models=line.targets)
    _refuse_secrets(words, config)
    return config


@dataclass(frozen=True, slots=True)
class _CommandLine(Generic[Options]):
    """A command line as it was read: the root keys, the models that `model=` names, and the overrides of configs."""

    folder: ConfigFolder
    options: Options
    targets: dict[str, ModelConfig]
    overrides: Mapping[str, Overrides]  # by the kind of config: root, model, task, dataset

    def changes(self) -> dict[str, dict[str, Any]]:
        """By target, what the overrides have changed of it."""
        keys = [key for key, _ in self.overrides["model"] if key == "name" or key.split(".")[0] == "params"]
        if not keys:
            return {}
        return {
            name: labels.changes(keys, _as_in_its_file(self.folder, name), model.model_dump(mode="json"))
            for name, model in self.targets.items()
        }


def _read_words(words: Sequence[str], kind: type[Options]) -> _CommandLine[Options]:
    """Read the words of a command whose root keys are those of `kind`, and load the models that they name."""
    pairs = _split(words)
    folder = ConfigFolder(next((value for key, value in reversed(pairs) if key == "conf_dir"), None))
    overrides: dict[str, Overrides] = {"root": [], "model": [], "task": [], "dataset": []}
    for key, value in pairs:
        if key != "conf_dir":
            section, inner = _section(key, kind)
            overrides[section].append((inner, value))
    defaults = folder.root()
    if kind is ServeOptions:  # The other defaults of config.yaml are those of runs.
        defaults = {"model": defaults["model"]}
    options = _checked(kind, _override(defaults, overrides["root"], COMMAND_LINE, kind), COMMAND_LINE)
    targets = {name: _load_model(folder, name, overrides["model"]) for name in options.model}
    return _CommandLine(folder, options, targets, overrides)


def _split(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in map(as_typed, words):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"'{one_line(word, SHOWN_CHARACTERS)}' is not key=value; see --help")
        if well_formed(word) != word:
            raise UserError(
                f"{COMMAND_LINE}: {key}={value[:SHOWN_CHARACTERS]!a}: its bytes are no text in this locale; use UTF-8"
            )
        pairs.append((key, value.removesuffix("\r")))  # A script that was written on Windows ends its lines so.
    return pairs


def _section(key: str, options: type[BaseModel]) -> tuple[str, str]:
    """Which config a dotted key belongs to, and the key inside it. Raises UserError for a key that does not exist."""
    head, _, rest = key.partition(".")
    if head in options.model_fields:
        if key.startswith(DATASET_KEYS):
            return "dataset", key.removeprefix(DATASET_KEYS)
        return (head, rest) if head in ("model", "task") and rest else ("root", key)
    if head in ("pool", "rate"):
        return "model", key
    raise UserError(
        f"no key '{one_line(key, SHOWN_CHARACTERS)}'; {choose_from(head, [*options.model_fields, *MODEL_KEYS])}"
    )


def _load_model(folder: ConfigFolder, name: str, overrides: Overrides) -> ModelConfig:
    value, path = folder.read_config("model", name)
    where = f"model {name} ({path.name})"
    return _checked(ModelConfig, _override(value, overrides, where, ModelConfig), where)


def _as_in_its_file(folder: ConfigFolder, name: str) -> dict[str, Any]:
    """A model config without overrides. What its file lacks to be one, such as a variable, the overrides may bring."""
    try:
        return _load_model(folder, name, []).model_dump(mode="json")
    except UserError:
        return folder.read_config("model", name)[0]


def _load_roles(line: _CommandLine[RunOptions], tasks: Iterable[TaskConfig]) -> dict[Role, RoleModel]:
    """The model of each role, other than the target, that a stage of the tasks asks; and of the reader, if given."""
    roles: dict[Role, RoleModel] = {}
    asked = dict.fromkeys(stage.role for task in tasks for stage in task.generates)
    for role in [*asked, *({Role.READER} & line.options.roles.keys())]:
        if role == Role.TARGET:
            continue
        if role not in line.options.roles:
            raise UserError(f"nobody plays the {role}; choose one with roles.{role}=<model>")
        config_name = line.options.roles[role]
        roles[role] = RoleModel(config_name=config_name, config=_load_model(line.folder, config_name, []))
    return roles


def _load_task(line: _CommandLine[RunOptions], name: str) -> TaskConfig:
    value, path = line.folder.read_config("task", name)
    where = f"task {name} ({path.name})"
    merged = _override(value, line.overrides["task"], where, TaskConfig)
    stages = merged.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        body = next(iter(stage.values()), None) if isinstance(stage, Mapping) else None
        if isinstance(body, dict) and "template_file" in body:
            body["template"] = _read_template(str(body.pop("template_file")), path, where)
    return _checked(TaskConfig, merged, where)


def _read_template(name: str, task_file: Path, where: str) -> str:
    """The text of a `template_file`, which a task's file names relative to itself."""
    file = Path(os.path.abspath(task_file.parent / name))
    conf = os.path.abspath(task_file.parent.parent)
    if not file.is_relative_to(conf):
        raise UserError(f"{where}: template_file {file} is outside of {conf}; copy it there")
    try:
        return io.StringIO(decoded(file.read_bytes()), newline=None).read()
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise UserError(f"{where}: template_file {file}: {reason}") from None


def _load_datasets(line: _CommandLine[RunOptions], by_task: Mapping[str, str]) -> dict[str, DatasetConfig]:
    """The datasets of the tasks, each by its name.

    Args:
        line: the command line. Its words `task.dataset.path=` go to the datasets whose format their file is in.
        by_task: each task's dataset.
    """
    read = {name: line.folder.read_config("dataset", name) for name in dict.fromkeys(by_task.values())}
    overrides = [(key, value) for key, value in line.overrides["dataset"] if key != "path"]
    whole = _override({}, overrides, COMMAND_LINE, DatasetConfig)
    words = [(word, _path_of(word)) for key, word in line.overrides["dataset"] if key == "path"]
    paths = choose_paths({name: {**value, **whole} for name, (value, _) in read.items()}, words, by_task)
    return {
        name: _load_dataset(name, path, value, [*overrides, *_path_override(paths, name)], line.options.limit)
        for name, (value, path) in read.items()
    }


def _path_of(word: str) -> str:
    return str(_override({}, [("path", word)], COMMAND_LINE, DatasetConfig)["path"])


def _path_override(paths: Mapping[str, str], name: str) -> Overrides:
    return [("path", paths[name])] if name in paths else []


def _load_dataset(
    name: str, path: Path, value: dict[str, Any], overrides: Overrides, limit: int | None
) -> DatasetConfig:
    where = f"dataset {name} ({path.name})"
    merged = _override(value, overrides, where, DatasetConfig)
    if limit is not None:
        merged["limit"] = limit
    return _checked(DatasetConfig, merged, where)


def _override(config: dict[str, Any], overrides: Overrides, where: str, model: type[BaseModel]) -> dict[str, Any]:
    """`config` with values of the command line in the place of its own, and interpolations resolved."""
    try:
        merged = OmegaConf.create(config)
        for key, word in overrides:
            value = _value(key, word, _declared_type(key, model, merged))
            OmegaConf.update(merged, key, value, merge=False, force_add=True)
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
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


def _declared_type(key: str, model: type[BaseModel], config: DictConfig) -> Any:
    """The type of the values at a key; inside a model's `params` its own class says it."""
    keys = key.split(".")
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


def _checked(model: type[T], value: Any, where: str) -> T:
    """`value` as `model`, or a UserError that names the key and the nearest match."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}") from None
    except UserError as error:  # The params of a model raise it.
        raise UserError(f"{where}: {error}") from None


def _refuse_secrets(words: Sequence[str], config: RunConfig | ServeConfig) -> None:
    secrets.refuse({COMMAND_LINE: list(words), **config.model_dump(mode="json")}, config.key_variables)
