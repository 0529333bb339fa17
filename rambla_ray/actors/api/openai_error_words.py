"""What an error of an OpenAI-compatible endpoint says, whatever its shape.

An error is an object, a string or a list, its code a number or a word; where it is no JSON at all it is a plain text,
or a page for people, of which the title is read.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_CODE = 80  # A code is cut to so many characters.
PAGE_BYTES = 4096  # So much is read of an error that is no JSON.
DEEPEST = 6  # An error is looked for at so many levels of a body, and in so many items of a list.

# Members that say what happened, in a word and in a sentence; and those in which more of it stands.
_CODES = ("code", "status", "type", "reason", "error_code", "status_code", "statusCode", "quotaId")
MESSAGES = ("message", "msg", "detail", "title", "error_msg", "error_message", "status_msg", "raw")
_INNER = ("errors", "message", "detail", "details", "innererror", "metadata", "violations", "base_resp")
_ABOUT_PROMPT = ("reasons", "flagged_input")  # Members that say why a prompt was turned down.

RATE_LIMIT = re.compile(r"(rate|request|qps).?limit|too.?many.?requests|resource.?exhausted|throttl")
_STATUS_IN_TEXT = re.compile(r"(?:http |error:? |error code:? |status:? )?([45]\d\d)\b")  # "429 Too Many Requests"
_STATUS_OF_CODE = (
    (429, RATE_LIMIT),
    (401, re.compile(r"unauthenticated|unauthorized|authentication|invalid_api_key")),
    (403, re.compile(r"permission|forbidden")),
    (404, re.compile(r"not.?found")),
    (400, re.compile(r"invalid.?(argument|request|prompt)|failed_precondition|bad.?request|out_of_range|validation")),
)

PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{1,200})", re.IGNORECASE)
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


@dataclass(frozen=True, slots=True)
class ErrorWords:
    """What a body says of an error.

    Args:
        codes: its words and numbers for what happened, in lower case.
        name: the code that is shown.
        text: its sentences.
        about_prompt: it gives the reasons for which a prompt was turned down.
        retry_after_s: when to try again, in seconds, where it says so.
    """

    codes: tuple[str, ...] = ()
    name: str = ""
    text: str = ""
    about_prompt: bool = False
    retry_after_s: float | None = None

    @classmethod
    def of(cls, body: Any) -> ErrorWords:
        """What a parsed body of any shape says."""
        levels = list(_levels(body, DEEPEST))
        objects = [level for level in levels if isinstance(level, dict)]
        sentences = [text for level in levels for text in _sentences(level)]
        codes = [(key, code) for level in objects for key in _CODES if (code := _code(level.get(key)))]
        return cls(
            tuple(code.lower() for _, code in codes),
            next((code for key, code in codes if key in ("code", "type")), ""),
            " ".join(dict.fromkeys(filter(None, sentences))),
            any(level.get(key) for level in objects for key in _ABOUT_PROMPT),
            next((wait_s for level in objects if (wait_s := _delay_s(level)) is not None), None),
        )

    @property
    def status(self) -> int:
        """The status as which an error that came with a 2xx is read; 500 where its codes and sentences name none."""
        for code in self.codes:
            if re.fullmatch(r"[45]\d\d", code):
                return int(code)
        for code in self.codes:
            for status, pattern in _STATUS_OF_CODE:
                if pattern.search(code):
                    return status
        if match := _STATUS_IN_TEXT.match(self.text.lower()):
            return int(match[1])
        return 429 if RATE_LIMIT.search(self.text.lower()) else 500


def objects_in(body: Any) -> list[dict[str, Any]]:
    """The objects of an error, those of the error itself first."""
    return [level for level in _levels(body, DEEPEST) if isinstance(level, dict)]


def _levels(value: Any, depth: int) -> Iterator[dict[str, Any] | str]:
    """The objects and sentences of an error: first those of the error itself, last what it is wrapped in."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for item in value[:DEEPEST]:
            yield from _levels(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield from _levels(value.get("error"), depth - 1)
        yield value
        for name in _INNER:
            if isinstance(value.get(name), dict | list):
                yield from _levels(value[name], depth - 1)


def _sentences(level: dict[str, Any] | str) -> list[str]:
    if isinstance(level, str):
        return [level]
    sentences = [level[key] for key in MESSAGES if isinstance(level.get(key), str)]
    place = level.get("loc")  # The parameter that is wrong, as servers with pydantic name it.
    if not isinstance(place, list):
        return sentences
    return [".".join(part for part in place[:DEEPEST] if isinstance(part, str)), *sentences]


def _code(value: Any) -> str:
    """A code as text; empty for what is none."""
    is_code = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value)[:LONGEST_CODE] if value and is_code else ""


def _delay_s(error: Mapping[str, Any]) -> float | None:
    """Google's `retryDelay`, such as `34s`."""
    delay = error.get("retryDelay")
    match = _SECONDS.fullmatch(delay) if isinstance(delay, str) else None
    return float(match[1]) if match else None


def parsed(body: bytes) -> Any:
    """The body of an error: its JSON, or as a string what it says otherwise."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        text = body[:PAGE_BYTES].decode(errors="replace")
    title = _TITLE.search(text)
    return html.unescape(title[1]) if title else "" if PAGE.match(body) else text
