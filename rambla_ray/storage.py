"""Where files are: a local path or a bucket, behind one pyarrow filesystem."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from pyarrow import fs

from rambla_ray.errors import UserError


class Folder:
    """A folder on any pyarrow filesystem.

    Args:
        location: a local path, or a URI (`s3://bucket/path`, `gs://bucket/path`).

    Raises:
        UserError: the URI is not one that pyarrow can open.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.is_local = "://" not in location
        self.filesystem: fs.FileSystem
        if self.is_local:
            self.filesystem, self.root = fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
        else:
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
            except (ValueError, OSError, ImportError) as error:
                raise UserError(f"{location}: cannot be opened: {str(error)[:200]}") from None

    def path(self, name: str) -> str:
        """The path of a file in this folder, as the filesystem takes it."""
        return f"{self.root}/{name}"

    def make_writable(self, what: str) -> None:
        """Create the folder and try to write to it.

        Args:
            what: what the folder is for, as the message names it.

        Raises:
            UserError: it cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.filesystem.create_dir(self.root, recursive=True)
            self.write(probe, b"")
            self.filesystem.delete_file(self.path(probe))
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise UserError(f"{what} '{self.location}' cannot be written: {reason}") from None

    def names(self, suffix: str) -> list[str]:
        """Files directly in the folder that end in `suffix`, sorted; none when the folder does not exist."""
        entries = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in entries if info.is_file and info.base_name.endswith(suffix))

    def has(self, name: str) -> bool:
        """Whether there is such a file; not where the folder cannot be looked into."""
        try:
            return bool(self.filesystem.get_file_info(self.path(name)).is_file)
        except OSError:
            return False

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        with self.filesystem.open_input_file(self.path(name)) as stream:
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file; on a local disk a reader sees the old one or the new one, never a part."""
        target = self.path(name)
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        draft = Path(f"{target}.{uuid.uuid4().hex[:8]}.tmp")
        draft.write_bytes(data)
        os.replace(draft, target)

    def publish(self, draft: str, name: str) -> None:
        """Rename a file that is complete from the name of its draft to its own, replacing an older one."""
        self.filesystem.move(self.path(draft), self.path(name))
