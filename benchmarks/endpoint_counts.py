"""What the fake endpoint counts of the requests that reach it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import xor

from command import Json


@dataclass
class Second:
    """What arrived in one second after the first request."""

    answered: int = 0
    tokens: int = 0
    rejected: int = 0
    models: dict[str, int] = field(default_factory=dict)  # The number of those answered, by model.


@dataclass
class Counts:
    """What GET /stats returns. Times are seconds of time.monotonic(), which all processes of a machine share."""

    requests: int = 0
    answered: int = 0
    rejected: int = 0  # They got a 429.
    abandoned: int = 0  # The client had gone when the answer was due.
    tokens: int = 0  # The tokens of all answered requests: prompts and answers.
    in_flight: int = 0
    most_in_flight: int = 0
    first_request: float = 0.0
    last_reply: float = 0.0
    # The endpoint's CPU time at the start; in the reply to GET /stats, the CPU time since.
    cpu_s: float = field(default_factory=time.process_time)
    seconds: list[Second] = field(default_factory=list)  # By arrival; "answered" are the requests let in.
    prompts: set[int] = field(default_factory=set)  # The CRC-32 of each distinct prompt let in.

    def arrived(self, now: float) -> Second:
        """Count a request; returns the second in which it falls."""
        if not self.requests:
            self.first_request = now
        self.requests += 1
        place = int(now - self.first_request)
        while len(self.seconds) <= place:
            self.seconds.append(Second())
        return self.seconds[place]

    def as_json(self) -> Json:
        """The counts; `prompts` becomes their number and a checksum, equal where the same prompts were asked."""
        told = {key: value for key, value in vars(self).items() if key not in ("seconds", "prompts")}
        told |= {"cpu_s": time.process_time() - self.cpu_s}
        told |= {"prompts": len(self.prompts), "checksum": reduce(xor, self.prompts, 0)}
        return {**told, "seconds": [vars(second) for second in self.seconds]}


def digest(prompt: str) -> int:
    """A prompt's CRC-32."""
    return zlib.crc32(prompt.encode(errors="surrogatepass"))


def checksum(prompts: Iterable[str]) -> int:
    """What the endpoint's `checksum` is when it has let in these prompts, in any order and any number of times."""
    return reduce(xor, {digest(prompt) for prompt in prompts}, 0)
