"""What errors mean, in the words of many endpoints: the kind, how often is asked, and what of their words is kept."""

from __future__ import annotations

import json
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import Chat, ask_in_turn, build, error
from openai_server import OpenAIServer
from pause_clock import PauseClockPolicy

from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

TOO_LONG, REFUSED, QUOTA, AUTH = ErrorKind.TOO_LONG, ErrorKind.REFUSED, ErrorKind.QUOTA, ErrorKind.AUTH
RATE_LIMITED, SERVER, BAD_REQUEST = ErrorKind.RATE_LIMITED, ErrorKind.SERVER, ErrorKind.BAD_REQUEST
NOT_FOUND = ErrorKind.NOT_FOUND


class TriesAgain(Chat):
    """Asks what may pass two or three times, by the pauses that it makes."""

    retry = PauseClockPolicy(attempts=2, first_pause_s=0.2, longest_pause_s=0.2)


def say(message: str, **members: Any) -> dict[str, Any]:
    """An error in the OpenAI API's shape."""
    return {"error": {"message": message, **members}}


def failed(status: int, body: Any, **reply: Any) -> tuple[CallError, int]:
    """What comes of a call that always gets this reply, and how many there were."""
    fault = Fault("reply", status=status, body=json.dumps(body).encode(), times=-1, **reply)
    with OpenAIServer(faults=[fault]) as server:
        return error(build(server, TriesAgain, rate=Rate(give_up_after_s=0.2))), len(server.requests)


PLANS = "You exceeded your current quota, please check your plan and billing details."
GOOGLE_LIMIT = {
    "error": {
        "code": 429,
        "message": f"{PLANS} For more information head to the docs.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.2s"},
        ],
    }
}
GOOGLE_DAY = json.loads(json.dumps(GOOGLE_LIMIT).replace("PerMinute", "PerDay"))

CREDIT: list[tuple[int, Any, ErrorKind]] = [
    (400, say("Pay first.", code=402), QUOTA),
    (402, say("Insufficient credits. Add more using the settings.", code=402), QUOTA),
    (402, say("Insufficient Balance", type="unknown_error", code="invalid_request_error"), QUOTA),
    (429, say(PLANS, type="insufficient_quota", code="insufficient_quota"), QUOTA),
    (429, say(PLANS, type="insufficient_quota", code="rate_limit_exceeded"), QUOTA),
    (429, say("Quota.", type="tokens", code="insufficient_quota"), QUOTA),
    (429, say(PLANS, type="requests", code=None), QUOTA),
    (429, say("Your account is suspended.", type="exceeded_current_quota_error"), QUOTA),
    (429, say("Billing hard limit has been reached.", code="billing_hard_limit_reached"), QUOTA),
    (429, say("Your account is not active, please check your billing details.", code="billing_not_active"), QUOTA),
    (400, {"type": "error", "error": {"type": "invalid_request_error",
          "message": "Your credit balance is too low to access the API. Go to Plans & Billing."}}, QUOTA),
    (403, say("Key limit exceeded (monthly limit). Manage it in the settings.", code=403), QUOTA),
    (403, say("Your team has used all available credits or reached its monthly spending limit."), QUOTA),
    (400, say("You have reached your specified API usage limits. You will regain access on 2026-12-01."), QUOTA),
    (429, GOOGLE_DAY, QUOTA),
    (412, say("Account is suspended, possibly due to reaching the monthly spending limit."), QUOTA),
    (429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month."}, QUOTA),
    (403, {"code": "The caller does not have permission to execute the specified operation",
           "error": "Your newly created team doesn't have any credits yet."}, QUOTA),
    (429, say("您的账户已欠费，请充值后重试。", code="1113"), QUOTA),
    (403, {"code": "AllocationQuota.FreeTierOnly", "message": "The free tier has been exhausted."}, QUOTA),
    (403, say("The request failed because your account has an overdue balance.", code="AccountOverdueError"), QUOTA),
    (403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}, QUOTA),
    (429, {"errors": [{"message": "You have used up your daily free allocation.", "code": 4006}]}, QUOTA),
    (400, say("Budget has been exceeded! Current cost: 0.5, Max budget: 0.1", type="budget_exceeded", code="400"),
     QUOTA),
    # A limit of a minute is not the end of the credit, whatever it is called.
    (429, GOOGLE_LIMIT, RATE_LIMITED),
    (429, say("Service tier capacity exceeded for this model.", type="service_tier_capacity_exceeded"), RATE_LIMITED),
    (429, [GOOGLE_LIMIT], RATE_LIMITED),
    (429, say("Requests have exceeded the token rate limit of your S0 tier. Please retry after 6 seconds. "
              "Go to https://aka.ms/oai/quotaincrease to increase the default rate limit.", code="429"), RATE_LIMITED),
    (429, say("Quota exceeded for aiplatform.googleapis.com/online_prediction_requests with base model: x.",
              status="RESOURCE_EXHAUSTED", code=429), RATE_LIMITED),
]  # fmt: skip

LONG: list[tuple[int, Any, ErrorKind]] = [
    (400, say("This model's maximum context length is 4097 tokens, however you requested 5000 tokens.",
              code="context_length_exceeded"), TOO_LONG),
    (400, say("Your input exceeds the context window of this model.", code=None), TOO_LONG),
    (400, say("Input tokens exceed the configured limit of 272000 tokens.", code="x"), TOO_LONG),
    (400, say("Invalid 'messages[0].content': string too long.", code="string_above_max_length"), TOO_LONG),
    (429, say("Request too large for gpt-4 in organization o on tokens per min (TPM): Limit 10000, Requested 12000. "
              "The input or output tokens must be reduced in order to run successfully.",
              type="tokens", code="rate_limit_exceeded"), TOO_LONG),
    (413, say("Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 7000."), TOO_LONG),
    (400, {"object": "error", "message": "The decoder prompt (length 5000) is longer than the maximum model length "
          "of 4096. Make sure that `max_model_len` is no smaller.", "type": "BadRequestError", "code": 400}, TOO_LONG),
    (400, say("'max_tokens' or 'max_completion_tokens' is too large: 800. This model's maximum context length is "
              "4096 tokens and your request has 3900 input tokens (800 > 4096 - 3900)."), TOO_LONG),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` "
          "tokens and 200 `max_new_tokens`", "error_type": "validation"}, TOO_LONG),
    (422, {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"}, TOO_LONG),
    (400, {"type": "error", "error": {"type": "invalid_request_error",
          "message": "prompt is too long: 210000 tokens > 200000 maximum"}}, TOO_LONG),
    (400, [say("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
               code=400, status="INVALID_ARGUMENT")], TOO_LONG),
    (400, {"message": "Input is too long for requested model."}, TOO_LONG),
    (400, {"message": "Malformed input request: expected maxLength: 2048, actual: 5000"}, TOO_LONG),
    (400, {"object": "error", "message": "Prompt contains 33000 tokens and 0 draft tokens, too large for model with "
          "32768 maximum context length", "type": "invalid_request_error", "code": 3051}, TOO_LONG),
    (400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292."},
     TOO_LONG),
    (400, say("the request exceeds the available context size", type="exceed_context_size_error"), TOO_LONG),
    (500, say("the request exceeds the available context size. try increasing it"), TOO_LONG),
    (400, say("This model's maximum prompt length is 131072 but the request contains 537812 tokens."), TOO_LONG),
    (400, say("Invalid request: Your request exceeded model token limit: 8192", type="invalid_request_error"),
     TOO_LONG),
    (400, say("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]"), TOO_LONG),
    (400, say("Prompt exceeds max length", code="1261"), TOO_LONG),
    (400, say("Prompt 超长", code="1261"), TOO_LONG),
    (400, {"object": "error", "message": "max_tokens must be at least 1, got -904.", "code": 400}, TOO_LONG),
    (400, say("input length and `max_tokens` exceed context limit: 199211 + 20000 > 200000"), TOO_LONG),
    (400, say("Please reduce the length of the messages or completion."), TOO_LONG),
    (400, say("Total tokens of image and text exceed max message tokens"), TOO_LONG),
    (400, say("The prompt is too long: 140000, model maximum context length: 131071"), TOO_LONG),
    (400, say("Provider returned error", code=400, metadata={"provider_name": "x", "raw":
          '{"error": {"message": "This endpoint\'s maximum context length is 4096 tokens."}}'}), TOO_LONG),
    # What is too large is the answer that the config asks for, or this minute's tokens, or a wait.
    (400, say("max_tokens is too large: 32000. This model supports at most 16384 completion tokens.",
              code="invalid_value", param="max_tokens"), BAD_REQUEST),
    (400, say("'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is "
              "4096 tokens and your request has 50 input tokens (5000 > 4096 - 50)."), BAD_REQUEST),
    (400, say("`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than "
              "the `context_window` for this model"), BAD_REQUEST),
    (429, say("Rate limit reached for gpt-4 in organization o on tokens per min (TPM): Limit 10000, Used 9500, "
              "Requested 1000. Please try again in 3s.", type="tokens", code="rate_limit_exceeded"), RATE_LIMITED),
    (429, {"message": "Too many tokens, please wait before trying again."}, RATE_LIMITED),
    (504, say("The upstream took too long to answer the request."), SERVER),
]  # fmt: skip

REFUSALS: list[tuple[int, Any, ErrorKind]] = [
    (400, say("The response was filtered.", code="content_filter"), REFUSED),
    (400, say("Bad.", code=None, innererror={"code": "ResponsibleAIPolicyViolation"}), REFUSED),
    (400, say("Rejected as a result of our safety system.", code="content_policy_violation"), REFUSED),
    (400, say("Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
              code="invalid_prompt"), REFUSED),
    (400, {"code": "data_inspection_failed", "message": "Output data may contain inappropriate content."}, REFUSED),
    (400, say("Output blocked by content filtering policy", type="invalid_request_error"), REFUSED),
    (403, {"code": "x", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, REFUSED),
    (400, say("Invalid prompt: we've limited access to this content for safety reasons.", code="invalid_prompt"),
     REFUSED),
    (400, say("Content Exists Risk", type="invalid_request_error"), REFUSED),
    (400, say("The input text may contain sensitive information.", code="InputTextSensitiveContentDetected"), REFUSED),
    (400, say("This prompt contains sensitive words that violate our Responsible AI practices."), REFUSED),
    (400, say("输入或生成内容可能包含不安全或敏感内容", code="1301"), REFUSED),
    (400, say("Blocked as a prompt injection."), REFUSED),
    (451, say("The content you provided is blocked.", type="censorship_blocked"), REFUSED),
    (451, {}, REFUSED),
    # Words alone are no reason to take another error for it.
    (429, say("Rate limit reached for text-moderation-latest.", code="rate_limit_exceeded"), RATE_LIMITED),
    (500, say("The safety system is not available.", type="server_error"), SERVER),
]  # fmt: skip

OTHERS: list[tuple[int, Any, ErrorKind]] = [
    (400, [say("API key not valid. Please pass a valid API key.", code=400, status="INVALID_ARGUMENT",
               details=[{"reason": "API_KEY_INVALID", "domain": "googleapis.com"}])], AUTH),
    (403, say("The key is wrong.", code="invalid_api_key"), AUTH),
    (403, {"message": "You have exceeded a secondary rate limit."}, RATE_LIMITED),
    (400, {"detail": [{"loc": ["body", "seed"], "msg": "Input should be a valid integer", "type": "int"}]},
     BAD_REQUEST),
    (400, say("The model `x` does not exist", code="model_not_found"), NOT_FOUND),
    (400, say("x is not a valid model ID", code=400), NOT_FOUND),
    (400, "Client sent an HTTP request to an HTTPS server.", NOT_FOUND),
    (405, {"detail": "Method Not Allowed"}, NOT_FOUND),
    (424, {"error": "Request failed during generation: Server error", "error_type": "generation"}, SERVER),
    (425, {}, SERVER),
    (499, {"message": "Client closed request"}, SERVER),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), [*CREDIT, *LONG, *REFUSALS, *OTHERS])
def test_an_error_has_the_kind_that_its_words_have(status: int, body: Any, kind: ErrorKind) -> None:
    end, calls = failed(status, body)
    assert end.kind == kind, end
    assert (calls > 1) == (kind in (RATE_LIMITED, SERVER))


def test_a_prompt_that_an_error_repeats_decides_nothing() -> None:
    prompt = (
        "Is the prompt too long, the credit balance too low, or the content filter right about the context length?"
    )
    echo = json.dumps(say("Not now: {prompt}", code="bad")).encode()
    with OpenAIServer(faults=[Fault("reply", status=400, body=echo)]) as server:
        assert error(build(server), prompt).kind == BAD_REQUEST


IN_A_200: list[tuple[Any, ErrorKind, str]] = [
    (say("Slow down.", code=429), RATE_LIMITED, "HTTP 200 429: Slow down."),
    (say("Slow down.", code="429"), RATE_LIMITED, "HTTP 200 429: Slow down."),
    (say("Slow down.", code="rate_limit_exceeded"), RATE_LIMITED, "HTTP 200 rate_limit_exceeded: Slow down."),
    (say("Slow down.", type="too_many_requests"), RATE_LIMITED, "HTTP 200 too_many_requests: Slow down."),
    ({"error": "Rate limit exceeded"}, RATE_LIMITED, "HTTP 200: Rate limit exceeded"),
    ([GOOGLE_LIMIT], RATE_LIMITED, f"HTTP 200 429: {PLANS} For more information head to the docs."),
    (say("Provider is down.", code=502), SERVER, "HTTP 200 502: Provider is down."),
    ({"error": "no"}, SERVER, "HTTP 200: no"),
    ({"error": "429 Too Many Requests"}, RATE_LIMITED, "HTTP 200: 429 Too Many Requests"),
    ({"error": "Error code: 401 - who are you?"}, AUTH, "HTTP 200: Error code: 401 - who are you?"),
    ({"error": "HTTP 402 Payment Required"}, QUOTA, "HTTP 200: HTTP 402 Payment Required"),
    ({"error": "502 Bad Gateway"}, SERVER, "HTTP 200: 502 Bad Gateway"),
    (say("Overloaded", type="overloaded_error"), SERVER, "HTTP 200 overloaded_error: Overloaded"),
    ({"detail": "The model is being loaded."}, SERVER, "HTTP 200: The model is being loaded."),
    ({"status_code": 429, "message": "Wait."}, RATE_LIMITED, "HTTP 200: Wait."),
    ({"status": 429, "title": "Too Many Requests"}, RATE_LIMITED, "HTTP 200: Too Many Requests"),
    ({"error_code": 18, "error_msg": "qps request limit reached"}, RATE_LIMITED,
     "HTTP 200: qps request limit reached"),
    ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None}, QUOTA,
     "HTTP 200: insufficient balance"),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": []}, RATE_LIMITED,
     "HTTP 200: rate limit"),
    (say("Pay first.", code=402), QUOTA, "HTTP 200 402: Pay first."),
    (say(PLANS, code="insufficient_quota"), QUOTA, f"HTTP 200 insufficient_quota: {PLANS}"),
    (say("Your credit balance is too low.", code=400), QUOTA, "HTTP 200 400: Your credit balance is too low."),
    (say("Bad.", code=400), BAD_REQUEST, "HTTP 200 400: Bad."),
    (say("Bad.", type="invalid_request_error"), BAD_REQUEST, "HTTP 200 invalid_request_error: Bad."),
    (say("prompt is too long: 9 tokens > 8 maximum", code=400), TOO_LONG,
     "HTTP 200 400: prompt is too long: 9 tokens > 8 maximum"),
    (say("No.", code="context_length_exceeded"), TOO_LONG, "HTTP 200 context_length_exceeded: No."),
    (say("No.", code="content_filter"), REFUSED, "HTTP 200 content_filter: No."),
    (say("Who are you?", code=401), AUTH, "HTTP 200 401: Who are you?"),
    (say("No such model.", code="model_not_found"), NOT_FOUND, "HTTP 200 model_not_found: No such model."),
    ({"choices": [], **say("Slow down.", code=429)}, RATE_LIMITED, "HTTP 200 429: Slow down."),
    ({"choices": None, **say("Slow down.", code=429)}, RATE_LIMITED, "HTTP 200 429: Slow down."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "message"), IN_A_200)
def test_an_error_that_comes_with_a_200_is_read_as_the_status_that_it_names(
    body: Any, kind: ErrorKind, message: str
) -> None:
    end, calls = failed(200, body)
    assert (end.kind, end.message) == (kind, message)
    assert (calls > 1) == (kind in (RATE_LIMITED, SERVER))


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("wrap", [lambda body: body, lambda body: [body]], ids=["object", "list"])
def test_google_says_in_the_body_when_to_try_again(status: int, wrap: Any) -> None:
    end, _ = failed(status, wrap(GOOGLE_LIMIT))
    assert end.retry_after_s == 0.2


def test_a_header_wins_over_the_body_about_when_to_try_again() -> None:
    end, _ = failed(429, GOOGLE_LIMIT, headers=(("Retry-After", "0.1"),))
    assert end.retry_after_s == 0.1


def test_an_error_in_a_200_that_passes_is_followed_by_the_answer() -> None:
    body = json.dumps(say("Slow down.", code=429)).encode()
    with OpenAIServer(answer=str.upper, faults=[Fault("reply", body=body, times=2)]) as server:
        response = ask_in_turn(build(server), "hello")[0]
        assert (response.text, response.trace.attempts, len(server.requests)) == ("HELLO", 3, 3)


def test_no_more_is_asked_once_the_credit_is_used_up() -> None:
    body = json.dumps(say("Your credit balance is too low.", code=400)).encode()
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        ends = ask_in_turn(build(server), "one", "two")
        assert [(end.kind, end.trace.attempts) for end in ends] == [(QUOTA, 1), (QUOTA, 0)]


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"[[]]",
        b'[{"error": null}]',
        b'{"error": {}}',
        b'{"error": ""}',
        b'{"error": []}',
        b'{"error": ' * 50_000,
    ],
)
def test_a_200_with_an_error_that_is_none_is_garbage(body: bytes) -> None:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        assert error(build(server, openai_models.TriesOnce)).kind == ErrorKind.GARBAGE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html><head><title>Wait &amp; see</title></head><body>Much more.</body></html>", "HTTP 503: Wait & see"),
        (b"<!DOCTYPE html><body>Much more.</body>", "HTTP 503: Service Unavailable"),
        (b"upstream connect error or disconnect", "HTTP 503: upstream connect error or disconnect"),
        (b"\xff" * 10_000, ("HTTP 503: " + "\ufffd" * 500)[:500]),
    ],
)
def test_an_error_that_is_no_json_is_shown_by_its_title_or_as_the_text_that_it_is(body: bytes, message: str) -> None:
    with OpenAIServer(faults=[Fault("reply", status=503, body=body, times=-1)]) as server:
        assert error(build(server, openai_models.TriesOnce)).message == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b" ", "the reply is empty"),
        (b"<html><title>Sign in to the network</title></html>", "the reply is a web page: Sign in to the network"),
        (b"<html><body>Hello</body></html>", "the reply is a web page"),
        (b'data: {"choices": []}\n\ndata: [DONE]', 'the reply is no JSON: data: {"choices": []} data: [DONE]'),
        (b"sk-test " + b"x" * 100, f"the reply is no JSON: *** {'x' * 56}"),
    ],
)
def test_an_answer_that_is_no_json_is_garbage_and_says_how_it_begins(body: bytes, message: str) -> None:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        end = error(build(server, openai_models.TriesOnce))
    assert (end.kind, end.message) == (ErrorKind.GARBAGE, message)


@pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (405, "Method Not Allowed")])
def test_a_bare_refusal_of_the_path_asks_for_the_url(status: int, phrase: str) -> None:
    with OpenAIServer(faults=[Fault("reply", status=status, body=b"", times=-1)]) as server:
        assert error(build(server)).message == f"HTTP {status}: {phrase}; is base_url right?"


@pytest.mark.parametrize("status", [200, 400])
def test_an_error_of_megabytes_is_read_and_cut(status: int) -> None:
    error = {"code": "too large: 1 " * 50_000, "message": "Bad. " * 50_000, "loc": [[[[]]]], "details": [{}] * 10_000}
    end, _ = failed(status, {"error": error})
    assert (end.kind, len(end.message)) == (SERVER if status == 200 else BAD_REQUEST, 500)


def test_an_error_that_nobody_reaches_the_bottom_of_is_one_of_the_server() -> None:
    body = b'{"error": ' * 50 + b"7" + b"}" * 50
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        assert error(build(server, openai_models.TriesOnce)).kind == SERVER
