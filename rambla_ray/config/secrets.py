"""Keys and passwords: a config holds the names of their variables, never their values.

A config is written into the run directory, printed, and shown by Ray to whoever asks it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import unquote

from rambla_ray.errors import UserError
from rambla_ray.inputs import refuse_credentials
from rambla_ray.redaction import SHORTEST, TELLING, looks_like_key, secret_values, spellings

# Keys of configs whose own name says that a text there is a key, whatever it looks like.
_KEY_NAMES = re.compile(r"(^|[._])(token|use_auth_token|api_key|password|secret|auth)$", re.IGNORECASE)

_COMMAND = re.compile(r"params\.api_key_command[\[=]")  # Its arguments may be code, where `;key=` is of no URL.


def refuse(values: Mapping[str, object], variables: Collection[str]) -> None:
    """Raise a UserError, naming the place, when a text in `values` is or holds a secret.

    Args:
        values: plain values, which may be nested.
        variables: environment variables whose values are secrets, beside those whose names say it.
    """
    found = secret_values(variables)
    by_variable = {name: found[name] for name in sorted(found, key=lambda name: name not in variables)}
    for place, text in _texts(values):
        if not _is_code(place, text):
            refuse_credentials(text, place)
        for variable, secrets in by_variable.items():
            if any(_holds(text, secret) for secret in secrets):
                raise UserError(
                    f"{place} holds what is in {variable}: a secret; keep it in the environment, by its name"
                )
        if looks_like_key(text) or (_KEY_NAMES.search(place) and len(text) >= SHORTEST):
            raise UserError(f"{place} looks like a key; put it into the environment, and its variable in api_key_var")


def _is_code(place: str, text: str) -> bool:
    is_argument = _COMMAND.search(place) or _COMMAND.match(text.removeprefix("model."))
    return bool(is_argument) and "//" not in text and len(text.split()) > 1


def _holds(text: str, secret: str) -> bool:
    """Whether a text holds a secret: as it is, broken by blanks, or as it is written in a URL or in base64."""
    if any(spelt in text for spelt in spellings(secret)) or secret in unquote(text):
        return True
    unbroken = "".join(secret.split())
    return len(unbroken) >= TELLING and unbroken in "".join(text.split())


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested plain values, keys among them, with its dotted place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"a key of {place or 'the config'}", str(key)
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")
