"""The whole configuration of a run, resolved."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from rambla_ray.config import labels
from rambla_ray.config.dataset import MOST_ITEMS, DatasetConfig
from rambla_ray.config.environment import Borrowings, by_name, digests, value_at
from rambla_ray.config.families import Families, by_config
from rambla_ray.config.model import ModelConfig, RoleModel
from rambla_ray.config.sections import MOST_JUDGES, Budget, Chaos, FailIf, Name, Players, ReaderOptions, RunName
from rambla_ray.config.task import TaskConfig
from rambla_ray.config.until import Until
from rambla_ray.errors import choose_from
from rambla_ray.file_modes import Modes
from rambla_ray.schema import Role, canonical_json
from rambla_ray.storage import beyond_scheme, joined
from rambla_ray.tasks.closed import SEEDS, Closed, draws_per_item, omitted
from rambla_ray.tasks.reader import ReaderStage


def _words(value: Any) -> Any:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _mode(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("put the mode in quotes, as in '0640': YAML reads another number")
    if isinstance(value, str):
        Modes.parse(value)
    return value


def _check_panel(role: Role, names: Sequence[str]) -> None:
    """Refuse several models where one plays the role, a judge who is named twice, and a crowd. Raises ValueError."""
    if len(names) > 1 and role != Role.JUDGE:
        raise ValueError(
            f"{role}: one model plays it, and not {len(names)}; several can be judges (roles.judge=a,b,c)"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{role}: {twice[0]} is named twice; each judge has one vote")
    if len(names) > MOST_JUDGES:
        raise ValueError(f"{role}: a panel has at most {MOST_JUDGES} judges, and not {len(names)}")


Names = Annotated[tuple[Name, ...], BeforeValidator(_words), Field(min_length=1)]


def _checked_place(place: str) -> str:
    if "://" in place and not beyond_scheme(place):
        raise ValueError("a bucket is named behind ://")
    return place


Place = Annotated[str, AfterValidator(_checked_place)]


def cluster_address(address: str | None) -> str:
    """The cluster to use: that of the `address` option, else the one that RAY_ADDRESS names, else a local one."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


class RunOptions(Closed):
    """The root keys: `conf/config.yaml`, and what the command line may set."""

    model: Names = Field(description="model configs to test, separated by commas")
    task: Names = Field(description="tasks, separated by commas, or 'all'")
    data: Literal["demo", "full"] = Field("demo", description="the shipped demo sets, or the datasets' own path")
    limit: int | None = Field(None, gt=0, le=MOST_ITEMS, description="the first N items of each dataset")
    seed: int = Field(1234, ge=0, lt=SEEDS, description="for stages that set none of their own")
    epochs: int | None = draws_per_item("how many answers to each item are drawn, where its task does not say")
    roles: dict[Role, Players] = Field(
        description="the model config of each role other than the target, or several judges, separated by commas, of "
        "whom the majority counts; without a reader, rules alone read answers"
    )
    reader: ReaderOptions = Field(description="what roles.reader is asked")
    run_id: RunName | None = Field(None, description="name of the run's folder; made from the config when not given")
    runs_dir: Place = Field("runs", min_length=1, description="where runs are kept")
    ledger: Place | None = Field(None, description="the store of answers; <runs_dir>/ledger when not given")
    files_mode: Annotated[str, BeforeValidator(_mode)] = Field(
        "private",
        description="who may read what is created in runs_dir and ledger: private (the owner alone), group, umask (as "
        "the process has it), or the octal mode of files, such as 0640",
    )
    address: str | None = Field(
        None,
        description="auto (a cluster running on this machine, else a local one) | local | host:port; when not "
        "given, the cluster that RAY_ADDRESS names, as it does in a job, else a local one",
    )
    dry_run: bool = Field(False, description="print the plan and stop")
    doctor: bool = Field(False, description="check every node, and each endpoint, and stop")
    verbose: bool = Field(False, description="let Ray's own log lines through")
    baseline: Name | None = omitted("the model that the others are compared with; each two are when not given")
    until: Until | None = omitted("end before all items are asked, once the answers settle what is asked here")
    judge_calibration: Place | None = omitted(
        "what shows how often the judge errs: the run directory of a similarity task whose model it is, or a table",
        min_length=1,
    )
    fail_if: FailIf = Field(default_factory=FailIf, description="gates on the result")
    budget: Budget = Field(default_factory=Budget, description="what the run may spend")
    chaos: Chaos = Field(default_factory=Chaos, description="faults to inject")

    @model_validator(mode="after")
    def _baseline_is_a_target(self) -> Self:
        if self.baseline is not None and self.baseline not in self.model:
            raise ValueError(
                f"baseline {self.baseline} is no model of the run; {choose_from(self.baseline, self.model)}"
            )
        return self

    @property
    def modes(self) -> Modes:
        """The rights to what the run creates."""
        return Modes.parse(self.files_mode)

    @field_validator("roles")
    @classmethod
    def _are_played_by_those_who_can(cls, roles: dict[Role, str]) -> dict[Role, str]:
        if Role.TARGET in roles:
            raise ValueError("the target is chosen with model=<name>")
        for role, names in roles.items():
            _check_panel(role, names.split(","))
        return roles

    @property
    def repeated(self) -> tuple[str, ...]:
        """What `model` and `task` name more than once, though each runs once, in lines."""
        named = {"model": self.model, "task": self.task}
        return tuple(
            f"{key}= names {name} {count} times; it runs once"
            for key, names in named.items()
            for name, count in Counter(names).items()
            if count > 1
        )

    @field_validator("run_id")
    @classmethod
    def _not_the_ledger(cls, run_id: str | None) -> str | None:
        if run_id == "ledger":
            raise ValueError("'ledger' is where answers are kept; choose another name")
        return run_id


MODEL_KEYS = ("conf_dir", "pool", "rate")  # The command line takes these keys beside the options.

# These options may differ between two invocations of one run: they say where and how it runs, not what it asks.
OPERATIONAL = frozenset(
    {
        *("run_id", "runs_dir", "ledger", "address", "dry_run", "doctor", "verbose", "fail_if", "task", "model"),
        *("budget", "chaos", "files_mode", "baseline", "judge_calibration"),
    }
)


def key_variables_of(models: Iterable[ModelConfig]) -> frozenset[str]:
    """The environment variables that hold the keys of some models."""
    return frozenset(variable for model in models if (variable := model.params.key_variable))


class RunConfig(Closed):
    """Everything a run is made of, resolved: what `config.yaml` in a run directory holds."""

    options: RunOptions
    targets: dict[str, ModelConfig]
    roles: dict[Role, RoleModel]
    tasks: dict[str, TaskConfig]
    datasets: dict[str, DatasetConfig]
    own_data: bool = Field(description="task.dataset.path was given, so the demo sets are not read")
    changes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        exclude=True,  # What the targets are is in `targets`; this is how they came to be so, and is not asked.
        description="by target, what the command line changed of it",
    )
    families: Families = Field(
        default_factory=dict,
        exclude=True,  # As for `changes`.
        description="by target that is one adapter of several, where it comes from",
    )
    _borrowed: Borrowings = PrivateAttr(default_factory=dict)

    def borrowing(self, borrowed: Borrowings) -> RunConfig:
        """The same config, of which some values come from the environment, and are stored by name."""
        config = self.model_copy()
        config._borrowed = dict(borrowed)
        return config

    def stored(self) -> dict[str, Any]:
        """The config as it is stored: plain values, and names in the place of those that come from the environment."""
        document: dict[str, Any] = by_name(self.model_dump(mode="json"), self._borrowed)
        return document

    @property
    def synthetic(self) -> bool:
        """Whether the items are the shipped demo set, so that no number is a benchmark result."""
        return self.options.data == "demo" and not self.own_data

    @property
    def run_id(self) -> str:
        """The run's name: the same for the same questions to the same models."""
        if self.options.run_id:
            return self.options.run_id
        return self._name(labels.file_name_part(name, self.changes.get(name, {})) for name in self.targets)

    @property
    def earlier_run_id(self) -> str:
        """The name that earlier versions gave to the run: without what the command line changed of its targets."""
        return self._name(self.targets)

    @property
    def has_earlier_name(self) -> bool:
        """Whether earlier versions named the run otherwise."""
        return self.options.run_id is None and self.run_id != self.earlier_run_id

    def under_its_earlier_name(self) -> RunConfig:
        """The same run under its `earlier_run_id`, to go on with what it has under that name."""
        return self.model_copy(update={"options": self.options.model_copy(update={"run_id": self.earlier_run_id})})

    def _name(self, targets: Iterable[str]) -> str:
        digest = hashlib.sha256(canonical_json(self.question()).encode()).hexdigest()[:8]
        tasks = next(iter(self.tasks)) if len(self.tasks) == 1 else f"{len(self.tasks)}tasks"
        return "-".join([*targets, tasks, digest])[-120:].lstrip("-._")

    @property
    def streams(self) -> list[tuple[str, ...]]:
        """The targets by the pool that answers for them."""
        return list(by_config(self.targets, self.families).values())

    def label(self, target: str) -> str:
        """What people call a target: its name, and what the command line changed of it."""
        return labels.label(target, self.changes.get(target, {}))

    def is_ambiguous(self, target: str) -> bool:
        """Whether the name of a target is also that of a role's model which is another."""
        others = (player.config for player in self.players if player.config_name == target)
        return any(other.params != self.targets[target].params for other in others)

    @property
    def directory(self) -> str:
        """Where the run's folder is."""
        return joined(self.options.runs_dir, self.run_id)

    @property
    def ledger(self) -> str:
        """Where answers are kept."""
        return self.options.ledger or joined(self.options.runs_dir, "ledger")

    @property
    def key_variables(self) -> frozenset[str]:
        """The environment variables that hold the keys of the run's models."""
        return key_variables_of([*self.targets.values(), *(player.config for player in self.players)])

    @property
    def players(self) -> list[RoleModel]:
        """All that play a role other than the target."""
        return [member for played in self.roles.values() for member in played.members]

    @property
    def reader(self) -> ReaderStage | None:
        """What asks the reader about an answer that the rules cannot read; None in a run without one."""
        return ReaderStage(template=self.options.reader.template) if Role.READER in self.roles else None

    def used_roles(self) -> frozenset[Role]:
        """Who takes part in the run."""
        asked = {stage.role for task in self.tasks.values() for stage in task.generates}
        return frozenset(asked | ({Role.READER} & self.roles.keys()))

    @property
    def _operational(self) -> frozenset[str]:
        """The options that are no part of the question. Who is compared decides when a run that compares ends."""
        until = self.options.until
        return OPERATIONAL - {"baseline"} if until is not None and until.decided is not None else OPERATIONAL

    def question(self) -> dict[str, Any]:
        """What the run asks, without where and how it runs: two invocations with the same question are one run."""
        whole = self.stored()
        for key in self._operational & whole["options"].keys():
            del whole["options"][key]
        players = [player for role in whole["roles"].values() for player in (role, *role.get("others", ()))]
        for config in [*whole["targets"].values(), *(player["config"] for player in players)]:
            del config["pool"], config["rate"], config["price"]
            config.pop("batch", None)
        del whole["options"]["roles"]  # The roles that are in use stand under `roles`.
        whole["options"].pop("epochs", None)  # Each task has its own.
        if Role.READER not in self.roles:
            del whole["options"]["reader"]
        asked = {place: one for place, one in self._borrowed.items() if value_at(whole, place) == one.written}
        return {**whole, "environment": digests(asked)} if asked else whole
