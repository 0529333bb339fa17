"""A model config: what to run, and optionally how."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from rambla_ray.config.explain import explain
from rambla_ray.config.sections import Closed, Name, Pool, Price, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.registry import model_class

KEY_VARIABLE = r"^[A-Z_][A-Z0-9_]*$"  # A key that is pasted in the place of its variable's name looks otherwise.


class ModelParams(BaseModel):
    """Base of every model's `params`: closed, frozen, each field with a description.

    What can be known of a model before it is loaded depends on its params alone, and is a property or method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    produces: ClassVar[Literal["text", "score"]] = "text"  # A score says how alike the two texts of a request are.
    embeds: ClassVar[bool] = False  # It answers a prompt without a pair with the prompt's vector, as a JSON list.
    is_local: ClassVar[bool] = False  # It runs on the cluster's own CPUs and GPUs.
    is_charged: ClassVar[bool] = False  # Its tokens cost money.

    @property
    def endpoint(self) -> str:
        """Where calls go, as a URL; empty for a model without any."""
        return ""

    @property
    def key_variable(self) -> str | None:
        """The name of the environment variable that holds the endpoint's key; None where no key is needed."""
        return None

    @property
    def longest_answer(self) -> int:
        """The longest answer in tokens, for the estimate of costs; 0 where it is not known."""
        return 0

    def resolved(self) -> Self:
        """These params with what comes from the environment filled in, so that a run explains itself.

        Raises:
            UserError: the params contradict each other or the environment; the message names the key.
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

    def ping(self) -> str:
        """Check that the endpoint answers, without a call that costs anything; returns its answer in a few words.

        Raises:
            UserError: it cannot be reached, or rejects the key.
        """
        return ""


class KeyedParams(ModelParams):
    """Params of a model whose endpoint takes a key, which is read from the environment by its variable's name."""

    is_charged: ClassVar[bool] = True

    api_key_var: str = Field(
        pattern=KEY_VARIABLE,
        description="NAME of the environment variable with the key, in upper case",
    )

    @property
    def key_variable(self) -> str | None:
        return self.api_key_var

    def preflight(self, *, same_machine: bool) -> None:
        """The key's variable must be set where calls are made."""
        if same_machine and not os.environ.get(self.api_key_var):
            raise UserError(f"needs a key in the environment variable {self.api_key_var}, which is not set")

    def read_key(self) -> str:
        """The key, to be called where the model runs.

        Raises:
            CallError: `auth`: the variable is not set there, or holds what no HTTP header can.
        """
        key = os.environ.get(self.api_key_var, "").strip()
        if not key:
            raise CallError(
                ErrorKind.AUTH, f"the environment variable {self.api_key_var} is not set where the model runs"
            )
        if not (key.isascii() and key.isprintable()):
            raise CallError(ErrorKind.AUTH, f"{self.api_key_var} has characters that a header cannot hold")
        return key


class ModelConfig(Closed):
    """`conf/model/<name>.yaml`: what to run (RAmBLA's `name` and `params`), and optionally how."""

    name: str = Field(description="a key of MODEL_MAP, an entry point, or package.module:Class")
    params: SerializeAsAny[ModelParams] = Field(
        default_factory=dict, validate_default=True, description="the model's own parameters"
    )
    pool: Pool = Field(default_factory=Pool, description="the actors that run it")
    rate: Rate = Field(default_factory=Rate, description="the endpoint's limits")
    price: Price | None = Field(None, description="what the endpoint charges; without it no cost is reported")

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

    @property
    def kind(self) -> type[Any]:
        """The class that runs it, a subclass of `rambla_ray.actors.base.Model`."""
        return model_class(self.name)


class RoleModel(Closed):
    """The model config that plays a role."""

    config_name: Name
    config: ModelConfig
