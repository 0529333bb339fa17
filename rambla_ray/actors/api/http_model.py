"""Models that are asked over HTTP with JSON: the way to the endpoint, and from a reply to an answer or an error."""

from __future__ import annotations

import json
import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from yarl import URL

from rambla_ray.actors.api.batch_http import AT_ONCE, BatchWire
from rambla_ray.actors.api.batch_provider import BatchProvider
from rambla_ray.actors.api.endpoint_params import EndpointParams
from rambla_ray.actors.api.engine import BaseAPIModel
from rambla_ray.actors.api.extras import QUESTION, with_headers, with_members
from rambla_ray.actors.api.http import HttpReply, Wire, injected_reply, redact
from rambla_ray.actors.api.key_tokens import KeyTokens
from rambla_ray.actors.api.openai_endings import Ending
from rambla_ray.actors.api.openai_errors import error_in, is_cut, not_json, status_error
from rambla_ray.actors.api.openai_package import trusted_authorities
from rambla_ray.actors.api.refused_params import refused_members, unsupported
from rambla_ray.actors.api.token_usage import charge
from rambla_ray.actors.api.waits import limit_reset_s
from rambla_ray.actors.model import Size, byte_count
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response

CONTENT_TYPE = "content-type"
# Stands in a form's body; a call's text replaces it. No param's text is the same by chance, or by intent.
PLACEHOLDER = f"<the text of a request {secrets.token_hex(16)}>"
KEY_PLACEHOLDER = "key-of-a-command"  # Stands in a form's headers where each call has its own.


class Form(NamedTuple):
    """What all requests of a model share.

    Args:
        url: where they are posted.
        headers: those that they have, the key's among them.
        body: JSON in which `PLACEHOLDER` stands once, as a string, in the place of a request's text.
    """

    url: URL
    headers: Mapping[str, str]
    body: bytes


class HTTPModel(BaseAPIModel):
    """What models behind HTTP endpoints share: the form of a request, the identity, and the way to the endpoint.

    A subclass gives the form once; each call fills its own text into it and posts it.
    """

    params: EndpointParams

    def __init__(self, params: EndpointParams, pool: Pool, rate: Rate | None) -> None:
        self.params = params
        super().__init__(params, pool, rate)
        self._tokens = KeyTokens(params.read_token, self.token_headers) if params.api_key_command else None
        self._lasting_key = params.read_key() if self._tokens is None else KEY_PLACEHOLDER
        form = self.form(self._lasting_key)
        self._use_body(with_members(form.body, params.extra_body))
        self._url = form.url
        lasting = {name: value for name, value in form.headers.items() if KEY_PLACEHOLDER not in value}
        self._headers = with_headers(lasting, params.extra_headers)
        self._wire = Wire(self._headers, pool.max_concurrency, trusted_authorities, self._tokens)

    def batches(self) -> BatchProvider:
        """The provider's batch API. Raises CallError (`load`): this model has none."""
        raise CallError(ErrorKind.LOAD, f"{type(self).__name__} has no batch API")

    def batch_wire(self, base: URL) -> BatchWire:
        """The way to a batch API whose paths stand behind `base`."""
        headers = {name: value for name, value in self._headers.items() if name.lower() != CONTENT_TYPE}
        wire = Wire(headers, AT_ONCE, trusted_authorities, self._tokens)
        return BatchWire(base, wire, lambda: self._key, self._rate.timeout_s, self._rate.give_up_after_s)

    @abstractmethod
    def form(self, key: str) -> Form:
        """What all requests share."""

    def token_headers(self, token: str) -> Mapping[str, str]:
        """The headers that bear a token of `api_key_command`, in the place of those of a form that bear the key."""
        return {"Authorization": f"Bearer {token}"}

    @property
    def _key(self) -> str:
        """The key that calls have now."""
        return self._lasting_key if self._tokens is None else self._tokens.token.text

    def _use_body(self, body: bytes) -> None:
        """Send bodies of this form from now on, `PLACEHOLDER` standing for the text."""
        self._shared: dict[str, Any] = json.loads(body)
        self._before, self._after = body.split(json.dumps(PLACEHOLDER).encode())

    @classmethod
    def identity_of(cls, params: ModelParams) -> dict[str, object] | None:
        return {"class": cls.__name__, **params.identity()} if isinstance(params, EndpointParams) else None

    def identity(self) -> dict[str, object]:
        return {"class": type(self).__name__, **self.params.identity()}

    def scope(self) -> str:
        return f"{self.params.base_url} {self.params.key_name}"

    def estimate_tokens(self, request: Request) -> int:
        return super().estimate_tokens(request) + len(self._system_beside(request)) // 4

    def size(self, request: Request) -> Size:
        prompt_bytes, answer_tokens = super().size(request)
        return prompt_bytes + byte_count(self._system_beside(request)), answer_tokens

    def _system_beside(self, request: Request) -> str:
        """The config's system prompt, where it goes out with a request whose text does not hold it."""
        return "" if request.system else self.params.system_prompt

    async def call(self, request: Request) -> Response:
        return await self._wire.post(self._url, self.body(request), partial(self.read_reply, request))

    async def faulty_call(self, request: Request, fault: str) -> Response:
        return await injected_reply(fault, partial(self.read_reply, request))

    def body(self, request: Request) -> bytes:
        """The JSON that is posted for a request. Raises CallError (`bad_request`): the API has no such request."""
        own = self.own_fields(request)
        return json.dumps(self._shared | own).encode() if own else self._before + self.texts(request) + self._after

    def own_fields(self, request: Request) -> dict[str, Any]:
        """The fields of a body that a request which is more than a prompt sets itself."""
        return {}

    def texts(self, request: Request) -> bytes:
        """The JSON that stands in `PLACEHOLDER`: the prompt as a string."""
        return json.dumps(request.prompt).encode()

    def holds_answer(self, body: dict[str, Any]) -> bool:
        """Whether the body of a 2xx has what the API answers with; another body may say what went wrong."""
        return bool(body.get("choices") or body.get("data"))

    @abstractmethod
    def read(self, body: Any, request: Request) -> Response:
        """The answer in a parsed body of a 2xx. What the body lacks may raise the error that the look-up raises."""

    def read_reply(self, request: Request, reply: HttpReply) -> Response:
        """The answer in a reply. Raises CallError: what the endpoint says instead."""

        def redacted(text: str) -> str:
            return redact(text, self._key, self._asked(request))

        if not 200 <= reply.status < 300:
            refusal = status_error(reply, redacted)
            if is_cut(refusal):
                return Response("", str(Ending.LENGTH), refusal.prompt_tokens, refusal.completion_tokens)
            raise self._about_params(refusal, reply, request, redacted)
        wait_s = limit_reset_s(reply.headers)
        if wait_s:
            self.pause(wait_s)
        body: Any = None
        try:
            body = json.loads(reply.body)
            error = error_in(body, reply, redacted, self.holds_answer)
            if error is None:
                return self.read(body, request)
        except CallError as no_answer:
            error = charge(no_answer, body)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as fault:
            if body is None and isinstance(fault, ValueError | RecursionError):
                raise not_json(reply, redacted) from None
            message = f"the reply is not what the API promises ({type(fault).__name__})"
            error = charge(CallError(ErrorKind.GARBAGE, message), body)
        raise self._about_params(error, reply, request, redacted)

    def _asked(self, request: Request) -> str:
        """All texts that a request asks with."""
        return "\n".join(filter(None, (self._system_beside(request), request.text, request.pair)))

    def _about_params(
        self, error: CallError, reply: HttpReply, request: Request, redacted: Callable[[str], str]
    ) -> CallError:
        """An error, or where what is refused is a param, which all requests have, one that says what to write."""
        if error.kind is not ErrorKind.BAD_REQUEST:
            return error
        fixed = self._shared.keys() - QUESTION - self.own_fields(request).keys()
        inside = {name for outer in fixed if isinstance(self._shared[outer], dict) for name in self._shared[outer]}
        for member in refused_members(reply.body, redacted, self._asked(request)):
            is_fixed = member.partition(".")[0] in fixed | inside
            way_out = self.params.way_out(member, error.message) if is_fixed else None
            if way_out is not None:
                return unsupported(error, f"engine {self.params.engine} does not take {member}: {way_out}")
        return error
