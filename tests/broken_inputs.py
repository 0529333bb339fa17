"""All broken inputs: what a command must refuse in one line, before it asks anybody anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import broken_files as files
import broken_words as words
from broken_input import BrokenInput
from broken_keys import FILES
from broken_phrasings import phrasings

# By kind, what makes the inputs, which takes a moment.
MAKERS: Mapping[str, Callable[[], Iterator[BrokenInput]]] = {
    **{f"keys of {file}": partial(files.keys, file) for file in FILES},
    "keys of the command line": words.keys_of_the_command_line,
    "words": words.no_values,
    "long words": words.long_words,
    "escapes": words.escapes,
    "names": words.names,
    "nesting": files.nesting,
    "aliases": files.aliases,
    "NUL": files.nul,
    "~nouser": files.homes,
    "encodings": files.encodings,
    "no file": files.no_files,
    "YAML": files.odd_yaml,
    "interpolations": files.interpolations,
    "templates": words.templates,
    "template files": files.template_files,
    "phrasings": phrasings,
    "datasets": files.datasets,
    "environment": files.environments,
    "checkpoints": files.checkpoints,
    "reports": words.reports,
    "serving": words.serving,
}


def broken_inputs() -> Iterator[BrokenInput]:
    for make in MAKERS.values():
        yield from make()
