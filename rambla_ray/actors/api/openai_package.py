"""What is left to the openai package: it writes the form of a request, and asks an endpoint for a sign of life."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    import httpx2
    import openai

NO_KEY = "none"  # What the package, which wants a key, sends to an endpoint that needs none.
PING_S = 5.0  # An endpoint may take so long to give a sign of life.


def open_client(
    url: str,
    key: str,
    azure_version: str | None = None,
    http: httpx2.Client | None = None,
    *,
    is_token: bool = False,
) -> openai.OpenAI:
    """The package's client of an endpoint; of Azure's, where the version of its API is given.

    A query in the endpoint's URL stands in the URL of every request. Azure takes a token of Entra ID in another header
    than a key.
    """
    import openai

    base, _, query = url.partition("?")
    options: dict[str, Any] = {"default_query": dict(parse_qsl(query, keep_blank_values=True)), "http_client": http}
    key = key or NO_KEY
    if azure_version is not None:
        options["azure_ad_token" if is_token else "api_key"] = key
        return openai.AzureOpenAI(azure_endpoint=base, api_version=azure_version, max_retries=0, **options)
    return openai.OpenAI(base_url=base, api_key=key, max_retries=0, **options)


def written_request(
    url: str, key: str, azure_version: str | None, write: Callable[[openai.OpenAI], None]
) -> httpx2.Request:
    """The request that the package makes of the call in `write`; it is caught and not sent."""
    import httpx2
    import openai

    class Catch(httpx2.BaseTransport):
        request: httpx2.Request

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            request.read()
            self.request = request
            raise httpx2.ConnectError("caught")

    catch = Catch()
    client = open_client(url, key, azure_version, openai.DefaultHttpxClient(transport=catch, trust_env=False))
    with client, suppress(openai.APIConnectionError):
        write(client)
    return catch.request


def list_models(
    url: str, key: str, azure_version: str | None, proxy: str | None, *, is_token: bool = False
) -> tuple[int, float]:
    """Ask for the list of models, which costs nothing, through the proxy if there is one.

    Returns:
        (status, seconds): the HTTP status of the reply, and how long it took.

    Raises:
        ConnectionError: there is no reply; the message holds the cause.
    """
    import openai

    http = openai.DefaultHttpxClient(proxy=proxy, trust_env=False, verify=trusted_authorities())
    try:
        with open_client(url, key, azure_version, http, is_token=is_token) as client:
            began = time.monotonic()
            try:
                client.models.list(timeout=PING_S)
            except openai.APIStatusError as error:
                return error.status_code, time.monotonic() - began
            return 200, time.monotonic() - began
    except openai.OpenAIError as error:
        cause = error.__cause__ or error
        raise ConnectionError(f"{type(cause).__name__}: {cause}") from None


def get_status(url: str, headers: Mapping[str, str], proxy: str | None) -> tuple[int, float]:
    """The same of an endpoint that is not like OpenAI's: GET the URL."""
    import httpx2

    try:
        with httpx2.Client(proxy=proxy, trust_env=False, verify=trusted_authorities(), timeout=PING_S) as client:
            began = time.monotonic()
            return client.get(url, headers=dict(headers)).status_code, time.monotonic() - began
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from None


def trusted_authorities() -> ssl.SSLContext:
    """The certificate authorities that the package trusts."""
    import httpx2

    return httpx2.create_ssl_context()
