"""Chat templates: what each makes of a question, and what is refused when the model is loaded."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import tiny_llama
from huggingface_models import ask, edit, load
from transformers import AutoTokenizer

from rambla_ray.actors.local.chat import ChatTemplate, today
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Identity, Message, Request

tiny = huggingface_models.tiny
copy = huggingface_models.copy

BY_PARTS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content[0]['text'] }}{% endfor %}[a]"
LOOPS_OVER_PARTS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}[a]"
)
REFUSES_TEXTS = (
    "{% if messages[0].content is string %}{{ raise_exception('content must be a list') }}{% endif %}" + BY_PARTS
)
EITHER = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}"
    "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}[a]"
)
DATED = "{{ bos_token }}Today Date: {{ strftime_now('%d %b %Y, %H:%M') }} [user]{{ messages[0].content }}[a]"
DATED_IF_ASKED = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ strftime_now('%Y') }}{% endif %}"
    "[user]{{ messages[-1].content }}[a]"
)
FIXED_DATE = (
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{{ bos_token }}{{ date_string }} [user]{{ messages[0].content }}[a]"
)
TRIMS = "{{ bos_token }}[user]{{ messages[0].content | trim }}[a]"


def write(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def prompt_of(model: Any, *messages: Message) -> str:
    request = Request("", messages=messages) if messages else Request("Is it so?")
    return str(model._tokenizer.decode(model.prepare(request).tokens))


@pytest.mark.parametrize(
    ("template", "prompt", "own_identity"),
    [
        pytest.param(tiny_llama.CHAT_TEMPLATE, "<s>[user]Is it so?[assistant]", {}, id="a text"),
        pytest.param(TRIMS, "<s>[user]Is it so?[a]", {}, id="a text that is trimmed"),
        pytest.param(EITHER, "<s>[user]Is it so?[a]", {}, id="a text or parts"),
        pytest.param(BY_PARTS, "<s>[user]Is it so?[a]", {"content": "parts"}, id="the first part"),
        pytest.param(LOOPS_OVER_PARTS, "<s>[user]Is it so?[a]", {"content": "parts"}, id="all parts"),
        pytest.param(REFUSES_TEXTS, "<s>[user]Is it so?[a]", {"content": "parts"}, id="parts or an error"),
        pytest.param(FIXED_DATE, "<s>26 Jul 2024 [user]Is it so?[a]", {}, id="a date of its own"),
        pytest.param(DATED_IF_ASKED, "<s>[user]Is it so?[a]", {}, id="today's date in other prompts only"),
        pytest.param("{{ bos_token }}" + TRIMS, "<s>[user]Is it so?[a]", {"bos": "once"}, id="two beginnings"),
        pytest.param("[user]{{ messages[0].content }}[a]", "[user]Is it so?[a]", {}, id="no beginning"),
    ],
)
def test_the_question_stands_in_the_prompt_whatever_form_the_template_takes(
    copy: Path, template: str, prompt: str, own_identity: dict[str, str]
) -> None:
    model = load(write(copy, template), is_finetuned=True)
    assert prompt_of(model) == prompt
    usual = load(write(copy, tiny_llama.CHAT_TEMPLATE), is_finetuned=True).identity()
    assert {key: value for key, value in model.identity().items() if key not in usual} == own_identity


@pytest.mark.parametrize("backend", ["transformers", "transformers_continuous"])
def test_a_question_by_parts_is_answered_as_the_same_text_is(copy: Path, backend: str) -> None:
    (by_text,) = ask(load(write(copy, EITHER), is_finetuned=True, backend=backend), "Is it so?")
    (by_parts,) = ask(load(write(copy, BY_PARTS), is_finetuned=True, backend=backend), "Is it so?")
    assert (by_parts.text, by_parts.prompt_tokens) == (by_text.text, by_text.prompt_tokens)


def test_every_message_of_a_conversation_is_passed_in_the_form_that_the_template_takes(copy: Path) -> None:
    model = load(write(copy, LOOPS_OVER_PARTS), is_finetuned=True)
    assert prompt_of(model, Message("system", "Be brief."), Message("user", "Is it?")) == (
        "<s>[system]Be brief.[user]Is it?[a]"
    )


REFUSED = {
    "no end": ("{% for m in messages %}{{ m.content }}", "is broken in line 1: Unexpected end of template."),
    "no such filter": ("\n\n{{ messages[0].content | shout }}", "is broken in line 3: No filter named 'shout'."),
    "roles": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('System\nfirst!') }}{% endif %}",
        "refuses a user's message: System first!",
    ),
    "an undefined name": (
        "{{ messages[0].content + suffix.text }}",
        "refuses a user's message: 'suffix' is undefined",
    ),
    "a type": ("{{ messages[0].content + 1 }}", "refuses a user's message: TypeError: can only concatenate str"),
    "the system alone": (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}[a]",
        "loses the text of a user's message",
    ),
    "another key": ("[user]{{ messages[0].text }}[a]", "loses the text of a user's message"),
    "cut": ("[user]{{ messages[0].content[:2000] }}[a]", "loses the text of a user's message"),
    "changed": ("[user]{{ messages[0].content | upper }}[a]", "loses the text of a user's message"),
    "twice": ("{{ messages[0].content }} Again: {{ messages[0].content }}", "writes a user's message 2 times"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_used_is_refused_when_loading_in_one_line(
    copy: Path, template: str, reason: str
) -> None:
    with pytest.raises(CallError) as caught:
        load(write(copy, template), is_finetuned=True)
    message = str(caught.value)
    assert caught.value.kind == ErrorKind.LOAD
    assert f"{copy} cannot be loaded: its chat template (chat_template.jinja) {reason}" in message
    assert message.endswith("; mend it, or give message_formatting_template")
    assert "\n" not in message
    load(copy, is_finetuned=True, message_formatting_template="[user]{message}[a]")
    load(copy)


# Where a template stands


def in_tokenizer_config(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": template} for name, template in templates.items()]


@pytest.mark.parametrize("template", [TRIMS, named(default=TRIMS, tool_use="{{ broken")])
def test_the_default_of_the_templates_in_the_tokenizers_config_is_used(copy: Path, template: Any) -> None:
    in_tokenizer_config(copy, template)
    assert prompt_of(load(copy, is_finetuned=True)) == "<s>[user]Is it so?[a]"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if", "(tokenizer_config.json) is broken in line 1: "),
        (named(rag=TRIMS, tool_use=TRIMS), "(tokenizer_config.json) refuses a user's message: ValueError: This model"),
    ],
)
def test_a_fault_in_the_tokenizers_config_names_that_file(copy: Path, template: Any, reason: str) -> None:
    in_tokenizer_config(copy, template)
    with pytest.raises(CallError) as caught:
        load(copy, is_finetuned=True)
    assert reason in str(caught.value)


def test_the_template_of_a_processor_is_none_of_the_tokenizers(copy: Path) -> None:
    (copy / "chat_template.jinja").rename(copy / "away")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": TRIMS}))
    assert "has no chat template" in huggingface_models.refused(copy, is_finetuned=True)


# Today's date


def test_prompts_name_one_day_however_long_the_model_is_loaded_and_it_is_part_of_their_identity(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write(copy, DATED))
    days = [date(2026, 11, 27), date(2026, 11, 28)]
    first, second = (ChatTemplate.of(tokenizer, day) for day in days)
    for chat, name in ((first, "27 Nov 2026"), (second, "28 Nov 2026"), (first, "27 Nov 2026")):
        messages = [{"role": "user", "content": "Is it so?"}]
        rendered = f"<s>Today Date: {name}, 00:00 [user]Is it so?[a]"
        assert chat.render(messages) == rendered
        assert tokenizer.decode(chat.tokens(messages)) == rendered
    assert [chat.identity() for chat in (first, second)] == [{"date": "2026-11-27"}, {"date": "2026-11-28"}]
    assert len({Identity(chat.identity()).request_id({"prompt": "Is it so?"}) for chat in (first, second)}) == 2


def test_a_model_with_a_dated_template_takes_the_day_on_which_it_is_loaded(copy: Path) -> None:
    before = today()
    model = load(write(copy, DATED), is_finetuned=True)
    day = model.identity()["date"]
    assert day in {before.isoformat(), today().isoformat()}
    assert date.fromisoformat(day).strftime("%d %b %Y") in prompt_of(model)


# One beginning


@pytest.mark.parametrize(
    ("template", "prompt", "own_identity"),
    [
        ("[user]{message}[a]", "<s>[user]Is it so?[a]", {}),
        ("{message}", "<s>Is it so?", {}),
        ("<s>[user]{message}[a]", "<s>[user]Is it so?[a]", {"bos": "once"}),
        ("<s><s>[user]{message}[a]", "<s><s>[user]Is it so?[a]", {"bos": "once"}),
        ("[user]<s>{message}[a]", "<s>[user]<s>Is it so?[a]", {}),
    ],
)
def test_a_formatted_prompt_has_no_more_beginnings_than_its_template_says(
    tiny: Path, template: str, prompt: str, own_identity: dict[str, str]
) -> None:
    model = load(tiny, is_finetuned=True, message_formatting_template=template)
    assert prompt_of(model) == prompt
    assert prompt_of(model, Message("user", "Is it so?")) == prompt
    usual = load(tiny).identity()
    assert {key: value for key, value in model.identity().items() if key not in usual} == own_identity


def test_a_prompt_without_a_template_is_left_as_it_is(tiny: Path) -> None:
    model = load(tiny)
    assert model.prepare(Request("<s>Is it?")).tokens == AutoTokenizer.from_pretrained(tiny)("<s>Is it?").input_ids
