"""Who is let in: what a request's line and headers must be before anything of its body is read."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from rambla_ray.serving.requests import ApiError

Scope = MutableMapping[str, Any]  # of an HTTP request, as ASGI has it

VERSIONS = ("1.0", "1.1")
CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab
ABSOLUTE_TARGET = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE)
HOST = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d{0,5})?")
OWN_SITES = (b"same-origin", b"none")  # `none`: the user has typed the address.


class Access:
    """The rules for a request's headers.

    Args:
        key: what clients must send as `Authorization: Bearer KEY`. None to let this machine's programs in, but no web
            page: a browser sends a page's requests to any address, and to a name that the page's owner has pointed at
            this machine.
        header_bytes: how large a request's line and headers may be together.
    """

    def __init__(self, key: str | None, header_bytes: int) -> None:
        self._key = None if key is None else key.encode()
        self._header_bytes = header_bytes

    def admit(self, scope: Scope) -> Scope:
        """The request in the form that applications know, its target being a path. Raises ApiError."""
        self._check_size(scope)
        _check_framing(scope)
        scope = _in_origin_form(scope)
        if self._key is None:
            _check_own_machine(scope)
        else:
            _check_key(scope, self._key)
        return scope

    def _check_size(self, scope: Scope) -> None:
        line = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"])
        if line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self._header_bytes:
            raise headers_too_large(self._header_bytes)


def headers_too_large(limit: int) -> ApiError:
    """The refusal of a request whose line and headers are larger than a limit, in bytes."""
    return ApiError(431, f"the request line and headers are larger than {limit} bytes")


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]


def _check_framing(scope: Scope) -> None:
    """Refuse what a proxy in front of this server may read as another request than this server does."""
    if scope["http_version"] not in VERSIONS:
        raise ApiError(505, "this endpoint speaks HTTP/1.1")
    if CONTROL_CHARACTER.search(b"".join(value for _, value in scope["headers"])):
        raise ApiError(400, "there is a control character in the headers")
    chunked = _values(scope, b"transfer-encoding")
    if chunked and (scope["http_version"] == "1.0" or _values(scope, b"content-length")):
        raise ApiError(400, "Transfer-Encoding is for HTTP/1.1, and without a Content-Length")


def _in_origin_form(scope: Scope) -> Scope:
    """A request as it is where its target names the host, too, as it does for a proxy: that is then the host."""
    absolute = ABSOLUTE_TARGET.fullmatch(scope["raw_path"])
    if not absolute:
        return scope
    host, path = absolute[1], absolute[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {**scope, "raw_path": path, "path": unquote(path.decode()), "headers": [(b"host", host), *headers]}


def _check_key(scope: Scope, key: bytes) -> None:
    given = [_token(value) for value in _values(scope, b"authorization")]
    if len(given) != 1 or not hmac.compare_digest(given[0], key):
        raise ApiError(401, "this endpoint needs its key, as Authorization: Bearer KEY", code="invalid_api_key")


def _token(authorization: bytes) -> bytes:
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _check_own_machine(scope: Scope) -> None:
    """Refuse whatever a web page may have sent, also one whose name has been made to lead here (DNS rebinding)."""
    hosts = _values(scope, b"host")
    if len(hosts) != 1:
        raise ApiError(400, "a request needs one Host header")
    if not names_this_machine(hosts[0]):
        raise ApiError(
            403, "without a key this endpoint is for this machine: send it to 127.0.0.1 or localhost by name"
        )
    own_origin = b"http://" + hosts[0].lower()
    if any(origin.lower() != own_origin for origin in _values(scope, b"origin")):
        raise ApiError(403, "without a key this endpoint answers no web pages (the request has an Origin)")
    if any(site.lower() not in OWN_SITES for site in _values(scope, b"sec-fetch-site")):
        raise ApiError(403, "without a key this endpoint answers no web pages (Sec-Fetch-Site says that it is one)")
    if scope["method"] == "POST" and [_media_type(value) for value in _values(scope, b"content-type")] != [
        b"application/json"
    ]:
        raise ApiError(415, "without a key a request needs the header Content-Type: application/json")


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def names_this_machine(host: bytes) -> bool:
    """Whether a Host header, with any port or none, is a name of the loopback interface that only this machine has."""
    parts = HOST.fullmatch(host.decode("latin-1"))
    if not parts:
        return False
    if parts["six"]:
        return is_loopback(parts["six"])
    name = parts["name"].lower().removesuffix(".")
    return name == "localhost" or is_loopback(name)


def is_loopback(number: str) -> bool:
    """Whether only this machine can reach an IP address; False for what is none."""
    try:
        address = ipaddress.ip_address(number)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
