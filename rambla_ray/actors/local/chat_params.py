"""The params of a chat template: what it is given beside the messages, and a system prompt."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import field_validator, model_validator

from rambla_ray.config.model import ModelParams
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.tasks.closed import omitted
from rambla_ray.tasks.prompts import SystemPrompt

# What a template gets from the messages, from transformers or from the tokenizer, and what steers its rendering.
RESERVED = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("raise_exception", "strftime_now", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token"),
        *("cls_token", "mask_token", "additional_special_tokens"),
    }
)


class ChatParams(ModelParams):
    """What goes through the chat template beside the prompt."""

    chat_template_kwargs: dict[str, Any] | None = omitted(
        "variables for the chat template, any JSON: such as {enable_thinking: false}"
    )
    system: SystemPrompt | None = omitted(
        "a system prompt, by the chat template; that of a task's stage takes its place"
    )

    @property
    def needs_chat_template(self) -> bool:
        """Whether prompts go through the chat template that the tokenizer brings."""
        return False

    @property
    def system_prompt(self) -> str:
        return self.system or ""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _variables_of_its_own(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in value or {}:
            shown = one_line(name, SHOWN_CHARACTERS)
            if name in RESERVED:
                raise ValueError(f"{shown} is not for the config to give: the template gets it for each prompt")
            if not name.isidentifier():
                raise ValueError(f"{shown} is no name that a template can read")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("a value is none that JSON has") from None
        return value or None

    @model_validator(mode="after")
    def _goes_through_a_template(self) -> Self:
        if self.needs_chat_template:
            return self
        for name in ("chat_template_kwargs", "system"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} goes through the tokenizer's chat template, which is_finetuned: true applies, without "
                    "message_formatting_template"
                )
        return self
