"""Params of models behind HTTP endpoints, whatever their API."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from yarl import URL

from rambla_ray.actors.api.proxy import proxy_of
from rambla_ray.config.model import KeyedParams


def _as_printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("Input should be a name, without line breaks and control characters")
    return text


Printable = Annotated[str, Field(max_length=1000), AfterValidator(_as_printable)]


class EndpointParams(KeyedParams):
    """What is asked, where it is, and whose key it takes."""

    engine: Printable = Field(description="the model's name")
    base_url: str | None = Field(None, description="the endpoint")

    # Params that change no answer.
    unidentified: ClassVar[frozenset[str]] = frozenset({"api_key_var", "api_key_command", "api_key_ttl_s"})

    @property
    def endpoint(self) -> str:
        return str(self.base_url)

    def identity(self) -> dict[str, object]:
        """The params that may change an answer."""
        return self.model_dump(exclude=set(self.unidentified))

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if same_machine:
            proxy_of(URL(self.endpoint))


def without_last_slash(base_url: str) -> str:
    """A URL whose path does not end in a slash; its query stays."""
    path, mark, query = base_url.partition("?")
    return f"{path.rstrip('/')}{mark}{query}"
