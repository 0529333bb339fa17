"""The token of a local cluster: nobody else reads it, or the user is told so."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rambla_ray.run import token

TOKEN = "0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token of a user is who has a home folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def write(path: Path, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a token that was there")
    path.chmod(mode)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "TOKEN"}])
def test_a_token_is_made_for_its_user_alone(file, environment):
    before = os.umask(0)
    try:
        token.secure(environment, TOKEN)
    finally:
        os.umask(before)
    assert file.read_text() == TOKEN
    assert mode_of(file) == 0o600
    assert mode_of(file.parent) == 0o700
    assert list(file.parent.iterdir()) == [file]
    assert list(token.warnings(environment, is_checked=True)) == []


@pytest.mark.parametrize(("found", "left"), [(0o644, 0o600), (0o664, 0o600), (0o777, 0o700), (0o400, 0o400)])
def test_a_token_that_is_there_is_kept_and_others_lose_their_rights(file, found, left):
    write(file, found)
    token.secure({}, TOKEN)
    assert file.read_text() == "a token that was there"
    assert mode_of(file) == left
    assert list(token.warnings({}, is_checked=True)) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "tokne"},
        {"RAY_AUTH_TOKEN": "x"},
        {"RAY_AUTH_TOKEN_PATH": "/x"},
    ],
)
def test_no_token_is_made_that_nobody_would_use(file, environment):
    token.secure(environment, TOKEN)
    assert not file.exists()


def test_a_link_is_not_followed_to_the_rights_of_another_file(file, tmp_path):
    write(tmp_path / "elsewhere", 0o644)
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere")
    token.secure({}, TOKEN)
    assert mode_of(tmp_path / "elsewhere") == 0o644
    (warning,) = token.warnings({}, is_checked=True)
    assert f"others can read {file}" in warning


def test_without_a_home_the_processes_of_the_cluster_alone_have_the_token(monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    environment: dict[str, str] = {}
    token.secure(environment, TOKEN)
    assert environment == {"RAY_AUTH_TOKEN": TOKEN}
    assert list(token.warnings(environment, is_checked=True)) == []


@pytest.mark.parametrize(
    ("environment", "mode", "warning"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "{own}"}, 0o640, "others can read {own}"),
        ({"RAY_AUTH_TOKEN_PATH": "{own}"}, 0o604, "others can read {own}"),
        ({"RAY_AUTH_TOKEN_PATH": "{own}"}, 0o600, ""),
        ({"RAY_AUTH_TOKEN_PATH": "{own}", "RAY_AUTH_TOKEN": "x"}, 0o644, ""),
    ],
)
def test_a_file_of_the_user_s_choice_is_left_alone_and_warned_of(file, tmp_path, environment, mode, warning):
    own = tmp_path / "own"
    write(own, mode)
    environment = {name: value.format(own=own) for name, value in environment.items()}
    token.secure(environment, TOKEN)
    assert mode_of(own) == mode
    warnings = list(token.warnings(environment, is_checked=True))
    assert [warning.format(own=own) in line for line in warnings] == ([True] if warning else [])


@pytest.mark.parametrize("mode", ["disabled", "tokne", ""])
def test_a_cluster_without_tokens_is_warned_of(mode):
    (warning,) = token.warnings({"RAY_AUTH_MODE": mode}, is_checked=False)
    assert warning.startswith(f"RAY_AUTH_MODE={mode} turns Ray's tokens off")
    assert warning.endswith("unset RAY_AUTH_MODE")
