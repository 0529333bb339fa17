"""Params of models whose endpoint takes a key."""

from __future__ import annotations

import hashlib
import os
from typing import ClassVar, Self

from pydantic import Field, model_validator

from rambla_ray.config.key_command import KeyCommand, read_token
from rambla_ray.config.model import ModelParams
from rambla_ray.config.printed_token import Token
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.schema import canonical_json
from rambla_ray.tasks.closed import omitted

KEY_DESCRIPTION = "NAME of the environment variable with the key, in upper case; null where none is needed"
KEY_VARIABLE = r"^[A-Z_][A-Z0-9_]*$"  # A key that is pasted in the place of its variable's name looks otherwise.
NOT_SENDABLE = "holds line breaks or other characters that no header of a request can"


class KeyedParams(ModelParams):
    """Params of a model whose endpoint takes a key: from the environment, by its variable's name, or of a command."""

    is_charged: ClassVar[bool] = True

    api_key_var: str | None = Field(pattern=KEY_VARIABLE, description=KEY_DESCRIPTION)
    api_key_command: KeyCommand | None = omitted(
        "list of arguments of a command that prints a token, run where RAMBLA_ALLOW_KEY_COMMAND=1"
    )
    api_key_ttl_s: float | None = omitted("how long a token of api_key_command holds at most", ge=0.1, le=10**8)

    @model_validator(mode="after")
    def _ttl_is_of_a_command(self) -> Self:
        if self.api_key_ttl_s is not None and self.api_key_command is None:
            raise ValueError("api_key_ttl_s is for the tokens of api_key_command, which is not given")
        return self

    @property
    def key_variable(self) -> str | None:
        return self.api_key_var if self.api_key_command is None else None

    @property
    def has_key_command(self) -> bool:
        return self.api_key_command is not None

    @property
    def key_name(self) -> str:
        """What tells one key from another, without showing it, as one word: those with the same one share limits."""
        if self.api_key_command is None:
            return self.api_key_var or "no-key"
        return f"command-{hashlib.sha256(canonical_json(self.api_key_command).encode()).hexdigest()[:16]}"

    @property
    def key_source(self) -> str:
        """The key, as messages call it."""
        if self.api_key_command is not None:
            return "the token of api_key_command"
        return f"the key in {self.api_key_var}" if self.api_key_var else "requests without a key"

    def preflight(self, *, same_machine: bool) -> None:
        """The key's variable must be set where calls are made, and hold what can be sent; a command must give one."""
        if self.api_key_command is not None:
            if same_machine:
                self._try_command()
            return
        if self.api_key_var is None:
            return
        key = os.environ.get(self.api_key_var, "").strip()
        if same_machine and not key:
            state = "empty" if self.api_key_var in os.environ else "not set"
            raise UserError(f"needs a key in the environment variable {self.api_key_var}, which is {state}")
        if same_machine and not is_sendable(key):
            raise UserError(f"the environment variable {self.api_key_var} {NOT_SENDABLE}; set it to the key alone")

    def _try_command(self) -> None:
        try:
            self.read_token()
        except CallError as error:
            raise UserError(error.message) from None

    def read_token(self) -> Token:
        """What `api_key_command` gives where the model runs, which takes up to 30 s. Raises CallError (`auth`)."""
        return read_token(self.api_key_command or (), self.api_key_ttl_s)

    def read_key(self) -> str:
        """The key, to be called where the model runs; empty where the endpoint takes none.

        Raises:
            CallError: `auth`: the variable is not set there, or holds what no HTTP header can; a command gives none.
        """
        if self.api_key_command is not None:
            return self.read_token().text
        if self.api_key_var is None:
            return ""
        key = os.environ.get(self.api_key_var, "").strip()
        if not key:
            raise CallError(
                ErrorKind.AUTH, f"the environment variable {self.api_key_var} is not set where the model runs"
            )
        if not is_sendable(key):
            raise CallError(ErrorKind.AUTH, f"the environment variable {self.api_key_var} {NOT_SENDABLE}")
        return key


def is_sendable(key: str) -> bool:
    """Whether a key, without the white space around it, can stand in the header of a request."""
    return key.isascii() and key.isprintable()
