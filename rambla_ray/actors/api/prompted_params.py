"""What the params of the Messages and Responses APIs share: a system prompt, and how long an answer may be."""

from __future__ import annotations

from typing import ClassVar

from rambla_ray.actors.api.endpoint_params import EndpointParams
from rambla_ray.actors.api.extras import omitted
from rambla_ray.actors.model import ASSUMED_ANSWER_TOKENS
from rambla_ray.tasks.prompts import SystemPrompt


class PromptedParams(EndpointParams):
    """A system prompt, which the API takes apart from the conversation, and the longest answer."""

    limit_name: ClassVar[str]  # The member of a body, and the param, that limit an answer.

    system: SystemPrompt | None = omitted("a system prompt; that of a task's stage takes its place")

    @property
    def takes_system_prompt(self) -> bool:
        return True

    @property
    def system_prompt(self) -> str:
        return self.system or ""

    @property
    def longest_answer(self) -> int:
        """The limit that is sent; without any, what estimates and budgets take for one."""
        return self.sent_limit or ASSUMED_ANSWER_TOKENS

    @property
    def sent_limit(self) -> int | None:
        """The longest answer that requests ask for, in tokens."""
        limit = (self.extra_body or {}).get(self.limit_name, getattr(self, self.limit_name))
        return limit if type(limit) is int and limit > 0 else None
