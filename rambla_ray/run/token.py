"""The token that lets a process into a Ray cluster, where a cluster is started on this machine: who else can read it.

Ray takes the token from the variable RAY_AUTH_TOKEN, else from the file that RAY_AUTH_TOKEN_PATH names, else from
`~/.ray/auth_token`, which it makes where there is none, for everybody to read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
READ = stat.S_IRGRP | stat.S_IROTH


def default_file() -> Path:
    """Where Ray keeps the token of this user."""
    return Path.home() / ".ray" / "auth_token"


def may_be_checked(environment: Mapping[str, str]) -> bool:
    """Whether a cluster that is started here checks tokens: it does where nobody says otherwise."""
    return environment.get(MODE, "token").lower() == "token"


def secure(environment: MutableMapping[str, str], new_token: str) -> None:
    """Let nobody else read this user's token file, which is made where Ray would make it.

    Args:
        environment: of this process and those that it starts; it gets the token where no file can be made.
        new_token: what is used where there is none.
    """
    if not may_be_checked(environment) or environment.get(TOKEN) or environment.get(TOKEN_PATH):
        return
    path = default_file()
    try:
        if not path.exists():
            _make(path, new_token)
    except OSError:  # The home folder of a container may be read-only.
        environment[TOKEN] = new_token
    else:
        _tighten(path)


def _make(path: Path, token: str) -> None:
    """Make a file that is whole, and this user's alone, from the moment on at which it is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with open(number, "w", encoding="ascii") as file:
            file.write(token)
        with contextlib.suppress(FileExistsError):  # Another process was first; its token is as good.
            os.link(draft, path)
    finally:
        os.unlink(draft)


def _tighten(path: Path) -> None:
    """Take the rights of others from a file, where it is this user's own and not a link to another."""
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(number)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & OTHERS:
                os.fchmod(number, stat.S_IMODE(found.st_mode) & ~OTHERS)
        finally:
            os.close(number)


def warnings(environment: Mapping[str, str], *, is_checked: bool) -> Iterator[str]:
    """Who beside this user gets into the cluster that has been started on this machine, a line for each reason.

    Args:
        environment: of this process.
        is_checked: whether the cluster lets in only who shows the token.
    """
    if not is_checked:
        yield (
            f"{MODE}={environment.get(MODE, '')} turns Ray's tokens off: every user of this machine, and who reaches "
            f"the ports of a model that is served, can run code as you while this lasts; unset {MODE}"
        )
    elif not environment.get(TOKEN):
        path = Path(environment.get(TOKEN_PATH) or default_file())
        with contextlib.suppress(OSError):
            if path.stat().st_mode & READ:
                yield f"others can read {path}, with which they can run code as you while this lasts; chmod 600 it"
