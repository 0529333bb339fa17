"""How long an answer may be that is kept, and what was thought before it."""

from __future__ import annotations

from dataclasses import replace

from rambla_ray.schema import Response

LONGEST_TEXT = 1_000_000  # An answer is cut to so many characters, and so is its reasoning.


def cut(answer: Response) -> Response:
    """An answer that is not longer than it may be. One that was is `length`; one whose reasoning was is whole."""
    if len(answer.text) > LONGEST_TEXT:
        answer = replace(answer, text=answer.text[:LONGEST_TEXT], finish_reason="length")
    if len(answer.details.reasoning) > LONGEST_TEXT:
        details = replace(answer.details, reasoning=answer.details.reasoning[:LONGEST_TEXT])
        answer = replace(answer, details=details)
    return answer
