"""The command that gives a key: run without a shell and within bounds, and nothing of what it prints is shown.

A config may be another's: no command is run unless the environment allows it.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from rambla_ray.config.printed_token import Token, token_in
from rambla_ray.display import folded, one_line
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.redaction import MASK, SHORTEST, hide_text, redacted

ALLOWED = "RAMBLA_ALLOW_KEY_COMMAND"  # The variable of the environment that has to be 1.
LONGEST_S = 30.0  # A command that takes longer is killed.
MOST_BYTES = 64 * 1024  # One that prints more, too.
SHOWN_CHARACTERS = 200  # Of the first line of what it says went wrong.
_POLL_S = 0.02
_MAY_BE_TOKEN = re.compile(r"(?=[\w~+=-]*\d)[\w~+=-]{16,}")  # No line of an error needs to be read for such a word.


def _as_list(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("a list of arguments is needed, as [az, account, get-access-token]: no shell takes it apart")
    return value


def _as_argument(text: str) -> str:
    if not text.strip() or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("an argument is a text that is not empty and holds no NUL")
    return text


KeyCommand = Annotated[
    tuple[Annotated[str, Field(max_length=10_000), AfterValidator(_as_argument)], ...],
    Field(min_length=1, max_length=100),
    BeforeValidator(_as_list),
]


def read_token(command: Sequence[str], ttl_s: float | None, longest_s: float = LONGEST_S) -> Token:
    """Run a command and return the token that it prints, which this process shows nowhere from now on.

    Args:
        command: program and arguments.
        ttl_s: how long its tokens hold at most, in seconds, if that is known.
        longest_s: how long it may take, in seconds.

    Raises:
        CallError: `auth`: it may not be run, it cannot, it fails, or there is no token in what it prints.
    """
    if os.environ.get(ALLOWED) != "1":
        raise _fault(
            f"{_name(command)} is a program that a config alone may not run: if you trust it, set {ALLOWED}=1 in the "
            "environment where calls are made"
        )
    began = time.time()
    printed = _run(command, longest_s)
    try:
        token = token_in(printed, began)
    except ValueError as error:
        reason = str(error)
    else:
        hide_text(token.text)
        token = Token(token.text, min(token.expires_at, began + ttl_s) if ttl_s else token.expires_at)
        if token.expires_at > time.time():
            return token
        reason = "printed a token that has already expired; is the clock of this machine right?"
    raise _fault(f"{_name(command)} {reason}")


def _fault(reason: str) -> CallError:
    return CallError(ErrorKind.AUTH, f"params.api_key_command: {reason}")


def _name(command: Sequence[str]) -> str:
    return one_line(command[0], 60)


def _run(command: Sequence[str], longest_s: float) -> str:
    """What a command prints. Raises CallError."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the environment allows it
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # It is killed with all that it has started.
        )
    except FileNotFoundError:
        hint = "; each argument is an item of its own" if " " in command[0].strip() else ""
        raise _fault(f"there is no program '{_name(command)}' here: install it where calls are made{hint}") from None
    except (OSError, ValueError) as error:
        raise _fault(f"{_name(command)} cannot be run: {getattr(error, 'strerror', None) or error}") from None
    with process:
        try:
            output, errors = _read(process, time.monotonic() + longest_s)
        except BaseException as error:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise _fault(f"{_name(command)} took more than {longest_s:g} s, and was killed") from None
            if isinstance(error, BufferError):
                raise _fault(f"{_name(command)} printed more than {MOST_BYTES // 1024} KiB, and was killed") from None
            raise
    if process.returncode:
        raise _fault(f"{_name(command)} {_ending(process.returncode)}{_first_line(errors, output)}")
    with suppress(UnicodeDecodeError):
        return output.decode("utf-8-sig")
    raise _fault(f"{_name(command)} printed what is no text")


def _read(process: subprocess.Popen[bytes], until: float) -> tuple[bytes, bytes]:
    """What a process has printed, and said went wrong, when it has ended.

    It may leave others behind that hold its pipes open: they are not waited for. Raises TimeoutError; BufferError:
    it prints more than is taken.
    """
    streams = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream, taken in streams.items():
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, taken)
        while True:
            has_ended = process.poll() is not None  # Before looking: what it has printed is there then.
            ready = selector.select(0 if has_ended else _POLL_S)
            for key, _ in ready:
                part = os.read(key.fd, MOST_BYTES)
                key.data.extend(part[: MOST_BYTES + 1 - len(key.data)])
                if not part:
                    selector.unregister(key.fileobj)
            if len(streams[process.stdout]) > MOST_BYTES:
                raise BufferError
            if has_ended and not ready:
                return bytes(streams[process.stdout]), bytes(streams[process.stderr])
            if time.monotonic() > until:
                raise TimeoutError


def _ending(status: int) -> str:
    return f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"


def _first_line(errors: bytes, output: bytes) -> str:
    """The first line of what a command says went wrong, without what it has printed and what may be a token."""
    line = next((line for line in errors.decode(errors="replace").splitlines() if line.strip()), "")
    for word in output.decode(errors="replace").split():
        line = line.replace(word, MASK) if len(word) >= SHORTEST else line
    line = _MAY_BE_TOKEN.sub(MASK, redacted(line[: 10 * SHOWN_CHARACTERS]))
    return f": {folded(line, SHOWN_CHARACTERS)}" if line.strip() else ""
