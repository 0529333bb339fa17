"""Chat templates that compute for ever, or too much: refused when the model is loaded, and none that people use."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import huggingface_models
import pytest
from huggingface_models import load

from rambla_ray.actors.local.chat import SENTINEL
from rambla_ray.actors.local.template_bounds import LARGEST, LONGEST_S, Excess, refuse_endless
from rambla_ray.errors import CallError, ErrorKind

tiny = huggingface_models.tiny
copy = huggingface_models.copy

ALL = "range(100000)"  # The longest that jinja2's sandbox lets a template have.
GROWS = "{% set ns = namespace(x='ab') %}{% for i in range(100) %}BODY{% endfor %}"

TOO_LONG = {
    "loops inside a loop": f"{{% for i in {ALL} %}}{{% for j in {ALL} %}}{{% endfor %}}{{% endfor %}}",
    "a macro that calls itself": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(90) }}",
    "a list for each turn": f"{{% for i in {ALL} %}}{{% set x = {ALL} | list %}}{{% endfor %}}",
}
TOO_LARGE = {
    "a text that doubles": GROWS.replace("BODY", "{% set ns.x = ns.x ~ ns.x %}"),
    "a sum that doubles": GROWS.replace("BODY", "{% set ns.x = ns.x + ns.x %}"),
    "a block that doubles": GROWS.replace("BODY", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "a text, many times": "{{ 'x' * 10000000000 }}",
    "the same where it is never reached": "{% if false %}{{ 'x' * 10000000000 }}{% endif %}",
    "a number": "{{ 2 ** 100000000000 }}",
    "a number that is never reached": "{% if false %}{{ 2 ** 100000000000 }}{% endif %}",
    "a list": "{{ [0] * 10000000000 }}",
    "a filter that pads": "{{ 'x' | center(10000000000) }}",
    "the same of a constant, never reached": "{% if false %}{{ 'x' | center(10000000000) }}{% endif %}",
    "a block that is padded": "{% filter center(10000000000) %}x{% endfilter %}",
    "a method that pads": "{{ messages[0].content.ljust(10000000000) }}",
    "zeros": "{{ '1'.zfill(10000000000) }}",
    "a format": "{{ '{:>10000000000}'.format('a') }}",
    "a format that is told its width": "{{ '{:{}}'.format('a', 10000000000) }}",
    "a format as C has it": "{{ '%10000000000d' % 1 }}",
    "the same, told its width": "{{ '%*d' % (10000000000, 1) }}",
    "the filter of that name": "{{ '%10000000000d' | format(1) }}",
    "an indent": "{{ 'a\nb' | indent(10000000000) }}",
    "an indent of JSON": "{{ messages | tojson(indent=10000000000) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "a text in the place of each letter": "{{ messages[0].content.replace('', messages[0].content) }}",
    "the filter that does so": "{{ messages[0].content | replace('i', messages[0].content) }}",
    "a text between letters": "{{ messages[0].content.join(messages[0].content) }}",
    "many texts in one": "{{ ([messages[0].content] * 100000) | join }}",
    "an output": f"{{% for i in {ALL} %}}{{{{ messages[0].content }}}}{{% endfor %}}",
    "its own length": "{{ messages[0].content }}" + "x" * 1_000_001,
}


def refuse(template: str, longest_s: float = LONGEST_S) -> None:
    messages = [{"role": "user", "content": SENTINEL}]
    variables = {"messages": messages, "tools": None, "add_generation_prompt": True, "bos_token": "<s>"}
    refuse_endless(template, datetime(2026, 11, 27, tzinfo=UTC).strftime, variables, longest_s)


@pytest.mark.parametrize("template", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_computes_too_much_is_refused_before_it_does(template: str) -> None:
    began = time.thread_time()
    with pytest.raises(Excess, match=f"more than {LARGEST:,} characters|is longer than"):
        refuse(template)
    assert time.thread_time() - began < LONGEST_S


@pytest.mark.parametrize("template", TOO_LONG.values(), ids=TOO_LONG)
def test_what_computes_for_ever_is_ended_and_refused(template: str) -> None:
    tracing = sys.gettrace()
    with pytest.raises(Excess, match=r"computes for more than 0\.5 s for one message"):
        refuse(template, longest_s=0.5)
    assert sys.gettrace() is tracing


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}",
        "{% for c in messages[0].content %}{{ c.upper() }}{% endfor %}",
        "{{ '-' * 80 }}{{ 'x' | center(100) }}{{ '%s and %5d' % ('a', 3) }}{{ '{:>10}{:d}'.format('a', 1700000000) }}",
        "{{ messages | tojson(indent=4) }}{{ 1700000000 | round }}{{ strftime_now('%d %B %Y') }}{{ 'a' ~ 3 ~ none }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for i in range(1000) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        "{{ messages[0].content.split('question')[-1].lstrip() }}{{ messages[0].content.replace('is', 'was') }}",
        "{% if tools %}{{ tools | map(attribute='name') | join(', ') }}{% endif %}{{ messages[::-1] | length }}",
        "{{ raise_exception('not now') }}",
        "{{ messages[0].content | no_such_filter }}",
        "{% for i in range(10**9) %}{% endfor %}",  # jinja2 refuses it by itself.
    ],
)
def test_what_people_write_is_left_to_be_used(template: str) -> None:
    refuse(template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TOO_LONG["loops inside a loop"], "computes for more than 5 s for one message"),
        (TOO_LARGE["a text that doubles"], "computes a text, list or number of more than 10,000,000 characters"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses a user's message: OverflowError: Range too big"),
    ],
)
def test_a_checkpoint_with_such_a_template_is_refused_when_it_is_loaded(
    copy: Path, template: str, reason: str
) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}" + template)
    with pytest.raises(CallError) as caught:
        load(copy, is_finetuned=True)
    message = str(caught.value)
    assert caught.value.kind == ErrorKind.LOAD
    assert f"{copy} cannot be loaded: its chat template (chat_template.jinja) {reason}" in message
    assert "mend it, or give message_formatting_template" in message
    assert "\n" not in message
    load(copy)
