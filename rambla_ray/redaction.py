"""What is neither shown nor stored: the values of secrets, credentials in URLs, and what looks like a key.

The message of every error of this package goes through `redacted`, and so does everything that its commands print.
What a config must not hold is found by the same rules (`config.secrets`).
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

from rambla_ray.shipped import SHIPPED_CONF

MASK = "***"
SHORTEST = 8  # Only secrets of so many characters are looked for inside texts: a shorter one may occur by chance.
SHORTEST_LINE = 16  # The same, for a line of a secret that has several.
SHORTEST_WORD = 4  # What is shown by a name may be shorter; it is replaced where it is a whole word.
TELLING = 12  # So many characters of the beginning of a longer secret, whose end was cut off, are hidden as well.

# What a variable is called that holds a secret: one of these words, or a word that ends in one of the endings.
_WORDS = frozenset(
    {
        *("KEY", "KEYS", "PASS", "PWD", "PAT", "AUTH", "AUTHORIZATION", "BEARER", "COOKIE", "COOKIES", "JWT", "SAS"),
        *("CRED", "CREDS", "SIG", "SIGNATURE", "OTP", "TOTP", "PASSCODE", "DSN", "PGPASS", "APIKEY", "CREDENTIALS"),
    }
)
_ENDING = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)$")
_LAST_ENDING = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?$")
_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])")
# A name whose last word is one of these holds where a secret is, or how it is used.
_NO_SECRET = frozenset(
    {
        *("PATH", "PATHS", "FILE", "FILES", "FILENAME", "DIR", "DIRS", "DIRECTORY", "FOLDER", "HOME", "ROOT", "SOCK"),
        *("URL", "URI", "HOST", "PORT", "ENDPOINT", "NAME", "VAR", "MODE", "TYPE", "TTL", "ENABLED", "METHOD"),
        "COMMAND",
    }
)
_WORKING_DIRECTORY = "PWD"

# Schemes in whose URLs something before `@` that has no password is a container, a user's name, or `anonymous`.
_PUBLIC_USERS = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs", "hdfs", "ssh", "git+ssh"}
)
# Behind a scheme of more than one letter (no drive) one slash will do, or backslashes: it was meant as a URL.
_USERINFO = re.compile(
    r"(?:\b([a-z][a-z0-9+.-]{0,30}):(?://|(?<=[a-z0-9]{2}:)[/\\]+)|(?<![\w/.~:-])//)([^\s/?#]*)@", re.IGNORECASE
)
# A password with a character that should have been encoded: behind the colon stands no port.
_BROKEN_USERINFO = re.compile(r"(//)[^\s/?#:@\[]{0,200}:(?!\d{0,5}(?:[/?#\s'\"),;\]]|$))\S{0,200}@")
_NO_SCHEME = re.compile(
    r"(?<![\w/@.:-])(?!mailto:)[^\s/:@'\"=,(]{1,200}:[^\s/@'\"]{1,200}@(?=[\w-]+[.:]\w|\[|localhost)"
)
_WHOLE_NO_SCHEME = re.compile(r"[^\s/:@]+:[^\s/@]+@(?:[\w.-]+|\[[\da-f:]+\])(?::\d+)?(?:/\S*)?", re.IGNORECASE)
# The beginning of a URL that was cut before its `@`.
_CUT_USERINFO = re.compile(
    r"(//)(?:[^\s/?#:@\[]{1,200}:(?!\d{0,5}(?:[/?#\s'\"),;\]…]|$))[^\s/?#'\"…]*|[^\s/?#:@.'\"…]{20,})(?=[…'\"]|$)"
)
_PARAMETER = re.compile(r"([?&#;])([\w.%[\]-]{1,60})=([^\s&#;'\"<>]+)")
_CREDENTIAL_PARAMETERS = frozenset(
    {
        *("key", "auth", "authorization", "sig", "code", "pass", "pwd", "pw", "pat", "sas", "jwt", "bearer", "otp"),
        *("session", "sessionid", "cookie", "cred", "creds", "passcode"),
    }
)
_CREDENTIAL_ENDING = re.compile(
    r"(key|key-?id|token|secret|password|passwd|passphrase|signature|credentials?)$", re.IGNORECASE
)

# What services let their keys begin with; a character that no word has tells them from names.
_KEYS = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?=[\w-]*\d)[\w-]{16,}"  # OpenAI, Anthropic and others
    r"|(?:sk|rk|pk)_(?:live|test)_\w{16,}"
    r"|hf_(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"  # JSON Web Tokens
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{16,}"
    r"|(?:gsk|npm|r8)_[A-Za-z0-9]{20,}|(?:nvapi|pplx)-[\w-]{20,}"
    r")"
    r"|\b(?i:Bearer)\s+(?=[^\s'\"]*\d)[\w.~+/-]{16,}=*"
    r"|\b(?:AccountKey|SharedAccessKey)=[\w+/]{20,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)

_URL_SAFE = str.maketrans("+/", "-_")

_Pairs = tuple[tuple[str, str], ...]
_variables: set[str] = set()  # what holds secrets without being called so
_texts: deque[str] = deque(maxlen=32)  # secrets that stand in no variable: the last ones
_names: dict[str, str] = {}  # by text, what is shown in its place


def is_secret(name: str) -> bool:
    """Whether the name of an environment variable, or of a key, says that it holds a key, a token or a password."""
    words = [word.upper() for part in _BETWEEN_WORDS.split(name) if (word := part.rstrip("0123456789"))]
    if not words or words[-1] in _NO_SECRET or words == [_WORKING_DIRECTORY]:
        return False
    return _LAST_ENDING.search(words[-1]) is not None or any(word in _WORDS or _ENDING.search(word) for word in words)


def hide(variable: str) -> None:
    """Let what is in an environment variable not be shown by this process, whatever it is called."""
    _variables.add(variable)


def hide_text(secret: str) -> None:
    """Let this process not show a secret that stands in no variable, such as a token."""
    _texts.append(secret)


def show_by_name(text: str, name: str) -> None:
    """Let this process show a name in the place of a text."""
    _names[text.strip()] = name


def secret_values(variables: Iterable[str] = ()) -> Mapping[str, tuple[str, ...]]:
    """By variable, the texts in this process's environment that are secret: values, their lines, passwords of URLs.

    Args:
        variables: what holds a secret, beside the variables whose names say it and those that were hidden.
    """
    return _secrets(tuple(os.environ.items()), frozenset({*_variables, *variables}))


@lru_cache(4)
def _secrets(environment: _Pairs, variables: frozenset[str]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, value in environment:
        whole = value.strip()
        if (name in variables or is_secret(name)) and not is_path(whole):
            texts = [whole, *_lines(whole)]
        else:
            texts = _passwords(whole)
        if texts := [text for text in texts if len(text) >= SHORTEST and text not in _public_text()]:
            found[name] = tuple(texts)
    return found


@lru_cache(1)
def _public_text() -> str:
    """The package's own configs: a word of theirs, such as `question`, is in every run, and tells no password."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(SHIPPED_CONF.rglob("*.yaml")))


def _lines(secret: str) -> list[str]:
    """The lines of a secret that has several, such as a private key in PEM, but for those that only frame it."""
    lines = [line.strip() for line in secret.splitlines()]
    return [line for line in lines if len(line) >= SHORTEST_LINE and not line.startswith("-----")]


def is_path(value: str) -> bool:
    """Whether a text is the path of a file, and not a secret that begins with a slash: its first folder exists."""
    if value.startswith("~/"):
        return True
    first, slash, _ = value[1:].partition("/")
    return value.startswith("/") and (os.path.isdir(f"/{first}") if slash else os.path.exists(value))


def _passwords(text: str) -> list[str]:
    """What stands before `@` in a URL, as a whole and behind its colon, as it is written and decoded."""
    match = _USERINFO.match(text) if "@" in text else None
    if match is not None and _is_credential(match):
        user = match[2]
    elif _WHOLE_NO_SCHEME.fullmatch(text):
        user = text.rpartition("@")[0]
    else:
        return []
    parts = {user, user.partition(":")[2] or user}
    return sorted({*parts, *map(unquote, parts)}, key=len, reverse=True)


@lru_cache(64)
def spellings(secret: str) -> tuple[str, ...]:
    """A secret as itself, as it stands in URLs, in messages and in base64, wherever it begins there."""
    data = secret.encode("utf-8", "surrogateescape")
    inside = [base64.b64encode(b"\0" * shift + data).decode()[(0, 2, 3)[shift] : -4] for shift in range(3)]
    encoded = [text for text in inside if len(text) >= TELLING]
    escapes = [repr(secret)[1:-1], json.dumps(secret)[1:-1], " ".join(secret.split())]
    in_urls = [quote(data), quote(data, safe="")]
    return tuple(dict.fromkeys([secret, *escapes, *in_urls, *encoded, *(t.translate(_URL_SAFE) for t in encoded)]))


def redacted(text: str) -> str:
    """A text without the values of secrets, without credentials in URLs, and without what looks like a key."""
    masks = _masks(tuple(os.environ.items()), frozenset(_variables), tuple(_names.items()), tuple(_texts))
    return _KEYS.sub(MASK, without_credentials(masks.apply(text)))


@lru_cache(4)
def _masks(environment: _Pairs, variables: frozenset[str], names: _Pairs, texts: tuple[str, ...]) -> Masks:
    """What is not shown, and what is shown in its place."""
    secrets = [secret for found in _secrets(environment, variables).values() for secret in found]
    secrets += [text for text in texts if len(text) >= SHORTEST]
    return Masks({spelt: MASK for secret in secrets for spelt in spellings(secret)}, dict(names))


class Masks:
    """Texts that are not shown. Of one that is short, and may be a part of any word, only whole words are replaced.

    Args:
        secrets: by text, what is shown in its place, also where only its beginning is left, as a message was cut.
        names: the same for texts that are no secrets, and are replaced as a whole.
    """

    def __init__(self, secrets: Mapping[str, str], names: Mapping[str, str] | None = None) -> None:
        shown = {**(names or {}), **secrets}
        self._shown = {text: mask for text, mask in shown.items() if len(text) >= SHORTEST_WORD}
        self._least = {text: min(TELLING, len(text)) if text in secrets else len(text) for text in self._shown}
        heads = {
            re.escape(text[: self._least[text]])
            if len(text) >= SHORTEST
            else rf"(?<![\w.-]){re.escape(text)}(?![\w-]|\.\d)"
            for text in self._shown
        }
        self._heads = re.compile("|".join(sorted(heads, key=len, reverse=True)) or r"(?!)")

    def apply(self, text: str) -> str:
        """`text` with what is shown in the place of what is not."""
        parts, end = [], 0
        for match in self._heads.finditer(text):
            start = match.start()
            if start >= end:
                agreeing = {masked: _agreeing(text, start, masked) for masked in self._shown}
                longest = max((one for one in agreeing if agreeing[one] >= self._least[one]), key=agreeing.__getitem__)
                parts += [text[end:start], self._shown[longest]]
                end = start + agreeing[longest]
        return "".join([*parts, text[end:]])


def _agreeing(text: str, start: int, other: str) -> int:
    """With how many characters of a text, from a place on, another begins."""
    pairs = enumerate(zip(text[start : start + len(other)], other, strict=False))
    return next((number for number, (one, its) in pairs if one != its), min(len(text) - start, len(other)))


def without_credentials(text: str) -> str:
    """A text in whose URLs `***` stands for user names, passwords, and parameters that give access."""
    if "%" in text:
        text = re.sub(r"[^\s'\"]+", lambda match: MASK if _decoded_shows(match[0]) else match[0], text)
    if "@" in text:
        text = _USERINFO.sub(lambda match: _masked_user(match) if _is_credential(match) else match[0], text)
        text = _BROKEN_USERINFO.sub(rf"\1{MASK}@", text)
        text = _NO_SCHEME.sub(f"{MASK}@", text)
    if "//" in text:
        text = _CUT_USERINFO.sub(rf"\1{MASK}", text)
    return _PARAMETER.sub(_masked_parameter, text) if "=" in text else text


def _masked_user(match: re.Match[str]) -> str:
    return f"{match[1]}://{MASK}@" if match[1] else f"//{MASK}@"


def _is_credential(match: re.Match[str]) -> bool:
    return ":" in match[2] or (match[1] or "").lower() not in _PUBLIC_USERS


def _masked_parameter(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}={MASK}" if _gives_access(match[2]) else match[0]


def _gives_access(parameter: str) -> bool:
    name = unquote(parameter).rstrip("[]")
    last = re.split(r"[-_.]", name.lower())[-1]
    return last in _CREDENTIAL_PARAMETERS or _CREDENTIAL_ENDING.search(name) is not None


def _decoded_shows(word: str) -> bool:
    """Whether a word shows credentials once it is decoded, and does not before."""
    decoded = unquote(unquote(word))
    return decoded != word and not _shows(word) and _shows(decoded)


def _shows(text: str) -> bool:
    is_user = any(_is_credential(match) and match[2] != MASK for match in _USERINFO.finditer(text))
    is_parameter = any(_gives_access(match[2]) and match[3] != MASK for match in _PARAMETER.finditer(text))
    return is_user or is_parameter or _BROKEN_USERINFO.search(text) is not None


def holds_credentials(text: str) -> bool:
    """Whether a text holds a URL with a user's name or password, or with a parameter that gives access."""
    candidates = [text, unquote(unquote(text))]
    if re.match(r"\s*([A-Za-z][\w+.-]*:)?//", text):
        candidates.append("".join(text.split()))
    is_whole = _WHOLE_NO_SCHEME.fullmatch(text.strip()) is not None and not text.lower().startswith("mailto:")
    return is_whole or any(map(_shows, candidates))


def looks_like_key(text: str) -> bool:
    """Whether a text holds what begins as the keys of a well-known service do."""
    return _KEYS.search(text) is not None
