"""Values drawn at random, for properties that must hold whatever they are."""

from __future__ import annotations

import re

from hypothesis import strategies as st

from rambla_ray.schema import Try

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # JSON knows such a pair as one character only
WHOLE = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
TEXT = st.text(st.characters(exclude_categories=()), max_size=20).filter(lambda text: not PAIR.search(text))
COUNT = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)


def tries(reason: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Try, ...]]:
    """The attempts at a request, with reasons drawn from `reason`."""
    return st.lists(st.builds(Try, at=SECONDS, took_s=SECONDS, reason=reason), max_size=3).map(tuple)
