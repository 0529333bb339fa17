"""Keys and passwords: a config holds the names of their variables, never their values.

A config is written into the run directory, printed, and shown by Ray to whoever asks it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from rambla_ray.errors import UserError

SHORTEST = 8  # Only secrets of so many characters are looked for inside texts: a shorter one may occur by chance.
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_?\d+)?$", re.IGNORECASE)
_WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that it holds a key, a token or a password."""
    return _SECRET_NAME.search(variable) is not None


def variable(name: str, *default: object) -> str | None:
    """Resolver `${oc.env:NAME}`, `${oc.env:NAME,DEFAULT}`. Raises ValueError for a secret, KeyError when not set."""
    if is_secret(name):
        raise ValueError(f"{name} holds a secret, which a config would give away; name the variable in api_key_var")
    if name in os.environ:
        return os.environ[name]
    if default:
        return None if default[0] is None else str(default[0])
    raise KeyError(f"Environment variable '{name}' not found")


def refuse(values: Mapping[str, object], variables: Iterable[str]) -> None:
    """Raise a UserError, naming the place, when a text in `values` holds a secret.

    Args:
        values: plain values, which may be nested.
        variables: environment variables whose values are secrets, beside those whose names say it.
    """
    # A variable may hold the path of a file with the secret; the path is none.
    by_name = {name: value for name, value in os.environ.items() if is_secret(name) and not value.startswith("/")}
    all_secrets = {name: os.environ.get(name, "") for name in variables} | by_name
    long_secrets = {name: value for name, value in all_secrets.items() if len(value) >= SHORTEST}
    for place, text in _texts(values):
        for name, value in long_secrets.items():
            if value in text:
                raise UserError(f"{place} holds what is in {name}: a secret; keep it in the environment, by its name")
        if _WITH_PASSWORD.match(text):
            raise UserError(
                f"{place} is a URL with a password in it; keep that in the environment or a credentials file"
            )


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested plain values, with its dotted place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")
