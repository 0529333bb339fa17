"""The prompts of a task that stand in files of their own."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError
from rambla_ray.inputs import decoded, read_whole, reason_of

_PROMPTS = ("template", "templates", "template_file", "template_files")  # A stage's prompt is given in one of them.
LARGEST = 10_000_000  # Bytes that a template in a file of its own may have.


def read_templates(stages: Any, task_file: Path, where: str) -> None:
    """Put the text of each stage's `template_file` in its place, or those of its `template_files`.

    Args:
        stages: as the task's YAML has them; what is no list of stages is left for others to refuse.
        task_file: the task's file, to which the names are relative.
        where: the task, for messages.

    Raises:
        UserError: a stage has its prompt twice, or a file is outside of the config folder, or cannot be read.
    """
    for stage in stages if isinstance(stages, list) else []:
        body = next(iter(stage.values()), None) if isinstance(stage, Mapping) else None
        if not isinstance(body, dict):
            continue
        given = [key for key in _PROMPTS if body.get(key) is not None]
        file, files = body.pop("template_file", None), body.pop("template_files", None)
        if len(given) > 1 and (file is not None or files is not None):
            raise UserError(f"{where}: {' and '.join(given)} exclude each other; drop one of them, or null it")
        if file is not None:
            body["template"] = _text_of(file, task_file, where, "template_file")
        if files is not None:
            if not isinstance(files, Mapping):
                raise UserError(f"{where}: template_files: Input should be a valid dictionary (got {_shown(files)})")
            body["templates"] = {
                name: _text_of(file, task_file, where, f"template_files.{one_line(str(name), SHOWN_CHARACTERS)}")
                for name, file in files.items()
            }


def _shown(value: Any) -> str:
    return one_line(repr(value), SHOWN_CHARACTERS)


def _text_of(name: Any, task_file: Path, where: str, key: str) -> str:
    """The text of a file that a key of a stage names. Raises UserError."""
    if not isinstance(name, str):
        raise UserError(f"{where}: {key}: Input should be a valid string (got {_shown(name)})")
    file = Path(os.path.abspath(task_file.parent / name))
    conf = os.path.abspath(task_file.parent.parent)
    if not file.is_relative_to(conf):
        raise UserError(f"{where}: {key} {file} is outside of {conf}; copy it there")
    try:
        return io.StringIO(decoded(read_whole(file, LARGEST)), newline=None).read()
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise UserError(f"{where}: {key} {file}: {reason}") from None
