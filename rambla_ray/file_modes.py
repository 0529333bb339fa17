"""Who may read what is created on a local disk: its owner alone, unless the user says otherwise.

The modes are set where something is created, and not by the umask, which belongs to all threads of a process. A mode
is set before there is any content; what is there already keeps its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

_NAMED = {"private": 0o600, "group": 0o640, "umask": None}


class Modes(NamedTuple):
    """The modes of files and folders that are created; None leaves them to the umask of the process."""

    files: int | None = _NAMED["private"]

    @classmethod
    def parse(cls, text: str) -> Modes:
        """`private`, `group`, `umask`, the octal mode of files, or the umask that would lead to it.

        Raises:
            ValueError: it is none of them, or it would keep the owner out.
        """
        if text in _NAMED:
            return cls(_NAMED[text])
        if not re.fullmatch(r"(0o?)?[0-7]{3}", text):
            raise ValueError("give private, group, umask, or the octal mode of files, such as 0640")
        mode = int(text[-3:], 8)
        mode = mode if mode >> 6 else 0o666 & ~mode  # A umask takes nothing from the owner.
        if mode >> 6 != 0o6 or mode & 0o111:
            raise ValueError("files need 6 for their owner, and are never executable; give a mode such as 0640")
        return cls(mode)

    @property
    def folders(self) -> int | None:
        """As for files, and who may read them may enter."""
        return None if self.files is None else self.files | (self.files & 0o444) >> 2

    def create_folder(self, folder: Path) -> None:
        """Create a folder, and those it lies in. Raises OSError."""
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                self._create_one(path)

    def _create_one(self, folder: Path) -> None:
        try:
            os.mkdir(folder, 0o777 if self.folders is None else 0o700)
        except FileExistsError:
            if not folder.is_dir():
                raise
            return  # Another process was faster.
        if self.folders is not None:
            _set_mode(folder, self.folders | os.stat(folder).st_mode & stat.S_ISGID)

    def create_file(self, path: str | bytes, flags: int) -> int:
        """Create a file and return its descriptor, as an opener of `open`. Raises OSError, also where there is one."""
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666 if self.files is None else 0o600)
        if self.files is not None:
            _set_mode(descriptor, self.files)
        return descriptor

    def open_or_create_file(self, path: str | bytes, flags: int) -> int:
        """As `create_file`, but one that is there is opened."""
        try:
            return os.open(path, flags & ~os.O_CREAT)
        except FileNotFoundError:
            return self.create_file(path, flags)


def _set_mode(place: Path | int, mode: int) -> None:
    """Set the mode of what has just been created, which the umask may have reduced."""
    with contextlib.suppress(PermissionError):  # Some file systems, such as FAT, have one mode for all.
        os.chmod(place, mode)
