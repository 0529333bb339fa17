"""What a config gives a chat template beside the prompt: variables of its own, and a system prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import config_files
import huggingface_models
import pytest
import tiny_llama
from config_files import loaded, refusal
from huggingface_models import edit, load

from rambla_ray.actors.local.chat import today
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Identity, Message, Request

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.
tiny = huggingface_models.tiny
copy = huggingface_models.copy

TURNS = tiny_llama.CHAT_TEMPLATE.partition("{% if add")[0]
SWITCH = (
    f"{TURNS}[assistant]{{% if enable_thinking is defined and enable_thinking is false %}}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)
RESET = "{% set enable_thinking = enable_thinking if enable_thinking is defined else true %}"
HARMONY = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% if messages[0].role == 'system' %}<|start|>developer<|message|># Instructions\n\n{{ messages[0].content }}"
    "<|end|>{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
FORGETS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content | trim }}{% endif %}{% endfor %}[assistant]"
)


def prompt_of(model: Any, request: Request) -> str:
    return str(model._tokenizer.decode(model.prepare(request).tokens))


def with_template(folder: Path, template: str, **params: Any) -> Any:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return load(folder, is_finetuned=True, **params)


def known(model: Any, request: Request) -> str:
    return Identity(model.identity()).request_id(model.request_identity(request))


LOSES = "loses the text of a user's message"
ASKED = Request("Is it so?")


@pytest.mark.parametrize("template", [SWITCH, RESET + SWITCH])
@pytest.mark.parametrize(
    ("given", "ending"),
    [
        ({}, "<think>\n"),
        ({"enable_thinking": True}, "<think>\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ],
)
def test_a_chat_template_gets_the_variables_that_the_config_gives(
    copy: Path, template: str, given: dict[str, bool], ending: str
) -> None:
    model = with_template(copy, template, **({"chat_template_kwargs": given} if given else {}))
    assert prompt_of(model, ASKED) == f"<s>[user]Is it so?[assistant]{ending}"
    assert model.identity().get("chat_template_kwargs", {}) == given


def test_variables_and_the_system_prompt_are_in_the_identity_only_where_they_are_given(copy: Path) -> None:
    models = [
        with_template(copy, SWITCH),
        with_template(copy, SWITCH, chat_template_kwargs={}),
        with_template(copy, SWITCH, chat_template_kwargs={"enable_thinking": False}),
        with_template(copy, SWITCH, chat_template_kwargs={"enable_thinking": True}),
        with_template(copy, SWITCH, system="Be brief."),
        with_template(copy, SWITCH, system="Be long."),
    ]
    ids = [known(model, ASKED) for model in models]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5
    by_stage = Request("Is it so?", system="Be long.")
    assert known(models[4], by_stage) == known(models[5], by_stage) == known(models[0], by_stage)


@pytest.mark.parametrize("where", ["a list of templates", "a template"])
def test_a_variable_that_the_template_never_reads_is_one_line_when_loading(copy: Path, where: str) -> None:
    if where == "a list of templates":
        (copy / "chat_template.jinja").unlink()
        named = [{"name": "default", "template": SWITCH}, {"name": "tool_use", "template": "{{ enable_thinkin }}"}]
        edit(copy / "tokenizer_config.json", chat_template=named)
    else:
        (copy / "chat_template.jinja").write_text(SWITCH)
    assert prompt_of(load(copy, is_finetuned=True, chat_template_kwargs={"enable_thinking": True}), ASKED)
    with pytest.raises(CallError) as caught:
        load(copy, is_finetuned=True, chat_template_kwargs={"enable_thinkin": False})
    assert caught.value.kind == ErrorKind.LOAD
    assert "reads no 'enable_thinkin' of chat_template_kwargs; did you mean 'enable_thinking'?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ bos_token }}[user]{% if not quiet %}{{ messages[0].content }}{% endif %}[a]",
            LOSES,
        ),
        (
            "{{ bos_token }}[user]{{ messages[0].content[: none if not quiet else 9] }}[a]",
            LOSES,
        ),
        ("{{ quiet.x.y }}{{ messages[0].content }}", "refuses a user's message: 'bool object' has no attribute 'x'"),
    ],
)
def test_a_template_that_loses_the_question_because_of_a_variable_is_refused(
    copy: Path, template: str, reason: str
) -> None:
    with pytest.raises(CallError, match=reason):
        with_template(copy, template, chat_template_kwargs={"quiet": True})


def test_a_system_prompt_of_the_config_goes_before_every_conversation_that_has_none(copy: Path) -> None:
    model = with_template(copy, tiny_llama.CHAT_TEMPLATE, system="Be brief.")
    brief = "<s>[system]Be brief.[user]Is it so?[assistant]"
    assert prompt_of(model, ASKED) == prompt_of(model, Request("", messages=(Message("user", "Is it so?"),))) == brief
    turns = (Message("system", "Be long."), Message("user", "Is it so?"))
    for own in (Request("Is it so?", system="Be long."), Request("", messages=turns)):
        assert prompt_of(model, own) == brief.replace("brief", "long")
    assert prompt_of(model, Request("Is it so?", verbatim=True)) == "<s>Is it so?"
    plain = with_template(copy, tiny_llama.CHAT_TEMPLATE)
    assert model.size(ASKED)[0] == plain.size(ASKED)[0] + len("Be brief.")
    assert known(plain, Request("Is it so?", system="Be brief.")) == known(model, ASKED)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ bos_token }}[user]{{ messages[-1].content }}[a]", "loses the text of a system prompt"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
            "{{ messages[0].content }}",
            "refuses a system prompt: No system role",
        ),
    ],
)
def test_a_system_prompt_that_the_template_does_not_take_is_refused_when_loading(
    copy: Path, template: str, reason: str
) -> None:
    with pytest.raises(CallError, match=rf"{reason}.*; leave params\.system out$"):
        with_template(copy, template, system="Be brief.")


def test_the_day_that_harmony_names_is_frozen_into_the_identity(copy: Path) -> None:
    given = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    days = {today().isoformat()}
    for model in (with_template(copy, HARMONY, **given), with_template(copy, HARMONY, system="Be brief.", **given)):
        days.add(today().isoformat())
        prompt = prompt_of(model, ASKED)
        assert model.identity()["date"] in days
        assert f"Current date: {model.identity()['date']}\n\nReasoning: high<|end|>" in prompt
        assert prompt.endswith("<|start|>user<|message|>Is it so?<|end|><|start|>assistant")
    assert "# Instructions\n\nBe brief.<|end|>" in prompt


def test_a_template_may_forget_what_was_thought_in_earlier_turns(copy: Path) -> None:
    model = with_template(copy, FORGETS, system="Be brief.")
    turns = (Message("user", "Is it so?"), Message("assistant", "<think>Hm.</think> no"), Message("user", " Why? "))
    prompt = "<s>[system]Be brief.[user]Is it so?[assistant]no[user]Why?[assistant]"
    assert prompt_of(model, Request("", messages=turns)) == prompt


# What is refused when the YAML is read

LOCAL = {"model_name": "nobody/nothing"}
CHAT = {**LOCAL, "is_finetuned": True}


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "messages is not for the config to give"),
        ({"chat_template_kwargs": {"tools": []}}, "tools is not for the config to give"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "add_generation_prompt is not for the config"),
        ({"chat_template_kwargs": {"tokenize": False}}, "tokenize is not for the config to give"),
        ({"chat_template_kwargs": {"bos_token": ""}}, "bos_token is not for the config to give"),
        ({"chat_template_kwargs": {"no name": 1}}, "no name is no name that a template can read"),
        ({"chat_template_kwargs": {"budget": 2**70}}, "a whole number has at most 64 bits"),
        ({"chat_template_kwargs": [1]}, "Input should be a valid dict"),
        ({"chat_template_kwargs": "enable_thinking"}, "Input should be a valid dict"),
        ({"system": ""}, "a system prompt is not empty"),
        ({"system": ["Be brief."]}, "Input should be a valid string"),
    ],
)
def test_what_cannot_be_given_to_a_template_is_refused(conf: Path, params: dict[str, Any], reason: str) -> None:
    assert reason in refused(conf, {**CHAT, **params})


@pytest.mark.parametrize("other", [LOCAL, {**CHAT, "message_formatting_template": "{message}"}])
@pytest.mark.parametrize("own", [{"chat_template_kwargs": {"enable_thinking": False}}, {"system": "Be brief."}])
def test_without_a_chat_template_neither_is_taken(conf: Path, other: dict[str, Any], own: dict[str, Any]) -> None:
    line = refused(conf, {**other, **own})
    assert f"{next(iter(own))} goes through the tokenizer's chat template, which is_finetuned: true applies" in line


def refused(conf: Path, params: dict[str, Any]) -> str:
    write(conf, params)
    line = refusal("model=mine", f"conf_dir={conf}")
    assert "\n" not in line
    return line


def write(conf: Path, params: dict[str, Any]) -> None:
    (conf / "model" / "mine.yaml").write_text(json.dumps({"name": "huggingface_llm", "params": params}))


@pytest.mark.parametrize(
    "word",
    [
        "chat_template_kwargs={enable_thinking: false}",
        "chat_template_kwargs.enable_thinking=false",
    ],
)
def test_a_variable_can_be_given_on_the_command_line(conf: Path, word: str) -> None:
    write(conf, CHAT)
    config = loaded(f"model.params.{word}", "model=mine", f"conf_dir={conf}")
    assert config.targets["mine"].params.chat_template_kwargs == {"enable_thinking": False}


def names(conf: Path) -> tuple[str, Any]:
    config = loaded("model=mine", f"conf_dir={conf}")
    return config.run_id, config.stored()["targets"]["mine"]["params"]


def test_a_config_without_them_is_stored_as_before(conf: Path) -> None:
    write(conf, CHAT)
    run_id, stored = names(conf)
    assert not {"system", "chat_template_kwargs"} & set(stored)
    write(conf, {**CHAT, "system": None, "chat_template_kwargs": {}})
    assert names(conf) == (run_id, stored)
