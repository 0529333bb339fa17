"""What a model thought before its answer, wherever a message of an OpenAI-compatible endpoint has it.

Beside the content: `reasoning_content` (DeepSeek, Qwen, vLLM, SGLang, llama.cpp, xAI), `reasoning` (vLLM, Ollama,
Groq, OpenRouter), `reasoning_details` (OpenRouter, MiniMax), `thinking_blocks` (LiteLLM). In parts of the content:
Mistral, Databricks, Claude and Gemini through gateways. In the text itself: where the endpoint does not look for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rambla_ray.scoring.answers.thoughts import split_thoughts

_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
_WORDS = ("text", "thinking", "summary", "content", "reasoning")  # Where an object has what can be read of a thought.
_THINKING = re.compile("thinking|reasoning")  # In the type of a part.
_DEEPEST = 5  # Thoughts lie in no more lists and objects than this.


def reasoning_and_text(message: dict[str, Any], content: Any) -> tuple[str, str]:
    """What the model thought, and its answer. Raises TypeError, AttributeError or LookupError: it is no content.

    Args:
        message: what has the content, and what stands beside it.
        content: a text, or its parts.
    """
    inside, text = split_thoughts(content if isinstance(content, str) else _text(content or []))
    apart = _apart(message, content)
    if inside and inside not in apart:  # Some endpoints leave in the text what they send beside it.
        return _joined((apart, inside)), text
    return apart, text


def has_thought(message: dict[str, Any], content: Any) -> bool:
    """Whether a message shows that the model has thought, even where its thoughts are encrypted."""
    return any(message.get(name) for name in _FIELDS) or any(map(_is_thought, _parts(content)))


def _text(parts: list[dict[str, Any]]) -> str:
    """The text of a content in parts. Those of thinking have another type, or are marked (Google's `thought`)."""
    return "".join(part["text"] for part in parts if _is_text(part))


def _is_text(part: dict[str, Any]) -> bool:
    return part.get("type", "text") in ("text", "output_text") and not part.get("thought")


def _is_thought(part: dict[str, Any]) -> bool:
    return bool(part.get("thought") or _THINKING.search(str(part.get("type"))))


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else []


def _apart(message: dict[str, Any], content: Any) -> str:
    """The thoughts that stand outside of the text, once: of several fields that have them, the first."""
    for name in _FIELDS:
        if (value := message.get(name)) and (words := _words(value)):
            return words
    return _joined(_words(part) for part in content if _is_thought(part)) if isinstance(content, list) else ""


def _words(value: Any, depth: int = 0) -> str:
    """What can be read in a thought: a text, or a list or an object that has it; nothing where it is encrypted."""
    if isinstance(value, str):
        return value
    if depth == _DEEPEST or not isinstance(value, list | dict):
        return ""
    if isinstance(value, list):
        return _joined(_words(item, depth + 1) for item in value)
    return next(filter(None, (_words(value[name], depth + 1) for name in _WORDS if name in value)), "")


def _joined(thoughts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, thoughts))
