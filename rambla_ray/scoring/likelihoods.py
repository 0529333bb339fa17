"""From the log-probabilities of choices to their probabilities; without numpy, which an actor need not wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence


def probabilities(logprobs: Sequence[float]) -> tuple[float, ...]:
    """The probability of each choice if one of them is the answer: the softmax of finite log-probabilities."""
    if not logprobs:
        return ()
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
