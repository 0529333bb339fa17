"""Broken phrasings: templates and files of templates that make no variants of a task."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from broken_input import LONG, BrokenInput, Content, with_file, with_stage
from broken_keys import TASK


def phrasings() -> Iterator[BrokenInput]:
    kind = "phrasings"
    asked = "{question}"
    several: dict[str, object] = {
        "one": {"a": asked},
        "none": {},
        "a number": {"a": asked, "b": 1},
        "null": {"a": asked, "b": None},
        "a list": [asked, asked],
        "a mapping": {"a": asked, "b": {"c": asked}},
        "a number as name": {"a": asked, 2: asked},
        "truth as name": {"a": asked, True: asked},
        "an empty name": {"a": asked, "": asked},
        "a path as name": {"a": asked, "../b": asked},
        "an escape as name": {"a": asked, "b\x1b[2J\n": asked},
        "a long name": {"a": asked, "b" * 101: asked},
        "a very long name": {"a": asked, "b" * LONG: asked},
        "an equals sign": {"a": asked, "n=1": asked},
        "braces": {"a": asked, "b": "{question"},
        "no placeholder": {"a": asked, "b": "why"},
        "an unknown field": {"a": asked, "b": "{nothing}"},
    }
    for name, templates in several.items():
        yield with_stage(kind, name, templates=templates)
    yield with_stage(kind, "beside a template", template=asked, templates={"a": asked, "b": asked})
    there: dict[str, Content] = {"conf/task/ask.txt": asked, "conf/task/latin.txt": b"{question} \xe9"}
    for name, files in {
        "a file": "ask.txt",
        "one file": {"a": "ask.txt"},
        "no text": {"a": "ask.txt", "b": "latin.txt"},
        "a missing file": {"a": "ask.txt", "b": "missing.txt"},
        "a file outside": {"a": "ask.txt", "b": "../../items.csv"},
        "a list of files": ["ask.txt", "ask.txt"],
        "a number of a file": {"a": "ask.txt", "b": 3},
    }.items():
        yield with_stage(kind, name, there, template_files=files)
    yield with_stage(kind, "files beside a template", there, template=asked, template_files={"a": "ask.txt"})
    stage = {"role": "target", "templates": {"a": asked, "b": asked}}
    both = [{"mutate": {"field": "other", "schedule": [0]}}, {"generate": stage}]
    yield with_file(kind, "beside a mutation", "conf/task/own.yaml", yaml.safe_dump({**TASK, "stages": both}))
    yield with_file(kind, "a task called all", "conf/task/all.yaml", yaml.safe_dump(TASK))
