"""What is read: files that a user names, on a local disk or in a bucket, and the text and JSON in them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from rambla_ray.errors import UserError
from rambla_ray.redaction import holds_credentials

KERNELS = ("/proc/", "/sys/")  # What lies here is made by the kernel when it is read, and may hold secrets.


def reason_of(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0][:200]


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, whatever the locale, without its byte-order mark if it has one.

    Raises:
        ValueError: it is not UTF-8; the message names the first byte that is not, and its line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"byte 0x{byte:02x} in line {line} is not UTF-8; save the file as UTF-8") from None


def parse_json(text: str | bytes, *, allow_nan: bool = True) -> Any:
    """What a JSON text holds.

    Args:
        text: of JSON.
        allow_nan: take NaN and infinities, too, which are no JSON, and which Python's own writer writes.

    Raises:
        ValueError: it is no JSON, or nested so deeply that the parser gives up.
    """
    try:
        return json.loads(text, parse_constant=None if allow_nan else _refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def expanded(path: str) -> Path:
    """A local path with the home folder in the place of `~`. Raises UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{path}: there is no home folder {home}; give the whole path") from None


def absolute(path: str) -> Path:
    """A local path from the root on. Raises UserError as `expanded`, and where there is no working folder any more."""
    try:
        return expanded(path).absolute()
    except FileNotFoundError:
        raise UserError(
            f"{path} is relative, and the folder that this was started in is gone; cd to another"
        ) from None


def open_input(location: str) -> pa.NativeFile:
    """A file on a local disk or in a bucket, to be read.

    Raises:
        OSError: it cannot be.
        ValueError: a URI of no known scheme, or a path with a NUL.
        UserError: a URI with a key in it, the home folder of nobody, or a relative path where the working folder is
            gone.
    """
    refuse_credentials(location)
    if "://" not in location:
        return pa.PythonFile(open_regular(absolute(location)), mode="r")
    filesystem, path = fs.FileSystem.from_uri(location)
    if isinstance(filesystem, fs.LocalFileSystem):
        return pa.PythonFile(open_regular(path), mode="r")
    return filesystem.open_input_file(path)


def refuse_credentials(text: str, place: str = "") -> None:
    """Raise a UserError for a URI with a password or a key in it, which would be stored and shown.

    Args:
        text: a location, or any other text.
        place: where it stands, which the message names; the text itself when not given.
    """
    if holds_credentials(text):
        raise UserError(
            f"{place or text} is a URL with a password in it, or with another key; keep that in the environment or a "
            "credentials file"
        )


def open_regular(path: str | bytes | os.PathLike[str]) -> BinaryIO:
    """A local file, to be read. What is no regular file is not opened: a pipe would block, and a device never ends.

    Raises:
        OSError: there is no such file, it is of another kind, or it cannot be read.
    """
    _refuse_other_kind(os.stat(path).st_mode)  # Opening a device may do something to it.
    if os.fsdecode(os.path.realpath(path)).startswith(KERNELS):
        raise OSError("it is a view into the running system, not a file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # It may be another one by now.
    try:
        _refuse_other_kind(os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_whole(path: Path, most: int) -> bytes:
    """A local file of at most so many bytes. Raises OSError as `open_regular`; ValueError: it is larger."""
    with open_regular(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data


def first_special(paths: Iterable[Path]) -> str:
    """The first of some paths that is no file, and what it is; a library would wait for a pipe. Empty without any."""
    kinds = ((path, _other_kind(path.stat().st_mode)) for path in paths if path.exists())
    return next((f"{path} is {kind}, not a file" for path, kind in kinds if kind), "")


def _other_kind(mode: int) -> str:
    """What a file of this mode is that is no regular file and no folder; empty for those."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")


def _refuse_other_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("it is a directory, not a file")
    if kind := _other_kind(mode):
        raise OSError(f"it is {kind}, not a file")
