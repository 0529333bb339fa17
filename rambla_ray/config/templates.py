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

LARGEST = 10_000_000  # Bytes that a template in a file of its own may have.


def read_templates(stages: Any, task_file: Path, where: str) -> None:
    """Put the text of each stage's `template_file` in its place.

    Args:
        stages: as the task's YAML has them; what is no list of stages is left for others to refuse.
        task_file: the task's file, to which the names are relative.
        where: the task, for messages.

    Raises:
        UserError: a stage has a template as well, or a file is outside of the config folder, or cannot be read.
    """
    for stage in stages if isinstance(stages, list) else []:
        body = next(iter(stage.values()), None) if isinstance(stage, Mapping) else None
        if not isinstance(body, dict) or (name := body.pop("template_file", None)) is None:
            continue
        if body.get("template") is not None:
            raise UserError(f"{where}: template and template_file exclude each other; drop one of them, or null it")
        if not isinstance(name, str):
            shown = one_line(repr(name), SHOWN_CHARACTERS)
            raise UserError(f"{where}: template_file: Input should be a valid string (got {shown})")
        body["template"] = _text_of(name, task_file, where)


def _text_of(name: str, task_file: Path, where: str) -> str:
    file = Path(os.path.abspath(task_file.parent / name))
    conf = os.path.abspath(task_file.parent.parent)
    if not file.is_relative_to(conf):
        raise UserError(f"{where}: template_file {file} is outside of {conf}; copy it there")
    try:
        return io.StringIO(decoded(read_whole(file, LARGEST)), newline=None).read()
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise UserError(f"{where}: template_file {file}: {reason}") from None
