"""How a request becomes the tokens of a prompt: by the chat template, by the params' own format, or as it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rambla_ray.actors.local import weights
from rambla_ray.actors.local.chat import ChatTemplate, Messages, begins_twice, today
from rambla_ray.actors.local.continuations import PLAIN_DELIMITER, Context
from rambla_ray.actors.local.params import HuggingFaceParams, missing_chat_template
from rambla_ray.actors.local.reasoning import Answer, Read, Reasoning
from rambla_ray.errors import CallError, ErrorKind, choose_from
from rambla_ray.schema import Request
from rambla_ray.scoring.answers.thoughts import ends_with_open

_BEHIND_THOUGHT = (
    "behind which no choice is an answer; close it (params.chat_template_kwargs: {enable_thinking: false}, where the "
    "chat template reads that), or leave out answer.by"
)


class Prompting:
    """The prompts of one model, and what tells its thoughts from its answers behind each of them.

    Args:
        tokenizer: transformers' tokenizer.
        params: the model's.
        place: where the tokenizer came from: a folder or hub id.
        load_error: the error that the model cannot be loaded, of a reason.

    Raises:
        CallError: `load`: its templates cannot be used.
    """

    def __init__(
        self, tokenizer: Any, params: HuggingFaceParams, place: str, load_error: Callable[[str], CallError]
    ) -> None:
        self._tokenizer = tokenizer
        self._params = params
        self._place = place
        self._load_error = load_error
        self._reasoning = self._how_it_thinks()
        self._by_system: dict[str, ChatTemplate] = {}
        self._plain_chat = self._load_chat_template() if params.needs_chat_template else None
        self._chat = self._chat_for(params.system) if params.system else self._plain_chat
        self._format_doubles_bos = self._formatted_prompt_begins_twice()

    def _how_it_thinks(self) -> Reasoning:
        try:
            return Reasoning.of(self._tokenizer)
        except (ValueError, TypeError) as error:
            raise self._load_error(f"its tokenizer's response_template is broken: {error}") from None

    def _load_chat_template(self) -> ChatTemplate:
        """The tokenizer's chat template, tried. Raises CallError (`load`)."""
        if not self._tokenizer.chat_template:
            raise CallError(ErrorKind.LOAD, missing_chat_template(self._place))
        file = weights.chat_template_file(Path(self._place))
        where = f"chat template ({file})" if file else "chat template"
        try:
            chat = ChatTemplate.of(self._tokenizer, today(), self._params.chat_template_kwargs)
        except ValueError as error:
            raise self._load_error(f"its {where} {error}; mend it, or give message_formatting_template") from None
        if unread := chat.unread_option():
            name, read = unread
            raise self._load_error(f"its {where} reads no '{name}' of chat_template_kwargs; {choose_from(name, read)}")
        return chat

    def _chat_for(self, system: str) -> ChatTemplate:
        """The chat template, tried with a system prompt. Raises CallError (`load`): others fare no better."""
        if self._plain_chat is None:
            raise self._load_error("a prompt without chat template has no place for a system prompt")
        if system not in self._by_system:
            try:
                self._by_system[system] = self._plain_chat.with_system(system)
            except ValueError as error:
                of_params = system == self._params.system
                way_out = (
                    "leave params.system out" if of_params else "put the system prompt of the task into its template"
                )
                raise self._load_error(f"its chat template {error}; {way_out}") from None
        return self._by_system[system]

    def _formatted_prompt_begins_twice(self) -> bool:
        """Whether `message_formatting_template` begins with the token that the tokenizer puts first as well."""
        template = self._params.message_formatting_template
        if template is None:
            return False
        return begins_twice(self._tokenizer, self._tokenizer(template.format(message="Yes?"))["input_ids"])

    def identity(self) -> dict[str, object]:
        """What may change an answer: how prompts are made, and what their answers are split by."""
        params = self._params
        template = params.message_formatting_template or self._tokenizer.chat_template
        return {
            "template": template if params.is_finetuned else None,
            **({"chat_template_kwargs": params.chat_template_kwargs} if params.chat_template_kwargs else {}),
            **({"system": params.system} if params.system else {}),
            **(self._chat_identity(self._chat) if self._chat else self._reasoning.identity(opened=False)),
            **({"bos": "once"} if params.is_finetuned and self._format_doubles_bos else {}),
        }

    def request_identity(self, request: Request) -> dict[str, object]:
        """The same of one request, as far as it differs."""
        if request.system:
            return self._chat_identity(self._chat_for(request.system))
        is_plain = self._chat is None and not (request.verbatim or request.messages)
        if is_plain and ends_with_open(self._text(request)):
            return self._reasoning.identity(opened=True)
        return {}

    def _chat_identity(self, chat: ChatTemplate) -> dict[str, object]:
        return {**chat.identity(), **self._reasoning.identity(opened=chat.opens_thought)}

    def read(self, request: Request, tokens: list[int]) -> Read:
        """What reads the answer behind a prompt. What is continued as it stands is left as it is."""
        if request.verbatim:
            return self._as_it_is
        chat = self._chat_of(request)
        return self._reasoning.reader(tokens, chat.tail if chat else "")

    def _as_it_is(self, tokens: list[int]) -> Answer:
        return Answer(str(self._tokenizer.decode(tokens, skip_special_tokens=True)))

    def tokens(self, request: Request) -> list[int]:
        """A prompt's tokens. Raises CallError (`bad_request`): a conversation that the model cannot be asked."""
        chat = self._chat_of(request)
        if chat and (request.system or not request.verbatim):
            return self._by_template(chat, request)
        text = self._text(request)
        doubles = self._format_doubles_bos and self._is_formatted(request)
        return list(self._tokenizer(text)["input_ids"])[int(doubles) :]

    def context(self, request: Request) -> Context:
        """The prompt of a request for continuations.

        Raises:
            CallError: `load`: it ends inside of a thought, behind which no continuation is an answer.
        """
        if chat := self._chat_of(request):
            if chat.opens_thought:
                raise self._load_error(f"its chat template opens a thought, {_BEHIND_THOUGHT}")
            return Context(chat.render(self._turns(request)), chat.encode)
        text, is_formatted = self._text(request), self._params.is_finetuned
        if ends_with_open(text):
            raise self._load_error(f"the prompt opens a thought, {_BEHIND_THOUGHT}")
        skipped = int(is_formatted and self._format_doubles_bos)
        begins_word = is_formatted and text[-1:].isspace()  # The template has said what stands before an answer.
        delimiter = "" if begins_word else PLAIN_DELIMITER
        return Context(text, lambda whole: list(self._tokenizer(whole)["input_ids"])[skipped:], delimiter)

    def _chat_of(self, request: Request) -> ChatTemplate | None:
        return self._chat_for(request.system) if request.system else self._chat

    def _turns(self, request: Request) -> Messages:
        """The conversation. A system prompt of its own wins over the config's."""
        turns: Messages = [message._asdict() for message in request.messages]
        if request.system or not turns:
            turns = [{"role": "user", "content": request.prompt.strip()}]
        system = request.system or self._params.system_prompt
        if not system or any(turn["role"] == "system" for turn in turns):
            return turns
        return [{"role": "system", "content": system}, *turns]

    def _by_template(self, chat: ChatTemplate, request: Request) -> list[int]:
        try:
            return chat.tokens(self._turns(request))
        except TemplateError as error:  # Some take no system message, some no two messages of a user in a row.
            raise CallError(ErrorKind.BAD_REQUEST, f"the chat template refuses these messages: {error}") from None

    def _is_formatted(self, request: Request) -> bool:
        params = self._params
        return bool(params.is_finetuned or request.messages) and not request.verbatim

    def _text(self, request: Request) -> str:
        """The text of a prompt that does not go through a chat template. Raises CallError (`bad_request`)."""
        if request.system:
            raise self._load_error("a prompt without chat template has no place for a system prompt")
        text = request.prompt
        if request.messages and not request.verbatim:
            if [message.role for message in request.messages] != ["user"]:
                raise CallError(ErrorKind.BAD_REQUEST, "this model has no chat template: send one user message")
            text = request.messages[0].content
        template = self._params.message_formatting_template
        return template.format(message=text) if template and self._is_formatted(request) else text
