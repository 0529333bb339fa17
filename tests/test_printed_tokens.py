"""What a command prints that gives a key: which token is found in it, when that expires, and what is refused."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from rambla_ray.config.printed_token import Token, token_in

NOW = 1_790_000_000.0
LATER = NOW + 3600
UTC_TIME = datetime.fromtimestamp(LATER, UTC).strftime("%Y-%m-%dT%H:%M:%S")
AZ_TIME = datetime.fromtimestamp(LATER).strftime("%Y-%m-%d %H:%M:%S.000000")


@pytest.mark.parametrize("printed", ["t0ken", "t0ken\n", "  t0ken \r\n", '"t0ken"\n', "\nt0ken"])
def test_a_token_alone_holds_until_it_is_refused(printed: str) -> None:
    assert token_in(printed, NOW) == Token("t0ken", math.inf)


@pytest.mark.parametrize(
    ("printed", "expires_at"),
    [
        pytest.param({"accessToken": "t", "expiresOn": AZ_TIME, "expires_on": int(LATER)}, LATER, id="az"),
        pytest.param({"accessToken": "t", "expiresOn": AZ_TIME, "tenant": "x"}, LATER, id="an old az, in local time"),
        pytest.param(
            {"credential": {"access_token": "t", "id_token": "i", "token_expiry": f"{UTC_TIME}Z"}, "sentinels": {}},
            LATER,
            id="gcloud config config-helper",
        ),
        pytest.param({"access_token": "t", "expires_in": 3600, "ext_expires_in": 9, "x": [1]}, LATER, id="OAuth"),
        pytest.param({"access_token": "t", "refresh_token": "r", "expires_in": "3600"}, LATER, id="a number as text"),
        pytest.param({"access_token": "t", "expires_on": str(int(LATER))}, LATER, id="a managed identity of Azure"),
        pytest.param({"access_token": "t", "expires_at": LATER * 1000}, LATER, id="milliseconds"),
        pytest.param(
            {"kind": "ExecCredential", "status": {"token": "t", "expirationTimestamp": f"{UTC_TIME}Z"}}, LATER
        ),
        pytest.param(
            {"status": {"token": "t", "expirationTimestamp": f"{UTC_TIME}.123456789+00:00"}}, LATER + 0.123456
        ),
        pytest.param({"data": {"key": "t"}, "lease_duration": 3600, "auth": None}, LATER, id="vault read"),
        pytest.param({"data": {"openai": "t"}, "lease_duration": 0}, math.inf, id="the only text of a secret"),
        pytest.param({"data": {"data": {"key": "t"}, "metadata": {"version": 3}}}, math.inf, id="vault kv get"),
        pytest.param({"data": {"token": "t", "token_ttl": 9, "expires_at_seconds": LATER}}, LATER, id="vault, gcp"),
        pytest.param({"authorizationToken": "t", "expiration": UTC_TIME}, LATER, id="aws codeartifact, UTC"),
        pytest.param({"Version": 1, "Token": "t", "Expiration": f"{UTC_TIME}+00:00"}, LATER, id="credential process"),
        pytest.param({"token": "t"}, math.inf),
        pytest.param({"token": "t", "expires_in": None, "expiry": "soon", "expiration": True}, math.inf),
        pytest.param({"token": "t", "expires_in": 10**400, "expires_at": "nan"}, math.inf),
    ],
)
def test_json_holds_a_token_and_when_it_expires(printed: dict[str, Any], expires_at: float) -> None:
    for indent in (None, 2):
        token = token_in(json.dumps(printed, indent=indent), NOW)
        assert token.text == "t"
        assert token.expires_at == pytest.approx(expires_at)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_time_of_az_is_that_of_its_machine(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        shown = datetime.fromtimestamp(LATER).isoformat(" ")
        assert token_in(json.dumps({"accessToken": "t", "expiresOn": shown}), NOW).expires_at == LATER
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("", "printed nothing"),
        (" \n\n", "printed nothing"),
        ("SECRET-1\nSECRET-2", "printed 2 lines"),
        ("Please log in: SECRET", "no token: it holds blanks"),
        ("SECRET\x00", "no token: it holds blanks or other characters"),
        ("SECRET-é", "no token: it holds blanks or other characters"),
        ("null", "an empty value"),
        ('""', "an empty value"),
        ('{"SECRET": ', "neither a token nor a JSON object"),
        ('["SECRET"]', "neither a token nor a JSON object"),
        ("[" * 60_000, "neither a token nor a JSON object"),
        ("{}", "JSON with 0 keys"),
        ('{"error": "SECRET", "code": 5}', "JSON with 2 keys, none of which is known to hold a token"),
        ('{"error": "SECRET"}', "JSON with 1 key, none of which"),
        ('{"token": null, "access_token": ""}', "JSON with 2 keys"),
        ('{"data": {"user": "SECRET-1", "pin": "SECRET-2"}, "lease_duration": 5}', "JSON with 2 keys"),
        ('{"token": "SECRET-1\\nSECRET-2"}', "printed 2 lines"),
        (
            '{"Version": 1, "AccessKeyId": "SECRET", "SecretAccessKey": "SECRET", "SessionToken": "SECRET"}',
            "keys of AWS that sign requests",
        ),
    ],
)
def test_what_is_no_token_is_not_quoted(printed: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        token_in(printed, NOW)
    error: BaseException | None = refused.value
    while error is not None:
        assert "SECRET" not in str(error)
        assert "SECRET" not in repr(vars(error))
        error = error.__cause__ or error.__context__


def test_a_token_does_not_show_itself() -> None:
    assert "t0ken" not in f"{Token('t0ken', 5.0)!r} {Token('t0ken')}"
