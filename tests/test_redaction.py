"""What is neither shown nor stored: values of secrets, credentials in URLs, what looks like a key; and what is not."""

from __future__ import annotations

import base64
import json
import sys
import time
import traceback
from urllib.parse import quote

import pytest

from rambla_ray.config.load import load
from rambla_ray.display import unfailing_output
from rambla_ray.errors import CallError, ErrorKind, NotStored, RunStopped, UserError
from rambla_ray.redaction import Masks, holds_credentials, is_secret, looks_like_key, redacted

SECRET_NAMES = (
    *(
        "GITHUB_PAT",
        "DB_PASS",
        "OPENAI_API_KEY_PROD",
        "AUTH",
        "SESSION_COOKIE",
        "AWS_SECRET_ACCESS_KEY_ID",
        "PGPASSWORD",
    ),
    *("HF_TOKEN", "my_api_key", "openaiApiKey", "TOKEN2", "KEY_1", "PROD_TOKEN_EU", "DB_PWD", "PROXY_AUTH", "APIKEY"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "client-secret", "SENTRY_DSN", "BLOB_SAS", "X_SIGNATURE", "ACCESS_JWT"),
)
OTHER_NAMES = (
    *("SSH_KEY_PATH", "PASSWORD_STORE_DIR", "PWD", "OLDPWD", "PATH", "LLAMA_FT_PATH", "DATASET_STORAGE_PATH", "HOME"),
    *(
        "OPENAI_API_BASE",
        "OPENAI_API_VERSION",
        "AZURE_DEPLOYMENT",
        "MAX_RETRIES",
        "TOKENIZERS_PARALLELISM",
        "PATIENTS",
    ),
    *("RAY_AUTH_MODE", "SSH_AUTH_SOCK", "TOKEN_URL", "KEYBOARD", "COMPASS", "XDG_SESSION_ID", "MONKEY_BUSINESS", ""),
)

# A URL with credentials, and what is shown of it.
URLS = {
    "http://tok3n@host/x": "http://***@host/x",
    "http://user:pa55@host": "http://***@host",
    "HTTPS://U:PA55@H/x": "HTTPS://***@H/x",
    "//u:pa55@h/x": "//***@h/x",
    "  https://u:pa55@h": "  https://***@h",
    "http://u:pa/55@host": "http://***@host",
    "http://u:pa?55@host/a#b": "http://***@host/a#b",
    "https://u%3Apa55@h": "https://***@h",
    "https%3A%2F%2Fu%3Apa55%40h/x": "***",
    "git+https://tok3n@github.com/x": "git+https://***@github.com/x",
    "s3://AKIA123:pa55@bucket/runs": "s3://***@bucket/runs",
    "s3://b/x?region=eu&access_key=1&secret_key=pa55": "s3://b/x?region=eu&access_key=***&secret_key=***",
    "https://h/?api-key=pa55&a=1": "https://h/?api-key=***&a=1",
    "https://h/?api%2Dkey=pa55": "https://h/?api%2Dkey=***",
    "http:/me:pa55@h/v1": "http://***@h/v1",
    r"http:\\me:pa55@h\v1": r"http://***@h\v1",
    "https://h/?API_KEY=pa55": "https://h/?API_KEY=***",
    "https://h/?token[]=pa55&key%5B%5D=tok3n": "https://h/?token[]=***&key%5B%5D=***",
    "https://h/?pw=pa55&session=tok3n": "https://h/?pw=***&session=***",
    "https://h/f?code=pa55": "https://h/f?code=***",
    "https://h/#access_token=pa55": "https://h/#access_token=***",
    "https://h/c?sv=2024&se=2030&sig=pa55%3D": "https://h/c?sv=2024&se=2030&sig=***",
    "https://h/?X-Amz-Credential=tok3n&X-Amz-Signature=pa55": "https://h/?X-Amz-Credential=***&X-Amz-Signature=***",
    "me:pa55@proxy:3128": "***@proxy:3128",
}
HARMLESS = (
    *("s3://bucket@eu/ledger", "gs://anonymous@bucket/x", "abfss://container@account.dfs.core.windows.net/p"),
    *("s3://b/x?region=eu&endpoint_override=h:9000&scheme=http", "https://unpkg.com/a@1.0/x", "http://[::1]:80/x@y"),
    *("/data//me@x/file", "/home/me@work/x", "mailto:me@x.org", "http://h:8000/v1?api-version=2024-02-01", "a/b"),
    *("What is 5:30@home? Ask me@x.org.", "{question}?max_tokens=5", "Is a key=value pair; is a token=1?", "x: y@z"),
)

KEYS = (
    *(
        "sk-0123456789abcdef0123",
        "sk-proj-Abc_123-def456ghi789",
        "sk_live_0123456789abcdef",
        "hf_AbCdEfGhIjKlMnOpQrStUv",
    ),
    *("ghp_0123456789abcdefABCDEF", "github_pat_11ABCDEFG0abcdefghij_x", "glpat-0123456789abcdefghij"),
    *("AKIAIOSFODNN7EXAMPLE", "AIzaSyA-0123456789abcdefghijklmnopqrs", "ya29.a0AfH6SMB0123456789abc"),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    *(
        "xoxb-0123456789-abcdef",
        "gsk_0123456789abcdefghijABCD",
        "Bearer abcdef0123456789",
        "bearer  abc.def-ghi/0123456",
    ),
    *("AccountKey=abcdefghijklmnopqrstuvwxyz==", "-----BEGIN RSA PRIVATE KEY-----"),
)
NO_KEYS = (
    *("risk-adjusted-mortality-in-2024-cohorts", "sk-learn-based", "desk-0123456789abcdefgh", "hf_internal_testing"),
    *("hf-internal-testing/tiny-random-LlamaForCausalLM", "the bearer of bad tidings was unhappy", "eyJustAWord"),
    *("Bearer {token}", "AKIAlike", "meta-llama/Llama-3.1-8B-Instruct", "/home/me/models/ghp/x", "xox-large"),
)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_name_that_says_so_is_a_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_name_that_says_where_something_is_or_nothing_is_none(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_credentials_in_a_url_are_found_and_not_shown(url: str, shown: str) -> None:
    assert holds_credentials(url)
    assert redacted(url) == shown
    assert redacted(f"'{url.strip()}' is not key=value") == f"'{shown.strip()}' is not key=value"
    assert not holds_credentials(shown)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_credentials_stays(text: str) -> None:
    assert not holds_credentials(text)
    assert redacted(text) == text


@pytest.mark.parametrize("url", ["https://user:longpa55word@host/x", "https://longtok3nwithoutanydots@host/x"])
@pytest.mark.parametrize("end", ["…", "'", "… (300 characters)", ""])
def test_a_url_that_was_cut_before_its_host_shows_nothing_either(url: str, end: str) -> None:
    assert "pa55" not in redacted(url[:28] + end)
    assert "tok3n" not in redacted(url[:28] + end)


@pytest.mark.parametrize("key", KEYS)
def test_what_looks_like_a_key_is_found_and_not_shown(key: str) -> None:
    for text in (key, f"is {key}, they say", f"x={key}"):
        assert looks_like_key(text)
        assert key not in redacted(text)


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_only_begins_like_a_key_stays(text: str) -> None:
    assert not looks_like_key(text)
    assert redacted(text) == text


SECRET = "/Zq9+canary=\"x' \\ "  # Any first character, quotes, and a blank at the end.


@pytest.mark.parametrize(
    "spelt",
    [
        SECRET.strip(),
        repr(SECRET.strip())[1:-1],
        json.dumps(SECRET.strip())[1:-1],
        quote(SECRET.strip()),
        quote(SECRET.strip(), safe=""),
        base64.b64encode(SECRET.strip().encode()).decode().rstrip("="),
        SECRET[:13],
    ],
)
def test_the_value_of_a_secret_is_not_shown_however_it_is_spelt(spelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", f"{SECRET}\r\n")
    assert redacted(f"at {spelt} and on").startswith("at ***")
    assert "canary" not in redacted(f"at {spelt} and on")


def test_of_secrets_that_begin_alike_no_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, end in (("A_TOKEN", "+one/"), ("B_TOKEN", "+two/end"), ("C_TOKEN", "")):
        monkeypatch.setenv(name, f"zq-ant-api03-canary{end}")
    for text in ("zq-ant-api03-canary+one/", quote("zq-ant-api03-canary+two/end"), "zq-ant-api03-canary+two/en"):
        assert redacted(f"<{text}>") == "<***>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no zq-deployment-7.", "no $D."),
        ("zq-deployment-7-0613", "$D-0613"),
        ("zq-deployment-8", "zq-deployment-8"),
        ("zq-deploymen", "zq-deploymen"),
        ("gpt4, gpt4o, my-gpt4, gpt4.", "$E, gpt4o, my-gpt4, $E."),
        ("0.25 and 0.255", "$F and 0.255"),
        ("abc", "abc"),
    ],
)
def test_what_is_shown_by_name_is_replaced_as_a_whole(text: str, shown: str) -> None:
    assert Masks({}, {"zq-deployment-7": "$D", "gpt4": "$E", "0.25": "$F", "abc": "$G"}).apply(text) == shown


def test_the_passwords_of_urls_in_the_environment_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2hunter2@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "me:swordfish99@proxy:3128")
    assert redacted("hunter2hunter2 or swordfish99") == "*** or ***"


def test_a_word_of_the_shipped_configs_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "question")
    monkeypatch.setenv("MY_TOKEN", "pubmedqa_yesno")
    assert redacted("question, pubmedqa_yesno") == "question, pubmedqa_yesno"
    assert load(["model=mock"]).tasks


def test_each_line_of_a_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SIGNING_KEY", "-----BEGIN X-----\nQUJDREVGR0hJSktMTU5P\nUFFSU1RVVldYWVphYmNk\n-----END X-----\n"
    )
    assert redacted("QUJDREVGR0hJSktMTU5P, UFFSU1RVVldYWVphYmNk") == "***, ***"


@pytest.mark.parametrize(
    ("name", "value"), [("SSH_KEY", "/tmp/me/.ssh/id"), ("SSH_KEY_PATH", "/home/me"), ("SHORT_KEY", "maybe")]
)
def test_paths_and_short_values_are_shown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"{value} is here") == f"{value} is here"


def test_no_error_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456")
    for error in (
        UserError("is canary-0123456"),
        RunStopped("is canary-0123456"),
        NotStored("is canary-0123456"),
        CallError(ErrorKind.LOAD, "is canary-0123456"),
    ):
        assert "is ***" in str(error)
        assert "canary" not in "".join([repr(error), *traceback.format_exception(error)])


@unfailing_output()
def print_and_fail(secret: str) -> None:
    print(f"out {secret} https://u:pa55@h")
    print(f"err {secret}", file=sys.stderr)
    raise ZeroDivisionError(secret)


def test_nothing_that_is_printed_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # It is put back after the test.
    with pytest.raises(ZeroDivisionError) as raised:
        print_and_fail("canary-0123456")
    sys.excepthook(raised.type, raised.value, raised.tb)
    out, err = capsys.readouterr()
    assert out == "out *** https://***@h\n"
    assert err.startswith("err ***\nTraceback")
    assert err.endswith("ZeroDivisionError: ***\n")


@pytest.mark.parametrize("part", ["//a:x", "a:b@", "a.", "%2", "eyJ", "?key=", "//[", "sk-", "x=%40@"])
def test_a_hostile_text_takes_no_longer_than_another(part: str) -> None:
    before = time.process_time()
    assert isinstance(redacted(part * (200_000 // len(part)) + "@="), str)
    assert time.process_time() - before < 5  # It takes 0.2 s; what grows with the square would take minutes.
