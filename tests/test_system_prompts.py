"""The system prompt of a task's stage: who sends it, what counts it, and who is refused because of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import config_files
import huggingface_models
import pytest
import tiny_llama
from conftest import Bench
from picky_server import PickyServer

from rambla_ray.actors.mock import MockModel, MockParams
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.schema import Identity, Request

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.
tiny = huggingface_models.tiny
copy = huggingface_models.copy

TASK = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: target, template: "{question}", system: SYSTEM}
answer: {choices: ["yes", "no"], target: final_decision}
"""
COMPLETION = "name: openai_completion\nparams: {temperature: 0.0}\n"
LOCAL = "name: huggingface_llm\nparams: {model_name: nobody/nothing, is_finetuned: FINETUNED}\n"
FORMATTED = LOCAL.replace("}", ", message_formatting_template: '[u]{message}[a]'}")


def write(conf: Path, system: str = "Use braces {literally}.", *, task: str = TASK) -> list[str]:
    (conf / "task" / "short.yaml").write_text(task.replace("SYSTEM", json.dumps(system)))
    (conf / "model" / "completion.yaml").write_text(COMPLETION)
    (conf / "model" / "base.yaml").write_text(LOCAL.replace("FINETUNED", "false"))
    (conf / "model" / "chat.yaml").write_text(LOCAL.replace("FINETUNED", "true"))
    (conf / "model" / "formatted.yaml").write_text(FORMATTED.replace("FINETUNED", "true"))
    return [f"conf_dir={conf}", "task=short", "limit=4"]


# The config


def test_a_plan_shows_the_system_prompt_that_goes_out_before_the_example(conf: Path) -> None:
    plan = Plan(load([*write(conf, "Be brief.\nBe kind."), "model=mock"]))
    lines = list(plan_lines(plan.describe()))
    at = lines.index("  system | Be brief.")
    assert lines[at + 1] == "  system | Be kind."
    assert lines[at + 2].startswith("  | ")


def test_a_stage_without_a_system_prompt_is_stored_as_before_and_its_run_has_the_same_name() -> None:
    config = load(["model=mock", "task=all"])
    stages = [
        body for task in config.stored()["tasks"].values() for stage in task["stages"] for body in stage.values()
    ]
    assert not any("system" in body for body in stages)
    assert config.run_id == "mock-13tasks-9510c56f"
    words = ["model=openai_chat", "task=question_formation", "roles.judge=openai_35_chat"]
    assert load(words).run_id == "openai_chat-question_formation-14a7afe1"


def test_a_system_prompt_is_text_without_placeholders_and_part_of_the_run(conf: Path) -> None:
    config = load(["model=gpt", *write(conf)])
    assert config.tasks["short"].generates[0].system == "Use braces {literally}."
    (stage,) = config.stored()["tasks"]["short"]["stages"]
    assert stage["generate"]["system"] == "Use braces {literally}."
    assert config.run_id != load(["model=gpt", *write(conf, "Another.")]).run_id


@pytest.mark.parametrize("kind", ["generate", "compare"])
@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ('" "', "a system prompt is not empty"),
        ('""', "a system prompt is not empty"),
        ("7", "Input should be a valid string"),
        ("yes", "put it in quotes"),
        ("[a]", "Input should be a valid string"),
        ("'${oc.env:MY_PLACE}'", "is a text, which would be stored"),
    ],
)
def test_a_broken_system_prompt_is_one_line(
    conf: Path, monkeypatch: pytest.MonkeyPatch, kind: str, system: str, reason: str
) -> None:
    monkeypatch.setenv("MY_PLACE", "a text of the environment")
    words = write(conf)
    task = TASK if kind == "generate" else TASK.replace("generate: {", "compare: {left: question, right: context, ")
    (conf / "task" / "short.yaml").write_text(task.replace("SYSTEM", system))
    with pytest.raises(UserError, match=rf"^task short \(short\.yaml\): .*{reason}") as refused:
        load(["model=gpt", *words])
    assert "\n" not in str(refused.value)


# The plan


@pytest.mark.parametrize("model", ["completion", "base", "formatted"])
def test_a_model_that_has_no_place_for_it_is_refused_before_any_call(conf: Path, model: str) -> None:
    words = [f"model={model}", *write(conf)]
    with pytest.raises(
        UserError, match=rf"^task short gives its target a system prompt .* model {model} \("
    ) as refused:
        Plan(load(words))
    assert "\n" not in str(refused.value)
    Plan(load([f"model={model}", *write(conf, task=TASK.replace(", system: SYSTEM", ""))]))


@pytest.mark.parametrize("model", ["gpt", "chat", "mock"])
def test_a_model_that_has_a_place_for_it_is_not(conf: Path, model: str) -> None:
    (conf / "model" / "mock.yaml").write_text("name: mock\n")
    Plan(load([f"model={model}", *write(conf)]))


def test_a_model_that_scores_reads_no_prompt_and_no_system_prompt(conf: Path) -> None:
    (conf / "model" / "bleu.yaml").write_text("name: text_overlap\nparams: {metric: bleu}\n")
    task = TASK.replace("generate: {", "compare: {left: question, right: context, ")
    Plan(load(["model=bleu", *write(conf, task=task)]))


def test_the_estimate_counts_the_system_prompt_that_each_call_has(conf: Path) -> None:
    def estimated(*words: str, task: str = TASK) -> tuple[int, int]:
        pool = Plan(load(["model=gpt", *write(conf, "s" * 399, task=task), *words])).describe()["streams"]["gpt"][0]
        return pool["unique_calls"], pool["prompt_tokens"]

    plain = TASK.replace(", system: SYSTEM", "")
    without = estimated(task=plain)
    assert estimated() == (4, without[1] + 4 * 100)
    assert estimated("model.params.system=" + "s" * 400, task=plain) == (4, without[1] + 4 * 100)
    assert estimated("model.params.system=" + "t" * 4000) == (4, without[1] + 4 * 100)


# The models


def test_the_mock_answers_as_without_it() -> None:
    model = MockModel(MockParams(behaviour="oracle"), Pool(), None)
    texts = [asyncio.run(model.generate(Request("Say it.", system=system))).text for system in ("", "Be brief.")]
    assert texts == ["Say it.", "Say it."]


def prompt_of(model: Any, request: Request) -> str:
    return str(model._tokenizer.decode(model.prepare(request).tokens))


def with_template(folder: Path, template: str) -> Any:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return huggingface_models.load(folder, is_finetuned=True)


FOLDS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}<<{{ messages[0].content | trim }}>>{% endif %}"
    "[user]{{ messages[-1].content }}[a]"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (tiny_llama.CHAT_TEMPLATE, "<s>[system]Be brief.[user]Is it?[assistant]"),
        (FOLDS, "<s><<Be brief.>>[user]Is it?[a]"),
    ],
)
def test_a_local_chat_model_renders_it_by_its_own_template(copy: Path, template: str, prompt: str) -> None:
    model, request = with_template(copy, template), Request("Is it?", system="Be brief.")
    assert prompt_of(model, request) == prompt
    plain = Request("Is it?")
    one, other = (Identity(model.identity()).request_id(model.request_identity(asked)) for asked in (request, plain))
    assert one != other


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ bos_token }}{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "loses the text of a",
        ),
        ("{{ bos_token }}{{ messages[0].content }}", "loses the text of a system prompt, or of the user's"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
            "{{ messages[0].content }}",
            "refuses a system prompt: No system role",
        ),
    ],
)
def test_a_template_that_loses_it_ends_the_run_and_asks_no_question_without_it(
    copy: Path, template: str, reason: str
) -> None:
    model, request = with_template(copy, template), Request("Is it?", system="Be brief.")
    for call in (model.prepare, model.request_identity):
        with pytest.raises(CallError, match=reason) as caught:
            call(request)
        assert caught.value.kind == ErrorKind.LOAD
    assert prompt_of(model, Request("Is it?")).endswith("Is it?")


def test_a_day_that_stands_only_beside_a_system_prompt_is_part_of_that_requests_identity(copy: Path) -> None:
    dated = "{% if messages[0].role == 'system' %}{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}{% endif %}"
    model = with_template(copy, "{{ bos_token }}" + dated + "[user]{{ messages[-1].content }}")
    own = model.request_identity(Request("Is it?", system="Be brief."))
    assert own["date"] in prompt_of(model, Request("Is it?", system="Be brief."))
    assert "date" not in model.request_identity(Request("Is it?"))


# A run


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_sends_the_stages_system_prompt_and_shows_it_in_its_config(
    bench: Callable[[Sequence[str]], Bench], conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    words = write(conf)
    with PickyServer() as server:
        where = ["model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        done = bench(["model=gpt", *words, *where, "model.params.system=Be long.", "fail_if.failed_above=1"])
        systems = {(body["messages"][0]["role"], body["messages"][0]["content"]) for body in server.bodies}
        assert len(server.bodies) == 4
    assert done.status in (0, 2), done.err
    assert systems == {("system", "Use braces {literally}.")}
    assert "Use braces {literally}." in done.read("config.yaml")
