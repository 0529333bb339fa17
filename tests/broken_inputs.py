"""All broken inputs: what a command must refuse in one line, before it asks anybody anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import broken_files as files
import broken_words as words
from broken_input import BrokenInput

MAKERS: tuple[Callable[[], Iterator[BrokenInput]], ...] = (
    *(files.keys, words.keys_of_the_command_line, words.no_values, words.long_words, words.escapes, words.names),
    *(files.nesting, files.aliases, files.nul, files.homes, files.encodings, files.no_files, files.odd_yaml),
    *(files.interpolations, words.templates, files.template_files, files.datasets, files.environments),
    *(files.checkpoints, words.reports, words.serving),
)


def broken_inputs() -> dict[str, list[BrokenInput]]:
    """By kind."""
    by_kind: dict[str, list[BrokenInput]] = defaultdict(list)
    for make in MAKERS:
        for one in make():
            by_kind[one.kind].append(one)
    return dict(by_kind)
