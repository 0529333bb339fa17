"""Configuration: YAML files and `key=value` words to one checked, frozen `RunConfig`.

Everything a user can get wrong is a `UserError` of one line that names the file or word, the key, and what exists.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from rambla_ray import datasets, secrets
from rambla_ray.datasets import DatasetConfig
from rambla_ray.errors import UserError, choose_from
from rambla_ray.registry import model_class
from rambla_ray.schema import Role, canonical_json
from rambla_ray.stages import STAGES, Generate, Stage, Transform, check_order, parse_stage

T = TypeVar("T", bound=BaseModel)
SHIPPED_CONF = Path(__file__).resolve().parent.parent / "conf"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Choice = Annotated[str, Field(pattern=r"^\w[\w -]*$")]


class Closed(BaseModel):
    """A config section: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Pool(Closed):
    """The Ray actors of one model config. All optional; the plan settles what is not given."""

    min_size: int = Field(1, ge=1, description="actors to start with")
    max_size: int | None = Field(None, ge=1, description="actors at most; min_size when not given")
    num_cpus: float | None = Field(None, ge=0, description="CPUs of one actor; API models take none")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of one actor; one for a local model where there are any"
    )
    batch_size: int | Literal["auto"] = Field("auto", description="requests a local model answers together")
    max_concurrency: int = Field(64, ge=1, le=4096, description="requests one actor has in flight")

    @property
    def largest(self) -> int:
        """How many actors there can be."""
        return self.max_size or self.min_size

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is below min_size {self.min_size}")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} is below 1")
        return self


class Rate(Closed):
    """What an endpoint allows, held for the whole cluster by its governor, and how long a request may take.

    Without a limit the number of calls in flight adapts to what the endpoint takes.
    """

    requests_per_minute: int | None = Field(None, gt=0, description="requests in any minute")
    tokens_per_minute: int | None = Field(None, gt=0, description="prompt and answer tokens in any minute")
    timeout_s: float = Field(180.0, gt=0, le=3600, description="how long one call may take")
    give_up_after_s: float = Field(900.0, gt=0, le=86400, description="how long a request may take, waits included")
    hedge: bool = Field(False, description="ask again what takes longer than 95 % of the calls; first answer wins")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class Chaos(Closed):
    """Faults to inject into the calls of API models and the mock, to see that a run survives them."""

    http429: float = Field(0.0, ge=0, le=1, description="share of calls answered with 429 and a Retry-After")
    http500: float = Field(0.0, ge=0, le=1, description="share of calls answered with 500")
    reset: float = Field(0.0, ge=0, le=1, description="share of calls whose connection is reset")
    garbage: float = Field(0.0, ge=0, le=1, description="share of calls whose reply is not what the API promises")
    kill_actor_every: int | None = Field(None, ge=2, description="calls after which an actor kills its own process")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.http429 + self.http500 + self.reset + self.garbage > 1:
            raise ValueError("http429, http500, reset and garbage are shares of all calls and add up to more than 1")
        return self

    @property
    def is_set(self) -> bool:
        """Whether anything is to be injected."""
        return self != Chaos()


class Budget(Closed):
    """What a run may spend in all, over all its invocations; no call is made beyond it."""

    usd: float | None = Field(None, ge=0, description="US dollars, by the price of each model config")
    tokens: int | None = Field(None, ge=0, description="prompt and answer tokens")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.usd is not None or self.tokens is not None


class Price(Closed):
    """What an endpoint charges, in US dollars per million tokens."""

    input_per_million: float = Field(ge=0, description="for prompt tokens")
    output_per_million: float = Field(ge=0, description="for answer tokens")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many tokens."""
        return (prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million) / 1_000_000


class ModelConfig(Closed):
    """`conf/model/<name>.yaml`: what to run (RAmBLA's `name` and `params`), and optionally how."""

    name: str = Field(description="a key of MODEL_MAP")
    params: dict[str, Any] = Field(default_factory=dict, description="the model's own parameters")
    pool: Pool = Field(default_factory=Pool, description="the actors that run it")
    rate: Rate = Field(default_factory=Rate, description="the endpoint's limits")
    price: Price | None = Field(None, description="what the endpoint charges; without it no cost is reported")


class Answer(Closed):
    """How a task's answer is read and scored."""

    choices: tuple[Choice, ...] = Field(min_length=2, description="what may be answered, as plain words")
    target: str = Field(description="the field that holds the right answer")
    labels: dict[Choice, str] | None = Field(
        None, description="the label that each choice stands for, where they are not the same"
    )
    expect: str | None = Field(None, description="the right label for every item, in place of the target's")
    reads: str = Field("response", description="the field the answer is read from")

    @model_validator(mode="after")
    def _choices_and_labels_fit(self) -> Self:
        if any(choice != choice.lower() for choice in self.choices):
            raise ValueError("choices are written in lower case")
        for one, other in itertools.permutations(self.choices, 2):
            if other.startswith(one):
                raise ValueError(f"choices '{one}' and '{other}' overlap; no reader could tell them apart")
        if self.labels is not None and set(self.labels) != set(self.choices):
            raise ValueError(f"labels must name every choice, and nothing else: {', '.join(self.choices)}")
        if self.expect is not None and self.expect not in self.label_names:
            raise ValueError(f"expect '{self.expect}' is not among the labels {', '.join(self.label_names)}")
        return self

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """What the right answer, and an answer that was read, can be."""
        return tuple(dict.fromkeys(self.labels.values())) if self.labels else self.choices

    def label_of(self, choice: str) -> str:
        """The label that a choice stands for."""
        return self.labels[choice] if self.labels else choice

    def choice_for(self, label: str) -> str:
        """A choice that stands for a label."""
        return next(choice for choice in self.choices if self.label_of(choice) == label)


def _parsed_stages(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a task needs a list of stages")
    parsed = []
    for number, stage in enumerate(value, start=1):
        try:
            parsed.append(parse_stage(stage))
        except ValidationError as error:
            kind = stage if isinstance(stage, str) else next(iter(stage))
            raise ValueError(f"stage {number}: {explain(error, STAGES[kind], kind)}") from None
    return parsed


class TaskConfig(Closed):
    """`conf/task/<name>.yaml`: a dataset, stages, and how the answer is read."""

    dataset: Name = Field(description="a file in conf/dataset")
    pair_with: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[\w=.-]+)?$",
        description="the task, or task/variant, whose answers to the same items these are compared with",
    )
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_parsed_stages)] = Field(description="in order")
    answer: Answer

    @field_serializer("stages")
    def _stages_as_yaml(self, stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
        return [{stage.kind: stage.model_dump(mode="json", by_alias=True)} for stage in stages]

    @property
    def variants(self) -> tuple[str, ...]:
        """The values that vary inside this task; a single empty one when nothing does."""
        many = [stage.variants() for stage in self.stages if isinstance(stage, Transform)]
        return next((variants for variants in many if variants != ("",)), ("",))

    @cached_property
    def generates(self) -> tuple[Generate, ...]:
        """The stages that ask a role, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, Generate))

    def check(self, given: frozenset[str]) -> None:
        """Refuse stages and answers that read what neither the dataset gives nor a stage writes. Raises ValueError."""
        fields = check_order(self.stages, given)
        for key, name in (("answer.target", self.answer.target), ("answer.reads", self.answer.reads)):
            if name not in fields:
                raise ValueError(f"{key} is '{name}', which nothing writes; {choose_from(name, fields)}")
        if self.answer.reads != self.generates[-1].output:
            raise ValueError(
                f"answer.reads is '{self.answer.reads}', but the last generate writes '{self.generates[-1].output}'"
            )


class FailIf(Closed):
    """Gates: conditions on the result that make the run exit with 3."""

    coverage_below: float | None = Field(None, ge=0, le=1, description="any cell's share of scored samples")


class RoleModel(Closed):
    """The model config that plays a role."""

    config_name: Name
    config: ModelConfig


def _words(value: Any) -> Any:
    return [word for word in value.split(",") if word] if isinstance(value, str) else value


Names = Annotated[tuple[Name, ...], BeforeValidator(_words), Field(min_length=1)]


def cluster_address(given: str | None) -> str:
    """The cluster that is meant: the one given, else the one that RAY_ADDRESS names, else a local one."""
    return given or os.environ.get("RAY_ADDRESS") or "local"


class Options(Closed):
    """The root keys: `conf/config.yaml`, and what the command line may set."""

    model: Names = Field(description="model configs to test, separated by commas")
    task: Names = Field(description="tasks, separated by commas, or 'all'")
    data: Literal["demo", "full"] = Field("demo", description="the shipped demo sets, or the datasets' own path")
    limit: int | None = Field(None, gt=0, description="the first N items of each dataset")
    seed: int = Field(1234, ge=0, lt=2**32, description="for stages that set none of their own")
    roles: dict[Role, Name] = Field(description="the model config of each role other than the target")
    run_id: Name | None = Field(None, description="name of the run's folder; made from the config when not given")
    runs_dir: str = Field("runs", description="where runs are kept")
    ledger: str | None = Field(None, description="the store of answers; <runs_dir>/ledger when not given")
    address: str | None = Field(
        None,
        description="auto (a cluster running on this machine, else a local one) | local | host:port; when not "
        "given, the cluster that RAY_ADDRESS names, as it does in a job, else a local one",
    )
    dry_run: bool = Field(False, description="print the plan and stop")
    doctor: bool = Field(False, description="check every node, and each endpoint, and stop")
    verbose: bool = Field(False, description="let Ray's own log lines through")
    fail_if: FailIf = Field(default_factory=FailIf, description="gates on the result")
    budget: Budget = Field(default_factory=Budget, description="what the run may spend")
    chaos: Chaos = Field(default_factory=Chaos, description="faults to inject")

    @field_validator("roles")
    @classmethod
    def _target_is_not_given_here(cls, roles: dict[Role, str]) -> dict[Role, str]:
        if Role.TARGET in roles:
            raise ValueError("the target is chosen with model=<name>")
        return roles

    @field_validator("run_id")
    @classmethod
    def _not_the_ledger(cls, run_id: str | None) -> str | None:
        if run_id == "ledger":
            raise ValueError("'ledger' is where answers are kept; choose another name")
        return run_id


OF_MODELS = ("conf_dir", "pool", "rate")  # keys of the command line beside the options

# What may differ between two invocations of one run: where and how it runs, not what is asked.
OPERATIONAL = frozenset(
    {
        *("run_id", "runs_dir", "ledger", "address", "dry_run", "doctor", "verbose", "fail_if", "task", "model"),
        *("budget", "chaos"),
    }
)


class RunConfig(Closed):
    """Everything a run is made of, resolved: what `config.yaml` in a run directory holds."""

    options: Options
    targets: dict[str, ModelConfig]
    roles: dict[Role, RoleModel]
    tasks: dict[str, TaskConfig]
    datasets: dict[str, DatasetConfig]
    own_data: bool = Field(description="task.dataset.path was given, so the demo sets are not read")

    @property
    def synthetic(self) -> bool:
        """Whether the items are the shipped demo set, so that no number is a benchmark result."""
        return self.options.data == "demo" and not self.own_data

    @property
    def run_id(self) -> str:
        """The run's name: the same for the same questions to the same models."""
        if self.options.run_id:
            return self.options.run_id
        digest = hashlib.sha256(canonical_json(self.question()).encode()).hexdigest()[:8]
        tasks = next(iter(self.tasks)) if len(self.tasks) == 1 else f"{len(self.tasks)}tasks"
        return "-".join([*self.targets, tasks, digest])[-120:].lstrip("-._")

    @property
    def ledger(self) -> str:
        """Where answers are kept."""
        return self.options.ledger or f"{self.options.runs_dir.rstrip('/')}/ledger"

    @property
    def key_variables(self) -> frozenset[str]:
        """The environment variables that hold the keys of the run's models."""
        models = [*self.targets.values(), *(role.config for role in self.roles.values())]
        return frozenset(str(model.params["api_key_var"]) for model in models if "api_key_var" in model.params)

    def question(self) -> dict[str, Any]:
        """What the run asks, without where and how it runs: two invocations that agree here are the same run."""
        whole = self.model_dump(mode="json")
        for key in OPERATIONAL & whole["options"].keys():
            del whole["options"][key]
        for config in [*whole["targets"].values(), *(role["config"] for role in whole["roles"].values())]:
            del config["pool"], config["rate"], config["price"]
        del whole["options"]["roles"]  # those in use stand under `roles`
        return whole


class ServeOptions(Closed):
    """The root keys of `jobs/serve.py`."""

    model: Names = Field(description="model configs to serve, separated by commas")
    host: str = Field("127.0.0.1", description="where to listen; another than this machine's own needs a key")
    port: int = Field(8000, ge=0, lt=2**16, description="0 for any that is free")
    address: str | None = Field(None, description="auto | local | host:port, as for a run")
    verbose: bool = Field(False, description="let Ray's own log lines through")


class ServeConfig(Closed):
    """Everything that is served, resolved."""

    options: ServeOptions
    models: dict[str, ModelConfig]


class ConfigFolder:
    """`conf/`: the user's folder first, if there is one, then the shipped one."""

    def __init__(self, conf_dir: str | None) -> None:
        if conf_dir is not None and not Path(conf_dir).is_dir():
            raise UserError(f"conf_dir={conf_dir}: there is no such folder")
        self._folders = [*([Path(conf_dir)] if conf_dir else []), SHIPPED_CONF]

    def names(self, group: str) -> list[str]:
        """The configs of a group (model, task, dataset), sorted."""
        return sorted({path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")})

    def load(self, group: str, name: str) -> tuple[dict[str, Any], Path]:
        """One config and its file. Raises UserError when there is none, or it cannot be read."""
        for folder in self._folders:
            path = folder / group / f"{name}.yaml"
            if path.is_file() and path.parent == folder / group:
                return _read_yaml(path), path
        raise UserError(f"no {group} {name!r}; {choose_from(name, self.names(group))}")

    def root(self) -> dict[str, Any]:
        """`config.yaml`: the defaults, the user's over the shipped."""
        merged: dict[str, Any] = {}
        for folder in reversed(self._folders):
            if (folder / "config.yaml").is_file():
                merged |= _read_yaml(folder / "config.yaml")
        return merged


def _package_dir(package: str) -> str:
    """Resolver `${package_dir:NAME}`: the folder of an installed package, without importing it."""
    if not package.isidentifier():
        raise ValueError(f"'{package}' is not the name of a package")  # of a dotted one, the outer would be imported
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ValueError(f"package {package} is not installed: pip install --no-deps {distribution}")
    return str(spec.submodule_search_locations[0])


OmegaConf.register_resolver("package_dir", _package_dir, replace=True)
OmegaConf.register_resolver("oc.env", secrets.variable, replace=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:  # OmegaConf's own, without a number, says that a file holds a bare value
        reason = f"cannot be read: {error.strerror}" if error.errno else "expected keys and values"
        raise UserError(f"{path}: {reason}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values")
    return cast(dict[str, Any], value)


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


def explain(error: ValidationError, model: type[BaseModel], inside: str = "") -> str:
    """The first fault of a validation error in one line.

    Args:
        error: what pydantic said.
        model: the model that was validated.
        inside: the key under which that model stands.
    """
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])  # a typo explains most
    location = [str(part) for part in fault["loc"]]
    key = ".".join([inside, *location] if inside else location)
    if fault["type"] == "extra_forbidden":
        return f"no key '{key}'; {choose_from(location[-1], _keys_at(model, location[:-1]))}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    if isinstance(given, bool) and "string" in fault["type"]:
        reason = "put it in quotes: YAML reads yes, no, on and off as true and false"
    is_plain = isinstance(given, str | int | float | bool | None) and not key.endswith("api_key_var")  # maybe a key
    shown = f" (got {given!r})"[:80] if is_plain else ""
    return f"{key}: {reason}{shown}" if key else reason


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that exist at a place inside a model."""
    for part in location:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


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
        elif head in Options.model_fields:
            own["root"].append((key, value))
        else:
            known = [*Options.model_fields, *OF_MODELS]
            raise UserError(f"no key '{key}'; {choose_from(head, known)}")
    options = _checked(Options, _override(folder.root(), own["root"], "command line"), "command line")
    targets = {name: _load_model(folder, name, own["model"]) for name in options.model}
    names = [*(folder.names("task") if "all" in options.task else ()), *options.task]
    tasks = {name: _load_task(folder, name, own["task"]) for name in dict.fromkeys(names) if name != "all"}
    found = {
        task.dataset: _load_dataset(folder, task.dataset, own["dataset"], options.limit) for task in tasks.values()
    }
    for name, task in tasks.items():
        try:
            task.check(datasets.fields_of(found[task.dataset]))
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
    keys = {str(model.params["api_key_var"]) for model in config.models.values() if "api_key_var" in model.params}
    secrets.refuse({"command line": list(words), **config.model_dump(mode="json")}, keys)
    return config


def _load_model(folder: ConfigFolder, name: str, overrides: list[tuple[str, str]]) -> ModelConfig:
    value, path = folder.load("model", name)
    where = f"model {name} ({path.name})"
    config = _checked(ModelConfig, _override(value, overrides, where), where)
    kind = model_class(config.name, where)
    try:
        params = kind.settle(kind.Params.model_validate(config.params))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, kind.Params, 'params')}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config.model_copy(update={"params": params.model_dump(mode="json")})


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
