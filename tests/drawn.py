"""Values drawn at random, for properties that must hold whatever they are."""

from __future__ import annotations

import re

from hypothesis import strategies as st

from rambla_ray.schema import CallTrace, Try

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # JSON knows such a pair as one character only
WHOLE = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
TEXT = st.text(st.characters(exclude_categories=()), max_size=20).filter(lambda text: not PAIR.search(text))
COUNT = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)


def traces(reason: st.SearchStrategy[str], hedged: st.SearchStrategy[int] = COUNT) -> st.SearchStrategy[CallTrace]:
    """How the calls of a request went, with the attempts' reasons drawn from `reason`."""
    tries = st.lists(st.builds(Try, at=SECONDS, took_s=SECONDS, reason=reason), max_size=3).map(tuple)
    charged = {"failed_prompt_tokens": COUNT, "failed_completion_tokens": COUNT}
    return st.builds(CallTrace, waited_s=SECONDS, attempts=COUNT, hedged=hedged, tries=tries, **charged)
