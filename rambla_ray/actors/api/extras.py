"""What a config may add to every request beside the params that have names here: to its body and to its headers.

What decides where a request goes, what it asks and whose key it carries is no extra.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from rambla_ray.display import one_line
from rambla_ray.redaction import is_secret

LONGEST_EXTRA = 1_000_000  # Characters of the JSON of one param.
MOST_HEADERS = 64
LONGEST_HEADER = 4000  # Characters of the value of one.

# Keys of bodies that hold what is asked, and whom; the params and the task say that.
QUESTION = frozenset({"model", "messages", "prompt", "input", "instructions", "system"})
_ONE_ANSWER: Mapping[str, Any] = {"stream": False, "n": 1}  # These are taken with this value alone.
# Headers that each request sets itself. Those that hold a key are known by their names.
_SET_ELSEWHERE = re.compile(
    r"host|connection|keep-alive|te|trailers?|transfer-encoding|content-.*|accept(-encoding)?|expect|upgrade|proxy-.*",
    re.IGNORECASE,
)
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]{1,100}", re.ASCII)  # RFC 9110's token.
_WITH_SCHEME = re.compile(r"(bearer|basic|digest|token)\s+\S", re.IGNORECASE)


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(value)
        is_json = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        raise ValueError("it has something in it that is no JSON, such as a date or a key that is no text")
    if len(text) > LONGEST_EXTRA:
        raise ValueError(f"its JSON is longer than {LONGEST_EXTRA:,} characters")
    return value


def _as_extra_body(body: dict[str, Any]) -> dict[str, Any]:
    for key, value in body.items():
        if key in QUESTION:
            raise ValueError(f"it cannot hold '{key}', which the config's other params and the task set; leave it out")
        if key in _ONE_ANSWER and (value != _ONE_ANSWER[key] or isinstance(value, bool) != (key == "stream")):
            allowed = json.dumps(_ONE_ANSWER[key])
            raise ValueError(f"'{key}' is {allowed} here: each prompt gets one whole answer; leave it out")
    return body


def _as_headers(headers: dict[str, str]) -> dict[str, str]:
    """The headers, if a request can have them. What is wrong names a header, and never shows its value."""
    if len(headers) > MOST_HEADERS:
        raise ValueError(f"a request takes {MOST_HEADERS} more headers at most")
    lower = [name.lower() for name in headers]
    for name, value in headers.items():
        shown = one_line(name, 40)
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"'{shown}' is no name of a header: it has letters, digits and hyphens")
        if lower.count(name.lower()) > 1:
            raise ValueError(f"'{shown}' is there twice: upper and lower case are the same")
        if is_secret(name) or _WITH_SCHEME.match(value):
            raise ValueError(
                f"'{shown}' would hold a key; put that into the environment, and its variable in api_key_var"
            )
        if _SET_ELSEWHERE.fullmatch(name):
            raise ValueError(f"'{shown}' is set by each request itself; leave it out")
        if not (value.isascii() and value.isprintable()) or value != value.strip():
            raise ValueError(
                f"the value of '{shown}' has line breaks, spaces at an end or other characters that no header can"
            )
        if len(value) > LONGEST_HEADER:
            raise ValueError(f"the value of '{shown}' is longer than {LONGEST_HEADER:,} characters")
    return headers


JsonObject = Annotated[dict[str, Any], AfterValidator(_as_json)]
ExtraBody = Annotated[JsonObject, AfterValidator(_as_extra_body)]
ExtraHeaders = Annotated[dict[str, str], AfterValidator(_as_headers)]


def with_headers(headers: Mapping[str, str], extra: Mapping[str, str] | None) -> Mapping[str, str]:
    """Headers with others in addition, or in the place of those of the same name."""
    if not extra:
        return headers
    replaced = {name.lower() for name in extra}
    return {**{name: value for name, value in headers.items() if name.lower() not in replaced}, **extra}


def with_members(body: bytes, extra: Mapping[str, Any] | None) -> bytes:
    """The JSON of a body with other members in addition, or in the place of those of the same name."""
    return json.dumps(json.loads(body) | dict(extra)).encode() if extra else body
