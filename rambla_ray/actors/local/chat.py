"""The chat template of a tokenizer, tried when its model is loaded, so that no question is lost in it later.

A template is a program that comes with the checkpoint. It may take the content of a message as a text or as a list of
parts, and of the other form it may silently write nothing. It may name today's date, refuse what it is given, or be
broken. What it does with one user's message is found out before anything is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import Any, Self

from jinja2 import TemplateError, TemplateSyntaxError, meta

from rambla_ray.actors.local.chat_params import RESERVED
from rambla_ray.actors.local.template_bounds import Excess, refuse_endless
from rambla_ray.display import folded
from rambla_ray.scoring.answers.thoughts import ends_inside

# A message that must stand in the prompt once and whole. It is long, so that a template that cuts texts is found.
SENTINEL = f"Sentinel question: {'is it so, ' * 5_000}or is it not?"
TWO_DAYS = (date(2001, 2, 3), date(2022, 11, 25))  # They differ in all that a date is written with.
LONGEST_REASON = 300  # What a template says is cut to so many characters.
FOR_AN_ANSWER: Mapping[str, Any] = {"add_generation_prompt": True}

Messages = Sequence[Mapping[str, str]]


def today() -> date:
    """The day that prompts name, the same on every node wherever it stands."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become tokens.

    Args:
        tokenizer: transformers' tokenizer, which brings the template.
        by_parts: content is passed as a list of parts, as the template writes nothing of a plain text.
        day: the day that it is to the template. It does not move on, so that all prompts of a model name the same.
        options: variables of the template's own, such as enable_thinking.
        names_day: the day stands in prompts.
        doubles_bos: the first token of a prompt would stand there twice.
        tail: what it writes behind the user's message, where the answer begins.
    """

    tokenizer: Any
    by_parts: bool
    day: date
    options: Mapping[str, Any] = field(default_factory=dict)
    names_day: bool = False
    doubles_bos: bool = False
    tail: str = ""

    @classmethod
    def of(cls, tokenizer: Any, day: date, options: Mapping[str, Any] | None = None) -> ChatTemplate:
        """The template of a tokenizer that has one.

        Raises:
            ValueError: a user's message gets lost in it, or cannot be rendered, or not in bounds of time and size. The
                reason is a predicate in one line.
        """
        chat = _in_form(cls(tokenizer, by_parts=False, day=day, options=options or {}))
        first, second = (replace(chat, day=day).try_on(_user(SENTINEL)) for day in TWO_DAYS)
        return replace(
            chat,
            names_day=first != second,
            doubles_bos=begins_twice(tokenizer, chat.tokens(_user("Yes?"))),
            tail=_tail(first),
        )

    @property
    def opens_thought(self) -> bool:
        """Whether an answer begins inside of a thought."""
        return ends_inside(self.tail)

    def unread_option(self) -> tuple[str, list[str]] | None:
        """An option that the template never reads, and what it does read; None where it reads all of them."""
        environment = chat_template_utils()._compile_jinja_template("").environment
        read = meta.find_undeclared_variables(environment.parse(self.tokenizer.get_chat_template()))
        unread = sorted(set(self.options) - read)
        own = sorted(read - RESERVED - set(self.tokenizer.special_tokens_map))
        return (unread[0], own) if unread else None

    def identity(self) -> dict[str, object]:
        """What may change an answer beside the template's text, as far as it is not as with most templates."""
        return {
            **({"content": "parts"} if self.by_parts else {}),
            **({"date": self.day.isoformat()} if self.names_day else {}),
            **({"bos": "once"} if self.doubles_bos else {}),
        }

    def render(self, messages: Messages) -> str:
        """The prompt as a text. Raises whatever the template does, often jinja2's TemplateError."""
        self._set_day()
        return str(self.tokenizer.apply_chat_template(self._shaped(messages), tokenize=False, **self._variables))

    def try_on(self, messages: Messages) -> str:
        """The prompt as a text, of a template that nobody has seen end yet.

        Raises:
            Excess: it computes too long or too much.
            Exception: as `render`.
        """
        variables = {"messages": self._shaped(messages), "tools": None, "documents": None, **self._variables}
        source = self.tokenizer.get_chat_template()
        refuse_endless(source, self._strftime, {**self.tokenizer.special_tokens_map, **variables})
        return self.render(messages)

    def with_system(self, system: str) -> Self:
        """The template for prompts that begin with a system prompt.

        Raises:
            ValueError: one gets lost in it, or cannot be rendered. The reason is a predicate in one line.
        """
        messages = [{"role": "system", "content": system}, *_user(SENTINEL)]
        try:
            first, second = (replace(self, day=day).try_on(messages) for day in TWO_DAYS)
        except Excess:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_in_form`
            raise ValueError(_refusal(error, "a system prompt")) from None
        if system.strip() not in first or SENTINEL not in first:
            raise ValueError("loses the text of a system prompt, or of the user's message behind it")
        return replace(self, names_day=first != second, tail=_tail(first))

    def tokens(self, messages: Messages) -> list[int]:
        """The prompt's tokens. Raises whatever the template does, often jinja2's TemplateError."""
        self._set_day()
        encoding = self.tokenizer.apply_chat_template(self._shaped(messages), return_dict=True, **self._variables)
        return list(encoding["input_ids"])[int(self.doubles_bos) :]

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt that is a text already; those of `tokens` where it is what `render` returns."""
        return list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])[int(self.doubles_bos) :]

    @property
    def _variables(self) -> dict[str, Any]:
        return {**self.options, **FOR_AN_ANSWER}

    def _shaped(self, messages: Messages) -> list[dict[str, Any]]:
        if not self.by_parts:
            return [dict(message) for message in messages]
        return [{**message, "content": [_part(message["content"])]} for message in messages]

    def _set_day(self) -> None:
        """Give the template its day; transformers would give it the present moment.

        transformers keeps the environment of a template for later prompts. Other models of this process may share it.
        """
        compiled = chat_template_utils()._compile_jinja_template(self.tokenizer.get_chat_template())
        compiled.environment.globals["strftime_now"] = self._strftime

    @property
    def _strftime(self) -> Callable[[str], str]:
        return datetime.combine(self.day, time()).strftime


def chat_template_utils() -> Any:
    """transformers' module that compiles templates, which is slow to import."""
    from transformers.utils import chat_template_utils as module

    return module


def begins_twice(tokenizer: Any, tokens: Sequence[int]) -> bool:
    """Whether a prompt begins with two tokens for its beginning: a template wrote one, and the tokenizer another."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokens[:2]) == [bos, bos]


def _user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _in_form(chat: ChatTemplate) -> ChatTemplate:
    """The template with content in the form that it takes, a text or else a list of parts. Raises ValueError: none."""
    reason = ""
    for by_parts in (False, True):
        tried = replace(chat, by_parts=by_parts)
        try:
            rendered = tried.try_on(_user(SENTINEL))
        except Excess:
            raise
        except Exception as error:  # noqa: BLE001 - a template is a program, and raises what its author left in it
            reason = reason or _refusal(error)
            continue
        times = 0 if str(_part(SENTINEL)) in rendered else rendered.count(SENTINEL)  # It may print the list itself.
        if times == 1:
            return tried
        reason = reason or (
            f"writes a user's message {times} times" if times else "loses the text of a user's message"
        )
    raise ValueError(reason)


def _tail(rendered: str) -> str:
    return rendered.rpartition(SENTINEL)[2]


def _refusal(error: Exception, what: str = "a user's message") -> str:
    words = folded(str(error), LONGEST_REASON)
    if isinstance(error, TemplateSyntaxError):
        return f"is broken in line {error.lineno}: {words}"
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f"refuses {what}: {kind}{words}"
