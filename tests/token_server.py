"""An endpoint whose keys die: it takes only tokens that a command has printed, and each for a short time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from openai_server import OpenAIServer

PREFIX = "tok-"  # What each token begins with; nothing else can look like the rest.
# Appends a new token to the file of those that are issued, and prints it as OAuth's servers do.
ISSUE = """
import json, os, sys, time
token = sys.argv[3] + os.urandom(16).hex()
with open(sys.argv[1], "a") as file:
    file.write(f"{token} {time.time()}\\n")
print(json.dumps({"access_token": token, "expires_in": float(sys.argv[2])}) if float(sys.argv[2]) else token)
"""


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs some code in an interpreter which starts quickly."""
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


class TokenServer(OpenAIServer):
    """Takes a token for `lasts_s` seconds after the command of this server has printed it.

    Args:
        folder: where the tokens are noted that were issued.
        lasts_s: how long one is taken.
        revoked: so many tokens, the first ones, are never taken.
    """

    def __init__(self, folder: Path, *, lasts_s: float = 3.0, revoked: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self._notes = folder / "issued"
        self.lasts_s = lasts_s
        self.revoked = revoked
        self.unauthorized = 0
        self.azure_keys: set[str | None] = set()  # What came in Azure's own header.

    def command(self, says_s: float | None = None) -> list[str]:
        """What prints a token, and says that it expires after so many seconds; 0 to say nothing."""
        return python(ISSUE, str(self._notes), str(self.lasts_s if says_s is None else says_s), PREFIX)

    def words(self, says_s: float | None = None) -> list[str]:
        """The command line of a run that asks this server."""
        return [
            *("model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={self.base_url}"),
            f"model.params.api_key_command={json.dumps(self.command(says_s))}",
        ]

    @property
    def issued(self) -> dict[str, float]:
        """The tokens that the command has printed, with the times, in their order."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return {token: float(at) for token, at in map(str.split, lines)}

    def lets_in(self, request: web.Request) -> bool:
        issued = self.issued
        self.azure_keys.add(request.headers.get("api-key"))
        self.key = request.headers.get("Authorization", "").removeprefix("Bearer ")  # It is what errors repeat.
        is_alive = time.time() - issued.get(self.key, 0.0) < self.lasts_s
        taken = is_alive and list(issued).index(self.key) >= self.revoked
        self.unauthorized += not taken
        return taken
