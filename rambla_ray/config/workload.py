"""The workload of a model: what the plan of a run says that it will be asked."""

from __future__ import annotations

import math
from typing import NamedTuple


class Workload(NamedTuple):
    """What a model will be asked at most in a run, what a ledger may hold of it included.

    Args:
        calls: how many requests.
        prompt_tokens: about how many tokens their prompts have together.
    """

    calls: float
    prompt_tokens: float


ENDLESS = Workload(math.inf, math.inf)  # Of a model that is served.
