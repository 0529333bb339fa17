"""A model config: what to run, and optionally how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from rambla_ray import redaction
from rambla_ray.config.environment import Borrowings, by_name, inside, texts_by_name
from rambla_ray.config.explain import explain
from rambla_ray.config.sections import Batch, Name, Pool, Price, Rate
from rambla_ray.config.workload import Workload
from rambla_ray.errors import UserError
from rambla_ray.registry import model_class
from rambla_ray.schema import Request
from rambla_ray.tasks.closed import Closed, omitted


class ModelParams(Closed):
    """Base of every model's `params`: closed, frozen, each field with a description.

    What can be known of a model before it is loaded depends on its params alone, and is a property or method.
    """

    produces: ClassVar[Literal["text", "score"]] = "text"  # A score says how alike the two texts of a request are.
    embeds: ClassVar[bool] = False  # It answers a prompt without a pair with the prompt's vector, as a JSON list.
    is_local: ClassVar[bool] = False  # It runs on the cluster's own CPUs and GPUs.
    is_charged: ClassVar[bool] = False  # Its tokens cost money.
    unidentified: ClassVar[frozenset[str]] = frozenset()  # Params that change no answer.

    @property
    def endpoint(self) -> str:
        """Where calls go, as a URL; empty for a model without any."""
        return ""

    @property
    def key_variable(self) -> str | None:
        """The name of the environment variable that holds the endpoint's key; None where no key is needed."""
        return None

    @property
    def is_greedy(self) -> bool:
        """Whether each answer is the likeliest one, so that more draws of it are alike."""
        return False

    @property
    def takes_system_prompt(self) -> bool:
        """Whether the model honours `Request.system`; a task that has a system prompt is refused where it does not."""
        return False

    @property
    def system_prompt(self) -> str:
        """The system prompt of every request that has none of its own; empty without one."""
        return ""

    @property
    def has_key_command(self) -> bool:
        """Whether the endpoint's key is what a command prints, where the model runs."""
        return False

    @property
    def longest_answer(self) -> int:
        """The longest answer in tokens, for the estimate of costs; 0 where it is not known."""
        return 0

    def request_fields(self, request: Request) -> dict[str, object]:
        """Everything about a request that may change the answer of a model with these params, as JSON values.

        By it a plan tells which requests are one call. A model whose `request_identity` holds more than what is sent,
        such as whose sample it is, says so here.
        """
        return request.identity_fields()

    @property
    def batch_fault(self) -> str:
        """Why its requests cannot be sent as the provider's batches; empty where they can."""
        return "has no batch API; leave batch out"

    @property
    def several_nodes_fault(self) -> str:
        """Why one model cannot be spread over several nodes; empty where it can."""
        return "runs on one node; leave pool.nodes out"

    def for_likelihood(self) -> Self:
        """These params for a run that asks how likely choices are behind a prompt (`Request.continuations`).

        Raises:
            UserError: the model does not say so; the reason is a predicate in one line.
        """
        raise UserError("gives no likelihoods of texts that it is given")

    def check_batches(self) -> None:
        """Check that the endpoint has a batch API, without a call that costs anything.

        Raises:
            UserError: it says that it has none.
        """
        return None

    @property
    def can_vote(self) -> bool:
        """Whether it answers with one of several labels, as each of several judges does, and not with a number."""
        return self.produces == "text"

    def resolved(self) -> Self:
        """These params with what comes from the environment filled in, so that a run explains itself.

        Raises:
            UserError: the params contradict each other or the environment; the message names the key.
        """
        return self

    def planned(self, longest_prompt: Callable[[], int | None], workload: Callable[[], Workload]) -> Self:
        """These params for the actors of a run, or of what is served.

        Args:
            longest_prompt: returns how many bytes the longest prompt has that they will be sent; None where one
                depends on answers.
            workload: returns what they will be asked in all.
        """
        return self

    def preflight(self, *, same_machine: bool) -> None:
        """Check what can be checked without a call.

        Args:
            same_machine: the model runs on this machine; only then are files and variables looked for.

        Raises:
            UserError: a key or a file is missing.
        """
        return None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of these params though nothing is wrong with them, in lines."""
        return ()

    @property
    def variants(self) -> Mapping[str, Self]:
        """By the end of its name, the params of each of the targets that a config is; empty where it is one itself."""
        return {}

    def ping(self) -> str:
        """Check that the endpoint answers, without a call that costs anything; returns its answer in a few words.

        Raises:
            UserError: it cannot be reached, or rejects the key.
        """
        return ""


class ModelConfig(Closed):
    """`conf/model/<name>.yaml`: what to run (RAmBLA's `name` and `params`), and optionally how."""

    name: str = Field(description="a key of MODEL_MAP, an entry point, or package.module:Class")
    params: ModelParams = Field(default_factory=dict, validate_default=True, description="the model's own parameters")
    pool: Pool = Field(default_factory=Pool, description="the actors that run it")
    rate: Rate = Field(default_factory=Rate, description="the endpoint's limits")
    price: Price | None = Field(None, description="what the endpoint charges; without it no cost is reported")
    batch: Batch | None = omitted(
        "send what a run needs as batches of the provider, which take up to a day and cost half"
    )
    _borrowed: Borrowings = PrivateAttr(default_factory=dict)

    @property
    def borrowed(self) -> Borrowings:
        """What of it comes from the environment, and is stored by name."""
        return self._borrowed

    def borrowing(self, borrowed: Borrowings) -> Self:
        """The same config, of which some values come from the environment."""
        config = self.model_copy()
        config._borrowed = dict(borrowed)
        return config

    def with_params(self, params: ModelParams) -> Self:
        """The same config with other params of the same class."""
        return self.model_copy(update={"params": params})

    def stored_identity(self, identity: Mapping[str, object]) -> dict[str, object]:
        """What a model says that it is, with the names of variables in the place of what comes from them."""
        named: dict[str, object] = by_name(dict(identity), inside(self._borrowed, "params"))
        return named

    def hide(self) -> None:
        """Let this process show nothing of the key, and texts from the environment by name."""
        if self.params.key_variable:
            redaction.hide(self.params.key_variable)
        for written, value in texts_by_name(self._borrowed):
            redaction.show_by_name(value, written)

    @field_validator("pool")
    @classmethod
    def _is_spread_by_its_backend(cls, pool: Pool, info: ValidationInfo) -> Pool:
        params = info.data.get("params")
        if pool.node_count > 1 and isinstance(params, ModelParams) and (fault := params.several_nodes_fault):
            raise UserError(f"{info.data['name']} {fault}")
        return pool

    @field_validator("batch")
    @classmethod
    def _has_a_batch_api(cls, batch: Batch | None, info: ValidationInfo) -> Batch | None:
        params = info.data.get("params")
        if batch is not None and isinstance(params, ModelParams) and (fault := params.batch_fault):
            raise UserError(f"{info.data['name']} {fault}")
        return batch

    @field_validator("params", mode="plain")
    @classmethod
    def _as_declared(cls, value: Any, info: ValidationInfo) -> Any:
        """The params as the object that the class behind `name` declares. Raises UserError."""
        name = info.data.get("name")
        if name is None or isinstance(value, ModelParams):
            return value
        declared = model_class(name).Params
        if not (isinstance(declared, type) and issubclass(declared, ModelParams)):
            raise UserError(f"name {name!r}: its Params is not a subclass of rambla_ray.actors.base.ModelParams")
        try:
            return declared.model_validate(value).resolved()
        except ValidationError as error:
            raise UserError(explain(error, declared, "params")) from None

    @field_serializer("params")
    def _with_its_own_fields(self, params: ModelParams, info: SerializationInfo) -> dict[str, Any]:
        return params.model_dump(mode=info.mode)

    def preflight(self, *, same_machine: bool) -> None:
        """Check what can be checked without a call that costs anything; see `ModelParams.preflight`."""
        self.params.preflight(same_machine=same_machine)
        if self.batch is not None and same_machine:
            self.params.check_batches()

    @property
    def kind(self) -> type[Any]:
        """The class that runs it, a subclass of `rambla_ray.actors.base.Model`."""
        return model_class(self.name)


class RoleModel(Closed):
    """The model config that plays a role, and those that play it beside it, each on its own: a panel of judges."""

    config_name: Name
    config: ModelConfig
    others: tuple[RoleModel, ...] = Field((), exclude_if=lambda others: not others)

    @property
    def members(self) -> tuple[RoleModel, ...]:
        """All that play the role."""
        return (self, *self.others)
