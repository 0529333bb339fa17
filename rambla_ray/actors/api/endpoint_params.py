"""Params of models behind HTTP endpoints, whatever their API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from yarl import URL

from rambla_ray.actors.api.extras import ExtraBody, ExtraHeaders, with_headers
from rambla_ray.actors.api.openai_package import get_status
from rambla_ray.actors.api.proxy import proxy_of
from rambla_ray.config.keyed_params import KeyedParams
from rambla_ray.display import folded
from rambla_ray.errors import CallError, UserError
from rambla_ray.tasks.closed import omitted


def _as_printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("Input should be a name, without line breaks and control characters")
    return text


NO_SUCH_API = (404, 501)  # Statuses of an endpoint without batches, asked for a list of them.
Printable = Annotated[str, Field(max_length=1000), AfterValidator(_as_printable)]


class EndpointParams(KeyedParams):
    """What is asked, where it is, and whose key it takes."""

    engine: Printable = Field(description="the model's name")
    base_url: str | None = Field(None, description="the endpoint")

    extra_body: ExtraBody | None = omitted("more members of a request's body, in place of those of the same name")
    extra_headers: ExtraHeaders | None = omitted("more headers of a request; none that holds a key")

    # Params that change no answer.
    unidentified: ClassVar[frozenset[str]] = frozenset(
        {"api_key_var", "api_key_command", "api_key_ttl_s", "extra_headers"}
    )
    # By a member of the body, dotted where it is inside of another: the param that sets it, if it is called otherwise.
    renamed: ClassVar[Mapping[str, str]] = {}

    @property
    def endpoint(self) -> str:
        return str(self.base_url)

    def identity(self) -> dict[str, object]:
        """The params that may change an answer."""
        return self.model_dump(exclude=set(self.unidentified))

    def way_out(self, member: str, words: str) -> str | None:
        """What to write in the YAML when the engine does not take a member of the body; None where no param sets it.

        Args:
            member: its name, with dots where it is inside of another, such as `temperature` or `reasoning.effort`.
            words: the endpoint's message, which may say what to send instead.
        """
        outer = member.partition(".")[0]
        if outer in (self.extra_body or {}):
            return f"remove {outer} from params.extra_body"
        param = self.renamed.get(member) or self.renamed.get(outer, outer)
        return f"set params.{param}: null" if param in type(self).model_fields else None

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if same_machine:
            proxy_of(URL(self.endpoint))

    def list_models(self, key: str, proxy: str | None) -> tuple[int, float]:
        """Ask for the list of models, which costs nothing, through the proxy if there is one.

        Returns:
            (status, seconds): the HTTP status of the reply, and how long it took.

        Raises:
            ConnectionError: there is no reply; the message holds the cause.
        """
        raise NotImplementedError

    def list_of_batches(self, key: str) -> tuple[URL, dict[str, str]]:
        """Where the endpoint lists its batches, and the headers to ask for that."""
        raise NotImplementedError

    def check_batches(self) -> None:
        try:
            key, proxy = self.read_key(), proxy_of(URL(self.endpoint))
            url, headers = self.list_of_batches(key)
            sent = with_headers(headers, self.extra_headers)
            status, _ = get_status(str(url), sent, str(proxy) if proxy else None)
        except (CallError, ConnectionError):  # The run finds out, and says so as always.
            return
        if status in NO_SUCH_API:
            where = self.endpoint.partition("?")[0]
            raise UserError(f"{where} has no batch API (HTTP {status} to a question for its batches); leave batch out")

    def ping(self) -> str:
        """Ask for its list of models; many that are like the API have none, and answer all the same."""
        try:
            proxy = proxy_of(URL(self.endpoint))
            status, seconds = self.list_models(self.read_key(), str(proxy) if proxy else None)
        except CallError as error:
            raise UserError(error.message) from None
        except ConnectionError as error:
            reason = folded(str(error), 120)
            raise UserError(f"cannot be reached: check params.base_url, and the way there ({reason})") from None
        if status in (401, 403):
            reason = f"turns {self.key_source} away (HTTP {status})"
            raise UserError(f"{reason}; put a valid one where Ray starts")
        if status != 200:
            return f"answers (HTTP {status} to a question for its models)"
        return f"answers, and takes {self.key_source} ({seconds:.1f} s)"


def without_last_slash(base_url: str) -> str:
    """A URL whose path does not end in a slash; its query stays."""
    path, mark, query = base_url.partition("?")
    return f"{path.rstrip('/')}{mark}{query}"
