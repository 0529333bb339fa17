"""Configuration: YAML files and `key=value` words to one checked, frozen `RunConfig` or `ServeConfig`.

Everything a user can get wrong is a `UserError` of one line that names the file or word, the key, and what exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from rambla_ray.config import families, labels, secrets
from rambla_ray.config.dataset import DatasetConfig, fields_of
from rambla_ray.config.environment import Borrowed, Place, by_name, inside, quoting_names, under, without_config_names
from rambla_ray.config.families import Families
from rambla_ray.config.folder import ConfigFolder
from rambla_ray.config.layout import choose_paths
from rambla_ray.config.likelihood import for_likelihood
from rambla_ray.config.model import ModelConfig, RoleModel
from rambla_ray.config.pairs import check_pairs
from rambla_ray.config.resolve import COMMAND_LINE, Overrides, Resolved, checked, override
from rambla_ray.config.run import MODEL_KEYS, RunConfig, RunOptions
from rambla_ray.config.sections import ALL_TASKS
from rambla_ray.config.served import ServeConfig, ServeOptions
from rambla_ray.config.task import TaskConfig
from rambla_ray.config.templates import read_templates
from rambla_ray.config.words import as_typed
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import Role, well_formed
from rambla_ray.storage import Folder

DATASET_KEYS = "task.dataset."  # What overrides a key of the tasks' datasets begins so.

Options = TypeVar("Options", RunOptions, ServeOptions)


def load(words: Sequence[str]) -> RunConfig:
    """The configuration of a run from its command-line words.

    Raises:
        UserError: anything a user can get wrong; nothing has been asked or written.
    """
    with quoting_names():
        return _load(words)


def _load(words: Sequence[str]) -> RunConfig:
    line = _read_words(words, RunOptions)
    options = line.options
    known = line.folder.names("task")
    if ALL_TASKS in known:
        raise UserError(f"task/{ALL_TASKS}.yaml: '{ALL_TASKS}' means every task, so that none has the name: rename it")
    names = [*(known if ALL_TASKS in options.task else ()), *options.task]
    own = {name: _load_task(line, name) for name in dict.fromkeys(names) if name != ALL_TASKS}
    judges = len(options.roles.get(Role.JUDGE, "").split(","))
    tasks = {name: task.with_epochs_of_run(options.epochs).with_judges(judges) for name, task in own.items()}
    datasets = _load_datasets(line, {name: task.dataset for name, task in tasks.items()})
    roles = _load_roles(line, tasks.values())
    config = RunConfig(
        options=options,
        targets=for_likelihood(line.targets, tasks),
        roles=roles,
        tasks=tasks,
        datasets=datasets,
        own_data=any(key == "path" for key, _ in line.overrides["dataset"]),
        changes=line.changes(),
        families=line.families,
    )
    for role, played in roles.items():
        line.borrowed.update(under(played.config.borrowed, "roles", str(role), "config"))
        for number, other in enumerate(played.others):
            line.borrowed.update(under(other.config.borrowed, "roles", str(role), "others", number, "config"))
    config = config.borrowing(line.borrowed)
    _refuse_secrets(words, config, [*line.targets.values(), *(player.config for player in config.players)])
    for name, task in tasks.items():
        try:
            task.check(fields_of(datasets[task.dataset]))
        except ValueError as error:
            raise UserError(f"task {name}: {error}") from None
    if options.until is not None:
        players = {player.config_name: player.config for player in config.players}
        options.until.check(config.targets, {**players, **config.targets})
    of_file = replace(line, overrides={**line.overrides, "task": []})
    check_pairs(tasks, datasets, known, lambda name: _load_task(of_file, name))
    return config.under_its_earlier_name() if _has_earlier_directory(config) else config


def _has_earlier_directory(config: RunConfig) -> bool:
    """Whether an earlier version has begun the run under another name."""
    if not config.has_earlier_name:
        return False
    return Folder(config.under_its_earlier_name().directory).has("config.yaml")


def load_served(words: Sequence[str]) -> ServeConfig:
    """The configuration of what is served, from the words of `jobs/serve.py`. Raises UserError."""
    with quoting_names():
        line = _read_words(words, ServeOptions)
        config = ServeConfig(options=line.options, models=line.targets, families=line.families)
        _refuse_secrets(words, config, line.targets.values())
        return config


@dataclass(frozen=True, slots=True)
class _CommandLine(Generic[Options]):
    """A command line as it was read: the root keys, the models that `model=` names, and the overrides of configs."""

    folder: ConfigFolder
    options: Options
    models: dict[str, ModelConfig]  # by the names of their configs
    targets: dict[str, ModelConfig]  # the same, each with adapters as several
    families: Families
    overrides: Mapping[str, Overrides]  # by the kind of config: root, model, task, dataset
    borrowed: dict[Place, Borrowed]  # what comes from the environment, by its place in the whole config

    def changes(self) -> dict[str, dict[str, Any]]:
        """By target, what the overrides have changed of it."""
        keys = [key for key, _ in self.overrides["model"] if key == "name" or key.split(".")[0] == "params"]
        if not keys:
            return {}
        changed = {
            name: labels.changes(keys, _as_in_its_file(self.folder, name), _stored(model))
            for name, model in self.models.items()
        }
        return {
            target: families.changes_of_one(changed[kin.config_name], kin.adapter)
            if (kin := self.families.get(target))
            else changed[target]
            for target in self.targets
        }


def _read_words(words: Sequence[str], kind: type[Options]) -> _CommandLine[Options]:
    """Read the words of a command whose root keys are those of `kind`, and load the models that they name."""
    pairs = _split(words)
    folder = ConfigFolder(next((value for key, value in reversed(pairs) if key == "conf_dir"), None))
    overrides: dict[str, list[tuple[str, str]]] = {"root": [], "model": [], "task": [], "dataset": []}
    for key, value in pairs:
        if key != "conf_dir":
            section, inner = _section(key, kind)
            overrides[section].append((inner, value))
    defaults = folder.root()
    if kind is ServeOptions:  # The other defaults of config.yaml are those of runs.
        defaults = {"model": defaults["model"]}
    values, borrowed = override(defaults, overrides["root"], COMMAND_LINE, kind)
    root = Resolved(values, without_config_names(borrowed, folder.names))
    options = checked(kind, root, COMMAND_LINE)
    models = {name: _load_model(folder, name, overrides["model"]) for name in options.model}
    targets, kin = families.split(models, folder.names("model"))
    whole = under(root.borrowed, "options")
    for name, target in targets.items():
        whole |= under(target.borrowed, "targets", name)
    return _CommandLine(folder, options, models, targets, kin, overrides, whole)


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
    resolved = override(value, overrides, where, ModelConfig)
    return checked(ModelConfig, resolved, where).borrowing(resolved.borrowed)


def _stored(model: ModelConfig) -> dict[str, Any]:
    stored: dict[str, Any] = by_name(model.model_dump(mode="json"), model.borrowed)
    return stored


def _as_in_its_file(folder: ConfigFolder, name: str) -> dict[str, Any]:
    """A model config without overrides. What its file lacks to be one, such as a variable, the overrides may bring."""
    try:
        return _stored(_load_model(folder, name, []))
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
        first, *others = (_load_player(line.folder, name, role) for name in line.options.roles[role].split(","))
        roles[role] = first.model_copy(update={"others": tuple(others)})
    return roles


def _load_player(folder: ConfigFolder, name: str, role: Role) -> RoleModel:
    config = _load_model(folder, name, [])
    families.refuse(config, name, role)
    return RoleModel(config_name=name, config=config)


def _load_task(line: _CommandLine[RunOptions], name: str) -> TaskConfig:
    value, path = line.folder.read_config("task", name)
    where = f"task {name} ({path.name})"
    merged = override(value, line.overrides["task"], where, TaskConfig)
    read_templates(merged.values.get("stages"), path, where)
    line.borrowed.update(under(merged.borrowed, "tasks", name))
    return checked(TaskConfig, merged, where)


def _load_datasets(line: _CommandLine[RunOptions], by_task: Mapping[str, str]) -> dict[str, DatasetConfig]:
    """The datasets of the tasks, each by its name.

    Args:
        line: the command line. Its words `task.dataset.path=` go to the datasets whose format their file is in.
        by_task: each task's dataset.
    """
    read = {name: line.folder.read_config("dataset", name) for name in dict.fromkeys(by_task.values())}
    overrides = [(key, value) for key, value in line.overrides["dataset"] if key != "path"]
    whole = override({}, overrides, COMMAND_LINE, DatasetConfig).values
    words = [(word, _path_of(word)) for key, word in line.overrides["dataset"] if key == "path"]
    paths = choose_paths({name: {**value, **whole} for name, (value, _) in read.items()}, words, by_task)
    return {
        name: _load_dataset(line, name, path, value, [*overrides, *_path_override(paths, name)])
        for name, (value, path) in read.items()
    }


def _path_of(word: str) -> str:
    return str(override({}, [("path", word)], COMMAND_LINE, DatasetConfig).values["path"])


def _path_override(paths: Mapping[str, str], name: str) -> Overrides:
    return [("path", paths[name])] if name in paths else []


def _load_dataset(
    line: _CommandLine[RunOptions], name: str, path: Path, value: dict[str, Any], overrides: Overrides
) -> DatasetConfig:
    where = f"dataset {name} ({path.name})"
    values, borrowed = override(value, overrides, where, DatasetConfig)
    if line.options.limit is not None:
        values["limit"] = line.options.limit
        borrowed = {place: one for place, one in borrowed.items() if place != ("limit",)}
        borrowed |= under(inside(line.borrowed, "options", "limit"), "limit")
    line.borrowed.update(under(borrowed, "datasets", name))
    return checked(DatasetConfig, Resolved(values, borrowed), where)


def _refuse_secrets(words: Sequence[str], config: RunConfig | ServeConfig, models: Iterable[ModelConfig]) -> None:
    for model in models:
        model.hide()
    secrets.refuse({COMMAND_LINE: list(words), **config.model_dump(mode="json")}, config.key_variables)
