"""What a command prints that gives a key: a token alone, or JSON with a token and the time at which it expires.

The shapes are those of `az account get-access-token`, `gcloud config config-helper --format=json`, `vault read` and
`vault kv get` with `-format=json`, Kubernetes' exec credentials, and OAuth 2.0 (RFC 6749, section 5.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rambla_ray.display import counted
from rambla_ray.inputs import parse_json

FIRST_MOMENT_S = 1e9  # A larger number is a Unix time, a smaller one so many seconds from now.
FIRST_MOMENT_MS = 1e12  # A larger number is a Unix time in milliseconds.
# Names of JSON, in lower case and without what stands between their words. The first that is there holds the token.
_TOKENS = ("accesstoken", "token", "bearertoken", "authorizationtoken", "sessiontoken", "apikey", "key")
_LOCAL_EXPIRY = "expireson"  # The one of `az` is a local time without a zone.
_EXPIRIES = frozenset(
    {
        *(_LOCAL_EXPIRY, "expiresat", "expiresin", "expiresatseconds", "expiration", "expirationtime", "expiry"),
        *("expirationtimestamp", "expiretime", "tokenexpiry", "leaseduration"),
    }
)
_INNER = (("credential",), ("status",), ("data", "data"), ("data",))  # Where gcloud, Kubernetes, Vault put the token.
_SENDABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Token:
    """A key that does not hold for ever.

    Args:
        text: what is sent.
        expires_at: as Unix time, in seconds; infinite where it is not known.
    """

    text: str = field(repr=False)
    expires_at: float = math.inf


def token_in(printed: str, now: float) -> Token:
    """The token in what a command has printed.

    Args:
        printed: the whole of it.
        now: Unix time from which a number of seconds counts.

    Raises:
        ValueError: there is none; the message says what there is instead, and quotes nothing of it.
    """
    text = printed.strip()
    if not text:
        raise ValueError("printed nothing")
    if text[0] in "{[":
        return _token_of_json(_parsed(text), now)
    if text[0] == '"' and isinstance(quoted := _parsed(text), str):
        text = quoted.strip()
    return Token(_sendable(text))


def _sendable(text: str) -> str:
    """A text that is a token. Raises ValueError."""
    lines = len(text.splitlines())
    if lines > 1:
        raise ValueError(f"printed {lines} lines; a token stands alone in one, or in JSON")
    if text in ("", "null", "None"):
        raise ValueError("printed no token but an empty value")
    if not _SENDABLE.fullmatch(text):
        raise ValueError(
            "printed what is no token: it holds blanks or other characters that no header of a request can"
        )
    return text


def _parsed(text: str) -> Any:
    """What a JSON text holds; None where it is no JSON. The parser's error would hold the text."""
    with suppress(ValueError):
        return parse_json(text)
    return None


def _token_of_json(document: Any, now: float) -> Token:
    """Raises ValueError where none is found."""
    if not isinstance(document, Mapping):
        raise ValueError("printed what is neither a token nor a JSON object")
    for section in _sections(document):
        if token := _token_of(section, is_secret=section is not document):
            return Token(_sendable(token), _expiry((section, document), now))
    if any(_plain(name) == "secretaccesskey" for section in _sections(document) for name in section):
        raise ValueError("printed keys of AWS that sign requests; it has to print a token, which is sent as it is")
    raise ValueError(
        f"printed JSON with {counted(len(document), 'key')}, none of which is known to hold a token (such as "
        "accessToken, access_token, token, credential.access_token, status.token, data.key)"
    )


def _sections(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The places of a document where its token may stand."""
    yield document
    for place in _INNER:
        inner: Any = document
        for key in place:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            yield inner


def _token_of(section: Mapping[str, Any], *, is_secret: bool) -> str:
    """The text under a name that is a token's, or the only one in a secret of Vault's; empty where there is none."""
    if any(_plain(name) == "secretaccesskey" for name in section):
        return ""
    texts = {_plain(name): value for name, value in section.items() if isinstance(value, str) and value.strip()}
    named = next((texts[name] for name in _TOKENS if name in texts), "")
    is_only = is_secret and len(section) == len(texts) == 1
    return named or (next(iter(texts.values())) if is_only else "")


def _expiry(sections: tuple[Mapping[str, Any], ...], now: float) -> float:
    """When the token expires, as the first section that says it does; infinite where none does."""
    for section in sections:
        named = [(_plain(name), value) for name, value in section.items() if _plain(name) in _EXPIRIES]
        numbers = [moment for _, value in named if (moment := _moment_of_number(value, now))]
        dates = [moment for name, value in named if (moment := _moment_of_date(value, local=name == _LOCAL_EXPIRY))]
        if moments := numbers or dates:
            return min(moments)
    return math.inf


def _plain(name: object) -> str:
    return re.sub(r"[\W_]", "", str(name)).lower()


def _moment_of_number(value: Any, now: float) -> float | None:
    """The Unix time that a number means; None for 0, which says nothing, and for what is no number."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or number == 0:
        return None
    if number >= FIRST_MOMENT_MS:
        return number / 1000
    return number if number >= FIRST_MOMENT_S else now + number


def _moment_of_date(value: Any, *, local: bool) -> float | None:
    """The Unix time of a date in ISO 8601; one without a zone is in UTC, unless it is a local time."""
    with suppress(ValueError, OverflowError, TypeError):
        date = datetime.fromisoformat(value)
        return (date if date.tzinfo or local else date.replace(tzinfo=UTC)).timestamp()
    return None
