"""What the errors of OpenAI-compatible endpoints mean: from a status, or what a 2xx says in its place, to a kind.

Endpoints that call themselves compatible share the statuses and little else: a prompt that is too long has as many
wordings as there are servers. An error that comes with a 2xx is read as the status that its code names. The endpoint's
words are made safe before anything is read from them, so that what they repeat of a prompt decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from rambla_ray.actors.api.forbidden import About, Forbidden
from rambla_ray.actors.api.http import HttpReply
from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.openai_error_words import MESSAGES, PAGE, RATE_LIMIT, ErrorWords, parsed
from rambla_ray.actors.api.token_usage import charge
from rambla_ray.actors.api.waits import requested_wait_s
from rambla_ray.errors import CallError, ErrorKind

SHOWN_OF_BODY = 60  # So many characters are shown of a body that is no JSON.

_QUOTA = re.compile(
    r"insufficient.?(quota|balance|credit|fund)|exceeded_current_quota|billing_(hard_limit|not_active)|arrearage"
    r"|credit balance|(out of|not enough|used all|exhausted your) (available |your )?credits?\b"
    r"|(exceeded|reached) (your|its) .{0,40}(credits?|spend(ing)?)\b|exceeded your current quota"
    r"|reached your (specified )?(api )?usage limits?"
    r"|check your (plan and )?billing|key limit exceeded|payment required|\bspend(ing)? limit\b"
    r"|balance is (insufficient|not enough|too low)|balance is overdue|overdue balance|account.?overdue|欠费|余额不足"
    r"|(n't|not) have any credits|no credits (left|remaining)|budget.?(has been )?exceeded|exceeded.?budget"
    r"|over budget|free.?tier.?only|free (tier|quota|allocation)\b.{0,40} exhausted"
    r"|used up your .{0,40}\b(free|quota|allocation)\b"
    r"|api calls ?(/|per) ?month"
)
_PER_DAY = re.compile(r"per.?day")  # In the name of a limit: no pause of a run outlasts it.
_BAD_KEY = re.compile(r"api_key_invalid|invalid_api_key|api key not valid")

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|model_max_prompt_tokens|string_above_max_length|max_(model|seq)_len\b"
    r"|maximum (model|prompt|input|sequence) length|range of input length|expected maxlength"
    r"|(prompt|inputs?|messages?|requests?|string)`? (is |are )?too (long|large)|request_too_large"
    r"|too (long|large) for (the |this |requested )?model|longer than the (maximum|model)"
    r"|too many (input |prompt )?tokens|inputs`? tokens \+ |inputs`? must have less than"
    r"|(input|prompt) tokens? .{0,40}exceed|token count .{0,40}exceed|exceed\w* (the )?(model )?token limit"
    r"|(input|prompt) .{0,20}exceeds? (the )?(max|limit)|exceeds? (the )?(context limit|max message tokens)"
    r"|reduce the length of the (messages?|prompt|input)|input (token )?length (is )?too long|prompt 超长"
    r"|max_\w*tokens must be at least 1, got -"
)
_REQUEST_TOO_LARGE = re.compile(r"request too large|request_too_large|tokens must be reduced")
_ANSWER_TOO_LONG = re.compile(
    r"(?<!\+ )(?<!\+ `)max_\w*tokens\b\W*(or \W*max_\w*tokens\W*)?"
    r"(([\w.]+ ){0,4}too (large|high|big|long)|must be (less|at most|no more|between|<))"
)
_ANSWER_WAS_CUT = re.compile(r"could not finish the message because max_tokens or model output limit was reached")
_ANSWER_AND_CONTEXT = re.compile(r"too large: (\d{1,12})\b.*context length is (\d{1,12})\b")

_FILTERED = re.compile(  # Codes.
    r"content_?filter|(content|bio|misalignment)_policy|responsibleaipolicy|data_?inspection_?failed"
    r"|sensitive_?content|censor|^1301$"
)
_REFUSED = re.compile(
    r"content[ _]?(filter|management|polic|moderation|exists risk)|usage (polic|guideline)|policy[ _]violation"
    r"|moderation|\bflagged\b|safety([ _]checks?|_check_\w+| (system|filter|setting|guideline|polic|reason))"
    r"|inappropriate content|guardrail|prohibited_content|responsible ai\b|prompt.?injection|jailbreak"
    r"|sensitive (content|information|words?)\b|new_sensitive|敏感"
)
_REFUSING = (400, 403, 422)  # Statuses beside which an endpoint's words may say that it refuses.

_WRONG_URL = (404, 405)
_NOT_HERE = re.compile(
    r"\b(model_?not_?found|invalid_?model)\b|is not a valid model\b"
    r"|http request (was sent )?to (an )?https (port|server)"
)
# Besides 5xx: the last three are Text Generation Inference's failed generation, and what proxies and queues say of a
# call that did not get through.
_PASSING = (408, 409, 424, 425, 499)


def status_error(reply: HttpReply, redacted: Callable[[str], str]) -> CallError:
    """What a status other than 2xx means; the message is the endpoint's own, made safe by `redacted` and cut short."""
    body = parsed(reply.body)
    if reply.status in (407, 511):  # Only what stands on the way to the endpoint sends these.
        return CallError(
            ErrorKind.UNAVAILABLE, f"the proxy or network does not let calls through: HTTP {reply.status}"
        )
    if 300 <= reply.status < 400:
        place = reply.headers.get("location")
        body = f"the endpoint redirects to {place}, which is not followed; correct base_url"
    return charge(_error(reply, reply.status, ErrorWords.of(body), redacted), body)


def is_cut(error: CallError) -> bool:
    """Whether an error says that thinking took all of the answer's length, which some of OpenAI's models say so."""
    return error.kind is ErrorKind.BAD_REQUEST and _ANSWER_WAS_CUT.search(error.message.lower()) is not None


def not_json(reply: HttpReply, redacted: Callable[[str], str]) -> CallError:
    """The error of a 2xx whose body is no JSON: it says how it begins, or which page it is."""
    words = redacted(str(parsed(reply.body)))[:SHOWN_OF_BODY]
    what = "a web page" if PAGE.match(reply.body) else "no JSON" if reply.body.strip() else "empty"
    return CallError(ErrorKind.GARBAGE, f"the reply is {what}{f': {words}' if words else ''}")


def error_in(
    body: Any, reply: HttpReply, redacted: Callable[[str], str], holds_answer: Callable[[dict[str, Any]], bool]
) -> CallError | None:
    """The error in the parsed body of a 2xx, read as the status that its code names; None where there is an answer.

    Args:
        body: the reply's, parsed.
        reply: as it came.
        redacted: makes the endpoint's words safe.
        holds_answer: whether an object has what the API answers with.
    """
    if isinstance(body, dict) and holds_answer(body):
        error = _broken_off(body)
    elif isinstance(body, list):
        error = next((item for item in body[:1] if isinstance(item, dict) and item.get("error")), None)
    else:
        error = body if isinstance(body, dict) and _is_error(body) else None
    if error is None:
        return None
    words = ErrorWords.of(error)
    return charge(_error(reply, words.status, words, redacted), body)


def _is_error(body: dict[str, Any]) -> bool:
    """Whether a body without an answer says that something went wrong, or what."""
    named = any(body.get(key) and isinstance(body[key], str | list | dict) for key in ("error", "errors", "base_resp"))
    return named or any(body.get(key) and isinstance(body[key], str) for key in MESSAGES)


def _broken_off(body: dict[str, Any]) -> dict[str, Any] | None:
    """What the body of an answer says of the error that ended it; None where it ended otherwise."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict):
        return None
    reason, error = choice.get("finish_reason"), choice.get("error")
    if not error and ending_of(reason) is not Ending.ERROR:
        return None
    return {"error": error or body.get("error"), "message": f"the answer ended with finish_reason {reason}"}


def _error(reply: HttpReply, status: int, words: ErrorWords, redacted: Callable[[str], str]) -> CallError:
    name = f" {words.name}" if words.name not in ("", str(reply.status)) else ""
    text = words.text or ("" if name else _phrase(reply.status))
    message = redacted(f"HTTP {reply.status}{name}{f': {text}' if text else ''}")
    retry_after_s = requested_wait_s(reply.headers)
    if retry_after_s is None:
        retry_after_s = words.retry_after_s
    wording = " ".join([*words.codes, message]).lower()
    kind = _kind(status, words, wording, is_to_wait=retry_after_s is not None)
    if status == 403 and kind is ErrorKind.REFUSED:
        return Forbidden(message, About.PROMPT)
    if status == 403 and kind is ErrorKind.AUTH and not _BAD_KEY.search(wording):
        return Forbidden(message, About.PAGE if PAGE.match(reply.body) else About.UNKNOWN)
    is_passing = kind in (ErrorKind.RATE_LIMITED, ErrorKind.SERVER)
    return CallError(kind, message, retry_after_s=retry_after_s if is_passing else None)


def _phrase(status: int) -> str:
    """What the standard calls an error's status, such as `Payment Required`; empty for another status."""
    with suppress(ValueError):
        hint = "; is base_url right?" if status in _WRONG_URL else ""
        return HTTPStatus(status).phrase + hint if status >= 400 else ""
    return ""


def _kind(status: int, words: ErrorWords, wording: str, *, is_to_wait: bool) -> ErrorKind:
    """The kind of an error.

    Args:
        status: as which it is read.
        words: what its body says.
        wording: its codes and its message, in lower case.
        is_to_wait: the endpoint says when to try again.
    """
    if status not in (401, 404) and _credit_is_used_up(status, words, wording, is_to_wait=is_to_wait):
        return ErrorKind.QUOTA
    if status not in (401, 403, 404) and _is_too_long(status, wording):
        return ErrorKind.TOO_LONG
    if any(map(_FILTERED.search, words.codes)):
        return ErrorKind.REFUSED
    if status == 451 or (status in _REFUSING and (words.about_prompt or _REFUSED.search(wording))):
        return ErrorKind.REFUSED
    if status == 429 or (status == 403 and RATE_LIMIT.search(wording)):
        return ErrorKind.RATE_LIMITED
    if status in (401, 403) or (status == 400 and _BAD_KEY.search(wording)):
        return ErrorKind.AUTH
    if status in _WRONG_URL or 300 <= status < 400 or (status == 400 and _NOT_HERE.search(wording)):
        return ErrorKind.NOT_FOUND
    return ErrorKind.SERVER if status in _PASSING or status >= 500 else ErrorKind.BAD_REQUEST


def _credit_is_used_up(status: int, words: ErrorWords, wording: str, *, is_to_wait: bool) -> bool:
    """Whether no pause helps. Google speaks of quota and billing beside every limit, also of one that is soon over."""
    if status == 402 or "402" in words.codes or any(map(_QUOTA.search, words.codes)):
        return True
    if status == 429 and any(map(_PER_DAY.search, words.codes)):
        return True
    is_limit = status == 429 and (is_to_wait or "resource_exhausted" in words.codes)
    return status >= 400 and not is_limit and _QUOTA.search(wording) is not None


def _is_too_long(status: int, wording: str) -> bool:
    """Whether the prompt does not fit; not where the length of the answer that is asked for does not."""
    if status == 413:
        return True
    if status == 429:  # Others speak of tokens that are too many for this minute.
        return _REQUEST_TOO_LARGE.search(wording) is not None
    if _ANSWER_TOO_LONG.search(wording):
        sizes = _ANSWER_AND_CONTEXT.search(wording)
        return sizes is not None and int(sizes[1]) < int(sizes[2])
    return _TOO_LONG.search(wording) is not None
