"""Text of unknown origin (answers, errors, names) made harmless, and its way to whoever looks at it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shlex
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from rambla_ray.redaction import redacted

SHOWN_CHARACTERS = 60  # A message shows so many characters of a word that somebody has typed.
LONGEST_ERROR = 500  # The line by which a command says what is wrong has at most so many characters.
_HEAD_SHARE = 0.6  # What is wrong stands at the beginning of a line, and what to do at its end.

_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(text: str, longest: int = 200) -> str:
    r"""The beginning of a text, as one line of characters that show as what they are.

    Line breaks, terminal escapes, NUL, C1 controls, marks that turn the direction of writing and everything else that
    Python calls unprintable become `\n`, `\x1b`, `\u202e`.

    Args:
        text: anything.
        longest: characters of it to show; a text that is longer is cut, and its length follows.
    """
    shown = escaped(text[:longest])
    return shown if len(text) <= longest else f"{shown}… ({len(text)} characters)"


def folded(text: str, longest: int | None = None) -> str:
    """A text on one line: a space for each stretch of white space, and escapes for what does not print.

    Args:
        text: what a library, an endpoint or a template says.
        longest: characters of it to keep; all when not given.
    """
    return escaped(" ".join(text.split())[:longest])


def escaped(text: str) -> str:
    r"""A text with `\n`, `\x1b`, `\u202e` and their like for what Python calls unprintable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bounded(message: str, encoding: str = "utf-8") -> str:
    """A message as one line of characters that an encoding has and that show as what they are.

    Of one that is too long, its beginning and its end are shown.
    """
    line = escaped(message).encode(encoding, "backslashreplace").decode(encoding)
    if len(line) <= LONGEST_ERROR:
        return line
    gap = " ... "
    head = round(_HEAD_SHARE * (LONGEST_ERROR - len(gap)))
    return line[:head] + gap + line[head + len(gap) - LONGEST_ERROR :]


def print_error(message: str, beginning: str = "error") -> None:
    """Print on stderr, in one bounded line, what is wrong; with another beginning, what else a user should know."""
    print(bounded(f"{beginning}: {message}", sys.stderr.encoding or "utf-8"), file=sys.stderr)


def as_typed_in_a_shell(words: Iterable[str]) -> str:
    r"""A command line to copy, on one line: `$'\x1b'` and its like for what does not print."""
    return " ".join(shlex.quote(word) if word.isprintable() else _in_ansi_c(word) for word in words)


def _in_ansi_c(word: str) -> str:
    r"""A word in the quotes of a shell inside which `\x1b` is a byte."""
    shown = "".join(
        (f"\\{c}" if c in "\\'" else c) if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
        for c in word
    )
    return f"$'{shown}'"


def in_markdown(line: str) -> str:
    """A line as Markdown that shows just it: no HTML, no formatting, no new cell of a table."""
    escaped = _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)
    return "".join(_HTML.get(character, character) for character in escaped)


def counted(count: float, what: str) -> str:
    """A number of things, in words."""
    return f"{count:.12g} {what}{'' if count == 1 else 's'}"


def dollars(usd: float) -> str:
    """An amount of US dollars; of one below a cent two digits, however small it is."""
    return f"${usd:.2g}" if 0 < usd < 0.01 else f"${usd:.4f}"


class Check(NamedTuple):
    """One line of a report on a run or a cluster, and whether what it states is as it should be."""

    line: str
    holds: bool

    def __str__(self) -> str:
        return f"{'✓' if self.holds else '✗'} {self.line}"


class _Output(io.RawIOBase):
    """What a stream writes, which goes nowhere from the moment on at which nobody can take it any more."""

    def __init__(self, buffer: BinaryIO) -> None:
        self._buffer = buffer

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._buffer.isatty()

    def fileno(self) -> int:
        return self._buffer.fileno()

    def write(self, data: Any) -> int:
        try:
            self._write_all(memoryview(data))
        except OSError:  # The reader is gone, the disk is full, the terminal was closed.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._buffer.fileno())  # So that what is buffered can be flushed when the process ends.
            os.close(null)
        return len(data)

    def _write_all(self, data: memoryview) -> None:
        """Write, and wait where another program has set the terminal or pipe not to block. Raises OSError."""
        while True:
            try:
                if data:
                    self._buffer.write(data)
                    data = data[len(data) :]
                self._buffer.flush()
                return
            except BlockingIOError as error:
                data = data[error.characters_written :]
                select.select([], [self._buffer], [])


class _RedactedText(io.TextIOWrapper):
    """A stream that shows no secrets."""

    def write(self, text: str) -> int:
        super().write(redacted(text))
        return len(text)


@contextlib.contextmanager
def unfailing_output() -> Iterator[None]:
    """While inside, nothing that is printed can end the process, which may be in the middle of a paid run.

    A character that the terminal's encoding lacks is shown as an escape; what nobody reads any more is dropped.
    Secrets are not shown, nor are they in the traceback of an exception that leaves it and ends the process.
    """
    _open_standard_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _unfailing(sys.stdout, 1), _unfailing(sys.stderr, 2)
    try:
        yield
    except Exception:
        sys.excepthook = _print_redacted
        raise
    finally:
        sys.stdout, sys.stderr = before


def _print_redacted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    import traceback  # Not before it is needed: help comes at once.

    print(redacted("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def _open_standard_streams() -> None:
    """Open those of the streams 0, 1 and 2 that are closed, or the next file to be opened would take their place."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)


def _unfailing(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # It was closed when Python started.
        return open(number, "w", encoding="utf-8", closefd=False)  # /dev/null by now
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _Output):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = cast(BinaryIO, _Output(stream.buffer))
    return _RedactedText(raw, stream.encoding, errors="backslashreplace", write_through=True)
