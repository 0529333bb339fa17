"""Reading answers: from a model's text to one of the task's choices."""

from __future__ import annotations

import re
from collections.abc import Sequence


def read_rambla(text: str, choices: Sequence[str]) -> str | None:
    """The choice RAmBLA reads from `text`, or None.

    Every "." is deleted, white space at the ends dropped, the rest lower-cased; then the first position at which
    one of `choices` stands as a whole word wins, and of several there the one listed first. As in the original the
    choices are used as regular expressions; the config admits plain words only.
    """
    found = re.search(r"\b(" + "|".join(choices) + r")\b", text.replace(".", "").strip().lower())
    return found.group(1) if found else None
